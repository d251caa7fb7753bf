"""Causal attention behind a prefix on processors with AMX: builds and registers causal_attention.cpp.

Legend: R rows, H heads, G key/value heads, T queries, K prefix keys, d head size.
"""

from __future__ import annotations

import hashlib
import logging
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.cpp_extension import include_paths, library_paths

from parcontrol.cache import build_once, cache_directory
from parcontrol.parscale.modeling_parscale import has_cpp_compiler

SOURCE = Path(__file__).with_suffix(".cpp")
NEEDED = ("amx_tile", "amx_bf16", "avx512_bf16", "avx512_bw", "avx512_dq", "avx512_vl")
# Named one by one, not by -march=native: a cache may be shared by machines that differ in the rest.
FLAGS = (
    *("-std=c++20", "-O3", "-fPIC", "-shared", "-fopenmp", "-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512"),
    "-ffp-contract=off",  # a score must cancel against the maximum that was rounded like it
    *("-mfma", "-mavx512f", "-mavx512bf16", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mamx-tile", "-mamx-bf16"),
)
HEAD_SIZE_MULTIPLE = 32

logger = logging.getLogger(__name__)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """Returns attention [R, T, H, d]: query t sees the whole prefix and real keys 0 … t. It has first derivatives.

    Needs `is_available()`. Under autocast, factors are cast to bfloat16.

    Args:
        query: [R, H, T, d] in bfloat16; d is a multiple of 32, columns are adjacent, rows an even number apart.
        key: [R, G, K + T, d], the prefix first; value like it.
        scale: Factor of the scores, positive; 1/√d if not given.

    Raises:
        RuntimeError: Shapes, types, strides or scale are others.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return cast(Tensor, torch.ops.parcontrol.causal_attention(query, key, value, scale)[0])


def can_be_built() -> bool:
    """Whether this processor has what the kernel needs, and a compiler; builds nothing."""
    capabilities = torch.cpu.get_capabilities()
    return has_cpp_compiler() and all(capabilities.get(name) for name in NEEDED)


@cache
def is_available() -> bool:
    """Whether there is a kernel, which is built first, once for a machine, and loaded.

    Where a compiler or the cache fails, one message says why, and steps take torch's kernel.
    """
    if not can_be_built():
        return False
    try:
        torch.ops.load_library(str(_build()))
    except subprocess.CalledProcessError as error:
        reason = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr.strip())
        logger.warning("attention runs with torch's kernel: %s cannot be compiled (%s)", SOURCE.name, reason)
        return False
    except OSError as error:
        logger.warning("attention runs with torch's kernel: %s cannot be built and loaded (%s)", SOURCE.name, error)
        return False
    if not torch.ops.parcontrol.causal_attention_is_supported():
        return False
    _register()
    return True


def _build() -> Path:
    from torch._inductor.cpp_builder import get_cpp_compiler  # slow to import, and needed here alone

    compiler = get_cpp_compiler()
    identity = (SOURCE.read_bytes(), torch.__version__, compiler, FLAGS)
    name = f"causal_attention-{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}"

    def build(directory: Path) -> None:
        logger.info("building the attention kernel for processors with AMX, once for this machine")
        paths = [f"-I{path}" for path in include_paths()] + [f"-L{path}" for path in library_paths()]
        output = directory / SOURCE.with_suffix(".so").name
        command = [compiler, *FLAGS, *paths, str(SOURCE), "-o", str(output), "-ltorch_cpu", "-lc10"]
        subprocess.run(command, check=True, capture_output=True, text=True)

    return build_once(cache_directory() / "kernels" / name, build) / SOURCE.with_suffix(".so").name


def _register() -> None:
    torch.library.register_fake("parcontrol::causal_attention", _shapes)
    torch.library.register_fake("parcontrol::causal_attention_backward", _backward_shapes)
    torch.library.register_autocast("parcontrol::causal_attention", "cpu", torch.bfloat16)
    torch.library.register_autograd("parcontrol::causal_attention", _backward, setup_context=_save)


def _shapes(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    R, H, T, d = query.shape
    return query.new_empty(R, T, H, d), query.new_empty(R, H, T, dtype=torch.float32)


def _backward_shapes(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(output), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    *factors, ctx.scale = inputs
    ctx.save_for_backward(*factors, *output)


def _backward(ctx: Any, grad_output: Tensor, _grad_lse: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    backward = torch.ops.parcontrol.causal_attention_backward
    grad_query, grad_key, grad_value = backward(grad_output.contiguous(), *ctx.saved_tensors, ctx.scale)
    return grad_query.transpose(1, 2), grad_key, grad_value, None
