"""Cross entropy over the output head that never holds the logits of all positions.

Legend: N positions, D hidden, V vocabulary.

The logits of 1,024 positions of a 49,152-word vocabulary are 200 MB in float32, and their gradient
as much again. Here they live for one chunk of positions at a time: the forward pass computes a
chunk's loss and its gradient with respect to the hidden states at once and drops the logits.

On two CPU cores with avx512_bf16 (N = 1,024, D = 576, V = 49,152, bf16; forward and backward):

    ordinary head and cross_entropy   1.09 s
    the same in four chunks           0.34 s
    this, 32 / 64 / 128 positions     0.30 / 0.22 / 0.21 s
    this, 256 / 512 positions         0.21 / 0.27 s
    the two matrix products alone     0.12 s
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

# Positions per chunk. On CPU a chunk's float32 logits should stay near the caches (measured
# above); an accelerator needs larger products to be busy.
CHUNK_TOKENS_CPU = 128
CHUNK_TOKENS_ACCELERATOR = 512

Exponentials = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def chunked_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, divisor: float = 1, compiled: bool = False
) -> Tensor:
    """Returns the summed cross entropy, in nats, of `hidden @ weight.T` against the targets, over `divisor`.

    The products run in the type of `hidden` (under autocast: in autocast's type), the softmax and
    every sum in float32 at least. Gradients go to `hidden` and, where it requires one, to `weight`.

    Args:
        hidden_ND: Hidden states after the last norm [N, D].
        weight_VD: Weight of the output head [V, D].
        targets_N: Next tokens [N], int64.
        divisor: The tokens of the whole step, for a microbatch's share of the mean. Where gradients
            are bfloat16 it belongs here, before they are rounded: a factor after it rounds all of
            them alike, by up to 0.4 %.
        compiled: Let torch.compile make one pass of what stands between the two products.

    Returns:
        A float32 scalar (float64 for float64 input).
    """
    exponentials = _compiled_exponentials() if compiled else _exponentials
    return cast(Tensor, _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, targets_N, divisor, exponentials))


@torch.no_grad()
def token_losses(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Returns the cross entropy of each position in nats [N], in float32 and without a gradient."""
    hidden_ND, weight_VD = _operands(hidden_ND, weight_VD)
    losses_N = hidden_ND.new_empty(len(hidden_ND), dtype=_accumulation_type(hidden_ND))
    with torch.autocast(hidden_ND.device.type, enabled=False):
        for start, h, target in _chunks(hidden_ND, targets_N):
            losses_N[start : start + len(h)] = _softmax(h, weight_VD, target, _exponentials)[0]
    return losses_N


def output_head(model: nn.Module) -> Tensor:
    """Returns the weight [V, D] of a model's output head.

    Raises:
        ValueError: The head is not one matrix without a bias, or the model does something else to
            its logits after it (Cohere and Granite scale them, Gemma caps them), which a loss
            computed from the matrix alone would silently leave out. Checked on a few positions.
    """
    name = type(model).__name__
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    if head is None or getattr(head, "bias", None) is not None:
        raise ValueError(f"{name} cannot be trained here: its output head must be one matrix")
    if not _is_whole_head(model, head):
        raise ValueError(
            f"{name} cannot be trained here: its logits are not hidden states times its output "
            "head; it scales or caps them, and the chunked loss would leave that out"
        )
    return cast(Tensor, head.weight)


@torch.no_grad()
def _is_whole_head(model: Any, head: nn.Module) -> bool:
    """Whether the head reads the last hidden states as they are and its output is the logits."""
    seen: dict[str, Tensor] = {}

    def read_hidden(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen["hidden"] = output.last_hidden_state

    def read_head(_module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.update(head_input=inputs[0], head_output=output)

    hooks = [model.model.register_forward_hook(read_hidden), head.register_forward_hook(read_head)]
    try:
        ids = torch.arange(4, device=next(model.parameters()).device)[None]
        logits = model(input_ids=ids % model.config.vocab_size, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    pairs = ((seen["hidden"], seen["head_input"]), (seen["head_output"], logits))
    # To the bit; NaN equals NaN here, because what is wrong with such a model is something else.
    return all(torch.allclose(a.float(), b.float(), rtol=0, atol=0, equal_nan=True) for a, b in pairs)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, divisor: float, exponentials: Exponentials
    ) -> Tensor:
        need_hidden, need_weight, *_ = ctx.needs_input_grad
        ctx.grad_hidden = torch.empty_like(hidden_ND) if need_hidden else None
        ctx.grad_weight = _zeros(weight_VD) if need_weight else None
        ctx.weight_type = weight_VD.dtype
        hidden, weight = _operands(hidden_ND, weight_VD)
        losses_N = hidden.new_empty(len(hidden), dtype=_accumulation_type(hidden))
        with torch.autocast(hidden.device.type, enabled=False):
            for start, h, target in _chunks(hidden, targets_N):
                _take_chunk(ctx, start, h, weight, target, divisor, exponentials, losses_N)
            if need_weight:
                ctx.grad_weight /= divisor
            return losses_N.sum() / divisor

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (grad_loss,) = grad_outputs
        hidden, weight = ctx.grad_hidden, ctx.grad_weight
        if hidden is not None:
            hidden = hidden * grad_loss.to(hidden.dtype)
        if weight is not None:
            weight = (weight * grad_loss).to(ctx.weight_type)
        return hidden, weight, None, None, None


def _take_chunk(
    ctx: Any,
    start: int,
    h: Tensor,
    weight: Tensor,
    target: Tensor,
    divisor: float,
    exponentials: Exponentials,
    losses_N: Tensor,
) -> None:
    """Writes losses and gradients of one chunk.

    In a function of its own, and into what is there: whatever were left of a chunk, malloc would put
    it into the holes of the chunk's logits, and those of the next would need new memory.
    """
    loss, exp, norm = _softmax(h, weight, target, exponentials)
    losses_N[start : start + len(h)] = loss
    # The gradient of the logits is softmax - onehot = exp / norm - onehot. Dividing after the product,
    # and taking the one-hot part as a row of the weight, spares two passes over [chunk, V] and rounds less.
    exp = exp.to(weight.dtype)
    if ctx.grad_hidden is not None:
        grad = (exp @ weight).to(norm.dtype) / norm - weight[target].to(norm.dtype)
        ctx.grad_hidden[start : start + len(h)] = grad / divisor
    if ctx.grad_weight is not None:
        ctx.grad_weight += exp.T @ (h.to(norm.dtype) / norm).to(exp.dtype)
        ctx.grad_weight.index_add_(0, target, h.to(ctx.grad_weight.dtype), alpha=-1)


def _softmax(h: Tensor, weight: Tensor, target: Tensor, exponentials: Exponentials) -> tuple[Tensor, Tensor, Tensor]:
    """Returns losses [n], exp(logits - peak) [n, V] and its row sums [n, 1] of one chunk."""
    logits = h @ weight.T
    target_logit = logits.gather(1, target[:, None]).to(_accumulation_type(logits))
    exp, norm, peak = exponentials(logits)
    return (norm.log() + peak - target_logit)[:, 0], exp, norm


def _exponentials(logits_nV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(logits - peak) [n, V], its row sums and the peaks [n, 1]; logits in float32 or wider are overwritten."""
    wide = _accumulation_type(logits_nV)
    peak = logits_nV.amax(-1, keepdim=True).to(wide)
    exp = logits_nV.to(wide).sub_(peak).exp_()
    return exp, exp.sum(-1, keepdim=True), peak


@cache
def _compiled_exponentials() -> Exponentials:
    def rounded(logits_nV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        exp, norm, peak = _exponentials(logits_nV)
        return exp.to(logits_nV.dtype), norm, peak  # as its product takes it, in the same pass

    return torch.compile(rounded, dynamic=False)


def _chunks(hidden_ND: Tensor, targets_N: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yields where a chunk begins, its hidden states and its targets."""
    size = CHUNK_TOKENS_CPU if hidden_ND.device.type == "cpu" else CHUNK_TOKENS_ACCELERATOR
    for start in range(0, len(hidden_ND), size):
        yield start, hidden_ND[start : start + size], targets_N[start : start + size]


def _operands(hidden_ND: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Both factors in the type that the products run in; from here on, types are explicit."""
    device = hidden_ND.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else hidden_ND.dtype
    return hidden_ND.to(dtype), weight_VD.to(dtype)


def _accumulation_type(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _zeros(weight_VD: Tensor) -> Tensor:
    return torch.zeros_like(weight_VD, dtype=_accumulation_type(weight_VD))
