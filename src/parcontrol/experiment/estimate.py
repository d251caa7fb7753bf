"""What a run will take, before it starts: time from operations, memory from what must be kept.

Both are estimates by formula; docs/experiment.md writes them out and says what they leave out.

Legend: P streams, B sequences per microbatch, T tokens per sequence, K prefix tokens, D hidden,
I intermediate, A width of all attention heads, L layers, V vocabulary.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from parcontrol.config import RunConfig
from parcontrol.parscale.convert import convert_to_parscale_model, create_parscale_config, parscale_parameters
from parcontrol.parscale.loading import resolve_model

_FLOAT32 = 4
# Parameter, gradient and AdamW's two moments, each in float32.
_TRAINED_BYTES = 4 * _FLOAT32
_MEASURED_SECONDS = 0.3
# On a CPU, malloc keeps holes that tensors of other sizes leave: the activations of SmolLM2-135M at
# P = 1, 2 and 4 (4 x 256 tokens, bf16, Linux) took this many times their bytes.
_CPU_HOLES = 1.45


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a ParScale model, as counts of numbers.

    Attributes:
        layer_parameters: Parameters of all decoder layers without prefixes: used once per token and
            stream.
        head_parameters: The output head, V·D: used once per token.
        aggregator_parameters: Used once per token.
        prefix_parameters: All prefixes: they are keys and values and are not multiplied with.
        total_parameters: All, embeddings and final norm included, shared ones once.
        layers: L.
        hidden: D.
        intermediate: I.
        attention: A, the number of heads times their width.
        vocabulary: V.
    """

    layer_parameters: int
    head_parameters: int
    aggregator_parameters: int
    prefix_parameters: int
    total_parameters: int
    layers: int
    hidden: int
    intermediate: int
    attention: int
    vocabulary: int

    @property
    def added_parameters(self) -> int:
        """What ParScale adds to the backbone."""
        return self.aggregator_parameters + self.prefix_parameters


@dataclass(frozen=True)
class Setting:
    """Where and how runs compute; the same for all runs of a sweep.

    Attributes:
        device: The device.
        backbone: Type of the backbone's parameters while training.
        compute: Type of the matrix products.
        loss_positions: Positions whose logits the loss holds at a time.
    """

    device: torch.device
    backbone: torch.dtype
    compute: torch.dtype
    loss_positions: int


@dataclass(frozen=True)
class Estimate:
    """What a run takes.

    Attributes:
        flops: Floating-point operations from the first step to the end, validations included.
        seconds: Time for them at the measured rate; less than it will be.
        memory_bytes: Peak memory of the device (on a CPU: of the process).
    """

    flops: float
    seconds: float
    memory_bytes: float


def estimate(config: RunConfig, setting: Setting, rate: float) -> Estimate:
    """Estimates a whole run.

    Args:
        config: The run.
        setting: Device and types.
        rate: Operations per second of a matrix product, from `matrix_product_rate`.

    Raises:
        ValueError: The backbone's configuration cannot be had, or it is not supported.
    """
    size = model_size(config)
    flops = run_flops(config, size)
    memory = parameter_bytes(config, size, setting)
    activations = activation_bytes(config, size, setting)
    if setting.device.type == "cpu":
        # This process has loaded the same libraries and nothing else.
        memory += psutil.Process().memory_info().rss
        activations *= _CPU_HOLES
    return Estimate(flops, flops / rate, memory + activations)


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
    parscale = config.parscale
    with torch.device("meta"):
        backbone = AutoModelForCausalLM.from_config(backbone_config)
        streams = create_parscale_config(parscale.P, parscale.prefix_length, parscale.attn_smooth)
        model = convert_to_parscale_model(backbone, streams)
    added = {key: parameter.numel() for key, parameter in parscale_parameters(model)}
    aggregator = sum(number for key, number in added.items() if ".aggregate_layer." in key)
    prefixes = sum(added.values()) - aggregator
    heads = backbone_config.num_attention_heads
    return ModelSize(
        layer_parameters=sum(p.numel() for p in model.model.layers.parameters()) - prefixes,
        head_parameters=model.get_output_embeddings().weight.numel(),
        aggregator_parameters=aggregator,
        prefix_parameters=prefixes,
        total_parameters=sum(p.numel() for p in model.parameters()),
        layers=len(model.model.layers),
        hidden=backbone_config.hidden_size,
        intermediate=backbone_config.intermediate_size,
        attention=heads * model.model.layers[0].self_attn.head_dim,
        vocabulary=backbone_config.vocab_size,
    )


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
    if config.training.gradient_checkpointing:
        training += P * stream
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


def parameter_bytes(config: RunConfig, size: ModelSize, setting: Setting) -> float:
    """Bytes of all parameters, and for what trains of gradients and AdamW's moments in float32."""
    if config.training.mode == "peft":
        frozen = size.total_parameters - size.added_parameters
        return frozen * setting.backbone.itemsize + size.added_parameters * _TRAINED_BYTES
    casts = size.layer_parameters * setting.compute.itemsize if _autocasts(setting) else 0
    return size.total_parameters * _TRAINED_BYTES + casts


def activation_bytes(config: RunConfig, size: ModelSize, setting: Setting) -> float:
    """Bytes of what a training step keeps for its backward pass, and of the logits of the loss.

    Of each row (one token in one stream) and layer: the float32 input of two norms; queries, keys,
    values and outputs of attention; three intermediate tensors of the MLP. In full mode also the
    norms' outputs and what enters the linear layers, of which each keeps a cast of its own under
    autocast. Gradients in flight are counted as one layer more.
    """
    training, width = config.training, setting.compute.itemsize
    D, A, inner = size.hidden, size.attention, size.intermediate
    layer = 2 * _FLOAT32 * D + width * (4 * A + 3 * inner)
    logits = setting.loss_positions * size.vocabulary * (_FLOAT32 + 2 * width)
    if training.mode == "full":
        layer += 2 * _FLOAT32 * D + width * (inner + (5 if _autocasts(setting) else 2) * D)
        logits += size.head_parameters * _FLOAT32
    inside_layers = (size.layers + 1) * layer
    if training.gradient_checkpointing:
        inside_layers = size.layers * width * D + 2 * layer
    after_layers = (2 * _FLOAT32 + width) * D
    rows = config.parscale.P * training.microbatch_size * config.data.sequence_length
    return rows * (inside_layers + after_layers) + logits


def _autocasts(setting: Setting) -> bool:
    return setting.backbone != setting.compute


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
