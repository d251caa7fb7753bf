"""The command `parcontrol`: hands over to the command that is named first."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import parcontrol
from parcontrol.cli.parser import OneLineParser
from parcontrol.config import nearest_key


class Command(NamedTuple):
    """Where a command is implemented: `function` takes the arguments and returns the exit code."""

    module: str
    help: str
    function: str = "main"

    def load(self) -> Callable[[Sequence[str]], int]:
        """Imports the implementation."""
        function: Callable[[Sequence[str]], int] = getattr(importlib.import_module(self.module), self.function)
        return function


COMMANDS = {
    "train": Command("parcontrol.cli.train", "train one run"),
    "experiment": Command("parcontrol.cli.experiment", "train several P, and seeds, on equal tokens"),
    "report": Command("parcontrol.cli.report", "compare the runs of experiments in one report"),
    "data": Command("parcontrol.cli.data", "check what a run was trained on"),
    "streams": Command("parcontrol.cli.streams", "show how a run uses its streams"),
    "config": Command("parcontrol.cli.config", "explain the configuration keys"),
    "cost": Command("parcontrol.cli.cost", "memory and latency of inference, by formula"),
    "fit": Command("parcontrol.cli.fit", "fit the parallel scaling law"),
    "setup-check": Command("parcontrol.cli.setup_check", "check that this machine can train"),
    "demo": Command("parcontrol.demo.run", "train, evaluate and reload a small model"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    args = _parser().parse_args(argv)
    if args.command not in COMMANDS:
        near = nearest_key(args.command, COMMANDS)
        print(
            f"error: unknown command {args.command!r}; the nearest is {near!r}, and `parcontrol --help` lists all",
            file=sys.stderr,
        )
        return 2
    return COMMANDS[args.command].load()(args.arguments)


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listed = [f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items()]
    parser = OneLineParser(
        prog="parcontrol",
        description="ParScale: train, measure and predict parallel scaling of language models.",
        epilog="\n".join(["commands:", *listed, "", "`parcontrol COMMAND --help` explains each."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=parcontrol.__version__)
    parser.add_argument("command", metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    return parser


if __name__ == "__main__":
    sys.exit(main())
