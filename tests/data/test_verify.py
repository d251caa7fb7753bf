"""Replaying a run's data finds what the run recorded, or says what differs."""

import json
from collections.abc import Callable, Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parcontrol.config import RunConfig
from parcontrol.data import TrainStream, open_corpus, tokenizer_sha256, verify_run
from parcontrol.runs import RunDirectory
from tests.data.corpora import lines_of, write_shard

Change = Callable[[Any], None]


@pytest.fixture
def recorded(tmp_path: Path, tiny_corpus_dir: Path, tiny_model_dir: Path) -> RunDirectory:
    """A run directory as a training of three steps leaves it."""
    from transformers import AutoTokenizer

    corpus_dir = tmp_path / "corpus"
    for path in tiny_corpus_dir.rglob("*.zst"):
        copy = corpus_dir / path.relative_to(tiny_corpus_dir)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    config = RunConfig.model_validate(
        {
            "model": {"name": str(tiny_model_dir)},
            "data": {"repo": str(corpus_dir), "num_shards": 3, "sequence_length": 64},
            "training": {"tokens_per_run": 64 * 16 * 3, "warmup_tokens": 0},
            "output_dir": str(tmp_path / "run"),
        }
    )
    corpus, tokenizer = open_corpus(config.data), AutoTokenizer.from_pretrained(tiny_model_dir)
    with (
        RunDirectory.open_for_training(config) as run,
        TrainStream(corpus, tokenizer, sequence_length=64, seed=config.data.seed, num_workers=0) as stream,
    ):
        run.write_meta({"dataset_revision": corpus.revision, "tokenizer_sha256": tokenizer_sha256(tokenizer)})
        for step in range(1, 4):
            stream.next_blocks(16)
            run.append_provenance({"step": step, **stream.provenance()})
    return RunDirectory(run.path)


def change_record(run: RunDirectory, index: int, change: Change) -> None:
    path = run.path / "provenance.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    change(records[index])
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def change_meta(run: RunDirectory, change: Change) -> None:
    meta = run.read_meta()
    change(meta)
    (run.path / "meta.json").write_text(json.dumps(meta))


def test_a_true_record_is_confirmed(recorded: RunDirectory) -> None:
    verified = verify_run(recorded)
    assert (verified.step, verified.records) == (3, 3)
    assert {"step": 3, **verified.provenance} == recorded.read_provenance()[-1]
    assert verified.provenance["tokens"] == 3 * 16 * 64


