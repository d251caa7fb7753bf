"""Decoder layers compiled by torch.compile: norms, activations, rotations and residuals in few passes over memory.

Layer by layer, so that one compilation serves all layers (all but the first, into which no gradient goes back, have the
same graph). Only steps of training run compiled: their few shapes (two, where groups of streams are not equal) are each
compiled once and for themselves, so that a resumed process comes to the same kernels as one that was never stopped.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel

from parcontrol.config import TrainingConfig
from parcontrol.kernels import causal_attention
from parcontrol.parscale.modeling_parscale import has_cpp_compiler


def check_compiler(config: TrainingConfig, device: torch.device) -> None:
    """Checks before anything is loaded that `training.compile` can be had.

    Raises:
        ValueError: It is asked for on a CPU, for which kernels are written in C++, without a compiler.
    """
    if config.compile and device.type == "cpu" and not has_cpp_compiler():
        raise ValueError(
            "training.compile: true needs a C++ compiler on a CPU, and there is none; install g++, name one in the "
            "environment variable CXX, or set training.compile to false"
        )


def has_attention_kernel(device: torch.device, compute: torch.dtype, head_size: int, build: bool = True) -> bool:
    """Whether attention takes our kernel in compiled steps with products of type `compute`.

    The kernel is built to know it; without `build` the answer is whether it could be.
    """
    suits = device.type == "cpu" and compute == torch.bfloat16 and head_size % causal_attention.HEAD_SIZE_MULTIPLE == 0
    return suits and (causal_attention.is_available() if build else causal_attention.can_be_built())


def compile_layers(model: PreTrainedModel, compute: torch.dtype) -> None:
    """Has the decoder layers compiled when they are first called; weights and their names stay as they are.

    On a processor with AMX their attention takes our kernel in steps of training in bfloat16.

    Args:
        model: The model.
        compute: Type of the matrix products of its steps.
    """
    inner: Any = model.model
    for layer in inner.layers:
        layer.compile(dynamic=False)
        if has_attention_kernel(model.device, compute, layer.self_attn.head_dim):
            layer.self_attn.causal_kernel = causal_attention.causal_attention


def uncompiled(config: TrainingConfig) -> AbstractContextManager[object]:
    """Context in which compiled layers run as they are: of what has other shapes than a step."""
    return torch.compiler.set_stance("force_eager") if config.compile else nullcontext()
