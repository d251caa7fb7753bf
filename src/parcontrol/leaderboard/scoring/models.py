"""Loading of the models that score: from an offline mirror, a folder or the Hub, never with code of theirs.

Weights may be pickles (`pytorch_model.bin`), which is all that the Hub has of some of them: transformers and torch read
these with `weights_only`, which builds tensors and refuses to call anything else.
"""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from parcontrol.leaderboard.model_source import content_hash
from parcontrol.mirror import local_copy

# What transformers raises for models that are not there, incomplete, damaged, of an unknown kind, or that need a
# library that is not installed.
_UNLOADABLE = (OSError, ValueError, ImportError, RuntimeError, pickle.UnpicklingError, SafetensorError)
_DEFAULT_MAX_LENGTH = 512


class AbsentError(ValueError):
    """A metric cannot be had; the message is the reason that the results file gives."""


@dataclass(frozen=True)
class ScorerModel:
    """A loaded model.

    Attributes:
        model: In float32 and evaluation mode, on the accelerator if there is one. Any: what it has depends on its kind.
        tokenizer: Its tokenizer.
        max_length: How many tokens fit into it.
        source: Its name, `model`, and `sha`: the commit on the Hub, or `local-` and a hash of a folder's files.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    source: dict[str, str | None]

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        device: torch.device = self.model.device
        return device


def load_model(auto_class: Any, repo: str, tokenizer_repo: str | None = None, **options: Any) -> ScorerModel:
    """Loads a model that scores.

    Args:
        auto_class: One of the Auto classes of transformers.
        repo: Folder, or name on the Hub; a copy in the mirror wins over the Hub.
        tokenizer_repo: Where the tokenizer is, if the model's repository has none.
        options: For the tokenizer.

    Raises:
        AbsentError: The model cannot be reached or loaded, or lacks weights.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, on files that are as they are
            tokenizer = AutoTokenizer.from_pretrained(_tokenizer_place(repo, tokenizer_repo), token=False, **options)
            model, report = auto_class.from_pretrained(
                _place(repo), token=False, dtype=torch.float32, weights_only=True, output_loading_info=True
            )
    except _UNLOADABLE as error:
        raise AbsentError(f"{repo} cannot be loaded: {_first_line(error)}") from error
    # transformers fills missing weights with random numbers. An encoder's pooler is not used by what reads its states.
    encoder = auto_class is AutoModel
    missing = sorted(key for key in report["missing_keys"] if not (encoder and key.startswith("pooler.")))
    if missing:
        raise AbsentError(f"{repo} lacks weights: {', '.join(missing[:3])}")
    return ScorerModel(
        model.eval().to(_device()),
        tokenizer,
        _max_length(model.config, tokenizer),
        {"model": repo, "sha": content_hash(local) if (local := local_copy("models", repo)) else _commit(model)},
    )


def _place(repo: str) -> str:
    return str(local_copy("models", repo) or repo)


def _tokenizer_place(repo: str, tokenizer_repo: str | None) -> str:
    local = local_copy("models", repo)
    if tokenizer_repo is None or (local and (local / "tokenizer_config.json").is_file()):
        return _place(repo)
    return _place(tokenizer_repo)


def _commit(model: Any) -> str | None:
    commit: str | None = getattr(model.config, "_commit_hash", None)
    return commit


def _device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _max_length(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    positions = getattr(config, "max_position_embeddings", None) or _DEFAULT_MAX_LENGTH
    if config.model_type in ("roberta", "xlm-roberta", "longformer", "camembert"):
        positions -= config.pad_token_id + 1  # these count positions from behind the padding's
    return min(positions, tokenizer.model_max_length)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
