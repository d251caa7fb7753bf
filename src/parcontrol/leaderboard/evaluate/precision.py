"""What a precision of the board means for loading: a type of the weights, or a quantisation and its library."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from parcontrol.leaderboard.evaluate.errors import ModelRefusedError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
QUANTISED = ("8bit", "4bit", "GPTQ")
# The libraries without which transformers cannot load these.
_LIBRARIES = {"8bit": ("bitsandbytes",), "4bit": ("bitsandbytes",), "GPTQ": ("optimum", "gptqmodel")}


def loading_arguments(precision: str, stored: dict[str, Any] | None, device: torch.device) -> dict[str, Any]:
    """Returns the arguments of `from_pretrained` for a precision.

    Args:
        precision: A precision of the board.
        stored: The checkpoint's own `quantization_config`, None if it is not quantised.
        device: Where the weights go.

    Raises:
        ModelRefusedError: The precision is unknown, its library is not installed, or the checkpoint is stored in
            another quantisation, so that it would run in something else than what the board says.
    """
    if precision not in (*DTYPES, *QUANTISED):
        raise ModelRefusedError(f"precision {precision!r} is not one of {', '.join((*DTYPES, *QUANTISED))}")
    saved = _saved_as(stored) if stored else None
    if saved and saved != precision:
        raise ModelRefusedError(f"the checkpoint is saved in {saved}; it cannot run as {precision}")
    if precision in DTYPES:
        return {"dtype": DTYPES[precision], "device_map": {"": device}}
    missing = [name for name in _LIBRARIES[precision] if find_spec(name) is None]
    if missing:
        raise ModelRefusedError(f"precision {precision} needs {' and '.join(missing)}, which this worker does not have")
    if precision == "GPTQ" and not saved:
        raise ModelRefusedError("precision GPTQ needs a checkpoint quantised by GPTQ; this one is not quantised")
    quantisation = {} if saved else {"quantization_config": _bitsandbytes(precision)}
    return {"dtype": torch.float16, "device_map": {"": device}, **quantisation}


def _saved_as(stored: dict[str, Any]) -> str:
    """The precision of the board in which a quantised checkpoint is saved, or the name of its method."""
    method = str(stored.get("quant_method", "")).lower()
    if method == "bitsandbytes" and (stored.get("load_in_8bit") or stored.get("load_in_4bit")):
        return "8bit" if stored.get("load_in_8bit") else "4bit"
    return "GPTQ" if method == "gptq" else f"the quantisation {method or 'without a name'}"


def _bitsandbytes(precision: str) -> Any:
    """8 bits as in LLM.int8() (arXiv 2208.07339), 4 bits as NF4 in QLoRA (arXiv 2305.14314)."""
    from transformers import BitsAndBytesConfig

    if precision == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float16,
    )
