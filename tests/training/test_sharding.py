"""The norm that gradients are clipped by; models in shards are tested with real processes in test_distributed.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from parcontrol.training.sharding import clip_gradients


def test_the_norm_of_many_gradients_is_that_of_float64() -> None:
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((2500, 4001), (3, 5), ())]
    for seed, parameter in enumerate(parameters):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    exact = [parameter.grad.double() for parameter in parameters if parameter.grad is not None]
    expected = torch.cat([gradient.flatten() for gradient in exact]).norm().item()
    assert clip_gradients(parameters, 1.0).item() == pytest.approx(expected, rel=1e-6)
    for parameter, gradient in zip(parameters, exact, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), gradient / expected, rtol=1e-5, atol=1e-12)
