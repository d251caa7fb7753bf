"""The queue: who gets which request, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from parcontrol.cli.leaderboard.main import main
from parcontrol.leaderboard.queue import Claim, ClaimLostError, Queue
from parcontrol.leaderboard.records import Precision, Request, Status, WeightType, request_path
from parcontrol.leaderboard.store import LocalStore, Store
from tests.leaderboard.stores import hub_store, online_hub

START = datetime(2026, 1, 1, tzinfo=UTC)
LEASE = timedelta(hours=1)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **time: float) -> None:
        self.now += timedelta(**time)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["local", "hub"])
def open_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Store]]:
    if request.param == "local":
        yield lambda: LocalStore(tmp_path / "requests")
        return
    with online_hub(tmp_path / "cache", monkeypatch) as hub:
        yield lambda: hub_store(hub)


@pytest.fixture
def queue(open_store: Callable[[], Store], clock: Clock) -> Queue:
    return Queue(open_store(), clock=clock)


def put(store: Store, name: str, age: float = 0, **fields: Any) -> str:
    """Puts a request into the store that is so many seconds old at START; returns its path."""
    values = {"precision": "float16", "status": "PENDING", "submitted_time": START - timedelta(seconds=age), **fields}
    request = Request(model=f"org/{name}", **values)
    path = request_path(request.model, request.precision, request.weight_type)
    store.commit({path: request.to_json()}, "put", parent=store.snapshot().revision)
    return path


def states(queue: Queue) -> dict[str, Status]:
    return {entry.request.model.removeprefix("org/"): entry.request.status for entry in queue.requests()}


def claimed(queue: Queue, worker: str = "w") -> str | None:
    claim = queue.claim(worker)
    return claim.request.model.removeprefix("org/") if claim else None


def test_the_oldest_comes_first(queue: Queue) -> None:
    for name, age in (("young", 1), ("oldest", 30), ("old", 20)):
        put(queue.store, name, age)
    put(queue.store, "undated", submitted_time=None)
    put(queue.store, "finished", 99, status="FINISHED")
    put(queue.store, "rerun", 10, status="RERUN")
    put(queue.store, "again", 5, status="PENDING_NEW_EVAL")
    assert [claimed(queue) for _ in range(7)] == ["undated", "oldest", "old", "rerun", "again", "young", None]


def test_a_claim_tells_who_has_it_and_until_when(queue: Queue, clock: Clock) -> None:
    path = put(queue.store, "m")
    claim = queue.claim("worker-1")
    assert claim is not None
    assert claim.path == path
    stored = json.loads(queue.store.read(path))
    assert (stored["status"], stored["claimed_by"], stored["attempts"]) == ("RUNNING", "worker-1", 1)
    assert stored["lease_expires"] == "2026-01-01T01:00:00Z"
    clock.advance(minutes=30)
    renewed = queue.renew(claim)
    assert renewed.request.lease_expires == START + timedelta(minutes=90)
    queue.finish(renewed)
    stored = json.loads(queue.store.read(path))
    assert (stored["status"], stored["claimed_by"], stored["lease_expires"]) == ("FINISHED", None, None)
    assert [event["event"] for event in stored["history"]] == ["claimed", "finished"]
    assert {event["by"] for event in stored["history"]} == {"worker-1"}


def test_workers_get_different_requests(open_store: Callable[[], Store], clock: Clock) -> None:
    first, second = Queue(open_store(), clock=clock), Queue(open_store(), clock=clock)
    for index in range(6):
        put(first.store, f"m{index}", age=-index)
    got = [claimed(worker, name) for _ in range(3) for worker, name in ((first, "1"), (second, "2"))]
    assert got == [f"m{index}" for index in range(6)]
    assert claimed(first) is claimed(second) is None


def test_a_worker_takes_only_what_it_accepts(queue: Queue) -> None:
    put(queue.store, "old", 9, precision="GPTQ")
    put(queue.store, "young", 1)
    accept = lambda request: request.precision is not Precision.GPTQ  # noqa: E731
    claim = queue.claim("w", accept)
    assert claim is not None
    assert claim.request.model == "org/young"
    assert queue.claim("w", accept) is None
    assert claimed(queue) == "old"


def test_an_expired_lease_is_taken_over_and_the_first_worker_told(
    open_store: Callable[[], Store], clock: Clock
) -> None:
    first, second = Queue(open_store(), clock=clock), Queue(open_store(), clock=clock)
    put(first.store, "m", 10)
    put(first.store, "later", 5)
    lost = first.claim("first")
    assert lost is not None
    clock.advance(minutes=59)
    assert claimed(second, "other") == "later"
    clock.advance(minutes=1)
    taken = second.claim("second")
    assert taken is not None
    assert (taken.path, taken.request.attempts) == (lost.path, 2)
    for act in (first.renew, first.finish, first.release, lambda claim: first.fail(claim, "too late")):
        with pytest.raises(ClaimLostError, match="it is RUNNING by second"):
            act(lost)
    second.finish(taken)
    with pytest.raises(ClaimLostError, match="it is FINISHED"):
        first.finish(lost)
    events = [event.event for event in taken.request.history]
    assert events == ["claimed", "expired", "claimed"]


def test_a_worker_that_is_late_but_alone_keeps_its_claim(queue: Queue, clock: Clock) -> None:
    put(queue.store, "m")
    claim = queue.claim("w")
    assert claim is not None
    clock.advance(hours=5)
    queue.finish(queue.renew(claim))
    assert states(queue) == {"m": Status.FINISHED}


def test_after_three_attempts_it_is_failed(queue: Queue, clock: Clock) -> None:
    put(queue.store, "m", 10)
    for attempt in range(1, 4):
        claim = queue.claim(f"w{attempt}")
        assert claim is not None
        assert claim.request.attempts == attempt
        clock.advance(hours=2)
    assert queue.claim("w4") is None
    (entry,) = queue.requests()
    assert entry.request.status is Status.FAILED
    assert entry.request.reason == "gave up after 3 attempts: the lease of w3 ran out"
    assert entry.request.history[-1].event == "failed"


def test_giving_up_on_one_does_not_keep_a_worker_from_the_next(queue: Queue, clock: Clock) -> None:
    expired = {"status": "RUNNING", "attempts": 3, "lease_expires": START - LEASE, "reason": "out of memory"}
    put(queue.store, "hopeless", 10, **expired)
    put(queue.store, "m", 5)
    assert claimed(queue) == "m"
    assert states(queue) == {"hopeless": Status.FAILED, "m": Status.RUNNING}
    assert queue.get(queue.find("org/hopeless")).reason.endswith("failed with: out of memory")  # type: ignore[union-attr]


def test_a_running_request_without_a_lease_is_not_stuck(queue: Queue) -> None:
    put(queue.store, "old", 10, status="RUNNING")
    assert claimed(queue) == "old"


def test_failures_are_tried_again_until_three(queue: Queue) -> None:
    path = put(queue.store, "m")
    for attempt in range(1, 4):
        claim = queue.claim("w")
        assert claim is not None
        assert claim.request.attempts == attempt
        queue.fail(claim, f"reason {attempt}\nwith a second line" + "x" * 10_000)
    assert queue.claim("w") is None
    request = queue.get(path)
    assert request is not None
    assert request.status is Status.FAILED
    assert request.reason.startswith("reason 3 with a second line")
    assert len(request.reason) < 5000
    assert [event.event for event in request.history] == ["claimed", "failed"] * 3


def test_a_final_failure_is_not_tried_again(queue: Queue) -> None:
    put(queue.store, "m")
    claim = queue.claim("w")
    assert claim is not None
    queue.fail(claim, "GPTQ is not installed", final=True)
    assert states(queue) == {"m": Status.FAILED}
    assert queue.claim("w") is None


def test_a_claim_that_is_given_back_costs_no_attempt(queue: Queue) -> None:
    put(queue.store, "m")
    for _ in range(10):
        claim = queue.claim("w")
        assert claim is not None
        assert claim.request.attempts == 1
        queue.release(claim)
        with pytest.raises(ClaimLostError):
            queue.release(claim)
    assert states(queue) == {"m": Status.PENDING}


def test_the_same_worker_twice_is_told_apart(queue: Queue) -> None:
    put(queue.store, "m")
    before = queue.claim("same")
    assert before is not None
    queue.release(before)
    again = queue.claim("same")
    assert again is not None
    with pytest.raises(ClaimLostError):
        queue.finish(before)
    queue.finish(again)


def test_requeue_and_cancel(queue: Queue, clock: Clock) -> None:
    path = put(queue.store, "m")
    claim = queue.claim("w")
    assert claim is not None
    with pytest.raises(ValueError, match="is RUNNING: only a request that is over"):
        queue.requeue(path, "me")
    assert queue.cancel(path, "me").reason == "cancelled by me"
    with pytest.raises(ClaimLostError, match="it is CANCELLED"):
        queue.finish(claim)
    with pytest.raises(ValueError, match="is CANCELLED: only a request that waits or runs"):
        queue.cancel(path, "me")
    assert queue.claim("w") is None
    request = queue.requeue(path, "me")
    assert (request.status, request.attempts, request.reason) == (Status.PENDING, 0, "")
    with pytest.raises(ValueError, match="is PENDING"):
        queue.requeue(path)
    with pytest.raises(ValueError, match="there is no request 'org/x'"):
        queue.cancel("org/x")
    assert claimed(queue) == "m"
    clock.advance(hours=2)
    assert queue.requeue(path).status is Status.PENDING, "a worker that is dead has nothing to lose"


def test_a_request_that_is_gone_is_lost(queue: Queue) -> None:
    path = put(queue.store, "m")
    claim = queue.claim("w")
    assert claim is not None
    queue.store.commit({path: None}, "delete", parent=queue.store.snapshot().revision)
    with pytest.raises(ClaimLostError, match="there is no request"):
        queue.renew(claim)


def test_broken_files_are_set_aside_and_stop_nobody(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "requests"
    queue = Queue(LocalStore(folder), clock=clock)
    put(queue.store, "fine")
    good = (folder / "org/fine_eval_request_False_float16_Original.json").read_bytes()
    hostile = {
        "org/html_eval_request_False_float16_Original.json": b"<html><script>alert(1)</script></html>",
        "org/nan_eval_request_False_float16_Original.json": good.replace(b"org/fine", b"org/nan").replace(
            b"0.0", b"NaN"
        ),
        "org/evil_eval_request_False_float16_Original.json": good.replace(b"org/fine", b"../../evil"),
        "org/other_eval_request_False_float16_Original.json": good,
        "org/list.json": b"[1, 2]",
        "name with space.json": good,
        "deep.json": b'{"a":' * 50_000,
    }
    for name, content in hostile.items():
        (folder / name).write_bytes(content)
    with (folder / "huge.json").open("wb") as file:
        file.truncate(100_000_000)
    (folder / "README.md").write_text("no request")
    (folder / "do_not_submit.txt").write_text("org/unwanted")
    before = sorted(path for path in tmp_path.rglob("*") if ".store" not in path.parts)

    queue = Queue(LocalStore(folder), clock=clock)
    assert {broken.path for broken in queue.broken()} == {*hostile, "huge.json"}
    for broken in queue.broken():
        assert broken.reason.isprintable()
        assert 0 < len(broken.reason) < 1000
    assert claimed(queue) == "fine"
    assert claimed(queue) is None
    assert sorted(path for path in tmp_path.rglob("*") if ".store" not in path.parts) == before
    for name, content in hostile.items():
        assert (folder / name).read_bytes() == content


def test_a_broken_file_that_is_mended_is_taken_up(tmp_path: Path, clock: Clock) -> None:
    queue = Queue(LocalStore(tmp_path), clock=clock)
    path = put(queue.store, "m")
    good = queue.store.read(path)
    queue.store.commit({path: b"{"}, "break", parent=queue.store.snapshot().revision)
    assert [broken.path for broken in queue.broken()] == [path]
    assert claimed(queue) is None
    queue.store.commit({path: good}, "mend", parent=queue.store.snapshot().revision)
    assert queue.broken() == []
    assert claimed(queue) == "m"


def test_a_directory_in_a_request_on_the_hub_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    with online_hub(tmp_path, monkeypatch) as hub:
        store = hub_store(hub)
        request = Request(model="local/m", model_path="/etc", precision="float16", status="PENDING")  # type: ignore[arg-type]
        path = request_path(request.model, request.precision, WeightType.ORIGINAL)
        store.commit({path: request.to_json()}, "hostile", parent=store.snapshot().revision)
        queue = Queue(store, clock=clock)
        assert [broken.path for broken in queue.broken()] == [path]
        assert queue.claim("w") is None


def test_only_what_has_changed_is_read(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    requests = [Request(model=f"org/m{i}", precision="float16", status="PENDING") for i in range(50)]  # type: ignore[arg-type]
    files: dict[str, bytes | None] = {
        request_path(request.model, request.precision, request.weight_type): request.to_json() for request in requests
    }
    store.commit(files, "put", parent=store.snapshot().revision)
    queue = Queue(store, clock=clock)
    queue.refresh()
    read: list[str] = []
    read_many = store.read_many
    monkeypatch.setattr(store, "read_many", lambda blobs, **limits: read.extend(blobs) or read_many(blobs, **limits))
    other = Queue(LocalStore(tmp_path), clock=clock)
    other.refresh()
    for _ in range(3):
        assert queue.claim("w") is not None
    assert read == [], "what it has written itself it knows"
    theirs = other.claim("other")
    assert theirs is not None
    assert queue.claim("w") is not None
    assert read == [theirs.path]


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PARCONTROL_LEADERBOARD", str(tmp_path))
    for name in ("REPO_ID", "QUEUE_REPO", "RESULTS_REPO", "H4_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    store = LocalStore(tmp_path / "requests")
    path = put(store, "m")
    put(store, "m", precision="float32")
    assert main(["cancel", "org/m"]) == 2
    assert "'org/m' has several requests, name one of them: org/m_eval" in capsys.readouterr().err
    assert main(["cancel", path]) == 0
    assert capsys.readouterr().out == f"org/m in float16 is CANCELLED: {path}\n"
    assert main(["cancel", path]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["requeue", path]) == 0
    assert json.loads(store.read(path))["history"][-1]["by"] == store.user()
    assert main(["requeue", "org/mm"]) == 2
    assert capsys.readouterr().err == "error: there is no request 'org/mm'; the nearest is 'org/m'\n"


class QueueMachine(RuleBasedStateMachine):
    """Two workers, people and time in any order, against a model that is a dictionary."""

    @initialize()
    def start(self) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.store = LocalStore(self.folder.name)
        self.queues = [Queue(LocalStore(self.folder.name), clock=self.clock) for _ in range(2)]
        self.expected: dict[str, tuple[Status, int]] = {}
        self.claims: dict[str, tuple[int, Claim]] = {}
        self.expiry: dict[str, datetime] = {}
        self.paths: dict[str, str] = {}

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    @precondition(lambda self: len(self.expected) < 4)
    @rule()
    def submit(self) -> None:
        name = f"m{len(self.expected)}"
        self.paths[name] = put(self.store, name, age=-len(self.expected))
        self.expected[name] = (Status.PENDING, 0)

    @rule(worker=st.integers(0, 1))
    def claim(self, worker: int) -> None:
        given_up, chosen = [], None
        for name, (status, attempts) in self.expected.items():
            expired = status is Status.RUNNING and self.expiry[name] <= self.clock.now
            if expired and attempts >= 3:
                given_up.append(name)
            elif chosen is None and (expired or status is Status.PENDING):
                chosen = name
        claim = self.queues[worker].claim(f"w{worker}")
        for name in given_up:
            self.expected[name] = (Status.FAILED, 3)
        assert (claim.request.model if claim else None) == (f"org/{chosen}" if chosen else None)
        if claim and chosen:
            self.expected[chosen] = (Status.RUNNING, self.expected[chosen][1] + 1)
            self.expiry[chosen] = self.clock.now + LEASE
            self.claims[chosen] = (worker, claim)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), act=st.sampled_from(["renew", "finish", "fail", "final", "release"]))
    def act(self, data: st.DataObject, act: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.claims)))
        worker, claim = self.claims[name]
        queue, attempts = self.queues[worker], self.expected[name][1]
        if self.expected[name][0] is not Status.RUNNING:
            with pytest.raises(ClaimLostError):
                queue.renew(claim)
            return
        if act == "renew":
            self.claims[name] = (worker, queue.renew(claim))
            self.expiry[name] = self.clock.now + LEASE
        elif act == "finish":
            queue.finish(claim)
            self.expected[name] = (Status.FINISHED, attempts)
        elif act == "release":
            queue.release(claim)
            self.expected[name] = (Status.PENDING, attempts - 1)
        else:
            queue.fail(claim, "reason", final=act == "final")
            over = act == "final" or attempts >= 3
            self.expected[name] = (Status.FAILED if over else Status.PENDING, attempts)

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.expected)))
        status, attempts = self.expected[name]
        if status in (Status.PENDING, Status.RUNNING):
            self.queues[0].cancel(self.paths[name])
            self.expected[name] = (Status.CANCELLED, attempts)
        else:
            with pytest.raises(ValueError, match="only a request that waits or runs"):
                self.queues[0].cancel(self.paths[name])

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.expected)))
        status, _ = self.expected[name]
        running = status is Status.RUNNING and self.expiry[name] > self.clock.now
        if status is Status.PENDING or running:
            with pytest.raises(ValueError, match="only a request that is over"):
                self.queues[1].requeue(self.paths[name])
        else:
            self.queues[1].requeue(self.paths[name])
            self.expected[name] = (Status.PENDING, 0)

    @rule(minutes=st.sampled_from([1, 59, 60, 61]))
    def wait(self, minutes: int) -> None:
        self.clock.advance(minutes=minutes)

    @invariant()
    def everybody_sees_the_same(self) -> None:
        for queue in getattr(self, "queues", []):
            seen = {
                entry.request.model.removeprefix("org/"): (entry.request.status, entry.request.attempts)
                for entry in queue.requests()
            }
            assert seen == self.expected


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=12, stateful_step_count=20)
