"""Memory of a training step by formula: what must be kept, before anything is allocated.

docs/experiment.md writes the formula out and says how near it comes.

Legend: P streams, p streams whose activations are kept at a time, B sequences per microbatch, T
tokens per sequence, K prefix tokens, D hidden, I intermediate, A width of all attention heads, G of
all key/value heads, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from parcontrol.config import RunConfig

_FLOAT32 = 4
# For what trains: a gradient and AdamW's two moments, each in float32.
_TRAINING_STATE = 3 * _FLOAT32
# On a CPU, malloc keeps holes that tensors of other sizes leave, so that activations take this many
# times their bytes, and a step this many bytes whatever its size (benchmarks/training_memory.py).
_CPU_HOLES = 1.41
_CPU_FIXED = 87e6
_COMPILED_HOLES = 1.30
_COMPILED_FIXED = 125e6  # what the compiler itself has taken, too
_CUDA_FIXED = 2 * 2**25  # cuBLAS works in 32 MiB for each thread that multiplies: forward and backward
# Where layers are computed again: those whose activations are there at once, and how often each layer's input counts.
# On a CPU the inputs, which stay, keep holes open between what goes (benchmarks/run_memory.py).
_RECOMPUTED, _RECOMPUTED_CPU = (2, 1), (2.25, 2)
# What may be planned with of the memory that is free: the formula is wrong by up to a tenth, and
# other programs take some.
_USABLE = 0.85


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
        gated: Whether a second product of width I gates the MLP.
        rms_norms: Numbers of a row that enter the norms of a layer, 2D where it has two and no others.
        layer_norms: The same for those of torch's own LayerNorm, which keep them in the computing type.
        attention: A, the number of heads times their width.
        key_value: G, the number of key/value heads times their width.
        head_size: Their width.
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
    gated: bool
    rms_norms: int
    layer_norms: int
    attention: int
    key_value: int
    head_size: int
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
        aggregated_tokens: Tokens that the aggregator mixes at a time where not all streams are kept.
        shared_heads_from: From this many tokens T on, attention reads key/value heads where they
            are; below, it gets a copy for each head. None: always a copy.
    """

    device: torch.device
    backbone: torch.dtype
    compute: torch.dtype
    loss_positions: int
    aggregated_tokens: int
    shared_heads_from: int | None = None


def size_of(model: Any) -> ModelSize:
    """Returns the sizes of a ParScale model, on whatever device, `meta` included."""
    config, layer = model.config, model.model.layers[0]
    attention, heads = layer.self_attn, config.num_attention_heads
    widths = {
        "q_": heads * attention.head_dim,
        "k_": (getattr(config, "num_key_value_heads", None) or heads) * attention.head_dim,
    }
    norms = {
        module: widths.get(name.rsplit(".", 1)[-1][:2], config.hidden_size)
        for name, module in layer.named_modules()
        if isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("Norm")
    }
    torchs = sum(width for module, width in norms.items() if isinstance(module, nn.LayerNorm))
    prefixes = _count(model.model.layers, (".prefix_k", ".prefix_v"))
    return ModelSize(
        layer_parameters=_count(model.model.layers) - prefixes,
        head_parameters=model.get_output_embeddings().weight.numel(),
        aggregator_parameters=_count(getattr(model.model, "aggregate_layer", nn.Module())),
        prefix_parameters=prefixes,
        total_parameters=_count(model),
        layers=len(model.model.layers),
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        gated=any("gate" in name for name, _ in layer.named_modules()),
        rms_norms=sum(norms.values()) - torchs,
        layer_norms=torchs,
        attention=widths["q_"],
        key_value=widths["k_"],
        head_size=attention.head_dim,
        vocabulary=config.vocab_size,
    )


def _count(module: nn.Module, endings: tuple[str, ...] = ("",)) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if name.endswith(endings))


