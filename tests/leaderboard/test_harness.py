"""Where tasks get their rows: mirrors in all layouts of the Hub, a Hub of one's own, the sample set."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nltk
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance

from parcontrol.leaderboard.harness import NLTK_TABLES, SAMPLES, build_tasks
from parcontrol.leaderboard.registry import registry, select
from parcontrol.leaderboard.task_data import choose_files, find_rows
from tests.data.hub_server import hub_server
from tests.leaderboard.scripted_model import ScriptedModel, write_rows

TRAPS = [{"prompt": f"p{i}", "classes": "[' a', ' b']", "answer_index": 0} for i in range(3)]


def prompts(task: str, mirror: Path | None = None, **options: Any) -> list[str]:
    """What a task that needs no examples asks."""
    (built,) = build_tasks(select([task]), mirror=str(mirror) if mirror else None, **options).tasks
    return [built.fewshot_context(row, num_fewshot=0) for row in built.eval_docs]


# --- which files hold a split ---


@pytest.mark.parametrize(
    ("files", "config", "split", "chosen"),
    [
        # as pushed to the Hub
        (
            "nq_open/train-00000-of-00001.parquet nq_open/validation-00000-of-00001.parquet",
            "nq_open",
            "validation",
            [1],
        ),
        ("data/cieacf-00000-of-00001.parquet data/facts-00000-of-00001.parquet", None, "cieacf", [0]),
        ("qa_samples/data-00000-of-00001.parquet general/data-00000-of-00001.parquet", "qa_samples", "data", [0]),
        (
            "3.0.0/test-00000-of-00002.parquet 3.0.0/test-00001-of-00002.parquet 1.0.0/test.parquet",
            "3.0.0",
            "test",
            [0, 1],
        ),
        ("data/dev-00000-of-00001-1a2b3c4d5e6f7a8b.parquet", None, "dev", [0]),
        ("rc/validation/0000.parquet rc.nocontext/validation/0000.parquet", "rc.nocontext", "validation", [1]),
        # as converted by the Hub
        ("default/test/0000.parquet default/train/0000.parquet default/train/0001.parquet", None, "test", [0]),
        ("plain_text/test_topic_split/0000.parquet plain_text/test/0000.parquet", None, "test", [1]),
        # by hand
        ("high/test.jsonl middle/test.jsonl high/train.jsonl", "high", "test", [0]),
        ("memo-trap/data.jsonl.gz README.md .gitattributes", "memo-trap", "data", [0]),
        ("memo-trap.jsonl hindsight.jsonl", "memo-trap", "data", [0]),
        ("v1.0/dev.jsonl v2.0/dev.jsonl", "v1.0", "dev", [0]),
        ("v1.0-dev.jsonl v1.0-train.jsonl v2.0-dev.jsonl", "v1.0", "dev", [0]),
        ("test.tsv", None, "test", [0]),
        ("NQ-Swap.dev.jsonl NQ-Swap.train.jsonl", None, "dev", [0]),
        ("validation/part-0.jsonl train/part-0.jsonl", "nq_open", "validation", [0]),
        ("data.jsonl", "nq_open", "validation", [0]),
        ("nq_open/0000.parquet nq_open/0001.parquet", "nq_open", "validation", [0, 1]),
        # another name of the same kind of split; the very name wins
        ("v1.0/validation.jsonl v1.0/train.jsonl", "v1.0", "dev", [0]),
        ("dev.jsonl", None, "validation", [0]),
        ("dev.jsonl validation.jsonl", None, "validation", [1]),
        # parquet wins over a copy in another format
        ("test.csv test.jsonl test.parquet", None, "test", [2]),
        # names that give no split: `train` for `datasets`, and whatever the repository is asked for
        ("README.md ifeval_input_data.jsonl", None, "train", [1]),
        ("wiki_bio.jsonl", None, "evaluation", [0]),
        ("facts.jsonl dataset_infos.json", None, "train", [0]),
        ("b.json a.json dataset_infos.json", None, "train", [1, 0]),
        # not there
        ("wiki_bio.jsonl test.jsonl", None, "train", []),
        ("wiki_bio.jsonl train.jsonl", None, "evaluation", []),
        ("train/0000.parquet", None, "test", []),
        ("train/wiki_bio.jsonl", None, "test", []),
        ("data/facts-00000-of-00001.parquet", None, "train", []),
        ("middle.jsonl", "high", "test", []),
        ("train.jsonl", None, "test", []),
        ("dialogue_samples/data.jsonl", "qa_samples", "data", []),
        ("data/facts.jsonl data/cities.jsonl", None, "cieacf", []),
        ("facts.jsonl", None, "cieacf", []),
        ("script.py data.zip", None, "test", []),
    ],
)
def test_files_by_name(files: str, config: str | None, split: str, chosen: list[int]) -> None:
    listed = files.split()
    if chosen:
        assert choose_files(listed, {}, config, split) == [listed[index] for index in chosen]
    else:
        with pytest.raises(ValueError, match=f"split {split!r}"):
            choose_files(listed, {}, config, split)


CARD = """---
license: mit
configs:
- config_name: memo-trap
  data_files:
  - split: data
    path: {path}
