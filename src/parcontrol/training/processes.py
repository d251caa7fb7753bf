"""The processes that train one run together: data parallel, started by torchrun.

Rank 0 does all that is done once: it reads the data, owns the run directory, logs. The others get
from it what they need, so that nothing can differ between them. Two kinds of messages travel:
tensors of the model over the device's own backend (NCCL, on CPUs gloo), and small words of the
host (blocks of tokens, settings, signals) over gloo, which never waits for a device.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from parcontrol.config import RunConfig, config_differences
from parcontrol.data.seeding import seeded_int
from parcontrol.runs import MAY_DIFFER
from parcontrol.torchrun import number_of_processes
from parcontrol.training.device import choose_device
from parcontrol.training.errors import Interrupted

# How long another rank gives rank 0 to tell of a failure that both have met.
_RANK_0_TELLS_WITHIN = timedelta(seconds=5)
_STORE_TIMEOUT = timedelta(seconds=30)
_runs = itertools.count()


@dataclass(frozen=True)
class Processes:
    """This process among those of its run. By default it is the only one, and nothing travels.

    Attributes:
        rank: Its number.
        size: How many there are, on all machines.
        local_rank: Its number among those of this machine.
        local_size: How many there are on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process does what is done once."""
        return self.rank == 0

    # --- words of the host, over gloo ---

    def of_main(self, answer: Callable[[], Any]) -> Any:
        """Returns rank 0's answer, which JSON can hold, in all processes; only there it is asked for."""
        if self.size == 1:
            return answer()
        text = torch.frombuffer(bytearray(json.dumps(answer() if self.main else None).encode()), dtype=torch.uint8)
        length = torch.tensor(len(text))
        dist.broadcast(length, src=0)
        text = text if self.main else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(text, src=0)
        return json.loads(text.numpy().tobytes())

    def tensors_of_main(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Returns rank 0's tensors on the CPU, by name; the others give None."""
        if self.size == 1:
            return dict(tensors or {})
        own = {name: tensor.cpu().contiguous() for name, tensor in (tensors or {}).items()}
        header = self.of_main(lambda: [(name, str(t.dtype)[6:], list(t.shape)) for name, t in own.items()])
        for name, dtype, shape in header:
            tensor = own[name] if self.main else torch.empty(shape, dtype=getattr(torch, dtype))
            dist.broadcast(tensor, src=0)
            own[name] = tensor
        return own

    def agreed(self, check: Callable[[], None]) -> Callable[[], None]:
        """Returns a check that raises `Interrupted` in all processes when it does in any.

        All must ask at the same points: signals come to each at a moment of its own, and a process
        that left alone would leave the others waiting.
        """
        if self.size == 1:
            return check

        def check_all() -> None:
            signum = torch.tensor(0)
            try:
                check()
            except Interrupted as interrupted:
                signum += interrupted.signum
            dist.all_reduce(signum, dist.ReduceOp.MAX)
            if signum:
                raise Interrupted(int(signum))

        return check_all

    def least(self, number: int) -> int:
        """Returns the least of the numbers that the processes give, in all of them, once all have given one."""
        if self.size == 1:
            return number
        least = torch.tensor(number)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)

    def wait_for_all(self) -> None:
        """Returns once all processes are here. A barrier of torch's would choose a GPU, which need not be used."""
        self.least(0)

    # --- the split of a batch and the sums over it ---

    def own_rows(self, blocks_NT: NDArray[Any]) -> NDArray[Any]:
        """Returns this process's rows of a global batch: neighbours, in the order of the ranks."""
        rows, rest = divmod(len(blocks_NT), self.size)
        assert rest == 0, (len(blocks_NT), self.size)
        return blocks_NT[self.rank * rows : (self.rank + 1) * rows]

    def add_up(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the sums of tensors over all processes, each where it was."""
        if self.size == 1:
            return dict(tensors)
        sums = {name: tensor.clone() for name, tensor in tensors.items()}
        for tensor in sums.values():
            dist.all_reduce(tensor)
        return sums

    def add_up_gradients(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
        """Sums gradients over all processes in place, and returns the sum of the losses.

        Once per step, whatever number of backward passes it took, and all in one message: losses
        and gradients are shares of the mean over the global batch, so their sums are the whole.

        Args:
            parameters: The same in all processes, each with a float32 gradient.
            loss: This process's share, a scalar on the device.
        """
        if self.size == 1:
            return loss
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        bucket = torch.cat([loss.reshape(1), *(gradient.flatten() for gradient in gradients)])
        dist.all_reduce(bucket)
        start = 1
        for gradient in gradients:
            gradient.copy_(bucket[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()
        return bucket[0]

    @torch.no_grad()
    def make_equal(self, model: nn.Module) -> None:
        """Overwrites parameters and buffers with those of rank 0."""
        if self.size > 1:
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor.data, src=0)

    def seed_step(self, seed: int, step: int) -> None:
        """Gives this process random numbers of its own for a step.

        They follow from seed, step and rank alone, so a resumed run draws what it would have drawn.
        One process alone goes on with its one generator, whose state is in the checkpoint.
        """
        if self.size > 1:
            torch.manual_seed(seeded_int("step", seed, step, self.rank))

    # --- what a run needs to be split ---

    def check_splits(self, config: RunConfig) -> None:
        """Raises ValueError if the processes cannot share the run's global batch equally."""
        training = config.training
        rows = training.microbatch_size * training.gradient_accumulation_steps
        if rows % self.size:
            allowed = ", ".join(str(n) for n in range(1, rows + 1) if rows % n == 0)
            raise ValueError(
                f"{self.size} processes cannot share a global batch of {rows} sequences (training.microbatch_size "
                f"{training.microbatch_size} x training.gradient_accumulation_steps "
                f"{training.gradient_accumulation_steps}) equally: the number of processes must be one of {allowed}"
            )

    def check_same(self, config: RunConfig, compute: torch.dtype) -> None:
        """Raises ValueError if this process would train another run than rank 0.

        Each reads its configuration for itself, on another machine perhaps another file, and chooses
        the type of its products by its own device.

        Args:
            config: This process's configuration.
            compute: The type of its products.
        """
        there, compute_there = self.of_main(lambda: (config.model_dump(mode="json"), str(compute)))
        differences = {
            key: values
            for key, values in config_differences(RunConfig.model_validate(there), config).items()
            if not key.startswith(MAY_DIFFER)
        }
        if str(compute) != compute_there:
            differences["the type that training.mixed_precision chooses"] = (compute_there, str(compute))
        if differences:
            listed = ", ".join(
                f"{key} {theirs!r} in rank 0, {own!r} here" for key, (theirs, own) in differences.items()
            )
            raise ValueError(
                f"rank {self.rank} would train another run than rank 0 ({listed}): all processes need the same "
                "configuration"
            )

    def own_device(self, config: RunConfig) -> RunConfig:
        """Returns the configuration with this process's own device of the kind that it names.

        Raises:
            ValueError: The machine has fewer devices of that kind than processes.
        """
        if self.size == 1:
            return config
        name = config.training.device
        device = choose_device(name)
        if device.type == "cpu":
            return config
        if device.type != "cuda" or device.index is not None:
            raise ValueError(
                f"training.device: {name or str(device)!r} is not allowed with {self.size} processes: "
                "cuda, one GPU for each process, or cpu is needed"
            )
        if self.local_size > torch.cuda.device_count():
            raise ValueError(
                f"{self.local_size} processes on this machine need as many GPUs, and it has "
                f"{torch.cuda.device_count()}: lower --nproc-per-node, or set training.device to cpu"
            )
        torch.cuda.set_device(self.local_rank)
        training = config.training.model_copy(update={"device": f"cuda:{self.local_rank}"})
        return config.model_copy(update={"training": training})


ALONE = Processes()


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Joins the processes that torchrun has started, and takes leave of them when the block ends well.

    After an error the process is expected to end: others may be gone, and would be waited for. An
    interruption comes to all at the same point, and they wait for each other: torchrun ends all
    others as soon as one has left, and rank 0 may still be writing the checkpoint.
    """
    if not several_processes():
        yield ALONE
        return
    store, rank, size = next(iter(dist.rendezvous("env://")))
    # A process may train one run after the other: each group meets under keys of its own.
    meeting = dist.PrefixStore(f"parcontrol/run/{next(_runs)}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=meeting, rank=rank, world_size=size)
    processes = Processes(rank, size, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    try:
        yield processes
    except Interrupted:
        processes.wait_for_all()
        raise
    processes.wait_for_all()
    dist.destroy_process_group()


def several_processes() -> bool:
    """Whether torchrun started this process, and others with it."""
    return number_of_processes() > 1


def first_to_tell(is_consequence: bool) -> bool:
    """Whether this process is the one that tells of a failure: one does, whatever number of them meets it.

    Rank 0 comes first where all meet the same, as with a bad configuration; a process that fails
    alone tells before the others learn of it by its absence.

    Args:
        is_consequence: Whether the failure is that another process has ended.
    """
    if not several_processes():
        return True
    told = f"parcontrol/told/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        store, rank, _ = next(iter(dist.rendezvous("env://", timeout=_STORE_TIMEOUT)))
        if rank and not is_consequence:
            with suppress(dist.DistStoreError):  # the time is over, and rank 0 has nothing to tell
                store.wait([told], _RANK_0_TELLS_WITHIN)
        return bool(store.add(told, 1) == 1)
    except dist.DistError:  # torchrun, where they could agree, is gone: rather told twice than never
        return True


def lost_process(error: BaseException) -> str | None:
    """Returns one line if an error says that another process is gone, else None."""
    text = str(error)
    is_of_backend = isinstance(error, RuntimeError) and ("gloo" in text or "NCCL" in text)
    if not isinstance(error, dist.DistError) and not is_of_backend:
        return None
    return text.strip().splitlines()[0].split(" This is typically")[0]
