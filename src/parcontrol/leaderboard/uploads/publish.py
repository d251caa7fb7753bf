"""Writes splits as a dataset repository: parquet files and a card, to the Hub or to a directory.

    <config>/<split>-00000-of-00001.parquet    `data/` in place of the name of the default configuration
    README.md                                  names configurations and splits for `datasets.load_dataset`

Other configurations and splits of the repository stay, and so does the text of its card.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from parcontrol.leaderboard.settings import TOKEN_VARIABLE, Settings
from parcontrol.leaderboard.store import Snapshot, update
from parcontrol.leaderboard.uploads.converter import Converter, Split

CARD = "README.md"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?", re.ASCII)
_CARD = re.compile(r"\A---\n(.*?\n)---\n(.*)\Z", re.DOTALL)

Read = Callable[[str], bytes]


def is_directory(repo: str) -> bool:
    """Whether a target means a directory: it exists, or it is no name that the Hub could have."""
    return Path(repo).expanduser().is_dir() or not _HUB_ID.fullmatch(repo)


def publish(splits: Sequence[Split], converter: Converter, repo: str, settings: Settings) -> str:
    """Writes splits to a repository and returns where they are.

    Args:
        splits: What to write.
        converter: What they are of.
        repo: A dataset repository of the Hub (`organisation/name`), which is created, private, if there is none; or a
            directory.
        settings: Token and address of the Hub.

    Raises:
        ValueError: The directory cannot be written, there is no token for the Hub, or the card there is broken.
        StoreError: The Hub cannot be reached or refuses.
    """
    if is_directory(repo):
        directory = Path(repo).expanduser()
        try:
            _write_to_directory(splits, converter, directory)
        except OSError as error:
            raise ValueError(f"{directory} cannot be written: {error}") from error
        return str(directory)
    if settings.token is None:
        raise ValueError(
            f"{repo} is on the Hub, which takes no uploads without a token: set {TOKEN_VARIABLE}, or name a directory, "
            "such as ./NAME, with --repo"
        )
    # Before huggingface_hub is imported: Xet takes no buffers, and says so for every file.
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    from parcontrol.leaderboard.store.hub import HubStore

    store = HubStore(repo, settings.token, settings.endpoint)

    def propose(snapshot: Snapshot) -> Mapping[str, bytes | None]:
        return changes(splits, converter, snapshot.files, lambda path: store.read(path, snapshot))

    update(store, propose, f"{converter.name} from its original files")
    return f"{settings.endpoint or 'https://huggingface.co'}/datasets/{repo}"


def changes(splits: Sequence[Split], converter: Converter, there: Iterable[str], read: Read) -> dict[str, bytes | None]:
    """Returns what to write, None for what to delete.

    Args:
        splits: The splits.
        converter: What they are of.
        there: Paths of the files in the repository.
        read: Returns one of them.
    """
    written: dict[str, bytes | None] = {split.prefix + "00000-of-00001.parquet": _parquet(split) for split in splits}
    card = read(CARD).decode("utf-8", errors="replace") if CARD in set(there) else None
    written[CARD] = _card(card, splits, converter).encode()
    # Shards of an earlier upload would be read as well.
    prefixes = tuple(split.prefix for split in splits)
    stale = {path: None for path in there if path.startswith(prefixes) and path not in written}
    return written | stale


def _parquet(split: Split) -> bytes:
    from datasets import Features

    # What `datasets` writes into its own files, so that types come back as they were.
    schema = Features.from_arrow_schema(split.table.schema).arrow_schema
    buffer = io.BytesIO()
    pq.write_table(split.table.cast(schema).replace_schema_metadata(schema.metadata), buffer, compression="zstd")
    return buffer.getvalue()


def _card(card: str | None, splits: Sequence[Split], converter: Converter) -> str:
    """The card, with the splits in its configurations."""
    data, text = _parse_card(card) if card is not None else ({}, _text(converter))
    configs = data.get("configs")
    by_name = {config["config_name"]: config for config in configs or [] if isinstance(config, dict)}
    for split in splits:
        config = by_name.setdefault(split.config, {"config_name": split.config})
        files = config.get("data_files")
        # Files without a named split cannot stand beside one with a name.
        files = [file for file in (files if isinstance(files, list) else []) if isinstance(file, dict)]
        files = [file for file in files if file.get("split") != split.name]
        config["data_files"] = [*files, {"split": split.name, "path": split.prefix + "*"}]
    data["configs"] = list(by_name.values())
    # Sizes and features that were true of the files before.
    data.pop("dataset_info", None)
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n{text}"


def _parse_card(card: str) -> tuple[dict[str, Any], str]:
    match = _CARD.match(card.replace("\r\n", "\n"))
    if match is None:
        return {}, card
    try:
        data = yaml.safe_load(match[1]) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"the card there, {CARD}, has broken YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ValueError(f"the card there, {CARD}, does not begin with YAML keys")
    return data, match[2]


def _text(converter: Converter) -> str:
    return (
        f"\n# {converter.name}\n\nMade from {converter.original} by `parcontrol leaderboard upload {converter.name}`.\n"
    )


def _write_to_directory(splits: Sequence[Split], converter: Converter, directory: Path) -> None:
    there = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    for path, content in changes(splits, converter, there, lambda path: (directory / path).read_bytes()).items():
        place = directory / path
        if content is None:
            place.unlink()
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".partial-", delete=False) as file:
            file.write(content)
        os.chmod(file.name, 0o644)
        os.replace(file.name, place)
