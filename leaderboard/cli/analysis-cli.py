#!/usr/bin/env python3
"""Heat map and cluster map of models and tasks: `cli/analysis-cli.py`."""

import sys

from parcontrol.cli.leaderboard.analysis import main
from parcontrol.cli.parser import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
