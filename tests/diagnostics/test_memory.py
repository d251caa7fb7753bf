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
    monkeypatch.setattr(memory, "_container_rooms", lambda root: ())


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


FILES = {
    "v1": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    "v2": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
}


def write_cgroup(root: Path, version: str, path: str, limit: str, current: int, inactive_file: int) -> None:
    """Puts this process into a control group of a system at `root`, or adds a limit above it."""
    mount, limit_name, usage_name, cached = FILES[version]
    directory = root / mount / path
    directory.mkdir(parents=True, exist_ok=True)
    (directory / limit_name).write_text(f"{limit}\n")
    (directory / usage_name).write_text(f"{current}\n")
    (directory / "memory.stat").write_text(f"cache 1\n{cached} {inactive_file}\n")


def join(root: Path, *lines: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("version", "line", "path"),
    [
        ("v2", "0::/", ""),
        ("v2", "0::/user.slice/job_7", "user.slice/job_7"),
        ("v2", "0::/user.slice/job_7/step_0", "user.slice/job_7"),  # Slurm limits the job above the step
        ("v2", "0::/of/the/host", ""),  # a container without a namespace of its own
        ("v1", "4:memory:/", ""),
        ("v1", "4:cpuacct,memory:/job_7", "job_7"),
    ],
)
def test_a_control_group_s_limit_counts_if_it_is_the_narrower(
    tmp_path: Path, version: str, line: str, path: str
) -> None:
    join(tmp_path, "9:name=systemd:/", "3:cpuset:/", line)
    write_cgroup(tmp_path, version, path, limit=str(100 * MIB), current=90 * MIB, inactive_file=30 * MIB)
    room = system_room(tmp_path)
    assert (room.available, room.total) == (40 * MIB, 100 * MIB)
    assert "control group" in room.name
    (tmp_path / FILES[version][0] / path / "memory.stat").unlink()
    assert system_room(tmp_path).available == 10 * MIB


def test_the_narrowest_of_several_limits_counts(tmp_path: Path) -> None:
    join(tmp_path, "0::/outer/inner")
    write_cgroup(tmp_path, "v2", "outer", limit=str(100 * MIB), current=95 * MIB, inactive_file=0)
    write_cgroup(tmp_path, "v2", "outer/inner", limit=str(50 * MIB), current=20 * MIB, inactive_file=0)
    assert system_room(tmp_path).available == 5 * MIB


@pytest.mark.parametrize("limit", ["max", str(1 << 60)])
def test_a_control_group_without_a_narrow_limit_does_not_count(tmp_path: Path, limit: str) -> None:
    join(tmp_path, "0::/")
    write_cgroup(tmp_path, "v2", "", limit=limit, current=90 * MIB, inactive_file=0)
    assert system_room(tmp_path).total == psutil.virtual_memory().total


def test_no_control_group_at_all(tmp_path: Path) -> None:
    assert system_room(tmp_path).total == psutil.virtual_memory().total


def test_a_limit_on_the_address_space_counts(tmp_path: Path) -> None:
    code = (
        "import resource, psutil; from parcontrol.diagnostics.memory import system_room;"
        "limit = psutil.Process().memory_info().vms + (200 << 20);"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit)); print(*system_room())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *name, available, _ = done.stdout.split()
    assert " ".join(name) == "The address space (ulimit -v)"
    assert 150 * MIB < int(available) <= 200 * MIB


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
