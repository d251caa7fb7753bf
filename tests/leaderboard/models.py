"""Tiny model directories with everything that a submission needs, made without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CARD = "---\nlicense: apache-2.0\n---\n# A tiny model\n"
CONFIG = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "dtype": "bfloat16",
}


def write_model(directory: Path, card: str | None = CARD, seed: int = 0, **config: Any) -> Path:
    """Writes card, configuration and 1,000,000 weights that nobody runs; None in the configuration drops a key."""
    directory.mkdir(parents=True)
    kept = {name: value for name, value in {**CONFIG, **config}.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(kept))
    save_file({"weight": np.full((1000, 1000), seed, dtype=np.float16)}, directory / "model.safetensors")
    if card is not None:
        (directory / "README.md").write_text(card)
    return directory


def write_adapter(directory: Path, base: str) -> Path:
    """Writes an adapter of 2,000 weights."""
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    save_file({"lora_A": np.zeros((2, 1000), dtype=np.float32)}, directory / "adapter_model.safetensors")
    (directory / "README.md").write_text(CARD)
    return directory