def test_an_interrupted_run_is_confirmed_as_far_as_it_came(recorded: RunDirectory) -> None:
    path = recorded.path / "provenance.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:30])
    assert verify_run(recorded).step == 2


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (2, lambda r: r.update(sha256="00" * 32), "step 3: sha256 of the token stream: the run recorded '0000"),
        (1, lambda r: r["shards"][0].update(byte_end=7), r"step 2: byte_end of train/0\d.* recorded 7, the replay"),
        (1, lambda r: r["shards"][2].update(documents=0), r"step 2: documents of train/0\d.* recorded 0, the replay"),
        (0, lambda r: r["shards"][1].update(shard="x"), r"step 1: shard of train/0\d.* recorded 'x', the replay"),
        (0, lambda r: r["shards"][1].pop("tokens"), r"step 1: tokens of train/0\d.* recorded None, the replay"),
        (0, lambda r: r["shards"].pop(), "step 1: number of shards: the run recorded 2, the replay finds 3"),
        (1, lambda r: r.update(tokens=64 * 16 + 1), "step 2 cannot have ended at 1025 tokens"),
        (1, lambda r: r.update(tokens=64), "step 2 cannot have ended at 64 tokens"),
        (1, lambda r: r.update(tokens=64 * 17), "step 2 cannot have ended at 1088 tokens"),
        (1, lambda r: r.update(tokens=64 * 16, step=1), "step 1 cannot have ended at 1024 tokens"),
        (2, lambda r: r.update(step=4), "step 4 cannot have ended at 3072 tokens"),
        (1, lambda r: r.pop("shards"), "the provenance of step 2 lacks shards"),
        (2, lambda r: r.update(tokens=1024 * 10**6, step=10**6), "smaller than the token budget"),
    ],
)
def test_the_first_difference_in_a_record_is_named(
    recorded: RunDirectory, index: int, change: Change, message: str
) -> None:
    change_record(recorded, index, change)
    with pytest.raises(ValueError, match=message):
        verify_run(recorded)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of each number and string in a record."""
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(child, (*path, key))
    else:
        yield path


@given(data=st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_other_value_in_any_record_is_noticed(recorded: RunDirectory, data: st.DataObject) -> None:
    good = (recorded.path / "provenance.jsonl").read_bytes()
    index = data.draw(st.integers(0, 2))

    def change(record: Any) -> None:
        *path, last = data.draw(st.sampled_from(list(leaves(record))))
        place = reduce(getitem, path, record)
        other = st.integers(-1, 10**6) if isinstance(place[last], int) else st.text("0123456789abcdef/.", max_size=64)
        place[last] = data.draw(other.filter(lambda value: value != place[last]))

    try:
        change_record(recorded, index, change)
        with pytest.raises(ValueError, match=r"step|smaller than the token budget"):
            verify_run(recorded)
    finally:
        (recorded.path / "provenance.jsonl").write_bytes(good)


@given(data=st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_other_character_in_what_was_read_is_noticed(recorded: RunDirectory, data: st.DataObject) -> None:
    """In any document of any shard that was used to its end."""
    account = data.draw(st.sampled_from(recorded.read_provenance()[-1]["shards"]))
    path = Path(recorded.read_config().data.repo) / account["shard"]
    good = path.read_bytes()
    with zstandard.open(path, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    number = data.draw(st.integers(0, account["documents"] - 2))
    place = data.draw(st.integers(0, len(texts[number]) - 1))
    character = data.draw(st.sampled_from("abcXYZ019 .").filter(lambda c: c != texts[number][place]))
    texts[number] = texts[number][:place] + character + texts[number][place + 1 :]
    try:
        write_shard(path, lines_of(texts))
        with pytest.raises(ValueError, match=r"step \d: .* the run recorded .*, the replay finds"):
            verify_run(recorded)
    finally:
        path.write_bytes(good)


def test_another_tokenizer_is_named(recorded: RunDirectory) -> None:
    change_meta(recorded, lambda meta: meta.update(tokenizer_sha256="abc"))
    with pytest.raises(ValueError, match=r"tokenizer_sha256: the run recorded 'abc', the replay finds '"):
        verify_run(recorded)


def test_a_revision_that_cannot_be_had_is_named(recorded: RunDirectory) -> None:
    change_meta(recorded, lambda meta: meta.update(dataset_revision="abcdef"))
    with pytest.raises(ValueError, match=r"data.revision 'abcdef' cannot be had from"):
        verify_run(recorded)


@pytest.mark.parametrize("key", ["dataset_revision", "tokenizer_sha256"])
def test_what_meta_lacks_is_named(recorded: RunDirectory, key: str) -> None:
    change_meta(recorded, lambda meta: meta.pop(key))
    with pytest.raises(ValueError, match=rf"meta.json has no '{key}'"):
        verify_run(recorded)


def test_a_corpus_that_changed_is_noticed(recorded: RunDirectory) -> None:
    first = recorded.read_provenance()[0]["shards"][0]["shard"]
    folder = Path(recorded.read_config().data.repo)
    texts = [f"document {n} of a changed shard, " * 20 for n in range(40)]
    write_shard(folder / first, lines_of(texts))
    with pytest.raises(ValueError, match=r"step 1: .* the run recorded .*, the replay finds"):
        verify_run(recorded)


def test_a_run_without_records_is_refused(recorded: RunDirectory) -> None:
    (recorded.path / "provenance.jsonl").unlink()
    with pytest.raises(ValueError, match="has no provenance records"):
        verify_run(recorded)


def test_a_model_that_is_gone_is_named(recorded: RunDirectory) -> None:
    config = (recorded.path / "config.yaml").read_text()
    name = recorded.read_config().model.name
    (recorded.path / "config.yaml").write_text(config.replace(name, "someone/gone"))
    with pytest.raises(ValueError, match="the tokenizer of 'someone/gone' cannot be loaded"):
        verify_run(recorded)


def test_the_tokenizer_is_loaded_at_the_commit_that_the_run_started_from(
    recorded: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    asked, load = [], AutoTokenizer.from_pretrained

    def note(source: Path, revision: str | None) -> Any:
        asked.append(revision)
        return load(source)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", note)
    verify_run(recorded)
    change_meta(recorded, lambda meta: meta.update(model_revision="0123abc"))
    verify_run(recorded)
    assert asked == [None, "0123abc"]
