"""One turn of a dialogue as a question about its reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SPEAKERS = ("Assistant", "Human")


def prompt(row: Mapping[str, Any]) -> str:
    """Shows knowledge, history and the original reply. Two take turns, and the reply answers the person.

    Where a reply needed no correction the dataset has no `original_response`: the original is `response` then.
    """
    turns = len(row["history"])
    history = " ".join(f"[{_SPEAKERS[(turns - turn) % 2]}]: {said}" for turn, said in enumerate(row["history"]))
    return (
        f"#Knowledge#: {row['knowledge']}\n"
        f"#Dialogue History#: {history}\n"
        f"#Response#: {row['original_response'] or row['response']}\n"
        "#Hallucinated#:"
    )


def target(row: Mapping[str, Any]) -> int:
    """The position of the right answer: 1, true, where one of the reply's labels is Hallucination."""
    return int("Hallucination" in row["BEGIN"])
