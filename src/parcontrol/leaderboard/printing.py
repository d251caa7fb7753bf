"""The table as text, as wide as the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parcontrol.leaderboard.results import Results
from parcontrol.leaderboard.table import averaged_columns, row_labels

# Columns of the terminal, with frames.
_MOST_MODEL_WIDTH, _VALUE_WIDTH = 36, 15


def print_table(console: Console, table: pd.DataFrame, results: Results, labels: Sequence[str] = ()) -> None:
    """Prints the averages of all models, and below them the values in some columns.

    Args:
        console: Where to; tables are cut to its width.
        table: The table.
        results: What it was made of.
        labels: The columns.
    """
    if table.empty:
        console.print("no results")
        return
    _print_averages(console, table)
    _print_values(console, table, results, labels)
    for mark, meaning in {
        "n/m: the average lacks tasks, n of m are there": table["partial"].any(),
        "*: some values are from a part of the rows": table["limited"].any(),
        "†: some values are of another version of their task": table["outdated"].any(),
    }.items():
        if meaning:
            console.print(mark, highlight=False)


def _print_averages(console: Console, table: pd.DataFrame) -> None:
    groups = averaged_columns()
    total = len(table.columns) - list(table.columns).index("outdated") - 1
    shown = Table()
    shown.add_column("Model", overflow="fold")
    for heading in ("P", "Precision", *groups, "Done"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for label, (_, row) in zip(row_labels(table), table.iterrows(), strict=True):
        averages = [_average(row, group, len(found)) for group, found in groups.items()]
        marks = ("*" if row["limited"] else "") + ("†" if row["outdated"] else "")
        P = "" if row.isna()["P"] else str(row["P"])
        shown.add_row(Text(label), P, row["precision"], *averages, f"{row['done']}/{total}{marks}")
    console.print(shown)


def _print_values(console: Console, table: pd.DataFrame, results: Results, labels: Sequence[str]) -> None:
    """Values with standard errors, in as many tables as the width needs."""
    errors = results.scores.pivot(index="row", columns="column", values="stderr")
    names = row_labels(table)
    model_width = min(_MOST_MODEL_WIDTH, max(map(len, names)) + 4)
    columns_each = max(1, (console.width - model_width) // _VALUE_WIDTH)
    for first in range(0, len(labels), columns_each):
        chosen = labels[first : first + columns_each]
        shown = Table()
        shown.add_column("Model", overflow="fold", min_width=model_width - 8)
        for label in chosen:
            shown.add_column(label.replace("/", "\n"), justify="right", max_width=_VALUE_WIDTH - 3)
        for label, (number, row) in zip(names, table.iterrows(), strict=True):
            shown.add_row(Text(label), *(_value(row[name], errors.get(name), number) for name in chosen))
        console.print(shown)


def _average(row: pd.Series, group: str, count: int) -> str:
    return f"{row[f'{group}_done']}/{count}" if row[f"{group}_done"] < count else f"{row[group]:.1f}"


def _value(value: float, errors: pd.Series | None, number: object) -> str:
    if value != value:
        return "–"
    error = errors.get(number) if errors is not None else None
    return f"{value:.1f}" if error is None or error != error else f"{value:.1f} ±{error:.1f}"
