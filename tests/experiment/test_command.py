"""`run_multi_P_experiment.py`: what it takes and refuses, its plan, and real sweeps."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from parcontrol.analysis.findings import analyse
from parcontrol.analysis.results import load_experiment_results
from parcontrol.cli.experiment import main
from parcontrol.config import iter_fields
from parcontrol.experiment import run as sweep_run
from parcontrol.experiment.plan import PlannedRun
from parcontrol.experiment.sweep import RunStatus
from parcontrol.runs import RunDirectory
from tests.cli.test_train import OTHER
from tests.experiment.conftest import STEPS, TOKENS, StartSweep
from tests.experiment.test_launch import wait_for
from tests.training.same_run import CLOCKS


class Sweeps:
    """Stands in for the sweep: keeps the plans it is given, and leaves every run waiting."""

    def __init__(self) -> None:
        self.plans: list[list[PlannedRun]] = []
        self.options: dict[str, Any] = {}
        self.signals: list[int] = []

    def __call__(self, runs: list[PlannedRun], launcher: object, **options: Any) -> Sweeps:
        self.plans.append(runs)
        self.options = options
        return self

    def run(self) -> list[RunStatus]:
        return [RunStatus(run) for run in self.plans[-1]]


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sweeps:
    recorded = Sweeps()
    monkeypatch.setattr(sweep_run, "Sweep", recorded)
    monkeypatch.chdir(tmp_path)
    return recorded


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Returns the one line that a command is refused with."""
    try:
        code: object = main(argv)
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"error: .+\n", captured.err)
    return captured.err


# --- flags ---


