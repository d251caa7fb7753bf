"""One model behind transformers' own OpenAI-compatible server.

`transformers serve` refuses ParScale checkpoints: its model manager looks an architecture up by name among the classes
that transformers itself exports, and finds none of ours, with remote code allowed or not. Beside that it serves any
model that a request names, and lists what is in the Hub's cache instead of what it serves. So the routes, the handlers
and the generation are transformers' (`transformers.cli.serving`), and only the model manager is replaced: by one that
holds the model of one directory.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.import_utils import is_serve_available

from parcontrol.parscale.loading import load_backbone
from parcontrol.runs import RunDirectory

logger = logging.getLogger(__name__)

# Answers that are being made when the server is told to end get so long to finish; then no further token is made.
_GRACE_S = 5.0
# Readers that do not take their answer are left after so long.
_LAST_S = 30


class EndingError(RuntimeError):
    """The server ends before the answer is complete."""


def serve(directory: Path, host: str, port: int) -> None:
    """Serves the model of a directory until SIGINT or SIGTERM, which are raised again after the last request.

    Args:
        directory: What `save_pretrained` wrote: a ParScale checkpoint or a plain model. Loaded from safetensors only,
            without remote code and without a network.
        host: Name or address to listen on.
        port: TCP port; 0 takes a free one.

    Raises:
        ValueError: There is no model in the directory, it cannot be loaded, or the server's libraries are missing.
        OSError: The address cannot be had.
    """
    if not is_serve_available():
        raise ValueError("the server needs fastapi, uvicorn and openai: pip install 'parcontrol[serve]'")
    _check_model(directory)
    # Before the model is loaded: that takes long, and a port that is taken need not wait for it.
    with listen(host, port) as listener:
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        model, tokenizer = load_backbone(str(directory), dtype="auto", device=device)
        if tokenizer.chat_template is None:
            logger.warning("%s has no chat template: /v1/completions answers, chat is refused", directory)
        app = build_app(str(directory), model, tokenizer)
        address = f"[{host}]" if ":" in host else host
        print(f"serving {directory} on {device}: http://{address}:{listener.getsockname()[1]}/v1", flush=True)
        with _stoppable(model) as stop:
            _run(app, listener, stop)


def listen(host: str, port: int) -> socket.socket:
    """Opens a listening socket.

    Raises:
        OSError: The address is taken, not allowed or not of this machine; the message names it.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error


def build_app(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Returns transformers' application (FastAPI) around one model.

    What a request asks for and transformers refuses with ValueError, such as a chat without chat template or a negative
    temperature, is answered with status 400 and the reason; transformers would answer 500 without one. So is a prompt
    without tokens.

    Args:
        name: How requests name the model; another name is refused with status 400.
        model: In evaluation mode, on its device.
        tokenizer: Its tokenizer.
    """
    from fastapi import Request
    from fastapi.responses import JSONResponse
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.response import ResponseHandler
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.systemone import SystemOneHandler
    from transformers.cli.serving.transcription import TranscriptionHandler
    from transformers.cli.serving.utils import GenerationState

    class OneModel(ModelManager):
        """Has one model from the start, never loads another and never gives it up."""

        def __init__(self) -> None:
            super().__init__()
            self.force_model = name  # what handlers refuse all other names with
            self.entry = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "parcontrol"}

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
            if model_id_and_revision != name or gguf_file is not None:
                raise ValueError(f"{model_id_and_revision!r} is not served here; the one model is {name!r}")
            if progress_callback is not None:
                progress_callback({"status": "ready", "model": name, "cached": True})
            return model, tokenizer

        def get_gen_models(self) -> list[dict[str, Any]]:  # type: ignore[override]  # static and cached there
            return [self.entry]

    class Completions(CompletionHandler):
        """Refuses a prompt that there is nothing to continue from, on which generation would fail."""

        async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
            prompt = body.get("prompt", "")
            if isinstance(prompt, str) and not tokenizer(prompt)["input_ids"]:
                raise ValueError(f"the prompt {prompt!r} has no tokens: at least one is needed")
            return await super().handle_request(body, request_id)

    async def refuse(_request: Request, error: Exception) -> JSONResponse:
        logger.warning("refused: %s", error)
        kind, status = ("server_error", 503) if isinstance(error, EndingError) else ("invalid_request_error", 400)
        return JSONResponse({"error": {"message": str(error), "type": kind}}, status_code=status)

    manager, state = OneModel(), GenerationState()
    app = build_server(
        manager,
        ChatCompletionHandler(manager, state),
        completion_handler=Completions(manager, state),
        response_handler=ResponseHandler(manager, state),
        transcription_handler=TranscriptionHandler(manager, state),
        systemone_handler=SystemOneHandler(manager, state),
        generation_state=state,
    )
    app.add_exception_handler(ValueError, refuse)
    app.add_exception_handler(EndingError, refuse)
    return app


@contextmanager
def _stoppable(model: Any) -> Iterator[Callable[[], None]]:
    """Yields a function after which the model's `generate` raises `EndingError`, at the next token and ever after.

    Leaving calls it and waits for that token. Generation runs in a thread that nothing else waits for, and a process
    that ends while torch computes in one is aborted.
    """
    generate, ending, idle = model.generate, threading.Event(), threading.Lock()

    def check() -> None:
        if ending.is_set():
            raise EndingError("the server is ending")

    def check_at_token(input_ids: Tensor, _scores: Tensor, **_: object) -> Tensor:
        check()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def stoppable(**arguments: Any) -> Any:
        with idle:
            check()
            return generate(**arguments, stopping_criteria=[check_at_token])

    model.generate = stoppable
    try:
        yield ending.set
    finally:
        ending.set()
        idle.acquire()  # and kept: what still waits for its turn never has it


def _run(app: Any, listener: socket.socket, stop: Callable[[], None]) -> None:
    """Answers until SIGINT or SIGTERM, and `stop`s what is still being made some seconds later."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            timer = threading.Timer(_GRACE_S, stop)
            timer.daemon = True
            timer.start()
            super().handle_exit(sig, frame)

    Server(uvicorn.Config(app, timeout_graceful_shutdown=_LAST_S)).run(sockets=[listener])


def _check_model(directory: Path) -> None:
    if not directory.is_dir():
        raise ValueError(f"{str(directory)!r} is not a directory")
    if not (directory / "config.json").is_file():
        final = RunDirectory(directory).final_dir
        hint = f"; the model of this run is {str(final)!r}" if final.is_dir() else ": config.json is missing"
        raise ValueError(f"{str(directory)!r} holds no model{hint}")
