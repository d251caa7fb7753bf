"""NQ-Swap (Longpre et al., 2021, arXiv 2109.05052): questions whose context was changed to hold another answer.

Rows come with original and substituted context side by side (`question`, `org_context`, `org_answer`, `sub_context`,
`sub_answer`), or as the published pair of files: `original.jsonl`, and `substituted.jsonl` whose rows name their
original by `original_example`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from parcontrol.leaderboard.uploads.converter import DEFAULT_CONFIG, Converter, Split, make_split
from parcontrol.leaderboard.uploads.rows import Row, find_files, read_rows

_TEXTS = pa.list_(pa.string())
_SCHEMA = pa.schema(
    [
        ("question", pa.string()),
        ("org_context", pa.string()),
        ("org_answer", _TEXTS),
        ("sub_context", pa.string()),
        ("sub_answer", _TEXTS),
    ]
)


def _convert(inputs: Sequence[Path]) -> list[Split]:
    rows = [row for path in find_files(inputs) for row in read_rows(path) if "header" not in row.values]
    joined = [row for row in rows if "sub_context" in row.values]
    pairs = _pairs([row for row in rows if "sub_context" not in row.values])
    found = [*map(_fields, joined), *pairs]
    if not found:
        raise ValueError(f"{', '.join(map(str, inputs))}: no row has a substituted context")
    return [make_split(DEFAULT_CONFIG, "dev", found, _SCHEMA)]


def _fields(row: Row) -> dict[str, Any]:
    return {
        "question": row.text("question"),
        "org_context": row.text("org_context"),
        "org_answer": _answers(row, "org_answer"),
        "sub_context": row.text("sub_context"),
        "sub_answer": _answers(row, "sub_answer"),
    }


def _pairs(rows: list[Row]) -> Iterator[dict[str, Any]]:
    originals = {row.text("uid"): row for row in rows if row.values.get("original_example") is None}
    for row in rows:
        if row.values.get("original_example") is None:
            continue
        original = originals.get(row.text("original_example"))
        if original is None:
            row.refuse(
                f"has original_example = {row.values['original_example']!r}, which no row of the inputs has as uid"
            )
        yield {
            "question": row.text("query"),
            "org_context": original.text("context"),
            "org_answer": _answers(original, "gold_answers"),
            "sub_context": row.text("context"),
            "sub_answer": _answers(row, "gold_answers"),
        }


def _answers(row: Row, key: str) -> list[str]:
    """The answers: texts, or objects with a text."""
    value = row.values.get(key)
    if isinstance(value, list):
        value = [item.get("text") if isinstance(item, dict) else item for item in value]
        if value and all(isinstance(item, str) and item.strip() for item in value):
            return value
    row.refuse(f"has no {key} that is a list of one or more texts")


CONVERTER = Converter(
    name="nqswap",
    repo="pminervini/NQ-Swap",
    input="nqswap",
    original="original.jsonl and substituted.jsonl",
    convert=_convert,
)
