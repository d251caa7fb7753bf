"""The store in a directory: plain files, what people do to them, and what a killed process leaves."""

from __future__ import annotations

import gc
import os
import shutil
import threading
from pathlib import Path

import pytest

from parcontrol.leaderboard.store import ConflictError, LocalStore, Snapshot, StoreError, blob_id, update
from parcontrol.leaderboard.store import local as local_module


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "requests"


def commit(store: LocalStore, changes: dict[str, bytes | None]) -> str:
    return store.commit(changes, "test", parent=store.snapshot().revision)


def contents(store: LocalStore) -> dict[str, bytes | None]:
    return dict(store.read_many(store.snapshot().files))


def test_files_are_plain(directory: Path) -> None:
    commit(LocalStore(directory), {"org/m.json": b'{"a": 1}'})
    assert (directory / "org/m.json").read_bytes() == b'{"a": 1}'
    assert {path.name for path in directory.iterdir()} == {"org", ".store"}


def test_what_is_done_by_hand_is_found(directory: Path) -> None:
    (directory / "org").mkdir(parents=True)
    (directory / "org/a.json").write_text("by hand")
    store = LocalStore(directory)
    assert contents(store) == {"org/a.json": b"by hand"}
    first = commit(store, {"org/b.json": b"ours"})

    (directory / "org/a.json").write_text("changed by hand")
    (directory / "org/b.json").unlink()
    (directory / "c.json").write_text("new")
    assert contents(LocalStore(directory)) == {"org/a.json": b"changed by hand", "c.json": b"new"}
    assert set(store.changes(first).files) == {"org/a.json", "org/b.json", "c.json"}
    with pytest.raises(ConflictError):
        store.commit({"org/a.json": b"ours"}, "test", parent=first)


def test_a_change_by_hand_is_found_while_the_store_is_in_use(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_module, "_SECONDS_BETWEEN_SCANS", 1e9)
    store = LocalStore(directory)
    commit(store, {"a.json": b"ours"})
    snapshot = store.snapshot()
    (directory / "a.json").write_text("by hand")
    with pytest.raises(ConflictError, match=r"a\.json has changed"):
        store.read("a.json", snapshot)
    assert store.read("a.json") == b"by hand"


