"""The leaderboard itself: one row per model, commit and way of evaluation, one column per metric.

Revisions are never merged: another sha is another row. A group's average is the mean of its averaged columns and is
there only if all of them are; a row without one says how many it has.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pandas as pd

from parcontrol.leaderboard.queue import Broken as BrokenRequest
from parcontrol.leaderboard.queue import Queue
from parcontrol.leaderboard.records import ModelType, Request
from parcontrol.leaderboard.registry import GROUPS, Column, TaskSpec, registry
from parcontrol.leaderboard.result_file import IDENTITY
from parcontrol.leaderboard.results import Results, read_results
from parcontrol.leaderboard.store import Snapshot, Stores, update

TABLE_PARQUET, TABLE_JSON, SCORES_PARQUET = "table.parquet", "table.json", "scores.parquet"

# What requests alone know of a model.
_FROM_REQUEST = ("tokens", "seed")


def averaged_columns(specs: Sequence[TaskSpec] | None = None) -> dict[str, list[str]]:
    """Returns the columns that each group's average is taken over, for the groups that have one."""
    groups = {
        group: [column.label for spec, column in _columns(specs) if spec.group == group and column.averaged]
        for group in GROUPS
    }
    return {group: labels for group, labels in groups.items() if labels}


def leaderboard_table(
    results: Results, requests: Sequence[Request] = (), specs: Sequence[TaskSpec] | None = None
) -> pd.DataFrame:
    """Returns the table, best Factuality first.

    Columns:
        model, sha, precision, weight_type, chat_template, conditions: What tells rows apart.
        revision, P, base_model, model_type, license, params (10⁹): Of the model; P is missing if it has no streams.
        likes, tokens, seed: Of the request; the last two are what a training run was submitted with.
        Factuality, Faithfulness: Mean of the group's averaged columns, missing unless all of them are there.
        Factuality_done, Faithfulness_done: How many of them there are.
        done: How many columns have a value.
        partial: Whether an average is missing.
        limited: Whether a value was measured on a part of the rows.
        outdated: How many values are of another version of their task than the registry's.
        One column per metric, by its label: the value, in percent unless it is a perplexity; missing if there is none.

    Args:
        results: What the results repository holds.
        requests: The requests, for what only they know of a model.
        specs: The tasks; None takes all of the registry.
    """
    columns = _columns(specs)
    labels = [column.label for _, column in columns]
    scores = results.scores
    row, place = scores["row"].to_numpy(np.int64), pd.Index(labels).get_indexer(scores["column"])
    values = np.full((len(results.models), len(labels)), np.nan)
    values[row, place] = scores["value"]
    groups = averaged_columns(specs)
    table = _with_requests(results.models, requests)
    done = {group: (~np.isnan(values[:, pd.Index(labels).get_indexer(found)])) for group, found in groups.items()}
    for group, found in groups.items():
        mean = values[:, pd.Index(labels).get_indexer(found)].mean(axis=1)
        table[group] = mean  # a missing value makes the mean missing
    for group, present in done.items():
        table[f"{group}_done"] = present.sum(axis=1)
    table["done"] = (~np.isnan(values)).sum(axis=1)
    table["partial"] = table[list(groups)].isna().any(axis=1)
    table["limited"] = np.bincount(row, scores["limited"].to_numpy(bool), len(table)) > 0
    current = np.array([_version(spec) for spec, _ in columns], dtype=object)[place]
    outdated = scores["version"].to_numpy(object) != current
    table["outdated"] = np.bincount(row, outdated, len(table)).astype(np.int64)
    table = pd.concat([table, pd.DataFrame(values, columns=labels)], axis=1)
    order = table.sort_values([*groups, "done"], ascending=False, na_position="last", kind="stable").index
    return table.loc[order]


def table_json(table: pd.DataFrame, results: Results, broken_requests: Sequence[BrokenRequest] = ()) -> dict[str, Any]:
    """Returns table, values with their origin, columns and files that were set aside, ready for JSON."""
    scores = _scores_by_row(results)
    fields = [name for name in table.columns if name not in {column.label for _, column in _columns(None)}]
    about = table[fields].astype(object).where(table[fields].notna(), None).to_dict("records")
    return {
        "columns": [
            {
                "label": column.label,
                "task": spec.name,
                "group": spec.group,
                "higher_is_better": column.higher_is_better,
                "averaged": column.averaged,
                "percent": spec.unit(column) == "%",
                "version": _version(spec),
            }
            for spec, column in _columns(None)
        ],
        "models": [said | {"scores": scores.get(row, {})} for row, said in zip(table.index, about, strict=True)],
        "set_aside": [
            {"repository": repository, "path": file.path, "reason": file.reason}
            for repository, files in (("results", results.broken), ("requests", broken_requests))
            for file in files
        ],
    }


