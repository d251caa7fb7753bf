"""The formulae of time and memory, against sums made by hand and against what torch really keeps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from parcontrol.config import RunConfig, load_config
from parcontrol.experiment.estimate import (
    ModelSize,
    Setting,
    activation_bytes,
    estimate,
    matrix_product_rate,
    model_size,
    parameter_bytes,
    run_flops,
    validations,
)
from parcontrol.parscale.convert import convert_to_parscale_model, create_parscale_config
from parcontrol.training.device import Precision, without_packing_check
from parcontrol.training.loss import chunked_cross_entropy, output_head
from parcontrol.training.optimizer import select_trainable

CPU = torch.device("cpu")
SIZE = ModelSize(
    layer_parameters=1000,
    head_parameters=300,
    aggregator_parameters=50,
    prefix_parameters=20,
    total_parameters=1400,
    layers=2,
    hidden=8,
    intermediate=16,
    attention=8,
    vocabulary=100,
)
# 4 steps of 2 x 10 tokens.
BASE: dict[str, Any] = {
    "parscale.P": 3,
    "parscale.prefix_length": 4,
    "training.tokens_per_run": 85,
    "training.warmup_tokens": 0,
    "training.microbatch_size": 2,
    "training.gradient_accumulation_steps": 1,
    "training.eval_interval_tokens": 40,
    "data.sequence_length": 10,
    "data.validation_tokens": 7,
}


def tiny(**overrides: object) -> RunConfig:
    return load_config(None, BASE | {key.replace("__", "."): value for key, value in overrides.items()})


def test_operations_of_a_peft_run_by_hand() -> None:
    # Attention, forward, per token and stream: 2 layers · 2 products · 2 · 8 wide · (5.5 + 4) keys.
    attention = 2 * 2 * 2 * 8 * 9.5
    assert attention == 608
    forward_one_stream = 2 * 1000 + 608
    training = 3 * (2 * 2000 + 3 * 608) + 2 * 600 + 3 * 100
    validation = 3 * forward_one_stream + 600 + 100
    backbone = 2000 + 2 * 2 * 2 * 8 * 5.5 + 600
    assert run_flops(tiny(), SIZE) == 80 * training + 7 * (3 * validation + backbone)


def test_operations_of_a_full_run_by_hand() -> None:
    training = 3 * (3 * 2000 + 3 * 608) + 3 * 600 + 3 * 100
    validation, backbone = 3 * 2608 + 700, 2000 + 352 + 600
    expected = 80 * training + 7 * (3 * validation + backbone)
    assert run_flops(tiny(training__mode="full"), SIZE) == expected
    checkpointed = tiny(training__mode="full", training__gradient_checkpointing=True)
    assert run_flops(checkpointed, SIZE) == expected + 80 * 3 * 2608


@pytest.mark.parametrize(
    ("interval", "expected"),
    [(80, 2), (79, 2), (60, 3), (40, 3), (20, 5), (1, 5), (1000, 2)],
)
def test_validations_are_counted_as_training_makes_them(interval: int, expected: int) -> None:
    # Steps end at 20, 40, 60 and 80 tokens; the start and the end are always validated.
    due = [t for t in (20, 40, 60) if t // interval > (t - 20) // interval]
    assert 2 + len(due) == expected
    assert validations(tiny(training__eval_interval_tokens=interval)) == expected


def test_memory_of_a_peft_run_by_hand() -> None:
    rows = 2 * 10 * 3
    layer = 8 * 8 + 2 * (4 * 8 + 3 * 16)  # two norms in float32; attention and MLP in bf16
    after = 10 * 8
    setting = Setting(CPU, torch.bfloat16, torch.bfloat16, 128)
    assert parameter_bytes(tiny(), SIZE, setting) == (1400 - 70) * 2 + 70 * 16
    assert activation_bytes(tiny(), SIZE, setting) == rows * (3 * layer + after) + 128 * 100 * 8


def test_memory_of_a_full_run_by_hand() -> None:
    rows = 2 * 10 * 3
    layer = 16 * 8 + 2 * (4 * 8 + 4 * 16 + 5 * 8)
    after = 10 * 8
    expected = rows * (3 * layer + after) + 128 * 100 * 8 + 300 * 4
    setting = Setting(CPU, torch.float32, torch.bfloat16, 128)
    full = tiny(training__mode="full")
    assert parameter_bytes(full, SIZE, setting) == 1400 * 16 + 1000 * 2
    assert activation_bytes(full, SIZE, setting) == expected
    checkpointed = tiny(training__mode="full", training__gradient_checkpointing=True)
    assert activation_bytes(checkpointed, SIZE, setting) == expected + rows * (2 * 2 * 8 - layer)


@pytest.mark.parametrize("mode", ["peft", "full"])
@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("P", [1, 3])
def test_activations_are_what_autograd_keeps(mode: str, compute: torch.dtype, P: int) -> None:
    # The difference between four layers and two, so that neither weights nor the rest count.
    backbone = compute if mode == "peft" else torch.float32
    kept = saved_bytes(4, P, mode, backbone, compute) - saved_bytes(2, P, mode, backbone, compute)
    config = tiny(parscale__P=P, training__mode=mode, training__tokens_per_run=128, data__sequence_length=64)
    setting = Setting(CPU, backbone, compute, 0)
    sizes = [
        ModelSize(0, 0, 0, 0, 0, layers=layers, hidden=64, intermediate=160, attention=64, vocabulary=0)
        for layers in (2, 4)
    ]
    predicted = activation_bytes(config, sizes[1], setting) - activation_bytes(config, sizes[0], setting)
    assert predicted == pytest.approx(kept, rel=0.08)


def saved_bytes(layers: int, P: int, mode: str, backbone: torch.dtype, compute: torch.dtype) -> int:
    """Bytes that autograd keeps for the backward pass, without parameters and casts of them."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    model = convert_to_parscale_model(Qwen2ForCausalLM(config).to(backbone), create_parscale_config(P, 4))
    select_trainable(model, mode)
    parameters = list(model.parameters())
    owned = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    # Autocast keeps its casts of weights, which are counted as weights.
    shapes = {tuple(p.shape) for p in parameters} | {tuple(p.T.shape) for p in parameters if p.dim() == 2}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in owned and tuple(tensor.shape) not in shapes:
            kept[place] = tensor
        return tensor

    ids = torch.randint(0, 256, (2, 64))
    precision = Precision(CPU, backbone, compute)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, precision.autocast(), without_packing_check():
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        chunked_cross_entropy(hidden, output_head(model), ids[:, 1:].flatten())
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("P", [1, 4])
def test_sizes_are_read_without_weights(tiny_model_dir: Path, tmp_path: Path, P: int) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model_dir / "config.json").read_bytes())
    config = load_config(None, {"model.name": str(tmp_path), "parscale.P": P, "parscale.prefix_length": 4})
    # Hidden 32, intermediate 64, 2 layers, 4 heads of 8 and 2 key/value heads, 384 tokens, tied.
    attention = (32 * 32 + 32) + 2 * (32 * 16 + 16) + 32 * 32
    layer = attention + 3 * 32 * 64 + 2 * 32
    aggregator = (P * 32 * 32 + 32) + (32 * P + P) if P > 1 else 0
    prefixes = 2 * 2 * P * 2 * 4 * 8
    size = model_size(config)
    assert size == ModelSize(
        layer_parameters=2 * layer,
        head_parameters=384 * 32,
        aggregator_parameters=aggregator,
        prefix_parameters=prefixes,
        total_parameters=2 * layer + 384 * 32 + 32 + aggregator + prefixes,
        layers=2,
        hidden=32,
        intermediate=64,
        attention=32,
        vocabulary=384,
    )
    assert size.added_parameters == aggregator + prefixes


