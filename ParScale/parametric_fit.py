#!/usr/bin/env python3
"""Fit the parallel scaling law, `python ParScale/parametric_fit.py`: `parcontrol fit`."""

import sys

from parcontrol.cli.fit import main
from parcontrol.cli.parser import run_command

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(run_command(main))
