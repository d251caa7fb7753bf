"""Runs of several processes against the same run of one, which has its own tests.

The processes are real ones, started by torchrun, and talk through gloo. They do what one process
does on the same global batches, so its files are the oracle: losses and norms to 1e-5, and the
tokens to the bit.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from parcontrol.config import RunConfig
from parcontrol.data import verify_run
from parcontrol.runs import RunDirectory
from parcontrol.training.processes import Processes
from parcontrol.training.run import run
from tests.training.same_run import assert_same_run
from tests.training.torchrun import Torchrun, wait_until_gone

MakeConfig = Callable[..., RunConfig]

# 16 steps of 6 rows: microbatches of 2, of which a process of two has 1.5 and one of three has 1.
BATCH = {
    "training__gradient_accumulation_steps": 3,
    "training__tokens_per_run": 16 * 192,
    "training__max_grad_norm": 0.005,
    "training__adam_eps": 1e-4,  # keeps updates smooth where a gradient is nearly zero
}
PEFT: dict[str, object] = dict(BATCH)
PASSES = BATCH | {"training__streams_per_pass": 1, "parscale__P": 3, "training__gradient_checkpointing": True}
FULL = BATCH | {"training__mode": "full", "training__learning_rate": 1e-3, "training__max_grad_norm": 0.3}
FULL_PASSES = FULL | {"training__streams_per_pass": 1, "parscale__P": 3}

TOLERANCE = 1e-5
# Sums that are taken in another order.
CLOSE = ("loss", "grad_norm", "validation_loss", "backbone_validation_loss")


def close(expected: float) -> Any:
    return pytest.approx(expected, rel=TOLERANCE)


def assert_equal_runs(one: Path, several: Path) -> None:
    """Two run directories hold the same run, up to the order of sums."""
    a, b = RunDirectory(one), RunDirectory(several)
    assert a.read_provenance() == b.read_provenance()
    assert verify_run(b).step == a.read_result()["steps"]
    assert len(a.read_metrics()) == len(b.read_metrics())
    for expected, record in zip(a.read_metrics(), b.read_metrics(), strict=True):
        assert record.keys() == expected.keys()
        assert (record["step"], record["tokens"]) == (expected["step"], expected["tokens"])
        for key in expected.keys() & set(CLOSE):
            assert record[key] == close(expected[key]), (record["step"], key)
    for expected, record in zip(a.read_streams(), b.read_streams(), strict=True):
        assert record["tokens"] == expected["tokens"]
        for key in ("mean_weight", "entropy", "mean_cosine_similarity"):
            assert record[key] == pytest.approx(expected[key], rel=1e-4)
    result, expected = b.read_result(), a.read_result()
    assert result["data_sha256"] == expected["data_sha256"]
    assert result["parameters_total"] == expected["parameters_total"]
    assert result["final_validation_loss"] == close(expected["final_validation_loss"])
    with np.load(a.validation_documents_path) as x, np.load(b.validation_documents_path) as y:
        np.testing.assert_array_equal(x["tokens"], y["tokens"])
        for key in ("loss_sum", "backbone_loss_sum"):
            np.testing.assert_allclose(y[key], x[key], rtol=TOLERANCE)
    assert_same_files(a.path, b.path)


def assert_same_files(one: Path, several: Path) -> None:
    """The checkpoints are the same files with the same tensors in them."""
    names = sorted(path.relative_to(one) for path in (one / "checkpoints").rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(several) for path in (several / "checkpoints").rglob("*") if path.is_file())
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in several.iterdir())
    for name in (name for name in names if name.suffix == ".safetensors"):
        a, b = load_file(one / name), load_file(several / name)
        assert {k: (v.shape, v.dtype) for k, v in a.items()} == {k: (v.shape, v.dtype) for k, v in b.items()}
        if name.stem in ("parameters", "model"):
            for key, tensor in a.items():
                torch.testing.assert_close(b[key], tensor, rtol=1e-4, atol=1e-5)
    for name in ("config.json", "generation_config.json"):
        assert (one / "checkpoints/final" / name).read_bytes() == (several / "checkpoints/final" / name).read_bytes()


def compare(make_config: MakeConfig, processes: int, *kinds: dict[str, object]) -> None:
    """Trains each kind of run in one process and in several, all of these in one torchrun."""
    several = [make_config(f"several{i}", **kind) for i, kind in enumerate(kinds)]
    torchrun = Torchrun(processes, several)
    one = [make_config(f"one{i}", **kind) for i, kind in enumerate(kinds)]
    for config in one:
        run(config)
    code, output = torchrun.end()
    assert code == 0, output
    for alone, config in zip(one, several, strict=True):
        assert_equal_runs(alone.run_directory, config.run_directory)
        # Rank 0 alone speaks, and every line once.
        lines = (config.run_directory.parent / "logs" / f"{config.run_directory.name}.jsonl").read_text().splitlines()
        steps = [json.loads(line)["record"]["step"] for line in lines if '"grad_norm"' in line]
        assert steps == [3, 6, 9, 12, 15, 16]
        assert RunDirectory(config.run_directory).read_meta()["processes"][0]["world_size"] == processes
    assert output.count("backbone alone: validation loss") == len(kinds)
    assert "Traceback" not in output


def test_two_processes_train_as_one(make_config: MakeConfig) -> None:
    compare(make_config, 2, PEFT, FULL_PASSES)


@pytest.mark.full
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_train_as_one(make_config: MakeConfig, processes: int) -> None:
    compare(make_config, processes, PEFT, PASSES, FULL, FULL_PASSES)


@pytest.mark.full
def test_an_output_head_of_its_own_trains_beside_the_shards(
    make_config: MakeConfig, tiny_untied_model_dir: Path
) -> None:
    untied = {"model__name": str(tiny_untied_model_dir)}
    compare(make_config, 2, FULL | untied, FULL_PASSES | untied)
