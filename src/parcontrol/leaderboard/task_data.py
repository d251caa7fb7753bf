"""Where the rows of a task lie: in an offline mirror of the Hub, or on the Hub.

Only data files of the evaluated split are read, and no code. Which files these are is said by the repository's card, or
else by the names of folders and files.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from parcontrol.leaderboard.registry import TaskSpec
from parcontrol.mirror import MIRROR_VARIABLE, mirror_directory

CARD = "README.md"
_LOADERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".parquet": ("parquet", {}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"sep": "\t", "keep_default_na": False}),
}
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
_SPLITS = (
    {"train", "training"},
    {"validation", "valid", "val", "dev"},
    {"test", "testing", "eval", "evaluation"},
)
# As `datasets` pushes a split, under any name: data/cieacf-00000-of-00001.parquet.
_PUSHED = re.compile(r"data/[^/]+-\d{5}-of-\d{5}[^/]*$")
_SHARD = re.compile(r"[-_.](\d{4,}(-of-\d{4,})?|part-?\d+)$")
# JSON files that describe a repository and hold no rows; `datasets` leaves them out too.
_DESCRIPTIONS = {"config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json"}
# Names of files and folders that say nothing about what is in them.
_PLAIN = {"data", "default", "dataset", "part", "shard", ""}


@dataclass(frozen=True)
class _Repository:
    """A dataset repository: its files, and how to get one of them onto this machine."""

    name: str
    files: Sequence[str]
    fetch: Callable[[str], Path]


def find_rows(spec: TaskSpec, mirror: str | None = None) -> dict[str, Any]:
    """Returns where a task's rows lie, as arguments of `datasets.load_dataset`; the split keeps its name.

    Args:
        spec: The task.
        mirror: Directory laid out as `datasets/<id>`; None takes PARCONTROL_MIRROR. A repository that the mirror lacks
            is read from the Hub, or from the one that HF_ENDPOINT names.

    Raises:
        ValueError: The repository, the configuration or the split cannot be had.
    """
    repository = _in_mirror(spec, mirror) or _on_hub(spec, mirror)
    try:
        card = repository.fetch(CARD).read_text(encoding="utf-8") if CARD in repository.files else ""
        files = choose_files(repository.files, _declared_configs(card), spec.config, spec.split)
    except ValueError as error:
        raise ValueError(f"dataset {repository.name} {error}") from error
    builder, options = _LOADERS[_suffix(files[0])]
    return {"path": builder, "data_files": {spec.split: [str(repository.fetch(file)) for file in files]}, **options}


def choose_files(
    files: Sequence[str], declared: Mapping[str, Mapping[str, list[str]]], config: str | None, split: str
) -> list[str]:
    """Returns the files of one split, in order.

    Args:
        files: Paths in the repository.
        declared: Patterns of files by configuration and split, as the repository's card has them; empty without.
        config: The configuration; None for the only one.
        split: The split. Where it is not found, another name of the same kind is taken: `dev` for `validation`.

    Raises:
        ValueError: There is no such configuration or split.
    """
    data = sorted(file for file in files if _suffix(file) in _LOADERS and not _hidden(file))
    chosen = _declared_files(data, declared, config, split) if declared else _files_by_name(data, config, split)
    if not chosen:
        where = f"configuration {config!r}, " if config else ""
        raise ValueError(f"has no files for {where}split {split!r} (it has {', '.join(data[:8]) or 'no data files'})")
    suffixes = {_suffix(file) for file in chosen}
    best = next(suffix for suffix in _LOADERS if suffix in suffixes)
    return [file for file in chosen if _suffix(file) == best]


def _declared_files(
    files: Sequence[str], declared: Mapping[str, Mapping[str, list[str]]], config: str | None, split: str
) -> list[str]:
    if config is None:
        config = "default" if "default" in declared or len(declared) > 1 else next(iter(declared))
    if config not in declared:
        raise ValueError(f"has no configuration {config!r} (it has {', '.join(declared)})")
    splits = declared[config]
    name = next((name for name in _split_names(split) if name in splits), None)
    if name is None:
        raise ValueError(f"configuration {config!r} has no split {split!r} (it has {', '.join(splits)})")
    return [file for file in files if any(_matches(file, pattern) for pattern in splits[name])]


def _matches(file: str, pattern: str) -> bool:
    """Whether a path matches a pattern in which `*` stays within a folder and `**` does not."""
    if "**" in pattern:
        return fnmatch.fnmatchcase(file, pattern.replace("**/", "*").replace("**", "*"))
    parts, patterns = PurePosixPath(file).parts, PurePosixPath(pattern).parts
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _files_by_name(files: Sequence[str], config: str | None, split: str) -> list[str]:
    files = _of_config(files, config)
    for name in _split_names(split):
        for says in (_stem_is, _stem_names, _folder_names):
            if chosen := [file for file in files if says(file, name, config)]:
                return chosen
    # Where no file names a split, the repository has only one, which `datasets` calls `train`: it is the one that was
    # asked for. But a name that says something may stand for another configuration, or for a split of that name.
    usual = config is None and len(_split_names(split)) > 1
    unsplit = all((usual or _stem(file, config) in _PLAIN) and not _names_a_split(file, config) for file in files)
    return list(files) if unsplit else []


def _names_a_split(file: str, config: str | None) -> bool:
    stem = _stem(file, config)
    words = {*re.split(r"[-_.]", stem), *PurePosixPath(file).parts[:-1]}
    return not words.isdisjoint(set().union(*_SPLITS)) or (stem not in _PLAIN and bool(_PUSHED.match(file)))


def _of_config(files: Sequence[str], config: str | None) -> list[str]:
    """The files in a configuration's folder, or named after it; without any, those that name no configuration."""
    if config is None:
        folders = {PurePosixPath(file).parts[0] for file in files if len(PurePosixPath(file).parts) > 2}
        return [file for file in files if len(folders) < 2 or PurePosixPath(file).parts[0] == "default"]
    inside = [file for file in files if config in PurePosixPath(file).parts[:-1]]
    named = [file for file in files if re.match(rf"{re.escape(config)}([-_.]|$)", _bare(file))]
    return inside or named or [file for file in files if _names_no_config(file)]


