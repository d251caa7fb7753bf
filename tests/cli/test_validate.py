"""`parcontrol validate`, as a user meets it: on runs that were trained."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from parcontrol.analysis.results import load_experiment_results
from parcontrol.cli.validate import main
from parcontrol.config import load_config
from parcontrol.runs import RunDirectory
from parcontrol.training.run import run
from tests.training.conftest import TINY_RUN


@pytest.fixture
def sweep(tmp_path: Path, tiny_model_dir: Path, tiny_corpus_dir: Path) -> Path:
    """P = 1 and 2, finished."""
    for P in (1, 2):
        values = {
            "parscale.P": P,
            "training.tokens_per_run": 256,
            "training.warmup_tokens": 128,
            "model.name": str(tiny_model_dir),
            "data.repo": str(tiny_corpus_dir),
            "logging.directory": str(tmp_path / "logs"),
            "output_dir": str(tmp_path / "sweep[lr=3e-4]" / f"P{P}"),
        }
        run(load_config(None, TINY_RUN | values))
    return tmp_path / "sweep[lr=3e-4]"


def test_every_finished_run_is_measured_and_the_report_takes_it(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweep / "P8").mkdir()
    planned = RunDirectory(sweep / "P2").read_config().model_copy(update={"output_dir": str(sweep / "P4")})
    RunDirectory.open_for_training(planned).close()
    capsys.readouterr()
    assert main([str(sweep), "--tokens", "1024", "--device", "cpu"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{sweep}/P8: left out, has not started: there is no configuration"
    assert out[1] == f"{sweep}/P4: left out, unfinished, 0 of 2 steps"
    (found,) = load_experiment_results(sweep).sweeps
    for number, (line, measured) in enumerate(zip(out[2:], found.finished, strict=True), 1):
        loss, backbone = measured.outcome.final_validation_loss, measured.outcome.backbone_validation_loss
        assert measured.outcome.validation_predicted_tokens == 1024 - 1024 // 32
        assert line.startswith(f"{measured.path} ({number} of 2): {loss:.4f} nats, backbone {backbone:.4f}, on 992 tok")
    assert main([str(sweep), "--tokens", "1024", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [f"{line} (measured before)" for line in out[2:]]


def test_a_full_disk_is_one_line_and_leaves_nothing(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("parcontrol.training.revalidate.write_documents", full)
    capsys.readouterr()
    assert main([str(sweep / "P1"), "--tokens", "1024", "--device", "cpu"]) == 1
    assert capsys.readouterr().err == f"error: {sweep}/P1: [Errno 28] No space left on device\n"
    assert not list((sweep / "P1").glob("*revalidation*"))


def test_what_cannot_be_measured_is_refused_in_one_line_before_anything_is(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none" / "P1").mkdir(parents=True)
    cases = {
        (str(sweep), "--tokens", "511"): "511 validation tokens are too few",
        (str(sweep), "--tokens", "1000000"): "has only",
        (str(sweep), "--tokens", "1024", "--device", "tpu"): "'tpu' is not allowed",
        (str(tmp_path / "nowhere"), "--tokens", "1024"): "is no directory",
        (str(tmp_path / "none"), "--tokens", "1024"): "there is no finished run in",
    }
    for arguments, reason in cases.items():
        capsys.readouterr()
        assert main(arguments) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert reason in said.err
        assert said.err.count("\n") == 1
    assert [RunDirectory(sweep / name).read_revalidation() for name in ("P1", "P2")] == [None, None]
