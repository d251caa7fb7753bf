"""A board that all tests of the page look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from parcontrol.leaderboard.app.board import Board, read_board
from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store import Stores, open_stores
from tests.leaderboard.app import boards


@pytest.fixture(scope="session")
def full_stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    """A store with models of every kind; nothing may be written into it."""
    stores = open_stores(Settings(root=tmp_path_factory.mktemp("board")))
    boards.fill(stores)
    return stores


@pytest.fixture(scope="session")
def full_board(full_stores: Stores) -> Board:
    """The board of `full_stores`."""
    return read_board(full_stores)


@pytest.fixture
def empty_board(tmp_path: Path) -> Board:
    """A board on which nothing is."""
    return read_board(open_stores(Settings(root=tmp_path / "empty")))
