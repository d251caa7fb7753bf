"""The page: a bar of links, and under it the parts, of which one is shown.

Every link to a view is `<a href="?…">`. A click on one, the back button and the first load all end in `Page.open`,
which fills the part that the view is of; a part's own controls write the address of their view into `Context.address`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Any

import gradio as gr
from gradio.blocks import Block

from parcontrol.leaderboard.app.about import part as about
from parcontrol.leaderboard.app.board import LiveBoard
from parcontrol.leaderboard.app.compare import part as compare
from parcontrol.leaderboard.app.markup import render
from parcontrol.leaderboard.app.model import part as model
from parcontrol.leaderboard.app.part import QUIET, Context, Part
from parcontrol.leaderboard.app.plots import part as plots
from parcontrol.leaderboard.app.scaling import part as scaling
from parcontrol.leaderboard.app.submit import part as submit
from parcontrol.leaderboard.app.table import part as table
from parcontrol.leaderboard.app.view import Tab, View, view_at
from parcontrol.leaderboard.settings import Settings

TITLE = "Hallucinations Leaderboard"
SECONDS_BETWEEN_LOOKS = 10.0  # of an open page at the board
MOST_WAITING = 64  # of events that take their turn: submissions

PARTS: dict[Tab, tuple[str, Callable[[Context], Part]]] = {
    "leaderboard": ("Leaderboard", table.build),
    "model": ("Model", model.build),
    "compare": ("Compare", compare.build),
    "scaling": ("Parallel scaling", scaling.build),
    "plots": ("Plots", plots.build),
    "submit": ("Submit and queue", submit.build),
    "about": ("About", about.build),
}


def static(name: str) -> str:
    """Returns a file of `static/`."""
    return resources.files("parcontrol.leaderboard.app").joinpath("static", name).read_text(encoding="utf-8")


class Page:
    """The page's components and what fills them.

    Args:
        live: Gives the newest board.
        settings: Where the store and models are.
    """

    def __init__(self, live: LiveBoard, settings: Settings) -> None:
        self.live = live
        with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False) as self.blocks:
            self._address = gr.Textbox(visible="hidden", elem_id="address", container=False)
            self._seen = gr.State(None)  # what tells whether the page shows the newest board
            self._bar = gr.HTML(self._bar_html(View(), filled=False), elem_id="bar", apply_default_css=False)
            self._columns: dict[Tab, gr.Column] = {}
            self._parts: dict[Tab, Part] = {}
            context = Context(live, settings, self._address)
            for tab, (_, build) in PARTS.items():
                with gr.Column(visible=tab == View.tab, elem_id=f"part-{tab}", elem_classes="part") as column:
                    self._parts[tab] = build(context)
                self._columns[tab] = column
            gr.HTML(render("footer"), elem_id="footer", apply_default_css=False)
            navigator = gr.HTML(
                '<div id="announcer" role="status" class="unseen"></div>',
                js_on_load=static("navigator.js"),
                elem_id="navigator",
                apply_default_css=False,
            )
            timer = gr.Timer(SECONDS_BETWEEN_LOOKS)
        self.blocks.queue(max_size=MOST_WAITING)
        outputs = self._outputs()
        with self.blocks:
            self.blocks.load(self._open, self._address, outputs, js="() => location.search", **QUIET)
            navigator.click(self._follow, self._address, outputs, trigger_mode="multiple", **QUIET)
            timer.tick(self._look, [self._address, self._seen], outputs, **QUIET)
            self._address.change(None, self._address, None, js=static("address.js"))

    def _outputs(self) -> list[Any]:
        components: list[Block] = [component for part in self._parts.values() for component in part.components]
        return [self._address, self._seen, self._bar, *self._columns.values(), *components]

    def open(self, view: View, refresh: bool = False) -> list[Any]:
        """Returns what every output holds for a view, or what changes when there is a new board."""
        filled: list[Any] = []
        for tab, part in self._parts.items():
            show = part.refresh if refresh and part.refresh else part.show
            filled += show(self.live.board, view) if tab == view.tab else [gr.skip()] * len(part.components)
        columns = [gr.update(visible=tab == view.tab) for tab in self._columns]
        return [view.address, self._state(), self._bar_html(view), *columns, *filled]

    def _open(self, address: str) -> list[Any]:
        return self.open(view_at(address))

    def _follow(self, before: str, click: gr.EventData) -> list[Any]:
        view = view_at(str(click._data.get("address", "")))
        # What somebody types meanwhile stays, if the link has nothing to say about it.
        return self.open(view, refresh=view.same_controls(view_at(before)))

    def _look(self, address: str, seen: Any) -> list[Any]:
        """Shows the newest board, if there is a newer one than the page has."""
        if seen == self._state():
            return [gr.skip()] * len(self._outputs())
        return self.open(view_at(address), refresh=True)

    def _state(self) -> tuple[str, str]:
        return (self.live.board.read_at.isoformat(), self.live.trouble)

    def _bar_html(self, view: View, filled: bool = True) -> str:
        links = [(name, View(tab=tab).href, tab == view.tab) for tab, (name, _) in PARTS.items()]
        return render("bar", title=TITLE, links=links, board=self.live.board, trouble=self.live.trouble, filled=filled)
