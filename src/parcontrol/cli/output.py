"""Printing to a reader that may leave early, as `head` does."""

from __future__ import annotations

import os
import sys


def print_whole(text: str) -> None:
    """Prints a text; where the reader has enough of it the rest goes nowhere, and that is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # What is still in the buffer would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
