"""Stream statistics against a slow reference and closed forms; collapse; nothing MPS lacks."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from parcontrol.diagnostics.streams import (
    CollapseWatch,
    StreamAccumulator,
    collapsed,
    entropy,
    gini,
    kl_uniform,
    minimum_entropy,
)
from tests.diagnostics import reference

EPS = 0.1


def smoothed(softmax: torch.Tensor, eps: float = EPS) -> torch.Tensor:
    return softmax * (1 - eps) + eps / softmax.shape[-1]


def random_batch(
    P: int, B: int, T: int, D: int, seed: int, sharpness: float = 1.0, eps: float = EPS
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits_BTP = sharpness * torch.randn(B, T, P, generator=generator)
    return smoothed(logits_BTP.softmax(-1), eps), torch.randn(P, B, T, D, generator=generator)


def statistics(weights_BTP: torch.Tensor, hidden_PBTD: torch.Tensor, eps: float = EPS) -> Any:
    accumulator = StreamAccumulator(weights_BTP.shape[-1], "cpu", eps)
    accumulator.update(weights_BTP, hidden_PBTD)
    return accumulator.read_and_reset()


def assert_equal(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        # float32 sums over a few hundred tokens; the measured worst difference is 6e-7
        np.testing.assert_allclose(actual[name], value, rtol=2e-6, atol=2e-6, err_msg=name)


@given(
    P=st.integers(2, 8),
    B=st.integers(1, 3),
    T=st.integers(1, 9),
    D=st.integers(2, 16),
    seed=st.integers(0, 2**32 - 1),
    sharpness=st.sampled_from([0.0, 0.3, 3.0, 300.0]),
    eps=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
)
def test_statistics_equal_the_slow_reference(
    P: int, B: int, T: int, D: int, seed: int, sharpness: float, eps: float
) -> None:
    weights, hidden = random_batch(P, B, T, D, seed, sharpness, eps)
    expected = reference.statistics(weights.double().numpy(), hidden.double().numpy(), eps)
    assert_equal(statistics(weights, hidden, eps), expected)


def test_an_interval_of_several_updates_equals_one_of_all_tokens() -> None:
    weights, hidden = random_batch(P=4, B=6, T=5, D=8, seed=1)
    accumulator = StreamAccumulator(4, "cpu", EPS)
    for rows in ([0], [1, 2, 3], [4, 5]):
        accumulator.update(weights[rows], hidden[:, rows])
    assert_equal(accumulator.read_and_reset(), statistics(weights, hidden))


def test_reading_starts_a_new_interval() -> None:
    accumulator = StreamAccumulator(4, "cpu", EPS)
    accumulator.update(*random_batch(P=4, B=2, T=5, D=8, seed=1))
    accumulator.read_and_reset()
    second = random_batch(P=4, B=2, T=5, D=8, seed=2)
    accumulator.update(*second)
    assert accumulator.read_and_reset() == statistics(*second)


def test_an_interval_goes_on_from_its_saved_state() -> None:
    first, second = (random_batch(P=2, B=2, T=5, D=8, seed=seed) for seed in (1, 2))
    whole, before, after = (StreamAccumulator(2, "cpu", EPS) for _ in range(3))
    whole.update(*first)
    whole.update(*second)
    before.update(*first)
    state = before.state()
    before.update(*second)  # must not reach into the saved copy
    after.load_state(state)
    after.update(*second)
    assert after.read_and_reset() == whole.read_and_reset() == before.read_and_reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_summed_in_float32(dtype: torch.dtype) -> None:
    weights, hidden = (x.to(dtype) for x in random_batch(P=2, B=4, T=64, D=16, seed=3))
    expected = reference.statistics(weights.double().numpy(), hidden.double().numpy(), EPS)
    assert_equal(statistics(weights, hidden), expected)


def test_one_stream_reports_nothing() -> None:
    accumulator = StreamAccumulator(1, "cpu", EPS)
    accumulator.update(None, torch.randn(1, 2, 3, 4))
    assert accumulator.read_and_reset() == {}
    assert collapsed({}, EPS) is None


def test_statistics_are_plain_json() -> None:
    result = statistics(*random_batch(P=2, B=1, T=3, D=4, seed=0))
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_update_keeps_no_graph() -> None:
    weights, hidden = (x.requires_grad_() for x in random_batch(P=2, B=1, T=3, D=4, seed=0))
    accumulator = StreamAccumulator(2, "cpu", EPS)
    accumulator.update(weights, hidden)
    assert not accumulator.state()["sums"].requires_grad


class _OnlyFloat32OnDevice(TorchDispatchMode):
    """Fails on float64 and on everything that makes the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.operations.add(name)
        assert name not in {"_local_scalar_dense", "nonzero", "item", "masked_select", "is_nonzero"}
        for tensor in torch.utils._pytree.tree_leaves((args, result)):
            assert not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float64, name
        return result


def test_update_never_waits_for_the_device_and_has_no_float64() -> None:
    weights, hidden = random_batch(P=4, B=2, T=5, D=8, seed=1)
    accumulator = StreamAccumulator(4, "cpu", EPS)
    with _OnlyFloat32OnDevice() as watched:
        accumulator.update(weights.bfloat16(), hidden.bfloat16())
    assert "cat" in watched.operations  # it did watch


