"""`parcontrol streams RUN`: how a run uses its streams, while it runs or after."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error
from parcontrol.runs import RunDirectory

NUMBERS = {
    "entropy": "entropy (nat)",
    "entropy_relative": "of its range",
    "kl_uniform": "KL to uniform (nat)",
    "gini": "Gini",
    "mean_cosine_similarity": "mean cosine",
}
PER_STREAM = {"mean_weight": "mean weight", "argmax_share": "argmax share"}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table with one row per log point, or the records as JSON lines."""
    parser = OneLineParser(
        prog="parcontrol streams",
        description="Show how a run uses its streams: per log point the mean weight and the share "
        "of tokens on which it is largest, for each stream; the entropy of a token's weights, also "
        "as a position in the range that label smoothing leaves (0 to 1); how unequal the mean "
        "weights are; and how alike the streams' final hidden states are.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--last", type=int, metavar="N", help="only the last N log points")
    parser.add_argument("--json", action="store_true", help="print the records as JSON lines")
    args = parser.parse_args(argv)
    if args.last is not None and args.last < 1:
        parser.error(f"--last {args.last} is not allowed: at least 1 is needed")
    try:
        records = _read(RunDirectory(args.run))[-(args.last or 0) :]
    except ValueError as error:
        print_error(error)
        return USAGE_ERROR
    if args.json:
        print("\n".join(json.dumps(record) for record in records))
    else:
        _print_table(records)
    return 0


def _read(run: RunDirectory) -> list[dict[str, Any]]:
    if run.read_config().parscale.P == 1:
        raise ValueError(f"{run.path} has one stream: there is nothing to compare")
    records = run.read_streams()
    if not records:
        raise ValueError(f"{run.path} has no stream statistics yet: wait for the first log point")
    return records


def _print_table(records: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("step", *PER_STREAM.values(), *NUMBERS.values()):
        table.add_column(heading, justify="right")
    for record in records:
        shares = [" ".join(f"{share:.3f}" for share in record[key]) for key in PER_STREAM]
        numbers = [f"{record[key]:.4f}" for key in NUMBERS]
        table.add_row(str(record["step"]), *shares, *numbers)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
