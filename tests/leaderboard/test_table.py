"""The table: averages only over what is complete, one row per revision, written by compare-and-swap."""

from __future__ import annotations

import io
import statistics
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pytest

from parcontrol.leaderboard.records import Request
from parcontrol.leaderboard.registry import TaskSpec, registry
from parcontrol.leaderboard.results import read_results
from parcontrol.leaderboard.store import ConflictError, LocalStore, Stores
from parcontrol.leaderboard.table import averaged_columns, leaderboard_table, read_table, write_table
from tests.leaderboard.result_documents import OTHER_SHA, SHA, ours, put

# As the reference of the public leaderboard has them; by our labels.
FACTUALITY = ["NQ Open/EM", "TriviaQA/EM", "PopQA/EM", "FEVER/Acc", "TrueFalse/Acc", "TruthfulQA MC2/Acc"]
FAITHFULNESS = [
    "XSum/ROUGE-L",
    "CNN-DM/ROUGE-L",
    "RACE/Acc",
    "SQuADv2/EM",
    "NQ-Swap/EM",
    "MemoTrap/Acc",
    "IFEval/Acc",
    "HaluEval QA/Acc",
    "FaithDial/Acc",
]


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return Stores(*(LocalStore(tmp_path / name) for name in ("requests", "results", "leaderboard")))


def metrics(spec: TaskSpec, value: float) -> dict[str, float]:
    return {f"{column.metric},{column.filter}": value / column.scale for column in spec.columns}


def complete(without: tuple[str, ...] = (), **block: Any) -> dict[str, Any]:
    """A result of every task; in the table it has its number, from 1, as value in every column."""
    results = {spec.name: metrics(spec, number) for number, spec in enumerate(registry(), 1)}
    document = ours({task: found for task, found in results.items() if task not in without}, **block)
    document["versions"] = {spec.name: spec.version for spec in registry()}
    return document


def put_results(stores: Stores, *documents: dict[str, Any]) -> None:
    files = {f"org/model/results_{number}.json": document for number, document in enumerate(documents)}
    put(stores.results.directory, files)


def request(**fields: Any) -> Request:
    given = {"model": "org/model", "sha": SHA, "precision": "float16", "status": "FINISHED", **fields}
    return Request.model_validate(given)


def test_averages_are_taken_over_the_columns_of_the_reference() -> None:
    assert averaged_columns() == {"Factuality": FACTUALITY, "Faithfulness": FAITHFULNESS}


def test_the_averages_of_a_complete_model(stores: Stores) -> None:
    put_results(stores, complete())
    table, *_ = read_table(stores)

    (row,) = table.to_dict("records")
    number = {column.label: place for place, spec in enumerate(registry(), 1) for column in spec.columns}
    assert row["Factuality"] == pytest.approx(statistics.mean(number[label] for label in FACTUALITY))
    assert row["Faithfulness"] == pytest.approx(statistics.mean(number[label] for label in FAITHFULNESS))
    assert (row["Factuality_done"], row["Faithfulness_done"], row["done"]) == (6, 9, len(number))
    assert not row["partial"]
    assert not row["limited"]
    assert row["outdated"] == 0
    assert row["WikiText/Word perplexity"] == pytest.approx(number["WikiText/Word perplexity"])


@pytest.mark.parametrize(
    ("missing", "group", "other"), [("popqa", "Factuality", "Faithfulness"), ("race", "Faithfulness", "Factuality")]
)
def test_one_missing_column_takes_the_average_and_not_the_model(
    stores: Stores, missing: str, group: str, other: str
) -> None:
    put_results(stores, complete(without=(missing,)))
    (row,) = read_table(stores)[0].to_dict("records")

    assert pd.isna(row[group])
    assert row[f"{group}_done"] == len(averaged_columns()[group]) - 1
    assert row["partial"]
    assert row[other] > 0


@pytest.mark.parametrize("missing", ["winogrande", "nq_open_64", "truthfulqa_mc1", "halueval_dialogue", "shroom_dm"])
def test_columns_that_are_not_averaged_may_be_missing(stores: Stores, missing: str) -> None:
    put_results(stores, complete(without=(missing,)))
    (row,) = read_table(stores)[0].to_dict("records")
    assert not row["partial"]


def test_revisions_are_rows_of_their_own(stores: Stores) -> None:
    put_results(stores, complete(date=100), complete(without=("fever",), sha=OTHER_SHA, date=200))
    table, *_ = read_table(stores)
    assert table[["model", "sha", "partial"]].values.tolist() == [
        ["org/model", SHA, False],
        ["org/model", OTHER_SHA, True],
    ]


def test_the_best_comes_first_and_models_without_an_average_last(stores: Stores) -> None:
    better = complete(model="org/better")
    better["results"]["fever"]["acc,none"] = 0.99
    put_results(stores, complete(without=("fever",), model="org/incomplete"), complete(), better)
    assert read_table(stores)[0]["model"].tolist() == ["org/better", "org/model", "org/incomplete"]


def test_values_of_another_version_of_a_task_are_counted(stores: Stores) -> None:
    document = complete()
    document["versions"] |= {"fever": 0.0, "xsum": "Yaml"}
    put_results(stores, document)
    (row,) = read_table(stores)[0].to_dict("records")
    assert row["outdated"] == 1 + 3  # one column of fever, three of xsum


