"""What the page shows of the queue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from parcontrol.leaderboard.app.board import Board, row_key
from parcontrol.leaderboard.app.markup import hub_link, render
from parcontrol.leaderboard.app.view import View
from parcontrol.leaderboard.completed import progress
from parcontrol.leaderboard.queue import MAX_ATTEMPTS, Entry
from parcontrol.leaderboard.records import WAITING, Request, Status

SHOWN_WAITING, SHOWN_OVER = 50, 20


@dataclass(frozen=True)
class Line:
    """One request, as it is shown.

    Attributes:
        request: The request.
        link: Its model on the Hub, None for others.
        href: The model's view on the page, None without results.
        place: Place in line, from 1, of one that waits.
        since: When it got to where it is: submitted, claimed, finished, failed or cancelled; None if nobody knows.
        done: How many of its tasks have a result, while it runs.
        tasks: How many it has.
    """

    request: Request
    link: Any
    href: str | None = None
    place: int = 0
    since: datetime | None = None
    done: int = 0
    tasks: int = 0


@dataclass(frozen=True)
class QueueSummary:
    """The queue, the newest of it.

    Attributes:
        counts: How many requests there are in every state, as it is called on the page.
        waiting: First in line first.
        running: Longest running first.
        finished: Newest first, as are the next two.
        failed: With reasons.
        cancelled: With reasons.
        broken: How many files of the repository are no requests.
    """

    counts: dict[str, int]
    waiting: list[Line]
    running: list[Line]
    finished: list[Line]
    failed: list[Line]
    cancelled: list[Line]
    broken: int


def in_line(entries: Iterable[Entry]) -> list[Entry]:
    """Returns the requests that wait, in the order in which workers take them."""
    waiting = (entry for entry in entries if entry.request.status in WAITING)
    return sorted(waiting, key=lambda entry: (entry.request.submitted_time or _EVER, entry.path))


_EVER = datetime.min.replace(tzinfo=UTC)


def summarise(board: Board) -> QueueSummary:
    """Returns what is shown of the queue of a board."""
    by_state = {
        state: [entry for entry in board.entries if entry.request.status is status]
        for state, status in (
            ("running", Status.RUNNING),
            ("finished", Status.FINISHED),
            ("failed", Status.FAILED),
            ("cancelled", Status.CANCELLED),
        )
    }
    waiting = in_line(board.entries)
    keys = set(board.table["key"])
    return QueueSummary(
        counts={"waiting": len(waiting), **{state: len(entries) for state, entries in by_state.items()}},
        waiting=[
            Line(entry.request, _link(entry.request), place=place, since=entry.request.submitted_time)
            for place, entry in enumerate(waiting[:SHOWN_WAITING], start=1)
        ],
        running=_running(by_state["running"], board),
        finished=_over(by_state["finished"], keys),
        failed=_over(by_state["failed"], keys),
        cancelled=_over(by_state["cancelled"], keys),
        broken=len(board.broken_requests),
    )


def _running(entries: Sequence[Entry], board: Board) -> list[Line]:
    if not entries:
        return []
    found = {model.request: model for model in progress(board.results, entries) if model.request}
    lines = [
        Line(
            entry.request,
            _link(entry.request),
            since=_last(entry.request, "claimed"),
            done=len(found[entry.path].named("done")),
            tasks=len(found[entry.path].tasks),
        )
        for entry in entries
    ]
    return sorted(lines, key=lambda line: line.since or _EVER)


def _over(entries: Sequence[Entry], keys: set[str]) -> list[Line]:
    """The last requests of a state, newest first."""
    ended = [(_last(entry.request, entry.request.status.lower()), entry) for entry in entries]
    ended.sort(key=lambda pair: (pair[0] or _EVER, pair[1].path), reverse=True)
    return [
        Line(entry.request, _link(entry.request), href=_href(entry.request, keys), since=since)
        for since, entry in ended[:SHOWN_OVER]
    ]


def _last(request: Request, event: str) -> datetime | None:
    """When something has happened to a request last; old files say only when it was submitted."""
    times = [happened.time for happened in request.history if happened.event == event]
    return max(times) if times else request.submitted_time


def _link(request: Request) -> Any:
    return hub_link(request.model, request.sha)


def _href(request: Request, keys: set[str]) -> str | None:
    way = (request.precision.value, request.weight_type.value, request.chat_template, "")
    key = row_key(request.model, request.sha, *way)
    return View(tab="model", rows=(key,)).href if key in keys else None


def age_text(age: timedelta) -> str:
    """Returns a time that has passed, in words; `submit.js` writes the same."""
    minutes = int(age.total_seconds() // 60)
    if minutes < 1:
        return "under a minute"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // (24 * 60)} days"


def queue_html(summary: QueueSummary, now: datetime, is_old: bool) -> str:
    """Returns the queue.

    Ages are counted up to now and not up to when the store was read: a claim grows old whether or not somebody looks.

    Args:
        summary: What is shown.
        now: The time, UTC.
        is_old: Whether the store cannot be read at the moment: then nobody knows whether a lease was renewed.
    """
    return render(
        "queue",
        queue=summary,
        now=now,
        is_old=is_old,
        age=lambda time: age_text(now - time),
        max_attempts=MAX_ATTEMPTS,
        shown_waiting=SHOWN_WAITING,
        shown_over=SHOWN_OVER,
    )
