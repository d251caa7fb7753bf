"""What a part of the page is: components that are made once, and what they hold for a board and a view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.blocks import Block

from parcontrol.leaderboard.app.board import Board, LiveBoard
from parcontrol.leaderboard.app.view import View, view_at
from parcontrol.leaderboard.settings import Settings

# Of every event that only the page itself uses.
QUIET: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}


@dataclass(frozen=True)
class Context:
    """What parts of the page are made with.

    Attributes:
        live: Gives the newest board.
        settings: Where the store and models are.
        address: Hidden text; whoever writes the address of a view into it changes the address of the page.
    """

    live: LiveBoard
    settings: Settings
    address: gr.Textbox

    @staticmethod
    def view(address: str) -> View:
        """Returns the view that `address` holds."""
        return view_at(address)


@dataclass(frozen=True)
class Part:
    """One part of the page.

    Attributes:
        components: What it consists of.
        show: Returns what the components hold, one value or update for each, for a board and a view. Called when the
            part is opened, and when a link on it is followed.
        refresh: The same, when there is a new board: what somebody is filling in stays. None if `show` will do.
    """

    components: Sequence[Block]
    show: Callable[[Board, View], Sequence[Any]]
    refresh: Callable[[Board, View], Sequence[Any]] | None = None
