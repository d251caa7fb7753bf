"""Plots as SVG: axes, points with error bars and a description, from data frames.

The SVG is made here, and not by Plotly in `gr.Plot`: that loads 4.6 MB of JavaScript, stays white on a dark page,
moves what is below it when it arrives, and has no role or name that a screen reader could read. Here positions are
percentages of the plot's size and everything else is CSS, so that one SVG fits a phone, a wide screen and both themes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from parcontrol.leaderboard.app.markup import render
from parcontrol.leaderboard.app.measures import Measure, number
from parcontrol.leaderboard.records import ModelType

# Beyond that, error bars hide the points that they belong to.
MOST_ERROR_BARS = 200
_TICKS = 6
_MARGIN = 0.05  # of the range, on both sides


class Tick(NamedTuple):
    """A line across the plot, and what stands beside it."""

    value: float
    text: str


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        title: What is on it, with unit and direction.
        low, high: Its ends.
        ticks: In rising order.
        logarithmic: Whether equal factors have equal lengths.
    """

    title: str
    low: float
    high: float
    ticks: tuple[Tick, ...]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Returns where a value lies, in percent of the axis's length, not beyond its ends."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return round(min(max(100 * (value - low) / (high - low), 0.0), 100.0), 2)


def linear_axis(title: str, values: Iterable[float], most: float = math.inf, least_room: float = 1e-3) -> Axis:
    """Returns an axis that holds all values, which may be NaN, with round numbers at its ticks.

    Args:
        title: What is on it.
        values: At least one finite one.
        most: No end lies beyond it: nothing is above 100 %.
        least_room: On both sides of a single value.
    """
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known), max(known)
    margin = _MARGIN * (high - low) or max(abs(high) * _MARGIN, least_room)
    low, high = low - margin, max(min(high + margin, most), high)
    step = _round_step((high - low) / _TICKS)
    decimals = max(-math.floor(math.log10(step) + 1e-9), 0)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = [Tick(index * step, number(index * step, decimals)) for index in range(first, last + 1)]
    return Axis(title, low, high, tuple(ticks))


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, … that is not below `least`."""
    power = 10 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def logarithmic_axis(title: str, values: Iterable[float]) -> Axis:
    """Returns an axis with equal lengths for equal factors that holds all values above zero, of which there is one."""
    known = [value for value in values if math.isfinite(value) and value > 0]
    low, high = min(known), max(known)
    margin = max((high / low) ** _MARGIN, 1.2)
    low, high = low / margin, high * margin
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if math.log10(high / low) > 3 else (1, 3) if math.log10(high / low) > 1.2 else (1, 2, 5)
    found = [factor * 10.0**decade for decade in decades for factor in factors]
    ticks = [Tick(value, count_text(value)) for value in found if low <= value <= high]
    return Axis(title, low, high, tuple(ticks), logarithmic=True)


def stream_axis(streams: Iterable[int]) -> Axis:
    """Returns the axis of P: 1, 2, 4, 8, further powers of two as far as they are needed, equally far apart."""
    most = max([8, *streams])
    ticks = [Tick(2.0**power, str(2**power)) for power in range(math.ceil(math.log2(most)) + 1)]
    return Axis("P, parallel streams", 1 / 1.25, ticks[-1].value * 1.25, tuple(ticks), logarithmic=True)


def count_text(value: float) -> str:
    """Returns a number as people say it: 300 M, 7 B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size * 0.9995:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


@dataclass(frozen=True)
class Mark:
    """One point.

    Attributes:
        x, y: In the units of the axes.
        kind: Shape and colour, an index of `KINDS`.
        tip: What is shown under the pointer, line by line.
        href: Where a click leads, empty for nowhere.
        x_error, y_error: Half lengths of the error bars, NaN for none.
        best: Whether it gets a ring.
        faint: Whether it is a small circle in the background.
    """

    x: float
    y: float
    kind: int
    tip: tuple[str, ...]
    href: str = ""
    x_error: float = math.nan
    y_error: float = math.nan
    best: bool = False
    faint: bool = False


class Segment(NamedTuple):
    """A straight line between two points in the units of the axes, and its CSS class."""

    x1: float
    y1: float
    x2: float
    y2: float
    kind: str


