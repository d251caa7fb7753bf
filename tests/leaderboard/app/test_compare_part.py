"""Comparisons: numbers against scipy, arithmetic by hand and simulation; the page against what it must not claim."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import zstandard
from scipy import stats

from parcontrol.leaderboard.app.board import Board, read_board
from parcontrol.leaderboard.app.compare.comparison import (
    Difference,
    UnpairableError,
    holm,
    match_rows,
    mean_of,
    of_standard_error,
    paired,
    unpaired,
)
from parcontrol.leaderboard.app.compare.facts import compare_html, p_text
from parcontrol.leaderboard.app.measures import measures
from parcontrol.leaderboard.app.model.samples import Rows, SampleReader, samples_path
from parcontrol.leaderboard.app.view import View
from parcontrol.leaderboard.registry import registry
from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store import Stores, open_stores, update
from tests.leaderboard.app.boards import HOSTILE, fill
from tests.leaderboard.result_documents import ours


def binary(*counts: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that both, only the first, only the second, and neither have right."""
    pairs = [(100, 100), (100, 0), (0, 100), (0, 0)]
    first, second = np.repeat(np.array(pairs, dtype=float), counts, axis=0).T
    return first, second


# --- pairs of rows ---


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (3, 12), (9, 2), (40, 41), (0, 7)])
def test_mcnemar_is_the_exact_binomial_test(lost: int, gained: int) -> None:
    found = paired(*binary(20, lost, gained, 30))
    n = 50 + lost + gained
    # Twice the smaller tail of a fair coin, added up by hand.
    tail = sum(math.comb(lost + gained, k) for k in range(min(lost, gained) + 1)) / 2 ** (lost + gained)
    assert found.test == "McNemar"
    assert found.n == n
    assert found.p == pytest.approx(min(1.0, 2 * tail))
    assert found.value == pytest.approx(100 * (gained - lost) / n)
    assert found.low <= found.value <= found.high


def test_interval_of_agresti_and_min_by_hand() -> None:
    """Half a row more in every cell: 8.5 lost and 20.5 gained of 102."""
    found = paired(*binary(40, 8, 20, 32))
    share = (20.5 - 8.5) / 102
    stderr = math.sqrt((20.5 + 8.5) / 102 - share**2) / math.sqrt(102)
    assert found.low == pytest.approx(100 * (share - 1.959964 * stderr), abs=1e-4)
    assert found.high == pytest.approx(100 * (share + 1.959964 * stderr), abs=1e-4)


@pytest.mark.parametrize(
    "cells", [(0.5, 0.2, 0.2, 0.1), (0.6, 0.05, 0.15, 0.2), (0.9, 0.02, 0.03, 0.05), (0.1, 0.05, 0.8, 0.05)]
)
@pytest.mark.parametrize("n", [12, 60])
def test_interval_covers_the_difference(cells: tuple[float, ...], n: int) -> None:
    """In 95 of 100 samples the true difference lies in the interval; in 1500 simulated ones it may be 93.3 and more."""
    rng = np.random.default_rng(n)
    true = 100 * (cells[2] - cells[1])
    covered = 0
    for counts in rng.multinomial(n, cells, size=1500):
        found = paired(*binary(*counts))
        covered += found.low <= true <= found.high
    assert covered / 1500 > 0.933


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_graded_rows_get_students_t(shift: float) -> None:
    rng = np.random.default_rng(1)
    first = rng.random(80) * 100
    second = first + rng.normal(shift, 5, 80)
    found = paired(first, second)
    expected = stats.ttest_rel(second, first)
    interval = expected.confidence_interval(0.95)
    assert found.test == "paired t"
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.value == pytest.approx(second.mean() - first.mean())


def test_pairs_find_what_two_standard_errors_do_not() -> None:
    rng = np.random.default_rng(2)
    hard = rng.random(300) * 80
    first, second = hard + rng.normal(0, 2, 300), hard + 2 + rng.normal(0, 2, 300)
    by_error = unpaired(first.mean(), stats.sem(first), second.mean(), stats.sem(second))
    assert by_error
    assert by_error.verdict(True) == "none"
    assert paired(first, second).verdict(True) == "better"


