#!/usr/bin/env python3
"""Evaluate the models in the queue, or one directly: `python backend-cli.py --once`."""

import sys

from parcontrol.cli.leaderboard.worker import main
from parcontrol.cli.parser import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
