"""Where the text lies: a Hub dataset, an offline mirror of one, or a local folder.

All three have the Pile's layout (`train/NN.jsonl.zst`, `val.jsonl.zst`) and are read through one
fsspec file system, so that the code behind this module does not know which one it has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import HfApi, HfFileSystem, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from parcontrol.config import DataConfig
from parcontrol.data.seeding import seeded_int
from parcontrol.hub import limit_waiting, patiently
from parcontrol.mirror import MIRROR_VARIABLE, is_path, local_copy, mirror_directory

LOCAL_REVISION = "local"
SUFFIX = ".jsonl.zst"
VALIDATION_SPLITS = ("val", "validation")
# A run reads a few MB of each shard, so larger requests would mostly fetch what nobody reads;
# a MiB holds about 3.5 MB of text, which is long enough to hide the request behind.
BLOCK_SIZE = 1 << 20
# What a file system raises when bytes cannot be had; the Hub's HTTP errors are not all OSErrors.
READ_ERRORS = (OSError, HTTPError)


@dataclass(frozen=True)
class Shard:
    """One file of a corpus.

    Attributes:
        name: Path inside the corpus, such as `train/00.jsonl.zst`.
        path: Path inside the file system.
        size: Length of the compressed file, in bytes.
    """

    name: str
    path: str
    size: int
    filesystem: AbstractFileSystem

    def open(self) -> IO[bytes]:
        """Opens the compressed file; remote files are read in ranges, never as a whole."""
        if isinstance(self.filesystem, HfFileSystem):
            limit_waiting()
            return self.filesystem.open(self.path, "rb", block_size=BLOCK_SIZE)
        return self.filesystem.open(self.path, "rb")


@dataclass(frozen=True)
class Corpus:
    """The shards that a run reads.

    Attributes:
        name: Dataset id or folder, as configured.
        revision: Commit of the Hub dataset, or `local` for a folder or mirror.
        train_shards: The chosen train shards, ordered by name.
        validation_shards: The whole validation split, ordered by name.
    """

    name: str
    revision: str
    train_shards: tuple[Shard, ...]
    validation_shards: tuple[Shard, ...]


def open_corpus(config: DataConfig) -> Corpus:
    """Finds the corpus, resolves its revision to a commit and chooses the train shards by seed.

    A local folder named by `config.repo` wins over a mirror, a mirror over the Hub. Nothing but listings is read.

    Raises:
        ValueError: The corpus, its revision, a chosen shard or the validation split is not there, or the Hub is out of
            reach.
    """
    folder = local_copy("datasets", config.repo, config.mirror)
    filesystem, root, revision = _open_hub(config) if folder is None else _open_folder(config, folder)
    try:
        sizes = _list_shards(filesystem, root)
    except READ_ERRORS as error:
        raise ValueError(f"the shards of {config.repo} cannot be listed: {one_line(error)}") from error

    def shards(names: Iterable[str]) -> tuple[Shard, ...]:
        return tuple(Shard(name, f"{root}/{name}", sizes[name], filesystem) for name in names)

    train, validation = _choose_train_shards(config, sizes), _find_validation_split(config.repo, sizes)
    return Corpus(config.repo, revision, shards(train), shards(validation))


def one_line(error: BaseException) -> str:
    """Returns an error's text on one line, as messages of ours quote it."""
    return " ".join(str(error).split()) or type(error).__name__


def _open_folder(config: DataConfig, folder: Path) -> tuple[AbstractFileSystem, str, str]:
    if config.revision not in (None, LOCAL_REVISION):
        raise ValueError(
            f"data.revision {config.revision!r} cannot be had from {folder}: a local folder or mirror has no "
            "revisions; leave data.revision out, or read from the Hub"
        )
    return LocalFileSystem(), str(folder.resolve()), LOCAL_REVISION


