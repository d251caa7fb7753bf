"""BERTScore (Zhang et al. 2020, arXiv 1904.09675): greedy matching of contextual embeddings.

Layer 17 of RoBERTa-large, as the library bert-score chooses for English; no inverse document frequencies, no rescaling.
The matching is our own because the library's depends on the batch: where a word's best cosine is negative, padding
wins with 0. It also fails on empty texts with transformers 5, and asks for a leading space in a way that transformers 5
ignores. For one pair at a time the figures are the library's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from transformers import AutoModel

from parcontrol.leaderboard.scoring.batches import by_length
from parcontrol.leaderboard.scoring.models import AbsentError, ScorerModel, load_model

REPO = "FacebookAI/roberta-large"
LAYER = 17
_CHUNK = 16  # batches whose embeddings are in memory at a time


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
        loaded = load_model(AutoModel, self.repo, add_prefix_space=True)
        layers = getattr(getattr(loaded.model, "encoder", None), "layer", ())
        if len(layers) < self.layer:
            raise AbsentError(f"{self.repo} is no encoder with the {self.layer} layers that BERTScore needs")
        loaded.model.encoder.layer = layers[: self.layer]
        return loaded

    def match(self, candidates: Sequence[str], references: Sequence[str]) -> list[Match]:
        """Returns how well every candidate matches its reference; an empty text matches nothing and scores 0.

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
            vectors = self._embed(list({text: None for index in chunk for text in pairs[index]}))
            for index in chunk:
                matches[index] = _match(*(vectors[text] for text in pairs[index]))
        return matches

    @torch.inference_mode()
    def _embed(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Returns unit vectors of the tokens of every text, start and end among them. Shapes: [tokens, hidden]."""
        scorer, vectors = self.loaded, {}
        for batch in by_length(texts, self.batch_size):
            inputs = scorer.tokenizer(
                [texts[index] for index in batch],
                padding=True,
                truncation=True,
                max_length=scorer.max_length,
                return_tensors="pt",
            ).to(scorer.device)
            hidden = torch.nn.functional.normalize(scorer.model(**inputs).last_hidden_state, dim=-1)
            for index, row, mask in zip(batch, hidden, inputs["attention_mask"].bool(), strict=True):
                vectors[texts[index]] = row[mask]
        return vectors


def _match(candidate: torch.Tensor, reference: torch.Tensor) -> Match:
    """Matches every token with the most similar one; start and end can be matched but are not averaged over."""
    if min(len(candidate), len(reference)) <= 2:  # the tokenizer left nothing of a text
        return Match(0.0, 0.0)
    cosines = candidate @ reference.T
    precision = cosines.amax(dim=1)[1:-1].mean()
    recall = cosines.amax(dim=0)[1:-1].mean()
    return Match(*torch.stack([precision, 2 * precision * recall / (precision + recall)]).tolist())
