"""`parcontrol experiment` and run_multi_P_experiment.py: train every P on equal tokens."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error
from parcontrol.cli.plan import print_plan
from parcontrol.cli.run_flags import BASE_CONFIG, add_run_flags, base_config
from parcontrol.cli.train import tell
from parcontrol.config import iter_fields
from parcontrol.experiment.comparison import NotComparableError, check_plan
from parcontrol.experiment.launch import Launcher
from parcontrol.experiment.local import LocalLauncher
from parcontrol.experiment.plan import OUTPUT_DIR, make_plan
from parcontrol.experiment.run import run_sweep
from parcontrol.torchrun import number_of_processes

NOT_COMPARABLE = 1
# What the sweep itself decides for each run; --output-dir means the folder of all of them here.
_DECIDED = ("parscale.P", "output_dir")


def main(argv: Sequence[str] | None = None) -> int:
    """Trains every P, and every seed of it, on the same tokens, one process per run.

    Returns:
        0 when all runs are finished and can be compared; 1 when some are not, or cannot; 2 when
        nothing was started because of what the user gave; 128 + the signal's number when SIGINT or
        SIGTERM came, after the runs have written checkpoints.
    """
    args = _parse(argv)
    keys = {field.name for field in iter_fields()}
    overrides = {key: value for key, value in vars(args).items() if key in keys}
    debug = overrides.get("logging.level") == "DEBUG"
    try:
        _check_alone()
        runs = make_plan(base_config(args.base_config), overrides, args.P_values, args.seeds, args.sweep_dir)
        debug = runs[0].config.logging.level == "DEBUG"
        if any(run.state != "finished" for run in runs):
            _check_folder(args.sweep_dir)
        check_plan(runs, args.resume)
        if args.dry_run:
            print_plan(runs)
            return 0
        launcher = _launcher(args)
        return run_sweep(runs, launcher, max_parallel=args.max_parallel, fail_fast=args.fail_fast)
    except NotComparableError as error:
        print_error(error, debug)
        return NOT_COMPARABLE
    except ValueError as error:
        tell(error, debug)
        return USAGE_ERROR


def _check_alone() -> None:
    """Raises ValueError under torchrun: each of its processes would start the same runs in the same directories."""
    processes = number_of_processes()
    if processes > 1:
        raise ValueError(
            f"a sweep is one process that starts its runs, and torchrun has started {processes}: start it without "
            "torchrun, which is for train_parscale.py"
        )


def _check_folder(folder: Path) -> None:
    """Tries, and leaves no trace, whether anything can be written to a folder or made where it will be.

    Raises:
        ValueError: Nothing can.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with TemporaryDirectory(dir=there, prefix=".parcontrol-"):
            pass
    except OSError as error:
        raise ValueError(f"--output-dir {str(folder)!r}: cannot be written: {there}: {error.strerror}") from error


def _launcher(args: argparse.Namespace) -> Launcher:
    if args.launcher == "local":
        return LocalLauncher()
    from parcontrol.experiment.ray_launcher import RayLauncher

    return RayLauncher(args.ray_resources)


# --- flags ---


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    args = parser.parse_all(argv)
    if args.seeds and hasattr(args, "training.seed"):
        parser.error("--seeds sets training.seed for each run: leave --seed out")
    if args.ray_resources and args.launcher != "ray":
        parser.error("--ray-resources needs --launcher ray")
    args.ray_resources = dict(args.ray_resources or [])
    return args


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="parcontrol experiment",
        usage="%(prog)s --P-values P [P ...] [--base-config FILE] [--seeds S [S ...]] [any other flag below]",
        description="Train every P, and every seed of it, on the same tokens with the same budget, one process per "
        "run. Finished runs are skipped and interrupted ones resumed, so the same command goes on where it stopped.",
        epilog="Exit code: 0 all finished and comparable, 1 some failed or not comparable, 2 bad input, "
        "128 + signal interrupted.",
    )
    parser.add_argument(
        "--P-values", type=_positive, nargs="+", required=True, metavar="P", help="numbers of streams, one run each"
    )
    parser.add_argument(
        "--base-config", type=Path, metavar="FILE", help=f"YAML file that all runs share (default: {BASE_CONFIG})"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="S", help="values of training.seed; every P is run with each"
    )
    parser.add_argument(
        "--output-dir",
        dest="sweep_dir",
        type=Path,
        default=OUTPUT_DIR,
        metavar="DIR",
        help="folder of the run directories P{P}[_seed{S}] (default: %(default)s)",
    )
    parser.add_argument(
        "--max-parallel", type=_positive, metavar="N", help="runs at a time (default: 1, on Ray as many as have room)"
    )
    parser.add_argument("--fail-fast", action="store_true", help="stop the other runs when one fails")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, start nothing")
    parser.add_argument(
        "--launcher", choices=("local", "ray"), default="local", help="where the runs go (default: %(default)s)"
    )
    parser.add_argument(
        "--ray-resources",
        type=_resource,
        nargs="+",
        metavar="NAME=AMOUNT",
        help="what each run takes on Ray, such as GPU=1 CPU=4 (default: one GPU, or one CPU where there is none)",
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with runs that are already there (default), or refuse to",
    )
    add_run_flags(parser, decided=_DECIDED)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: a whole number of at least 1 is needed")
    return int(text)


def _resource(text: str) -> tuple[str, float]:
    name, _, amount = text.partition("=")
    try:
        value = float(amount)
    except ValueError:
        value = 0.0
    if not name or not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: NAME=AMOUNT is needed, such as GPU=1")
    return name, value


if __name__ == "__main__":
    sys.exit(main())
