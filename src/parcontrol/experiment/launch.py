"""What every launcher does: a run as a command, its console as a file, its end in words."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from parcontrol.config import RunConfig, iter_fields
from parcontrol.experiment.plan import PlannedRun

TRAIN_MODULE = "parcontrol.cli.train"
_ERROR = "error: "


class RunProcess(Protocol):
    """A run that was started."""

    def poll(self) -> int | None:
        """Returns None while the run goes on, then its exit code; negative is a signal's number.

        Raises:
            LostRunError: The run is gone and left no exit code.
        """

    def send_signal(self, signum: int) -> None:
        """Sends a signal; SIGINT and SIGTERM make the run write a checkpoint and end."""


class Launcher(Protocol):
    """Starts runs somewhere.

    Attributes:
        parallel: How many runs it starts at a time when nothing else is said; None leaves that to
            the place where they run.
    """

    parallel: int | None

    def start(self, run: PlannedRun) -> RunProcess:
        """Starts a run, or queues it where it waits for resources."""

    def close(self) -> None:
        """Gives back what the launcher holds; no run may be going on."""


class LostRunError(Exception):
    """A run's process is gone, with the machine that it was on perhaps."""


def console_path(run: PlannedRun) -> Path:
    """Returns where the newest process of a run writes what it would print: beside its directory."""
    directory = run.config.run_directory
    return directory.with_name(f"{directory.name}.console.log")


def command_line(config: RunConfig) -> list[str]:
    """Returns the flags that give exactly this configuration, wherever the command runs."""
    sections: dict[str, Any] = config.model_dump()
    flags = []
    for field in iter_fields():
        section, _, name = field.name.rpartition(".")
        value = (sections[section] if section else sections)[name]
        flags.append(f"--{field.name}={'null' if value is None else value}")
    return flags


class ChildProcess:
    """A Python module as a process that ends, with a checkpoint, when this one is gone.

    It has a session of its own, so that Ctrl-C in a terminal reaches it through the sweep alone: a
    second signal would end it at once.
    """

    def __init__(self, module: str, arguments: Sequence[str], console: Path, directory: Path) -> None:
        """Starts a process.

        Args:
            module: The module to run as a script.
            arguments: Its arguments.
            console: File for its output.
            directory: Its working directory.
        """
        console.parent.mkdir(parents=True, exist_ok=True)
        with console.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "parcontrol.experiment.child", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Returns None while the process runs, then its exit code; negative is a signal's number."""
        exit_code = self._process.poll()
        if exit_code is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
        return exit_code

    def send_signal(self, signum: int) -> None:
        """Sends a signal, unless the process has ended."""
        self._process.send_signal(signum)


def failure(exit_code: int, console: Path) -> str:
    """Returns why a process ended: its own last error, and how it ended if that was no exit."""
    said = last_error(console)
    if exit_code >= 0:
        return said or f"it ended with exit code {exit_code} and without a word"
    killed = f"killed by {signal.Signals(-exit_code).name}"
    if -exit_code == signal.SIGKILL:
        killed += ", as systems do when memory runs out"
    return f"{killed}; its last words: {said}" if said else killed


def last_error(console: Path) -> str:
    """Returns the last `error:` line of a console, or its last line, or nothing."""
    if not console.exists():
        return ""
    text = console.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    return (errors or lines or [""])[-1]
