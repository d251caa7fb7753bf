"""Intervals against slow references, closed forms and the coverage that they promise."""

from __future__ import annotations

import random

import numpy as np
import pytest

from parcontrol.analysis import statistics
from parcontrol.analysis.statistics import covers_zero, percentile_interval, resampled_losses, t_interval
from tests.analysis.sweeps import planted_documents


def slow_bootstrap(a: np.ndarray, b: np.ndarray, tokens: np.ndarray, resamples: int) -> list[float]:
    """Differences of losses on resampled documents, one document at a time."""
    rng = random.Random(7)
    differences = []
    for _ in range(resamples):
        drawn = [rng.randrange(len(tokens)) for _ in tokens]
        count = sum(int(tokens[i]) for i in drawn)
        differences.append(sum(a[i] for i in drawn) / count - sum(b[i] for i in drawn) / count)
    return differences


@pytest.fixture
def two_runs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Summed losses of two runs on 120 documents, and the documents' tokens."""
    tokens, losses = planted_documents(120)
    noise = np.random.default_rng(1).normal(0, 0.03, size=120)
    return (losses - 0.02 + noise) * tokens, losses * tokens, tokens


def test_differences_agree_with_a_slow_bootstrap(two_runs):
    a, b, tokens = two_runs
    columns = resampled_losses(np.stack([a, b]), tokens, resamples=20_000)
    fast = columns[:, 0] - columns[:, 1]
    slow = slow_bootstrap(a, b, tokens, resamples=4000)
    # Both are Monte Carlo: quantiles of 4,000 draws are good to about 5 % of the spread.
    tolerance = 0.12 * np.std(slow)
    assert np.mean(fast) == pytest.approx(np.mean(slow), abs=tolerance)
    assert np.std(fast) == pytest.approx(np.std(slow), rel=0.05)
    for fast_end, slow_end in zip(percentile_interval(fast), np.quantile(slow, [0.025, 0.975]), strict=True):
        assert fast_end == pytest.approx(slow_end, abs=tolerance)


def test_the_spread_is_that_of_a_ratio_of_sums(two_runs):
    """Closed form: the standard error of sum(x) / sum(t) is sqrt(sum((x - r t)²)) / sum(t)."""
    a, b, tokens = two_runs
    difference = a - b
    mean = difference.sum() / tokens.sum()
    expected = np.sqrt(((difference - mean * tokens) ** 2).sum()) / tokens.sum()
    columns = resampled_losses(np.stack([a, b]), tokens, resamples=20_000)
    assert np.std(columns[:, 0] - columns[:, 1]) == pytest.approx(expected, rel=0.03)


def test_all_runs_see_the_same_draws(two_runs):
    """A shift that is the same on every token has no spread, however much the documents have."""
    _, b, tokens = two_runs
    columns = resampled_losses(np.stack([b - 0.01 * tokens, b]), tokens, resamples=500)
    np.testing.assert_allclose(columns[:, 0] - columns[:, 1], -0.01, atol=1e-12)
    assert columns[:, 1].std() > 0.01


def test_long_documents_weigh_more():
    tokens = np.array([1, 999])
    columns = resampled_losses(np.array([[0.0, 999.0]]), tokens, resamples=2000)[:, 0]
    assert set(np.round(np.unique(columns), 6)) == {0.0, 0.999, 1.0}


def test_chunks_change_nothing(two_runs, monkeypatch):
    a, _, tokens = two_runs
    whole = resampled_losses(a[None], tokens, resamples=300)
    monkeypatch.setattr(statistics, "_CHUNK_ELEMENTS", 7 * len(tokens))
    np.testing.assert_allclose(resampled_losses(a[None], tokens, resamples=300), whole, rtol=1e-12)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Documents drawn anew 300 times: the true difference lies in 95 % of the intervals."""
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        tokens = rng.integers(20, 400, size=80)
        shared = rng.normal(2.4, 0.4, size=80)
        runs = np.stack([shared + rng.normal(-0.01, 0.05, size=80), shared]) * tokens
        columns = resampled_losses(runs, tokens, resamples=400)
        low, high = percentile_interval(columns[:, 0] - columns[:, 1])
        covered += low <= -0.01 <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_documents_without_predicted_tokens_do_not_matter(two_runs):
    a, _, tokens = two_runs
    columns = resampled_losses(np.array([[0.0, 3.0]]), np.array([0, 2]), resamples=200)
    assert np.unique(columns).tolist() == [1.5]
    assert len(columns) < 200  # draws of nothing but the empty document have no loss
    assert np.isfinite(resampled_losses(np.append(a, 0.0)[None], np.append(tokens, 0))).all()


def test_one_document_leaves_nothing_to_resample():
    with pytest.raises(ValueError, match="at least 2 of them, not 1"):
        resampled_losses(np.array([[1.0]]), np.array([3]))


def test_t_interval_against_the_table():
    """t(0.975) is 4.302653 with 2 degrees of freedom and 12.706205 with 1."""
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low, high) == (
        pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-6),
        pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-6),
    )
    low, high = t_interval([0.0, 1.0])
    assert high - low == pytest.approx(2 * 12.706205 * 0.5, abs=1e-5)
    with pytest.raises(ValueError, match="at least 2 of them, not 1"):
        t_interval([1.0])


@pytest.mark.parametrize(("interval", "open_"), [((-1, 1), True), ((0, 1), True), ((-2, -1), False), ((1, 2), False)])
def test_covering_zero(interval, open_):
    assert covers_zero(interval) is open_
