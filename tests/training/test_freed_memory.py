"""Whether freed memory stays or goes is seen where the system counts it: in page faults and resident memory."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from parcontrol.config import RunConfig
from parcontrol.training import run as composition
from parcontrol.training.loop import TrainingLoop

# In a process of its own, as malloc's settings are the process's.
SCRIPT = """
import resource, psutil, torch
from parcontrol.training.freed_memory import freed_memory_kept

def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return psutil.Process().memory_info().rss

def tensor(size):
    made = torch.empty(size)
    made[::1024] = 1  # in every page
    return made

def step():
    before = page_faults()
    tensors = [tensor(20_000_000) for _ in range(30)]  # 2.4 GB, each above the thresholds that malloc sets itself
    return page_faults() - before

step()
print("again", step())
try:
    with freed_memory_kept(torch.device("cpu")):
        for _ in range(10):  # until every tensor has found its place
            step()
        print("kept", step())
        print("resident", resident())
        raise KeyError
except KeyError:
    print("given_back", resident())
large = tensor(700_000_000)  # more than there is room for where tensors have been
del large
print("afterwards", resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc")
def test_freed_memory_is_kept_and_given_back() -> None:
    process = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    found = {name: int(value) for name, value in map(str.split, process.stdout.splitlines())}
    pages = 2_400_000_000 // resource.getpagesize()
    assert found["again"] > pages / 2
    assert found["kept"] < pages / 100
    assert found["resident"] - found["given_back"] > 2_000_000_000
    assert found["afterwards"] - found["given_back"] < 100_000_000


def test_all_steps_of_a_run_keep_their_memory(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[torch.device] = []
    steps: list[bool] = []
    step = TrainingLoop._train_step

    @contextmanager
    def recorded(device: torch.device) -> Iterator[None]:
        kept.append(device)
        yield
        kept.clear()

    def counted(loop: TrainingLoop) -> None:
        steps.append(kept == [loop.precision.device])
        step(loop)

    monkeypatch.setattr(composition, "freed_memory_kept", recorded)
    monkeypatch.setattr(TrainingLoop, "_train_step", counted)
    config = make_config()
    composition.run(config)
    assert len(steps) == config.total_steps
    assert all(steps)
    assert not kept
