"""A machine that cannot evaluate, whatever the model: the request is given back for others, and the worker ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from parcontrol.leaderboard.queue import Queue
from parcontrol.leaderboard.records import Precision, Request, Status, WeightType, request_path
from parcontrol.leaderboard.store import LocalStore, update
from tests.leaderboard.evaluation import SHA

_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
_WORKER = [sys.executable, "-m", "parcontrol.cli.leaderboard.worker"]
# What the worker keeps on its disk is on a file system of its own, of which $2 KiB are free.
_ON_A_SMALL_DISK = """
set -e
mount -t tmpfs -o size=256k tmpfs "$1"
head -c $(((256 - $2) * 1024)) /dev/zero > "$1/filled"
if [ "$3" = ro ]; then mount -o remount,ro "$1"; fi
shift 3
exec "$@"
"""


def _can_mount() -> bool:
    return bool(shutil.which("unshare")) and not subprocess.run([*_NAMESPACE, "true"], capture_output=True).returncode


def _submit(board: Path) -> str:
    path = request_path("org/model", Precision.BFLOAT16, WeightType.ORIGINAL)
    request = Request(model="org/model", sha=SHA, precision=Precision.BFLOAT16, status=Status.PENDING)
    update(LocalStore(board / "requests"), lambda snapshot: {path: request.to_json()}, "submit")
    return path


def _request(board: Path) -> Request:
    (entry,) = Queue(LocalStore(board / "requests")).requests()
    return entry.request


def _work(board: Path, before: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PARCONTROL_LEADERBOARD": str(board), "HF_HUB_OFFLINE": "1"}
    command = [*before, *_WORKER, "--backend", "dummy", "--tasks", "demo", "--limit", "1"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(not _can_mount(), reason="a file system of its own needs user namespaces")
@pytest.mark.parametrize(
    ("free", "mode", "reason"),
    [(0, "rw", "Not enough disk space"), (16, "rw", "No space left"), (64, "ro", "Read-only file system")],
)
def test_a_full_disk_uses_up_no_attempt(free: int, mode: str, reason: str, tmp_path: Path) -> None:
    _submit(tmp_path)
    (tmp_path / "worker").mkdir()
    small_disk = [*_NAMESPACE, "sh", "-c", _ON_A_SMALL_DISK, "sh", str(tmp_path / "worker"), str(free), mode]
    done = _work(tmp_path, small_disk)
    assert done.returncode == 1, done.stderr
    *warnings, line = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert reason in line
    assert all(warning.startswith("warning: the log file") for warning in warnings)
    request = _request(tmp_path)
    assert (request.status, request.attempts, request.claimed_by) == (Status.PENDING, 0, None)
    assert not LocalStore(tmp_path / "results").snapshot().files
