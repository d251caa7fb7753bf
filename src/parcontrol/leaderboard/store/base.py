"""What a store is: one repository of files that changes by compare-and-swap.

A reader takes a snapshot, which has a revision. A writer proposes changes for that revision; if the repository has
moved on meanwhile, the proposal is refused with `ConflictError` and made again from a new snapshot. `update` does
that. There are two stores: a local directory (`local`) and a dataset repository on the Hub (`hub`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import tenacity

# Paths are kept well below what file systems and URLs take.
MAX_PATH_LENGTH = 400
MAX_PART_LENGTH = 240
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@=-]*")


class StoreError(RuntimeError):
    """The store cannot be read or written, now or after all retries. What was to be written is not in it."""


class ConflictError(StoreError):
    """The repository is no longer at the revision that was named: take a new snapshot and try again."""


class FileTooLargeError(StoreError):
    """A file is larger than the reader takes."""


@dataclass(frozen=True)
class Snapshot:
    """All files at one revision.

    Attributes:
        revision: Names the state of the whole repository.
        files: Blob id of every path. Equal ids mean equal contents.
    """

    revision: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class Changes:
    """What differs between an earlier revision and now.

    Attributes:
        revision: The revision now.
        files: New blob id of every path that differs, None for a path that is gone.
        complete: Whether `files` are all the files there are, and not only those that differ.
    """

    revision: str
    files: Mapping[str, str | None]
    complete: bool


class Store(Protocol):
    """One repository of files."""

    @property
    def local(self) -> bool:
        """Whether this is a directory of this machine, so that requests may name directories of this machine."""

    def user(self) -> str:
        """Returns the name of the user who writes: the owner of the token, or the account on this machine."""

    def now(self) -> float:
        """Returns the time by the clock of the store, in seconds since 1970; our own where it has none.

        Raises:
            StoreError: The store cannot be reached.
        """

    def snapshot(self) -> Snapshot:
        """Returns all files at the newest revision."""

    def changes(self, since: str | None) -> Changes:
        """Returns what has changed since a revision; all files for None, or for a revision that is not known."""

    def read(self, path: str, snapshot: Snapshot | None = None, max_bytes: int | None = None) -> bytes:
        """Returns the content of a file, as it is in the snapshot or now.

        Raises:
            FileNotFoundError: There is no such file.
            FileTooLargeError: It has more than `max_bytes` bytes; it is not read then.
            ConflictError: The store does not keep old contents, and this one is no longer what the snapshot has.
            StoreError: It cannot be read.
        """

    def read_many(self, blobs: Mapping[str, str], max_bytes: int | None = None) -> Iterator[tuple[str, bytes | None]]:
        """Yields every path of a mapping from path to blob id with its content, in any order.

        The content is None for a file that is larger than `max_bytes`.

        Raises:
            ConflictError: A file no longer has that blob id.
            StoreError: A file cannot be read.
        """

    def commit(self, changes: Mapping[str, bytes | None], message: str, parent: str) -> str:
        """Writes all changes at once, or nothing, and returns the new revision.

        Args:
            changes: New content of every path, None to delete it.
            message: One line for the history.
            parent: Revision that the changes were made for.

        Raises:
            ConflictError: The repository is not at `parent`.
            StoreError: It cannot be written.
            ValueError: A path is not allowed.
        """

    def exclusive(self) -> AbstractContextManager[None]:
        """Returns a block in which conflicts are avoided, where that can be done; they may happen all the same."""

    def conflict_retries(self) -> tenacity.Retrying:
        """Returns how to repeat what ended in a `ConflictError`: `for attempt in …: with attempt: …`."""


def update(store: Store, propose: Callable[[Snapshot], Mapping[str, bytes | None] | None], message: str) -> str | None:
    """Changes a repository: proposes changes for its newest snapshot until they are taken.

    Args:
        store: The repository.
        propose: Returns the changes for a snapshot; it is called again after every conflict. Returns None or nothing
            to leave the repository as it is.
        message: One line for the history.

    Returns:
        The new revision, None if nothing was to be changed.

    Raises:
        StoreError: The changes could not be written.
    """
    for attempt in store.conflict_retries():
        with attempt, store.exclusive():
            snapshot = store.snapshot()
            changes = propose(snapshot)
            return store.commit(changes, message, parent=snapshot.revision) if changes else None
    raise AssertionError("retries end by returning or raising")


def check_path(path: str) -> str:
    """Returns a path inside a repository as it is.

    Raises:
        ValueError: It leads out of the repository, or has parts that are hidden, odd or too long.
    """
    parts = path.split("/")
    fine = all(_PART.fullmatch(part) and len(part) <= MAX_PART_LENGTH and ".." not in part for part in parts)
    if not fine or len(path) > MAX_PATH_LENGTH:
        raise ValueError(
            f"{quoted(path)} is no path for a repository: parts of letters, digits and _.+@=- between slashes"
        )
    return path


def blob_id(content: bytes) -> str:
    """Returns the name that git and the Hub give to a content."""
    digest = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
    digest.update(content)
    return digest.hexdigest()


def quoted(value: object, length: int = 80) -> str:
    """Returns a value for an error message: quoted, in ASCII, and never long."""
    text = ascii(value)
    return text if len(text) <= length else f"{text[:length]}… ({len(text)} characters)"


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str | None]:
    """Returns the new blob id of every path that differs, None for a path that is gone."""
    changed: dict[str, str | None] = {path: blob for path, blob in new.items() if old.get(path) != blob}
    changed.update({path: None for path in old if path not in new})
    return changed


def checked(changes: Mapping[str, bytes | None]) -> Mapping[str, bytes | None]:
    """Returns changes whose paths are all allowed.

    Raises:
        ValueError: A path is not, or is a folder in another one.
    """
    assert changes, "a commit needs changes"
    for path in changes:
        parts = check_path(path).split("/")
        folders = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        if any(folder in changes for folder in folders):
            raise ValueError(f"{quoted(path)} lies in what is a file of the same commit")
    return changes
