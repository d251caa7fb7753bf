"""The pass over stored generations: scorers fill in their metrics, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from parcontrol.leaderboard.evaluate.spool import RESULTS, SAMPLES, read_samples, write_task
from parcontrol.leaderboard.registry import registry
from parcontrol.leaderboard.scoring.models import AbsentError
from parcontrol.leaderboard.scoring.scorers import Scored, Scorer, make_scorers

Source = dict[str, str | None]


def rescore(directory: Path, scorers: Iterable[Scorer] | None = None) -> dict[str, str]:
    """Runs scorers over a finished task of the spool and rewrites its files in one step.

    Args:
        directory: The task's directory.
        scorers: As for `score_task`; None runs all.

    Returns:
        The metrics that could not be computed, with the reasons.

    Raises:
        ValueError: There is no finished task.
    """
    try:
        results, samples = orjson.loads((directory / RESULTS).read_bytes()), read_samples(directory / SAMPLES)
    except FileNotFoundError as error:
        raise ValueError(f"{directory} holds no finished task: {error.filename} is missing") from error
    (task,) = results["results"]
    failures = score_task(results, task, samples, make_scorers() if scorers is None else scorers)
    write_task(directory, results, samples)
    return failures


def score_task(
    results: dict[str, Any], task: str, samples: list[dict[str, Any]], scorers: Iterable[Scorer]
) -> dict[str, str]:
    """Enters what scorers compute into results and rows.

    A metric gets `results[task]["<metric>,none"]` with `<metric>_stderr,none`, a value in every row, and
    `parcontrol.scorers[task][metric]`, the models that it was computed with. A metric that cannot be computed gets its
    reason instead, in `parcontrol.absent[task][metric]`; a figure that it has from an earlier pass stays.

    Args:
        results: The harness's results of one or several tasks, with our block; changed.
        task: The task to score.
        samples: Its rows; changed.
        scorers: Those that do not belong to the task do nothing.

    Returns:
        The metrics that could not be computed, with the reasons.
    """
    wanted = scored_metrics(task)
    failures: dict[str, str] = {}
    for scorer in scorers:
        if wanted.isdisjoint(scorer.metrics):
            continue
        try:
            scored, sources = scorer.score(samples), scorer.sources()
        except AbsentError as error:
            reasons = dict.fromkeys(scorer.metrics, str(error))
            _leave_absent(results, task, reasons)
            failures |= reasons
            continue
        for metric, figures in scored.items():
            _enter(results, task, metric, figures, sources)
            _enter_rows(samples, metric, figures.rows)
    return failures


def scored_metrics(task: str) -> set[str]:
    """Returns the metrics of a task that have a column."""
    return {column.metric for spec in registry() if spec.harness_task == task for column in spec.columns}


def _enter(results: dict[str, Any], task: str, metric: str, scored: Scored, sources: list[Source]) -> None:
    results["results"][task][f"{metric},none"] = scored.value
    results["results"][task][f"{metric}_stderr,none"] = "N/A" if scored.stderr is None else scored.stderr
    results["higher_is_better"][task][metric] = True
    block = results.setdefault("parcontrol", {})
    reasons = block.setdefault("absent", {}).get(task, {})
    if reasons.pop(metric, None) and not reasons:
        del block["absent"][task]
    block.setdefault("scorers", {}).setdefault(task, {})[metric] = sources


def _enter_rows(samples: list[dict[str, Any]], metric: str, values: list[Any]) -> None:
    for sample, value in zip(samples, values, strict=True):
        sample[metric] = value
        if metric not in sample["metrics"]:
            sample["metrics"].append(metric)


def _leave_absent(results: dict[str, Any], task: str, reasons: dict[str, str]) -> None:
    metrics = results["results"][task]
    for metric, reason in reasons.items():
        if metrics.get(f"{metric},none") is None:
            # The harness leaves null where an aggregation has no value.
            metrics.pop(f"{metric},none", None)
            metrics.pop(f"{metric}_stderr,none", None)
            absent = results.setdefault("parcontrol", {}).setdefault("absent", {})
            absent.setdefault(task, {})[metric] = reason
