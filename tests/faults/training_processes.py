"""Processes of `parcontrol train` that a test can disturb, and how their run must end all the same."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from parcontrol.cli.train import main
from parcontrol.config import RunConfig, dump_yaml
from parcontrol.runs import RunDirectory
from parcontrol.training.run import run
from tests.faults.processes import processes

MakeConfig = Callable[..., RunConfig]
Prepare = Callable[[], None]

LONG_RUN = {
    "training__tokens_per_run": 60 * 128,
    "training__log_interval_steps": 7,  # checkpoints fall between log points
    "training__checkpoint_interval_steps": 5,
}


def train(arguments: list[str], log: Path, prepare: Prepare | None) -> None:
    """Runs `parcontrol train` in a new process, its output going to a file."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if prepare is not None:
        prepare()
    sys.exit(main(arguments))


class Training:
    """A process of `parcontrol train`.

    Args:
        config: The run. Its configuration file and what it prints go beside the logs, not beside the run.
        prepare: Called in the process before the command; can be pickled.
    """

    def __init__(self, config: RunConfig, prepare: Prepare | None = None) -> None:
        self.run = RunDirectory(config.run_directory)
        beside = Path(config.logging.directory)
        beside.mkdir(exist_ok=True)
        self.config_file = beside / f"{self.run.path.name}.yaml"
        self.config_file.write_text(dump_yaml(config), encoding="utf-8")
        self.log = beside / f"{self.run.path.name}.{time.monotonic_ns()}.console"
        self.log.write_bytes(b"")
        arguments = ["--config", str(self.config_file)]
        self.process = processes.Process(target=train, args=(arguments, self.log, prepare))
        self.process.start()

    def wait_until(self, condition: Callable[[], bool], poll_seconds: float = 0.002) -> None:
        """Waits for something, or for the end of the process."""
        while not condition() and self.process.is_alive():
            time.sleep(poll_seconds)

    def wait_for_records(self, count: int) -> None:
        """Waits until so many metrics are recorded, or the process has ended."""
        self.wait_until(lambda: len(self.run.read_metrics()) >= count)

    def send(self, signum: signal.Signals) -> None:
        """Sends a signal."""
        pid = self.process.pid
        assert pid is not None
        os.kill(pid, signum)

    def end(self) -> tuple[int | None, str]:
        """Waits for the process; returns its exit code and what it printed, on one line."""
        self.process.join(timeout=120)
        return self.process.exitcode, " ".join(self.output.split())

    @property
    def output(self) -> str:
        """What the process printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def errors(self) -> list[str]:
        """The lines that tell an error."""
        return [line for line in self.output.splitlines() if line.startswith("error:")]


def reference(make_config: MakeConfig, name: str = "whole", **overrides: object) -> RunDirectory:
    """The run that nothing disturbs, in this process."""
    config = make_config(name, **(overrides or LONG_RUN))
    run(config)
    return RunDirectory(config.run_directory)


def finish(config: RunConfig) -> None:
    """Repeats the command and lets it end."""
    exit_code, output = Training(config).end()
    assert exit_code == 0, output


def limit(kind: int, amount: int) -> None:
    """Limits a resource of this process."""
    resource.setrlimit(kind, (amount, resource.getrlimit(kind)[1]))


def files_in(directory: Path) -> Iterator[Path]:
    """All files below a directory."""
    return (path for path in sorted(directory.rglob("*")) if path.is_file())
