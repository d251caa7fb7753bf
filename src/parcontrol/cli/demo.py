"""`parcontrol demo`: what `make demo` runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from parcontrol.cli.parser import OneLineParser, print_error, run_command

OUTPUT_DIRECTORY = "outputs/demo"
FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demonstration; a second call shows what the first one made.

    Returns:
        0; 1 when it could not be finished, with one message on stderr; 128 + the signal's number when it was
        interrupted, after the run has written a checkpoint.
    """
    parser = OneLineParser(
        prog="parcontrol demo",
        description="Train SmolLM2-135M with P = 1, 2, 4 streams on the Python standard library, compare them in a "
        "report, and load the largest again with transformers alone. About 9 minutes on 2 cores.",
    )
    parser.add_argument(
        "--output-dir", type=Path, default=OUTPUT_DIRECTORY, metavar="DIR", help="where it goes (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    from parcontrol.demo.run import demo
    from parcontrol.experiment.comparison import NotComparableError

    try:
        return demo(args.output_dir)
    except (ValueError, NotComparableError) as error:
        print_error(error)
        return FAILED


if __name__ == "__main__":
    sys.exit(run_command(main))
