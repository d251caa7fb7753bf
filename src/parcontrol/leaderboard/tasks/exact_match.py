"""EM*: exact match after lower-casing and dropping punctuation and articles, against any of the right answers."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize(text: str) -> str:
    """Returns a text in lower case, without punctuation and articles, with single spaces.

    As in SQuAD's evaluation script, except that all of Unicode's punctuation counts, not only ASCII's, and that
    canonically equivalent characters are equal.
    """
    text = unicodedata.normalize("NFC", text).lower()
    text = "".join(character for character in text if not _is_punctuation(character))
    return " ".join(_ARTICLES.sub(" ", text).split())


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def is_match(answer: str, gold: str) -> bool:
    """Whether an answer equals a right one.

    Of a right answer that is nothing but articles and punctuation (`The The`, `!!!`), case and spaces alone are
    dropped: an empty answer is never right.
    """
    if expected := normalize(gold):
        return normalize(answer) == expected
    return bool(answer.strip()) and answer.lower().split() == gold.lower().split()


def exact_match(references: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """The harness's metric: the share of pairs that match; the harness makes 1 of any share above 0.

    Only the first line of a prediction counts, as generation ends at a newline.
    """
    pairs = zip(references, predictions, strict=True)
    matches = [is_match(answer.split("\n", 1)[0], gold) for gold, answer in pairs]
    return {"exact_match": sum(matches) / len(matches) if matches else 0.0}
