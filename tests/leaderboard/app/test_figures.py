"""Figures: their points, error bars, axes and order, read from the SVG again by its ticks; no pixels."""

import math
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parcontrol.leaderboard.app.plots.figures import (
    KINDS,
    MOST_ERROR_BARS,
    against_size,
    count_text,
    kind_of,
    linear_axis,
    logarithmic_axis,
    measure_axis,
    pareto_front,
    stream_axis,
    svg,
    trade_off,
)
from parcontrol.leaderboard.app.quantities import quantities
from parcontrol.leaderboard.records import ModelType
from tests.leaderboard.app.boards import HOSTILE

X, Y = quantities()["Factuality"], quantities()["Faithfulness"]


def models(*rows: tuple[str, float, float, float, float], model_type: str = ModelType.CHAT) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["name", "x", "x_stderr", "y", "y_stderr"])
    return frame.assign(model_type=str(model_type), href=[f"?tab=model&rows={name}" for name in frame["name"]])


class Element(dict[str, str]):
    """An element's attributes, and its text."""

    text = ""


class Reader(HTMLParser):
    """Reads HTML as a browser does, line breaks in attributes included."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, Element]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, Element({name: value or "" for name, value in attrs})))

    def handle_data(self, data: str) -> None:
        if self.found:
            self.found[-1][1].text += data


def elements(html: str, tag: str, kind: str = "") -> list[Element]:
    reader = Reader()
    reader.feed(html)
    return [found for name, found in reader.found if name == tag and (not kind or kind in found["class"].split())]


def scale(html: str, axis: str) -> tuple[float, float]:
    """Slope and offset of values over percent, from two ticks of an axis: another way than the one that drew them."""
    texts = elements(html, "text", axis)
    (low, low_at), (high, high_at) = (
        (float(text.text.strip().replace("−", "-").replace(",", "")), percent(text[axis]))
        for text in (texts[0], texts[-1])
    )
    slope = (high - low) / (high_at - low_at)
    return slope, low - slope * low_at


def percent(text: str) -> float:
    assert text.endswith("%")
    return float(text[:-1])


THREE = models(("org/a", 20, 1.5, 80, 2.0), ("org/b", 60, math.nan, 40, math.nan), ("org/c", 10, 1.0, 30, 1.0))


def test_points_lie_at_their_values() -> None:
    html = svg(trade_off(THREE, X, Y))
    (x_slope, x_offset), (y_slope, y_offset) = scale(html, "x"), scale(html, "y")
    found = {}
    for mark in elements(html, "use", "mark"):
        at = percent(mark["x"]) * x_slope + x_offset, percent(mark["y"]) * y_slope + y_offset
        found[mark["data-tip"].splitlines()[0]] = at
    assert set(found) == {"org/a", "org/b", "org/c"}
    for name, x, y in zip(THREE["name"], THREE["x"], THREE["y"], strict=True):
        assert found[name] == pytest.approx((x, y), abs=0.02)


def test_error_bars_are_one_standard_error_to_each_side() -> None:
    html = svg(trade_off(THREE, X, Y))
    (x_slope, x_offset), (y_slope, y_offset) = scale(html, "x"), scale(html, "y")
    bars = [
        (
            *(percent(bar[end]) * x_slope + x_offset for end in ("x1", "x2")),
            *(percent(bar[end]) * y_slope + y_offset for end in ("y1", "y2")),
        )
        for bar in elements(html, "line", "error")
    ]
    # the model without standard errors has none
    expected = [(18.5, 21.5, 80, 80), (9, 11, 30, 30), (20, 20, 78, 82), (10, 10, 29, 31)]
    assert np.allclose(sorted(bars), sorted(expected), atol=0.03)


def test_too_many_error_bars_are_left_out() -> None:
    few = models(*((f"org/{i}", i % 50, 1.0, i % 41, 1.0) for i in range(MOST_ERROR_BARS)))
    many = models(*((f"org/{i}", i % 50, 1.0, i % 41, 1.0) for i in range(MOST_ERROR_BARS + 1)))
    assert len(elements(svg(trade_off(few, X, Y)), "line", "error")) == 2 * MOST_ERROR_BARS
    html = svg(trade_off(many, X, Y))
    assert not elements(html, "line", "error")
    assert len(elements(html, "use", "mark")) == MOST_ERROR_BARS + 1


def test_the_front_is_marked_and_above_the_others() -> None:
    figure = trade_off(THREE, X, Y)
    assert [mark.tip[0] for mark in figure.marks] == ["org/c", "org/a", "org/b"]
    assert [mark.best for mark in figure.marks] == [False, True, True]
    html = svg(figure)
    assert len(elements(html, "circle", "ring")) == 2
    # from a (20, 80) down to the height of b, then right to b (60, 40)
    assert [tuple(segment[:4]) for segment in figure.segments] == [(20, 80, 20, 40), (20, 40, 60, 40)]
    assert "org/a, org/b." in figure.description


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30))
def test_pareto_front_is_what_nothing_surpasses(points: list[tuple[int, int]]) -> None:
    x, y = np.array(points, dtype=float).T
    expected = [not any(a >= p and b >= q and (a > p or b > q) for a, b in points) for p, q in points]
    assert pareto_front(x, y).tolist() == expected


def test_size_is_on_a_logarithmic_axis() -> None:
    frame = models(*((f"org/{i}", 0, math.nan, 50 + i, 1.0) for i in range(3))).assign(params=[0.1, 1.0, 10.0])
    figure = against_size(frame, Y)
    assert figure.x.logarithmic
    assert not figure.y.logarithmic
    places = [percent(mark["x"]) for mark in elements(svg(figure), "use", "mark")]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.02)
    assert places == sorted(places)
    assert {"100 M", "1 B", "10 B"} <= {tick.text for tick in figure.x.ticks}
    assert "100 M to 10 B" in figure.description


def test_perplexities_are_on_a_logarithmic_axis_and_percentages_end_at_100() -> None:
    errors = np.array([0.5, 0.5, np.nan])
    assert measure_axis(quantities()["WikiText/Word perplexity"], np.array([8.0, 30, 9000]), errors).logarithmic
    axis = measure_axis(Y, np.array([10.0, 50, 99.9]), np.full(3, 0.5))
    assert not axis.logarithmic
    assert axis.high == pytest.approx(100.4)  # an error bar is never cut off
    assert axis.title == "Faithfulness, % (higher is better ↑)"
    assert "lower is better" in measure_axis(quantities()["HaluEval QA/Unparsed"], np.array([1.0]), errors[:1]).title


def test_an_axis_around_zero_alone_has_ticks_that_fit_beside_it() -> None:
    axis = measure_axis(Y, np.zeros(2), np.full(2, np.nan))
    assert (axis.low, axis.high) == (-1, 1)
    assert max(len(tick.text) for tick in axis.ticks) <= len("−0.5")


@given(
    st.lists(st.floats(-1e5, 1e5), min_size=1, max_size=8),
    st.lists(st.floats(1e-3, 1e12), min_size=1, max_size=8),
)
def test_axes_hold_all_values_and_have_ticks_in_rising_order(values: list[float], positive: list[float]) -> None:
    for axis, held in ((linear_axis("t", [*values, math.nan]), values), (logarithmic_axis("t", positive), positive)):
        assert axis.low <= min(held)
        assert axis.high >= max(held)
        places = [axis.at(tick.value) for tick in axis.ticks]
        assert places == sorted(places)
        assert len(axis.ticks) <= 17
        assert all(axis.low <= tick.value * (1 + 1e-9) + 1e-9 for tick in axis.ticks)
        ordered = [axis.at(value) for value in sorted(held)]
        assert ordered == sorted(ordered)
        assert all(0 <= place <= 100 for place in ordered)


def test_streams_are_on_a_binary_logarithmic_axis() -> None:
    axis = stream_axis([1, 2])
    assert [tick.text for tick in axis.ticks] == ["1", "2", "4", "8"]
    places = [axis.at(tick.value) for tick in axis.ticks]
    assert np.allclose(np.diff(places), places[1] - places[0], atol=0.02)
    assert [tick.text for tick in stream_axis([1, 12]).ticks] == ["1", "2", "4", "8", "16"]


def test_every_type_has_a_shape_of_its_own() -> None:
    assert len({kind.path for kind in KINDS}) == len(KINDS) == len(ModelType)
    assert KINDS[kind_of(ModelType.MERGE.value)].words == "merge"
    assert KINDS[kind_of("something else")].words == "unknown type"


def test_numbers_are_written_as_people_say_them() -> None:
    said = {135e6: "135 M", 7e9: "7 B", 70.6e9: "70.6 B", 1e12: "1 T", 999.9e6: "1 B", 20: "20", 3e3: "3 k"}
    assert {value: count_text(value) for value in said} == said


def test_a_figure_has_a_role_a_name_and_nothing_that_takes_the_focus() -> None:
    html = svg(trade_off(THREE, X, Y))
    (plot,) = elements(html, "svg")
    assert plot["role"] == "img"
    assert "Faithfulness against Factuality of 3 models" in plot["aria-label"]
    assert not elements(html, "a")
    assert "tabindex" not in html
    assert "style=" not in html


def test_hostile_names_stay_text() -> None:
    html = svg(trade_off(models((HOSTILE, 50, 1.0, 50, 1.0)), X, Y))
    assert not elements(html, "img")
    (mark,) = elements(html, "use", "mark")
    assert mark["data-tip"].splitlines()[0] == HOSTILE
    # the component that holds it takes these for its own template's
    assert not set("{}$`") & set(html)
    assert HOSTILE in unescape(html)
