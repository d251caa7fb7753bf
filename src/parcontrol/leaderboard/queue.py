"""The queue of requests: any number of workers share it, each request goes to one of them.

A claim is a compare-and-swap that writes worker, claim and lease into the request. A worker renews its lease; when one
runs out, the request is waiting again, and the next claim counts as the next attempt. After `max_attempts` attempts a
request is FAILED. A RUNNING request of an old file, which has no lease, counts as one whose lease has run out.
"""

from __future__ import annotations

import bisect
import difflib
import heapq
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from parcontrol.leaderboard.records import (
    MAX_REQUEST_BYTES,
    WAITING,
    Event,
    Request,
    Status,
    is_request_path,
    parse_request,
    quoted_text,
)
from parcontrol.leaderboard.store.base import Store, blob_id, quoted

LEASE = timedelta(hours=1)
MAX_ATTEMPTS = 3
_MAX_REASON, _MAX_REASON_OF_EVENT = 4000, 500  # characters

_NO_CLAIM = {"claimed_by": None, "claim_id": None, "lease_expires": None}


class ClaimLostError(RuntimeError):
    """A claim is no longer the worker's: its lease ran out and another has it, or somebody withdrew the request."""


@dataclass(frozen=True)
class Entry:
    """A request and its path in the repository."""

    path: str
    request: Request


@dataclass(frozen=True)
class Broken:
    """A file that is no request, with the reason."""

    path: str
    reason: str


@dataclass(frozen=True)
class Claim:
    """A request that a worker has, until its lease expires."""

    path: str
    request: Request


def utc_now() -> datetime:
    """Returns the time in UTC."""
    return datetime.now(UTC)