def test_a_value_from_a_part_of_the_rows_marks_the_row(stores: Stores) -> None:
    put_results(stores, complete(limit=10))
    assert read_table(stores)[0]["limited"].tolist() == [True]


class TestRequests:
    def test_they_tell_what_results_do_not(self, stores: Stores) -> None:
        put_results(stores, ours({"fever": {"acc,none": 0.5}}, model_type=None, license=None, params=None))
        results = read_results(stores.results)
        asked = request(
            model_type="💬 : chat",
            license="mit",
            params=1.5,
            likes=7,
            P=4,
            base_model="org/base",
            tokens=16_000_000,
            seed=3,
        )
        (row,) = leaderboard_table(results, [asked]).to_dict("records")
        assert (row["model_type"], row["license"], row["params"]) == ("💬 : chat", "mit", 1.5)
        assert (row["likes"], row["P"], row["base_model"]) == (7, 4, "org/base")
        assert (row["tokens"], row["seed"]) == (16_000_000, 3)

    @pytest.mark.parametrize(
        "other", [{"sha": OTHER_SHA}, {"precision": "4bit"}, {"weight_type": "Delta"}, {"chat_template": True}]
    )
    def test_those_of_other_rows_tell_nothing(self, stores: Stores, other: dict[str, Any]) -> None:
        put_results(stores, ours({"fever": {"acc,none": 0.5}}))
        (row,) = leaderboard_table(read_results(stores.results), [request(likes=7, **other)]).to_dict("records")
        assert pd.isna(row["likes"])

    def test_old_ones_have_no_sha(self, stores: Stores) -> None:
        put_results(stores, ours({"fever": {"acc,none": 0.5}}))
        (row,) = leaderboard_table(read_results(stores.results), [request(likes=7, sha=None)]).to_dict("records")
        assert row["likes"] == 7


class TestWriting:
    def test_all_files_hold_the_same_table(self, stores: Stores) -> None:
        put_results(stores, complete(P=2), complete(without=("fever",), sha=OTHER_SHA, limit=3))
        put(stores.results.directory, {"org/bad/results_1.json": b"<html>"})
        put(stores.requests.directory, {"org/bad_eval_request_False_float16_Original.json": b"[]"})
        table, *_ = write_table(stores)

        read = pd.read_parquet(io.BytesIO(stores.leaderboard.read("table.parquet")))
        pd.testing.assert_frame_equal(read, table.reset_index(drop=True))
        scores = pd.read_parquet(io.BytesIO(stores.leaderboard.read("scores.parquet")))
        assert len(scores) == table["done"].sum()
        document = orjson.loads(stores.leaderboard.read("table.json"))
        first, second = document["models"]
        assert (first["sha"], first["P"], first["partial"]) == (SHA, 2, False)
        assert first["Factuality"] == pytest.approx(table["Factuality"].iloc[0])
        assert (second["Factuality"], second["P"]) == (None, None)
        assert first["scores"]["FEVER/Acc"]["n"] == 100
        assert first["scores"]["FEVER/Acc"]["date"] == "2023-11-14T22:13:20Z"
        assert "FEVER/Acc" not in second["scores"]
        assert [(file["repository"], file["path"]) for file in document["set_aside"]] == [
            ("results", "org/bad/results_1.json"),
            ("requests", "org/bad_eval_request_False_float16_Original.json"),
        ]
        assert {column["label"] for column in document["columns"]} == set(scores["column"])

    def test_an_empty_repository_gives_an_empty_table(self, stores: Stores) -> None:
        table, *_ = write_table(stores)
        assert len(table) == 0
        read = pd.read_parquet(io.BytesIO(stores.leaderboard.read("table.parquet")))
        assert list(read.columns) == list(table.columns)
        assert orjson.loads(stores.leaderboard.read("table.json"))["models"] == []

    def test_what_is_there_already_is_not_written_again(self, stores: Stores) -> None:
        put_results(stores, complete())
        write_table(stores)
        revision = stores.leaderboard.snapshot().revision
        write_table(stores)
        assert stores.leaderboard.snapshot().revision == revision

    def test_after_a_conflict_the_newest_results_are_written(self, stores: Stores) -> None:
        """Another writer comes first with newer results: ours must not take them back."""
        put_results(stores, complete(date=100))
        store = stores.leaderboard
        commit, calls = store.commit, []

        def interrupted(changes: Any, message: str, parent: str) -> str:
            calls.append(parent)
            if len(calls) == 1:
                put(stores.results.directory, {"org/model/results_new.json": complete(date=200, P=8)})
                stores.results._next_scan = 0.0  # files put there by hand are looked for now and then only
                store.commit = commit
                write_table(stores)
                store.commit = interrupted
            return commit(changes, message, parent)

        store.commit = interrupted
        table, *_ = write_table(stores)
        assert table["P"].tolist() == [8]
        assert orjson.loads(store.read("table.json"))["models"][0]["P"] == 8

    def test_a_conflict_that_does_not_end_is_loud(self, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
        class Stuck(Exception):
            pass

        def conflict(*_: Any, **__: Any) -> str:
            if len(tried) == 3:
                raise Stuck
            tried.append(1)
            raise ConflictError("somebody else")

        tried: list[int] = []
        monkeypatch.setattr(stores.leaderboard, "commit", conflict)
        with pytest.raises(Stuck):
            write_table(stores)
