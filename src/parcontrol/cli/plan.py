"""The plan that `--dry-run` prints: what would run, for how long, in how much memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import get_console
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from parcontrol.experiment.plan import PlannedRun
from parcontrol.formats import format_duration

if TYPE_CHECKING:
    from parcontrol.experiment.estimate import Estimate


def print_plan(runs: Sequence[PlannedRun]) -> None:
    """Prints what runs would do, how long they take at least and how much memory at most."""
    estimates, notes = _estimates(runs)
    table = Table(box=None, pad_edge=False)
    columns = ("run", "P", "seed", "tokens", "steps", "per pass", "time (est.)", "memory (est.)", "state", "directory")
    for column in columns:
        table.add_column(column, justify="left" if column in ("run", "state", "directory") else "right", no_wrap=True)
    for run in runs:
        config = run.config
        table.add_row(
            escape(run.name),
            str(config.parscale.P),
            str(config.training.seed),
            f"{run.total_tokens:,}",
            f"{config.total_steps:,}",
            *_estimated(estimates.get(run.name)),
            run.state,
            escape(str(config.run_directory)),
        )
    console = get_console()
    # Where nobody looks at it on a screen, no column is cut to the width of one.
    (console if console.is_terminal else Console(width=1000)).print(table)
    for note in notes:
        print(note)


def _estimates(runs: Sequence[PlannedRun]) -> tuple[Mapping[str, Estimate], list[str]]:
    from parcontrol.experiment.estimate import estimate, matrix_product_rate, model_size
    from parcontrol.training.device import choose_precision
    from parcontrol.training.fitting import memory_setting

    first = runs[0].config
    precision = choose_precision(first.training)
    device = precision.device
    try:
        one_of_each = {run.config.parscale.P: run.config for run in runs}  # the model depends on nothing else
        sizes = {P: model_size(config) for P, config in one_of_each.items()}
        size = sizes[first.parscale.P]
        setting = memory_setting(first.training, precision, size, plan_only=True)
        rate = matrix_product_rate(first, size, setting)
        estimates = {run.name: estimate(run.config, sizes[run.config.parscale.P], setting, rate) for run in runs}
    except ValueError as error:
        return {}, [f"Time and memory are unknown: {error}"]
    compute = str(setting.compute).removeprefix("torch.")
    total = sum(estimates[run.name].seconds for run in runs)
    return estimates, [
        f"Estimates for {device} at the rate of a {compute} matrix product measured now, {rate / 1e12:.3g} TFLOP/s, "
        f"as if all work ran at that rate: the time is a lower bound, {format_duration(total)} for all whole "
        "runs one by one.",
        "Memory is the peak by formula. Per pass: the streams whose activations are kept at a time; where "
        "training.streams_per_pass is null, what a run that began now would choose. Both formulae: docs/experiment.md.",
    ]


def _estimated(expected: Estimate | None) -> tuple[str, str, str]:
    """Streams per pass, time and memory of a run, as the table has them."""
    if expected is None:
        return "unknown", "unknown", "unknown"
    memory = f"~ {expected.memory_bytes / 2**30:.2f} GiB"
    return str(expected.streams_per_pass), f">= {format_duration(expected.seconds)}", memory
