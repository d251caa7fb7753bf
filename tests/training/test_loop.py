"""The loop against training written out by hand, and what it must never do between log points."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from parcontrol.config import RunConfig
from parcontrol.parscale.convert import (
    convert_to_parscale_model,
    create_parscale_config,
    parscale_parameters,
)
from parcontrol.training.callbacks import StreamDiagnostics
from parcontrol.training.device import choose_precision
from parcontrol.training.errors import NonFiniteError
from parcontrol.training.loop import Callback, Record, TrainingLoop

MakeConfig = Callable[..., RunConfig]


class FixedStream:
    """Random blocks in the place of a corpus; what the loop asks of a stream and nothing else."""

    def __init__(self, config: RunConfig, vocabulary: int = 300) -> None:
        steps = config.total_steps * config.tokens_per_step // config.data.sequence_length
        shape = (steps, config.data.sequence_length)
        self.blocks = np.random.default_rng(0).integers(0, vocabulary, shape)
        self.position = 0
        self.wait_seconds = 0.0

    def next_blocks(self, n: int) -> np.ndarray:
        self.position += n
        return self.blocks[self.position - n : self.position]

    def state_dict(self) -> Record:
        return {"position": self.position}

    def provenance(self) -> Record:
        end = self.position * 100
        shards = [{"shard": "train/07", "byte_start": 0, "byte_end": end, "documents": 1, "tokens": self.position}]
        return {"shards": shards, "tokens": self.position, "sha256": "0" * 64}


class Records(Callback):
    def __init__(self) -> None:
        self.train: list[Record] = []
        self.streams: list[Record] = []

    def on_record(self, kind: str, record: Record) -> None:
        getattr(self, kind).append(record)


def make_model(config: RunConfig, attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(1)
    backbone = AutoModelForCausalLM.from_pretrained(
        config.model.name, dtype=torch.float32, attn_implementation=attention
    )
    parscale = create_parscale_config(config.parscale.P, config.parscale.prefix_length, config.parscale.attn_smooth)
    model = convert_to_parscale_model(backbone, parscale)
    with torch.no_grad():  # an aggregator at zero would hide errors in its gradients
        for _, parameter in parscale_parameters(model):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_loop(config: RunConfig, *callbacks: Callback, model: PreTrainedModel | None = None) -> TrainingLoop:
    model = model or make_model(config)
    stream: Any = FixedStream(config)
    return TrainingLoop(config, model, stream, choose_precision(config.training), callbacks)


def train_by_hand(config: RunConfig, model: PreTrainedModel) -> tuple[list[float], list[float]]:
    """AdamW from its paper, one batch per step, full logits, losses and norms of every step."""
    training = config.training
    if training.mode == "peft":
        parameters = dict(parscale_parameters(model))
        model.requires_grad_(False)
    else:
        parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    m = {name: torch.zeros_like(p) for name, p in parameters.items()}
    v = {name: torch.zeros_like(p) for name, p in parameters.items()}
    blocks = torch.from_numpy(FixedStream(config).blocks)
    rows = training.microbatch_size * training.gradient_accumulation_steps
    losses, norms = [], []
    total = config.total_steps * config.tokens_per_step
    for step in range(1, config.total_steps + 1):
        batch = blocks[(step - 1) * rows : step * rows]
        logits = model(input_ids=batch).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        grads = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads.values()))
        tokens = step * config.tokens_per_step
        lr = training.learning_rate * min(1, tokens / training.warmup_tokens)
        if tokens > training.warmup_tokens:
            done = (tokens - training.warmup_tokens) / (total - training.warmup_tokens)
            low = training.min_learning_rate_ratio
            lr *= low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))
        for name, p in parameters.items():
            g = grads[name] * min(1, training.max_grad_norm / (norm + 1e-6))
            m[name] = training.adam_beta1 * m[name] + (1 - training.adam_beta1) * g
            v[name] = training.adam_beta2 * v[name] + (1 - training.adam_beta2) * g * g
            m_hat = m[name] / (1 - training.adam_beta1**step)
            v_hat = v[name] / (1 - training.adam_beta2**step)
            decays = p.dim() >= 2 and "prefix" not in name
            with torch.no_grad():
                p -= lr * training.weight_decay * p if decays else 0
                p -= lr * m_hat / (v_hat.sqrt() + training.adam_eps)
        losses.append(float(loss.detach()))
        norms.append(norm)
    return losses, norms


@pytest.mark.parametrize("mode", ["peft", "full"])
@pytest.mark.parametrize("P", [1, 2])
def test_equals_training_written_out_by_hand(make_config: MakeConfig, mode: str, P: int) -> None:
    config = make_config(
        parscale__P=P,
        training__mode=mode,
        training__tokens_per_run=3 * 128,
        training__warmup_tokens=150,
        training__weight_decay=0.1,
        training__max_grad_norm=0.005,  # below every norm here: clipping is at work
        training__adam_eps=1e-4,  # keeps the first steps smooth where a gradient is nearly zero
        training__log_interval_steps=1,
    )
    records = Records()
    loop = make_loop(config, records)
    by_hand = make_model(config)
    loop.run()
    losses, norms = train_by_hand(config, by_hand)
    assert min(norms) > config.training.max_grad_norm
    assert [r["loss"] for r in records.train] == pytest.approx(losses, rel=2e-6)
    assert [r["grad_norm"] for r in records.train] == pytest.approx(norms, rel=1e-4)
    assert losses[2] != losses[0]
    expected = dict(by_hand.named_parameters())
    before = dict(make_model(config).named_parameters())
    for name, parameter in loop.model.named_parameters():
        moved = (expected[name] - before[name]).abs().max()
        assert moved > 0 or not parameter.requires_grad
        torch.testing.assert_close(parameter, expected[name], rtol=1e-4, atol=2e-6, msg=name)


def test_accumulated_microbatches_are_one_batch(make_config: MakeConfig) -> None:
    gradients = []
    for microbatch, accumulation in ((4, 1), (2, 2), (1, 4)):
        config = make_config(training__microbatch_size=microbatch, training__gradient_accumulation_steps=accumulation)
        loop = make_loop(config)
        ids = torch.from_numpy(loop.stream.next_blocks(4))
        for part in ids.split(microbatch):
            loop._backward(part, ids[:, 1:].numel())
        gradients.append({name: p.grad for name, p in loop.trainable})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("mode", ["peft", "full"])
def test_gradient_checkpointing_gives_the_same_gradients(make_config: MakeConfig, mode: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        loop = make_loop(make_config(training__mode=mode, training__gradient_checkpointing=checkpointing))
        loop.model.train()
        ids = torch.from_numpy(loop.stream.next_blocks(2))
        calls = Calls()
        hook = loop.model.model.layers[0].mlp.register_forward_pre_hook(calls)
        loop._backward(ids, ids[:, 1:].numel())
        hook.remove()
        assert calls.count == (2 if checkpointing else 1)
        gradients.append({name: p.grad for name, p in loop.trainable})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-8)


class Calls:
    count = 0

    def __call__(self, *arguments: Any) -> None:
        self.count += 1


class HostReads(TorchDispatchMode):
    """Counts operations that must wait for the device: a value read, or a copy to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.is_nonzero.default,
            torch.ops.aten.equal.default,
        ):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_from_the_device_between_log_points(make_config: MakeConfig) -> None:
    config = make_config(training__tokens_per_run=6 * 128, training__log_interval_steps=3)
    diagnostics = StreamDiagnostics(config, torch.device("cpu"))
    # Dispatch modes cannot look into the mask class that sdpa uses.
    loop = make_loop(config, diagnostics, Records(), model=make_model(config, attention="eager"))
    loop._sources[0] = loop.stream.provenance()
    with HostReads() as reads:
        for _ in range(3):
            loop._train_step()
            loop._mark_boundary()
    assert reads.seen == []
    with HostReads() as reads:
        float(torch.ones(()))
    assert reads.seen, "the watch must see what it is there to see"


