"""HaluEval (Li et al., 2023, arXiv 2305.11747): is an answer, response or summary hallucinated?

The original rows hold a right and a hallucinated text. The tasks ask about one of them: per file a generator seeded
with 42 draws one number per row in the original order, and above 0.5 the hallucinated text is taken.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from parcontrol.leaderboard.uploads.converter import Converter, Split, make_split, one_file_each
from parcontrol.leaderboard.uploads.rows import find_files, read_rows

_SEED = 42
# Configuration: what the text is judged by, and what the text is called.
_KINDS = {
    "qa_samples": (("knowledge", "question"), "answer"),
    "dialogue_samples": (("knowledge", "dialogue_history"), "response"),
    "summarization_samples": (("document",), "summary"),
}


def _convert(inputs: Sequence[Path]) -> list[Split]:
    files = one_file_each((config, path) for path in find_files(inputs) if (config := _config(path)) is not None)
    if not files:
        raise ValueError(
            f"{', '.join(map(str, inputs))}: no row has right_answer, right_response or right_summary, "
            "as HaluEval's qa_data.json, dialogue_data.json and summarization_data.json have"
        )
    return [_samples(config, path) for config, path in files.items()]


def _config(path: Path) -> str | None:
    """Which kind of rows a file has; None for general_data.json and the like, which have no right text."""
    first = next(read_rows(path), None)
    if first is None:
        raise ValueError(f"{path} has no rows")
    return next((config for config, (_, text) in _KINDS.items() if f"right_{text}" in first.values), None)


def _samples(config: str, path: Path) -> Split:
    given, text = _KINDS[config]
    fields = (*given, text, "hallucination")

    def rows() -> Iterator[dict[str, str]]:
        draw = random.Random(_SEED).random
        for row in read_rows(path):
            hallucinated = draw() > 0.5
            right, wrong = row.text(f"right_{text}"), row.text(f"hallucinated_{text}")
            values = (*map(row.text, given), wrong if hallucinated else right, "yes" if hallucinated else "no")
            yield dict(zip(fields, values, strict=True))

    return make_split(config, "data", rows(), pa.schema([(field, pa.string()) for field in fields]))


CONVERTER = Converter(
    name="halueval",
    repo="pminervini/HaluEval",
    input="data",
    original="qa_data.json, dialogue_data.json, summarization_data.json",
    convert=_convert,
)
