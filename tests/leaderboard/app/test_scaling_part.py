"""Parallel scaling and the plots' part: families, seeds, trends against scipy, missing everything."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from parcontrol.leaderboard.app.board import Board, read_board
from parcontrol.leaderboard.app.plots import part as plots_part
from parcontrol.leaderboard.app.plots.figures import Figure
from parcontrol.leaderboard.app.quantities import quantities, values_of
from parcontrol.leaderboard.app.scaling.families import Family, families, fit, sentence, usual_label
from parcontrol.leaderboard.app.scaling.part import scaling_figures, scaling_html
from parcontrol.leaderboard.app.view import View
from parcontrol.leaderboard.records import ModelType
from parcontrol.leaderboard.registry import registry
from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store import Stores, open_stores, update
from tests.leaderboard.app import boards
from tests.leaderboard.app.boards import HOSTILE

FEVER = "FEVER/Acc"


def put(stores: Stores, name: str, value: float, stderr: float | None = 0.02, task: str = "fever", **said: Any) -> None:
    """A model with one result, as a fraction."""
    metrics = {task: {"acc,none": value} | ({} if stderr is None else {"acc_stderr,none": stderr})}
    said = {"model": f"local/{name}", "sha": f"local-{name}", "base_model": "org/base", **said}
    chance = random.Random(0)
    files: dict[str, bytes | None] = dict(boards.result_files(said, metrics, chance))
    update(stores.results, lambda snapshot: files, name)


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return open_stores(Settings(root=tmp_path))


def family(board: Board, label: str = FEVER) -> Family:
    (only,) = families(board, label)
    return only


# --- families ---


def test_runs_of_seeds_become_one_family_with_their_mean_and_deviation(full_board: Board) -> None:
    found = families(full_board, "Faithfulness")
    assert [one.base_model for one in found] == ["org0/base-135M", "org0/base-500M"]
    table = full_board.table
    for one in found:
        assert [point.streams for point in one.points] == [1, 2, 4, 8]
        for point in one.points:
            of_it = table[(table["base_model"] == one.base_model) & (table["P"] == point.streams)]
            assert point.seeds == 3
            assert [run.seed for run in point.runs] == [0, 1, 2]
            assert point.mean == pytest.approx(of_it["Faithfulness"].mean())
            assert point.error == pytest.approx(np.std(of_it["Faithfulness"], ddof=1))
        assert not one.one_seed
        assert one.base is None
        assert "2,000,000 training tokens" in one.details


@pytest.mark.parametrize(
    "other",
    [
        {"base_model": "org/other"},
        {"precision": "bfloat16"},
        {"chat_template": True},
        {"model_type": str(ModelType.CHAT)},
        {"weight_type": "Delta"},
        {"sample_set": True},
        {"limit": 5},
        {"P": None},
        {"base_model": ""},
        {"P": 1},
    ],
)
def test_what_differs_in_more_than_p_is_no_family(stores: Stores, other: dict[str, Any]) -> None:
    put(stores, "one", 0.5, P=1)
    put(stores, "two", 0.6, **{"P": 2} | other)
    assert families(read_board(stores), FEVER) == []


def test_one_seed_has_the_standard_error_of_the_task(stores: Stores) -> None:
    put(stores, "one", 0.5, P=1, stderr=0.02)
    put(stores, "two", 0.6, P=4, stderr=0.03)
    found = family(read_board(stores))
    assert [(point.streams, point.mean, point.error, point.seeds) for point in found.points] == [
        (1, pytest.approx(50), pytest.approx(2), 1),
        (4, pytest.approx(60), pytest.approx(3), 1),
    ]
    assert found.one_seed
    html = scaling_html(read_board(stores), View(tab="scaling", task=FEVER))
    assert "seed noise is unmeasured" in html


def test_the_base_model_is_a_line_if_it_was_evaluated_the_same_way(stores: Stores) -> None:
    put(stores, "one", 0.5, P=1)
    put(stores, "two", 0.6, P=2)
    assert family(read_board(stores)).base is None
    put(stores, "b1", 0.30, model="org/base", sha="1" * 40, base_model="", chat_template=True)
    assert family(read_board(stores)).base is None
    put(stores, "b2", 0.40, model="org/base", sha="2" * 40, base_model="", precision="4bit")
    assert family(read_board(stores)).base.value == pytest.approx(40)
    put(stores, "b3", 0.45, model="org/base", sha="3" * 40, base_model="")
    found = family(read_board(stores))
    assert (found.base.value, found.base.precision) == (pytest.approx(45), "float16")
    (figure,) = scaling_figures([found], quantities()[FEVER])
    assert [(level.y, level.text) for level in figure.levels] == [(pytest.approx(45), "base model 45.0 %")]


def test_withdrawn_and_flagged_runs_are_left_out(stores: Stores) -> None:
    for streams in (1, 2):
        put(stores, f"run{streams}", 0.5, P=streams)
    update(stores.requests, lambda snapshot: {"withdrawn.txt": b"local/run2 a mistake\n"}, "withdrawn")
    assert families(read_board(stores), FEVER) == []


# --- trends ---


def test_a_trend_is_that_of_scipy_where_scatter_is_what_is_known() -> None:
    chance = np.random.default_rng(0)
    x = np.repeat([0.0, 1, 2, 3], 3)
    y = 40 + 1.5 * x + chance.normal(0, 2, len(x))
    expected = stats.linregress(x, y)
    half = stats.t.ppf(0.975, len(x) - 2) * expected.stderr
    # equal errors that are too small to explain the scatter, and none at all
    for errors in (np.full(len(x), 0.01), np.full(len(x), math.nan)):
        trend = fit(x, y, errors)
        assert trend.slope == pytest.approx(expected.slope)
        assert (trend.low, trend.high) == pytest.approx((expected.slope - half, expected.slope + half))


def test_unequal_errors_weigh_and_an_interval_is_never_narrower_than_they_are() -> None:
    x, y, errors = np.array([0.0, 1, 2]), np.array([10.0, 11, 12]), np.array([1.0, 2.0, 4.0])
    slope, covariance = np.polyfit(x, y, 1, w=1 / errors, cov="unscaled")
    trend = fit(x, y, errors)  # on a line: no scatter at all
    assert trend.slope == pytest.approx(slope[0]) == pytest.approx(1)
    assert trend.high - trend.slope == pytest.approx(stats.t.ppf(0.975, 1) * math.sqrt(covariance[0, 0]))
    assert trend.verdict == "no trend shown"


def test_two_runs_have_the_interval_of_their_errors_alone() -> None:
    trend = fit(np.array([0.0, 2.0]), np.array([50.0, 60.0]), np.array([2.0, 1.5]))
    half = 1.959964 * math.sqrt(2.0**2 + 1.5**2) / 2
    assert (trend.slope, trend.low, trend.high) == pytest.approx((5, 5 - half, 5 + half))
    assert trend.verdict == "rises"
    unknown = fit(np.array([0.0, 2.0]), np.array([50.0, 60.0]), np.array([2.0, math.nan]))
    assert math.isnan(unknown.low)
    assert unknown.verdict == "no trend shown"
    assert "too little to tell a trend" in sentence(FEVER, unknown)


def test_trends_are_said_in_words_with_the_direction_of_the_metric() -> None:
    up = fit(np.array([0.0, 1, 2]), np.array([10.0, 20, 30]), np.full(3, 0.1))
    down = fit(np.array([0.0, 1, 2]), np.array([30.0, 20, 10]), np.full(3, 0.1))
    assert sentence(FEVER, up).startswith(
        "FEVER/Acc rises with P, which is better: +10.0 points per doubling of P, 95 % interval +9.1 to +10.9, 3 runs"
    )
    assert "falls with P, which is worse: −10.0 points" in sentence(FEVER, down)
    assert "falls with P, which is better" in sentence("WikiText/Word perplexity", down)
    flat = fit(np.array([0.0, 1, 2]), np.array([10.0, 30, 11]), np.full(3, 0.1))
    assert sentence(FEVER, flat).startswith("No trend shown: +0.5 points")


# --- what is shown ---


def test_the_view_chooses_the_metric(full_board: Board) -> None:
    assert usual_label(full_board) == "Faithfulness"
    assert "Faithfulness in percent by family and P" in scaling_html(full_board, View(tab="scaling"))
    html = scaling_html(full_board, View(tab="scaling", task="WikiText/Word perplexity"))
    assert "WikiText/Word perplexity by family and P; lower is better ↓" in html
    unknown = scaling_html(full_board, View(tab="scaling", task=HOSTILE))
    assert "There is no metric called" in unknown
    assert "<img" not in unknown


def test_figures_have_the_points_of_the_families_on_common_axes(full_board: Board) -> None:
    found = families(full_board, "Faithfulness")
    figures = scaling_figures(found, quantities()["Faithfulness"])
    assert figures[0].y == figures[1].y
    assert figures[0].x.logarithmic
    for one, figure in zip(found, figures, strict=True):
        means = [mark for mark in figure.marks if not mark.faint]
        assert [(mark.x, mark.y, mark.y_error) for mark in means] == [
            (point.streams, point.mean, point.error) for point in one.points
        ]
        assert sum(mark.faint for mark in figure.marks) == 12
        assert len({figure.name for figure in figures}) == 2
        assert "standard deviation" in figure.description


def test_a_board_without_families_says_how_to_put_runs_on_it(empty_board: Board, stores: Stores) -> None:
    html = scaling_html(empty_board, View(tab="scaling"))
    assert "parcontrol leaderboard submit-run RUN_DIR" in html
    assert "<table" not in html
    put(stores, "one", 0.5, P=1)
    assert "differ only in P" in scaling_html(read_board(stores), View(tab="scaling"))
    put(stores, "two", 0.6, P=2)
    board = read_board(stores)
    assert usual_label(board) == FEVER  # there is no average
    assert "No family has Faithfulness" in scaling_html(board, View(tab="scaling", task="Faithfulness"))


# --- the plots' part ---


def points(figure: Figure | None) -> dict[str, tuple[float, float]]:
    assert figure
    return {mark.tip[0]: (mark.x, mark.y) for mark in figure.marks}


def test_every_model_with_both_averages_is_plotted_once(full_board: Board) -> None:
    rows = plots_part.plotted_rows(full_board, View(tab="plots"))
    table = full_board.table
    expected = table[table["Factuality"].notna() & table["Faithfulness"].notna() & (table["mark"] == "")]
    assert points(plots_part.trade_off_figure(full_board, rows)) == {
        row.name: (row.Factuality, row.Faithfulness) for row in expected.itertuples(index=False)
    }


def test_filters_of_the_view_apply_to_every_plot(full_board: Board) -> None:
    view = View(tab="plots", query="org3/")
    rows = plots_part.plotted_rows(full_board, view)
    assert 0 < len(rows) < len(full_board.table)
    figure = plots_part.size_figure(full_board, rows, FEVER)
    table = full_board.table[full_board.table["model"].str.startswith("org3/") & full_board.table[FEVER].notna()]
    assert points(figure) == {
        row["name"]: (pytest.approx(1e9 * row["params"]), row[FEVER]) for _, row in table.iterrows()
    }
    html = plots_part.heat_html(full_board, view)
    assert html.count('<th scope="row"') == len(rows)
    assert "No model fits" in plots_part.trade_off_html(full_board, View(tab="plots", query="no such model"))


def test_standard_errors_are_those_of_the_results(full_board: Board) -> None:
    rows = full_board.table
    found = values_of(full_board, rows, FEVER)
    for at in rows.index[:5]:
        scores = full_board.scores(rows.loc[at])
        assert found.loc[at, "stderr"] == pytest.approx(scores.loc[FEVER, "stderr"])


def test_the_heat_map_keeps_the_order_of_the_view_and_says_what_it_leaves_out(full_board: Board) -> None:
    view = View(tab="plots", sort=FEVER)
    rows = plots_part.plotted_rows(full_board, view)
    data, keys, count = plots_part.heat_matrix(rows)
    assert len(keys) == len(data.models) == plots_part.MOST_MODELS < count == len(rows)
    assert keys == rows["key"].tolist()[:40]
    values = data.values[:, data.columns.index(FEVER)]
    assert values.tolist() == sorted(values, reverse=True)
    # goodness is among all models of the view, also those that are cut off
    worst, best = rows[FEVER].min(), rows[FEVER].max()
    assert np.allclose(data.goodness[:, data.columns.index(FEVER)], (values - worst) / (best - worst))
    unparsed = "HaluEval QA/Unparsed"
    lower = data.values[:, data.columns.index(unparsed)]
    worst, best = rows[unparsed].max(), rows[unparsed].min()
    assert np.allclose(data.goodness[:, data.columns.index(unparsed)], (worst - lower) / (worst - best), equal_nan=True)
    assert f"The first 40 of {count} models" in plots_part.heat_html(full_board, view)


def test_a_board_with_nothing_or_one_result_is_shown(empty_board: Board, stores: Stores) -> None:
    view = View(tab="plots")
    put(stores, "one", 0.5, stderr=None, params=None)
    for board in (empty_board, read_board(stores)):
        html = plots_part.trade_off_html(board, view) + plots_part.size_html(board, view)
        html += plots_part.heat_html(board, view)
        assert "<svg" not in html
    assert "No model has been evaluated yet" in plots_part.trade_off_html(empty_board, view)
    assert "No model here has a result" in plots_part.heat_html(empty_board, view)
    assert "None of these 1 models" in plots_part.trade_off_html(board, view)


def test_size_and_metric_are_related_by_ranks(full_board: Board) -> None:
    rows = plots_part.plotted_rows(full_board, View(tab="plots"))
    known = rows[rows[FEVER].notna() & (rows["params"] > 0)]
    rho = stats.spearmanr(known["params"], known[FEVER]).statistic
    said = plots_part.rank_relation(plots_part.size_figure(full_board, rows, FEVER))
    assert f"{rho:+.2f}".replace("-", "−") in said
    assert f"{len(known)} models" in said


def test_every_column_can_be_plotted(full_board: Board) -> None:
    assert len(quantities()) == 2 + sum(len(spec.columns) for spec in registry())
    rows = plots_part.plotted_rows(full_board, View(tab="plots"))
    for label in quantities():
        assert plots_part.size_figure(full_board, rows, label)
        assert scaling_figures(families(full_board, label), quantities()[label])
