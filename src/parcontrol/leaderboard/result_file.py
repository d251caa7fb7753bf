"""What one published result file says: whose result it is, and the values in it.

Files of the public system (harness 0.4.0 on, `config_general` before that), of the harness itself and of this project
are read alike. Unknown fields are ignored. A file that cannot be trusted raises ValueError with the reason; nobody has
to know more about it than that.

These functions run once per file over many thousand files, so they take dictionaries apart by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from parcontrol.leaderboard.records import MAX_REASON, Precision, WeightType, check_model_name, quoted_text
from parcontrol.leaderboard.registry import TaskSpec

MAX_BYTES = 64 * 2**20  # a file of the harness with all tasks has less than one

# Clocks of workers differ; a day is more than they do.
FUTURE_SECONDS = 86400

UNKNOWN = "?"

_REVISION = re.compile(r"[\w.:/+-]{0,200}", re.ASCII).fullmatch
_SHA256 = re.compile(r"[0-9a-f]{64}").fullmatch
_VERSION = re.compile(r"[\w.:/+ -]{0,100}", re.ASCII).fullmatch
_FILE_TIME = re.compile(
    r"results_(\d{4}-\d\d-\d\d)[T _](\d\d)[:_-](\d\d)[:_-](\d\d)(\.\d{1,6})?\d*(?:Z|\+00.?00)?\.json$"
)
_ARGUMENT = re.compile(r"(?:^|,)(\w+)=([^,]*)")

# The range of a value in the unit of the table, a little wider than it is for what rounding does. Values that are not
# finite are outside as well. A correlation, and a rescaled BERTScore, may be below zero.
_LEAST, _MOST = -0.01, 100.01
_LEAST_SIGNED = -100.01
_SIGNED = re.compile("spearman|.*bertscore.*").fullmatch
_MOST_PERPLEXITY = 1e9

_PRECISIONS = {precision.value for precision in Precision}
_WEIGHT_TYPES = {weight_type.value for weight_type in WeightType}

# What the public leaderboard calls tasks and metrics of ours.
_PUBLIC_TASKS = {
    "nq_open": ("nq8",),
    "triviaqa": ("tqa8",),
    "xsum": ("xsum_v2",),
    "cnndm": ("cnndm_v2",),
    "memo_trap": ("memo-trap", "memo-trap_v2"),
    "faithdial": ("faithdial_hallu", "faithdial_hallu_v2"),
    "truefalse": ("truefalse_cieacf",),
    "fever": ("fever10", "fever11"),
}
_PUBLIC_METRICS = {"exact_match": "em", "factkb": "factKB"}
# Percentages there, fractions in files of this project.
_PUBLIC_PERCENTAGES = {("xsum", "rougeL"), ("cnndm", "rougeL")}


class Model(NamedTuple):
    """What a file says of the model. The first six fields tell rows of the table apart."""

    model: str
    sha: str  # of the weights; "main" or "" in public files, which did not record it
    precision: str
    weight_type: str
    chat_template: bool
    conditions: str  # what was not as usual: the sample set, another instruction for judges, the dummy model
    revision: str
    P: int | None
    base_model: str
    model_type: str
    license: str
    params: float | None  # billions


IDENTITY = Model._fields[:6]
# All that `read_model` reads.
SAID_OF_MODEL = (*(set(Model._fields) - {"conditions"}), "sample_set", "instruction_sha256", "backend")

# Column (counted over those of all tasks), value, standard error, number of rows, version of the task, and which of
# its names the task has in the file: of two, the later one counts.
Score = tuple[int, float, float | None, int | None, str, int]
SCORE_FIELDS = ("column", "value", "stderr", "n", "version", "alias")


class Problem(NamedTuple):
    """Why a task, or one metric of it, has no value."""

    task: str
    metric: str  # empty: the whole task
    reason: str


def parse(content: bytes) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        ValueError: It holds none.
    """
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ValueError(_why_no_json(content, error)) from error
    if document.__class__ is not dict:
        raise ValueError(f"holds {_kind(document)}, not a JSON object")
    return document


