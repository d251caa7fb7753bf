"""What a run will take, before it starts: time from operations, memory from what must be kept.

Both are estimates by formula, memory's in `diagnostics.footprint`; docs/experiment.md writes them
out and says what they leave out.

Legend: P streams, B sequences per microbatch, T tokens per sequence, K prefix tokens, D hidden,
I intermediate.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from parcontrol.config import RunConfig
from parcontrol.diagnostics.footprint import (
    ModelSize,
    Setting,
    fitting_streams_per_pass,
    kept_streams,
    model_bytes,
    peak_bytes,
    size_of,
)
from parcontrol.diagnostics.memory import MemoryMonitor
from parcontrol.parscale.convert import convert_to_parscale_model, create_parscale_config
from parcontrol.parscale.loading import resolve_model

_MEASURED_SECONDS = 0.3
# What the process of a run holds beside libraries, model and steps (docs/experiment.md): its tokenizer, for each entry
# of the vocabulary; a decompressor and a buffer for each shard; validation set, documents ahead of the step, records.
_TOKENIZER_ENTRY = 1200
_SHARD = 1.5e6
_DATA = 58e6


@dataclass(frozen=True)
class Estimate:
    """What a run takes.

    Attributes:
        flops: Floating-point operations from the first step to the end, validations included.
        seconds: Time for them at the measured rate; less than it will be.
        memory_bytes: Peak memory of the device (on a CPU: of the process).
        streams_per_pass: Streams whose activations are kept at a time.
    """

    flops: float
    seconds: float
    memory_bytes: float
    streams_per_pass: int


def estimate(config: RunConfig, size: ModelSize, setting: Setting, rate: float) -> Estimate:
    """Estimates a whole run.

    Args:
        config: The run.
        size: Sizes of its model, from `model_size`.
        setting: Device and types.
        rate: Operations per second of a matrix product, from `matrix_product_rate`.
    """
    config = _planned(config, size, setting)
    flops = run_flops(config, size)
    # This process has loaded the same libraries and nothing else.
    process = psutil.Process().memory_info().rss + data_bytes(config, size)
    memory = peak_bytes(config, size, setting, process)
    return Estimate(flops, flops / rate, memory, kept_streams(config))


def _planned(config: RunConfig, size: ModelSize, setting: Setting) -> RunConfig:
    """The run with the streams per pass that it would choose if it started now."""
    if config.training.streams_per_pass is not None:
        return config
    room = MemoryMonitor(setting.device).free_bytes() - model_bytes(config, size, setting)
    if setting.device.type == "cpu":
        room -= data_bytes(config, size)
    chosen = {"streams_per_pass": fitting_streams_per_pass(config, size, setting, room)}
    return config.model_copy(update={"training": config.training.model_copy(update=chosen)})


def data_bytes(config: RunConfig, size: ModelSize) -> float:
    """Bytes of main memory that a run's tokenizer and data take, whatever its steps do."""
    return _TOKENIZER_ENTRY * size.vocabulary + _SHARD * config.data.num_shards + _DATA


def model_size(config: RunConfig) -> ModelSize:
    """Reads the sizes of a run's model from the backbone's configuration, without its weights.

    Raises:
        ValueError: The configuration cannot be had, or the backbone is not supported.
    """
    name = config.model.name
    try:
        backbone_config = AutoConfig.from_pretrained(
            resolve_model(name, config.data.mirror), revision=config.model.revision, trust_remote_code=False
        )
    except OSError as error:
        raise ValueError(f"the configuration of {name!r} cannot be had: {' '.join(str(error).split())}") from error
    backbone_config.name_or_path = ""  # or conversion would ask the Hub for the licence
    parscale = config.parscale
    with torch.device("meta"):
        backbone = AutoModelForCausalLM.from_config(backbone_config)
        streams = create_parscale_config(parscale.P, parscale.prefix_length, parscale.attn_smooth)
        model = convert_to_parscale_model(backbone, streams)
    return size_of(model)


def run_flops(config: RunConfig, size: ModelSize) -> float:
    """Operations of a whole run: training, its validations, and that of the backbone alone.

    Forward, a token costs a multiplication and an addition for every parameter that it meets, in
    each stream, and in attention for every key that it sees, on average (T + 1) / 2 + K, twice:
    scores and values. Backward, a product costs one more for each factor that needs a gradient.
    Both factors of attention do, the aggregator's too; the backbone's weights only where they train.
    """
    P, K = config.parscale.P, config.parscale.prefix_length
    keys = (config.data.sequence_length + 1) / 2
    per_key = 4 * size.layers * size.attention
    backbone = 2 * size.layer_parameters
    head, aggregator = 2 * size.head_parameters, 2 * size.aggregator_parameters

    stream = backbone + per_key * (keys + K)
    products = 3 if config.training.mode == "full" else 2
    training = P * (products * backbone + 3 * per_key * (keys + K)) + products * head + 3 * aggregator
    reruns = P if config.training.gradient_checkpointing else 0
    if config.training.streams_per_pass is not None:
        # All groups of streams but the last are run once more, to know their gradient.
        reruns += P - min(P, config.training.streams_per_pass)
    training += reruns * stream
    validation = P * stream + head + aggregator
    backbone_alone = backbone + per_key * keys + head
    tokens = config.total_steps * config.tokens_per_step
    return tokens * training + config.data.validation_tokens * (validations(config) * validation + backbone_alone)


def validations(config: RunConfig) -> int:
    """How often a run validates: at its start, every `eval_interval_tokens`, and at its end."""
    interval, step = config.training.eval_interval_tokens, config.tokens_per_step
    before_last = (config.total_steps - 1) * step
    # A step that passes several intervals at once is validated once.
    between = before_last // interval if interval >= step else config.total_steps - 1
    return between + 2


def matrix_product_rate(config: RunConfig, size: ModelSize, setting: Setting) -> float:
    """Measures operations per second of a run's largest product, [B·T, D] x [D, I], on the spot."""
    rows = config.training.microbatch_size * config.data.sequence_length
    x = torch.randn(rows, size.hidden, device=setting.device).to(setting.compute)
    weight = torch.randn(size.hidden, size.intermediate, device=setting.device).to(setting.compute)

    def seconds(products: int) -> float:
        _wait_for(setting.device)
        started = time.perf_counter()
        for _ in range(products):
            x @ weight
        _wait_for(setting.device)
        return time.perf_counter() - started

    seconds(2)
    products = max(1, round(_MEASURED_SECONDS / 3 / max(seconds(1), 1e-6)))
    best = min(seconds(products) for _ in range(3)) / products
    return 2 * rows * size.hidden * size.intermediate / best


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
