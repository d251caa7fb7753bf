"""The attention kernel against a slow reference in float64, and what is told where it cannot be had."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parcontrol.kernels import causal_attention as kernel
from parcontrol.parscale.modeling_parscale import has_cpp_compiler

needs_kernel = pytest.mark.skipif(
    not (has_cpp_compiler() and kernel.is_available()), reason="no processor with AMX, or no C++ compiler"
)
# Rows, heads, key/value heads, queries, prefix keys, head size: parts of blocks, whole ones and several; one query;
# no prefix; odd numbers of keys; every grouping of heads.
SHAPES = [
    (1, 2, 1, 1, 3, 32),
    (2, 4, 4, 37, 5, 96),
    (1, 1, 1, 257, 0, 64),
    (3, 6, 2, 300, 1, 128),
    (2, 9, 3, 256, 48, 64),
    (1, 3, 1, 600, 7, 32),
    (1, 4, 2, 40, 5, 32),
]


def factors(R: int, H: int, G: int, T: int, K: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Query [R, H, T, d], as a projection gives it; key and value [R, G, K + T, d]; each with strides of its own."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((R, T, H, d), (R, G, K + T, d + 2), (R, G, K + T, d + 6))
    query, key, value = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)
    return query.transpose(1, 2), key[..., :d], value[..., :d]


@pytest.fixture(params=[1, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Threads that share the tasks: with four, those of few key/value heads are cut in another way."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def reference(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """The formula, with all scores in memory: [R, T, H, d]."""
    T, N = query.shape[2], key.shape[2]
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    future = torch.ones(T, N, dtype=torch.bool).triu(N - T + 1)
    return (scores.masked_fill(future, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def torch_kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    T, N = query.shape[2], key.shape[2]
    mask = torch.ones(T, N, dtype=torch.bool).tril(N - T)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)


def results(attention: object, tensors: tuple[Tensor, ...], grad: Tensor) -> list[Tensor]:
    """Output and the gradients of all factors, in float64."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    output = attention(*leaves)  # type: ignore[operator]
    output.backward(grad.to(output.dtype))
    return [x.detach().double() for x in (output, *(leaf.grad for leaf in leaves))]


def distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@needs_kernel
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_as_close_to_the_formula_as_torchs_kernel(shape: tuple[int, ...]) -> None:
    tensors = factors(*shape)
    R, H, _, T, _, d = shape
    grad = torch.randn((R, T, H, d), generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = results(reference, tuple(x.double() for x in tensors), grad)
    ours = results(kernel.causal_attention, tensors, grad)
    torchs = results(torch_kernel, tensors, grad)
    for name, mine, theirs, true in zip(("output", "query", "key", "value"), ours, torchs, expected, strict=True):
        assert mine.shape == true.shape
        assert distance(mine, true) < 1.1 * distance(theirs, true) < 0.01, name


@needs_kernel
def test_two_calls_give_the_same_bits() -> None:
    tensors, grad = factors(2, 9, 3, 300, 48, 64), torch.ones(2, 300, 9, 64)
    first, second = (results(kernel.causal_attention, tensors, grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_kernel
def test_the_scale_is_a_factor_of_the_scores() -> None:
    query, key, value = factors(1, 2, 1, 40, 8, 32)
    grad = torch.ones(1, 40, 2, 32)
    expected = results(lambda *x: reference(*x, 0.3), (query.double(), key.double(), value.double()), grad)
    actual = results(lambda *x: kernel.causal_attention(*x, 0.3), (query, key, value), grad)
    assert all(distance(a, b) < 0.01 for a, b in zip(actual, expected, strict=True))


@needs_kernel
@pytest.mark.parametrize("factor", [30.0, 1e-3])
def test_scores_of_any_size(factor: float) -> None:
    """Scores of hundreds, that rise and fall from block to block of keys, and scores of nearly nothing."""
    query, key, value = factors(1, 2, 2, 300, 5, 64)
    query = query * factor
    output = kernel.causal_attention(query, key, value).double()
    assert distance(output, reference(query.double(), key.double(), value.double())) < 0.01


@needs_kernel
def test_scores_of_a_model_that_diverges_are_numbers_still() -> None:
    query, key, value = factors(1, 2, 2, 70, 5, 64)
    grad = torch.ones(1, 70, 2, 64)
    assert all(x.isfinite().all() for x in results(kernel.causal_attention, (query * 1e18, key, value), grad))


@needs_kernel
def test_autocast_has_it_in_bfloat16() -> None:
    tensors, grad = factors(1, 2, 1, 40, 8, 32), torch.ones(1, 40, 2, 32)
    expected = results(kernel.causal_attention, tensors, grad)

    def under_autocast(*wide: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return kernel.causal_attention(*wide)

    actual = results(under_autocast, tuple(x.float() for x in tensors), grad)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@needs_kernel
def test_what_is_not_a_number_reaches_those_that_see_it() -> None:
    """Of values all of their strip may get it, for 0 times NaN is NaN; torch's kernel gives it to all queries."""
    query, key, value = factors(1, 1, 1, 100, 6, 32)

    def poisoned(query: Tensor, key: Tensor, value: Tensor) -> list[int]:
        return kernel.causal_attention(query, key, value)[0, :, 0].isnan().any(-1).nonzero().flatten().tolist()

    def with_nan(x: Tensor, row: int) -> Tensor:
        return x.index_fill(2, torch.tensor(row), torch.nan)

    assert poisoned(with_nan(query, 10), key, value) == [10]
    assert poisoned(query, with_nan(key, 6 + 70), value) == list(range(70, 100))
    assert poisoned(query, key, with_nan(value, 2)) == list(range(100))
    assert poisoned(query, key, value) == []


@needs_kernel
@pytest.mark.parametrize(
    ("tensors", "scale", "message"),
    [
        (factors(1, 2, 1, 4, 3, 48), None, "head size must be a multiple of 32; it is 48"),
        (factors(1, 2, 1, 4, 3, 32), 0.0, "scale must be positive; it is 0"),
        (factors(1, 2, 1, 4, -1, 32), None, r"shapes of query \[1, 2, 4, 32\], key \[1, 1, 3, 32\]"),
        (factors(1, 3, 2, 4, 3, 32), None, r"shapes of query \[1, 3, 4, 32\], key \[1, 2, 7, 32\]"),
        (factors(1, 2, 0, 4, 3, 32), None, r"key \[1, 0, 7, 32\] and value \[1, 0, 7, 32\] do not go together"),
        (tuple(x[..., None] for x in factors(1, 2, 1, 4, 3, 32)), None, "do not go together"),
        (tuple(x.float() for x in factors(1, 2, 1, 4, 3, 32)), None, "must be bfloat16; one is Float"),
        (tuple(x[..., ::2] for x in factors(1, 2, 1, 4, 3, 64)), None, "columns must be adjacent"),
        (tuple(x[..., :32] for x in factors(1, 2, 1, 4, 3, 33)), None, "an even number of elements apart"),
    ],
)
def test_what_it_cannot_compute_is_refused(tensors: tuple[Tensor, ...], scale: float | None, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        kernel.causal_attention(*tensors, scale)


@needs_kernel
def test_what_is_not_a_number_stays_in_its_row() -> None:
    """Parts of strips are padded in memory that the rows of a batch share."""
    tensors, grad = factors(2, 2, 2, 40, 25, 32), torch.ones(2, 40, 2, 32)
    clean = results(kernel.causal_attention, tensors, grad)
    for poisoned in range(3):
        tensors = factors(2, 2, 2, 40, 25, 32)
        tensors[poisoned][0] = torch.nan
        output, *gradients = results(kernel.causal_attention, tensors, grad)
        assert output[0].isnan().any()
        for mine, expected in zip((output, *gradients), clean, strict=True):
            assert torch.equal(mine[1], expected[1])


@needs_kernel
def test_a_gradient_of_another_shape_is_refused() -> None:
    query, key, value = factors(1, 2, 1, 5, 3, 32)
    output, logs = torch.ops.parcontrol.causal_attention(query, key, value, 0.2)
    backward = torch.ops.parcontrol.causal_attention_backward
    assert len(backward(output, query, key, value, output, logs, 0.2)) == 3
    for grad, out, sums in ((output[:, :4], output, logs), (output, output, logs[..., :4])):
        with pytest.raises(RuntimeError, match="do not belong to query"):
            backward(grad.contiguous(), query, key, value, out, sums.contiguous(), 0.2)
    with pytest.raises(RuntimeError, match="must be contiguous"):
        backward(output.mT.contiguous().mT, query, key, value, output, logs, 0.2)


@needs_kernel
def test_a_variable_of_the_librarys_own_forbids_it() -> None:
    code = "from parcontrol.kernels import causal_attention as kernel; print(kernel.is_available())"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


@needs_kernel
def test_torch_finds_the_operator_well_registered() -> None:
    query, key, value = (x.requires_grad_() for x in factors(1, 4, 2, 33, 5, 32))
    torch.library.opcheck(torch.ops.parcontrol.causal_attention.default, (query, key, value, 0.2))


def test_a_processor_without_amx_does_not_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(kernel, "_build", lambda: pytest.fail("built"))
    assert not kernel.is_available.__wrapped__()  # not what is known of this machine


@pytest.mark.skipif(not has_cpp_compiler(), reason="no C++ compiler")
def test_a_compiler_that_fails_is_quoted_in_one_message(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    has_all = dict.fromkeys(kernel.NEEDED, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has_all)
    monkeypatch.setattr(kernel, "FLAGS", ("-fno-such-flag",))
    with caplog.at_level(logging.WARNING):
        assert not kernel.is_available.__wrapped__()  # not what is known of this machine
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "causal_attention.cpp cannot be compiled" in message
    assert "fno-such-flag" in message


@needs_kernel
@pytest.mark.parametrize("damage", ["not a directory", "not a library"])
def test_a_cache_that_cannot_be_used_is_named_in_one_message(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, damage: str
) -> None:
    cache = tmp_path / "cache"
    if damage == "not a directory":
        cache.touch()
    else:
        monkeypatch.setenv("PARCONTROL_CACHE", str(cache))
        kernel._build().write_bytes(b"")
    monkeypatch.setenv("PARCONTROL_CACHE", str(cache))
    with caplog.at_level(logging.WARNING):
        assert not kernel.is_available.__wrapped__()
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert str(cache) in message
