"""When streams have collapsed, judged from recorded numbers alone: plain arithmetic, no torch.

Entropies are in nats; P is the number of streams. Label smoothing (attn_smooth, eps) gives every
stream at least the weight eps/P, so the entropy of a token's weights lies between `minimum_entropy`
and ln P, and collapse is judged within that range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

# Overall use is as good as one-sided when it has less than this part of the attainable range.
COLLAPSED_BALANCE = 0.05
# Rounding to bfloat16 alone takes the cosine of equal vectors down to about 1 - 4e-6.
IDENTICAL_COSINE = 0.99999


def minimum_entropy(P: int, attn_smooth: float) -> float:
    """Returns the smallest entropy that smoothed weights can have, in nats.

    It is reached when the softmax puts everything on one stream: the weights are then
    ``1 - eps + eps/P`` once and ``eps/P`` for the others. With eps = 0.1 this is 0.199, 0.349 and
    0.467 at P = 2, 4 and 8.
    """
    floor = attn_smooth / P
    weights = [1 - attn_smooth + floor] + [floor] * (P - 1)
    return -sum(weight * math.log(weight) for weight in weights if weight > 0)


def relative_entropy(nats: float, P: int, attn_smooth: float) -> float:
    """Returns an entropy's place between `minimum_entropy` (0) and ln P (1), for P >= 2."""
    lowest = minimum_entropy(P, attn_smooth)
    return (nats - lowest) / (math.log(P) - lowest)


def kl_uniform(weights: Sequence[float]) -> float:
    """Returns the KL divergence of a distribution from the uniform one, in nats."""
    return math.fsum(w * math.log(w * len(weights)) for w in weights if w > 0)


def gini(weights: Sequence[float]) -> float:
    """Returns the Gini coefficient: mean absolute difference of all pairs over twice the mean."""
    differences = math.fsum(abs(a - b) for a in weights for b in weights)
    return differences / (2 * len(weights) * math.fsum(weights))


def collapsed(statistics: Mapping[str, Any], attn_smooth: float) -> str | None:
    """Returns why the streams count as collapsed, or None if they do not.

    Either one stream takes nearly all the weight that the smoothing lets it take, or two streams
    compute the same. Statistics of a model with one stream (empty) never count as collapsed.
    """
    if not statistics:
        return None
    weights, cosine = statistics["mean_weight"], statistics["cosine_similarity"]
    P = len(weights)
    balance = relative_entropy(math.log(P) - statistics["kl_uniform"], P, attn_smooth)
    if balance < COLLAPSED_BALANCE:
        return (
            f"stream {weights.index(max(weights))} of {P} has {max(weights):.1%} of the weight, "
            f"where attn_smooth {attn_smooth} allows at most {1 - attn_smooth + attn_smooth / P:.1%}"
        )
    similarity, p, q = max((cosine[p][q], p, q) for p in range(P) for q in range(p))
    if similarity > IDENTICAL_COSINE:
        return (
            f"streams {q} and {p} of {P} compute the same: the mean cosine similarity of their "
            f"final hidden states is {similarity:.6f}"
        )
    return None
