"""A model's own view: what it says of a model, and that it says something sensible of any."""

from __future__ import annotations

import argparse
import math
import re
import shlex
from dataclasses import astuple
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest

from parcontrol.cli.leaderboard.worker import _check, _parser
from parcontrol.leaderboard.app.board import Board, read_board
from parcontrol.leaderboard.app.measures import Rank, Whisker, measures, number, rank, whisker
from parcontrol.leaderboard.app.model.facts import average_facts, command, history, model_html, task_rows
from parcontrol.leaderboard.app.model.samples import Origin, SampleReader
from parcontrol.leaderboard.app.view import View
from parcontrol.leaderboard.records import Request
from parcontrol.leaderboard.registry import registry
from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store import StoreError, Stores, open_stores, update
from tests.leaderboard.app.boards import HOSTILE, fill
from tests.leaderboard.result_documents import OTHER_SHA, SHA, ours, public


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return open_stores(Settings(root=tmp_path))


def publish(stores: Stores, *documents: dict[str, Any], model: str = "org/model") -> Board:
    files: dict[str, bytes | None] = {
        f"{model}/results_2026-01-0{number}T00-00-00.json": orjson.dumps(document)
        for number, document in enumerate(documents, 1)
    }
    update(stores.results, lambda snapshot: files, "results")
    return read_board(stores)


def html(board: Board, stores: Stores, key: str | None = None, task: str = "") -> str:
    keys = (board.table["key"].iloc[0] if key is None else key,)
    return model_html(board, View(tab="model", rows=keys, task=task), SampleReader(stores.results))


def words(text: str) -> str:
    """What a reader sees."""
    found: list[str] = []
    parser = HTMLParser()
    parser.handle_data = found.append  # type: ignore[method-assign]
    parser.feed(text)
    return re.sub(r"\s+", " ", "".join(found)).strip()


def truefalse(value: float, stderr: float | None = 0.05) -> dict[str, dict[str, Any]]:
    return {"truefalse": {"acc,none": value, **({} if stderr is None else {"acc_stderr,none": stderr})}}


def key_of(board: Board, model: str) -> str:
    return next(key for key in board.table["key"] if key.startswith(f"{model}@"))


# --- numbers ---


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (12.345, False, "12.3"),
        (-0.26, False, "−0.3"),
        (0.26, True, "+0.3"),
        (-0.01, True, "0.0"),
        (0.0, True, "0.0"),
        (float("nan"), True, "–"),
        (12345.6, False, "12,345.6"),
    ],
)
def test_number(value: float, signed: bool, text: str) -> None:
    assert number(value, signed=signed) == text


def test_units() -> None:
    labels = measures()
    assert labels["NQ Open/EM"].text(45.55) == "45.5 %"
    assert labels["SHROOM DM/rho"].text(-0.1234) == "−0.123"
    assert labels["WikiText/Word perplexity"].text(23.44) == "23.4"
    assert labels["WikiText/Word perplexity"].direction == "lower is better ↓"
    assert list(labels).index("XSum/ROUGE-L") < list(labels).index("NQ Open/EM") < list(labels).index("WinoGrande/Acc")
    assert len(labels) == sum(len(spec.columns) for spec in registry())


def test_rank_is_that_of_pandas() -> None:
    values = np.array([3.0, 1.0, np.nan, 3.0, 2.0, 5.0])
    for higher_is_better in (True, False):
        places = pd.Series(values).rank(method="min", ascending=not higher_is_better)
        for value, place in zip(values, places, strict=True):
            if not np.isnan(value):
                found = rank(values, value, higher_is_better)
                assert (found.place, found.among) == (place, 5)


def test_whiskers(stores: Stores) -> None:
    board = publish(stores, ours(truefalse(0.5) | {"wikitext": {"word_perplexity,none": 20.0}}))
    accuracy, perplexity = measures()["TrueFalse/Acc"], measures()["WikiText/Word perplexity"]
    assert astuple(whisker(accuracy, 50.0, 10.0, board)) == pytest.approx((50, 30.4004, 69.5996), abs=1e-3)
    assert astuple(whisker(accuracy, 98.0, 5.0, board)) == pytest.approx((98, 88.2002, 100), abs=1e-3)  # the axis ends
    assert whisker(accuracy, 98.0, float("nan"), board) == Whisker(98, 98, 98)
    assert whisker(measures()["SHROOM DM/rho"], 0.5, 0.0, board).dot == 75
    assert whisker(perplexity, 20.0, float("nan"), board).dot == 50  # alone on the board


# --- tasks ---


