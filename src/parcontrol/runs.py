"""The run directory: the one seam between training, experiment, analysis and leaderboard.

    config.yaml        the resolved configuration
    meta.json          commit, versions, device, seeds, dataset revision
    provenance.jsonl   shards, byte ranges, tokens, running hash of the token stream
    metrics.jsonl      losses, learning rate, speed
    streams.jsonl      use of the streams
    validation_documents.npz  losses by validation document, of the model and of the backbone
    checkpoints/       step_* (to resume from) and final (to load with transformers)
    result.json        written last: a run is finished when it exists
    revalidation/      a finished run, measured again on more text

Only this module knows these names. Every write is durable before it returns and leaves either the
old content or the new, because a run is killed, or meets a full disk, at any moment.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import shutil
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from parcontrol.config import RunConfig, config_differences, dump_yaml, load_config

_CONFIG = "config.yaml"
_META = "meta.json"
_RESULT = "result.json"
_METRICS = "metrics.jsonl"
_STREAMS = "streams.jsonl"
_PROVENANCE = "provenance.jsonl"
_CHECKPOINTS = "checkpoints"
_FINAL = "final"
_VALIDATION_DOCUMENTS = "validation_documents.npz"
_REVALIDATION = "revalidation"
_REVALIDATION_DOCUMENTS = "documents.npz"
_LOCK = ".lock"
_STEP = re.compile(r"step_(\d{8,})")
_PARTIAL = ".partial-"

# Where a run goes, what it prints, what it keeps in memory and how fast it reads do not change what it computes.
MAY_DIFFER = ("output_dir", "logging.", "training.device", "training.streams_per_pass", "data.num_workers")

Record = dict[str, Any]

# What makes a path no place for a run, whatever the state of the machine.
_NO_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)

# A forked child, whichever library forks, shares the parent's lock, which would then outlive a
# killed parent as long as the child lives. So every child lets go of it at once.
_locked: weakref.WeakSet[RunDirectory] = weakref.WeakSet()


class RunDirectory:
    """The files of one run.

    `RunDirectory(path)` reads; `RunDirectory.open_for_training` also takes the lock, which is held
    until `close` (or the end of the `with` block, or of the process).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock_fd: int | None = None

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    @classmethod
    def open_for_training(cls, config: RunConfig, resume: bool = True) -> RunDirectory:
        """Opens the run directory of a configuration, creating it if needed, and locks it.

        Args:
            config: The resolved configuration; `config.run_directory` is opened.
            resume: Whether a run that is already there may be continued.

        Raises:
            ValueError: Another process works there, the directory holds a run of another
                configuration or something else, it holds a run and `resume` is false, or it
                cannot be made or written.
        """
        run = cls(config.run_directory)
        with _writable(run.path, ": choose another output_dir"):
            if run.path.exists() and not run.path.is_dir():
                raise ValueError(f"{run.path} is no directory: choose another output_dir")
            foreign = run._foreign_entries()
            if foreign:
                raise ValueError(
                    f"{run.path} holds no run but other files ({', '.join(foreign[:3])}): choose another output_dir"
                )
            run.path.mkdir(parents=True, exist_ok=True)
            run._lock(", or choose another output_dir")
        try:
            run._check_or_write_config(config, resume)
            run._remove_partial_files()
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open_finished(cls, path: str | Path) -> RunDirectory:
        """Opens and locks the directory of a finished run, to add to it.

        Raises:
            ValueError: There is no finished run, another process works there, or it cannot be written.
        """
        run = cls(path)
        if not run.finished:
            raise ValueError(f"{run.path} is not finished: it has no {_RESULT}")
        with _writable(run.path):
            run._lock()
        _settle_replaced(run.path / _REVALIDATION)
        run._remove_partial_files()
        return run

    def close(self) -> None:
        """Releases the lock, if it is held."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None
            _locked.discard(self)

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- state of the run ---

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return (self.path / _RESULT).exists()

    @property
    def exists(self) -> bool:
        """Whether this is a run, begun or only planned: it has a configuration, readable or not."""
        return (self.path / _CONFIG).exists()

    @property
    def started(self) -> bool:
        """Whether there is anything that a new run would destroy."""
        if self.finished or self.checkpoints():
            return True
        metrics = self.path / _METRICS
        return metrics.exists() and metrics.stat().st_size > 0

    @property
    def in_use(self) -> bool:
        """Whether another process trains here."""
        try:
            fd = os.open(self.path / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def read_config(self) -> RunConfig:
        """Returns the configuration of the run.

        Raises:
            ValueError: There is no valid config.yaml, or nothing in it, which would read as all defaults.
        """
        path = self.path / _CONFIG
        if path.is_file() and not path.read_bytes().strip():
            raise ValueError(f"{path}: is empty: the configuration of the run is lost")
        return load_config(path)

    def write_meta(self, meta: Mapping[str, Any]) -> None:
        """Writes commit, versions, device, seeds and dataset revision."""
        write_atomically(self.path / _META, _to_json(meta, indent=2))

    def read_meta(self) -> Record:
        """Returns what `write_meta` wrote.

        Raises:
            ValueError: There is no readable meta.json.
        """
        return _read_json(self.path / _META)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes the result, after everything else: from then on the run is finished."""
        write_atomically(self.path / _RESULT, _to_json(result, indent=2))

    def read_result(self) -> Record:
        """Returns the result.

        Raises:
            ValueError: The run is not finished.
        """
        return _read_json(self.path / _RESULT)

    @contextmanager
    def writing_revalidation(self, record: Mapping[str, Any]) -> Iterator[Path]:
        """Yields where the losses by document go; with the end of the block, the revalidation is there as a whole."""
        with atomic_directory(self.path / _REVALIDATION) as directory:
            yield directory / _REVALIDATION_DOCUMENTS
            (directory / _RESULT).write_text(_to_json(record, indent=2) + "\n", encoding="utf-8")

    def read_revalidation(self) -> Record | None:
        """Returns the record of `writing_revalidation`; None where the run was not measured again.

        Raises:
            ValueError: It cannot be read.
        """
        directory = self.path / _REVALIDATION
        return _read_json(directory / _RESULT) if directory.exists() else None

    # --- records, one JSON line each ---

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Appends one record of losses, learning rate and speed."""
        _append_line(self.path / _METRICS, record)

    def append_streams(self, record: Mapping[str, Any]) -> None:
        """Appends one record of stream statistics."""
        _append_line(self.path / _STREAMS, record)

    def append_provenance(self, record: Mapping[str, Any]) -> None:
        """Appends one record of where the tokens up to `step` come from."""
        _append_line(self.path / _PROVENANCE, record)

    def read_metrics(self) -> list[Record]:
        """Returns all complete metrics records, oldest first."""
        return _read_lines(self.path / _METRICS)

    def read_streams(self) -> list[Record]:
        """Returns all complete stream records, oldest first."""
        return _read_lines(self.path / _STREAMS)

    def read_provenance(self) -> list[Record]:
        """Returns all complete provenance records, oldest first."""
        return _read_lines(self.path / _PROVENANCE)

    def truncate_after(self, step: int) -> None:
        """Drops the records of later steps, and a torn last line, for an exact resume at `step`."""
        for name in (_METRICS, _STREAMS, _PROVENANCE):
            path = self.path / name
            if path.exists():
                kept = [record for record in _read_lines(path) if record["step"] <= step]
                write_atomically(path, "".join(_to_json(record) + "\n" for record in kept))

    # --- checkpoints ---

    @property
    def checkpoints_dir(self) -> Path:
        """The directory of all checkpoints."""
        return self.path / _CHECKPOINTS

    @property
    def final_dir(self) -> Path:
        """The complete model at the end of the run, in the layout of the Hub."""
        return self.checkpoints_dir / _FINAL

    @property
    def validation_documents_path(self) -> Path:
        """The per-document losses of the last validation."""
        return self.path / _VALIDATION_DOCUMENTS

    @property
    def revalidation_documents_path(self) -> Path:
        """The per-document losses of the measurement that was made after the run."""
        return self.path / _REVALIDATION / _REVALIDATION_DOCUMENTS

    def checkpoint_path(self, step: int) -> Path:
        """Returns the directory of the periodic checkpoint taken after `step` optimiser steps."""
        assert step >= 0, step
        return self.checkpoints_dir / f"step_{step:08d}"

    def checkpoints(self) -> list[Path]:
        """Returns the complete periodic checkpoints, oldest first."""
        if not self.checkpoints_dir.is_dir():
            return []
        found = [p for p in self.checkpoints_dir.iterdir() if _STEP.fullmatch(p.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))

    def remove_old_checkpoints(self, keep: int) -> None:
        """Removes all periodic checkpoints but the newest `keep`; a kill meanwhile leaves none that is half there."""
        for old in self.checkpoints()[:-keep]:
            doomed = old.with_name(f".{old.name}{_PARTIAL}{os.getpid()}")
            os.rename(old, doomed)
            _remove(doomed)

    # --- opening ---

    def _foreign_entries(self) -> list[str]:
        """Returns what lies in a directory that never became a run."""
        if not self.path.is_dir():
            return []
        # A kill between taking the lock and writing the configuration leaves these.
        ours = (_LOCK, f".{_CONFIG}{_PARTIAL}")
        foreign = sorted(p.name for p in self.path.iterdir() if not p.name.startswith(ours))
        # Asked last: the configuration may be among them, of a process that has begun the run just now.
        return [] if self.exists else foreign

    def _lock(self, other_place: str = "") -> None:
        fd = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(fd, 32).decode() or "unknown"
            os.close(fd)
            raise ValueError(
                f"{self.path} is in use: process {holder.strip()} works there; wait for it{other_place}"
            ) from error
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        self._lock_fd = fd
        _locked.add(self)

    def _check_or_write_config(self, config: RunConfig, resume: bool) -> None:
        # A run that failed before its first record, on a misspelt model perhaps, gives way.
        if not self.exists or not self.started:
            write_atomically(self.path / _CONFIG, dump_yaml(config))
            return
        differences = {
            key: values
            for key, values in config_differences(self.read_config(), config).items()
            if not key.startswith(MAY_DIFFER)
        }
        if differences:
            listed = ", ".join(f"{key} {old!r} there, {new!r} now" for key, (old, new) in differences.items())
            raise ValueError(
                f"{self.path} holds a run of another configuration ({listed}): "
                "use the same configuration, or choose another output_dir"
            )
        if not resume:
            raise ValueError(
                f"{self.path} already holds this run: resume it, delete the directory, or choose another output_dir"
            )

    def _remove_partial_files(self) -> None:
        """Removes what a killed process left half written; nobody else writes under the lock."""
        for directory in (self.path, self.checkpoints_dir):
            for leftover in directory.glob(f".*{_PARTIAL}*"):
                _remove(leftover)


@contextmanager
def _writable(path: Path, remedy: str = "") -> Iterator[None]:
    """Raises ValueError where a path itself cannot be had; what the machine runs out of passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        raise ValueError(f"{path} cannot be written ({error.strerror}){remedy}") from error


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yields an empty directory that takes the place of `path` when the block ends well.

    The files are on disk before the directory gets its name. On an error they are removed, and
    what was at `path` before stays. A reader sees the old directory or the new one; while one is
    replaced by the other there is an instant with neither, and a process killed in that instant
    leaves the old one beside, from where the next call for the same path restores it.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}{_PARTIAL}{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    old = _settle_replaced(path)
    _remove(partial)
    partial.mkdir()
    try:
        yield partial
        _sync_tree(partial)
        if path.exists():
            os.rename(path, old)
        os.rename(partial, path)
    except BaseException:
        _remove(partial)
        if old.exists() and not path.exists():
            os.rename(old, path)
        raise
    _sync(path.parent)
    _remove(old)


def _settle_replaced(path: Path) -> Path:
    """Restores what a killed `atomic_directory` left beside, or removes it; returns where that is."""
    old = path.with_name(f".{path.name}.replaced")
    if old.exists():
        _remove(old) if path.exists() else os.rename(old, path)
    return old


def _append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Appends a record durably, or not at all.

    Raises:
        ValueError: The record holds NaN or an infinity, which JSON has no word for.
        OSError: The disk is full; the file is as it was before.
    """
    assert type(record.get("step")) is int, f"a record needs its step: {record}"
    line = (_to_json(record) + "\n").encode()
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        before = os.fstat(fd).st_size
        try:
            if os.write(fd, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(fd)  # where some file systems first find that there is no room
        except OSError:
            os.ftruncate(fd, before)
            raise
    finally:
        os.close(fd)


def _read_lines(path: Path) -> list[Record]:
    """Returns the records of the complete lines.

    A last line without its end is a write that never finished, or has not yet: it is no record.

    Raises:
        ValueError: A complete line is no record.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_parse_line(line, f"{path}: line {number}") for number, line in enumerate(lines, 1)]


