"""Compiled decoder layers against the same layers as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from parcontrol.config import RunConfig
from parcontrol.parscale.modeling_parscale import has_cpp_compiler
from parcontrol.training import compiling
from parcontrol.training.loop import TrainingLoop
from parcontrol.training.run import run
from tests.training.same_run import assert_same_run
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
    ("mode", "streams_per_pass"),
    [
        ("peft", 4),
        pytest.param("peft", 2, marks=pytest.mark.full),
        pytest.param("full", 4, marks=pytest.mark.full),
    ],
)
def test_gradients_are_those_of_the_layers_as_they_are(
    make_config: MakeConfig, mode: str, streams_per_pass: int
) -> None:
    settings = {"parscale__P": 4, "training__mode": mode, "training__streams_per_pass": streams_per_pass}
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
def test_a_resumed_run_is_the_same_to_the_bit(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_config("whole", training__compile=True)
    result = run(whole)
    assert counters["stats"]["unique_graphs"] == 2, "the first layer and the others; nothing for validations"
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


def test_without_a_compiler_nothing_begins(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "has_cpp_compiler", lambda: False)
    config = make_config(training__compile=True)
    with pytest.raises(ValueError, match=r"training\.compile: true needs a C"):
        run(config)
    assert not list(config.run_directory.glob("meta.json"))
