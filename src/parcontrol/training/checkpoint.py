"""Periodic checkpoints: what trains, its moments, and the run between two steps.

    step_XXXXXXXX/
        parameters.safetensors   what trains, float32
        optimizer.safetensors    AdamW's step, exp_avg and exp_avg_sq of each parameter
        state.safetensors        RNG states, the open log window, the callbacks' sums
        state.json               step, tokens, times, position in the data

No pickle: nothing in a checkpoint can run code. A checkpoint is a directory renamed into place, so
it is whole or not there.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from parcontrol.runs import RunDirectory, atomic_directory
from parcontrol.training.loop import Boundary, Callback, TrainingLoop
from parcontrol.training.processes import Processes
from parcontrol.training.sharding import split_like, whole

logger = logging.getLogger(__name__)

_PARAMETERS, _OPTIMIZER, _TENSORS = (f"{name}.safetensors" for name in ("parameters", "optimizer", "state"))
_STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory, on the CPU."""

    path: Path
    parameters: dict[str, Tensor]
    moments: dict[str, Tensor]
    boundary: Boundary

    @classmethod
    def newest(cls, run: RunDirectory) -> Checkpoint | None:
        """Reads the newest checkpoint of a run, if there is one.

        Raises:
            ValueError: It cannot be read.
        """
        paths = run.checkpoints()
        return cls.read(paths[-1]) if paths else None

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Reads a checkpoint directory.

        Raises:
            ValueError: A file is missing or damaged.
        """
        try:
            state = json.loads((path / _STATE).read_text(encoding="utf-8"))
            boundary = Boundary(**state, tensors=load_file(path / _TENSORS))
            return cls(path, load_file(path / _PARAMETERS), load_file(path / _OPTIMIZER), boundary)
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise ValueError(
                f"the checkpoint {path} cannot be read ({error}); delete it to resume from the one before"
            ) from error

    @classmethod
    def newest_of_main(cls, run: RunDirectory, processes: Processes) -> Checkpoint | None:
        """Returns rank 0's newest checkpoint in all processes: only rank 0 needs to see the directory.

        Raises:
            ValueError: It cannot be read.
        """
        own = cls.newest(run) if processes.main else None
        fields = processes.of_main(lambda: own and _fields(own.boundary))
        if fields is None:
            return None
        parts: list[dict[str, Tensor]] = [
            processes.tensors_of_main(tensors)
            for tensors in ((own.parameters, own.moments, own.boundary.tensors) if own else (None, None, None))
        ]
        path = own.path if own else run.checkpoint_path(fields["step"])
        return cls(path, parts[0], parts[1], Boundary(**fields, tensors=parts[2]))

    def restore(self, loop: TrainingLoop) -> None:
        """Puts a loop where the checkpoint was taken.

        The data stream is not part of it: it is made with `boundary.data`.

        Raises:
            ValueError: The checkpoint holds other parameters than the loop trains.
        """
        trainable = dict(loop.trainable)
        expected = {name: list(parameter.shape) for name, parameter in trainable.items()}
        found = {name: list(tensor.shape) for name, tensor in self.parameters.items()}
        if expected != found:
            odd = sorted(expected.items() ^ found.items(), key=str)[0][0]
            raise ValueError(f"the checkpoint {self.path} is of another model: {odd} differs")
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(split_like(self.parameters[name], parameter))
        _load_moments(loop, self.moments)
        loop.restore(self.boundary)


def save_checkpoint(run: RunDirectory, loop: TrainingLoop, keep: int) -> None:
    """Writes the loop's boundary as a checkpoint and removes all but the newest `keep`.

    Older ones go only after the new one is complete on disk. All processes call this; rank 0 writes.

    Raises:
        NonFiniteError: A step since the last log point was not finite; nothing is written.
        OSError: The disk is full; the checkpoints before stay.
    """
    loop.check_finite()
    main = loop.processes.main
    parameters, moments = (_whole_tensors(part, keep=main) for part in (dict(loop.trainable), _moments(loop)))
    tensors = loop.run_tensors()
    if not main:
        return
    with atomic_directory(run.checkpoint_path(loop.boundary.step)) as directory:
        _save(parameters, directory / _PARAMETERS)
        _save(moments, directory / _OPTIMIZER)
        _save(tensors, directory / _TENSORS)
        (directory / _STATE).write_text(json.dumps(_fields(loop.boundary)), encoding="utf-8")
    run.remove_old_checkpoints(keep)


class Checkpointing(Callback):
    """Saves before the first step, every `checkpoint_interval_steps`, at the end, on a signal."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run

    def on_boundary(self, loop: TrainingLoop) -> None:
        """Saves when one is due."""
        last = loop.step == loop.config.total_steps
        if last or loop.step % loop.config.training.checkpoint_interval_steps == 0:
            self._save(loop)

    def on_interrupt(self, loop: TrainingLoop) -> None:
        """Saves the last whole step; the one under way is done again."""
        self._save(loop)
        logger.warning("interrupted: step %d is kept, and the same command goes on from there", loop.boundary.step)

    def _save(self, loop: TrainingLoop) -> None:
        path = self.run.checkpoint_path(loop.boundary.step)
        if not loop.processes.of_main(path.exists):
            save_checkpoint(self.run, loop, loop.config.training.keep_checkpoints)


def _moments(loop: TrainingLoop) -> dict[str, Tensor]:
    """AdamW's state as `NAME.exp_avg`, ...; empty before the first step."""
    return {
        f"{name}.{key}": value
        for name, parameter in loop.trainable
        for key, value in loop.optimizer.state[parameter].items()
    }


def _load_moments(loop: TrainingLoop, moments: Mapping[str, Tensor]) -> None:
    names = {parameter: name for name, parameter in loop.trainable}
    state: dict[int, dict[str, Tensor]] = {}
    ordered = [p for group in loop.optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(ordered):
        prefix = f"{names[parameter]}."
        own = {k.removeprefix(prefix): split_like(v, parameter) for k, v in moments.items() if k.startswith(prefix)}
        if own:
            state[index] = own
    groups = loop.optimizer.state_dict()["param_groups"]
    loop.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _fields(boundary: Boundary) -> dict[str, Any]:
    """A boundary without its tensors, as JSON can hold it."""
    names = (field.name for field in dataclasses.fields(boundary) if field.name != "tensors")
    return {name: getattr(boundary, name) for name in names}


def _whole_tensors(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Gathers what is in shards, one by one, and keeps it, on the CPU, where it is wanted."""
    wholes = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor.detach())
        if keep:
            wholes[name] = gathered.cpu()
    return wholes


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
