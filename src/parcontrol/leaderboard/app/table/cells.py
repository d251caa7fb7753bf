"""The cells of the big table, made once for a board: a search has only to put rows together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from urllib.parse import quote_plus

import numpy as np
import pandas as pd
from markupsafe import escape

from parcontrol.leaderboard.app.board import Board
from parcontrol.leaderboard.app.markup import harmless
from parcontrol.leaderboard.app.table.selection import AVERAGES, MODEL_COLUMNS, coverage, metric_columns, type_words
from parcontrol.leaderboard.app.view import View
from parcontrol.leaderboard.matrix import scaled
from parcontrol.leaderboard.model_source import NOT_STATED
from parcontrol.leaderboard.records import ModelType

_NONE = '<td class="none"><span aria-hidden="true">–</span><span class="unseen">no result</span></td>'
_SYMBOLS = {kind.value: kind.symbol for kind in ModelType}
_SHADES = 10
# Of values between -1 and 1; the others are percentages or perplexities and show one.
_CORRELATION = "/rho"


class Cells:
    """The cells of a board, by heading: every heading has one string for every row, in the table's order.

    Attributes:
        keys: The key of every row.
        quoted_keys: The same, as they stand in addresses.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._table = board.table
        self.keys: list[str] = board.table["key"].tolist()
        self.quoted_keys = [quote_plus(key) for key in self.keys]
        self._place = pd.Series(np.arange(len(self._table)), index=self._table.index)
        self._made: dict[tuple[str, bool], list[str]] = {}

    def column(self, label: str, errors: bool) -> list[str]:
        """Returns the cells under a heading.

        Args:
            label: The heading.
            errors: Whether standard errors are shown; they are under the pointer in any case.
        """
        key = (label, errors and (label in AVERAGES or label in metric_columns()))
        if key not in self._made:
            self._made[key] = self._make(*key)
        return self._made[key]

    def _make(self, label: str, errors: bool) -> list[str]:
        table = self._table
        if label == "Model":
            return _model_cells(table)
        if label in AVERAGES:
            return self._average_cells(label, errors)
        if label in metric_columns():
            return self._metric_cells(label, errors)
        return [f"<td{kind}>{harmless(str(escape(text)))}</td>" for kind, text in _PLAIN[label](table)]

    def _average_cells(self, label: str, errors: bool) -> list[str]:
        values, stderr = self._table[label].to_numpy(float), self._table[f"{label}_stderr"].to_numpy(float)
        done = self._table[f"{label}_done"].to_numpy()
        notes = [f"mean of {count} tasks" for count in done]
        partial = [
            f'<td class="none" title="{count} tasks have a result">partial</td>' if count else _NONE for count in done
        ]
        cells = _value_cells(values, stderr, notes, _shades(values, True), errors, 1, "average ")
        return [part if np.isnan(value) else cell for cell, part, value in zip(cells, partial, values, strict=True)]

    def _metric_cells(self, label: str, errors: bool) -> list[str]:
        scores = self._board.results.scores
        scores = scores[scores["column"] == label]
        place = self._place.loc[scores["row"]].to_numpy()
        stderr = np.full(len(self._table), np.nan)
        stderr[place] = scores["stderr"]
        notes = [""] * len(self._table)
        for at, n, limited in zip(place, scores["n"].tolist(), scores["limited"], strict=True):
            notes[at] = ("" if pd.isna(n) else f"n = {n:,}") + (", part of the rows" if limited else "")
        values = self._table[label].to_numpy(float)
        decimals = 2 if label.endswith(_CORRELATION) else 1
        return _value_cells(values, stderr, notes, _shades(values, metric_columns()[label]), errors, decimals)


@lru_cache(maxsize=2)
def cells_of(board: Board) -> Cells:
    """Returns the cells of a board; those of the newest and of the last one are kept."""
    return Cells(board)


