"""What kills a run, done to real processes: SIGKILL, SIGTERM, SIGINT, a full disk.

The processes run the command that a person types. What they leave is compared with the same run in
this process, never interrupted.
"""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from parcontrol.cli.train import main
from parcontrol.config import RunConfig
from parcontrol.training.checkpoint import Checkpoint
from tests.faults.training_processes import LONG_RUN, MakeConfig, Training, finish, limit, reference
from tests.training.same_run import assert_same_run


def kill_until_finished(config: RunConfig, kills: int, total_records: int, seed: int) -> None:
    """Kills a run at random moments, repeats the command each time, lets the last one end."""
    chosen = random.Random(seed)
    # By the number of records, so that moments spread over the run on machines of any speed: in
    # steps, between a record and its checkpoint, in a validation, while the end is written.
    moments = sorted(chosen.randint(0, total_records) for _ in range(kills))
    killed = 0
    for moment in moments:
        training = Training(config)
        training.wait_for_records(moment)
        time.sleep(chosen.random() * 0.05)
        training.process.kill()
        exit_code, output = training.end()
        assert exit_code in (0, -signal.SIGKILL), output
        killed += exit_code == -signal.SIGKILL
    assert killed >= kills // 2, "most of the kills must have met a living process"
    finish(config)


@pytest.mark.parametrize(
    ("kills", "seed"), [pytest.param(3, 1), *(pytest.param(8, s, marks=pytest.mark.full) for s in (2, 3, 4))]
)
def test_a_run_killed_at_any_moment_ends_as_if_it_never_was(make_config: MakeConfig, kills: int, seed: int) -> None:
    whole = reference(make_config)
    config = make_config("killed", **LONG_RUN)
    kill_until_finished(config, kills, len(whole.read_metrics()), seed)
    assert_same_run(whole.path, config.run_directory)


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.full)], ids=lambda s: s.name
)
def test_a_signal_checkpoints_the_last_whole_step_and_exits_with_its_number(
    make_config: MakeConfig, signum: signal.Signals
) -> None:
    whole = reference(make_config)
    # Without periodic checkpoints after the first, the one that is found is the signal's.
    config = make_config("stopped", **LONG_RUN | {"training__checkpoint_interval_steps": 1000})
    training = Training(config)
    training.wait_for_records(4)
    training.send(signum)
    exit_code, output = training.end()
    assert exit_code == 128 + signum, output
    kept = [Checkpoint.read(path).boundary.step for path in training.run.checkpoints()]
    assert f"step {kept[-1]} is kept" in output
    assert kept[0] == 0
    assert kept[-1] >= training.run.read_metrics()[-1]["step"] > 0
    finish(config)
    assert_same_run(whole.path, config.run_directory)


def test_a_full_disk_leaves_the_checkpoint_before_and_says_so(make_config: MakeConfig) -> None:
    """A limit on the size of files stands for the full disk: a checkpoint no longer fits, records do.

    Before the first step there are no moments to save, so that the first checkpoint fits.
    """
    whole = reference(make_config)
    config = make_config("full", **LONG_RUN)
    checkpoint = Checkpoint.newest(whole)
    assert checkpoint is not None
    parameters, moments = (
        (checkpoint.path / f"{name}.safetensors").stat().st_size for name in ("parameters", "optimizer")
    )
    assert parameters < 15_000 < moments
    training = Training(config, partial(limit, resource.RLIMIT_FSIZE, 15_000))
    exit_code, output = training.end()
    assert exit_code == 1, output
    assert "File too large" in output
    assert "The newest checkpoint, step_00000000, is whole: free space and repeat the same command" in output
    assert "Traceback" not in output
    assert [path.name for path in training.run.checkpoints_dir.iterdir()] == ["step_00000000"]
    finish(config)
    assert_same_run(whole.path, config.run_directory)


def test_the_same_command_in_a_process_of_its_own_finishes_a_killed_run(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """As above, but with nothing imported beforehand and by the command that a person types."""
    config = make_config("typed", **LONG_RUN)
    training = Training(config)
    training.wait_for_records(6)
    training.process.kill()
    assert training.end()[0] == -signal.SIGKILL
    command = [sys.executable, "-m", "parcontrol.cli.train", "--config", str(training.config_file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert_same_run(reference(make_config).path, config.run_directory)
    assert main(command[3:]) == 0
    assert "is already finished" in capsys.readouterr().out
