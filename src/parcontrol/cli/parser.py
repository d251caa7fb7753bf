"""What all commands share: how they refuse what they are given, and how they end."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from parcontrol.cli.output import let_readers_leave
from parcontrol.config import nearest_key

USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count


class OneLineParser(argparse.ArgumentParser):
    """A parser that refuses with one line, and takes no abbreviated flags.

    An abbreviation would turn a misspelt flag into another one.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_all(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parses arguments; an unknown flag is refused with the nearest one that there is."""
        args, unknown = self.parse_known_args(argv)
        if not unknown:
            return args
        given = unknown[0].split("=")[0]
        if not given.startswith("-"):
            self.error(f"unexpected argument {given!r}: every value follows its flag")
        flags = [flag for action in self._actions for flag in action.option_strings]
        self.error(f"unknown flag {given!r}; the nearest is {nearest_key(given, flags)!r}")

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit code 2 and one line on stderr."""
        self.exit(USAGE_ERROR, f"error: {message}\n")


def print_error(error: BaseException, debug: bool = False) -> None:
    """Prints an error to stderr as one line, after its traceback when debugging."""
    if debug:
        traceback.print_exception(error)
    print("error:", " ".join(str(error).split()) or type(error).__name__, file=sys.stderr)


def run_command(command: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; Ctrl-C ends it with one line instead of a traceback.

    A training run that is under way handles the signal itself and writes a checkpoint first. A reader of its
    output that leaves early stops nothing.
    """
    let_readers_leave()
    try:
        return command(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
