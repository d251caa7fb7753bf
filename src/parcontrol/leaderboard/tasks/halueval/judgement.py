"""Reads a judge's reply: yes, no, or neither."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_VERDICT = r"(yes|no)\b(?![-/]|['’]\w)"
# "No idea" is no "No", and "yes or no" repeats the question.
_NO_VERDICT = re.compile(
    r"\bno\s+(?:idea|clue|one|comment|answer|judge?ment|opinion|way\s+to)\b"
    r"|\b(?:yes|no)[\"'“”‘’*_,]{0,3}(?:\s*/\s*|\s+(?:or|and|nor)\s+)[\"'“”‘’*_]{0,3}(?:yes|no)\b"
)
_OPENING = re.compile(rf"\W*{_VERDICT}")
_STATED = (
    # "the answer is no", "#Your Judgement#: Yes"
    rf"\b(?:answer|judge?ment|verdict|decision|conclusion|response|reply)\W*(?:\b(?:is|would\s+be)\b)?\W*{_VERDICT}",
    # "I would say yes.", "so no"; a word must not follow, as in "so no claim is wrong"
    rf"\b(?:(?:i|would|i['’]d)\s+say|i\s+(?:think|believe)|therefore|thus|hence|so)\W+{_VERDICT}(?=\W*(?:$|[\n.,;!]))",
    # "**Yes**"
    r"(?:[\"“*_`]|\\boxed\{)(yes|no)[.!]?[\"”*_`}]",
)
_THOUGHTS = re.compile(r"<think>.*?(?:</think>|$)", re.DOTALL)


def read_judgement(reply: str) -> str | None:
    """Returns `yes`, `no`, or None where a reply says neither, or both.

    The first word counts. Where that is neither, the reply must state its judgement ("the answer is no", "I would say
    yes.") or set it apart ("**Yes**"), and all that it states must agree. `Not`, `none` or `no idea` are no judgement.
    """
    text = _NO_VERDICT.sub(" ... ", _THOUGHTS.sub("", reply).lower()).strip()
    if opening := _OPENING.match(text):
        return opening[1]
    stated = {verdict for pattern in _STATED for verdict in re.findall(pattern, text)}
    return stated.pop() if len(stated) == 1 else None


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores one judgement. One that cannot be read is wrong, and counted apart, over the same rows."""
    judgement = read_judgement(results[0])
    return {"acc": float(judgement == doc["hallucination"].strip().lower()), "unparsed": float(judgement is None)}
