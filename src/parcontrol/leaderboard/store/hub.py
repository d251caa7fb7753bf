"""A repository on the Hub: a dataset repository that changes by commits on `main`, each for a named parent.

The Hub answers a commit for another parent with 412. It may also answer too late or not at all after it has taken a
commit, or show an older head for a while; what this module knows to be newer is then what counts.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from email.utils import parsedate_to_datetime
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import httpx2
import tenacity
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    parse_ratelimit_headers,
)
from pydantic import SecretStr

from parcontrol.hub import limit_waiting
from parcontrol.leaderboard.store.base import (
    Changes,
    ConflictError,
    FileTooLargeError,
    Snapshot,
    StoreError,
    blob_id,
    checked,
    differences,
)
from parcontrol.leaderboard.store.retries import HUB_CONFLICTS, HUB_TROUBLE, RetryPolicy

logger = logging.getLogger(__name__)

_BRANCH = "main"
_CONNECTIONS = 8
# What the Hub tells us to wait is followed up to here; its own window is five minutes.
_LONGEST_TOLD_SECONDS = 330.0
_CACHE_DAYS = 30
_KEPT_SNAPSHOTS = 8
_PRECONDITION_FAILED, _TOO_MANY_REQUESTS = 412, 429
_HUB_ERRORS = (HfHubHTTPError, httpx2.HTTPError, OSError)
# What cannot be sent, however often it is tried.
_UNSENDABLE = (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol)
# A commit that is refused with 412 is a conflict, which is met elsewhere.
_PASSING_STATUS = (408, _PRECONDITION_FAILED, 425, _TOO_MANY_REQUESTS)

Result = TypeVar("Result")


class _StaleReadError(StoreError):
    """The Hub shows a state that is older than one it has shown or made before."""


class _RefusedError(Exception):
    """The head of the branch is not the parent that a commit was made for."""


class HubStore:
    """A dataset repository on the Hub; used by many threads at once.

    Args:
        repository: Its id, `organisation/name`. It is created, private, if there is none.
        token: Token of the Hub; without one, public repositories can be read.
        endpoint: Address of the Hub; None is the public one.
        trouble: How errors of the Hub are met.
        conflicts: How commits of others are met.
    """

    local = False

    def __init__(
        self,
        repository: str,
        token: SecretStr | None = None,
        endpoint: str | None = None,
        trouble: RetryPolicy = HUB_TROUBLE,
        conflicts: RetryPolicy = HUB_CONFLICTS,
    ) -> None:
        self.repository = repository
        # False, not None: no token that happens to lie on this machine is used.
        self._token: str | bool = token.get_secret_value() if token else False
        self._api = HfApi(endpoint=endpoint, token=self._token)
        self._trouble = trouble
        self._conflicts = conflicts
        self._mutex = threading.RLock()
        self._head: str | None = None
        self._older: set[str] = set()
        self._snapshots: dict[str, Snapshot] = {}
        self._sizes: dict[str, int] = {}
        self._cache = Path(constants.HF_HOME) / "parcontrol" / "blobs"

    def __repr__(self) -> str:
        return f"HubStore({self.repository!r})"

    def user(self) -> str:
        """Returns the name of the user whose token this is.

        Raises:
            ValueError: There is no token.
            StoreError: The Hub does not accept it, or cannot be reached.
        """
        if not self._token:
            raise ValueError("a token of the Hub is needed to submit: set H4_TOKEN")
        return str(self._patiently(lambda: self._api.whoami()["name"], "who am I"))

    def now(self) -> float:
        """Returns the time by the Hub's clock, to the second; see `Store.now`."""
        return self._patiently(self._ask_for_time, "what time is it")

    def _ask_for_time(self) -> float:
        url = f"{self._api.endpoint}/api/datasets/{self.repository}"
        response = get_session().get(url, headers=build_hf_headers(token=self._token))
        if response.status_code >= 500 or response.status_code == _TOO_MANY_REQUESTS:
            hf_raise_for_status(response)
        told = response.headers.get("Date")  # which a refusal has too
        return parsedate_to_datetime(told).timestamp() if told else time.time()

    # --- reading ---

    def snapshot(self) -> Snapshot:
        """Returns all files at the newest revision."""
        with self._mutex:
            return self._patiently(self._list_files, "list files")

    def changes(self, since: str | None) -> Changes:
        """Returns what has changed since a revision; all files for None, or for a revision that is not known."""
        with self._mutex:
            new, old = self.snapshot(), self._snapshots.get(since or "")
        if old is None:
            return Changes(new.revision, dict(new.files), complete=True)
        return Changes(new.revision, differences(old.files, new.files), complete=False)

    def read(self, path: str, snapshot: Snapshot | None = None, max_bytes: int | None = None) -> bytes:
        """Returns the content of a file, as it is in the snapshot or now; see `Store.read`."""
        snapshot = snapshot or self.snapshot()
        if path not in snapshot.files:
            raise FileNotFoundError(errno.ENOENT, f"no such file in {self.repository}", path)
        content = self._read(path, snapshot.files[path], snapshot.revision, max_bytes)
        if content is None:
            raise FileTooLargeError(f"{path} has more than {max_bytes:,} bytes")
        return content

    def read_many(self, blobs: Mapping[str, str], max_bytes: int | None = None) -> Iterator[tuple[str, bytes | None]]:
        """Yields every path of a mapping from path to blob id with its content; see `Store.read_many`."""
        revision = self._head or self.snapshot().revision
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            contents = pool.map(lambda path: self._read(path, blobs[path], revision, max_bytes), blobs)
            yield from zip(blobs, contents, strict=True)

    def _read(self, path: str, blob: str, revision: str, max_bytes: int | None) -> bytes | None:
        if max_bytes is not None and self._sizes.get(blob, 0) > max_bytes:
            return None
        cached = self._cache / blob[:2] / blob
        if cached.is_file():
            os.utime(cached)
            content = cached.read_bytes()
            if _is_blob(content, blob):
                return content
        content = self._patiently(lambda: self._download(path, revision), f"read {path}")
        if not _is_blob(content, blob):
            raise ConflictError(f"{self.repository}: {path} has changed")
        _write_atomically(cached, content)
        return content

    def _download(self, path: str, revision: str) -> bytes:
        url = hf_hub_url(self.repository, path, repo_type="dataset", revision=revision, endpoint=self._api.endpoint)
        response = get_session().get(url, headers=build_hf_headers(token=self._token))
        try:
            hf_raise_for_status(response)
        except EntryNotFoundError as error:
            raise ConflictError(f"{self.repository}: {path} is gone") from error
        return response.content

    def _list_files(self) -> Snapshot:
        return self._at(self._newest_revision())

    def _at(self, revision: str) -> Snapshot:
        """The files at a revision, listed once."""
        if revision in self._snapshots:
            return self._snapshots[revision]
        if not self._snapshots:
            _prune(self._cache)
        tree = self._api.list_repo_tree(self.repository, recursive=True, revision=revision, repo_type="dataset")
        files = [entry for entry in tree if isinstance(entry, RepoFile) and not _is_hidden(entry.path)]
        ids = {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}
        self._sizes.update({ids[file.path]: file.size for file in files})
        self._snapshots[revision] = Snapshot(revision, ids)
        for outdated in list(self._snapshots)[:-_KEPT_SNAPSHOTS]:
            del self._snapshots[outdated]
        return self._snapshots[revision]

    def _newest_revision(self) -> str:
        """The head of the branch; what is known to be newer, where the Hub lags behind."""
        try:
            revision = self._api.repo_info(self.repository, repo_type="dataset", revision=_BRANCH).sha
        except RepositoryNotFoundError:
            if not self._token:
                raise
            self._api.create_repo(self.repository, repo_type="dataset", private=True, exist_ok=True)
            raise _StaleReadError(f"{self.repository} has just been created") from None
        assert revision, "the Hub names the commit of a branch"
        if revision not in self._older:
            self._move_to(revision)
        assert self._head
        return self._head

    def _move_to(self, revision: str) -> None:
        if self._head and self._head != revision:
            self._older.add(self._head)
        self._head = revision

    # --- writing ---

    def commit(self, changes: Mapping[str, bytes | None], message: str, parent: str) -> str:
        """Writes all changes at once, or nothing, and returns the new revision; see `Store.commit`."""
        checked(changes)
        unanswered = False

        def attempt() -> str:
            nonlocal unanswered
            try:
                return self._commit(changes, message, parent)
            except httpx2.TransportError:
                unanswered = True
                raise
            except HfHubHTTPError as error:
                if error.response.status_code == _PRECONDITION_FAILED:
                    raise _RefusedError from error
                unanswered |= error.response.status_code >= 500
                raise

        def attempt_or_see() -> str:
            try:
                return attempt()
            except _RefusedError as error:
                if unanswered and (revision := self._if_committed(changes, parent)):
                    return revision
                raise ConflictError(f"{self.repository} has changed") from error

        with self._mutex:
            revision = self._patiently(attempt_or_see, "commit")
            self._move_to(revision)
            return revision

    def _commit(self, changes: Mapping[str, bytes | None], message: str, parent: str) -> str:
        # A buffer goes by the plain protocol for large files, which every Hub speaks.
        additions = [CommitOperationAdd(path, BytesIO(body)) for path, body in changes.items() if body is not None]
        deletions = [CommitOperationDelete(path, is_folder=False) for path, body in changes.items() if body is None]
        commit = self._api.create_commit(
            self.repository,
            [*additions, *deletions],
            commit_message=message,
            repo_type="dataset",
            revision=_BRANCH,
            parent_commit=parent,
        )
        if deletions or any(addition._is_committed for addition in additions):
            return commit.oid
        # huggingface_hub sends no commit that would change nothing of the head, whatever its parent.
        if _hold(self._at(parent).files, changes):
            return parent
        raise _RefusedError

    def _if_committed(self, changes: Mapping[str, bytes | None], parent: str) -> str | None:
        """The revision that holds the changes, if a commit was taken whose answer was lost."""
        snapshot = self._list_files()
        if snapshot.revision == parent:
            raise _StaleReadError(f"{self.repository} still shows {parent[:12]}, and takes no commit for it")
        return snapshot.revision if _hold(snapshot.files, changes) else None

    def exclusive(self) -> AbstractContextManager[None]:
        """Returns a block that changes nothing: nobody can be kept from writing to the Hub."""
        return nullcontext()

    def conflict_retries(self) -> tenacity.Retrying:
        """Returns how to repeat what ended in a `ConflictError`."""
        return self._conflicts.retrying(lambda error: isinstance(error, ConflictError), self.repository)

    def _patiently(self, call: Callable[[], Result], what: str) -> Result:
        try:
            return patiently(call, f"{self.repository}: {what}", self._trouble)
        except StoreError as error:
            if isinstance(self._token, str) and self._token in str(error):
                # Without its cause, whose text a traceback would show.
                raise type(error)(str(error).replace(self._token, "<token>")) from None
            raise


