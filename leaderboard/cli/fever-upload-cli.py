#!/usr/bin/env python3
"""Convert FEVER and upload it: `cli/fever-upload-cli.py --input FILES --repo REPOSITORY`."""

import sys
from functools import partial

from parcontrol.cli.leaderboard.upload import upload
from parcontrol.cli.parser import run_command

if __name__ == "__main__":
    sys.exit(run_command(partial(upload, "fever")))
