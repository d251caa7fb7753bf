"""What becomes of a request: finished, failed, given back, taken over; and of results that could not be published."""

from __future__ import annotations

import errno
import json
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from parcontrol.leaderboard import worker as worker_module
from parcontrol.leaderboard.evaluate import spool
from parcontrol.leaderboard.evaluate.child import JobFailedError
from parcontrol.leaderboard.evaluate.errors import MachineError
from parcontrol.leaderboard.evaluate.model_spec import Conditions
from parcontrol.leaderboard.queue import Queue
from parcontrol.leaderboard.records import Precision, Request, Status, WeightType, request_path
from parcontrol.leaderboard.registry import select
from parcontrol.leaderboard.results import read_results
from parcontrol.leaderboard.store import LocalStore, StoreError, update
from parcontrol.leaderboard.worker import BusyError, Settings, StoppedError, Worker, request_spec
from tests.leaderboard.evaluation import MODEL, SHA, FakeProcess, finished

TASKS = ("nq_open", "truefalse", "memo_trap")


class Board:
    """A board in a directory, with a worker whose evaluating process is a fake one."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.requests, self.results = LocalStore(root / "requests"), LocalStore(root / "results")
        self.script: dict[str, Any] = {}
        self.processes: list[FakeProcess] = []
        monkeypatch.setattr(worker_module, "EvaluationProcess", self._start)

    def _start(self, home: Path, log: Path, backend: str) -> FakeProcess:
        self.processes.append(FakeProcess(self.script))
        return self.processes[-1]

    def worker(self, tasks: tuple[str, ...] = TASKS, **settings: Any) -> Worker:
        return Worker(self.results, self.root / "worker", Settings(tuple(select(tasks)), **settings))

    def queue(self, **options: Any) -> Queue:
        return Queue(self.requests, **options)

    def submit(self, model: str = "org/model", sha: str | None = SHA, **fields: Any) -> str:
        path = request_path(model, Precision.BFLOAT16, WeightType.ORIGINAL)
        request = Request(model=model, sha=sha, precision=Precision.BFLOAT16, status=Status.PENDING, **fields)
        update(self.requests, lambda snapshot: {path: request.to_json()}, "submit")
        return path

    def request(self, path: str) -> Request:
        (found,) = (entry.request for entry in self.queue().requests() if entry.path == path)
        return found

    @property
    def evaluated(self) -> list[str]:
        return [task for process in self.processes for task in process.tasks]

    @property
    def published(self) -> list[dict[str, Any]]:
        paths = sorted(path for path in self.results.snapshot().files if path.endswith(".json"))
        return [json.loads(self.results.read(path)) for path in paths]

    @property
    def spooled(self) -> list[str]:
        return [
            task
            for directory in spool.model_directories(self.root / "worker" / "spool")
            for task in spool.finished_tasks(directory)
        ]


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    return Board(tmp_path, monkeypatch)


def test_a_request_is_evaluated_published_and_finished(board: Board) -> None:
    path = board.submit()
    worker = board.worker()
    assert worker.drain(board.queue()) == 1
    request = board.request(path)
    assert (request.status, request.attempts, request.claimed_by) == (Status.FINISHED, 1, None)
    (document,) = board.published
    assert set(document["results"]) == set(TASKS)
    assert document["parcontrol"]["request"] == path
    assert document["parcontrol"]["sha"] == SHA
    assert not board.spooled


def test_the_oldest_request_comes_first(board: Board) -> None:
    for model, day in (("org/young", 3), ("org/old", 1), ("org/middle", 2)):
        board.submit(model, submitted_time=f"2026-01-0{day}T00:00:00Z")
    worker = board.worker(("nq_open",))
    assert worker.drain(board.queue(), once=True) == 1
    assert worker.drain(board.queue()) == 2
    order = [order["evaluate"]["spec"]["model"] for process in board.processes for order in process.orders]
    assert order == ["org/old", "org/middle", "org/young"]


def test_only_missing_tasks_are_evaluated_unless_by_force(board: Board) -> None:
    path = board.submit()
    board.worker(("nq_open",)).drain(board.queue())
    board.queue().requeue(path)
    board.worker().drain(board.queue())
    assert sorted(board.evaluated) == sorted(TASKS)
    board.queue().requeue(path)
    board.worker(("nq_open",), force=True).drain(board.queue())
    assert sorted(board.evaluated) == sorted([*TASKS, "nq_open"])
    assert sum("nq_open" in document["results"] for document in board.published) == 2


def test_a_request_says_which_tasks_it_wants(board: Board) -> None:
    board.submit(tasks=("truefalse", "xsum"))
    other = board.submit("org/other", tasks=("xsum",))
    board.worker().drain(board.queue())
    assert board.evaluated == ["truefalse"]
    assert board.request(other).status is Status.PENDING


def test_a_task_that_fails_leaves_the_others_and_is_named(board: Board) -> None:
    board.script["truefalse"] = "its dataset cannot be had"
    path = board.submit()
    board.worker().drain(board.queue())
    assert board.request(path).status is Status.FINISHED
    (document,) = board.published
    assert set(document["results"]) == {"nq_open", "memo_trap"}
    assert document["parcontrol"]["failed"] == {"truefalse": "its dataset cannot be had"}


def test_a_request_fails_when_every_task_does_after_three_attempts(board: Board) -> None:
    board.script |= dict.fromkeys(TASKS, "its dataset cannot be had")
    path = board.submit()
    board.worker().drain(board.queue())
    request = board.request(path)
    assert (request.status, request.attempts) == (Status.FAILED, 3)
    assert "memo_trap: its dataset cannot be had" in request.reason


def test_a_model_that_is_refused_fails_at_once(board: Board) -> None:
    board.script["nq_open"] = JobFailedError("precision GPTQ needs gptqmodel", final=True)
    path = board.submit()
    board.worker().drain(board.queue())
    request = board.request(path)
    assert (request.status, request.attempts, request.reason) == (Status.FAILED, 1, "precision GPTQ needs gptqmodel")


def test_a_task_that_breaks_the_process_comes_last_in_the_next_attempt(board: Board) -> None:
    board.script["nq_open"] = JobFailedError("the evaluation was killed by SIGKILL")
    path = board.submit()
    board.worker().drain(board.queue())
    request = board.request(path)
    assert (request.status, request.attempts) == (Status.FAILED, 3)
    assert request.reason == "the evaluation was killed by SIGKILL"
    orders = [order["evaluate"]["tasks"] for process in board.processes for order in process.orders]
    assert orders == [("nq_open", "truefalse", "memo_trap"), ("truefalse", "memo_trap", "nq_open"), ("nq_open",)]
    assert {task for document in board.published for task in document["results"]} == {"truefalse", "memo_trap"}


def test_scoring_that_breaks_off_leaves_the_metric_absent(board: Board) -> None:
    board.script["score xsum"] = JobFailedError("the evaluation was killed by SIGKILL")
    path = board.submit()
    board.worker(("xsum",)).drain(board.queue())
    assert board.request(path).status is Status.FINISHED
    absent = board.published[0]["parcontrol"]["absent"]["xsum"]
    assert absent["factkb"] == "the evaluation was killed by SIGKILL"
    assert "rougeL" not in absent


def test_a_worker_that_is_told_to_end_publishes_and_gives_back(board: Board) -> None:
    worker = board.worker()
    board.script["truefalse"] = worker.stop.set
    path = board.submit()
    assert worker.drain(board.queue()) == 0
    request = board.request(path)
    assert (request.status, request.attempts, request.claimed_by) == (Status.PENDING, 0, None)
    assert [set(document["results"]) for document in board.published] in ([{"nq_open"}], [{"nq_open", "truefalse"}])
    assert board.processes[0].stopped
    del board.script["truefalse"]
    board.worker().drain(board.queue())
    assert board.request(path).status is Status.FINISHED
    assert sorted(task for document in board.published for task in document["results"]) == sorted(TASKS)


def test_a_task_that_hangs_fails_and_the_others_go_on(board: Board) -> None:
    board.script["truefalse"] = [None] * 1000
    path = board.submit(tasks=(*TASKS, "xsum"))
    board.worker((*TASKS, "xsum"), task_seconds=0.2).drain(board.queue())
    assert board.request(path).status is Status.FINISHED
    assert board.request(path).attempts == 1
    assert {task for document in board.published for task in document["results"]} == {"nq_open", "memo_trap", "xsum"}
    reasons = [document["parcontrol"]["failed"] for document in board.published]
    assert reasons == [{"truefalse": "truefalse was not finished within 0.2 s"}]
    assert [process.tasks for process in board.processes] == [
        ["nq_open", "truefalse", "xsum", "memo_trap"],
        ["xsum", "memo_trap"],
    ]
    assert [process.stopped for process in board.processes] == [True, False]
    assert [order for process in board.processes for order in process.orders if "score" in order], "answers are scored"


def test_answers_are_scored_after_the_last_task_has_hung(board: Board) -> None:
    board.script["memo_trap"] = [None] * 1000
    board.submit()
    board.worker(("xsum", "memo_trap"), task_seconds=0.2).drain(board.queue())
    assert [list(order) for order in board.processes[-1].orders] == [["score"]]


def test_scoring_that_hangs_leaves_the_metric_absent(board: Board) -> None:
    board.script["score xsum"] = [None] * 1000
    path = board.submit()
    board.worker(("xsum",), task_seconds=0.2).drain(board.queue())
    assert board.request(path).status is Status.FINISHED
    assert "was not finished within 0.2 s" in board.published[0]["parcontrol"]["absent"]["xsum"]["factkb"]


def test_a_lease_is_renewed_while_the_evaluation_runs(board: Board) -> None:
    lease = timedelta(seconds=0.4)
    path = board.submit()
    seen: set[Any] = set()

    def wait_for_renewals() -> None:
        until(lambda: len(seen | {board.request(path).lease_expires}) >= 4, seen_add)

    def seen_add() -> None:
        seen.add(board.request(path).lease_expires)

    board.script["truefalse"] = wait_for_renewals
    board.worker().drain(board.queue(lease=lease))
    assert board.request(path).status is Status.FINISHED
    assert board.request(path).attempts == 1


def test_a_worker_that_loses_its_claim_ends_the_evaluation(board: Board) -> None:
    path = board.submit()
    worker = board.worker()

    def cancel() -> None:
        board.queue().cancel(path)
        heartbeats = [thread for thread in threading.enumerate() if thread.name == "parcontrol-heartbeat"]
        until(lambda: not any(thread.is_alive() for thread in heartbeats))

    board.script["truefalse"] = cancel
    assert worker.drain(board.queue(lease=timedelta(seconds=0.2))) == 0
    assert board.request(path).status is Status.CANCELLED
    assert "memo_trap" not in {task for document in board.published for task in document["results"]}


def test_results_that_cannot_be_published_wait_on_disk(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    path = board.submit()
    commit = board.results.commit

    def fail(*_: Any, **__: Any) -> str:
        raise StoreError("the Hub answers 503")

    monkeypatch.setattr(board.results, "commit", fail)
    with pytest.raises(StoreError):
        board.worker().drain(board.queue())
    assert sorted(board.spooled) == sorted(TASKS)
    assert board.request(path).status is Status.PENDING
    with pytest.raises(StoreError):  # the next one tries first of all, and fails as loudly
        board.worker().drain(board.queue())

    monkeypatch.setattr(board.results, "commit", commit)
    board.worker().drain(board.queue())
    assert sorted(board.evaluated) == sorted(TASKS), "nothing is evaluated again"
    assert not board.spooled
    assert board.request(path).status is Status.FINISHED


def test_what_a_killed_worker_finished_is_published(board: Board) -> None:
    finished(board.root / "worker" / "spool", "nq_open")
    path = board.submit()
    board.worker().drain(board.queue())
    assert sorted(board.evaluated) == ["memo_trap", "truefalse"]
    assert sorted(task for document in board.published for task in document["results"]) == sorted(TASKS)
    assert board.request(path).status is Status.FINISHED


def test_two_processes_of_a_machine_do_not_evaluate_one_model(board: Board) -> None:
    path = board.submit()
    with spool.locked(board.root / "worker" / "spool" / MODEL.directory_name):
        with pytest.raises(BusyError):
            board.worker().evaluate(MODEL, TASKS)
        board.worker().drain(board.queue())
        assert (board.request(path).status, board.request(path).attempts) == (Status.PENDING, 0)
    board.worker().drain(board.queue())
    assert board.request(path).status is Status.FINISHED


def test_a_directory_that_another_worker_removes_while_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "model"

    def met_it_then_it_was_gone(*_: object) -> None:
        raise FileExistsError(directory)

    with monkeypatch.context() as patch:
        patch.setattr("os.mkdir", met_it_then_it_was_gone)
        with spool.locked(directory) as held:
            assert not held
    with spool.locked(directory) as held:
        assert held
    assert not directory.exists()
    directory.touch()  # which no waiting mends
    with pytest.raises(FileExistsError), spool.locked(directory):
        pass


def test_direct_evaluation_needs_no_request(board: Board) -> None:
    outcome = board.worker(conditions=Conditions(limit=3)).evaluate(MODEL, TASKS)
    assert (sorted(outcome.done), outcome.failed) == (sorted(TASKS), {})
    assert board.published[0]["parcontrol"]["limit"] == 3
    assert board.worker(conditions=Conditions(limit=2)).evaluate(MODEL, TASKS).done == []
    assert sorted(board.worker().evaluate(MODEL, TASKS).done) == sorted(TASKS), "three rows do not stand for all"


def test_direct_evaluation_can_be_stopped(board: Board) -> None:
    worker = board.worker()
    board.script["truefalse"] = worker.stop.set
    with pytest.raises(StoppedError):
        worker.evaluate(MODEL, TASKS)


def test_a_request_is_loaded_as_it_says() -> None:
    request = Request(
        model="local/tiny",
        model_path="/models/tiny",
        sha="local-" + "1" * 64,
        revision="main",
        precision=Precision.INT8,
        weight_type=WeightType.ADAPTER,
        base_model="org/base",
        chat_template=True,
        status=Status.PENDING,
    )
    spec = request_spec(request, request.sha)
    assert (spec.path, spec.sha, spec.precision, spec.weight_type) == ("/models/tiny", request.sha, "8bit", "Adapter")
    assert (spec.base_model, spec.chat_template, spec.remote_code) == ("org/base", True, False)


def test_an_old_request_is_evaluated_at_the_commit_that_its_revision_is_now(board: Board) -> None:
    path, lost = board.submit(sha=None), board.submit("org/gone", sha=None)

    def find_sha(request: Request) -> str:
        if request.model == "org/gone":
            raise ValueError("org/gone is not on the Hub")
        return "c" * 40

    board.worker().drain(board.queue(), find_sha=find_sha)
    assert board.request(path).status is Status.FINISHED
    assert [document["parcontrol"]["sha"] for document in board.published] == ["c" * 40]
    assert (board.request(lost).status, board.request(lost).reason) == (Status.FAILED, "org/gone is not on the Hub")


def test_a_model_that_cannot_be_reached_does_not_keep_others_from_being_done(board: Board) -> None:
    lost = board.submit("org/old", sha=None, submitted_time="2020-01-01T00:00:00Z")
    other = board.submit(submitted_time="2026-01-01T00:00:00Z")
    seen: list[Status] = []

    def find_sha(request: Request) -> str:
        seen.append(board.request(other).status)
        raise StoreError("look for org/old: offline mode is enabled")

    assert board.worker().drain(board.queue(), find_sha=find_sha) == 1
    assert seen == [Status.PENDING, Status.FINISHED, Status.FINISHED], "the other comes before the second attempt"
    request = board.request(lost)
    assert (request.status, request.attempts) == (Status.FAILED, 3)
    assert request.reason == "look for org/old: offline mode is enabled"


def test_an_unexpected_error_is_an_attempt_with_its_traceback_in_the_log(
    board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    board.script["truefalse"] = AttributeError("nobody thought of this")
    path = board.submit(submitted_time="2020-01-01T00:00:00Z")
    other = board.submit("org/other", tasks=("nq_open",), submitted_time="2026-01-01T00:00:00Z")
    assert board.worker().drain(board.queue()) == 1
    assert board.request(other).status is Status.FINISHED
    request = board.request(path)
    assert (request.status, request.attempts) == (Status.FAILED, 3)
    assert request.reason == "unexpected error: AttributeError('nobody thought of this')"
    assert "Traceback" in caplog.text
    assert all(process.stopped for process in board.processes[:3]), "none goes on with what was given up"


@pytest.mark.parametrize("fault", [MachineError("the disk is full"), OSError(errno.ENOSPC, "No space left on device")])
def test_a_fault_of_the_machine_gives_the_claim_back_and_ends_the_worker(board: Board, fault: Exception) -> None:
    board.script["truefalse"] = fault
    path = board.submit(submitted_time="2020-01-01T00:00:00Z")
    other = board.submit("org/other", submitted_time="2026-01-01T00:00:00Z")
    with pytest.raises(MachineError, match=r"the disk is full|No space left on device"):
        board.worker().drain(board.queue())
    assert (board.request(path).status, board.request(path).attempts) == (Status.PENDING, 0)
    assert board.request(other).history == ()
    assert [set(document["results"]) for document in board.published] == [{"nq_open"}]
    assert board.processes[0].stopped


@pytest.mark.parametrize(("days", "said"), [(2, "2.0 days behind"), (-2, "2.0 days ahead of")])
def test_a_wrong_clock_is_said_before_anything_is_evaluated(
    board: Board, monkeypatch: pytest.MonkeyPatch, days: float, said: str
) -> None:
    monkeypatch.setattr(board.results, "now", lambda: time.time() + days * 86400)
    path = board.submit()
    with pytest.raises(MachineError, match=said):
        board.worker().drain(board.queue())
    assert (board.request(path).status, board.request(path).attempts) == (Status.PENDING, 0)
    assert not board.evaluated


def test_what_a_wrong_clock_has_dated_is_not_published(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    """It is evaluated again, and the table takes what is published then."""
    late = finished(board.root / "worker" / "spool", "nq_open")
    late.results["date"] = time.time() + 2 * 86400
    (late.directory / "results.json").write_bytes(spool.to_json(late.results))
    board.submit()
    board.worker(("nq_open",)).drain(board.queue())
    assert "lies in the future" in caplog.text
    assert board.evaluated == ["nq_open"]
    assert not late.directory.exists()
    results = read_results(board.results)
    assert (len(results.scores), results.broken) == (1, [])


def test_a_model_that_this_machine_cannot_look_for_is_not_at_fault(board: Board) -> None:
    path = board.submit(sha=None)

    def find_sha(request: Request) -> str:
        raise StoreError("the Hub cannot be asked") from OSError(errno.EMFILE, "Too many open files")

    with pytest.raises(MachineError, match="Too many open files"):
        board.worker().drain(board.queue(), find_sha=find_sha)
    assert (board.request(path).status, board.request(path).attempts) == (Status.PENDING, 0)


@pytest.mark.parametrize(
    ("tasks", "reason"), [(("nq_opem",), "'nq_opem'; the nearest is 'nq_open'"), ((), "no task is named")]
)
def test_a_request_for_tasks_that_there_are_not_fails_with_the_reason(
    tasks: tuple[str, ...], reason: str, board: Board
) -> None:
    path = board.submit(tasks=tasks)
    assert board.worker().drain(board.queue()) == 0
    assert (board.request(path).status, board.request(path).attempts) == (Status.FAILED, 1)
    assert reason in board.request(path).reason


@pytest.mark.parametrize("damage", ["no JSON", "null", '{"parcontrol": {"model": 1}}', "limit", "samples"])
def test_a_broken_file_in_the_spool_is_set_aside(damage: str, board: Board, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = (finished(board.root / "worker" / "spool", task) for task in ("nq_open", "memo_trap"))
    if damage == "samples":
        bad.samples.unlink()
    else:
        bad.block["limit"] = "abc"
        text = json.dumps(bad.results) if damage == "limit" else damage
        (bad.directory / spool.RESULTS).write_text(text, encoding="utf-8")
    board.worker().publish_leftovers()
    assert [set(document["results"]) for document in board.published] == [{"nq_open"}]
    (aside,) = good.directory.parent.glob("memo_trap.*.broken")
    assert f"set aside as {aside.name}" in caplog.text
    path = board.submit()
    assert board.worker().drain(board.queue()) == 1
    assert board.request(path).status is Status.FINISHED
    assert aside.is_dir()


def until(condition: Callable[[], bool], between: Callable[[], None] = lambda: None) -> None:
    """Waits for a condition, and gives up long after it should hold."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        between()
        time.sleep(0.02)
