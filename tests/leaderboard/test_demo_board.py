"""The demo's models on a leaderboard: each once, under a name of its own, and only where nobody's requests wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from parcontrol.demo.board import USER, submit_demo, tasks, waiting
from parcontrol.leaderboard.queue import Queue
from parcontrol.leaderboard.records import Status
from parcontrol.leaderboard.registry import select
from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store import open_stores
from parcontrol.leaderboard.submission import Submission, submit
from parcontrol.leaderboard.table import averaged_columns
from tests.leaderboard.models import write_model


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(root=tmp_path / "board")


def test_every_model_is_submitted_once(tmp_path: Path, settings: Settings) -> None:
    model, store = write_model(tmp_path / "backbone"), open_stores(settings).requests

    first = submit_demo(model, tmp_path / "runs", store, settings)
    again = submit_demo(model, tmp_path / "runs", store, settings)

    (entry,) = first
    assert (entry.request.model, entry.request.precision) == ("local/backbone", "bfloat16")
    assert again == []
    assert {entry.request.submitted_by for entry in waiting(store)} == {USER}


def test_its_tasks_give_both_averages_and_no_more() -> None:
    averaged = {label for labels in averaged_columns().values() for label in labels}
    specs = select(tasks())

    assert averaged <= {column.label for spec in specs for column in spec.columns}
    assert all(spec.demo and any(column.label in averaged for column in spec.columns) for spec in specs)


def test_somebody_elses_requests_are_left_alone(tmp_path: Path, settings: Settings) -> None:
    model, store = write_model(tmp_path / "backbone"), open_stores(settings).requests
    submit(Submission(str(model), "chat", local_name="mine"), store, settings, user="ada")

    with pytest.raises(ValueError, match=r"1 requests wait .* local/mine .* PARCONTROL_LEADERBOARD"):
        submit_demo(model, tmp_path / "runs", store, settings)

    assert [entry.request.status for entry in Queue(store).requests()] == [Status.PENDING]


def test_a_store_on_the_hub_is_none_for_a_demonstration(tmp_path: Path, settings: Settings) -> None:
    on_hub = settings.model_copy(update={"queue_repo": "a/b", "results_repo": "a/c", "repo_id": "a/d"})

    with pytest.raises(ValueError, match="local store"):
        submit_demo(tmp_path, tmp_path, open_stores(settings).requests, on_hub)
