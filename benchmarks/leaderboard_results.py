"""Reading result files and building the table against parsing the same files with orjson.

Claim: 10,000 files take at most 3 x as long as `orjson.loads` of each file's content, read from disk, takes; the first
time, when the store finds files that were put there by hand, as well as later.

The files are a real result of the harness (its dummy model, one task), about 7 kB each, for 2,500 models with four
tasks each; every value, model and date differs. They lie in a local store in a temporary directory, which has
an index of them for the row `table`, and makes one for `first_reading`. `parse_only` leaves reading out of what is
compared with.
"""

import copy
import os
import random
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import lm_eval
import orjson
from datasets import Dataset
from harness import parser, ratio, report, side_by_side

from parcontrol.leaderboard.evaluate.spool import to_json
from parcontrol.leaderboard.results import read_results
from parcontrol.leaderboard.store import LocalStore
from parcontrol.leaderboard.table import leaderboard_table

CLAIM = 3
TASKS = {"nq_open": "exact_match", "triviaqa": "exact_match", "popqa": "exact_match", "fever": "acc"}
INDEX = ".store"


def harness_result():
    """A result as the harness returns it."""
    rows = {"question": ["a", "b", "c"], "answer": [0, 1, 0]}
    task = {
        "task": "task",
        "custom_dataset": lambda **_: {"test": Dataset.from_dict(rows)},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "answer",
        "doc_to_choice": ["x", "y"],
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    return orjson.loads(to_json(lm_eval.simple_evaluate("dummy", tasks=[task], log_samples=False)))


def write_files(directory, count):
    """Writes result files of this project's layout and schema."""
    chosen, template = random.Random(0), harness_result()
    for number in range(count):
        model, task = f"org{number // 400}/model-{number // 4}", list(TASKS)[number % 4]
        document = copy.deepcopy(template)
        for by_task in ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples"):
            document[by_task] = {task: document[by_task]["task"]}
        value = chosen.random()
        document["results"][task] = {"name": task, "alias": task, "sample_len": 1000} | {
            f"{TASKS[task]},none": value,
            f"{TASKS[task]}_stderr,none": value / 30,
        }
        document["date"] = 1.7e9 + number
        document["parcontrol"] = {
            "schema": 1, "model": model, "revision": "main", "sha": f"{number // 4:040x}", "precision": "bfloat16",
            "weight_type": "Original", "base_model": "", "chat_template": False, "P": None,
            "model_type": "🟢 : pretrained", "params": 0.5, "license": "apache-2.0", "seed": 1234, "limit": None,
            "sample_set": False, "request": f"{model}_eval_request_False_bfloat16_Original.json", "worker": "w",
            "packages": {"torch": "2.13.0"}, "absent": {}, "failed": {}, "duration_s": {task: 1.5},
        }  # fmt: skip
        path = directory / model / f"results_{number:06d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(orjson.dumps(document))


def build_table(directory, count):
    """What is measured: everything from opening the store to the finished table."""
    results = read_results(LocalStore(directory))
    table = leaderboard_table(results)
    assert len(results.scores) == count, results.broken[:3]
    assert len(table) == -(-count // 4)


def main():
    arguments = parser(__doc__, rounds=7)
    arguments.add_argument("--files", type=int, default=10_000, help="how many (default %(default)s)")
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        write_files(directory, args.files)
        paths = sorted(directory.rglob("results_*.json"))
        contents = [path.read_bytes() for path in paths]

        def build_first_time():
            shutil.rmtree(directory / INDEX)
            build_table(directory, args.files)

        build_table(directory, args.files)
        seconds = side_by_side(
            {
                "parse": lambda: [orjson.loads(path.read_bytes()) and None for path in paths],
                "parse_only": lambda: [orjson.loads(content) and None for content in contents],
                "table": lambda: build_table(directory, args.files),
                "first_reading": build_first_time,
            },
            args.rounds,
        )
    files = {"files": args.files, "bytes": sum(map(len, contents))}
    rows = [
        {"what": "table", **files, "ratio": ratio(seconds["table"], seconds["parse"]), "claim": CLAIM},
        {"what": "first_reading", **files, "ratio": ratio(seconds["first_reading"], seconds["parse"]), "claim": CLAIM},
        {"what": "parse_only", **files, "ratio": ratio(seconds["table"], seconds["parse_only"])},
    ]
    report(rows, args.json)


if __name__ == "__main__":
    main()
