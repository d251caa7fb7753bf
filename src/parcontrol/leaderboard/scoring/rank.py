"""Spearman's rank correlation with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import rankdata


def spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Returns the rank correlation of pairs, ties at their mean rank; None where one side is constant."""
    ranks = [rankdata(side) - (len(pairs) + 1) / 2 for side in zip(*pairs, strict=True)]
    spread = math.sqrt(float(ranks[0] @ ranks[0]) * float(ranks[1] @ ranks[1]))
    return max(-1.0, min(1.0, float(ranks[0] @ ranks[1]) / spread)) if spread else None


def spearman_stderr(rho: float, n: int) -> float | None:
    """Returns the standard error of a rank correlation over n pairs; None for n below 4.

    The variance of Fisher's z after Bonett and Wright (2000, Psychometrika 65), (1 + rho²/2) / (n - 3), carried over to
    rho by dz/drho = 1 / (1 - rho²).
    """
    return (1 - rho**2) * math.sqrt((1 + rho**2 / 2) / (n - 3)) if n > 3 else None
