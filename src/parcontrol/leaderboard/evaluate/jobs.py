"""What the evaluating process does on order: evaluate tasks, or score the stored answers of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from parcontrol.leaderboard.evaluate.model_spec import Job

Report = Callable[[dict[str, Any]], None]


def perform(order: dict[str, Any], report: Report) -> None:
    """Does what an order says.

    Args:
        order: `{"evaluate": job}`, or `{"score": directory of a finished task}`.
        report: Called with every event.

    Raises:
        ModelRefusedError: The model cannot be evaluated as asked for.
        EvaluationError: The evaluation broke off.
    """
    if "evaluate" in order:
        from parcontrol.leaderboard.evaluate.run import run

        run(Job.from_dict(order["evaluate"]), report)
        return
    from parcontrol.leaderboard.scoring import rescore

    directory = Path(order["score"])
    report({"event": "scored", "task": directory.name, "absent": rescore(directory)})
