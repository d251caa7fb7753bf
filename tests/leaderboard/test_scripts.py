"""The promised scripts in leaderboard/: executable, thin, and working when called from there."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from parcontrol.leaderboard.uploads import CONVERTERS

PROMISED = {
    "submit-cli.py": "submit",
    "analysis-cli.py": "analysis",
    "completed-cli.py": "completed",
    "requeue-cli.py": "requeue",
    "cancel-cli.py": "cancel",
    **{f"{name}-upload-cli.py": f"upload {name}" for name in CONVERTERS},
}


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """As in an activated environment: `python3` is the one with parcontrol."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_every_promised_script_is_there(repository: Path) -> None:
    assert {path.name for path in (repository / "leaderboard/cli").glob("*.py")} >= set(PROMISED)


@pytest.mark.parametrize("name", PROMISED)
def test_scripts_are_executable_and_thin(repository: Path, name: str) -> None:
    path = repository / "leaderboard/cli" / name
    assert os.access(path, os.X_OK)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env python3\n")
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    *imports, entry = tree.body[1:]
    assert all(isinstance(statement, ast.Import | ast.ImportFrom) for statement in imports)
    assert isinstance(entry, ast.If)
    assert len(entry.body) == 1


@pytest.mark.parametrize("name", ["halueval-upload-cli.py", "analysis-cli.py", "completed-cli.py", "cancel-cli.py"])
def test_they_run_from_the_leaderboard_directory(repository: Path, environment: dict[str, str], name: str) -> None:
    done = subprocess.run(
        [f"cli/{name}", "--help"], cwd=repository / "leaderboard", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: parcontrol leaderboard {PROMISED[name]}")
    assert done.stderr == ""


def test_a_script_passes_on_the_exit_code_and_one_line(
    repository: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        ["cli/fever-upload-cli.py", "--input", str(tmp_path / "nothing")],
        cwd=repository / "leaderboard",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "does not exist" in done.stderr


def test_make_lists_style_and_quality(repository: Path) -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=repository / "leaderboard",
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["help", "style", "quality"]
