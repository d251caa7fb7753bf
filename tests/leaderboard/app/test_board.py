"""The board that the page shows: it follows the store by itself, and outlives it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from parcontrol.leaderboard.app import board as board_module
from parcontrol.leaderboard.app.board import LiveBoard, read_board, row_key
from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store import StoreError, Stores, open_stores
from tests.leaderboard.app import boards
from tests.leaderboard.result_documents import ours, put
from tests.leaderboard.stores import TOKEN, online_hub

NQ = {"nq_open": {"exact_match,none": 0.25, "exact_match_stderr,none": 0.01}}


@contextmanager
def live_board(stores: Stores) -> Iterator[LiveBoard]:
    live = LiveBoard(stores, seconds=0.05)
    try:
        yield live
    finally:
        live.close()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_new_result_is_on_the_board_without_a_restart(tmp_path: Path) -> None:
    stores = open_stores(Settings(root=tmp_path))
    with live_board(stores) as live:
        assert len(live.board.table) == 0
        stores.results.commit(
            boards.result_files({"model": "a/b"}, NQ, boards.random.Random(0)),
            "result",
            stores.results.snapshot().revision,
        )
        wait_for(lambda: live.board.table["model"].tolist() == ["a/b"])


def test_a_board_that_nothing_has_changed_is_not_read_again(
    full_stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    with live_board(full_stores) as live:
        before = live.board
        monkeypatch.setattr(board_module, "read_board", lambda stores: pytest.fail("read again"))
        time.sleep(0.5)
        assert live.board is before
        assert live.trouble == ""


def test_the_last_good_board_stays_while_the_hub_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with online_hub(tmp_path / "cache", monkeypatch) as hub:
        for name in ("requests", "results", "board"):
            hub.create("datasets", f"alice/{name}")
        settings = Settings.from_environment(
            {
                "QUEUE_REPO": "alice/requests",
                "RESULTS_REPO": "alice/results",
                "REPO_ID": "alice/board",
                "HF_ENDPOINT": hub.endpoint,
                "H4_TOKEN": TOKEN,
                "PARCONTROL_LEADERBOARD": str(tmp_path),
            }
        )
        stores = open_stores(settings)
        boards.fill(stores, models=3)
        with live_board(stores) as live:
            shown = live.board
            with monkeypatch.context() as down:
                down.setattr(type(stores.results), "snapshot", _down)
                wait_for(lambda: "no route" in live.trouble)
                assert live.board is shown
            wait_for(lambda: live.trouble == "")


def _down(self: object) -> None:
    raise StoreError("no route to the Hub")


def test_a_fault_of_ours_is_told_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = open_stores(Settings(root=tmp_path))
    with live_board(stores) as live:
        with monkeypatch.context() as broken:
            broken.setattr(board_module, "read_board", lambda stores: 1 / 0)
            put(tmp_path / "results", {"a/b/results_1.json": ours(NQ, model="a/b")})
            wait_for(lambda: "unexpected error" in live.trouble)
        wait_for(lambda: len(live.board.table) == 1 and live.trouble == "")


def test_keys_tell_rows_apart_and_stay(full_stores: Stores) -> None:
    first, second = read_board(full_stores).table, read_board(full_stores).table

    assert first["key"].is_unique
    assert first["key"].tolist() == second["key"].tolist()
    assert row_key("a/b", "c") == row_key("a/b", "c") != row_key("a/b", "d")


def test_marks_come_from_the_lists_in_the_requests_repository(full_stores: Stores) -> None:
    table = read_board(full_stores).table.set_index("model")

    assert table.loc["org1/model-1", "mark"] == "flagged"
    assert table.loc["org2/model-2", ["mark", "mark_reason"]].tolist() == ["withdrawn", "by its authors"]
    assert (table["mark"] != "").sum() == 2
