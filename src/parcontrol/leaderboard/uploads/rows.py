"""Rows of JSON, JSON-lines and CSV files, gzipped or not; every complaint names file and row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

SUFFIXES = (".json", ".jsonl", ".csv")


class Row:
    """One row of a file, numbered from 1; a CSV file's header does not count.

    The methods return a field, or raise ValueError with file, row, field and what is allowed.
    """

    def __init__(self, file: Path, number: int, values: Any) -> None:
        self.file, self.number = file, number
        if not isinstance(values, dict):
            self.refuse(f"is no object but {_short(values)}")
        self.values: Mapping[str, Any] = values

    def refuse(self, why: str) -> NoReturn:
        """Raises ValueError with the place of the row."""
        raise ValueError(f"{self.file}: row {self.number} {why}")

    def text(self, key: str) -> str:
        """A string that is not blank."""
        value = self._value(key)
        if not isinstance(value, str) or not value.strip():
            self.refuse(f"has {key} = {_short(value)}; a text is needed")
        return value

    def optional_text(self, key: str) -> str | None:
        """A string, None where there is none."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            self.refuse(f"has {key} = {_short(value)}; a text or nothing is needed")
        return value

    def integer(self, key: str) -> int:
        """A whole number, written as one."""
        value = self._value(key)
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if type(number) is not int:
            self.refuse(f"has {key} = {_short(value)}; a whole number is needed")
        return number

    def fraction(self, key: str) -> float:
        """A number from 0 to 1."""
        value = self._value(key)
        if type(value) not in (int, float) or not 0 <= value <= 1:
            self.refuse(f"has {key} = {_short(value)}; a number from 0 to 1 is needed")
        return float(value)

    def texts(self, key: str) -> list[str]:
        """A list of strings."""
        value = self._value(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.refuse(f"has {key} = {_short(value)}; a list of texts is needed")
        return value

    def one_of(self, key: str, allowed: Sequence[str]) -> str:
        """One of the allowed strings."""
        value = self._value(key)
        if value not in allowed:
            self.refuse(f"has {key} = {_short(value)}; allowed are {', '.join(map(repr, allowed))}")
        return value

    def _value(self, key: str) -> Any:
        if key not in self.values:
            self.refuse(f"has no {key}; it has {', '.join(map(str, self.values)) or 'nothing'}")
        return self.values[key]


def find_files(inputs: Sequence[Path]) -> list[Path]:
    """Returns the files that are meant: files as they are, and those directly in directories.

    Raises:
        ValueError: An input does not exist, or is a directory without such files.
    """
    found: list[Path] = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if _suffix(file) in SUFFIXES)
            if not inside:
                raise ValueError(f"{path} holds no file that ends in {', '.join(SUFFIXES)} or these with .gz")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise ValueError(f"{path} does not exist: name the original files, or their directory, with --input")
    return found


def stem(path: Path) -> str:
    """The file's name without its endings: `animals_true_false` of `animals_true_false.csv.gz`."""
    return path.name.removesuffix(".gz").rpartition(".")[0]


def read_rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a file: of a CSV file with header, a JSON array, or one JSON object per line.

    Raises:
        ValueError: The file cannot be read, or a row is no object.
    """
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8: {error}") from error
    suffix = _suffix(path)
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: the name must end in {', '.join(SUFFIXES)}, or one of these with .gz")
    if suffix == ".csv":
        return _csv_rows(path, text)
    return _json_array(path, text) if text.lstrip().startswith("[") else _json_lines(path, text)


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    csv.field_size_limit(max(len(text), 2**17))
    number = 0
    try:
        for number, values in enumerate(reader, 1):
            row = Row(path, number, values)
            if None in values or None in values.values():
                row.refuse(f"does not have {len(reader.fieldnames or [])} columns as the header has")
            yield row
    except csv.Error as error:
        raise ValueError(f"{path}: row {number + 1} is no CSV: {error}") from error


def _json_array(path: Path, text: str) -> Iterator[Row]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    yield from (Row(path, number, values) for number, values in enumerate(rows, 1))


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    # Only "\n" ends a line: texts may hold other characters that str.splitlines takes for ends.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: row {number} is no JSON: {error}") from error
            yield Row(path, number, values)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
