"""Training in several real processes: torchrun with gloo, on CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from parcontrol.cli.train import main
from parcontrol.config import RunConfig, dump_yaml


class Torchrun:
    """torchrun with `parcontrol train`, one configuration after the other, its output going to a file."""

    def __init__(self, processes: int, configs: Sequence[RunConfig], *arguments: str) -> None:
        files = [str(write(config)) for config in configs]
        self.log = configs[0].run_directory.with_suffix(f".{processes}.log")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "-m", __name__, *files, *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes that train, by rank, as soon as they are there."""
        found: dict[int, psutil.Process] = {}
        for child in psutil.Process(self.process.pid).children():
            rank = child.environ().get("RANK")
            if rank is not None:
                found[int(rank)] = child
        return found

    def end(self) -> tuple[int, str]:
        """Waits for the end; returns the exit code and the output on one line."""
        code = self.process.wait(timeout=90)
        return code, " ".join(self.log.read_text(encoding="utf-8", errors="replace").split())


def write(config: RunConfig) -> Path:
    path = config.run_directory.with_suffix(".yaml")
    path.write_text(dump_yaml(config), encoding="utf-8")
    return path


def wait_until_gone(processes: Sequence[psutil.Process]) -> None:
    for _ in range(600):
        if not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
            return
        time.sleep(0.1)
    raise AssertionError("processes are left")


def train_all(arguments: Sequence[str]) -> int:
    for file in arguments:
        code = main(["--config", file])
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(train_all(sys.argv[1:]))
