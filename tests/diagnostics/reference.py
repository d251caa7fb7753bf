"""Stream statistics computed slowly in float64 with numpy and scipy, token by token."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cosine
from scipy.special import entr, rel_entr


def statistics(
    weights_BTP: NDArray[np.float64], hidden_PBTD: NDArray[np.float64], attn_smooth: float
) -> dict[str, object]:
    B, T, P = weights_BTP.shape
    tokens = [(b, t) for b in range(B) for t in range(T)]
    argmax_share = np.zeros(P)
    cosines = np.zeros((P, P))
    for b, t in tokens:
        w = weights_BTP[b, t]
        winners = [p for p in range(P) if w[p] == max(w)]
        for p in winners:
            argmax_share[p] += 1 / len(winners) / len(tokens)
        for p in range(P):
            for q in range(P):
                distance = cosine(hidden_PBTD[p, b, t], hidden_PBTD[q, b, t])
                cosines[p, q] += (1 - distance) / len(tokens)
    mean = weights_BTP.reshape(-1, P).mean(0)
    nats = float(np.mean([entr(weights_BTP[b, t]).sum() for b, t in tokens]))
    lowest = entr([1 - attn_smooth + attn_smooth / P] + [attn_smooth / P] * (P - 1)).sum()
    pairs = [(p, q) for p in range(P) for q in range(P) if p != q]
    return {
        "tokens": len(tokens),
        "mean_weight": mean,
        "argmax_share": argmax_share,
        "entropy": nats,
        "entropy_relative": (nats - lowest) / (np.log(P) - lowest),
        "kl_uniform": float(rel_entr(mean, 1 / P).sum()),
        "gini": _gini_by_sorting(mean),
        "cosine_similarity": cosines,
        "mean_cosine_similarity": float(np.mean([cosines[p, q] for p, q in pairs])),
    }


def _gini_by_sorting(values: NDArray[np.float64]) -> float:
    """Returns the Gini coefficient from the area under the Lorenz curve."""
    lorenz = np.concatenate([[0.0], np.cumsum(np.sort(values)) / values.sum()])
    return float(1 - np.mean(lorenz[1:] + lorenz[:-1]))
