"""A finished training run goes on the board with what it was trained with, and the table can be asked about it."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from parcontrol.cli.leaderboard.submit_run import main
from parcontrol.config import load_config
from parcontrol.leaderboard.queue import Queue
from parcontrol.leaderboard.records import Request
from parcontrol.leaderboard.store import LocalStore, Stores
from parcontrol.leaderboard.table import read_table
from parcontrol.runs import RunDirectory
from tests.leaderboard.result_documents import ours, put

MakeRun = Callable[..., RunDirectory]


@pytest.fixture(scope="module")
def trained_models(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """What training leaves in checkpoints/final, for P = 1 and P = 2."""
    from transformers import AutoModelForCausalLM

    from parcontrol.parscale.convert import convert_to_parscale_model, create_parscale_config

    found = {}
    for P in (1, 2):
        backbone = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        model = convert_to_parscale_model(backbone, create_parscale_config(P=P, prefix_length=4))
        found[P] = tmp_path_factory.mktemp(f"final_P{P}")
        model.save_pretrained(found[P])
        (found[P] / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# A trained model\n")
    return found


@pytest.fixture
def make_run(tmp_path: Path, trained_models: dict[int, Path]) -> MakeRun:
    def make(name: str, P: int = 2, finished: bool = True, **overrides: object) -> RunDirectory:
        given = {
            "parscale.P": P,
            "model.name": "Qwen/Qwen2.5-0.5B",
            "training.seed": 7,
            "output_dir": str(tmp_path / name),
            **overrides,
        }
        with RunDirectory.open_for_training(load_config(None, given)) as run:
            if finished:
                shutil.copytree(trained_models[P], run.final_dir)
                run.write_result({"P": P, "tokens": 16_000_000, "final_validation_loss": 2.5})
        return run

    return make


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stores:
    root = tmp_path / "board"
    monkeypatch.setenv("PARCONTROL_LEADERBOARD", str(root))
    for name in ("H4_TOKEN", "REPO_ID", "QUEUE_REPO", "RESULTS_REPO"):
        monkeypatch.delenv(name, raising=False)
    return Stores(*(LocalStore(root / name) for name in ("requests", "results", "leaderboard")))


def requests(stores: Stores) -> list[Request]:
    return [entry.request for entry in Queue(stores.requests).requests()]


def test_the_request_says_what_the_run_was_trained_with(
    stores: Stores, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("P2_experiment")
    assert main([str(run.path)]) == 0

    (request,) = requests(stores)
    assert (request.model, request.status, request.P) == ("local/P2_experiment", "PENDING", 2)
    assert request.model_path == str(run.final_dir)
    assert request.sha
    assert request.sha.startswith("local-")
    assert (request.base_model, request.license) == ("Qwen/Qwen2.5-0.5B", "apache-2.0")
    assert request.model_extra == {"tokens": 16_000_000, "seed": 7}
    with sqlite3.connect(stores.requests.directory / ".store/index.sqlite") as index:
        commits = index.execute("SELECT message FROM commits WHERE message != 'created'").fetchall()
    assert len(commits) == 1, "a worker never finds the request without them"
    assert capsys.readouterr().out.startswith("local/P2_experiment with P = 2 in float32 is PENDING: local/P2_exp")


def test_one_stream_is_P_1_too(stores: Stores, make_run: MakeRun) -> None:
    assert main([str(make_run("P1_experiment", P=1).path), "--name", "baseline"]) == 0
    (request,) = requests(stores)
    assert (request.model, request.P) == ("local/baseline", 1)


def test_do_more_streams_hallucinate_less_is_a_query(stores: Stores, make_run: MakeRun) -> None:
    for P in (1, 2):
        assert main([str(make_run(f"P{P}_experiment", P=P).path)]) == 0
    for request in requests(stores):
        assert request.P
        document = ours(
            {"truefalse": {"acc,none": 0.4 + 0.1 * request.P}},
            model=request.model,
            sha=request.sha,
            precision="float32",
        )
        put(stores.results.directory, {f"{request.model}/results_1.json": document})

    table, *_ = read_table(stores)
    by_streams = table.groupby("P")[["TrueFalse/Acc"]].mean()
    assert by_streams["TrueFalse/Acc"].to_dict() == pytest.approx({1: 50.0, 2: 60.0})
    assert table["tokens"].tolist() == [16_000_000] * 2
    assert table["seed"].tolist() == [7, 7]


class TestRefused:
    def refused(self, stores: Stores, run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> str:
        assert main([str(run.path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert not stores.requests.snapshot().files
        return error

    def test_a_run_that_is_not_finished(
        self, stores: Stores, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "is no finished run" in self.refused(stores, make_run("P2", finished=False), capsys)

    def test_no_run(self, stores: Stores, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "is no directory" in self.refused(stores, RunDirectory(tmp_path / "nothing"), capsys)

    def test_a_run_without_its_model(
        self, stores: Stores, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = make_run("P2")
        shutil.rmtree(run.final_dir)
        assert "has lost its model" in self.refused(stores, run, capsys)

    def test_a_model_without_weights(
        self, stores: Stores, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = make_run("P2")
        for weights in run.final_dir.glob("*.safetensors"):
            weights.unlink()
        assert "no weights in safetensors" in self.refused(stores, run, capsys)

    def test_a_damaged_result(self, stores: Stores, make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
        run = make_run("P2")
        run.write_result({"P": "two", "tokens": 5})
        assert "is damaged: P = 'two'" in self.refused(stores, run, capsys)

    def test_the_same_run_twice(self, stores: Stores, make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
        run = make_run("P2")
        assert main([str(run.path)]) == 0
        assert main([str(run.path)]) == 2
        assert "is already PENDING" in capsys.readouterr().err
        assert len(requests(stores)) == 1

    def test_a_store_on_the_hub(
        self, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = make_run("P2")
        monkeypatch.chdir(run.path.parent)
        from parcontrol.leaderboard.runs_on_board import submit_run
        from parcontrol.leaderboard.settings import Settings

        settings = Settings(root=run.path, repo_id="o/a", queue_repo="o/b", results_repo="o/c")
        with pytest.raises(ValueError, match="a store on the Hub takes models that are on the Hub"):
            submit_run(RunDirectory("P2"), LocalStore(run.path.parent / "queue"), settings)
