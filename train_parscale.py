#!/usr/bin/env python3
"""Train one ParScale run: `python train_parscale.py --config configs/p2_config.yaml`."""

import sys

from parcontrol.cli.parser import run_command
from parcontrol.cli.train import main

if __name__ == "__main__":
    sys.exit(run_command(main))
