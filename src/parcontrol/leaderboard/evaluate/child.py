"""The worker's side of the evaluating process: starts it, gives it jobs, hears what happens, and ends it."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from parcontrol.leaderboard.evaluate.environment import child_environment
from parcontrol.leaderboard.evaluate.errors import EvaluationError, MachineError
from parcontrol.leaderboard.evaluate.model_spec import Backend

_MODULE = "parcontrol.leaderboard.evaluate.server"
_LONGEST_EVENT = 1 << 20  # bytes; events are short, and the process may run somebody else's code
_LAST_LINES = 3


class User(NamedTuple):
    """Another user of this machine, as whom the process runs."""

    name: str
    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> User:
        """Returns a user of this machine.

        Raises:
            ValueError: There is no such user, or this process may not become it.
        """
        try:
            entry = pwd.getpwnam(name)
        except KeyError as error:
            raise ValueError(f"there is no user {name!r} on this machine") from error
        if os.getuid() != 0:
            raise ValueError(f"only root can start processes as user {name!r}; this worker runs as user {os.getuid()}")
        if entry.pw_uid == 0:
            raise ValueError(f"user {name!r} is root itself; name one without rights")
        return cls(name, entry.pw_uid, entry.pw_gid)


class EvaluationProcess:
    """A clean process that evaluates one job after the other, each in a process forked from it.

    It starts at once, and imports while the worker does other things.
    """

    def __init__(self, home: Path, log: Path, backend: Backend = "hf", user: User | None = None) -> None:
        """Starts the process.

        Args:
            home: Its home directory, with its caches.
            log: File that gets what it and its libraries print.
            backend: What most of its jobs will need, so that it is imported in advance.
            user: Who runs it; None for the worker's own user.
        """
        self.log = log
        for directory in (home, log.parent):
            directory.mkdir(parents=True, exist_ok=True)
        self._connection, theirs = socket.socketpair()
        self._received = b""
        self._ready = False
        self._is_guest = user is not None
        if user:
            os.chown(home, user.uid, user.gid)
        with theirs, log.open("ab") as printed:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno()), backend],
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=printed,
                    cwd=home,
                    env=child_environment(home, shared_caches=user is None),
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    user=user.uid if user else None,
                    group=user.gid if user else None,
                    extra_groups=[] if user else None,
                )
            except OSError:
                self._connection.close()
                raise

    @property
    def pid(self) -> int:
        """Its process id, which is that of its group too."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    @property
    def ready(self) -> bool:
        """Whether it has told, in `perform`, that it has imported what it needs."""
        return self._ready

    def perform(self, order: dict[str, Any], poll_seconds: float = 0.5) -> Iterator[dict[str, Any] | None]:
        """Gives an order and yields its events until it has ended well; None when nothing has happened for a while.

        See `run.run` for the events, `jobs.perform` for orders.

        Raises:
            JobFailedError: The process broke off, with what is known of why; `final` says whether the model was
                refused, so that another attempt is of no use.
            MachineError: It broke off because of this machine, or ended before it could begin with any model.
        """
        ended: dict[str, Any] | None = None
        sent = False
        while True:
            if self._ready and not sent:
                self._connection.sendall(json.dumps(order).encode() + b"\n")
                sent = True
            event = self._receive(poll_seconds)
            kind = event["event"] if event else None
            if kind == "ready":
                self._ready = True
            elif kind == "failed":
                ended = event
            elif kind == "exit":
                assert event is not None
                self._end_of_job(event["code"], ended)
                return
            else:
                yield event

    def stop(self) -> None:
        """Ends the process and everything that it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._connection.close()

    def _end_of_job(self, code: int, failed: dict[str, Any] | None) -> None:
        if failed and failed.get("machine"):
            raise MachineError(str(failed["reason"]))
        if failed:
            raise JobFailedError(str(failed["reason"]), final=bool(failed["final"]))
        if code < 0:
            name = signal.Signals(-code).name
            why = ", perhaps because memory ran out" if -code == signal.SIGKILL else ""
            raise JobFailedError(f"the evaluation was killed by {name}{why}")
        if code:
            raise JobFailedError(f"the evaluation ended with exit code {code}: {self._last_words()}")

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        while b"\n" not in self._received:
            if not select.select([self._connection], [], [], seconds)[0]:
                return None
            try:
                chunk = self._connection.recv(65536)
            except ConnectionResetError:
                chunk = b""
            if not chunk or len(self._received) > _LONGEST_EVENT:
                self.stop()
                if not self._ready and not self._is_guest:
                    raise MachineError(f"the evaluating process cannot start: {self._last_words()}")
                raise JobFailedError(f"the evaluating process is gone: {self._last_words()}")
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        try:
            event: dict[str, Any] = json.loads(line)
            assert isinstance(event["event"], str)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            self.stop()
            raise JobFailedError(f"the evaluating process says what is no event: {line[:80]!r}") from error
        return event

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        spoken = [line.strip() for line in lines if line.strip()]
        return " | ".join(spoken[-_LAST_LINES:])[-600:] or "it said nothing"


class JobFailedError(EvaluationError):
    """A job ended before its tasks did.

    Attributes:
        final: Whether the model was refused, so that another attempt is of no use.
    """

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final
