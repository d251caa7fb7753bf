"""Steps of training on a GPU, as they are, in passes and compiled, against the same on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from parcontrol.config import RunConfig
from tests.training.test_loop import make_loop
from tests.training.test_stream_passes import assert_equal_gradients, model_for, step_gradients

MakeConfig = Callable[..., RunConfig]

pytestmark = [
    pytest.mark.cuda,
    # torch's own: TF32 is not switched on, and what is being deprecated
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("mode", ["peft", "full"])
def test_gradients_in_float32(make_config: MakeConfig, mode: str, compiled: bool) -> None:
    """Of the ordinary step, and of one in passes of two sizes."""

    def gradients(device: str, streams_per_pass: int, compiled: bool = False) -> dict[str, torch.Tensor]:
        config = make_config(
            parscale__P=4,
            training__mode=mode,
            training__device=device,
            training__compile=compiled,
            training__streams_per_pass=streams_per_pass,
        )
        torch._dynamo.reset()
        loop = make_loop(config, model=model_for(config, "Llama").to(device))
        return {name: gradient.cpu() for name, gradient in step_gradients(loop).items()}

    ordinary = gradients("cuda", 4, compiled)
    assert_equal_gradients(ordinary, gradients("cpu", 4))
    assert_equal_gradients(gradients("cuda", 3, compiled), ordinary)
