"""Front ends and workers in real processes, at once, killed at random, over a store in a directory and on a Hub."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from huggingface_hub import constants
from pydantic import SecretStr

from parcontrol.leaderboard.queue import ClaimLostError, Queue
from parcontrol.leaderboard.records import Request, Status, request_path
from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store import ConflictError, LocalStore, Snapshot, Store, update
from parcontrol.leaderboard.store.hub import HubStore
from parcontrol.leaderboard.submission import SUBMISSIONS, Submission, submit
from tests.faults.processes import processes
from tests.leaderboard.hub_server import WritableHub
from tests.leaderboard.models import write_model
from tests.leaderboard.stores import CONFLICTS, REPOSITORY, TOKEN, TROUBLE, online_hub


class Place(NamedTuple):
    """Where the requests lie, and how a process gets there: `endpoint` is None for a directory."""

    folder: Path
    endpoint: str | None

    def open(self) -> Store:
        """Opens the repository in this process."""
        if self.endpoint is None:
            return LocalStore(self.folder / "requests")
        constants.HF_HUB_OFFLINE = False
        constants.HF_HOME = str(self.folder / "cache")
        constants.HF_HUB_CACHE = str(self.folder / "cache/hub")
        # All the failures that a test plants may meet one worker, one after the other.
        patient = replace(TROUBLE, attempts=200)
        return HubStore(REPOSITORY, SecretStr(TOKEN), self.endpoint, patient, CONFLICTS)

    def settings(self) -> Settings:
        """The settings of a front end; models are found in the mirror."""
        mirror = self.folder / "mirror"
        if self.endpoint is None:
            return Settings(root=self.folder, mirror=mirror)
        names = dict.fromkeys(("repo_id", "queue_repo", "results_repo"), REPOSITORY)
        return Settings(root=self.folder, mirror=mirror, endpoint=self.endpoint, **names)


@contextmanager
def _hub_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Place, WritableHub]]:
    with online_hub(tmp_path / "cache", monkeypatch) as hub:
        hub.create("datasets", REPOSITORY)
        yield Place(tmp_path, hub.endpoint), hub


@pytest.fixture(params=["local", "hub"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    if request.param == "local":
        yield Place(tmp_path, None)
    else:
        with _hub_place(tmp_path, monkeypatch) as (place, _):
            yield place


# --- front ends ---


def front_end(place: Place, models: list[str], barrier: Barrier, answers: Connection) -> None:
    """Submits models, the first one at the same moment as every other front end."""
    store, settings = place.open(), place.settings()
    barrier.wait(60)
    for model in models:
        try:
            submit(Submission(model, "pretrained"), store, settings)
            answers.send((model, "accepted"))
        except ValueError as error:
            answers.send((model, str(error)))
    answers.close()


def run_front_ends(place: Place, models_of_each: list[list[str]]) -> list[tuple[str, str]]:
    """Lets front ends submit at once; returns every model with its answer."""
    barrier = processes.Barrier(len(models_of_each))
    started: list[tuple[BaseProcess, Connection]] = []
    for models in models_of_each:
        receiving, sending = processes.Pipe(duplex=False)
        process = processes.Process(target=front_end, args=(place, models, barrier, sending))
        process.start()
        sending.close()
        started.append((process, receiving))
    answers = []
    for process, receiving in started:
        with receiving:
            while True:
                try:
                    answers.append(receiving.recv())
                except EOFError:
                    break
        process.join(120)
        assert process.exitcode == 0
    return answers


@pytest.mark.parametrize("front_ends", [2, pytest.param(6, marks=pytest.mark.full)])
def test_front_ends_never_take_a_sixth(place: Place, front_ends: int) -> None:
    each = [[f"org/m{front_end}x{index}" for index in range(4)] for front_end in range(front_ends)]
    for index, model in enumerate(model for models in each for model in models):
        write_model(place.folder / "mirror/models" / model, seed=index)
    answers = run_front_ends(place, each)
    accepted = [model for model, answer in answers if answer == "accepted"]
    refused = [answer for _, answer in answers if answer != "accepted"]
    assert len(accepted) == SUBMISSIONS
    assert len(refused) == 4 * front_ends - SUBMISSIONS
    assert all(f"has submitted {SUBMISSIONS} models in the last 7 days" in answer for answer in refused)
    assert sorted(entry.request.model for entry in Queue(place.open()).requests()) == sorted(accepted)


@pytest.mark.parametrize("front_ends", [3, pytest.param(8, marks=pytest.mark.full)])
def test_front_ends_never_take_a_duplicate(place: Place, front_ends: int) -> None:
    models = ["org/a", "org/b"]
    for index, model in enumerate(models):
        write_model(place.folder / "mirror/models" / model, seed=index)
    answers = run_front_ends(place, [models] * front_ends)
    for model in models:
        of_model = [answer for answered, answer in answers if answered == model]
        assert of_model.count("accepted") == 1
        assert sum("is already PENDING" in answer for answer in of_model) == front_ends - 1
    entries = Queue(place.open()).requests()
    assert sorted(entry.request.model for entry in entries) == models
    assert [len(entry.request.history) for entry in entries] == [1, 1]


# --- workers ---


def worker(place: Place, name: str, lease: timedelta, log: Path) -> None:
    """Drains the queue; notes every claim and every request that it has finished."""
    queue = Queue(place.open(), lease=lease, max_attempts=10**6)
    with log.open("a", buffering=1) as notes:
        while any(entry.request.status is not Status.FINISHED for entry in queue.requests()):
            claim = queue.claim(name)
            if claim is None:
                time.sleep(0.02)
                continue
            notes.write(json.dumps(["claimed", claim.path]) + "\n")
            try:
                queue.finish(queue.renew(claim))
            except ClaimLostError:
                continue
            notes.write(json.dumps(["finished", claim.path]) + "\n")


def put_requests(store: Store, count: int) -> list[str]:
    """Puts requests into the queue in one commit; returns their paths, oldest first."""
    files: dict[str, bytes | None] = {}
    for index in range(count):
        time_ = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=index)
        request = Request(model=f"org/m{index}", precision="float16", status="PENDING", submitted_time=time_)  # type: ignore[arg-type]
        files[request_path(request.model, request.precision, request.weight_type)] = request.to_json()
    update(store, lambda snapshot: files, "put")
    return list(files)


def notes(logs: list[Path]) -> list[list[str]]:
    """What the workers have noted; a last line without its end was never written."""
    return [json.loads(line) for log in logs if log.exists() for line in log.read_text().split("\n")[:-1]]


@pytest.mark.parametrize(("workers", "count"), [(3, 24), pytest.param(8, 200, marks=pytest.mark.full)])
def test_every_request_goes_to_one_worker(place: Place, workers: int, count: int) -> None:
    paths = put_requests(place.open(), count)
    logs = [place.folder / f"worker{index}.log" for index in range(workers)]
    started = [
        processes.Process(target=worker, args=(place, f"w{index}", timedelta(hours=1), log))
        for index, log in enumerate(logs)
    ]
    _run(started)
    assert [process.exitcode for process in started] == [0] * workers
    for what in ("claimed", "finished"):
        assert sorted(path for noted, path in notes(logs) if noted == what) == sorted(paths)
    for entry in Queue(place.open()).requests():
        assert [event.event for event in entry.request.history] == ["claimed", "finished"]
        assert entry.request.attempts == 1


def _run(started: list[Any]) -> None:
    for process in started:
        process.start()
    for process in started:
        process.join(200)


@pytest.mark.parametrize(("workers", "count", "kills"), [(2, 16, 6), pytest.param(8, 200, 60, marks=pytest.mark.full)])
def test_workers_that_are_killed_lose_nothing(place: Place, workers: int, count: int, kills: int) -> None:
    paths = put_requests(place.open(), count)
    chosen = random.Random(count)
    logs = [place.folder / f"worker{index}.log" for index in range(workers + kills)]
    next_log = iter(enumerate(logs))

    def start() -> Any:
        index, log = next(next_log)
        process = processes.Process(target=worker, args=(place, f"w{index}", timedelta(seconds=1), log))
        process.start()
        return process

    running = [start() for _ in range(workers)]
    killed = 0
    for kill in range(kills):
        # By what is done, so that kills spread over the work on machines of any speed.
        while len(notes(logs)) < 2 * count * kill // kills and any(process.is_alive() for process in running):
            time.sleep(0.005)
        time.sleep(chosen.random() * 0.02)
        victim = chosen.randrange(workers)
        running[victim].kill()
        running[victim].join(60)
        killed += running[victim].exitcode == -signal.SIGKILL
        running[victim] = start()
    for process in running:
        process.join(200)
        assert process.exitcode == 0
    assert killed >= kills // 2, "most of the kills must have met a living process"

    queue = Queue(place.open())
    assert queue.broken() == []
    entries = {entry.path: entry.request for entry in queue.requests()}
    assert sorted(entries) == sorted(paths)
    finished = [path for noted, path in notes(logs) if noted == "finished"]
    for path, request in entries.items():
        events = [event.event for event in request.history]
        assert request.status is Status.FINISHED
        assert events.count("finished") == 1
        assert events[-1] == "finished"
        assert events.count("claimed") == request.attempts == events.count("expired") + 1
        assert finished.count(path) <= 1, "whoever was told that it is finished was the only one"


@pytest.mark.parametrize(("workers", "count"), [(2, 10), pytest.param(8, 100, marks=pytest.mark.full)])
def test_workers_on_a_hub_in_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, count: int) -> None:
    with _hub_place(tmp_path, monkeypatch) as (place, hub):
        paths = put_requests(place.open(), count)
        hub.push(REPOSITORY, {"notes.txt": b"so that a stale read shows the requests, too"})
        chosen = random.Random(count)
        for _ in range(count):
            what = chosen.choice([412, 429, 500, 503, "lost", "lost-500", "stale"])
            hub.fail(r"GET .*/revision/main" if what == "stale" else r"(POST .*/commit/|GET .*/resolve/)", what)
        logs = [tmp_path / f"worker{index}.log" for index in range(workers)]
        started = [
            processes.Process(target=worker, args=(place, f"w{index}", timedelta(hours=1), log))
            for index, log in enumerate(logs)
        ]
        _run(started)
        assert [process.exitcode for process in started] == [0] * workers
        assert sorted(path for noted, path in notes(logs) if noted == "finished") == sorted(paths)
        for entry in Queue(place.open()).requests():
            assert [event.event for event in entry.request.history] == ["claimed", "finished"]


# --- commits ---

TWINS = ("a.json", "deep/er/b.json")


def counter(folder: Path, answers: Connection) -> None:
    """Counts in two files at once, for ever, and tells every commit that was taken."""
    store = LocalStore(folder)

    def count(snapshot: Snapshot) -> dict[str, bytes | None]:
        value = str(int(store.read(TWINS[0], snapshot)) + 1).encode()
        # A third file comes and goes.
        gone = None if "c.json" in snapshot.files else value
        return {**dict.fromkeys(TWINS, value), "c.json": gone}

    while True:
        update(store, count, "count")
        answers.send(None)


@pytest.mark.parametrize("kills", [12, pytest.param(150, marks=pytest.mark.full)])
def test_no_commit_is_ever_half_visible(tmp_path: Path, kills: int) -> None:
    folder = tmp_path / "requests"
    reader = LocalStore(folder)
    reader.commit(dict.fromkeys(TWINS, b"0"), "start", parent=reader.snapshot().revision)
    chosen = random.Random(kills)
    told = 0

    def check() -> int:
        snapshot = reader.snapshot()
        try:
            first, second = (int(reader.read(path, snapshot)) for path in TWINS)
        except ConflictError:
            return 0
        assert first == second
        assert ("c.json" in snapshot.files) == (first % 2 == 1)
        return first

    def start() -> tuple[Any, Connection]:
        receiving, sending = processes.Pipe(duplex=False)
        process = processes.Process(target=counter, args=(folder, sending))
        process.start()
        sending.close()
        return process, receiving

    def received(connection: Connection) -> int:
        count = 0
        while connection.poll():
            try:
                connection.recv()
            except EOFError:
                break
            count += 1
        return count

    writers = [start() for _ in range(2)]
    for _ in range(kills):
        seen = told
        while told < seen + 3:
            told += sum(received(connection) for _, connection in writers)
            check()
        time.sleep(chosen.random() * 0.01)
        victim = chosen.randrange(2)
        process, connection = writers[victim]
        process.kill()
        process.join(60)
        told += received(connection)
        connection.close()
        writers[victim] = start()
        check()
    for process, connection in writers:
        process.kill()
        process.join(60)
        told += received(connection)
        connection.close()
    final = int(reader.read(TWINS[0]))
    assert final == check() == int((folder / TWINS[1]).read_text())
    # What was told is there; of each process that was killed one commit may be there without having been told.
    assert told <= final <= told + kills + 2
    fresh = LocalStore(folder)
    assert dict(fresh.read_many(fresh.snapshot().files)) == dict(reader.read_many(reader.snapshot().files))
    assert list((folder / ".store/staged").iterdir()) == []
