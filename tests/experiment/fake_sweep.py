"""The command with `fake_train` as its runs: `python -m tests.experiment.fake_sweep FLAGS`."""

import sys

from parcontrol.cli import experiment
from parcontrol.experiment.local import LocalLauncher

if __name__ == "__main__":
    experiment.LocalLauncher = lambda: LocalLauncher("tests.experiment.fake_train")
    sys.exit(experiment.main())
