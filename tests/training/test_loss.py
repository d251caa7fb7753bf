"""The chunked loss against torch's own head and cross entropy."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from parcontrol.training import loss as loss_module
from parcontrol.training.loss import chunked_cross_entropy, output_head, token_losses

shapes = st.fixed_dictionaries(
    {"N": st.integers(1, 40), "D": st.integers(1, 9), "V": st.integers(1, 50), "seed": st.integers(0, 99)}
)


def operands(
    N: int, D: int, V: int, seed: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = (3 * torch.randn(V, D, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(V, (N,), generator=generator)


def ordinary(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum")


@given(shape=shapes, chunk=st.integers(1, 45))
def test_loss_and_gradients_equal_cross_entropy_in_float64(shape: dict[str, int], chunk: int) -> None:
    hidden, weight, targets = operands(**shape)
    expected = ordinary(hidden, weight, targets)
    expected_grads = torch.autograd.grad(expected, (hidden, weight))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "CHUNK_TOKENS_CPU", chunk)
        actual = chunked_cross_entropy(hidden, weight, targets)
        each = token_losses(hidden, weight, targets)
    grads = torch.autograd.grad(actual, (hidden, weight))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        each, F.cross_entropy(F.linear(hidden, weight), targets, reduction="none"), rtol=1e-12, atol=1e-12
    )


@given(shape=shapes)
def test_loss_and_gradients_equal_cross_entropy_in_float32(shape: dict[str, int]) -> None:
    hidden, weight, targets = operands(**shape, dtype=torch.float32)
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    expected = ordinary(wide[0], wide[1], targets)
    expected_grads = torch.autograd.grad(expected, wide)
    actual = chunked_cross_entropy(hidden, weight, targets)
    grads = torch.autograd.grad(actual, (hidden, weight))
    assert actual.dtype == grads[0].dtype == grads[1].dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=2e-6, atol=2e-5)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-5, atol=5e-5)


def test_bf16_loses_no_more_than_the_rounding_of_its_operands_and_logits() -> None:
    hidden, weight, targets = operands(200, 64, 500, seed=1, dtype=torch.bfloat16)
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    expected = ordinary(wide[0], wide[1], targets)
    expected_grads = torch.autograd.grad(expected, wide)
    actual = chunked_cross_entropy(hidden, weight, targets)
    grads = torch.autograd.grad(actual, (hidden, weight))
    # Logits of a few tens are rounded to a step of 1/8; that averages out in a sum of losses.
    assert actual.dtype == torch.float32
    assert abs(actual.item() / expected.item() - 1) < 2e-3
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == torch.bfloat16
        error = (grad.double() - expected_grad).norm() / expected_grad.norm()
        assert error < 0.03


def test_gradient_is_scaled_by_what_follows_the_loss() -> None:
    hidden, weight, targets = operands(10, 4, 7, seed=0)
    (plain,) = torch.autograd.grad(chunked_cross_entropy(hidden, weight, targets), hidden)
    (scaled,) = torch.autograd.grad(chunked_cross_entropy(hidden, weight, targets) * 3 / 10, hidden)
    torch.testing.assert_close(scaled, plain * 0.3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("divisor", [255, 1020, 16368])
def test_a_mean_divides_before_it_rounds(divisor: int, dtype: torch.dtype) -> None:
    """Gradients in bfloat16 scatter around the exact ones; 1 / 1,020 in bfloat16 would put all 0.36 % above them."""
    hidden, weight, targets = operands(512, 16, 64, seed=1, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    expected = ordinary(*exact, targets) / divisor
    mean = chunked_cross_entropy(hidden, weight, targets, divisor)
    assert mean.item() == pytest.approx(expected.item(), rel=1e-2 if dtype == torch.bfloat16 else 1e-12)
    gradients = zip(torch.autograd.grad(mean, (hidden, weight)), torch.autograd.grad(expected, exact), strict=True)
    for found, right in gradients:
        along = (found.double() * right).sum() / right.square().sum()
        assert along.item() == pytest.approx(1, abs=1e-3 if dtype == torch.bfloat16 else 1e-12)


def test_under_autocast_products_are_bf16_and_master_weights_get_float32_gradients() -> None:
    hidden, weight, targets = operands(64, 32, 300, seed=2, dtype=torch.float32)
    rounded = [x.detach().bfloat16().double().requires_grad_() for x in (hidden, weight)]
    expected = ordinary(rounded[0], rounded[1], targets)
    expected_grads = torch.autograd.grad(expected, rounded)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = chunked_cross_entropy(hidden, weight, targets)
        each = token_losses(hidden, weight, targets)
    grads = torch.autograd.grad(actual, (hidden, weight))
    assert actual.dtype == each.dtype == torch.float32
    assert abs(actual.item() / expected.item() - 1) < 2e-3
    assert each.sum().item() == pytest.approx(actual.item(), rel=1e-6)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == torch.float32
        assert (grad.double() - expected_grad).norm() / expected_grad.norm() < 0.03


class LargestResult(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_never_holds_the_logits_of_more_than_a_chunk() -> None:
    chunk = loss_module.CHUNK_TOKENS_CPU
    hidden, weight, targets = operands(10 * chunk, 4, 500, seed=3, dtype=torch.float32)
    with LargestResult() as largest:
        ordinary(hidden, weight, targets)
    assert largest.numel == 10 * chunk * 500, "the watch must see what it is there to see"
    weight.requires_grad_(False)
    with LargestResult() as largest:
        chunked_cross_entropy(hidden, weight, targets).backward()
        token_losses(hidden, weight, targets)
    assert largest.numel == chunk * 500


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that torch's allocator had given out at a time, by its own record."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def test_nothing_of_a_chunk_is_left_when_the_next_one_begins() -> None:
    chunk, V = loss_module.CHUNK_TOKENS_CPU, 2000
    hidden, weight, targets = operands(4 * chunk, 4, V, seed=3, dtype=torch.float32)
    weight.requires_grad_(False)
    logits = 4 * chunk * V
    assert peak_bytes(lambda: ordinary(hidden, weight, targets)) > 4 * logits, "all of them at once, and more"
    assert logits <= peak_bytes(lambda: chunked_cross_entropy(hidden, weight, targets)) < 1.1 * logits


def test_a_frozen_head_gets_no_gradient_and_costs_none() -> None:
    hidden, weight, targets = operands(8, 4, 11, seed=4)
    weight.requires_grad_(False)
    loss = chunked_cross_entropy(hidden, weight, targets)
    assert loss.grad_fn is not None
    assert loss.grad_fn.grad_weight is None  # type: ignore[attr-defined]
    loss.backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_non_finite_hidden_states_show_in_the_loss() -> None:
    hidden, weight, targets = operands(8, 4, 11, seed=5)
    poisoned = hidden.detach().clone()
    poisoned[3, 0] = float("nan")
    assert chunked_cross_entropy(poisoned, weight, targets).isnan()


TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("name", "fields"),
    [("Cohere", {"logit_scale": 0.25}), ("Granite", {"logits_scaling": 4.0}), ("Gemma2", {})],
)
def test_models_that_change_their_logits_are_refused_by_name(name: str, fields: dict[str, float]) -> None:
    import transformers

    config = getattr(transformers, f"{name}Config")(**TINY, **fields)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with pytest.raises(ValueError, match=f"{name}ForCausalLM.*scales or caps"):
        output_head(model)


@pytest.mark.parametrize("name", ["Qwen2", "Llama", "Mistral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_heads_are_taken_and_no_hook_stays(name: str, dtype: torch.dtype) -> None:
    import transformers

    fields = {key: value for key, value in TINY.items() if key != "head_dim"}
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**fields)).to(dtype)
    assert output_head(model) is model.lm_head.weight
    assert not model.lm_head._forward_hooks
    assert not model.model._forward_hooks


def test_a_head_with_a_bias_is_refused() -> None:
    from transformers import PhiConfig, PhiForCausalLM

    fields = {key: value for key, value in TINY.items() if key not in ("head_dim", "num_key_value_heads")}
    with pytest.raises(ValueError, match=r"PhiForCausalLM.*one matrix"):
        output_head(PhiForCausalLM(PhiConfig(**fields)))