def _value_cells(
    values: np.ndarray,
    stderr: np.ndarray,
    notes: Sequence[str],
    shades: np.ndarray,
    errors: bool,
    decimals: int,
    kind: str = "",
) -> list[str]:
    cells = []
    for value, error, note, shade in zip(values.tolist(), stderr.tolist(), notes, shades.tolist(), strict=True):
        if value != value:
            cells.append(_NONE)
            continue
        about = f"± {error:.{decimals}f}" if error == error else "standard error unknown"
        shown = f"<small>±{error:.{decimals}f}</small>" if errors and error == error else ""
        title = f"{about}, {note}" if note else about
        cells.append(f'<td class="{kind}s{shade}" title="{title}">{value:.{decimals}f}{shown}</td>')
    return cells


def _shades(values: np.ndarray, higher_is_better: bool) -> np.ndarray:
    """How good values are among those of their column: from 0, the worst, to 9; missing ones get 0."""
    if np.isnan(values).all():
        return np.zeros(len(values), int)
    goodness = scaled(values if higher_is_better else -values)
    return np.nan_to_num(np.minimum(goodness * _SHADES, _SHADES - 1)).astype(int)


def _model_cells(table: pd.DataFrame) -> list[str]:
    return [
        _model_cell(*values)
        for values in zip(
            table["key"], table["name"], table["model_type"], table["mark"], table["mark_reason"], table["limited"],
            table["outdated"], strict=True,
        )
    ]  # fmt: skip


def _model_cell(key: str, name: str, model_type: str, mark: str, reason: str, limited: bool, outdated: int) -> str:
    href = escape(View(tab="model", rows=(key,)).href)
    words = "type unknown" if model_type not in _SYMBOLS else type_words(model_type)
    notes = []
    if mark:
        notes.append((mark, f"{mark}: {reason}" if reason else mark))
    if limited:
        notes.append(("part", "some values were measured on a part of the rows"))
    if outdated:
        notes.append(("old", f"{outdated} values are of another version of their task"))
    tags = "".join(f'<span class="tag {kind}" title="{escape(text)}">{kind}</span>' for kind, text in notes)
    symbol = (
        f'<span class="symbol" title="{words}" role="img" aria-label="{words}">{_SYMBOLS.get(model_type, "?")}</span>'
    )
    return harmless(f'<th scope="row" class="model">{symbol}<a href="{href}">{escape(name)}</a>{tags}</th>')


def size_text(params: float) -> str:
    """Returns a size in 10⁹ parameters as people say it."""
    if not params or params != params:
        return "–"
    return f"{params * 1000:.3g} M" if params < 1 else f"{params:.3g} B"


_NUMBER, _TEXT = ' class="number"', ' class="text"'


def _texts(field: str, missing: str = "–") -> Callable[[pd.DataFrame], list[tuple[str, str]]]:
    return lambda table: [(_TEXT, text or missing) for text in table[field].tolist()]


def _counts(field: str) -> Callable[[pd.DataFrame], list[tuple[str, str]]]:
    return lambda table: [(_NUMBER, "–" if pd.isna(count) else f"{count:,}") for count in table[field].tolist()]


_PLAIN: dict[str, Callable[[pd.DataFrame], list[tuple[str, str]]]] = {
    "P": _counts("P"),
    "Type": lambda table: [(_TEXT, type_words(kind)) for kind in table["model_type"]],
    "Precision": _texts("precision"),
    "Weights": _texts("weight_type"),
    "Size": lambda table: [(_NUMBER, size_text(size)) for size in table["params"].tolist()],
    "License": _texts("license", NOT_STATED),
    "Chat template": lambda table: [(_TEXT, "yes" if used else "no") for used in table["chat_template"]],
    "Likes": _counts("likes"),
    "Training tokens": _counts("tokens"),
    "Seed": _counts("seed"),
    "Base model": _texts("base_model"),
    "Commit": lambda table: [(_TEXT, sha.removeprefix("local-")[:10] or "–") for sha in table["sha"]],
    "Coverage": lambda table: [(_NUMBER, f"{share:.0f} %") for share in coverage(table)],
}
assert set(_PLAIN) == {"P", *MODEL_COLUMNS}
