"""`parcontrol leaderboard table`: the printed table fits, says what is partial, and is written."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from parcontrol.cli.leaderboard.table import main
from parcontrol.leaderboard.registry import registry
from parcontrol.leaderboard.store import LocalStore
from tests.leaderboard.result_documents import OTHER_SHA, ours, put


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARCONTROL_LEADERBOARD", str(tmp_path))
    results = {
        spec.name: {f"{column.metric},{column.filter}": 50 / column.scale for column in spec.columns}
        for spec in registry()
    }
    whole = ours(results, P=4)
    whole["versions"] = {spec.name: spec.version for spec in registry()}
    fever = {"acc,none": 0.5, "acc_stderr,none": 0.0123}
    part = ours({"fever": fever}, sha=OTHER_SHA, limit=5)
    put(tmp_path / "results", {"org/model/results_1.json": whole, "org/model/results_2.json": part})
    put(tmp_path / "results", {"org/bad/results_1.json": b"<html>"})
    return tmp_path


@pytest.mark.parametrize("width", [80, 160])
def test_what_is_printed(
    board: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["--tasks", "fever", "wikitext"]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= width for line in shown.splitlines())
    rows = [line.split() for line in shown.splitlines() if "org/model" in line]
    total = sum(len(spec.columns) for spec in registry())
    assert [cell for cell in rows[0] if cell != "│"] == [
        *("org/model", "(0123456)", "4", "float16", "50.0", "50.0", f"{total}/{total}")
    ]
    assert [cell for cell in rows[1] if cell != "│"] == [
        *("org/model", "(fffffff)", "float16", "1/6", "0/9", f"1/{total}*")
    ]
    assert [cell for cell in rows[3] if cell != "│"] == ["org/model", "(fffffff)", "50.0", "±1.2", "–"]
    assert "n/m: the average lacks tasks" in shown
    assert "*: some values are from a part of the rows" in shown
    assert "files set aside: 1;" in shown


def test_it_is_written_unless_it_is_a_dry_run(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = LocalStore(board / "leaderboard")
    assert main(["--dry-run"]) == 0
    assert not store.snapshot().files
    assert main(["--format", "json"]) == 0
    printed = capsys.readouterr().out.splitlines()[-1]
    assert set(store.snapshot().files) == {"table.parquet", "table.json", "scores.parquet"}
    assert orjson.loads(printed) == orjson.loads(store.read("table.json"))


def test_an_empty_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PARCONTROL_LEADERBOARD", str(tmp_path))
    assert main([]) == 0
    assert capsys.readouterr().out == "no results\n"


def test_an_unknown_task_is_refused_before_anything_is_written(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tasks", "fevr"]) == 2
    assert "the nearest is 'fever'" in capsys.readouterr().err
    assert not LocalStore(board / "leaderboard").snapshot().files
