"""What trains, how it decays, and the learning rate by tokens."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from parcontrol.config import RunConfig, load_config
from parcontrol.parscale.convert import convert_to_parscale_model, create_parscale_config
from parcontrol.training.optimizer import build_optimizer, learning_rate, select_trainable


def schedule(**overrides: object) -> RunConfig:
    values = {
        "training.tokens_per_run": 1050,
        "training.gradient_accumulation_steps": 1,
        "training.learning_rate": 0.5,
        "training.warmup_tokens": 200,
        "training.min_learning_rate_ratio": 0.1,
        "data.sequence_length": 10,
        "data.validation_tokens": 10,
    }
    return load_config(None, values | {key.replace("__", "."): value for key, value in overrides.items()})


def parscale_model(P: int = 2, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return convert_to_parscale_model(Qwen2ForCausalLM(config).to(dtype), create_parscale_config(P, 3))


def test_learning_rate_rises_linearly_then_follows_a_cosine_to_the_last_step() -> None:
    config = schedule()
    assert config.total_steps == 105
    assert learning_rate(0, config) == 0
    assert learning_rate(50, config) == pytest.approx(0.5 * 50 / 200)
    assert learning_rate(200, config) == pytest.approx(0.5)
    halfway = 200 + (1050 - 200) // 2
    assert learning_rate(halfway, config) == pytest.approx(0.5 * (0.1 + 0.9 / 2))
    quarter = 200 + (1050 - 200) * 0.25
    assert learning_rate(int(quarter), config) == pytest.approx(0.5 * (0.1 + 0.9 * (2 + math.sqrt(2)) / 4), abs=1e-3)
    assert learning_rate(1050, config) == pytest.approx(0.05)


def test_the_schedule_ends_with_the_whole_steps_that_the_budget_pays_for() -> None:
    config = schedule(training__tokens_per_run=1059)
    assert learning_rate(1050, config) == pytest.approx(0.05)


def test_the_curve_depends_on_tokens_and_not_on_the_batch() -> None:
    small, large = schedule(), schedule(training__microbatch_size=5)
    for tokens in range(0, 1051, 50):
        assert learning_rate(tokens, small) == learning_rate(tokens, large)


def test_no_warmup_starts_at_the_peak() -> None:
    assert learning_rate(0, schedule(training__warmup_tokens=0)) == pytest.approx(0.5)


def test_peft_trains_prefixes_and_aggregator_in_float32_over_a_frozen_bf16_backbone() -> None:
    model = parscale_model()
    trainable = select_trainable(model, "peft")
    names = {name for name, _ in trainable}
    prefixes = {f"model.layers.{i}.self_attn.prefix_{kv}" for i in range(2) for kv in "kv"}
    aggregator = {f"model.aggregate_layer.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    assert names == prefixes | aggregator
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in names)
        assert parameter.dtype == (torch.float32 if name in names else torch.bfloat16)


def test_peft_with_one_stream_trains_its_prefix() -> None:
    names = [name for name, _ in select_trainable(parscale_model(P=1), "peft")]
    assert len(names) == 4
    assert all("prefix_" in name for name in names)


def test_full_trains_every_parameter_in_float32_and_shared_ones_once() -> None:
    model = parscale_model(dtype=torch.float32)
    model.lm_head.weight = model.model.embed_tokens.weight
    trainable = select_trainable(model, "full")
    assert len(trainable) == len({id(parameter) for _, parameter in trainable}) == len(list(model.parameters()))
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for _, parameter in trainable)


def test_only_weight_matrices_decay() -> None:
    config = load_config(None, {"training.weight_decay": 0.1, "training.mode": "full"}).training
    trainable = select_trainable(parscale_model(), "full")
    optimizer = build_optimizer(trainable, config)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(trainable)
    for name, parameter in trainable:
        is_matrix = name.endswith(("proj.weight", "embed_tokens.weight", "lm_head.weight")) or (
            "aggregate_layer" in name and name.endswith("weight")
        )
        assert decay[id(parameter)] == (0.1 if is_matrix else 0.0), name
