#!/usr/bin/env python3
"""Put a model into the queue: `cli/submit-cli.py --model_name "model/name" --model_type "🤖 Instruction-tuned"`."""

import sys

from parcontrol.cli.leaderboard.submit import main
from parcontrol.cli.parser import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
