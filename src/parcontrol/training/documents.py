"""Validation losses by document, beside the backbone's own: what paired comparisons are made of.

An .npz file with `tokens` [documents], predicted tokens of each; `backbone_loss_sum` and, once the run is finished,
`loss_sum` [documents], summed losses in nats.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from parcontrol.runs import RunDirectory, write_atomically
from parcontrol.training.evaluate import Validation


def write_documents(path: Path, backbone: Validation, final: Validation | None) -> None:
    """Writes the file, or replaces it; `final` is None until the run is finished."""
    arrays = {"tokens": backbone.tokens, "backbone_loss_sum": backbone.loss_sum}
    if final is not None:
        assert np.array_equal(final.tokens, backbone.tokens)
        arrays["loss_sum"] = final.loss_sum
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())


def read_backbone(run: RunDirectory) -> Validation:
    """Returns the backbone's losses, which were measured before the run's first checkpoint."""
    with np.load(run.validation_documents_path, allow_pickle=False) as arrays:
        return Validation(arrays["backbone_loss_sum"], arrays["tokens"])
