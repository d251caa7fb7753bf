"""Compiled decoder layers against the same layers as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from parcontrol.config import RunConfig
from parcontrol.diagnostics.footprint import size_of
from parcontrol.kernels import causal_attention
from parcontrol.parscale.convert import convert_to_parscale_model, create_parscale_config, parscale_parameters
from parcontrol.parscale.modeling_parscale import DUMMY_QUERIES_FROM, has_cpp_compiler
from parcontrol.training import compiling
from parcontrol.training.device import choose_precision
from parcontrol.training.fitting import memory_setting
from parcontrol.training.loop import TrainingLoop
from parcontrol.training.run import run
from tests.parscale.models import randomise, tiny_backbone
from tests.training.same_run import assert_same_run
from tests.training.test_loop import make_loop
from tests.training.test_stream_passes import assert_equal_gradients, loop_for, step_gradients

MakeConfig = Callable[..., RunConfig]
needs_compiler = pytest.mark.skipif(not has_cpp_compiler(), reason="no C++ compiler")


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    """Every test compiles for itself, and leaves nothing that others would count."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@needs_compiler
@pytest.mark.parametrize(
    ("mode", "P", "streams_per_pass"),
    [
        ("peft", 4, 4),
        pytest.param("peft", 3, 2, marks=pytest.mark.full),  # groups of two sizes
        pytest.param("full", 4, 4, marks=pytest.mark.full),
    ],
)
def test_gradients_are_those_of_the_layers_as_they_are(
    make_config: MakeConfig, mode: str, P: int, streams_per_pass: int
) -> None:
    settings = {"parscale__P": P, "training__mode": mode, "training__streams_per_pass": streams_per_pass}
    expected = step_gradients(loop_for(make_config(**settings), architecture="Llama"))
    assert not counters["stats"]
    loop = loop_for(make_config(**settings, training__compile=True), architecture="Llama")
    gradients = step_gradients(loop)
    assert_equal_gradients(gradients, expected)
    assert not counters["graph_break"]
    compiled = counters["stats"]["unique_graphs"]
    assert compiled > 0
    # The next step has the same shapes and compiles nothing.
    step_gradients(loop)
    assert counters["stats"]["unique_graphs"] == compiled


@needs_compiler
@pytest.mark.full
def test_many_groups_of_streams_compile_no_more_than_two(make_config: MakeConfig) -> None:
    def graphs(P: int) -> int:
        torch._dynamo.reset()
        counters.clear()
        config = make_config(parscale__P=P, training__streams_per_pass=1, training__compile=True)
        step_gradients(loop_for(config, architecture="Llama"))
        return counters["stats"]["unique_graphs"]

    assert graphs(8) == graphs(2)


@needs_compiler
@pytest.mark.full
def test_a_resumed_run_is_the_same_to_the_bit(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_config("whole", training__compile=True)
    result = run(whole)
    assert counters["stats"]["unique_graphs"] == 3, "the first layer, the others and the loss; nothing for validations"
    assert result["final_validation_loss"] == pytest.approx(
        run(make_config("plain"))["final_validation_loss"], rel=1e-4
    )

    torch._dynamo.reset()
    stopped = make_config("stopped", training__compile=True)
    step = TrainingLoop._train_step

    def dies(loop: TrainingLoop) -> None:
        if loop.step == 13:
            raise KeyboardInterrupt
        step(loop)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_train_step", dies)
        with pytest.raises(KeyboardInterrupt):
            run(stopped)
    torch._dynamo.reset()
    run(stopped)
    assert_same_run(whole.run_directory, stopped.run_directory)


@needs_compiler
@pytest.mark.skipif(not (has_cpp_compiler() and causal_attention.is_available()), reason="no processor with AMX")
@pytest.mark.parametrize("mode", ["peft", pytest.param("full", marks=pytest.mark.full)])
def test_steps_in_bfloat16_take_our_kernel_and_validations_do_not(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    def loop_in(precision: str, **settings: object) -> TrainingLoop:
        config = make_config(parscale__P=4, training__mode=mode, training__mixed_precision=precision, **settings)
        backbone = tiny_backbone("Llama", vocab_size=300, head_dim=32)
        model = randomise(convert_to_parscale_model(backbone, create_parscale_config(4, 6))).train()
        if precision == "bf16" and mode == "peft":  # in full mode, autocast has products in bfloat16
            model = model.to(torch.bfloat16)
            for _, parameter in parscale_parameters(model):
                parameter.data = parameter.data.float()
        return make_loop(config, model=model)

    exact, torchs = step_gradients(loop_in("fp32")), step_gradients(loop_in("bf16"))
    calls: list[torch.Size] = []
    kernel = causal_attention.causal_attention

    def counted(query: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        calls.append(query.shape)
        return kernel(query, *args)

    monkeypatch.setattr(causal_attention, "causal_attention", counted)
    loop = loop_in("bf16", training__compile=True)
    with torch.compiler.set_stance("force_eager"):
        step_gradients(loop)
        assert calls
        calls.clear()
        loop.model.eval()(torch.zeros(1, 8, dtype=torch.long))
        assert not calls
    monkeypatch.undo()
    ours = step_gradients(loop_in("bf16", training__compile=True))
    assert not counters["graph_break"]
    for name, gradient in exact.items():
        mine, theirs = ((x[name] - gradient).norm() / gradient.norm() for x in (ours, torchs))
        assert mine < 1.2 * theirs + 0.002 < 0.1, name


@pytest.mark.parametrize(("head_size", "shared_from"), [(48, DUMMY_QUERIES_FROM), (64, 1)])
def test_memory_is_planned_with_the_kernel_where_steps_take_it(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, head_size: int, shared_from: int
) -> None:
    monkeypatch.setattr(causal_attention, "can_be_built", lambda: True)
    monkeypatch.setattr(causal_attention, "is_available", lambda: pytest.fail("a plan builds nothing"))
    config = make_config(training__compile=True, training__mixed_precision="bf16")
    backbone = tiny_backbone("Llama", head_dim=head_size)
    size = size_of(convert_to_parscale_model(backbone, create_parscale_config(2, 6)))
    setting = memory_setting(config.training, choose_precision(config.training), size, plan_only=True)
    assert setting.shared_heads_from == shared_from
    monkeypatch.setattr(causal_attention, "is_available", lambda: False)
    built = memory_setting(config.training, choose_precision(config.training), size)
    assert built.shared_heads_from == DUMMY_QUERIES_FROM, "it could be built, but was not"


def test_without_a_compiler_nothing_begins(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "has_cpp_compiler", lambda: False)
    config = make_config(training__compile=True)
    with pytest.raises(ValueError, match=r"training\.compile: true needs a C"):
        run(config)
    assert not list(config.run_directory.glob("meta.json"))
