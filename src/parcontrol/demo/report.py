"""What the demonstration shows at its end: one table for all P, and where everything is."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from parcontrol.analysis.findings import Difference, StreamSummary, SweepFindings
from parcontrol.analysis.report_document import NONE, PERCENT, interval, loss, signed
from parcontrol.analysis.results import Run, RunResult
from parcontrol.experiment.plan import PlannedRun
from parcontrol.formats import format_bytes
from parcontrol.logging_setup import log_file


def result_table(found: SweepFindings) -> Table:
    """Returns a sweep as a table, one column for each P: losses in nats with perplexity, differences, price."""
    differences = {difference.compared: difference for difference in found.differences}
    against_first = [differences.get(f"P = {summary.P}") for summary in found.streams]
    against_backbone = [summary.gain for summary in found.streams]
    table = Table(
        title="Validation loss in nats per token (perplexity)", title_style="bold", box=box.SIMPLE, pad_edge=False
    )
    table.add_column("")
    for summary in found.streams:
        table.add_column(f"P = {summary.P}", justify="right")
    table.add_row("frozen backbone", *_losses(found.streams, lambda run: run.outcome.backbone_validation_loss))
    table.add_row("step 0", *_losses(found.streams, lambda run: run.series("validation_loss")[1][0]))
    table.add_row("final", *_losses(found.streams, lambda run: run.outcome.final_validation_loss), style="bold")
    table.add_section()
    _add_differences(table, "minus backbone", against_backbone)
    table.add_section()
    _add_differences(table, f"minus P = {found.streams[0].P}", against_first)
    table.add_section()
    table.add_row("training", *_of_results(found.streams, lambda r: f"{r.training_seconds:.0f} s"))
    table.add_row("tokens/s", *_of_results(found.streams, lambda r: f"{r.tokens_per_second:,.0f}"))
    table.add_row("peak memory", *_of_results(found.streams, lambda r: format_bytes(r.peak_memory_bytes)))
    table.add_row("trained", *_of_results(found.streams, lambda r: f"{r.parameters_trained:,}"))
    table.caption = f"{PERCENT} intervals: over documents, paired bootstrap; seed noise unmeasured"
    return table


def facts(runs: Sequence[PlannedRun], page: Path) -> dict[str, str]:
    """Returns where everything is, by name."""
    last = runs[-1]
    return {
        "report": str(page),
        "run directories": " ".join(str(run.config.run_directory) for run in runs),
        "checkpoint": str(last.directory.final_dir),
        "log": str(log_file(last.config.logging.directory, last.name)),
        "load it": f'AutoModelForCausalLM.from_pretrained("{last.directory.final_dir}", trust_remote_code=True)',
    }


def _of_results(streams: Iterable[StreamSummary], text: Callable[[RunResult], str]) -> list[str]:
    return [text(summary.runs[0].outcome) for summary in streams]


def _losses(streams: Iterable[StreamSummary], loss_of: Callable[[Run], float]) -> list[str]:
    nats = [loss_of(summary.runs[0]) for summary in streams]
    return [f"{loss(value)} ({math.exp(value):.2f})" for value in nats]


def _add_differences(table: Table, name: str, differences: Sequence[Difference | None]) -> None:
    values = [NONE if d is None or d.value is None else signed(d.value) for d in differences]
    table.add_row(name, *values)
    table.add_row(f"  {PERCENT} interval", *[NONE if d is None else interval(d.documents) for d in differences])
    table.add_row("  verdict", *[NONE if d is None else d.verdict for d in differences])
