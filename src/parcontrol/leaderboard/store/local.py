"""A repository in a directory: plain files that anyone can read, and an index that makes commits of them.

    <org>/<name>.json, …    the files, in the layout of the repository on the Hub
    .store/index.sqlite     revisions, blob ids, and the journal of a commit that is not yet in the files
    .store/staged/          new contents of that commit
    .store/lock             held by whoever writes

A commit writes its contents to `staged/`, then one SQLite transaction records the revision and the journal, and from
there on it stands: the files are moved to their places, and a process that is killed in between leaves that to the
next one that opens the store. Readers compare what they read with the blob id, so they never see half a commit.

Files that are put there, changed or deleted by hand are found by size and time, at opening and every few seconds, and
become a commit of their own. Hidden files and links are no part of the repository.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import pwd
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import tenacity

from parcontrol.leaderboard.store.base import (
    Changes,
    ConflictError,
    FileTooLargeError,
    Snapshot,
    StoreError,
    blob_id,
    checked,
)
from parcontrol.leaderboard.store.retries import LOCAL_CONFLICTS, RetryPolicy

logger = logging.getLogger(__name__)

_HIDDEN = ".store"
# Looking at every file takes about 2 µs each; changes by hand may wait.
_SECONDS_BETWEEN_SCANS = 5.0
_BY_HAND = "changed by hand"
_FEW, _SYNCING_THREADS = 4, 16
# What a scan keeps of the files that it reads, for whoever reads next.
_MOST_AT_HAND = 128 << 20

_SCHEMA = """
CREATE TABLE IF NOT EXISTS commits (
    number INTEGER PRIMARY KEY, revision TEXT UNIQUE NOT NULL, time REAL NOT NULL, message TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, blob TEXT, size INTEGER, mtime_ns INTEGER, number INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS files_by_number ON files (number);
CREATE TABLE IF NOT EXISTS journal (path TEXT PRIMARY KEY, staged TEXT);
"""


class _File(NamedTuple):
    """What the index knows of a file: `blob` is None once it is gone."""

    blob: str | None
    size: int | None
    mtime_ns: int | None


_GONE = _File(None, None, None)

# Connections that a forked child got from its parent, kept from being closed.
_of_parents: list[sqlite3.Connection] = []


class _WriterLock:
    """The lock of writers to a directory, shared by all stores of this process on it.

    One store may therefore be used while another one holds the lock, as long as it is in the same thread.
    """

    def __init__(self, path: Path) -> None:
        self.mutex = threading.RLock()
        self._path = path
        self._fd, self._depth = -1, 0

    def acquire(self) -> bool:
        """Waits for the lock, under the mutex; returns whether it was not held already."""
        if self._depth == 0:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX)
            except BaseException:
                os.close(self._fd)
                raise
        self._depth += 1
        return self._depth == 1

    def release(self) -> None:
        """Gives back what `acquire` took."""
        self._depth -= 1
        if self._depth == 0:
            os.close(self._fd)


_locks: weakref.WeakValueDictionary[Path, _WriterLock] = weakref.WeakValueDictionary()
_locks_mutex = threading.Lock()


def _lock_of(path: Path) -> _WriterLock:
    with _locks_mutex:
        lock = _locks.get(path.resolve())
        if lock is None:
            lock = _locks[path.resolve()] = _WriterLock(path)
        return lock


class LocalStore:
    """A repository in a directory, which is created if needed; used by many processes and threads at once.

    Raises:
        StoreError: The directory cannot be used.
    """

    local = True

    def __init__(self, directory: str | Path, conflicts: RetryPolicy = LOCAL_CONFLICTS) -> None:
        self.directory = Path(directory).absolute()
        self._hidden = self.directory / _HIDDEN
        self._staged = self._hidden / "staged"
        self._conflicts = conflicts
        self._lock = _lock_of(self._hidden / "lock")
        self._mutex = self._lock.mutex
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None  # process and inode
        self._newest: Snapshot | None = None
        self._next_scan = 0.0
        self._at_hand: dict[str, bytes] = {}  # by blob id

    def __repr__(self) -> str:
        return f"LocalStore({str(self.directory)!r})"

    def user(self) -> str:
        """Returns the account that runs this process; the environment has no say in it."""
        try:
            return pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            return f"uid-{os.getuid()}"

    def now(self) -> float:
        """Returns the time by the clock of this machine."""
        return time.time()

    # --- reading ---

    def snapshot(self) -> Snapshot:
        """Returns all files at the newest revision."""
        with self._mutex:
            known = self._newest
            changes = self.changes(known.revision if known else None)
            if known is None or changes.complete:
                files = {path: blob for path, blob in changes.files.items() if blob}
            elif changes.files:
                merged = {**known.files, **changes.files}
                files = {path: blob for path, blob in merged.items() if blob}
            else:
                return known
            self._newest = Snapshot(changes.revision, files)
            return self._newest

    def changes(self, since: str | None) -> Changes:
        """Returns what has changed since a revision; all files for None, or for a revision that is not known."""
        with self._errors_named(), self._mutex:
            self._check_still_there()
            self._scan_if_due()
            index = self._index()
            with _transaction(index, "DEFERRED"):
                revision = _head(index)[1]
                if since == revision:
                    return Changes(revision, {}, complete=False)
                row = index.execute("SELECT number FROM commits WHERE revision = ?", (since,)).fetchone()
                query = "SELECT path, blob FROM files WHERE number > ?" if row else "SELECT path, blob FROM files"
                found = index.execute(query, row or ()).fetchall()
            if row:
                return Changes(revision, dict(found), complete=False)
            return Changes(revision, {path: blob for path, blob in found if blob}, complete=True)

    def read(self, path: str, snapshot: Snapshot | None = None, max_bytes: int | None = None) -> bytes:
        """Returns the content of a file, as it is in the snapshot or now; see `Store.read`."""
        if snapshot is not None:
            return self._read(path, snapshot, max_bytes)
        for attempt in self.conflict_retries():
            with attempt:
                return self._read(path, self.snapshot(), max_bytes)
        raise AssertionError("retries end by returning or raising")

    def _read(self, path: str, snapshot: Snapshot, max_bytes: int | None) -> bytes:
        if path not in snapshot.files:
            raise FileNotFoundError(errno.ENOENT, "no such file in the store", path)
        (_, content), *_ = self.read_many({path: snapshot.files[path]}, max_bytes)
        if content is None:
            raise FileTooLargeError(f"{path} has more than {max_bytes:,} bytes")
        return content

    def read_many(self, blobs: Mapping[str, str], max_bytes: int | None = None) -> Iterator[tuple[str, bytes | None]]:
        """Yields every path of a mapping from path to blob id with its content; see `Store.read_many`."""
        # What the last scan has read is given out once, so that it is not in memory for long.
        at_hand, self._at_hand = self._at_hand, {}
        for path, blob in blobs.items():
            known = at_hand.pop(blob, None)
            if known is not None:
                yield path, known if max_bytes is None or len(known) <= max_bytes else None
                continue
            found, content = self._read_file(path, blob, max_bytes)
            if not found:
                self._settle()
                found, content = self._read_file(path, blob, max_bytes)
            if not found:
                raise ConflictError(f"{path} has changed")
            yield path, content

    def _read_file(self, path: str, blob: str, max_bytes: int | None) -> tuple[bool, bytes | None]:
        """Whether the file has that blob id, and its content."""
        with self._errors_named():
            try:
                fd = os.open(f"{self.directory}/{path}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except (FileNotFoundError, NotADirectoryError):
                return False, None
            try:
                size = os.fstat(fd).st_size
                if max_bytes is not None and size > max_bytes:
                    return True, None
                content = b"".join(_chunks(fd, size))
            finally:
                os.close(fd)
        return blob_id(content) == blob, content

    # --- writing ---

    def commit(self, changes: Mapping[str, bytes | None], message: str, parent: str) -> str:
        """Writes all changes at once, or nothing, and returns the new revision; see `Store.commit`."""
        checked(changes)
        with self._errors_named(), self._locked() as index:
            if _head(index)[1] != parent:
                raise ConflictError(f"{self.directory} has changed")
            self._check_places(changes)
            staged = self._stage(changes)
            revision = _record(index, message, {path: file for path, (file, _) in staged.items()}, staged)
            self._move_into_place(index)
            return revision

    def conflict_retries(self) -> tenacity.Retrying:
        """Returns how to repeat what ended in a `ConflictError`."""
        return self._conflicts.retrying(lambda error: isinstance(error, ConflictError), str(self.directory))

    def _check_places(self, paths: Iterable[str]) -> None:
        """Refuses to write through a link, or over a directory: somebody has put it there by hand."""
        places = [self.directory / path for path in paths]
        above = {parent for folder in {place.parent for place in places} for parent in (folder, *folder.parents)}
        inside = [parent for parent in above if parent != self.directory and parent.is_relative_to(self.directory)]
        odd = [place for place in places if place.is_dir()]
        odd += [parent for parent in inside if parent.is_symlink() or (parent.exists() and not parent.is_dir())]
        if odd:
            raise StoreError(f"{odd[0]} is in the way: the store writes neither through links nor over directories")

    def _stage(self, changes: Mapping[str, bytes | None]) -> dict[str, tuple[_File, str | None]]:
        """Writes new contents beside the files, durably."""
        staged: dict[str, tuple[_File, str | None]] = {}
        for path, content in changes.items():
            if content is None:
                staged[path] = (_GONE, None)
                continue
            name = str(len(staged))
            with open(self._staged / name, "wb") as file:
                file.write(content)
                file.flush()
                status = os.fstat(file.fileno())
            staged[path] = (_File(blob_id(content), status.st_size, status.st_mtime_ns), name)
        _sync_all([self._staged / name for _, name in staged.values() if name] + [self._staged])
        return staged

    def _move_into_place(self, index: sqlite3.Connection) -> None:
        """Brings a recorded commit into the files; does nothing for what is there already."""
        journal = index.execute("SELECT path, staged FROM journal").fetchall()
        for path, staged in journal:
            place = self.directory / path
            if staged is None:
                place.unlink(missing_ok=True)
            elif (self._staged / staged).exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(self._staged / staged, place)
        folders = {(self.directory / path).parent for path, _ in journal}
        _sync_all([folder for folder in folders if folder.is_dir()])
        # Not worth a sync of its own: a journal that comes back after a power cut says the same again.
        index.execute("PRAGMA synchronous = NORMAL")
        index.execute("DELETE FROM journal")
        index.execute("PRAGMA synchronous = FULL")

    # --- what people do to the files ---

    def _scan_if_due(self) -> None:
        if time.monotonic() >= self._next_scan:
            self._settle()

    def _settle(self) -> None:
        """Ends what a killed process began, and takes in what was changed by hand."""
        with self._errors_named(), self._locked() as index:
            self._scan(index)
        self._next_scan = time.monotonic() + _SECONDS_BETWEEN_SCANS

    def _scan(self, index: sqlite3.Connection) -> None:
        known = {path: _File(*rest) for path, *rest in index.execute("SELECT path, blob, size, mtime_ns FROM files")}
        present = dict(self._walk(str(self.directory), ""))
        found = {path: _GONE for path, file in known.items() if file.blob and path not in present}
        at_hand: dict[str, bytes] = {}
        room = _MOST_AT_HAND
        for path, status in present.items():
            file, size = known.get(path, _GONE), status.st_size
            if file.blob and (file.size, file.mtime_ns) == (size, status.st_mtime_ns):
                continue
            blob, content = _read_with_blob_id(f"{self.directory}/{path}", size, keep=size <= room)
            if blob is None:
                continue
            found[path] = _File(blob, size, status.st_mtime_ns)
            if content is not None:
                at_hand[blob] = content
                room -= size
        self._at_hand = at_hand
        if found:
            _record(index, _BY_HAND, found, {})

    def _walk(self, directory: str, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not entry.name.isprintable():
                    logger.warning("%s is left out: its name cannot be shown", ascii(entry.path))
                elif entry.is_dir(follow_symlinks=False):
                    yield from self._walk(entry.path, f"{prefix}{entry.name}/")
                elif entry.is_file(follow_symlinks=False):
                    yield prefix + entry.name, entry.stat(follow_symlinks=False)

    # --- the index ---

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps all others from writing during the block, so that what is read in it is not outdated when written."""
        with self._mutex:
            with self._errors_named():
                self._acquire()
            try:
                yield
            finally:
                self._lock.release()

    @contextmanager
    def _locked(self) -> Iterator[sqlite3.Connection]:
        """Holds the lock of writers, with nothing left over from a process that was killed."""
        with self._mutex:
            self._acquire()
            try:
                yield self._index()
            finally:
                self._lock.release()

    def _check_still_there(self) -> None:
        """A directory that was there and has gone, with its disk perhaps, is not made anew: that would look empty."""
        if self._opened and not self.directory.is_dir():
            raise FileNotFoundError(errno.ENOENT, "the directory is gone", str(self.directory))

    def _acquire(self) -> None:
        self._check_still_there()
        self._staged.mkdir(parents=True, exist_ok=True)
        if self._lock.acquire():
            try:
                self._clear_up()
            except BaseException:
                self._lock.release()
                raise

    def _clear_up(self) -> None:
        """Ends the commit of a process that was killed, and removes what another never began to commit."""
        index = self._index()
        if index.execute("SELECT 1 FROM journal LIMIT 1").fetchone():
            self._move_into_place(index)
        for leftover in os.listdir(self._staged):
            os.unlink(self._staged / leftover)

    def _index(self) -> sqlite3.Connection:
        """Returns the connection of this process, opened under the lock of writers."""
        path = self._hidden / "index.sqlite"
        inode = os.stat(path).st_ino if path.exists() else None
        if self._opened == (os.getpid(), inode) and self._connection:
            return self._connection
        if self._connection and self._opened and self._opened[0] != os.getpid():
            # SQLite forbids closing in a child what its parent has opened.
            _of_parents.append(self._connection)
        index = sqlite3.connect(path, isolation_level=None, timeout=60, check_same_thread=False)
        index.execute("PRAGMA journal_mode = WAL")
        index.execute("PRAGMA synchronous = FULL")
        with _transaction(index, "IMMEDIATE"):
            for statement in _SCHEMA.split(";"):
                index.execute(statement)
            if not index.execute("SELECT 1 FROM commits LIMIT 1").fetchone():
                # Random, so that an index that was made anew knows no revision of the old one.
                _insert_commit(index, os.urandom(20).hex(), "created")
        self._connection, self._opened = index, (os.getpid(), os.stat(path).st_ino)
        return index

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        """Turns what the file system and SQLite say into `StoreError`."""
        try:
            yield
        except OSError as error:
            raise StoreError(f"the store at {self.directory} cannot be used: {error}") from error
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"the index of the store at {self.directory} cannot be used: {error}; if it is damaged, stop all "
                f"workers and delete {self._hidden}: it is made anew from the files"
            ) from error


