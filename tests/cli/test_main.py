"""The command `parcontrol`: what it lists, that listing costs nothing, and how it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import parcontrol
from parcontrol.cli.main import COMMANDS, main
from parcontrol.cli.parser import run_command

HEAVY = ("torch", "transformers", "datasets", "pandas", "matplotlib", "numpy")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in out
        assert command.help in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == parcontrol.__version__


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "'trian'" in captured.err
    assert "'train'" in captured.err
    assert captured.err.count("\n") == 1


def test_no_command_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: the following arguments are required: COMMAND, ...\n"


@pytest.mark.parametrize(
    "statement",
    [
        "import parcontrol",
        "import parcontrol.config, parcontrol.runs",
        "import parcontrol.cli.main, parcontrol.cli.train, parcontrol.cli.data, parcontrol.cli.streams",
        "from parcontrol.cli.main import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass",
        "from parcontrol.cli.main import main\ntry: main(['serve', '--help'])\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy_is_imported_for_help(statement: str) -> None:
    program = f"{statement}\nimport sys\nassert not set(sys.modules) & set({HEAVY}), set(sys.modules) & set({HEAVY})"
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_interrupt_ends_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: object) -> int:
        raise KeyboardInterrupt

    assert run_command(command) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    "command",
    [
        "cost compare --format json",
        "cost --help",
        "leaderboard completed",
        "leaderboard completed --format json",
        "leaderboard table --dry-run",
    ],
)
def test_a_reader_that_leaves_early_is_no_error(command: str, tmp_path: Path) -> None:
    script = f"import sys; from parcontrol.cli.main import main; sys.exit(main({command.split()!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PARCONTROL_LEADERBOARD": str(tmp_path)},
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate()
    assert (errors, process.returncode) == (b"", 0)


def test_other_broken_pipes_are_errors() -> None:
    def command(argv: object) -> int:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_command(command)


def test_the_console_script_is_installed() -> None:
    script = Path(sys.executable).with_name("parcontrol")
    done = subprocess.run([script, "--version"], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == parcontrol.__version__
