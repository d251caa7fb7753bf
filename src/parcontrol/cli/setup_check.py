"""`parcontrol setup-check` and test_setup.py: can this machine train?"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from parcontrol.cli.parser import OneLineParser


def main(argv: Sequence[str] | None = None) -> int:
    """Checks the machine; returns 1 when something required fails."""
    OneLineParser(prog="parcontrol setup-check", description="Check that this machine can train.").parse_args(argv)

    from parcontrol.setup_check import main as check

    return check()


if __name__ == "__main__":
    sys.exit(main())
