"""Runs as processes: their command, their end, and that they end with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parcontrol.cli.train import command_parser
from parcontrol.config import load_config
from parcontrol.experiment.launch import ChildProcess, command_line, failure, last_error
from tests.cli.test_train import OTHER

CHILD = "import os, sys, time; print(os.getpid(), *sys.argv[1:], flush=True); time.sleep(60)"


def wait_for(condition, seconds: float = 60.0):
    """Returns the first true answer; a generous limit, so that only what never comes fails."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := condition():
            return answer
        time.sleep(0.02)
    raise AssertionError("it never came")


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A dead process that nobody waits for is still listed.
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return not state.startswith("Z")


@pytest.mark.parametrize("values", [{}, OTHER, {"data.mirror": "a dir", "model.name": "--odd name"}])
def test_the_command_gives_exactly_the_configuration(values: dict[str, str]) -> None:
    config = load_config(None, values)
    parsed = vars(command_parser().parse_all(command_line(config)))
    assert (
        load_config(None, {key: parsed[key] for key in parsed if key not in ("config", "resume", "dry_run")}) == config
    )


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that prints its process and arguments, and sleeps."""
    (tmp_path / "sleeper.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return "sleeper"


def test_a_child_runs_a_module_with_its_arguments_and_can_be_ended(tmp_path: Path, script: str) -> None:
    console = tmp_path / "logs" / "console"
    child = ChildProcess(script, ["--a=1", "two words"], console, tmp_path)
    line = wait_for(lambda: console.exists() and console.read_text())
    assert line.split(maxsplit=1)[1] == "--a=1 two words\n"
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    assert wait_for(lambda: child.poll() is not None)
    assert child.poll() == -signal.SIGTERM
    child.send_signal(signal.SIGTERM)  # to a process that has ended: nothing


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path, script: str) -> None:
    console = tmp_path / "console"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from parcontrol.experiment.launch import ChildProcess\n"
            "child = ChildProcess(sys.argv[1], [], Path(sys.argv[2]), Path.cwd()); time.sleep(60)",
            script,
            console,
        ]
    )
    pid = int(wait_for(lambda: console.exists() and console.read_text()))
    assert is_running(pid)
    parent.kill()
    parent.wait()
    wait_for(lambda: not is_running(pid))


def test_a_child_has_no_part_in_the_signals_of_the_terminal(tmp_path: Path, script: str) -> None:
    console = tmp_path / "console"
    child = ChildProcess(script, [], console, tmp_path)
    pid = int(wait_for(lambda: console.exists() and console.read_text()))
    assert os.getpgid(pid) == pid != os.getpgid(0)
    child.send_signal(signal.SIGKILL)
    wait_for(lambda: child.poll() is not None)


def test_a_child_that_is_still_importing_ends_by_the_signal(
    tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "importer.py").write_text(
        "try:\n    import sleeper\nexcept BaseException as e:\n    raise ImportError from e"
    )
    console = tmp_path / "console"
    child = ChildProcess("importer", [], console, tmp_path)
    wait_for(lambda: console.exists() and console.read_text())
    child.send_signal(signal.SIGINT)
    assert wait_for(lambda: child.poll() is not None)
    assert child.poll() == -signal.SIGINT
    assert "Traceback" not in console.read_text()


def test_the_last_error_is_the_run_s_own_words(tmp_path: Path) -> None:
    console = tmp_path / "console"
    assert last_error(console) == ""
    console.write_text("error: first\nerror: the shard is bad: naïve\n\nlast line \n")
    assert last_error(console) == "the shard is bad: naïve"
    console.write_text("Traceback (most recent call last):\n  File ...\nAssertionError: broken\n")
    assert last_error(console) == "AssertionError: broken"


@pytest.mark.parametrize(
    ("exit_code", "said", "expected"),
    [
        (2, "error: no\n", "no"),
        (3, "", "it ended with exit code 3 and without a word"),
        (-9, "", "killed by SIGKILL, as systems do when memory runs out"),
        (-11, "step 3\n", "killed by SIGSEGV; its last words: step 3"),
    ],
)
def test_how_a_run_ended_is_said(tmp_path: Path, exit_code: int, said: str, expected: str) -> None:
    (tmp_path / "console").write_text(said)
    assert failure(exit_code, tmp_path / "console") == expected
