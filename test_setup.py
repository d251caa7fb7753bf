#!/usr/bin/env python3
"""Check that this machine can train: `python test_setup.py`. Exit code 1 if something is amiss."""

import sys

try:
    from parcontrol.cli.setup_check import main
except ModuleNotFoundError as error:
    sys.exit(f"failed: {error.name} is not installed; remedy: pip install -r requirements.txt")

if __name__ == "__main__":
    sys.exit(main())
