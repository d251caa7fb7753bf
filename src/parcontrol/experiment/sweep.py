"""The sweep: starts runs, watches them, stops them, and says how each ended."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Literal

from parcontrol.experiment.launch import Launcher, LostRunError, RunProcess, console_path, failure
from parcontrol.experiment.plan import PlannedRun
from parcontrol.runs import RunDirectory

_POLL_SECONDS = 0.2
# How long a run waits for another process in its directory, which may be one of a killed sweep
# that is still writing its checkpoint. After that it is started, and says itself what is wrong.
_SECONDS_IN_USE = 120.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A run ends by itself at the next step, or at once while it is not yet listening.
_INTERRUPTED = {code for signum in _SIGNALS for code in (128 + signum, -signum)}


@dataclass
class RunStatus:
    """How a run stands.

    Attributes:
        run: The run.
        state: `waiting` for its turn, `in use` by another process, `running`, and at the end
            `finished`, `failed`, `interrupted` (it can be resumed) or still `waiting`.
        error: Why it failed.
        process: The run's process while it runs.
    """

    run: PlannedRun
    state: Literal["waiting", "in use", "running", "finished", "failed", "interrupted"] = "waiting"
    error: str | None = None
    process: RunProcess | None = None


class Sweep:
    """Runs of one plan, some at a time.

    Attributes:
        statuses: How each run stands, in the order of the plan.
        signals: Signals that came while it ran.
    """

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        launcher: Launcher,
        *,
        max_parallel: int | None = None,
        fail_fast: bool = False,
        show: Callable[[Sequence[RunStatus]], None] = lambda statuses: None,
    ) -> None:
        """Prepares a sweep.

        Args:
            runs: The plan; finished runs are skipped.
            launcher: Where the runs go.
            max_parallel: Runs at a time; None takes the launcher's own number.
            fail_fast: Whether the first failure stops the others, with a checkpoint.
            show: Called again and again with the statuses.
        """
        self.launcher, self.fail_fast, self.show = launcher, fail_fast, show
        self.parallel = max_parallel or launcher.parallel or len(runs)
        self.statuses = [RunStatus(run, "finished" if run.state == "finished" else "waiting") for run in runs]
        self.signals: list[int] = []
        self._forwarded = 0
        self._stopping = False
        self._in_use_since: dict[str, float] = {}

    def run(self) -> list[RunStatus]:
        """Runs until nothing is left to run; returns the statuses.

        SIGINT and SIGTERM go to all runs, which write a checkpoint and end, and so does the sweep. A
        second one ends them at once.
        """
        with self._noted_signals():
            self._create_directories()
            while True:
                self._forward_signals()
                self._start_waiting()
                self._poll_running()
                self.show(self.statuses)
                if not self._running() and (self._stopping or not self._waiting()):
                    return self.statuses
                time.sleep(_POLL_SECONDS)

    def _create_directories(self) -> None:
        """Leaves a trace of every planned run, so that a report shows those that never began."""
        for status in self._waiting():
            if not status.run.directory.exists:
                RunDirectory.open_for_training(status.run.config).close()

    def _running(self) -> list[RunStatus]:
        return [status for status in self.statuses if status.state == "running"]

    def _waiting(self) -> list[RunStatus]:
        return [status for status in self.statuses if status.state in ("waiting", "in use")]

    def _start_waiting(self) -> None:
        for status in self._waiting():
            if self._stopping or len(self._running()) >= self.parallel:
                return
            status.state = "in use" if self._must_wait(status.run) else "running"
            if status.state == "running":
                status.process = self.launcher.start(status.run)

    def _must_wait(self, run: PlannedRun) -> bool:
        since = self._in_use_since.setdefault(run.name, time.monotonic())
        return time.monotonic() - since < _SECONDS_IN_USE and run.directory.in_use

    def _poll_running(self) -> None:
        for status in self._running():
            assert status.process is not None
            try:
                exit_code = status.process.poll()
            except LostRunError as error:
                self._end(status, None, str(error))
                continue
            if exit_code is not None:
                self._end(status, exit_code, failure(exit_code, console_path(status.run)))

    def _end(self, status: RunStatus, exit_code: int | None, error: str) -> None:
        status.process = None
        if exit_code == 0 and status.run.directory.finished:
            status.state = "finished"
        elif exit_code in _INTERRUPTED or (exit_code is None and self._stopping):
            status.state = "interrupted"
        else:
            status.state, status.error = "failed", error
            if self.fail_fast and not self._stopping:  # a second signal would end them at once
                self._stop(signal.SIGTERM)

    def _stop(self, signum: int) -> None:
        """Starts no more runs, and hands a signal to those that run."""
        self._stopping = True
        for status in self._running():
            assert status.process is not None
            status.process.send_signal(signum)

    def _forward_signals(self) -> None:
        for signum in self.signals[self._forwarded :]:
            self._forwarded += 1
            self._stop(signum)

    @contextmanager
    def _noted_signals(self) -> Iterator[None]:
        """Only notes signals as they come: the loop hands them on between two of its steps."""

        def note(signum: int, frame: FrameType | None) -> None:
            self.signals.append(signum)

        before = {signum: signal.signal(signum, note) for signum in _SIGNALS}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