def peak_bytes(config: RunConfig, size: ModelSize, setting: Setting, process_bytes: float) -> float:
    """Peak memory of a run on its device (on a CPU: of its process).

    Args:
        config: The run; `training.streams_per_pass` null counts as all streams at once.
        size: Its model.
        setting: Device and types.
        process_bytes: On a CPU, what the process holds before it loads the model.
    """
    process = process_bytes if setting.device.type == "cpu" else 0
    return process + model_bytes(config, size, setting) + step_bytes(config, size, setting)


def model_bytes(config: RunConfig, size: ModelSize, setting: Setting) -> float:
    """Bytes of all parameters: float32 what trains, the rest in the type of the backbone."""
    trained = _trained(config, size)
    return (size.total_parameters - trained) * setting.backbone.itemsize + trained * _FLOAT32


def step_bytes(config: RunConfig, size: ModelSize, setting: Setting, streams_per_pass: int | None = None) -> float:
    """Bytes that steps take beside the parameters: training state and activations.

    Args:
        config: The run.
        size: Its model.
        setting: Device and types.
        streams_per_pass: Streams kept at a time; None takes the configuration's.
    """
    state = _trained(config, size) * _TRAINING_STATE
    if config.training.mode == "full" and _autocasts(setting):
        state += size.layer_parameters * setting.compute.itemsize
    activations = activation_bytes(config, size, setting, streams_per_pass)
    logits = logits_bytes(config, size, setting, streams_per_pass)
    if setting.device.type != "cpu":
        return state + activations + logits + (_CUDA_FIXED if setting.device.type == "cuda" else 0)
    holes, fixed = (_COMPILED_HOLES, _COMPILED_FIXED) if config.training.compile else (_CPU_HOLES, _CPU_FIXED)
    return state + holes * activations + max(fixed, logits)


