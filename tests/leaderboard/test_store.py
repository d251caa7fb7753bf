"""What every store promises, tried on each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store import (
    ConflictError,
    FileTooLargeError,
    LocalStore,
    Snapshot,
    Store,
    StoreError,
    blob_id,
    check_path,
    open_stores,
    update,
)
from tests.leaderboard.stores import hub_store, online_hub

# huggingface_hub uploads large files in a way that httpx2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

Open = Callable[[], Store]


@pytest.fixture(params=["local", "hub"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens one and the same empty repository, as often as it is called."""
    if request.param == "local":
        yield lambda: LocalStore(tmp_path / "requests")
        return
    with online_hub(tmp_path / "cache", monkeypatch) as hub:
        yield lambda: hub_store(hub)


def commit(store: Store, changes: dict[str, bytes | None]) -> str:
    return store.commit(changes, "test", parent=store.snapshot().revision)


def contents(store: Store) -> dict[str, bytes | None]:
    return dict(store.read_many(store.snapshot().files))


def test_a_new_repository_is_empty(open_store: Open) -> None:
    assert open_store().snapshot().files == {}
    assert open_store().snapshot().revision == open_store().snapshot().revision


def test_what_is_committed_is_read_by_everybody(open_store: Open) -> None:
    ours, other = open_store(), open_store()
    other.snapshot()
    revision = commit(ours, {"org/a.json": b"{}", "b.parquet": b"\0\xff" * 1000, "empty.txt": b""})
    for store in (ours, other, open_store()):
        assert store.snapshot().revision == revision
        assert contents(store) == {"org/a.json": b"{}", "b.parquet": b"\0\xff" * 1000, "empty.txt": b""}
    assert ours.snapshot().files["org/a.json"] == blob_id(b"{}") == "9e26dfeeb6e641a33dae4961196235bdb965b21b"


def test_a_commit_replaces_and_deletes(open_store: Open) -> None:
    ours, other = open_store(), open_store()
    commit(ours, {"a/1.json": b"1", "a/2.json": b"2", "3.json": b"3"})
    assert len(contents(other)) == 3
    commit(ours, {"a/1.json": b"one", "3.json": None})
    assert contents(ours) == contents(other) == {"a/1.json": b"one", "a/2.json": b"2"}
    with pytest.raises(FileNotFoundError):
        other.read("3.json")


def test_a_commit_for_another_revision_is_refused_whole(open_store: Open) -> None:
    ours, other = open_store(), open_store()
    old = ours.snapshot().revision
    commit(other, {"a.json": b"theirs"})
    with pytest.raises(ConflictError):
        ours.commit({"a.json": b"ours", "b.json": b"ours"}, "test", parent=old)
    assert contents(ours) == {"a.json": b"theirs"}


def test_changes_tell_what_differs(open_store: Open) -> None:
    ours, other = open_store(), open_store()
    before = commit(ours, {"a": b"1", "b": b"2", "c": b"3"})
    ours.changes(None)
    commit(other, {"a": b"one", "b": None})
    after = commit(other, {"d": b"4"})
    changes = ours.changes(before)
    assert changes.revision == after
    assert changes.files == {"a": blob_id(b"one"), "b": None, "d": blob_id(b"4")}
    assert not changes.complete
    assert ours.changes(after).files == {}
    for unknown in (None, "0" * 40):
        everything = ours.changes(unknown)
        assert everything.complete
        assert everything.files == {"a": blob_id(b"one"), "c": blob_id(b"3"), "d": blob_id(b"4")}


def test_an_update_is_proposed_again_after_a_conflict(open_store: Open) -> None:
    ours, other = open_store(), open_store()
    commit(ours, {"count": b"0"})
    seen: list[bytes] = []

    def propose(snapshot: Snapshot) -> dict[str, bytes | None]:
        count = ours.read("count", snapshot)
        if not seen:
            commit(other, {"count": b"5"})
        seen.append(count)
        return {"count": str(int(count) + 1).encode()}

    revision = update(ours, propose, "count")
    assert seen == [b"0", b"5"]
    assert other.read("count") == b"6"
    assert revision == other.snapshot().revision
    assert update(ours, lambda snapshot: None, "nothing") is None


def test_a_large_file_is_not_read(open_store: Open) -> None:
    store = open_store()
    commit(store, {"large.json": b"x" * 1001, "small.json": b"x" * 1000})
    with pytest.raises(FileTooLargeError, match=r"large\.json has more than 1,000 bytes"):
        store.read("large.json", max_bytes=1000)
    found = dict(store.read_many(store.snapshot().files, max_bytes=1000))
    assert found == {"large.json": None, "small.json": b"x" * 1000}


def test_an_old_content_is_given_or_refused_but_never_another(open_store: Open) -> None:
    store = open_store()
    commit(store, {"a": b"old"})
    old = store.snapshot()
    commit(store, {"a": b"new"})
    try:
        assert store.read("a", old) == b"old"
    except ConflictError:
        assert store.local, "the Hub keeps what was"
    assert store.read("a") == b"new"


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../a", "a/../../b", "a//b", "", ".store/index.sqlite", "a/.hidden", "a\\b", "a\nb", "é", "a/"],
)
def test_paths_that_lead_elsewhere_are_refused(open_store: Open, tmp_path: Path, path: str) -> None:
    store = open_store()
    commit(store, {"fine.json": b"1"})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="is no path for a repository"):
        commit(store, {"other.json": b"2", path: b"hostile"})
    assert contents(store) == {"fine.json": b"1"}
    if store.local:
        assert sorted(tmp_path.rglob("*")) == before


def test_a_path_cannot_lie_in_a_file(open_store: Open) -> None:
    with pytest.raises(ValueError, match="'a/b' lies in what is a file"):
        commit(open_store(), {"a": b"1", "a/b": b"2"})
    assert contents(open_store()) == {}


@given(st.text(max_size=60) | st.text("./ab", max_size=12))
def test_no_path_leaves_its_directory(path: str) -> None:
    root = Path("/some/store")
    try:
        check_path(path)
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert len(refusal) < 300
        assert refusal.isprintable()
        return
    inside = (root / path).relative_to(root)
    assert inside.as_posix() == path
    assert not any(part.startswith(".") for part in inside.parts)


def test_three_repositories(tmp_path: Path) -> None:
    stores = open_stores(Settings(root=tmp_path / "board"))
    commit(stores.requests, {"a": b"1"})
    commit(stores.results, {"b": b"2"})
    commit(stores.leaderboard, {"c": b"3"})
    plain = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file() and ".store" not in p.parts}
    assert plain == {"board/requests/a", "board/results/b", "board/leaderboard/c"}
    assert stores.requests.user() == stores.results.user() != ""


def test_a_store_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(StoreError, match="cannot be used"):
        LocalStore(tmp_path / "file").snapshot()
