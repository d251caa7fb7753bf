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
_SHARE = "p(Hallucination)"  # of the annotators
_TEXTS = ("hyp", "ref", "src", "tgt", "model")
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("task", *_TEXTS)]
    + [("labels", pa.list_(pa.string())), ("label", pa.string()), (_SHARE, pa.float64())]
)


def _convert(inputs: Sequence[Path]) -> list[Split]:
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _KINDS}
    for path in find_files(inputs):
        for row in read_rows(path):
            rows[row.one_of("task", _KINDS)].append(_fields(row))
    return [make_split(DEFAULT_CONFIG, kind, found, _SCHEMA) for kind, found in rows.items() if found]


def _fields(row: Row) -> dict[str, Any]:
    """A row as the task reads it: of the annotators' labels and their share one is enough, and `label` may be open."""
    given = {name for name in ("labels", "label", _SHARE) if row.values.get(name) not in (None, "", [])}
    if not given & {"labels", _SHARE}:
        row.refuse(f"is not annotated: it has neither labels nor {_SHARE}")
    return {
        "task": row.one_of("task", _KINDS),
        "hyp": row.text("hyp"),
        **{name: row.optional_text(name) for name in _TEXTS[1:]},
        "labels": [_label(row, "labels", label) for label in row.texts("labels")] if "labels" in given else None,
        "label": _label(row, "label", row.text("label")) if "label" in given else None,
        _SHARE: row.fraction(_SHARE) if _SHARE in given else None,
    }


def _label(row: Row, key: str, written: str) -> str:
    """A label in its usual spelling, however it is written."""
    for label in _LABELS:
        if written.strip().lower() == label.lower():
            return label
    row.refuse(f"has {key} = {written[:60]!r}; allowed are {', '.join(map(repr, _LABELS))}")


CONVERTER = Converter(
    name="shroom",
    repo="pminervini/shroom",
    input="shroom-data/val.model-agnostic.json",
    original="val.model-agnostic.json",
    convert=_convert,
)
