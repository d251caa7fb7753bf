"""Submitting a model: what is checked, and how a request gets into the queue.

Whether a model may be submitted depends on what others have submitted: duplicates, the weekly limit, the list of
models that are not wanted. These are checked for the very revision of the repository that the request is committed to,
so that front ends that submit at once cannot be played against each other.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from parcontrol.leaderboard.model_source import ADAPTER_CONFIG, ModelSource, find_model
from parcontrol.leaderboard.queue import Entry, Queue, utc_now
from parcontrol.leaderboard.records import (
    SUBMITTED,
    WAITING,
    Event,
    FieldError,
    ModelType,
    Precision,
    Request,
    Status,
    WeightType,
    about_field,
    check_model_name,
    check_revision,
    invalid_fields,
    parse_model_type,
    quoted_text,
    request_path,
)
from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store.base import Store, quoted

SUBMISSIONS = 5
PERIOD = timedelta(days=7)
# In the requests repository: one model a line, then why; `#` begins a comment.
DO_NOT_SUBMIT = "do_not_submit.txt"
# Written alike: models that are shown with a mark and the reason.
FLAGGED, WITHDRAWN = "flagged.txt", "withdrawn.txt"
_MAX_LIST_BYTES = 1 << 20


@dataclass(frozen=True)
class Submission:
    """What a user fills in.

    Attributes:
        model_name: Name on the Hub, or in a local store a directory.
        model_type: How the model was made: symbol, words, or both.
        revision: Branch, tag or commit; it is resolved to a commit.
        precision: How the weights are to be held; None takes what they are saved in.
        weight_type: What the repository holds.
        base_model: What an adapter or delta changes; for other models what they were made from, if anything.
        chat_template: Whether prompts go through the model's chat template.
        local_name: Name on the board for a directory, instead of the directory's own.
    """

    model_name: str
    model_type: str
    revision: str = "main"
    precision: str | None = None
    weight_type: str = WeightType.ORIGINAL
    base_model: str = ""
    chat_template: bool = False
    local_name: str | None = None


def submit(
    submission: Submission,
    store: Store,
    settings: Settings,
    user: str | None = None,
    clock: Callable[[], datetime] = utc_now,
    facts: Mapping[str, Any] | None = None,
) -> Entry:
    """Checks a submission and puts it into the queue.

    Args:
        submission: What the user has filled in.
        store: The requests repository.
        settings: Where models are looked for.
        user: Who submits, as somebody else has authenticated them; None is the owner of the token, or the account.
        clock: Returns the time, in UTC.
        facts: Fields of the request that its model does not say itself, such as what it was trained with.

    Returns:
        The request and its path.

    Raises:
        ValueError: The submission is refused; one message. A `FieldError` if it is because of one field.
        StoreError: The store, or the Hub, cannot be reached.
    """
    with about_field("model_type"):
        model_type = parse_model_type(submission.model_type)
    with about_field("weight_type"):
        weight_type = _one_of(WeightType, submission.weight_type, "weight type")
    with about_field("precision"):
        precision = _one_of(Precision, submission.precision, "precision") if submission.precision else None
    with about_field("base_model"):
        _check_base_model(submission.base_model, weight_type)
    with about_field("revision"):
        check_revision(submission.revision)
    user = store.user() if user is None else user

    # What is refused anyway is refused before the model is looked at.
    queue = Queue(store)
    _check_wanted(submission.model_name, store)
    _check_limit(user, queue.requests(), clock())

    with about_field("model_name"):
        source = find_model(submission.model_name, submission.revision, settings, submission.local_name)
    request = _checked_request(submission, source, model_type, precision, weight_type, settings)
    return _enter(request.changed(**facts or {}), user, store, queue, clock)


def recent_submissions(user: str, entries: Iterable[Entry], now: datetime) -> list[datetime]:
    """Returns when a user has submitted within the period that ends now, oldest first.

    Every submission counts, whatever became of it: cancelling gives nothing back, and a request that was submitted
    again counts for both times. A time in the future, from a clock that is wrong, counts too.
    """
    times = [time for entry in entries for time in _submission_times(entry.request, user) if time > now - PERIOD]
    return sorted(times)


def _submission_times(request: Request, user: str) -> set[datetime]:
    times = {event.time for event in request.history if event.event == SUBMITTED and _same(event.by, user)}
    if request.submitted_time and request.submitted_by and _same(request.submitted_by, user):
        times.add(request.submitted_time)
    return times


# --- the model ---


def _checked_request(
    submission: Submission,
    source: ModelSource,
    model_type: ModelType,
    precision: Precision | None,
    weight_type: WeightType,
    settings: Settings,
) -> Request:
    """The request for a model that fulfils every condition."""
    with about_field("model_name"):
        license_name = source.license()
        params = source.parameters(weight_type)
    configured, base_model, named_in = source, submission.base_model, "model_name"
    if weight_type is not WeightType.ORIGINAL:
        with about_field("base_model"):
            base = find_model(submission.base_model, "main", settings)
            base_params, base_model = base.parameters(WeightType.ORIGINAL), base.model
        if weight_type is WeightType.ADAPTER:
            with about_field("weight_type"):
                _check_adapter(source)
            configured, params, named_in = base, base_params + params, "base_model"
    with about_field(named_in):
        streams = getattr(configured.config, "parscale_n", None)
        saved = configured.precision()
    precision = precision or saved
    with about_field("precision"):
        _check_quantisation(precision, configured)
    try:
        return Request(
            model=source.model,
            base_model=base_model,
            revision=source.revision,
            sha=source.sha,
            precision=precision,
            weight_type=weight_type,
            status=Status.PENDING,
            model_type=model_type,
            likes=source.likes,
            params=params,
            license=license_name,
            chat_template=submission.chat_template,
            P=streams,
            model_path=str(source.directory) if source.by_path else None,
        )
    except ValidationError as error:
        raise ValueError(f"{source.model}: {invalid_fields(error)}") from error


def _check_adapter(source: ModelSource) -> None:
    if source.read_json(ADAPTER_CONFIG) is None:
        raise ValueError(f"{source.model} has no {ADAPTER_CONFIG}: it is no adapter")


def _check_quantisation(precision: Precision, source: ModelSource) -> None:
    """GPTQ is made by its author; the other precisions are made from weights that are not quantised."""
    saved = source.precision()
    quantised = (Precision.GPTQ, Precision.INT8, Precision.INT4)
    if (precision is Precision.GPTQ or saved in quantised) and precision is not saved:
        raise ValueError(f"{source.model} cannot be evaluated in {precision}: its weights are saved in {saved}")


def _check_base_model(base_model: str, weight_type: WeightType) -> None:
    if base_model:
        check_model_name(base_model)
    elif weight_type is not WeightType.ORIGINAL:
        raise ValueError(f"weight type {weight_type} needs the base model that it changes")


def _one_of(allowed: type[Precision] | type[WeightType], value: str, what: str) -> Any:
    for member in allowed:
        if member.value.lower() == value.strip().lower():
            return member
    raise ValueError(f"{what} {quoted(value)} is not known: it is one of {', '.join(allowed)}")


# --- the store ---


def _enter(request: Request, user: str, store: Store, queue: Queue, clock: Callable[[], datetime]) -> Entry:
    """Commits the request, if it may be, for the revision that it was checked against."""
    submission_id = uuid.uuid4().hex
    for attempt in store.conflict_retries():
        with attempt, store.exclusive():
            revision = queue.refresh()
            entries = queue.entries()
            ours = [entry for entry in entries if entry.request.submission_id == submission_id]
            if ours:  # the answer to our commit was lost, and the request has moved on
                return ours[0]
            now = clock()
            _check_wanted(request.model, store)
            _check_not_there(request, entries)
            _check_limit(user, entries, now)
            path, before = _place(request, queue)
            entered = request.changed(history=before).after(
                Event(time=now, event=SUBMITTED, by=user),
                submitted_time=now,
                submitted_by=user,
                submission_id=submission_id,
            )
            store.commit({path: entered.to_json()}, f"{user} submits {request.model}", parent=revision)
            return Entry(path, entered)
    raise AssertionError("retries end by returning or raising")


def _check_wanted(name: str, store: Store) -> None:
    unwanted = read_list(store, DO_NOT_SUBMIT)
    if name.casefold() in unwanted:
        why = unwanted[name.casefold()]
        message = f"{name} is on the list of models that are not to be submitted" + (why and f": {why}")
        raise FieldError(message, "model_name")


def read_list(store: Store, path: str) -> dict[str, str]:
    """Returns the models of a list in the requests repository, in lower case, each with the reason.

    Raises:
        StoreError: The repository cannot be read.
    """
    try:
        listed = store.read(path, max_bytes=_MAX_LIST_BYTES).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    lines = (line.partition("#")[0].strip().partition(" ") for line in listed.splitlines())
    return {model.casefold(): quoted_text(reason.strip(), 300) for model, _, reason in lines if model}


def _check_not_there(request: Request, entries: Iterable[Entry]) -> None:
    for entry in entries:
        there = entry.request
        over = there.status not in WAITING and there.status not in (Status.RUNNING, Status.FINISHED)
        if not over and _is_same_model(request, there):
            raise FieldError(
                f"{request.model} at {(request.sha or request.revision)[:18]} in {request.precision}, "
                f"{request.weight_type}, is already {there.status}",
                "model_name",
            )


def _is_same_model(new: Request, there: Request) -> bool:
    """Whether both ask for the same; old files have no commit, and are compared by revision."""
    same_commit = new.sha == there.sha if there.sha else there.revision in (new.revision, new.sha)
    same_weights = (new.precision, new.weight_type) == (there.precision, there.weight_type)
    return same_commit and same_weights and _same(new.model, there.model)


def _check_limit(user: str, entries: Iterable[Entry], now: datetime) -> None:
    times = recent_submissions(user, entries, now)
    if len(times) >= SUBMISSIONS:
        free = times[-SUBMISSIONS] + PERIOD
        raise ValueError(
            f"{quoted_text(user)} has submitted {len(times)} models in the last {PERIOD.days} days, and {SUBMISSIONS} "
            f"are allowed: the next one can be submitted from {free:%Y-%m-%d %H:%M:%S} UTC"
        )


def _place(request: Request, queue: Queue) -> tuple[str, tuple[Event, ...]]:
    """Where the request goes, and the history of what it replaces: a request for the same that is over."""
    public = request_path(request.model, request.precision, request.weight_type)
    of_this_commit = request_path(request.model, request.precision, request.weight_type, request.sha)
    for path in (public, of_this_commit):
        there = queue.get(path)
        if there is not None and _is_same_model(request, there):
            return path, _past(there)
    for path in (public, of_this_commit):
        if not queue.is_taken(path):
            return path, ()
    message = f"{request.model} cannot be submitted: another file is in the place of its request"
    raise FieldError(message, "model_name")


def _past(request: Request) -> tuple[Event, ...]:
    """The history of a request, with its submission even if it was made by hand."""
    if not request.submitted_time or not request.submitted_by:
        return request.history
    submitted = Event(time=request.submitted_time, event=SUBMITTED, by=request.submitted_by)
    return request.history if submitted in request.history else (submitted, *request.history)


def _same(name: str, other: str) -> bool:
    return name.casefold() == other.casefold()
