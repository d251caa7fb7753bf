"""What trains, AdamW over it, and the learning rate as a function of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from parcontrol.config import RunConfig, TrainingConfig
from parcontrol.parscale.convert import parscale_parameters
from parcontrol.training.sharding import split_by_sharding

Named = tuple[str, nn.Parameter]


def select_trainable(model: PreTrainedModel, mode: str) -> list[Named]:
    """Freezes what does not train and casts the rest to float32.

    Updates of a learning rate of 1e-3 are lost in the 8 bits of bf16's mantissa, so whatever
    trains is kept in float32 and cast where it is used.

    Args:
        model: A ParScale model.
        mode: `peft` trains prefixes and aggregator, `full` everything.

    Returns:
        The names and parameters that train, in the model's order, shared ones once.
    """
    model.requires_grad_(mode == "full")
    named = list(model.named_parameters() if mode == "full" else parscale_parameters(model))
    for _, parameter in named:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    assert named, "nothing to train; the configuration should have refused this"
    return named


def build_optimizer(named: Iterable[Named], config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) with weight decay on weight matrices alone.

    Prefixes are activations of a context, not weights, and are never pulled towards zero; nor are
    biases and norms. The fused kernels keep the step count on the device, so that an update needs
    no word from the host.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in named:
        (decayed if _decays(name, parameter) else kept).append(parameter)
    # What is in shards and what is not cannot share a kernel.
    groups = [
        {"params": part, "weight_decay": weight_decay}
        for parameters, weight_decay in ((decayed, config.weight_decay), (kept, 0.0))
        for part in split_by_sharding(parameters)
        if part
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        fused=True,
    )


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() >= 2 and not name.endswith((".prefix_k", ".prefix_v"))


def learning_rate(tokens: int, config: RunConfig) -> float:
    """Learning rate of the step after which `tokens` tokens have been trained on.

    A linear warmup over `warmup_tokens`, then a cosine down to `min_learning_rate_ratio` of the
    peak, which the last step reaches. A function of tokens, so that runs with another batch size
    follow the same curve.
    """
    training = config.training
    warmup, total = config.warmup_tokens, config.total_steps * config.tokens_per_step
    if tokens < warmup:
        return training.learning_rate * tokens / warmup
    progress = (tokens - warmup) / max(total - warmup, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    low = training.min_learning_rate_ratio
    return training.learning_rate * (low + (1 - low) * cosine)
