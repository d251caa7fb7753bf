#!/usr/bin/env python3
"""Withdraw a request: `cli/cancel-cli.py REQUEST`."""

import sys

from parcontrol.cli.leaderboard.queue import cancel
from parcontrol.cli.parser import run_command

if __name__ == "__main__":
    sys.exit(run_command(cancel))
