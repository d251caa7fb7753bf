"""Progress for a person: live on a terminal, lines elsewhere."""

from __future__ import annotations

import logging
import time

from rich import get_console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from parcontrol.config import RunConfig
from parcontrol.diagnostics.memory import format_bytes
from parcontrol.training.loop import Callback, Record, TrainingLoop

logger = logging.getLogger(__name__)

# Between two lines about a long validation where there is no live display.
_VALIDATION_LINE_SECONDS = 30.0


class ConsoleProgress(Callback):
    """Tokens, loss, tokens/s and time left: live on a terminal, else a line per log point."""

    def __init__(self, config: RunConfig) -> None:
        self.total_tokens = config.total_steps * config.tokens_per_step
        self.total_steps = config.total_steps
        console = get_console()
        self.live = console.is_terminal
        self._line_at = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not self.live,
        )
        self._training = self._progress.add_task("train", total=self.total_tokens, status="")
        self._validation = self._progress.add_task("validate", status="", visible=False)
        self._rate = ""

    def on_start(self, loop: TrainingLoop) -> None:
        """Says what is about to train, and starts the display where the run is."""
        trained = sum(parameter.numel() for _, parameter in loop.trainable)
        total = sum(parameter.numel() for parameter in loop.model.parameters())
        logger.info(
            "P = %d, %s: %s of %s parameters train, on %s in %s, from step %d of %d",
            loop.config.parscale.P,
            loop.config.training.mode,
            _count(trained),
            _count(total),
            loop.precision.device,
            str(loop.precision.compute).removeprefix("torch."),
            loop.step,
            self.total_steps,
        )
        self._progress.reset(self._training, completed=loop.tokens, total=self.total_tokens)
        self._progress.start()

    def on_boundary(self, loop: TrainingLoop) -> None:
        """Moves the bar."""
        status = f"{_count(loop.tokens)}/{_count(self.total_tokens)} tokens{self._rate}"
        self._progress.update(self._training, completed=loop.tokens, status=status)
        self._progress.update(self._validation, visible=False)

    def on_validation(self, done: int, total: int) -> None:
        """Shows how far a validation is."""
        status = f"{done}/{total} blocks"
        self._progress.update(self._validation, completed=done, total=total, status=status, visible=True)
        now = time.monotonic()
        if done == 0:
            self._line_at = now
        elif not self.live and now - self._line_at > _VALIDATION_LINE_SECONDS:
            self._line_at = now
            logger.info("validation: %s", status)

    def on_record(self, kind: str, record: Record) -> None:
        """Prints what a record says."""
        if kind == "train":
            speed = record["tokens_per_second"]
            self._rate = f" · loss {record['loss']:.4f} · {_count(speed)} tokens/s"
            seconds_left = (self.total_tokens - record["tokens"]) / speed
            logger.log(
                logging.DEBUG if self.live else logging.INFO,
                "step %d/%d · %s/%s tokens%s · %s left",
                record["step"],
                self.total_steps,
                _count(record["tokens"]),
                _count(self.total_tokens),
                self._rate,
                _duration(seconds_left),
                extra={"record": record},
            )
        elif kind == "validation":
            loss, perplexity = record["validation_loss"], record["validation_perplexity"]
            logger.info(
                "step %d · validation loss %.4f nats, perplexity %.2f",
                record["step"],
                loss,
                perplexity,
                extra={"record": record},
            )
        elif kind == "result":
            peak = format_bytes(record["peak_memory_bytes"])
            logger.info("finished in %s, peak memory %s", _duration(record["seconds"]), peak)

    def on_stop(self) -> None:
        """Leaves the terminal as it was."""
        self._progress.stop()


def _count(number: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.2f}{unit}"
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
