"""The runs of one or several sweeps, as they lie on disk: read through `RunDirectory`, nothing guessed.

A sweep is a directory of runs that are meant to be compared. A run that has not finished, or whose
files cannot be read, is kept and marked: what is missing is as much a result as what is there.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from parcontrol.analysis.model_config import read_config
from parcontrol.config import RunConfig
from parcontrol.runs import RunDirectory

Record = dict[str, Any]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

# How a sweep names its runs; such a directory is a run even before anything is in it.
_RUN_NAME = re.compile(r"P\d+(_seed\d+)?")


class _Contract(BaseModel):
    """What the analysis needs of a file that training writes; it may hold more."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class RunResult(_Contract):
    """The numbers of result.json. Losses in nats per predicted token, memory in bytes, time in seconds."""

    P: int
    mode: str
    steps: Count
    tokens: Count
    backbone_validation_loss: Finite
    final_validation_loss: Finite
    validation_predicted_tokens: Count
    validation_sha256: str
    data_sha256: str
    parameters_trained: Count
    parameters_total: Count
    seconds: Finite
    training_seconds: Finite
    tokens_per_second: Positive
    data_wait_fraction: Finite
    peak_memory_bytes: Annotated[int, Field(gt=0)]


class _Record(_Contract):
    """What every record says: where in the run it stands."""

    step: Count
    tokens: Count


class MetricsRecord(_Record):
    """A record of training or of a validation: any of these, none of them null."""

    loss: Finite = 0.0
    learning_rate: Finite = 0.0
    grad_norm: Finite = 0.0
    tokens_per_second: Positive = 1.0
    validation_loss: Finite = 0.0
    backbone_validation_loss: Finite = 0.0


class StreamsRecord(_Record):
    """Use of the streams, P of them."""

    mean_weight: list[Finite]
    argmax_share: list[Finite]
    entropy: Finite
    entropy_relative: Finite
    kl_uniform: Finite
    gini: Finite
    cosine_similarity: list[list[Finite]]
    mean_cosine_similarity: Finite


class Shard(_Contract):
    """How far one shard has been read."""

    shard: str
    byte_start: Count
    byte_end: Count
    documents: Count
    tokens: Count


class ProvenanceRecord(_Record):
    """Where the tokens come from."""

    shards: list[Shard]
    sha256: str


class GitState(_Contract):
    """The checkout that a process ran from."""

    commit: str
    dirty: bool


class Process(_Contract):
    """One start of a run, the first or one that resumed it; of several processes, what the first one wrote."""

    started: str
    from_step: int
    git: GitState | None
    python: str
    platform: str
    versions: dict[str, str]
    device: str
    device_name: str
    threads: int
    backbone_dtype: str
    compute_dtype: str
    world_size: Count = 1


class RunMeta(_Contract):
    """Where a run comes from."""

    run_id: str
    model: str
    dataset: str
    dataset_revision: str
    model_revision: str
    tokenizer_sha256: str
    validation_sha256: str
    validation_tokens: Count
    validation_documents: Count
    streams_per_pass: Count | None = None
    processes: list[Process] = Field(min_length=1)


class Revalidation(_Contract):
    """What a finished run was measured to be on more text."""

    run_id: str
    validation_tokens: Count
    validation_documents: Count
    backbone_validation_loss: Finite
    final_validation_loss: Finite
    validation_predicted_tokens: Count
    validation_sha256: str
    process: Process


@dataclass(frozen=True, eq=False)
class Documents:
    """Validation by document.

    Attributes:
        tokens: Predicted tokens of each document, int64 [documents].
        loss_sum: Their summed losses in nats after training, float64 [documents].
        backbone_loss_sum: The same of the backbone alone.
    """

    tokens: NDArray[np.int64]
    loss_sum: NDArray[np.float64]
    backbone_loss_sum: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Run:
    """One run that has a configuration.

    `result`, `documents` and `model_config` (the config.json of the final checkpoint) are None as
    long as the run is not finished; `model_config` also where that checkpoint is gone. Where there
    is a `revalidation`, `documents` are those that it measured.
    """

    name: str
    path: Path
    config: RunConfig
    meta: RunMeta | None
    metrics: list[Record]
    streams: list[Record]
    provenance: list[Record]
    result: RunResult | None
    revalidation: Revalidation | None
    documents: Documents | None
    model_config: Record | None

    @property
    def P(self) -> int:
        """Number of streams."""
        return self.config.parscale.P

    @property
    def seed(self) -> int:
        """Seed of the initialisation; the data has its own."""
        return self.config.training.seed

    @property
    def outcome(self) -> RunResult:
        """The result of a run that is known to be finished, with the losses that were measured last."""
        assert self.result is not None, f"{self.name} is not finished"
        if self.revalidation is None:
            return self.result
        return self.result.model_copy(update=self.revalidation.model_dump(include=set(RunResult.model_fields)))

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return self.result is not None

    @property
    def step(self) -> int:
        """Optimiser steps on record."""
        return max((record["step"] for record in self.metrics), default=0)

    @property
    def status(self) -> str:
        """Finished, or how far the run has come."""
        if self.finished:
            return "finished"
        return f"unfinished, {self.step} of {self.config.total_steps} steps"

    def series(self, key: str, *, streams: bool = False) -> tuple[list[int], list[Any]]:
        """Tokens and values of the metrics (or stream) records that hold `key`, oldest first."""
        chosen = [record for record in (self.streams if streams else self.metrics) if key in record]
        return [record["tokens"] for record in chosen], [record[key] for record in chosen]