def test_lines_say_value_or_reason(stores: Stores) -> None:
    document = ours(
        truefalse(0.5) | {"xsum": {"rougeL,none": 0.25, "rougeL_stderr,none": 0.01}},
        absent={"xsum": {"factkb": f"model out of reach {HOSTILE}"}},
        failed={"fever": "no data"},
    )
    board = publish(stores, document)
    lines = {line.label: line for group in task_rows(board, board.table.iloc[0]).values() for line in group}
    accuracy = lines["TrueFalse/Acc"]
    assert (accuracy.value, accuracy.stderr, accuracy.n) == ("50.0 %", "5.0", "100")
    assert lines["XSum/FactKB"].reason == f"model out of reach {HOSTILE}"
    assert lines["FEVER/Acc"].reason == "no data"
    assert "NQ Open/EM" not in lines
    assert lines["TrueFalse/Acc"].rank == rank(np.array([50.0]), 50.0, True)


def test_reasons_of_another_row_are_not_taken(stores: Stores) -> None:
    other = ours(truefalse(0.5), failed={"fever": "of another commit"}, sha=OTHER_SHA)
    board = publish(stores, ours(truefalse(0.5)), other)
    shown = {
        sha: words(html(board, stores, key)) for sha, key in zip(board.table["sha"], board.table["key"], strict=True)
    }
    assert "of another commit" in shown[OTHER_SHA]
    assert "of another commit" not in shown[SHA]


def test_ranks_are_among_what_was_measured_alike(stores: Stores) -> None:
    documents = [
        ours(truefalse(0.5), model="org/a"),
        ours(truefalse(0.6), model="org/b"),
        ours(truefalse(0.9), model="org/c", sample_set=True),
        ours(truefalse(0.9), model="org/d", limit=10),
        ours(truefalse(0.9), model="org/e") | {"versions": {"truefalse": 7}},
    ]
    board = publish(stores, *documents)
    found = {}
    for _, row in board.table.iterrows():
        line = next(line for line in task_rows(board, row)["Factuality"] if line.label == "TrueFalse/Acc")
        found[row["model"]] = line
    places = {model: line.rank and (line.rank.place, line.rank.among) for model, line in found.items()}
    assert places == {"org/a": (2, 2), "org/b": (1, 2), "org/c": (1, 1), "org/d": None, "org/e": (1, 1)}
    assert found["org/d"].limited
    assert found["org/e"].outdated
    assert not found["org/a"].outdated


def test_marked_models_have_no_rank_and_take_none(full_board: Board) -> None:
    table = full_board.table
    assert (table["mark"] != "").sum() > 1
    unmarked = table[(table["mark"] == "") & ~table["limited"]]
    assert (table["Factuality"][table["mark"] != ""] > unmarked["Factuality"].min()).any()
    for _, row in table.iterrows():
        places = [average.rank for average in average_facts(full_board, row) if average.rank]
        places += [line.rank for lines in task_rows(full_board, row).values() for line in lines if line.rank]
        if row["mark"]:
            assert not places
        elif not math.isnan(row["Factuality"]) and not row["limited"]:
            factuality = next(one for one in average_facts(full_board, row) if one.group == "Factuality")
            better = int((unmarked["Factuality"] > row["Factuality"]).sum())
            assert factuality.rank == Rank(1 + better, int(unmarked["Factuality"].notna().sum()))


def test_averages_say_what_is_missing(stores: Stores) -> None:
    board = publish(stores, ours(truefalse(0.5)))
    faithfulness, factuality = average_facts(board, board.table.iloc[0])
    assert (factuality.value, factuality.done, factuality.of, factuality.rank) == ("–", 1, 6, None)
    assert "TrueFalse/Acc" not in factuality.missing
    assert "FEVER/Acc" in factuality.missing
    assert (faithfulness.done, faithfulness.of) == (0, 9)


# --- identity ---


def test_what_requests_know_is_shown(stores: Stores) -> None:
    request = Request.model_validate(
        {"model": "org/model", "sha": SHA, "precision": "float16", "status": "FINISHED", "P": 4, "tokens": 2_000_000,
         "seed": 7, "license": "mit", "base_model": "org/base", "model_type": "💬 : chat", "params": 1.7}
    )  # fmt: skip
    update(
        stores.requests,
        lambda snapshot: {
            "org/model_eval_request_False_float16_Original.json": request.to_json(),
            "flagged.txt": f"org/model copied answers {HOSTILE}\n".encode(),
        },
        "request",
    )
    shown = html(publish(stores, ours(truefalse(0.5))), stores)
    text = words(shown)
    for part in ("P = 4", "2,000,000", "Training seed7", "mit", "1.7 B parameters", "chat", SHA, "float16"):
        assert part in text
    assert f"This model is flagged: copied answers {HOSTILE}" in text
    assert f'href="https://huggingface.co/org/model/tree/{SHA}" rel="noopener noreferrer"' in shown
    assert 'href="https://huggingface.co/org/base"' in shown


