"""`parcontrol leaderboard tasks`: what models are asked."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error
from parcontrol.leaderboard.registry import ALL, TaskSpec, markdown_table, select

HEADER = ("task", "group", "column", "metric", "kind", "shots", "version", "data")


def main(argv: Sequence[str] | None = None) -> int:
    """Lists tasks; returns 2 when one is unknown."""
    parser = OneLineParser(prog="parcontrol leaderboard tasks", description="List the tasks of the leaderboard.")
    parser.add_argument("names", nargs="*", default=[ALL], metavar="NAME", help="tasks, groups, all or demo (all)")
    parser.add_argument("--markdown", action="store_true", help="as the table in the documentation")
    args = parser.parse_args(argv)
    try:
        specs = select(args.names)
    except ValueError as error:
        print_error(error)
        return USAGE_ERROR
    print(markdown_table(specs) if args.markdown else _plain_table(specs), end="")
    return 0


def _plain_table(specs: Sequence[TaskSpec]) -> str:
    rows = [HEADER, *(row for spec in specs for row in _rows(spec))]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(line.rstrip() + "\n" for line in lines)


def _rows(spec: TaskSpec) -> list[tuple[str, ...]]:
    """One line for each column of the task's; only the first names the task."""
    data = " ".join(part for part in (spec.dataset, spec.config, spec.split) if part)
    rows: list[tuple[str, ...]] = []
    for index, column in enumerate(spec.columns):
        metric = f"{column.metric} {'↑' if column.higher_is_better else '↓'}"
        about = (spec.kind, str(spec.num_fewshot), str(spec.version), data)
        first = index == 0
        rows.append((spec.name if first else "", spec.group if first else "", column.label, metric, *about))
    return rows


if __name__ == "__main__":
    sys.exit(main())
