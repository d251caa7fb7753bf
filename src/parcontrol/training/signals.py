"""SIGINT and SIGTERM as a question that the loop asks where it can stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from parcontrol.training.errors import Interrupted
from parcontrol.training.processes import several_processes

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deferred_signals() -> Iterator[Callable[[], None]]:
    """Yields a function that raises `Interrupted` once SIGINT or SIGTERM has come.

    In between, a signal is only noted, so that no update is torn. A second one ends the process
    at once: that is safe as well, for a checkpoint is whole or not there.

    Handlers belong to the main thread; in another one nothing is deferred. After an error in one of
    several processes signals stay deferred: torchrun ends all as soon as one has left, and this one
    has yet to say why it ends.
    """
    received: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        if received:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        received.append(signum)

    def check() -> None:
        if received:
            raise Interrupted(received[0])

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = {signum: signal.signal(signum, note) for signum in _SIGNALS}
    stays_deferred = False
    try:
        yield check
    except Exception:
        stays_deferred = several_processes()
        raise
    finally:
        for signum, handler in before.items():
            if not stays_deferred:
                signal.signal(signum, handler)