def test_update_runs_where_values_cannot_be_read() -> None:
    """Meta tensors have no values: any read of one raises."""
    accumulator = StreamAccumulator(4, "meta", EPS)
    accumulator.update(torch.empty(2, 5, 4, device="meta"), torch.empty(4, 2, 5, 8, device="meta"))
    with pytest.raises(NotImplementedError, match="meta"):
        accumulator.read_and_reset()


# --- closed forms ---


@pytest.mark.parametrize(("P", "nats"), [(2, 0.199), (4, 0.349), (8, 0.467)])
def test_minimum_entropy_of_the_papers_smoothing(P: int, nats: float) -> None:
    assert minimum_entropy(P, 0.1) == pytest.approx(nats, abs=5e-4)


@given(P=st.integers(2, 8), eps=st.floats(0, 0.99), seed=st.integers(0, 2**32 - 1))
def test_no_smoothed_weights_have_less_than_the_minimum_entropy(P: int, eps: float, seed: int) -> None:
    logits = torch.randn(64, P, generator=torch.Generator().manual_seed(seed)) * 10
    nats = entropy(smoothed(logits.softmax(-1), eps))
    assert nats.min() >= minimum_entropy(P, eps) - 1e-5
    assert nats.max() <= math.log(P) + 1e-5
    one_hot = smoothed(torch.eye(P), eps)
    torch.testing.assert_close(entropy(one_hot), torch.full((P,), minimum_entropy(P, eps)))


@pytest.mark.parametrize("P", [2, 4, 8])
def test_equal_weights(P: int) -> None:
    hidden = torch.eye(P).reshape(P, 1, 1, P).expand(P, 2, 3, P)
    result = statistics(torch.full((2, 3, P), 1 / P), hidden)
    assert result["argmax_share"] == pytest.approx([1 / P] * P)  # ties are shared, not all stream 0
    assert result["entropy"] == pytest.approx(math.log(P))
    assert result["entropy_relative"] == pytest.approx(1)
    assert result["kl_uniform"] == pytest.approx(0, abs=1e-6)
    assert result["gini"] == pytest.approx(0, abs=1e-6)
    assert result["cosine_similarity"] == np.eye(P).tolist()


def test_gini_and_kl_of_a_single_used_stream() -> None:
    assert gini([0, 0, 1, 0]) == pytest.approx(3 / 4)
    assert kl_uniform([0, 0, 1, 0]) == pytest.approx(math.log(4))


# --- collapse ---


def one_sided(P: int, share: float, D: int = 16) -> Any:
    """Statistics when stream 1 gets `share` of the softmax on every token."""
    softmax = torch.full((2, 50, P), (1 - share) / (P - 1))
    softmax[..., 1] = share
    return statistics(smoothed(softmax), random_batch(P, 2, 50, D, seed=0)[1])


@pytest.mark.parametrize("P", [2, 4, 8])
def test_a_single_used_stream_is_a_collapse_although_smoothing_hides_it(P: int) -> None:
    result = one_sided(P, share=0.999)
    assert result["entropy"] > 0.19  # far from 0: only the attainable minimum shows the collapse
    reason = collapsed(result, EPS)
    assert reason is not None
    assert reason.startswith(f"stream 1 of {P} has ")
    assert f"{1 - EPS + EPS / P:.1%}" in reason


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_mere_preference_is_no_collapse(share: float) -> None:
    assert collapsed(one_sided(2, share), EPS) is None


def test_sending_each_token_to_one_stream_is_no_collapse_if_all_are_used() -> None:
    routed = torch.eye(4).repeat(10, 1).reshape(2, 20, 4)
    result = statistics(smoothed(routed), random_batch(4, 2, 20, 16, seed=0)[1])
    assert result["entropy_relative"] == pytest.approx(0, abs=1e-5)
    assert collapsed(result, EPS) is None


def test_equal_streams_are_a_collapse_even_after_rounding() -> None:
    weights, hidden = random_batch(P=4, B=2, T=50, D=64, seed=0)
    hidden[3] = hidden[1].bfloat16()
    assert collapsed(statistics(weights, hidden), EPS) == (
        "streams 1 and 3 of 4 compute the same: the mean cosine similarity of their final hidden "
        f"states is {statistics(weights, hidden)['cosine_similarity'][3][1]:.6f}"
    )
    hidden[3] = hidden[1] + 0.02 * torch.randn(2, 50, 64)
    assert collapsed(statistics(weights, hidden), EPS) is None


def test_equal_streams_are_seen_among_many_and_large_numbers() -> None:
    hidden = 5 * torch.randn(1, 4, 256, 576, generator=torch.Generator().manual_seed(0)) + 2
    result = statistics(torch.full((4, 256, 2), 0.5), hidden.expand(2, -1, -1, -1))
    assert result["cosine_similarity"] == [[pytest.approx(1, abs=1e-6)] * 2] * 2
    assert collapsed(result, EPS) is not None


def test_the_watch_speaks_once() -> None:
    watch = CollapseWatch(EPS)
    fine, bad = one_sided(2, 0.6), one_sided(2, 0.999)
    messages = [watch.check(each) for each in (fine, bad, bad, fine, bad)]
    assert [message is not None for message in messages] == [False, True, False, False, False]
    assert "COLLAPSED" in messages[1]
