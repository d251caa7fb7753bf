"""Result files become one long table: the newest counts, revisions stay apart, bad files are listed."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parcontrol.leaderboard.registry import registry
from parcontrol.leaderboard.results import SCORE_COLUMNS, Results, read_results
from parcontrol.leaderboard.store import LocalStore
from tests.leaderboard.result_documents import OTHER_SHA, SHA, harness, ours, public, put

NQ = {"nq_open": {"exact_match,none": 0.25, "exact_match_stderr,none": 0.01}}


def read(directory: Path, files: dict[str, Any]) -> Results:
    put(directory, files)
    return read_results(LocalStore(directory))


def values(results: Results) -> dict[tuple[str, str], float]:
    return {(row.model, row.column): row.value for row in results.scores.itertuples()}


def test_every_value_comes_with_its_origin(tmp_path: Path) -> None:
    results = read(tmp_path, {"org/model/results_2026-01-02T03-04-05.json": ours(NQ, P=4, n=3610)})

    (row,) = results.scores.to_dict("records")
    assert list(row) == SCORE_COLUMNS
    assert row == {
        "row": 0,
        "model": "org/model",
        "sha": SHA,
        "revision": "main",
        "precision": "float16",
        "weight_type": "Original",
        "chat_template": False,
        "conditions": "",
        "P": 4,
        "task": "nq_open",
        "column": "NQ Open/EM",
        "value": 25.0,
        "stderr": 1.0,
        "n": 3610,
        "version": "1",
        "harness_version": "0.4.13",
        "limited": False,
        "date": pd.Timestamp("2023-11-14T22:13:20Z"),
        "path": "org/model/results_2026-01-02T03-04-05.json",
    }
    assert results.broken == []


def test_an_empty_repository_gives_an_empty_table_with_all_columns(tmp_path: Path) -> None:
    results = read_results(LocalStore(tmp_path))

    assert list(results.scores.columns) == SCORE_COLUMNS
    assert len(results.scores) == len(results.models) == len(results.problems) == len(results.broken) == 0


def test_fractions_become_percent_and_perplexity_stays(tmp_path: Path) -> None:
    results = read(
        tmp_path,
        {
            "a/results_1.json": ours(
                {
                    "wikitext": {"word_perplexity,none": 23.4, "word_perplexity_stderr,none": "N/A"},
                    "truefalse": {"acc,none": 0.5, "acc_stderr,none": 0.02},
                    "squadv2": {"exact,none": 75.0, "exact_stderr,none": 1.0},  # a percentage in the harness
                }
            )
        },
    )

    found = results.scores.set_index("column")[["value", "stderr"]]
    assert found.loc["WikiText/Word perplexity", "value"] == 23.4
    assert math.isnan(found.loc["WikiText/Word perplexity", "stderr"])
    assert found.loc["TrueFalse/Acc"].tolist() == [50.0, 2.0]
    assert found.loc["SQuADv2/EM"].tolist() == [75.0, 1.0]


def test_one_task_fills_several_columns_and_an_absent_metric_leaves_its_reason(tmp_path: Path) -> None:
    document = ours(
        {"xsum": {"rougeL,none": 0.2, "rougeL_stderr,none": 0.01, "bertscore_precision,none": 0.9}},
        absent={"xsum": {"factkb": "bunsenfeng/FactKB is out of reach"}},
        failed={"cnndm": "no data"},
    )
    results = read(tmp_path, {"org/model/results_1.json": document})

    assert set(results.scores["column"]) == {"XSum/ROUGE-L", "XSum/BERTScore-P"}
    problems = {(row.task, row.metric): row.reason for row in results.problems.itertuples()}
    assert problems == {("xsum", "factkb"): "bunsenfeng/FactKB is out of reach", ("cnndm", ""): "no data"}
    assert set(results.problems["model"]) == {"org/model"}


class TestNewest:
    def test_the_newest_result_of_a_task_counts_whatever_the_order_of_names(self, tmp_path: Path) -> None:
        files = {
            f"org/model/results_{name}.json": ours({"nq_open": {"exact_match,none": value}}, date=date)
            for name, value, date in (("c", 0.1, 100.0), ("a", 0.3, 300.0), ("b", 0.2, 200.0))
        }
        assert values(read(tmp_path, files)) == {("org/model", "NQ Open/EM"): pytest.approx(30)}

    def test_tasks_of_several_files_come_together(self, tmp_path: Path) -> None:
        files = {
            "org/model/results_1.json": ours({**NQ, "fever": {"acc,none": 0.5}}, date=100),
            "org/model/results_2.json": ours({"fever": {"acc,none": 0.6}}, date=200),
        }
        found = values(read(tmp_path, files))
        assert found == {("org/model", "NQ Open/EM"): 25, ("org/model", "FEVER/Acc"): 60}

    def test_all_columns_of_a_task_are_from_one_file(self, tmp_path: Path) -> None:
        files = {
            "org/model/results_1.json": ours({"xsum": {"rougeL,none": 0.1, "factkb,none": 0.1}}, date=100),
            "org/model/results_2.json": ours({"xsum": {"rougeL,none": 0.2}}, date=200),
        }
        assert values(read(tmp_path, files)) == {("org/model", "XSum/ROUGE-L"): 20}

    def test_a_part_of_the_rows_never_takes_the_place_of_all(self, tmp_path: Path) -> None:
        files = {
            "org/model/results_1.json": ours(NQ, date=100),
            "org/model/results_2.json": ours({"nq_open": {"exact_match,none": 1.0}}, date=200, limit=5),
            "org/other/results_1.json": ours(NQ, date=200, model="org/other", limit=5),
        }
        results = read(tmp_path, files)
        assert values(results) == {("org/model", "NQ Open/EM"): 25, ("org/other", "NQ Open/EM"): 25}
        assert dict(zip(results.scores["model"], results.scores["limited"], strict=True)) == {
            "org/model": False,
            "org/other": True,
        }

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("sha", OTHER_SHA),
            ("precision", "bfloat16"),
            ("weight_type", "Delta"),
            ("chat_template", True),
            ("sample_set", True),
            ("instruction_sha256", "ab" * 32),
            ("backend", "dummy"),
            ("model", "org/other"),
        ],
    )
    def test_results_of_something_else_are_another_row(self, tmp_path: Path, field: str, value: Any) -> None:
        files = {
            "org/model/results_1.json": ours(NQ, date=100),
            "org/model/results_2.json": ours(NQ, date=200, **{field: value}),
        }
        results = read(tmp_path, files)
        assert len(results.scores) == len(results.models) == 2
        assert sorted(results.scores["row"]) == [0, 1]

    @pytest.mark.parametrize(("field", "value"), [("revision", "v2"), ("P", 2), ("license", "mit"), ("seed", 1)])
    def test_a_new_description_of_the_same_model_is_no_new_row(self, tmp_path: Path, field: str, value: Any) -> None:
        files = {
            "org/model/results_1.json": ours(NQ, date=100),
            "org/model/results_2.json": ours({"fever": {"acc,none": 0.5}}, date=200, **{field: value}),
        }
        results = read(tmp_path, files)
        assert len(results.models) == 1
        assert len(results.scores) == 2
        if field in results.models:
            assert results.models[field].tolist() == [value]


class TestFilesOfOthers:
    def test_the_harness_alone(self, tmp_path: Path) -> None:
        results = read(tmp_path, {"org__model/results_2026-01-02T03-04-05.678.json": harness(NQ)})
        (row,) = results.scores.to_dict("records")
        assert (row["model"], row["sha"], row["precision"]) == ("org/model", SHA, "float16")
        assert (row["value"], row["n"], row["harness_version"]) == (25.0, 100, "0.4.13")

    @pytest.mark.parametrize("config_key", ["config", "config_general"])
    @pytest.mark.parametrize("metric", ["acc,none", "acc"])
    def test_the_public_leaderboard(self, tmp_path: Path, config_key: str, metric: str) -> None:
        document = public(
            {"halueval_qa": {metric: 0.4, metric.replace("acc", "acc_stderr"): 0.01, "em,none": 0.2}},
            config_key=config_key,
        )
        results = read(tmp_path, {"org/model/results_2024-01-20 12:34:56.514379.json": document})
        (row,) = results.scores.to_dict("records")
        assert (row["column"], row["value"], row["stderr"]) == ("HaluEval QA/Acc", 40.0, 1.0)
        assert (row["sha"], row["precision"], row["weight_type"]) == ("main", "float16", "Original")
        assert (row["version"], row["harness_version"]) == ("Yaml", "git 62513ca")
        assert row["date"] == pd.Timestamp("2024-01-20T12:34:56.514379Z")

    def test_its_names_of_tasks_and_metrics(self, tmp_path: Path) -> None:
        document = public(
            {
                "nq8": {"em,none": 0.1},
                "nq_open": {"em,none": 0.2},
                "memo-trap_v2": {"acc,none": 0.3},
                "memo-trap": {"acc,none": 0.9},
                "truefalse_cieacf": {"acc,none": 0.4},
                "xsum_v2": {"rougeL,none": 15.5, "factKB,none": 0.5, "bertscore_precision,none": 0.6},
                "squadv2": {"exact,none": 42.5, "f1,none": 50.0},
                "mmlu": {"acc,none": 0.7},
            },
            shots={"nq8": 8, "nq_open": 64},
        )
        found = read(tmp_path, {"org/model/results_2024-01-20T12-34-56.json": document}).scores
        assert dict(zip(found["column"], found["value"], strict=True)) == {
            "NQ Open/EM": pytest.approx(10),
            "NQ Open 64-shot/EM": pytest.approx(20),
            "MemoTrap/Acc": pytest.approx(30),
            "TrueFalse/Acc": pytest.approx(40),
            "XSum/ROUGE-L": pytest.approx(15.5),  # a percentage there already
            "XSum/FactKB": pytest.approx(50),
            "XSum/BERTScore-P": pytest.approx(60),
            "SQuADv2/EM": pytest.approx(42.5),
        }

    def test_an_adapter_is_named_by_its_own_repository(self, tmp_path: Path) -> None:
        document = harness(NQ)
        document["config"]["model_args"] = {"pretrained": "org/base", "peft": "me/adapter", "load_in_4bit": True}
        document["config"]["peft_sha"] = OTHER_SHA
        (model,) = read(tmp_path, {"me/adapter/results_1.json": document}).models.to_dict("records")
        assert (model["model"], model["sha"], model["precision"]) == ("me/adapter", OTHER_SHA, "4bit")
        assert (model["weight_type"], model["base_model"]) == ("Adapter", "org/base")

    def test_other_files_are_not_results(self, tmp_path: Path) -> None:
        results = read(
            tmp_path, {"README.md": b"# hello", "org/model/samples_nq_open_1.jsonl.zst": b"x", "a.json": b"x"}
        )
        assert results.broken == []
        assert len(results.models) == 0


def _edited(**changes: Any) -> dict[str, Any]:
    document = ours(NQ)
    for path, value in changes.items():
        place = document
        *parents, last = path.split("__")
        for part in parents:
            place = place[part]
        place[last] = value
    return document


HOSTILE = {
    "is HTML": b"<!DOCTYPE html><html><script>alert(1)</script></html>",
    "is empty": b"  \n",
    "holds NaN": json.dumps(_edited(results__nq_open={"exact_match,none": math.nan})).encode(),
    "holds Infinity": json.dumps(_edited(date=math.inf)).encode(),
    "is no JSON": b'{"results": {"nq_open": ',
    "deep": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "not a JSON object": b"[1, 2]",
    "not what this metric": _edited(results__nq_open={"exact_match,none": 1e308}),
    "a percentage": _edited(results__nq_open={"exact_match,none": 25.0}),
    "below zero": _edited(results__nq_open={"exact_match,none": -0.5}),
    "is a string, not a number": _edited(results__nq_open={"exact_match,none": "0.99"}),
    "is true or false": _edited(results__nq_open={"exact_match,none": True}),
    "is a list": _edited(results__nq_open={"exact_match,none": [0.5]}),
    "standard error": _edited(results__nq_open={"exact_match,none": 0.5, "exact_match_stderr,none": -1.0}),
    "results of nq_open": _edited(results__nq_open="<b>1.0</b>"),
    "results is": _edited(results=[NQ]),
    "no model name": _edited(parcontrol__model="org/<img src=x onerror=alert(1)>"),
    "path": _edited(parcontrol__model="../../etc/passwd"),
    "model is": _edited(parcontrol__model=None),
    "sha": _edited(parcontrol__sha="<script>"),
    "sha is": _edited(parcontrol__sha={"$ne": 1}),
    "precision": _edited(parcontrol__precision="float7"),
    "weight_type": _edited(parcontrol__weight_type=["Original"]),
    "P": _edited(parcontrol__P=True),
    "P -1": _edited(parcontrol__P=-1),
    "params": _edited(parcontrol__params=-3.0),
    "license": _edited(parcontrol__license="x" * 100_000),
    "parcontrol is": _edited(parcontrol="yes"),
    "in the future": _edited(date=9e18),
    "before 1970": _edited(date=-1),
    "no date": _edited(date=None),
    "limit is a string": _edited(parcontrol__limit="abc"),
    "limit is a list": _edited(parcontrol__limit=[1]),
    "limit is true or false": _edited(parcontrol__limit=False),
    "versions is missing or null": _edited(versions=None),
    "versions is a list": _edited(versions=["x"]),
    "the version of nq_open is a list": _edited(versions__nq_open=["x"]),
    "n-samples is a list": _edited(**{"n-samples": ["x"]}),
    "n-samples of nq_open is a number": _edited(**{"n-samples__nq_open": 100}),
    "no number of rows": _edited(**{"n-samples__nq_open": {"effective": "100"}}),
    "failed is a list": _edited(parcontrol__failed=["xsum"]),
    "absent is": _edited(parcontrol__absent={"xsum": "why"}),
    "the reason of 'xsum'": _edited(parcontrol__failed={"xsum": 1}),
    "backend is a list": _edited(parcontrol__backend=["dummy"]),
    "too deep for repr": json.dumps(_edited(parcontrol__precision="x"))
    .replace('"x"', "[" * 1000 + "]" * 1000)
    .encode(),
    "escape sequence": _edited(results__nq_open={"exact_match,\x1b[31mRED": 25.0}),
    "neither config": {key: value for key, value in harness(NQ).items() if key != "config"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_file_is_listed_with_its_reason_and_stops_nothing(tmp_path: Path, name: str) -> None:
    files = {"org/bad/results_x.json": HOSTILE[name], "org/good/results_1.json": ours(NQ, model="org/good")}
    results = read(tmp_path, files)

    assert values(results) == {("org/good", "NQ Open/EM"): 25}
    (broken,) = results.broken
    assert broken.path == "org/bad/results_x.json"
    assert 0 < len(broken.reason) < 300
    assert broken.reason.isprintable()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("is HTML", "is HTML or XML, not JSON"),
        ("holds NaN", "holds NaN, which is no JSON"),
        ("a percentage", "nq_open: exact_match,none = 25.0 is not what this metric can be"),
        ("below zero", "nq_open: exact_match,none = -0.5 is not what this metric can be"),
        ("is a string, not a number", "nq_open: exact_match,none is a string, not a number"),
        ("P", "P True is no number of streams"),
        ("in the future", "date = 9e+18 lies in the future, or before 1970"),
    ],
)
def test_reasons_say_what_is_wrong(tmp_path: Path, name: str, reason: str) -> None:
    results = read(tmp_path, {"org/bad/results_x.json": HOSTILE[name]})
    assert [broken.reason for broken in results.broken] == [reason]


def test_a_huge_file_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parcontrol.leaderboard.results.MAX_BYTES", 10_000)
    huge = orjson_padded(ours(NQ, model="org/huge"), 10_001)
    results = read(tmp_path, {"org/huge/results_1.json": huge, "org/model/results_1.json": ours(NQ)})
    assert [broken.path for broken in results.broken] == ["org/huge/results_1.json"]
    assert "10,000 bytes" in results.broken[0].reason
    assert values(results) == {("org/model", "NQ Open/EM"): 25}


def orjson_padded(document: dict[str, Any], size: int) -> bytes:
    content = json.dumps(document).encode()
    return content + b" " * (size - len(content))


def test_unknown_fields_and_tasks_are_ignored(tmp_path: Path) -> None:
    document = _edited(parcontrol__colour="green", surprise={"deep": [1]}, results__new_task={"acc,none": "many"})
    results = read(tmp_path, {"org/model/results_1.json": document})
    assert results.broken == []
    assert values(results) == {("org/model", "NQ Open/EM"): 25}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
PLACES = [
    *(f"parcontrol__{name}" for name in ours(NQ)["parcontrol"]),
    *ours(NQ),
    "results__nq_open",
    "config__model_args",
    "n-samples__nq_open",
    "versions__nq_open",
    "parcontrol__instruction_sha256",
]


@given(place=st.sampled_from(PLACES), value=JSON)
def test_whatever_stands_in_a_field_the_reader_goes_on(
    tmp_path_factory: pytest.TempPathFactory, place: str, value: Any
) -> None:
    directory = tmp_path_factory.mktemp("any")
    files = {
        "org/odd/results_x.json": _edited(**{place: value}),
        "org/good/results_1.json": copy.deepcopy(ours(NQ, model="org/good")),
    }
    results = read(directory, files)
    assert "org/good" in set(results.scores["model"])
    assert results.scores["value"].between(-100.01, 100.01).all()
    assert {broken.path for broken in results.broken} <= {"org/odd/results_x.json"}


GOOD_AND_BAD = {
    "usual": ours(NQ),
    "newer": ours({"nq_open": {"exact_match,none": 0.5}, "fever": {"acc,none": 0.75}}, date=1_700_000_100.0),
    "limited": ours({"fever": {"acc,none": 0.1}}, date=1_700_000_200.0, limit=5),
    "streams": ours(NQ, P=1),
    "no task of ours": ours({"mmlu": {"acc,none": 0.5}}, date=1_700_000_300.0),
    "failed": ours({}, failed={"xsum": "no data"}),
    "a percentage": ours({"fever": {"acc,none": 25.0}}),
    "in the future": ours(NQ, date=9e9),
    "P = True": ours(NQ, P=True),
    "limit": ours(NQ, limit="abc"),
    "no reasons": ours(NQ, failed=[]),
}


@functools.cache
def _alone(model: str, name: str) -> Results:
    with tempfile.TemporaryDirectory() as directory:
        return read(Path(directory), {f"{model}/results_1.json": _of(model, name)})


def _of(model: str, name: str) -> dict[str, Any]:
    document = copy.deepcopy(GOOD_AND_BAD[name])
    document["parcontrol"]["model"] = model
    return document


@given(st.lists(st.tuples(st.sampled_from(["org/a", "org/b", "org/c"]), st.sampled_from(list(GOOD_AND_BAD)))))
def test_a_bad_file_changes_nothing_of_what_the_good_ones_say(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[tuple[str, str]]
) -> None:
    paths = [f"org/results_{number:03}.json" for number in range(len(chosen))]
    found = read(
        tmp_path_factory.mktemp("mixture"),
        {path: _of(*file) for path, file in zip(paths, chosen, strict=True)},
    )

    alone = [_alone(*file) for file in chosen]
    good = [result for result in alone if not result.broken]
    assert [file.path for file in found.broken] == [
        path for path, result in zip(paths, alone, strict=True) if result.broken
    ]
    assert found.models["model"].tolist() == sorted({result.models["model"][0] for result in good})
    expected: dict[tuple[str, str], tuple[Any, ...]] = {}
    for row in itertools.chain.from_iterable(result.scores.itertuples() for result in good):
        said = (not row.limited, row.date, row.value)
        expected[row.model, row.column] = max(said, expected.get((row.model, row.column), said))
    assert {
        (row.model, row.column): (not row.limited, row.date, row.value) for row in found.scores.itertuples()
    } == expected
    assert [found.models["model"][row] for row in found.scores["row"]] == found.scores["model"].tolist()
    failed = {row.model for result in good for row in result.problems.itertuples()}
    assert set(found.problems["model"]) == failed


def test_what_a_terminal_would_take_as_an_order_is_dropped(tmp_path: Path) -> None:
    orders = "\x1b[31mRED\x1b]0;title\x07\x9b1m"
    results = read(
        tmp_path,
        {
            "org/model/results_1.json": ours(
                NQ, failed={f"xsum{orders}": orders}, absent={"cnndm": {f"factkb{orders}": orders}}, license=orders
            )
        },
    )
    texts = [*results.problems[["task", "metric", "reason"]].to_numpy().ravel(), *results.models["license"]]
    assert [text for text in texts if not text.isprintable()] == []
    assert results.problems["reason"].tolist() == [" [31mRED ]0;title  1m"] * 2


def test_labels_and_names_of_tasks_are_unique() -> None:
    labels = [column.label for spec in registry() for column in spec.columns]
    assert len(set(labels)) == len(labels)