def _open_hub(config: DataConfig) -> tuple[AbstractFileSystem, str, str]:
    if is_path(config.repo):
        raise ValueError(f"data.repo {config.repo!r}: there is no such folder")
    mirror = mirror_directory(config.mirror)
    if mirror:  # a mirror that was asked for is never passed over
        raise ValueError(f"the mirror {str(mirror)!r} holds no folder datasets/{config.repo}")
    limit_waiting()
    wanted = f"the dataset {config.repo!r}" + (f" at revision {config.revision!r}" if config.revision else "")
    try:
        commit = patiently(
            lambda: HfApi().dataset_info(config.repo, revision=config.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        ).sha
    except RevisionNotFoundError as error:
        raise ValueError(f"{wanted} is not on the Hub: there is no such revision") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"{wanted} is neither a folder here nor on the Hub, where it may be private: {one_line(error)}"
        ) from error
    except HfHubHTTPError as error:
        raise ValueError(f"the Hub refuses {wanted}: {one_line(error)}") from error
    except READ_ERRORS as error:
        raise ValueError(
            f"{wanted} is no folder here and the Hub is out of reach ({one_line(error)}); without a network set "
            f"data.repo to a folder, or data.mirror or {MIRROR_VARIABLE} to a mirror"
        ) from error
    assert commit is not None, config.repo
    return HfFileSystem(), f"datasets/{config.repo}@{commit}", commit


def _list_shards(filesystem: AbstractFileSystem, root: str) -> dict[str, int]:
    """Returns the size in bytes of every shard by its name, all splits."""
    if isinstance(filesystem, HfFileSystem):
        patiently(lambda: filesystem.resolve_path(root))  # asks once, and what follows trusts the answer
    sizes: dict[str, int] = {}
    for folder in (root, *(f"{root}/{split}" for split in ("train", *VALIDATION_SPLITS))):
        try:
            entries = filesystem.ls(folder, detail=True)
        except FileNotFoundError:
            continue  # whether anything needed is missing is seen from what was found
        names = {entry["name"].removeprefix(f"{root}/"): entry["size"] for entry in entries}
        sizes |= {name: size for name, size in names.items() if name.endswith(SUFFIX)}
    return sizes


def _choose_train_shards(config: DataConfig, sizes: Mapping[str, int]) -> list[str]:
    names = _with_gaps_filled(name for name in sizes if name.startswith("train/"))
    if len(names) < config.num_shards:
        raise ValueError(
            f"data.num_shards {config.num_shards} is more than the {len(names)} train shards "
            f"(train/*{SUFFIX}) of {config.repo}"
        )
    by_seed = sorted(names, key=lambda name: seeded_int("shard", config.seed, name))
    chosen = sorted(by_seed[: config.num_shards])
    missing = [name for name in chosen if name not in sizes]
    if missing:
        raise ValueError(
            f"{config.repo} has no shard {missing[0]} (byte 0), which data.seed {config.seed} chooses among the "
            f"{len(names)} that are numbered from 0 on"
        )
    return chosen


def _with_gaps_filled(names: Iterable[str]) -> set[str]:
    """Returns the names and, if they are numbers from 0 on, those below the largest that are not there.

    So a half-copied corpus is noticed where a chosen shard is missing, instead of the choice quietly falling on other
    shards. Names of which less than a tenth would be there are years, dates or the like, and stay as they are.
    """
    names = set(names)
    matches = [re.fullmatch(rf"train/(\d+){re.escape(SUFFIX)}", name) for name in names]
    digits = [match[1] for match in matches if match]
    largest = max(map(int, digits), default=0)
    if len(digits) < len(names) or len({len(number) for number in digits}) != 1 or largest >= 10 * len(names):
        return names
    return {f"train/{number:0{len(digits[0])}}{SUFFIX}" for number in range(largest + 1)}


def _find_validation_split(repo: str, sizes: Iterable[str]) -> list[str]:
    split = re.compile(rf"({'|'.join(VALIDATION_SPLITS)})(/[^/]+)?{re.escape(SUFFIX)}")
    names = sorted(name for name in sizes if split.fullmatch(name))
    if not names:
        raise ValueError(f"{repo} has no validation split (val{SUFFIX})")
    return names
