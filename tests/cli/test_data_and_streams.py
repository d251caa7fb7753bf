"""`parcontrol data verify` and `parcontrol streams`."""

import json
from pathlib import Path
from typing import Any

import pytest

import parcontrol.data
from parcontrol.cli import data, streams
from parcontrol.config import load_config
from parcontrol.data import VerifiedData
from parcontrol.runs import RunDirectory


def make_run(path: Path, P: int = 2) -> RunDirectory:
    config = load_config(None, {"output_dir": str(path), "parscale.P": P})
    RunDirectory.open_for_training(config).close()
    return RunDirectory(path)


def record(step: int, first: float) -> dict[str, Any]:
    return {
        "step": step,
        "mean_weight": [first, 1 - first],
        "argmax_share": [0.25, 0.75],
        "entropy": 0.6,
        "entropy_relative": 0.8125,
        "kl_uniform": 0.01,
        "gini": 0.05,
        "mean_cosine_similarity": 0.9876,
    }


def test_streams_shows_each_log_point(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = make_run(tmp_path / "run")
    for step, first in ((10, 0.5), (20, 0.625)):
        run.append_streams(record(step, first))
    assert streams.main([str(run.path)]) == 0
    out = capsys.readouterr().out
    for text in ("10", "0.500 0.500", "20", "0.625 0.375", "0.250 0.750", "0.8125", "0.9876"):
        assert text in out
    assert streams.main([str(run.path), "--last", "1", "--json"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [record(20, 0.625)]


def test_streams_refuses_what_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        tmp_path / "none": "config.yaml: cannot be read",
        make_run(tmp_path / "one", P=1).path: "one stream",
        make_run(tmp_path / "new").path: "no stream statistics yet",
    }
    for path, reason in cases.items():
        assert streams.main([str(path)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert reason in captured.err
        assert captured.err.count("\n") == 1
    with pytest.raises(SystemExit):
        streams.main([str(tmp_path), "--last", "0"])


def test_verify_says_what_was_confirmed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    seen = []

    def verify(run: RunDirectory) -> VerifiedData:
        seen.append(run.path)
        return VerifiedData(20, 2, {"tokens": 20480, "shards": [{"shard": "train/00.jsonl.zst"}], "sha256": "abc"})

    monkeypatch.setattr(parcontrol.data, "verify_run", verify)
    assert data.main(["verify", str(run.path)]) == 0
    assert seen == [run.path]
    assert capsys.readouterr().out == "confirmed: 20,480 tokens of 1 shards up to step 20, 2 records, sha256 abc\n"


def test_verify_fails_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(run: RunDirectory) -> VerifiedData:
        raise ValueError("step 10: the run recorded 1,\nthe replay finds 2")

    monkeypatch.setattr(parcontrol.data, "verify_run", verify)
    assert data.main(["verify", str(make_run(tmp_path / "run").path)]) == 1
    assert capsys.readouterr().err == "error: step 10: the run recorded 1, the replay finds 2\n"
    assert data.main(["verify", str(tmp_path / "none")]) == 2
    assert "cannot be read" in capsys.readouterr().err
