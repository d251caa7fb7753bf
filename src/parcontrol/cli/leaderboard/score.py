"""`parcontrol leaderboard score`: scores stored generations, without the model that wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error

if TYPE_CHECKING:
    from parcontrol.leaderboard.scoring.rescoring import Rescored

FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Scores, and returns 1 if a metric could not be computed, 2 for bad input."""
    parser = OneLineParser(
        prog="parcontrol leaderboard score",
        description="Score stored generations: those in the results repository, or finished tasks in directories.",
    )
    parser.add_argument(
        "directories", nargs="*", type=Path, metavar="DIR", help="a finished task: results.json and samples.jsonl.zst"
    )
    parser.add_argument("--model", nargs="+", default=[], help="only these models of the results repository")
    parser.add_argument(
        "--scorers",
        nargs="+",
        metavar="NAME",
        help="run these again, whatever is there; default: those whose metrics are missing",
    )
    parser.add_argument("--batch-size", type=int, default=16, help="texts that pass through a model at once")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error(f"--batch-size {args.batch_size}: at least 1 is needed")
    if args.directories and args.model:
        parser.error("--model chooses in the results repository: leave it out, or the directories")

    from parcontrol.leaderboard.store import StoreError

    try:
        _check_names(args.scorers)
        if args.directories:
            return _print(_directories(args.directories, args.scorers, args.batch_size))
        return _print(_repository(args.model, args.scorers, args.batch_size))
    except ValueError as error:
        print_error(error)
        return USAGE_ERROR
    except StoreError as error:
        print_error(error)
        return FAILED


def _check_names(names: Sequence[str] | None) -> None:
    from parcontrol.config import nearest_key
    from parcontrol.leaderboard.scoring.scorers import SCORERS

    for name in names or ():
        if name not in SCORERS:
            near = nearest_key(name, SCORERS)
            raise ValueError(f"unknown scorer {name!r}; the nearest is {near!r}, and all are {', '.join(SCORERS)}")


def _repository(models: Sequence[str], names: Sequence[str] | None, batch_size: int) -> Iterable[Rescored]:
    from parcontrol.leaderboard.scoring.published import rescore_published
    from parcontrol.leaderboard.settings import Settings
    from parcontrol.leaderboard.store import open_stores

    return rescore_published(open_stores(Settings.from_environment()).results, models, names, batch_size)


def _directories(directories: Sequence[Path], names: Sequence[str] | None, batch_size: int) -> Iterable[Rescored]:
    from parcontrol.leaderboard.scoring.rescoring import rescore_directory

    return (rescore_directory(directory, names, batch_size) for directory in directories)


def _print(outcomes: Iterable[Rescored]) -> int:
    found, complete = False, True
    for outcome in outcomes:
        found = True
        for metric, value in outcome.figures.items():
            print(f"{outcome.path}: {outcome.task} {metric} {value:.4f}")
        for metric, reason in outcome.failures.items():
            complete = False
            print(f"{outcome.path}: {outcome.task} {metric} is absent: {reason}")
    if not found:
        print("nothing to score")
    return 0 if complete else FAILED
