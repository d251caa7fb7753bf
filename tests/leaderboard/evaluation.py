"""Finished tasks without a model, for tests of what happens to them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from parcontrol.leaderboard.evaluate import spool
from parcontrol.leaderboard.evaluate.model_spec import Conditions, ModelSpec
from parcontrol.leaderboard.registry import select

SHA = "a" * 40
MODEL = ModelSpec("org/model", SHA, precision="bfloat16")


def finished(
    root: Path, task: str, model: ModelSpec = MODEL, value: float = 0.5, version: float | None = None, **block: Any
) -> spool.Spooled:
    """Puts a finished task into the spool, as an evaluation would."""
    (spec,) = select([task])
    column = spec.columns[0]
    results = {
        "results": {task: {"name": task, "sample_len": 2, f"{column.metric},{column.filter}": value}},
        "group_subtasks": {},
        "configs": {task: {"task": task}},
        "versions": {task: spec.version if version is None else version},
        "n-shot": {task: spec.num_fewshot},
        "higher_is_better": {task: {column.metric: True}},
        "n-samples": {task: {"original": 4, "effective": 2}},
        "config": {"model": "hf", "model_sha": model.sha},
        "date": 1.0,
        "total_evaluation_time_seconds": "1.5",
        "parcontrol": {
            "schema": 1,
            "task": task,
            **model.identity,
            **asdict(Conditions()),
            "forced": False,
            "request": None,
            "worker": "somebody",
            "absent": {},
            "failed": {},
            "duration_s": {task: 1.5},
            **block,
        },
    }
    directory = root / model.directory_name / task
    spool.write_task(directory, results, [{"doc_id": 0, "resps": [["yes"]]}, {"doc_id": 1, "resps": [["no"]]}])
    return spool.finished_tasks(directory.parent)[task]


class FakeProcess:
    """Stands in for the evaluating process: `script` says what becomes of each task.

    Attributes:
        orders: What it was told to do.
        stopped: Whether it was ended.
    """

    def __init__(self, script: dict[str, Any] | None = None) -> None:
        self.script = script or {}
        self.orders: list[dict[str, Any]] = []
        self.stopped, self.ready = False, True

    @property
    def alive(self) -> bool:
        return not self.stopped

    @property
    def tasks(self) -> list[str]:
        """The tasks that were evaluated, in order."""
        return [task for order in self.orders if "evaluate" in order for task in order["evaluate"]["tasks"]]

    def perform(self, order: dict[str, Any], poll_seconds: float) -> Iterator[dict[str, Any] | None]:
        """Yields events as `EvaluationProcess.perform` does."""
        self.orders.append(order)
        if "score" in order:
            yield from self._answer(f"score {Path(order['score']).name}", [])
            return
        job = order["evaluate"]
        model, block = ModelSpec(**job["spec"]), job["conditions"]
        yield {"event": "loaded", "seconds": 0.1}
        for task in job["tasks"]:
            yield {"event": "task", "task": task}
            yield None
            refused = False
            for event in self._answer(task, []):
                refused |= event is not None and event["event"] == "refused"
                yield event
            if not refused:
                about = {"forced": job["forced"], "request": job["request"], "worker": job["worker"]}
                finished(Path(job["out"]).parent, task, model, **block, **about)
                yield {"event": "done", "task": task, "seconds": 0.1}

    def _answer(self, what: str, default: Sequence[Any]) -> Iterator[dict[str, Any] | None]:
        """Does what the script says: raises an error, calls a function, says that the task failed, or yields slowly."""
        action = self.script.get(what, default)
        if isinstance(action, Exception):
            raise action
        if callable(action):
            action()
        elif isinstance(action, str):
            yield {"event": "refused", "task": what, "reason": action}
        else:
            for event in action:
                time.sleep(0.01)
                yield event

    def stop(self) -> None:
        self.stopped = True
