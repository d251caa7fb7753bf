"""Plots of all models of a view: two averages, a metric against size, a heat map."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd
from scipy import stats

from parcontrol.leaderboard.app.board import Board
from parcontrol.leaderboard.app.markup import render
from parcontrol.leaderboard.app.measures import measures
from parcontrol.leaderboard.app.part import QUIET, Context, Part
from parcontrol.leaderboard.app.plots.figures import KINDS, Figure, against_size, script, trade_off
from parcontrol.leaderboard.app.quantities import quantities, values_of
from parcontrol.leaderboard.app.table.selection import USUAL_SORT, select_rows, sort_field
from parcontrol.leaderboard.app.view import View
from parcontrol.leaderboard.matrix import Matrix, matrix
from parcontrol.leaderboard.registry import registry

MOST_MODELS = 40  # of the heat map
USUAL = "Faithfulness"
_LEVELS = 10  # of goodness


def build(context: Context) -> Part:
    """Makes the part."""
    above = gr.HTML(elem_id="plots", js_on_load=script(), apply_default_css=False, min_height=620)
    with gr.Row():
        metric = gr.Dropdown(list(quantities()), label="Metric against size", scale=0, min_width=300)
    size = gr.HTML(elem_id="plots-size", js_on_load=script(), apply_default_css=False, min_height=560)
    heat = gr.HTML(elem_id="plots-heat", apply_default_css=False, min_height=400)

    def show(board: Board, view: View) -> list[Any]:
        return [trade_off_html(board, view), chosen(view), size_html(board, view), heat_html(board, view)]

    def change(address: str, label: str) -> list[Any]:
        view = context.view(address).changed(task=label)
        return [view.address, size_html(context.live.board, view)]

    metric.input(change, [context.address, metric], [context.address, size], **QUIET)
    return Part([above, metric, size, heat], show)


def chosen(view: View) -> str:
    """Returns the quantity of a view that is shown against size."""
    return view.task if view.task in quantities() else USUAL


def plotted_rows(board: Board, view: View) -> pd.DataFrame:
    """Returns the rows that are drawn: those of the view that are neither flagged nor withdrawn."""
    rows = select_rows(board, view)
    return rows[rows["mark"] == ""]


def trade_off_html(board: Board, view: View) -> str:
    """Returns Faithfulness against Factuality."""
    rows = plotted_rows(board, view)
    figure = trade_off_figure(board, rows)
    front = sorted((mark for mark in figure.marks if mark.best), key=lambda mark: -mark.y) if figure else []
    return render(
        "plots_trade_off",
        figure=figure,
        front=front,
        kinds=KINDS,
        count=len(rows),
        without=len(rows) - len(figure.marks) if figure else len(rows),
        marked=len(select_rows(board, view)) - len(rows),
        table=view.changed(tab="leaderboard").href,
        narrowed=_is_narrowed(view),
        everything=View(tab="plots", task=view.task).href,
    )


def trade_off_figure(board: Board, rows: pd.DataFrame) -> Figure | None:
    """Returns the figure of the rows that have both averages, None if none has."""
    x, y = values_of(board, rows, "Factuality"), values_of(board, rows, "Faithfulness")
    models = _models(rows).assign(x=x["value"], x_stderr=x["stderr"], y=y["value"], y_stderr=y["stderr"])
    models = models[models["x"].notna() & models["y"].notna()]
    return trade_off(models, quantities()["Factuality"], quantities()["Faithfulness"]) if len(models) else None


def size_html(board: Board, view: View) -> str:
    """Returns a metric against size."""
    label = chosen(view)
    rows = plotted_rows(board, view)
    figure = size_figure(board, rows, label)
    return render(
        "plots_size",
        figure=figure,
        label=label,
        unknown=view.task if view.task not in ("", label) else "",
        without=len(rows) - len(figure.marks) if figure else len(rows),
        relation=rank_relation(figure) if figure else "",
        kinds=KINDS,
        table=view.changed(tab="leaderboard", task="", sort=label if sort_field(label) else view.sort).href,
    )


def size_figure(board: Board, rows: pd.DataFrame, label: str) -> Figure | None:
    """Returns the figure of the rows that have the metric and a size, None if none has."""
    y = values_of(board, rows, label)
    models = _models(rows).assign(y=y["value"], y_stderr=y["stderr"], params=rows["params"])
    models = models[models["y"].notna() & (models["params"] > 0)]
    return against_size(models, quantities()[label]) if len(models) else None


def rank_relation(figure: Figure) -> str:
    """Returns in words how size and metric go together: Spearman's rank correlation."""
    x, y = [mark.x for mark in figure.marks], [mark.y for mark in figure.marks]
    if len(set(x)) < 2 or len(set(y)) < 2 or len(x) < 4:
        return "There are too few different models to say how the two go together."
    rho = stats.spearmanr(x, y).statistic
    return f"Rank correlation of size and metric: {rho:+.2f} over {len(x):,} models (Spearman).".replace("-", "−")


def _models(rows: pd.DataFrame) -> pd.DataFrame:
    hrefs = [View(tab="model", rows=(key,)).href for key in rows["key"]]
    return rows[["name", "model_type"]].assign(href=hrefs)


def heat_html(board: Board, view: View) -> str:
    """Returns the heat map."""
    rows = plotted_rows(board, view)
    found = heat_matrix(rows)
    if found is None:
        return render("plots_heat", data=None)
    data, keys, count = found
    order = [data.columns.index(label) for label in measures() if label in data.columns]
    return render(
        "plots_heat",
        data=data,
        heads=[(data.columns[index], measures()[data.columns[index]]) for index in order],
        rows=[
            (name, View(tab="model", rows=(key,)).href, [_cell(data, row, column) for column in order])
            for row, (name, key) in enumerate(zip(data.models, keys, strict=True))
        ],
        count=count,
        sort=view.sort if sort_field(view.sort) else USUAL_SORT,
        table=view.changed(tab="leaderboard").href,
    )


def heat_matrix(rows: pd.DataFrame) -> tuple[Matrix, list[str], int] | None:
    """Returns the first `MOST_MODELS` of the rows that have a value, with how good each is among all of them.

    Returns:
        The matrix, the keys of its rows, and how many rows there are without the limit; None if there is no value.
    """
    has = rows[list(measures())].notna().any(axis=1)
    rows = rows[has]
    if not len(rows):
        return None
    data = matrix(rows, registry())
    first = slice(MOST_MODELS)
    names = tuple(rows["name"])[first]  # tell them from all models of the board, not only from those of the view
    cut = replace(data, models=names, values=data.values[first], goodness=data.goodness[first])
    return cut, rows["key"].tolist()[first], len(rows)


def _cell(data: Matrix, row: int, column: int) -> tuple[str, str]:
    """The CSS class and the text of a cell."""
    value, goodness = data.values[row, column], data.goodness[row, column]
    if np.isnan(value):
        return "none", ""
    measure = measures()[data.columns[column]]
    best = " best" if goodness == 1 else ""
    return f"g{min(int(goodness * _LEVELS), _LEVELS - 1)}{best}", measure.number(value)


def _is_narrowed(view: View) -> bool:
    """Whether the view leaves models out."""
    usual = View()
    names = ("query", "types", "precisions", "sizes", "streams", "licenses", "coverage", "chat_template")
    return any(getattr(view, name) != getattr(usual, name) for name in names)
