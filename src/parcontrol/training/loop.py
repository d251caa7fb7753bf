"""The training loop: microbatches, one update, the next step. Everything else is a callback.

Legend: P streams, B batch, T tokens, D hidden, V vocabulary.

With several processes (`processes`) each takes its rows of every global batch; sums of gradients,
losses and statistics are over all of them, so that all know the same and stop together.

Between log points the host never waits for the device: losses, gradient norms and the first
non-finite step are tensors of the `Window`, read in one transfer when the window closes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from parcontrol.config import RunConfig
from parcontrol.data.stream import TrainStream
from parcontrol.data.validation import ValidationSet
from parcontrol.training.compiling import compile_layers, uncompiled
from parcontrol.training.device import Precision, restore_rng, rng_state, without_packing_check
from parcontrol.training.errors import Interrupted, NonFiniteError
from parcontrol.training.evaluate import Validation, evaluate
from parcontrol.training.loss import chunked_cross_entropy, output_head
from parcontrol.training.optimizer import (
    build_optimizer,
    learning_rate,
    select_trainable,
)
from parcontrol.training.processes import ALONE, Processes
from parcontrol.training.sharding import ShardedModel, clip_gradients, split_by_sharding
from parcontrol.training.shared_data import SharedStream
from parcontrol.training.stream_passes import backward_in_passes

Record = dict[str, Any]


class Callback:
    """What may be done beside training. The loop calls every hook of every callback, in order."""

    def on_start(self, loop: TrainingLoop) -> None:
        """Before the first step of this process."""

    def on_boundary(self, loop: TrainingLoop) -> None:
        """Between steps: before the first, after each, and after the last."""

    def on_microbatch(self, loop: TrainingLoop, output: Any) -> None:
        """After each backward pass, with the inner model's output (detach before keeping any)."""

    def on_log(self, loop: TrainingLoop) -> None:
        """At each log point, after the loop's own record; the place to read from the device."""

    def on_record(self, kind: str, record: Record) -> None:
        """A record was emitted: `train`, `streams`, `provenance`, `validation` or `result`."""

    def on_interrupt(self, loop: TrainingLoop) -> None:
        """A signal ends the run; `loop.boundary` is the state to keep."""

    def on_validation(self, done: int, total: int) -> None:
        """During a validation, with the blocks done and in all."""

    def on_stop(self, failed: bool) -> None:
        """At the very end; `failed` where an error or a signal is the reason."""

    def describe(self) -> str:
        """What to add, if anything, to the message of a run that is about to fail."""
        return ""

    def state(self) -> dict[str, Tensor]:
        """Copies of what an interrupted run must get back, by name."""
        return {}

    def run_state(self, state: Mapping[str, Tensor], processes: Processes) -> Mapping[str, Tensor]:
        """Returns the state of the whole run, out of that of this process; all processes ask at once."""
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `state`, or of several processes `run_state`, gave."""


@dataclass(frozen=True)
class Boundary:
    """A run between two steps: everything but parameters and their moments, which only steps change.

    Attributes:
        step: Optimiser steps taken.
        tokens: Tokens trained on.
        seconds: Time since the start, over all processes of the run.
        training_seconds: Part of it that was spent in steps.
        wait_seconds: Part of that that was spent waiting for data.
        data: Position of the data stream, JSON-able.
        tensors: RNG states, the open window and the callbacks' states, by name.
    """

    step: int
    tokens: int
    seconds: float
    training_seconds: float
    wait_seconds: float
    data: Record
    tensors: dict[str, Tensor]


class Window:
    """Sums over the steps since the last log point, on the device."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float32, device=device)  # loss, norm, steps
        # Step (0: none), loss and gradient norm of the first step that was not finite.
        self._bad = torch.zeros(3, dtype=torch.float32, device=device)

    def add(self, step: int, loss: Tensor, grad_norm: Tensor) -> None:
        """Adds a step's loss and gradient norm (scalars on the device) without reading them."""
        values = torch.stack([loss, grad_norm])
        self._sums += torch.cat([values, torch.ones_like(values[:1])])
        first = ~values.isfinite().all() & (self._bad[0] == 0)
        bad = torch.cat([torch.full_like(values[:1], step), values])
        self._bad = torch.where(first, bad, self._bad)

    def first_bad_step(self) -> tuple[int, float, float] | None:
        """Step, loss and gradient norm of the first that was not finite. Waits for the device."""
        step, loss, grad_norm = self._bad.tolist()
        return (int(step), loss, grad_norm) if step else None

    def read_and_reset(self) -> tuple[float, float]:
        """Mean loss and gradient norm over the window's steps. Waits for the device."""
        loss, grad_norm, steps = self._sums.tolist()
        self._sums.zero_()
        return loss / steps, grad_norm / steps

    def state(self) -> dict[str, Tensor]:
        """A copy of the sums; a run with a bad step is never kept."""
        return {"sums": self._sums.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `state` gave."""
        self._sums.copy_(state["sums"])


class TrainingLoop:
    """One run's training.

    Attributes:
        model: The ParScale model; parameters that train are float32.
        trainable: Names and parameters that train.
        optimizer: AdamW over them.
        step: Optimiser steps taken.
        tokens: Tokens trained on.
        training_seconds: Time spent in steps, over all processes of the run.
        boundary: The run as it was between this step and the one before.
    """

    def __init__(
        self,
        config: RunConfig,
        model: PreTrainedModel,
        stream: TrainStream | SharedStream,
        precision: Precision,
        callbacks: Sequence[Callback],
        check_interrupt: Callable[[], None] = lambda: None,
        streams_per_pass: int | None = None,
        processes: Processes = ALONE,
    ) -> None:
        """Prepares the model for training.

        Args:
            config: The run.
            model: A ParScale model on its device.
            stream: Blocks of real tokens: whole global batches.
            precision: Device and types.
            callbacks: Called in this order.
            check_interrupt: Asked where the run can stop; raises `Interrupted`.
            streams_per_pass: Streams whose activations are kept at a time; None takes the
                configuration's, and all where that leaves it open.
            processes: Those that train this run.

        Raises:
            ValueError: The model's output head is not supported.
        """
        self.config, self.model, self.stream, self.precision = config, model, stream, precision
        self.processes = processes
        output_head(model)
        self.trainable: list[tuple[str, nn.Parameter]] = select_trainable(model, config.training.mode)
        processes.make_equal(model)
        self.sharded: ShardedModel | None = None
        if processes.size > 1 and config.training.mode == "full":
            self.sharded = ShardedModel(model, processes, precision.device)
            self.trainable = list(model.named_parameters())
        self.optimizer = build_optimizer(self.trainable, config.training)
        if config.training.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if config.training.compile:
            compile_layers(model, precision.compute)
        self.streams_per_pass = streams_per_pass or config.training.streams_per_pass or config.parscale.P
        self.callbacks = callbacks
        self.check_interrupt = check_interrupt
        self.step, self.tokens, self.training_seconds = 0, 0, 0.0
        self.window = Window(precision.device)
        self._wait_before, self._seconds_before = 0.0, 0.0
        self._opened = time.perf_counter()
        self._sources: dict[int, Record] = {}  # provenance by step, since the last log point
        self._logged_at = (0, 0.0)

    @property
    def seconds(self) -> float:
        """Time since the loop was made, over all processes of the run."""
        return self._seconds_before + time.perf_counter() - self._opened

    @property
    def wait_seconds(self) -> float:
        """Time spent waiting for data, over all processes of the run."""
        return self._wait_before + self.stream.wait_seconds

    def __enter__(self) -> TrainingLoop:
        return self

    def __exit__(self, *error: object) -> None:
        self._call("on_stop", error[0] is not None)

    def run(self) -> None:
        """Trains from the current step to the last.

        Raises:
            Interrupted: A signal came; the callbacks have kept `boundary`.
            NonFiniteError: A loss or gradient was NaN or infinite.
        """
        self.model.train()
        self._sources[self.step] = self.stream.provenance()
        self._mark_boundary()
        try:
            self._call("on_start", self)
            self._call("on_boundary", self)
            while self.step < self.config.total_steps:
                self._train_step()
                if self._is_log_point():
                    self._log()
                self._mark_boundary()
                self._call("on_boundary", self)
        except Interrupted:
            self._call("on_interrupt", self)
            raise

    def validate(self, validation: ValidationSet, precision: Precision) -> Validation:
        """Measures the model as it is, telling the callbacks and letting signals through.

        Raises:
            NonFiniteError: A step since the last log point was not finite, or a loss here is not.
        """
        self.check_finite()

        def on_batch(done: int, total: int) -> None:
            self.check_interrupt()
            self._call("on_validation", done, total)

        batch_size = self.config.training.microbatch_size
        with uncompiled(self.config.training):
            return evaluate(
                self.model, validation, precision, batch_size=batch_size, on_batch=on_batch, processes=self.processes
            )

    def gather_model(self, dtype: torch.dtype) -> None:
        """Makes a model in shards whole again, in every process and in a type: the end of training."""
        if self.sharded is not None:
            self.model = self.sharded.gathered(dtype)

    def run_tensors(self) -> dict[str, Tensor]:
        """The boundary's tensors for the whole run; all processes ask at once."""
        tensors = dict(self.boundary.tensors)
        for owner, stateful in self._stateful().items():
            if isinstance(stateful, Callback):
                state = stateful.run_state(_with_prefix(tensors, owner), self.processes)
                tensors |= {f"{owner}.{key}": value for key, value in state.items()}
        return tensors

    def emit(self, kind: str, record: Record) -> None:
        """Hands a record to all callbacks, with the step and tokens that it belongs to."""
        place = {"step": self.step, "tokens": self.tokens}
        record = place | {key: value for key, value in record.items() if key not in place}
        for callback in self.callbacks:
            callback.on_record(kind, record)

    def check_finite(self) -> None:
        """Raises NonFiniteError if any step since the last log point was not finite."""
        bad = self.window.first_bad_step()
        if bad is not None:
            raise NonFiniteError(self._describe_bad_step(*bad))

    def restore(self, boundary: Boundary) -> None:
        """Goes back to a boundary; parameters, moments and data stream are the caller's part."""
        self.step, self.tokens = boundary.step, boundary.tokens
        self.training_seconds = boundary.training_seconds
        self._seconds_before, self._wait_before = boundary.seconds, boundary.wait_seconds
        self._logged_at = (self.tokens, self.training_seconds)
        for owner, stateful in self._stateful().items():
            stateful.load_state(_with_prefix(boundary.tensors, owner))
        restore_rng(_with_prefix(boundary.tensors, "rng"), self.precision.device)

    def _train_step(self) -> None:
        started = time.perf_counter()
        training = self.config.training
        blocks = self.stream.next_blocks(training.microbatch_size * training.gradient_accumulation_steps)
        ids = torch.from_numpy(self.processes.own_rows(blocks))
        if self.precision.device.type == "cuda":
            ids = ids.pin_memory()  # from pageable memory the copy would wait for the device
        ids_NT = ids.to(self.precision.device, non_blocking=True)
        # Every predicted token of the step weighs the same, whatever microbatch and process it is in.
        predicted = blocks[:, 1:].size
        self.processes.seed_step(training.seed, self.step)
        loss = torch.zeros((), device=self.precision.device)
        microbatches = ids_NT.split(training.microbatch_size)
        for ids_BT in microbatches:
            self.check_interrupt()
            loss += self._backward(ids_BT, predicted, ids_BT is microbatches[-1])
        _, whole = split_by_sharding([parameter for _, parameter in self.trainable])
        loss = self.processes.add_up_gradients(whole, loss)
        tokens = self.tokens + blocks.size
        grad_norm = self._update(learning_rate(tokens, self.config))
        self.step, self.tokens = self.step + 1, tokens
        self.window.add(self.step, loss, grad_norm)
        self._sources[self.step] = self.stream.provenance()
        self.training_seconds += time.perf_counter() - started

    def _backward(self, ids_BT: Tensor, predicted: int, ends_step: bool = False) -> Tensor:
        """Adds a microbatch's share of the mean loss's gradient; returns its share of the loss."""
        head = self.model.get_output_embeddings()  # whose weight, if in shards, is whole after a forward pass

        def loss_of(hidden_BtD: Tensor, start: int) -> Tensor:
            targets_Bt = ids_BT[:, start + 1 : start + 1 + hidden_BtD.shape[1]]
            hidden_ND = hidden_BtD[:, : targets_Bt.shape[1]].flatten(0, 1)  # the last token predicts none
            return chunked_cross_entropy(
                hidden_ND, head.weight, targets_Bt.flatten(), predicted, compiled=self.config.training.compile
            )

        def before_last_pass() -> None:
            if self.sharded is not None:
                self.sharded.reduce_gradients(now=ends_step)

        if self.sharded is not None:
            self.sharded.reduce_gradients(now=False)
        if self.streams_per_pass < self.config.parscale.P:
            loss, output = backward_in_passes(
                self.model, ids_BT, loss_of, self.streams_per_pass, self.precision, before_last_pass
            )
        else:
            with self.precision.autocast(), without_packing_check():
                output = self.model.model(input_ids=ids_BT, use_cache=False)
                loss = loss_of(output.last_hidden_state, 0)
            before_last_pass()
            loss.backward()
        self._call("on_microbatch", self, output)
        return loss.detach()

    def _update(self, lr: float) -> Tensor:
        """Clips by global norm and updates; returns the norm before clipping."""
        parameters = [parameter for _, parameter in self.trainable]
        norm = clip_gradients(parameters, self.config.training.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _is_log_point(self) -> bool:
        last = self.step == self.config.total_steps
        return last or self.step % self.config.training.log_interval_steps == 0

    def _log(self) -> None:
        started = time.perf_counter()
        self.check_finite()
        self._sources = {self.step: self._sources[self.step]}
        loss, grad_norm = self.window.read_and_reset()
        self.training_seconds += time.perf_counter() - started  # the device's time, waited for here
        tokens, seconds = self._logged_at
        self._logged_at = (self.tokens, self.training_seconds)
        self.emit(
            "train",
            {
                "loss": loss,
                "learning_rate": learning_rate(self.tokens, self.config),
                "grad_norm": grad_norm,
                "tokens_per_second": (self.tokens - tokens) / (self.training_seconds - seconds),
                "seconds": self.seconds,
            },
        )
        self._call("on_log", self)

    def _mark_boundary(self) -> None:
        states = {"rng": rng_state(self.precision.device)}
        states |= {owner: stateful.state() for owner, stateful in self._stateful().items()}
        self.boundary = Boundary(
            self.step,
            self.tokens,
            self.seconds,
            self.training_seconds,
            self.wait_seconds,
            self.stream.state_dict(),
            {f"{owner}.{k}": v for owner, state in states.items() for k, v in state.items()},
        )

    def _describe_bad_step(self, step: int, loss: float, grad_norm: float) -> str:
        before = {shard["shard"]: shard for shard in self._sources[step - 1]["shards"]}
        read = [
            f"{shard['shard']} up to byte {shard['byte_end']}, from within the document that ends at byte "
            f"{before[shard['shard']]['byte_end']}"
            for shard in self._sources[step]["shards"]
            if shard["tokens"] > before[shard["shard"]]["tokens"]
        ]
        notes = filter(None, (callback.describe() for callback in self.callbacks))
        return " ".join(
            [
                f"step {step} is not finite: loss {loss}, gradient norm {grad_norm}.",
                f"Its batch: {', '.join(read)}.",
                *notes,
                "No checkpoint has been written since.",
            ]
        )

    def _stateful(self) -> dict[str, Any]:
        return {"window": self.window} | {type(c).__name__: c for c in self.callbacks}

    def _call(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(*arguments)


def _with_prefix(tensors: Mapping[str, Tensor], owner: str) -> dict[str, Tensor]:
    prefix = f"{owner}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
