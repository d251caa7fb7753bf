"""Every configuration key as a flag: what the commands share that train."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

from parcontrol.config import ConfigField, iter_fields, type_name

BASE_CONFIG = Path("configs/base_config.yaml")
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


def add_run_flags(parser: argparse.ArgumentParser, decided: Collection[str] = ()) -> None:
    """Adds a flag for every configuration key but those that the command decides itself.

    The parsed arguments hold only what was given, under the dotted name of its key.
    """
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
        if field.name not in decided:
            section = field.name.rpartition(".")[0] or "output"
            if section not in groups:
                groups[section] = parser.add_argument_group(section)
            _add_flag(groups[section], field)


def base_config(given: Path | None) -> Path | None:
    """Without a file given a run starts from the base file; elsewhere from the same defaults, built in."""
    return given or (BASE_CONFIG if BASE_CONFIG.exists() else None)


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
