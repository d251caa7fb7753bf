"""`parcontrol leaderboard upload DATASET`: original files of a dataset to the repository that the tasks read."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error

if TYPE_CHECKING:
    from parcontrol.leaderboard.uploads.converter import Split

FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Uploads the dataset that is named first."""
    from parcontrol.config import nearest_key
    from parcontrol.leaderboard.uploads import CONVERTERS

    parser = OneLineParser(
        prog="parcontrol leaderboard upload",
        description="Convert the original files of a dataset and upload them for the tasks. "
        f"Datasets: {', '.join(CONVERTERS)}.",
        epilog="`parcontrol leaderboard upload DATASET --help` explains each.",
    )
    parser.add_argument("dataset", metavar="DATASET")
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name not in CONVERTERS:
        if name and not name.startswith("-"):
            parser.error(f"unknown dataset {name!r}; the nearest is {nearest_key(name, CONVERTERS)!r}")
        parser.parse_args(arguments[:1])
    return upload(name, arguments[1:])


def upload(name: str, argv: Sequence[str] | None = None) -> int:
    """Uploads one dataset; the exit code is 2 for bad input and 1 when the Hub does not take it."""
    from parcontrol.leaderboard.uploads import CONVERTERS

    converter = CONVERTERS[name]
    parser = OneLineParser(
        prog=f"parcontrol leaderboard upload {name}",
        description=f"Convert {converter.original} to the dataset that the tasks read, and upload it.",
    )
    parser.add_argument(
        "--input",
        nargs="+",
        type=Path,
        default=[Path(converter.input)],
        metavar="PATH",
        help="original files, or directories that hold them: JSON, JSON lines or CSV, gzipped or not; "
        f"default: {converter.input}",
    )
    parser.add_argument(
        "--repo",
        default=converter.repo,
        help="dataset repository on the Hub, or a directory (./NAME, or one that exists); default: %(default)s",
    )
    parser.add_argument("--dry-run", action="store_true", help="convert and show, but write nothing")
    args = parser.parse_args(argv)
    from parcontrol.leaderboard.settings import Settings
    from parcontrol.leaderboard.store import StoreError
    from parcontrol.leaderboard.uploads.publish import is_directory, publish

    try:
        splits = converter.convert(args.input)
        _print(splits)
        if args.dry_run:
            place = "the directory" if is_directory(args.repo) else "the Hub's dataset repository"
            print(f"dry run: {place} {args.repo} is as it was")
            return 0
        print(f"written to {publish(splits, converter, args.repo, Settings.from_environment())}")
    except ValueError as error:
        print_error(error)
        return USAGE_ERROR
    except StoreError as error:
        print_error(error)
        return FAILED
    return 0


def _print(splits: Sequence[Split]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for heading in ("config", "split", "rows", "first row"):
        table.add_column(heading, justify="right" if heading == "rows" else "left", max_width=70)
    for split in splits:
        first = split.table.slice(0, 1).to_pylist()
        shown = "\n".join(f"{name}: {_short(value)}" for name, value in first[0].items()) if first else ""
        table.add_row(*map(Text, (split.config, split.name, f"{split.table.num_rows:,}", shown)))
    Console().print(table)


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else text[:39] + "…"


if __name__ == "__main__":
    sys.exit(main())
