"""What a converter is, and what it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

DEFAULT_CONFIG = "default"


@dataclass(frozen=True)
class Split:
    """One split of one configuration of a dataset."""

    config: str
    name: str
    table: pa.Table

    @property
    def prefix(self) -> str:
        """Where its files begin in the repository, as `datasets` names them."""
        return f"{'data' if self.config == DEFAULT_CONFIG else self.config}/{self.name}-"


@dataclass(frozen=True)
class Converter:
    """From the files that a dataset's authors publish to what the tasks read.

    Attributes:
        name: Of the dataset, in commands.
        repo: The repository that the tasks read.
        input: Where the original files are looked for when nothing is named.
        original: Which files these are.
        convert: From the files to the splits; raises ValueError that names file and row.
    """

    name: str
    repo: str
    input: str
    original: str
    convert: Callable[[Sequence[Path]], list[Split]]


def make_split(config: str, name: str, rows: Iterable[dict[str, Any]], schema: pa.Schema) -> Split:
    """Returns a split with these rows, which have the schema's fields."""
    return Split(config, name, pa.Table.from_pylist(list(rows), schema=schema))


def one_file_each(found: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Returns which file gives which split.

    Raises:
        ValueError: Two files give the same one.
    """
    files: dict[str, Path] = {}
    for name, path in found:
        if name in files:
            raise ValueError(f"{files[name]} and {path} both give {name!r}: name one of them with --input")
        files[name] = path
    return files
