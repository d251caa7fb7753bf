"""Requests: what is asked of the workers, one JSON file each, in the layout of the public leaderboard.

Files of the public leaderboard and of older versions are read as well: unknown fields are kept, missing ones have
defaults, spellings of enumerated values may differ. Anything else that does not fit makes a file a broken one, with a
reason, and nothing of it is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Self

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from parcontrol.leaderboard.store.base import check_path, quoted

MAX_REQUEST_BYTES = 256 * 1024
MAX_REASON = 8000  # characters
# With reasons of the length that events have, a history stays well below the size of a request.
MAX_HISTORY = 100


class FieldError(ValueError):
    """Something is refused because of one field of what was filled in.

    Attributes:
        field: Its name, as in `Submission`.
    """

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


@contextmanager
def about_field(field: str) -> Iterator[None]:
    """Says of every `ValueError` of the block which field it is about, if it does not say so itself."""
    try:
        yield
    except FieldError:
        raise
    except ValueError as error:
        raise FieldError(str(error), field) from error


class Status(StrEnum):
    """Where a request stands. The last two are the public leaderboard's words for waiting once more."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    RERUN = "RERUN"
    PENDING_NEW_EVAL = "PENDING_NEW_EVAL"


WAITING = frozenset({Status.PENDING, Status.RERUN, Status.PENDING_NEW_EVAL})


class Precision(StrEnum):
    """How the weights are held."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "8bit"
    INT4 = "4bit"
    GPTQ = "GPTQ"


class WeightType(StrEnum):
    """What the repository holds: a model, or what changes a base model."""

    ORIGINAL = "Original"
    DELTA = "Delta"
    ADAPTER = "Adapter"


class ModelType(StrEnum):
    """How a model was made, as the public leaderboard writes it."""

    PRETRAINED = "🟢 : pretrained"
    FINE_TUNED = "🔶 : fine-tuned"
    INSTRUCTION_TUNED = "⭕ : instruction-tuned"
    RL_TUNED = "🟦 : RL-tuned"
    CHAT = "💬 : chat"
    MERGE = "🤝 : merge"
    UNKNOWN = "?"

    @property
    def symbol(self) -> str:
        """The emoji."""
        return self.value.split(" ")[0]

    @property
    def words(self) -> str:
        """The name without the emoji."""
        return self.value.rpartition(": ")[2]


# Plain spellings of each type; letters only, lower case. The public leaderboard's longer texts are among them.
_TYPE_WORDS = {
    ModelType.PRETRAINED: ("pretrained", "continuouslypretrained", "base", "foundation"),
    ModelType.FINE_TUNED: ("finetuned", "finetune", "finetunedondomainspecificdatasets"),
    ModelType.INSTRUCTION_TUNED: ("instructiontuned", "instructtuned", "instruct", "instruction", "ift"),
    ModelType.RL_TUNED: ("rltuned", "rlhf", "rlhftuned", "reinforcementlearningtuned", "rl"),
    ModelType.CHAT: ("chat", "chatmodel", "chatmodels", "chatmodelsrlhfdpoift"),
    ModelType.MERGE: ("merge", "merged", "merges", "basemergesandmoerges"),
}
_TYPE_OF_WORDS = {word: model_type for model_type, words in _TYPE_WORDS.items() for word in words}


def parse_model_type(text: str) -> ModelType:
    """Returns the model type that a text names, by symbol, by words, or by both.

    Any symbol may stand before the words, which decide; a symbol of another type than the words is refused.

    Raises:
        ValueError: The text names no type, or two.
    """
    letters = "".join(character for character in text.lower() if character.isascii() and character.isalpha())
    by_words = _TYPE_OF_WORDS.get(letters)
    symbols = [kind for kind in _TYPE_WORDS if kind.symbol in text]
    named = {by_words, *symbols} if by_words else set(symbols)
    if len(named) != 1 or (letters and by_words is None):
        allowed = ", ".join(f"{kind.symbol} {kind.words}" for kind in _TYPE_WORDS)
        raise ValueError(f"model type {quoted_text(text)} is not known: it is one of {allowed}")
    (model_type,) = named
    return model_type


def _lenient_model_type(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_model_type(value)
    except ValueError:
        return ModelType.UNKNOWN


# One part of a name on the Hub.
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_MODEL_NAME = re.compile(rf"(?:{_NAME}/)?{_NAME}")
_REVISION = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_./-]{0,198}[A-Za-z0-9_-])?")
_SHA = re.compile(r"[0-9a-f]{40}|local-[0-9a-f]{64}")


def check_model_name(name: str) -> str:
    """Returns the name of a model on the Hub as it is.

    Raises:
        ValueError: It is none.
    """
    if not _MODEL_NAME.fullmatch(name) or ".." in name or "--" in name:
        raise ValueError(
            f"{quoted(name)} is no model name: it is organisation/name, of letters, digits, '-', '_' and '.', each at "
            "most 96 characters"
        )
    return name


def check_revision(revision: str) -> str:
    """Returns a branch, tag or commit as it is.

    Raises:
        ValueError: It is none.
    """
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        raise ValueError(f"{quoted(revision)} is no revision: it is a branch, a tag or a commit")
    return revision


def _check_base_model(name: str) -> str:
    return check_model_name(name) if name else name


def _check_sha(sha: str) -> str:
    if not _SHA.fullmatch(sha):
        raise ValueError(f"{quoted(sha)} is no commit: it has 40 hexadecimal digits")
    return sha


def _check_harmless(text: str) -> str:
    if not text.isprintable() or "<" in text or ">" in text:
        raise ValueError(f"{quoted(text)} is not a plain text")
    return text


def _utc(value: datetime) -> datetime:
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{value} is out of range") from error


def _only_text(value: object) -> object:
    if not isinstance(value, str | datetime):
        raise ValueError(f"{quoted(value)} is no time in ISO 8601")
    return value


def _spelling(allowed: type[StrEnum], **aliases: str) -> BeforeValidator:
    """Reads an enumerated value in upper or lower case."""
    names = {member.value.lower(): member.value for member in allowed} | aliases

    def normalise(value: object) -> object:
        return names.get(value.strip().lower(), value) if isinstance(value, str) else value

    return BeforeValidator(normalise)


def _joined(value: object) -> object:
    """A licence may be a list on model cards, or missing."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ", ".join(value)
    return "" if value is None else value


