"""A model whose answers a test writes down, for the harness's own `simple_evaluate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from parcontrol.leaderboard.harness import build_tasks
from parcontrol.leaderboard.registry import select


class ScriptedModel(LM):
    """Answers with functions of the prompt; remembers what it was asked."""

    def __init__(
        self,
        write: Callable[[str, Mapping[str, Any]], str] | None = None,
        likelihood: Callable[[str, str], float] | None = None,
    ) -> None:
        super().__init__()
        self.write, self.likelihood = write, likelihood
        self.asked: list[tuple] = []

    def generate_until(self, requests: list[Instance]) -> list[str]:
        self.asked += [request.args for request in requests]
        return [self.write(*request.args) for request in requests]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        self.asked += [request.args for request in requests]
        return [(self.likelihood(*request.args), False) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise AssertionError("no task here asks for this")


def write_rows(mirror: Path, file: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Puts a dataset file into a mirror of the Hub: `file` is `<repository>/<path>.jsonl`."""
    path = mirror / "datasets" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluate(task: str, model: LM, mirror: Path, **options: Any) -> dict[str, Any]:
    """Runs the harness on one task of ours with the rows in a mirror, and returns all that it returns."""
    built = build_tasks(select([task]), mirror=str(mirror))
    with patch("lm_eval.evaluator.add_env_info"):  # a second for each call, and nobody here reads it
        results = simple_evaluate(model, tasks=built.tasks, task_manager=built.task_manager, **options)
    assert results is not None
    return results