def _names_no_config(file: str) -> bool:
    splits = set().union(*_SPLITS)
    return all(folder in _PLAIN | splits for folder in PurePosixPath(file).parts[:-1])


def _stem_is(file: str, split: str, config: str | None) -> bool:
    return _stem(file, config) == split


def _stem_names(file: str, split: str, config: str | None) -> bool:
    return split in re.split(r"[-_.]", _stem(file, config))


def _folder_names(file: str, split: str, config: str | None) -> bool:
    return split in PurePosixPath(file).parts[:-1] and _stem(file, config) in _PLAIN


def _stem(file: str, config: str | None) -> str:
    """A file's name without configuration, number of the shard and suffixes: what is left to name the split."""
    stem = _SHARD.sub("", "-" + _bare(file)).lstrip("-")
    if config and re.match(rf"{re.escape(config)}([-_.]|$)", stem):
        stem = stem[len(config) :].lstrip("-_.")
    return stem


def _bare(file: str) -> str:
    name = PurePosixPath(file).name.removesuffix(_compression(file))
    return name.removesuffix(_suffix(file))


def _suffix(file: str) -> str:
    return PurePosixPath(file.removesuffix(_compression(file))).suffix


def _compression(file: str) -> str:
    return next((suffix for suffix in _COMPRESSED if file.endswith(suffix)), "")


def _hidden(file: str) -> bool:
    path = PurePosixPath(file)
    return path.name in _DESCRIPTIONS or any(part.startswith((".", "_")) for part in path.parts)


def _split_names(split: str) -> list[str]:
    """The split's name, and then other names of the same kind of split."""
    kind = next((names for names in _SPLITS if split in names), set())
    return [split, *sorted(kind - {split})]


def _declared_configs(card: str) -> dict[str, dict[str, list[str]]]:
    """Reads the patterns of files by configuration and split from a card's header; empty where it declares none.

    Raises:
        ValueError: The header is no YAML, or its `configs` have not the form that the Hub documents.
    """
    header = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", card, re.DOTALL)
    if not header:
        return {}
    try:
        configs = (yaml.safe_load(header[1]) or {}).get("configs") or []
        return {
            entry.get("config_name", "default"): _patterns(entry["data_files"], entry.get("data_dir"))
            for entry in configs
            if entry.get("data_files")
        }
    except yaml.YAMLError as error:
        raise ValueError(f"has a card whose header is no YAML: {' '.join(str(error).split())}") from error
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"has a card whose header is not as expected, with a list of `configs` that have `data_files`: {error!r}"
        ) from error


def _patterns(data_files: Any, folder: str | None) -> dict[str, list[str]]:
    """One configuration's `data_files`: patterns, lists of them by split, or a list of splits with paths."""
    if isinstance(data_files, dict):
        entries = list(data_files.items())
    elif isinstance(data_files, list) and isinstance(data_files[0], dict):
        entries = [(entry["split"], entry["path"]) for entry in data_files]
    else:
        entries = [("train", data_files)]
    return {
        split: [str(PurePosixPath(folder or "") / path) for path in ([paths] if isinstance(paths, str) else paths)]
        for split, paths in entries
    }


def _in_mirror(spec: TaskSpec, mirror: str | None) -> _Repository | None:
    root = mirror_directory(mirror)
    if root is None:
        return None
    if not root.is_dir():
        raise ValueError(f"the mirror {root} is no directory")
    folder = next((place for name in spec.datasets if (place := root / "datasets" / name).is_dir()), None)
    if folder is None:
        return None
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return _Repository(folder.relative_to(root / "datasets").as_posix(), files, lambda file: folder / file)


def _on_hub(spec: TaskSpec, mirror: str | None) -> _Repository:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, RevisionNotFoundError

    hub, name = HfApi(), spec.dataset

    def list_files(revision: str | None) -> list[str]:
        return hub.list_repo_files(name, repo_type="dataset", revision=revision)

    def fetch(file: str) -> Path:
        return Path(hub.hf_hub_download(name, file, repo_type="dataset", revision=revision))

    revision = spec.revision
    try:
        try:
            files = list_files(revision)
        except RevisionNotFoundError:
            # A Hub of one's own has no branches that the public one adds by itself.
            revision = None
            files = list_files(revision)
    except (HfHubHTTPError, HTTPError, OSError) as error:
        root = mirror_directory(mirror)
        raise ValueError(
            f"dataset {name} cannot be had: "
            + (f"it is not in the mirror {root}, and " if root else "")
            + f"the Hub {hub.endpoint} answers: {' '.join(str(error).split())}"
            + ("" if root else f" ({MIRROR_VARIABLE} names an offline mirror)")
        ) from error
    return _Repository(name, files, fetch)
