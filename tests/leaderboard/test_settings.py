"""One place reads the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store import LocalStore, open_stores
from parcontrol.leaderboard.store.hub import HubStore

REPOSITORIES = {"REPO_ID": "org/board", "QUEUE_REPO": "org/requests", "RESULTS_REPO": "org/results"}


def test_without_repositories_the_store_is_local(tmp_path: Path) -> None:
    for given in ({}, {"H4_TOKEN": "secret"}, dict.fromkeys(REPOSITORIES, "")):
        settings = Settings.from_environment({"PARCONTROL_LEADERBOARD": str(tmp_path), **given})
        assert not settings.on_hub
        stores = open_stores(settings)
        assert isinstance(stores.requests, LocalStore)
        assert stores.requests.directory == tmp_path / "requests"
        assert isinstance(stores.results, LocalStore)
        assert stores.results.directory == tmp_path / "results"
        assert isinstance(stores.leaderboard, LocalStore)
        assert stores.leaderboard.directory == tmp_path / "leaderboard"


def test_three_repositories_make_a_store_on_the_hub() -> None:
    settings = Settings.from_environment({**REPOSITORIES, "H4_TOKEN": "secret", "HF_ENDPOINT": "http://localhost:1/"})
    assert settings.on_hub
    assert settings.endpoint == "http://localhost:1"
    stores = open_stores(settings)
    named = [stores.requests, stores.results, stores.leaderboard]
    assert [store.repository for store in named if isinstance(store, HubStore)] == [
        "org/requests",
        "org/results",
        "org/board",
    ]


@pytest.mark.parametrize("left_out", REPOSITORIES)
def test_some_repositories_are_a_mistake(left_out: str) -> None:
    given = {name: value for name, value in REPOSITORIES.items() if name != left_out}
    with pytest.raises(ValueError, match=rf"^{left_out} not set: name all of REPO_ID, QUEUE_REPO, RESULTS_REPO"):
        Settings.from_environment(given)


def test_the_token_is_never_shown() -> None:
    settings = Settings.from_environment({**REPOSITORIES, "H4_TOKEN": "hf_very_secret"})
    assert settings.token is not None
    assert settings.token.get_secret_value() == "hf_very_secret"
    for shown in (repr(settings), str(settings), settings.model_dump_json(), repr(open_stores(settings))):
        assert "very_secret" not in shown


def test_white_space_around_the_token_is_no_part_of_it() -> None:
    for given, token in (("hf_secret\n", "hf_secret"), (" hf_secret\r\n", "hf_secret"), (" \n", None)):
        found = Settings.from_environment({**REPOSITORIES, "H4_TOKEN": given}).token
        assert (found.get_secret_value() if found else None) == token


@pytest.mark.parametrize("token", ["hf_se cret", "hf_se\ncret", "hf_s\u00e9cret", "hf_se\0cret", "hf_se\x7fcret"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValueError, match=r"^H4_TOKEN is no token") as refusal:
        Settings.from_environment({**REPOSITORIES, "H4_TOKEN": token})
    assert "cret" not in str(refusal.value)


def test_the_local_store_is_the_same_from_anywhere_in_a_checkout(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (repository, repository / "leaderboard", repository / "leaderboard/cli"):
        monkeypatch.chdir(place)
        assert Settings.from_environment({}).root == repository / "outputs/leaderboard"
    monkeypatch.chdir(tmp_path)
    assert Settings.from_environment({}).root == tmp_path / "outputs/leaderboard"
    assert Settings.from_environment({"PARCONTROL_LEADERBOARD": "here"}).root == tmp_path / "here"
    assert Settings.from_environment({"PARCONTROL_MIRROR": "/hub"}).mirror == Path("/hub")
