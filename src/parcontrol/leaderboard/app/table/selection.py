"""Which models a view shows, in which order: search, filters, sorting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import pandas as pd

from parcontrol.leaderboard.app.board import Board
from parcontrol.leaderboard.app.view import View
from parcontrol.leaderboard.model_source import NOT_STATED
from parcontrol.leaderboard.records import ModelType
from parcontrol.leaderboard.registry import registry
from parcontrol.leaderboard.table import averaged_columns

AVERAGES = ("Faithfulness", "Factuality")
USUAL_SORT = "Factuality"

# Upper bounds in 10⁹ parameters.
SIZES = {"under 0.5 B": 0.5, "0.5–2 B": 2, "2–8 B": 8, "8–30 B": 30, "over 30 B": np.inf}
UNKNOWN_SIZE = "unknown size"
NO_STREAMS = "none"  # of models that are no ParScale models

# Of the model itself: heading, what a row has, whether the highest is shown first.
MODEL_COLUMNS = {
    "Type": "model_type",
    "Precision": "precision",
    "Weights": "weight_type",
    "Size": "params",
    "License": "license",
    "Chat template": "chat_template",
    "Likes": "likes",
    "Training tokens": "tokens",
    "Seed": "seed",
    "Base model": "base_model",
    "Commit": "sha",
    "Coverage": "done",
}
_FIXED = {"Model": "name", "P": "P"}
_TEXT = ("name", "model_type", "precision", "weight_type", "license", "base_model", "sha")


@cache
def metric_columns() -> Mapping[str, bool]:
    """Returns the labels of all columns of tasks, and whether higher is better."""
    return {column.label: column.higher_is_better for spec in registry() for column in spec.columns}


def sort_field(label: str) -> str | None:
    """Returns the field of the table that a heading sorts by, None if there is no such heading."""
    fields = _FIXED | MODEL_COLUMNS
    return label if label in AVERAGES or label in metric_columns() else fields.get(label)


def is_ascending(label: str) -> bool:
    """Whether the first to be shown is the smallest: the best of metrics, the first of the alphabet, the largest of
    sizes and counts."""
    if label in metric_columns():
        return not metric_columns()[label]
    return sort_field(label) in _TEXT


def size_class(params: pd.Series) -> pd.Series:
    """Returns the class of every size in 10⁹ parameters; zero and missing are unknown."""
    return pd.Series(np.array([*SIZES, UNKNOWN_SIZE])[_size_classes(params)], index=params.index)


def _size_classes(params: pd.Series) -> np.ndarray:
    """The number of every size's class; that of unknown ones is the last."""
    sizes = params.to_numpy(float, na_value=np.nan)
    lower_bounds = list(SIZES.values())[:-1]
    return np.where(sizes > 0, np.searchsorted(lower_bounds, sizes, side="right"), len(SIZES))


def stream_class(streams: pd.Series) -> pd.Series:
    """Returns the number of streams of every model as text."""
    return streams.astype("string").fillna(NO_STREAMS)


def type_words(model_type: str) -> str:
    """Returns a model type without its symbol, as it is filtered by."""
    return _WORDS.get(model_type, ModelType.UNKNOWN.value)


_WORDS = {kind.value: kind.words for kind in ModelType}


def coverage(table: pd.DataFrame) -> pd.Series:
    """Returns the share of the averaged columns that every model has, in percent."""
    groups = averaged_columns()
    done = sum(table[f"{group}_done"] for group in groups)
    return 100 * done / sum(map(len, groups.values()))


def select_rows(board: Board, view: View) -> pd.DataFrame:
    """Returns the rows of the board's table that a view shows, in its order."""
    return board.table.iloc[select_places(board.table, view)]


def select_places(table: pd.DataFrame, view: View) -> np.ndarray:
    """Returns where the rows that a view shows are in the table, in the view's order.

    A search that finds nothing shows nothing. Rows without the value that is sorted by come last, equal ones in the
    table's order.
    """
    places = np.flatnonzero(_fitting(table, view))
    label, ascending = order(view)
    if sort_field(label) in _TEXT:
        keys = _texts(table.iloc[places], label)
        known = [number for number, key in enumerate(keys) if key]
        unknown = [number for number, key in enumerate(keys) if not key]
        return places[sorted(known, key=keys.__getitem__, reverse=not ascending) + unknown]
    numbers = _numbers(table, label)[places]
    return places[np.argsort(numbers if ascending else -numbers, kind="stable")]  # NaN is last in both