- config_name: other
  data_files: other/*
---
# A card
"""


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("memo-trap/data-*", "memo-trap/data-00000-of-00001.jsonl"),
        ("a/**/*.jsonl", "a/b/c/x.jsonl"),
        ('["a/x.jsonl", "a/y*"]', "a/yes.jsonl"),
        ("strange_name.jsonl", "strange_name.jsonl"),
    ],
)
def test_a_card_says_where(path: str, file: str, tmp_path: Path) -> None:
    repo = "pminervini/inverse-scaling"
    write_rows(tmp_path, f"{repo}/{file}", TRAPS)
    write_rows(tmp_path, f"{repo}/other/memo-trap-data.jsonl", [{"prompt": "wrong", **TRAPS[0]}])
    (tmp_path / "datasets" / repo / "README.md").write_text(CARD.format(path=path))
    assert prompts("memo_trap", tmp_path) == ["p0", "p1", "p2"]


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (CARD.replace("split: data", "split: train").format(path="x"), "no split 'data' \\(it has train\\)"),
        (CARD.replace("memo-trap", "trap").format(path="x"), "no configuration 'memo-trap' \\(it has trap, other\\)"),
        (CARD.format(path="nowhere/*"), "no files for configuration 'memo-trap', split 'data' \\(it has x.jsonl\\)"),
    ],
)
def test_a_card_that_does_not_help(card: str, message: str, tmp_path: Path) -> None:
    write_rows(tmp_path, "pminervini/inverse-scaling/x.jsonl", TRAPS)
    (tmp_path / "datasets/pminervini/inverse-scaling/README.md").write_text(card)
    with pytest.raises(ValueError, match=f"task memo_trap: dataset pminervini/inverse-scaling .*{message}"):
        prompts("memo_trap", tmp_path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("configs: [a, b", "no YAML: .*line"),
        ("configs: hello", "not as expected"),
        ("hello", "not as expected"),
        ("configs: 5", "not as expected"),
        ("configs: [{data_files: 5}]", "not as expected"),
        ("configs: [{data_files: [{split: data}]}]", "not as expected.*'path'"),
    ],
)
def test_a_broken_card(header: str, message: str, tmp_path: Path) -> None:
    write_rows(tmp_path, "pminervini/inverse-scaling/memo-trap/data.jsonl", TRAPS)
    (tmp_path / "datasets/pminervini/inverse-scaling/README.md").write_text(f"---\n{header}\n---\n")
    with pytest.raises(ValueError, match=f"task memo_trap: dataset pminervini/inverse-scaling has a card .*{message}"):
        prompts("memo_trap", tmp_path)


def test_a_card_without_configurations(tmp_path: Path) -> None:
    repo = tmp_path / "datasets/pminervini/inverse-scaling"
    write_rows(tmp_path, "pminervini/inverse-scaling/memo-trap/data.jsonl", TRAPS)
    for card in ("# No header", "---\n---\n", "---\nlicense: mit\n---\n"):
        (repo / "README.md").write_text(card)
        assert prompts("memo_trap", tmp_path) == ["p0", "p1", "p2"]


# --- formats ---


