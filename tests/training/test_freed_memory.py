"""Whether freed memory stays or goes is seen where the system counts it: in page faults and resident memory."""

from __future__ import annotations

import ctypes
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

def step():
    before = page_faults()
    tensors = [torch.ones(20_000_000) for _ in range(5)]  # 400 MB, each above the largest threshold that malloc takes
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
large = torch.ones(150_000_000)  # more than there is room for where tensors have been
del large
print("afterwards", resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc")
def test_freed_memory_is_kept_and_given_back() -> None:
    process = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    found = {name: int(value) for name, value in map(str.split, process.stdout.splitlines())}
    pages = 400_000_000 // 4096
    assert found["again"] > pages / 2
    assert found["kept"] < pages / 100
    assert found["resident"] - found["given_back"] > 350_000_000
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
