"""The evaluation itself, inside the evaluating process: one model, task after task, each written when it is finished.

The harness evaluates; `simple_evaluate` would collect facts about the machine again for every task, which takes longer
than a small task, so its inner function `evaluate` is called and the facts are added here, once.
"""

from __future__ import annotations

import importlib
import logging
import os
import random
import subprocess
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import CacheHook
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.loggers.utils import add_tokenizer_info
from lm_eval.utils import set_torch_seed
from torch.utils.collect_env import get_pretty_env_info

import parcontrol
from parcontrol.diagnostics.memory import is_out_of_memory
from parcontrol.leaderboard.evaluate.backends import Evaluated, open_backend
from parcontrol.leaderboard.evaluate.environment import FORKS
from parcontrol.leaderboard.evaluate.errors import EvaluationError, machine_fault
from parcontrol.leaderboard.evaluate.model_spec import Backend, Job
from parcontrol.leaderboard.evaluate.spool import write_task
from parcontrol.leaderboard.harness import build_tasks
from parcontrol.leaderboard.registry import TaskSpec, select

SCHEMA = 1  # of the `parcontrol` block
_BOOTSTRAP_ITERATIONS = 100_000  # the harness's own default
_PACKAGES = ("parcontrol", "lm_eval", "torch", "transformers", "tokenizers", "datasets", "peft", "numpy")
_SECONDS_BETWEEN_REPORTS = 0.5
_IMPORTED_LATE: dict[Backend, tuple[str, ...]] = {
    # With one architecture comes what all need; its own file is the smallest part.
    "hf": ("lm_eval.models.huggingface", "transformers.models.llama.modeling_llama"),
    "openai": ("lm_eval.models.openai_completions",),
    "dummy": ("lm_eval.models.dummy",),
}
_IMPORTED_LATE_BY_TASKS = ("multiprocessing.synchronize", "scipy.sparse")

logger = logging.getLogger(__name__)
Report = Callable[[dict[str, Any]], None]


def run(job: Job, report: Report) -> None:
    """Evaluates a job and reports what happens, as dictionaries with an `event`.

    Events: `loaded`; for every task `task`, then `progress` with `done` and `total` answers, then `done` or `refused`
    with the reason.

    Raises:
        ModelRefusedError: The model cannot be evaluated as asked for.
        EvaluationError: It broke off.
    """
    started = time.perf_counter()
    evaluated = open_backend(job)
    report({"event": "loaded", "seconds": time.perf_counter() - started, **evaluated.about})
    for spec in (spec for name in job.tasks for spec in select([name])):
        report({"event": "task", "task": spec.name})
        if reason := _refused(spec, evaluated):
            report({"event": "refused", "task": spec.name, "reason": reason})
            continue
        _run_task(spec, evaluated, job, report)


def _refused(spec: TaskSpec, evaluated: Evaluated) -> str | None:
    if spec.kind == "generate" or evaluated.likelihoods:
        return None
    return f"{spec.name} needs log-likelihoods of given answers, which this endpoint does not give"


def _run_task(spec: TaskSpec, evaluated: Evaluated, job: Job, report: Report) -> None:
    """Evaluates one task and writes it; what goes wrong with a task is its own matter, and the others go on.

    A fault of the machine is not: every other task would meet it too.
    """
    started = time.time()
    try:
        task = _build(spec, job)
        results = _evaluate(task, spec, evaluated, job, report)
    except EvaluationError:
        raise
    except Exception as error:
        if machine_fault(error):
            raise
        logger.exception("task %s failed", spec.name)
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        report({"event": "refused", "task": spec.name, "reason": " ".join(reason.split())[:2000]})
        return
    samples = results.pop("samples")[spec.name]
    results["configs"][spec.name].get("metadata", {}).pop("config_source", None)  # a path of this machine
    seconds = time.time() - started
    results |= _about(results, spec, evaluated, job, started, seconds)
    write_task(Path(job.out) / spec.name, results, samples)
    report({"event": "done", "task": spec.name, "seconds": seconds})


def _build(spec: TaskSpec, job: Job) -> Task:
    """Returns the task with its data.

    Raises:
        ValueError: Its dataset cannot be had.
    """
    instruction = Path(job.instruction_file) if job.instruction_file else None
    built = build_tasks([spec], mirror=job.mirror, instruction_file=instruction, sample_set=job.conditions.sample_set)
    task = built.tasks[0]
    if task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)
    return task


def _evaluate(task: Task, spec: TaskSpec, evaluated: Evaluated, job: Job, report: Report) -> dict[str, Any]:
    while True:
        _set_seeds(job.conditions.seed)
        task.set_fewshot_seed(seed=job.conditions.seed)
        evaluated.lm.set_cache_hook(_Progress(spec.name, task, report))
        try:
            results: dict[str, Any] = evaluate(
                lm=evaluated.lm,
                task_dict={"tasks": {spec.name: task}},
                limit=job.conditions.limit,
                bootstrap_iters=_BOOTSTRAP_ITERATIONS,
                apply_chat_template=evaluated.chat,
                fewshot_as_multiturn=True,
            )
            return results
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if not evaluated.halve_batch():
                rows = evaluated.lm.batch_size
                raise EvaluationError(f"out of memory on {spec.name} with a batch size of {rows}") from error
        task = _build(spec, job)  # a half-run task holds answers
        report({"event": "task", "task": spec.name})


