"""Commands that hand over to a command: `parcontrol`, and `parcontrol leaderboard` below it."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import parcontrol
from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, run_command
from parcontrol.config import nearest_key


class Command(NamedTuple):
    """Where a command is implemented: `function` takes the arguments and returns the exit code."""

    module: str
    help: str
    function: str = "main"

    def load(self) -> Callable[[Sequence[str] | None], int]:
        """Imports the implementation."""
        function: Callable[[Sequence[str] | None], int] = getattr(importlib.import_module(self.module), self.function)
        return function


def dispatch(prog: str, description: str, commands: Mapping[str, Command], argv: Sequence[str] | None) -> int:
    """Runs the command that is named first and returns its exit code; nothing of the others is imported."""
    args = _parser(prog, description, commands).parse_args(argv)
    if args.command not in commands:
        near = nearest_key(args.command, commands)
        print(
            f"error: unknown command {args.command!r}; the nearest is {near!r}, and `{prog} --help` lists all",
            file=sys.stderr,
        )
        return USAGE_ERROR
    return run_command(commands[args.command].load(), args.arguments)


def _parser(prog: str, description: str, commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    width = max(map(len, commands))
    listed = [f"  {name:{width}}  {command.help}" for name, command in commands.items()]
    parser = OneLineParser(
        prog=prog,
        description=description,
        epilog="\n".join(["commands:", *listed, "", f"`{prog} COMMAND --help` explains each."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=parcontrol.__version__)
    parser.add_argument("command", metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    return parser
