"""What the page shows, read from the store: one unchanging `Board` at a time, kept fresh by a thread."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd

from parcontrol.leaderboard.queue import Broken as BrokenRequest
from parcontrol.leaderboard.queue import Entry, Queue, utc_now
from parcontrol.leaderboard.result_file import IDENTITY
from parcontrol.leaderboard.results import Results, read_results
from parcontrol.leaderboard.store import StoreError, Stores
from parcontrol.leaderboard.submission import FLAGGED, WITHDRAWN, read_list
from parcontrol.leaderboard.table import averaged_columns, leaderboard_table, row_labels

logger = logging.getLogger(__name__)

# New results are on the page within a minute, also when reading them takes a while.
REFRESH_SECONDS = 20.0


@dataclass(frozen=True, eq=False)
class Board:
    """The leaderboard at one moment.

    Attributes:
        table: As `leaderboard_table` makes it, and for every row: key, which names it in addresses; name, which tells
            it from other rows of the same model; mark, `flagged`, `withdrawn` or empty, and mark_reason; for every
            average its standard error in `<average>_stderr`.
        results: What the table was made of.
        entries: The requests, by path.
        broken_requests: Files of the requests repository that are none.
        revisions: Of the requests and of the results repository.
        read_at: When it was read, UTC.
    """

    table: pd.DataFrame
    results: Results
    entries: Sequence[Entry]
    broken_requests: Sequence[BrokenRequest]
    revisions: tuple[str, str]
    read_at: datetime

    def row(self, key: str) -> pd.Series | None:
        """Returns the row with a key, None if there is none."""
        found = self.table[self.table["key"] == key]
        return found.iloc[0] if len(found) else None

    def scores(self, row: pd.Series) -> pd.DataFrame:
        """Returns the values of a row of the table, with standard errors and origin, by column label."""
        scores = self.results.scores
        return scores[scores["row"] == row.name].set_index("column")


def read_board(stores: Stores) -> Board:
    """Reads the board.

    Raises:
        StoreError: A repository cannot be read.
    """
    # First, so that what is written while the rest is read counts as newer than this board.
    revisions = (stores.requests.snapshot().revision, stores.results.snapshot().revision)
    queue = Queue(stores.requests)
    entries = queue.requests()
    marks = {
        name: (mark, reason)
        for mark, path in (("withdrawn", WITHDRAWN), ("flagged", FLAGGED))
        for name, reason in read_list(stores.requests, path).items()
    }
    results = read_results(stores.results)
    table = leaderboard_table(results, [entry.request for entry in entries])
    return Board(_with_page_columns(table, results, marks), results, entries, queue.broken(), revisions, utc_now())


def _with_page_columns(table: pd.DataFrame, results: Results, marks: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    found = [marks.get(model.casefold(), ("", "")) for model in table["model"]]
    texts = {
        "key": [row_key(*values) for values in table[list(IDENTITY)].itertuples(index=False, name=None)],
        "name": row_labels(table),
        "mark": [mark for mark, _ in found],
        "mark_reason": [reason for _, reason in found],
    }
    errors = {f"{group}_stderr": _stderr(table, results, labels) for group, labels in averaged_columns().items()}
    return pd.concat(
        # Text also where there is no row to tell pandas so.
        [table, pd.DataFrame(texts, index=table.index, dtype="str"), pd.DataFrame(errors, index=table.index)],
        axis=1,
    )


def row_key(model: str, *details: object) -> str:
    """Returns the name of a row in addresses: the model's, and eight digits of a hash of what else tells rows apart."""
    text = "\0".join(map(str, (model, *details)))
    return f"{model}@{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _stderr(table: pd.DataFrame, results: Results, labels: Sequence[str]) -> np.ndarray:
    """The standard error of a mean over tasks, whose rows are independent; missing if that of one task is."""
    scores = results.scores[results.scores["column"].isin(labels)]
    values = np.full((int(table.index.max()) + 1 if len(table) else 0, len(labels)), np.nan)
    values[scores["row"].to_numpy(np.int64), pd.Index(labels).get_indexer(scores["column"])] = scores["stderr"]
    return (np.sqrt((values**2).sum(axis=1)) / len(labels))[table.index.to_numpy()]


class LiveBoard:
    """The newest board, read again by a thread while it is in use.

    When the store cannot be read, the last good board stays, and `trouble` says why.

    Args:
        stores: The three repositories.
        seconds: How long a board is shown before the store is looked at again.

    Raises:
        StoreError: The store cannot be read at the start, when there is no board to keep.
    """

    def __init__(self, stores: Stores, seconds: float = REFRESH_SECONDS) -> None:
        self.stores = stores
        self.board = read_board(stores)
        self.trouble = ""
        self._seconds = seconds
        self._wake, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="parcontrol-board", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._ended.set()
        self._wake.set()
        self._thread.join()

    def refresh_soon(self) -> None:
        """Has the store read again at once, by the thread."""
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait(self._seconds)
            self._wake.clear()
            if self._ended.is_set():
                return
            self._refresh()

    def _refresh(self) -> None:
        try:
            revisions = tuple(store.snapshot().revision for store in (self.stores.requests, self.stores.results))
            if revisions != self.board.revisions:
                self.board = read_board(self.stores)
            self.trouble = ""
        except StoreError as error:
            if not self.trouble:
                logger.warning("the last good table stays: %s", error)
            self.trouble = str(error)
        except Exception:  # a fault of ours must not end the thread, or the page would be old without saying so
            logger.exception("the last good table stays")
            self.trouble = "an unexpected error, which is in the log"
