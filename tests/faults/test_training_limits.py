"""What runs out: room on the disk, the length of a file, file descriptors. A clear error, and nothing lost."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from parcontrol.config import RunConfig
from parcontrol.training.checkpoint import Checkpoint
from tests.faults.training_processes import MakeConfig, Training, files_in, finish, limit, reference
from tests.training.same_run import assert_same_run

RUN = {
    "training__tokens_per_run": 12 * 128,
    "training__log_interval_steps": 1,
    "training__checkpoint_interval_steps": 3,
}
PAGE = 4096


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that makes a file system with room for so many bytes, or gives it another size."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def make(size: int) -> Path:
        nonlocal mounted
        options = f"size={size}" + (",remount" if mounted else "")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True)
        if done.returncode and not mounted:
            pytest.skip(f"a file system can be mounted by root only ({done.stderr.strip()})")
        assert done.returncode == 0, done.stderr
        mounted = True
        return place

    yield make
    if mounted:
        subprocess.run(["umount", place], check=True)


def assert_stopped(training: Training, reason: str) -> None:
    """One line says why; every checkpoint that is there is whole, and so is every record."""
    exit_code, output = training.end()
    assert exit_code == 1, output
    assert "Traceback" not in output
    assert len(training.errors) == 1, output
    assert reason in training.errors[0]
    checkpoints = training.run.checkpoints()
    for path in checkpoints:
        assert Checkpoint.read(path).boundary.step == int(path.name.removeprefix("step_"))
    note = f"The newest checkpoint, {checkpoints[-1].name}, is whole" if checkpoints else "There is no checkpoint yet"
    assert note in training.errors[0]
    training.run.read_metrics(), training.run.read_streams(), training.run.read_provenance()
    assert not training.run.finished


@pytest.mark.parametrize(
    "percents", [(10, 90), pytest.param(range(4, 100, 8), marks=pytest.mark.full)], ids=["two", "many"]
)
def test_a_disk_that_fills_up(
    make_config: MakeConfig, small_disk: Callable[[int], Path], percents: Sequence[int]
) -> None:
    """Disks of sizes up to what a run needs; with more room the same command ends as if nothing had been."""
    whole = reference(make_config, **RUN)
    needed = sum(-(-path.stat().st_size // PAGE) * PAGE for path in files_in(whole.path))
    stopped_at = set()
    for percent in percents:
        config = make_config(f"disk/run_{percent}", **RUN)
        small_disk(needed * percent // 100)
        training = Training(config)
        assert_stopped(training, "No space left on device while writing to")
        stopped_at.add(len(training.run.checkpoints()))
        small_disk(2 * needed)
        finish(config)
        assert_same_run(whole.path, config.run_directory)
        for path in files_in(config.run_directory):
            path.unlink()
    assert len(stopped_at) > 1


@pytest.mark.parametrize("sizes", [1, pytest.param(6, marks=pytest.mark.full)])
def test_records_that_become_too_long(make_config: MakeConfig, sizes: int) -> None:
    """A limit on the length of files that checkpoints keep and the records of the data do not."""
    long = RUN | {"training__tokens_per_run": 80 * 128, "training__keep_checkpoints": 1}
    whole = reference(make_config, **long)
    checkpoint = max(path.stat().st_size for path in files_in(whole.checkpoints()[-1]))
    records = (whole.path / "provenance.jsonl").stat().st_size
    assert checkpoint < 0.8 * records
    for number in range(1, sizes + 1):
        config = make_config(f"run_{number}", **long)
        length = checkpoint + number * (records - checkpoint) // (sizes + 1)
        training = Training(config, partial(limit, resource.RLIMIT_FSIZE, length))
        assert_stopped(training, "while writing to")
        assert len(training.run.read_provenance()) > 20
        finish(config)
        assert_same_run(whole.path, config.run_directory)


def few_descriptors(more: int) -> None:
    """Lets this process open only so many files beside those that it has."""
    limit(resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd")) - 1 + more)


@pytest.mark.parametrize(
    "counts", [(1, 5), pytest.param((0, 2, 6, 7, 8, 9, 12), marks=pytest.mark.full)], ids=["two", "many"]
)
def test_descriptors_run_out(make_config: MakeConfig, counts: Sequence[int]) -> None:
    """With a few more files than a started process has open, a run says so or ends as if there were no limit.

    A new run, and one that goes on: a checkpoint that cannot be opened is not called damaged.
    """
    whole = reference(make_config, **RUN)
    for more in counts:
        new, begun = make_config(f"new_{more}", **RUN), make_config(f"begun_{more}", **RUN)
        begin(begun)
        stopped = [stopped_or_finished(config, more) for config in (new, begun)]
        assert all(stopped) if more < 6 else not any(stopped) if more > 10 else True
        for config in (new, begun):
            finish(config)
            assert_same_run(whole.path, config.run_directory)


def begin(config: RunConfig) -> None:
    """Kills a run after its first checkpoint."""
    training = Training(config)
    training.wait_until(lambda: len(training.run.checkpoints()) > 0)
    training.process.kill()
    training.end()


def stopped_or_finished(config: RunConfig, more: int) -> bool:
    """Runs with so many more descriptors; whether the run was stopped, then with one clear error."""
    training = Training(config, partial(few_descriptors, more))
    exit_code, output = training.end()
    assert "Traceback" not in output
    assert training.run.finished == (exit_code == 0)
    if exit_code:
        assert len(training.errors) == 1, output
        assert "Too many open files" in training.errors[0]
        assert "delete" not in training.errors[0]
    return exit_code != 0
