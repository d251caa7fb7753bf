"""What is installed is what was locked, and an audit says so when it has looked at nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from pip_audit._format import JsonFormat
from pip_audit._service import ResolvedDependency, SkippedDependency, VulnerabilityResult

from supply.audit import CLEAN, FOUND, NOT_AUDITED, USAGE_ERROR, NotAuditedError, judge, main, read_pins

PINS = {"jinja2": "3.1.6", "py-serializable": "2.2.0", "torch": "2.13.0"}
FLAW = VulnerabilityResult.create(
    ["PYSEC-2031-1", "CVE-2031-0001"], "A flaw.", [Version("3.1.7"), Version("3.2")], None
)


def report(skipped: Mapping[str, str] | None = None, flaws: Mapping[str, list[Any]] | None = None) -> dict[str, Any]:
    """What pip-audit itself writes about `PINS`."""
    result = {}
    for name, version in PINS.items():
        if reason := (skipped or {}).get(name):
            result[SkippedDependency(name, reason)] = []
        else:
            result[ResolvedDependency(name, Version(version))] = (flaws or {}).get(name, [])
    parsed: dict[str, Any] = json.loads(JsonFormat(output_desc=False, output_aliases=True).format(result, []))
    return parsed


# --- the lock ---


def test_the_lock_names_the_versions_of_the_requirements_but_torch(repository: Path) -> None:
    pins = read_pins([repository / "requirements.txt"])
    assert pins.pop("torch")
    assert read_pins([repository / "requirements.lock"]) == pins, "run `make lock`"


def test_everything_in_the_lock_has_hashes(repository: Path) -> None:
    text = (repository / "requirements.lock").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\S)", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    for entry in entries:
        assert re.fullmatch(r"\S+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+\n?", entry), entry


def test_pip_takes_what_has_the_hash_and_refuses_all_else(tmp_path: Path) -> None:
    """As `make install` calls pip, with a package of our own in the place of the index."""
    sdist = tmp_path / "thing-1.0.tar.gz"
    sdist.write_bytes(b"not even an archive: the hash is looked at first")

    def pip(sha256: str) -> str:
        (tmp_path / "requirements.lock").write_text(f"thing==1.0 --hash=sha256:{sha256}\n")
        command = [sys.executable, "-m", "pip", "install", "--require-hashes", "--no-deps", "--dry-run", "--no-index"]
        done = subprocess.run(
            [*command, "--find-links", str(tmp_path), "-r", str(tmp_path / "requirements.lock")],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "PIP_CONFIG_FILE": os.devnull},
        )
        assert done.returncode != 0
        return done.stderr

    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in pip("0" * 64)
    assert "DO NOT MATCH" not in pip(hashlib.sha256(sdist.read_bytes()).hexdigest())


def test_make_lock_locks_all_but_torch_and_the_project(repository: Path, tmp_path: Path) -> None:
    """With a uv that only notes what it is given."""
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(repository / name, tmp_path / name)
    shutil.copy(repository / "requirements.txt", tmp_path / ".venv" / "requirements.installed")
    (binaries / "uv").write_text('#!/bin/sh\necho "$*" > arguments\ncat > input\n')
    (binaries / "uv").chmod(0o755)
    subprocess.run(["make", "lock"], check=True, capture_output=True, cwd=tmp_path)
    pins = read_pins([repository / "requirements.txt"])
    del pins["torch"]
    assert read_pins([tmp_path / "input"]) == pins
    arguments = (tmp_path / "arguments").read_text().split()
    assert {"--generate-hashes", "--no-deps", "--universal"} <= set(arguments)
    assert arguments[-1] == "requirements.lock"


# --- the audit ---


def test_a_clean_report_is_clean() -> None:
    verdict = judge(PINS, report())
    assert (verdict.vulnerable, verdict.skipped) == ([], [])


def test_a_vulnerability_is_named_with_its_cure() -> None:
    verdict = judge(PINS, report(flaws={"jinja2": [FLAW]}))
    assert verdict.vulnerable == ["jinja2 3.1.6: PYSEC-2031-1, CVE-2031-0001; fixed in 3.1.7, 3.2"]
    assert verdict.skipped == []


def test_a_skipped_package_is_not_audited() -> None:
    verdict = judge(PINS, report(skipped={"torch": "Dependency not found on PyPI"}))
    assert verdict.skipped == ["torch 2.13.0: not audited (Dependency not found on PyPI)"]


def test_a_package_that_the_report_lacks_is_not_audited() -> None:
    short = report()
    del short["dependencies"][2]
    assert judge(PINS, short).skipped == ["torch 2.13.0: not audited (it is not in the report)"]


def test_another_version_is_not_audited() -> None:
    verdict = judge({**PINS, "torch": "2.13.1"}, report())
    assert verdict.skipped == ["torch 2.13.1: not audited (version 2.13.0 was)"]


def test_where_all_are_skipped_nothing_was_audited() -> None:
    """As behind an index that does not answer what PyPI does; pip-audit exits with 0 there."""
    with pytest.raises(NotAuditedError, match=r"none of 3 packages was looked up.*not found"):
        judge(PINS, report(skipped=dict.fromkeys(PINS, "not found")))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], int]:
    """Returns a function that runs the audit of `PINS` with what pip-audit would print, and its exit code."""
    path = tmp_path / "requirements.txt"
    path.write_text("".join(f"{name}=={version}\n" for name, version in PINS.items()) + "-e .\n")

    def run(output: str, returncode: int) -> int:
        done = subprocess.CompletedProcess([], returncode, output, "WARNING: one\nERROR: the last line\n")
        monkeypatch.setattr("supply.audit.subprocess.run", lambda *_, **__: done)
        return main([str(path)])

    return run


def test_exit_codes(run: Callable[[str, int], int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(json.dumps(report()), 0) == CLEAN
    assert capsys.readouterr().out == "3 packages: 0 vulnerable, 0 not audited\n"
    assert run(json.dumps(report(flaws={"jinja2": [FLAW]})), 1) == FOUND
    assert "3 packages: 1 vulnerable, 0 not audited\n" in capsys.readouterr().out
    assert run(json.dumps(report(skipped={"torch": "unknown"})), 0) == FOUND
    assert "3 packages: 0 vulnerable, 1 not audited\n" in capsys.readouterr().out
    assert run(json.dumps(report(skipped=dict.fromkeys(PINS, "unknown"))), 0) == NOT_AUDITED
    assert run("", 1) == NOT_AUDITED
    assert capsys.readouterr().err.endswith("not audited: pip-audit ended with code 1: ERROR: the last line\n")
    assert len({CLEAN, FOUND, USAGE_ERROR, NOT_AUDITED}) == 4


def test_a_database_out_of_reach_is_said_plainly(repository: Path, tmp_path: Path) -> None:
    """With the real pip-audit, whose way to the network is a port where nobody listens."""
    (tmp_path / "requirements.txt").write_text("six==1.17.0\n")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and never listens
        proxy = f"http://127.0.0.1:{unused.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, str(repository / "supply" / "audit.py"), str(tmp_path / "requirements.txt")],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "HTTPS_PROXY": proxy, "https_proxy": proxy, "NO_PROXY": "", "no_proxy": ""},
        )
    assert done.returncode == NOT_AUDITED
    assert done.stdout == ""
    assert done.stderr.startswith("not audited: pip-audit ended with code 1: ")
    assert done.stderr.count("\n") == 1
    assert "refused" in done.stderr


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("six>=1\n", "'six>=1' is not allowed: NAME==VERSION is needed"),
        ("six==1\nsix==2\n", "six is 2 here and another version elsewhere"),
        ("???\n", "'???' is no requirement"),
        ("-e .\n", "no requirements in"),
    ],
)
def test_what_is_no_pin_is_refused(
    content: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text(content)
    assert main([str(path)]) == USAGE_ERROR
    captured = capsys.readouterr()
    assert reason in captured.err
    assert captured.err.count("\n") == 1


def test_a_file_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere.txt")]) == USAGE_ERROR
    assert "nowhere.txt" in capsys.readouterr().err
