"""Inverse Scaling Prize (McKenzie et al., 2023, arXiv 2306.09479), the classification tasks: memo-trap and others.

One configuration per file, named by the file's name up to the first underscore. `classes` stays what it is in the
original rows: a string that holds a Python list.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from parcontrol.leaderboard.uploads.converter import Converter, Split, make_split, one_file_each
from parcontrol.leaderboard.uploads.rows import Row, find_files, read_rows, stem

_SCHEMA = pa.schema(
    [("prompt", pa.string()), ("classes", pa.string())]
    + [(name, pa.int64()) for name in ("answer_index", "round", "part")]
)


def _convert(inputs: Sequence[Path]) -> list[Split]:
    files = one_file_each((stem(path).split("_")[0], path) for path in find_files(inputs))
    return [make_split(name, "data", map(_fields, read_rows(path)), _SCHEMA) for name, path in files.items()]


def _fields(row: Row) -> dict[str, Any]:
    classes = row.text("classes")
    try:
        choices = ast.literal_eval(classes)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        choices = None
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
        row.refuse(f"has classes = {classes[:60]!r}; a list of two or more texts, written as in Python, is needed")
    answer = row.integer("answer_index")
    if not 0 <= answer < len(choices):
        row.refuse(f"has answer_index = {answer}; its classes allow 0 to {len(choices) - 1}")
    return {
        "prompt": row.text("prompt"),
        "classes": classes,
        "answer_index": answer,
        "round": row.integer("round"),
        "part": row.integer("part"),
    }


CONVERTER = Converter(
    name="isp",
    repo="pminervini/inverse-scaling",
    input="isp-data-json",
    original="memo-trap_classification.csv or .jsonl",
    convert=_convert,
)
