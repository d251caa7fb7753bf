"""Runs so small that a test can train several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from parcontrol.config import RunConfig, load_config

# 24 steps of 2 x 2 x 32 tokens.
TINY_RUN = {
    "parscale.P": 2,
    "parscale.prefix_length": 4,
    "training.tokens_per_run": 24 * 128,
    "training.microbatch_size": 2,
    "training.gradient_accumulation_steps": 2,
    "training.mixed_precision": "fp32",
    "training.device": "cpu",
    "training.learning_rate": 1e-2,
    "training.warmup_tokens": 256,
    "training.eval_interval_tokens": 1024,
    "training.log_interval_steps": 3,
    "training.checkpoint_interval_steps": 5,
    "data.num_shards": 3,
    "data.sequence_length": 32,
    "data.validation_tokens": 512,
}

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def make_config(tmp_path: Path, tiny_model_dir: Path, tiny_corpus_dir: Path) -> MakeConfig:
    """Returns a function from the name of a run directory and overrides to a tiny run."""

    def make(name: str = "run", **overrides: object) -> RunConfig:
        places = {
            "model.name": str(tiny_model_dir),
            "data.repo": str(tiny_corpus_dir),
            "logging.directory": str(tmp_path / "logs"),
            "output_dir": str(tmp_path / name),
        }
        dotted = {key.replace("__", "."): value for key, value in overrides.items()}
        return load_config(None, TINY_RUN | places | dotted)

    return make
