"""Device and precision of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from transformers import masking_utils

from parcontrol.config import TrainingConfig


@dataclass(frozen=True)
class Precision:
    """Numeric types of a run on its device.

    Attributes:
        device: Where the model lives.
        backbone: Type of the backbone's parameters while training. In full mode these are the
            float32 master weights.
        compute: Type of the matrix products, and of everything in the final checkpoint.
    """

    device: torch.device
    backbone: torch.dtype
    compute: torch.dtype

    def autocast(self) -> AbstractContextManager[object]:
        """Context of a forward pass: casts to `compute` where the parameters are wider."""
        if self.backbone == self.compute:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute)


def choose_precision(config: TrainingConfig) -> Precision:
    """Resolves device and types of a run.

    In peft mode the frozen backbone is stored in the type it computes in, while what trains is
    float32. In full mode everything is stored in float32 and autocast to the compute type.

    Raises:
        ValueError: The device is unknown or not there.
    """
    device = choose_device(config.device)
    bf16 = config.mixed_precision == "bf16" or (config.mixed_precision == "auto" and has_native_bf16(device))
    compute = torch.bfloat16 if bf16 else torch.float32
    return Precision(device, compute if config.mode == "peft" else torch.float32, compute)


def choose_device(name: str | None) -> torch.device:
    """Returns the named device, or the first there is of cuda, mps and cpu.

    Raises:
        ValueError: The name is not a device, or this machine does not have it.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    present = [kind for kind, there in available.items() if there]
    if name is None:
        return torch.device(present[0])
    kind, _, index = name.partition(":")
    if kind not in available or (index and not index.isdecimal()):
        raise ValueError(f"device {name!r} is not allowed: cuda, cuda:INDEX, mps or cpu is needed")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if kind not in present or int(index or 0) >= count:
        raise ValueError(f"device {name!r} is not available here; available: {', '.join(present)}")
    return torch.device(name)


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware, so that bf16 is faster there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@contextmanager
def without_packing_check() -> Iterator[None]:
    """Lets forward passes over whole blocks run without waiting for the device.

    In every forward pass without a mask, transformers asks the device whether positions start anew
    inside a row, as they do where sequences are packed with positions of their own, and waits for
    the answer (`masking_utils.find_packed_sequence_indices`). Ours never do, so the answer, None,
    is given at once.
    """
    asked = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = asked


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """States of the random generators that a run on the device can draw from, by device type."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_rng(state: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Restores what `rng_state` returned, where the run is on a device of the same kind again."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    if "mps" in state and device.type == "mps":
        torch.mps.set_rng_state(state["mps"])
