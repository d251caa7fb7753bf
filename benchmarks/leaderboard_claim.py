"""Claiming one of 5,000 pending requests on the local store against one commit.

Claim: under 1.5 x the time of one commit to the same repository, for a worker that has been running and for one of
several that compete.

A commit here is what a worker does without a queue: the newest revision, and a new content for one request. Claims and
commits take turns within one run. Alone, one worker claims and releases. In company, other processes claim and release
all the time, and both candidates meet their conflicts. The first claim of a new worker reads all requests once; its
time is told, not claimed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from harness import parser, ratio, report

from parcontrol.leaderboard.queue import Queue
from parcontrol.leaderboard.records import Event, Request, request_path
from parcontrol.leaderboard.store import LocalStore, update

LIMIT = 1.5
START = datetime(2026, 1, 1, tzinfo=UTC)


def fill(directory: Path, requests: int) -> list[str]:
    """Puts pending requests of real size into a new store; returns their paths."""
    files: dict[str, bytes | None] = {}
    for index in range(requests):
        time_ = START + timedelta(minutes=index)
        request = Request.model_validate(
            {
                "model": f"organisation-{index % 500}/model-{index}-instruct",
                "sha": f"{index:040x}",
                "precision": "bfloat16",
                "status": "PENDING",
                "submitted_time": time_,
                "model_type": "instruction-tuned",
                "params": 0.135,
                "license": "apache-2.0",
                "submitted_by": f"user-{index % 900}",
                "submission_id": f"{index:032x}",
                "history": [Event(time=time_, event="submitted", by=f"user-{index % 900}")],
            }
        )
        files[request_path(request.model, request.precision, request.weight_type)] = request.to_json()
    update(LocalStore(directory), lambda snapshot: files, "fill")
    return list(files)


def compete(directory: Path, stop: Any) -> None:
    """Claims and releases until told to stop."""
    queue = Queue(LocalStore(directory))
    while not stop.is_set():
        claim = queue.claim("competitor")
        assert claim
        queue.release(claim)


def measure(directory: Path, paths: list[str], rounds: int, claims: int) -> dict[str, list[float]]:
    """Mean seconds of a claim and of a commit, in each round."""
    store, queue = LocalStore(directory), Queue(LocalStore(directory))
    queue.refresh()
    # At the end of the queue, where no worker comes.
    path, content = paths[-1], store.read(paths[-1])
    seconds: dict[str, list[float]] = {"claim": [], "commit": []}
    for round_ in range(rounds + 1):
        spent = {"claim": 0.0, "commit": 0.0}
        for number in range(claims):
            start = time.perf_counter()
            claim = queue.claim("measured")
            spent["claim"] += time.perf_counter() - start
            assert claim
            queue.release(claim)
            changed = content.replace(b'"likes": 0', b'"likes": %d' % (round_ * claims + number + 1))
            start = time.perf_counter()
            update(store, lambda snapshot, changed=changed: {path: changed}, "commit")
            spent["commit"] += time.perf_counter() - start
        if round_:
            for name in seconds:
                seconds[name].append(spent[name] / claims)
    return seconds


def first_claim_seconds(directory: Path) -> float:
    """Seconds until a worker that has just started has its first claim."""
    start = time.perf_counter()
    queue = Queue(LocalStore(directory))
    claim = queue.claim("new")
    seconds = time.perf_counter() - start
    assert claim
    queue.release(claim)
    return seconds


def row(directory: Path, paths: list[str], args: argparse.Namespace, competitors: int) -> dict[str, Any]:
    """Figures with so many other workers."""
    stop = multiprocessing.Event()
    others = [multiprocessing.Process(target=compete, args=(directory, stop)) for _ in range(competitors)]
    for other in others:
        other.start()
    try:
        seconds = measure(directory, paths, args.rounds, args.claims)
    finally:
        stop.set()
        for other in others:
            other.join()
    against = ratio(seconds["claim"], seconds["commit"])
    return {
        "requests": len(paths),
        "competing_workers": competitors,
        "claim_seconds": seconds["claim"],
        "commit_seconds": seconds["commit"],
        "claim_over_commit": against,
        "first_claim_seconds": first_claim_seconds(directory),
        "claim": LIMIT,
        "ok": against["median"] < LIMIT,
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--requests", type=int, default=5000, help="pending requests (default %(default)s)")
    arguments.add_argument("--claims", type=int, default=40, help="claims in a round (default %(default)s)")
    arguments.add_argument("--competitors", type=int, default=3, help="other workers (default %(default)s)")
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder, "requests")
        paths = fill(directory, args.requests)
        rows = [row(directory, paths, args, competitors) for competitors in (0, args.competitors)]
    report(rows, args.json)


if __name__ == "__main__":
    main()
