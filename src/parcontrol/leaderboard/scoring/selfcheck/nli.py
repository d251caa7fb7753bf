"""The NLI scorer: how likely the samples contradict a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from transformers import AutoModelForSequenceClassification

from parcontrol.leaderboard.scoring.batches import classify
from parcontrol.leaderboard.scoring.models import AbsentError, ScorerModel, load_model
from parcontrol.leaderboard.scoring.selfcheck.passage import Inconsistency, Passage

REPO = "potsawee/deberta-v3-large-mnli"


class NliScorer:
    """P(contradiction) against P(entailment), neutral left out, averaged over the samples."""

    name = "nli"

    def __init__(self, batch_size: int = 16, repo: str = REPO) -> None:
        self.batch_size = batch_size
        self.repo = repo

    @cached_property
    def loaded(self) -> ScorerModel:
        """The model."""
        return load_model(AutoModelForSequenceClassification, self.repo)

    @cached_property
    def labels(self) -> tuple[int, int]:
        """Positions of entailment and contradiction: by their names, or as the default model's card has them."""
        names = {index: str(name).lower() for index, name in self.loaded.model.config.id2label.items()}
        entails = [index for index, name in names.items() if "entail" in name and "not" not in name]
        contradicts = [index for index, name in names.items() if "contradict" in name]
        if len(entails) == 1 and len(contradicts) == 1:
            return entails[0], contradicts[0]
        if len(names) == 2 and not entails and not contradicts:
            return 0, 1
        raise AbsentError(f"{self.repo}: no label says entailment and contradiction among {sorted(names.values())}")

    def inconsistency(self, sentences: Sequence[str], passage: Passage) -> Inconsistency:
        """Scores sentences. What does not fit into the model's 512 tokens is cut from the end of the sample."""
        # The model was trained on (hypothesis, premise): the sentence comes first.
        pairs = [(sentence, sample) for sentence in sentences for sample in passage.samples]
        logits = classify(self.loaded, [a for a, _ in pairs], self.batch_size, [b for _, b in pairs])
        contradicted = logits[:, list(self.labels)].softmax(dim=-1)[:, 1]
        scores = contradicted.view(len(sentences), len(passage.samples)).mean(dim=1).tolist()
        return Inconsistency(scores, scores)

    def sources(self) -> list[dict[str, str | None]]:
        """The classifier."""
        return [self.loaded.source]
