"""What all commands share: how they refuse what they are given."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count


class OneLineParser(argparse.ArgumentParser):
    """A parser that refuses with one line, and takes no abbreviated flags.

    An abbreviation would turn a misspelt flag into another one.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

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

    A training run that is under way handles the signal itself and writes a checkpoint first.
    """
    try:
        return command(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
