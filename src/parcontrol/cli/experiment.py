"""`parcontrol experiment` and run_multi_P_experiment.py: train every P on equal tokens."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rich import get_console
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error
from parcontrol.cli.run_flags import BASE_CONFIG, add_run_flags, base_config
from parcontrol.config import iter_fields
from parcontrol.experiment.comparison import NotComparableError, check_plan
from parcontrol.experiment.launch import Launcher
from parcontrol.experiment.local import LocalLauncher
from parcontrol.experiment.plan import OUTPUT_DIR, PlannedRun, make_plan
from parcontrol.experiment.run import run_sweep
from parcontrol.formats import format_duration

if TYPE_CHECKING:
    from parcontrol.experiment.estimate import Estimate

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
        runs = make_plan(base_config(args.base_config), overrides, args.P_values, args.seeds, args.sweep_dir)
        debug = runs[0].config.logging.level == "DEBUG"
        if any(run.state != "finished" for run in runs):
            _check_folder(args.sweep_dir)
        check_plan(runs, args.resume)
        if args.dry_run:
            _print_plan(runs)
            return 0
        launcher = _launcher(args)
        return run_sweep(runs, launcher, max_parallel=args.max_parallel, fail_fast=args.fail_fast)
    except NotComparableError as error:
        print_error(error, debug)
        return NOT_COMPARABLE
    except ValueError as error:
        print_error(error, debug)
        return USAGE_ERROR


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


# --- the plan ---


def _print_plan(runs: Sequence[PlannedRun]) -> None:
    estimates, notes = _estimates(runs)
    table = Table(box=None, pad_edge=False)
    for column in ("run", "P", "seed", "tokens", "steps", "time (est.)", "memory (est.)", "state", "directory"):
        table.add_column(column, justify="left" if column in ("run", "state", "directory") else "right", no_wrap=True)
    for run in runs:
        config, expected = run.config, estimates.get(run.name)
        table.add_row(
            escape(run.name),
            str(config.parscale.P),
            str(config.training.seed),
            f"{run.total_tokens:,}",
            f"{config.total_steps:,}",
            "unknown" if expected is None else f">= {format_duration(expected.seconds)}",
            "unknown" if expected is None else _gib(expected.memory_bytes),
            run.state,
            escape(str(config.run_directory)),
        )
    console = get_console()
    # Where nobody looks at it on a screen, no column is cut to the width of one.
    (console if console.is_terminal else Console(width=1000)).print(table)
    for note in notes:
        print(note)


def _estimates(runs: Sequence[PlannedRun]) -> tuple[Mapping[str, Estimate], list[str]]:
    from parcontrol.experiment.estimate import Setting, estimate, matrix_product_rate, model_size
    from parcontrol.training.device import choose_precision
    from parcontrol.training.loss import CHUNK_TOKENS_ACCELERATOR, CHUNK_TOKENS_CPU

    first = runs[0].config
    precision = choose_precision(first.training)
    device = precision.device
    positions = CHUNK_TOKENS_CPU if device.type == "cpu" else CHUNK_TOKENS_ACCELERATOR
    setting = Setting(device, precision.backbone, precision.compute, positions)
    try:
        rate = matrix_product_rate(first, model_size(first), setting)
        estimates = {run.name: estimate(run.config, setting, rate) for run in runs}
    except ValueError as error:
        return {}, [f"Time and memory are unknown: {error}"]
    compute = str(setting.compute).removeprefix("torch.")
    total = sum(estimates[run.name].seconds for run in runs)
    return estimates, [
        f"Estimates for {device} at the rate of a {compute} matrix product measured now, {rate / 1e12:.3g} TFLOP/s, "
        f"as if all work ran at that rate: the time is a lower bound, {format_duration(total)} for all whole "
        "runs one by one.",
        "Memory is what a training step keeps by formula. Both formulae: docs/experiment.md.",
    ]


def _gib(number: float) -> str:
    return f"~ {number / 2**30:.2f} GiB"


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
