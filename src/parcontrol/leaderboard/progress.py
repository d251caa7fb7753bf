"""What a worker shows while it works: lines of what has happened and, on a terminal, bars of what is under way."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich import get_console, progress
from rich.console import Console
from rich.markup import escape

from parcontrol.leaderboard.evaluate.model_spec import ModelSpec

logger = logging.getLogger(__name__)


class Progress:
    """Shows the progress of models on a console."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or get_console()

    @contextmanager
    def model(self, model: ModelSpec, tasks: int) -> Iterator[ModelProgress]:
        """Shows the progress of one model for the block."""
        kind = model.precision if model.weight_type == "Original" else f"{model.precision}, {model.weight_type}"
        logger.info("%s at %s (%s): %d task%s", model.model, model.commit, kind, tasks, "" if tasks == 1 else "s")
        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
        )
        console = self._console
        with progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
            yield ModelProgress(bars, model, tasks)


class ModelProgress:
    """The progress of one model: a bar of its tasks, and one of the answers of the task that runs."""

    def __init__(self, bars: progress.Progress, model: ModelSpec, tasks: int) -> None:
        self._bars = bars
        self._tasks = bars.add_task(escape(model.model), total=tasks)
        self._answers = bars.add_task("loading", total=None)
        self._extra = {"model": model.model, "sha": model.sha}  # in the log file, beside the message

    def event(self, event: dict[str, Any]) -> None:
        """Shows an event of the evaluation (see `evaluate.run.run`)."""
        match event["event"]:
            case "loaded":
                about = [event.get("dtype"), event.get("device"), _billions(event.get("params"))]
                streams = f", P = {event['P']}" if event.get("P") else ""
                known = ", ".join(filter(None, about))
                logger.info("loaded in %.1f s%s%s", event["seconds"], f": {known}" if known else "", streams)
            case "task":
                self._bars.reset(self._answers, description=escape(event["task"]), total=None)
            case "progress":
                self._bars.update(self._answers, completed=event["done"], total=event["total"])
            case "done":
                logger.info("%s done in %.1f s", event["task"], event["seconds"], extra=self._extra | event)
                self._bars.advance(self._tasks)
            case "refused":
                logger.error("%s failed: %s", event["task"], event["reason"], extra=self._extra | event)
                self._bars.advance(self._tasks)


def _billions(parameters: int | None) -> str | None:
    if not parameters:
        return None
    millions = parameters / 1e6
    return f"{millions / 1000:.2f} billion parameters" if millions >= 1000 else f"{millions:.1f} million parameters"
