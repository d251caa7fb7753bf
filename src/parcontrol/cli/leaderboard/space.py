"""`parcontrol leaderboard space DIR`: make the folder of a Hugging Face Space that serves the web page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import parcontrol
from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the folder; returns 0, or 2 when it cannot be made there."""
    parser = OneLineParser(
        prog="parcontrol leaderboard space",
        description="Make the folder of a Hugging Face Space that serves the leaderboard's web page, to be pushed as "
        "it is. Its README says which variables and secrets to set on the Space.",
    )
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="is empty or not there yet, or was made by this command"
    )
    args = parser.parse_args(argv)
    from parcontrol.leaderboard.app.space import build_space

    checkout = Path(parcontrol.__file__).resolve().parents[2]
    try:
        paths = build_space(args.folder, checkout)
    except ValueError as error:
        print_error(error)
        return USAGE_ERROR
    print(f"{args.folder}: {len(paths)} files of a Space; push them to its repository")
    return 0


if __name__ == "__main__":
    sys.exit(main())
