"""The folder of a Hugging Face Space that serves the page: made of the checkout, to be pushed as it is.

It holds the modules that the page imports, directly and indirectly, and no others; what these modules read beside them
(templates, style sheets, the registry); and the exact versions that the project is tested with.
"""

from __future__ import annotations

import ast
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# What the Space runs, and what is named in strings alone: transformers asks for the classes of configurations.
ENTRY = "parcontrol.cli.leaderboard.app"
_NAMED = (ENTRY, "parcontrol.leaderboard.app", "parcontrol.parscale.configuration_parscale")
_NOT_NEEDED = ("parcontrol.leaderboard.app.space",)
PYTHON = "3.11"  # what the pins are tested with

# Distributions that the copied modules import, beside gradio, which the Space installs by `sdk_version`. What these
# need themselves comes in versions that pip chooses.
NEEDED = (
    "fastapi",
    "httpx2",
    "huggingface-hub",
    "jinja2",
    "markupsafe",
    "numpy",
    "orjson",
    "pandas",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "scipy",
    "starlette",
    "tenacity",
    "transformers",
    "uvicorn",
    "wrapt",
    "zstandard",
)
# A Space installs `gradio[oauth,mcp]` of `sdk_version` beside these requirements, whose bound on pydantic is lower than
# the tested version: a range lets pip find one that suits both.
_RANGES = ("pydantic",)
# Tells a folder that was made here, which may be replaced, from one that was not.
MARK = ".parcontrol-space"
_SOURCE = "src"

_APP = Template('''"""Serves the leaderboard; made by `parcontrol leaderboard space`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from $entry import main

sys.exit(main([]))
''')

_README = Template("""---
title: Hallucinations Leaderboard
emoji: 🔎
colorFrom: blue
colorTo: gray
sdk: gradio
sdk_version: $gradio
python_version: "$python"
app_file: app.py
pinned: false
license: $license
short_description: Which language models make things up, and on what?
# Signing in says who submits. No hf_oauth_scopes: openid and profile are always granted, and more is not needed.
hf_oauth: true
---

# Hallucinations Leaderboard

This folder is made by `parcontrol leaderboard space`; changes belong into the project, and the folder is then made
again. `src/` holds the part of the project that the page needs.

## Settings of the Space

Variables, which anybody may see:

| name | value |
|---|---|
| `REPO_ID` | dataset repository of the leaderboard's data |
| `QUEUE_REPO` | dataset repository of the requests |
| `RESULTS_REPO` | dataset repository of the results |

All three, or none: without them the page shows an empty store of its own, which is gone after a restart.

Secret, only if the page is to take submissions: `H4_TOKEN`, a fine-grained token that may write to the requests
repository (`QUEUE_REPO`) and to nothing else. Without it the page reads public repositories and takes no submissions.
""")


def build_space(folder: Path, checkout: Path) -> list[str]:
    """Makes the folder of a Space.

    Args:
        folder: Does not exist, is empty, or was made by this function; what it holds is replaced. A `.git` directory
            in it stays.
        checkout: Root of the project's repository.

    Returns:
        The paths in the folder, sorted.

    Raises:
        ValueError: The folder is something else, the checkout is none, or the folder cannot be written.
    """
    _check(folder, checkout)
    files = space_files(checkout)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        for path, content in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error}") from error
    return sorted(files)


def space_files(checkout: Path) -> dict[str, bytes]:
    """Returns all files of the Space by their paths in it.

    Raises:
        ValueError: The checkout lacks what is needed.
    """
    try:
        pins = _pins((checkout / "requirements.txt").read_text(encoding="utf-8"))
        project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        source = {path: (checkout / "src" / path).read_bytes() for path in source_paths(checkout / "src")}
        license_text = (checkout / "LICENSE").read_bytes()
    except OSError as error:
        raise ValueError(f"{checkout} is no complete checkout of the project: {error}") from error
    readme = _README.substitute(gradio=pins["gradio"], python=PYTHON, license=project["license"].lower())
    texts = {
        "README.md": readme,
        "requirements.txt": "".join(f"{line}\n" for line in requirements(pins, project)),
        "app.py": _APP.substitute(entry=ENTRY),
        MARK: "Made by `parcontrol leaderboard space`, which replaces this folder when it is run again.\n",
    }
    moved = {f"{_SOURCE}/{path}": content for path, content in source.items()}
    return {name: text.encode() for name, text in texts.items()} | {"LICENSE": license_text} | moved


def _pins(text: str) -> dict[str, str]:
    """Versions by canonical name."""
    found = [Requirement(line) for line in text.splitlines() if "==" in line]
    return {canonicalize_name(one.name): next(iter(one.specifier)).version for one in found}


def requirements(pins: Mapping[str, str], project: Mapping[str, Any]) -> list[str]:
    """Returns the lines of the Space's requirements.txt, sorted.

    Args:
        pins: Versions by canonical name.
        project: The table `project` of pyproject.toml, for the range of what cannot be pinned.
    """
    declared = [*project["dependencies"], *project["optional-dependencies"]["leaderboard"]]
    ranges = {str(canonicalize_name(Requirement(line).name)): line for line in declared}
    return [ranges[name] if name in _RANGES else f"{name}=={pins[name]}" for name in NEEDED]


def source_paths(root: Path) -> list[str]:
    """Returns the files that the page needs, relative to the directory of sources: modules, and what lies beside them.

    Modules are found by reading their imports, also those inside functions, so that none is missing when it is first
    asked for.
    """
    modules = _reached(root)
    paths = {module.relative_to(root).as_posix() for module in modules}
    for folder in {module.parent for module in modules if module.parent != root / "parcontrol"}:
        paths |= {data.relative_to(root).as_posix() for data in _data(folder)}
    return sorted(paths)


def _reached(root: Path) -> set[Path]:
    package = root / "parcontrol/leaderboard/app"
    waiting = [*_NAMED, *(f"parcontrol.leaderboard.app.{path.stem}" for path in package.glob("*.py"))]
    seen: dict[str, Path | None] = dict.fromkeys(_NOT_NEEDED)
    while waiting:
        name = waiting.pop()
        # A module needs the packages that it is in.
        parent = name.rpartition(".")[0]
        if name in seen or not name.startswith("parcontrol"):
            continue
        seen[name] = path = _file(root, name)
        waiting.append(parent)
        if path:
            waiting += _imports(path)
    return {path for path in seen.values() if path}


def _file(root: Path, name: str) -> Path | None:
    """The file of a module; None for a name inside one."""
    place = root.joinpath(*name.split("."))
    return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None)


def _imports(path: Path) -> list[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}: relative import"
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _data(folder: Path) -> list[Path]:
    """What is no module in a package's directory and in those below it that are no packages."""
    found = []
    for path in folder.iterdir():
        if path.is_dir() and path.name != "__pycache__" and not (path / "__init__.py").exists():
            found += [data for data in path.rglob("*") if data.is_file() and data.suffix != ".pyc"]
        elif path.is_file() and path.suffix not in (".py", ".pyc"):
            found.append(path)
    return found


def _check(folder: Path, checkout: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is no directory: name one that is empty or not there yet")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise ValueError(f"{folder} is not empty, and was not made by this command: name another directory")
    if checkout.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{folder} holds the project itself: name another directory")


def _clear(folder: Path) -> None:
    """Empties a folder, all but its history."""
    # The mark goes last: a folder that was half cleared can be made again.
    for path in sorted(folder.iterdir(), key=lambda path: path.name == MARK):
        if path.name == ".git":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