def test_the_command_of_the_documentation(sweeps: Sweeps, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    assert main("--P-values 1 2 4 8 --base-config configs/base_config.yaml".split()) == 1
    (runs,) = sweeps.plans
    directories = [str(run.config.run_directory) for run in runs]
    assert directories == [f"outputs/multi_P_experiment/P{P}" for P in (1, 2, 4, 8)]
    assert {run.config.training.tokens_per_run for run in runs} == {16_000_000}
    assert sweeps.options["max_parallel"] is None
    assert sweeps.options["fail_fast"] is False


@pytest.mark.parametrize("key", [key for key in OTHER if key not in ("parscale.P", "output_dir")])
def test_every_key_is_a_flag_for_all_runs(sweeps: Sweeps, key: str) -> None:
    main(["--P-values", "2", "4", f"--{key}", OTHER[key]])
    section, name = key.split(".")
    for run in sweeps.plans[0]:
        value = getattr(getattr(run.config, section), name)
        assert value != next(field.default for field in iter_fields() if field.name == key)


def test_flags_together(sweeps: Sweeps) -> None:
    Path("base.yaml").write_text("training: {learning_rate: 0.1}\ndata: {num_shards: 2}\n")
    argv = "--P-values 2 1 --seeds 5 6 --base-config base.yaml --output-dir sweep --max-parallel 2 --fail-fast"
    main([*argv.split(), "--target-tokens", "12_000_000", "--data.num_shards", "3", "--wandb-offline"])
    (runs,) = sweeps.plans
    assert [run.name for run in runs] == ["P2_seed5", "P1_seed5", "P2_seed6", "P1_seed6"]
    config = runs[0].config
    assert (config.training.learning_rate, config.data.num_shards) == (0.1, 3)
    assert (config.training.tokens_per_run, config.logging.wandb) == (12_000_000, "offline")
    assert config.run_directory == Path("sweep/P2_seed5")
    assert (sweeps.options["max_parallel"], sweeps.options["fail_fast"]) == (2, True)


def test_one_seed_may_be_set_for_all(sweeps: Sweeps) -> None:
    main("--P-values 1 2 --seed 7".split())
    assert [(run.name, run.config.training.seed) for run in sweeps.plans[0]] == [("P1", 7), ("P2", 7)]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("", ["--P-values"]),
        ("--P-values", ["--P-values", "expected at least one argument"]),
        ("--P-values 0", ["'0' is not allowed"]),
        ("--P-values two", ["'two' is not allowed"]),
        ("--P-values 1 2 2", ["--P-values: 2 is given twice"]),
        ("--P-values 1 --seeds 3 3", ["--seeds: 3 is given twice"]),
        ("--P-values 1 --seeds -1", ["training.seed"]),
        ("--P-values 1 --seeds 1 --seed 2", ["leave --seed out"]),
        ("--P-values 1 --P 2", ["unknown flag '--P'"]),
        ("--P-values 1 --config x.yaml", ["unknown flag '--config'"]),
        ("--P-values 1 --base-config none.yaml", ["none.yaml", "No such file"]),
        ("--P-values 1 --max-parallel 0", ["'0' is not allowed"]),
        ("--P-values 1 --training.learningrate 1", ["'--training.learningrate'", "'--training.learning_rate'"]),
        ("--P-values 1 --launcher slurm", ["slurm"]),
        ("--P-values 1 --ray-resources GPU=1", ["needs --launcher ray"]),
        ("--P-values 1 --launcher ray --ray-resources GPU", ["'GPU' is not allowed"]),
        ("--P-values 1 --launcher ray --ray-resources GPU=-1", ["'GPU=-1' is not allowed"]),
        ("--P-values 1 --target-tokens 10", ["training.tokens_per_run 10"]),
        ("--P-values 1 --output-dir /proc/none", ["--output-dir '/proc/none'", "cannot be written"]),
        ("--P-values 1 --output-dir /proc/none --dry-run", ["--output-dir '/proc/none'", "cannot be written"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    sweeps: Sweeps, capsys: pytest.CaptureFixture[str], argv: str, words: list[str]
) -> None:
    message = refused(argv.split(), capsys)
    for word in words:
        assert word in message
    assert not sweeps.plans
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_several_processes_are_refused(
    sweeps: Sweeps, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dry: list[str]
) -> None:
    """Under torchrun each would start the same runs."""
    for name, value in {"TORCHELASTIC_RUN_ID": "here", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("parcontrol.training.processes.first_to_tell", lambda is_consequence: True)
    assert "torchrun has started 2" in refused(["--P-values", "1", *dry], capsys)
    assert not sweeps.plans
    monkeypatch.setenv("WORLD_SIZE", "1")
    main(["--P-values", "1"])
    assert len(sweeps.plans) == 1


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_file_for_a_folder_is_refused(
    sweeps: Sweeps, capsys: pytest.CaptureFixture[str], folder: str, dry: list[str]
) -> None:
    Path("file").write_text("")
    message = refused(["--P-values", "1", "--output-dir", folder, *dry], capsys)
    assert f"--output-dir '{folder}': cannot be written: " in message
    assert message.rstrip().endswith("Not a directory")


def test_ray_that_is_not_installed_is_named_with_the_remedy(
    sweeps: Sweeps, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    monkeypatch.setattr("importlib.import_module", _without_ray)
    assert "pip install parcontrol[ray]" in refused("--P-values 1 --launcher ray".split(), capsys)


def _without_ray(name: str) -> object:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_help_shows_flags_and_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for flag in ("--P-values", "--base-config", "--seeds", "--dry-run", "--fail-fast", "--launcher", "--no-resume"):
        assert flag in out
    assert all(f"--{field.name} " in out for field in iter_fields() if field.name not in ("parscale.P", "output_dir"))


# --- the plan ---


def test_the_plan_is_printed_and_nothing_written(
    sweeps: Sweeps, tiny_flags: Mapping[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [str(part) for pair in tiny_flags.items() for part in pair]
    assert main(["--P-values", "1", "2", "--seeds", "3", "--dry-run", *flags]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    for column in (
        "run",
        "P",
        "seed",
        "tokens",
        "steps",
        "per pass",
        "time (est.)",
        "memory (est.)",
        "state",
        "directory",
    ):
        assert column in header
    for row, P in zip(rows, (1, 2), strict=False):
        assert row.split()[:5] == [f"P{P}_seed3", str(P), "3", f"{TOKENS:,}", str(STEPS)]
        assert re.search(rf" {P} +>= \d+:\d\d:\d\d +~ \d+\.\d\d GiB +new ", row)  # all streams in one pass
        assert row.rstrip().endswith(f"outputs/multi_P_experiment/P{P}_seed3")
    assert "Estimates for cpu" in rows[2]
    assert "lower bound" in rows[2]
    assert not sweeps.plans
    assert list(Path().iterdir()) == []


def test_brackets_in_a_path_are_shown(sweeps: Sweeps, capsys: pytest.CaptureFixture[str]) -> None:
    argv = "--P-values 1 --dry-run --model.name ./none --training.device cpu --output-dir [red]x[/red]"
    assert main(argv.split()) == 0
    assert "[red]x[/red]/P1" in capsys.readouterr().out


def test_the_plan_stands_without_estimates_where_the_model_is_unknown(
    sweeps: Sweeps, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = "--P-values 1 2 --dry-run --model.name ./none --training.device cpu".split()
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert out.count("unknown") == 7
    assert "the configuration of './none' cannot be had" in out


# --- real sweeps ---


@pytest.fixture(scope="module")
def finished(
    start_sweep: StartSweep, tiny_flags: Mapping[str, object], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A finished sweep over P = 1 and 2: its folder and its output."""
    output_dir = tmp_path_factory.mktemp("finished")
    process = start_sweep("--P-values", 1, 2, flags={**tiny_flags, "--output-dir": output_dir})
    out, err = process.communicate()
    assert process.returncode == 0, err
    return output_dir, out


def test_a_sweep_trains_every_P_on_the_same_tokens_and_then_skips_them(
    finished: tuple[Path, str],
    start_sweep: StartSweep,
    tiny_flags: Mapping[str, object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output_dir, out = finished
    results = [RunDirectory(output_dir / name).read_result() for name in ("P1", "P2")]
    assert [result["P"] for result in results] == [1, 2]
    assert results[0]["data_sha256"] == results[1]["data_sha256"]
    assert results[0]["tokens"] == results[1]["tokens"] == TOKENS
    assert results[0]["final_validation_loss"] != results[1]["final_validation_loss"]
    assert f"2 runs finished on the same {TOKENS:,} tokens, sha256 {results[0]['data_sha256']}" in out
    assert re.search(r"^P2: running · [\d.]+k?/7.68k tokens · loss \d", out, re.MULTILINE)

    flags = [str(part) for pair in tiny_flags.items() for part in pair]
    sweep = ["--P-values", "1", "2", "--output-dir", str(output_dir), *flags]
    before = _snapshot(output_dir)
    assert main(sweep) == 0
    capsys.readouterr()
    # In a process of its own: the estimate counts the libraries that its process has loaded.
    printed, _ = start_sweep(
        "--P-values", 1, 2, "--output-dir", output_dir, "--dry-run", flags=tiny_flags
    ).communicate()
    assert printed.count(" finished ") >= 2
    assert _snapshot(output_dir) == before

    # The estimate of memory, against what the runs took: coarse, for libraries are most of it.
    estimates = [float(number) * 2**30 for number in re.findall(r"~ (\d+\.\d+) GiB", printed)]
    assert len(estimates) == 2
    for expected, result in zip(estimates, results, strict=True):
        assert 1 / 2 < expected / result["peak_memory_bytes"] < 2

    assert main([*sweep, "--no-resume"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main([*sweep, "--training.weight_decay", "0.5"]) == 1
    assert "training.weight_decay 0.5 and 0.0" in capsys.readouterr().err


@pytest.mark.full
def test_killed_in_the_middle_twice_it_ends_as_one_left_alone(
    finished: tuple[Path, str], start_sweep: StartSweep, tiny_flags: Mapping[str, object], tmp_path: Path
) -> None:
    output_dir = tmp_path / "sweep"
    flags = {**tiny_flags, "--output-dir": output_dir}
    for name in ("P1", "P2"):
        run = RunDirectory(output_dir / name)
        sweep = start_sweep("--P-values", 1, 2, flags=flags)
        wait_for(lambda run=run: len(run.checkpoints()) > 1, seconds=200)
        everyone = [*psutil.Process(sweep.pid).children(recursive=True), psutil.Process(sweep.pid)]
        for process in reversed(everyone):
            process.kill()
        sweep.communicate()
        assert not run.finished, "killed too late to test anything"
    last = start_sweep("--P-values", 1, 2, flags=flags)
    _, err = last.communicate()
    assert last.returncode == 0, err
    for name in ("P1", "P2"):
        assert _outcome(output_dir / name) == _outcome(finished[0] / name)
    assert _reported(output_dir) == _reported(finished[0])


def _reported(sweep: Path) -> dict[str, Any]:
    """What a report says of losses, differences and the law."""
    (found,) = analyse(load_experiment_results(sweep)).sweeps
    return {key: value for key, value in found.as_dict().items() if key in ("streams", "differences", "laws")}


def _outcome(path: Path) -> dict[str, Any]:
    """All of a run that does not depend on time."""
    run = RunDirectory(path)
    metrics = [{key: value for key, value in record.items() if key not in CLOCKS} for record in run.read_metrics()]
    return {
        "result": {key: value for key, value in run.read_result().items() if key not in CLOCKS},
        "metrics": sorted(metrics, key=lambda record: (record["step"], sorted(record))),
        "streams": run.read_streams(),
        "provenance": run.read_provenance(),
        "model": (run.final_dir / "model.safetensors").read_bytes(),
    }


def _snapshot(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.mark.full
def test_a_damaged_run_fails_in_its_own_words_while_the_others_finish(
    finished: tuple[Path, str], start_sweep: StartSweep, tiny_flags: Mapping[str, object], tmp_path: Path
) -> None:
    output_dir = tmp_path / "sweep"
    shutil.copytree(finished[0] / "P1", output_dir / "P1")
    (output_dir / "P1" / "result.json").unlink()
    newest = RunDirectory(output_dir / "P1").checkpoints()[-1]
    (newest / "parameters.safetensors").write_bytes(b"damaged")
    sweep = start_sweep("--P-values", 1, 2, flags={**tiny_flags, "--output-dir": output_dir})
    out, err = sweep.communicate()
    assert sweep.returncode == 1
    assert re.match(r"error: P1 failed: .*step_\d+", err)
    assert "not finished: P1" in out
    assert RunDirectory(output_dir / "P2").read_result()["tokens"] == TOKENS
