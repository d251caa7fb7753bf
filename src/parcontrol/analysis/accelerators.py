"""Data-sheet figures of the accelerators that the cost model knows by name.

The table is the one of llm-analysis 0.2.2, because the published costs were computed from it. Its
oddities are kept: v100-sxm-16gb is listed there with 32 GB. Capacity takes no part in the formulas.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One accelerator: memory in GB, 16-bit peak in TFLOP/s, bandwidth in decimal GB/s."""

    name: str
    memory_gb: float
    peak_tflops: float
    bandwidth_gb_per_s: float


DEFAULT_ACCELERATOR = "a100-sxm-80gb"

ACCELERATORS: dict[str, Accelerator] = {
    accelerator.name: accelerator
    for accelerator in (
        Accelerator("a10-pcie-28gb", 28, 125, 600),
        Accelerator("a10g-pcie-24gb", 24, 70, 600),
        Accelerator("a100-pcie-40gb", 40, 312, 1555),
        Accelerator("a100-pcie-80gb", 80, 312, 1935),
        Accelerator("a100-sxm-40gb", 40, 312, 1555),
        Accelerator("a100-sxm-80gb", 80, 312, 2039),
        Accelerator("a6000-48gb", 48, 154.8, 768),
        Accelerator("h100-pcie-80gb", 80, 756, 2000),
        Accelerator("h100-sxm-80gb", 80, 989, 3350),
        Accelerator("mi100-32gb", 32, 184.6, 1228.8),
        Accelerator("mi210-64gb", 64, 181, 1638),
        Accelerator("mi250-128gb", 128, 362.1, 3200),
        Accelerator("mi250x-128gb", 128, 383, 3200),
        Accelerator("v100-pcie-16gb", 16, 112, 900),
        Accelerator("v100-pcie-32gb", 32, 112, 900),
        Accelerator("v100-sxm-16gb", 32, 125, 900),
        Accelerator("v100-sxm-32gb", 32, 125, 900),
    )
}


def find_accelerator(name: str) -> Accelerator:
    """Return the accelerator called `name`.

    Raises:
        ValueError: no accelerator has that name; the message lists those that exist.
    """
    if name not in ACCELERATORS:
        known = ", ".join(sorted(ACCELERATORS))
        raise ValueError(f"unknown accelerator {name!r}; known are {known}")
    return ACCELERATORS[name]
