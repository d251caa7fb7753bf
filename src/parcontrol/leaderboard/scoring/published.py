"""The scoring pass over the results repository: published generations are scored where they are."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from parcontrol.leaderboard.evaluate.spool import RESULTS, SAMPLES, read_samples, write_task
from parcontrol.leaderboard.result_file import parse
from parcontrol.leaderboard.results import result_files
from parcontrol.leaderboard.scoring.rescoring import Rescored, score_task, scorers_of
from parcontrol.leaderboard.store import Snapshot, Store, update


def rescore_published(
    store: Store, models: Sequence[str] = (), names: Sequence[str] | None = None, batch_size: int = 16
) -> Iterator[Rescored]:
    """Scores the generations in a results repository; every result file that changes is a commit of its own.

    Args:
        store: The results repository.
        models: Models to look at; none takes all.
        names: Scorers to run, whatever is there; None runs those whose metrics are missing.
        batch_size: How many texts pass through a model at once.

    Raises:
        StoreError: The store cannot be read or written.
        ValueError: A file was changed by somebody else while it was scored; it is as they left it.
    """
    snapshot = store.snapshot()
    for path in result_files(snapshot.files):
        if not models or path.rpartition("/")[0] in models:
            yield from _rescore_file(store, snapshot, path, names, batch_size)


def _rescore_file(
    store: Store, snapshot: Snapshot, path: str, names: Sequence[str] | None, batch_size: int
) -> list[Rescored]:
    content = store.read(path, snapshot)
    document = _ours(content)
    changes: dict[str, bytes | None] = {}
    outcomes = []
    for task, metrics in document.get("results", {}).items():
        rows = _samples_path(path, task)
        if rows not in snapshot.files or not scorers_of(task, metrics, names):
            continue
        with tempfile.TemporaryDirectory() as directory:
            stored, written = Path(directory, SAMPLES), Path(directory, "scored")
            stored.write_bytes(store.read(rows, snapshot))
            samples = read_samples(stored)
            outcomes.append(score_task(document, task, samples, names, batch_size)._replace(path=path))
            write_task(written, document, samples)
            changes |= {path: (written / RESULTS).read_bytes(), rows: (written / SAMPLES).read_bytes()}
    if changes.get(path, content) != content:
        _commit(store, snapshot, changes, f"Scores of {path}")
    return outcomes


def _ours(content: bytes) -> dict[str, Any]:
    """A result file with our block; nothing for others, and for broken ones, which the table lists."""
    try:
        document = parse(content)
    except ValueError:
        return {}
    return document if isinstance(document.get("parcontrol"), dict) else {}


def _commit(store: Store, read: Snapshot, changes: Mapping[str, bytes | None], message: str) -> None:
    def propose(snapshot: Snapshot) -> Mapping[str, bytes | None]:
        other = sorted(path for path in changes if snapshot.files.get(path) != read.files[path])
        if other:
            raise ValueError(f"{other[0]} was changed by somebody else while it was scored: score it again")
        return changes

    update(store, propose, message)


def _samples_path(path: str, task: str) -> str:
    folder, _, name = path.rpartition("/")
    moment = name.removeprefix("results_").removesuffix(".json")
    return f"{folder}/samples_{task}_{moment}.jsonl.zst".lstrip("/")
