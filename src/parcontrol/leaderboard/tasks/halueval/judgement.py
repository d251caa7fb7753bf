"""Reads a judge's reply: yes, no, or neither."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_MARKS = r"[\"'“”‘’*_`]*"
# "No" in front of a word is an article ("no doubt", "no evidence"), but "no because" and "no hallucination." judge.
_ARTICLE = rf"{_MARKS}[^\S\n]+{_MARKS}(?!because\b|since\b|hallucinations?\W*?(?:$|[\n.,;!]))\w"
_VERDICT = rf"(yes|no(?!{_ARTICLE}))\b(?![-/?]|['’]\w)"
# "Yes or no" repeats the question.
_EITHER = re.compile(rf"\b(?:yes|no){_MARKS},?(?:\s*/\s*|\s+(?:or|and|nor)\s+){_MARKS}(?:yes|no)\b")
# At the start, also of a list, or after a word of no weight.
_OPENING = re.compile(rf"\W*(?:\d+[.)]\s+\W*)?(?:(?:sure|certainly|okay|ok|well|hmm+)\W+)?{_VERDICT}")
_STATED = (
    # "the answer is no", "#Your Judgement#: Yes"
    r"\b(?:answer|judge?ment|verdict|decision|conclusion|response|reply)\W*"
    rf"(?:\b(?:is|(?:would|should|must)\s+be)\b)?\W*{_VERDICT}",
    # "is it hallucinated? Yes"
    rf"(?<!\bnot )(?<!\bno )(?<!\bnon-)\bhallucinat\w*{_MARKS}\s*[?:]\W*{_VERDICT}",
    # "I would say yes.", "so no", "it is yes"
    r"\b(?:(?:i|would|i['’]d)\s+say|i\s+(?:think|believe)|it\s+is|it['’]s|therefore|thus|hence|so)"
    rf"\W+{_VERDICT}",
    # "**Yes**"
    rf"(?:[\"“*_`]|\\boxed\{{)(yes|no(?!\W*?{_ARTICLE}))[.!]?[\"”*_`}}]",
)
_THOUGHTS = re.compile(r"<think>.*?(?:</think>|$)", re.DOTALL)
# The prompt may have opened them.
_REST_OF_THOUGHTS = re.compile(r"^.*</think>", re.DOTALL)


def read_judgement(reply: str) -> str | None:
    """Returns `yes`, `no`, or None where a reply says neither, or both.

    The first word counts. Where that is neither, the reply must state its judgement ("the answer is no", "I would say
    yes.") or set it apart ("**Yes**"), and all that it states must agree. `Not`, `none` and a "no" in front of a word
    (`no idea`, `no doubt`) are no judgement.
    """
    answer = _REST_OF_THOUGHTS.sub("", _THOUGHTS.sub("", reply))
    text = _EITHER.sub(" ... ", answer.lower()).strip()
    if opening := _OPENING.match(text):
        return opening[1]
    stated = {verdict for pattern in _STATED for verdict in re.findall(pattern, text)}
    return stated.pop() if len(stated) == 1 else None


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores one judgement. One that cannot be read is wrong, and counted apart, over the same rows."""
    judgement = read_judgement(results[0])
    return {"acc": float(judgement == doc["hallucination"].strip().lower()), "unparsed": float(judgement is None)}
