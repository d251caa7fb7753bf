"""What the present device attains: matrix products per second and bytes per second."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from parcontrol.analysis.cost import Rates

# Far beyond any cache that could serve the reads instead of memory.
_BUFFER_BYTES = 512 * 2**20
_SMALLEST_MATRIX, _LARGEST_MATRIX = 1024, 16384
# A product that takes this long is large enough to show the device's rate.
_LONG_ENOUGH_S = 0.02
_REPEATS = 5


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Best attained rates: square matrix products in `dtype`, and streaming through memory."""
    return Rates(_matrix_rate(device, dtype), _bandwidth(device))


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Flops per second of an n x n product, n doubled until one product takes long enough."""
    n = _SMALLEST_MATRIX
    while True:
        left, right = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        fastest = _fastest(partial(torch.mm, left, right), device)
        if fastest >= _LONG_ENOUGH_S or n >= _LARGEST_MATRIX:
            return 2 * n**3 / fastest
        n *= 2


def _bandwidth(device: torch.device) -> float:
    """Bytes per second, the better of reading a buffer and copying it.

    Decoding reads weights and writes next to nothing; on a processor whose writes first read what they
    overwrite, copying alone would underrate it.
    """
    source = torch.ones(_BUFFER_BYTES // 4, device=device)
    target = torch.empty_like(source)
    read = _BUFFER_BYTES / _fastest(source.sum, device)
    copied = 2 * _BUFFER_BYTES / _fastest(lambda: target.copy_(source), device)
    return max(read, copied)


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    return min(seconds_of(call, device) for _ in range(_REPEATS + 1))
