"""Progress for a person: live on a terminal, lines elsewhere."""

from __future__ import annotations

import logging
import time

from rich import get_console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from parcontrol.config import RunConfig
from parcontrol.formats import format_bytes, format_count, format_duration
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
            format_count(trained),
            format_count(total),
            loop.precision.device,
            str(loop.precision.compute).removeprefix("torch."),
            loop.step,
            self.total_steps,
        )
        self._progress.reset(self._training, completed=loop.tokens, total=self.total_tokens)
        self._progress.start()

    def on_boundary(self, loop: TrainingLoop) -> None:
        """Moves the bar."""
        status = f"{format_count(loop.tokens)}/{format_count(self.total_tokens)} tokens{self._rate}"
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
            self._rate = f" · loss {record['loss']:.4f} · {format_count(speed)} tokens/s"
            seconds_left = (self.total_tokens - record["tokens"]) / speed
            logger.log(
                logging.DEBUG if self.live else logging.INFO,
                "step %d/%d · %s/%s tokens%s · %s left",
                record["step"],
                self.total_steps,
                format_count(record["tokens"]),
                format_count(self.total_tokens),
                self._rate,
                format_duration(seconds_left),
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
            logger.info("finished in %s, peak memory %s", format_duration(record["seconds"]), peak)

    def on_stop(self, failed: bool) -> None:
        """Leaves the terminal as it was."""
        self._progress.stop()
