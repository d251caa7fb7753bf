"""Measuring finished runs again: the numbers are those of a run that had measured on as many tokens from the start."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from safetensors.torch import load_file, save_file

from parcontrol.runs import RunDirectory
from parcontrol.training.errors import NonFiniteError, OutOfMemoryError
from parcontrol.training.revalidate import Revalidator
from parcontrol.training.run import run
from tests.training.conftest import MakeConfig

SHORT = {"training__tokens_per_run": 4 * 128, "training__warmup_tokens": 128}
LOSSES = ("backbone_validation_loss", "final_validation_loss", "validation_predicted_tokens", "validation_sha256")


@pytest.fixture
def finished(make_config: MakeConfig) -> RunDirectory:
    config = make_config(**SHORT)
    run(config)
    return RunDirectory(config.run_directory)


def measure(path: Path, tokens: int, **arguments: Any) -> dict[str, Any]:
    with RunDirectory.open_finished(path) as directory:
        return Revalidator(tokens, "cpu", **arguments).measure(directory)


def written(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"training__mode": "full", "training__mixed_precision": "bf16", "training__learning_rate": 1e-3},
        {"parscale__P": 1, "parscale__prefix_length": 0, "training__mode": "full"},
    ],
)
def test_the_losses_are_those_of_a_run_with_the_longer_set(make_config: MakeConfig, settings: dict[str, Any]) -> None:
    short, long = (
        make_config(f"run_{tokens}", data__validation_tokens=tokens, **SHORT | settings) for tokens in (512, 1100)
    )
    run(short)
    before = written(short.run_directory)
    record = measure(short.run_directory, 1100)
    expected = run(long)
    assert {key: record[key] for key in LOSSES} == {key: expected[key] for key in LOSSES}
    assert record["validation_documents"] == RunDirectory(long.run_directory).read_meta()["validation_documents"]
    ours, theirs = (RunDirectory(config.run_directory) for config in (short, long))
    with np.load(ours.revalidation_documents_path) as a, np.load(theirs.validation_documents_path) as b:
        assert {key: a[key].tolist() for key in a} == {key: b[key].tolist() for key in b}
    after = written(short.run_directory)
    assert {path: after[path] for path in before} == before
    assert ours.read_revalidation() == record


def test_a_run_that_continues_another_is_measured_beside_that_one(
    finished: RunDirectory, make_config: MakeConfig
) -> None:
    stage = make_config("second", training__init_from=str(finished.final_dir), **SHORT)
    result = run(stage)
    record = measure(stage.run_directory, 512)
    assert {key: record[key] for key in LOSSES} == {key: result[key] for key in LOSSES}


def test_runs_share_the_measurement_of_their_backbone_and_are_measured_once(
    finished: RunDirectory, make_config: MakeConfig
) -> None:
    other = make_config("other", parscale__P=1, **SHORT)
    run(other)
    measured: list[str] = []
    revalidator = Revalidator(1024, "cpu", lambda what, done, total: measured.append(what))
    records = []
    for path in (finished.path, other.run_directory, finished.path):
        with RunDirectory.open_finished(path) as directory:
            records.append(revalidator.measure(directory))
    assert list(dict.fromkeys(measured)) == ["backbone", "model"]
    assert measured.count("backbone") == 1024 // 32 // 2
    assert measured.count("model") == 2 * measured.count("backbone")
    assert records[0] == records[2]
    assert records[0]["backbone_validation_loss"] == records[1]["backbone_validation_loss"]


def test_another_number_of_tokens_takes_the_place_of_the_last(finished: RunDirectory) -> None:
    measure(finished.path, 1024)
    record = measure(finished.path, 2048)
    assert finished.read_revalidation() == record
    assert record["validation_predicted_tokens"] == 2048 - 2048 // 32
    assert not list(finished.path.glob(".revalidation*"))


def test_memory_that_runs_out_is_one_message_and_nothing_is_written(finished: RunDirectory) -> None:
    before = written(finished.path)
    with (
        RunDirectory.open_finished(finished.path) as run,
        pytest.raises(OutOfMemoryError, match=r"out of memory on cpu \(.*allocate.*\); measure on another device"),
    ):
        Revalidator(1024, "cpu", lambda what, done, total: torch.empty(2**55)).measure(run)
    assert written(finished.path) == before


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [(511, "511 validation tokens are too few: .* was measured on 512"), (10**6, "has only [0-9]+ tokens")],
)
def test_a_number_of_tokens_that_cannot_be_is_refused(finished: RunDirectory, tokens: int, reason: str) -> None:
    before = written(finished.path)
    with pytest.raises(ValueError, match=reason):
        measure(finished.path, tokens)
    assert written(finished.path) == before


def test_a_run_without_its_model_is_refused(finished: RunDirectory) -> None:
    shutil.rmtree(finished.final_dir)
    with pytest.raises(ValueError, match=r"its model is not there \(.*/checkpoints/final\)"):
        measure(finished.path, 1024)


def test_other_text_than_before_is_refused(make_config: MakeConfig, tiny_corpus_dir: Path, tmp_path: Path) -> None:
    corpus = shutil.copytree(tiny_corpus_dir, tmp_path / "corpus")
    config = make_config(data__repo=str(corpus), **SHORT)
    run(config)
    shard = corpus / "val.jsonl.zst"
    text = zstandard.ZstdDecompressor().stream_reader(shard.read_bytes()).read().decode()
    shard.write_bytes(zstandard.ZstdCompressor().compress(text.split("\n", 1)[1].encode()))
    with pytest.raises(ValueError, match=r"validation_sha256 was '[0-9a-f]{64}' and is '[0-9a-f]{64}' now"):
        measure(config.run_directory, 1024)
    assert RunDirectory(config.run_directory).read_revalidation() is None


def test_a_loss_that_is_not_finite_leaves_nothing(finished: RunDirectory) -> None:
    weights = finished.final_dir / "model.safetensors"
    tensors = load_file(weights)
    norm = next(name for name in tensors if name.endswith("model.norm.weight"))
    save_file(tensors | {norm: torch.full_like(tensors[norm], float("nan"))}, weights, {"format": "pt"})
    with pytest.raises(NonFiniteError, match="the validation loss of document 0 is nan"):
        measure(finished.path, 1024)
    assert finished.read_revalidation() is None


@pytest.mark.parametrize("part", ["model", "backbone"])
def test_another_model_than_the_one_that_was_measured_is_refused(
    make_config: MakeConfig, tiny_model_dir: Path, tmp_path: Path, part: str
) -> None:
    backbone = shutil.copytree(tiny_model_dir, tmp_path / "backbone")
    config = make_config(model__name=str(backbone), **SHORT)
    run(config)
    directory = RunDirectory(config.run_directory)
    weights = (backbone if part == "backbone" else directory.final_dir) / "model.safetensors"
    scaled = {name: tensor * (1.5 if "mlp" in name else 1) for name, tensor in load_file(weights).items()}
    save_file(scaled, weights, {"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"its .*{part} is another one now, whose loss .* differs by [+-]\d\.\d+ nats"
    ):
        measure(directory.path, 1024)
    assert directory.read_revalidation() is None


def test_a_model_that_lacks_a_weight_is_refused(finished: RunDirectory) -> None:
    weights = finished.final_dir / "model.safetensors"
    tensors = load_file(weights)
    lost = next(name for name in tensors if "aggregate_layer" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 of its weights, such as {lost}"):
        measure(finished.path, 1024)


def test_what_a_killed_replacement_left_is_settled(finished: RunDirectory) -> None:
    measure(finished.path, 1024)
    record = finished.read_revalidation()
    (finished.path / "revalidation").rename(finished.path / ".revalidation.replaced")
    assert measure(finished.path, 1024) == record
    assert not list(finished.path.glob(".revalidation*"))


def test_a_run_that_is_not_finished_or_in_use_is_refused(finished: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not finished: it has no result.json"):
        RunDirectory.open_finished(tmp_path / "nothing")
    with RunDirectory.open_finished(finished.path), pytest.raises(ValueError, match="is in use: process"):
        RunDirectory.open_finished(finished.path)
