"""An evaluation gives what the harness gives, task by task, and survives a task that cannot be had."""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM

from parcontrol.leaderboard.evaluate import memory
from parcontrol.leaderboard.evaluate import run as run_module
from parcontrol.leaderboard.evaluate.errors import EvaluationError, ModelRefusedError, machine_fault
from parcontrol.leaderboard.evaluate.memory import automatic_batch_size
from parcontrol.leaderboard.evaluate.model_spec import Conditions, Job, ModelSpec
from parcontrol.leaderboard.evaluate.spool import Spooled, finished_tasks, read_samples
from parcontrol.leaderboard.harness import build_tasks
from parcontrol.leaderboard.model_source import content_hash
from parcontrol.leaderboard.registry import select

TASKS = ("halueval_qa", "memo_trap", "truefalse")
SEED = 7


@pytest.fixture(autouse=True)
def _quick_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the description of the machine, which takes a second to collect."""
    monkeypatch.setattr(run_module, "environment_info", lambda: "a machine")


def job(directory: Path, out: Path, **changes: Any) -> Job:
    spec = ModelSpec("local/tiny", content_hash(directory), path=str(directory), precision="float32")
    conditions = Conditions(limit=4, sample_set=True, seed=SEED)
    return replace(Job(spec, conditions, TASKS, str(out), batch_size=1, device="cpu", worker="me"), **changes)


def perform(job: Job) -> tuple[dict[str, Spooled], list[dict[str, Any]]]:
    """Runs a job and returns the finished tasks and all events."""
    events: list[dict[str, Any]] = []
    run_module.run(Job.from_dict(job.to_dict()), events.append)
    return finished_tasks(Path(job.out)), events


def metrics(results: dict[str, Any], task: str) -> dict[str, Any]:
    return {name: value for name, value in results["results"][task].items() if "," in name}


def test_results_are_those_of_one_call_of_the_harness(tiny_model_dir: Path, tmp_path: Path) -> None:
    tasks, events = perform(job(tiny_model_dir, tmp_path))
    built = build_tasks(select(TASKS), sample_set=True)
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), SEED)
    arguments = {"pretrained": str(tiny_model_dir), "dtype": "float32"}
    with patch("lm_eval.evaluator.add_env_info"):
        expected = simple_evaluate(
            "hf", arguments, tasks=built.tasks, task_manager=built.task_manager, limit=4, device="cpu", **seeds
        )
    assert expected is not None
    for task in TASKS:
        ours = tasks[task].results
        assert metrics(ours, task) == pytest.approx(metrics(expected, task), nan_ok=True)
        for key in ("versions", "n-shot", "higher_is_better", "n-samples"):
            assert ours[key][task] == expected[key][task]
        rows, theirs = read_samples(tasks[task].samples), expected["samples"][task]
        assert [row["prompt_hash"] for row in rows] == [row["prompt_hash"] for row in theirs]
        assert [row["target_hash"] for row in rows] == [row["target_hash"] for row in theirs]
    assert [event["task"] for event in events if event["event"] == "done"] == list(TASKS)


def test_what_results_say_of_their_origin(tiny_model_dir: Path, tmp_path: Path) -> None:
    order = job(tiny_model_dir, tmp_path, tasks=("memo_trap",), request="r.json", forced=True)
    tasks, events = perform(order)
    results = tasks["memo_trap"].results
    block, config = results["parcontrol"], results["config"]
    assert config["model_sha"] == block["sha"] == content_hash(tiny_model_dir)
    assert config["model_dtype"] == "torch.float32".removeprefix("torch.")
    assert (block["seed"], block["limit"], block["sample_set"], block["backend"]) == (SEED, 4, True, "hf")
    assert (block["request"], block["worker"], block["forced"], block["P"]) == ("r.json", "me", True, None)
    assert config["model_num_parameters"] == events[0]["params"]
    assert block["params"] == pytest.approx(events[0]["params"] / 1e9, abs=1e-6)
    assert block["packages"]["lm_eval"] == results["lm_eval_version"]
    assert block["duration_s"]["memo_trap"] > 0
    assert str(tmp_path) not in (tasks["memo_trap"].directory / "results.json").read_text()


def test_a_task_does_not_depend_on_those_before_it(tiny_model_dir: Path, tmp_path: Path) -> None:
    together, _ = perform(job(tiny_model_dir, tmp_path / "all"))
    alone, _ = perform(job(tiny_model_dir, tmp_path / "alone", tasks=("truefalse",)))
    assert read_samples(together["truefalse"].samples) == read_samples(alone["truefalse"].samples)


def test_another_seed_draws_other_shots(tiny_model_dir: Path, tmp_path: Path) -> None:
    def prompts(seed: int) -> list[str]:
        conditions = Conditions(limit=4, sample_set=True, seed=seed)
        order = job(tiny_model_dir, tmp_path / str(seed), tasks=("truefalse",), conditions=conditions)
        return [row["prompt_hash"] for row in read_samples(perform(order)[0]["truefalse"].samples)]

    assert prompts(1) != prompts(2)


def test_a_missing_dataset_fails_its_task_and_no_other(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "mirror" / "datasets").mkdir(parents=True)
    rows = "".join(f'{{"statement": "{n} is a number", "label": {n % 2}}}\n' for n in range(12))
    place = tmp_path / "mirror" / "datasets" / "pminervini" / "true-false" / "cieacf.jsonl"
    place.parent.mkdir(parents=True)
    place.write_text(rows)
    tasks, events = perform(
        job(
            tiny_model_dir,
            tmp_path / "out",
            tasks=("memo_trap", "truefalse"),
            conditions=Conditions(limit=2),
            mirror=str(tmp_path / "mirror"),
        )
    )
    assert list(tasks) == ["truefalse"]
    (refused,) = (event for event in events if event["event"] == "refused")
    assert refused["task"] == "memo_trap"
    assert "dataset pminervini/inverse-scaling cannot be had" in refused["reason"]


def test_a_fault_of_the_machine_is_none_of_its_task(tiny_model_dir: Path, tmp_path: Path) -> None:
    """From the second task on no file can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    events: list[dict[str, Any]] = []

    def report(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "task" and event["task"] == TASKS[1]:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))

    try:
        with pytest.raises(OSError, match="Too many open files") as raised:
            run_module.run(job(tiny_model_dir, tmp_path), report)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert machine_fault(raised.value)
    assert [event["event"] for event in events if event["event"] in ("done", "refused")] == ["done"]
    assert list(finished_tasks(tmp_path)) == [TASKS[0]]


