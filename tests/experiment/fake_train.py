"""Stands in for `parcontrol train` where a test is about processes: the same flags, directory,
signals and exit codes, without a model, in milliseconds.

The environment plants what happens: FAKE_FAIL=P2 stops that run with an error, FAKE_STEP_SECONDS
slows every run down.
"""

from __future__ import annotations

import os
import sys
import time

from parcontrol.cli.train import command_parser
from parcontrol.config import RunConfig, load_config
from parcontrol.runs import RunDirectory
from parcontrol.training.signals import deferred_signals


def main() -> int:
    args = command_parser().parse_all(None)
    config = load_config(
        None, {key: value for key, value in vars(args).items() if key not in ("config", "resume", "dry_run")}
    )
    try:
        with RunDirectory.open_for_training(config) as run:
            return 0 if run.finished else train(config, run)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def train(config: RunConfig, run: RunDirectory) -> int:
    print("a line that is no error")
    if run.path.name in os.environ.get("FAKE_FAIL", "").split():
        print("error: the disk is full of planted faults", file=sys.stderr)
        print("a last line that is no error either")
        return 1
    checkpoints = run.checkpoints()
    step = int(checkpoints[-1].name.removeprefix("step_")) if checkpoints else 0
    run.truncate_after(step)
    with deferred_signals() as check_interrupt:
        while step < config.total_steps:
            time.sleep(float(os.environ.get("FAKE_STEP_SECONDS", "0")))
            try:
                check_interrupt()
            except SystemExit:
                run.checkpoint_path(step).mkdir(parents=True, exist_ok=True)
                raise
            step += 1
            run.append_metrics(
                {"step": step, "tokens": step * config.tokens_per_step, "loss": 1 / step, "tokens_per_second": 100.0}
            )
    tokens = step * config.tokens_per_step
    run.write_result({"tokens": tokens, "data_sha256": "d", "validation_sha256": "v", "process": os.getpid()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
