"""Builds tasks of lm-evaluation-harness for the registry's entries.

    built = build_tasks(select(["halueval_qa", "nq_open"]))
    simple_evaluate(model, tasks=built.tasks, task_manager=built.task_manager)

Nothing here downloads code. Rows come from the sample set, an offline mirror, or the Hub.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from parcontrol.leaderboard.registry import TaskSpec
from parcontrol.leaderboard.task_data import find_rows
from parcontrol.mirror import mirror_directory

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

TASKS = Path(__file__).parent / "tasks"
SAMPLES = TASKS / "samples"
# NLTK's tables for splitting English sentences. The harness downloads them when IFEval is imported and they are not
# there; the sample set, which has no sentences to split, holds an empty folder of that name.
NLTK_FOLDER = "nltk_data"
NLTK_TABLES = "tokenizers/punkt_tab/english"


class BuiltTasks(NamedTuple):
    """Tasks for `simple_evaluate(model, tasks=…, task_manager=…)`."""

    tasks: list[Task]
    task_manager: TaskManager


def build_tasks(
    specs: Sequence[TaskSpec],
    *,
    mirror: str | None = None,
    instruction_file: Path | None = None,
    sample_set: bool = False,
) -> BuiltTasks:
    """Builds harness tasks with their rows loaded.

    Args:
        specs: The tasks, from `registry.select`.
        mirror: Offline mirror of the Hub; None takes PARCONTROL_MIRROR, and without it the Hub.
        instruction_file: A text for the one HaluEval task among the tasks. It replaces instruction and examples:
            everything in front of the row that is judged.
        sample_set: Whether to take the rows from the sample set that comes with the package.

    Raises:
        ValueError: A dataset cannot be had or has too few rows, a task needs what is not on this machine, or the
            instruction file cannot be used.
    """
    instruction = None if instruction_file is None else _read_instruction(specs, instruction_file)
    place = str(SAMPLES) if sample_set else mirror
    manager = _task_manager(specs)
    tasks = []
    for spec in specs:
        if spec.name == "ifeval":
            _require_nltk_tables(mirror_directory(place), needed=not sample_set)
        task = _build(manager, spec, place)
        if sample_set:
            task.config.metadata["sample_set"] = True
        if instruction is not None and _is_judge(spec):
            _replace_instruction(task, instruction)
        tasks.append(task)
    return BuiltTasks(tasks, manager)


def _task_manager(specs: Sequence[TaskSpec]) -> TaskManager:
    """A task manager that knows the given tasks only: looking at all tasks of the harness takes many seconds."""
    import lm_eval.tasks

    native = Path(lm_eval.tasks.__file__).parent
    folders = {native / spec.name.split("_")[0] for spec in specs if spec.native}
    return lm_eval.tasks.TaskManager(include_path=[TASKS, *sorted(folders)], include_defaults=False)


def _build(manager: TaskManager, spec: TaskSpec, mirror: str | None) -> Task:
    """Builds one task over the files that hold its rows."""
    from datasets.exceptions import DatasetGenerationError
    from jinja2 import UndefinedError

    try:
        rows = find_rows(spec, mirror)
    except ValueError as error:
        raise ValueError(f"task {spec.name}: {error}") from error
    overrides = {"dataset_path": rows.pop("path"), "dataset_name": None, "dataset_kwargs": rows}
    if spec.native:
        # Without examples the harness would still read the other splits.
        overrides |= {"training_split": None, "validation_split": None, "test_split": spec.split}
    if spec.name == "wikitext":
        from parcontrol.leaderboard.tasks.wikitext.standard_error import OVERRIDES

        overrides |= OVERRIDES
    try:
        task = manager.load({"group": "parcontrol", "task": [{"task": spec.name, **overrides}]})["tasks"][spec.name]
    except DatasetGenerationError as error:
        raise ValueError(f"task {spec.name}: dataset {spec.dataset} cannot be read: {error.__cause__}") from error
    except StopIteration as error:
        raise ValueError(f"task {spec.name}: dataset {spec.dataset} has no rows") from error
    except ValueError as error:
        raise ValueError(f"task {spec.name}: dataset {spec.dataset}: {error}") from error
    except (KeyError, UndefinedError) as error:
        raise ValueError(f"task {spec.name}: dataset {spec.dataset} lacks a field: {error}") from error
    count = len(task.eval_docs)
    if count <= spec.num_fewshot:
        raise ValueError(
            f"task {spec.name}: dataset {spec.dataset} has {count} rows, and {spec.num_fewshot} examples for each row "
            "need more"
        )
    # Results quote the configuration: there the dataset is named as on the Hub, and no path of this machine.
    task.config.metadata.pop("config_source")
    task.set_config("dataset_path", spec.dataset)
    task.set_config("dataset_name", spec.config)
    task.set_config("dataset_kwargs", {"revision": spec.revision} if spec.revision else None)
    return task


def _is_judge(spec: TaskSpec) -> bool:
    return spec.name.startswith("halueval_")


def _read_instruction(specs: Sequence[TaskSpec], path: Path) -> str:
    judges = [spec.name for spec in specs if _is_judge(spec)]
    if len(judges) != 1:
        raise ValueError(
            f"an instruction file is for one HaluEval task at a time, and {len(judges)} are chosen"
            + (f": {', '.join(judges)}" if judges else "")
        )
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the instruction file {path} cannot be read: {error}") from error
    if not text:
        raise ValueError(f"the instruction file {path} is empty")
    return text


def _replace_instruction(task: Task, instruction: str) -> None:
    """Puts a text in front of the row; the row is what follows the last empty line of the task's template.

    The text is a string literal in the template, without a brace or a quote that Jinja could take for its own.
    """
    row = task.config.doc_to_text.rpartition("\n\n")[2]
    literal = instruction.encode("unicode_escape").decode("ascii")
    for mark in "{}'\"":
        literal = literal.replace(mark, f"\\x{ord(mark):02x}")
    task.set_config("doc_to_text", f"{{{{ '{literal}' }}}}\n\n{row}")
    task.config.metadata["instruction_sha256"] = hashlib.sha256(instruction.encode()).hexdigest()


def _require_nltk_tables(mirror: Path | None, needed: bool) -> None:
    """Makes NLTK look into the mirror too, and makes sure that the harness has nothing to download."""
    import nltk

    if mirror and (folder := str(mirror / NLTK_FOLDER)) not in nltk.data.path:
        nltk.data.path.append(folder)
    try:
        nltk.data.find(NLTK_TABLES if needed else str(Path(NLTK_TABLES).parent))
    except LookupError:
        where = f"{mirror}/{NLTK_FOLDER}" if mirror else f"{NLTK_FOLDER}/ of an offline mirror"
        raise ValueError(
            f"task ifeval needs NLTK's {NLTK_TABLES}, which is not on this machine and is not downloaded: put it into "
            f"{where}, or into a folder that NLTK_DATA names"
        ) from None
