"""The demonstration from end to end on a tiny model: a sweep, its report, and a reload in a new process."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from parcontrol.analysis.findings import analyse
from parcontrol.analysis.results import load_experiment_results
from parcontrol.cli import demo as command
from parcontrol.config import load_config
from parcontrol.demo import run as demo
from parcontrol.demo.report import facts, result_table
from parcontrol.experiment.plan import PlannedRun, make_plan


@pytest.fixture(scope="module")
def runs(tiny_model_dir: Path, tiny_corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[PlannedRun]:
    """The demonstration's sweep over tiny parts: P = 1 and 2, 6 steps of 128 tokens."""
    directory = tmp_path_factory.mktemp("demo")
    overrides = {
        "model.name": str(tiny_model_dir),
        "parscale.prefix_length": 4,
        "training.tokens_per_run": 768,
        "training.warmup_tokens": 128,
        "training.eval_interval_tokens": 256,
        "training.log_interval_steps": 2,
        "training.mixed_precision": "fp32",
        "training.device": "cpu",
        "data.repo": str(tiny_corpus_dir),
        "data.num_shards": 2,
        "data.num_workers": 0,
        "data.sequence_length": 32,
        "data.validation_tokens": 256,
        "logging.directory": str(directory / "logs"),
    }
    return make_plan(demo.CONFIG, overrides, (1, 2), output_dir=directory / "sweep")


@pytest.fixture(scope="module")
def finished(runs: list[PlannedRun]) -> Sequence[PlannedRun]:
    assert demo.demonstrate(runs) == 0
    return runs


def printed(*parts: Any) -> str:
    console = Console(width=160, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.file.getvalue()


def test_a_second_call_trains_nothing_and_shows_everything(
    finished: Sequence[PlannedRun], capsys: pytest.CaptureFixture[str]
) -> None:
    def stamps() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for run in finished for path in run.directory.path.rglob("*")}

    before = stamps()
    assert demo.demonstrate(finished) == 0
    assert stamps() == before
    shown = capsys.readouterr().out
    assert "already finished" in shown
    assert "seed noise is unmeasured" in " ".join(shown.split())
    assert "Qwen2ParScaleForCausalLM continues" in shown
    assert "def read_lines" in shown
    page = finished[0].config.run_directory.parent / "report" / "ParScale_demo.html"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert str(page) in shown


def test_the_table_says_what_the_results_say(finished: Sequence[PlannedRun]) -> None:
    (found,) = analyse(load_experiment_results(finished[0].config.run_directory.parent)).sweeps
    text = printed(result_table(found))
    where = facts(finished, Path("page.html"))
    results = [run.directory.read_result() for run in finished]
    for name, key in (("frozen backbone", "backbone"), ("step 0", "initial"), ("final", "final")):
        losses = [result[f"{key}_validation_loss"] for result in results]
        cells = [rf"{re.escape(f'{loss:.4f} ({math.exp(loss):.2f})')}" for loss in losses]
        assert re.search(rf"{name}\W+{cells[0]}\W+{cells[1]}", text)
    change = f"{results[1]['final_validation_loss'] - results[0]['final_validation_loss']:+.4f}".replace("-", "−")
    assert re.search(rf"minus P = 1\W+–\W+{re.escape(change)}", text)
    (difference,) = found.differences
    assert difference.verdict in text
    final = finished[-1].directory.final_dir
    assert f'from_pretrained("{final}", trust_remote_code=True)' in where["load it"]
    assert Path(where["log"]).exists()


def test_a_run_that_fails_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = make_plan(None, {"model.name": str(tmp_path / "nowhere")}, (1,), output_dir=tmp_path / "sweep")
    assert demo.demonstrate(broken) == 1
    assert "error: P1 failed" in capsys.readouterr().err


def test_a_model_that_cannot_be_loaded_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RuntimeError, match="could not be used"):
        demo.generate_in_new_process(tmp_path, "x")


def test_errors_are_one_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def no_network() -> Path:
        raise ValueError("could not download it")

    monkeypatch.setattr(demo, "get_model", no_network)
    assert command.main([]) == 1
    assert capsys.readouterr().err == "error: could not download it\n"


def test_the_configuration_is_a_sweep_within_minutes() -> None:
    """What the documentation says of it: the numbers behind `make demo`."""
    config = load_config(demo.CONFIG)
    assert (config.total_steps, config.tokens_per_step) == (40, 1024)
    assert demo.P_VALUES == (1, 2, 4)