@contextmanager
def _transaction(index: sqlite3.Connection, kind: str) -> Iterator[None]:
    index.execute(f"BEGIN {kind}")
    try:
        yield
        index.execute("COMMIT")
    except BaseException:
        if index.in_transaction:
            index.execute("ROLLBACK")
        raise


def _head(index: sqlite3.Connection) -> tuple[int, str]:
    number, revision = index.execute("SELECT number, revision FROM commits ORDER BY number DESC LIMIT 1").fetchone()
    return number, revision


def _record(
    index: sqlite3.Connection,
    message: str,
    files: Mapping[str, _File],
    staged: Mapping[str, tuple[_File, str | None]],
) -> str:
    """Records a commit: from here on it stands."""
    with _transaction(index, "IMMEDIATE"):
        parent = _head(index)[1]
        state = json.dumps([parent, message, time.time_ns(), {path: file.blob for path, file in files.items()}])
        revision = hashlib.sha1(state.encode(), usedforsecurity=False).hexdigest()
        number = _insert_commit(index, revision, message)
        index.executemany(
            "INSERT OR REPLACE INTO files (path, blob, size, mtime_ns, number) VALUES (?, ?, ?, ?, ?)",
            [(path, *file, number) for path, file in files.items()],
        )
        index.executemany("INSERT INTO journal VALUES (?, ?)", [(path, name) for path, (_, name) in staged.items()])
    return revision