def _zero_if_none(value: object) -> object:
    return 0 if value is None else value


def _printable(text: str) -> str:
    """The text on one line, with spaces for what cannot be shown, or what a terminal would take as an order."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else " " for letter in text)


def _empty_if_none(value: object) -> object:
    return "" if value is None else value


Time = Annotated[datetime, BeforeValidator(_only_text), AfterValidator(_utc)]
Text = Annotated[str, StringConstraints(max_length=200), AfterValidator(_check_harmless), BeforeValidator(_joined)]
Reason = Annotated[
    str, StringConstraints(max_length=MAX_REASON), AfterValidator(_printable), BeforeValidator(_empty_if_none)
]
TaskName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,100}$")]


class Event(BaseModel):
    """Something that happened to a request.

    Attributes:
        time: When.
        event: What: submitted, claimed, released, expired, finished, failed, requeued, cancelled.
        by: User or worker.
        reason: Why, if there is more to say.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    time: Time
    event: Text
    by: Text = ""
    reason: Reason = ""


class Request(BaseModel):
    """A request to evaluate one model at one commit in one precision.

    Attributes:
        model: Name on the Hub; `local/<name>` for a directory.
        base_model: What an adapter or delta changes, or a model was made from; may be empty.
        revision: Branch, tag or commit that was asked for.
        sha: Commit that it was at submission, or `local-` and a hash of the files; None in old files.
        private: Always false for what is submitted here.
        precision: How the weights are to be held.
        weight_type: What the repository holds.
        status: Where the request stands.
        submitted_time: When it was submitted, UTC; None in old files.
        model_type: How the model was made.
        likes: On the Hub, at submission.
        params: Parameters, in billions (10⁹).
        license: As the model card states it.
        chat_template: Whether prompts go through the model's chat template.
        tasks: Names of the tasks asked for, None for all.
        submitted_by: The user; None in old files.
        submission_id: Tells two submissions apart.
        attempts: How often a worker has begun.
        reason: Why it failed or was cancelled.
        claimed_by: The worker that has it.
        claim_id: Tells two claims apart.
        lease_expires: Until when the worker has it, UTC.
        P: Streams of a ParScale model, None for other models.
        model_path: Directory of the model on this machine, in a local store only.
        history: What has happened, oldest first.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    model: Annotated[str, AfterValidator(check_model_name)]
    base_model: Annotated[str, AfterValidator(_check_base_model), BeforeValidator(_empty_if_none)] = ""
    revision: Annotated[str, AfterValidator(check_revision)] = "main"
    sha: Annotated[str, AfterValidator(_check_sha)] | None = None
    private: bool = False
    precision: Annotated[Precision, _spelling(Precision, **{"torch.float16": "float16", "torch.bfloat16": "bfloat16"})]
    weight_type: Annotated[WeightType, _spelling(WeightType)] = WeightType.ORIGINAL
    status: Annotated[Status, _spelling(Status)]
    submitted_time: Time | None = None
    model_type: Annotated[ModelType, BeforeValidator(_lenient_model_type)] = ModelType.UNKNOWN
    likes: Annotated[int, Field(ge=0, le=10**9), BeforeValidator(_zero_if_none)] = 0
    params: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False), BeforeValidator(_zero_if_none)] = 0
    license: Text = ""
    chat_template: bool = False
    tasks: tuple[TaskName, ...] | None = None
    submitted_by: Text | None = None
    submission_id: Text | None = None
    attempts: Annotated[int, Field(ge=0, le=10**6)] = 0
    reason: Reason = ""
    claimed_by: Text | None = None
    claim_id: Text | None = None
    lease_expires: Time | None = None
    P: Annotated[int, Field(ge=1, le=10**4)] | None = None
    model_path: Annotated[str, StringConstraints(min_length=1, max_length=4000)] | None = None
    history: tuple[Event, ...] = ()

    @model_validator(mode="after")
    def _check_directory(self) -> Self:
        if self.model_path is not None and not self.model.startswith("local/"):
            raise ValueError(f"a directory is named local/<name>, not {quoted(self.model)}")
        return self

    @property
    def key(self) -> tuple[str, str | None, Precision, WeightType]:
        """What is evaluated once: model, sha, precision, weight type."""
        return self.model, self.sha, self.precision, self.weight_type

    def changed(self, **fields: Any) -> Request:
        """Returns the request with other values in some fields."""
        return self.model_copy(update=fields)

    def after(self, event: Event, **fields: Any) -> Request:
        """Returns the request after something has happened to it, with other values in some fields.

        Of a long history the oldest events are dropped, except submissions, which are counted.
        """
        history = [*self.history, event]
        surplus = len(history) - MAX_HISTORY
        if surplus > 0:
            droppable = [index for index, past in enumerate(history) if past.event != SUBMITTED][:surplus]
            history = [past for index, past in enumerate(history) if index not in droppable]
        return self.changed(history=tuple(history), **fields)

    def to_json(self) -> bytes:
        """Returns the file's content."""
        return orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_INDENT_2) + b"\n"


