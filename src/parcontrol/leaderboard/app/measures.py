"""The columns of tasks as quantities: unit, direction, range, and how a value of one is written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from parcontrol.leaderboard.app.board import Board
from parcontrol.leaderboard.registry import Group, Unit, registry
from parcontrol.leaderboard.table import averaged_columns

# What the page is for comes first.
GROUPS: tuple[Group, ...] = ("Faithfulness", "Factuality", "Other")
Z_95 = 1.959963984540054  # two-sided 95 % of a normal distribution
MISSING = "–"


@dataclass(frozen=True)
class Measure:
    """One column of the table.

    Attributes:
        label: Its heading.
        task: The task's name in the registry.
        metric, filter: What the harness calls it.
        group: Group of the task.
        unit: Percent, a rank correlation, or none (a perplexity).
        higher_is_better: Its direction.
        averaged: Whether it is part of its group's average.
        scale: Factor from the harness's value, and from that of one row, to the unit.
        version: Of the task, in the registry.
    """

    label: str
    task: str
    metric: str
    filter: str
    group: Group
    unit: Unit
    higher_is_better: bool
    averaged: bool
    scale: float
    version: str

    @property
    def direction(self) -> str:
        """In words, with an arrow."""
        return "higher is better ↑" if self.higher_is_better else "lower is better ↓"

    @property
    def difference_unit(self) -> str:
        """The unit of a difference of two values."""
        return "points" if self.unit == "%" else ""

    def text(self, value: float) -> str:
        """Returns a value with its unit."""
        return MISSING if math.isnan(value) else f"{self.number(value)} %" if self.unit == "%" else self.number(value)

    def number(self, value: float, signed: bool = False) -> str:
        """Returns a value without its unit."""
        return number(value, decimals=3 if self.unit == "ρ" else 1, signed=signed)


def number(value: float, decimals: int = 1, signed: bool = False) -> str:
    """Returns a number with a typographic minus, a dash if there is none."""
    if math.isnan(value):
        return MISSING
    text = f"{value:+,.{decimals}f}" if signed else f"{value:,.{decimals}f}"
    # What rounds to zero has no sign.
    return text.lstrip("+-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


@cache
def measures() -> dict[str, Measure]:
    """Returns all columns by label: by group, then in the order of the registry."""
    found = [
        Measure(
            label=column.label,
            task=spec.name,
            metric=column.metric,
            filter=column.filter,
            group=spec.group,
            unit=spec.unit(column),
            higher_is_better=column.higher_is_better,
            averaged=column.averaged,
            scale=column.scale,
            version=f"{spec.version:g}",
        )
        for spec in registry()
        for column in spec.columns
    ]
    return {measure.label: measure for group in GROUPS for measure in found if measure.group == group}


def averages() -> tuple[str, ...]:
    """Returns the groups that have an average."""
    return tuple(group for group in GROUPS if group in averaged_columns())


@dataclass(frozen=True)
class Whisker:
    """A dot with its 95 % interval on an axis, in percent of the axis's length; the ends stay on the axis."""

    dot: float
    low: float
    high: float


def whisker(measure: Measure, value: float, stderr: float, board: Board) -> Whisker:
    """Returns how a value is drawn: on the whole range of its unit; perplexities, which have none, on the logarithmic
    range of the board's."""
    half = 0.0 if math.isnan(stderr) else Z_95 * stderr
    low, high = {"%": (0.0, 100.0), "ρ": (-1.0, 1.0)}.get(measure.unit, (math.nan, math.nan))
    ends = [value, value - half, value + half]
    if math.isnan(low):
        known = board.table[measure.label].to_numpy(float)
        known = known[known > 0]
        low, high = math.log(known.min()), math.log(known.max())
        ends = [math.log(max(end, known.min())) for end in ends]
        if low == high:
            low, high = low - 1, high + 1
    dot, left, right = (min(max(100 * (end - low) / (high - low), 0.0), 100.0) for end in ends)
    return Whisker(dot, left, right)


@dataclass(frozen=True)
class Rank:
    """The place of a value, 1 for the best, among how many; equal values share a place."""

    place: int
    among: int


def rank(values: np.ndarray, value: float, higher_is_better: bool) -> Rank:
    """Returns the place of a value among those of a column, of which it is one; missing ones have no place."""
    known = values[~np.isnan(values)]
    better = known > value if higher_is_better else known < value
    return Rank(1 + int(better.sum()), len(known))
