"""A sweep from its plan to the word on how it ended."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import get_console

from parcontrol.experiment.comparison import check_results
from parcontrol.experiment.launch import Launcher, console_path
from parcontrol.experiment.plan import PlannedRun
from parcontrol.experiment.progress import SweepDisplay
from parcontrol.experiment.sweep import RunStatus, Sweep

NOT_FINISHED = 1


def run_sweep(
    runs: Sequence[PlannedRun], launcher: Launcher, *, max_parallel: int | None = None, fail_fast: bool = False
) -> int:
    """Runs what is not finished, shows it, and prints how it ended; the launcher is closed.

    Args:
        runs: The plan, checked by `check_plan`.
        launcher: Where the runs go.
        max_parallel: Runs at a time; None takes the launcher's own number.
        fail_fast: Whether the first failure stops the others, with a checkpoint.

    Returns:
        The exit code: 0 when all runs are finished, 1 when some are not, 128 + the signal's number when SIGINT or
        SIGTERM came, after the runs have written checkpoints.

    Raises:
        NotComparableError: The finished runs were not trained on the same tokens.
    """
    try:
        with SweepDisplay(get_console()) as show:
            sweep = Sweep(runs, launcher, max_parallel=max_parallel, fail_fast=fail_fast, show=show)
            statuses = sweep.run()
    finally:
        launcher.close()
    for status in statuses:
        if status.state == "failed":
            console = console_path(status.run)
            print(f"error: {status.run.name} failed: {status.error} (its output: {console})", file=sys.stderr)
    unfinished = [status.run.name for status in statuses if status.state != "finished"]
    if unfinished:
        print(f"not finished: {', '.join(unfinished)}; {how_to_go_on(statuses)}")
    if sweep.signals:
        return 128 + sweep.signals[0]
    results = check_results(runs[0].config.run_directory.parent)
    if unfinished:
        return NOT_FINISHED
    data = next(iter(results.values()))
    print(f"{len(results)} runs finished on the same {data['tokens']:,} tokens, sha256 {data['data_sha256']}")
    return 0


def how_to_go_on(statuses: Sequence[RunStatus]) -> str:
    """Says where the same command would begin with what is not finished."""
    kept = [status.run.name for status in statuses if status.state != "finished" and status.run.state == "resume"]
    if not kept:
        return "the same command starts what is left from its beginning"
    return f"the same command goes on from the checkpoints of {', '.join(kept)}"
