"""The right answers of a row, the one that examples show first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def triviaqa(row: Mapping[str, Any]) -> list[str]:
    """The aliases, and the answer as the question's author wrote it."""
    answer = row["answer"]
    return list(dict.fromkeys([*answer["aliases"], answer["value"]]))


def popqa(row: Mapping[str, Any]) -> list[str]:
    """The possible answers, which the published files hold as a JSON text."""
    answers = row["possible_answers"]
    return json.loads(answers) if isinstance(answers, str) else answers


def nq_swap(row: Mapping[str, Any]) -> list[str]:
    """What the changed context says."""
    answers = row["sub_answer"]
    return [answers] if isinstance(answers, str) else answers