@pytest.mark.cuda
@pytest.mark.parametrize("mode", ["peft", "full"])
def test_cuda_is_never_waited_for_between_log_points(make_config: MakeConfig, mode: str) -> None:
    """As above, but judged by the driver: torch raises at every synchronisation."""
    config = make_config(training__mode=mode, training__device="cuda", training__mixed_precision="bf16")
    diagnostics = StreamDiagnostics(config, torch.device("cuda"))
    loop = make_loop(config, diagnostics, Records(), model=make_model(config).to("cuda"))
    loop._sources[0] = loop.stream.provenance()
    loop._train_step()  # libraries set themselves up
    try:
        torch.cuda.set_sync_debug_mode("error")
        loop._train_step()
        loop._mark_boundary()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loop.step == 2


def test_no_float64_reaches_the_device(make_config: MakeConfig) -> None:
    seen: list[str] = []

    class Float64(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
                seen.append(str(func))
            return result

    config = make_config(training__tokens_per_run=3 * 128, training__log_interval_steps=1)
    diagnostics = StreamDiagnostics(config, torch.device("cpu"))
    loop = make_loop(config, diagnostics, Records(), model=make_model(config, attention="eager"))
    with Float64():
        loop.run()
    assert seen == []


def poisoned(config: RunConfig, at_step: int, value: float) -> tuple[TrainingLoop, Records]:
    """A loop whose token 299 is embedded as `value`, and whose data has that token in one step."""
    model = make_model(config)

    def poison(_module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill((inputs[0] == 299)[..., None], value)

    model.model.embed_tokens.register_forward_hook(poison)
    records = Records()
    loop = make_loop(config, StreamDiagnostics(config, torch.device("cpu")), records, model=model)
    stream: Any = loop.stream
    stream.blocks[stream.blocks == 299] = 0
    rows = config.training.microbatch_size * config.training.gradient_accumulation_steps
    stream.blocks[(at_step - 1) * rows + 1, 5] = 299
    return loop, records


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_step_stops_the_run_at_the_next_log_point(make_config: MakeConfig, value: float) -> None:
    loop, records = poisoned(make_config(training__log_interval_steps=4), at_step=6, value=value)
    with pytest.raises(NonFiniteError) as failure:
        loop.run()
    message = str(failure.value)
    assert "step 6 is not finite" in message
    assert "train/07 up to byte 2400, from within the document that ends at byte 2000" in message
    assert "Streams at the last log point: mean weight [0." in message
    assert loop.step == 8
    assert [record["step"] for record in records.train] == [4]


def test_a_non_finite_step_is_named_at_the_log_point_itself(make_config: MakeConfig) -> None:
    loop, _ = poisoned(make_config(training__log_interval_steps=1), at_step=2, value=float("nan"))
    with pytest.raises(NonFiniteError, match="step 2 is not finite: loss nan"):
        loop.run()


def test_a_step_between_log_points_is_not_lost_by_what_comes_after(make_config: MakeConfig) -> None:
    """The first bad step is named, though all after it are bad as well."""
    loop, _ = poisoned(make_config(training__log_interval_steps=12), at_step=1, value=float("nan"))
    with pytest.raises(NonFiniteError, match="step 1 is not finite"):
        loop.run()


def test_losses_of_a_window_are_means_over_its_steps(make_config: MakeConfig) -> None:
    every, sparse = Records(), Records()
    config = make_config(training__log_interval_steps=1)
    make_loop(config, every).run()
    config = make_config(training__log_interval_steps=10)
    make_loop(config, sparse).run()
    assert [record["step"] for record in sparse.train] == [10, 20, 24]
    assert [record["tokens"] for record in sparse.train] == [1280, 2560, 24 * 128]
    for record, steps in zip(sparse.train, (range(10), range(10, 20), range(20, 24)), strict=True):
        for key in ("loss", "grad_norm"):
            assert record[key] == pytest.approx(np.mean([every.train[step][key] for step in steps]), rel=1e-6)
    assert sparse.train[-1]["learning_rate"] == every.train[-1]["learning_rate"] == pytest.approx(1e-3)


def test_bf16_backbone_follows_the_float32_one(make_config: MakeConfig) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        config = make_config(training__mixed_precision=precision, training__log_interval_steps=1)
        model = make_model(config)
        for name, parameter in model.named_parameters():
            if name not in dict(parscale_parameters(model)):
                parameter.data = parameter.data.to(choose_precision(config.training).backbone)
        records = Records()
        loop = make_loop(config, records, model=model)
        loop.run()
        losses[precision] = [record["loss"] for record in records.train]
        assert {p.dtype for _, p in loop.trainable} == {torch.float32}
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.02)


def test_full_mode_autocasts_float32_master_weights(make_config: MakeConfig) -> None:
    config = make_config(training__mode="full", training__mixed_precision="bf16", training__log_interval_steps=1)
    records, reference = Records(), Records()
    loop = make_loop(config, records)
    seen = []
    loop.model.model.layers[0].mlp.gate_proj.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    loop.run()
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in loop.model.parameters()} == {torch.float32}
    make_loop(make_config(training__mode="full", training__log_interval_steps=1), reference).run()
    assert [r["loss"] for r in records.train] == pytest.approx([r["loss"] for r in reference.train], abs=0.03)


def test_two_loops_give_the_same_bits(make_config: MakeConfig) -> None:
    config = make_config()
    model = make_model(config)
    loops = [make_loop(config, Records(), model=copy.deepcopy(model)) for _ in range(2)]
    for loop in loops:
        loop.run()
    for (name, first), (_, second) in zip(loops[0].trainable, loops[1].trainable, strict=True):
        assert torch.equal(first, second), name