class Level(NamedTuple):
    """A horizontal line across the plot, and what stands on it."""

    y: float
    text: str


@dataclass(frozen=True)
class Figure:
    """A plot.

    Attributes:
        name: Unique on the page, of letters, digits and hyphens.
        description: What is seen, for who cannot see it.
        x, y: The axes.
        marks: Points; later ones are above earlier ones.
        segments: Lines between points.
        levels: Lines across.
    """

    name: str
    description: str
    x: Axis
    y: Axis
    marks: Sequence[Mark]
    segments: Sequence[Segment] = ()
    levels: Sequence[Level] = ()

    def down(self, y: float) -> float:
        """Returns where a value lies, in percent from the top."""
        return round(100 - self.y.at(y), 2)

    @property
    def error_bars(self) -> list[Segment]:
        """The error bars as lines; none at all if they would hide the points."""
        shown = [mark for mark in self.marks if not (math.isnan(mark.x_error) and math.isnan(mark.y_error))]
        if len(shown) > MOST_ERROR_BARS:
            return []
        across = [
            Segment(mark.x - mark.x_error, mark.y, mark.x + mark.x_error, mark.y, f"error k{mark.kind}")
            for mark in shown
            if not math.isnan(mark.x_error)
        ]
        return across + [
            Segment(mark.x, mark.y - mark.y_error, mark.x, mark.y + mark.y_error, f"error k{mark.kind}")
            for mark in shown
            if not math.isnan(mark.y_error)
        ]

    @property
    def lines(self) -> list[Segment]:
        """All that is under the points."""
        return [*self.segments, *self.error_bars]

    @property
    def kinds(self) -> list[int]:
        """The kinds of points that there are."""
        return sorted({mark.kind for mark in self.marks})


def svg(figure: Figure) -> str:
    """Returns a plot as HTML."""
    return render("figure", figure=figure, kinds=KINDS)


class Kind(NamedTuple):
    """A shape, as an SVG path around 0, 0; and what it means."""

    words: str
    path: str


# A shape of its own for every type of model, so that nobody needs to tell colours apart.
_PATHS = {
    ModelType.PRETRAINED: "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    ModelType.FINE_TUNED: "M0 -6.5L6.5 0L0 6.5L-6.5 0z",
    ModelType.INSTRUCTION_TUNED: "M-4.6 -4.6H4.6V4.6H-4.6z",
    ModelType.RL_TUNED: "M0 -6L6 4.6H-6z",
    ModelType.CHAT: "M0 6L6 -4.6H-6z",
    ModelType.MERGE: "M-2 -6H2V-2H6V2H2V6H-2V2H-6V-2H-2z",
    ModelType.UNKNOWN: "M-6 -4L-4 -6L0 -2L4 -6L6 -4L2 0L6 4L4 6L0 2L-4 6L-6 4L-2 0z",
}
KINDS = [Kind("unknown type" if kind is ModelType.UNKNOWN else kind.words, _PATHS[kind]) for kind in ModelType]
_KIND_OF = {kind.value: index for index, kind in enumerate(ModelType)}
_UNKNOWN_KIND = _KIND_OF[ModelType.UNKNOWN.value]


def kind_of(model_type: str) -> int:
    """Returns the index in `KINDS` of a model type as the table has it."""
    return _KIND_OF.get(model_type, _UNKNOWN_KIND)


def axis_title(measure: Measure) -> str:
    """Returns what stands at the axis of a quantity."""
    return f"{measure.label}{', %' if measure.unit == '%' else ''} ({measure.direction})"


def value_text(measure: Measure, value: float, stderr: float) -> str:
    """Returns a value with its standard error and unit."""
    error = "standard error unknown" if math.isnan(stderr) else f"± {measure.number(stderr)}"
    unit = " %" if measure.unit == "%" else ""
    return (
        f"{measure.number(value)}{unit} ({error})" if math.isnan(stderr) else f"{measure.number(value)} {error}{unit}"
    )


