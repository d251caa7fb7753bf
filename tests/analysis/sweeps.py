"""Planted sweeps: run directories with numbers that the tests choose, written through `RunDirectory`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parcontrol.config import load_config
from parcontrol.runs import RunDirectory, atomic_directory

STEPS, TOKENS_PER_STEP = 20, 512
TOKENS = STEPS * TOKENS_PER_STEP
CONFIG = {
    "model.name": "org/Planted-135M",
    "parscale.prefix_length": 4,
    "training.tokens_per_run": TOKENS,
    "training.warmup_tokens": 1024,
    "training.gradient_accumulation_steps": 2,
    "training.eval_interval_tokens": TOKENS // 4,
    "data.repo": "org/text",
    "data.sequence_length": 256,
}
MODEL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
PARAMETERS = 107_000_000
RUN_ID = "0123456789ab"
BACKBONE_LOSS = 2.476
# Nats per token by which each P lies below the frozen backbone.
GAINS = {1: 0.080, 2: 0.095, 4: 0.107, 8: 0.115}
VERSIONS = {"parcontrol": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"}


def planted_documents(count: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predicted tokens of each document, and the backbone's loss on each in nats per token."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, 400, size=count)
    losses = rng.normal(BACKBONE_LOSS, 0.4, size=count)
    return tokens, losses + BACKBONE_LOSS - np.average(losses, weights=tokens)


def write_run(
    directory: Path,
    P: int,
    seed: int = 42,
    *,
    loss: float | None = None,
    document_noise: float = 0.02,
    documents: int = 80,
    steps: int = STEPS,
    parameters: int = PARAMETERS,
    weights: Sequence[float] | None = None,
    settings: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
    meta: Mapping[str, Any] | None = None,
    process: Mapping[str, Any] | None = None,
    tokens: int | None = None,
    final: bool = True,
) -> RunDirectory:
    """Writes one run; fewer `steps` than `STEPS` leave it unfinished.

    `loss` is the exact final loss over all documents; single ones scatter around it by
    `document_noise` (nats per token). `weights` are the streams' mean weights at the end.
    """
    loss = BACKBONE_LOSS - GAINS[P] if loss is None else loss
    values = {"parscale.P": P, "training.seed": seed, "output_dir": str(directory)}
    config = load_config(None, CONFIG | values | dict(settings or {}))
    with RunDirectory.open_for_training(config) as run:
        run.write_meta(_meta(config, parameters, process or {}) | dict(meta or {}))
        for step in range(0, steps + 1, 4):
            _append_records(run, step, P, loss, weights or _even_but_a_little(P), TOKENS if tokens is None else tokens)
        if steps == STEPS:
            sums = _write_documents(run, loss, document_noise, documents, seed * 1000 + P)
            if final:
                with atomic_directory(run.final_dir) as model:
                    sizes = {**MODEL, "parscale_n": P, "parscale_n_tokens": 4}
                    (model / "config.json").write_text(json.dumps(sizes))
            outcome = _result(P, loss, sums, parameters, TOKENS if tokens is None else tokens)
            run.write_result(outcome | dict(result or {}))
    return run


def write_revalidation(
    run: RunDirectory, loss: float, backbone_loss: float = BACKBONE_LOSS, documents: int = 120, **changes: Any
) -> None:
    """Measures a planted run again, on other documents."""
    tokens, backbone = planted_documents(documents, seed=1)
    sums = {
        "tokens": tokens,
        "loss_sum": (backbone + loss - BACKBONE_LOSS) * tokens,
        "backbone_loss_sum": (backbone + backbone_loss - BACKBONE_LOSS) * tokens,
    }
    record = {
        "run_id": RUN_ID,
        "validation_tokens": 30_000,
        "validation_documents": documents,
        "validation_predicted_tokens": int(tokens.sum()),
        "validation_sha256": "e" * 64,
        "backbone_validation_loss": float(sums["backbone_loss_sum"].sum() / tokens.sum()),
        "final_validation_loss": float(sums["loss_sum"].sum() / tokens.sum()),
        "process": _meta(run.read_config(), 0, {})["processes"][0],
    }
    with run.writing_revalidation(record | changes) as path:
        np.savez(path, **sums)


def write_sweep(
    root: Path,
    streams: Sequence[int] = (1, 2, 4),
    seeds: Sequence[int] = (42,),
    loss: Callable[[int, int], float] = lambda P, seed: BACKBONE_LOSS - GAINS[P] + 1e-4 * (seed % 3),
    **changes: Any,
) -> Path:
    """Writes a run for every P and seed, named as a sweep names them."""
    for P in streams:
        for seed in seeds:
            name = f"P{P}" if len(seeds) == 1 else f"P{P}_seed{seed}"
            write_run(root / name, P, seed, loss=loss(P, seed), **changes)
    return root


def _append_records(run: RunDirectory, step: int, P: int, loss: float, weights: Sequence[float], total: int) -> None:
    place = {"step": step, "tokens": step * total // STEPS}
    left = 1 - step / STEPS
    now = loss + 0.15 * left**2
    run.append_metrics(place | {"validation_loss": now, "validation_perplexity": math.exp(now)})
    if step == 0:
        return
    run.append_metrics(place | {"loss": now + 0.01, "learning_rate": 1e-3, "tokens_per_second": 900.0 / P})
    shards = [{"shard": "train/03.jsonl.zst", "byte_start": 0, "byte_end": 4096 * step, "documents": step}]
    shards[0]["tokens"] = place["tokens"]
    run.append_provenance(place | {"shards": shards, "sha256": f"{step:064x}"})
    if P > 1:
        run.append_streams(place | _stream_record(weights, cosine=0.9))


def _stream_record(weights: Sequence[float], cosine: float) -> dict[str, Any]:
    P = len(weights)
    return {
        "mean_weight": list(weights),
        "argmax_share": list(weights),
        "entropy": 0.95 * math.log(P),
        "entropy_relative": 0.9,
        "kl_uniform": math.fsum(w * math.log(w * P) for w in weights),
        "gini": math.fsum(abs(a - b) for a in weights for b in weights) / (2 * P),
        "cosine_similarity": [[1.0 if p == q else cosine for q in range(P)] for p in range(P)],
        "mean_cosine_similarity": cosine,
    }


def _even_but_a_little(P: int) -> list[float]:
    raw = np.linspace(0.9, 1.1, P)
    return (raw / raw.sum()).tolist()


def _write_documents(run: RunDirectory, loss: float, noise: float, count: int, seed: int) -> dict[str, np.ndarray]:
    tokens, backbone = planted_documents(count)
    scatter = np.random.default_rng(seed).normal(0, noise, size=count)
    scatter -= np.average(scatter, weights=tokens)
    shift = loss - np.average(backbone, weights=tokens)
    sums = {
        "tokens": tokens,
        "loss_sum": (backbone + shift + scatter) * tokens,
        "backbone_loss_sum": backbone * tokens,
    }
    with run.validation_documents_path.open("wb") as file:
        np.savez(file, **sums)
    return sums


def _result(P: int, loss: float, sums: Mapping[str, np.ndarray], parameters: int, tokens: int) -> dict[str, Any]:
    total = int(sums["tokens"].sum())
    return {
        "P": P,
        "mode": "peft",
        "steps": STEPS,
        "tokens": tokens,
        "backbone_validation_loss": float(sums["backbone_loss_sum"].sum() / total),
        "final_validation_loss": float(sums["loss_sum"].sum() / total),
        "validation_predicted_tokens": total,
        "validation_sha256": "a" * 64,
        "data_sha256": "d" * 64,
        "parameters_trained": 1_000_000 * P,
        "parameters_total": parameters + MODEL["vocab_size"] * MODEL["hidden_size"],
        "seconds": 40.0 * P,
        "training_seconds": TOKENS * P / 900.0,
        "tokens_per_second": 900.0 / P,
        "data_wait_fraction": 0.001,
        "peak_memory_bytes": 2**30 * (1 + P),
        "final_dir": "checkpoints/final",
    }


def _meta(config: Any, parameters: int, process: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "run_id": RUN_ID,
        "model": config.model.name,
        "dataset": config.data.repo,
        "dataset_revision": "5" * 40,
        "model_revision": "6" * 40,
        "tokenizer_sha256": "b" * 64,
        "validation_sha256": "a" * 64,
        "validation_tokens": 20_000,
        "validation_documents": 80,
        "parameters_total": parameters,
        "processes": [
            {
                "started": "2026-01-02T03:04:05+00:00",
                "from_step": 0,
                "git": {"commit": "c" * 40, "dirty": False},
                "python": "3.11.7",
                "platform": "Linux",
                "versions": VERSIONS,
                "device": "cpu",
                "device_name": "planted",
                "threads": 2,
                "backbone_dtype": "float32",
                "compute_dtype": "float32",
                **process,
            }
        ],
    }