def caused(error: Exception, cause: Exception) -> Exception:
    try:
        raise error from cause
    except Exception as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (caused(ModelRefusedError("no readable config.json"), OSError(errno.ENFILE, "too many")), True),
        (Exception("Too many open files (os error 24)"), True),
        (Exception("No such file or directory (os error 2)"), False),
        (ValueError("model type 'No space left on device (os error 28)'"), False),
        (ValueError("[Errno 28] No space left on device (os error 28)"), False),
        (OSError(errno.ENOENT, "No space left on device"), False),
    ],
)
def test_whose_fault_it_is_is_told_by_number_and_not_by_words(error: Exception, fault: bool) -> None:
    assert bool(machine_fault(error)) == fault


def test_the_chat_template_is_applied(tiny_model_dir: Path, tmp_path: Path) -> None:
    import shutil

    directory = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"
    (directory / "chat_template.jinja").write_text(template)
    order = job(directory, tmp_path / "out", tasks=("halueval_qa",))
    order = replace(order, spec=replace(order.spec, chat_template=True))
    tasks, _ = perform(order)
    prompts = [row["arguments"][0][0] for row in read_samples(tasks["halueval_qa"].samples)]
    assert all(prompt.startswith("<user>") and prompt.endswith("<assistant>") for prompt in prompts)
    assert tasks["halueval_qa"].results["chat_template"] == template
    assert tasks["halueval_qa"].block["chat_template"] is True


def test_when_memory_runs_out_an_automatic_batch_is_halved(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []
    evaluate = run_module.evaluate

    def tight(lm: HFLM, **options: Any) -> Any:
        limits.append(lm.batch_size)
        if lm.batch_size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return evaluate(lm=lm, **options)

    monkeypatch.setattr(run_module, "evaluate", tight)
    monkeypatch.setattr("parcontrol.leaderboard.evaluate.backends.automatic_batch_size", lambda lm: 12)
    order = job(tiny_model_dir, tmp_path / "auto", tasks=("memo_trap",), batch_size="auto")
    assert list(perform(order)[0]) == ["memo_trap"]
    assert limits == [12, 6, 3]
    with pytest.raises(EvaluationError, match="out of memory on memo_trap with a batch size of 8"):
        perform(job(tiny_model_dir, tmp_path / "fixed", tasks=("memo_trap",), batch_size=8))


def test_the_automatic_batch_grows_with_memory_up_to_a_bound(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = HFLM(pretrained=str(tiny_model_dir), device="cpu", dtype="float32")
    sizes = []
    for gigabytes in (0.0001, 0.05, 0.1, 1000):
        monkeypatch.setattr(memory, "_free_bytes", lambda device, free=gigabytes * 1e9: int(free))
        sizes.append(automatic_batch_size(lm))
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (1, memory.MOST_ROWS)
    assert 1 < sizes[1] < sizes[2] < memory.MOST_ROWS


def test_the_description_of_the_machine_is_the_harness_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(run_module, "get_pretty_env_info", lambda: f"described by process {os.getpid()}")
    run_module.environment_info.cache_clear()
    text = run_module.environment_info()
    run_module.environment_info.cache_clear()
    assert text.startswith("described by process ")
    assert text != f"described by process {os.getpid()}", "it is collected in a process of its own"
