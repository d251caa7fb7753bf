"""What the page says of one model: who it is, what it scored, how that was measured, what it answered."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from parcontrol.leaderboard.app.board import Board
from parcontrol.leaderboard.app.markup import hub_link, render
from parcontrol.leaderboard.app.measures import (
    GROUPS,
    MISSING,
    Measure,
    Rank,
    Whisker,
    averages,
    measures,
    number,
    rank,
    whisker,
)
from parcontrol.leaderboard.app.model.samples import (
    MAX_PROMPT,
    WAIT_SECONDS,
    Origin,
    Sample,
    SampleReader,
    SamplesError,
    TaskSamples,
    samples_path,
)
from parcontrol.leaderboard.app.table.cells import size_text
from parcontrol.leaderboard.app.view import View
from parcontrol.leaderboard.records import ModelType
from parcontrol.leaderboard.registry import TaskSpec, registry
from parcontrol.leaderboard.result_file import IDENTITY, UNKNOWN
from parcontrol.leaderboard.store import Snapshot
from parcontrol.leaderboard.table import averaged_columns

PROMPT_TAIL = 500  # characters of a prompt that are seen at once
_PARAGRAPH = 20  # characters; shorter ones say nothing alone
SUGGESTED = 5
MAX_RESULT_FILES = 12  # that are looked into
_LOCAL = "local/"


def model_html(board: Board, view: View, reader: SampleReader) -> str:
    """Returns what is shown of the model that a view names."""
    key = view.rows[0] if view.rows else ""
    row = board.row(key) if key else None
    if row is None:
        return render("model_none", key=key, suggested=_suggested(board), empty=not len(board.table))
    until = time.monotonic() + WAIT_SECONDS
    try:
        snapshot, trouble = reader.snapshot(board.revisions[1]), ""
    except SamplesError as error:
        snapshot, trouble = None, str(error)
    scores = board.scores(row)
    return render(
        "model",
        row=row,
        hub=hub_link(row["model"], row["sha"]),
        type=type_of(row["model_type"]),
        facts=identity(row),
        notes=notes(row),
        averages=average_facts(board, row),
        groups=task_rows(board, row),
        samples=_samples_facts(view, scores, reader, snapshot, trouble, until),
        recipes=None if snapshot is None else recipes(row, scores, reader, snapshot, until),
        trouble=trouble,
        history=history(board, row),
        compare=View(tab="compare", rows=(key,)).href,
    )


def _suggested(board: Board) -> list[tuple[str, str]]:
    return [(name, View(tab="model", rows=(key,)).href) for name, key in _names(board)[:SUGGESTED]]


def _names(board: Board) -> list[tuple[str, str]]:
    return list(zip(board.table["name"], board.table["key"], strict=True))


# --- who it is ---


def type_of(text: str) -> tuple[str, str]:
    """Returns symbol and words of a model type as a table has it."""
    found = next((kind for kind in ModelType if kind.value == text), ModelType.UNKNOWN)
    return (found.symbol, "type not stated" if found is ModelType.UNKNOWN else found.words)


def identity(row: pd.Series) -> list[tuple[str, str | Markup, Markup | None]]:
    """Returns what is known of a model as (name, text, address of a page on the Hub)."""
    local = row["sha"].startswith("local-")
    facts: list[tuple[str, Any, Markup | None]] = [
        ("Files (SHA-256)" if local else "Commit", row["sha"].removeprefix("local-") or "not recorded", None),
        ("Revision", row["revision"], None),
        ("Precision", "not recorded" if row["precision"] == UNKNOWN else row["precision"], None),
        ("Weights", row["weight_type"], None),
        ("Streams", "none (not a ParScale model)" if pd.isna(row["P"]) else f"P = {row['P']}", None),
        ("Size", _size(row["params"]), None),
        ("Base model", row["base_model"], hub_link(row["base_model"]) if row["base_model"] else None),
        ("Chat template", "used" if row["chat_template"] else "not used", None),
        ("Licence", row["license"] or "not stated", None),
        ("Training tokens", "" if pd.isna(row["tokens"]) else f"{row['tokens']:,}", None),
        ("Training seed", "" if pd.isna(row["seed"]) else str(row["seed"]), None),
    ]
    return [(name, text, link) for name, text, link in facts if text]


def _size(params: float) -> str:
    return "not stated" if pd.isna(params) or not params else f"{size_text(float(params))} parameters"


def notes(row: pd.Series) -> list[tuple[str, str]]:
    """Returns what one has to know before one uses the numbers, as (kind, sentence)."""
    found = []
    if row["mark"]:
        reason = f": {row['mark_reason']}" if row["mark_reason"] else "; no reason is given"
        found.append(("bad", f"This model is {row['mark']}{reason}"))
    if row["conditions"]:
        found.append(
            ("warn", f"Not measured as usual: {row['conditions']}. Its values compare only with others of that kind.")
        )
    if row["limited"]:
        found.append(("warn", "Values with “part” were measured on the first rows of their task only."))
    if row["outdated"]:
        words = "1 value is" if row["outdated"] == 1 else f"{row['outdated']} values are"
        found.append(
            ("warn", f"{words} of another version of the task than the leaderboard's, and not comparable with it.")
        )
    return found


# --- what it scored ---


@dataclass(frozen=True)
class Average:
    """An average of a group: its text, how many of its tasks there are, which others it lacks, its place."""

    group: str
    value: str
    stderr: str
    done: int
    of: int
    missing: tuple[str, ...]
    rank: Rank | None


def average_facts(board: Board, row: pd.Series) -> list[Average]:
    """Returns the averages of a row; ranks are among complete rows that were measured alike, without marked ones."""
    table = board.table
    alike = table[(table["conditions"] == row["conditions"]) & ~table["limited"] & (table["mark"] == "")]
    found = []
    for group in averages():
        value, labels = float(row[group]), averaged_columns()[group]
        has_place = not math.isnan(value) and not row["limited"] and not row["mark"]
        found.append(
            Average(
                group,
                MISSING if math.isnan(value) else f"{number(value)} %",
                number(float(row[f"{group}_stderr"])) if not math.isnan(value) else MISSING,
                int(row[f"{group}_done"]),
                len(labels),
                tuple(label for label in labels if math.isnan(row[label])),
                rank(alike[group].to_numpy(float), value, True) if has_place else None,
            )
        )
    return found


@dataclass(frozen=True)
class TaskRow:
    """One line of the table of tasks; `reason` is given where there is no value."""

    label: str
    direction: str
    reason: str = ""
    value: str = ""
    stderr: str = ""
    n: str = ""
    whisker: Whisker | None = None
    rank: Rank | None = None
    date: str = ""
    version: str = ""
    limited: bool = False
    outdated: bool = False


NO_RESULT = "no result"


def task_rows(board: Board, row: pd.Series) -> dict[str, list[TaskRow]]:
    """Returns the lines of the table of tasks by group: all columns, with a value or the reason why there is none.

    Columns of which only that is known, that there is no result, share the last line of their group.
    """
    scores, reasons = board.scores(row), _reasons(board, row)
    alike = _alike(board, row, scores)
    groups: dict[str, list[TaskRow]] = {group: [] for group in GROUPS}
    bare: dict[str, list[str]] = {group: [] for group in GROUPS}
    for label, measure in measures().items():
        if label in scores.index:
            line = _task_row(measure, scores.loc[label], alike.get(label), board)
        else:
            reason = reasons.get((measure.task, measure.metric)) or reasons.get((measure.task, ""))
            if not reason:
                bare[measure.group].append(label)
                continue
            line = TaskRow(label, measure.direction, reason)
        groups[measure.group].append(line)
    for group, labels in bare.items():
        if labels:
            groups[group].append(TaskRow(NO_RESULT.capitalize(), "", ", ".join(labels)))
    return groups


def _task_row(measure: Measure, score: pd.Series, others: np.ndarray | None, board: Board) -> TaskRow:
    value, stderr = float(score["value"]), float(score["stderr"])
    return TaskRow(
        measure.label,
        measure.direction,
        value=measure.text(value),
        stderr=measure.number(stderr),
        n=MISSING if pd.isna(score["n"]) else f"{score['n']:,}",
        whisker=whisker(measure, value, stderr, board),
        rank=None if others is None or score["limited"] else rank(others, value, measure.higher_is_better),
        date=f"{score['date']:%Y-%m-%d}",
        version=score["version"] or MISSING,
        limited=bool(score["limited"]),
        outdated=score["version"] != measure.version,
    )


def _alike(board: Board, row: pd.Series, own: pd.DataFrame) -> dict[str, np.ndarray]:
    """Values that a row's can be ranked with, by column: measured on all rows, alike, on the same version, of models
    that are neither flagged nor withdrawn; none for a row that is."""
    if row["mark"]:
        return {}
    scores = board.results.scores
    unmarked = board.table.index[board.table["mark"] == ""]
    scores = scores[(scores["conditions"] == row["conditions"]) & ~scores["limited"].astype(bool)]
    scores = scores[scores["row"].isin(unmarked)]
    version = scores["column"].map(own["version"].to_dict())
    scores = scores[(scores["version"] == version).to_numpy(bool, na_value=False)]
    return {label: found.to_numpy(float) for label, found in scores.groupby("column")["value"]}


def _reasons(board: Board, row: pd.Series) -> dict[tuple[str, str], str]:
    """Why tasks and metrics of a row have no value, as far as its results say so."""
    problems = board.results.problems
    for field in IDENTITY:
        problems = problems[problems[field] == row[field]]
    return {(task, metric): reason for task, metric, reason in problems[["task", "metric", "reason"]].to_numpy()}


# --- what it answered ---


def _samples_facts(
    view: View,
    scores: pd.DataFrame,
    reader: SampleReader,
    snapshot: Snapshot | None,
    trouble: str,
    until: float,
) -> dict[str, Any]:
    """The tasks whose rows are stored, the one that is shown, and its rows or why there are none."""
    specs = {spec.name: spec for spec in registry()}
    paths = dict(zip(scores["task"], scores["path"], strict=True))
    stored = [name for name in specs if name in paths and _is_stored(paths[name], specs[name], snapshot)]
    task = view.task or next(iter(stored), "")
    facts: dict[str, Any] = {
        "task": task,
        "tasks": [(name, view.changed(task=name).href, name == task) for name in stored],
        "trouble": trouble,
        "cards": [],
    }
    if trouble or not task:
        return facts
    assert snapshot is not None
    if task not in specs:
        return facts | {"trouble": f"There is no task “{task[:100]}”: choose one of those above."}
    if task not in paths:
        return facts | {"trouble": f"The model has no result of {task}: choose another task."}
    try:
        found = reader.samples(paths[task], specs[task], snapshot, until - time.monotonic())
    except SamplesError as error:
        return facts | {"trouble": str(error)}
    return facts | sample_cards(found, specs[task])


def _is_stored(path: str, spec: TaskSpec, snapshot: Snapshot | None) -> bool:
    return snapshot is not None and samples_path(path, spec.harness_task) in snapshot.files


def sample_cards(found: TaskSamples, spec: TaskSpec) -> dict[str, Any]:
    """Returns how rows are shown: the right and the wrong ones, or, of a score by degrees, the highest and lowest."""
    measure = next((one for one in measures().values() if (one.task, one.metric) == (spec.name, found.metric)), None)
    if measure is None:
        return {"trouble": f"{spec.name} gives no row a score of its own, so that none is right or wrong."}
    if found.binary:
        titles = ("Right", "Wrong")
    else:
        titles = ("Highest scores", "Lowest scores")
        if not measure.higher_is_better:
            titles = (titles[1], titles[0])
    return {
        "count": found.count,
        "measure": measure.label,
        "binary": found.binary,
        "cards": [
            (title, [_card(sample, measure) for sample in rows])
            for title, rows in zip(titles, (found.best, found.worst), strict=True)
        ],
        "longest": MAX_PROMPT,
    }


def _card(sample: Sample, measure: Measure) -> dict[str, Any]:
    tail = _tail(sample.prompt)
    return {
        "sample": sample,
        "tail": tail,
        "whole": len(tail) == len(sample.prompt) and not sample.prompt_left_out,
        "length": len(sample.prompt) + sample.prompt_left_out,
        "score": measure.text(sample.value * measure.scale),
    }


def _tail(prompt: str) -> str:
    """What of a prompt is seen at once: its last paragraph, without the examples before it, and not too much."""
    last = prompt.rpartition("\n\n")[2]
    return (last if len(last) >= _PARAGRAPH else prompt)[-PROMPT_TAIL:]


# --- how it was measured ---


@dataclass(frozen=True)
class Recipe:
    """How results can be had again.

    Attributes:
        command: For a shell.
        origin: What the results say of their making; that of the newest file.
        tasks: The tasks, with their versions.
        notes: What the command does not say.
    """

    command: str
    origin: Origin
    tasks: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def recipes(
    row: pd.Series, scores: pd.DataFrame, reader: SampleReader, snapshot: Snapshot, until: float
) -> tuple[list[Recipe], list[str]]:
    """Returns how the values of a row were made, one recipe for all files that were made alike, and what went wrong."""
    by_path = (
        scores.drop_duplicates("task").sort_values("date", ascending=False, kind="stable").groupby("path", sort=False)
    )
    made: dict[Origin, dict[str, str]] = {}
    troubles = []
    for count, (path, found) in enumerate(by_path):
        if count == MAX_RESULT_FILES:
            troubles.append(f"Older results, in {by_path.ngroups - count} more files, are not looked into here.")
            break
        try:
            origin = reader.origin(path, snapshot, until - time.monotonic())
        except SamplesError as error:
            troubles.append(str(error))
            continue
        same = replace(origin, tasks=(), versions=())
        made.setdefault(same, {}).update(zip(found["task"], found["version"], strict=True))
    order = [spec.name for spec in registry()]
    return [
        Recipe(
            command(row, origin, sorted(versions, key=order.index)),
            origin,
            tuple((task, versions[task] or MISSING) for task in sorted(versions, key=order.index)),
            tuple(_recipe_notes(row, origin)),
        )
        for origin, versions in made.items()
    ], troubles


def command(row: Mapping[str, Any] | pd.Series, origin: Origin, tasks: Sequence[str]) -> str:
    """Returns the command that evaluates a model again, quoted for a POSIX shell."""
    local = row["model"].startswith(_LOCAL)
    words = ["parcontrol", "leaderboard", "worker"]
    words += ["--model", f"./{row['model'].removeprefix(_LOCAL)}" if local else row["model"]]
    if origin.backend != "hf":
        words += ["--backend", origin.backend]
    if origin.backend == "openai":
        words += ["--base-url", "https://HOST/v1/completions"]
    if origin.backend == "hf":
        words += [] if local or not row["sha"] else ["--revision", row["sha"]]
        words += [] if row["precision"] == UNKNOWN else ["--precision", row["precision"]]
        if row["weight_type"] != "Original":
            words += ["--weight-type", row["weight_type"], "--base-model", row["base_model"] or "BASE_MODEL"]
    words += ["--chat-template"] if row["chat_template"] else []
    everything = len(tasks) == len(registry())
    words += ["--tasks", *(["demo"] if origin.sample_set else ["all"] if everything else tasks)]
    words += [] if origin.limit is None else ["--limit", str(origin.limit)]
    words += [] if origin.seed is None else ["--seed", str(origin.seed)]
    words += ["--instruction-file", "INSTRUCTION.txt"] if origin.instruction_sha256 else []
    return shlex.join(words)


def _recipe_notes(row: pd.Series, origin: Origin) -> list[str]:
    found = []
    if row["model"].startswith(_LOCAL):
        sha = row["sha"].removeprefix("local-")
        found.append(f"--model is the directory that holds the files with the hash {sha[:12]}….")
    if not origin.ours:
        found.append(
            "The result comes from another system, which recorded neither seed nor packages: values may differ."
        )
    if origin.sample_set:
        found.append("“demo” evaluates all tasks of the sample set that comes with the package.")
    if origin.backend == "openai":
        found.append("The endpoint's address is not recorded: put it in place of HOST.")
    if origin.instruction_sha256:
        found.append(
            f"The judge was given another instruction, a text with the SHA-256 {origin.instruction_sha256[:12]}…."
        )
    return found


def history(board: Board, row: pd.Series) -> list[dict[str, Any]]:
    """Returns all rows of the same model, the newest first: other commits, precisions and ways to ask."""
    rows = board.table[board.table["model"] == row["model"]]
    scores = board.results.scores
    dates = scores[scores["row"].isin(rows.index)].groupby("row")["date"].max()
    rows = rows.assign(date=dates.reindex(rows.index)).sort_values("date", ascending=False, kind="stable")
    return [
        {
            "here": one["key"] == row["key"],
            "href": View(tab="model", rows=(one["key"],)).href,
            "sha": one["sha"].removeprefix("local-")[:10] or "not recorded",
            "ways": ", ".join(_ways(one)),
            "date": MISSING if pd.isna(one["date"]) else f"{one['date']:%Y-%m-%d}",
            "averages": [
                (
                    number(float(one[group])),
                    number(float(one[f"{group}_stderr"])),
                    int(one[f"{group}_done"]),
                    len(labels),
                )
                for group, labels in ((group, averaged_columns()[group]) for group in averages())
            ],
        }
        for _, one in rows.iterrows()
    ]


def _ways(row: pd.Series) -> list[str]:
    ways = [
        row["revision"],
        row["precision"],
        "" if row["weight_type"] == "Original" else row["weight_type"],
        "chat template" if row["chat_template"] else "",
        row["conditions"],
        "part of the rows" if row["limited"] else "",
    ]
    return [way for way in ways if way]
