"""The README.md of a trained model: what it was made of, what it reached, how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from parcontrol.config import RunConfig
from parcontrol.parscale.loading import NOT_STATED, base_model_license


def model_card(config: RunConfig, meta: dict[str, Any], result: dict[str, Any]) -> str:
    """Returns the model card of a finished run.

    Args:
        config: The run.
        meta: Its meta.json.
        result: Its result.
    """
    base, data = config.training.init_from or config.model.name, config.data.repo
    licence = base_model_license(config.model.name, config.data.mirror)
    trained = "prefixes and aggregator over the frozen backbone"
    if config.training.mode == "full":
        trained = "every parameter"
    rows = [
        ("backbone alone", "backbone"),
        ("ParScale, before training", "initial"),
        ("ParScale, as saved here", "final"),
    ]
    losses = "\n".join(
        f"| {name} | {result[f'{key}_validation_loss']:.4f} | {result[f'{key}_validation_perplexity']:.2f} |"
        for name, key in rows
    )
    return f"""---
{_front_matter(config, licence)}---

# {Path(base).name} with {_streams(config.parscale.P)} (ParScale)

A ParScale model (*Parallel Scaling Law for Language Models*, arXiv 2505.10475): {_streams(config.parscale.P)} through
one shared backbone, each with its own learned prefix of {config.parscale.prefix_length} tokens, mixed token by token.

- Base model: {_base(config, meta)}, licence: {licence}
- Training data: `{data}` (revision {meta["dataset_revision"]}), {result["tokens"]:,} tokens
- Trained: {trained}; {result["parameters_trained"]:,} of {result["parameters_total"]:,} parameters
- Aggregation weights are smoothed by {config.parscale.attn_smooth}

## Validation

On {meta["validation_tokens"]:,} held-out tokens of the same data:

| | loss (nats per token) | perplexity |
|---|---|---|
{losses}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH_OR_ID", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("PATH_OR_ID", trust_remote_code=True)
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```

The code that this loads lies beside the weights and needs torch and transformers only; where
`parcontrol` is installed and imported, `trust_remote_code` is not needed.
"""


def _base(config: RunConfig, meta: dict[str, Any]) -> str:
    if config.training.init_from:
        return (
            f"`{config.training.init_from}`, an earlier stage whose own card tells what it was trained on, "
            f"made from `{config.model.name}`"
        )
    return f"`{config.model.name}` (revision {meta['model_revision']})"


def _streams(P: int) -> str:
    return f"{P} parallel streams" if P > 1 else "1 stream"


def _front_matter(config: RunConfig, licence: str) -> str:
    """The card's metadata; the Hub takes ids only, so that local directories are left out."""
    fields: dict[str, Any] = {"library_name": "transformers", "tags": ["parscale"]}
    if licence != NOT_STATED:
        fields["license"] = licence
    if not Path(config.model.name).is_dir():
        fields["base_model"] = config.model.name
    if not Path(config.data.repo).is_dir():
        fields["datasets"] = [config.data.repo]
    return yaml.safe_dump(fields, sort_keys=True)
