"""Whether two models differ: per task, with an interval and a test, and over all tasks at once.

Where both models answered the same rows, the rows are compared in pairs, because most of the noise, hard and easy
rows, is the same for both. Otherwise all that is known are two standard errors.

Everywhere a difference is the second value minus the first, and intervals hold 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats

from parcontrol.leaderboard.app.model.samples import Rows

LEVEL = 0.95
ALPHA = 1 - LEVEL
_Z = float(stats.norm.ppf((1 + LEVEL) / 2))

Test = Literal["McNemar", "paired t", "sign", "z", "mean"]
Verdict = Literal["better", "worse", "none"]


@dataclass(frozen=True)
class Difference:
    """A difference, and what is known of it.

    Attributes:
        value: Second minus first.
        stderr: Its standard error.
        low, high: Its 95 % interval.
        p: Of the test, two-sided.
        test: Which one: McNemar's exact test (rows that are right or wrong), Student's t of the differences of rows,
            the sign test (all rows differ by the same), z from two standard errors, or z of a mean over tasks.
        n: Rows that were compared in pairs; None if none were.
        adjusted: p after Holm's correction; equal to p before it.
    """

    value: float
    stderr: float
    low: float
    high: float
    p: float
    test: Test
    n: int | None = None
    adjusted: float = math.nan

    def __post_init__(self) -> None:
        if math.isnan(self.adjusted):
            object.__setattr__(self, "adjusted", self.p)

    @property
    def shown(self) -> bool:
        """Whether there is a difference: the interval excludes zero and the corrected test agrees."""
        return self.adjusted < ALPHA and not self.low <= 0 <= self.high

    def verdict(self, higher_is_better: bool) -> Verdict:
        """Returns what the difference says of the second model."""
        if not self.shown:
            return "none"
        return "better" if (self.value > 0) == higher_is_better else "worse"


def unpaired(first: float, first_stderr: float, second: float, second_stderr: float) -> Difference | None:
    """Compares two values by their standard errors, as if their rows were independent.

    Of the same rows that is cautious: answers to the same rows vary together, and their difference varies less.

    Returns:
        None where a standard error is missing or zero. Zero comes from rows that are all alike, and says nothing of
        how sure the value is.
    """
    if not (first_stderr > 0 and second_stderr > 0):
        return None
    return of_standard_error(second - first, math.hypot(first_stderr, second_stderr))


def of_standard_error(value: float, stderr: float, test: Test = "z") -> Difference:
    """Returns a normal difference with its z test."""
    p = float(2 * stats.norm.sf(abs(value) / stderr))
    return Difference(value, stderr, value - _Z * stderr, value + _Z * stderr, p, test)


def paired(first: np.ndarray, second: np.ndarray) -> Difference:
    """Compares values of the same rows, of which there are at least two, in percent.

    Rows that are either right or wrong get McNemar's exact test and the interval of Agresti and Min (2005), which
    adds half a row to each of the four kinds and holds for few rows too. Others get Student's t of the differences:
    it is about the mean, which is the number in the table; Wilcoxon's test would be about ranks.

    Args:
        first, second: [N] values of the rows; a row that is right has 100.
    """
    assert first.shape == second.shape
    assert len(first) > 1
    if np.isin(first, (0, 100)).all() and np.isin(second, (0, 100)).all():
        return _mcnemar(int((second > first).sum()), int((second < first).sum()), len(first))
    differences = second - first
    if float(np.ptp(differences)) < 1e-9 * max(1.0, float(np.abs(differences).max())):
        return _same_everywhere(float(differences.mean()), len(differences))
    mean, stderr = float(differences.mean()), float(stats.sem(differences))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(differences) - 1)) * stderr
    p = float(2 * stats.t.sf(abs(mean) / stderr, len(differences) - 1))
    return Difference(mean, stderr, mean - half, mean + half, p, "paired t", len(differences))


def _mcnemar(gained: int, lost: int, n: int) -> Difference:
    """From the rows that only the second model, and only the first one, has right."""
    p = float(stats.binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
    centre = (gained - lost) / (n + 2)
    stderr = math.sqrt((gained + lost + 1) / (n + 2) - centre**2) / math.sqrt(n + 2)
    low, high = max(centre - _Z * stderr, -1.0), min(centre + _Z * stderr, 1.0)
    return Difference(100 * (gained - lost) / n, 100 * stderr, 100 * low, 100 * high, p, "McNemar", n)


def _same_everywhere(value: float, n: int) -> Difference:
    """All rows differ by the same, so that nothing is known of how differences vary: only their signs count."""
    p = 1.0 if abs(value) < 1e-12 else 2 * 0.5**n
    return Difference(value, 0.0, value, value, min(p, 1.0), "sign", n)


def holm(differences: Sequence[Difference]) -> list[Difference]:
    """Returns the differences with p corrected for their number, after Holm (1979).

    If none of them were real, the chance that any is claimed is at most 5 %.
    """
    order = np.argsort([difference.p for difference in differences], kind="stable")
    adjusted = np.empty(len(differences))
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min((len(differences) - place) * differences[index].p, 1.0))
        adjusted[index] = largest
    return [replace(one, adjusted=float(p)) for one, p in zip(differences, adjusted, strict=True)]


def mean_of(differences: Sequence[Difference | None]) -> Difference | None:
    """Returns the difference of two means over tasks, whose rows are independent; None if one task's is unknown."""
    known = [difference for difference in differences if difference is not None]
    if not known or len(known) < len(differences):
        return None
    stderr = math.sqrt(sum(one.stderr**2 for one in known)) / len(known)
    value = sum(one.value for one in known) / len(known)
    return of_standard_error(value, stderr, "mean") if stderr > 0 else None


class UnpairableError(Exception):
    """Rows cannot be compared in pairs; says why, as the end of a sentence."""


# Of a value in the table, against the mean of its rows.
_TOLERANCE = 0.01


def match_rows(first: Rows, second: Rows, values: tuple[float, float], scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values of both models, row by row, in the unit of the table.

    Args:
        first, second: The stored rows.
        values: What the table says, in the unit of the table.
        scale: Factor from values of rows to that unit.

    Raises:
        UnpairableError: The rows are not the same, fewer than two, or do not give the values of the table.
    """
    if not np.array_equal(first.keys, second.keys):
        raise UnpairableError("the stored rows are not the same")
    if len(first.keys) < 2:
        raise UnpairableError("there is only one row")
    for rows, value in zip((first, second), values, strict=True):
        if abs(float(rows.values.mean()) * scale - value) > _TOLERANCE:
            raise UnpairableError("the value in the table is not the mean of the stored rows")
    return first.values * scale, second.values * scale
