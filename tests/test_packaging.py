"""What is installed: the pins lie in the declared ranges, and make says what it lacks."""

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from parcontrol.setup_check import read_pins


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, object]:
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


def test_every_dependency_has_a_pin_inside_its_range(repository: Path, project: dict) -> None:
    pins = read_pins(repository / "requirements.txt")
    extras = project["optional-dependencies"]
    # Sweeps on a cluster need ray; nothing here does, so it is not among the pins.
    declared = [*project["dependencies"], *extras["leaderboard"], *extras["serve"], *extras["dev"]]
    for requirement in map(Requirement, declared):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_requirements_are_sorted_pins_and_the_package_itself(repository: Path) -> None:
    lines = (repository / "requirements.txt").read_text().splitlines()
    assert lines[-1] == "-e ."
    names = [line.split("==")[0] for line in lines[:-1]]
    assert all(line.count("==") == 1 for line in lines[:-1])
    assert names == sorted(names)
    assert len(names) == len(set(map(canonicalize_name, names)))


def test_only_what_the_package_promises_is_installed(repository: Path) -> None:
    packages = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert packages == {"find": {"where": ["src"]}}


# --- make ---


@pytest.fixture
def clone(repository: Path, tmp_path: Path) -> Path:
    """A directory with what make needs."""
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(repository / name, tmp_path / name)
    return tmp_path


def make(clone: Path, *arguments: str, python: str | None = None) -> subprocess.CompletedProcess[str]:
    if python is not None:
        script = clone / "fake-python"
        script.write_text(f"#!/bin/sh\n{python}\n")
        script.chmod(0o755)
        arguments = (*arguments, f"PYTHON={script}")
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    return subprocess.run(["make", *arguments], check=False, capture_output=True, text=True, cwd=clone, env=env)


def test_make_refuses_an_old_python(clone: Path) -> None:
    done = make(clone, "install", python='case "$1" in -V) echo Python 3.9.2;; *) exit 1;; esac')
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stderr
    assert "Python 3.9.2" in done.stderr
    assert not (clone / ".venv").exists()


def test_make_names_the_package_that_brings_venv(clone: Path) -> None:
    done = make(clone, "install", python='case "$2" in *ensurepip*) exit 1;; *) exit 0;; esac')
    assert done.returncode != 0
    assert "apt-get install python3-venv" in done.stderr
    assert not (clone / ".venv").exists()


def test_make_installs_once_per_requirements(clone: Path) -> None:
    """With a Python that only notes what it is called with."""
    log = clone / "log"
    fake = f"""echo "$*" >> {log}
if [ "$2" = venv ]; then mkdir -p .venv/bin && cp "$0" .venv/bin/python; fi"""

    def calls() -> list[str]:
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line for line in lines if line.startswith("-m")]

    pip = "-m pip install --quiet --disable-pip-version-check"
    install = [f"{pip} --require-hashes --no-deps -r requirements.lock", f"{pip} -r requirements.txt"]
    assert make(clone, "install", python=fake).returncode == 0
    assert calls() == ["-m venv .venv", *install]
    assert make(clone, "install", python=fake).returncode == 0
    assert calls() == []
    requirements = clone / "requirements.txt"
    later = (clone / ".venv" / "requirements.installed").stat().st_mtime + 10
    os.utime(requirements, (later, later))  # newer but the same, as after a fresh checkout
    assert make(clone, "install", python=fake).returncode == 0
    assert calls() == []
    requirements.write_text("six==1.17.0\n")
    os.utime(requirements, (later + 10, later + 10))
    assert make(clone, "install", python=fake).returncode == 0
    assert calls() == install


def test_a_failed_installation_is_tried_again(clone: Path) -> None:
    fake = """if [ "$2" = venv ]; then mkdir -p .venv/bin && cp "$0" .venv/bin/python; fi
if [ "$2" = pip ]; then exit 1; fi"""
    for _ in range(2):
        assert make(clone, "install", python=fake).returncode != 0
        assert not (clone / ".venv" / "requirements.installed").exists()


def test_make_help_names_the_targets(clone: Path) -> None:
    out = make(clone, "help").stdout
    for target in ("demo", "test", "test-all", "lint", "lock", "audit", "clean"):
        assert f"\n{target} " in f"\n{out}"


def test_ci_runs_everything_on_a_clean_clone(repository: Path, tmp_path: Path) -> None:
    """With a make that only notes its targets and what it is told about the mirror."""
    clone, binaries = tmp_path / "clone", tmp_path / "bin"
    (clone / ".ci").mkdir(parents=True)
    binaries.mkdir()
    shutil.copy(repository / ".ci" / "run", clone / ".ci" / "run")
    (binaries / "make").write_text('#!/bin/sh\necho "make $* mirror=${PARCONTROL_TEST_MIRROR-none}"\n')
    (binaries / "make").chmod(0o755)
    env = {"PATH": f"{binaries}:{os.environ['PATH']}"}

    def lines(**more: str) -> list[str]:
        command = ["bash", str(clone / ".ci" / "run")]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/", env=env | more)
        return [line for line in done.stdout.splitlines() if line.startswith("make")]

    assert lines() == ["make lint mirror=none", "make test-all mirror=none"]
    (tmp_path / "shared" / "hub").mkdir(parents=True)
    beside = str(tmp_path / "shared" / "hub")
    assert lines() == [f"make lint mirror={beside}", f"make test-all mirror={beside}"]
    (tmp_path / "other").mkdir()
    other = str(tmp_path / "other")
    assert lines(PARCONTROL_TEST_MIRROR=other)[1] == f"make test-all mirror={other}"
    (binaries / "make").write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(subprocess.CalledProcessError):
        lines()
