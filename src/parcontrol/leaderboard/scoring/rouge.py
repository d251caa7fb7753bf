"""ROUGE-L of a summary (Lin 2004), by Google's rouge-score.

The decisions: F-measure over the longest common subsequence of the whole texts (`rougeL`; newlines do
not split, unlike `rougeLsum`), lower-cased, letters and digits only, with Porter's stemmer.
"""

from __future__ import annotations

from functools import cache

from rouge_score.rouge_scorer import RougeScorer


def rouge_l(prediction: str, reference: str) -> float:
    """Returns ROUGE-L from 0 to 1; an empty text scores 0."""
    score = _scorer().score(target=reference, prediction=prediction)["rougeL"]
    return float(score.fmeasure)


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=True)
