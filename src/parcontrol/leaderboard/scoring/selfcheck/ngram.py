"""The n-gram scorer: how likely a unigram model of the samples finds a sentence. It needs no model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from parcontrol.leaderboard.scoring.selfcheck.passage import Inconsistency, Passage

_WORD = re.compile(r"\w+")


class NgramScorer:
    """Unigrams over lower-cased words.

    The passage itself is counted with its samples, which is the paper's smoothing: no word has probability 0. The
    paper's scores are the mean and the maximum of -log p over the words of a sentence; here 1 - exp(-score), which
    keeps their order and lies between 0 and 1.
    """

    name = "ngram"

    def inconsistency(self, sentences: Sequence[str], passage: Passage) -> Inconsistency:
        """Scores sentences: the mean over their words for the average, the least likely word for the maximum."""
        counts = Counter(word for text in (passage.text, *passage.samples) for word in _words(text))
        total = counts.total()
        surprise = [[-math.log(counts[word] / total) for word in _words(sentence)] for sentence in sentences]
        return Inconsistency(
            [1 - math.exp(-fmean(words)) for words in surprise],
            [1 - math.exp(-max(words)) for words in surprise],
        )

    def sources(self) -> list[dict[str, str | None]]:
        """No model."""
        return []


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
