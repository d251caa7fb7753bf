"""`parcontrol fit`: fit the parallel scaling law to a table of losses."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from parcontrol.analysis import published
from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error

# What L(P) at one size cannot tell by itself is taken from the published fit on this corpus.
_BORROWED_FROM = "Pile"
# Two of 40 lie outside a 95 % interval, one on each side.
FEWEST_RESAMPLES = 40


def main(argv: Sequence[str] | None = None) -> int:
    """Run `parcontrol fit`; the exit code is 2 for bad input, with one line on stderr."""
    args = _parser().parse_args(argv)
    try:
        return _fit(args)
    except (ValueError, OSError) as error:
        print_error(error)
        return USAGE_ERROR


def _parser() -> argparse.ArgumentParser:
    law = published.LAWS[_BORROWED_FROM]
    parser = OneLineParser(
        prog="parcontrol fit",
        description="Fit the parallel scaling law L = E + (A / (N·(k·ln P + 1)))^alpha and its rival to a table.",
    )
    parser.add_argument(
        "table",
        nargs="?",
        metavar="CSV",
        help="columns N, P, loss and optionally corpus; default: the published table of both corpora",
    )
    parser.add_argument("--format", choices=("text", "json", "csv"), default="text")
    parser.add_argument("--plot", metavar="FILE", help="also plot (.png, .svg or .pdf)")
    parser.add_argument(
        "--resamples", type=int, default=1000, help="bootstrap resamples behind the intervals; default %(default)s"
    )
    parser.add_argument(
        "--fixed-N", action="store_true", help="fit L(P) of one model size, with E and alpha given instead of fitted"
    )
    parser.add_argument("--E", type=float, help=f"for --fixed-N; default {law.E} (published, Pile)")
    parser.add_argument("--alpha", type=float, help=f"for --fixed-N; default {law.alpha} (published, Pile)")
    return parser


def _fit(args: argparse.Namespace) -> int:
    from parcontrol.analysis.law_report import LawReport, StreamReport, report, stream_report, to_csv
    from parcontrol.analysis.loss_table import published_tables, read_tables

    if args.resamples < FEWEST_RESAMPLES:
        raise ValueError(
            f"--resamples is {args.resamples}; it must be at least {FEWEST_RESAMPLES}, for a 95 % interval to have ends"
        )
    given = [flag for flag, value in (("--E", args.E), ("--alpha", args.alpha)) if value is not None]
    if given and not args.fixed_N:
        raise ValueError(f"{' and '.join(given)} would not be used: without --fixed-N both are fitted")
    if args.plot:
        from parcontrol.analysis.figures import check_figure_path

        check_figure_path(args.plot)
    tables = published_tables() if args.table is None else read_tables(args.table)
    reports: list[StreamReport] | list[LawReport]
    if args.fixed_N:
        law = published.LAWS[_BORROWED_FROM]
        E, alpha = (law.E if args.E is None else args.E), (law.alpha if args.alpha is None else args.alpha)
        reports = [stream_report(table, E, alpha, args.resamples) for table in tables]
    else:
        reports = [report(table, args.resamples) for table in tables]
    if args.format == "json":
        text = json.dumps([item.as_dict() for item in reports], indent=2, allow_nan=False, ensure_ascii=False)
    elif args.format == "csv":
        text = to_csv(reports).removesuffix("\n")
    else:
        text = "\n\n\n".join(map(str, reports))
    print(text)
    if args.plot:
        from parcontrol.analysis.figures import save_figure
        from parcontrol.analysis.law_plots import plot

        save_figure(plot(reports), args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