class Queue:
    """The requests of a repository.

    One object is used by one thread. It keeps what it has read, and reads only what has changed.

    Args:
        store: The requests repository.
        clock: Returns the time, in UTC.
        lease: How long a claim lasts without being renewed.
        max_attempts: How often a request is tried.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], datetime] = utc_now,
        lease: timedelta = LEASE,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> None:
        self.store = store
        self.lease = lease
        self.max_attempts = max_attempts
        self._clock = clock
        self._revision: str | None = None
        self._entries: dict[str, Entry] = {}
        self._broken: dict[str, Broken] = {}
        self._waiting: list[tuple[datetime, str]] = []
        self._running: set[str] = set()
        self._written: dict[tuple[str, str], Request] = {}

    # --- reading ---

    def requests(self) -> list[Entry]:
        """Returns all requests, by path."""
        self.refresh()
        return self.entries()

    def entries(self) -> list[Entry]:
        """Returns all requests at the revision that `refresh` has returned last, by path."""
        return [self._entries[path] for path in sorted(self._entries)]

    def get(self, path: str) -> Request | None:
        """Returns a request at the revision that `refresh` has returned last."""
        entry = self._entries.get(path)
        return entry.request if entry else None

    def find(self, name: str) -> str:
        """Returns the path of a request that is named by its path or its model.

        Raises:
            ValueError: There is none, or several.
        """
        entries = self.requests()
        found = [entry.path for entry in entries if name in (entry.path, entry.request.model)]
        if not found:
            near = difflib.get_close_matches(name, [entry.request.model for entry in entries], 1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise ValueError(f"there is no request {quoted(name)}{hint}")
        if len(found) > 1:
            raise ValueError(f"{quoted(name)} has several requests, name one of them: {', '.join(found)}")
        return found[0]

    def is_taken(self, path: str) -> bool:
        """Whether there is a file, request or broken, at the revision that `refresh` has returned last."""
        return path in self._entries or path in self._broken

    def broken(self) -> list[Broken]:
        """Returns the files that are no requests, by path."""
        self.refresh()
        return [self._broken[path] for path in sorted(self._broken)]

    def refresh(self) -> str:
        """Reads what has changed and returns the revision of the repository."""
        for attempt in self.store.conflict_retries():
            with attempt:
                changes = self.store.changes(self._revision)
                blobs = {path: blob for path, blob in changes.files.items() if blob and is_request_path(path)}
                unread = {path: blob for path, blob in blobs.items() if (path, blob) not in self._written}
                contents = dict(self.store.read_many(unread, max_bytes=MAX_REQUEST_BYTES))
        if changes.complete:
            self._entries, self._broken, self._waiting, self._running = {}, {}, [], set()
        for path in changes.files:
            self._forget(path)
        for path, blob in blobs.items():
            written = self._written.get((path, blob))
            if written:
                self._keep(Entry(path, written))
            else:
                self._take_in(path, contents[path])
        self._written.clear()
        self._revision = changes.revision
        return self._revision

    def _forget(self, path: str) -> None:
        self._broken.pop(path, None)
        entry = self._entries.pop(path, None)
        if entry and entry.request.status in WAITING:
            del self._waiting[bisect.bisect_left(self._waiting, _age(entry))]
        self._running.discard(path)

    def _take_in(self, path: str, content: bytes | None) -> None:
        try:
            if content is None:
                raise ValueError(f"a request has at most {MAX_REQUEST_BYTES:,} bytes")
            self._keep(Entry(path, parse_request(content, path, self.store.local)))
        except ValueError as error:
            self._broken[path] = Broken(path, str(error))

    def _keep(self, entry: Entry) -> None:
        self._entries[entry.path] = entry
        if entry.request.status in WAITING:
            bisect.insort(self._waiting, _age(entry))
        elif entry.request.status is Status.RUNNING:
            self._running.add(entry.path)

    # --- workers ---

    def claim(self, worker_id: str, accept: Callable[[Request], bool] = lambda request: True) -> Claim | None:
        """Takes the oldest waiting request that the worker accepts; None if there is none.

        Requests whose last attempt was lost with its worker are set FAILED on the way.

        Raises:
            StoreError: The repository cannot be read or written.
        """
        claim_id = uuid.uuid4().hex
        for attempt in self.store.conflict_retries():
            with attempt, self.store.exclusive():
                revision = self.refresh()
                now = self._clock()
                expired = [self._entries[path] for path in self._running if self._is_expired(path, now)]
                lost = [entry for entry in expired if entry.request.attempts >= self.max_attempts]
                changed = {entry.path: self._given_up(entry.request, now) for entry in lost}
                chosen = self._oldest([entry for entry in expired if entry not in lost], accept)
                if chosen:
                    changed[chosen.path] = self._claimed(chosen.request, worker_id, claim_id, now)
                if changed:
                    what = f"{worker_id} claims {chosen.request.model}" if chosen else "give up"
                    self._commit(changed, what, revision)
                return Claim(chosen.path, changed[chosen.path]) if chosen else None
        raise AssertionError("retries end by returning or raising")

    def renew(self, claim: Claim) -> Claim:
        """Prolongs the lease and returns the claim with the new one.

        Raises:
            ClaimLostError: The request is no longer the worker's.
        """
        fields = {"lease_expires": self._clock() + self.lease}
        return Claim(
            claim.path, self._change_mine(claim, f"renew {claim.request.model}", lambda r: r.changed(**fields))
        )

    def release(self, claim: Claim) -> None:
        """Gives a claim back; the attempt is not counted.

        Raises:
            ClaimLostError: The request is no longer the worker's.
        """

        def released(request: Request) -> Request:
            attempts = max(0, request.attempts - 1)
            return request.after(self._event("released", claim), status=Status.PENDING, attempts=attempts, **_NO_CLAIM)

        self._change_mine(claim, f"release {claim.request.model}", released)

    def finish(self, claim: Claim) -> None:
        """Sets the request FINISHED.

        Raises:
            ClaimLostError: The request is no longer the worker's.
        """

        def finished(request: Request) -> Request:
            return request.after(self._event("finished", claim), status=Status.FINISHED, reason="", **_NO_CLAIM)

        self._change_mine(claim, f"finish {claim.request.model}", finished)

    def fail(self, claim: Claim, reason: str, final: bool = False) -> None:
        """Records a failed attempt: waiting again if attempts are left, else FAILED.

        Args:
            claim: The claim.
            reason: What went wrong.
            final: Whether it would fail again: FAILED at once.

        Raises:
            ClaimLostError: The request is no longer the worker's.
        """
        reason = quoted_text(reason, _MAX_REASON)

        def failed(request: Request) -> Request:
            over = final or request.attempts >= self.max_attempts
            status = Status.FAILED if over else Status.PENDING
            return request.after(self._event("failed", claim, reason), status=status, reason=reason, **_NO_CLAIM)

        self._change_mine(claim, f"fail {claim.request.model}", failed)

    # --- people ---

    def requeue(self, path: str, by: str = "") -> Request:
        """Puts a request that is over back into the queue, with all attempts, and returns it.

        Raises:
            ValueError: There is no such request, or it is waiting or running.
        """

        def requeued(request: Request) -> Request:
            if request.status in WAITING or (request.status is Status.RUNNING and not _is_over(request, self._clock())):
                raise ValueError(f"{path} is {request.status}: only a request that is over can be put back")
            event = Event(time=self._clock(), event="requeued", by=by)
            return request.after(event, status=Status.PENDING, attempts=0, reason="", **_NO_CLAIM)

        return self._change(path, f"requeue {path}", requeued)

    def cancel(self, path: str, by: str = "") -> Request:
        """Withdraws a request that is waiting or running, and returns it; a worker that has it loses it.

        Raises:
            ValueError: There is no such request, or it is over.
        """

        def cancelled(request: Request) -> Request:
            if request.status not in WAITING and request.status is not Status.RUNNING:
                raise ValueError(f"{path} is {request.status}: only a request that waits or runs can be cancelled")
            event = Event(time=self._clock(), event="cancelled", by=by)
            return request.after(event, status=Status.CANCELLED, reason=f"cancelled by {by or 'hand'}", **_NO_CLAIM)

        return self._change(path, f"cancel {path}", cancelled)

    # --- how it is done ---

    def _is_expired(self, path: str, now: datetime) -> bool:
        return _is_over(self._entries[path].request, now)

    def _oldest(self, expired: list[Entry], accept: Callable[[Request], bool]) -> Entry | None:
        """The oldest entry, waiting or expired, that is accepted."""
        for _, path in heapq.merge(self._waiting, sorted(map(_age, expired))):
            entry = self._entries[path]
            if accept(entry.request):
                return entry
        return None

    def _claimed(self, request: Request, worker_id: str, claim_id: str, now: datetime) -> Request:
        if request.status is Status.RUNNING:
            request = request.after(Event(time=now, event="expired", by=request.claimed_by or ""))
        return request.after(
            Event(time=now, event="claimed", by=worker_id),
            status=Status.RUNNING,
            attempts=request.attempts + 1,
            claimed_by=worker_id,
            claim_id=claim_id,
            lease_expires=now + self.lease,
        )

    def _given_up(self, request: Request, now: datetime) -> Request:
        reason = f"gave up after {request.attempts} attempts: the lease of {request.claimed_by or 'a worker'} ran out"
        if request.reason:
            reason = quoted_text(f"{reason}; an earlier attempt failed with: {request.reason}", _MAX_REASON)
        short = quoted_text(reason, _MAX_REASON_OF_EVENT)
        event = Event(time=now, event="failed", by=request.claimed_by or "", reason=short)
        return request.after(event, status=Status.FAILED, reason=reason, **_NO_CLAIM)

    def _event(self, event: str, claim: Claim, reason: str = "") -> Event:
        short = quoted_text(reason, _MAX_REASON_OF_EVENT)
        return Event(time=self._clock(), event=event, by=claim.request.claimed_by or "", reason=short)

    def _change_mine(self, claim: Claim, message: str, change: Callable[[Request], Request]) -> Request:
        def changed(request: Request) -> Request:
            if request.status is not Status.RUNNING or request.claim_id != claim.request.claim_id:
                holder = f" by {request.claimed_by}" if request.claimed_by else ""
                raise ClaimLostError(f"{claim.path} is no longer ours: it is {request.status}{holder}")
            return change(request)

        try:
            return self._change(claim.path, message, changed)
        except UnknownRequestError as error:
            raise ClaimLostError(f"{claim.path} is no longer ours: {error}") from error

    def _change(self, path: str, message: str, change: Callable[[Request], Request]) -> Request:
        for attempt in self.store.conflict_retries():
            with attempt, self.store.exclusive():
                revision = self.refresh()
                if path not in self._entries:
                    raise UnknownRequestError(f"there is no request {quoted(path)}")
                changed = change(self._entries[path].request)
                self._commit({path: changed}, message, revision)
                return changed
        raise AssertionError("retries end by returning or raising")

    def _commit(self, changed: dict[str, Request], message: str, revision: str) -> None:
        contents = {path: request.to_json() for path, request in changed.items()}
        self.store.commit(contents, message, parent=revision)
        # What was written here need not be read again.
        self._written = {(path, blob_id(content)): changed[path] for path, content in contents.items()}


class UnknownRequestError(ValueError):
    """There is no such request."""


def _age(entry: Entry) -> tuple[datetime, str]:
    """Sorts the oldest first; what has no time, in old files, comes before."""
    return entry.request.submitted_time or datetime.min.replace(tzinfo=UTC), entry.path


def _is_over(request: Request, now: datetime) -> bool:
    return request.lease_expires is None or request.lease_expires <= now
