"""What the page says of several models side by side: all values, and what is known of their differences."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from parcontrol.leaderboard.app.board import Board
from parcontrol.leaderboard.app.compare.comparison import (
    Difference,
    UnpairableError,
    Verdict,
    holm,
    match_rows,
    mean_of,
    paired,
    unpaired,
)
from parcontrol.leaderboard.app.markup import render
from parcontrol.leaderboard.app.measures import GROUPS, MISSING, Measure, averages, measures, number
from parcontrol.leaderboard.app.model.samples import SampleReader, SamplesError, StillReadingError
from parcontrol.leaderboard.app.view import View
from parcontrol.leaderboard.registry import TaskSpec, registry
from parcontrol.leaderboard.store import Snapshot
from parcontrol.leaderboard.table import averaged_columns

MOST_COMPARED = 5
# After this nothing more is read for one answer; what was read is kept, so that the next one gets further.
READING_SECONDS = 3.0
# Values of a model by column: value, stderr, n, version, limited, path, ….
Scores = dict[str, dict[str, Any]]
_LETTERS = "ABCDE"
_NAMED = 6  # measures in a summary
_DRAWN_FOR = 3  # models; with more of them lines make the table too wide
_ENDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)  # of the axis of differences, in their unit


@dataclass(frozen=True)
class Compared:
    """One measure of one model against the first model's.

    Attributes:
        difference: What is known of it, before the correction for the number of tests; None if nothing is.
        why_unknown: Why nothing is known.
        why_unpaired: Why rows were not compared in pairs.
        pending: Whether rows have still to be read.
    """

    difference: Difference | None = None
    why_unknown: str = ""
    why_unpaired: str = ""
    pending: bool = False


def compare_html(board: Board, view: View, reader: SampleReader, seconds: float = READING_SECONDS) -> str:
    """Returns the comparison that a view names.

    Args:
        board: The board.
        view: Its rows are compared with its first row.
        reader: For the rows of tasks.
        seconds: How long rows are read.
    """
    known = [row for key in view.rows if (row := board.row(key)) is not None]
    rows = known[:MOST_COMPARED]
    unknown = [key for key in view.rows if board.row(key) is None]
    about: dict[str, Any] = {"unknown": unknown, "dropped": len(known) - len(rows), "most": MOST_COMPARED}
    models = [_model(number, row, rows) for number, row in enumerate(rows)]
    if len(rows) < 2:
        return render("compare_none", models=models, empty=not len(board.table), **about)
    try:
        snapshot, trouble = reader.snapshot(board.revisions[1]), ""
    except SamplesError as error:
        snapshot, trouble = None, str(error)
    scores = [board.scores(row).to_dict("index") for row in rows]
    pairing = _Pairing(reader, snapshot, trouble, time.monotonic() + seconds)
    labels = [label for label in measures() if any(label in of_model for of_model in scores)]
    found: dict[tuple[str, int], Compared] = {}
    for place in range(1, len(rows)):
        pair = (rows[0], scores[0]), (rows[place], scores[place])
        found |= {(label, place): compare(measures()[label], *pair, pairing) for label in labels}
        found |= {(group, place): _compare_averages(group, place, rows, found) for group in averages()}
    corrected = correct(found)
    return render(
        "compare",
        models=models,
        trouble=trouble,
        groups=_lines(board, rows, scores, labels, corrected),
        summaries=[summary(models, place, labels, corrected) for place in range(1, len(rows))],
        tests=sum(one.difference is not None for one in corrected.values()),
        pending=sum(corrected[label, place].pending for label in labels for place in range(1, len(rows))),
        again=view.href,
        left_out=len(measures()) - len(labels),
        why_unpaired=_why_unpaired(labels, models, corrected),
        drawn=len(rows) <= _DRAWN_FOR,
        **about,
    )


def _model(place: int, row: pd.Series, rows: Sequence[pd.Series]) -> dict[str, Any]:
    others = tuple(one["key"] for one in rows if one["key"] != row["key"])
    return {
        "letter": _LETTERS[place],
        "name": row["name"],
        "mark": row["mark"],
        "mark_reason": row["mark_reason"],
        "href": View(tab="model", rows=(row["key"],)).href,
        "without": View(tab="compare", rows=others).href,
        "first": View(tab="compare", rows=(row["key"], *others)).href,
    }


# --- pairs of rows ---


@dataclass
class _Pairing:
    """Reads the rows of two results, until the time is up."""

    reader: SampleReader
    snapshot: Snapshot | None
    trouble: str
    deadline: float
    specs: dict[str, TaskSpec] = field(default_factory=lambda: {spec.name: spec for spec in registry()})

    def compare(self, measure: Measure, first: dict[str, Any], second: dict[str, Any]) -> Difference | None:
        """Returns the difference by pairs of rows; None if rows have still to be read.

        Raises:
            UnpairableError: There are no such pairs.
        """
        if self.snapshot is None:
            raise UnpairableError(self.trouble)
        if measure.unit != "%":
            raise UnpairableError("it is not a mean over rows")
        spec = self.specs[measure.task]
        paths = (first["path"], second["path"])
        try:
            samples = [
                self.reader.samples(path, spec, self.snapshot, self.deadline - time.monotonic()) for path in paths
            ]
        except StillReadingError:
            return None
        except SamplesError as error:
            raise UnpairableError(str(error)) from error
        rows = [found.rows.get(measure.metric) for found in samples]
        if rows[0] is None or rows[1] is None:
            raise UnpairableError("the stored rows have no score of their own")
        values = (float(first["value"]), float(second["value"]))
        return paired(*match_rows(rows[0], rows[1], values, measure.scale))


def compare(
    measure: Measure, first: tuple[pd.Series, Scores], second: tuple[pd.Series, Scores], pairing: _Pairing
) -> Compared:
    """Compares one measure of two models, each given as its row of the table and its values by column."""
    label = measure.label
    if label not in first[1] or label not in second[1]:
        return Compared(why_unknown="no value")
    if first[0]["conditions"] != second[0]["conditions"]:
        return Compared(why_unknown="not measured alike")
    one, other = first[1][label], second[1][label]
    if one["version"] != other["version"]:
        return Compared(why_unknown="different versions of the task")
    pending, why = False, ""
    try:
        found = pairing.compare(measure, one, other)
        if found is not None:
            return Compared(found)
        pending = True
    except UnpairableError as error:
        why = str(error)
    by_error = unpaired(float(one["value"]), float(one["stderr"]), float(other["value"]), float(other["stderr"]))
    unknown = "" if by_error else "a standard error is missing or zero"
    return Compared(by_error, unknown, why, pending)


def _compare_averages(
    group: str, place: int, rows: Sequence[pd.Series], found: dict[tuple[str, int], Compared]
) -> Compared:
    """Compares two averages by the differences of their tasks."""
    if math.isnan(rows[0][group]) or math.isnan(rows[place][group]):
        return Compared(why_unknown="no value")
    tasks = [found[label, place] for label in averaged_columns()[group]]
    mean = mean_of([task.difference for task in tasks])
    pending = mean is not None and any(task.pending for task in tasks)
    return Compared(mean, "" if mean else "not all of its tasks can be compared", pending=pending)


def correct(found: dict[tuple[str, int], Compared]) -> dict[tuple[str, int], Compared]:
    """Returns all comparisons with p corrected for how many there are on the page."""
    keys = [key for key, one in found.items() if one.difference is not None]
    corrected = holm([one for key in keys if (one := found[key].difference) is not None])
    new = {
        key: Compared(difference, found[key].why_unknown, found[key].why_unpaired, found[key].pending)
        for key, difference in zip(keys, corrected, strict=True)
    }
    return found | new


# --- what is shown ---


@dataclass(frozen=True)
class Line:
    """One line of the table: a measure or an average, its values, and the comparisons with the first model."""

    label: str
    direction: str
    is_average: bool
    values: list[tuple[str, str, bool]]  # value, standard error, whether of a part of the rows
    compared: list[dict[str, Any]]


def _lines(
    board: Board,
    rows: Sequence[pd.Series],
    scores: Sequence[Scores],
    labels: Sequence[str],
    found: dict[tuple[str, int], Compared],
) -> dict[str, list[Line]]:
    ends = {
        unit: _end([one.difference for (key, _), one in found.items() if _measure(key).unit == unit])
        for unit in ("%", "ρ", "")
    }
    groups: dict[str, list[Line]] = {}
    for group in GROUPS:
        lines = []
        if group in averages():
            values = [(_percent(row[group]), number(float(row[f"{group}_stderr"])), False) for row in rows]
            lines.append(_line(f"{group}, average", group, values, len(rows), found, ends))
        for label in labels:
            if measures()[label].group == group:
                lines.append(
                    _line(label, label, [_value(measures()[label], one) for one in scores], len(rows), found, ends)
                )
        if lines:
            groups[group] = lines
    return groups


def _line(
    label: str,
    key: str,
    values: list[tuple[str, str, bool]],
    models: int,
    found: dict[tuple[str, int], Compared],
    ends: dict[str, float],
) -> Line:
    measure = _measure(key)
    cells = [_cell(measure, found[key, place], ends[measure.unit]) for place in range(1, models)]
    return Line(label, measure.direction, key in averages(), values, cells)


def _measure(key: str) -> Measure:
    """A measure; an average has unit and direction of the first column that it is made of."""
    return measures()[averaged_columns()[key][0] if key in averages() else key]


def _value(measure: Measure, scores: Scores) -> tuple[str, str, bool]:
    if measure.label not in scores:
        return MISSING, MISSING, False
    score = scores[measure.label]
    return measure.text(float(score["value"])), measure.number(float(score["stderr"])), bool(score["limited"])


def _percent(value: float) -> str:
    return MISSING if math.isnan(value) else f"{number(float(value))} %"


_WORDS: dict[Verdict, str] = {"better": "better", "worse": "worse", "none": "no difference shown"}


def _cell(measure: Measure, compared: Compared, end: float) -> dict[str, Any]:
    difference = compared.difference
    if difference is None:
        return {"why": "" if compared.why_unknown == "no value" else compared.why_unknown, "difference": None}
    verdict = difference.verdict(measure.higher_is_better)
    return {
        "difference": measure.number(difference.value, signed=True),
        "low": measure.number(difference.low, signed=True),
        "high": measure.number(difference.high, signed=True),
        "unit": measure.difference_unit,
        "verdict": verdict,
        "words": _WORDS[verdict],
        "p": p_text(difference.adjusted),
        "how": _how(compared),
        "pending": compared.pending,
        "axis": [_on_axis(part, end) for part in (difference.value, difference.low, difference.high)],
    }


def _how(compared: Compared) -> str:
    assert compared.difference is not None
    if compared.pending and compared.difference.test == "z":
        return "unpaired so far"
    names = {"McNemar": "McNemar", "paired t": "paired t", "sign": "sign test", "z": "unpaired z", "mean": "over tasks"}
    rows = compared.difference.n
    return names[compared.difference.test] + ("" if rows is None else f", {rows:,} rows")


def p_text(p: float) -> str:
    """Returns a p value as it is printed."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _end(differences: Sequence[Difference | None]) -> float:
    """Where the axis of differences ends on both sides: a round number beyond all intervals."""
    reach = max((max(abs(one.low), abs(one.high)) for one in differences if one is not None), default=1.0)
    return next((end for end in _ENDS if reach <= end), max(reach, 1e-9))


