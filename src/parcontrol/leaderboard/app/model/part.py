"""A model's own view: who it is, all its values, what it answered, how to measure it again, its other revisions."""

from __future__ import annotations

from typing import Any

import gradio as gr

from parcontrol.leaderboard.app.board import Board
from parcontrol.leaderboard.app.model.facts import model_html
from parcontrol.leaderboard.app.model.samples import reader_of
from parcontrol.leaderboard.app.part import QUIET, Context, Part
from parcontrol.leaderboard.app.view import View, view_at


def build(context: Context) -> Part:
    """Makes the part."""
    reader = reader_of(context.live.stores.results)
    model = gr.Dropdown(
        choices=names(context.live.board),
        value=None,
        label="Model",
        info="Type a part of its name.",
        elem_id="model-choice",
    )
    page = gr.HTML(elem_id="model-page", apply_default_css=False)

    def choose(key: str | None, address: str) -> tuple[str, str]:
        view = View(tab="model", rows=(key,) if key else (), task=view_at(address).task)
        return view.address, model_html(context.live.board, view, reader)

    def show(board: Board, view: View) -> list[Any]:
        key = view.rows[0] if view.rows and board.row(view.rows[0]) is not None else None
        return [gr.update(choices=names(board), value=key), model_html(board, view, reader)]

    model.input(choose, [model, context.address], [context.address, page], **QUIET)
    return Part([model, page], show)


def names(board: Board) -> list[tuple[str, str]]:
    """Returns name and key of every row, by name."""
    pairs = zip(board.table["name"], board.table["key"], strict=True)
    return sorted(pairs, key=lambda pair: pair[0].casefold())