@dataclass(frozen=True)
class BrokenRun:
    """A run directory that cannot be read, and why."""

    name: str
    path: Path
    problem: str


@dataclass(frozen=True)
class Sweep:
    """Runs that are meant to differ in P (and seed) alone, ordered by P, seed and name."""

    name: str
    path: Path
    runs: tuple[Run, ...]
    broken: tuple[BrokenRun, ...]

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs that have a result."""
        return tuple(run for run in self.runs if run.finished)

    @property
    def unfinished(self) -> tuple[Run, ...]:
        """The runs that have none."""
        return tuple(run for run in self.runs if not run.finished)

    @property
    def streams(self) -> list[int]:
        """The values of P among the finished runs, ascending."""
        return sorted({run.P for run in self.finished})

    def at(self, P: int) -> tuple[Run, ...]:
        """The finished runs with P streams."""
        return tuple(run for run in self.finished if run.P == P)


@dataclass(frozen=True)
class Results:
    """All sweeps that were asked for."""

    sweeps: tuple[Sweep, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs that could be read, sweep by sweep."""
        return tuple(run for sweep in self.sweeps for run in sweep.runs)


def load_experiment_results(*directories: str | Path) -> Results:
    """Reads every run below the directories.

    Args:
        directories: Each a run directory, a sweep (a directory of runs named `P{P}[_seed{S}]` or
            otherwise), or a directory of sweeps.

    Raises:
        ValueError: No directory is given, one does not exist or holds no run, or two lead to the
            same run.
    """
    if not directories:
        raise ValueError("no directory is given: name a sweep or a run directory")
    found = [group for directory in directories for group in _find_sweeps(Path(directory))]
    paths = [path.resolve() for _, runs in found for path in runs]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice: name each sweep once")
    names = _unique_names([root for root, _ in found])
    return Results(tuple(_read_sweep(name, root, runs) for name, (root, runs) in zip(names, found, strict=True)))


def _find_sweeps(root: Path) -> list[tuple[Path, list[Path]]]:
    """Returns each sweep at or below `root` with its run directories."""
    if not root.is_dir():
        raise ValueError(f"{root} is no directory: name a sweep or a run directory")
    if RunDirectory(root).exists:
        return [(root, [root])]
    found = []
    for directory in (root, *_subdirectories(root)):
        runs = [child for child in _subdirectories(directory) if _is_run(child)]
        # Runs keep folders of their own, which are no sweeps.
        if runs and not (directory != root and _is_run(directory)):
            found.append((directory, runs))
    if not found:
        raise ValueError(
            f"{root} holds no run: a sweep holds run directories such as P1, P2 or P4_seed1, "
            "and a run directory holds the configuration of its run"
        )
    return found


