"""FactKB: how likely a classifier finds a summary factual, given its document (Feng et al. 2023, arXiv 2305.08281)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from transformers import AutoModelForSequenceClassification

from parcontrol.leaderboard.scoring.batches import classify
from parcontrol.leaderboard.scoring.models import AbsentError, ScorerModel, load_model

REPO = "bunsenfeng/FactKB"
TOKENIZER = "FacebookAI/roberta-base"  # the model's repository holds none
_FACTUAL = 1


class FactKB:
    """The classifier; loaded at first use."""

    def __init__(self, batch_size: int = 16, repo: str = REPO) -> None:
        self.batch_size = batch_size
        self.repo = repo

    @cached_property
    def loaded(self) -> ScorerModel:
        """The model."""
        loaded = load_model(AutoModelForSequenceClassification, self.repo, TOKENIZER)
        if loaded.model.config.num_labels != 2:
            raise AbsentError(f"{self.repo} has {loaded.model.config.num_labels} labels instead of 2")
        return loaded

    def probabilities(self, summaries: Sequence[str], documents: Sequence[str]) -> list[float]:
        """Returns P(factual) of every summary; 0 of an empty one.

        Pairs that do not fit into the model's 512 tokens lose the end of the document.

        Raises:
            AbsentError: The model cannot be had.
        """
        scores = [0.0] * len(summaries)
        filled = [index for index, summary in enumerate(summaries) if summary.strip()]
        logits = classify(
            self.loaded, [summaries[i].strip() for i in filled], self.batch_size, [documents[i] for i in filled]
        )
        for index, probability in zip(filled, logits.softmax(dim=-1)[:, _FACTUAL].tolist(), strict=True):
            scores[index] = probability
        return scores
