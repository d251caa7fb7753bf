"""Submitting a model, and the queue.

The form and the API endpoint `/submit` are the same thing: both end at one `Desk`, which counts attempts, is told by
the request who submits, and leaves everything else to the engine's own checks.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Any

import gradio as gr

from parcontrol.leaderboard.app.board import Board
from parcontrol.leaderboard.app.part import QUIET, Context, Part
from parcontrol.leaderboard.app.submit.form import AT_ONCE, Answer, Desk, form_html
from parcontrol.leaderboard.app.submit.queue import QueueSummary, queue_html, summarise
from parcontrol.leaderboard.app.submit.visitors import Hosting, Visitor, hosting, visitor
from parcontrol.leaderboard.app.view import View
from parcontrol.leaderboard.queue import utc_now


def build(context: Context) -> Part:
    """Makes the form, the queue, and the endpoint `/submit`."""
    return _SubmitPart(context, hosting()).build()


class _SubmitPart:
    def __init__(self, context: Context, where: Hosting) -> None:
        self._live, self._settings, self._where = context.live, context.settings, where
        self._store = context.live.stores.requests
        self._desk = Desk(self._store, self._settings)
        self._summary = _once_per_board(summarise)

    def build(self) -> Part:
        if self._where.sign_in:
            gr.LoginButton(size="md", elem_id="sign-in")
        form = gr.HTML(
            self._form(Visitor("")), js_on_load=_script("submit.js"), elem_id="submit-form", apply_default_css=False
        )
        queue = gr.HTML(js_on_load=_script("queue.js"), elem_id="queue", apply_default_css=False)
        gr.on(None, self._open, None, form, **QUIET)
        handed_in: dict[str, Any] = {"concurrency_limit": AT_ONCE, "concurrency_id": "submissions"}
        form.submit(self._hand_in, None, form, **{**QUIET, "queue": True}, **handed_in)
        gr.api(self._api, api_name="submit", api_description=_API_DESCRIPTION, **handed_in)
        return Part([queue], self._show)

    def _show(self, board: Board, view: View) -> list[str]:
        return [queue_html(self._summary(board), utc_now(), is_old=bool(self._live.trouble))]

    # --- who asks ---

    def _visitor(self, request: gr.Request, profile: gr.OAuthProfile | None) -> Visitor:
        username = profile.username if profile else None
        return visitor(request.client, request.headers, username, self._settings, self._store, self._where)

    def _form(self, who: Visitor, answer: Answer | None = None) -> str:
        entries = list(self._live.board.entries)
        if answer and answer.entry:  # the board will know of it in a moment
            entries = [entry for entry in entries if entry.path != answer.entry.path] + [answer.entry]
        return form_html(answer, who, None if who.user is None else self._desk.left(who.user, entries))

    # --- events ---

    def _open(self, request: gr.Request, profile: gr.OAuthProfile | None) -> str:
        return self._form(self._visitor(request, profile))

    def _hand_in(self, event: gr.EventData, request: gr.Request, profile: gr.OAuthProfile | None) -> str:
        who = self._visitor(request, profile)
        return self._form(who, self._submit(event._data, who))

    def _submit(self, given: object, who: Visitor) -> Answer:
        answer = self._desk.submit(given, who, self._live.board.entries)
        if answer.entry:
            self._live.refresh_soon()
        return answer

    def _api(
        self,
        model_name: str,
        model_type: str,
        revision: str = "main",
        precision: str = "",
        weight_type: str = "Original",
        base_model: str = "",
        chat_template: bool = False,
        request: gr.Request | None = None,
        profile: gr.OAuthProfile | None = None,
    ) -> dict:
        assert request, "Gradio gives every handler its request"
        given = {
            "model_name": model_name,
            "model_type": model_type,
            "revision": revision,
            "precision": precision,
            "weight_type": weight_type,
            "base_model": base_model,
            "chat_template": chat_template,
        }
        answer = self._submit(given, self._visitor(request, profile))
        if answer.entry is None:
            raise gr.Error(
                f"{answer.field}: {answer.message}" if answer.field else answer.message, print_exception=False
            )
        entered = answer.entry.request
        return {
            "model": entered.model,
            "sha": entered.sha,
            "precision": entered.precision.value,
            "place": answer.place,
            "submitted_by": entered.submitted_by,
            "request": answer.entry.path,
        }


_API_DESCRIPTION = (
    "Submits a model, under the checks of the form, as the user who is signed in. model_type: pretrained, fine-tuned, "
    "instruction-tuned, RL-tuned, chat or merge; precision: empty for the one that the weights are saved in."
)


def _script(name: str) -> str:
    return resources.files("parcontrol.leaderboard.app").joinpath("static", name).read_text(encoding="utf-8")


def _once_per_board(summary: Callable[[Board], QueueSummary]) -> Callable[[Board], QueueSummary]:
    """Keeps the summary of the board that was asked for last: many visitors look at the same one."""
    last: tuple[Board, QueueSummary] | None = None

    def kept(board: Board) -> QueueSummary:
        nonlocal last
        found = last  # another thread may put another one there
        if found is None or found[0] is not board:
            last = found = (board, summary(board))
        return found[1]

    return kept