def _subdirectories(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise ValueError(f"{directory} cannot be read: {error.strerror}") from error


def _is_run(directory: Path) -> bool:
    return _RUN_NAME.fullmatch(directory.name) is not None or RunDirectory(directory).exists


def _unique_names(roots: list[Path]) -> list[str]:
    """Names the sweeps by as much of the ends of their paths as tells them apart."""
    parts = [root.resolve().parts[1:] or (root.resolve().name,) for root in roots]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _read_sweep(name: str, root: Path, directories: list[Path]) -> Sweep:
    runs, broken = [], []
    for path in directories:
        try:
            runs.append(_read_run(path))
        except ValueError as error:
            broken.append(BrokenRun(path.name, path, _reason(path, error)))
    runs.sort(key=lambda run: (run.P, run.seed, run.name))
    return Sweep(name, root, tuple(runs), tuple(broken))


def _reason(path: Path, error: ValueError) -> str:
    if not RunDirectory(path).exists:
        return "has not started: there is no configuration"
    return str(error)


def _read_run(path: Path) -> Run:
    """Reads a run directory.

    Raises:
        ValueError: A file is missing or broken, or lacks a number that it should hold.
    """
    directory = RunDirectory(path)
    config = directory.read_config()
    records = (directory.read_metrics(), directory.read_streams(), directory.read_provenance())
    _check_records(records[0], MetricsRecord, "metrics")
    _check_records(records[1], StreamsRecord, "streams")
    _check_records(records[2], ProvenanceRecord, "provenance")
    _check_stream_counts(records[1], config.parscale.P)
    if not directory.finished:
        meta = _meta(directory) if records[0] else None
        return Run(
            path.name, path, config, meta, *records, result=None, revalidation=None, documents=None, model_config=None
        )
    result, meta = _checked(RunResult, directory.read_result, "its result"), _meta(directory)
    _check_complete(result, records[0], records[2])
    documents = _read_documents(directory.validation_documents_path)
    revalidation = _read_revalidation(directory, meta)
    return Run(
        path.name,
        path,
        config,
        meta,
        *records,
        result=result,
        revalidation=revalidation[0] if revalidation else None,
        documents=revalidation[1] if revalidation else documents,
        model_config=read_config(str(directory.final_dir)) if directory.final_dir.is_dir() else None,
    )


def _check_records(records: list[Record], contract: type[BaseModel], kind: str) -> None:
    for record in records:
        _checked(contract, partial(dict, record), f"the {kind} record of step {record['step']}")


def _check_stream_counts(records: list[Record], P: int) -> None:
    for record in records:
        matrix = record["cosine_similarity"]
        counts = {len(row) for row in (record["mean_weight"], record["argmax_share"], matrix, *matrix)}
        if counts != {P}:
            wrong = sorted(counts - {P})[0]
            raise ValueError(f"the streams record of step {record['step']} is of {wrong} streams, not of {P}")


def _check_complete(result: RunResult, metrics: list[Record], provenance: list[Record]) -> None:
    """A finished run has a record of its last step, and says where all of its tokens come from."""
    step = max((record["step"] for record in metrics), default=0)
    if step != result.steps:
        raise ValueError(f"its metrics end at step {step}, its result is of step {result.steps}")
    tokens = provenance[-1]["tokens"] if provenance else 0
    if tokens != result.tokens:
        raise ValueError(f"its provenance ends at {tokens:,} tokens, its result is of {result.tokens:,}")


def _meta(directory: RunDirectory) -> RunMeta:
    return _checked(RunMeta, directory.read_meta, "its meta data")


def _read_revalidation(directory: RunDirectory, meta: RunMeta) -> tuple[Revalidation, Documents] | None:
    path = directory.revalidation_documents_path
    try:
        record = directory.read_revalidation()
        if record is None:
            return None
        revalidation = _checked(Revalidation, lambda: record, "its record")
        if revalidation.run_id != meta.run_id:
            raise ValueError(f"it is of run {revalidation.run_id}, but this is run {meta.run_id}")
        return revalidation, _read_documents(path)
    except ValueError as error:
        raise ValueError(f"its revalidation cannot be used: {error}; delete {path.parent} to go on without") from error


T = TypeVar("T", bound=BaseModel)


def _checked(contract: type[T], read: Callable[[], Record], what: str) -> T:
    try:
        return contract.model_validate(read(), strict=True)
    except ValidationError as error:
        faults = [_fault(details["loc"], details["type"], details["input"]) for details in error.errors()]
        raise ValueError(f"{what} cannot be used: {'; '.join(faults)}") from error


def _fault(place: tuple[int | str, ...], kind: str, value: Any) -> str:
    name = ".".join(map(str, place))
    return f"{name} is missing" if kind == "missing" else f"{name} is {value!r}"


def _read_documents(path: Path) -> Documents:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            documents = Documents(arrays["tokens"], arrays["loss_sum"], arrays["backbone_loss_sum"])
    except FileNotFoundError as error:
        raise ValueError(f"its losses by document are missing: no file {path.name}") from error
    except KeyError as error:
        raise ValueError(f"{path.name} has no {error.args[0]}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    _check_documents(documents, path.name)
    return documents


def _check_documents(documents: Documents, name: str) -> None:
    shapes = [array.shape for array in (documents.tokens, documents.loss_sum, documents.backbone_loss_sum)]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1:
        raise ValueError(f"{name} holds arrays of shapes {', '.join(map(str, shapes))}; one length is needed")
    kinds = documents.tokens.dtype.kind, documents.loss_sum.dtype.kind, documents.backbone_loss_sum.dtype.kind
    if kinds != ("i", "f", "f"):
        raise ValueError(f"{name} must hold whole numbers of tokens and floating-point losses")
    if documents.tokens.min(initial=0) < 0 or documents.tokens.sum() < 1:
        raise ValueError(f"{name} counts {documents.tokens.sum()} predicted tokens; at least one is needed")
    if not (np.isfinite(documents.loss_sum).all() and np.isfinite(documents.backbone_loss_sum).all()):
        raise ValueError(f"{name} holds a loss that is not finite")
