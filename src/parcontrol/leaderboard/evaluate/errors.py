"""How an evaluation ends before its tasks do, and whose fault that is."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

# What every model would meet on this machine as it is now: a full disk or quota, no more open files, no writing.
_MACHINE_WIDE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EROFS})
# Libraries in Rust raise their own errors, which end in the system's number.
_NUMBER_FROM_RUST = re.compile(r"\(os error (\d+)\)$").search
_FROM_RUST = {"Exception", "SafetensorError"}
# datasets looks before it prepares a data set, and has no number for what it finds.
_NO_ROOM_FOR_DATA = "Not enough disk space"


class ModelRefusedError(ValueError):
    """The model cannot be evaluated as asked for, and trying again will not change that. The message is the reason."""


class EvaluationError(RuntimeError):
    """The evaluation broke off, and another attempt may succeed. The message is the reason."""


class MachineError(RuntimeError):
    """This machine cannot evaluate anything now, whatever the model. The message names it, and the fault."""

    def __init__(self, fault: str) -> None:
        super().__init__(f"{os.uname().nodename} cannot evaluate now: {fault}")


def machine_fault(error: BaseException) -> str | None:
    """Returns what is wrong with this machine if that is behind an error, None otherwise.

    It goes by the system's error numbers, and not by words: a model could have those in its files.
    """
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if _is_machine_wide(cause):
            return " ".join(str(cause).split())
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def _is_machine_wide(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in _MACHINE_WIDE or (error.errno is None and str(error).startswith(_NO_ROOM_FOR_DATA))
    number = _NUMBER_FROM_RUST(str(error)) if type(error).__name__ in _FROM_RUST else None
    return number is not None and int(number[1]) in _MACHINE_WIDE


@contextmanager
def machine_faults_named() -> Iterator[None]:
    """Turns an error behind which is a fault of this machine into `MachineError`.

    Errors that say so already, by name, pass: those of a store do.
    """
    try:
        yield
    except MachineError:
        raise
    except Exception as error:
        fault = machine_fault(error)
        if fault is None:
            raise
        raise MachineError(fault) from error