def _parse_line(line: bytes, place: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place} is no JSON: {line[:80]!r}") from error
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        raise ValueError(f"{place} is no record with a step: {line[:80]!r}")
    return record


def _to_json(value: Mapping[str, Any], indent: int | None = None) -> str:
    try:
        return json.dumps(value, allow_nan=False, indent=indent)
    except ValueError as error:
        raise ValueError(f"{_first_non_finite(value, '')} is not finite: JSON cannot hold it") from error


def _first_non_finite(value: Any, name: str) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name} = {value}"
    if isinstance(value, Mapping):
        children = [(f"{name}.{key}".lstrip("."), child) for key, child in value.items()]
    elif isinstance(value, list | tuple):
        children = [(f"{name}[{index}]", child) for index, child in enumerate(value)]
    else:
        return None
    return next(filter(None, (_first_non_finite(child, key) for key, child in children)), None)


def _read_json(path: Path) -> Record:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a JSON object is needed, not {type(content).__name__}")
    return content


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces a file: after a crash at any moment it is the old one or the new one."""
    partial = path.with_name(f".{path.name}{_PARTIAL}{os.getpid()}")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        _sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync_tree(directory: Path) -> None:
    for parent, _, files in os.walk(directory):
        for name in files:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    """Removes a file or a directory, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _release_locks_in_child() -> None:
    for run in list(_locked):
        run.close()


os.register_at_fork(after_in_child=_release_locks_in_child)
