"""The demonstration from end to end on a tiny model: train, reload in a new process, report."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from parcontrol.analysis.figures import COLOURS
from parcontrol.config import RunConfig, load_config
from parcontrol.demo import run as demo
from parcontrol.demo.report import facts, loss_figure, result_table
from parcontrol.runs import RunDirectory


@pytest.fixture(scope="module")
def config(tiny_model_dir: Path, tiny_corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The demonstration's configuration over tiny parts: 6 steps of 128 tokens."""
    directory = tmp_path_factory.mktemp("demo")
    return load_config(
        demo.CONFIG,
        {
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
            "output_dir": str(directory / "run"),
        },
    )


@pytest.fixture(scope="module")
def finished(config: RunConfig) -> RunDirectory:
    demo.demonstrate(config)
    return RunDirectory(config.run_directory)


def printed(*parts: Any) -> str:
    console = Console(width=160, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.file.getvalue()


def test_it_trains_reloads_and_reports(
    config: RunConfig, finished: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second call: nothing is trained again, everything is shown again."""
    before = {path: path.stat().st_mtime_ns for path in finished.checkpoints_dir.rglob("*")}
    picture = tmp_path / "copy.png"
    demo.demonstrate(config, picture)
    shown = capsys.readouterr().out
    assert "already finished" in shown
    assert "Qwen2ParScaleForCausalLM continues" in shown
    assert "def read_lines" in shown
    assert f"{finished.read_result()['final_validation_loss']:.4f}" in shown
    assert {path: path.stat().st_mtime_ns for path in finished.checkpoints_dir.rglob("*")} == before
    for png in (picture, finished.path / "loss_curve.png"):
        assert png.read_bytes().startswith(b"\x89PNG")


def test_the_table_says_what_the_result_says(config: RunConfig, finished: RunDirectory) -> None:
    result = finished.read_result()
    text = printed(result_table(config), facts(config, Path("curve.png")))
    for name, key in (("frozen backbone", "backbone"), ("step 0", "initial"), ("final", "final")):
        loss, perplexity = (result[f"{key}_validation_{kind}"] for kind in ("loss", "perplexity"))
        assert re.search(rf"{name}\W+{loss:.4f}\W+{perplexity:.2f}\b", text)
    assert "768 in 6 steps" in text
    assert f'from_pretrained("{finished.final_dir}", trust_remote_code=True)' in text.replace("\n", "")
    log = Path(config.logging.directory) / "run.jsonl"
    assert str(log) in text
    assert log.exists()


def test_the_picture_shows_the_records(finished: RunDirectory) -> None:
    (axes,) = loss_figure(finished).axes
    lines = {str(line.get_color()): line.get_xydata().tolist() for line in axes.get_lines()}
    records, result = finished.read_metrics(), finished.read_result()
    validation = [[r["tokens"] / 1000, r["validation_loss"]] for r in records if "validation_loss" in r]
    assert [point[0] for point in validation] == [0, 0.256, 0.512, 0.768]
    assert lines[COLOURS[0]] == validation
    assert lines["0.8"] == [[r["tokens"] / 1000, r["loss"]] for r in records if "loss" in r]
    assert {point[1] for point in lines[COLOURS[3]]} == {result["backbone_validation_loss"]}


def test_a_model_that_cannot_be_loaded_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RuntimeError, match="could not be used"):
        demo.generate_in_new_process(tmp_path, "x")


def test_errors_are_one_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def no_network() -> Path:
        raise ValueError("could not download it")

    monkeypatch.setattr(demo, "get_model", no_network)
    assert demo.main([]) == 1
    assert capsys.readouterr().err == "error: could not download it\n"
