"""A few steps on a real pretrained model: the size of a checkpoint, and where context prefixes start."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import zstandard

from parcontrol.config import RunConfig
from parcontrol.runs import RunDirectory
from parcontrol.training.run import run

MakeConfig = Callable[..., RunConfig]


@pytest.mark.model
def test_smollm2_starts_near_its_backbone_and_has_small_checkpoints(
    make_config: MakeConfig, smollm2_dir: Path, tmp_path: Path
) -> None:
    corpus = write_prose(tmp_path / "corpus")
    result = run(
        make_config(
            model__name=str(smollm2_dir),
            data__repo=str(corpus),
            data__num_shards=1,
            data__sequence_length=64,
            data__validation_tokens=512,
            parscale__prefix_length=48,
            training__mixed_precision="auto",
            training__tokens_per_run=2 * 256,
            training__learning_rate=3e-3,
            training__warmup_tokens=256,
        )
    )
    newest = RunDirectory(Path(result["final_dir"]).parents[1]).checkpoints()[-1]
    assert newest.name == "step_00000002"
    size = sum(path.stat().st_size for path in newest.iterdir())
    # Three float32 numbers for each parameter that trains, and little more.
    assert 12 * result["parameters_trained"] < size < 25e6
    assert result["initial_validation_loss"] < result["backbone_validation_loss"] + 0.2


def write_prose(directory: Path) -> Path:
    """A corpus of the help topics that come with Python."""
    texts = [text for _, text in sorted(topics.items()) if len(text) > 500]
    (directory / "train").mkdir(parents=True)
    for name, part in (("train/00", texts[10:]), ("val", texts[:10])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in part)
        (directory / f"{name}.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    return directory
