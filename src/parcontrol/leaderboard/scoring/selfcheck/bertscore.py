"""The BERTScore scorer: how far the most similar sentence of every sample is from a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from parcontrol.leaderboard.scoring.bertscore import BertScore
from parcontrol.leaderboard.scoring.selfcheck.passage import Inconsistency, Passage
from parcontrol.leaderboard.scoring.selfcheck.sentences import split_sentences


class BertScoreScorer:
    """1 - F1 with the best sentence of a sample, averaged over the samples; clipped to 0 to 1."""

    name = "bertscore"

    def __init__(self, bert_score: BertScore) -> None:
        self.bert_score = bert_score

    def inconsistency(self, sentences: Sequence[str], passage: Passage) -> Inconsistency:
        """Scores sentences."""
        samples = [split_sentences(sample) for sample in passage.samples]
        pairs = [(sentence, other) for sentence in sentences for sample in samples for other in sample]
        matches = iter(self.bert_score.match([a for a, _ in pairs], [b for _, b in pairs]))
        best = [[max(next(matches).f1 for _ in sample) for sample in samples] for _ in sentences]
        scores = [min(1.0, max(0.0, 1 - fmean(row))) for row in best]
        return Inconsistency(scores, scores)

    def sources(self) -> list[dict[str, str | None]]:
        """The encoder."""
        return [self.bert_score.loaded.source]
