"""Training in several real processes: torchrun with gloo, on CPUs."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from parcontrol.cli.train import main
from parcontrol.config import RunConfig, dump_yaml
from parcontrol.diagnostics.memory import MemoryMonitor


class Torchrun:
    """torchrun with `parcontrol train`, one configuration after the other, its output going to a file.

    Args:
        processes: How many.
        configs: The runs.
        free_bytes: The free memory that each rank finds, where it is not the machine's.
        file_sizes: The limit on the length of files in each rank, where there is one.
    """

    def __init__(
        self,
        processes: int,
        configs: Sequence[RunConfig],
        free_bytes: Sequence[int] = (),
        file_sizes: Sequence[int] = (),
    ) -> None:
        files = [str(write(config)) for config in configs]
        arguments = ["--free-bytes", json.dumps(free_bytes), "--file-sizes", json.dumps(file_sizes)]
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


def train_all() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+")
    parser.add_argument("--free-bytes", type=json.loads)
    parser.add_argument("--file-sizes", type=json.loads)
    args, rank = parser.parse_args(), int(os.environ["RANK"])
    if args.free_bytes:
        MemoryMonitor.free_bytes = lambda monitor: args.free_bytes[rank]  # type: ignore[method-assign]
    if args.file_sizes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (args.file_sizes[rank],) * 2)
    for file in args.files:
        code = main(["--config", file])
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(train_all())
