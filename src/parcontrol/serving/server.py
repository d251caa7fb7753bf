"""The server's process: the address it listens on, the model it loads, and its end."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from transformers.utils.import_utils import is_serve_available

from parcontrol.parscale.loading import load_backbone
from parcontrol.runs import RunDirectory
from parcontrol.serving.errors import EndingError

logger = logging.getLogger(__name__)

# Answers that are being made when the server is told to end get so long to finish; then no further token is made.
_GRACE_S = 5.0
# Readers that do not take their answer are left after so long.
_LAST_S = 30


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
        from parcontrol.serving.application import build_app  # needs the server's libraries

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