def test_an_output_head_of_its_own_is_counted_once_and_used_once(tiny_untied_model_dir: Path) -> None:
    size = model_size(load_config(None, {"model.name": str(tiny_untied_model_dir)}))
    tied = dataclasses.replace(size, total_parameters=size.total_parameters - size.head_parameters)
    assert size.head_parameters == 384 * 32
    assert tied.total_parameters == size.layer_parameters + 384 * 32 + 32 + size.added_parameters


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = load_config(None, {"model.name": str(tmp_path / "none")})
    with pytest.raises(ValueError, match=r"configuration of '.*none' cannot be had"):
        model_size(config)


def test_time_is_operations_over_the_rate_and_more_streams_take_more(tiny_model_dir: Path) -> None:
    setting = Setting(CPU, torch.float32, torch.float32, 128)
    configs = [tiny(parscale__P=P, model__name=str(tiny_model_dir)) for P in (1, 2, 4)]
    rate = matrix_product_rate(configs[0], model_size(configs[0]), setting)
    assert rate > 0
    estimates = [estimate(config, setting, rate) for config in configs]
    for one, config in zip(estimates, configs, strict=True):
        assert one.flops == run_flops(config, model_size(config))
        assert one.seconds == one.flops / rate
    assert estimates[0].flops < estimates[1].flops < estimates[2].flops < 4 * estimates[0].flops
