"""`parcontrol setup-check` and test_setup.py: can this machine train?"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from parcontrol import setup_check
from parcontrol.cli.parser import OneLineParser


def main(argv: Sequence[str] | None = None) -> int:
    """Checks the machine; returns 1 when something required fails."""
    OneLineParser(prog="parcontrol setup-check", description="Check that this machine can train.").parse_args(argv)
    return setup_check.main()


if __name__ == "__main__":
    sys.exit(main())
