"""The demonstration's corpus: what is in it, how it is split, and that nothing leaks."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parcontrol.config import DataConfig
from parcontrol.data import open_corpus
from parcontrol.data.documents import read_documents
from parcontrol.demo import corpus
from parcontrol.demo.corpus import (
    DOCUMENT_CHARACTERS,
    LONGEST_DOCUMENT,
    SHORTEST_DOCUMENT,
    Document,
    Source,
    build_corpus,
    cut,
    help_topics,
    split_documents,
    split_of,
    stdlib_sources,
)


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return [*stdlib_sources(), *help_topics()]


@pytest.fixture(scope="module")
def documents(sources: list[Source]) -> list[Document]:
    return split_documents(sources)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, documents: list[Document]) -> Path:
    """The corpus of this Python, in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "split_documents", lambda sources: documents)  # made already
        return build_corpus(tmp_path_factory.mktemp("cache"))


def path_in(split: str, suffix: str = "") -> str:
    """Returns a file name that falls into a split."""
    return next(f"{i}{suffix}.py" for i in range(1000) if split_of(f"{i}{suffix}.py") == split)


def prose(seed: str, words: int) -> str:
    """Returns words that no other seed has."""
    return " ".join(hashlib.sha256(f"{seed}{i}".encode()).hexdigest()[:8] for i in range(words))


# --- what is in it ---


def test_sources_are_the_standard_library_without_tests_and_tables(sources: list[Source]) -> None:
    paths = {source.path for source in sources}
    assert {"json/decoder.py", "argparse.py", "asyncio/tasks.py", "topics/if"} <= paths
    assert not [path for path in paths if re.search(r"(^|/)(tests?|idle_test|site-packages|encodings)/", path)]
    assert "pydoc_data/topics.py" not in paths
    assert not any("__pycache__" in path or "sysconfigdata" in path for path in paths)


def test_files_that_are_not_python_s_own_are_left_out(tmp_path: Path) -> None:
    for name in ("json/a.py", "json/tests/b.py", "site-packages/c.py", "sitecustomize.py", "abc.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"# -*- coding: latin-1 -*-\r\n# \xe9\n")
    found = stdlib_sources(tmp_path)
    assert [source.path for source in found] == ["abc.py", "json/a.py"]
    assert found[0].text == "# -*- coding: latin-1 -*-\n# é\n"


def test_it_is_large_enough_for_the_demonstration(documents: list[Document]) -> None:
    characters = {split: sum(len(d.text) for d in documents if d.split == split) for split in ("train", "val", "test")}
    # A token is at most about 4 characters; 8 of 30 shards are trained on.
    assert characters["train"] / 4 * 8 / 30 > 200_000
    assert characters["val"] / 4 > 60_000
    assert characters["test"] > 0


# --- splits ---


def test_a_file_is_in_one_split(documents: list[Document]) -> None:
    splits = defaultdict(set)
    for document in documents:
        splits[document.path].add(document.split)
    assert {len(found) for found in splits.values()} == {1}
    shares = [sum(split_of(f"file{i}.py") == split for i in range(5000)) / 5000 for split in ("val", "test")]
    assert shares == [pytest.approx(0.08, abs=0.02), pytest.approx(0.05, abs=0.02)]


def test_no_text_occurs_twice(documents: list[Document]) -> None:
    normalised = [" ".join(re.findall(r"\w+", document.text.casefold())) for document in documents]
    assert len(set(normalised)) == len(normalised)


def test_nothing_held_out_was_mostly_seen_elsewhere(documents: list[Document]) -> None:
    """Brute force over strings, against the tuples of the implementation."""

    def runs(document: Document) -> set[str]:
        words = re.findall(r"\w+", document.text.lower())
        return {" ".join(words[i : i + 13]) for i in range(max(1, len(words) - 12))}

    runs_of = {split: [runs(d) for d in documents if d.split == split] for split in ("train", "val", "test")}
    train = set().union(*runs_of["train"])
    seen = {"val": train, "test": train.union(*runs_of["val"])}
    for split, others in seen.items():
        assert max(len(own & others) / len(own) for own in runs_of[split]) < 0.5


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_copies_are_left_out_of_the_held_out_splits(held_out: str) -> None:
    original = prose("a", 200)
    words = original.split()
    sources = [
        Source(path_in("train"), original),
        Source(path_in(held_out, "exact"), original.upper().replace(" ", "  \n")),
        Source(path_in(held_out, "near"), " ".join([*words[:150], *prose("b", 50).split()])),
        Source(path_in(held_out, "partly"), " ".join([*words[:70], *prose("c", 130).split()])),
        Source(path_in(held_out, "other"), prose("d", 200)),
    ]
    kept = {document.path for document in split_documents(sources)}
    assert kept == {sources[0].path, sources[3].path, sources[4].path}


def test_test_documents_are_compared_with_validation_too() -> None:
    words = prose("a", 200).split()
    sources = [
        Source(path_in("val"), " ".join(words)),
        Source(path_in("test"), " ".join([*words[:150], *prose("b", 50).split()])),
    ]
    assert [document.path for document in split_documents(sources)] == [sources[0].path]


# --- documents ---


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "    "]), st.integers(1, 900), st.sampled_from(["\n", "\n\n", "\n \n\n"])),
        max_size=9,
    )
)
def test_cutting_loses_no_line_and_keeps_the_order(blocks: list[tuple[str, int, str]]) -> None:
    text = "".join(f"{indent}{prose(str(i), size // 9)}{end}" for i, (indent, size, end) in enumerate(blocks))
    parts = cut(text)

    def lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.strip()]

    kept = [line for part in parts for line in lines(part)]
    dropped = [line for line in lines(text) if line not in kept]
    assert [line for line in lines(text) if line in kept] == kept
    assert all(len(line) < SHORTEST_DOCUMENT for line in dropped)
    for part in parts:
        assert SHORTEST_DOCUMENT <= len(part) <= LONGEST_DOCUMENT
        assert len(part) <= DOCUMENT_CHARACTERS or "\n\n" not in part


