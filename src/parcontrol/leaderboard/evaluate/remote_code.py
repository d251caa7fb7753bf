"""Models that may bring their own code: an allow-list of reviewed commits, run as another user.

The list is `remote_code.yaml` in the leaderboard's directory; without it no model may. It names the user as whom the
code runs, and for every model the one commit that somebody has read:

    user: leaderboard-guest
    models:
      organisation/model: 0123456789abcdef0123456789abcdef01234567

Only a worker that runs as root can become another user; any other refuses such a model by name. The user needs no
rights but to read Python and this package.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from parcontrol.leaderboard.evaluate.child import EvaluationProcess, JobFailedError, User
from parcontrol.leaderboard.evaluate.model_spec import Job, ModelSpec
from parcontrol.leaderboard.evaluate.spool import RESULTS, SAMPLES
from parcontrol.runs import atomic_directory

FILE = "remote_code.yaml"
_COMMIT = re.compile(r"[0-9a-f]{40}|local-[0-9a-f]{64}")
_MOST_BYTES = 4 << 30  # of one file of a task


@dataclass(frozen=True)
class RemoteCode:
    """The allow-list.

    Attributes:
        user: Who runs the code.
        models: The commit that may run, by model.
    """

    user: str = ""
    models: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> RemoteCode:
        """Reads the list; without a file it is empty.

        Raises:
            ValueError: The file is not such a list.
        """
        if not path.exists():
            return cls()
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict) or set(content) != {"user", "models"}:
            raise ValueError(f"{path} has to have the keys `user` and `models`, and no others")
        user, models = content["user"], content["models"]
        if not isinstance(user, str) or not isinstance(models, dict):
            raise ValueError(f"{path}: `user` is a name, and `models` lists commits by model")
        for model, commit in models.items():
            if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
                raise ValueError(f"{path}: {model}: {commit!r} is no commit of 40 hexadecimal digits")
        return cls(user, models)

    def allows(self, model: ModelSpec) -> bool:
        """Whether this commit of this model may run code of its own."""
        return self.models.get(model.model) == model.sha


@dataclass(frozen=True)
class Guest:
    """One job in a process of another user.

    Attributes:
        process: The process.
        job: The job, which writes into a directory of that user.
        out: Where finished tasks belong.
    """

    process: EvaluationProcess
    job: Job
    out: Path

    def adopt(self, task: str) -> None:
        """Takes a finished task over: two plain files, copied, of a task that was ordered.

        Raises:
            JobFailedError: It is something else.
        """
        if task not in self.job.tasks:
            raise JobFailedError(f"{self.job.spec.model} reports a task that was not ordered", final=True)
        with atomic_directory(self.out / task) as partial:
            for name in (RESULTS, SAMPLES):
                _copy(Path(self.job.out) / task / name, partial / name)


@contextmanager
def guest(job: Job, user: str, log: Path) -> Iterator[Guest]:
    """Starts a process as another user for one job; its home, with all it writes, is removed at the end.

    Raises:
        JobFailedError: This worker cannot become that user.
    """
    try:
        account = User.named(user)
    except ValueError as error:
        raise JobFailedError(f"{job.spec.model} runs code of its own, and {error}", final=True) from error
    # Not below the worker's directory, which that user may have no way into.
    home = Path(tempfile.mkdtemp(prefix="parcontrol-guest-"))
    try:
        process = EvaluationProcess(home, log, job.spec.backend, account)
    except OSError as error:
        shutil.rmtree(home)
        reason = f"user {user!r} cannot run {sys.executable}: {error.strerror}"
        raise JobFailedError(f"{job.spec.model} runs code of its own, and {reason}", final=True) from error
    try:
        yield Guest(process, replace(job, out=str(home / "out")), Path(job.out))
    finally:
        process.stop()
        shutil.rmtree(home)


def _copy(source: Path, target: Path) -> None:
    """Copies a plain file that somebody else wrote; nothing is followed that is no file of its own."""
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise JobFailedError(f"a finished task has no {source.name}: {error.strerror}", final=True) from error
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1 or about.st_size > _MOST_BYTES:
        os.close(fd)
        raise JobFailedError(f"a finished task has a {source.name} that is no plain file of its own", final=True)
    with os.fdopen(fd, "rb") as file, target.open("wb") as copy:
        shutil.copyfileobj(file, copy)
