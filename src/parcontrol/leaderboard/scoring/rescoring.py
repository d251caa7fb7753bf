"""The pass over stored generations: scorers fill in their metrics, and nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from parcontrol.leaderboard.evaluate.spool import RESULTS, SAMPLES, read_samples, write_task
from parcontrol.leaderboard.registry import registry
from parcontrol.leaderboard.scoring.models import AbsentError
from parcontrol.leaderboard.scoring.scorers import SCORERS, Scored, make_scorers

Source = dict[str, str | None]


class Rescored(NamedTuple):
    """What became of one task."""

    path: str
    task: str
    figures: dict[str, float]  # metrics that were computed
    failures: dict[str, str]  # metrics that could not be, with the reasons


def rescore_directory(directory: Path, names: Sequence[str] | None = None, batch_size: int = 16) -> Rescored:
    """Scores a finished task of the spool and rewrites its files in one step.

    Args:
        directory: The task's directory.
        names: Scorers to run, whatever is there; None runs those whose metrics are missing.
        batch_size: How many texts pass through a model at once.

    Raises:
        ValueError: There is no finished task.
    """
    try:
        results, samples = orjson.loads((directory / RESULTS).read_bytes()), read_samples(directory / SAMPLES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{directory} holds no finished task: {error.filename} is missing") from error
    (task,) = results["results"]
    outcome = score_task(results, task, samples, names, batch_size)
    write_task(directory, results, samples)
    return outcome._replace(path=str(directory))


def score_task(
    results: dict[str, Any], task: str, samples: list[dict[str, Any]], names: Sequence[str] | None, batch_size: int
) -> Rescored:
    """Enters what scorers compute into results and rows.

    A metric gets `results[task]["<metric>,none"]` with `<metric>_stderr,none`, a value in every row, and
    `parcontrol.scorers[task][metric]`, the models that it was computed with. A metric that cannot be computed gets its
    reason instead, in `parcontrol.absent[task][metric]`; a figure that it has from an earlier pass stays.

    Args:
        results: The harness's results of one or several tasks, with our block; changed.
        task: The task to score.
        samples: Its rows; changed.
        names: Scorers to run; those of other tasks do nothing. None runs those of the task whose metrics are missing.
        batch_size: How many texts pass through a model at once.
    """
    metrics = results["results"][task]
    outcome = Rescored("", task, {}, {})
    for scorer in make_scorers(scorers_of(task, metrics, names), batch_size):
        try:
            scored, sources = scorer.score(samples), scorer.sources()
        except AbsentError as error:
            reasons = dict.fromkeys(scorer.metrics, str(error))
            _leave_absent(results, task, reasons)
            outcome.failures.update(reasons)
            continue
        for metric, figures in scored.items():
            _enter(results, task, metric, figures, sources)
            _enter_rows(samples, metric, figures.rows)
            outcome.figures[metric] = figures.value
    return outcome


def scorers_of(task: str, metrics: Mapping[str, Any], names: Sequence[str] | None) -> list[str]:
    """Returns the names of the scorers that a task gets.

    Args:
        task: Its name.
        metrics: Its results so far.
        names: Those to choose among; None chooses those with a metric that lacks a figure or its standard error.
    """
    columns = {column.metric for spec in registry() if spec.harness_task == task for column in spec.columns}
    found = []
    for name in SCORERS if names is None else names:
        (scorer,) = make_scorers([name])
        keys = [key for metric in scorer.metrics for key in (f"{metric},none", f"{metric}_stderr,none")]
        complete = all(isinstance(metrics.get(key), int | float) for key in keys)
        if columns.issuperset(scorer.metrics) and (names is not None or not complete):
            found.append(name)
    return found


def _enter(results: dict[str, Any], task: str, metric: str, scored: Scored, sources: list[Source]) -> None:
    results["results"][task][f"{metric},none"] = scored.value
    results["results"][task][f"{metric}_stderr,none"] = "N/A" if scored.stderr is None else scored.stderr
    results["higher_is_better"][task][metric] = True
    block = results.setdefault("parcontrol", {})
    reasons = block.setdefault("absent", {}).get(task, {})
    if reasons.pop(metric, None) and not reasons:
        del block["absent"][task]
    if sources:
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
