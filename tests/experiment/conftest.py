"""A sweep so small that a test can run one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

STEPS = 60
TOKENS = STEPS * 2 * 2 * 32

TINY_SWEEP = {
    "--parscale.prefix_length": 4,
    "--training.tokens_per_run": TOKENS,
    "--training.microbatch_size": 2,
    "--training.gradient_accumulation_steps": 2,
    "--training.mixed_precision": "fp32",
    "--training.device": "cpu",
    "--training.learning_rate": 1e-2,
    "--training.warmup_tokens": 256,
    "--training.eval_interval_tokens": 1024,
    "--training.log_interval_steps": 1,
    "--training.checkpoint_interval_steps": 2,
    "--data.num_shards": 8,
    "--data.num_workers": 0,
    "--data.sequence_length": 32,
    "--data.validation_tokens": 512,
}

StartSweep = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="session")
def tiny_flags(
    tiny_model_dir: Path, tiny_corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    """The flags of a tiny sweep, without P and its output directory."""
    places = {"--model.name": tiny_model_dir, "--data.repo": tiny_corpus_dir}
    return TINY_SWEEP | places | {"--logging.directory": tmp_path_factory.mktemp("logs")}


@pytest.fixture(scope="session")
def start_sweep(repository: Path) -> StartSweep:
    """Returns a function that starts a sweep as a process; `program` is what to run."""

    def start(
        *arguments: object,
        flags: Mapping[str, object],
        program: tuple[str, ...] = ("run_multi_P_experiment.py",),
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(repository), *filter(None, [os.environ.get("PYTHONPATH")])])
        named = [str(part) for pair in flags.items() for part in pair]
        return subprocess.Popen(
            [sys.executable, *program, *map(str, arguments), *named],
            cwd=repository,
            env=os.environ | {"PYTHONPATH": path} | dict(environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start
