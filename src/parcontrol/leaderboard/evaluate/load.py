"""Loading what is evaluated: original weights, base plus delta, or base plus adapter, from safetensors only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

import parcontrol  # noqa: F401  makes the Auto classes know ParScale models
from parcontrol.diagnostics.memory import is_out_of_memory
from parcontrol.leaderboard.evaluate.errors import ModelRefusedError
from parcontrol.leaderboard.evaluate.location import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    commit_of,
    model_directory,
    read_config,
)
from parcontrol.leaderboard.evaluate.model_spec import ModelSpec
from parcontrol.leaderboard.evaluate.precision import DTYPES, QUANTISED, loading_arguments

_TOKENIZER_CONFIG = "tokenizer_config.json"
# What transformers and tokenizers raise over files that are missing, broken, or of a kind that they do not know.
_NOT_LOADABLE = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    ImportError,
    RuntimeError,
    SafetensorError,
)


@dataclass(frozen=True)
class Loaded:
    """A model ready to be evaluated.

    Attributes:
        model: In evaluation mode, on its device.
        tokenizer: Its tokenizer.
        base_sha: The commit of the base model, None without or where it is unknown.
    """

    model: Any
    tokenizer: Any
    base_sha: str | None = None

    @property
    def encoder_decoder(self) -> bool:
        """Whether a text goes in at one end and comes out at another."""
        return bool(self.model.config.model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)

    @property
    def streams(self) -> int | None:
        """P of a ParScale model, None for any other."""
        found: int | None = getattr(self.model.config, "parscale_n", None)
        return found

    @property
    def parameters(self) -> int:
        """Number of parameters: shared ones once, packed ones one by one."""
        return int(self.model.num_parameters())


def best_device(wanted: str | None = None) -> torch.device:
    """Returns the wanted device, or the best there is.

    Raises:
        ModelRefusedError: There is no such device.
    """
    if wanted is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelRefusedError(f"device {wanted!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def load(spec: ModelSpec, device: torch.device) -> Loaded:
    """Loads a model as its specification says.

    Raises:
        ModelRefusedError: It cannot be loaded in this way, with the reason.
        EvaluationError: Its files cannot be had now.
    """
    kinds = {"Original": _original, "Delta": _delta, "Adapter": _adapter}
    if spec.weight_type not in kinds:
        raise ModelRefusedError(f"weight type {spec.weight_type!r} is not one of {', '.join(kinds)}")
    loaded = kinds[spec.weight_type](spec, device)
    if spec.chat_template and not loaded.tokenizer.chat_template:
        raise ModelRefusedError(f"{spec.model} is to be asked through its chat template, but its tokenizer has none")
    loaded.model.eval()
    return loaded


def _original(spec: ModelSpec, device: torch.device) -> Loaded:
    directory = model_directory(spec.model, spec.sha, spec.path, spec.remote_code)
    return Loaded(_weights(directory, spec, device), _tokenizer([directory], spec))


def _delta(spec: ModelSpec, device: torch.device) -> Loaded:
    """Adds the weights of the base to those of the delta, in the precision of the request.

    Every stored tensor is added once: embeddings that also serve as output head are one tensor with two names.
    """
    if spec.precision in QUANTISED:
        raise ModelRefusedError(f"Delta weights are added to others first; they cannot be loaded as {spec.precision}")
    directory = model_directory(spec.model, spec.sha, spec.path)
    base_directory = _base_directory(spec, None)
    model, base = _weights(directory, spec, device), _weights(base_directory, spec, device)
    ours, theirs = dict(model.named_parameters()), dict(base.named_parameters())
    for name in sorted(ours.keys() | theirs.keys()):
        shapes = [tuple(side[name].shape) if name in side else "nothing" for side in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise ModelRefusedError(f"{name} is {shapes[0]} in the delta and {shapes[1]} in {spec.base_model}")
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter += theirs[name]
    return Loaded(model, _tokenizer([directory, base_directory], spec), commit_of(base_directory))


def _adapter(spec: ModelSpec, device: torch.device) -> Loaded:
    """Puts a peft adapter on its base; with float weights the adapter has the same type as the base."""
    from peft import PeftModel

    directory = model_directory(spec.model, spec.sha, spec.path)
    config = read_config(directory, ADAPTER_CONFIG)
    if not (directory / ADAPTER_WEIGHTS).is_file():
        raise ModelRefusedError(f"adapter {spec.model} has no {ADAPTER_WEIGHTS}; only safetensors are loaded")
    named = config.get("base_model_name_or_path")
    revision = config.get("revision") if named == spec.base_model else None
    base_directory = _base_directory(spec, revision)
    tokenizer = _tokenizer([directory, base_directory], spec)
    base = _weights(base_directory, spec, device)
    if len(tokenizer) > base.get_input_embeddings().num_embeddings:  # an adapter may bring tokens of its own
        base.resize_token_embeddings(len(tokenizer))
    try:
        model = PeftModel.from_pretrained(base, str(directory), autocast_adapter_dtype=False)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelRefusedError(f"adapter {spec.model} does not fit {spec.base_model}: {_one_line(error)}") from error
    if spec.precision in DTYPES:
        model.to(DTYPES[spec.precision])
    return Loaded(model, tokenizer, commit_of(base_directory))


def _base_directory(spec: ModelSpec, revision: str | None) -> Path:
    if not spec.base_model:
        raise ModelRefusedError(f"{spec.weight_type} weights need a base model, and the request names none")
    return model_directory(spec.base_model, revision, spec.base_path)


def _weights(directory: Path, spec: ModelSpec, device: torch.device) -> Any:
    """Loads a checkpoint; one that lacks weights is refused, because transformers would draw them at random."""
    stored = read_config(directory)
    if "auto_map" in stored and not spec.remote_code and stored.get("model_type") not in CONFIG_MAPPING:
        raise ModelRefusedError(f"{spec.model} needs code of its own, which is not on the list in remote_code.yaml")
    arguments = loading_arguments(spec.precision, stored.get("quantization_config"), device)
    try:
        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=spec.remote_code)
        model, info = _auto_class(config).from_pretrained(
            directory,
            config=config,
            use_safetensors=True,
            trust_remote_code=spec.remote_code,
            output_loading_info=True,
            **arguments,
        )
    except _NOT_LOADABLE as error:
        if is_out_of_memory(error):
            raise
        raise ModelRefusedError(f"{spec.model} cannot be loaded from {directory.name}: {_one_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelRefusedError(f"{spec.model} lacks {len(missing)} of its weights, such as {missing[0]}")
    return model


def _auto_class(config: Any) -> Any:
    if config.model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return transformers.AutoModelForSeq2SeqLM
    return transformers.AutoModelForCausalLM


def _tokenizer(directories: list[Path], spec: ModelSpec) -> Any:
    """Loads the tokenizer of the first directory that has one: a delta or an adapter may bring its own."""
    directory = next((place for place in directories if (place / _TOKENIZER_CONFIG).is_file()), directories[-1])
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=spec.remote_code)
    except _NOT_LOADABLE as error:
        raise ModelRefusedError(f"the tokenizer of {spec.model} cannot be loaded: {_one_line(error)}") from error
    if not tokenizer("text", add_special_tokens=False)["input_ids"]:
        # what transformers makes of a directory without tokenizer files: one that knows no word
        raise ModelRefusedError(f"the tokenizer of {spec.model} is empty; its files are missing")
    return tokenizer


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:600]
