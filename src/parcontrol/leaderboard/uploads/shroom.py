"""SHROOM (SemEval-2024 task 6): does a hypothesis say what its source or target does not?

One split per kind of text: definition modelling (DM), machine translation (MT), paraphrase generation (PG).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from parcontrol.leaderboard.uploads.converter import DEFAULT_CONFIG, Converter, Split, make_split
from parcontrol.leaderboard.uploads.rows import Row, find_files, read_rows

_KINDS = ("DM", "MT", "PG")
_LABELS = ("Hallucination", "Not Hallucination")
_TEXTS = ("hyp", "ref", "src", "tgt", "model")
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("task", *_TEXTS)]
    + [("labels", pa.list_(pa.string())), ("label", pa.string()), ("p(Hallucination)", pa.float64())]
)


def _convert(inputs: Sequence[Path]) -> list[Split]:
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _KINDS}
    for path in find_files(inputs):
        for row in read_rows(path):
            rows[row.one_of("task", _KINDS)].append(_fields(row))
    return [make_split(DEFAULT_CONFIG, kind, found, _SCHEMA) for kind, found in rows.items() if found]


def _fields(row: Row) -> dict[str, Any]:
    labels = row.texts("labels")
    if not labels or not set(labels) <= set(_LABELS):
        row.refuse(f"has labels = {labels}; one or more of {', '.join(map(repr, _LABELS))} are needed")
    return {
        "task": row.one_of("task", _KINDS),
        "hyp": row.text("hyp"),
        **{name: row.optional_text(name) for name in _TEXTS[1:]},
        "labels": labels,
        "label": row.one_of("label", _LABELS),
        "p(Hallucination)": row.fraction("p(Hallucination)"),
    }


CONVERTER = Converter(
    name="shroom",
    repo="pminervini/shroom",
    input="shroom-data/val.model-agnostic.json",
    original="val.model-agnostic.json",
    convert=_convert,
)
