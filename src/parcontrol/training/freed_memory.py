"""Memory that a step has freed, kept for the next one.

glibc's malloc gives freed memory back to the system, and the next step gets the same pages again one fault at a time:
10,000 to 100,000 of them, a twentieth of a compiled step (docs/log.md). What a step needed is needed by the next, so
that the process keeps it, as the allocators of accelerators do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Parameters of mallopt(3). Of all settings that keep memory, every glibc takes these two.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER_TRIM, _NO_MAPS = -1, 0
# malloc's own: the largest threshold that it comes to by itself, and its number of blocks mapped one by one.
_TRIM_THRESHOLD, _MMAP_MAX = 64 * 2**20, 65_536


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Context of steps on a CPU, in which freed memory stays with this process; without glibc it does nothing.

    At its end the process returns what is free then, and malloc's settings become its own, whatever they were before.
    """
    if device.type != "cpu" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        yield
        return
    try:
        libc.mallopt(_M_MMAP_MAX, _NO_MAPS)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)
        yield
    finally:
        libc.mallopt(_M_MMAP_MAX, _MMAP_MAX)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
        libc.malloc_trim(0)