SUBMITTED = "submitted"


def request_path(
    model: str, precision: Precision, weight_type: WeightType, sha: str | None = None, private: bool = False
) -> str:
    """Returns the path of a request's file.

    Args:
        model: Name of the model.
        precision: Precision of the weights.
        weight_type: Kind of weights.
        sha: Commit, for a second revision of the same model; the first has the public name without it.
        private: As the public name tells.
    """
    suffix = f"_{sha.removeprefix('local-')[:12]}" if sha else ""
    return check_path(f"{model}_eval_request_{private}_{precision}_{weight_type}{suffix}.json")


def is_request_path(path: str) -> bool:
    """Whether a file of the requests repository is, by its name, a request."""
    return path.endswith(".json")


def parse_request(content: bytes, path: str, local: bool = False) -> Request:
    """Reads a request file.

    Args:
        content: The file.
        path: Its path in the repository, which must fit the model.
        local: Whether it lies in a local store, where a request may name a directory.

    Raises:
        ValueError: It is no request; one line that says why.
    """
    if len(content) > MAX_REQUEST_BYTES:
        raise ValueError(f"{len(content):,} bytes are more than the {MAX_REQUEST_BYTES:,} that a request may have")
    try:
        data = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"no valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"a JSON object is needed, not {quoted(data)}")
    try:
        request = Request.model_validate(data)
        request.to_json()
    except ValidationError as error:
        raise ValueError(invalid_fields(error)) from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot be written again: {error}") from error
    check_path(path)
    if path.partition("_eval_request_")[0] != request.model or "_eval_request_" not in path:
        raise ValueError(f"the file is not named after its model {quoted(request.model)}")
    if request.model_path is not None and not local:
        raise ValueError("it names a directory, which only a request in a local store may")
    return request


def invalid_fields(error: ValidationError) -> str:
    """Returns the first faults of a request, in one line."""
    faults: Sequence[Mapping[str, Any]] = error.errors(include_url=False, include_context=False)
    lines = [f"{'.'.join(map(str, fault['loc'])) or 'request'}: {fault['msg']}" for fault in faults[:3]]
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return quoted_text("; ".join(lines), 600) + more


def quoted_text(text: str, length: int = 80) -> str:
    """Returns a text on one line, without what cannot be shown, and never long."""
    shown = _printable(text)
    return shown if len(shown) <= length else f"{shown[:length]}…"
