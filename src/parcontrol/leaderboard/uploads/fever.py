"""FEVER (Thorne et al., 2018, arXiv 1803.05355): is a claim supported or refuted?

As many supported as refuted claims, each once: claims sorted by their text, the first of each label as far as the
rarer label goes, shuffled with seed 42. Claims without enough evidence are left out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from parcontrol.leaderboard.uploads.converter import Converter, Split, make_split, one_file_each
from parcontrol.leaderboard.uploads.rows import find_files, read_rows, stem

_SEED = 42
_LABELS = {"REFUTES": "refuted", "SUPPORTS": "supported"}
_LEFT_OUT = "NOT ENOUGH INFO"
_SCHEMA = pa.schema([("id", pa.int64()), ("label", pa.string()), ("claim", pa.string())])


def _convert(inputs: Sequence[Path]) -> list[Split]:
    files = one_file_each((_split_name(path), path) for path in find_files(inputs))
    return [_balanced(name, path) for name, path in files.items()]


def _split_name(path: Path) -> str:
    words = stem(path).lower().replace("-", "_").replace(".", "_").split("_")
    for name in ("train", "dev"):
        if name in words:
            return name
    raise ValueError(f"{path}: the file's name must say train or dev, as train.jsonl and labelled_dev.jsonl do")


def _balanced(name: str, path: Path) -> Split:
    claims: dict[str, dict[tuple[str, int | None], None]] = {label: {} for label in _LABELS.values()}
    for row in read_rows(path):
        label = row.one_of("label", [*_LABELS, _LEFT_OUT])
        if label != _LEFT_OUT:
            claims[_LABELS[label]][row.text("claim"), row.integer("id") if "id" in row.values else None] = None
    each = min(map(len, claims.values()))
    if not each:
        raise ValueError(f"{path}: a supported and a refuted claim are needed at least")
    rows = [
        {"id": id_, "label": label, "claim": claim}
        for label in claims
        for claim, id_ in sorted(claims[label], key=lambda key: (key[0], key[1] or 0))[:each]
    ]
    random.Random(_SEED).shuffle(rows)
    return make_split("v1.0", name, rows, _SCHEMA)


CONVERTER = Converter(
    name="fever",
    repo="pminervini/hl-fever",
    input="fever-data",
    original="train.jsonl and labelled_dev.jsonl",
    convert=_convert,
)
