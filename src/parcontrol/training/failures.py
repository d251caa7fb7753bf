"""Turns what the machine runs out of into one message that says what to do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from parcontrol.config import RunConfig
from parcontrol.diagnostics.memory import out_of_memory_advice
from parcontrol.runs import RunDirectory
from parcontrol.training.errors import (
    DiskFullError,
    LostProcessError,
    OutOfMemoryError,
    RunStoppedError,
    TooManyFilesError,
)
from parcontrol.training.fitting import MemoryPlan
from parcontrol.training.processes import lost_process, several_processes

# EFBIG: a limit on the size of files (ulimit -f); it is met and mended like a full disk.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_FILES = (errno.EMFILE, errno.ENFILE)
# safetensors, tokenizers and torch have errors of their own, with the number in the text behind its meaning alone.
_NUMBER_IN_TEXT = re.compile(r"\((?:os error )?(\d+)\)")


@contextmanager
def explained(config: RunConfig, run: RunDirectory) -> Iterator[None]:
    """Raises DiskFullError, TooManyFilesError, OutOfMemoryError or LostProcessError for what means one of them.

    The rest passes.
    """
    try:
        yield
    except RunStoppedError:
        raise
    except Exception as error:
        number = _error_number(error)
        if number in _NO_ROOM:
            raise DiskFullError(
                f"{os.strerror(number)} while writing to {run.path}. {_resume_note(run, 'free space')}"
            ) from error
        if number in _NO_FILES:
            raise TooManyFilesError(
                f"{os.strerror(number)} (`ulimit -n` shows the limit). {_resume_note(run, 'raise the limit')}"
            ) from error
        advice = out_of_memory_advice(error, config)
        if advice is not None:
            raise OutOfMemoryError(advice) from error
        # Asked last: the libraries that carry messages also pass on what has befallen this process.
        reason = lost_process(error) if several_processes() else None
        if reason is not None:
            raise LostProcessError(
                f"another process of the run has ended, and so does this one ({reason}). Repeat the same command to "
                f"go on from the newest checkpoint in {run.path}."
            ) from error
        raise


@contextmanager
def steps_explained(config: RunConfig, plan: MemoryPlan) -> Iterator[None]:
    """Raises OutOfMemoryError, with the settings that would fit, for what means it; lets the rest pass."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        advice = out_of_memory_advice(error, config, plan.what_would_fit(config))
        if advice is None:
            raise
        raise OutOfMemoryError(advice) from error


def _error_number(error: BaseException) -> int:
    """The operating system's number of an error, or of what it came from; 0 where it is none of its."""
    if isinstance(error, OSError):
        return error.errno or 0
    text = str(error)
    numbers = (int(found[1]) for found in _NUMBER_IN_TEXT.finditer(text))
    number = next((number for number in numbers if f"{os.strerror(number)} (" in text), 0)
    return number or (_error_number(error.__cause__) if error.__cause__ else 0)


def _resume_note(run: RunDirectory, remedy: str) -> str:
    try:
        checkpoints = run.checkpoints()
    except OSError:  # what is to be explained may keep a directory from being listed, too
        return f"{remedy.capitalize()} and repeat the same command."
    if not checkpoints:
        return f"There is no checkpoint yet: {remedy} and start again."
    return (
        f"The newest checkpoint, {checkpoints[-1].name}, is whole: {remedy} and repeat the same "
        "command to go on from there."
    )
