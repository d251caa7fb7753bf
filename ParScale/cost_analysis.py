#!/usr/bin/env python3
"""Memory and latency of inference, `python ParScale/cost_analysis.py`: `parcontrol cost`."""

import sys
from functools import partial

from parcontrol.cli.cost import main
from parcontrol.cli.parser import run_command

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(run_command(partial(main, abbreviations=True)))