def test_formats(tmp_path: Path) -> None:
    """The same rows from parquet in shards, JSON lines, a JSON list, CSV."""
    folder = tmp_path / "datasets/pminervini/inverse-scaling/memo-trap"
    folder.mkdir(parents=True)

    def asked() -> list[str]:
        found = prompts("memo_trap", tmp_path)
        for file in folder.iterdir():
            file.unlink()
        return found

    for shard, rows in enumerate((TRAPS[:2], TRAPS[2:])):
        parquet.write_table(pa.Table.from_pylist(rows), folder / f"data-{shard:05d}-of-00002.parquet")
    assert asked() == ["p0", "p1", "p2"]
    (folder / "data.json").write_text(json.dumps(TRAPS))
    assert asked() == ["p0", "p1", "p2"]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, TRAPS)))
    assert asked() == ["p0", "p1", "p2"]
    (folder / "data.csv").write_text("prompt,classes,answer_index\nNone,\"[' a', ' b']\",1\nNA,\"[' a', ' b']\",0\n")
    assert asked() == ["None", "NA"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.parquet", "no parquet", ": Parquet magic bytes not found"),
        ("data.jsonl", '{"prompt": "p0", "classes"', " cannot be read: "),
        ("data.jsonl", "", " has no rows"),
        ("data.jsonl", '{"prompt": "p0", "answer_index": 0}', " lacks a field: 'classes' is undefined"),
    ],
)
def test_a_broken_file(name: str, content: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "datasets/pminervini/inverse-scaling/memo-trap"
    folder.mkdir(parents=True)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=f"^task memo_trap: dataset pminervini/inverse-scaling{message}"):
        prompts("memo_trap", tmp_path)


# --- places ---


def test_the_environment_names_the_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path, "pminervini/inverse-scaling/memo-trap/data.jsonl", TRAPS)
    monkeypatch.setenv("PARCONTROL_MIRROR", str(tmp_path))
    assert prompts("memo_trap") == ["p0", "p1", "p2"]


@pytest.mark.parametrize("repo", ["nq_open", "google-research-datasets/nq_open"])
def test_old_and_new_names_of_a_repository(repo: str, tmp_path: Path) -> None:
    write_rows(
        tmp_path, f"{repo}/nq_open/validation.jsonl", [{"question": f"q{i}", "answer": [str(i)]} for i in range(9)]
    )
    assert prompts("nq_open", tmp_path)[0] == "Q: q0?\nA:"


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("truthfulqa_mc1", "truthful_qa"),
        ("truthfulqa_gen", "truthful_qa"),
        ("squadv2", "squad_v2"),
        ("squadv2", "rajpurkar/squad_v2"),
        ("triviaqa", "mandarjoshi/trivia_qa"),
        ("cnndm", "abisee/cnn_dailymail"),
    ],
)
def test_other_names_of_a_repository(task: str, name: str, tmp_path: Path) -> None:
    (spec,) = select([task])
    file = tmp_path / "datasets" / name / (spec.config or "squad_v2") / f"{spec.split}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    file.touch()
    assert find_rows(spec, str(tmp_path))["data_files"] == {spec.split: [str(file)]}


def test_a_folder_in_the_working_directory_is_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "mirror", "nq_open/nq_open/validation.jsonl", [{"question": "q", "answer": ["a"]}] * 9)
    (tmp_path / "nq_open").mkdir()
    monkeypatch.chdir(tmp_path)
    assert len(prompts("nq_open", tmp_path / "mirror")) == 9


