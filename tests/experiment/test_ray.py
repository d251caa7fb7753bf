"""Sweeps on a real local Ray of two workers; `fake_train` stands in for training."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from parcontrol.experiment.plan import PlannedRun, make_plan
from parcontrol.runs import RunDirectory
from tests.experiment.conftest import TINY_SWEEP, StartSweep
from tests.experiment.test_launch import is_running, wait_for

pytest.importorskip("ray", reason="Ray, an optional extra, is not installed")

STEPS = 24
FLAGS = TINY_SWEEP | {"--training.tokens_per_run": STEPS * 128, "--launcher": "ray"}
SLOW = {"FAKE_STEP_SECONDS": "0.1"}
StartRay = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def runs(tmp_path: Path) -> list[PlannedRun]:
    overrides = {key.removeprefix("--"): value for key, value in FLAGS.items() if "." in key}
    return make_plan(None, overrides, [1, 2, 4], output_dir=tmp_path / "sweep")


@pytest.fixture
def ray_sweep(start_sweep: StartSweep, tmp_path: Path) -> Iterator[StartRay]:
    """Starts P = 1, 2, 4 with a Ray of two workers of its own; ends both with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(
        *arguments: object, flags: Mapping[str, object] = FLAGS, real: bool = False, **environment: str
    ) -> subprocess.Popen[str]:
        program = ("-m", "tests.experiment.ray_sweep", *(("--real",) if real else ()))
        command = ("--P-values", 1, 2, 4, "--output-dir", tmp_path / "sweep", *arguments)
        # A place of its own for the cluster's token, which is else kept in the user's home.
        environment |= {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
        (tmp_path / "token").write_text("0" * 64)
        started.append(start_sweep(*command, flags=flags, program=program, environment=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def step_of(run: PlannedRun) -> int:
    records = run.directory.read_metrics()
    return records[-1]["step"] if records else 0


def process_of(run: PlannedRun) -> int:
    """The process that trains in a directory."""
    try:
        RunDirectory.open_for_training(run.config).close()
    except ValueError as error:
        if found := re.search(r"in use: process (\d+)", str(error)):
            return int(found[1])
    raise AssertionError(f"nobody trains in {run.name}")


def test_two_workers_train_three_runs_and_a_failed_one_is_reported(ray_sweep: StartRay, runs: list[PlannedRun]) -> None:
    process = ray_sweep(FAKE_FAIL="P2", **SLOW)
    wait_for(lambda: step_of(runs[0]) >= 1 and runs[1].config.run_directory.exists(), seconds=200)
    out, err = process.communicate()
    assert process.returncode == 1
    assert "error: P2 failed: the disk is full of planted faults" in err
    assert [run.state for run in runs] == ["finished", "new", "finished"]
    assert "not finished: P2" in out
    results = [run.directory.read_result() for run in (runs[0], runs[2])]
    assert {result["tokens"] for result in results} == {STEPS * 128}


@pytest.mark.full
def test_a_signal_and_then_a_kill_and_the_sweep_goes_on(ray_sweep: StartRay, runs: list[PlannedRun]) -> None:
    first = ray_sweep(FAKE_STEP_SECONDS="1")  # the second worker may come seconds after the first
    wait_for(lambda: step_of(runs[0]) >= 2 and step_of(runs[1]) >= 2, seconds=200)
    first.send_signal(signal.SIGINT)
    out, _ = first.communicate()
    assert first.returncode == 128 + signal.SIGINT
    assert [run.state for run in runs] == ["resume", "resume", "new"]
    assert "P4: interrupted" in out, "a queued run leaves the queue"

    second = ray_sweep(FAKE_STEP_SECONDS="3")  # Ray takes some seconds to notice
    resumed_at = step_of(runs[0])
    wait_for(lambda: step_of(runs[0]) > resumed_at, seconds=200)
    orphan = process_of(runs[0])
    second.kill()
    second.communicate()
    wait_for(lambda: not is_running(orphan), seconds=200)
    assert not runs[0].directory.finished

    last = ray_sweep()
    _, err = last.communicate()
    assert last.returncode == 0, err
    for run in runs:
        assert [record["step"] for record in run.directory.read_metrics()] == list(range(1, STEPS + 1))


@pytest.mark.full
def test_a_run_that_ray_loses_has_failed_and_the_others_finish(ray_sweep: StartRay, runs: list[PlannedRun]) -> None:
    process = ray_sweep(FAKE_STEP_SECONDS="1")
    wait_for(lambda: step_of(runs[0]) >= 2, seconds=200)
    psutil.Process(process_of(runs[0])).parent().kill()  # Ray's worker, as when its node goes
    _, err = process.communicate()
    assert process.returncode == 1
    assert "error: P1 failed: Ray lost the run: " in err
    assert [run.state for run in runs][1:] == ["finished", "finished"]
    assert runs[0].state != "finished"


@pytest.mark.full
def test_resources_that_no_node_has_are_refused(ray_sweep: StartRay, runs: list[PlannedRun]) -> None:
    process = ray_sweep("--ray-resources", "CPU=3")
    _, err = process.communicate()
    assert process.returncode == 2
    assert "--ray-resources CPU=3: no node of the cluster has that; they have CPU=2" in err
    assert not runs[0].config.run_directory.exists()


@pytest.mark.full
def test_real_runs_on_ray(ray_sweep: StartRay, tiny_flags: Mapping[str, object], runs: list[PlannedRun]) -> None:
    process = ray_sweep(flags={**tiny_flags, "--launcher": "ray"}, real=True)
    out, err = process.communicate()
    assert process.returncode == 0, err
    hashes = {run.directory.read_result()["data_sha256"] for run in runs}
    assert len(hashes) == 1
    assert f"3 runs finished on the same {60 * 128:,} tokens, sha256 {hashes.pop()}" in out
