"""How sure a difference between runs is: over validation documents, and over seeds.

Two sources of chance are told apart. Another sample of documents would give other losses: that is
measured by a bootstrap over documents, paired, because every run is validated on the same ones and
most of the noise is theirs in common. Another seed would give another model: that is measured by a
t interval over seeds, and by nothing else. With one seed it is unknown.

Shapes: R resamples, M runs, N documents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parcontrol.analysis.law import CONFIDENCE

Array = NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 5_000
# Counts that are held at a time, so that a hundred thousand documents need no more memory.
_CHUNK_ELEMENTS = 2**21


def resampled_losses(
    loss_sum_MN: Array, tokens_N: NDArray[np.int64], resamples: int = RESAMPLES, seed: int = 0
) -> Array:
    """Losses of M runs, in nats per token, on documents drawn with replacement.

    Each resample draws N documents; all runs see the same draw, so that differences between columns
    are paired. The loss is the ratio of sums, as on the whole set, because long documents weigh more.

    Returns:
        [R, M].

    Raises:
        ValueError: There are fewer than two documents, which leave nothing to resample.
    """
    documents = len(tokens_N)
    if documents < 2:
        raise ValueError(f"a bootstrap over documents needs at least 2 of them, not {documents}")
    rng = np.random.default_rng(seed)
    columns = np.column_stack([loss_sum_MN.T, tokens_N]).astype(np.float64)
    sums = np.empty((resamples, columns.shape[1]))
    chunk = max(1, _CHUNK_ELEMENTS // documents)
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = rng.integers(documents, size=(size, documents))
        drawn += documents * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * documents).reshape(size, documents)
        sums[start : start + size] = counts @ columns
    # A draw of documents without any predicted token has no loss.
    sums = sums[sums[:, -1] > 0]
    return sums[:, :-1] / sums[:, -1:]


def percentile_interval(samples: Array) -> Interval:
    """The central part of bootstrap samples that `CONFIDENCE` names."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def t_interval(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean of independent values, one per seed.

    Raises:
        ValueError: There are fewer than two values.
    """
    from scipy.stats import t

    count = len(values)
    if count < 2:
        raise ValueError(f"an interval over seeds needs at least 2 of them, not {count}")
    mean = math.fsum(values) / count
    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * standard_deviation(values) / math.sqrt(count)
    return mean - half, mean + half


def standard_deviation(values: Sequence[float]) -> float:
    """Sample standard deviation (n - 1), for two values or more."""
    return float(np.std(values, ddof=1))


def covers_zero(interval: Interval) -> bool:
    """Whether an interval of a difference leaves open which of the two is better."""
    return interval[0] <= 0 <= interval[1]
