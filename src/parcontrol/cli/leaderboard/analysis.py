"""`parcontrol leaderboard analysis` and leaderboard/cli/analysis-cli.py: models and tasks in pictures and files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error

FAILED = 1
OUTPUT_DIRECTORY = "outputs/analysis/leaderboard"


def main(argv: Sequence[str] | None = None) -> int:
    """Writes heat map, cluster map, TSV and parquet; returns 0, 2 for bad input, 1 when the store fails."""
    parser = OneLineParser(
        prog="parcontrol leaderboard analysis",
        description="Draw models and tasks as a heat map and as a cluster map (PNG and SVG), and write the table as "
        "TSV and parquet.",
    )
    parser.add_argument("--output", type=Path, default=OUTPUT_DIRECTORY, metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--tasks", nargs="+", default=["all"], metavar="TASK", help="names of tasks or groups; default: all"
    )
    args = parser.parse_args(argv)
    from parcontrol.leaderboard.charts import write_all
    from parcontrol.leaderboard.registry import select
    from parcontrol.leaderboard.settings import Settings
    from parcontrol.leaderboard.store import StoreError, open_stores
    from parcontrol.leaderboard.table import read_table

    try:
        specs = select(args.tasks)
        table, results, _ = read_table(open_stores(Settings.from_environment()))
        for path in write_all(table, specs, args.output):
            print(path)
    except ValueError as error:
        print_error(error)
        return USAGE_ERROR
    except StoreError as error:
        print_error(error)
        return FAILED
    if results.broken:
        print(f"result files set aside: {len(results.broken)}; `parcontrol leaderboard completed` lists them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