def measure_axis(measure: Measure, values: np.ndarray, errors: np.ndarray) -> Axis:
    """Returns the axis of a quantity that holds values with their error bars; perplexities get a logarithmic one."""
    errors = np.nan_to_num(errors)
    if measure.unit == "":
        return logarithmic_axis(axis_title(measure), [*values, *(values + errors)])
    # Where nothing can lie, there is no axis.
    most = 100.0 if measure.unit == "%" else 1.0
    # Where all models have zero, ticks are as fine as values are written.
    return linear_axis(axis_title(measure), [*(values - errors), *(values + errors)], most, most / 100)


def pareto_front(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns which points no other one surpasses: at least as high in both, and higher in one. Higher is better."""
    order = np.lexsort((-y, -x))
    front = np.zeros(len(x), dtype=bool)
    best = (math.nan, -math.inf)  # of the points to the right
    for index in order:
        if y[index] > best[1]:
            best = (x[index], y[index])
        front[index] = (x[index], y[index]) == best
    return front


def trade_off(models: pd.DataFrame, x: Measure, y: Measure) -> Figure:
    """Returns one quantity against another, with error bars and the Pareto front.

    Args:
        models: At least one, without missing values: x, y, name, model_type, href; x_stderr and y_stderr may be NaN.
        x, y: The quantities; higher is better for both.
    """
    assert x.higher_is_better
    assert y.higher_is_better
    front = pareto_front(models["x"].to_numpy(float), models["y"].to_numpy(float))
    marks = [
        Mark(
            model.x, model.y, kind_of(model.model_type),
            tip=(
                model.name, *(("On the Pareto front",) if best else ()),
                f"{x.label} {value_text(x, model.x, model.x_stderr)}",
                f"{y.label} {value_text(y, model.y, model.y_stderr)}",
                KINDS[kind_of(model.model_type)].words,
            ),
            href=model.href, x_error=model.x_stderr, y_error=model.y_stderr, best=bool(best),
        )
        for model, best in zip(models.itertuples(index=False), front, strict=True)
    ]  # fmt: skip
    best = sorted({(mark.x, mark.y) for mark in marks if mark.best})
    stairs = [
        segment
        for (x1, y1), (x2, y2) in pairwise(best)
        for segment in (Segment(x1, y1, x1, y2, "front"), Segment(x1, y2, x2, y2, "front"))
    ]
    names = [mark.tip[0] for mark in sorted(marks, key=lambda mark: mark.x) if mark.best]
    return Figure(
        "trade-off",
        f"{y.label} against {x.label} of {_models(len(marks))}. No other one is better in both than {_listed(names)}.",
        measure_axis(x, models["x"].to_numpy(float), models["x_stderr"].to_numpy(float)),
        measure_axis(y, models["y"].to_numpy(float), models["y_stderr"].to_numpy(float)),
        sorted(marks, key=lambda mark: mark.best),
        stairs,
    )


def against_size(models: pd.DataFrame, y: Measure) -> Figure:
    """Returns a quantity against the number of parameters, on a logarithmic axis.

    Args:
        models: At least one, without missing values: params (10⁹), y, name, model_type, href; y_stderr may be NaN.
        y: The quantity.
    """
    marks = [
        Mark(
            1e9 * model.params, model.y, kind_of(model.model_type),
            tip=(
                model.name,
                f"{y.label} {value_text(y, model.y, model.y_stderr)}",
                f"{count_text(1e9 * model.params)} parameters",
                KINDS[kind_of(model.model_type)].words,
            ),
            href=model.href, y_error=model.y_stderr,
        )
        for model in models.itertuples(index=False)
    ]  # fmt: skip
    sizes = [mark.x for mark in marks]
    return Figure(
        "size",
        f"{y.label} against size of {_models(len(marks))}, from {count_text(min(sizes))} to {count_text(max(sizes))} "
        "parameters.",
        logarithmic_axis("Parameters", sizes),
        measure_axis(y, models["y"].to_numpy(float), models["y_stderr"].to_numpy(float)),
        marks,
    )


def _models(count: int) -> str:
    return "one model" if count == 1 else f"{count:,} models"


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


@cache
def script() -> str:
    """Returns what shows a point's values under the pointer, for `js_on_load` of the component that holds plots."""
    return resources.files("parcontrol.leaderboard.app").joinpath("static", "plots.js").read_text(encoding="utf-8")
