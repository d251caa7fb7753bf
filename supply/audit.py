"""Looks every pinned package up in a database of known vulnerabilities (`make audit`).

Claim: exit code 0 means that each of them was looked up and has no known vulnerability. pip-audit, which asks PyPI,
says "No known vulnerabilities found" and exits with 0 as well where it skipped packages that the database does not
know, even all of them. Here a skipped package is a failure, and where nothing could be looked up the answer is
"not audited" with an exit code of its own.

    python supply/audit.py requirements.lock requirements.txt

Exit codes: 0 clean, 1 a vulnerability or a skipped package, 2 bad arguments, 3 not audited.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from pip_requirements_parser import InstallationError, RequirementsFile

CLEAN, FOUND, USAGE_ERROR, NOT_AUDITED = range(4)


class NotAuditedError(Exception):
    """The database gave no answer; the message says why."""


@dataclass(frozen=True)
class Verdict:
    """What a report says about the pinned packages, one line for each that is not clean."""

    vulnerable: list[str]
    skipped: list[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what was found and returns the exit code."""
    parser = argparse.ArgumentParser(description="Look every pinned package up in a database of vulnerabilities.")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="requirements, with or without hashes")
    try:
        pins = read_pins(parser.parse_args(argv).files)
    except (OSError, InstallationError, ValueError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return USAGE_ERROR
    try:
        verdict = judge(pins, pip_audit(pins))
    except NotAuditedError as error:
        print(f"not audited: {error}", file=sys.stderr)
        return NOT_AUDITED
    for line in (*verdict.vulnerable, *verdict.skipped):
        print(line)
    print(f"{len(pins)} packages: {len(verdict.vulnerable)} vulnerable, {len(verdict.skipped)} not audited")
    return FOUND if verdict.vulnerable or verdict.skipped else CLEAN


def read_pins(files: Sequence[Path]) -> dict[str, str]:
    """Returns the version of every package by normalised name; the project itself (`-e .`) is left out.

    Raises:
        OSError: A file cannot be read.
        InstallationError: What it includes cannot be.
        ValueError: A requirement is no pin, two files differ, or there is none.
    """
    pins: dict[str, str] = {}
    for path in files:
        path.read_bytes()  # whose error is one clear line; the parser's is not
        parsed = RequirementsFile.from_file(str(path))
        if parsed.invalid_lines:
            raise ValueError(f"{path}: {parsed.invalid_lines[0].line!r} is no requirement")
        for requirement in parsed.requirements:
            if requirement.is_editable:
                continue
            version = requirement.get_pinned_version
            if version is None:
                raise ValueError(f"{path}: {requirement.line!r} is not allowed: NAME==VERSION is needed")
            if pins.setdefault(canonicalize_name(requirement.name), version) != version:
                raise ValueError(f"{path}: {requirement.name} is {version} here and another version elsewhere")
    if not pins:
        raise ValueError(f"no requirements in {', '.join(map(str, files))}")
    return pins


def pip_audit(pins: Mapping[str, str]) -> Any:
    """Returns pip-audit's report on exactly these packages, as parsed JSON.

    Raises:
        NotAuditedError: It ended without one, as it does when the database is out of reach.
    """
    with tempfile.TemporaryDirectory() as directory:
        requirements = Path(directory, "requirements.txt")
        requirements.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()), encoding="utf-8")
        # No answer from an earlier day: the cache is as new as the file.
        flags = ["--no-deps", "--disable-pip", "--format=json", "--progress-spinner=off", f"--cache-dir={directory}"]
        command = [sys.executable, "-m", "pip_audit", f"--requirement={requirements}", *flags]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError as error:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise NotAuditedError(f"pip-audit ended with code {done.returncode}: {lines[-1]}") from error


def judge(pins: Mapping[str, str], report: Any) -> Verdict:
    """Compares a report with what it should cover; a package that it lacks counts as skipped.

    Args:
        pins: Versions by normalised name.
        report: pip-audit's JSON: `{"dependencies": [{"name", "version", "vulns"} or {"name", "skip_reason"}, ...]}`.

    Raises:
        NotAuditedError: Not one of the packages was looked up.
    """
    entries = {canonicalize_name(entry["name"]): entry for entry in report["dependencies"]}
    vulnerable, skipped = [], []
    for name, version in pins.items():
        entry = entries.get(name, {"skip_reason": "it is not in the report"})
        if "skip_reason" in entry:
            skipped.append(f"{name} {version}: not audited ({entry['skip_reason']})")
        elif entry["version"] != version:
            skipped.append(f"{name} {version}: not audited (version {entry['version']} was)")
        else:
            vulnerable += [_describe(name, version, vulnerability) for vulnerability in entry["vulns"]]
    if len(skipped) == len(pins):
        raise NotAuditedError(f"none of {len(pins)} packages was looked up; the first is {skipped[0]}")
    return Verdict(vulnerable, skipped)


def _describe(name: str, version: str, vulnerability: Mapping[str, Any]) -> str:
    fixed = ", ".join(vulnerability["fix_versions"]) or "no version"
    known_as = ", ".join([vulnerability["id"], *vulnerability.get("aliases", [])])
    return f"{name} {version}: {known_as}; fixed in {fixed}"


if __name__ == "__main__":
    sys.exit(main())
