"""Timing prefill and decoding of a real model for P streams and batch size."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from parcontrol.measure.rates import seconds_of
from parcontrol.parscale.convert import check_supported, convert_to_parscale_model, create_parscale_config
from parcontrol.parscale.modeling_parscale import ParScaleForCausalLMMixin

DEFAULT_P = (1, 2, 4, 8)


@dataclass(frozen=True)
class Timing:
    """Median times of one P and batch size, in seconds; one decode step makes one token a row."""

    P: int
    batch_size: int
    prefill: float
    decode_step: float


def is_parscale(model: PreTrainedModel) -> bool:
    """Whether the model has streams of its own; otherwise it is a backbone to be given some."""
    return isinstance(model, ParScaleForCausalLMMixin)


def default_streams(model: PreTrainedModel) -> list[int]:
    """P = 1, 2, 4, 8; of a ParScale checkpoint those that it has, and all of them together."""
    if not is_parscale(model):
        return list(DEFAULT_P)
    own = model.config.parscale_n
    return sorted({P for P in DEFAULT_P if own > P} | {own})


def check_streams(model: PreTrainedModel, P_values: Sequence[int]) -> None:
    """Refuse, before anything is timed, what `with_streams` would refuse later.

    Raises:
        ValueError: the checkpoint has fewer streams, or the backbone cannot be converted.
    """
    if not is_parscale(model):
        check_supported(model)
    elif max(P_values) > model.config.parscale_n:
        raise ValueError(f"P is {max(P_values)}; this checkpoint has {model.config.parscale_n} streams")


def prefix_tokens(model: PreTrainedModel, default: int) -> int:
    """Prefix length K: the checkpoint's own, or `default` for a backbone."""
    return int(model.config.parscale_n_tokens) if is_parscale(model) else default


def with_streams(model: PreTrainedModel, P: int, prefix_length: int) -> PreTrainedModel:
    """What to time for P streams.

    A ParScale checkpoint is itself (`set_streams` chooses P). A backbone is converted, sharing its
    parameters; new prefixes and aggregator are untrained, which costs the same. At P = 1 it is
    measured as it is, which is what streams are compared with.
    """
    if is_parscale(model) or P == 1:
        return model
    return convert_to_parscale_model(model, create_parscale_config(P, prefix_length)).eval()


def time_generation(
    model: PreTrainedModel,
    *,
    P_values: Sequence[int],
    batch_sizes: Sequence[int],
    input_length: int,
    output_length: int,
    prefix_length: int,
    repeats: int,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Timing]:
    """Time every P and batch size.

    Prefill is one forward pass over the prompt that fills the cache and gives the last position's
    logits; a decode step is one forward pass over one token a row and the choice of the next. All
    cases take turns in each round, so that a machine that grows busier or hotter does so for all of
    them. Medians over `repeats` rounds, after one that is not counted.
    """
    # Conversion shares the backbone's parameters: all of these together are little more than one.
    models = {P: with_streams(model, P, prefix_length) for P in P_values}
    seconds: dict[tuple[int, int], list[tuple[float, float]]] = {(P, b): [] for P in P_values for b in batch_sizes}
    for number in range(repeats + 1):
        for P, batch_size in seconds:
            name = f"round {number} of {repeats}" if number else "warm-up"
            progress(f"{name}: P = {P}, batch {batch_size}")
            if isinstance(model, ParScaleForCausalLMMixin):
                model.set_streams(P)
            times = _one_round(models[P], batch_size, input_length, output_length)
            if number:
                seconds[P, batch_size].append(times)
    medians = {key: [statistics.median(part) for part in zip(*rounds, strict=True)] for key, rounds in seconds.items()}
    return [Timing(*key, prefill, decode / output_length) for key, (prefill, decode) in medians.items()]


@torch.inference_mode()
def _one_round(model: PreTrainedModel, batch_size: int, input_length: int, output_length: int) -> tuple[float, float]:
    """Seconds of prefill and of all decode steps together."""
    device = model.device
    prompt = torch.randint(model.config.vocab_size, (batch_size, input_length), device=device)
    state = {"ids": prompt, "cache": None}

    def forward() -> None:
        out = model(input_ids=state["ids"], past_key_values=state["cache"], use_cache=True, logits_to_keep=1)
        state["ids"], state["cache"] = out.logits[:, -1:].argmax(-1), out.past_key_values

    def decode() -> None:
        for _ in range(output_length):
            forward()

    return seconds_of(forward, device), seconds_of(decode, device)
