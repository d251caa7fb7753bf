"""Validation: nats per predicted token over a fixed set, whole and by document."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from parcontrol.data.validation import ValidationSet
from parcontrol.training.device import Precision
from parcontrol.training.errors import NonFiniteError
from parcontrol.training.loss import token_losses
from parcontrol.training.processes import ALONE, Processes


@dataclass(frozen=True)
class Validation:
    """Losses over a validation set.

    Attributes:
        loss_sum: Summed loss of each document in nats, float64 [documents].
        tokens: Predicted tokens of each document, int64 [documents].
    """

    loss_sum: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @property
    def loss(self) -> float:
        """Nats per predicted token."""
        return float(self.loss_sum.sum() / self.tokens.sum())

    @property
    def perplexity(self) -> float:
        """exp(loss), per token."""
        return math.exp(self.loss)


def evaluate(
    model: PreTrainedModel,
    validation: ValidationSet,
    precision: Precision,
    *,
    batch_size: int,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    processes: Processes = ALONE,
) -> Validation:
    """Measures a plain or ParScale model on the validation set.

    The first token of a block has nothing before it and is not predicted; every other one counts
    once, for the document that it belongs to. Sums are float64 on the host. Several processes take
    turns with the batches, and each gets the sums of all.

    Args:
        model: Its output head must be one matrix (`loss.output_head`).
        validation: The fixed set.
        precision: Device and autocast.
        batch_size: Blocks per forward pass.
        on_batch: Called before each batch with the blocks done and in all; may raise.
        processes: Those that measure together.

    Raises:
        NonFiniteError: The loss of a document is NaN or infinite.
    """
    documents = validation.documents
    loss_sum = np.zeros(documents, dtype=np.float64)
    tokens = np.zeros(documents, dtype=np.int64)
    was_training = model.training
    model.eval()
    try:
        for turn in range(0, len(validation.blocks), batch_size * processes.size):
            on_batch(turn, len(validation.blocks))
            start = turn + batch_size * processes.rank
            batch = slice(start, start + batch_size)
            if start >= len(validation.blocks):
                # No batch is left; but where layers are in shards, nobody can run one alone.
                _batch_losses(model, validation.blocks[:batch_size], precision)
                continue
            losses = _batch_losses(model, validation.blocks[batch], precision)
            owners = validation.document_ids[batch, 1:].ravel()
            loss_sum += np.bincount(owners, weights=losses, minlength=documents)
            tokens += np.bincount(owners, minlength=documents)
    finally:
        model.train(was_training)
    sums = processes.add_up({"loss": torch.from_numpy(loss_sum), "tokens": torch.from_numpy(tokens)})
    loss_sum, tokens = sums["loss"].numpy(), sums["tokens"].numpy()
    if not np.isfinite(loss_sum).all():
        bad = int(np.flatnonzero(~np.isfinite(loss_sum))[0])
        raise NonFiniteError(f"the validation loss of document {bad} is {loss_sum[bad]}")
    return Validation(loss_sum, tokens)


@torch.no_grad()  # not inference_mode: what FSDP gathers here is used by training, too
def _batch_losses(model: PreTrainedModel, blocks_BT: NDArray[np.int64], precision: Precision) -> NDArray[np.float64]:
    """Losses of all predicted tokens of the blocks, row by row [B * (T - 1)]."""
    ids = torch.from_numpy(blocks_BT).to(precision.device)
    with precision.autocast():
        hidden_BTD = model.model(input_ids=ids, use_cache=False).last_hidden_state
        head: torch.Tensor = model.get_output_embeddings().weight
        losses = token_losses(hidden_BTD[:, :-1].flatten(0, 1), head, ids[:, 1:].flatten())
    return losses.cpu().double().numpy()
