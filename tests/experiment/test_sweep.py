"""How a sweep starts, stops and judges its runs; `fake_train` stands in for training."""

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from parcontrol.experiment import sweep as sweep_module
from parcontrol.experiment.launch import ChildProcess, LostRunError
from parcontrol.experiment.local import LocalLauncher
from parcontrol.experiment.plan import PlannedRun, make_plan
from parcontrol.experiment.run import how_to_go_on
from parcontrol.experiment.sweep import RunStatus, Sweep
from parcontrol.runs import RunDirectory
from tests.experiment.conftest import TINY_SWEEP, StartSweep
from tests.experiment.test_launch import is_running, wait_for

FAKE = "tests.experiment.fake_train"
FAKE_SWEEP = ("-m", "tests.experiment.fake_sweep")
STEPS = 24
FLAGS = TINY_SWEEP | {"--training.tokens_per_run": STEPS * 128}
SLOW = {"FAKE_STEP_SECONDS": "0.1"}


@pytest.fixture(autouse=True)
def _children_find_the_tests(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(repository), prepend=os.pathsep)


@pytest.fixture
def runs(tmp_path: Path) -> list[PlannedRun]:
    """P = 1, 2, 4 with few steps each."""
    overrides = {key.removeprefix("--"): value for key, value in FLAGS.items()}
    return make_plan(None, overrides, [1, 2, 4], output_dir=tmp_path / "sweep")


