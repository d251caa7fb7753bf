"""What a worker adds to an evaluation: one model on ten tasks by the worker, against one `simple_evaluate` call.

Claim: at most 1.05 × its time.

    python benchmarks/leaderboard_worker.py --model DIR

Both sides load the model and evaluate the same rows of the same tasks with the same batch size, in a fresh fork of a
process that has imported harness and model classes before the clock starts. The worker's side is everything from
claiming the request to its being finished: claim, lease, process, spool, publishing.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

from parcontrol.demo.model import get_model
from parcontrol.leaderboard.evaluate.model_spec import DEFAULT_SEED, Conditions
from parcontrol.leaderboard.model_source import content_hash
from parcontrol.leaderboard.queue import Queue
from parcontrol.leaderboard.records import Precision, Request, Status, WeightType, request_path
from parcontrol.leaderboard.registry import select
from parcontrol.leaderboard.store import LocalStore, update
from parcontrol.leaderboard.worker import Settings, Worker

TASKS = "nq_open triviaqa popqa fever truefalse memo_trap nq_swap halueval_qa halueval_dialogue faithdial".split()
PRECISION = Precision.BFLOAT16

# The other side, in a process of its own: for every line that comes in, a line with results goes out.
ONE_CALL = f"""
import json, logging, os, sys
from lm_eval import simple_evaluate
import datasets, lm_eval.models.huggingface, torch, transformers.models.llama.modeling_llama
from parcontrol.leaderboard.harness import build_tasks
from parcontrol.leaderboard.registry import select

logging.disable(logging.WARNING)
model, limit, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), {DEFAULT_SEED})
arguments = {{"pretrained": model, "dtype": "{PRECISION}"}}
device = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
print("ready", flush=True)
for _ in sys.stdin:
    if os.fork() == 0:
        built = build_tasks(select({TASKS!r}), sample_set=True)
        results = simple_evaluate("hf", arguments, tasks=built.tasks, task_manager=built.task_manager, limit=limit,
                                  batch_size=batch_size, device=device, **seeds)
        print(json.dumps(results["results"]), flush=True)
        os._exit(0)
    os.wait()
"""


class OneCall:
    """`simple_evaluate` over all tasks."""

    def __init__(self, model: Path, limit: int, batch_size: int) -> None:
        command = [sys.executable, "-c", ONE_CALL, str(model), str(limit), str(batch_size)]
        environment = os.environ | {"TQDM_DISABLE": "1"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._line() == "ready\n"
        self.results: dict[str, Any] = {}

    def _line(self) -> str:
        assert self.process.stdout
        return next(line for line in self.process.stdout if line.startswith(("ready", "{")))

    def run(self) -> None:
        """Evaluates once."""
        assert self.process.stdin
        self.process.stdin.write("again\n")
        self.process.stdin.flush()
        self.results = json.loads(self._line())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Board:
    """A local board with a worker; every round is one request."""

    def __init__(self, root: Path, model: Path, limit: int, batch_size: int) -> None:
        self.model, self.sha, self.round = model, content_hash(model), 0
        self.requests, self.results = LocalStore(root / "requests"), LocalStore(root / "results")
        conditions = Conditions(limit=limit, sample_set=True)
        settings = Settings(tuple(select(TASKS)), conditions, batch_size, force=True)
        self.worker, self.queue = Worker(self.results, root / "worker", settings), Queue(self.requests)

    def run(self) -> None:
        """Submits the model and drains the queue."""
        self.round += 1
        request = Request(
            model=f"local/round-{self.round}",
            model_path=str(self.model),
            sha=self.sha,
            precision=PRECISION,
            status=Status.PENDING,
        )
        path = request_path(request.model, PRECISION, WeightType.ORIGINAL)
        update(self.requests, lambda snapshot: {path: request.to_json()}, "submit")
        self.worker.drain(self.queue)
        (entry,) = (entry for entry in self.queue.requests() if entry.path == path)
        assert entry.request.status is Status.FINISHED, entry.request.reason

    def last(self) -> dict[str, Any]:
        """The results of the last round."""
        (path,) = (
            path for path in self.results.snapshot().files if path.startswith(f"local/round-{self.round}/results")
        )
        results: dict[str, Any] = json.loads(self.results.read(path))["results"]
        return results


def main() -> None:
    arguments = harness.parser(__doc__, rounds=3)
    arguments.add_argument("--model", type=Path, help="directory of a model (default: SmolLM2-135M-Instruct)")
    arguments.add_argument("--limit", type=int, default=10, help="rows of each task (default %(default)s)")
    arguments.add_argument("--batch-size", type=int, default=1, help="rows at a time (default %(default)s)")
    args = arguments.parse_args()
    logging.disable(logging.ERROR)
    model = (args.model or get_model()).resolve()
    with tempfile.TemporaryDirectory() as root:
        board = Board(Path(root), model, args.limit, args.batch_size)
        with board.worker:
            board.worker.start()
            one_call = OneCall(model, args.limit, args.batch_size)
            try:
                candidates: dict[str, Callable[[], None]] = {"one call": one_call.run, "worker": board.run}
                seconds = harness.side_by_side(candidates, args.rounds)
                compare(one_call.results, board.last())
            finally:
                one_call.close()
    row = {
        "tasks": len(TASKS),
        "rows": args.limit,
        "model": model.name,
        "one_call_s": seconds["one call"],
        "worker_s": seconds["worker"],
        "ratio": harness.ratio(seconds["worker"], seconds["one call"]),
    }
    harness.report([row], args.json)


def compare(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Makes sure that both sides did the same work."""
    for task in TASKS:
        ours, theirs = ({name: value for name, value in side[task].items() if "," in name} for side in (one, other))
        assert ours == theirs, (task, ours, theirs)


if __name__ == "__main__":
    main()
