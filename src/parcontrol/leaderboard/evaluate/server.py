"""The evaluating process: imports everything once, then forks for every job.

    python -P -m parcontrol.leaderboard.evaluate.server SOCKET BACKEND

Importing the harness, torch and transformers takes seconds, and forking milliseconds. The forking process itself never
loads a model, so nothing of one job can reach the next. Jobs come in, and events go out, as JSON lines on the socket
whose descriptor is given; BACKEND is what most jobs will need. When the socket's other end closes, the worker is gone,
and everything here ends.

On a system where a process with these libraries cannot be forked safely (macOS), it runs one job itself and ends.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn, cast

from parcontrol.leaderboard.evaluate.environment import FORKS
from parcontrol.leaderboard.evaluate.errors import EvaluationError, ModelRefusedError, machine_fault
from parcontrol.leaderboard.evaluate.jobs import perform
from parcontrol.leaderboard.evaluate.model_spec import Backend

# Exit codes of a forked process; its last event says why.
_REFUSED, _BROKEN = 3, 4


def main() -> None:
    """Serves until the worker closes its end."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the worker decides what ends
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")

    from parcontrol.leaderboard.evaluate import run

    run.warm_up(cast(Backend, sys.argv[2]))
    _send(connection, {"event": "ready"})
    for line in connection.makefile("rb"):
        if not FORKS:
            _run_here(line, connection)
        try:
            pipe = os.pipe()
        except OSError as error:
            _send(connection, _failed(error))
            _send(connection, {"event": "exit", "code": _BROKEN})
            continue
        _run_forked(line, connection, *pipe)


def _run_forked(line: bytes, connection: socket.socket, read: int, write: int) -> None:
    child = os.fork()
    if child == 0:
        os.close(read)
        connection.close()
        with os.fdopen(write, "wb") as events:
            _exit(_perform(line, lambda event: _write(events, event)))
    os.close(write)
    _relay(read, connection, child)
    os.close(read)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    _send(connection, {"event": "exit", "code": code})


def _relay(events: int, connection: socket.socket, child: int) -> None:
    """Passes whole lines on until the job ends; ends with it when the worker is gone."""
    rest = b""
    while True:
        readable, _, _ = select.select([events, connection.fileno()], [], [])
        if connection.fileno() in readable:  # the worker sends nothing before a job has ended, so this is its end
            os.kill(child, signal.SIGKILL)
            os._exit(1)
        chunk = os.read(events, 65536)
        if not chunk:
            return
        whole, newline, rest = (rest + chunk).rpartition(b"\n")
        connection.sendall(whole + newline)


def _run_here(line: bytes, connection: socket.socket) -> NoReturn:
    def end_with_worker() -> None:
        connection.recv(1)
        os._exit(1)

    threading.Thread(target=end_with_worker, daemon=True).start()
    code = _perform(line, lambda event: _send(connection, event))
    _send(connection, {"event": "exit", "code": code})
    _exit(code)


def _perform(line: bytes, report: Callable[[dict[str, Any]], None]) -> int:
    """Does one job and returns the exit code."""
    try:
        perform(json.loads(line), report)
        return 0
    except Exception as error:
        event = _failed(error)
        if not event["final"]:
            logging.getLogger(__name__).exception("the job broke off")
        report(event)
        return _REFUSED if event["final"] else _BROKEN


def _failed(error: Exception) -> dict[str, Any]:
    """The last event of a job: its reason, whose fault it is, and whether another attempt would be of no use."""
    if fault := machine_fault(error):
        return {"event": "failed", "reason": fault, "final": False, "machine": True}
    kind = "" if isinstance(error, ModelRefusedError | EvaluationError) else f"{type(error).__name__}: "
    return {"event": "failed", "reason": kind + _line(error), "final": isinstance(error, ModelRefusedError)}


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:2000]


def _exit(code: int) -> NoReturn:
    """Ends a forked process without running what the forking one registered for its own end."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # also when the disk is full, or the forked process would go on in the place of the forking one
        os._exit(code)


def _write(file: BinaryIO, event: dict[str, Any]) -> None:
    file.write(json.dumps(event).encode() + b"\n")
    file.flush()


def _send(connection: socket.socket, event: dict[str, Any]) -> None:
    connection.sendall(json.dumps(event).encode() + b"\n")


if __name__ == "__main__":
    main()
