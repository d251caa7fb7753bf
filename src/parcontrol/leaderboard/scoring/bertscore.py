"""BERTScore (Zhang et al. 2020, arXiv 1904.09675): greedy matching of contextual embeddings, by bert-score.

Layer 17 of RoBERTa-large, as the library chooses for English; no inverse document frequencies, no rescaling. We load
the model and cut the texts ourselves, and keep empty texts away from the library, which fails on them with
transformers 5: an empty text scores 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from bert_score.utils import bert_cos_score_idf, model2layers
from transformers import AutoModel

from parcontrol.leaderboard.scoring.models import AbsentError, ScorerModel, load_model

REPO = "FacebookAI/roberta-large"
LAYER = model2layers["roberta-large"]
_CHUNK = 16  # batches whose embeddings are held in memory at a time


class Match(NamedTuple):
    """How well two texts match, from -1 to 1 and hardly ever below 0."""

    precision: float
    f1: float


class BertScore:
    """The encoder; loaded at first use."""

    def __init__(self, batch_size: int = 16, repo: str = REPO, layer: int = LAYER) -> None:
        self.batch_size = batch_size
        self.repo = repo
        self.layer = layer

    @cached_property
    def loaded(self) -> ScorerModel:
        """The model without the layers above the one that is read."""
        # The library asks RoBERTa's tokenizer for a space before the first word.
        loaded = load_model(AutoModel, self.repo, add_prefix_space=True)
        layers = getattr(getattr(loaded.model, "encoder", None), "layer", ())
        if len(layers) < self.layer:
            raise AbsentError(f"{self.repo} is no encoder with the {self.layer} layers that BERTScore needs")
        loaded.model.encoder.layer = layers[: self.layer]
        loaded.tokenizer.model_max_length = loaded.max_length  # where the library cuts a text: at its end
        return loaded

    def match(self, candidates: Sequence[str], references: Sequence[str]) -> list[Match]:
        """Returns how well every candidate matches its reference.

        Texts that do not fit into the model's 512 tokens lose their end.

        Raises:
            AbsentError: The model cannot be had.
        """
        pairs = [(c.strip(), r.strip()) for c, r in zip(candidates, references, strict=True)]
        filled = [index for index, pair in enumerate(pairs) if all(pair)]
        matches = [Match(0.0, 0.0)] * len(pairs)
        size = self.batch_size * _CHUNK
        for start in range(0, len(filled), size):
            chunk = filled[start : start + size]
            for index, match in zip(chunk, self._match([pairs[i] for i in chunk]), strict=True):
                matches[index] = match
        return matches

    def _match(self, pairs: list[tuple[str, str]]) -> list[Match]:
        tokenizer = self.loaded.tokenizer
        # Start and end are matched against but not averaged over, as in the paper.
        weights: dict[int, float] = defaultdict(lambda: 1.0, {tokenizer.cls_token_id: 0.0, tokenizer.sep_token_id: 0.0})
        scores: torch.Tensor = bert_cos_score_idf(
            self.loaded.model,
            [reference for _, reference in pairs],
            [candidate for candidate, _ in pairs],
            tokenizer,
            weights,
            batch_size=self.batch_size,
            device=self.loaded.device,
        )
        return [Match(precision, f1) for precision, _, f1 in scores.tolist()]
