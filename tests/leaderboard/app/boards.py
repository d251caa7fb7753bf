"""A leaderboard to look at: models of every kind, families over P, revisions, samples, requests in every state.

    python -m tests.leaderboard.app.boards DIRECTORY [MODELS]

writes one into a directory, to be opened with PARCONTROL_LEADERBOARD=DIRECTORY.
"""

from __future__ import annotations

import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import zstandard

from parcontrol.leaderboard.records import Event, ModelType, Precision, Request, Status, WeightType, request_path
from parcontrol.leaderboard.registry import TaskSpec, registry
from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store import Stores, open_stores, update
from tests.leaderboard.result_documents import ours

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
ROWS = 60  # of every task
# Names, reasons and outputs come from strangers.
HOSTILE = '<img src=x onerror="alert(1)">[link](javascript:alert(2)) ${alert(3)} {{value}} `4`'
SAMPLE_TASKS = ("truefalse", "nq_open")
KINDS = [kind for kind in ModelType if kind is not ModelType.UNKNOWN]


def fill(stores: Stores, models: int = 40, seed: int = 0) -> None:
    """Writes results, samples and requests of `models` models, two families over P, and one of every odd kind."""
    chance = random.Random(seed)
    results: dict[str, bytes | None] = {}
    requests: dict[str, bytes | None] = {}
    for number in range(models):
        _add_model(results, requests, chance, number)
    for base, tokens in (("org0/base-135M", 2_000_000), ("org0/base-500M", 2_000_000)):
        for streams in (1, 2, 4, 8):
            for training_seed in (0, 1, 2):
                _add_run(results, requests, chance, base, streams, tokens, training_seed)
    _add_second_revision(results, chance)
    _add_queue(requests)
    requests["flagged.txt"] = f"org1/model-1 trained on the test set {HOSTILE}\n".encode()
    requests["withdrawn.txt"] = b"org2/model-2 by its authors\n"
    update(stores.results, lambda snapshot: results, "results")
    update(stores.requests, lambda snapshot: requests, "requests")


def _add_model(
    results: dict[str, bytes | None], requests: dict[str, bytes | None], chance: random.Random, number: int
) -> None:
    model = f"org{number % 7}/model-{number}"
    said: dict[str, Any] = {
        "model": model,
        "sha": f"{number:040x}",
        "precision": ["bfloat16", "float16", "float32", "4bit"][number % 4],
        "chat_template": number % 3 == 0,
        "model_type": str(KINDS[number % len(KINDS)]),
        "params": [0.135, 0.5, 1.7, 7.2, 13.0, 70.6][number % 6],
        "license": ["apache-2.0", "mit", "llama3.1", "not stated"][number % 4],
    }
    skill = chance.betavariate(4, 3)
    specs = [spec for spec in registry() if number % 5 or chance.random() < 0.8]
    results.update(result_files(said, _metrics(specs, skill, chance), chance, sampled=number < 12))
    requests.update(_request(said, Status.FINISHED, submitted=NOW - timedelta(days=number + 8)))


def _add_run(
    results: dict[str, bytes | None],
    requests: dict[str, bytes | None],
    chance: random.Random,
    base: str,
    streams: int,
    tokens: int,
    seed: int,
) -> None:
    said: dict[str, Any] = {
        "model": f"local/{base.partition('/')[2]}_P{streams}_seed{seed}",
        "sha": f"local-{streams:032x}{seed:032x}",
        "precision": "float32",
        "P": streams,
        "base_model": base,
        "model_type": str(ModelType.FINE_TUNED),
        "params": 0.135 if "135M" in base else 0.5,
    }
    skill = 0.45 + 0.02 * streams.bit_length() + chance.gauss(0, 0.01)
    results.update(result_files(said, _metrics(registry(), skill, chance), chance, sampled=seed == 0))
    requests.update(_request(said, Status.FINISHED, submitted=NOW - timedelta(days=9), tokens=tokens, seed=seed))


def _add_second_revision(results: dict[str, bytes | None], chance: random.Random) -> None:
    """Another commit of the first model, and a result of its on a part of the rows."""
    said = {"model": "org0/model-0", "sha": "e" * 40, "precision": "bfloat16", "revision": "v2", "params": 0.135}
    specs = [spec for spec in registry() if spec.group != "Other"]
    results.update(result_files(said, _metrics(specs, 0.8, chance), chance, days=-30))
    results.update(result_files({**said, "limit": 10}, _metrics(specs[:3], 0.8, chance), chance, days=-1))


def _add_queue(requests: dict[str, bytes | None]) -> None:
    """A request in every state."""
    states = {
        "waiting": (Status.PENDING, {}),
        "again": (Status.RERUN, {"attempts": 1}),
        "running": (
            Status.RUNNING,
            {"claimed_by": "host-1-aa", "claim_id": "1", "attempts": 1, "lease_expires": NOW + timedelta(minutes=40)},
        ),
        "broken": (Status.FAILED, {"reason": f"CUDA out of memory {HOSTILE}", "attempts": 3}),
        "stopped": (Status.CANCELLED, {"reason": "not wanted any more"}),
    }
    for name, (status, fields) in states.items():
        said = {"model": f"queue/{name}", "sha": "a" * 40, "precision": "float16", "params": 1.0}
        requests.update(_request(said, status, submitted=NOW - timedelta(hours=5), **fields))


