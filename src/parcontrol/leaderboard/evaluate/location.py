"""Where a model's files lie: a directory, the offline mirror, or a download of one commit without pickles or code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from parcontrol.leaderboard.evaluate.errors import EvaluationError, ModelRefusedError
from parcontrol.leaderboard.model_source import content_hash
from parcontrol.mirror import local_copy

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Everything that transformers reads, at the top of the repository only, and nothing that could run.
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
_CODE = ["*.py"]
_LOCAL = "local-"
_NOT_READ = ["*/*", "consolidated*.safetensors"]


def model_directory(name: str, revision: str | None, path: str | None = None, remote_code: bool = False) -> Path:
    """Returns the directory with a model's files.

    Args:
        name: Name on the Hub or in the mirror, or a directory.
        revision: Commit on the Hub, or `local-…` for what must be the hash of a directory's files; None takes what is
            there, the newest on the Hub.
        path: Directory that holds the files, which are then taken from nowhere else.
        remote_code: Whether Python files are downloaded too.

    Raises:
        ModelRefusedError: There is no such model, or it is not open to everybody.
        EvaluationError: The Hub cannot be reached.
    """
    if path:
        if not Path(path).is_dir():
            raise ModelRefusedError(f"directory {path!r} of model {name!r} does not exist on this machine")
        return _unchanged(Path(path), name, revision)
    local = revision is None or revision.startswith(_LOCAL)
    if local and (found := local_copy("models", name)):  # which is no commit that anybody could name
        return _unchanged(found, name, revision)
    patterns = _FILES + _CODE * remote_code
    try:
        # token=False: not even one that somebody left in a place of which we do not know
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=_NOT_READ, token=False)
        )
    except GatedRepoError as error:
        raise ModelRefusedError(f"model {name!r} is gated: evaluation has no token to open it with") from error
    except LocalEntryNotFoundError as error:
        raise EvaluationError(f"model {name!r} at {revision} cannot be downloaded: {error}") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, HFValidationError) as error:
        raise ModelRefusedError(f"model {name!r} at {revision} does not exist: {error}") from error
    except (HfHubHTTPError, OSError) as error:
        raise EvaluationError(f"model {name!r} at {revision} cannot be downloaded: {error}") from error


def _unchanged(directory: Path, name: str, sha: str | None) -> Path:
    """Returns a directory if it holds what was submitted."""
    if sha and sha.startswith(_LOCAL) and content_hash(directory) != sha:
        raise ModelRefusedError(f"the files of {name} in {directory} are no longer those that were submitted")
    return directory


def commit_of(directory: Path) -> str:
    """Returns the commit of a directory that was downloaded from the Hub, the hash of the files of any other."""
    return directory.name if directory.parent.name == "snapshots" else content_hash(directory)


def read_config(directory: Path, name: str = "config.json") -> dict[str, Any]:
    """Returns a JSON configuration as it is written.

    Raises:
        ModelRefusedError: There is none, or it is no JSON object.
    """
    try:
        content = json.loads((directory / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelRefusedError(f"{directory.name} has no readable {name}: {error}") from error
    if not isinstance(content, dict):
        raise ModelRefusedError(f"{directory.name} has a {name} that is no JSON object")
    return content
