"""`parcontrol report`, and the documented names, as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from parcontrol.analysis.results import load_experiment_results
from parcontrol.cli.report import main
from tests.analysis.sweeps import write_run, write_sweep


def test_it_writes_a_report_and_prints_what_it_says(tmp_path, capsys):
    write_sweep(tmp_path / "multi_P_experiment", streams=(1, 2))
    assert main([str(tmp_path / "multi_P_experiment"), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert lines[0].startswith("failed: Enough seeds: one seed")
    assert any(line.startswith("P = 2 ends 0.0150 nats per token below P = 1 (95 % interval") for line in lines)
    page = tmp_path / "out" / "multi_P_experiment.html"
    assert lines[-1] == f"{page} and {len(list(page.parent.iterdir())) - 1} files beside it"
    assert page.read_text().startswith("<!doctype html>")


def test_several_sweeps_and_a_name(tmp_path, capsys):
    for name in ("a", "b"):
        write_sweep(tmp_path / name, streams=(1,))
    arguments = [str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert (tmp_path / "out" / "a_and_b.html").exists()
    assert main([*arguments, "--name", "Both"]) == 0
    assert json.loads((tmp_path / "out" / "Both.json").read_text())["name"] == "Both"
    assert "failed: Enough seeds (b): one seed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "error: nowhere is no directory: name a sweep or a run directory"),
        (["."], "error: . holds no run: a sweep holds run directories such as P1, P2 or P4_seed1, and a run"),
        (["sweep", "sweep"], "is given twice: name each sweep once"),
        (["sweep", "--name", "/"], "error: the name '/' is not allowed: it needs a letter or a digit (a-z, 0-9)"),
    ],
)
def test_it_refuses_in_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    if "sweep" in arguments:
        write_run(tmp_path / "sweep" / "P1", 1)
    assert main([*arguments, "--output", "out"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_no_directory_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: the following arguments are required: DIR\n"


def run_python(code: str, cwd: Path, *path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(p) for p in path]!r}\n{code}"],
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_documented_lines_work_and_need_no_torch(tmp_path, repository):
    write_sweep(tmp_path / "outputs" / "multi_P_experiment", streams=(1, 2))
    code = """
from utils.analysis_utils import load_experiment_results, generate_report
results = load_experiment_results('./outputs/multi_P_experiment')
generate_report(results, './outputs/analysis', 'ParScale_Replication')
print([name for name in ('torch', 'transformers', 'datasets', 'pandas') if name in sys.modules])"""
    assert run_python(code, tmp_path, repository) == "[]\n"
    assert (tmp_path / "outputs" / "analysis" / "ParScale_Replication.html").exists()


def test_help_loads_nothing_heavy(tmp_path):
    code = """
import contextlib, parcontrol.cli.report as report
with contextlib.suppress(SystemExit):
    report.main(['--help'])
print([name for name in ('numpy', 'scipy', 'matplotlib', 'jinja2', 'torch') if name in sys.modules])"""
    assert run_python(code, tmp_path).endswith("\n[]\n")


def test_a_real_run_is_understood(tmp_path, tiny_model_dir, tiny_corpus_dir):
    """What training writes and what the analysis reads are the same contract."""
    from parcontrol.config import load_config
    from parcontrol.training.run import run

    settings = {
        "model.name": str(tiny_model_dir),
        "data.repo": str(tiny_corpus_dir),
        "data.num_shards": 2,
        "data.num_workers": 0,
        "data.sequence_length": 32,
        "data.validation_tokens": 512,
        "parscale.prefix_length": 4,
        "training.device": "cpu",
        "training.mixed_precision": "fp32",
        "training.tokens_per_run": 512,
        "training.warmup_tokens": 64,
        "training.gradient_accumulation_steps": 2,
        "training.eval_interval_tokens": 256,
        "training.log_interval_steps": 2,
        "logging.directory": str(tmp_path / "logs"),
    }
    outcomes = {
        P: run(load_config(None, settings | {"parscale.P": P, "output_dir": str(tmp_path / "sweep" / f"P{P}")}))
        for P in (1, 2)
    }
    (sweep,) = load_experiment_results(tmp_path / "sweep").sweeps
    assert sweep.broken == ()
    for found in sweep.runs:
        assert found.finished
        for key, value in found.outcome.model_dump().items():
            assert value == outcomes[found.P][key]
    assert main([str(tmp_path / "sweep"), "--output", str(tmp_path / "out")]) == 0
    data = json.loads((tmp_path / "out" / "sweep.json").read_text())["sweeps"][0]
    status = {check["key"]: check["status"] for check in data["checks"]}
    equal = ("tokens", "data", "validation", "configuration", "backbone", "machine")
    for key in ("all_finished", "complete", "sums_agree", *(f"equal_{name}" for name in equal)):
        assert status[key] == "passed", key
    assert [price["unpredicted"] for price in data["prices"]] == [None, None]
    assert len(data["streams"]) == 2
