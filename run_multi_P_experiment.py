#!/usr/bin/env python3
"""Train P = 1, 2, 4, 8 on equal tokens: `python run_multi_P_experiment.py --P-values 1 2 4 8`."""

import sys

from parcontrol.cli.experiment import main
from parcontrol.cli.parser import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
