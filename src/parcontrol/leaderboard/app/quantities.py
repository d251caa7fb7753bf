"""What can be plotted: the averages and the columns of tasks, and their values for models."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd

from parcontrol.leaderboard.app.board import Board
from parcontrol.leaderboard.app.measures import Measure, averages, measures
from parcontrol.leaderboard.table import averaged_columns


@cache
def quantities() -> dict[str, Measure]:
    """Returns all that can be plotted by label: the averages, then the columns."""
    return {group: _average(group) for group in averages()} | measures()


def _average(group: str) -> Measure:
    return Measure(
        label=group,
        task="",
        metric="",
        filter="",
        group=group,  # type: ignore[arg-type]  # averages are named after their groups
        unit="%",
        higher_is_better=True,
        averaged=False,
        scale=1,
        version=",".join(measures()[label].version for label in averaged_columns()[group]),
    )


def parts_of(label: str) -> list[str]:
    """Returns the columns that a quantity is made of: those of an average, else the column itself."""
    return averaged_columns().get(label, [label])


def values_of(board: Board, rows: pd.DataFrame, label: str) -> pd.DataFrame:
    """Returns value and stderr of a quantity for rows of the board's table, NaN where there is none."""
    if label in averaged_columns():
        stderr = rows[f"{label}_stderr"]
    else:
        scores = board.results.scores
        scores = scores[scores["column"] == label]
        stderr = pd.Series(scores["stderr"].to_numpy(float), index=scores["row"].to_numpy(np.int64)).reindex(rows.index)
    return pd.DataFrame({"value": rows[label].astype(float), "stderr": stderr.astype(float)}, index=rows.index)


def versions_of(board: Board, rows: pd.DataFrame, label: str) -> pd.Series:
    """Returns of which version of its tasks a quantity is, for rows of the board's table; text to compare."""
    parts = parts_of(label)
    scores = board.results.scores
    scores = scores[scores["column"].isin(parts) & scores["row"].isin(rows.index)]
    versions = scores.pivot(index="row", columns="column", values="version").reindex(index=rows.index, columns=parts)
    versions = versions.astype(object).where(versions.notna(), "")  # without any value the columns are floats
    return versions.agg(",".join, axis=1) if len(rows) else pd.Series("", index=rows.index)
