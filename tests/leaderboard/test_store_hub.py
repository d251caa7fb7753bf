"""The store on the Hub, when the Hub is overloaded, slow, out of date, or does not answer."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx2
import pytest

from parcontrol.leaderboard.store import ConflictError, StoreError, update
from parcontrol.leaderboard.store import hub as hub_module
from tests.leaderboard.hub_server import WritableHub
from tests.leaderboard.stores import REPOSITORY, TOKEN, TROUBLE, hub_store, online_hub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

COMMIT, HEAD, READ, TREE = r"POST .*/commit/", r"GET .*/revision/main", r"GET .*/resolve/", r"GET .*/tree/"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    monkeypatch.setattr("parcontrol.hub.TIMEOUT_SECONDS", dict.fromkeys(("connect", "read", "write", "pool"), 0.3))
    # Its own waits between attempts of reading trees and asking how to upload.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with online_hub(tmp_path / "cache", monkeypatch) as hub:
        hub.create("datasets", REPOSITORY, {"a.json": b"1"})
        yield hub


def commits(hub: WritableHub) -> int:
    return len(hub.repositories["datasets", REPOSITORY].commits)


@pytest.mark.parametrize("what", [429, 500, 502, 503, 504, "silence", "lost", "lost-500"])
@pytest.mark.parametrize("where", [COMMIT, HEAD, READ, TREE], ids=["commit", "head", "read", "tree"])
def test_passing_trouble_is_sat_out(hub: WritableHub, where: str, what: Any) -> None:
    store = hub_store(hub)
    hub.fail(where, what, times=2 if where == COMMIT and what in (429, 500) else 1)
    store.commit({"b.json": b"2"}, "test", parent=store.snapshot().revision)
    assert dict(store.read_many(store.snapshot().files)) == {"a.json": b"1", "b.json": b"2"}
    assert commits(hub) == 2, "a commit whose answer is lost is not made twice"
    assert not any(fault.times for fault in hub.faults), "the fault must have been met"


@pytest.mark.parametrize("what", [429, 500, "silence"])
def test_lasting_trouble_is_reported_and_nothing_is_written(hub: WritableHub, what: Any) -> None:
    store = hub_store(hub)
    parent = store.snapshot().revision
    hub.fail(COMMIT, what, times=1000)
    with pytest.raises(
        StoreError, match=rf"alice/requests: commit: gave up after {TROUBLE.attempts} attempts"
    ) as refusal:
        store.commit({"b.json": b"2"}, "test", parent=parent)
    assert TOKEN not in str(refusal.value)
    assert set(hub.files(REPOSITORY)) == {".gitattributes", "a.json"}
    hub.faults.clear()
    store.commit({"b.json": b"2"}, "test", parent=parent)


def test_the_wait_that_the_hub_asks_for_is_kept(hub: WritableHub, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    store = hub_store(hub)
    parent = store.snapshot().revision
    hub.fail(COMMIT, 429, Retry_After="7")
    hub.fail(COMMIT, 429, RateLimit='"api";r=0;t=55')
    hub.fail(COMMIT, 429, Retry_After="100000")
    store.commit({"b.json": b"2"}, "test", parent=parent)
    assert waits == [7, 55, hub_module._LONGEST_TOLD_SECONDS]


def test_a_conflict_is_told_at_once(hub: WritableHub) -> None:
    store = hub_store(hub)
    parent = store.snapshot().revision
    hub.push(REPOSITORY, {"theirs.json": b"0"})
    with pytest.raises(ConflictError):
        store.commit({"b.json": b"2"}, "test", parent=parent)
    assert [request for request, _ in hub.requests if "commit" in request] == [
        f"POST /api/datasets/{REPOSITORY}/commit/main"
    ]


def test_a_lost_answer_and_a_commit_of_somebody_else(hub: WritableHub) -> None:
    store = hub_store(hub)
    parent = store.snapshot().revision
    hub.fail(COMMIT, "lost")
    real, pushed = hub.next_fault, []

    def then_somebody_commits(request: str) -> Any:
        if "/preupload/" in request and commits(hub) == 2 and not pushed:
            pushed.append(hub.push(REPOSITORY, {"theirs.json": b"0"}))
        return real(request)

    hub.next_fault = then_somebody_commits  # type: ignore[method-assign]
    revision = store.commit({"b.json": b"2"}, "test", parent=parent)
    assert pushed == [revision], "the newest revision has both"
    assert commits(hub) == 3
    assert store.read("b.json") == b"2"


def test_stale_reads_show_what_is_known_to_be_newer(hub: WritableHub) -> None:
    store = hub_store(hub)
    store.commit({"b.json": b"2"}, "test", parent=store.snapshot().revision)
    hub.fail(HEAD, "stale", times=5)
    for _ in range(5):
        assert set(store.snapshot().files) == {"a.json", "b.json"}


def test_a_stale_read_that_nobody_can_notice_ends_in_a_conflict_that_is_sat_out(hub: WritableHub) -> None:
    hub.push(REPOSITORY, {"count": b"5"})
    hub.push(REPOSITORY, {"count": b"6"})
    store = hub_store(hub)
    hub.fail(HEAD, "stale", times=3)
    update(store, lambda snapshot: {"count": str(int(store.read("count", snapshot)) + 1).encode()}, "count")
    assert hub.files(REPOSITORY)["count"] == b"7"


def test_what_would_change_nothing_is_compared_too(hub: WritableHub) -> None:
    store = hub_store(hub)
    parent = store.snapshot().revision
    assert store.commit({"a.json": b"1"}, "test", parent=parent) == parent
    hub.push(REPOSITORY, {"a.json": b"2"})
    with pytest.raises(ConflictError):
        store.commit({"a.json": b"2"}, "test", parent=parent)


def test_a_conflict_that_never_ends_is_reported(hub: WritableHub) -> None:
    store = hub_store(hub)
    store._conflicts = TROUBLE
    hub.fail(COMMIT, 412, times=1000)
    with pytest.raises(StoreError, match="gave up after 6 attempts"):
        update(store, lambda snapshot: {"b.json": b"2"}, "test")


def test_a_repository_is_created_private(hub: WritableHub) -> None:
    store = hub_store(hub, repository="alice/new")
    assert store.snapshot().files == {}
    assert hub.repositories["datasets", "alice/new"].private


def test_without_a_token_public_repositories_are_read(hub: WritableHub) -> None:
    store = hub_store(hub, token=None)
    assert store.read("a.json") == b"1"
    assert {token for _, token in hub.requests} == {None}
    with pytest.raises(ValueError, match="set H4_TOKEN"):
        store.user()
    with pytest.raises(StoreError):
        store.commit({"b.json": b"2"}, "test", parent=store.snapshot().revision)
    with pytest.raises(StoreError):
        hub_store(hub, token=None, repository="alice/absent").snapshot()


def test_who_it_is(hub: WritableHub) -> None:
    assert hub_store(hub).user() == "alice"
    assert hub_store(hub, token="other-token").user() == "bob"
    with pytest.raises(StoreError) as refusal:
        hub_store(hub, token="a-wrong-token").user()
    assert "a-wrong-token" not in str(refusal.value)
    assert TOKEN not in repr(hub_store(hub))


def test_what_time_it_is_by_the_hub(hub: WritableHub, monkeypatch: pytest.MonkeyPatch) -> None:
    spring = datetime(2031, 3, 1, 12, tzinfo=UTC)
    monkeypatch.setattr(BaseHTTPRequestHandler, "date_time_string", lambda self: format_datetime(spring, usegmt=True))
    assert hub_store(hub).now() == spring.timestamp()
    assert hub_store(hub, token=None, repository="alice/nothing").now() == spring.timestamp()


def test_what_cannot_be_sent_is_tried_once_and_the_token_in_its_error_is_not_shown(hub: WritableHub) -> None:
    tries: list[str] = []

    def send() -> str:
        tries.append("try")
        raise httpx2.LocalProtocolError(f"Illegal header value b'Bearer {TOKEN}'")

    with pytest.raises(StoreError, match="Illegal header value b'Bearer <token>'") as refusal:
        hub_store(hub)._patiently(send, "test")
    assert TOKEN not in "".join(traceback.format_exception(refusal.value))
    assert tries == ["try"]


def test_many_files_come_in_pages_and_are_read_once(hub: WritableHub) -> None:
    files = {f"org/{index}.json": str(index).encode() for index in range(2500)}
    hub.push(REPOSITORY, files)
    store = hub_store(hub)
    wanted = {path: blob for path, blob in store.snapshot().files.items() if path.endswith("7.json")}
    for _ in range(2):
        assert dict(store.read_many(wanted)) == {path: files[path] for path in wanted}
    assert len(store.snapshot().files) == 2501
    reads = [request for request, _ in hub.requests if "/resolve/" in request]
    assert len(reads) == len(set(reads)) == len(wanted)
    # Another process finds them in the cache on disk, and does not trust one that is damaged.
    damaged = next((Path(store._cache)).glob("*/*"))
    damaged.write_bytes(b"damaged")
    assert dict(hub_store(hub).read_many(wanted)) == {path: files[path] for path in wanted}
    assert len([request for request, _ in hub.requests if "/resolve/" in request]) == len(wanted) + 1


@pytest.mark.parametrize("what", [500, "lost"])
def test_large_files_survive_trouble_too(hub: WritableHub, what: Any) -> None:
    store = hub_store(hub)
    hub.fail(r"PUT /lfs/", what)
    store.commit({"t.parquet": b"large" * 1000}, "test", parent=store.snapshot().revision)
    assert hub.files(REPOSITORY)["t.parquet"] == b"large" * 1000
    assert store.read("t.parquet") == b"large" * 1000
