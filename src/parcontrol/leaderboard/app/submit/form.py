"""The form that a model is submitted with: what is read from it, and the HTML that it is."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as with_default
from datetime import datetime
from typing import Any

from parcontrol.leaderboard.app.limits import TokenBuckets
from parcontrol.leaderboard.app.markup import hub_link, render
from parcontrol.leaderboard.app.submit.queue import in_line
from parcontrol.leaderboard.app.submit.visitors import Visitor
from parcontrol.leaderboard.queue import Entry, Queue, utc_now
from parcontrol.leaderboard.records import FieldError, ModelType, Precision, WeightType, quoted_text
from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store import Store, StoreError
from parcontrol.leaderboard.submission import PERIOD, SUBMISSIONS, Submission, recent_submissions, submit

# Somebody who puts a mistake right needs a handful; every attempt may ask the Hub about five things.
ATTEMPTS, PER_SECONDS = 10, 60.0
AT_ONCE = 4  # of all visitors
LONGEST = 400  # characters of a field; the longest of the engine's own limits is just below

TEXTS = ("model_name", "model_type", "revision", "precision", "weight_type", "base_model")
LABELS = {
    "model_name": "Model",
    "model_type": "Type",
    "revision": "Revision",
    "precision": "Precision",
    "weight_type": "Weights",
    "base_model": "Base model",
    "chat_template": "Chat template",
}
TYPES = [kind for kind in ModelType if kind is not ModelType.UNKNOWN]
USUAL: Mapping[str, str | bool] = {
    "model_name": "",
    "model_type": "",
    "revision": "main",
    "precision": "",
    "weight_type": WeightType.ORIGINAL.value,
    "base_model": "",
    "chat_template": False,
}


@dataclass(frozen=True)
class Answer:
    """What a submission was answered with.

    Attributes:
        entry: The request, None if it was refused.
        place: Its place in the queue, from 1; None if it does not wait any more.
        message: Why it was refused.
        field: Name of the field that this is about, empty if it is about none.
        values: What stands in the form now.
    """

    entry: Entry | None = None
    place: int | None = None
    message: str = ""
    field: str = ""
    values: Mapping[str, str | bool] = with_default(default_factory=lambda: USUAL)


class Desk:
    """Where submissions are handed in, from the form and from the API alike.

    Args:
        store: The requests repository.
        settings: Where models are looked for.
        clock: Returns the time, in UTC.
        attempts: Bounds how often a visitor may try.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        clock: Callable[[], datetime] = utc_now,
        attempts: TokenBuckets | None = None,
    ) -> None:
        self._store, self._settings, self._clock = store, settings, clock
        self._attempts = TokenBuckets(ATTEMPTS, PER_SECONDS) if attempts is None else attempts
        self._places = threading.BoundedSemaphore(AT_ONCE)

    def submit(self, given: object, visitor: Visitor, entries: Sequence[Entry]) -> Answer:
        """Checks what somebody has filled in, and puts it into the queue.

        Args:
            given: Fields by name, as they came from outside.
            visitor: Who has sent it; nothing in `given` says who submits.
            entries: The requests as they were read last, for when the store cannot be read any more.
        """
        values = form_values(given)
        try:
            entry = self._entered(values, visitor)
        except FieldError as error:
            return Answer(message=str(error), field=error.field, values=values)
        except ValueError as error:
            return Answer(message=str(error), values=values)
        except StoreError as error:
            message = f"nothing was submitted, as the store or the Hub cannot be reached; try again later ({error})"
            return Answer(message=quoted_text(message, 500), values=values)
        return Answer(entry, place(entry, self._newest(entry, entries)))

    def _entered(self, values: Mapping[str, str | bool], visitor: Visitor) -> Entry:
        wait = self._attempts.take(visitor.key)
        if wait:
            raise ValueError(f"too many attempts: try again in {max(1, round(wait + 0.5))} seconds")
        if visitor.user is None:
            raise ValueError(visitor.refusal)
        submission = read_form(values)
        if not visitor.local:
            for name in ("model_name", "base_model"):
                _check_no_directory(str(values[name]), name)
        # Gradio's queue lets as many through; a direct call does not wait there.
        if not self._places.acquire(blocking=False):
            raise ValueError("other submissions are being looked at: try again in a moment")
        try:
            return submit(submission, self._store, self._settings, visitor.user, self._clock)
        finally:
            self._places.release()

    def _newest(self, entry: Entry, entries: Sequence[Entry]) -> Sequence[Entry]:
        """The requests as they are now; the submission stands, also if they cannot be read again."""
        try:
            return Queue(self._store).requests()
        except StoreError:
            return [*(other for other in entries if other.path != entry.path), entry]

    def left(self, user: str, entries: Sequence[Entry]) -> int:
        """Returns how many models a user may still submit now."""
        return max(0, SUBMISSIONS - len(recent_submissions(user, entries, self._clock())))


