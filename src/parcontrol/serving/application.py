"""transformers' application around one model: what it serves, and what it makes of a request."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.systemone import SystemOneHandler
from transformers.cli.serving.transcription import TranscriptionHandler
from transformers.cli.serving.utils import GenerationState

from parcontrol.serving.errors import EndingError

logger = logging.getLogger(__name__)


def build_app(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> FastAPI:
    """Returns transformers' application around one model.

    What a request asks for and cannot have (a chat without chat template, a negative temperature, a prompt without
    tokens) is answered with status 400 and the reason, as OpenAI's clients read it; transformers would answer 500
    without one, or with a reason that they do not find.

    Args:
        name: How requests name the model; another name is refused.
        model: In evaluation mode, on its device.
        tokenizer: Its tokenizer.
    """
    manager, state = _OneModel(name, model, tokenizer), GenerationState()
    app = build_server(
        manager,
        _Chats(manager, state),
        completion_handler=_Completions(manager, state),
        response_handler=_Responses(manager, state),
        transcription_handler=TranscriptionHandler(manager, state),
        systemone_handler=SystemOneHandler(manager, state),
        generation_state=state,
    )
    for error in (ValueError, EndingError, HTTPException):
        app.add_exception_handler(error, _refuse)
    return app


async def _refuse(_request: Request, error: Exception) -> JSONResponse:
    message, status = str(error), 400
    if isinstance(error, HTTPException):
        message, status = str(error.detail), error.status_code
    if isinstance(error, EndingError):
        status = 503
    logger.warning("refused: %s", message)
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind}}, status_code=status)


class _OneModel(ModelManager):
    """Has one model from the start, never loads another and never gives it up."""

    def __init__(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.force_model = name  # what handlers refuse all other names with
        self.model, self.tokenizer = model, tokenizer
        self._entry = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "parcontrol"}

    @staticmethod
    def process_model_name(model_id: str) -> str:
        return model_id  # a directory has no revision

    def load_model_and_processor(
        self,
        model_id_and_revision: str,
        progress_callback: Callable[[dict[str, Any]], None] | None = None,
        tqdm_class: type | None = None,
        gguf_file: str | None = None,
    ) -> tuple[PreTrainedModel, Any]:
        name = self.force_model
        if model_id_and_revision != name or gguf_file is not None:
            raise ValueError(f"{model_id_and_revision!r} is not served here; the one model is {name!r}")
        if progress_callback is not None:
            progress_callback({"status": "ready", "model": name, "cached": True})
        return self.model, self.tokenizer

    def get_gen_models(self) -> list[dict[str, Any]]:  # type: ignore[override]  # static and cached there
        return [self._entry]


class _Sampling:
    """Samples where a request gives a temperature above 0, or top_p alone.

    transformers takes over both numbers, but samples only where the model's generation_config already says so.
    """

    def _build_generation_config(self, body: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        temperature, top_p = body.get("temperature"), body.get("top_p")
        if not _is_number(temperature, 0, math.inf):
            raise ValueError(f"temperature is {temperature!r}: 0, for the likeliest tokens, or more is needed")
        if not _is_number(top_p, 0, 1):
            raise ValueError(f"top_p is {top_p!r}: a number from 0 to 1 is needed")
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if not _is_number(body.get(name), 1, math.inf):
                raise ValueError(f"{name} is {body[name]!r}: a number from 1 on is needed")
        config = super()._build_generation_config(body, *arguments, **options)  # type: ignore[misc]  # a handler's
        if temperature or (temperature is None and top_p is not None):
            config.do_sample = True
        return config


def _is_number(value: Any, least: float, most: float) -> bool:
    """Whether a field of a request is a number in a range, or is not given."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most)


class _Chats(_Sampling, ChatCompletionHandler):
    """Refuses messages that are none, on which the template would fail."""

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        messages = body.get("messages")
        if not (isinstance(messages, list) and messages and all(map(_is_message, messages))):
            raise ValueError(f"messages is {messages!r}: a list of objects with role and content is needed")
        return await super().handle_request(body, request_id)


class _Completions(_Sampling, CompletionHandler):
    """Refuses a prompt that there is nothing to continue from, on which generation would fail."""

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        prompt = body.get("prompt", "")
        assert isinstance(self.model_manager, _OneModel)
        if isinstance(prompt, str) and not self.model_manager.tokenizer(prompt)["input_ids"]:
            raise ValueError(f"the prompt {prompt!r} has no tokens: at least one is needed")
        return await super().handle_request(body, request_id)


class _Responses(_Sampling, ResponseHandler):
    """Refuses input that is neither a text nor a list of messages and other items."""

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        given = body.get("input")
        items = isinstance(given, list) and given and all(_is_message(one) or _has_type(one) for one in given)
        if not (isinstance(given, str) and given) and not items:
            raise ValueError(f"input is {given!r}: a text, or a list of objects with role and content, is needed")
        return await super().handle_request(body, request_id)


def _is_message(value: Any) -> bool:
    """Whether an item has a role, and a content that is text, parts or nothing."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("role"), str)
        and isinstance(value.get("content"), str | list | None)
    )


def _has_type(value: Any) -> bool:
    """Whether an item is another than a message, such as what a tool has answered."""
    return isinstance(value, dict) and value.get("type", "message") != "message"
