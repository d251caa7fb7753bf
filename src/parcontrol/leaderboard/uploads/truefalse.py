"""True-False (Azaria and Mitchell, 2023, arXiv 2304.13734): statements with label 1 (true) or 0 (false).

One split per file, named by the first part of the file's name, and `cieacf`: six of them one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from parcontrol.leaderboard.uploads.converter import DEFAULT_CONFIG, Converter, Split, make_split, one_file_each
from parcontrol.leaderboard.uploads.rows import Row, find_files, read_rows, stem

_MERGED = "cieacf"
_PARTS = ("cities", "inventions", "elements", "animals", "companies", "facts")
_SCHEMA = pa.schema([("statement", pa.string()), ("label", pa.int64())])


def _convert(inputs: Sequence[Path]) -> list[Split]:
    files = one_file_each((stem(path).split("_")[0], path) for path in find_files(inputs))
    splits = {
        name: make_split(
            DEFAULT_CONFIG,
            name,
            ({"statement": row.text("statement"), "label": _label(row)} for row in read_rows(path)),
            _SCHEMA,
        )
        for name, path in files.items()
    }
    if _MERGED not in splits and set(_PARTS) <= set(splits):
        merged = pa.concat_tables([splits[part].table for part in _PARTS])
        splits[_MERGED] = Split(DEFAULT_CONFIG, _MERGED, merged)
    return list(splits.values())


def _label(row: Row) -> int:
    label = row.integer("label")
    if label not in (0, 1):
        row.refuse(f"has label = {label}; 1 (true) or 0 (false) is needed")
    return label


CONVERTER = Converter(
    name="truefalse",
    repo="pminervini/true-false",
    input="true-false-data",
    original="animals_true_false.csv, cities_true_false.csv, ...",
    convert=_convert,
)
