"""Loading a backbone by name: a directory, a mirror laid out as the Hub, or the Hub."""

from typing import Any, Literal

import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from yaml import YAMLError

from parcontrol.hub import limit_waiting
from parcontrol.mirror import MIRROR_VARIABLE, is_path, local_copy

NOT_STATED = "not stated"
_HUB_TIMEOUT_S = 5.0


def resolve_model(name: str, mirror: str | None = None) -> str:
    """Where transformers should load `name` from: its local copy (see `parcontrol.mirror`), otherwise the Hub."""
    return str(local_copy("models", name, mirror) or name)


def load_backbone(
    name: str,
    revision: str | None = None,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    device: str | torch.device = "cpu",
    mirror: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pretrained decoder and its tokenizer, from safetensors only and without remote code.

    Args:
        name: a local directory or a Hub id.
        revision: branch, tag or commit on the Hub; ignored for directories.
        dtype: type of the weights; "auto" keeps the one that they are saved in.
        device: where they go.
        mirror: directory with `models/<id>`, tried before the Hub.

    Raises:
        ValueError: when the model cannot be had, with transformers' reason, or lacks weights.
    """
    directory = local_copy("models", name, mirror)
    if directory is None and is_path(name):
        raise ValueError(f"model {name!r} cannot be loaded: there is no such directory")
    source = str(directory or name)
    limit_waiting()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        if not tokenizer("text", add_special_tokens=False)["input_ids"]:
            # What transformers makes of a directory without tokenizer files: one that knows no word.
            raise ValueError("its tokenizer is empty; the tokenizer's files are missing")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model, info = loaded
        missing = sorted(info["missing_keys"])
        if missing:  # transformers draws them at random, and says so in a table that scrolls away
            raise ValueError(f"it lacks {len(missing)} of its weights, such as {missing[0]}")
    except (OSError, ValueError, SafetensorError) as error:
        looked = f"{name!r}" if source == name else f"{name!r} (at {source!r})"
        hint = "" if directory else f" (without a network name a directory, or let {MIRROR_VARIABLE} name a mirror)"
        raise ValueError(f"model {looked} cannot be loaded: {' '.join(str(error).split())}{hint}") from error
    return model.to(device), tokenizer


def base_model_license(name: str, mirror: str | None = None) -> str:
    """The licence in the model card of a local directory, a mirrored model or the Hub's.

    `not stated` where there is no card, it cannot be read, it names none, or the Hub is out of reach: a licence is
    never guessed, and a model is never refused for its card.
    """
    directory = local_copy("models", name, mirror)
    try:
        if directory is not None:
            data = ModelCard.load(directory / "README.md", ignore_metadata_errors=True).data
        else:
            data = HfApi().model_info(name, timeout=_HUB_TIMEOUT_S).card_data
    except (OSError, HTTPError, ValueError, YAMLError):
        return NOT_STATED
    licence = data.to_dict().get("license") if data else None
    return licence if isinstance(licence, str) else NOT_STATED