def said_of_model(document: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of `Model`, and `limit`, as the file has them, unchecked.

    Raises:
        ValueError: There are none.
    """
    ours = document.get("parcontrol")
    if ours is None:
        return _public_fields(document)
    return _object(ours, "parcontrol")


def read_model(fields: Mapping[str, Any]) -> Model:
    """Checks what a file says of its model.

    Raises:
        ValueError: A field is missing, of the wrong type, or not what such a field can be.
    """
    get = fields.get
    return Model(
        _model_name(get("model")),
        _match(_REVISION, get("sha") or "", "sha"),
        _one_of(_PRECISIONS, get("precision"), "precision"),
        _one_of(_WEIGHT_TYPES, get("weight_type", "Original"), "weight_type"),
        _flag(get("chat_template"), "chat_template"),
        _conditions(fields),
        _match(_REVISION, get("revision") or "", "revision"),
        _streams(get("P")),
        _text(get("base_model"), "base_model"),
        _text(get("model_type"), "model_type"),
        _text(get("license"), "license"),
        _optional_number(get("params"), "params"),
    )


def read_date(document: Mapping[str, Any], path: str, latest: float) -> float:
    """Returns when a result was made, in seconds since 1970.

    Args:
        document: The file.
        path: Its path; public files have their date in the name only.
        latest: A date after this one is not believed: it would win over every later result.

    Raises:
        ValueError: There is no date, or none that can be.
    """
    date = document.get("date")
    if date.__class__ is float or date.__class__ is int:
        if not 0 <= date <= latest:
            raise ValueError(f"date = {date} lies in the future, or before 1970")
        return date
    match = _FILE_TIME.search(path)
    if match is None:
        raise ValueError("has no date, neither in the file nor in its name")
    day, hour, minute, second, fraction = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{hour}:{minute}:{second}").replace(tzinfo=UTC)
    except ValueError as error:
        raise ValueError(f"its name has no date: {error}") from error
    seconds = moment.timestamp() + float(fraction or 0)
    if seconds > latest:
        raise ValueError(f"the date in its name, {moment:%Y-%m-%d}, lies in the future")
    return seconds


def read_harness_version(document: Mapping[str, Any]) -> str:
    """Returns the harness's version, or its commit as far as old files say it, or nothing."""
    version = document.get("lm_eval_version")
    if version.__class__ is str:
        return _version_text(version)
    commit = document.get("git_hash")
    return _version_text(f"git {commit}") if commit.__class__ is str else ""


def score_reader(specs: Iterable[TaskSpec]) -> Callable[[dict[str, Any]], list[Score]]:
    """Returns a function that takes the values of the given tasks out of a file.

    The values are in the unit of the table: percent for fractions, and as they are for perplexities. The function
    raises ValueError for a value that its metric cannot have.
    """
    wanted = _wanted(list(specs))

    def read_scores(document: dict[str, Any]) -> list[Score]:
        results = _object(document.get("results"), "results")
        public = document.get("parcontrol") is None
        samples = _object(document.get("n-samples", {}), "n-samples")
        versions = _object(document.get("versions", {}), "versions")
        shots = document.get("n-shot")
        scores = []
        for task, values in results.items():
            metrics = wanted.get(task)
            if public and shots.__class__ is dict:
                # nq_open with 64 examples there is nq_open_64 here.
                metrics = wanted.get(f"{task}_{shots.get(task)}", metrics)
            if metrics is None:
                continue
            _object(values, f"results of {task}")
            n, version = _samples(samples, task, values), _version(versions, task)
            for column, name, key, stderr_key, scale, public_scale, least, most, alias in metrics:
                value = values.get(key)
                if value is None:
                    key, stderr_key = _other_key(name, values)
                    value = values.get(key)
                if value.__class__ is not float:
                    value = _number(value, task, key)
                    if value is None:
                        continue
                stderr = values.get(stderr_key)
                if stderr.__class__ is not float:
                    stderr = _number(stderr, task, stderr_key)
                factor = public_scale if public else scale
                if not least <= value * factor <= most:
                    raise ValueError(f"{task}: {key} = {value} is not what this metric can be")
                if stderr is not None:
                    if not 0 <= stderr * factor <= most:
                        raise ValueError(f"{task}: {stderr_key} = {stderr} is not what a standard error can be")
                    stderr *= factor
                scores.append((column, value * factor, stderr, n, version, alias))
        return scores

    return read_scores


def read_limited(fields: Mapping[str, Any]) -> bool:
    """Returns whether a result is from a part of the rows.

    Raises:
        ValueError: `limit` is neither null nor a number.
    """
    limit = fields.get("limit")
    if limit is None:
        return False
    if limit.__class__ not in (int, float):
        raise ValueError(f"limit is {_kind(limit)}, not a number")
    return True


def read_problems(fields: Mapping[str, Any]) -> list[Problem]:
    """Returns why tasks or metrics are absent, as far as our block in a file says so; each on one printable line.

    Raises:
        ValueError: It says so in another form than {task: reason} and {task: {metric: reason}}.
    """
    problems = [_problem(task, "", reason) for task, reason in _object(fields.get("failed", {}), "failed").items()]
    for task, reasons in _object(fields.get("absent", {}), "absent").items():
        problems += [_problem(task, *said) for said in _object(reasons, "a task of absent").items()]
    return problems


def _problem(task: str, metric: str, reason: Any) -> Problem:
    if reason.__class__ is not str:
        raise ValueError(f"the reason of {_quoted(task)} is {_kind(reason)}, not a string")
    return Problem(quoted_text(task), quoted_text(metric), quoted_text(reason, MAX_REASON))


class _Metric(NamedTuple):
    column: int
    name: str
    key: str
    stderr_key: str
    scale: float
    public_scale: float
    least: float
    most: float
    alias: int


def _wanted(specs: list[TaskSpec]) -> dict[str, list[_Metric]]:
    """For every name that a task has in files: its metrics."""
    wanted: dict[str, list[_Metric]] = {}
    first = 0
    for spec in specs:
        names = dict.fromkeys((*_PUBLIC_TASKS.get(spec.name, ()), spec.harness_task, spec.name))
        for alias, name in enumerate(names):
            wanted[name] = [
                _Metric(
                    first + offset,
                    column.metric,
                    f"{column.metric},{column.filter}",
                    f"{column.metric}_stderr,{column.filter}",
                    column.scale,
                    1 if (spec.name, column.metric) in _PUBLIC_PERCENTAGES else column.scale,
                    _LEAST_SIGNED if _SIGNED(column.metric) else _LEAST,
                    _MOST_PERPLEXITY if spec.kind == "rolling" else _MOST,
                    alias,
                )
                for offset, column in enumerate(spec.columns)
            ]
        first += len(spec.columns)
    return wanted


def _other_key(name: str, values: Mapping[str, Any]) -> tuple[str, str]:
    """The keys of value and standard error under another filter, without one, or under the public name."""
    names = (name, _PUBLIC_METRICS.get(name))
    key = next((key for key in values if key.partition(",")[0] in names), name)
    found, comma, filter_ = key.partition(",")
    return key, f"{found}_stderr{comma}{filter_}"


def _number(value: Any, task: str, key: str) -> float | None:
    """The value, None where the harness says that there is none."""
    if value.__class__ is int:
        return float(value)
    if value is None or value == "N/A":
        return None
    raise ValueError(f"{task}: {key} is {_kind(value)}, not a number")


def _samples(samples: dict[str, Any], task: str, values: Mapping[str, Any]) -> int | None:
    """How many rows were evaluated."""
    entry = samples.get(task)
    n = values.get("sample_len") if entry is None else _object(entry, f"n-samples of {task}").get("effective")
    if n is not None and not (n.__class__ is int and 0 <= n < 2**53):
        raise ValueError(f"{task}: {_quoted(n)} is no number of rows")
    return n


def _version(versions: dict[str, Any], task: str) -> str:
    version = versions.get(task)
    if version is None:
        return ""
    if version.__class__ not in (str, float, int):
        raise ValueError(f"the version of {task} is {_kind(version)}, not a number or a string")
    return _version_text(version)


@lru_cache(1024)
def _version_text(version: str | float) -> str:
    if not isinstance(version, str):
        return f"{version:g}"
    return version if _VERSION(version) else UNKNOWN


def _public_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a file without our block, by the names they have in it."""
    config = document.get("config", document.get("config_general"))
    if config.__class__ is not dict:
        raise ValueError("has neither config nor config_general")
    arguments = config.get("model_args")
    if arguments.__class__ is str:
        arguments = dict(_ARGUMENT.findall(arguments))
    elif arguments.__class__ is not dict:
        arguments = {}
    adapter, delta = arguments.get("peft"), arguments.get("delta")
    model = config.get("model_name") or adapter or delta or arguments.get("pretrained") or document.get("model_name")
    return {
        "model": model,
        "sha": config.get("peft_sha") or config.get("delta_sha") or config.get("model_sha"),
        "revision": config.get("model_revision") or arguments.get("revision"),
        "precision": _public_precision(config.get("model_dtype"), arguments),
        "weight_type": "Adapter" if adapter else "Delta" if delta else "Original",
        "base_model": arguments.get("pretrained") if adapter or delta else None,
        "chat_template": bool(document.get("chat_template")),
        "limit": config.get("limit"),
    }


def _public_precision(dtype: Any, arguments: Mapping[str, Any]) -> str:
    for bits in ("8bit", "4bit"):
        if str(arguments.get(f"load_in_{bits}", "")).lower() == "true":
            return bits
    for candidate in (dtype, arguments.get("dtype")):
        precision = str(candidate).removeprefix("torch.")
        if precision in _PRECISIONS:
            return precision
    return UNKNOWN


def _object(value: Any, name: str) -> dict[str, Any]:
    if value.__class__ is not dict:
        raise ValueError(f"{name} is {_kind(value)}, not an object")
    found: dict[str, Any] = value
    return found


def _model_name(value: Any) -> str:
    if value.__class__ is not str:
        raise ValueError(f"model is {_kind(value)}, not a string")
    return check_model_name(value)


def _match(matches: Callable[[str], Any], value: Any, name: str) -> str:
    if value.__class__ is not str:
        raise ValueError(f"{name} is {_kind(value)}, not a string")
    if not matches(value):
        raise ValueError(f"{name} {_quoted(value)} is not what a {name} looks like")
    return value


def _one_of(allowed: set[str], value: Any, name: str) -> str:
    if value is None or value == UNKNOWN:
        return UNKNOWN
    if value.__class__ is not str or value not in allowed:
        raise ValueError(f"{name} {_quoted(value)} is none of {', '.join(sorted(allowed))}")
    return value


def _flag(value: Any, name: str) -> bool:
    if value is None:
        return False
    if value.__class__ is not bool:
        raise ValueError(f"{name} is {_kind(value)}, not true or false")
    return value


def _text(value: Any, name: str) -> str:
    if value is None:
        return ""
    if value.__class__ is not str or len(value) > 300:
        raise ValueError(f"{name} is {_kind(value)}, not a string of at most 300 characters")
    return quoted_text(value, 300)


def _conditions(fields: Mapping[str, Any]) -> str:
    parts = ["sample set"] if _flag(fields.get("sample_set"), "sample_set") else []
    instruction = fields.get("instruction_sha256")
    if instruction is not None:
        parts.append("instruction " + _match(_SHA256, instruction, "instruction_sha256")[:12])
    if _text(fields.get("backend"), "backend") == "dummy":
        parts.append("dummy model")
    return ", ".join(parts)


def _streams(value: Any) -> int | None:
    if value is not None and not (value.__class__ is int and 1 <= value <= 4096):
        raise ValueError(f"P {_quoted(value)} is no number of streams")
    return value


def _optional_number(value: Any, name: str) -> float | None:
    if value is None:
        return None
    if value.__class__ not in (int, float) or not 0 <= value < 1e9:
        raise ValueError(f"{name} {_quoted(value)} is no number from 0 to 1e9")
    return float(value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "missing or null"}
    return names.get(value.__class__, "a number")


def _quoted(value: Any) -> str:
    text = _kind(value) if isinstance(value, dict | list) else repr(value)  # these may be too deep for repr
    return text if len(text) <= 80 else text[:77] + "..."


def _why_no_json(content: bytes, error: orjson.JSONDecodeError) -> str:
    start = content.lstrip()[:1]
    if start == b"<":
        return "is HTML or XML, not JSON"
    if not start:
        return "is empty"
    found = re.search(rb"[:,\[]\s*-?(NaN|Infinity)\b", content)
    if found:
        return f"holds {found[1].decode()}, which is no JSON"
    return f"is no JSON: {error}"
