"""Sizes of a model from its `config.json`, without loading the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from parcontrol.analysis.cost import ModelShape, Workload
from parcontrol.mirror import local_copy

SHAPE_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")


def read_config(model: str) -> dict[str, Any]:
    """Read the config.json of a local directory, else of the mirror's copy, else of the Hub.

    Raises:
        ValueError: there is no such model, or its config.json is not a JSON object.
    """
    path = _config_path(model)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {str(path)!r}: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{str(path)!r} does not hold a JSON object")
    return config


def model_sizes(config: dict[str, Any], model: str) -> dict[str, int]:
    """Pick the sizes that the cost model takes out of `config`.

    Keys are field names of `ModelShape` and `Workload`. A ParScale config also gives P and the
    prefix length.

    Raises:
        ValueError: a size is missing or no whole number, or the architecture is one that the
            formulas do not describe (mixture of experts, heads of another width).
    """
    experts = next((key for key in EXPERT_KEYS if config.get(key)), None)
    if experts:
        raise ValueError(
            f"{model!r} is a mixture of experts ({experts} = {config[experts]}), which the cost model does not describe"
        )
    # Transformers reads a config without key/value heads as plain multi-head attention.
    config = {"num_key_value_heads": config.get("num_attention_heads"), **config}
    keys = {key: key for key in SHAPE_KEYS}
    for key, name in (("parscale_n", "P"), ("parscale_n_tokens", "parscale_prefix_tokens")):
        if key in config:
            keys[key] = name
    for key in keys:
        if type(config.get(key)) is not int:
            raise ValueError(
                f"the config of {model!r} has {key} = {config.get(key)!r}; the cost model needs a whole number there"
            )
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim")
    if head_dim is not None and head_dim * heads != hidden:
        raise ValueError(
            f"{model!r} has heads of width {head_dim}; the cost model describes only width "
            f"hidden_size / num_attention_heads = {hidden} / {heads}"
        )
    return {name: config[key] for key, name in keys.items()}


def shape_and_workload(sizes: dict[str, int]) -> tuple[ModelShape, Workload]:
    """Split sizes by name into the model's and the workload's."""
    shape = {name: value for name, value in sizes.items() if name in SHAPE_KEYS}
    workload = {name: value for name, value in sizes.items() if name not in SHAPE_KEYS}
    return ModelShape(**shape), Workload(**workload)


def _config_path(model: str) -> Path:
    directory = local_copy("models", model)
    return directory / "config.json" if directory else _download_config(model)


def _download_config(model: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, "config.json"))
    # All errors of the Hub and of the network are OSErrors; a name that cannot be a repository is a
    # ValueError.
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{model!r} is neither a directory nor in a mirror, and the Hub gave no config.json for it: {reason}"
        ) from error
