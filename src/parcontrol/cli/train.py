"""`parcontrol train` and train_parscale.py: train one run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error
from parcontrol.config import ConfigField, RunConfig, iter_fields, load_config, nearest_key, type_name
from parcontrol.runs import RunDirectory

BASE_CONFIG = Path("configs/base_config.yaml")
STOPPED = 1
# Short flags for the keys that are set most often.
SHORT_FLAGS = {
    "parscale.P": "--P",
    "training.tokens_per_run": "--target-tokens",
    "training.mode": "--training-mode",
    "training.seed": "--seed",
    "training.device": "--device",
    "training.init_from": "--init-from",
    "output_dir": "--output-dir",
}
_NULL = "null"


def main(argv: Sequence[str] | None = None) -> int:
    """Trains one run.

    Returns:
        0 when the run is finished, 2 when it was not started because of what the user gave, 1 when
        it had to stop. Errors are one line on stderr, with a traceback at logging level DEBUG.
    """
    args = _parse(argv)
    overrides = {key: value for key, value in vars(args).items() if key not in ("config", "resume")}
    debug = overrides.get("logging.level") == "DEBUG"
    try:
        config = load_config(args.config or _base_config(), overrides)
        debug = config.logging.level == "DEBUG"
        return _train(config, args.resume, debug)
    except ValueError as error:
        print_error(error, debug)
        return USAGE_ERROR


def _train(config: RunConfig, resume: bool, debug: bool) -> int:
    from parcontrol.training.errors import RunStoppedError

    already_finished = RunDirectory(config.run_directory).finished
    try:
        from parcontrol.training.run import run

        run(config, resume=resume)
    except RunStoppedError as error:
        print_error(error, debug)
        return STOPPED
    if already_finished:
        print(f"{config.run_directory} is already finished; its result is in result.json")
    return 0


def _base_config() -> Path | None:
    """Without --config a run starts from the base file; elsewhere from the same defaults."""
    return BASE_CONFIG if BASE_CONFIG.exists() else None


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        given = unknown[0].split("=")[0]
        if not given.startswith("--"):
            parser.error(f"unexpected argument {given!r}: every value follows its flag")
        parser.error(f"unknown flag {given!r}; the nearest is {nearest_key(given, flags)!r}")
    return args


def _parser() -> argparse.ArgumentParser:
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
    parser.add_argument(
        "--wandb-offline",
        dest="logging.wandb",
        action=_SetOnce,
        nargs=0,
        const="offline",
        default=argparse.SUPPRESS,
        help="log to Weights & Biases offline: the same as --logging.wandb offline",
    )
    groups: dict[str, Any] = {}
    for field in iter_fields():
        section = field.name.rpartition(".")[0] or "output"
        group = groups.setdefault(section, None) or parser.add_argument_group(section)
        groups[section] = group
        _add_flag(group, field)
    return parser


def _add_flag(group: Any, field: ConfigField) -> None:
    short = SHORT_FLAGS.get(field.name)
    flags = [flag for flag in (short, f"--{field.name}") if flag]
    default = _NULL if field.default is None else field.default
    group.add_argument(
        *flags,
        dest=field.name,
        action=_SetOnce,
        default=argparse.SUPPRESS,
        metavar=type_name(field.type).replace(" ", ""),
        help=f"{field.description} Default: {default}".replace("%", "%%"),
    )


class _SetOnce(argparse.Action):
    """Stores a value, `null` as None, and refuses a second, different one for the same key."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        value = self.const if self.nargs == 0 else values
        value = None if value == _NULL else value
        if getattr(namespace, self.dest, value) != value:
            before = getattr(namespace, self.dest)
            parser.error(f"{self.dest} is given twice: as {before!r} and as {value!r}")
        setattr(namespace, self.dest, value)


if __name__ == "__main__":
    sys.exit(main())
