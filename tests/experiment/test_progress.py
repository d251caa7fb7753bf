"""One line per run."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from parcontrol.experiment.plan import PlannedRun, make_plan
from parcontrol.experiment.progress import Progress, SweepDisplay, cells, plain_line, read_progress
from parcontrol.experiment.sweep import RunStatus
from parcontrol.runs import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> PlannedRun:
    (run,) = make_plan(
        None, {"training.tokens_per_run": 163_840, "training.warmup_tokens": 0}, [2], output_dir=tmp_path
    )
    return run


def train(run: PlannedRun) -> None:
    with RunDirectory.open_for_training(run.config) as directory:
        directory.append_metrics({"step": 0, "tokens": 0, "backbone_validation_loss": 2.5})
        directory.append_metrics({"step": 0, "tokens": 0, "validation_loss": 2.75})
        directory.append_metrics({"step": 5, "tokens": 81_920, "loss": 2.25, "tokens_per_second": 1024.0})
        directory.append_metrics({"step": 6, "tokens": 98_304, "validation_loss": 2.625})


def test_a_run_s_metrics_become_its_line(run: PlannedRun) -> None:
    status = RunStatus(run)
    assert read_progress(run) == Progress()
    assert plain_line(cells(status, Progress())) == "P2: waiting · 0/163.84k tokens"
    status.state = "running"
    assert cells(status, Progress())[1] == "starting"
    train(run)
    progress = read_progress(run)
    assert progress == Progress(81_920, 2.25, 2.625, 1024.0)
    assert plain_line(cells(status, progress)) == (
        "P2: running · 81.92k/163.84k tokens · loss 2.2500 · validation 2.6250 · 1.02k tokens/s · 0:01:20 left"
    )
    status.state = "finished"
    assert "left" not in plain_line(cells(status, progress))


def test_damaged_metrics_do_not_stop_the_display(run: PlannedRun) -> None:
    train(run)
    (run.config.run_directory / "metrics.jsonl").write_text("{damaged\n")
    assert read_progress(run) == Progress()


def test_without_a_terminal_only_what_changed_is_printed(run: PlannedRun, capsys: pytest.CaptureFixture[str]) -> None:
    statuses = [RunStatus(run)]
    with SweepDisplay(Console(force_terminal=False)) as show:
        show(statuses)
        show(statuses)
        statuses[0].state = "running"
        show(statuses)
    assert [line.split(" · ")[0] for line in capsys.readouterr().out.splitlines()] == ["P2: waiting", "P2: starting"]


def test_on_a_terminal_there_is_one_live_line_for_each_run(run: PlannedRun) -> None:
    train(run)
    output = io.StringIO()
    with SweepDisplay(Console(file=output, force_terminal=True, width=100, color_system=None)) as show:
        show([RunStatus(run, "running")])
    lines = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", output.getvalue()).splitlines()
    row = next(line for line in lines if "P2" in line)
    assert row.split() == ["P2", "running", "81.92k/163.84k", "2.2500", "2.6250", "1.02k", "0:01:20"]
    header = next(line for line in lines if "tokens/s" in line)
    assert header.split() == ["run", "state", "tokens", "loss", "validation", "tokens/s", "time", "left"]
