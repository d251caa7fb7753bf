"""The formula of time against sums made by hand, and estimates as they are put together."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from parcontrol.config import RunConfig, load_config
from parcontrol.diagnostics.footprint import ModelSize, Setting, peak_bytes
from parcontrol.experiment.estimate import estimate, matrix_product_rate, model_size, run_flops, validations

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
    gated=True,
    rms_norms=16,
    layer_norms=0,
    attention=8,
    key_value=8,
    head_size=8,
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
    # All groups of streams but the last are run twice: here two of three.
    in_passes = tiny(training__mode="full", training__streams_per_pass=1)
    assert run_flops(in_passes, SIZE) == expected + 80 * 2 * 2608
    assert run_flops(tiny(training__mode="full", training__streams_per_pass=3), SIZE) == expected
    assert run_flops(tiny(training__mode="full", training__streams_per_pass=9), SIZE) == expected


@pytest.mark.parametrize(
    ("interval", "expected"),
    [(80, 2), (79, 2), (60, 3), (40, 3), (20, 5), (1, 5), (1000, 2)],
)
def test_validations_are_counted_as_training_makes_them(interval: int, expected: int) -> None:
    # Steps end at 20, 40, 60 and 80 tokens; the start and the end are always validated.
    due = [t for t in (20, 40, 60) if t // interval > (t - 20) // interval]
    assert 2 + len(due) == expected
    assert validations(tiny(training__eval_interval_tokens=interval)) == expected


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
        gated=True,
        rms_norms=64,
        layer_norms=0,
        attention=32,
        key_value=16,
        head_size=8,
        vocabulary=384,
    )
    assert size.added_parameters == aggregator + prefixes


def test_sizes_need_no_request_for_the_licence(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parcontrol.parscale.convert.base_model_license", lambda name: pytest.fail("asked"))
    assert model_size(load_config(None, {"model.name": str(tiny_model_dir)})).hidden == 32


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
    setting = Setting(CPU, torch.float32, torch.float32, 128, 256)
    configs = [tiny(parscale__P=P, model__name=str(tiny_model_dir)) for P in (1, 2, 4)]
    rate = matrix_product_rate(configs[0], model_size(configs[0]), setting)
    assert rate > 0
    estimates = [estimate(config, model_size(config), setting, rate) for config in configs]
    for one, config in zip(estimates, configs, strict=True):
        assert one.flops == run_flops(config, model_size(config))
        assert one.seconds == one.flops / rate
    assert estimates[0].flops < estimates[1].flops < estimates[2].flops < 4 * estimates[0].flops


def test_on_a_cpu_a_run_also_holds_its_tokenizer_and_a_decompressor_for_each_shard(tiny_model_dir: Path) -> None:
    setting = Setting(CPU, torch.float32, torch.float32, 128, 256)
    config = tiny(model__name=str(tiny_model_dir), data__num_shards=3)
    size = model_size(config)

    def memory(config: RunConfig, size: ModelSize) -> float:
        return estimate(config, size, setting, 1e9).memory_bytes

    more = tiny(model__name=str(tiny_model_dir), data__num_shards=13)
    assert memory(more, size) - memory(config, size) == pytest.approx(15e6, abs=2e6)  # this process may grow meanwhile
    larger = dataclasses.replace(size, vocabulary=size.vocabulary + 100_000)
    # Logits of so few positions stay below what malloc keeps anyway.
    assert memory(config, larger) - memory(config, size) == pytest.approx(120e6, abs=2e6)


def test_memory_is_planned_with_the_streams_that_fit(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(torch.device("cuda"), torch.float32, torch.float32, 512, 256)  # without a process of its own
    config = tiny(parscale__P=4, model__name=str(tiny_model_dir))
    size = model_size(config)

    def needed(streams_per_pass: int) -> float:
        fixed = tiny(parscale__P=4, model__name=str(tiny_model_dir), training__streams_per_pass=streams_per_pass)
        return peak_bytes(fixed, size, setting, 0)

    for free, chosen in ((1 << 30, 4), (1 << 10, 1)):
        monkeypatch.setattr("parcontrol.diagnostics.memory.MemoryMonitor.free_bytes", lambda monitor, free=free: free)
        assert estimate(config, size, setting, 1e9).memory_bytes == needed(chosen)
    assert needed(1) < needed(4)
