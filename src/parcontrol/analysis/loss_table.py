"""Tables of losses over model size and streams, checked cell by cell when read."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parcontrol.analysis import published

COLUMNS = ("N", "P", "loss")
GROUP_COLUMN = "corpus"

# Beyond these no number is meant, and no fit is stable.
_LARGEST_N, _LARGEST_P = 1e18, 1_000_000

# A model grows by a percent or two with its prefixes and aggregator; that makes no new size.
_SAME_SIZE = 1.05


@dataclass(frozen=True)
class LossTable:
    """Losses of one corpus: N non-embedding parameters [n], P streams [n], loss in nats [n]."""

    name: str
    N: NDArray[np.float64]
    P: NDArray[np.float64]
    loss: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.loss)

    def size_labels(self) -> NDArray[np.int64]:
        """Number of each row's model size, smallest first; sizes within 5 % of each other are one."""
        order = np.argsort(self.N, kind="stable")
        grown = np.diff(self.N[order]) > (_SAME_SIZE - 1) * self.N[order][:-1]
        labels = np.empty(len(self), np.int64)
        labels[order] = np.concatenate([[0], np.cumsum(grown)])
        return labels

    @property
    def sizes(self) -> int:
        """Number of different model sizes."""
        return int(self.size_labels().max()) + 1

    @property
    def streams(self) -> int:
        """Number of different values of P."""
        return len(np.unique(self.P))

    def require(self, rows: int, sizes: int, streams: int) -> None:
        """Refuse a table too small for a fit.

        Raises:
            ValueError: it has fewer rows, model sizes or values of P than needed.
        """
        have = {"rows": len(self), "model sizes": self.sizes, "values of P": self.streams}
        need = {"rows": rows, "model sizes": sizes, "values of P": streams}
        short = [what for what in have if have[what] < need[what]]
        if short:
            found = ", ".join(f"{have[what]} {what}" for what in short)
            needed = ", ".join(f"{need[what]} {what}" for what in short)
            raise ValueError(f"{self.name} has only {found}; the fit needs at least {needed}")


def published_tables() -> list[LossTable]:
    """The 24 training losses of each corpus that the paper's law was fitted to."""
    rows = [(size, P) for P in published.P_VALUES for size in published.SIZES]
    N = np.array([published.parameters(size, P) for size, P in rows], float)
    P_values = np.array([P for _, P in rows], float)
    return [
        LossTable(corpus, N, P_values, np.array([published.loss(corpus, size, P) for size, P in rows]))
        for corpus in published.LOSSES
    ]


def read_tables(path: str | Path) -> list[LossTable]:
    """Read a CSV file with the columns N, P and loss, and optionally corpus (a table each).

    Raises:
        ValueError: the file cannot be read, a column is missing or given twice, or a cell is no
            admissible number; the message names row (counted without the header), line and column.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(header, path)
            lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot read the table {str(path)!r}: {error}") from error
    groups: dict[str, list[tuple[float, float, float]]] = {}
    for row, (line, cells) in enumerate(lines, start=1):
        where = f"{path}, row {row} (line {line})"
        corpus, values = _parse_row(header, cells, where, default=Path(path).stem)
        groups.setdefault(corpus, []).append(values)
    if not groups:
        raise ValueError(f"{path} has a header but no rows")
    return [_table_of(name, values) for name, values in groups.items()]


def _check_header(header: list[str], path: str | Path) -> None:
    for name in COLUMNS:
        if name not in header:
            found = ", ".join(header) or "nothing"
            raise ValueError(f"{path}, row 0 (the header): column {name!r} is missing; found {found}")
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path}, row 0 (the header): column {twice!r} is given twice")


def _parse_row(header: list[str], cells: list[str], where: str, default: str) -> tuple[str, tuple[float, float, float]]:
    if len(cells) > len(header):
        raise ValueError(f"{where}: {len(cells)} cells, but the header names {len(header)} columns")
    row = dict(zip(header, [*cells, *[""] * (len(header) - len(cells))], strict=True))
    N, P, loss = (_parse_number(row[name], f"{where}, column {name!r}") for name in COLUMNS)
    if not 1 <= N <= _LARGEST_N:
        raise ValueError(f"{where}, column 'N': {row['N']} must be from 1 to {_LARGEST_N:.0e} parameters")
    if not 1 <= P <= _LARGEST_P or P % 1:
        raise ValueError(f"{where}, column 'P': {row['P']} must be a whole number from 1 to {_LARGEST_P:,}")
    if loss <= 0:
        raise ValueError(f"{where}, column 'loss': {row['loss']} must be above 0")
    corpus = row.get(GROUP_COLUMN, default).strip()
    if not corpus:
        raise ValueError(f"{where}, column {GROUP_COLUMN!r}: the cell is empty")
    return corpus, (N, P, loss)


def _parse_number(text: str, where: str) -> float:
    if not text.strip():
        raise ValueError(f"{where}: the cell is empty")
    try:
        value = float(text if "_" not in text else "")  # Python would read 1_1 as 11
    except ValueError:
        raise ValueError(f"{where}: {text!r} is not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{where}: {text!r} is not a finite number")
    return value


def _table_of(name: str, rows: Iterable[tuple[float, float, float]]) -> LossTable:
    N, P, loss = np.array(list(rows), float).T
    return LossTable(name, N, P, loss)
