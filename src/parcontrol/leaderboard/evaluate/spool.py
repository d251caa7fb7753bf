"""Finished tasks on this machine's disk, until they are published.

    SPOOL/<org>__<model>__<sha>__<precision>__<weight type>[__chat]/<task>/results.json
                                                                         samples.jsonl.zst

A task's directory appears whole: present means finished. One process at a time works in a model's directory and holds
its lock, which the system releases when that process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import orjson
import zstandard

from parcontrol.leaderboard.evaluate.errors import machine_fault
from parcontrol.leaderboard.evaluate.model_spec import Conditions, ModelSpec
from parcontrol.leaderboard.registry import select
from parcontrol.leaderboard.result_file import FUTURE_SECONDS, parse, read_date, read_limited
from parcontrol.runs import atomic_directory

logger = logging.getLogger(__name__)

RESULTS = "results.json"
SAMPLES = "samples.jsonl.zst"
_LOCK = ".lock"
_BROKEN = ".broken"  # ends the name of a task's directory that was set aside

# JSON has no NaN: orjson writes null. Keys of harness results may be numbers.
_JSON = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY


@dataclass(frozen=True)
class Spooled:
    """A finished task in the spool.

    Attributes:
        task: Its name in the registry.
        directory: Where it lies.
        results: The harness's result dictionary of this one task, with our `parcontrol` block.
    """

    task: str
    directory: Path
    results: dict[str, Any]

    @property
    def block(self) -> dict[str, Any]:
        """Our part of the results."""
        block: dict[str, Any] = self.results["parcontrol"]
        return block

    @property
    def model(self) -> ModelSpec:
        """Whose results they are."""
        names = ("model", "sha", "precision", "weight_type", "chat_template")
        return ModelSpec(**{name: self.block[name] for name in names})

    @property
    def conditions(self) -> Conditions:
        """What else they depend on."""
        return Conditions(**{field.name: self.block[field.name] for field in fields(Conditions)})

    @property
    def samples(self) -> Path:
        """One JSON line for each row, compressed."""
        return self.directory / SAMPLES


def write_task(directory: Path, results: dict[str, Any], samples: Iterable[dict[str, Any]]) -> None:
    """Writes a finished task at `directory`, whole or not at all, in place of what was there."""
    lines = b"".join(to_json(sample) + b"\n" for sample in samples)
    with atomic_directory(directory) as partial:
        (partial / SAMPLES).write_bytes(zstandard.ZstdCompressor(level=10).compress(lines))
        (partial / RESULTS).write_bytes(to_json(results, indent=True))


def mark_absent(directory: Path, metrics: Iterable[str], reason: str) -> dict[str, str]:
    """Notes why a finished task lacks metrics, and returns the reason of each that it does lack."""
    task = _read(directory)
    values = task.results["results"][task.task]
    lacking = {metric: reason for metric in metrics if values.get(f"{metric},none") is None}
    task.block.setdefault("absent", {}).setdefault(task.task, {}).update(lacking)
    samples = task.samples.read_bytes()
    with atomic_directory(directory) as partial:
        (partial / SAMPLES).write_bytes(samples)
        (partial / RESULTS).write_bytes(to_json(task.results, indent=True))
    return lacking


def to_json(value: Any, indent: bool = False) -> bytes:
    """Returns strict JSON; what has no form in JSON, such as a function in a task's configuration, is named."""
    return orjson.dumps(value, default=_plain, option=_JSON | (orjson.OPT_INDENT_2 if indent else 0))


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a samples file."""
    with path.open("rb") as file:
        lines = zstandard.ZstdDecompressor().stream_reader(file).read().splitlines()
    return [orjson.loads(line) for line in lines]


def finished_tasks(directory: Path) -> dict[str, Spooled]:
    """Returns the finished tasks in a model's directory by name, the oldest first.

    Raises:
        ValueError: A result file there is not ours.
    """
    found = _task_directories(directory)
    found.sort(key=lambda entry: (entry.stat().st_mtime_ns, entry.name))
    return {entry.name: _read(entry) for entry in found}


def set_broken_aside(directory: Path) -> None:
    """Renames the tasks in a model's directory that are no results of ours, so that they stop nobody."""
    for entry in _task_directories(directory):
        try:
            _read(entry)
        except ValueError as error:
            aside = entry.with_name(f"{entry.name}.{time.time_ns()}{_BROKEN}")
            entry.rename(aside)
            logger.error("%s; set aside as %s", error, aside.name)


def _task_directories(directory: Path) -> list[Path]:
    entries = directory.iterdir() if directory.is_dir() else ()
    return [entry for entry in entries if entry.is_dir() and entry.name[0] != "." and entry.suffix != _BROKEN]


def remove(tasks: Iterable[Spooled]) -> None:
    """Removes tasks that are published."""
    for task in tasks:
        shutil.rmtree(task.directory)


def model_directories(root: Path) -> list[Path]:
    """Returns the directories of all models in the spool."""
    return sorted(entry for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []


@contextmanager
def locked(directory: Path) -> Iterator[bool]:
    """Holds a model's directory for the block; yields whether it could be had, False if another process works there.

    An empty directory is removed at the end.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except (FileExistsError, FileNotFoundError):
        if directory.is_file():
            raise
        # Its holder removed it this moment: after mkdir had met it and before it looked what it was, or later.
        yield False
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have removed the directory: then we locked a file that nobody else finds.
            held = os.fstat(fd).st_nlink > 0
        except BlockingIOError:
            held = False
        yield held
        if held and os.listdir(directory) == [_LOCK]:
            shutil.rmtree(directory)
    finally:
        os.close(fd)


def _read(directory: Path) -> Spooled:
    path = directory / RESULTS
    try:
        results = parse(path.read_bytes())
        task = Spooled(directory.name, directory, results)
        if not task.samples.is_file():
            raise FileNotFoundError(SAMPLES)
        if not all(isinstance(results[part][task.task], dict) for part in ("results", "n-samples")):
            raise TypeError(f"results of {task.task} are no object")
        select([task.task])
        read_limited(task.block)
        read_date(results, RESULTS, time.time() + FUTURE_SECONDS)  # or whoever reads it will set it aside
        _ = task.model, task.conditions
    except (OSError, ValueError, KeyError, TypeError) as error:
        if machine_fault(error):  # which says nothing about the file
            raise
        raise ValueError(f"{path} is no result of ours: {error!r}") from error
    return task


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return str(value)
