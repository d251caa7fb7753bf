"""Consistency of a passage with sampled passages of the same model (Manakul et al. 2023, arXiv 2303.08896).

All four scorers give sentences an inconsistency from 0, what the samples say too, to 1. A passage has two figures per
scorer, both consistencies, so that higher is better: 1 - the average and 1 - the maximum over its sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple, Protocol

from parcontrol.leaderboard.scoring.selfcheck.sentences import split_sentences


class Passage(NamedTuple):
    """A passage and the passages that the same model wrote when asked again."""

    text: str
    samples: Sequence[str]


class Inconsistency(NamedTuple):
    """Inconsistency of every sentence, 0 to 1; the two differ only where a scorer looks at single words."""

    for_average: list[float]
    for_maximum: list[float]


class SentenceScorer(Protocol):
    """One way to compare sentences with samples."""

    name: str

    def inconsistency(self, sentences: Sequence[str], passage: Passage) -> Inconsistency:
        """Scores the sentences of a passage; neither they nor any sample is empty."""

    def sources(self) -> list[dict[str, str | None]]:
        """Returns the models that were used, as `ScorerModel.source`."""


def metric_names(name: str) -> tuple[str, str]:
    """Returns the metrics of a scorer: over the average and over the maximum of the sentences."""
    return f"selfcheck_{name}_avg", f"selfcheck_{name}_max"


def consistency(scorer: SentenceScorer, passage: Passage) -> dict[str, float]:
    """Returns the two figures of a passage, 0 to 1, higher is better.

    An empty passage, or one without any sample, scores 0. An empty sample supports nothing: it counts as one that
    contradicts every sentence.
    """
    average, maximum = metric_names(scorer.name)
    sentences = split_sentences(passage.text)
    samples = [sample for sample in passage.samples if split_sentences(sample)]
    if not sentences or not samples:
        return {average: 0.0, maximum: 0.0}
    found = scorer.inconsistency(sentences, Passage(passage.text, samples))
    share = len(samples) / len(passage.samples)
    return {average: share * (1 - fmean(found.for_average)), maximum: share * (1 - max(found.for_maximum))}