def _texts(table: pd.DataFrame, label: str) -> list[str]:
    """What stands under a heading, in lower case; empty where it is a dash, or that nothing is stated."""
    texts = table[sort_field(label)].tolist()
    if label == "Type":
        texts = [words if (words := type_words(text)) != ModelType.UNKNOWN.value else "" for text in texts]
    elif label == "License":
        texts = ["" if text == NOT_STATED else text for text in texts]
    elif label == "Commit":
        texts = [text.removeprefix("local-") for text in texts]
    return [text.casefold() for text in texts]


def _numbers(table: pd.DataFrame, label: str) -> np.ndarray:
    """The numbers under a heading, NaN where there is a dash."""
    if label == "Coverage":
        return coverage(table).to_numpy(float)
    numbers = table[sort_field(label)].to_numpy(float, na_value=np.nan)
    return np.where(numbers > 0, numbers, np.nan) if label == "Size" else numbers


def order(view: View) -> tuple[str, bool]:
    """Returns the heading that a view is sorted by, and whether the smallest comes first."""
    label = view.sort if sort_field(view.sort) else USUAL_SORT
    return label, is_ascending(label) if view.ascending is None else view.ascending


def _fitting(table: pd.DataFrame, view: View) -> np.ndarray:
    """Which rows fit search and filters."""
    fitting = np.ones(len(table), dtype=bool)
    words = [word.strip() for word in view.query.split(";") if word.strip()]
    if words:
        fitting &= np.logical_or.reduce(
            [table["name"].str.contains(word, case=False, regex=False).to_numpy(bool) for word in words]
        )
    for chosen, fits in (
        (view.types, _is_type),
        (view.precisions, _is_precision),
        (view.sizes, _is_size),
        (view.streams, _has_streams),
        (view.licenses, _has_license),
    ):
        if chosen:
            fitting &= fits(table, chosen)
    if view.coverage:
        fitting &= (coverage(table) >= view.coverage).to_numpy(bool)
    if view.chat_template != "any":
        fitting &= table["chat_template"].to_numpy(bool) == (view.chat_template == "yes")
    return fitting


def _is_type(table: pd.DataFrame, words: Sequence[str]) -> np.ndarray:
    types = [kind.value for kind in ModelType if kind.words in words]
    return table["model_type"].isin(types).to_numpy(bool)


def _is_precision(table: pd.DataFrame, precisions: Sequence[str]) -> np.ndarray:
    return table["precision"].isin(precisions).to_numpy(bool)


def _is_size(table: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    classes = [*SIZES, UNKNOWN_SIZE]
    return np.isin(_size_classes(table["params"]), [classes.index(name) for name in names if name in classes])


def _has_streams(table: pd.DataFrame, counts: Sequence[str]) -> np.ndarray:
    numbers = [int(count) for count in counts if count.isascii() and count.isdigit()]
    fitting = table["P"].isin(numbers).to_numpy(bool)
    return fitting | table["P"].isna().to_numpy(bool) if NO_STREAMS in counts else fitting


def _has_license(table: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    wanted = [*names, ""] if NOT_STATED in names else names
    return table["license"].isin(wanted).to_numpy(bool)


def ranks(table: pd.DataFrame, places: np.ndarray, view: View) -> list[int | None]:
    """Returns the rank of the rows at some places by the value that is sorted by: 1 for the best of them.

    Equal values share a rank. A row without the value has none, nor has a flagged or withdrawn model, and nobody has
    one where the order is not one of better and worse.
    """
    label, _ = order(view)
    if label not in AVERAGES and label not in metric_columns():
        return [None] * len(places)
    values = np.where(table["mark"].to_numpy() == "", table[label].to_numpy(float), np.nan)[places]
    badness = values if is_ascending(label) else -values
    better = np.searchsorted(np.sort(badness), badness)
    return [None if missing else rank for missing, rank in zip(np.isnan(values), (better + 1).tolist(), strict=True)]


def choices(table: pd.DataFrame) -> dict[str, list[str]]:
    """Returns what can be filtered by, for every filter of a view: the values that the board has."""
    return {
        "types": [kind.words for kind in ModelType if kind.value in set(table["model_type"])],
        "precisions": sorted(set(table["precision"])),
        "sizes": [name for name in [*SIZES, UNKNOWN_SIZE] if name in set(size_class(table["params"]))],
        "streams": sorted(set(stream_class(table["P"])), key=lambda text: (text != NO_STREAMS, len(text), text)),
        "licenses": sorted(set(table["license"].replace("", NOT_STATED))),
    }
