"""All result files of the results repository as one long table: one row per value.

The newest result of a (model, sha, precision, weight type, chat template, task) counts; a result on a part of the rows
never takes the place of a complete one. A file that cannot be read is listed with its reason and stops nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from parcontrol.leaderboard.records import quoted_text
from parcontrol.leaderboard.registry import TaskSpec, registry
from parcontrol.leaderboard.result_file import (
    FUTURE_SECONDS,
    IDENTITY,
    MAX_BYTES,
    SAID_OF_MODEL,
    SCORE_FIELDS,
    Model,
    Problem,
    Score,
    parse,
    read_date,
    read_harness_version,
    read_limited,
    read_model,
    read_problems,
    said_of_model,
    score_reader,
)
from parcontrol.leaderboard.store import Store

_MOST_OF_REASON = 280  # characters
_RESULT_FILE = re.compile(r"(?:^|/)results_[^/]*\.json$").search

SCORE_COLUMNS = (
    "row model sha revision precision weight_type chat_template conditions P task column value stderr n version "
    "harness_version limited date path"
).split()


class Broken(NamedTuple):
    """A file that could not be read, and why."""

    path: str
    reason: str


class Results(NamedTuple):
    """What the results repository holds.

    scores: One row per value, in the order of `models` and of columns; `SCORE_COLUMNS`. row counts in `models`; value
        and stderr are percent for fractions and as they are for perplexities; date is UTC; P is missing for models
        that are no ParScale models.
    models: One row per (model, sha, precision, weight type, chat template, conditions), with what the newest file says
        of the model; the fields of `Model`.
    problems: One row per task or metric that has no value, with the reason that the newest file gives.
    broken: The files that could not be read.
    """

    scores: pd.DataFrame
    models: pd.DataFrame
    problems: pd.DataFrame
    broken: list[Broken]


def read_results(store: Store, specs: Sequence[TaskSpec] | None = None) -> Results:
    """Reads every `results_*.json` of a results repository.

    Args:
        store: The repository.
        specs: The tasks to read; None takes all of the registry. Other tasks in the files are ignored.

    Raises:
        StoreError: The store itself cannot be read.
    """
    specs = registry() if specs is None else specs
    for attempt in store.conflict_retries():
        with attempt:
            blobs = result_files(store.snapshot().files)
            files = _read_files(store.read_many(blobs, MAX_BYTES), specs)
    return _combine(files, specs)


def result_files(files: Mapping[str, str]) -> dict[str, str]:
    """Returns those files of a snapshot that hold results, sorted."""
    return {path: files[path] for path in sorted(filter(_RESULT_FILE, files))}


class _Files:
    """What the files say: rows of scores and problems point to their file, and files to their model, by number."""

    def __init__(self) -> None:
        self.models: dict[Model, int] = {}
        self.paths: list[str] = []
        self.model: list[int] = []
        self.limited: list[bool] = []
        self.dates: list[float] = []
        self.harness_versions: list[str] = []
        self.scores: list[Score] = []
        self.score_file: list[int] = []
        self.problems: list[Problem] = []
        self.problem_file: list[int] = []
        self.broken: list[Broken] = []


def _read_files(contents: Iterable[tuple[str, bytes | None]], specs: Sequence[TaskSpec]) -> _Files:
    files = _Files()
    read_scores = score_reader(specs)
    model_number = _model_numbers(files.models)
    latest = time.time() + FUTURE_SECONDS
    for path, content in contents:
        try:
            if content is None:
                raise ValueError(f"has more than {MAX_BYTES:,} bytes")
            document = parse(content)
            fields = said_of_model(document)
            date = read_date(document, path, latest)
            limited = read_limited(fields)
            problems = read_problems(fields)
            scores = read_scores(document)
            # Last, so that every model that has a number has a file.
            model = model_number(fields)
        except ValueError as error:
            files.broken.append(Broken(path, quoted_text(str(error), _MOST_OF_REASON)))
            continue
        number = len(files.paths)
        files.paths.append(path)
        files.model.append(model)
        files.limited.append(limited)
        files.dates.append(date)
        files.harness_versions.append(read_harness_version(document))
        files.scores += scores
        files.score_file += [number] * len(scores)
        files.problems += problems
        files.problem_file += [number] * len(problems)
    files.broken.sort()
    return files


def _model_numbers(models: dict[Model, int]) -> Callable[[Mapping[str, Any]], int]:
    """Returns a function that numbers models; it checks each only once, as a model has many files."""
    known: dict[tuple[Any, ...], int] = {}

    def number(fields: Mapping[str, Any]) -> int:
        values = tuple(map(fields.get, SAID_OF_MODEL))
        said = (*values, *map(type, values))  # P = True is no P = 1, though both are equal
        try:
            return known[said]
        except KeyError:
            known[said] = models.setdefault(read_model(fields), len(models))
            return known[said]
        except TypeError:  # a list or an object, which is refused
            return models.setdefault(read_model(fields), len(models))

    return number


def _combine(files: _Files, specs: Sequence[TaskSpec]) -> Results:
    models = list(files.models)
    about = _file_table(files, models)
    identities = _numbers([model[: len(IDENTITY)] for model in models])[np.array(files.model, dtype=np.int64)]
    dates = np.array(files.dates)
    complete = ~np.array(files.limited, dtype=bool)
    scores = _score_arrays(files.scores)
    file = np.array(files.score_file, dtype=np.int64)
    column_task = np.repeat(np.arange(len(specs)), [len(spec.columns) for spec in specs])
    task = column_task[scores["column"]]
    newest = _newest(identities[file], task, complete[file], dates[file], file, scores["alias"])
    order = newest[np.lexsort((scores["column"][newest], identities[file[newest]]))]
    return Results(
        scores=_score_frame(about.append_column("row", pa.array(identities)), scores, file, order, specs),
        models=_model_frame(about, identities, dates),
        problems=_problem_frame(about, files),
        broken=files.broken,
    )


def _numbers(keys: list[tuple[Any, ...]]) -> np.ndarray:
    """Numbers equal keys alike, in the order in which they sort."""
    number = {key: index for index, key in enumerate(sorted(set(keys)))}
    return np.array([number[key] for key in keys], dtype=np.int64)


def _newest(
    identity: np.ndarray, task: np.ndarray, complete: np.ndarray, date: np.ndarray, file: np.ndarray, alias: np.ndarray
) -> np.ndarray:
    """The rows of the result that counts, for every identity and task: all its columns are from one file."""
    if not len(file):
        return np.empty(0, dtype=np.int64)
    order = np.lexsort((alias, file, date, complete, task, identity))
    last = np.append((np.diff(identity[order]) != 0) | (np.diff(task[order]) != 0), True)
    group = np.cumsum(np.append(False, last[:-1]))
    winner = order[last][group]
    return order[(file[order] == file[winner]) & (alias[order] == alias[winner])]


def _score_arrays(scores: list[Score]) -> dict[str, np.ndarray]:
    columns = list(zip(*scores, strict=True)) or [()] * len(SCORE_FIELDS)
    types: dict[str, Any] = {"value": float, "stderr": float, "n": float, "version": object}
    return {
        name: np.array(values, dtype=types.get(name, np.int64))
        for name, values in zip(SCORE_FIELDS, columns, strict=True)
    }


def _file_table(files: _Files, models: list[Model]) -> pa.Table:
    """One row per file."""
    types = dict.fromkeys(Model._fields, pa.string()) | {
        "chat_template": pa.bool_(), "P": pa.int64(), "params": pa.float64()
    }  # fmt: skip
    columns = list(zip(*models, strict=True)) or [()] * len(Model._fields)
    table = pa.table({name: pa.array(said, types[name]) for name, said in zip(Model._fields, columns, strict=True)})
    table = table.take(pa.array(files.model, pa.int64()))
    microseconds = pa.array((np.array(files.dates) * 1e6).astype(np.int64))
    for name, values in {
        "limited": pa.array(files.limited, pa.bool_()),
        "date": microseconds.cast(pa.timestamp("us", "UTC")),
        "harness_version": pa.array(files.harness_versions, pa.string()),
        "path": pa.array(files.paths, pa.string()),
    }.items():
        table = table.append_column(name, values)
    return table


def _score_frame(
    about: pa.Table, scores: dict[str, np.ndarray], file: np.ndarray, order: np.ndarray, specs: Sequence[TaskSpec]
) -> pd.DataFrame:
    columns = [(spec.name, column.label) for spec in specs for column in spec.columns]
    tasks, labels = (pa.array(names, pa.string()) for names in zip(*columns, strict=True))
    column = pa.array(scores["column"][order])
    n = scores["n"][order]
    rows = about.take(pa.array(file[order]))
    rows = rows.append_column("task", tasks.take(column)).append_column("column", labels.take(column))
    for name in ("value", "stderr"):
        rows = rows.append_column(name, pa.array(scores[name][order], pa.float64()))
    rows = rows.append_column("n", pa.array(n, pa.float64(), from_pandas=True).cast(pa.int64()))
    rows = rows.append_column("version", pa.array(scores["version"][order], pa.string()))
    return _to_frame(rows.select(SCORE_COLUMNS))


def _model_frame(about: pa.Table, identities: np.ndarray, dates: np.ndarray) -> pd.DataFrame:
    newest = np.lexsort((dates, identities))
    last = newest[np.append(np.diff(identities[newest]) != 0, len(newest) > 0)] if len(newest) else newest
    return _to_frame(about.take(pa.array(last, pa.int64())).select(Model._fields))


def _problem_frame(about: pa.Table, files: _Files) -> pd.DataFrame:
    columns = list(zip(*files.problems, strict=True)) or [()] * 3
    rows = about.take(pa.array(files.problem_file, pa.int64()))
    for name, values in zip(Problem._fields, columns, strict=True):
        rows = rows.append_column(name, pa.array(values, pa.string()))
    frame = _to_frame(rows.select([*IDENTITY, *Problem._fields, "date", "path"])).sort_values("date", kind="stable")
    return frame.drop_duplicates([*IDENTITY, "task", "metric"], keep="last", ignore_index=True)


def _to_frame(table: pa.Table) -> pd.DataFrame:
    """A frame whose integers may be missing."""
    integers = {pa.int64(): pd.Int64Dtype()}
    return table.to_pandas(types_mapper=integers.get)