@pytest.mark.parametrize("spec", registry(), ids=lambda spec: spec.name)
def test_a_dataset_that_cannot_be_had(spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datasets").mkdir()
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    expected = (
        f"task {spec.name} needs NLTK's" if spec.name == "ifeval" else f"task {spec.name}: dataset {spec.dataset} "
    )
    with pytest.raises(ValueError, match=expected):
        build_tasks([spec], mirror=str(tmp_path))


def test_a_mirror_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task memo_trap: the mirror .*nowhere is no directory"):
        prompts("memo_trap", tmp_path / "nowhere")


def test_a_hub_of_ones_own(tmp_path: Path) -> None:
    """It has no converted branch, so the main one is read: there is no other place for the rows."""
    write_rows(tmp_path, "EdinburghNLP/xsum/data/test-00000-of-00001.jsonl", [{"document": "d", "summary": "s"}])
    script = (
        "import json; from parcontrol.leaderboard.registry import select;"
        "from parcontrol.leaderboard.task_data import find_rows; print(json.dumps(find_rows(select(['xsum'])[0])))"
    )
    with hub_server(tmp_path / "datasets/EdinburghNLP/xsum", "EdinburghNLP/xsum", "a" * 40) as server:
        environment = {**os.environ, "HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
    found = json.loads(done.stdout)
    assert found["path"] == "json"
    assert [Path(file).read_text() for file in found["data_files"]["test"]] == ['{"document": "d", "summary": "s"}\n']
    assert any("refs" in request for request in server.requests)


def test_the_real_hub_is_asked_for_the_named_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def list_repo_files(self: Any, repo: str, **options: Any) -> list[str]:
        asked.append((repo, options["revision"]))
        return ["default/test/0000.parquet"]

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", list_repo_files)
    monkeypatch.setattr("huggingface_hub.HfApi.hf_hub_download", lambda self, repo, file, **options: f"/{file}")
    assert find_rows(select(["xsum"])[0])["data_files"] == {"test": ["/default/test/0000.parquet"]}
    assert asked == [("EdinburghNLP/xsum", "refs/convert/parquet")]


# --- IFEval's tables ---


def test_ifeval_takes_its_tables_from_the_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk, "download", lambda *_: pytest.fail("nothing may be downloaded"))
    (tmp_path / "datasets/google").mkdir(parents=True)
    (tmp_path / "datasets/google/IFEval").symlink_to(SAMPLES / "datasets/google/IFEval")
    with pytest.raises(
        ValueError, match=f"task ifeval needs NLTK's {NLTK_TABLES}, .* put it into {tmp_path}/nltk_data"
    ):
        prompts("ifeval", tmp_path)
    (tmp_path / "nltk_data" / NLTK_TABLES).mkdir(parents=True)
    assert prompts("ifeval", tmp_path)[0] == "Describe the sea. Do not use any commas."


def test_tables_of_the_sample_set_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After a smoke run, IFEval in earnest still asks for the real ones."""
    monkeypatch.setattr(nltk.data, "path", [])
    assert len(prompts("ifeval", sample_set=True)) == 10
    with pytest.raises(ValueError, match="task ifeval needs NLTK's"):
        prompts("ifeval", tmp_path)


# --- the sample set ---


class Plain(ScriptedModel):
    """Says "No." to everything and finds short texts likelier."""

    def __init__(self) -> None:
        super().__init__(lambda prompt, how: "No.", lambda prompt, continuation: -len(continuation) / len(prompt))

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return [-100.0] * len(requests)


def test_the_sample_set_runs_whole() -> None:
    """Every task gives every metric that it is shown with, and a standard error for all but correlations."""
    specs = select(["demo"])
    built = build_tasks(specs, sample_set=True)
    with patch("lm_eval.evaluator.add_env_info"):
        results = simple_evaluate(Plain(), tasks=built.tasks, task_manager=built.task_manager)
    assert results is not None
    for spec in specs:
        metrics = results["results"][spec.name]
        assert 8 <= results["n-samples"][spec.name]["effective"] <= 12
        for column in spec.columns:
            if column.metric not in spec.scored_later:
                assert isinstance(metrics[f"{column.metric},{column.filter}"], float)
                if column.metric != "spearman":
                    assert isinstance(metrics[f"{column.metric}_stderr,{column.filter}"], float)
        assert results["configs"][spec.name]["metadata"]["sample_set"] is True


def test_the_sample_set_is_in_the_package_and_small() -> None:
    files = [file for file in SAMPLES.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".json", ".md"}  # what the package's data consist of
    assert sum(file.stat().st_size for file in files) < 200_000


# --- real rows ---


@pytest.mark.mirror
@pytest.mark.parametrize("task", ["nq_open", "truefalse", "memo_trap", "xsum", "halueval_qa", "halueval_summarization"])
def test_real_rows_come_from_the_mirror(task: str, mirror: Path) -> None:
    (spec,) = select([task])
    found = find_rows(spec, str(mirror))
    (file,) = found["data_files"][spec.split]
    assert Path(file).is_relative_to(mirror / "datasets" / spec.dataset)
    (built,) = build_tasks([spec], mirror=str(mirror)).tasks
    assert len(built.eval_docs) == parquet.read_metadata(file).num_rows
