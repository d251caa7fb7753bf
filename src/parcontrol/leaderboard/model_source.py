"""Where a submitted model lies, and what can be known of it without loading its weights.

A model is a directory of this machine, an entry of the offline mirror, or a repository on the Hub. On the Hub it is
looked at without a token, as the worker will load it: what is private or gated is not there for either.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from parcontrol.leaderboard.records import FieldError, Precision, WeightType, check_model_name, check_revision
from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store.base import quoted

NOT_STATED = "not stated"
LOCAL_ORGANISATION = "local"

CONFIG, ADAPTER_CONFIG, CARD = "config.json", "adapter_config.json", "README.md"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_MAX_SMALL_FILE_BYTES = 16 << 20
# Types of weights in a configuration, as the board names them.
_FLOATS = {precision.value: precision for precision in (Precision.FLOAT32, Precision.FLOAT16, Precision.BFLOAT16)}

Result = TypeVar("Result")


@dataclass(frozen=True)
class ModelSource:
    """A model that was found.

    Attributes:
        model: Its name on the board.
        revision: Branch, tag or commit that was asked for.
        sha: The commit, or `local-` and a hash of the files where there are no commits.
        likes: On the Hub.
        directory: Where the whole model lies on this machine, None on the Hub.
        by_path: Whether it was named by its directory, and not by a name of the Hub.
        settings: Where the Hub is.
    """

    model: str
    revision: str
    sha: str
    likes: int
    directory: Path | None
    by_path: bool
    settings: Settings

    def read(self, name: str) -> bytes | None:
        """Returns a small file of the model, None if there is none.

        Raises:
            ValueError: It is larger than such a file can be.
            StoreError: The Hub cannot be reached.
        """
        path = self._small_file(name)
        if path is None:
            return None
        if path.stat().st_size > _MAX_SMALL_FILE_BYTES:
            raise ValueError(f"{self.model}: {name} has {path.stat().st_size:,} bytes: that is no {name}")
        return path.read_bytes()

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Returns a small JSON file of the model, None if there is none.

        Raises:
            ValueError: It holds no JSON object.
        """
        content = self.read(name)
        if content is None:
            return None
        try:
            data = json.loads(content)
        except ValueError as error:
            raise ValueError(f"{self.model}: {name} is no valid JSON: {error}") from error
        if not isinstance(data, dict):
            raise ValueError(f"{self.model}: {name} is no JSON object")
        return data

    def _small_file(self, name: str) -> Path | None:
        if self.directory:
            path = self.directory / name
            return path if path.is_file() else None
        from huggingface_hub.errors import EntryNotFoundError

        def download() -> Path | None:
            try:
                return Path(_hub(self.settings).hf_hub_download(self.model, name, revision=self.sha))
            except EntryNotFoundError:
                return None

        return _ask(download, f"{self.model}: read {name}")

    # --- what is known of it ---

    @cached_property
    def config(self) -> Any:
        """The configuration, as transformers reads it without running any code of the model's.

        Raises:
            ValueError: There is none, or transformers cannot read it.
        """
        raw = self.read_json(CONFIG)
        if raw is None:
            raise ValueError(f"{self.model} has no {CONFIG}: it is no model of transformers")
        from transformers import AutoConfig

        # In a directory of its own, so that nothing but the configuration is looked at.
        with tempfile.TemporaryDirectory(prefix="parcontrol-") as scratch:
            Path(scratch, CONFIG).write_text(json.dumps(raw), encoding="utf-8")
            try:
                return AutoConfig.from_pretrained(scratch, trust_remote_code=False)
            except Exception as error:  # whatever a configuration of a stranger's makes transformers raise
                if "trust_remote_code" in str(error):
                    raise ValueError(
                        f"{self.model} needs code of its own (model type {quoted(raw.get('model_type'))}), which is "
                        "never run here: only models that transformers or parcontrol know can be submitted"
                    ) from error
                reason = (str(error).strip() or type(error).__name__).splitlines()[0].replace(scratch, CONFIG)
                raise ValueError(f"{self.model}: its configuration cannot be loaded: {reason[:300]}") from error

    def precision(self) -> Precision:
        """Returns the precision that the weights are saved in.

        Raises:
            ValueError: It is not one of the board's.
        """
        quantization = getattr(self.config, "quantization_config", None)
        if quantization:
            found = dict(quantization) if isinstance(quantization, dict) else quantization.to_dict()
            method = str(found.get("quant_method", "")).lower()
            if method == "gptq":
                return Precision.GPTQ
            if method == "bitsandbytes" and (found.get("load_in_8bit") or found.get("load_in_4bit")):
                return Precision.INT8 if found.get("load_in_8bit") else Precision.INT4
            raise ValueError(f"{self.model} is quantised by {quoted(method)}: no precision of the board")
        name = str(self.config.dtype or "").removeprefix("torch.")
        return _FLOATS.get(name, Precision.FLOAT32)

    def parameters(self, weight_type: WeightType) -> float:
        """Returns how many parameters the safetensors files hold, in billions (10⁹).

        Raises:
            ValueError: There are no such files, or they are damaged.
        """
        from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

        try:
            count = self._adapter_count() if weight_type is WeightType.ADAPTER else self._model_count()
        except (NotASafetensorsRepoError, FileNotFoundError) as error:
            wanted = ADAPTER_WEIGHTS if weight_type is WeightType.ADAPTER else "model.safetensors, whole or in parts"
            raise ValueError(
                f"{self.model} has no weights in safetensors ({wanted}): other formats can run code and are not loaded"
            ) from error
        except SafetensorsParsingError as error:
            raise ValueError(f"{self.model}: its weights are damaged: {str(error)[:300]}") from error
        return round(count / 1e9, 6)

    def _model_count(self) -> int:
        from huggingface_hub import get_local_safetensors_metadata

        if self.directory:
            return sum(get_local_safetensors_metadata(self.directory).parameter_count.values())
        hub = _hub(self.settings)
        what = f"{self.model}: read the weights' metadata"
        found = _ask(lambda: hub.get_safetensors_metadata(self.model, revision=self.sha), what)
        return sum(found.parameter_count.values())

    def _adapter_count(self) -> int:
        from huggingface_hub import parse_local_safetensors_file_metadata
        from huggingface_hub.errors import EntryNotFoundError

        if self.directory:
            return sum(parse_local_safetensors_file_metadata(self.directory / ADAPTER_WEIGHTS).parameter_count.values())

        def parse() -> int:
            try:
                hub = _hub(self.settings)
                found = hub.parse_safetensors_file_metadata(self.model, ADAPTER_WEIGHTS, revision=self.sha)
            except EntryNotFoundError as error:
                raise FileNotFoundError(ADAPTER_WEIGHTS) from error
            return sum(found.parameter_count.values())

        return _ask(parse, f"{self.model}: read the weights' metadata")

    def license(self) -> str:
        """Returns the licence that the model card states; `not stated` for a directory without.

        Raises:
            ValueError: There is no model card, or it states none.
        """
        if not (self.read(CARD) or b"").strip():
            raise ValueError(f"{self.model} has no model card: describe it, with its licence, in a {CARD}")
        stated = self._front_matter().get("license")
        names = [str(name) for name in (stated if isinstance(stated, list) else [stated]) if name]
        if names:
            return ", ".join(names)
        if self.by_path:
            return NOT_STATED
        raise ValueError(f"{self.model}: its model card states no licence: add `license: …` to the top of its {CARD}")

    def _front_matter(self) -> dict[str, Any]:
        from huggingface_hub import metadata_load

        path = self._small_file(CARD)
        assert path, "the card has been read"
        try:
            return dict(metadata_load(path) or {})
        except Exception as error:  # YAML of a stranger's
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{self.model}: the top of its {CARD} cannot be read: {reason[:300]}") from error


