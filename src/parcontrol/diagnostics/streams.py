"""How the parallel streams are used: from aggregation weights and hidden states to named numbers.

Shapes: P streams, B batch, T tokens, D hidden. Entropies are in nats.

Label smoothing gives every stream at least the weight eps/P (ParScale, arXiv 2505.10475, section
on the aggregator), so the entropy of a token's weights cannot fall to 0: it lies between
`minimum_entropy` and ln P. Collapse is judged within that range; judged against 0 it could never
be seen. What needs no torch stands in `collapse`, and is offered here too.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from parcontrol.diagnostics.collapse import collapsed, gini, kl_uniform, minimum_entropy, relative_entropy

__all__ = [
    "CollapseWatch",
    "StreamAccumulator",
    "collapsed",
    "entropy",
    "gini",
    "kl_uniform",
    "minimum_entropy",
    "relative_entropy",
]


def entropy(weights: Tensor) -> Tensor:
    """Returns the entropy of the last dimension in nats; 0 ln 0 counts as 0."""
    return -(weights * weights.clamp_min(torch.finfo(weights.dtype).tiny).log()).sum(-1)


class CollapseWatch:
    """Says once that the streams have collapsed."""

    def __init__(self, attn_smooth: float) -> None:
        """Watches a model whose aggregator smooths its weights by `attn_smooth`."""
        self.attn_smooth = attn_smooth
        self._said = False

    def check(self, statistics: Mapping[str, Any]) -> str | None:
        """Returns a message at the first collapse, and None before and ever after."""
        reason = None if self._said else collapsed(statistics, self.attn_smooth)
        if reason is None:
            return None
        self._said = True
        return (
            f"THE STREAMS HAVE COLLAPSED: {reason}. From here on this run measures little more "
            "than one stream; consider a lower training.learning_rate or another training.seed"
        )


class StreamAccumulator:
    """Sums stream statistics over an interval on the device, without ever waiting for it.

    `update` only queues kernels; `read_and_reset` makes the one transfer to the host. Everything is
    float32, because MPS has no float64.
    """

    def __init__(self, P: int, device: torch.device | str, attn_smooth: float) -> None:
        """Starts with an empty interval.

        Args:
            P: Number of streams.
            device: Where weights and hidden states live.
            attn_smooth: The eps of the aggregator, which bounds the entropy from below.
        """
        self.P = P
        self.attn_smooth = attn_smooth
        # mean_weight [P], argmax_share [P], entropy [1], cosine_similarity [P * P]
        self._sums = torch.zeros(2 * P + 1 + P * P, dtype=torch.float32, device=device)
        self._tokens = 0

    @torch.no_grad()
    def update(self, stream_weights_BTP: Tensor | None, stream_hidden_PBTD: Tensor | None) -> None:
        """Adds the tokens of one forward pass. A model with one stream has no weights: no-op."""
        if self.P == 1:
            return
        assert stream_weights_BTP is not None
        assert stream_hidden_PBTD is not None
        assert stream_weights_BTP.shape[-1] == stream_hidden_PBTD.shape[0] == self.P
        assert stream_weights_BTP.shape[:-1] == stream_hidden_PBTD.shape[1:-1]
        w_NP = stream_weights_BTP.reshape(-1, self.P).float()
        largest_NP = (w_NP == w_NP.amax(-1, keepdim=True)).float()
        self._sums += torch.cat(
            [
                w_NP.sum(0),
                (largest_NP / largest_NP.sum(-1, keepdim=True)).sum(0),
                entropy(w_NP).sum(0, keepdim=True),
                _cosines_NPP(stream_hidden_PBTD.flatten(1, -2)).sum(0).flatten(),
            ]
        )
        self._tokens += w_NP.shape[0]

    def state(self) -> dict[str, Tensor]:
        """Returns a copy of the open interval, for a checkpoint."""
        return {"sums": self._sums.clone(), "tokens": torch.tensor(self._tokens)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `state` gave."""
        self._sums.copy_(state["sums"])
        self._tokens = int(state["tokens"])

    def read_and_reset(self) -> dict[str, Any]:
        """Returns the statistics since the last call and starts the next interval.

        Means are over the interval's tokens. A model with one stream has nothing to report: the
        result is empty. Otherwise it holds

        - `tokens`: number of tokens;
        - `mean_weight` [P]: mean aggregation weight of each stream;
        - `argmax_share` [P]: share of tokens on which each stream has the largest weight, streams
          that tie sharing the token;
        - `entropy`: mean entropy of a token's weights in nats, that is how evenly a token mixes
          the streams;
        - `entropy_relative`: its place between the attainable minimum (0) and ln P (1);
        - `kl_uniform`: KL divergence of `mean_weight` from the uniform distribution in nats, that
          is how unevenly the streams are used overall. Sending every token to a single stream,
          but each stream equally often, gives low entropy and 0 here;
        - `gini`: Gini coefficient of `mean_weight`: 0 for even use, (P - 1)/P for one stream;
        - `cosine_similarity` [P][P]: mean cosine of the streams' final hidden states;
        - `mean_cosine_similarity`: mean of its entries off the diagonal.
        """
        if self.P == 1:
            return {}
        assert self._tokens > 0, "no tokens were added since the last call"
        P, tokens = self.P, self._tokens
        means = [total / tokens for total in self._sums.tolist()]  # the one transfer to the host
        self._sums.zero_()
        self._tokens = 0
        mean_weight, argmax_share, mean_entropy = means[:P], means[P : 2 * P], means[2 * P]
        cosine = [means[2 * P + 1 + row * P :][:P] for row in range(P)]
        off_diagonal = [cosine[p][q] for p in range(P) for q in range(P) if p != q]
        return {
            "tokens": tokens,
            "mean_weight": mean_weight,
            "argmax_share": argmax_share,
            "entropy": mean_entropy,
            "entropy_relative": relative_entropy(mean_entropy, P, self.attn_smooth),
            "kl_uniform": kl_uniform(mean_weight),
            "gini": gini(mean_weight),
            "cosine_similarity": cosine,
            "mean_cosine_similarity": math.fsum(off_diagonal) / len(off_diagonal),
        }


def _cosines_NPP(hidden_PND: Tensor) -> Tensor:
    """Returns the cosines of all pairs of streams, for each token on its own.

    One product over all tokens' dimensions would save the sum, but in float32 it is wrong by 3e-5
    after a thousand tokens, which is more than equal streams differ by.
    """
    h_NPD = hidden_PND.transpose(0, 1).float()
    products_NPP = h_NPD @ h_NPD.transpose(1, 2)
    scale_NP = products_NPP.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(torch.float32).tiny).rsqrt()
    return products_NPP * scale_NP[:, :, None] * scale_NP[:, None, :]