def test_rows_that_all_differ_by_the_same_claim_only_by_their_number() -> None:
    assert paired(np.full(4, 1.5), np.full(4, 2.5)).verdict(True) == "none"
    many = paired(np.full(9, 1.5), np.full(9, 2.5))
    assert many.p == pytest.approx(2 / 2**9)
    assert many.verdict(True) == "better"
    same = paired(np.full(9, 1.5), np.full(9, 1.5))
    assert (same.p, same.verdict(True)) == (1.0, "none")


# --- standard errors ---


def test_unpaired_is_z() -> None:
    found = unpaired(50.0, 3.0, 60.0, 4.0)
    assert found
    assert (found.value, found.stderr) == (10.0, 5.0)
    assert found.p == pytest.approx(0.0455003, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((10 - 9.79982, 10 + 9.79982), abs=1e-4)


@pytest.mark.parametrize(("first", "second"), [(math.nan, 1.0), (1.0, math.nan), (0.0, 1.0), (0.0, 0.0)])
def test_without_a_standard_error_nothing_is_known(first: float, second: float) -> None:
    assert unpaired(0.0, first, 100.0, second) is None


def test_mean_of_differences() -> None:
    one, other = of_standard_error(4.0, 3.0), of_standard_error(-1.0, 4.0)
    found = mean_of([one, other])
    assert found
    assert (found.value, found.stderr) == (1.5, 2.5)
    assert mean_of([one, None]) is None
    assert mean_of([]) is None


# --- several tests ---


def closed_testing(p: list[float]) -> list[float]:
    """Holm's correction from its definition: the largest Bonferroni p of all sets of hypotheses with this one."""
    adjusted = []
    for index in range(len(p)):
        others = [other for other in range(len(p)) if other != index]
        sets = ([index, *more] for size in range(len(others) + 1) for more in itertools.combinations(others, size))
        adjusted.append(min(1.0, max(len(members) * min(p[member] for member in members) for members in sets)))
    return adjusted


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03, 0.005], [0.5], [0.02, 0.02, 0.02], [1.0, 0.001, 0.9, 0.3, 0.012]])
def test_holm_is_the_closed_bonferroni_test(p: list[float]) -> None:
    found = holm([Difference(1, 1, 0.5, 2, one, "z") for one in p])
    assert [one.adjusted for one in found] == pytest.approx(closed_testing(p))
    assert holm([]) == []


def test_nothing_is_claimed_of_equal_models() -> None:
    """Of pages with ten comparisons of equal models at most 5 % may claim anything; 8 % of 400 are hardly chance."""
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(400):
        found = holm([paired(*(100.0 * (rng.random((2, 40)) < 0.6))) for _ in range(10)])
        wrong += any(one.shown for one in found)
    assert wrong / 400 < 0.08


def test_an_interval_that_includes_zero_claims_nothing() -> None:
    assert not Difference(1, 1, -0.1, 2, 0.001, "z").shown
    assert not Difference(1, 1, 0.0, 2, 0.001, "z").shown
    assert not Difference(1, 1, 0.1, 2, 0.06, "z").shown
    assert Difference(1, 1, 0.1, 2, 0.04, "z").verdict(True) == "better"
    assert Difference(1, 1, 0.1, 2, 0.04, "z").verdict(False) == "worse"
    assert Difference(-1, 1, -2, -0.1, 0.04, "z").verdict(False) == "better"


# --- the same rows ---


def rows(keys: list[int], values: list[float]) -> Rows:
    return Rows(np.array(keys, dtype=np.uint64), np.array(values))