def test_conditions_are_in_plain_words(stores: Stores) -> None:
    document = ours(truefalse(0.5), sample_set=True, limit=5) | {"versions": {"truefalse": 0.5}}
    text = words(html(publish(stores, document), stores))
    assert "Not measured as usual: sample set." in text
    assert "first rows of their task only" in text
    assert "1 value is of another version of the task" in text


def test_revisions_are_listed_newest_first(stores: Stores) -> None:
    board = publish(
        stores,
        ours(truefalse(0.5), date=1_700_000_000.0),
        ours(truefalse(0.6), date=1_710_000_000.0, sha=OTHER_SHA),
        ours(truefalse(0.6), date=1_690_000_000.0, precision="4bit"),
    )
    row = board.row(board.table["key"].iloc[0])
    assert row is not None
    lines = history(board, row)
    assert [line["sha"] for line in lines] == [OTHER_SHA[:10], SHA[:10], SHA[:10]]
    assert [line["ways"] for line in lines] == ["main, float16", "main, float16", "main, 4bit"]
    assert sum(line["here"] for line in lines) == 1
    shown = html(board, stores)
    assert sum(line["href"].replace("&", "&amp;") in shown for line in lines if not line["here"]) == 2


# --- how to measure it again ---


def origin(**fields: Any) -> Origin:
    usual: dict[str, Any] = {
        "ours": True, "harness": "0.4.13", "packages": (), "versions": (), "tasks": (), "seed": 1234, "limit": None,
        "sample_set": False, "backend": "hf", "base_model": "", "instruction_sha256": "",
    }  # fmt: skip
    return Origin(**usual | fields)


def model_row(**fields: Any) -> dict[str, Any]:
    usual = {"model": "org/m", "sha": SHA, "precision": "float16", "weight_type": "Original", "chat_template": False}
    return {**usual, "base_model": "", **fields}


def parsed(line: str) -> argparse.Namespace:
    """The command as a shell and the worker's own parser read it."""
    words = shlex.split(line)
    assert words[:3] == ["parcontrol", "leaderboard", "worker"]
    args = _parser().parse_args(words[3:])
    _check(args)
    return args


def test_command_is_one_that_the_worker_takes() -> None:
    args = parsed(command(model_row(chat_template=True), origin(limit=20), ["nq_open", "xsum"]))
    assert (args.model, args.revision, args.precision, args.chat_template) == ("org/m", SHA, "float16", True)
    assert (args.tasks, args.limit, args.seed) == (["nq_open", "xsum"], 20, 1234)


def test_command_for_all_tasks_adapters_directories_and_other_backends() -> None:
    everything = [spec.name for spec in registry()]
    assert parsed(command(model_row(), origin(), everything)).tasks == ["all"]
    assert parsed(command(model_row(), origin(sample_set=True), ["nq_open"])).tasks == ["demo"]
    adapter = parsed(command(model_row(weight_type="Adapter", base_model="org/base"), origin(), ["xsum"]))
    assert (adapter.weight_type, adapter.base_model) == ("Adapter", "org/base")
    local = parsed(command(model_row(model="local/x", sha="local-1"), origin(), ["xsum"]))
    assert (local.model, local.revision) == ("./x", None)
    assert parsed(command(model_row(precision="?"), origin(backend="dummy"), ["xsum"])).backend == "dummy"
    assert parsed(command(model_row(precision="?"), origin(backend="openai"), ["xsum"])).base_url.endswith(
        "completions"
    )
    assert parsed(command(model_row(), origin(instruction_sha256="a"), ["halueval_qa"])).instruction_file


def test_command_is_quoted() -> None:
    line = command(model_row(sha="x; rm -rf ~", base_model="$(id)", weight_type="Delta"), origin(), ["a b"])
    assert "'x; rm -rf ~'" in line
    assert "'$(id)'" in line
    assert "'a b'" in line


def test_results_that_were_made_alike_share_a_recipe(stores: Stores) -> None:
    other = ours({"nq_open": {"exact_match,none": 0.5}}, packages={"torch": "1"}, date=1_700_000_001.0)
    third = ours({"popqa": {"exact_match,none": 0.5}}, packages={"torch": "2"}, date=1_700_000_002.0)
    board = publish(stores, ours(truefalse(0.5), packages={"torch": "1"}), other, third)
    shown = html(board, stores)
    commands = re.findall(r'class="command"[^>]*>([^<]*)<', shown)
    assert [parsed(unescape(line)).tasks for line in commands] == [["popqa"], ["nq_open", "truefalse"]]
    assert "torch 1" in shown
    assert "torch 2" in shown


