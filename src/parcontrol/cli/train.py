"""`parcontrol train` and train_parscale.py: train one run."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error
from parcontrol.cli.run_flags import BASE_CONFIG, add_run_flags, base_config
from parcontrol.config import RunConfig, load_config
from parcontrol.runs import RunDirectory
from parcontrol.torchrun import is_rank_0, number_of_processes, under_torchrun

STOPPED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Trains one run.

    Returns:
        0 when the run is finished, 2 when it was not started because of what the user gave, 1 when
        it had to stop. Errors are one line on stderr, with a traceback at logging level DEBUG.
    """
    args = _parse(argv)
    overrides = {key: value for key, value in vars(args).items() if key not in ("config", "resume", "dry_run")}
    debug = overrides.get("logging.level") == "DEBUG"
    try:
        config = load_config(base_config(args.config), overrides)
        debug = config.logging.level == "DEBUG"
        if args.dry_run:
            return _print_plan(config)
        return _train(config, args.resume, debug)
    except ValueError as error:
        tell(error, debug)
        return USAGE_ERROR


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line, which is the same in all processes that torchrun starts: one of them complains."""
    if not under_torchrun():
        return command_parser().parse_all(argv)
    complaint, answer = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(answer):
            return command_parser().parse_all(argv)
    except SystemExit as exit_:
        if exit_.code and _first_to_tell():
            sys.stderr.write(complaint.getvalue())
        elif not exit_.code and is_rank_0():  # --help
            sys.stdout.write(answer.getvalue())
        raise


def tell(error: Exception, debug: bool) -> None:
    """Prints an error, of several processes in one: in rank 0 if that meets it."""
    if _first_to_tell(error):
        print_error(error, debug)


def _first_to_tell(error: Exception | None = None) -> bool:
    """Whether this process is the one to complain: torchrun ends all others as soon as one has left."""
    if not under_torchrun():
        return True
    from parcontrol.training.errors import LostProcessError
    from parcontrol.training.processes import first_to_tell

    return first_to_tell(is_consequence=isinstance(error, LostProcessError))


def _print_plan(config: RunConfig) -> int:
    from parcontrol.cli.plan import print_plan
    from parcontrol.experiment.plan import PlannedRun
    from parcontrol.training.processes import Processes

    processes = number_of_processes()
    Processes(size=processes).check_splits(config)
    if is_rank_0():
        print_plan([PlannedRun(config)])
        if processes > 1:
            print(f"{processes} processes would share this run: time and memory are those of one alone.")
    return 0


def _train(config: RunConfig, resume: bool, debug: bool) -> int:
    from parcontrol.training.errors import RunStoppedError

    already_finished = RunDirectory(config.run_directory).finished
    try:
        from parcontrol.training.run import run

        run(config, resume=resume)
    except RunStoppedError as error:
        tell(error, debug)
        return STOPPED
    if already_finished and is_rank_0():
        print(f"{config.run_directory} is already finished; its result is in result.json")
    return 0


def command_parser() -> OneLineParser:
    """Returns the parser of the flags of `parcontrol train`."""
    parser = OneLineParser(
        prog="parcontrol train",
        usage="%(prog)s [--config FILE] [--P P] [--target-tokens N] [any other flag below]",
        description="Train one ParScale run, or continue it. A flag wins over the file given by "
        f"--config, and that over the file it inherits. Without --config it is {BASE_CONFIG}, or "
        "the same values built in.",
        epilog="Weights & Biases, offline and without an account: --wandb-offline",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with the configuration")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="continue a run that is already there (default), or refuse to",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan with time and memory, start nothing")
    add_run_flags(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
