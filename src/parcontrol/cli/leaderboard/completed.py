"""`parcontrol leaderboard completed` and leaderboard/cli/completed-cli.py: what is done, missing, failed and why."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error

if TYPE_CHECKING:
    from rich.console import Console

    from parcontrol.leaderboard.completed import ModelProgress

FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the progress of all models; returns 0, 2 for bad input, 1 when the store fails."""
    parser = OneLineParser(
        prog="parcontrol leaderboard completed",
        description="Show for every model which tasks are done, which are missing, and which failed and why.",
    )
    parser.add_argument(
        "--tasks", nargs="+", default=["all"], metavar="TASK", help="names of tasks or groups; default: all"
    )
    parser.add_argument("--format", choices=["table", "json"], default="table", help="default: %(default)s")
    args = parser.parse_args(argv)
    from parcontrol.leaderboard.completed import progress
    from parcontrol.leaderboard.queue import Queue
    from parcontrol.leaderboard.registry import select
    from parcontrol.leaderboard.results import read_results
    from parcontrol.leaderboard.settings import Settings
    from parcontrol.leaderboard.store import StoreError, open_stores

    try:
        specs = select(args.tasks)
        stores = open_stores(Settings.from_environment())
        queue = Queue(stores.requests)
        results = read_results(stores.results)
        models = progress(results, queue.requests(), specs)
        set_aside = [("results", *file) for file in results.broken]
        set_aside += [("requests", file.path, file.reason) for file in queue.broken()]
    except ValueError as error:
        print_error(error)
        return USAGE_ERROR
    except StoreError as error:
        print_error(error)
        return FAILED
    if args.format == "json":
        _print_json(models, set_aside)
    else:
        _print_tables(models, set_aside)
    return 0


def _print_json(models: list[ModelProgress], set_aside: list[tuple[str, str, str]]) -> None:
    from dataclasses import asdict

    import orjson

    document = {
        "models": [asdict(model) for model in models],
        "set_aside": [dict(zip(("repository", "path", "reason"), file, strict=True)) for file in set_aside],
    }
    print(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())


def _print_tables(models: list[ModelProgress], set_aside: list[tuple[str, str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not models:
        console.print("no requests and no results")
    else:
        table = Table()
        for heading in ("Model", "Request", "Done", "Not done"):
            table.add_column(heading, overflow="fold", justify="right" if heading == "Done" else "left")
        for model in models:
            done = f"{len(model.named('done'))}/{len(model.tasks)}"
            table.add_row(Text(model.label), model.status or "none", done, Text(_not_done(model)))
        console.print(table)
    _print_reasons(console, models)
    for repository, path, reason in set_aside:
        console.print(Text(f"set aside in {repository}: {path}: {reason}"), soft_wrap=True)


def _not_done(model: ModelProgress) -> str:
    """The open tasks by state: their names, or that it is all of them."""
    parts = []
    for state in ("partial", "failed", "missing", "waiting", "running", "cancelled"):
        names = model.named(state)
        if names:
            parts.append(f"{state}: {'all' if len(names) == len(model.tasks) else ', '.join(names)}")
    if any(task.limited for task in model.tasks.values()):
        parts.append("on a part of the rows: " + ", ".join(name for name, task in model.tasks.items() if task.limited))
    return "\n".join(parts)


def _print_reasons(console: Console, models: list[ModelProgress]) -> None:
    """One line for every reason, under the model's name."""
    from rich.padding import Padding
    from rich.text import Text

    for model in models:
        lines = [f"request {model.status}: {model.reason}"] if model.reason else []
        lines += [
            f"{name} {task.state}: {task.reason}"
            for name, task in model.tasks.items()
            if task.reason and task.reason != model.reason
        ]
        if lines:
            console.print(Text(f"\n{model.label}", style="bold"))
        for line in lines:
            console.print(Padding(Text(line), (0, 0, 0, 2), expand=False))


if __name__ == "__main__":
    sys.exit(main())
