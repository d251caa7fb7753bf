"""The rows of a view as CSV and JSON, for spreadsheets and scripts."""

from __future__ import annotations

import numpy as np
import orjson
import pandas as pd

from parcontrol.leaderboard.app.board import Board
from parcontrol.leaderboard.app.table.selection import AVERAGES, metric_columns, select_rows
from parcontrol.leaderboard.app.view import View
from parcontrol.leaderboard.table import table_json

_FIELDS = (
    "model revision sha precision weight_type chat_template conditions P params model_type license base_model tokens "
    "seed likes done limited outdated mark mark_reason"
).split()
# A spreadsheet takes a text that begins so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv(board: Board, view: View) -> bytes:
    """Returns the rows of a view, in its order: what is known of the models, both averages, and every column of a
    task, each with its standard error. Percent, except perplexities and correlations; params in 10⁹."""
    rows = select_rows(board, view)
    frame = rows[_FIELDS].copy()
    for name in frame.select_dtypes(include=["object", "string"]):
        frame[name] = [_harmless(text) for text in frame[name]]
    values = {column: values for label in AVERAGES for column, values in _average(rows, label).items()}
    for label in metric_columns():
        values |= {label: rows[label], f"{label} stderr": _stderr(board, rows, label)}
    return pd.concat([frame, pd.DataFrame(values, index=rows.index)], axis=1).to_csv(index=False).encode()


def json(board: Board, view: View) -> bytes:
    """Returns the rows of a view, in its order, with every value's origin, as in table.json of the leaderboard."""
    rows = select_rows(board, view)
    return orjson.dumps(table_json(rows, board.results), option=orjson.OPT_SERIALIZE_NUMPY)


def _average(rows: pd.DataFrame, label: str) -> dict[str, pd.Series]:
    return {label: rows[label], f"{label} stderr": rows[f"{label}_stderr"]}


def _stderr(board: Board, rows: pd.DataFrame, label: str) -> np.ndarray:
    scores = board.results.scores
    known = scores[scores["column"] == label].set_index("row")["stderr"]
    return known.reindex(rows.index).to_numpy()


def _harmless(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