def result_files(
    said: dict[str, Any],
    metrics: dict[str, dict[str, float]],
    chance: random.Random,
    *,
    sampled: bool = False,
    days: float = 0,
) -> dict[str, bytes]:
    """The files that a worker publishes for a model.

    Args:
        said: Fields of the parcontrol block.
        metrics: The harness's metrics of every task.
        chance: For the samples.
        sampled: Whether there are samples, of `SAMPLE_TASKS`; their mean is then the task's value.
        days: When, after the usual time.
    """
    moment = NOW + timedelta(days=days)
    stamp = moment.strftime("%Y-%m-%dT%H-%M-%S")
    files: dict[str, bytes] = {}
    for task in set(SAMPLE_TASKS) & set(metrics) if sampled else ():
        rows = samples(task, metrics[task], chance)
        lines = b"".join(orjson.dumps(row) + b"\n" for row in rows)
        files[f"{said['model']}/samples_{task}_{stamp}.jsonl.zst"] = zstandard.ZstdCompressor().compress(lines)
    document = ours(metrics, date=moment.timestamp(), n=ROWS, **said)
    document["versions"] = {spec.name: spec.version for spec in registry() if spec.name in metrics}
    return {f"{said['model']}/results_{stamp}.json": orjson.dumps(document), **files}


def samples(task: str, metrics: dict[str, float], chance: random.Random) -> list[dict[str, Any]]:
    """Rows of a task as the harness logs them; sets the task's metrics to what the rows give."""
    metric = {"truefalse": "acc", "nq_open": "exact_match"}[task]
    right = [chance.random() < metrics[f"{metric},none"] for _ in range(ROWS)]
    mean = sum(right) / ROWS
    metrics[f"{metric},none"] = mean
    metrics[f"{metric}_stderr,none"] = (mean * (1 - mean) / (ROWS - 1)) ** 0.5
    return [_sample(task, metric, number, is_right) for number, is_right in enumerate(right)]


def _sample(task: str, metric: str, number: int, is_right: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"doc_id": number, "filter": "none", "metrics": [metric], "doc_hash": f"{number:064x}"}
    if task == "truefalse":
        arguments = [[f"Statement: number {number} {HOSTILE}\nLabel:", f" {answer}"] for answer in ("false", "true")]
        likelihoods = [[-2.0, False], [-0.1, True]] if is_right else [[-0.1, True], [-2.0, False]]
        row |= {
            "doc": {"statement": f"number {number} {HOSTILE}", "label": 1},
            "target": 1,
            "arguments": arguments,
            "resps": [[likelihood] for likelihood in likelihoods],
            "filtered_resps": likelihoods,
        }
    else:
        answer = str(number) if is_right else f"no idea {HOSTILE}"
        row |= {
            "doc": {"question": f"what is {number}", "answer": [str(number)]},
            "target": [str(number)],
            "arguments": [[f"Q: what is {number}?\nA:", {"until": ["\n"]}]],
            "resps": [[answer]],
            "filtered_resps": [answer],
        }
    return row | {metric: float(is_right)}


def _metrics(specs: Any, skill: float, chance: random.Random) -> dict[str, dict[str, float]]:
    return {spec.name: _task_metrics(spec, skill, chance) for spec in specs}


def _task_metrics(spec: TaskSpec, skill: float, chance: random.Random) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for column in spec.columns:
        value = min(max(chance.gauss(skill, 0.08), 0.01), 0.99)
        if spec.kind == "rolling":
            value, stderr = 10 / value, float("nan")
        elif not column.higher_is_better:
            value, stderr = (1 - value) / 4, 0.01
        elif column.label == "SQuADv2/EM":
            value, stderr = 100 * value, 1.0
        else:
            stderr = (value * (1 - value) / ROWS) ** 0.5
        name = f"{column.metric},{column.filter}"
        metrics[name] = value
        if stderr == stderr:
            metrics[f"{column.metric}_stderr,{column.filter}"] = stderr
    return metrics


def _request(said: dict[str, Any], status: Status, submitted: datetime, **fields: Any) -> dict[str, bytes]:
    named = {name: said[name] for name in ("model", "sha", "base_model", "model_type", "license", "P") if name in said}
    more = {name: said[name] for name in ("params", "chat_template") if name in said}
    request = Request(
        precision=Precision(said["precision"]),
        status=status,
        submitted_time=submitted,
        submitted_by="ada",
        history=(Event(time=submitted, event="submitted", by="ada"),),
        **named,
        **more,
        **fields,
    )
    path = request_path(request.model, request.precision, WeightType.ORIGINAL)
    return {path: request.to_json()}


if __name__ == "__main__":
    root = Path(sys.argv[1]).absolute()
    fill(open_stores(Settings(root=root)), int(sys.argv[2]) if len(sys.argv) > 2 else 40)
    print(root)
