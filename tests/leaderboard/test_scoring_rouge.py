"""ROUGE-L against a longest common subsequence of our own."""

import re
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer

from parcontrol.leaderboard.scoring.rouge import rouge_l

TEXTS = st.lists(st.sampled_from("Running runs, the bridge; bridges 3 days\n day's naïve THE".split(" ")), max_size=12)


def reference(prediction: str, reference: str) -> float:
    """F-measure of the longest common subsequence of stemmed words, by plain recursion."""
    stem = PorterStemmer().stem
    first, second = (
        tuple(stem(word) if len(word) > 3 else word for word in re.findall("[a-z0-9]+", text.lower()))
        for text in (prediction, reference)
    )

    @cache
    def common(i: int, j: int) -> int:
        if i == len(first) or j == len(second):
            return 0
        if first[i] == second[j]:
            return 1 + common(i + 1, j + 1)
        return max(common(i + 1, j), common(i, j + 1))

    length = common(0, 0)
    return 2 * length / (len(first) + len(second)) if length else 0.0


@given(TEXTS, TEXTS)
def test_against_reference(prediction: list[str], gold: list[str]) -> None:
    assert rouge_l(" ".join(prediction), " ".join(gold)) == pytest.approx(
        reference(" ".join(prediction), " ".join(gold))
    )


@pytest.mark.parametrize("empty", ["", " \n", "…?!"])
def test_empty_texts_score_nothing(empty: str) -> None:
    assert rouge_l(empty, "a bridge") == rouge_l("a bridge", empty) == rouge_l(empty, empty) == 0


def test_lines_are_not_matched_one_by_one() -> None:
    # Line by line (rougeLsum) all four words would be found: as one text only "c d" or "a b" is in order.
    assert rouge_l("c d\na b", "a b\nc d") == pytest.approx(0.5)
