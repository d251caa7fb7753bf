"""The gradient of a step whose streams do not all fit into memory: one group of streams at a time.

Streams meet in the aggregator and nowhere before it. So all groups but the last are run without a
graph, to know every stream's final hidden states; the loss gives the gradient at the aggregator's
input; and that gradient is taken back through one group at a time, each run again with a graph:

    dL/dparameters = sum over groups of (dL/dh_group) (dh_group/dparameters)

which is the chain rule and no approximation. The last group is run with a graph at once and needs
no second pass. The aggregator and the loss work on a stretch of tokens at a time, as the loss's
chunks do anyhow, so that their float32 copies do not grow with P. What is kept is the activations
of one group, and the hidden states of all streams with their gradient.

Legend: P streams, p streams of a group, B batch, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from parcontrol.parscale.modeling_parscale import ParScaleModelOutput
from parcontrol.training.device import Precision, restore_rng, rng_state, without_packing_check

# Tokens, over all B rows, that the aggregator mixes at a time.
AGGREGATED_TOKENS = 256


def stream_groups(P: int, streams_per_pass: int) -> list[range]:
    """Splits P streams into neighbouring groups as equal as can be, none above `streams_per_pass`."""
    number = -(-P // streams_per_pass)
    edges = [P * i // number for i in range(number + 1)]
    return [range(start, stop) for start, stop in pairwise(edges)]


def backward_in_passes(
    model: PreTrainedModel,
    ids_BT: Tensor,
    loss_of: Callable[[Tensor, int], Tensor],
    streams_per_pass: int,
    precision: Precision,
    before_last_pass: Callable[[], None] = lambda: None,
) -> tuple[Tensor, ParScaleModelOutput]:
    """Adds a microbatch's gradient to what trains, `streams_per_pass` streams at a time.

    Random numbers (dropout) are drawn once: a group's second run sees those of its first, and the
    generators end where the first runs left them. They are not those of the ordinary step, which
    draws for all streams layer by layer.

    Args:
        model: A ParScale model with P > 1.
        ids_BT: Blocks of tokens [B, T].
        loss_of: The loss of aggregated hidden states [B, t, D] that begin at a position; losses of
            neighbouring stretches add up to that of the whole.
        streams_per_pass: The most streams whose activations are kept at a time.
        precision: Device and autocast.
        before_last_pass: Called before the backward pass that completes the gradient.

    Returns:
        The loss, and of the inner model's output what the ordinary step gives beside
        `last_hidden_state`, which is never there as a whole.
    """
    inner: Any = model.model
    *groups, last = stream_groups(inner.active_streams, streams_per_pass)

    def run(group: range) -> Tensor:
        # A context for each run: autocast keeps its casts until it ends, and those made without a
        # graph must not serve the run that needs one.
        with precision.autocast(), without_packing_check():
            return inner(input_ids=ids_BT, use_cache=False, streams=group).stream_hidden_states

    states = []
    parts = []
    with torch.no_grad():
        for group in groups:
            states.append(rng_state(precision.device))
            parts.append(run(group))
    h_last = run(last)
    h_PBTD = torch.cat([*parts, h_last.detach()])
    del parts

    loss, weights, grad_PBTD = _aggregate_backward(inner, h_PBTD, loss_of, precision)
    torch.autograd.backward(h_last, grad_PBTD[last.start :])
    del h_last
    with _rng_kept(precision.device):
        for group, state in zip(groups, states, strict=True):
            restore_rng(state, precision.device)
            if group is groups[-1]:
                before_last_pass()
            torch.autograd.backward(run(group), grad_PBTD[group.start : group.stop])
    return loss, ParScaleModelOutput(stream_weights=weights, stream_hidden_states=h_PBTD)


def _aggregate_backward(
    inner: Any, h_PBTD: Tensor, loss_of: Callable[[Tensor, int], Tensor], precision: Precision
) -> tuple[Tensor, Tensor, Tensor]:
    """Adds the gradient of aggregator and head; returns the loss, the weights [B, T, P] and dL/dh [P, B, T, D]."""
    grad_PBTD = torch.empty_like(h_PBTD)
    losses, weights = [], []
    start = 0
    for part in h_PBTD.split(max(AGGREGATED_TOKENS // h_PBTD.shape[1], 1), dim=2):
        h = part.detach().requires_grad_()
        with precision.autocast():
            mixed, weights_BtP = inner.aggregate(h)
            loss = loss_of(mixed, start)
        loss.backward()
        assert h.grad is not None
        grad_PBTD[:, :, start : start + h.shape[2]] = h.grad
        losses.append(loss.detach())
        weights.append(weights_BtP.detach())
        start += h.shape[2]
    return torch.stack(losses).sum(), torch.cat(weights, dim=1), grad_PBTD


@contextmanager
def _rng_kept(device: torch.device) -> Iterator[None]:
    state = rng_state(device)
    yield
    restore_rng(state, device)