def form_values(given: object) -> dict[str, str | bool]:
    """Returns the fields of a form with what came from outside in them, cut to what a field can hold.

    What is no text, or no field, is left out.
    """
    fields = given if isinstance(given, Mapping) else {}
    values: dict[str, str | bool] = dict(USUAL)
    for name in TEXTS:
        if isinstance(fields.get(name), str):
            values[name] = fields[name][: LONGEST + 1].strip()
    values["chat_template"] = fields.get("chat_template") is True
    return values


def read_form(values: Mapping[str, str | bool]) -> Submission:
    """Returns what somebody has filled in.

    Raises:
        FieldError: A field is empty that must not be, or too long.
    """
    texts = {name: str(values[name]) for name in TEXTS}
    for name, text in texts.items():
        if len(text) > LONGEST:
            raise FieldError(f"at most {LONGEST} characters are allowed", name)
    if not texts["model_name"]:
        raise FieldError("name a model: organisation/name, as on the Hub", "model_name")
    if not texts["model_type"]:
        raise FieldError("choose how the model was made", "model_type")
    return Submission(
        model_name=texts["model_name"],
        model_type=texts["model_type"],
        revision=texts["revision"] or "main",
        precision=texts["precision"] or None,
        weight_type=texts["weight_type"] or WeightType.ORIGINAL,
        base_model=texts["base_model"],
        chat_template=values["chat_template"] is True,
    )


def _check_no_directory(name: str, field: str) -> None:
    """Somebody from elsewhere names models of the Hub, and learns nothing of the directories of this machine."""
    if name.startswith(("/", ".", "~")) or (name and os.path.isdir(name)):
        raise FieldError(f"{quoted_text(name, 80)!r} is no model on the Hub: name it organisation/name", field)


def place(entry: Entry, entries: Sequence[Entry]) -> int | None:
    """Returns the place of a request among those that wait, from 1; None if it does not wait."""
    paths = [waiting.path for waiting in in_line(entries)]
    return paths.index(entry.path) + 1 if entry.path in paths else None


def form_html(answer: Answer | None, visitor: Visitor, left: int | None) -> str:
    """Returns the form.

    Args:
        answer: To what was handed in last; None for an empty form.
        visitor: Who looks at it.
        left: How many models the visitor may still submit; None if they may not submit.
    """
    answer = answer or Answer()
    return render(
        "submit_form",
        answer=answer,
        values=answer.values,
        accepted=_accepted(answer) if answer.entry else None,
        labels=LABELS,
        types=TYPES,
        precisions=[("", "as saved"), *((kind.value, kind.value) for kind in Precision)],
        weight_types=[(kind.value, kind.value) for kind in WeightType],
        longest=LONGEST,
        user=visitor.user,
        refusal=visitor.refusal,
        left=left,
        submissions=SUBMISSIONS,
        days=PERIOD.days,
        local=visitor.local,
    )


def _accepted(answer: Answer) -> list[tuple[str, Any, Any]]:
    """What is shown of a request that is in the queue: name, value, link or None."""
    assert answer.entry
    request = answer.entry.request
    rows: list[tuple[str, Any, Any]] = [
        ("Model", request.model, hub_link(request.model)),
        ("Commit", request.sha, link if (link := hub_link(request.model, request.sha)) and "/tree/" in link else None),
        ("Place in the queue", answer.place or "a worker has it already", None),
        ("Precision", request.precision.value, None),
        ("Weights", request.weight_type.value, None),
        ("Type", f"{request.model_type.symbol} {request.model_type.words}", None),
        ("Parameters", f"{float(request.params or 0):.3g} billion", None),
        ("Licence", request.license, None),
    ]
    if request.base_model:
        rows.insert(5, ("Base model", request.base_model, hub_link(request.base_model)))
    if request.P:
        rows.append(("Parallel streams", f"P = {request.P}", None))
    return rows