def test_tables_are_dropped() -> None:
    table = "table = {\n" + "\n".join(f"    {i}: {prose(str(i), 3)!r}," for i in range(600)) + "\n}"
    function = f"def f():\n    return {prose('f', 300)!r}"
    assert len(table) > LONGEST_DOCUMENT
    assert cut(f"{function}\n\n\n{table}\n\n\n{function[::-1]}") == [function, function[::-1]]


def test_cuts_come_before_definitions() -> None:
    functions = [f"def f{i}():\n    x = 1\n\n    return '{prose(str(i), 300)}'" for i in range(6)]
    parts = cut("\n\n\n".join(functions))
    assert len(parts) > 1
    assert all(part.startswith("def f") for part in parts)


# --- files ---


def test_the_corpus_reads_like_the_pile(written: Path, documents: list[Document]) -> None:
    path = written
    assert path.parent.name == "corpora"
    assert path.name.startswith(f"python-stdlib-{platform.python_version()}-")
    train = open_corpus(DataConfig(repo=str(path), num_shards=30)).train_shards
    chosen = open_corpus(DataConfig(repo=str(path)))
    assert [shard.name for shard in train] == [f"train/{i:02}.jsonl.zst" for i in range(30)]
    assert len(chosen.train_shards) == 8
    texts = {
        "train": [document.text for shard in train for document in read_documents(shard)],
        "val": [document.text for shard in chosen.validation_shards for document in read_documents(shard)],
    }
    for split, written in texts.items():
        assert sorted(written) == sorted(d.text for d in documents if d.split == split)
    assert (path / "test.jsonl.zst").exists()


def test_another_process_writes_the_same_bytes(tmp_path: Path, written: Path) -> None:
    script = "import sys; from parcontrol.demo.corpus import build_corpus; print(build_corpus(sys.argv[1]))"
    command = [sys.executable, "-c", script, str(tmp_path)]
    # strings hash differently in every process unless told otherwise
    environment = os.environ | {"PYTHONHASHSEED": "random"}
    output = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
    other = Path(output.strip())
    assert other.name == written.name
    files = [path.relative_to(written) for path in written.rglob("*") if path.is_file()]
    assert len(files) == 30 + 3
    for file in files:
        assert (other / file).read_bytes() == (written / file).read_bytes(), file


def test_built_once_for_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    for seed in ("a", "b"):
        source = Source(path_in("train"), prose(seed, 200))
        monkeypatch.setattr(corpus, "stdlib_sources", lambda source=source: [source])
        monkeypatch.setattr(corpus, "help_topics", list)
        paths.append(build_corpus(tmp_path))
        before = {file: file.stat().st_mtime_ns for file in paths[-1].rglob("*")}
        assert build_corpus(tmp_path) == paths[-1]
        assert {file: file.stat().st_mtime_ns for file in paths[-1].rglob("*")} == before
    assert paths[0] != paths[1]
