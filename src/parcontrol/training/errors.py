"""Why a run ends before its time. Each is one message for the person who started it."""

from __future__ import annotations

import signal


class RunStoppedError(RuntimeError):
    """The run cannot go on; its newest checkpoint can be resumed with the same command."""


class NonFiniteError(RunStoppedError):
    """A loss or a gradient was NaN or infinite."""


class DiskFullError(RunStoppedError):
    """There was no room for a file of the run."""


class TooManyFilesError(RunStoppedError):
    """No further file could be opened."""


class OutOfMemoryError(RunStoppedError):
    """The device or the machine had no memory left."""


class LostProcessError(RunStoppedError):
    """Another process of the run has ended."""


class Interrupted(SystemExit):
    """SIGINT or SIGTERM came; the exit code is 128 + the signal's number, as shells expect."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.signal_name = signal.Signals(signum).name
