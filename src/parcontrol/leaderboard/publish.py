"""From the spool to the results repository: one result for each model, commit, precision, weight type and task.

A published file holds the harness's results of one or several tasks:

    <org>/<model>/results_<time>.json
    <org>/<model>/samples_<task>_<time>.jsonl.zst

Publishing is a compare-and-swap: what somebody else has published meanwhile is left out.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from parcontrol.leaderboard.evaluate.model_spec import Conditions, ModelSpec
from parcontrol.leaderboard.evaluate.spool import Spooled, to_json
from parcontrol.leaderboard.registry import registry
from parcontrol.leaderboard.result_file import MAX_BYTES, parse, read_limited, read_model, said_of_model, score_reader
from parcontrol.leaderboard.store import Snapshot, Store, update

logger = logging.getLogger(__name__)

_RESULT_NAME = re.compile(r"results_[^/]+\.json")
# What the harness files by task; results of several tasks are put together by it.
_BY_TASK = ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
_BY_TASK_IN_BLOCK = ("absent", "failed", "scorers", "duration_s")
# Results of one file share these; tasks that do not are published in another.
_SHARED = ("model", "sha", "precision", "weight_type", "chat_template", *(field.name for field in fields(Conditions)))


@dataclass(frozen=True)
class Published:
    """What became of spooled tasks.

    Attributes:
        paths: Files that were written.
        tasks: Tasks that are published now.
        taken: Tasks that somebody else had published before; ours are left out.
    """

    paths: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()


def published_tasks(
    store: Store, model: ModelSpec, conditions: Conditions, snapshot: Snapshot | None = None
) -> dict[str, dict[str, Any]]:
    """Returns the tasks with a published result that will do, each with the `parcontrol` block of its file.

    A result of another version of the task will not do, nor one from fewer rows (see `Conditions.met_by`).
    """
    snapshot = snapshot or store.snapshot()
    found: dict[str, dict[str, Any]] = {}
    for document in _documents(store, snapshot, model.model):
        block = document["parcontrol"]
        if any(block.get(name) != value for name, value in model.identity.items()) or not conditions.met_by(block):
            continue
        versions = document.get("versions", {})
        current = {spec.name for spec in registry() if versions.get(spec.name) == spec.version}
        found.update({task: block for task in document["results"] if task in current})
    return found


def publish(store: Store, spooled: Sequence[Spooled], failed: Mapping[str, str] | None = None) -> Published:
    """Publishes finished tasks of one model, in one commit, unless a result that will do is there already.

    Args:
        store: The results repository.
        spooled: The tasks. One that was evaluated by force is published whatever is there.
        failed: Reasons of tasks that failed, for the record; they go into the file.

    Raises:
        StoreError: The store could not be written; nothing is published.
    """
    if not spooled:
        return Published()
    outcome = Published()

    def propose(snapshot: Snapshot) -> Mapping[str, bytes | None]:
        nonlocal outcome
        fresh = [task for task in spooled if task.block.get("forced") or not _is_published(store, task, snapshot)]
        changes: dict[str, bytes | None] = {}
        for group in _groups(fresh):
            changes |= _files(group, dict(failed or {}), {*snapshot.files, *changes})
        names = tuple(task.task for task in fresh)
        outcome = Published(tuple(changes), names, tuple(task.task for task in spooled if task.task not in names))
        return changes

    update(store, propose, f"Results of {spooled[0].block['model']}: {', '.join(task.task for task in spooled)}")
    return outcome


def _is_published(store: Store, task: Spooled, snapshot: Snapshot) -> bool:
    return task.task in published_tasks(store, task.model, task.conditions, snapshot)


def _documents(store: Store, snapshot: Snapshot, model: str) -> Iterable[dict[str, Any]]:
    """Yields the result files of a model that have our block; others, and broken ones, count for nothing here."""
    read_scores = score_reader(registry())
    paths = {
        path: blob
        for path, blob in snapshot.files.items()
        if path.startswith(f"{model}/") and _RESULT_NAME.fullmatch(path.removeprefix(f"{model}/"))
    }
    for path, content in store.read_many(paths, max_bytes=MAX_BYTES):
        try:
            document = parse(content or b"")
            if document.get("parcontrol") is None:
                continue
            block = said_of_model(document)
            read_model(block)
            read_limited(block)
            read_scores(document)
        except ValueError as error:
            logger.warning("%s is set aside: %s", path, error)
            continue
        yield document


def _groups(tasks: Iterable[Spooled]) -> list[list[Spooled]]:
    groups: dict[str, list[Spooled]] = {}
    for task in tasks:
        key = repr([task.block.get(name) for name in _SHARED])
        groups.setdefault(key, []).append(task)
    return list(groups.values())


def _files(tasks: Sequence[Spooled], failed: dict[str, str], taken: set[str]) -> dict[str, bytes | None]:
    model, moment = tasks[0].block["model"], datetime.now(UTC)
    while f"{model}/results_{_name(moment)}.json" in taken:
        moment += timedelta(microseconds=1)
    content = to_json(merged([task.results for task in tasks], failed), indent=True)
    files: dict[str, bytes | None] = {f"{model}/results_{_name(moment)}.json": content}
    for task in tasks:
        files[f"{model}/samples_{task.task}_{_name(moment)}.jsonl.zst"] = task.samples.read_bytes()
    return files


def merged(results: Sequence[dict[str, Any]], failed: Mapping[str, str]) -> dict[str, Any]:
    """Puts results of single tasks together, as one call of the harness would have given them."""
    together = dict(results[0])
    for key in _BY_TASK:
        together[key] = {task: value for one in results for task, value in one.get(key, {}).items()}
    block = dict(results[0]["parcontrol"])
    block.pop("task", None)
    for key in _BY_TASK_IN_BLOCK:
        block[key] = {task: value for one in results for task, value in one["parcontrol"].get(key, {}).items()}
    block["failed"] |= failed
    seconds = sum(float(one["total_evaluation_time_seconds"]) for one in results)
    return together | {"parcontrol": block, "total_evaluation_time_seconds": str(seconds)}


def summary(spooled: Spooled) -> list[str]:
    """Returns what a finished task says, a line for each column of the table that it has a value for."""
    (task,) = (spec for spec in registry() if spec.name == spooled.task)
    metrics, rows = (spooled.results[part][task.name] for part in ("results", "n-samples"))
    lines = []
    for column in task.columns:
        value, stderr = (metrics.get(f"{column.metric}{part},{column.filter}") for part in ("", "_stderr"))
        if isinstance(value, int | float):
            error = f" ± {stderr * column.scale:.2f}" if isinstance(stderr, int | float) else ""
            share = f"{rows['effective']:,} of {rows['original']:,} rows"
            lines.append(f"{column.label}: {value * column.scale:.2f}{error} ({share})")
    return lines


def _name(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H-%M-%S.%f")