def _set_seeds(seed: int) -> None:
    """Every task begins with the same state, so that its numbers do not depend on the tasks before it."""
    random.seed(seed)
    np.random.seed(seed)
    set_torch_seed(seed)


class _Progress(CacheHook):
    """Counts answers: the harness's models tell this hook about every one of them."""

    def __init__(self, name: str, task: Task, report: Report) -> None:
        super().__init__(None)
        self._name, self._task, self._report = name, task, report
        self._done, self._reported = 0, time.monotonic()

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._reported >= _SECONDS_BETWEEN_REPORTS:
            self._reported = now
            total = sum(instance.repeats for instance in self._task.instances)
            self._report({"event": "progress", "task": self._name, "done": self._done, "total": total})


def _about(
    results: dict[str, Any], spec: TaskSpec, evaluated: Evaluated, job: Job, started: float, seconds: float
) -> dict[str, Any]:
    """What `simple_evaluate` and the harness's tracker add to results, and our own block."""
    model, conditions, about = job.spec, job.conditions, evaluated.about
    arguments = {"pretrained": model.model, "revision": model.sha, "dtype": model.precision}
    if model.weight_type != "Original":
        arguments = {"pretrained": model.base_model, model.weight_type.lower(): model.model, "dtype": model.precision}
    config = {
        "model": model.backend,
        "model_args": arguments,
        "model_num_parameters": about.get("params"),
        "model_dtype": about.get("dtype"),
        "model_revision": model.revision,
        "model_sha": model.sha,
        "batch_size": getattr(evaluated.lm, "batch_size", None),
        "device": about.get("device"),
        "limit": conditions.limit,
        "bootstrap_iters": _BOOTSTRAP_ITERATIONS,
        "random_seed": conditions.seed,
        "numpy_seed": conditions.seed,
        "torch_seed": conditions.seed,
        "fewshot_seed": conditions.seed,
    }
    harness: dict[str, Any] = {
        "config": config,
        "git_hash": _git_commit(),
        "date": started,
        "pretty_env_info": environment_info(),
        "transformers_version": version("transformers"),
        "lm_eval_version": version("lm_eval"),
        "model_source": model.backend,
        "model_name": model.model,
        "model_name_sanitized": model.model.replace("/", "__"),
        "chat_template": evaluated.lm.chat_template(True) if evaluated.chat and model.backend == "hf" else None,
        "fewshot_as_multiturn": evaluated.chat,
        "total_evaluation_time_seconds": str(seconds),
    }
    if model.backend != "dummy":  # whose tokenizer is one on the Hub
        add_tokenizer_info(harness, evaluated.lm)
    block = {
        "schema": SCHEMA,
        "task": spec.name,
        **model.identity,
        "revision": model.revision,
        "base_model": model.base_model,
        "base_sha": about.get("base_sha"),
        "model_type": model.model_type,
        "license": model.license,
        "backend": model.backend,
        "P": about.get("P"),
        "params": round(about["params"] / 1e9, 6) if "params" in about else None,
        "seed": conditions.seed,
        "limit": conditions.limit,
        "sample_set": conditions.sample_set,
        "instruction_sha256": conditions.instruction_sha256,
        "forced": job.forced,
        "request": job.request,
        "worker": job.worker,
        "packages": _packages(),
        "absent": {},
        "failed": {},
        "duration_s": {spec.name: round(seconds, 3)},
    }
    return harness | {"parcontrol": block}


@cache
def environment_info() -> str:
    """Returns the harness's description of the machine, which takes a second to collect.

    In a process of its own: looking at a GPU initialises it, and then no process forked from this one could use it.
    """
    if not FORKS:
        return get_pretty_env_info()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with os.fdopen(write, "wb") as file:
                file.write(get_pretty_env_info().encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        text = file.read().decode()
    os.waitpid(child, 0)
    return text


@cache
def _git_commit() -> str | None:
    """Returns the commit of the checkout that parcontrol runs from, None if it is none."""
    source = Path(parcontrol.__file__).parent
    try:
        done = subprocess.run(["git", "-C", str(source), "describe", "--always"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


@cache
def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def warm_up(backend: Backend) -> None:
    """Does once what every forked process would otherwise do again: finds out facts, imports what is imported late."""
    for module in (*_IMPORTED_LATE_BY_TASKS, *_IMPORTED_LATE[backend]):
        importlib.import_module(module)
    for fact in (environment_info, _git_commit, _packages):
        fact()
