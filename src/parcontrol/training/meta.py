"""What meta.json says: code, versions, machine, seeds and data of a run."""

from __future__ import annotations

import platform
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import parcontrol
from parcontrol.config import DataConfig
from parcontrol.data import Corpus, ValidationSet, tokenizer_sha256
from parcontrol.runs import RunDirectory
from parcontrol.training.device import Precision
from parcontrol.training.loop import TrainingLoop
from parcontrol.training.model import Start

_PACKAGES = (
    "parcontrol",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "huggingface-hub",
    "zstandard",
)


def recorded_meta(run: RunDirectory, resuming: bool) -> dict[str, Any]:
    """What the processes of the run before this one wrote; empty for a run that starts afresh."""
    return run.read_meta() if resuming else {}


def pinned(data: DataConfig, before: dict[str, Any]) -> DataConfig:
    """Returns the data of a resumed run at the revision that it began with, wherever the head is now."""
    return data.model_copy(update={"revision": before["dataset_revision"]}) if before else data


def write_meta(
    run: RunDirectory,
    before: dict[str, Any],
    loop: TrainingLoop,
    corpus: Corpus,
    start: Start,
    validation: ValidationSet,
) -> None:
    """Writes meta.json, or adds this process to that of a resumed run.

    Raises:
        ValueError: The data or the backbone are not those that the run began with.
    """
    config = loop.config
    # What must stay as it was when a run is resumed; the configuration is checked by the directory.
    fixed = {
        "dataset_revision": corpus.revision,
        "model_revision": start.revision,
        "tokenizer_sha256": tokenizer_sha256(start.tokenizer),
        "validation_sha256": validation.sha256,
    }
    process = describe_process(loop.precision, loop.step, loop.processes.size)
    if before:
        for key, now in fixed.items():
            if before[key] != now:
                raise ValueError(f"{run.path} cannot be resumed: {key} was {before[key]!r} and is {now!r} now")
        run.write_meta(
            before | {"streams_per_pass": loop.streams_per_pass, "processes": [*before["processes"], process]}
        )
        return
    parameters = list(loop.model.parameters())
    run.write_meta(
        {
            "run_id": uuid.uuid4().hex[:12],
            "model": config.model.name,
            "init_from": config.training.init_from,
            "dataset": config.data.repo,
            **fixed,
            "validation_tokens": int(validation.blocks.size),
            "validation_documents": validation.documents,
            "training_seed": config.training.seed,
            "data_seed": config.data.seed,
            "parameters_trained": sum(p.numel() for p in parameters if p.requires_grad),
            "parameters_total": sum(p.numel() for p in parameters),
            "streams_per_pass": loop.streams_per_pass,
            "processes": [process],
        }
    )


def git_state() -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout that parcontrol runs from; None when it is none."""
    source = Path(parcontrol.__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(source), *arguments], capture_output=True, text=True)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie inside the checkout of something else, which ignores it.
    if not git("ls-files", "__init__.py"):
        return None
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}


def describe_process(precision: Precision, step: int, world_size: int = 1) -> dict[str, Any]:
    """What this process computes with: code, versions, machine, types; and the step that it begins at."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "git": git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {package: version(package) for package in _PACKAGES},
        "device": str(precision.device),
        "device_name": _device_name(precision.device),
        "threads": torch.get_num_threads(),
        "backbone_dtype": str(precision.backbone).removeprefix("torch."),
        "compute_dtype": str(precision.compute).removeprefix("torch."),
        "world_size": world_size,
        "from_step": step,
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
