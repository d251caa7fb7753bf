"""Values of models in columns, and how good each is within its column: what the maps show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from parcontrol.leaderboard.registry import TaskSpec
from parcontrol.leaderboard.table import row_labels


@dataclass(frozen=True)
class Matrix:
    """What is drawn: values of models (rows) in columns, and how good each is within its column.

    Attributes:
        models: A name for every row.
        columns: Labels.
        values: As in the table, NaN where there is none; models × columns.
        goodness: From 0, the worst of the column, to 1, the best; 0.5 where all are equal.
    """

    models: tuple[str, ...]
    columns: tuple[str, ...]
    values: np.ndarray
    goodness: np.ndarray


def matrix(table: pd.DataFrame, specs: Sequence[TaskSpec]) -> Matrix:
    """Takes the columns of tasks out of a table, without models and columns that have no value at all.

    Raises:
        ValueError: There is no value.
    """
    columns = [column for spec in specs for column in spec.columns]
    values = table[[column.label for column in columns]].to_numpy(float)
    has = ~np.isnan(values)
    rows, kept = has.any(axis=1), has.any(axis=0)
    if not rows.any():
        names = ", ".join(spec.name for spec in specs[:5]) + (", …" if len(specs) > 5 else "")
        raise ValueError(f"no model has a result of {names}: evaluate one first, or choose other tasks with --tasks")
    columns = [column for column, keep in zip(columns, kept, strict=True) if keep]
    values = values[rows][:, kept]
    sign = np.array([1 if column.higher_is_better else -1 for column in columns])
    return Matrix(
        models=tuple(label for label, keep in zip(row_labels(table), rows, strict=True) if keep),
        columns=tuple(column.label for column in columns),
        values=values,
        goodness=scaled(values * sign),
    )


def scaled(values: np.ndarray) -> np.ndarray:
    """Values [N, columns], each column of which has one, from 0 to 1 within their column; 0.5 where all are equal."""
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    spread = np.where(high > low, high - low, 1)
    return np.where(high > low, (values - low) / spread, np.where(np.isnan(values), np.nan, 0.5))
