#!/usr/bin/env python3
"""What is done, what is missing, what failed and why: `cli/completed-cli.py`."""

import sys

from parcontrol.cli.leaderboard.completed import main
from parcontrol.cli.parser import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
