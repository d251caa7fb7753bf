"""Many workers on one queue, some of them killed: each task is evaluated once, and nothing is lost or stuck."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from parcontrol.leaderboard.queue import Queue
from parcontrol.leaderboard.records import Precision, Request, Status, WeightType, request_path
from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store import Stores, open_stores, update
from tests.faults.leaderboard_worker import TASKS
from tests.leaderboard.stores import TOKEN, online_hub

# Nobody is killed in peace: no lease may end there, however slow the machine is.
LEASE_SECONDS_IN_PEACE = 3600.0
LEASE_SECONDS = 10.0
PATIENCE_SECONDS = 500.0
OVER = {Status.FINISHED, Status.FAILED, Status.CANCELLED}


@pytest.fixture(params=["local", "hub"])
def environment(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of workers with a store in a directory, or on a Hub over HTTP."""
    monkeypatch.setenv("PARCONTROL_LEADERBOARD", str(tmp_path / "board"))
    if request.param == "local":
        yield
        return
    with online_hub(tmp_path / "cache", monkeypatch) as hub:
        for variable, name in (("QUEUE_REPO", "requests"), ("RESULTS_REPO", "results"), ("REPO_ID", "board")):
            hub.create("datasets", f"alice/{name}")
            monkeypatch.setenv(variable, f"alice/{name}")
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("H4_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("workers", "requests", "kills"),
    [
        pytest.param(2, 6, 1, id="few"),
        pytest.param(8, 200, 16, id="many", marks=[pytest.mark.full, pytest.mark.timeout(1200)]),
    ],
)
def test_no_task_is_lost_or_done_twice(workers: int, requests: int, kills: int) -> None:
    """First without kills, where every task is evaluated once, then with kills, where one result is published."""
    settings = Settings.from_environment()
    stores = open_stores(settings)
    chance = random.Random(workers)
    undisturbed = submit(stores, "calm", requests)
    with crew(workers, settings.root, LEASE_SECONDS_IN_PEACE) as team:
        wait_until(lambda: all_over(stores, undisturbed), team)
    evaluated = Counter(evaluations(settings.root))
    assert evaluated == {(model, task): 1 for model in undisturbed for task in TASKS}

    disturbed = submit(stores, "wild", requests)
    with crew(workers, settings.root, LEASE_SECONDS) as team:
        for _ in range(kills):
            time.sleep(chance.uniform(0.2, 1.5))
            team.kill(chance, replace=kills > 1)
        wait_until(lambda: all_over(stores, disturbed), team)
    models = undisturbed | disturbed
    assert statuses(stores, models) == {Status.FINISHED}
    assert Counter(published(stores)) == {(model, task): 1 for model in models for task in TASKS}
    assert not list((settings.root / "worker" / "spool").iterdir())


class Crew:
    """Worker processes."""

    def __init__(self, count: int, root: Path, lease_seconds: float) -> None:
        self.root, self.lease_seconds = root, lease_seconds
        self.processes = [self._start() for _ in range(count)]
        self.killed: list[psutil.Process] = []

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.faults.leaderboard_worker", str(self.lease_seconds)]
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "console.txt").open("ab") as console:
            return subprocess.Popen(command, stdout=console, stderr=console)

    def kill(self, chance: random.Random, replace: bool) -> None:
        """Kills one worker, and starts another in its place."""
        place = chance.randrange(len(self.processes))
        victim = self.processes[place]
        self.killed += psutil.Process(victim.pid).children(recursive=True)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        self.processes[place : place + 1] = [self._start()] if replace else []

    def check(self) -> None:
        """No worker ends by itself."""
        ended = [process.returncode for process in self.processes if process.poll() is not None]
        assert not ended, (self.root / "console.txt").read_text()


@contextmanager
def crew(count: int, root: Path, lease_seconds: float) -> Iterator[Crew]:
    """Runs workers for the block; SIGTERM ends them, and nothing of those that were killed is left."""
    team = Crew(count, root, lease_seconds)
    try:
        yield team
        for process in team.processes:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(60) for process in team.processes] == [0] * len(team.processes)
        _, alive = psutil.wait_procs(team.killed, timeout=30)
        assert not alive
    finally:
        for process in team.processes:
            process.kill()
            process.wait()


def submit(stores: Stores, organisation: str, count: int) -> set[str]:
    """Puts requests into the queue, and returns the names of the models."""
    changes: dict[str, bytes | None] = {}
    for number in range(count):
        request = Request(
            model=f"{organisation}/model-{number}",
            sha=f"{number:040x}",
            precision=Precision.FLOAT16,
            status=Status.PENDING,
            submitted_time=f"2026-01-01T00:{number // 60:02d}:{number % 60:02d}Z",
        )
        changes[request_path(request.model, Precision.FLOAT16, WeightType.ORIGINAL)] = request.to_json()
    update(stores.requests, lambda snapshot: changes, "submit")
    return {f"{organisation}/model-{number}" for number in range(count)}


def wait_until(condition: Callable[[], bool], team: Crew) -> None:
    """Waits, as long as all workers run."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        team.check()
        assert time.monotonic() < end, (team.root / "console.txt").read_text()[-5000:]
        time.sleep(0.5)


def all_over(stores: Stores, models: set[str]) -> bool:
    return statuses(stores, models) <= OVER


def statuses(stores: Stores, models: set[str]) -> set[Status]:
    return {entry.request.status for entry in Queue(stores.requests).requests() if entry.request.model in models}


def evaluations(root: Path) -> Iterator[tuple[str, str]]:
    """Every evaluation of a task that a worker has logged."""
    for log in (root / "worker" / "logs").glob("*.jsonl"):
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            if entry.get("event") == "done":
                yield entry["model"], entry["task"]


def published(stores: Stores) -> Iterator[tuple[str, str]]:
    """Every result in the store, with a check that its rows are there too."""
    snapshot = stores.results.snapshot()
    for path in snapshot.files:
        directory, _, name = path.rpartition("/")
        if name.startswith("results_"):
            document = json.loads(stores.results.read(path))
            moment = name.removeprefix("results_").removesuffix(".json")
            for task in document["results"]:
                assert f"{directory}/samples_{task}_{moment}.jsonl.zst" in snapshot.files
                yield document["parcontrol"]["model"], task
