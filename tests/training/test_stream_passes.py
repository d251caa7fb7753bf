"""Steps in passes against the ordinary step, which has its own tests against training written out by hand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from parcontrol.config import RunConfig
from parcontrol.parscale.convert import convert_to_parscale_model, create_parscale_config
from parcontrol.runs import RunDirectory
from parcontrol.training.callbacks import StreamDiagnostics
from parcontrol.training.device import choose_precision
from parcontrol.training.errors import OutOfMemoryError
from parcontrol.training.fitting import MemoryPlan
from parcontrol.training.loop import Callback, TrainingLoop
from parcontrol.training.run import run
from parcontrol.training.stream_passes import stream_groups
from tests.parscale.models import randomise, tiny_backbone
from tests.training.test_loop import Records, make_loop

MakeConfig = Callable[..., RunConfig]
CPU = torch.device("cpu")


def model_for(config: RunConfig, architecture: str = "Qwen2", **overrides: object) -> PreTrainedModel:
    backbone = tiny_backbone(architecture, vocab_size=300, **overrides)
    streams = create_parscale_config(config.parscale.P, config.parscale.prefix_length)
    return randomise(convert_to_parscale_model(backbone, streams)).train()


def loop_for(config: RunConfig, *callbacks: Callback, architecture: str = "Qwen2", **overrides: object) -> TrainingLoop:
    return make_loop(config, *callbacks, model=model_for(config, architecture, **overrides))


def step_gradients(loop: TrainingLoop) -> dict[str, torch.Tensor]:
    """Gradients of one step of several microbatches, before clipping."""
    training = loop.config.training
    ids = torch.from_numpy(loop.stream.next_blocks(training.microbatch_size * training.gradient_accumulation_steps))
    for part in ids.split(training.microbatch_size):
        loop._backward(part.to(loop.precision.device), ids[:, 1:].numel())
    return {name: parameter.grad for name, parameter in loop.trainable}


def assert_equal_gradients(gradients: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert (gradients[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", ["Qwen2", "Llama"])
@pytest.mark.parametrize("mode", ["peft", "full"])
@pytest.mark.parametrize(
    ("P", "streams_per_pass"),
    [(2, 1), (4, 1), (4, 3), *(pytest.param(8, g, marks=pytest.mark.full) for g in (1, 3, 4))],
)
def test_gradients_are_those_of_the_ordinary_step(
    make_config: MakeConfig, P: int, streams_per_pass: int, mode: str, architecture: str, checkpointing: bool
) -> None:
    gradients = []
    for size in (P, streams_per_pass):
        config = make_config(
            parscale__P=P,
            training__mode=mode,
            training__gradient_checkpointing=checkpointing,
            training__streams_per_pass=size,
        )
        gradients.append(step_gradients(loop_for(config, architecture=architecture)))
    assert_equal_gradients(gradients[1], gradients[0])


@pytest.mark.parametrize("mode", ["peft", "full"])
def test_a_run_in_passes_is_the_ordinary_run(make_config: MakeConfig, mode: str) -> None:
    """Losses, norms before clipping, stream statistics and what is trained, with accumulation and clipping."""
    runs = []
    for size in (4, 1):
        config = make_config(
            parscale__P=4,
            training__mode=mode,
            training__streams_per_pass=size,
            training__tokens_per_run=4 * 128,
            training__max_grad_norm=0.005,
            training__adam_eps=1e-4,  # keeps updates smooth where a gradient is nearly zero
            training__log_interval_steps=2,
        )
        records = Records()
        loop = loop_for(config, StreamDiagnostics(config, CPU), records)
        loop.run()
        runs.append((records, dict(loop.trainable)))
    (ordinary, trained), (passes, trained_in_passes) = runs
    assert len(ordinary.train) == len(ordinary.streams) == 2
    for expected, record in zip(ordinary.train, passes.train, strict=True):
        assert expected["grad_norm"] > config.training.max_grad_norm
        for key in ("loss", "grad_norm", "learning_rate"):
            assert record[key] == pytest.approx(expected[key], rel=1e-5)
    for expected, record in zip(ordinary.streams, passes.streams, strict=True):
        for key in ("mean_weight", "argmax_share", "entropy", "gini", "mean_cosine_similarity"):
            assert record[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-6)
        torch.testing.assert_close(*(torch.tensor(r["cosine_similarity"]) for r in (record, expected)))
    for name, parameter in trained.items():
        torch.testing.assert_close(trained_in_passes[name], parameter, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_is_the_same_in_both_runs_of_a_group(make_config: MakeConfig, checkpointing: bool) -> None:
    """Against all groups run once, in the same order and with the same numbers, and all graphs kept."""
    config = make_config(
        parscale__P=4, training__streams_per_pass=2, training__gradient_checkpointing=checkpointing, training__seed=3
    )

    def loop() -> TrainingLoop:
        made = loop_for(config, attention_dropout=0.3)
        torch.manual_seed(5)
        return made

    def all_graphs_kept(loop: TrainingLoop) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(loop.stream.next_blocks(4))
        inner: Any = loop.model.model
        for part in ids.split(2):
            groups = [inner(input_ids=part, use_cache=False, streams=range(p, p + 2)) for p in (0, 2)]
            mixed, _ = inner.aggregate(torch.cat([group.stream_hidden_states for group in groups]))
            logits = loop.model.get_output_embeddings()(mixed[:, :-1]).flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, part[:, 1:].flatten(), reduction="sum")
            (loss / ids[:, 1:].numel()).backward()
        return {name: parameter.grad for name, parameter in loop.trainable}

    expected = all_graphs_kept(loop())
    rng = torch.get_rng_state()
    assert_equal_gradients(step_gradients(loop()), expected)
    assert torch.equal(torch.get_rng_state(), rng), "the next step must draw what it would have drawn"
    without = step_gradients(loop_for(config))
    assert any((without[name] - gradient).norm() > 0.01 * gradient.norm() for name, gradient in expected.items())


def test_activations_of_one_group_at_a_time(make_config: MakeConfig) -> None:
    """With a graph every stream runs once, in groups of at most two; without one, all groups but the last."""
    loop = loop_for(make_config(parscale__P=5, training__streams_per_pass=2))
    calls: list[tuple[bool, int]] = []
    loop.model.model.layers[0].register_forward_pre_hook(
        lambda _module, inputs: calls.append((torch.is_grad_enabled(), len(inputs[0]) // 2))
    )
    loop._backward(torch.from_numpy(loop.stream.next_blocks(2)), 62)
    assert calls == [(False, 1), (False, 2), (True, 2), (True, 1), (True, 2)]


@pytest.mark.parametrize("P", range(1, 10))
@pytest.mark.parametrize("streams_per_pass", range(1, 11))
def test_groups_are_neighbours_and_as_equal_as_can_be(P: int, streams_per_pass: int) -> None:
    groups = stream_groups(P, streams_per_pass)
    assert [p for group in groups for p in group] == list(range(P))
    sizes = [len(group) for group in groups]
    assert max(sizes) <= streams_per_pass
    assert max(sizes) - min(sizes) <= 1
    assert len(groups) == -(-P // streams_per_pass)


@pytest.mark.parametrize("streams", [range(0), range(2, 5), range(0, 4, 2), range(-1, 2)])
def test_streams_that_are_not_there_are_refused(make_config: MakeConfig, streams: range) -> None:
    model = model_for(make_config(parscale__P=4))
    with pytest.raises(ValueError, match=r"streams is range\(.*neighbours in range\(0, 4\) are needed"):
        model.model(input_ids=torch.ones(1, 3, dtype=torch.long), streams=streams)


def test_streams_alone_are_those_of_all_together(make_config: MakeConfig) -> None:
    """With left padding as well, whose positions follow from the mask."""
    model = model_for(make_config(parscale__P=4)).eval()
    ids = torch.randint(2, 300, (2, 7))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    together = model.model(input_ids=ids, attention_mask=mask).stream_hidden_states
    part = model.model(input_ids=ids, attention_mask=mask, streams=range(1, 3))
    assert part.last_hidden_state is None
    torch.testing.assert_close(part.stream_hidden_states[:, mask.bool()], together[1:3][:, mask.bool()])


@pytest.mark.parametrize("mode", ["peft", "full"])
@pytest.mark.parametrize("tokens", [1, 6, 62])
def test_stretches_of_the_aggregator_do_not_matter(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, mode: str, tokens: int
) -> None:
    """Of 32 tokens in 2 rows: 32 stretches, 11, or 31 and one that predicts nothing."""
    ordinary, passes = (make_config(training__mode=mode, training__streams_per_pass=size) for size in (2, 1))
    expected = step_gradients(loop_for(ordinary))
    monkeypatch.setattr("parcontrol.training.stream_passes.AGGREGATED_TOKENS", tokens)
    assert_equal_gradients(step_gradients(loop_for(passes)), expected)


def free(monkeypatch: pytest.MonkeyPatch, number: float) -> None:
    monkeypatch.setattr("parcontrol.diagnostics.memory.MemoryMonitor.free_bytes", lambda monitor: int(number))


def test_streams_per_pass_are_chosen_once_by_the_free_memory(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(parscale__P=4)
    model, precision = model_for(config), choose_precision(config.training)
    plenty, nothing = 1 << 40, 1 << 20
    for room, expected in ((plenty, 4), (nothing, 1)):
        free(monkeypatch, room)
        with caplog.at_level(logging.INFO):
            assert MemoryPlan.make(config, model, precision, {}).streams_per_pass == expected
        assert f"streams per pass: {expected} of 4, chosen by the free memory" in caplog.text
    # A resumed run rounds as it began; the configuration has the last word.
    assert MemoryPlan.make(config, model, precision, {"streams_per_pass": 2}).streams_per_pass == 2
    assert MemoryPlan.make(config, model, precision, {"run_id": "older"}).streams_per_pass == 4
    explicit = make_config(parscale__P=4, training__streams_per_pass=3)
    assert MemoryPlan.make(explicit, model, precision, {"streams_per_pass": 2}).streams_per_pass == 3


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError])
def test_running_out_of_memory_names_what_would_fit(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """A whole run on a corpus: its steps fail as long as it keeps more than one stream, and go on with one."""
    backward = TrainingLoop._backward

    def short_of_memory(loop: TrainingLoop, ids: torch.Tensor, predicted: int, *ends: bool) -> torch.Tensor:
        if loop.streams_per_pass > 1:
            raise kind("out of memory: 3 GiB wanted")
        return backward(loop, ids, predicted, *ends)

    monkeypatch.setattr(TrainingLoop, "_backward", short_of_memory)
    config = make_config(parscale__P=4, training__streams_per_pass=2)
    free(monkeypatch, 500e6)
    # So small a model is all fixed costs, of which fewer streams would save no tenth.
    monkeypatch.setattr("parcontrol.diagnostics.footprint._CPU_FIXED", 0)
    fits = "By estimate training.streams_per_pass 1 would fit: steps then take "
    with pytest.raises(OutOfMemoryError) as failure:
        run(config)
    message = str(failure.value)
    assert message.startswith("out of memory with parscale.P 4")
    assert message.count("out of memory with") == 1
    assert "\n" not in message
    assert fits in message
    result = run(make_config(parscale__P=4, training__streams_per_pass=1))
    assert result["tokens"] == 24 * 128
    assert RunDirectory(config.run_directory).read_meta()["streams_per_pass"] == 1
