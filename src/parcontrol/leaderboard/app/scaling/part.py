"""Parallel scaling: a metric against P, for families of models that differ only in P."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import gradio as gr
import numpy as np

from parcontrol.leaderboard.app.board import Board
from parcontrol.leaderboard.app.markup import render
from parcontrol.leaderboard.app.measures import Measure
from parcontrol.leaderboard.app.part import QUIET, Context, Part
from parcontrol.leaderboard.app.plots.figures import (
    KINDS,
    Axis,
    Figure,
    Level,
    Mark,
    Segment,
    measure_axis,
    script,
    stream_axis,
    value_text,
)
from parcontrol.leaderboard.app.quantities import quantities
from parcontrol.leaderboard.app.scaling.families import Family, Point, families, sentence, usual_label
from parcontrol.leaderboard.app.view import View

# More plots than that nobody compares; the table has all families.
MOST_PLOTS = 12


def build(context: Context) -> Part:
    """Makes the part."""
    with gr.Row():
        metric = gr.Dropdown(list(quantities()), label="Metric", scale=0, min_width=300)
    plots = gr.HTML(elem_id="scaling", js_on_load=script(), apply_default_css=False, min_height=600)

    def show(board: Board, view: View) -> list[Any]:
        return [chosen(board, view), scaling_html(board, view)]

    def change(address: str, label: str) -> list[Any]:
        view = context.view(address).changed(task=label)
        return [view.address, scaling_html(context.live.board, view)]

    metric.input(change, [context.address, metric], [context.address, plots], **QUIET)
    return Part([metric, plots], show)


def chosen(board: Board, view: View) -> str:
    """Returns the quantity of a view; where it names none, the first that a family has."""
    return view.task if view.task in quantities() else usual_label(board)


def scaling_html(board: Board, view: View) -> str:
    """Returns plots, table and summary of a view."""
    label = chosen(board, view)
    measure = quantities()[label]
    found = families(board, label)
    return render(
        "scaling",
        label=label,
        measure=measure,
        unknown=view.task if view.task and view.task not in quantities() else "",
        families=[(family, sentence(label, family.trend), _rows(family, measure)) for family in found],
        figures=scaling_figures(found, measure),
        most=MOST_PLOTS,
        others=bool(found) or bool(families(board, usual_label(board))),
        usual=view.changed(task="").href,
        any_streams=bool(board.table["P"].notna().any()),
        kinds=KINDS,
        model_view=model_view,
    )


def model_view(key: str) -> str:
    """Returns the link to a model's own view."""
    return View(tab="model", rows=(key,)).href


def scaling_figures(found: list[Family], measure: Measure) -> list[Figure]:
    """Returns a plot for every family, at most `MOST_PLOTS`, on common axes."""
    if not found:
        return []
    found = found[:MOST_PLOTS]
    runs = [(run.value, math.nan) for family in found for point in family.points for run in point.runs]
    means = [(point.mean, point.error) for family in found for point in family.points]
    bases = [(family.base.value, math.nan) for family in found if family.base]
    values, errors = np.array([*runs, *means, *bases]).T
    axis = measure_axis(measure, values, errors)
    streams = stream_axis(point.streams for family in found for point in family.points)
    return [_figure(number, family, measure, streams, axis) for number, family in enumerate(found)]


def _figure(number: int, family: Family, measure: Measure, x: Axis, y: Axis) -> Figure:
    seeds = [
        Mark(
            point.streams,
            run.value,
            0,
            tip=(run.name, _seed_text(run.seed), f"P = {point.streams}", value_text(measure, run.value, run.stderr)),
            href=model_view(run.key),
            faint=True,
        )
        for point in family.points
        if len(point.runs) > 1
        for run in point.runs
    ]
    means = [
        Mark(
            point.streams,
            point.mean,
            0,
            tip=(f"P = {point.streams}", *_mean_text(point, measure)),
            href=model_view(point.runs[0].key) if len(point.runs) == 1 else "",
            y_error=point.error,
        )
        for point in family.points
    ]
    pairs = pairwise(family.points)
    described = "; ".join(f"P = {point.streams}: {', '.join(_mean_text(point, measure))}" for point in family.points)
    base = family.base
    return Figure(
        f"family-{number}",
        f"{measure.label} against P for models made from {family.base_model}, {family.details}. {described}.",
        x,
        y,
        [*seeds, *means],
        [Segment(left.streams, left.mean, right.streams, right.mean, "join k0") for left, right in pairs],
        [Level(base.value, f"base model {measure.text(base.value)}")] if base else [],
    )


def _seed_text(seed: int | None) -> str:
    return "seed not stated" if seed is None else f"seed {seed}"


def _mean_text(point: Point, measure: Measure) -> tuple[str, ...]:
    if point.seeds == 1:
        return (value_text(measure, point.mean, point.error), "one seed; ± is the standard error of the task")
    error = measure.number(point.error)
    return (f"mean {measure.text(point.mean)}, standard deviation {error} over {point.seeds} seeds",)


def _rows(family: Family, measure: Measure) -> list[dict[str, Any]]:
    return [
        {
            "streams": point.streams,
            "seeds": point.seeds,
            "mean": measure.number(point.mean),
            "deviation": measure.number(point.error) if point.seeds > 1 else "",
            "stderr": measure.number(point.error) if point.seeds == 1 else "",
            "runs": [
                (run.name, model_view(run.key), _seed_text(run.seed), measure.number(run.value)) for run in point.runs
            ],
        }
        for point in family.points
    ]
