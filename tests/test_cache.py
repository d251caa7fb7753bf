"""A cached directory is there complete or not at all, and is built once."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from parcontrol.cache import build_once, cache_directory

# Builds slowly and notes each build; says when it is in the middle of one.
BUILDER = """
import sys, time
from pathlib import Path
from parcontrol.cache import build_once

def build(directory):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    (directory / "half").write_text("1")
    print("building", flush=True)
    time.sleep(float(sys.argv[3]))
    (directory / "whole").write_text("2")

build_once(Path(sys.argv[1]), build)
"""


def start_builder(target: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(target), str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_until_building(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"


def fill(directory: Path) -> None:
    (directory / "whole").write_text("2")


def unexpected(directory: Path) -> None:
    raise AssertionError("built again")


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PARCONTROL_CACHE", str(tmp_path / "from_environment"))
    assert cache_directory() == tmp_path / "from_environment"
    assert cache_directory(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("PARCONTROL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "parcontrol"


def test_built_once(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "thing"
    assert build_once(target, fill) == target
    assert names(target) == {"whole"}
    assert build_once(target, unexpected) == target


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        fill(directory)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        build_once(tmp_path / "thing", fail)
    assert names(tmp_path) == {"thing.lock"}


def test_two_processes_build_once(tmp_path: Path) -> None:
    target, log = tmp_path / "cache" / "thing", tmp_path / "log"
    with start_builder(target, log, seconds=1.0) as first:
        wait_until_building(first)
        with start_builder(target, log, seconds=0.0) as second:
            assert first.wait() == second.wait() == 0
    assert log.read_text() == "built\n"
    assert names(target) == {"half", "whole"}


def test_a_killed_process_leaves_nothing_half_written(tmp_path: Path) -> None:
    target, log = tmp_path / "cache" / "thing", tmp_path / "log"
    with start_builder(target, log, seconds=600) as killed:
        wait_until_building(killed)
        assert not target.exists()
        assert any("half" in names(path) for path in target.parent.iterdir() if path.is_dir())
        killed.send_signal(signal.SIGKILL)
    build_once(target, fill)
    assert names(target) == {"whole"}
    assert names(target.parent) == {"thing", "thing.lock"}  # what was left behind is gone