def test_rows_must_be_the_same_and_give_the_value_of_the_table() -> None:
    one, other = rows([1, 2], [0.0, 1.0]), rows([1, 2], [1.0, 1.0])
    first, second = match_rows(one, other, (50.0, 100.0), 100)
    assert (first.tolist(), second.tolist()) == ([0, 100], [100, 100])
    with pytest.raises(UnpairableError, match="not the same"):
        match_rows(one, rows([1, 3], [1.0, 1.0]), (50.0, 100.0), 100)
    with pytest.raises(UnpairableError, match="not the mean"):
        match_rows(one, other, (50.0, 99.0), 100)
    with pytest.raises(UnpairableError, match="only one"):
        match_rows(rows([1], [1.0]), rows([1], [1.0]), (100.0, 100.0), 100)


@pytest.mark.parametrize(
    ("p", "text"), [(0.0, "p < 0.001"), (0.00099, "p < 0.001"), (0.0123, "p = 0.012"), (1.0, "p = 1.000")]
)
def test_p_text(p: float, text: str) -> None:
    assert p_text(p) == text


# --- the page ---

Put = Callable[..., None]


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return open_stores(Settings(root=tmp_path))


@pytest.fixture
def put(stores: Stores) -> Put:
    """Publishes a result of a model; `right` are its rows by task."""

    def publish(model: str, right: dict[str, list[float]], keys: int = 0, version: float = 1.0, **block: Any) -> None:
        files: dict[str, bytes | None] = {}
        results = {}
        path = f"{model}/results_2026-01-01T00-00-00.json"
        for task, values in right.items():
            metric = next(spec.columns[0].metric for spec in registry() if spec.name == task)
            error = float(np.std(values, ddof=1) / math.sqrt(len(values)))
            results[task] = {f"{metric},none": float(np.mean(values)), f"{metric}_stderr,none": error}
            lines = [
                orjson.dumps({"doc_id": number, "doc_hash": f"{keys + number:x}", metric: value}) + b"\n"
                for number, value in enumerate(values)
            ]
            files[samples_path(path, task)] = zstandard.ZstdCompressor().compress(b"".join(lines))
        document = ours(results, model=model, **block)
        document["versions"] = dict.fromkeys(results, version)
        update(stores.results, lambda snapshot: files | {path: orjson.dumps(document)}, "result")

    return publish


def page(stores: Stores, *models: str, seconds: float = 30.0) -> str:
    board = read_board(stores)
    keys = [key for model in models for key in board.table["key"] if key.startswith(f"{model}@")]
    return html(board, stores, *keys, seconds=seconds)


def html(board: Board, stores: Stores, *keys: str, seconds: float = 30.0) -> str:
    return compare_html(board, View(tab="compare", rows=keys), SampleReader(stores.results), seconds)


def words(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", text)).strip()


# The second model has 24 rows of 60 right that the first has not, and none the other way round.
MANY_RIGHT = {"nq_open": [0.0] * 40 + [1.0] * 20}, {"nq_open": [0.0] * 16 + [1.0] * 44}


def test_the_same_rows_are_compared_in_pairs(stores: Stores, put: Put) -> None:
    put("org/a", MANY_RIGHT[0])
    put("org/b", MANY_RIGHT[1])
    text = words(page(stores, "org/a", "org/b"))
    assert "B against A: better on 1 measure (NQ Open/EM), worse on none; no difference shown on 0." in text
    assert "McNemar, 60 rows" in text
    assert "33.3 % ± 6.1" in text
    assert "73.3 % ± 5.8" in text
    assert "+40.0" in text


def test_the_first_model_is_what_others_are_compared_with(stores: Stores, put: Put) -> None:
    put("org/a", MANY_RIGHT[0])
    put("org/b", MANY_RIGHT[1])
    assert "B against A: better on none, worse on 1 (NQ Open/EM)" in words(page(stores, "org/b", "org/a"))


def test_no_difference_is_no_claim(stores: Stores, put: Put) -> None:
    put("org/a", {"nq_open": [0.0, 1.0] * 30})
    put("org/b", {"nq_open": [0.0, 1.0] * 29 + [1.0, 1.0]})
    text = words(page(stores, "org/a", "org/b"))
    assert "better on none, worse on none; no difference shown on 1." in text
    assert "p = 1.000 · McNemar, 60 rows" in text


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"keys": 1}, "the stored rows are not the same"), ({"version": 2.0}, None), ({"sample_set": True}, None)],
)
def test_other_rows_versions_and_conditions(
    stores: Stores, put: Put, change: dict[str, Any], reason: str | None
) -> None:
    put("org/a", MANY_RIGHT[0])
    put("org/b", MANY_RIGHT[1], **change)
    text = words(page(stores, "org/a", "org/b"))
    assert "McNemar," not in text
    if reason:
        assert "unpaired z" in text
        assert reason in text
    else:
        assert "nothing can be compared" in text
        assert "different versions of the task" in text or "not measured alike" in text


