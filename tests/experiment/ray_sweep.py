"""The command on a Ray of two workers that it starts itself, with `fake_train` or `--real` runs."""

import logging
import sys

import ray

from parcontrol.cli import experiment
from parcontrol.experiment.launch import TRAIN_MODULE
from parcontrol.experiment.ray_launcher import RayLauncher


def main() -> int:
    real = "--real" in sys.argv
    module = TRAIN_MODULE if real else "tests.experiment.fake_train"
    ray.init(address="local", num_cpus=2, log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
    experiment._launcher = lambda args: RayLauncher(args.ray_resources, module)
    return experiment.main([argument for argument in sys.argv[1:] if argument != "--real"])


if __name__ == "__main__":
    sys.exit(main())
