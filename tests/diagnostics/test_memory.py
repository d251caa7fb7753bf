"""The memory monitor against the kernel's numbers, its warning, and out-of-memory messages."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from parcontrol.config import RunConfig, load_config
from parcontrol.diagnostics import memory
from parcontrol.diagnostics.memory import (
    MemoryMonitor,
    memory_advice,
    out_of_memory_advice,
    peak_rss_bytes,
    system_room,
)

MIB = 1 << 20


def config(**overrides: Any) -> RunConfig:
    return load_config(overrides={key.replace("__", "."): value for key, value in overrides.items()})


def test_sample_sees_an_allocation() -> None:
    monitor = MemoryMonitor("cpu")
    before = monitor.sample()
    block = bytearray(b"x") * (200 * MIB)
    after = monitor.sample()
    assert before["rss_bytes"] is not None
    assert after["rss_bytes"] is not None
    assert after["rss_bytes"] - before["rss_bytes"] > 150 * MIB
    assert monitor.peak_bytes >= after["rss_bytes"]
    assert after["device_bytes"] is None
    assert monitor.device_peak_bytes is None
    assert 0 < after["system_available_bytes"] <= psutil.virtual_memory().total  # type: ignore[operator]
    del block


def test_the_peak_stays_when_memory_is_given_back() -> None:
    block = bytearray(b"x") * (200 * MIB)
    peak = peak_rss_bytes()
    del block
    assert peak_rss_bytes() > peak - MIB  # the kernel counts in batches of pages
    assert peak > psutil.Process().memory_info().rss + 100 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="the counter of Linux")
def test_the_peak_leaves_out_what_the_process_was_before() -> None:
    """getrusage goes on counting what ran under the process id before exec: a shell, a launcher."""
    measure = (
        "import resource, sys\nfrom pathlib import Path\n"
        f"{inspect.getsource(peak_rss_bytes)}\n"
        "print(peak_rss_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    launcher = (
        "import os, sys\nblock = bytearray(b'x') * (200 << 20)\n"
        "os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    )
    command = [sys.executable, "-c", launcher, measure]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    own, inherited = map(int, output.split())
    assert own < 100 * MIB < inherited


# --- warning ---


def fake_memory(monkeypatch: pytest.MonkeyPatch, available: int, total: int = 16 << 30) -> None:
    numbers = SimpleNamespace(available=available, total=total)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: numbers)
    monkeypatch.setattr(memory, "_container_room", lambda root: None)


def test_warns_once_when_memory_runs_low(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = MemoryMonitor("cpu")
    fake_memory(monkeypatch, available=8 << 30)
    assert monitor.warning() is None
    fake_memory(monkeypatch, available=1 << 30)
    message = monitor.warning()
    assert message is not None
    assert message.startswith("The main memory is nearly full: 1.0 GiB of 16.0 GiB are left")
    assert "data.sequence_length to 512" in message
    assert monitor.warning() is None


def write_cgroup(root: Path, limit: str, current: int, inactive_file: int) -> None:
    (root / "memory.max").write_text(f"{limit}\n")
    (root / "memory.current").write_text(f"{current}\n")
    (root / "memory.stat").write_text(f"anon 1\ninactive_file {inactive_file}\nactive_file 7\n")


def test_a_containers_limit_counts_if_it_is_the_narrower(tmp_path: Path) -> None:
    write_cgroup(tmp_path, limit=str(100 * MIB), current=90 * MIB, inactive_file=30 * MIB)
    room = system_room(tmp_path)
    assert (room.available, room.total) == (40 * MIB, 100 * MIB)
    assert "container" in room.name


@pytest.mark.parametrize("limit", ["max", str(1 << 60)])
def test_a_container_without_a_narrow_limit_does_not_count(tmp_path: Path, limit: str) -> None:
    write_cgroup(tmp_path, limit=limit, current=90 * MIB, inactive_file=0)
    assert system_room(tmp_path).total == psutil.virtual_memory().total


def test_no_container_at_all(tmp_path: Path) -> None:
    assert system_room(tmp_path).total == psutil.virtual_memory().total


# --- advice ---


def test_advice_names_the_sequence_length_first() -> None:
    advice = memory_advice(config(training__microbatch_size=4))
    places = [
        advice.index(text)
        for text in (
            "data.sequence_length to 512",
            "training.microbatch_size to 1",
            "training.gradient_checkpointing to true",
        )
    ]
    assert places == sorted(places)
    assert advice == memory_advice()


def test_advice_leaves_out_what_is_already_so() -> None:
    advice = memory_advice(config(data__sequence_length=512))
    assert "sequence_length" not in advice
    assert "microbatch_size" not in advice  # 1 by default
    assert "gradient_checkpointing to true" in advice
    smallest = config(data__sequence_length=256, training__gradient_checkpointing=True)
    assert "parscale.P" in memory_advice(smallest)


def real_cpu_error() -> Exception:
    try:
        torch.empty(1 << 55)
    except RuntimeError as error:
        return error
    raise AssertionError("the allocation went through")


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(real_cpu_error(), id="cpu"),
        pytest.param(MemoryError(), id="python"),
        pytest.param(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), id="cuda"),
        pytest.param(RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"), id="mps"),
    ],
)
def test_running_out_of_memory_becomes_one_clear_message(error: Exception) -> None:
    message = out_of_memory_advice(error, config(parscale__P=4))
    assert message is not None
    assert message.startswith("out of memory with parscale.P 4, data.sequence_length 1024 ")
    assert "data.sequence_length to 512" in message
    assert "\n" not in message
    first_line = str(error).splitlines()[0] if str(error) else "MemoryError"
    assert first_line in message


@pytest.mark.parametrize(
    "error",
    [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), KeyError("x")],
)
def test_other_errors_are_not_explained_away(error: Exception) -> None:
    assert out_of_memory_advice(error, config()) is None


@pytest.mark.cuda
def test_cuda_memory() -> None:
    monitor = MemoryMonitor("cuda")
    before = monitor.sample()["device_bytes"]
    block = torch.empty(100 * MIB, dtype=torch.uint8, device="cuda")
    assert before is not None
    assert monitor.sample()["device_bytes"] == before + block.nbytes
    assert monitor.warning() is None
    del block
    assert monitor.device_peak_bytes is not None
    assert monitor.device_peak_bytes >= before + 100 * MIB