def _on_axis(value: float, end: float) -> float:
    return min(max(50 + 50 * value / end, 0.0), 100.0)


@dataclass(frozen=True)
class Summary:
    """What a comparison comes to: measures on which the model is better and worse, on which no difference is shown, and
    that cannot be compared. Averages do not count again."""

    model: dict[str, Any]
    first: dict[str, Any]
    better: tuple[str, ...]
    worse: tuple[str, ...]
    same: int
    unknown: int

    @staticmethod
    def some(labels: Sequence[str]) -> str:
        """The first of many names."""
        more = len(labels) - _NAMED
        return ", ".join(labels[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def summary(
    models: Sequence[dict[str, Any]], place: int, labels: Sequence[str], found: dict[tuple[str, int], Compared]
) -> Summary:
    """Counts what the comparison of a model with the first one shows."""
    verdicts: dict[str, Verdict] = {}
    for label in labels:
        difference = found[label, place].difference
        if difference is not None:
            verdicts[label] = difference.verdict(measures()[label].higher_is_better)
    return Summary(
        models[place],
        models[0],
        better=tuple(label for label, verdict in verdicts.items() if verdict == "better"),
        worse=tuple(label for label, verdict in verdicts.items() if verdict == "worse"),
        same=sum(verdict == "none" for verdict in verdicts.values()),
        unknown=len(labels) - len(verdicts),
    )


def _why_unpaired(
    labels: Sequence[str], models: Sequence[dict[str, Any]], found: dict[tuple[str, int], Compared]
) -> dict[str, list[str]]:
    """The reasons why rows were not compared in pairs, each with the measures that it holds for."""
    reasons: dict[str, list[str]] = {}
    for place in range(1, len(models)):
        for label in labels:
            if reason := found[label, place].why_unpaired:
                reasons.setdefault(reason, []).append(f"{label} ({models[place]['letter']})")
    return reasons
