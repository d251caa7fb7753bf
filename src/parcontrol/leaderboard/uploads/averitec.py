"""AVeriTeC (Schlichtkrull et al., 2023, arXiv 2305.13117): real claims with questions, answers and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from parcontrol.leaderboard.uploads.converter import DEFAULT_CONFIG, Converter, Split, make_split, one_file_each
from parcontrol.leaderboard.uploads.rows import Row, find_files, read_rows, stem

_VERDICTS = ("Supported", "Refuted", "Not Enough Evidence", "Conflicting Evidence/Cherrypicking")
_OPTIONAL = (
    "justification claim_date speaker original_claim_url fact_checking_article reporting_source location_ISO_code"
).split()
_LISTS = ("claim_types", "fact_checking_strategies")
_ANSWER = ("answer", "answer_type", "source_url", "source_medium", "cached_source_url")
_SCHEMA = pa.schema(
    [("claim", pa.string()), ("label", pa.string())]
    + [(name, pa.string()) for name in _OPTIONAL]
    + [(name, pa.list_(pa.string())) for name in _LISTS]
    + [
        (
            "questions",
            pa.list_(
                pa.struct(
                    [
                        ("question", pa.string()),
                        ("answers", pa.list_(pa.struct([(name, pa.string()) for name in _ANSWER]))),
                    ]
                )
            ),
        )
    ]
)


def _convert(inputs: Sequence[Path]) -> list[Split]:
    files = one_file_each((_split_name(path), path) for path in find_files(inputs))
    return [make_split(DEFAULT_CONFIG, name, map(_fields, read_rows(path)), _SCHEMA) for name, path in files.items()]


def _split_name(path: Path) -> str:
    name = stem(path).lower().removeprefix("averitec_")
    if name not in ("train", "dev", "test"):
        raise ValueError(f"{path}: the file's name must be train, dev or test, as in dev.json")
    return name


def _fields(row: Row) -> dict[str, Any]:
    return {
        "claim": row.text("claim"),
        "label": row.one_of("label", _VERDICTS),
        **{name: row.optional_text(name) for name in _OPTIONAL},
        **{name: row.texts(name) for name in _LISTS},
        "questions": [_question(row, question) for question in _objects(row, row.values, "questions")],
    }


def _question(row: Row, question: dict[str, Any]) -> dict[str, Any]:
    inner = Row(row.file, row.number, question)
    return {
        "question": inner.text("question"),
        "answers": [
            {name: Row(row.file, row.number, answer).optional_text(name) for name in _ANSWER}
            for answer in _objects(row, question, "answers")
        ],
    }


def _objects(row: Row, values: Any, key: str) -> list[dict[str, Any]]:
    found = values.get(key)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        row.refuse(f"has {key} that are no list of objects")
    return found


CONVERTER = Converter(
    name="averitec",
    repo="pminervini/averitec",
    input="AVeriTeC/data",
    original="train.json and dev.json",
    convert=_convert,
)
