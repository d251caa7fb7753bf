"""One line per run, live on a terminal and as plain lines elsewhere, from the run directories."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from parcontrol.experiment.plan import PlannedRun
from parcontrol.experiment.sweep import RunStatus
from parcontrol.formats import format_count, format_duration

_REFRESH_SECONDS = 1.0
_COLUMNS = ("run", "state", "tokens", "loss", "validation", "tokens/s", "time left")
_NONE = "–"


@dataclass(frozen=True)
class Progress:
    """What a run's metrics say.

    Attributes:
        tokens: Tokens trained on at the last log point.
        loss: Training loss there, in nats.
        validation_loss: The last validation's loss, in nats.
        tokens_per_second: Training speed before that log point.
    """

    tokens: int = 0
    loss: float | None = None
    validation_loss: float | None = None
    tokens_per_second: float | None = None


def read_progress(run: PlannedRun) -> Progress:
    """Reads the metrics of a run; one that has none yet has done nothing."""
    try:
        records = run.directory.read_metrics()
    except ValueError:
        return Progress()  # the run itself refuses damaged metrics, and says so
    last: dict[str, float] = {}
    for record in records:
        last |= record
    trained = [record["tokens"] for record in records if "loss" in record]
    return Progress(
        trained[-1] if trained else 0,
        last.get("loss"),
        last.get("validation_loss"),
        last.get("tokens_per_second"),
    )


def cells(status: RunStatus, progress: Progress) -> tuple[str, ...]:
    """Returns a run's line as texts, one for each column."""
    speed, left = progress.tokens_per_second, None
    if status.state == "running" and speed:
        left = (status.run.total_tokens - progress.tokens) / speed
    state = "starting" if status.state == "running" and progress == Progress() else status.state
    return (
        status.run.name,
        state,
        f"{format_count(progress.tokens)}/{format_count(status.run.total_tokens)}",
        _NONE if progress.loss is None else f"{progress.loss:.4f}",
        _NONE if progress.validation_loss is None else f"{progress.validation_loss:.4f}",
        _NONE if speed is None else format_count(speed),
        _NONE if left is None else format_duration(left),
    )


class SweepDisplay:
    """Shows how the runs stand: `with SweepDisplay(console) as show: Sweep(..., show=show)`."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._shown: dict[str, tuple[str, ...]] = {}
        self._shown_at = 0.0
        self._states: Sequence[str] = []

    def __enter__(self) -> SweepDisplay:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, statuses: Sequence[RunStatus]) -> None:
        """Shows the statuses: whenever a state has changed, and once a second."""
        states = [status.state for status in statuses]
        now = time.monotonic()
        if states == self._states and now - self._shown_at < _REFRESH_SECONDS:
            return
        self._states, self._shown_at = states, now
        lines = [cells(status, read_progress(status.run)) for status in statuses]
        if self._live:
            self._live.update(_table(lines), refresh=True)
        else:
            self._print_changed(lines)

    def _print_changed(self, lines: Sequence[tuple[str, ...]]) -> None:
        for line in lines:
            if self._shown.get(line[0]) != line:
                self._shown[line[0]] = line
                print(plain_line(line), flush=True)


def plain_line(line: Sequence[str]) -> str:
    """Returns a run's line for where there is no terminal, without what is not known yet."""
    name, state, tokens, loss, validation, speed, left = line
    parts = [f"{name}: {state}", f"{tokens} tokens"]
    named = (("loss {}", loss), ("validation {}", validation), ("{} tokens/s", speed), ("{} left", left))
    parts += [text.format(value) for text, value in named if value != _NONE]
    return " · ".join(parts)


def _table(lines: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("run", "state") else "right", no_wrap=True)
    for line in lines:
        table.add_row(*map(escape, line))
    return table