def kept_streams(config: RunConfig, streams_per_pass: int | None = None) -> int:
    """Returns the streams of the largest pass, of which so many are allowed (None: as the configuration says).

    Groups are as equal as can be, so there may be fewer than that.
    """
    P = config.parscale.P
    allowed = streams_per_pass or config.training.streams_per_pass or P
    return -(-P // -(-P // allowed))


def fitting_streams_per_pass(config: RunConfig, size: ModelSize, setting: Setting, room: float) -> int:
    """Returns the most streams at a time whose steps fit into a room of so many bytes, or else 1."""
    sizes = sorted({kept_streams(config, allowed) for allowed in range(1, config.parscale.P + 1)})
    fitting = [one for one in sizes if step_bytes(config, size, setting, one) <= _USABLE * room]
    return fitting[-1] if fitting else 1


def fitting_settings(
    config: RunConfig, size: ModelSize, setting: Setting, streams_per_pass: int, room: float
) -> tuple[str, float] | None:
    """Returns the mildest change of settings whose steps would fit where those of a run did not.

    Args:
        config: The run that ran out of memory.
        size: Its model.
        setting: Device and types.
        streams_per_pass: Streams that it kept at a time.
        room: Bytes that there were beside the model.

    Returns:
        What to set, in words, and the bytes that steps then take; None where nothing is known to
        fit. What a run did not fit into although the formula said so is not trusted further.
    """
    needed = step_bytes(config, size, setting, streams_per_pass)
    limit = min(_USABLE * room, 0.9 * needed)
    for words, changed in _milder(config, streams_per_pass):
        smaller = step_bytes(changed, size, setting)
        if smaller <= limit:
            return words, smaller
    return None


def _milder(config: RunConfig, streams_per_pass: int) -> Iterator[tuple[str, RunConfig]]:
    """Yields settings that need less and less memory, those that cost least first."""
    streams = ""
    config = _with(config, streams_per_pass=streams_per_pass)
    for fewer in sorted({kept_streams(config, n) for n in range(1, streams_per_pass)}, reverse=True):
        streams = f"training.streams_per_pass {fewer}"
        config = _with(config, streams_per_pass=fewer)
        yield streams, config
    begin = f"{streams} and " if streams else ""
    if not config.training.gradient_checkpointing:
        yield f"{begin}training.gradient_checkpointing true", _with(config, gradient_checkpointing=True)
    sequences = config.training.microbatch_size
    accumulated = sequences * config.training.gradient_accumulation_steps
    for smaller in (n for n in range(sequences - 1, 0, -1) if accumulated % n == 0):
        changed = {"microbatch_size": smaller, "gradient_accumulation_steps": accumulated // smaller}
        words = f"training.microbatch_size {smaller} with training.gradient_accumulation_steps {accumulated // smaller}"
        yield f"{begin}{words}", _with(config, **changed)


def _with(config: RunConfig, **training: object) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


def activation_bytes(
    config: RunConfig, size: ModelSize, setting: Setting, streams_per_pass: int | None = None
) -> float:
    """Bytes of what a training step keeps for its backward pass.

    Of each row (one token in one stream) and layer: the inputs of its norms, in float32 but for
    torch's own; queries, keys, values and outputs of attention, keys and values with the prefix;
    three intermediate tensors of a gated MLP, one of another. In full mode also the norms' outputs
    and what enters the linear layers, of which each keeps a cast of its own under autocast.
    Gradients in flight are counted as one layer more.

    Where not all streams are kept, the layers count for those that are; all streams have their
    final hidden states and the gradient of them.
    """
    training, width = config.training, setting.compute.itemsize
    P, T = config.parscale.P, config.data.sequence_length
    D, A, inner = size.hidden, size.attention, size.intermediate
    norms = _FLOAT32 * size.rms_norms + width * size.layer_norms
    shared = setting.shared_heads_from is not None and setting.shared_heads_from <= T
    keys = (size.key_value if shared else A) * (1 + config.parscale.prefix_length / T)
    layer = norms + width * (2 * A + 2 * keys + (3 if size.gated else 1) * inner)
    if training.compile and training.mode == "peft":
        # Norms and the activation's product are computed again from what they were made of.
        numbers = size.rms_norms + size.layer_norms + (2 if size.gated else 1) * inner
        layer = width * (numbers + 2 * A + 2 * keys)
    if training.mode == "full":
        layer += _FLOAT32 * size.rms_norms + width * (inner + (5 if _autocasts(setting) else 2) * D)
    inside_layers = (size.layers + 1) * layer
    if training.gradient_checkpointing:
        recomputed, inputs = _RECOMPUTED_CPU if setting.device.type == "cpu" else _RECOMPUTED
        inside_layers = inputs * size.layers * width * D + recomputed * layer
    rows = training.microbatch_size * T
    kept = kept_streams(config, streams_per_pass)
    if kept == P:
        return P * rows * (inside_layers + (2 * _FLOAT32 + width) * D)
    hidden_states = 2 * max(setting.backbone.itemsize, width) * D
    aggregated = min(rows, setting.aggregated_tokens) * (3 * _FLOAT32 + 2 * width) * D
    return rows * (kept * inside_layers + P * hidden_states) + P * aggregated


def logits_bytes(config: RunConfig, size: ModelSize, setting: Setting, streams_per_pass: int | None = None) -> float:
    """Bytes of the logits that the loss holds at a time, and of the head's gradient if it trains."""
    positions = min(setting.loss_positions, config.training.microbatch_size * config.data.sequence_length)
    if kept_streams(config, streams_per_pass) < config.parscale.P:
        positions = min(positions, setting.aggregated_tokens)
    logits = positions * size.vocabulary * (_FLOAT32 + 2 * setting.compute.itemsize)
    return logits + (size.head_parameters * _FLOAT32 if config.training.mode == "full" else 0)


def _trained(config: RunConfig, size: ModelSize) -> int:
    return size.total_parameters if config.training.mode == "full" else size.added_parameters


def _autocasts(setting: Setting) -> bool:
    return setting.backbone != setting.compute
