"""The demo's models on a local leaderboard: the backbone, and whatever `make demo` has trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from parcontrol.leaderboard.model_source import find_model
from parcontrol.leaderboard.queue import Entry, Queue
from parcontrol.leaderboard.records import WAITING, ModelType, Precision, Status
from parcontrol.leaderboard.registry import DEMO, select
from parcontrol.leaderboard.runs_on_board import submission_of
from parcontrol.leaderboard.settings import ROOT_VARIABLE, Settings
from parcontrol.leaderboard.store import Store
from parcontrol.leaderboard.submission import Submission, submit
from parcontrol.runs import RunDirectory

# Who submits them, so that they take nothing of what a person may submit in a week.
USER = "demo"
# Half the time of float32 on a CPU that multiplies matrices in it.
PRECISION = Precision.BFLOAT16


def submit_demo(model: Path, runs: Path, store: Store, settings: Settings) -> list[Entry]:
    """Submits what is not on the board yet and returns the new requests.

    Args:
        model: Directory of the backbone.
        runs: Directory of the demo's runs; it need not exist.
        store: The requests repository, a local one.
        settings: Settings of the leaderboard.

    Raises:
        ValueError: A model is refused, or the store is not one for a demonstration: it is on the Hub, or somebody's
            requests wait in it, which would get results on the sample tasks only.
        StoreError: The store cannot be read or written.
    """
    if settings.on_hub:
        raise ValueError("the demo is for a local store: unset QUEUE_REPO, RESULTS_REPO and REPO_ID")
    others = [entry.request.model for entry in waiting(store) if entry.request.submitted_by != USER]
    if others:
        raise ValueError(
            f"{len(others)} requests wait in {settings.root}, {others[0]} for one, and the demo would evaluate them on "
            f"the sample tasks only: name another directory in {ROOT_VARIABLE}, or run a worker first"
        )
    there = {entry.request.sha for entry in Queue(store).requests()}
    backbone: tuple[Submission, dict[str, Any]] = (Submission(str(model), ModelType.INSTRUCTION_TUNED), {})
    trained = [submission_of(run, f"demo_{run.path.name}") for run in finished_runs(runs)]
    return [
        submit(replace(submission, precision=PRECISION), store, settings, USER, facts=facts | {"tasks": tasks()})
        for submission, facts in (backbone, *trained)
        if find_model(submission.model_name, "main", settings).sha not in there
    ]


def tasks() -> tuple[str, ...]:
    """Returns the tasks of the sample set that the averages are taken over."""
    return tuple(spec.name for spec in select([DEMO]) if any(column.averaged for column in spec.columns))


def waiting(store: Store) -> list[Entry]:
    """Returns the requests that are not over."""
    return [entry for entry in Queue(store).requests() if entry.request.status in (*WAITING, Status.RUNNING)]


def finished_runs(directory: Path) -> Sequence[RunDirectory]:
    """Returns the finished runs in a directory, by name."""
    found = [RunDirectory(path) for path in sorted(directory.glob("P*")) if path.is_dir()]
    return [run for run in found if run.finished]
