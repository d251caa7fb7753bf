"""Memory of a run: what it takes, the most it took, a warning in time, and what to do about it.

Nothing here changes a setting by itself: equal budgets for every P would no longer be equal.
"""

import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from parcontrol.config import RunConfig
from parcontrol.formats import format_bytes

# Below this part of a memory, the next allocation of a step may be the one that fails.
LOW_MEMORY = 0.08
SHORTER_SEQUENCE = 512

# Allocators of torch report in plain RuntimeErrors, except CUDA's.
_OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "out of memory", "not enough memory", "invalid buffer size")


class _Room(NamedTuple):
    """What is left of a memory, in bytes."""

    name: str
    available: int
    total: int


class _CgroupFiles(NamedTuple):
    """What a version of Linux's control groups calls its limit, what is used of it, and the files cached in that."""

    limit: str
    usage: str
    cached: str


_CGROUP_1 = _CgroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_CGROUP_2 = _CgroupFiles("memory.max", "memory.current", "inactive_file")


class MemoryMonitor:
    """Watches the memory of this process, of its device and of the system."""

    def __init__(self, device: torch.device | str) -> None:
        """Watches a run on `device`."""
        self.device = torch.device(device)
        self._process = psutil.Process()
        self._device_peak = 0
        self._warned = False

    def sample(self) -> dict[str, int | None]:
        """Returns the memory in use now, in bytes.

        `rss_bytes` is what this process holds in main memory, `device_bytes` what its tensors hold
        on the device (None on a CPU, where there is no other memory), `system_available_bytes` what
        programs can still get before the system swaps or kills.
        """
        return {
            "rss_bytes": self._process.memory_info().rss,
            "device_bytes": self._device_bytes(),
            "system_available_bytes": system_room().available,
        }

    @property
    def peak_bytes(self) -> int:
        """The most main memory that this process ever held, as its kernel counts it."""
        return peak_rss_bytes()

    @property
    def device_peak_bytes(self) -> int | None:
        """The most that tensors held on the device; None on a CPU.

        CUDA counts it; MPS has no counter, so there it is the largest `sample` so far.
        """
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return self._device_peak if self._device_bytes() is not None else None

    def warning(self) -> str | None:
        """Returns a message the first time that memory runs low, and None otherwise."""
        low = [room for room in self._rooms() if room.available < LOW_MEMORY * room.total]
        if self._warned or not low:
            return None
        self._warned = True
        room = low[0]
        return (
            f"{room.name} is nearly full: {format_bytes(room.available)} of "
            f"{format_bytes(room.total)} are left, and this run may soon end. {memory_advice()}"
        )

    def _device_bytes(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        if self.device.type == "mps":
            allocated = torch.mps.driver_allocated_memory()
            self._device_peak = max(self._device_peak, allocated)
            return allocated
        return None

    def free_bytes(self) -> int:
        """What tensors can still take on the device (on a CPU: in main memory), in bytes."""
        return self._rooms()[-1].available

    def _rooms(self) -> list[_Room]:
        """Main memory and, last, that of the device where it has one of its own."""
        rooms = [system_room()]
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            # What torch has reserved but not handed out is free for this process.
            reserved = torch.cuda.memory_reserved(self.device)
            free += reserved - torch.cuda.memory_allocated(self.device)
            rooms.append(_Room(f"The memory of {self.device}", free, total))
        if self.device.type == "mps":
            total = torch.mps.recommended_max_memory()
            free = total - torch.mps.driver_allocated_memory()
            rooms.append(_Room("The memory that Metal recommends to use", free, total))
        return rooms


def peak_rss_bytes() -> int:
    """Returns the most main memory that this process ever held, in bytes.

    On Linux this is VmHWM: getrusage would also count the parent, if that was larger when it
    started this process. Elsewhere (macOS) it is getrusage's figure, which is in bytes there.
    """
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("/proc/self/status has no VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def system_room(root: Path = Path("/")) -> _Room:
    """Returns what is left of the main memory, or of a narrower limit on this process or its control groups."""
    memory = psutil.virtual_memory()
    rooms = [_Room("The main memory", memory.available, memory.total), *_container_rooms(root)]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        rooms.append(_Room("The address space (ulimit -v)", limit - psutil.Process().memory_info().vms, limit))
    return min(rooms, key=lambda room: room.available)


def _container_rooms(root: Path) -> Iterator[_Room]:
    """Yields the room under each memory limit of the control groups that this process is in, and of those above."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text(encoding="utf-8").splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, files = root / "sys/fs/cgroup", _CGROUP_2
        elif "memory" in controllers.split(","):
            mount, files = root / "sys/fs/cgroup/memory", _CGROUP_1
        else:
            continue
        parts = Path(path.lstrip("/")).parts
        # In a container the path may be the host's: then only the last of these is there, and holds the limit.
        for directory in (mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)):
            limit_file = directory / files.limit
            if limit_file.exists() and (limit := limit_file.read_text().strip()) != "max":
                used = int((directory / files.usage).read_text())
                counted = directory / "memory.stat"  # which some kernels do not have
                counters = dict(line.split() for line in counted.read_text().splitlines()) if counted.exists() else {}
                used -= int(counters.get(files.cached, 0))  # files, dropped when memory is needed
                yield _Room("The memory of this control group", int(limit) - used, int(limit))


def memory_advice(config: RunConfig | None = None) -> str:
    """Returns what to change to need less memory, in the order to try it.

    With a configuration, settings that are already as small as advised are left out.
    """
    steps = [change for change, needed in _REMEDIES if config is None or needed(config)]
    if not steps:
        steps = ["a smaller model or a smaller parscale.P"]
    return f"To need less memory, set {', then '.join(steps)}. Nothing is changed by itself."


_REMEDIES: list[tuple[str, Callable[[RunConfig], bool]]] = [
    (
        f"data.sequence_length to {SHORTER_SEQUENCE}",
        lambda config: config.data.sequence_length > SHORTER_SEQUENCE,
    ),
    (
        "training.microbatch_size to 1 (and training.gradient_accumulation_steps up by the same factor)",
        lambda config: config.training.microbatch_size > 1,
    ),
    (
        "training.gradient_checkpointing to true",
        lambda config: not config.training.gradient_checkpointing,
    ),
]


def out_of_memory_advice(error: BaseException, config: RunConfig, fitting: str = "") -> str | None:
    """Returns one clear message if `error` says that memory ran out, else None.

    `fitting` is a sentence on what would fit, where that is known.
    """
    if not is_out_of_memory(error):
        return None
    return (
        f"out of memory with parscale.P {config.parscale.P}, data.sequence_length "
        f"{config.data.sequence_length} and training.microbatch_size "
        f"{config.training.microbatch_size} ({first_line(error)}). {fitting}{' ' if fitting else ''}"
        f"{memory_advice(config)}"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is MemoryError, torch's error for CUDA, or a RuntimeError of its CPU and MPS allocators."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY_TEXTS)
    )


def first_line(error: BaseException) -> str:
    """What an error says, without the lines of a C++ traceback that torch adds; its type where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
