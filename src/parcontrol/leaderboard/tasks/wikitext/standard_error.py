"""The standard error of WikiText's word perplexity, which the harness leaves out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from lm_eval.tasks.wikitext.preprocess_wikitext import process_results as native_results

# The harness files a standard error under this name; of weighted perplexities it has none.
METRIC = "word_perplexity_stderr"


def process_results(doc: Mapping[str, Any], results: Sequence[float]) -> dict[str, tuple[float, int]]:
    """The harness's metrics of one text, and once more its log-likelihood and words for the standard error."""
    scored = native_results(doc, results)
    return {**scored, METRIC: scored["word_perplexity"]}


def perplexity_standard_error(texts: Sequence[tuple[float, int]]) -> float | Literal["N/A"]:
    """Returns the standard error of exp(-sum of log-likelihoods / sum of words), texts being the sample.

    That of a ratio of sums, by linearisation (Cochran, Sampling Techniques, 1977, section 2.11), times the derivative
    of exp; the harness's "N/A" for a single text.
    """
    if len(texts) < 2:
        return "N/A"
    loglikelihoods, words = np.array(texts, dtype=float).T
    ratio = -loglikelihoods.sum() / words.sum()
    residuals = -loglikelihoods - ratio * words
    of_ratio = math.sqrt(len(texts) / (len(texts) - 1) * (residuals**2).sum()) / words.sum()
    return float(math.exp(ratio) * of_ratio)


OVERRIDES: dict[str, Any] = {
    "process_results": process_results,
    "metric_list": [
        {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
        {"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
        {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        {"metric": METRIC, "aggregation": perplexity_standard_error, "higher_is_better": False},
    ],
}