def _insert_commit(index: sqlite3.Connection, revision: str, message: str) -> int | None:
    row = (revision, time.time(), message)
    return index.execute("INSERT INTO commits (revision, time, message) VALUES (?, ?, ?)", row).lastrowid


def _read_with_blob_id(path: str, size: int, keep: bool) -> tuple[str | None, bytes | None]:
    """The blob id of a file of any size, and its content if that is to be kept.

    Both are None if it goes away, changes, or becomes a link meanwhile: the next scan will see it.
    """
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None, None
        raise
    kept = []
    try:
        read = 0
        for chunk in _chunks(fd, size):
            digest.update(chunk)
            read += len(chunk)
            if keep and read <= size:
                kept.append(chunk)
    finally:
        os.close(fd)
    if read != size:
        return None, None
    return digest.hexdigest(), b"".join(kept) if keep else None


def _chunks(fd: int, size: int) -> Iterator[bytes]:
    """The content of an open file of about `size` bytes, at most 1 MiB at a time, without the cost of a file object."""
    most = min(size + 1, 1 << 20)
    while chunk := os.read(fd, most):
        yield chunk
        if len(chunk) < most:  # the end of a plain file
            return


def _sync_all(paths: Sequence[Path]) -> None:
    """Makes files and directories durable; many of them at once, since a disk syncs many as fast as one."""
    if len(paths) <= _FEW:
        for path in paths:
            _sync(path)
        return
    with ThreadPoolExecutor(_SYNCING_THREADS) as pool:
        for _ in pool.map(_sync, paths):
            pass


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
