"""What is done, missing, failed and why, per model and task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from parcontrol.cli.leaderboard.completed import main
from parcontrol.leaderboard.completed import ModelProgress, progress
from parcontrol.leaderboard.queue import Queue
from parcontrol.leaderboard.registry import registry
from parcontrol.leaderboard.results import read_results
from parcontrol.leaderboard.store import LocalStore
from tests.leaderboard.result_documents import OTHER_SHA, SHA, ours, put

XSUM = {"rougeL,none": 0.2, "factkb,none": 0.3, "bertscore_precision,none": 0.4}
FEVER = {"acc,none": 0.5}


def request(**fields: Any) -> dict[str, Any]:
    given = {"model": "org/model", "revision": "main", "sha": SHA, "private": False, "precision": "float16"}
    return {
        **given,
        "weight_type": "Original",
        "status": "FINISHED",
        "submitted_time": "2026-01-01T00:00:00Z",
        **fields,
    }


def request_file(model: str = "org/model", **fields: Any) -> dict[str, Any]:
    return {f"{model}_eval_request_False_float16_Original.json": request(model=model, **fields)}


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARCONTROL_LEADERBOARD", str(tmp_path))
    for name in ("H4_TOKEN", "REPO_ID", "QUEUE_REPO", "RESULTS_REPO"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def look(board: Path) -> list[ModelProgress]:
    return progress(read_results(LocalStore(board / "results")), Queue(LocalStore(board / "requests")).requests())


def test_every_state_of_a_finished_request(board: Path) -> None:
    put(board / "requests", request_file(tasks=["fever", "xsum", "cnndm", "ifeval", "race"]))
    document = ours(
        {"fever": FEVER, "xsum": {"rougeL,none": 0.2}, "cnndm": XSUM},
        absent={"xsum": {"factkb": "FactKB is out of reach"}, "cnndm": {"factkb": "not any more"}},
        failed={"ifeval": "no NLTK data"},
    )
    put(board / "results", {"org/model/results_1.json": document})
    (model,) = look(board)

    assert (model.label, model.status) == ("org/model", "FINISHED")
    assert {name: task.state for name, task in model.tasks.items()} == {
        "fever": "done",
        "xsum": "partial",
        "cnndm": "done",
        "ifeval": "failed",
        "race": "missing",
    }
    assert model.tasks["xsum"].columns == ("XSum/ROUGE-L",)
    assert model.tasks["xsum"].reason == "factkb: FactKB is out of reach"
    assert model.tasks["ifeval"].reason == "no NLTK data"
    assert model.tasks["cnndm"].reason == ""


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("PENDING", "waiting"),
        ("RERUN", "waiting"),
        ("RUNNING", "running"),
        ("CANCELLED", "cancelled"),
        ("FINISHED", "missing"),
    ],
)
def test_tasks_without_a_result_stand_where_the_request_stands(board: Path, status: str, state: str) -> None:
    put(board / "requests", request_file(status=status))
    (model,) = look(board)
    assert set(model.tasks) == {spec.name for spec in registry()}
    assert {task.state for task in model.tasks.values()} == {state}


def test_a_failed_request_tells_why_its_tasks_have_no_result(board: Path) -> None:
    put(board / "requests", request_file(status="FAILED", reason="out of memory", tasks=["fever", "race"]))
    put(board / "results", {"org/model/results_1.json": ours({"fever": FEVER})})
    (model,) = look(board)
    assert model.reason == "out of memory"
    assert (model.tasks["fever"].state, model.tasks["race"].state) == ("done", "failed")
    assert model.tasks["race"].reason == "out of memory"


def test_a_newer_result_ends_an_old_failure(board: Path) -> None:
    put(board / "results", {"org/model/results_1.json": ours({}, failed={"fever": "no data"}, date=100)})
    put(board / "results", {"org/model/results_2.json": ours({"fever": FEVER}, date=200)})
    (model,) = look(board)
    assert (model.tasks["fever"].state, model.tasks["fever"].reason) == ("done", "")


def test_results_that_nobody_asked_for_show_what_they_have(board: Path) -> None:
    put(board / "results", {"org/model/results_1.json": ours({"fever": FEVER}, limit=5)})
    (model,) = look(board)
    assert (model.request, list(model.tasks), model.tasks["fever"].limited) == (None, ["fever"], True)


def test_revisions_stay_apart_and_are_told_by_their_sha(board: Path) -> None:
    put(board / "requests", request_file(sha=OTHER_SHA, status="PENDING", tasks=["fever"]))
    put(board / "results", {"org/model/results_1.json": ours({"fever": FEVER})})
    models = {model.label: model.tasks["fever"].state for model in look(board)}
    assert models == {"org/model (0123456)": "done", "org/model (fffffff)": "waiting"}


def test_an_old_request_without_sha_is_that_of_the_results_there(board: Path) -> None:
    put(board / "requests", request_file(sha=None, tasks=["fever", "race"]))
    put(board / "results", {"org/model/results_1.json": ours({"fever": FEVER})})
    (model,) = look(board)
    assert {name: task.state for name, task in model.tasks.items()} == {"fever": "done", "race": "missing"}


class TestCommand:
    @pytest.fixture(autouse=True)
    def _files(self, board: Path) -> None:
        put(board / "requests", request_file(status="FAILED", reason="out of memory", tasks=["fever", "race"]))
        put(board / "requests", request_file("org/new", status="PENDING"))
        put(board / "requests", {"org/odd_eval_request_False_float16_Original.json": b"<b>"})
        put(board / "results", {"org/model/results_1.json": ours({"fever": FEVER}), "org/x/results_1.json": b"<html>"})

    @pytest.mark.parametrize("width", [80, 160])
    def test_the_table_says_all(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
    ) -> None:
        monkeypatch.setenv("COLUMNS", str(width))
        assert main([]) == 0
        shown = capsys.readouterr().out
        for text in (
            "org/model",
            "FAILED",
            "1/2",
            "failed: race",
            "request FAILED: out of memory",
            "waiting: all",
            "set aside in results: org/x/results_1.json: is HTML or XML, not JSON",
            "set aside in requests: org/odd_eval_request_False_float16_Original.json: no valid JSON",
        ):
            assert text in shown
        assert all(len(line) <= width for line in shown.splitlines() if not line.startswith("set aside"))

    def test_json_says_the_same(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--format", "json"]) == 0
        document = orjson.loads(capsys.readouterr().out)
        model, new = document["models"]
        assert (model["identity"]["model"], model["identity"]["sha"]) == ("org/model", SHA)
        assert model["tasks"]["race"] == {"state": "failed", "reason": "out of memory", "columns": [], "limited": False}
        assert model["tasks"]["fever"]["columns"] == ["FEVER/Acc"]
        assert new["status"] == "PENDING"
        assert {file["repository"] for file in document["set_aside"]} == {"requests", "results"}

    def test_tasks_can_be_chosen(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--format", "json", "--tasks", "fever"]) == 0
        document = orjson.loads(capsys.readouterr().out)
        assert [list(model["tasks"]) for model in document["models"]] == [["fever"], ["fever"]]
        assert main(["--tasks", "fevr"]) == 2
        assert capsys.readouterr().err == (
            "error: unknown task 'fevr'; the nearest is 'fever', and `parcontrol leaderboard tasks` lists all\n"
        )


def test_an_empty_board(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == "no requests and no results\n"