def test_results_of_the_public_leaderboard(stores: Stores) -> None:
    board = publish(stores, public(truefalse(0.5)))
    text = words(html(board, stores))
    assert "--model org/model --revision main --precision float16 --tasks truefalse" in text
    assert "comes from another system" in text
    assert "stored no rows, so there is nothing to show" in text


# --- rows ---


@pytest.fixture
def filled(stores: Stores) -> Stores:
    fill(stores, models=6)
    return stores


def test_rows_of_a_choice_and_of_a_text(filled: Stores) -> None:
    board = read_board(filled)
    key = key_of(board, "org3/model-3")
    text = words(html(board, filled, key, "truefalse"))
    assert "TrueFalse/Acc: 60 rows are stored; these are the first right and the first wrong ones" in text
    assert "true answer expected 87.0 %" in text  # 1 / (1 + exp(-1.9))
    assert "Expected" in words(html(board, filled, key, "nq_open"))


def test_hostile_text_is_only_text(filled: Stores) -> None:
    board = read_board(filled)
    for model, task in (("org1/model-1", "truefalse"), ("org1/model-1", "nq_open"), ("org3/model-3", HOSTILE)):
        shown = html(board, filled, key_of(board, model), task)
        assert_harmless(shown)
        assert HOSTILE[:60] in words(shown)
    assert_harmless(html(board, filled, HOSTILE))


@pytest.mark.parametrize(
    ("task", "reason"),
    [("nothing", "There is no task “nothing”"), ("popqa", "stored no rows of popqa"), ("", "60 rows are stored")],
)
def test_tasks_that_are_not_there(filled: Stores, task: str, reason: str) -> None:
    board = read_board(filled)
    assert reason in words(html(board, filled, key_of(board, "org3/model-3"), task))


def test_store_down(filled: Stores) -> None:
    board = read_board(filled)

    class Down:
        def snapshot(self) -> Any:
            raise StoreError("no route to host")

    key = key_of(board, "org3/model-3")
    shown = words(model_html(board, View(tab="model", rows=(key,)), SampleReader(Down())))  # type: ignore[arg-type]
    assert "The store cannot be read just now: no route to host." in shown
    assert "RACE/Acc" in shown


def test_broken_rows_and_result_files(filled: Stores) -> None:
    board = read_board(filled)
    row = board.row(key_of(board, "org3/model-3"))
    assert row is not None
    paths = [path for path in filled.results.snapshot().files if path.startswith("org3/model-3/")]
    update(filled.results, lambda snapshot: dict.fromkeys(paths, b"{"), "broken")
    text = words(html(board, filled, row["key"], "nq_open"))
    assert "samples_nq_open_2026-06-01T12-00-00.jsonl.zst is broken" in text
    assert "results_2026-06-01T12-00-00.json is broken" in text


def test_models_that_are_not_there(stores: Stores) -> None:
    assert "No model has been evaluated yet" in words(html(read_board(stores), stores, "org/gone@1"))
    board = publish(stores, ours(truefalse(0.5, None)))
    text = words(html(board, stores, "org/gone@1"))
    assert "There is no model org/gone@1 on the board (any more)" in text
    assert "org/model" in text
    assert "± unknown" in words(html(board, stores))


def test_every_model_of_a_board(filled: Stores) -> None:
    board = read_board(filled)
    reader = SampleReader(filled.results)
    for key in board.table["key"]:
        shown = model_html(board, View(tab="model", rows=(key,)), reader)
        assert not re.search(r"\b(nan|None|NaT|<NA>)\b", words(shown))
        assert_harmless(shown)


def assert_harmless(text: str) -> None:
    """No tag or attribute comes from the store, and nothing that a template of Gradio's would act on."""
    allowed = set(
        "a article bdi caption circle dd details div dl dt h2 h3 h4 h5 header li line nav p pre rect section span "
        "strong summary svg table tbody td th thead tr ul wbr".split()
    )
    tags: list[str] = []
    attributes: list[tuple[str, str | None]] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            attributes.extend(attrs)

    Parser().feed(text)
    assert set(tags) <= allowed
    assert not [name for name, _ in attributes if name.startswith("on") or name == "style"]
    links = [value or "" for name, value in attributes if name == "href"]
    assert all(link.startswith(("?", "https://huggingface.co/")) for link in links)
    assert not set("{}$`") & set(text)
