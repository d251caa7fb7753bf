"""`parcontrol report DIR`: what the runs of one or several sweeps show."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error

if TYPE_CHECKING:
    from parcontrol.analysis.report import Document

OUTPUT_DIRECTORY = "outputs/analysis"


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report, prints its summary and where it is; the exit code is 2 for bad input."""
    parser = OneLineParser(
        prog="parcontrol report",
        description="Compare the runs of a sweep, or of several, in one report: a self-contained HTML page, "
        "Markdown, plots (PNG, SVG), CSV and JSON. Checks what the comparison rests on, and puts what failed "
        "on top.",
    )
    parser.add_argument(
        "directories", nargs="+", type=Path, metavar="DIR", help="sweep, run directory, or directory of sweeps"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT_DIRECTORY, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--name", help="title, and start of the files' names; default: the names of the sweeps")
    args = parser.parse_args(argv)
    from parcontrol.analysis.report import compose
    from parcontrol.analysis.results import load_experiment_results

    try:
        results = load_experiment_results(*args.directories)
        name = args.name if args.name is not None else " and ".join(sweep.name for sweep in results.sweeps)
        report = compose(results, name)
        paths = report.write(args.output)
    except ValueError as error:
        print_error(error)
        return USAGE_ERROR
    print(f"{_text(report.document)}\n\n{paths[0]} and {len(paths) - 1} files beside it")
    return 0


def _text(document: Document) -> str:
    alerts = []
    for alert in document.alerts:
        where = f" ({alert.sweep})" if alert.sweep else ""
        alerts.append(f"{alert.check.status}: {alert.check.title}{where}: {alert.check.detail}")
    return "\n".join([*alerts, *([""] if alerts else []), *document.summary])


if __name__ == "__main__":
    sys.exit(main())
