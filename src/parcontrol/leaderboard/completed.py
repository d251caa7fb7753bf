"""What is done, what is missing, and what failed and why, for every model and task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from parcontrol.leaderboard.queue import Entry
from parcontrol.leaderboard.records import WAITING, Request, Status
from parcontrol.leaderboard.registry import TaskSpec, registry
from parcontrol.leaderboard.result_file import IDENTITY
from parcontrol.leaderboard.results import Results
from parcontrol.leaderboard.table import row_labels

# done: every column has a value; partial: some have; the others have none.
State = Literal["done", "partial", "failed", "missing", "waiting", "running", "cancelled"]


@dataclass(frozen=True)
class TaskProgress:
    """How far one task of one model is.

    Attributes:
        state: See `State`.
        reason: Why it is not done, as far as somebody has said so.
        columns: Which of its columns have a value.
        limited: Whether the values are from a part of the rows.
    """

    state: State
    reason: str = ""
    columns: tuple[str, ...] = ()
    limited: bool = False


@dataclass(frozen=True)
class ModelProgress:
    """How far a model is.

    Attributes:
        label: Its name, with what tells it from other rows of the same model.
        identity: The fields that tell rows of the table apart; sha is None while it is not known.
        request: Path of its request, None if nobody asked for what is there.
        status: Status of the request.
        reason: Why the request failed.
        tasks: Progress of every task that was asked for, or has a result.
    """

    label: str
    identity: dict[str, Any]
    request: str | None
    status: str | None
    reason: str
    tasks: dict[str, TaskProgress] = field(default_factory=dict)

    def named(self, *states: State) -> list[str]:
        """The tasks in these states."""
        return [name for name, task in self.tasks.items() if task.state in states]


def progress(
    results: Results, entries: Sequence[Entry], specs: Sequence[TaskSpec] | None = None
) -> list[ModelProgress]:
    """Compares what was asked for with what there is, in the order of the models' names.

    Args:
        results: What the results repository holds.
        entries: The requests.
        specs: The tasks to look at; None takes all of the registry.
    """
    specs = list(registry() if specs is None else specs)
    found = _found(results)
    asked = _asked(entries, set(found))
    keys = sorted({*found, *asked}, key=lambda key: tuple(map(str, key)))
    labels = row_labels(pd.DataFrame([[part or "" for part in key] for key in keys], columns=list(IDENTITY)))
    return [
        _model(label, key, asked.get(key), found.get(key, _Found()), specs)
        for label, key in zip(labels, keys, strict=True)
    ]


_Key = tuple[Any, ...]


@dataclass
class _Found:
    """What results say of one model."""

    columns: dict[str, bool] = field(default_factory=dict)  # label: whether from a part of the rows
    problems: dict[tuple[str, str], str] = field(default_factory=dict)  # (task, metric): reason


def _found(results: Results) -> dict[_Key, _Found]:
    keys = list(results.models[list(IDENTITY)].itertuples(index=False, name=None))
    found = {key: _Found() for key in keys}
    scores = results.scores
    for row, column, limited in zip(scores["row"], scores["column"], scores["limited"], strict=True):
        found[keys[row]].columns[column] = bool(limited)
    for *key, task, metric, reason in results.problems[[*IDENTITY, "task", "metric", "reason"]].itertuples(
        index=False, name=None
    ):
        found[tuple(key)].problems[task, metric] = reason
    return found


def _asked(entries: Iterable[Entry], found: set[_Key]) -> dict[_Key, Entry]:
    """The request of every model, under the key that its results have."""
    asked: dict[_Key, Entry] = {}
    for entry in entries:
        request = entry.request
        way = (request.precision.value, request.weight_type.value, request.chat_template, "")
        key = (request.model, request.sha, *way)
        if request.sha is None:
            # Requests of the public system have no sha: they asked for whatever there is.
            matching = [other for other in found if (other[0], *other[2:]) == (request.model, *way)]
            asked.update(dict.fromkeys(matching, entry))
            if matching:
                continue
        asked[key] = entry
    return asked


def _model(label: str, key: _Key, entry: Entry | None, found: _Found, specs: list[TaskSpec]) -> ModelProgress:
    request = entry.request if entry else None
    wanted = None if request is None else request.tasks
    tasks = {}
    for spec in specs:
        known = [column.label for column in spec.columns if column.label in found.columns]
        # Without a request, or on the sample set, nobody said that all tasks were wanted.
        asked_for = request is not None and (wanted is None or spec.name in wanted)
        if asked_for or known or any(task == spec.name for task, _ in found.problems):
            tasks[spec.name] = _task(spec, known, found, request if asked_for else None)
    return ModelProgress(
        label=label,
        identity=dict(zip(IDENTITY, key, strict=True)),
        request=entry.path if entry else None,
        status=request.status.value if request else None,
        reason=request.reason if request and request.status in (Status.FAILED, Status.CANCELLED) else "",
        tasks=tasks,
    )


def _task(spec: TaskSpec, known: list[str], found: _Found, request: Request | None) -> TaskProgress:
    reasons = [
        f"{metric}: {reason}" if metric else reason
        for (task, metric), reason in found.problems.items()
        if task == spec.name and not (metric and _has_value(spec, metric, known))
    ]
    limited = any(found.columns[label] for label in known)
    if len(known) == len(spec.columns):
        return TaskProgress("done", columns=tuple(known), limited=limited)
    if known:
        reason = "; ".join(reasons) or "its result has no value for some columns"
        return TaskProgress("partial", reason, tuple(known), limited)
    status = request.status if request else None
    if status in WAITING:
        return TaskProgress("waiting", "; ".join(reasons))
    if status is Status.RUNNING:
        return TaskProgress("running", "; ".join(reasons))
    if reasons or (status is Status.FAILED and request):
        return TaskProgress("failed", "; ".join(reasons) or (request.reason if request else ""))
    if status is Status.CANCELLED:
        return TaskProgress("cancelled")
    return TaskProgress("missing")


def _has_value(spec: TaskSpec, metric: str, known: list[str]) -> bool:
    return any(column.label in known for column in spec.columns if column.metric == metric)