def test_a_broken_file_leaves_the_standard_errors(stores: Stores, put: Put) -> None:
    put("org/a", MANY_RIGHT[0])
    put("org/b", MANY_RIGHT[1])
    path = "org/b/samples_nq_open_2026-01-01T00-00-00.jsonl.zst"
    update(stores.results, lambda snapshot: {path: b"junk"}, "broken")
    text = words(page(stores, "org/a", "org/b"))
    assert "unpaired z" in text
    assert f"The file {path} is broken" in text


def test_rows_that_do_not_give_the_value_are_not_believed(stores: Stores, put: Put) -> None:
    """Somebody might publish rows that are better than the result."""
    put("org/a", MANY_RIGHT[0])
    put("org/b", MANY_RIGHT[0])
    path = "org/b/samples_nq_open_2026-01-01T00-00-00.jsonl.zst"
    lines = [
        orjson.dumps({"doc_id": number, "doc_hash": f"{number:x}", "exact_match": 1.0}) + b"\n" for number in range(60)
    ]
    update(stores.results, lambda snapshot: {path: zstandard.ZstdCompressor().compress(b"".join(lines))}, "lie")
    text = words(page(stores, "org/a", "org/b"))
    assert "no difference shown on 1" in text
    assert "the value in the table is not the mean of the stored rows" in text


def test_rows_that_are_not_read_yet(stores: Stores, put: Put) -> None:
    put("org/a", MANY_RIGHT[0])
    put("org/b", MANY_RIGHT[1])
    shown = page(stores, "org/a", "org/b", seconds=-1.0)
    assert "unpaired so far" in shown
    assert "Read on" in shown


def test_more_unread_replies_are_worse() -> None:
    measure = measures()["HaluEval QA/Unparsed"]
    assert of_standard_error(5.0, 1.0).verdict(measure.higher_is_better) == "worse"


def test_whole_board(stores: Stores) -> None:
    fill(stores, models=6)
    board = read_board(stores)
    keys = tuple(board.table["key"])
    for count in range(2, 6):
        text = html(board, stores, *keys[:count])
        assert not re.search(r"\bnan\b", words(text), re.IGNORECASE)
        assert text.count('scope="row"') > 30
    assert "At most 5 models" in html(board, stores, *keys[:7])


def test_names_that_are_not_there(stores: Stores) -> None:
    fill(stores, models=2)
    board = read_board(stores)
    key = board.table["key"].iloc[0]
    assert "Choose at least one more" in html(board, stores, key)
    assert "Choose two to 5" in html(board, stores)
    gone = html(board, stores, key, HOSTILE)
    assert "Not on the board" in gone
    assert_harmless(gone)


def test_hostile_text_is_only_text(stores: Stores) -> None:
    fill(stores, models=3)
    board = read_board(stores)
    text = html(board, stores, *[key for key in board.table["key"] if key.startswith("org")][:5])
    assert "alert(1)" in text  # the reason of a flag
    assert_harmless(text)


def test_empty_board(stores: Stores) -> None:
    assert "nothing to compare" in html(read_board(stores), stores)
    assert "nothing to compare" in html(read_board(stores), stores, "org/a@1", "org/b@2")


def assert_harmless(text: str) -> None:
    assert "<img" not in text
    assert "javascript:" not in re.sub(r">[^<]*<", "><", text)  # in no attribute
    assert not set("{}$`") & set(text)
