"""Result files as this project, the harness and the public leaderboard write them, made small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHA = "0123456789abcdef0123456789abcdef01234567"
OTHER_SHA = "f" * 40


def ours(
    results: dict[str, dict[str, Any]], *, date: float = 1_700_000_000.0, n: int = 100, **block: Any
) -> dict[str, Any]:
    """A file of this project: `results` holds metrics of tasks, `block` replaces fields of the parcontrol block."""
    document = harness(results, date=date, n=n)
    document["parcontrol"] = {
        "schema": 1,
        "model": "org/model",
        "revision": "main",
        "sha": SHA,
        "precision": "float16",
        "weight_type": "Original",
        "base_model": "",
        "chat_template": False,
        "P": None,
        "model_type": "🟢 : pretrained",
        "params": 0.135,
        "license": "apache-2.0",
        "seed": 1234,
        "limit": None,
        "sample_set": False,
        "absent": {},
        "failed": {},
        **block,
    }
    return document


def harness(
    results: dict[str, dict[str, Any]], *, date: float | None = 1_700_000_000.0, n: int = 100
) -> dict[str, Any]:
    """A file of lm-evaluation-harness 0.4.13 with a name and an alias beside the metrics."""
    return {
        "results": {
            task: {"name": task, "alias": f" - {task}", "sample_len": n, **metrics} for task, metrics in results.items()
        },
        "group_subtasks": {},
        "configs": {task: {"task": task, "metadata": {"version": 1.0}} for task in results},
        "versions": dict.fromkeys(results, 1.0),
        "n-shot": dict.fromkeys(results, 0),
        "higher_is_better": {task: {"acc": True} for task in results},
        "n-samples": {task: {"original": 1000, "effective": n} for task in results},
        "config": {
            "model": "hf",
            "model_args": {"pretrained": "org/model", "dtype": "float16", "trust_remote_code": False},
            "model_num_parameters": 134515008,
            "model_dtype": "torch.float16",
            "model_revision": "main",
            "model_sha": SHA,
            "limit": None,
        },
        "git_hash": "1a2b3c4",
        "date": date,
        "lm_eval_version": "0.4.13",
        "model_name": "org/model",
        "chat_template": None,
        "total_evaluation_time_seconds": "12.5",
    }


def public(
    results: dict[str, dict[str, Any]], *, shots: dict[str, int] | None = None, config_key: str = "config"
) -> dict[str, Any]:
    """A file of the public leaderboard: harness 0.4.0, no date, `main` in place of the commit."""
    return {
        "results": {task: {**metrics, "alias": task} for task, metrics in results.items()},
        "configs": {},
        "versions": dict.fromkeys(results, "Yaml"),
        "n-shot": shots or dict.fromkeys(results, 0),
        config_key: {
            "model": "hf",
            "model_args": "pretrained=org/model,revision=main,dtype=torch.float16,trust_remote_code=True",
            "model_dtype": "float16",
            "model_name": "org/model",
            "model_sha": "main",
            "limit": None,
        },
        "git_hash": "62513ca",
    }


def put(directory: Path, files: dict[str, Any]) -> None:
    """Writes files below a directory; documents as JSON, bytes as they are."""
    for path, content in files.items():
        place = directory / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