@pytest.fixture
def fake_sweep(start_sweep: StartSweep, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts P = 1, 2, 4 as a process of its own, as a terminal would; ends it with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
        flags = FLAGS | {"--output-dir": tmp_path / "sweep"}
        command = ("--P-values", 1, 2, 4, *arguments)
        started.append(start_sweep(*command, flags=flags, program=FAKE_SWEEP, environment=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


class Recorder(LocalLauncher):
    """Keeps what was started and how many ran at a time."""

    def __init__(self) -> None:
        super().__init__(FAKE)
        self.started: list[str] = []
        self.processes: list[ChildProcess] = []
        self.most = 0

    def start(self, run: PlannedRun) -> ChildProcess:
        self.started.append(run.name)
        process = super().start(run)
        self.processes.append(process)
        self.most = max(self.most, sum(process.poll() is None for process in self.processes))
        return process


def states(statuses: list[RunStatus]) -> dict[str, str]:
    return {status.run.name: status.state for status in statuses}


def step_of(run: PlannedRun) -> int:
    records = run.directory.read_metrics()
    return records[-1]["step"] if records else 0


def children(process: subprocess.Popen[str]) -> list[int]:
    return [child.pid for child in psutil.Process(process.pid).children()]


def test_every_run_is_trained_once_and_in_order(runs: list[PlannedRun]) -> None:
    launcher = Recorder()
    assert set(states(Sweep(runs, launcher).run()).values()) == {"finished"}
    assert launcher.started == ["P1", "P2", "P4"]
    assert launcher.most == 1, "one at a time unless told otherwise"
    assert {run.directory.read_result()["tokens"] for run in runs} == {STEPS * 128}
    assert Sweep(runs, launcher).run()[0].state == "finished"
    assert launcher.started == ["P1", "P2", "P4"], "finished runs are skipped"


def test_max_parallel_is_how_many_run_at_a_time(runs: list[PlannedRun], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.05")
    launcher = Recorder()
    Sweep(runs, launcher, max_parallel=2).run()
    assert launcher.most == 2
    assert all(run.directory.finished for run in runs)


def test_a_failed_run_does_not_stop_the_others(runs: list[PlannedRun], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FAIL", "P1")
    statuses = Sweep(runs, Recorder()).run()
    assert states(statuses) == {"P1": "failed", "P2": "finished", "P4": "finished"}
    assert statuses[0].error == "the disk is full of planted faults"


def test_fail_fast_stops_the_others(runs: list[PlannedRun], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FAIL", "P1")
    monkeypatch.setenv("FAKE_STEP_SECONDS", "1")
    statuses = Sweep(runs, Recorder(), max_parallel=2, fail_fast=True).run()
    assert states(statuses) == {"P1": "failed", "P2": "interrupted", "P4": "waiting"}
    assert runs[2].directory.exists
    assert not runs[2].directory.started


def test_an_exit_code_of_0_without_a_result_is_a_failure(runs: list[PlannedRun]) -> None:
    (status, *_) = Sweep(runs[:1], LocalLauncher("this")).run()  # prints its Zen, trains nothing
    assert status.state == "failed"


def test_a_run_that_is_lost_is_a_failure(runs: list[PlannedRun]) -> None:
    class Lost:
        def poll(self) -> int | None:
            raise LostRunError("the node is gone")

        def send_signal(self, signum: int) -> None:
            raise AssertionError

    class Losing(LocalLauncher):
        def start(self, run: PlannedRun) -> Lost:
            return Lost()

    (status, *_) = Sweep(runs[:1], Losing()).run()
    assert (status.state, status.error) == ("failed", "the node is gone")


def test_a_directory_in_use_is_waited_for(runs: list[PlannedRun]) -> None:
    seen: set[str] = set()
    held = RunDirectory.open_for_training(runs[0].config)

    def show(statuses: list[RunStatus]) -> None:
        seen.add(statuses[0].state)
        if statuses[1].state == "finished" and statuses[0].state == "in use":
            held.close()  # the others did not wait for it

    assert set(states(Sweep(runs[:2], Recorder(), show=show).run()).values()) == {"finished"}
    assert seen >= {"in use", "running", "finished"}


def test_a_directory_in_use_for_long_is_a_failure_in_the_run_s_own_words(
    runs: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "_SECONDS_IN_USE", 0.0)
    with RunDirectory.open_for_training(runs[0].config):
        statuses = Sweep(runs[:2], Recorder()).run()
    assert states(statuses) == {"P1": "failed", "P2": "finished"}
    assert f"in use: process {os.getpid()} works there" in (statuses[0].error or "")


def test_handlers_are_given_back(runs: list[PlannedRun]) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    Sweep([], Recorder()).run()
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_one_run_that_is_stopped_alone_is_interrupted_not_failed(
    runs: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.05")
    launcher = Recorder()

    def stop_first() -> None:
        wait_for(lambda: step_of(runs[0]) >= 2)
        launcher.processes[0].send_signal(signal.SIGTERM)

    stopper = threading.Thread(target=stop_first)
    stopper.start()
    statuses = Sweep(runs[:2], launcher).run()
    stopper.join()
    assert states(statuses) == {"P1": "interrupted", "P2": "finished"}
    assert runs[0].state == "resume"


# --- the command, as a process ---


def test_failed_runs_are_reported_and_the_exit_code_tells(
    fake_sweep: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    failed = fake_sweep("--max-parallel", 3, FAKE_FAIL="P2")
    out, err = failed.communicate()
    assert failed.returncode == 1
    console = tmp_path / "sweep" / "P2.console.log"
    assert err == f"error: P2 failed: the disk is full of planted faults (its output: {console})\n"
    assert "a line that is no error" in console.read_text()
    assert "not finished: P2" in out
    mended = fake_sweep()
    assert mended.communicate()[1] == ""
    assert mended.returncode == 0


def test_unequal_data_are_refused_though_every_run_is_finished(
    fake_sweep: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    assert fake_sweep("--max-parallel", 3).communicate()[1] == ""
    path = tmp_path / "sweep" / "P2" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_sha256": "planted"}))
    again = fake_sweep()
    _, err = again.communicate()
    assert again.returncode == 1
    assert re.fullmatch(r"error: .* cannot be compared: their data_sha256 differ \(P1 d, P2 planted, P4 d\)\n", err)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_runs_with_a_checkpoint(
    fake_sweep: Callable[..., subprocess.Popen[str]], runs: list[PlannedRun], signum: int
) -> None:
    process = fake_sweep("--max-parallel", 2, **SLOW)
    wait_for(lambda: step_of(runs[0]) >= 2 and step_of(runs[1]) >= 2)
    process.send_signal(signum)
    out, err = process.communicate()
    assert (process.returncode, err) == (128 + signum, "")
    assert [run.state for run in runs] == ["resume", "resume", "new"]
    assert "not finished: P1, P2, P4; the same command goes on" in out
    assert re.search(r"^P1: interrupted", out, re.MULTILINE)

    resumed = fake_sweep()
    resumed.communicate()
    assert resumed.returncode == 0
    steps = [record["step"] for record in runs[0].directory.read_metrics()]
    assert steps == list(range(1, STEPS + 1)), "each step once"


def test_a_second_signal_ends_the_runs_at_once(
    fake_sweep: Callable[..., subprocess.Popen[str]], runs: list[PlannedRun]
) -> None:
    process = fake_sweep(FAKE_STEP_SECONDS="30")
    wait_for(lambda: (runs[0].config.run_directory / "config.yaml").exists())
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert not any(run.directory.checkpoints() for run in runs)


def test_killed_alone_a_sweep_leaves_no_orphans_and_the_next_one_goes_on_at_once(
    fake_sweep: Callable[..., subprocess.Popen[str]], runs: list[PlannedRun]
) -> None:
    process = fake_sweep("--max-parallel", 2, **SLOW)
    wait_for(lambda: step_of(runs[0]) >= 2 and step_of(runs[1]) >= 2)
    orphans = children(process)
    assert len(orphans) == 2
    process.kill()
    process.wait()
    following = fake_sweep()  # without waiting for them
    _, err = following.communicate()
    assert (following.returncode, err) == (0, "")
    assert not any(is_running(pid) for pid in orphans)
    assert runs[0].directory.checkpoints(), "they wrote a checkpoint before they ended"


def test_checkpoints_are_promised_only_where_there_are_any(runs: list[PlannedRun]) -> None:
    statuses = [RunStatus(run, "interrupted") for run in runs]
    assert how_to_go_on(statuses) == "the same command starts what is left from its beginning"
    RunDirectory.open_for_training(runs[1].config).close()
    runs[1].directory.checkpoint_path(2).mkdir(parents=True)
    assert how_to_go_on(statuses) == "the same command goes on from the checkpoints of P2"