def find_model(name: str, revision: str, settings: Settings, local_name: str | None = None) -> ModelSource:
    """Finds a model: a directory (for a local store), else in the mirror, else on the Hub.

    Args:
        name: A directory, or a name on the Hub.
        revision: Branch, tag or commit.
        settings: Where mirror and Hub are, and whether the store is local.
        local_name: Name on the board for a directory, instead of its own.

    Raises:
        ValueError: There is no such model, or no such revision.
        StoreError: The Hub cannot be reached.
    """
    check_revision(revision)
    if _is_directory(name, settings):
        return _in_directory(Path(os.path.expanduser(name)).resolve(), revision, settings, local_name)
    check_model_name(name)
    mirrored = settings.mirror / "models" / name if settings.mirror else None
    if mirrored and mirrored.is_dir():
        return _in_mirror(name, mirrored, revision, settings)
    return _on_hub(name, revision, settings)


def content_hash(directory: Path) -> str:
    """Returns the stand-in for a commit of a directory: `local-` and a SHA-256 of names and contents of its files.

    Hidden files and folders are left out.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        relative = path.relative_to(directory)
        if any(part.startswith(".") for part in relative.parts):
            continue
        with path.open("rb") as file:
            digest.update(f"{relative.as_posix()}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"local-{digest.hexdigest()}"


def _is_directory(name: str, settings: Settings) -> bool:
    """Whether a model is named by its directory: by a path, or in a local store by a folder that is there."""
    is_there = bool(name) and os.path.isdir(os.path.expanduser(name))
    if name.startswith(("/", ".", "~")):
        if settings.on_hub:
            raise ValueError(f"{quoted(name)} is a directory: a store on the Hub takes models that are on the Hub")
        if not is_there:
            raise ValueError(f"{quoted(name)}: there is no such directory")
    return is_there and not settings.on_hub


def _in_directory(directory: Path, revision: str, settings: Settings, local_name: str | None) -> ModelSource:
    _only_main(str(directory), revision)
    name = f"{LOCAL_ORGANISATION}/{local_name or directory.name}"
    try:
        check_model_name(name)
    except ValueError as error:
        raise ValueError(f"{error}: rename the directory") from error
    return ModelSource(name, revision, content_hash(directory), 0, directory, True, settings)


def _in_mirror(name: str, directory: Path, revision: str, settings: Settings) -> ModelSource:
    sha = content_hash(directory)
    if revision != sha:
        _only_main(name, revision)
    return ModelSource(name, revision, sha, 0, directory, False, settings)


def _only_main(name: str, revision: str) -> None:
    if revision != "main":
        message = f"{quoted(name)} is a directory and has no revision {quoted(revision)}: leave the revision out"
        raise FieldError(message, "revision")


def _on_hub(name: str, revision: str, settings: Settings) -> ModelSource:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    def look() -> Any:
        try:
            return _hub(settings).model_info(name, revision=revision)
        except GatedRepoError as error:
            raise ValueError(f"{name} is gated: the workers cannot load it") from error
        except RepositoryNotFoundError as error:
            where = "neither in the mirror nor on the Hub" if settings.mirror else "not on the Hub, or private"
            raise ValueError(f"{name} is {where}") from error
        except RevisionNotFoundError as error:
            raise FieldError(f"{name} has no revision {quoted(revision)}", "revision") from error

    info = _ask(look, f"look for {name}")
    if info.gated:
        raise ValueError(f"{name} is gated: the workers cannot load it")
    # The Hub's own spelling: it finds names in any case.
    return ModelSource(check_model_name(info.id), revision, info.sha, info.likes or 0, None, False, settings)


def _hub(settings: Settings) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=settings.endpoint, token=False)


def _ask(call: Callable[[], Result], what: str) -> Result:
    from parcontrol.leaderboard.store.hub import patiently

    return patiently(call, what)
