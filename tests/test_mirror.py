"""A folder wins over a mirror, a mirror given by argument over one in the environment."""

from pathlib import Path

import pytest

from parcontrol.mirror import MIRROR_VARIABLE, is_path, local_copy, mirror_directory


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    (tmp_path / "mirror/models/someone/model").mkdir(parents=True)
    (tmp_path / "mirror/datasets/someone/texts").mkdir(parents=True)
    return tmp_path / "mirror"


def test_kinds_are_kept_apart(mirror: Path) -> None:
    assert local_copy("models", "someone/model", str(mirror)) == mirror / "models/someone/model"
    assert local_copy("datasets", "someone/model", str(mirror)) is None
    assert local_copy("models", "someone/texts", str(mirror)) is None


def test_a_folder_wins(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mirror / "someone/model").mkdir(parents=True)
    monkeypatch.chdir(mirror)
    assert local_copy("models", "someone/model", str(mirror)) == Path("someone/model")


def test_the_environment_names_a_mirror(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mirror_directory() is None
    assert local_copy("models", "someone/model") is None
    monkeypatch.setenv(MIRROR_VARIABLE, str(mirror))
    assert local_copy("models", "someone/model") == mirror / "models/someone/model"
    assert mirror_directory("/elsewhere") == Path("/elsewhere")
    assert local_copy("models", "someone/model", "/elsewhere") is None


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("gpt2", False),
        ("someone/model", False),
        ("/a/b", True),
        ("./a", True),
        ("../a", True),
        ("~/a", True),
        ("a/b/c", True),
    ],
)
def test_what_can_only_be_a_path(name: str, path: bool) -> None:
    assert is_path(name) == path
