"""A worker process with a short lease, for tests that kill it: `python -m tests.faults.leaderboard_worker SECONDS`.

It evaluates with the harness's dummy on two tasks of the sample set, and waits for more requests until SIGTERM.
"""

from __future__ import annotations

import signal
import sys
from datetime import timedelta

from parcontrol.leaderboard import worker as worker_module
from parcontrol.leaderboard.evaluate.model_spec import Conditions
from parcontrol.leaderboard.queue import Queue
from parcontrol.leaderboard.registry import select
from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store import open_stores
from parcontrol.logging_setup import setup_logging

TASKS = ("memo_trap", "truefalse")
# A request may be killed more often here than anywhere else.
MAX_ATTEMPTS = 50


def main() -> None:
    """Works until SIGTERM."""
    worker_module._SECONDS_BETWEEN_LOOKS = 0.5
    settings = Settings.from_environment()
    stores = open_stores(settings)
    evaluation = worker_module.Settings(
        tasks=tuple(select(TASKS)), conditions=Conditions(sample_set=True, backend="dummy")
    )
    queue = Queue(stores.requests, lease=timedelta(seconds=float(sys.argv[1])), max_attempts=MAX_ATTEMPTS)
    with worker_module.Worker(stores.results, settings.root / "worker", evaluation) as worker:
        signal.signal(signal.SIGTERM, lambda *_: worker.stop.set())
        setup_logging("INFO", settings.root / "worker" / "logs", worker.id)
        worker.drain(queue, watch=True)


if __name__ == "__main__":
    main()
