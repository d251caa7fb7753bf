"""Runs as processes on this machine."""

from __future__ import annotations

from pathlib import Path

from parcontrol.experiment.launch import TRAIN_MODULE, ChildProcess, command_line, console_path
from parcontrol.experiment.plan import PlannedRun


class LocalLauncher:
    """Starts runs on this machine, one at a time unless told otherwise.

    Two runs on one device take each other's time and memory, and their speeds say nothing.
    """

    parallel: int | None = 1

    def __init__(self, module: str = TRAIN_MODULE) -> None:
        """Starts the given module for each run; it takes the flags of `parcontrol train`."""
        self.module = module

    def start(self, run: PlannedRun) -> ChildProcess:
        """Starts a run."""
        return ChildProcess(self.module, command_line(run.config), console_path(run), Path.cwd())

    def close(self) -> None:
        """Gives nothing back: there is nothing that outlives a run."""
