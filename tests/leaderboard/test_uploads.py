"""Original files become the datasets that the tasks read; bad rows are named; other parts of a repository stay."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset

from parcontrol.cli.leaderboard import upload as command
from parcontrol.cli.leaderboard.main import main as leaderboard
from parcontrol.leaderboard.registry import registry
from parcontrol.leaderboard.tasks.shroom.rows import process_docs
from parcontrol.leaderboard.uploads import CONVERTERS
from parcontrol.leaderboard.uploads.converter import Split
from tests.leaderboard.hub_server import writable_hub

QA = {"knowledge": "k", "question": "q?", "right_answer": "right", "hallucinated_answer": "wrong"}
FEVER = {"id": 1, "label": "SUPPORTS", "claim": "Water is wet.", "evidence": [], "verifiable": "VERIFIABLE"}
SHROOM = {
    "hyp": "a cat",
    "ref": "either",
    "src": "un chat",
    "tgt": "a cat",
    "model": "",
    "task": "MT",
    "labels": ["Hallucination", "Not Hallucination"],
    "label": "Not Hallucination",
    "p(Hallucination)": 0.5,
}
ISP = {"prompt": "Say a", "classes": "[' a', ' b']", "answer_index": "0", "round": "2", "part": "1"}
SWAP = {"question": "who?", "org_context": "A did", "org_answer": ["A"], "sub_context": "B did", "sub_answer": ["B"]}
AVERITEC = {
    "claim": "c",
    "label": "Refuted",
    "justification": "j",
    "claim_date": "31-10-2020",
    "speaker": None,
    "claim_types": ["Event/Property Claim"],
    "fact_checking_strategies": [],
    "questions": [{"question": "q?", "answers": [{"answer": "a", "answer_type": "Abstractive", "source_url": "u"}]}],
    "required_reannotation": False,
}


def lines(path: Path, rows: list[Any]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def convert(name: str, *inputs: Path) -> dict[tuple[str, str], Split]:
    return {(split.config, split.name): split for split in CONVERTERS[name].convert(inputs)}


class TestHaluEval:
    def test_each_file_draws_for_itself_and_above_a_half_takes_the_hallucinated_text(self, tmp_path: Path) -> None:
        dialogue = {"knowledge": "k", "dialogue_history": "h", "right_response": "r", "hallucinated_response": "w"}
        summary = {"document": "d", "right_summary": "r", "hallucinated_summary": "w"}
        lines(
            tmp_path / "qa_data.json",
            [{**QA, "right_answer": f"r{i}", "hallucinated_answer": f"w{i}"} for i in range(50)],
        )
        lines(tmp_path / "dialogue_data.json", [dialogue] * 50)
        lines(tmp_path / "summarization_data.json.gz", [summary] * 50)
        lines(
            tmp_path / "general_data.json",
            [{"ID": 1, "user_query": "u", "chatgpt_response": "c", "hallucination": "no"}],
        )
        splits = convert("halueval", tmp_path)

        generator = random.Random(42)
        expected = ["yes" if generator.random() > 0.5 else "no" for _ in range(50)]
        assert set(splits) == {(f"{kind}_samples", "data") for kind in ("qa", "dialogue", "summarization")}
        for split in splits.values():
            assert split.table["hallucination"].to_pylist() == expected
        answers = [f"{'w' if drawn == 'yes' else 'r'}{i}" for i, drawn in enumerate(expected)]
        assert splits["qa_samples", "data"].table["answer"].to_pylist() == answers
        assert splits["qa_samples", "data"].table.column_names == ["knowledge", "question", "answer", "hallucination"]

    @pytest.mark.mirror
    @pytest.mark.parametrize(
        ("config", "text"),
        [("qa_samples", "answer"), ("dialogue_samples", "response"), ("summarization_samples", "summary")],
    )
    def test_the_published_samples_come_out(self, mirror: Path, tmp_path: Path, config: str, text: str) -> None:
        """Originals are made from the published rows; the text that was not taken is unknown and must not matter."""
        published = pq.read_table(mirror / f"datasets/pminervini/HaluEval/{config}/data-00000-of-00001.parquet")
        originals = []
        for row in published.to_pylist():
            taken, drawn = row.pop(text), row.pop("hallucination")
            other = "never taken"
            pair = (taken, other) if drawn == "yes" else (other, taken)
            originals.append({**row, f"hallucinated_{text}": pair[0], f"right_{text}": pair[1]})
        split = convert("halueval", lines(tmp_path / "data.json", originals))[config, "data"]
        assert split.table.equals(published.replace_schema_metadata(None))


class TestFever:
    def test_labels_are_balanced_claims_unique_and_shuffled_with_a_seed(self, tmp_path: Path) -> None:
        rows = [{**FEVER, "id": i, "claim": f"claim {i:02d}", "label": "SUPPORTS"} for i in range(20)]
        rows += [{**FEVER, "id": 100 + i, "claim": f"untrue {i}", "label": "REFUTES"} for i in range(5)]
        rows += [rows[0], {**FEVER, "id": 999, "label": "NOT ENOUGH INFO"}]
        dev = lines(tmp_path / "labelled_dev.jsonl", rows)
        split = convert("fever", dev)["v1.0", "dev"]

        expected = [{"id": 100 + i, "label": "refuted", "claim": f"untrue {i}"} for i in range(5)]
        expected += [{"id": i, "label": "supported", "claim": f"claim {i:02d}"} for i in range(5)]
        random.Random(42).shuffle(expected)
        assert split.table.to_pylist() == expected

    def test_train_and_dev_are_told_by_name(self, tmp_path: Path) -> None:
        rows = [FEVER, {**FEVER, "label": "REFUTES"}]
        lines(tmp_path / "train.jsonl.gz", rows)
        lines(tmp_path / "shared_task_dev.jsonl", rows)
        assert set(convert("fever", tmp_path)) == {("v1.0", "train"), ("v1.0", "dev")}
        with pytest.raises(ValueError, match="must say train or dev"):
            convert("fever", lines(tmp_path / "claims.jsonl", rows))


def test_shroom_has_a_split_for_each_kind_of_text(tmp_path: Path) -> None:
    path = tmp_path / "val.model-agnostic.json"
    path.write_text(json.dumps([SHROOM, {**SHROOM, "task": "DM", "model": None}, {**SHROOM, "hyp": "a dog"}]))
    splits = convert("shroom", path)
    assert set(splits) == {("default", "MT"), ("default", "DM")}
    assert splits["default", "MT"].table.to_pylist() == [SHROOM, {**SHROOM, "hyp": "a dog"}]


def test_shroom_takes_the_annotations_that_the_task_reads(tmp_path: Path) -> None:
    """The task says what they mean: in any case, and one of labels and share is enough."""
    written = [
        {**SHROOM, "label": "not hallucination ", "labels": ["HALLUCINATION", "Not hallucination"]},
        {key: value for key, value in SHROOM.items() if key not in ("label", "labels")},
        {**SHROOM, "label": "", "labels": []},
        {key: value for key, value in SHROOM.items() if key != "p(Hallucination)"},
    ]
    table = convert("shroom", lines(tmp_path / "val.jsonl", written))["default", "MT"].table
    assert table.to_pylist()[0] == SHROOM
    read, meant = (process_docs(Dataset.from_list(rows)) for rows in (table.to_pylist(), written))
    for name in ("gold", "p"):
        assert list(read[name]) == list(meant[name])
    assert len(read) == len(written)


class TestTrueFalse:
    PARTS = ("cities", "inventions", "elements", "animals", "companies", "facts")

    def test_a_split_for_each_file_and_all_six_together(self, tmp_path: Path) -> None:
        for part in (*self.PARTS, "generated"):
            table(tmp_path / f"{part}_true_false.csv", [{"statement": f'{part}, "quoted"\nand more', "label": 1}])
        splits = convert("truefalse", tmp_path)
        merged = splits["default", "cieacf"].table
        assert set(splits) == {("default", part) for part in (*self.PARTS, "generated", "cieacf")}
        assert merged["statement"].to_pylist() == [f'{part}, "quoted"\nand more' for part in self.PARTS]

    @pytest.mark.mirror
    def test_the_published_splits_come_out(self, mirror: Path, tmp_path: Path) -> None:
        published = {
            path.name.partition("-")[0]: pq.read_table(path)
            for path in (mirror / "datasets/pminervini/true-false/data").glob("*.parquet")
        }
        for name, rows in published.items():
            if name != "cieacf":
                table(tmp_path / f"{name}_true_false.csv", rows.to_pylist())
        splits = convert("truefalse", tmp_path)
        assert {name for _, name in splits} == set(published)
        for (_, name), split in splits.items():
            assert split.table.equals(published[name].replace_schema_metadata(None)), name


class TestInverseScaling:
    def test_classes_stay_a_string(self, tmp_path: Path) -> None:
        split = convert("isp", table(tmp_path / "memo-trap_classification.csv", [{"": 0, **ISP}]))["memo-trap", "data"]
        assert split.table.to_pylist() == [{**ISP, "answer_index": 0, "round": 2, "part": 1}]

    @pytest.mark.mirror
    def test_the_published_rows_come_out(self, mirror: Path, tmp_path: Path) -> None:
        published = pq.read_table(mirror / "datasets/pminervini/inverse-scaling/memo-trap/data-00000-of-00001.parquet")
        split = convert("isp", table(tmp_path / "memo-trap.csv", published.to_pylist()))["memo-trap", "data"]
        assert split.table.equals(published.replace_schema_metadata(None))


class TestNqSwap:
    def test_rows_with_both_contexts(self, tmp_path: Path) -> None:
        assert convert("nqswap", lines(tmp_path / "dev.jsonl", [SWAP]))["default", "dev"].table.to_pylist() == [SWAP]

    def test_the_published_pair_of_files(self, tmp_path: Path) -> None:
        header = {"header": {"dataset": "NQ"}}
        original = {"uid": "7", "query": "who?", "context": "A did", "gold_answers": [{"text": "A"}]}
        changed = {
            "uid": "7_0",
            "original_example": "7",
            "query": "who?",
            "context": "B did",
            "gold_answers": [{"text": "B"}],
        }
        lines(tmp_path / "original.jsonl", [header, original])
        lines(tmp_path / "substituted.jsonl", [header, changed])
        assert convert("nqswap", tmp_path)["default", "dev"].table.to_pylist() == [SWAP]
        (tmp_path / "original.jsonl").unlink()
        with pytest.raises(ValueError, match=r"substituted.jsonl: row 2 has original_example = '7', which no row"):
            convert("nqswap", tmp_path)


def test_averitec_keeps_questions_and_answers(tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_text(json.dumps([AVERITEC]))
    (row,) = convert("averitec", tmp_path)["default", "dev"].table.to_pylist()
    assert (row["claim"], row["label"], row["speaker"]) == ("c", "Refuted", None)
    assert row["questions"][0]["answers"][0]["source_url"] == "u"
    assert "required_reannotation" not in row


@pytest.mark.parametrize(
    ("dataset", "name", "rows", "message"),
    [
        ("halueval", "qa.json", [QA, {**QA, "right_answer": 3}], "row 2 has right_answer = 3; a text is needed"),
        ("halueval", "qa.json", [QA, {"right_answer": "x"}], "row 2 has no hallucinated_answer; it has right_answer"),
        ("halueval", "qa.json", [QA, ["x"]], "row 2 is no object but ['x']"),
        ("halueval", "qa.json", [{"user_query": "x"}], "no row has right_answer, right_response or right_summary"),
        ("halueval", "qa.json", [], "has no rows"),
        ("halueval", "qa.txt", [QA], "the name must end in .json"),
        (
            "fever",
            "dev.jsonl",
            [{**FEVER, "label": "MAYBE"}],
            "row 1 has label = 'MAYBE'; allowed are 'REFUTES', 'SUPPORTS'",
        ),
        ("fever", "dev.jsonl", [{**FEVER, "label": ["SUPPORTS"]}], "row 1 has label = ['SUPPORTS']"),
        ("fever", "dev.jsonl", [FEVER], "a supported and a refuted claim are needed"),
        ("shroom", "val.jsonl", [{**SHROOM, "task": "QA"}], "row 1 has task = 'QA'; allowed are 'DM', 'MT', 'PG'"),
        ("shroom", "val.jsonl", [{**SHROOM, "p(Hallucination)": 2}], "row 1 has p(Hallucination) = 2; a number from 0"),
        ("shroom", "val.jsonl", [{**SHROOM, "labels": ["maybe"]}], "row 1 has labels = 'maybe'; allowed are"),
        ("shroom", "val.jsonl", [{**SHROOM, "label": 1}], "row 1 has label = 1; a text is needed"),
        (
            "shroom",
            "val.jsonl",
            [SHROOM, {**SHROOM, "labels": [], "p(Hallucination)": None}],
            "row 2 is not annotated: it has neither labels nor p(Hallucination)",
        ),
        ("truefalse", "facts.jsonl", [{"statement": "s", "label": 2}], "row 1 has label = 2; 1 (true) or 0 (false)"),
        ("truefalse", "facts.jsonl", [{"statement": "s", "label": "yes"}], "row 1 has label = 'yes'; a whole number"),
        ("isp", "memo-trap.jsonl", [{**ISP, "classes": "[' a'"}], "a list of two or more texts, written as in Python"),
        ("isp", "memo-trap.jsonl", [{**ISP, "classes": "__import__('os')"}], "a list of two or more texts"),
        (
            "isp",
            "memo-trap.jsonl",
            [{**ISP, "answer_index": 2}],
            "row 1 has answer_index = 2; its classes allow 0 to 1",
        ),
        ("nqswap", "dev.jsonl", [{**SWAP, "sub_answer": []}], "row 1 has no sub_answer that is a list"),
        ("averitec", "dev.json", [{**AVERITEC, "questions": "q"}], "row 1 has questions that are no list of objects"),
        ("averitec", "all.json", [AVERITEC], "the file's name must be train, dev or test"),
    ],
)
def test_a_bad_row_is_named_in_one_message_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dataset: str, name: str, rows: list[Any], message: str
) -> None:
    path = lines(tmp_path / name, rows)
    assert command.upload(dataset, ["--input", str(path), "--repo", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert str(path) in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("facts.csv", b"statement,label\na,1\nb\n", "row 2 does not have 2 columns"),
        ("facts.csv", b'statement,label\na,1\n"b,1\n', "row 2 is no CSV"),
        ("facts.csv.gz", b"no gzip", "cannot be read"),
        ("facts.jsonl", b'{"statement": "a", "label": 1}\n{"statement": \n', "row 2 is no JSON"),
        ("facts.json", b'[{"statement": "a",', "is no JSON"),
        ("facts.csv", b"statement,label\n\xff\xfe,1\n", "is no UTF-8"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        convert("truefalse", path)
    assert str(path) in str(caught.value)


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    rows = [FEVER, {**FEVER, "label": "REFUTES"}]
    lines(tmp_path / "dev.jsonl", rows)
    lines(tmp_path / "dev.jsonl.gz", rows)
    with pytest.raises(ValueError, match="both give 'dev'"):
        convert("fever", tmp_path)


def test_uploads_go_where_the_tasks_read() -> None:
    read = {(spec.dataset, spec.config) for spec in registry()}
    repositories = {name: converter.repo for name, converter in CONVERTERS.items() if name != "averitec"}
    assert set(repositories.values()) <= {repository for repository, _ in read}
    assert {config for repository, config in read if repository == repositories["halueval"]} == {
        "qa_samples",
        "dialogue_samples",
        "summarization_samples",
    }
    assert (repositories["fever"], "v1.0") in read
    assert (repositories["isp"], "memo-trap") in read


class TestPublishing:
    @pytest.fixture
    def original(self, tmp_path: Path) -> Path:
        return lines(tmp_path / "qa_data.json", [QA, QA])

    def test_a_directory_is_what_load_dataset_reads(self, original: Path, tmp_path: Path) -> None:
        import datasets

        target = tmp_path / "hub/datasets/pminervini/HaluEval"
        assert command.upload("halueval", ["--input", str(original), "--repo", str(target)]) == 0
        loaded = datasets.load_dataset(str(target), "qa_samples", cache_dir=str(tmp_path / "cache"))
        assert loaded["data"]["hallucination"] == ["yes", "no"]
        assert sorted(path.name for path in target.rglob("*") if path.is_file()) == [
            "README.md",
            "data-00000-of-00001.parquet",
        ]

    def test_lists_and_structures_keep_their_types(self, tmp_path: Path) -> None:
        import datasets

        (tmp_path / "dev.json").write_text(json.dumps([AVERITEC]))
        command.upload("averitec", ["--input", str(tmp_path / "dev.json"), "--repo", str(tmp_path / "out")])
        loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["dev"]
        assert loaded[0]["questions"][0]["answers"][0]["answer"] == "a"
        assert loaded[0]["claim_types"] == ["Event/Property Claim"]

    def test_other_splits_and_the_text_of_the_card_stay_and_old_shards_go(self, original: Path, tmp_path: Path) -> None:
        target = tmp_path / "out"
        (target / "qa_samples").mkdir(parents=True)
        (target / "qa").mkdir()
        (target / "qa_samples/data-00000-of-00002.parquet").write_bytes(b"old")
        (target / "qa/data-00000-of-00001.parquet").write_bytes(b"other")
        configs = [{"config_name": "qa", "data_files": [{"split": "data", "path": "qa/data-*"}]}]
        head = yaml.safe_dump({"license": "mit", "dataset_info": {"old": 1}, "configs": configs})
        (target / "README.md").write_text(f"---\n{head}---\n\n# My words\n")
        command.upload("halueval", ["--input", str(original), "--repo", str(target)])

        _, front, text = (target / "README.md").read_text().split("---\n")
        data = yaml.safe_load(front)
        assert text == "\n# My words\n"
        assert data["license"] == "mit"
        assert data["configs"] == [
            *configs,
            {"config_name": "qa_samples", "data_files": [{"split": "data", "path": "qa_samples/data-*"}]},
        ]
        assert "dataset_info" not in data
        assert not (target / "qa_samples/data-00000-of-00002.parquet").exists()
        assert (target / "qa/data-00000-of-00001.parquet").read_bytes() == b"other"

    def test_a_dry_run_shows_and_writes_nothing(
        self, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        target = tmp_path / "out"
        assert leaderboard(["upload", "halueval", "--input", str(original), "--repo", str(target), "--dry-run"]) == 0
        shown = capsys.readouterr().out
        assert "qa_samples" in shown
        assert "hallucination: yes" in shown
        assert not target.exists()

    # huggingface_hub passes large files to httpx in the old way.
    @pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
    def test_the_hub_takes_it_in_one_commit(
        self, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with writable_hub() as hub:
            monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
            monkeypatch.setenv("H4_TOKEN", "secret-token")
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
            hub.create("datasets", "alice/HaluEval", {"README.md": b"# mine\n", "qa_samples/data-1.parquet": b"old"})
            assert command.upload("halueval", ["--input", str(original), "--repo", "alice/HaluEval"]) == 0
            files = hub.files("alice/HaluEval")
            assert len(hub.repositories["datasets", "alice/HaluEval"].commits) == 2
        shown = capsys.readouterr()
        assert f"{hub.endpoint}/datasets/alice/HaluEval" in shown.out
        assert "secret-token" not in shown.out + shown.err
        assert set(files) == {".gitattributes", "README.md", "qa_samples/data-00000-of-00001.parquet"}
        assert files["README.md"].endswith(b"# mine\n")
        rows = pq.read_table(pa.BufferReader(files["qa_samples/data-00000-of-00001.parquet"])).to_pylist()
        assert [row["hallucination"] for row in rows] == ["yes", "no"]

    def test_without_a_token_nothing_goes_to_the_hub(
        self, original: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv("H4_TOKEN", raising=False)
        assert command.upload("halueval", ["--input", str(original), "--repo", "me/HaluEval"]) == 2
        assert "set H4_TOKEN" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["haluval"], "unknown dataset 'haluval'; the nearest is 'halueval'"),
        ([], "the following arguments are required: DATASET"),
        (["fever", "--input", "nowhere"], "nowhere does not exist: name the original files"),
        (["fever", "--inputs", "x"], "unrecognized arguments: --inputs"),
    ],
)
def test_wrong_arguments_get_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], exit_code: Callable[..., int]
) -> None:
    assert exit_code(command.main, argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.fixture
def exit_code() -> Callable[..., int]:
    def run(function: Callable[..., int], *args: Any) -> int:
        try:
            return function(*args)
        except SystemExit as error:
            return int(error.code or 0)

    return run
