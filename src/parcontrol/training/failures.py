"""Turns what the machine runs out of into one message that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from parcontrol.config import RunConfig
from parcontrol.diagnostics.memory import out_of_memory_advice
from parcontrol.runs import RunDirectory
from parcontrol.training.errors import DiskFullError, LostProcessError, OutOfMemoryError, RunStoppedError
from parcontrol.training.fitting import MemoryPlan
from parcontrol.training.processes import lost_process, several_processes

# EFBIG: a limit on the size of files (ulimit -f); it is met and mended like a full disk.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def loss_of_processes_explained(config: RunConfig) -> Iterator[None]:
    """Raises LostProcessError for what says that another process of the run is gone; lets the rest pass."""
    try:
        yield
    except RuntimeError as error:
        reason = lost_process(error) if several_processes() else None
        if isinstance(error, RunStoppedError) or reason is None:
            raise
        raise LostProcessError(
            f"another process of the run has ended, and so does this one ({reason}). Repeat the same command to go on "
            f"from the newest checkpoint in {config.run_directory}."
        ) from error


@contextmanager
def explained(config: RunConfig, run: RunDirectory) -> Iterator[None]:
    """Raises DiskFullError or OutOfMemoryError for what means one of them; lets the rest pass."""
    try:
        yield
    except RunStoppedError:
        raise
    except (OSError, SafetensorError, RuntimeError, MemoryError) as error:
        reason = _no_room_reason(error)
        if reason is not None:
            raise DiskFullError(f"{reason} while writing to {run.path}. {_resume_note(run)}") from error
        advice = out_of_memory_advice(error, config)
        if advice is not None:
            raise OutOfMemoryError(advice) from error
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


def _no_room_reason(error: BaseException) -> str | None:
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return error.strerror
    # safetensors writes in Rust and keeps the number of the error in its text alone.
    if isinstance(error, SafetensorError):
        return next((str(error) for code in _NO_ROOM if f"os error {code})" in str(error)), None)
    return None


def _resume_note(run: RunDirectory) -> str:
    checkpoints = run.checkpoints()
    if not checkpoints:
        return "There is no checkpoint yet: free space and start again."
    return (
        f"The newest checkpoint, {checkpoints[-1].name}, is whole: free space and repeat the same "
        "command to go on from there."
    )
