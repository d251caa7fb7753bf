"""When two run directories hold the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from parcontrol.runs import RunDirectory
from parcontrol.training.checkpoint import Checkpoint

# What two runs of the same configuration may differ in.
CLOCKS = {"seconds", "training_seconds", "tokens_per_second", "data_wait_fraction", "peak_memory_bytes", "final_dir"}


def without_clocks(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in CLOCKS} for record in records]


def last_checkpoint(run: RunDirectory) -> Checkpoint:
    checkpoint = Checkpoint.newest(run)
    assert checkpoint is not None
    return checkpoint


def assert_same_checkpoint(a: Checkpoint, b: Checkpoint) -> None:
    """Two checkpoints hold the same parameters, moments, random states, sums and position in the data."""
    assert (a.boundary.step, a.boundary.tokens, a.boundary.data) == (
        b.boundary.step,
        b.boundary.tokens,
        b.boundary.data,
    )
    for ours, theirs in (
        (a.parameters, b.parameters),
        (a.moments, b.moments),
        (a.boundary.tensors, b.boundary.tensors),
    ):
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            same = torch.equal(tensor, theirs[name])
            assert same or name.endswith(".peak"), f"{name} differs"  # the peak of memory is the machine's


def assert_same_run(first: Path, second: Path) -> None:
    """Two run directories hold the same metrics, streams, provenance, results, last checkpoints and final models."""
    a, b = RunDirectory(first), RunDirectory(second)
    assert without_clocks(a.read_metrics()) == without_clocks(b.read_metrics())
    assert a.read_streams() == b.read_streams()
    assert a.read_provenance() == b.read_provenance()
    assert without_clocks([a.read_result()]) == without_clocks([b.read_result()])
    assert_same_checkpoint(last_checkpoint(a), last_checkpoint(b))
    files = [{path.relative_to(r.final_dir): path for path in r.final_dir.rglob("*") if path.is_file()} for r in (a, b)]
    assert files[0].keys() == files[1].keys()
    for name, path in files[0].items():
        assert path.read_bytes() == files[1][name].read_bytes(), name
    with np.load(a.validation_documents_path) as x, np.load(b.validation_documents_path) as y:
        assert set(x) == set(y) == {"tokens", "loss_sum", "backbone_loss_sum"}
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])
