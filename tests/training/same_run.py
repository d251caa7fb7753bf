"""When two run directories hold the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from parcontrol.runs import RunDirectory

# What two runs of the same configuration may differ in.
CLOCKS = {"seconds", "training_seconds", "tokens_per_second", "data_wait_fraction", "peak_memory_bytes", "final_dir"}


def without_clocks(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in CLOCKS} for record in records]


def assert_same_run(first: Path, second: Path) -> None:
    """Two run directories hold the same metrics, streams, provenance, results and final weights."""
    a, b = RunDirectory(first), RunDirectory(second)
    assert without_clocks(a.read_metrics()) == without_clocks(b.read_metrics())
    assert a.read_streams() == b.read_streams()
    assert a.read_provenance() == b.read_provenance()
    assert without_clocks([a.read_result()]) == without_clocks([b.read_result()])
    weights = [(r.final_dir / "model.safetensors").read_bytes() for r in (a, b)]
    assert weights[0] == weights[1]
    with np.load(a.validation_documents_path) as x, np.load(b.validation_documents_path) as y:
        assert set(x) == set(y) == {"tokens", "loss_sum", "backbone_loss_sum"}
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])
