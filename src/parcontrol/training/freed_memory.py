"""Memory that a step has freed, kept for the next one.

glibc's malloc gives freed memory back to the system, and the next step gets the same pages again one fault at a time:
tens of thousands of them, a twentieth of a step (docs/log.md). What a step needed is needed by the
next, so that the process keeps it, as the allocators of accelerators do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Parameters of mallopt(3). It takes an int: larger blocks than that still come and go one by one.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
# Where malloc's own adaptation of the threshold ends; the adaptation itself ends for good with the first setting.
_MMAP_THRESHOLD = 32 * 2**20


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Context of steps on a CPU, in which freed memory stays with this process; without glibc it does nothing."""
    libc = ctypes.CDLL(None)
    if device.type != "cpu" or not hasattr(libc, "mallopt"):
        yield
        return
    _set_thresholds(libc, mmap=_NEVER, trim=_NEVER)
    try:
        yield
    finally:
        _set_thresholds(libc, mmap=_MMAP_THRESHOLD, trim=2 * _MMAP_THRESHOLD)
        libc.malloc_trim(0)


def _set_thresholds(libc: ctypes.CDLL, mmap: int, trim: int) -> None:
    # Both: with one alone malloc stops adapting the other, and maps every tensor anew.
    done = libc.mallopt(_M_MMAP_THRESHOLD, mmap) and libc.mallopt(_M_TRIM_THRESHOLD, trim)
    assert done, "mallopt refused a threshold"
