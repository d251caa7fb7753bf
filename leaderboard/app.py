#!/usr/bin/env python3
"""The leaderboard's web page: `python app.py`."""

import sys

from parcontrol.cli.leaderboard.app import main
from parcontrol.cli.parser import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
