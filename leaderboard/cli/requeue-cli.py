#!/usr/bin/env python3
"""Put a request back into the queue: `cli/requeue-cli.py REQUEST`."""

import sys

from parcontrol.cli.leaderboard.queue import requeue
from parcontrol.cli.parser import run_command

if __name__ == "__main__":
    sys.exit(run_command(requeue))
