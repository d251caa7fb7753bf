"""SIGKILL where it hurts most: inside the writes of checkpoints, and between any two calls that change the disk."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from parcontrol.runs import RunDirectory
from parcontrol.training.checkpoint import Checkpoint
from tests.faults.processes import processes
from tests.faults.training_processes import MakeConfig, Training, finish, reference
from tests.training.same_run import assert_same_run

# What changes the disk, or makes a change last; between two of them lies every state that a kill can leave.
DISK_CALLS = ("fsync", "ftruncate", "mkdir", "rename", "replace", "rmdir", "unlink", "write")
SHORT_RUN = {
    "training__tokens_per_run": 12 * 128,
    "training__log_interval_steps": 4,
    "training__checkpoint_interval_steps": 3,
    "training__keep_checkpoints": 1,  # so that each new checkpoint removes one
}
# Files of checkpoints, early and late, and of the final model, under the names that they have while it is written.
PARTS = [
    *(f".step_{step:08d}.partial-*/{name}.safetensors" for step in (0, 6, 12) for name in ("parameters", "optimizer")),
    ".final.partial-*/model.safetensors",
]


def die_at_disk_call(number: int, counted: Any) -> None:
    """Kills this process in the place of its disk call of this number; counts them in shared memory."""

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counted.value += 1
            if counted.value == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in DISK_CALLS:
        setattr(os, name, wrapped(getattr(os, name)))


def trained_to_death(config: Any, number: int) -> int:
    """Trains until the disk call of this number, or to the end; returns how many calls there were."""
    counted = processes.Value(ctypes.c_long, 0, lock=False)
    exit_code, output = Training(config, partial(die_at_disk_call, number, counted)).end()
    assert exit_code == (-signal.SIGKILL if counted.value == number else 0), output
    assert_whole(RunDirectory(config.run_directory))
    return counted.value


def assert_whole(run: RunDirectory) -> None:
    """Whatever looks like a checkpoint is one, and whatever looks like a record is one."""
    for path in run.checkpoints():
        assert Checkpoint.read(path).boundary.step == int(path.name.removeprefix("step_"))
    run.read_metrics(), run.read_streams(), run.read_provenance()
    if run.finished:
        assert run.read_result()["steps"] == 12


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.full)])
def test_killed_between_any_two_changes_of_the_disk(make_config: MakeConfig, kills: int) -> None:
    """Kills spread over all disk calls of a run, each followed by one of the process that goes on from it."""
    whole = reference(make_config, **SHORT_RUN)
    calls = trained_to_death(make_config("counted", **SHORT_RUN), number=-1)
    assert calls > 100
    chosen = random.Random(kills)
    for kill in range(0, kills, 2):
        config = make_config(f"killed_{kill}", **SHORT_RUN)
        first, last = kill * calls // kills, min((kill + 2) * calls // kills, calls)
        number = chosen.randint(first + 1, last)
        assert trained_to_death(config, number) == number
        trained_to_death(config, chosen.randint(1, calls // 2))
        finish(config)
        assert_same_run(whole.path, config.run_directory)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.full)])
def test_killed_inside_the_writes_of_checkpoints(make_config: MakeConfig, kills: int) -> None:
    """A kill as soon as a part of a checkpoint, or of the final model, is seen; most of them find it unfinished."""
    whole = reference(make_config, **SHORT_RUN)
    chosen = random.Random(kills)
    config = make_config("killed", **SHORT_RUN)
    torn = 0
    for kill in range(kills):
        if RunDirectory(config.run_directory).finished:
            assert_same_run(whole.path, config.run_directory)
            config = make_config(f"killed_{kill}", **SHORT_RUN)
        training = Training(config)
        part = chosen.choice(PARTS)
        training.wait_until(lambda run=training.run, part=part: any(run.checkpoints_dir.glob(part)), poll_seconds=0)
        time.sleep(chosen.random() * 0.001)
        training.process.kill()
        exit_code, output = training.end()
        assert exit_code in (0, -signal.SIGKILL), output
        torn += any(training.run.checkpoints_dir.glob(".*.partial-*"))
        assert_whole(training.run)
    assert torn >= kills // 2
    finish(config)
    assert_same_run(whole.path, config.run_directory)
