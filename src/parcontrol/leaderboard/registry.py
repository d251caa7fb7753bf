"""The one list of tasks, read from registry.yaml.

Says for every task where its data lie, how it is asked and scored, and which columns of the table it fills. Needs
neither the harness nor torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, get_args

import yaml

from parcontrol.config import nearest_key

Group = Literal["Factuality", "Faithfulness", "Other"]
Kind = Literal["generate", "choice", "rolling"]
Unit = Literal["%", "ρ", ""]

GROUPS: tuple[Group, ...] = get_args(Group)
ALL = "all"
DEMO = "demo"


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        label: Heading, unique in the table.
        metric: Name of the metric in the harness's results, without the filter.
        filter: Name of the harness's filter.
        higher_is_better: The metric's direction.
        scale: Factor from the harness's value to the table's: 100 makes a percentage of a fraction.
        averaged: Whether the column is part of the average of its task's group.
    """

    label: str
    metric: str
    filter: str = "none"
    higher_is_better: bool = True
    scale: float = 100
    averaged: bool = False


@dataclass(frozen=True)
class TaskSpec:
    """One task.

    Attributes:
        name: Name here and in the harness.
        native: Whether the task's definition is the harness's own.
        group: Group of the task.
        version: Version of the task; numbers of different versions are not comparable.
        dataset: Repository on the Hub.
        other_names: Further names of the repository, old and new, under which a mirror may have it.
        config: Configuration of the dataset; None when it has only one.
        revision: Branch of the repository; None for the main one.
        split: The split that is evaluated, and that worked examples are taken from.
        num_fewshot: Number of worked examples.
        kind: What the model is asked for: text, likelihoods of given answers, likelihood of a text.
        columns: What the task shows in the table.
        scored_later: Metrics that the scoring pass over stored generations fills in.
        unparsed_metric: Metric that counts replies that could not be read.
        demo: Whether the task is part of the sample set.
    """

    name: str
    native: bool
    group: Group
    version: float
    dataset: str
    other_names: tuple[str, ...]
    config: str | None
    revision: str | None
    split: str
    num_fewshot: int
    kind: Kind
    columns: tuple[Column, ...]
    scored_later: tuple[str, ...]
    unparsed_metric: str | None
    demo: bool

    @property
    def harness_task(self) -> str:
        """The task's name inside the harness, under which its results are filed."""
        return self.name

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the repository in a mirror, `dataset` first."""
        return (self.dataset, *self.other_names)

    def unit(self, column: Column) -> Unit:
        """Unit of one of its columns: percent, a rank correlation, or none (a perplexity)."""
        return "" if self.kind == "rolling" else "ρ" if column.metric == "spearman" else "%"


@cache
def registry() -> tuple[TaskSpec, ...]:
    """Returns all tasks, in the order of the table."""
    text = resources.files("parcontrol.leaderboard").joinpath("registry.yaml").read_text(encoding="utf-8")
    return tuple(_spec(entry) for entry in yaml.safe_load(text)["tasks"])


def _spec(entry: dict) -> TaskSpec:
    lists = {name: tuple(entry[name]) for name in ("other_names", "scored_later")}
    return TaskSpec(**entry | lists | {"columns": tuple(Column(**column) for column in entry["columns"])})


def select(names: Sequence[str]) -> list[TaskSpec]:
    """Returns the named tasks, each once, in the order of the registry.

    Args:
        names: Names of tasks or groups, `all`, or `demo` for the tasks of the sample set.

    Raises:
        ValueError: A name is unknown, or none is given.
    """
    if not names:
        raise ValueError(f"no task is named: give names of tasks, groups ({', '.join(GROUPS)}), {ALL!r} or {DEMO!r}")
    chosen = {spec.name for name in names for spec in _named(name)}
    return [spec for spec in registry() if spec.name in chosen]


def _named(name: str) -> list[TaskSpec]:
    if name == ALL:
        return list(registry())
    if name == DEMO:
        return [spec for spec in registry() if spec.demo]
    found = [spec for spec in registry() if name in (spec.name, spec.group)]
    if not found:
        known = [*(spec.name for spec in registry()), *GROUPS, ALL, DEMO]
        raise ValueError(
            f"unknown task {name!r}; the nearest is {nearest_key(name, known)!r}, and "
            "`parcontrol leaderboard tasks` lists all"
        )
    return found


def markdown_table(specs: Sequence[TaskSpec] | None = None) -> str:
    """Returns the tasks as a Markdown table, all of them by default."""
    rows = [
        ("Task", "Group", "Column", "Data: repo · config · split", "Kind", "Shots", "Metric", "Version"),
        ("---",) * 8,
        *(_row(spec) for spec in (registry() if specs is None else specs)),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _row(spec: TaskSpec) -> tuple[str, ...]:
    data = " · ".join(part for part in (f"`{spec.dataset}`", spec.config, spec.split) if part)
    return (
        f"{spec.name} (harness)" if spec.native else spec.name,
        spec.group,
        "<br>".join(column.label + (" *" if column.averaged else "") for column in spec.columns),
        data,
        spec.kind,
        str(spec.num_fewshot),
        "<br>".join(f"{column.metric} {'↑' if column.higher_is_better else '↓'}" for column in spec.columns),
        str(spec.version),
    )