def row_labels(table: pd.DataFrame) -> list[str]:
    """Returns a name for every row: the model's, and as much more as is needed to tell rows of one model apart."""
    details = pd.DataFrame(
        {
            "sha": table["sha"].str.removeprefix("local-").str.slice(0, 7),
            "precision": table["precision"],
            "weight_type": table["weight_type"].where(table["weight_type"] != "Original", ""),
            "chat_template": np.where(table["chat_template"].astype(bool), "chat template", ""),
            "conditions": table["conditions"],
        }
    )
    differ = details.groupby(table["model"]).transform("nunique") > 1
    # A number on other data, or of no model, is never shown as if it were one of the usual ones.
    differ["conditions"] = True
    shown = [
        ", ".join(text for text, needed in zip(texts, flags, strict=True) if needed and text)
        for texts, flags in zip(details.to_numpy(), differ.to_numpy(), strict=True)
    ]
    return [f"{model} ({more})" if more else model for model, more in zip(table["model"], shown, strict=True)]


def write_table(stores: Stores) -> tuple[pd.DataFrame, Results, list[BrokenRequest]]:
    """Reads results and requests and writes the table to the leaderboard repository, unless it is there already.

    Returns:
        The table, the results it was made of, and the files of the requests repository that are no requests.

    Raises:
        StoreError: A repository cannot be read or written.
    """
    made: list[tuple[pd.DataFrame, Results, list[BrokenRequest]]] = []

    def propose(snapshot: Snapshot) -> dict[str, bytes | None]:
        # After a conflict somebody has written a table, perhaps of newer results: so they are read again.
        made.append(read_table(stores))
        files = table_files(*made[-1])
        known = stores.leaderboard.read_many({path: snapshot.files[path] for path in files if path in snapshot.files})
        there = dict(known)
        return {path: content for path, content in files.items() if there.get(path) != content}

    update(stores.leaderboard, propose, "table of the newest results")
    return made[-1]


def read_table(stores: Stores) -> tuple[pd.DataFrame, Results, list[BrokenRequest]]:
    """Reads results and requests and returns table, results, and the files that are no requests.

    Raises:
        StoreError: A repository cannot be read.
    """
    queue = Queue(stores.requests)
    requests = [entry.request for entry in queue.requests()]
    results = read_results(stores.results)
    return leaderboard_table(results, requests), results, queue.broken()


def table_files(table: pd.DataFrame, results: Results, broken_requests: Sequence[BrokenRequest]) -> dict[str, bytes]:
    """Returns the files of the leaderboard repository."""
    document = table_json(table, results, broken_requests)
    return {
        TABLE_PARQUET: _parquet(table),
        SCORES_PARQUET: _parquet(results.scores.drop(columns="row")),
        TABLE_JSON: orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n",
    }


def _columns(specs: Sequence[TaskSpec] | None) -> list[tuple[TaskSpec, Column]]:
    return [(spec, column) for spec in (registry() if specs is None else specs) for column in spec.columns]


def _version(spec: TaskSpec) -> str:
    return f"{spec.version:g}"


def _with_requests(models: pd.DataFrame, requests: Sequence[Request]) -> pd.DataFrame:
    """Adds what requests know to what results say of the models."""
    found = _requests_of(models, requests)
    columns = {
        **{name: models[name].array for name in models},
        **_filled(models, "model_type", [_known_type(request) for request in found]),
        **_filled(models, "license", [request and request.license for request in found]),
        **_filled(models, "base_model", [request and request.base_model for request in found]),
        **_filled(models, "P", [request and request.P for request in found]),
        **_filled(models, "params", [request and request.params for request in found]),
        "likes": pd.array([request.likes if request else None for request in found], dtype="Int64"),
        **{name: pd.array([_extra(request, name) for request in found], dtype="Int64") for name in _FROM_REQUEST},
    }
    return pd.DataFrame(columns, index=models.index, copy=False)


def _requests_of(models: pd.DataFrame, requests: Sequence[Request]) -> list[Request | None]:
    """The request of every model, None where there is none."""
    if not requests:
        return [None] * len(models)
    by_key = {_request_key(request, request.sha): request for request in requests}
    keys = models[list(IDENTITY[:5])].itertuples(index=False, name=None)
    # Requests of the public system have no sha.
    return [by_key.get(key) or by_key.get((key[0], None, *key[2:])) for key in keys]


def _filled(models: pd.DataFrame, name: str, known: list[Any]) -> dict[str, Any]:
    """A column with what requests know, where they know something: it was checked when they were made."""
    if not any(known):
        return {}
    filled = pd.Series([value or None for value in known], index=models.index, dtype=models[name].dtype)
    return {name: filled.fillna(models[name]).array}


def _known_type(request: Request | None) -> str | None:
    return request.model_type.value if request and request.model_type is not ModelType.UNKNOWN else None


def _request_key(request: Request, sha: str | None) -> tuple[Any, ...]:
    return (request.model, sha, request.precision.value, request.weight_type.value, request.chat_template)


def _extra(request: Request | None, field: str) -> int | None:
    """A field that requests may have beside the known ones."""
    value = (request.model_extra or {}).get(field) if request else None
    return value if type(value) is int and 0 <= value < 2**63 else None


def _scores_by_row(results: Results) -> dict[int, dict[str, Any]]:
    fields = ["value", "stderr", "n", "version", "harness_version", "limited", "date", "path"]
    frame = results.scores[fields].astype(object)
    frame["date"] = results.scores["date"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    records = frame.where(frame.notna(), None).to_dict("records")
    found: dict[int, dict[str, Any]] = {}
    for row, label, record in zip(results.scores["row"], results.scores["column"], records, strict=True):
        found.setdefault(int(row), {})[label] = record
    return found


def _parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()
