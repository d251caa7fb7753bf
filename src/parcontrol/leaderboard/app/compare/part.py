"""Two to five models side by side."""

from __future__ import annotations

from typing import Any

import gradio as gr

from parcontrol.leaderboard.app.board import Board
from parcontrol.leaderboard.app.compare.facts import MOST_COMPARED, compare_html
from parcontrol.leaderboard.app.model.part import names
from parcontrol.leaderboard.app.model.samples import reader_of
from parcontrol.leaderboard.app.part import QUIET, Context, Part
from parcontrol.leaderboard.app.view import View


def build(context: Context) -> Part:
    """Makes the part."""
    reader = reader_of(context.live.stores.results)
    models = gr.Dropdown(
        choices=names(context.live.board),
        value=[],
        multiselect=True,
        max_choices=MOST_COMPARED,
        label="Models",
        info=f"Two to {MOST_COMPARED}; the others are compared with the first. Type a part of a name.",
        elem_id="compare-choice",
    )
    page = gr.HTML(elem_id="compare-page", apply_default_css=False)

    def choose(keys: list[str] | None) -> tuple[str, str]:
        view = View(tab="compare", rows=tuple(keys or ()))
        return view.address, compare_html(context.live.board, view, reader)

    def show(board: Board, view: View) -> list[Any]:
        known = [key for key in view.rows if board.row(key) is not None][:MOST_COMPARED]
        return [gr.update(choices=names(board), value=known), compare_html(board, view, reader)]

    models.input(choose, models, [context.address, page], **QUIET)
    return Part([models, page], show)
