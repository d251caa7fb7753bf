"""The web application: the page, and the table as files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import resources

import gradio as gr
from fastapi import FastAPI, Request, Response

from parcontrol.leaderboard.app.board import Board, LiveBoard
from parcontrol.leaderboard.app.limits import guard
from parcontrol.leaderboard.app.page import Page
from parcontrol.leaderboard.app.table import downloads
from parcontrol.leaderboard.app.view import View, view_at
from parcontrol.leaderboard.settings import Settings

_FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
_MONO = ["ui-monospace", "DejaVu Sans Mono", "Menlo", "Consolas", "monospace"]


def application(live: LiveBoard, settings: Settings) -> FastAPI:
    """Returns the web application.

    Args:
        live: Gives the newest board; it is closed with the application.
        settings: Where the store and models are.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        live.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=life)
    guard(app)
    _offer(app, live, "/table.csv", "text/csv", downloads.csv)
    _offer(app, live, "/table.json", "application/json", downloads.json)
    return gr.mount_gradio_app(
        app,
        Page(live, settings).blocks,
        path="/",
        footer_links=[],
        show_error=False,
        ssr_mode=False,
        theme=theme(),
        css=styles(),
    )


def _offer(app: FastAPI, live: LiveBoard, path: str, kind: str, make: Callable[[Board, View], bytes]) -> None:
    @app.get(path)
    def download(request: Request) -> Response:
        content = make(live.board, view_at(request.url.query))
        name = f"attachment; filename=hallucinations-leaderboard{path[-5:].lstrip('e')}"
        return Response(content, media_type=kind, headers={"Content-Disposition": name})


def theme() -> gr.themes.Base:
    """Returns the colours and type of Gradio's own components; fonts are those of the visitor's system."""
    return gr.themes.Base(primary_hue="blue", neutral_hue="slate", radius_size="md", font=_FONT, font_mono=_MONO).set(
        body_background_fill="#fbfbfa",
        body_background_fill_dark="#12161c",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1a2029",
        block_border_width="1px",
    )


def styles() -> str:
    """Returns all style sheets, that of the page first."""
    folder = resources.files("parcontrol.leaderboard.app").joinpath("static")
    sheets = sorted((sheet for sheet in folder.iterdir() if sheet.name.endswith(".css")), key=_page_first)
    return "\n".join(sheet.read_text(encoding="utf-8") for sheet in sheets)


def _page_first(sheet: object) -> tuple[bool, str]:
    name = getattr(sheet, "name", "")
    return (name != "page.css", name)
