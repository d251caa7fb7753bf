"""`parcontrol leaderboard table`: print the table, and write it to the leaderboard repository."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error

FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Prints and writes the table; returns 0, 2 for bad input, 1 when the store fails."""
    parser = OneLineParser(
        prog="parcontrol leaderboard table",
        description="Read all results, write the table to the leaderboard repository (parquet and JSON) and print it. "
        "An average that lacks tasks is printed as the number of tasks it has.",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        metavar="TASK",
        help="also print the values of these tasks or groups, with standard errors",
    )
    parser.add_argument("--format", choices=["table", "json"], default="table", help="default: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="print, but write nothing")
    args = parser.parse_args(argv)
    from rich.console import Console

    from parcontrol.leaderboard.printing import print_table
    from parcontrol.leaderboard.registry import select
    from parcontrol.leaderboard.settings import Settings
    from parcontrol.leaderboard.store import StoreError, open_stores
    from parcontrol.leaderboard.table import TABLE_JSON, read_table, table_files, write_table

    try:
        specs = select(args.tasks) if args.tasks else []
        stores = open_stores(Settings.from_environment())
        made = read_table(stores) if args.dry_run else write_table(stores)
    except ValueError as error:
        print_error(error)
        return USAGE_ERROR
    except StoreError as error:
        print_error(error)
        return FAILED
    if args.format == "json":
        print(table_files(*made)[TABLE_JSON].decode(), end="")
        return 0
    table, results, broken_requests = made
    print_table(Console(), table, results, [column.label for spec in specs for column in spec.columns])
    set_aside = len(results.broken) + len(broken_requests)
    if set_aside:
        print(f"files set aside: {set_aside}; `parcontrol leaderboard completed` lists them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
