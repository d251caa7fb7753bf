"""What torchrun tells a process that it has started, read without torch, so that commands know it at once."""

from __future__ import annotations

import os


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def number_of_processes() -> int:
    """How many processes torchrun started with this one; 1 where it did not start it."""
    return int(os.environ["WORLD_SIZE"]) if under_torchrun() else 1


def is_rank_0() -> bool:
    """Whether this is the only process, or rank 0 of those that torchrun has started."""
    return not under_torchrun() or os.environ["RANK"] == "0"
