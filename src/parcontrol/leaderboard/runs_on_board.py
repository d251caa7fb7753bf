"""A finished training run on the board: what it was trained with becomes columns of the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parcontrol.leaderboard.model_source import LOCAL_ORGANISATION
from parcontrol.leaderboard.queue import Entry
from parcontrol.leaderboard.records import ModelType, check_model_name
from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store import Store
from parcontrol.leaderboard.submission import Submission, submit
from parcontrol.runs import RunDirectory


def submit_run(run: RunDirectory, store: Store, settings: Settings, name: str | None = None) -> Entry:
    """Submits the final model of a training run.

    The request says P, training tokens, seed and base model beside what every request says, so that the table can be
    asked for what depends on them. It goes through the same checks as any other submission.

    Args:
        run: A finished run.
        store: The requests repository, a local one: only that can name a directory.
        settings: Settings of the leaderboard.
        name: Name on the board, `local/<name>`; None takes that of the run directory.

    Raises:
        ValueError: The run is not finished, its model is incomplete, or the submission is refused.
        StoreError: The store cannot be read or written.
    """
    submission, facts = submission_of(run, name)
    return submit(submission, store, settings, facts=facts)


def submission_of(run: RunDirectory, name: str | None = None) -> tuple[Submission, dict[str, Any]]:
    """Returns what is submitted for a run, and what its request says of the training; see `submit_run`."""
    if not run.path.is_dir():
        raise ValueError(f"{run.path} is no directory: name the directory of a finished run")
    if not run.finished:
        raise ValueError(f"{run.path} is no finished run, it has no result: train it to its end first")
    if not run.final_dir.is_dir():
        raise ValueError(f"{run.path} has lost its model: {run.final_dir} does not exist")
    facts = _facts(run)
    submission = Submission(
        model_name=str(run.final_dir.resolve()),
        model_type=ModelType.FINE_TUNED,
        base_model=_base_model(run),
        local_name=name or run.path.resolve().name,
    )
    return submission, facts


def _facts(run: RunDirectory) -> dict[str, Any]:
    config, result = run.read_config(), run.read_result()
    facts = {"P": result.get("P"), "tokens": result.get("tokens"), "seed": config.training.seed}
    wrong = {name: value for name, value in facts.items() if type(value) is not int or value < 0}
    if wrong:
        listed = ", ".join(f"{name} = {value!r}" for name, value in wrong.items())
        raise ValueError(f"the result of {run.path} is damaged: {listed}")
    return facts


def _base_model(run: RunDirectory) -> str:
    """The backbone's name on the board: that on the Hub, or of a directory what it would be called there."""
    name = run.read_config().model.name
    directory = Path(name).expanduser()
    return check_model_name(f"{LOCAL_ORGANISATION}/{directory.resolve().name}" if directory.is_dir() else name)