def test_what_a_scan_has_read_is_what_the_snapshot_has(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first reader gets what was hashed, whatever becomes of the file; the next one looks at the file."""
    monkeypatch.setattr(local_module, "_SECONDS_BETWEEN_SCANS", 1e9)
    directory.mkdir()
    for name in "abc":
        (directory / f"{name}.json").write_text(f"first {name}")
    store = LocalStore(directory)
    snapshot = store.snapshot()
    times = (directory / "a.json").stat()
    (directory / "a.json").write_text("other a")  # of the same size
    os.utime(directory / "a.json", ns=(times.st_atime_ns, times.st_mtime_ns))
    (directory / "b.json").unlink()
    read = dict(store.read_many(snapshot.files))
    assert read == {f"{name}.json": f"first {name}".encode() for name in "abc"}
    assert {path: blob_id(content or b"") for path, content in read.items()} == snapshot.files
    for path in ("a.json", "b.json"):
        with pytest.raises(ConflictError):
            store.read(path, snapshot)
    assert store.read("c.json", snapshot) == b"first c"


@pytest.mark.parametrize("room", [0, 6, 1000])
def test_a_first_reading_is_right_whatever_the_scan_keeps(
    directory: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(local_module, "_MOST_AT_HAND", room)
    wanted = {"a.json": b"12345", "b.json": b"12345", "c.json": b"", "d.json": b"x" * 100}
    directory.mkdir()
    for name, content in wanted.items():
        (directory / name).write_bytes(content)
    store = LocalStore(directory)
    files = store.snapshot().files
    assert dict(store.read_many(files, max_bytes=99)) == wanted | {"d.json": None}
    assert dict(store.read_many(files)) == wanted


def test_a_new_file_is_found_in_time(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_module, "_SECONDS_BETWEEN_SCANS", 0)
    store = LocalStore(directory)
    assert store.snapshot().files == {}
    (directory / "a.json").write_text("by hand")
    assert set(store.snapshot().files) == {"a.json"}


def test_links_and_hidden_files_are_no_part(directory: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.json").write_text("secret")
    directory.mkdir()
    (directory / "link.json").symlink_to(outside / "secret.json")
    (directory / "org").symlink_to(outside)
    (directory / ".hidden.json").write_text("hidden")
    store = LocalStore(directory)
    assert store.snapshot().files == {}
    with pytest.raises(StoreError, match="is in the way"):
        commit(store, {"org/new.json": b"hostile"})
    assert [path.name for path in outside.iterdir()] == ["secret.json"]
    commit(store, {"link.json": b"ours"})
    assert (outside / "secret.json").read_text() == "secret"
    assert (directory / "link.json").read_bytes() == b"ours"


def test_a_directory_in_the_way_is_refused(directory: Path) -> None:
    (directory / "a.json").mkdir(parents=True)
    with pytest.raises(StoreError, match="is in the way"):
        commit(LocalStore(directory), {"a.json": b"1", "b.json": b"2"})
    assert contents(LocalStore(directory)) == {}


def test_a_damaged_index_is_named(directory: Path) -> None:
    commit(LocalStore(directory), {"a.json": b"1"})
    gc.collect()  # closes the connection, and with it the write-ahead log
    (directory / ".store/index.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match=r"delete .*\.store"):
        LocalStore(directory).snapshot()
    assert (directory / "a.json").read_bytes() == b"1"


def test_the_index_is_made_anew_from_the_files(directory: Path) -> None:
    store = LocalStore(directory)
    old = commit(store, {"a.json": b"1"})
    shutil.rmtree(directory / ".store")
    assert contents(LocalStore(directory)) == {"a.json": b"1"}
    # A store that was open before takes up the new index, and nobody takes an old revision for a new one.
    assert store.changes(old).complete
    with pytest.raises(ConflictError):
        store.commit({"a.json": b"2"}, "test", parent=old)


class Killed(BaseException):
    """Stands for the end of the process: nothing after it is done."""


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_a_commit_that_was_killed_after_its_transaction_stands(
    directory: Path, monkeypatch: pytest.MonkeyPatch, renamed: int
) -> None:
    store, reader = LocalStore(directory), LocalStore(directory)
    commit(store, {"a": b"1", "b": b"1", "gone": b"1"})
    before = reader.snapshot()
    replace, calls = os.replace, []

    def dying_replace(source: Path, target: Path) -> None:
        if len(calls) == renamed:
            raise Killed
        calls.append(target)
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", dying_replace)
        # With two files to move and a third to delete, the process dies at each of them in turn.
        patched.setattr(Path, "unlink", _dying if renamed == 2 else Path.unlink)
        with pytest.raises(Killed):
            store.commit({"a": b"2", "b": b"2", "gone": None}, "test", parent=before.revision)
    # Whoever reads next sees the whole commit, or nothing of it.
    for path in before.files:
        try:
            assert reader.read(path, before) == b"1"
        except ConflictError:
            assert contents(reader) == {"a": b"2", "b": b"2"}
    assert contents(reader) == contents(LocalStore(directory)) == {"a": b"2", "b": b"2"}
    assert list((directory / ".store/staged").iterdir()) == []


def _dying(path: Path, missing_ok: bool = False) -> None:
    raise Killed


def test_a_commit_that_was_killed_before_its_transaction_leaves_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(directory)
    commit(store, {"a": b"1"})

    def dying(*args: object) -> str:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(local_module, "_record", dying)
        with pytest.raises(Killed):
            commit(store, {"a": b"2", "b": b"2"})
    assert list((directory / ".store/staged").iterdir()) != []
    other = LocalStore(directory)
    assert contents(other) == {"a": b"1"}
    commit(other, {"c": b"3"})
    assert list((directory / ".store/staged").iterdir()) == []


def test_threads_share_a_store(directory: Path) -> None:
    store = LocalStore(directory)
    commit(store, {"count": b"0"})

    def add(snapshot: Snapshot) -> dict[str, bytes | None]:
        return {"count": str(int(store.read("count", snapshot)) + 1).encode()}

    threads = [threading.Thread(target=lambda: [update(store, add, "count") for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read("count") == b"40"


def test_a_full_disk_leaves_what_was(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(directory)
    commit(store, {"a": b"1"})

    def full(paths: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(local_module, "_sync_all", full)
        with pytest.raises(StoreError, match="No space left"):
            commit(store, {"a": b"2"})
    assert contents(store) == {"a": b"1"}
    commit(store, {"a": b"3"})
    assert contents(store) == {"a": b"3"}
