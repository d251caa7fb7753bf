"""What happens beside training: records, provenance, stream diagnostics, validation, memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from parcontrol.config import RunConfig
from parcontrol.data import TrainStream, ValidationSet
from parcontrol.diagnostics.memory import MemoryMonitor
from parcontrol.diagnostics.streams import CollapseWatch, StreamAccumulator
from parcontrol.runs import RunDirectory
from parcontrol.training.checkpoint import Checkpointing
from parcontrol.training.console import ConsoleProgress
from parcontrol.training.evaluate import Validation
from parcontrol.training.loop import Callback, Record, TrainingLoop
from parcontrol.training.processes import ALONE, Processes
from parcontrol.training.shared_data import SharedStream
from parcontrol.training.wandb import WandbCallback

logger = logging.getLogger(__name__)


class Recorder(Callback):
    """Writes records into the run directory."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run

    def on_record(self, kind: str, record: Record) -> None:
        """Appends to the file that the kind belongs to."""
        if kind in ("train", "validation"):
            self.run.append_metrics(record)
        elif kind == "streams":
            self.run.append_streams(record)
        elif kind == "provenance":
            self.run.append_provenance(record)


class Provenance(Callback):
    """At each log point, where the tokens so far came from."""

    def __init__(self, stream: TrainStream | SharedStream) -> None:
        self.stream = stream

    def on_log(self, loop: TrainingLoop) -> None:
        """Emits shards, byte ranges and the hash of the token stream."""
        provenance = self.stream.provenance()
        assert provenance["tokens"] == loop.tokens, (provenance["tokens"], loop.tokens)
        loop.emit("provenance", provenance)


class StreamDiagnostics(Callback):
    """How the streams are used; says loudly, once, when they have collapsed."""

    def __init__(self, config: RunConfig, device: torch.device, processes: Processes = ALONE) -> None:
        self.processes = processes
        smooth = config.parscale.attn_smooth
        self.accumulator = StreamAccumulator(config.parscale.P, device, smooth)
        self.watch = CollapseWatch(smooth)
        self._last: Record = {}

    def on_microbatch(self, loop: TrainingLoop, output: Any) -> None:
        """Adds the microbatch, on the device."""
        self.accumulator.update(output.stream_weights, output.stream_hidden_states)

    def on_log(self, loop: TrainingLoop) -> None:
        """Emits the statistics since the last log point; a model with one stream has none."""
        self.accumulator.load_state(self.run_state(self.accumulator.state(), self.processes))
        self._last = self.accumulator.read_and_reset()
        if not self._last:
            return
        loop.emit("streams", self._last)
        message = self.watch.check(self._last)
        if message is not None:
            logger.warning(message)

    def describe(self) -> str:
        """The statistics at the last log point, and since then up to the failure."""
        since = self.accumulator.read_and_reset()
        if not since:
            return ""
        return f"Streams at the last log point: {_brief(self._last)}; since: {_brief(since)}."

    def state(self) -> dict[str, Tensor]:
        """The open interval, of this process's rows."""
        return self.accumulator.state()

    def run_state(self, state: Mapping[str, Tensor], processes: Processes) -> Mapping[str, Tensor]:
        """The open interval of all rows."""
        return processes.add_up(state)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes back the open interval of all rows, in one process: it is summed over all again."""
        if self.processes.main:
            self.accumulator.load_state(state)


class PeriodicValidation(Callback):
    """Validates before the first step and whenever `eval_interval_tokens` more have passed.

    The end of the run is not validated here but on the model as it is saved. What has a record is
    not measured again, so that a run killed during a validation resumes with that validation.
    """

    def __init__(self, run: RunDirectory, validation: ValidationSet) -> None:
        self.run, self.validation = run, validation

    def on_boundary(self, loop: TrainingLoop) -> None:
        """Validates when it is due."""
        if self._is_due(loop) and loop.processes.of_main(lambda: recorded_validation(self.run, loop.step)) is None:
            result = loop.validate(self.validation, loop.precision)
            loop.emit("validation", validation_record(result))

    def _is_due(self, loop: TrainingLoop) -> bool:
        if loop.step == loop.config.total_steps:
            return False
        interval = loop.config.training.eval_interval_tokens
        before = loop.tokens - loop.config.tokens_per_step
        return loop.step == 0 or loop.tokens // interval > before // interval


class MemoryWatch(Callback):
    """Samples memory at log points and warns before it runs out."""

    def __init__(self, device: torch.device) -> None:
        self.monitor = MemoryMonitor(device)
        self._peak = 0

    @property
    def peak_bytes(self) -> int:
        """The most device memory (on a CPU: main memory) that the run took, over its processes."""
        device_peak = self.monitor.device_peak_bytes
        return max(self._peak, self.monitor.peak_bytes if device_peak is None else device_peak)

    def on_log(self, loop: TrainingLoop) -> None:
        """Logs a sample; warns once."""
        logger.debug("memory", extra={"memory": self.monitor.sample()})
        message = self.monitor.warning()
        if message is not None:
            logger.warning(message)

    def state(self) -> dict[str, Tensor]:
        """The peak so far."""
        return {"peak": torch.tensor(self.peak_bytes)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes back the peak."""
        self._peak = int(state["peak"])


def build_callbacks(
    config: RunConfig,
    run: RunDirectory,
    stream: TrainStream | SharedStream,
    validation: ValidationSet,
    memory: MemoryWatch,
    processes: Processes,
) -> list[Callback]:
    """Returns the callbacks of a run in their order: in rank 0 all, in the others those that all take part in.

    A checkpoint comes before the validation of the same step, which may take long.
    """
    diagnostics = StreamDiagnostics(config, memory.monitor.device, processes)
    together: list[Callback] = [Checkpointing(run), PeriodicValidation(run, validation), memory]
    if not processes.main:
        return [diagnostics, *together]
    callbacks = [Recorder(run), diagnostics, Provenance(stream), *together, ConsoleProgress(config)]
    return callbacks + ([WandbCallback(config, run)] if config.logging.wandb != "disabled" else [])


def validation_record(result: Validation) -> Record:
    """The fields of a validation's record."""
    return {"validation_loss": result.loss, "validation_perplexity": result.perplexity}


def recorded_validation(run: RunDirectory, step: int) -> float | None:
    """The validation loss that a run has on record for a step."""
    losses = [
        record["validation_loss"]
        for record in run.read_metrics()
        if record["step"] == step and "validation_loss" in record
    ]
    return losses[0] if losses else None


def _brief(statistics: Mapping[str, Any]) -> str:
    if not statistics:
        return "none"
    weights = ", ".join(f"{weight:.3f}" for weight in statistics["mean_weight"])
    return f"mean weight [{weights}], entropy {statistics['entropy']:.3f} nats"
