"""The folder of a Space, built and used as a Space uses it: nothing else of the project is in reach."""

import ast
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from parcontrol.cli.leaderboard.main import main
from parcontrol.leaderboard.app.space import MARK, build_space
from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store import open_stores
from tests.leaderboard.app.boards import fill

HEAVY = ("torch", "transformers", "lm_eval", "datasets", "matplotlib")


@pytest.fixture(scope="module")
def space(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spaces") / "space"
    build_space(folder, repository)
    return folder


def pins(repository: Path) -> dict[str, str]:
    lines = (repository / "requirements.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def environment(**more: str) -> dict[str, str]:
    """A Space's: the folder is all there is of the project."""
    return {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "OMP_NUM_THREADS": "1", **more}


def modules(space: Path) -> list[str]:
    source = space / "src"
    return [
        ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(source.rglob("*.py"))
    ]


def test_front_matter_is_what_a_space_needs(space: Path, repository: Path) -> None:
    _, front, text = (space / "README.md").read_text().split("---\n", 2)
    said = yaml.safe_load(front)
    assert said["sdk"] == "gradio"
    assert said["sdk_version"] == pins(repository)["gradio"]
    assert said["app_file"] == "app.py"
    assert said["license"] == "apache-2.0"
    assert said["hf_oauth"] is True
    assert "hf_oauth_scopes" not in said  # openid and profile without asking
    assert str(said["python_version"]) == "3.11"
    assert len(said["title"]) <= 60
    assert len(said["short_description"]) <= 60  # the Hub takes no more
    for name in ("H4_TOKEN", "REPO_ID", "QUEUE_REPO", "RESULTS_REPO"):
        assert f"`{name}`" in text


def test_requirements_are_the_projects_pins(space: Path, repository: Path) -> None:
    lines = (space / "requirements.txt").read_text().splitlines()
    assert lines == sorted(lines)
    tested = pins(repository)
    for requirement in map(Requirement, lines):
        assert requirement.specifier.contains(tested[requirement.name]), requirement
        assert requirement.name == "pydantic" or str(requirement.specifier) == f"=={tested[requirement.name]}"


def test_every_import_has_its_requirement_and_every_requirement_its_import(space: Path) -> None:
    """Imports inside functions too, by another walk than the one that chose the files."""
    imported = set()
    for path in (space / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            imported |= {name.partition(".")[0] for name in names}
    outside = imported - set(sys.stdlib_module_names) - {"parcontrol", "_typeshed"}
    distributions = {canonicalize_name(packages_distributions()[name][0]) for name in outside}
    required = {Requirement(line).name for line in (space / "requirements.txt").read_text().splitlines()}
    # gradio comes by sdk_version, pydantic-core with pydantic
    assert distributions - {"gradio", "pydantic-core"} == required
    assert not required & {"torch", "lm-eval", "datasets"}


def test_nothing_of_this_machine_is_in_it(space: Path, repository: Path) -> None:
    places = {str(repository), str(Path.home()), str(space), sys.prefix} - {"/", ""}
    files = [path for path in space.rglob("*") if path.is_file()]
    assert len(files) > 40
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not [place for place in places if place in text], path
        assert not path.is_symlink()
    names = {path.relative_to(space).as_posix() for path in files}
    assert not [name for name in names if "test" in name or "outputs" in name or "__pycache__" in name]
    assert "src/parcontrol/leaderboard/app/static/plots.css" in names
    assert "src/parcontrol/leaderboard/registry.yaml" in names


def test_all_modules_can_be_imported_from_it_and_load_nothing_heavy(space: Path) -> None:
    program = f"""
import importlib, json, sys
for name in {modules(space)!r}:
    # the one module that transformers itself asks for
    if not name.endswith("configuration_parscale"):
        importlib.import_module(name)
from parcontrol.leaderboard.registry import registry
print(json.dumps([sys.modules["parcontrol"].__file__, len(registry()), sorted(set(sys.modules) & set({HEAVY!r}))]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        cwd=space,
        env=environment(PYTHONPATH=str(space / "src"), PYTHONDONTWRITEBYTECODE="1"),
    )
    where, tasks, heavy = json.loads(done.stdout.splitlines()[-1])
    assert Path(where).is_relative_to(space)
    assert tasks > 20
    assert heavy == []


def test_a_configuration_is_read_without_torch(space: Path) -> None:
    """A submission needs transformers for that; torch is not installed on the Space."""
    program = """
import sys
sys.modules["torch"] = None
from transformers import AutoConfig
import parcontrol
config = AutoConfig.for_model("qwen2_parscale", parscale_n=4)
assert config.parscale_n == 4, config
assert sys.modules["torch"] is None
"""
    env = environment(PYTHONPATH=str(space / "src"), PYTHONDONTWRITEBYTECODE="1", HF_HUB_OFFLINE="1")
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr


def test_the_folder_serves_the_page(space: Path, tmp_path: Path) -> None:
    fill(open_stores(Settings(root=tmp_path / "board")), models=3)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = environment(
        PARCONTROL_LEADERBOARD=str(tmp_path / "board"),
        GRADIO_SERVER_NAME="127.0.0.1",
        GRADIO_SERVER_PORT=str(port),
        PYTHONDONTWRITEBYTECODE="1",
        PYTHONUNBUFFERED="1",
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([sys.executable, "app.py"], cwd=space, env=env, **pipes) as app:
        try:
            assert app.stdout
            said = next((line for line in app.stdout if "http://" in line), "")
            assert str(port) in said
            address = f"http://127.0.0.1:{port}"
            with urllib.request.urlopen(address, timeout=60) as page:
                assert "Hallucinations Leaderboard" in page.read().decode()
            with urllib.request.urlopen(f"{address}/table.csv", timeout=60) as table:
                assert "org0/model-0" in table.read().decode()
        finally:
            app.send_signal(signal.SIGTERM)
            app.wait(30)


def test_a_folder_of_its_own_is_made_again_and_keeps_its_history(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "space"
    made = build_space(folder, repository)
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (folder / "src" / "parcontrol" / "old.py").write_text("")
    assert build_space(folder, repository) == made
    assert (folder / ".git" / "HEAD").is_file()
    assert not (folder / "src" / "parcontrol" / "old.py").exists()
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == sorted(
        [".git/HEAD", *made]
    )


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["space", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(tmp_path) in error
    assert "not empty" in error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert main(["space", str(tmp_path / "mine.txt")]) == 2
    assert "no directory" in capsys.readouterr().err


def test_the_project_itself_is_never_replaced(repository: Path, tmp_path: Path) -> None:
    inside = tmp_path / "checkout"
    (inside / "src").mkdir(parents=True)
    (inside / MARK).write_text("")
    with pytest.raises(ValueError, match="holds the project itself"):
        build_space(inside, inside)
    with pytest.raises(ValueError, match="no complete checkout"):
        build_space(tmp_path / "space", inside)
    assert not (tmp_path / "space").exists()


def test_the_command_makes_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["space", str(tmp_path / "space")]) == 0
    assert "files of a Space" in capsys.readouterr().out
    assert (tmp_path / "space" / "app.py").is_file()
