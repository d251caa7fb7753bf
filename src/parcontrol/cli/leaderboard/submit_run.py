"""`parcontrol leaderboard submit-run RUN_DIR`: put a finished training run into the queue."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error

FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Submits one run; returns 0, 2 when it is refused, 1 when the store fails."""
    parser = OneLineParser(
        prog="parcontrol leaderboard submit-run",
        description="Put the final model of a finished training run into the queue of a local leaderboard, with P, "
        "training tokens, seed and base model as columns of the table.",
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="directory of a finished run")
    parser.add_argument("--name", help="name on the board, local/NAME; default: the directory's name")
    args = parser.parse_args(argv)
    from parcontrol.leaderboard.runs_on_board import submit_run
    from parcontrol.leaderboard.settings import Settings
    from parcontrol.leaderboard.store import StoreError, open_stores
    from parcontrol.runs import RunDirectory

    try:
        settings = Settings.from_environment()
        entry = submit_run(RunDirectory(args.run), open_stores(settings).requests, settings, args.name)
    except ValueError as error:
        print_error(error)
        return USAGE_ERROR
    except StoreError as error:
        print_error(error)
        return FAILED
    request = entry.request
    print(f"{request.model} with P = {request.P} in {request.precision} is {request.status}: {entry.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