def patiently(call: Callable[[], Result], what: str, trouble: RetryPolicy = HUB_TROUBLE) -> Result:
    """Calls the Hub until it answers.

    Args:
        call: Uses huggingface_hub.
        what: What is done, for the message.
        trouble: How often, and after how long, it is tried again.

    Raises:
        StoreError: The Hub does not answer, or refuses.
    """
    try:
        for attempt in trouble.retrying(_is_passing, what, _told_seconds):
            with attempt:
                limit_waiting()
                try:
                    return call()
                except RuntimeError as error:
                    # huggingface_hub wraps what goes wrong with large files; what it was decides what to do.
                    if isinstance(error.__cause__, _HUB_ERRORS) and not isinstance(error, StoreError):
                        raise error.__cause__ from None
                    raise
    except _HUB_ERRORS as error:
        raise StoreError(f"{what}: {' '.join(str(error).split())}") from error
    raise AssertionError("retries end by returning or raising")


def _hold(files: Mapping[str, str], changes: Mapping[str, bytes | None]) -> bool:
    """Whether files are as changes make them."""
    return all(_is_blob(content, files.get(path)) for path, content in changes.items())


def _is_passing(error: BaseException) -> bool:
    """Whether an error may be gone at the next try."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        # A commit that was just made may be unknown to the machine that answers next.
        return status in _PASSING_STATUS or status >= 500 or isinstance(error, RevisionNotFoundError)
    return isinstance(error, httpx2.TransportError | _StaleReadError) and not isinstance(error, _UNSENDABLE)


def _told_seconds(error: BaseException) -> float:
    """How long the Hub says to wait."""
    if not isinstance(error, HfHubHTTPError):
        return 0
    headers = error.response.headers
    told = headers.get("Retry-After", "")
    limit = parse_ratelimit_headers(headers)
    seconds = float(told) if told.isdigit() else limit.reset_in_seconds if limit and limit.remaining == 0 else 0
    return min(float(seconds), _LONGEST_TOLD_SECONDS)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _is_blob(content: bytes | None, blob: str | None) -> bool:
    """Whether a content, None for no file, has a blob id: of git, or SHA-256 for large files."""
    if content is None or blob is None:
        return content is None and blob is None
    return blob == (hashlib.sha256(content).hexdigest() if len(blob) == 64 else blob_id(content))


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".partial-", delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


def _prune(cache: Path) -> None:
    """Removes contents that nobody has read for long; other processes may do so, or write, at the same time."""
    oldest = time.time() - _CACHE_DAYS * 24 * 3600
    for file in cache.glob("*/*"):
        with suppress(FileNotFoundError):
            if file.stat().st_mtime < oldest:
                file.unlink()
