"""A text corpus that every Python installation has: its standard library and help topics.

It is split by file before it is cut into documents and dealt to shards, freed of duplicates, and
written in the Pile's own layout, so that training on it takes the code path of the Pile.
"""

import hashlib
import json
import platform
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import decode_source
from pathlib import Path
from typing import Literal

import zstandard

from parcontrol.cache import build_once, cache_directory

Split = Literal["train", "val", "test"]

CORPUS_NAME = "Python stdlib"
TRAIN_SHARDS = 30  # as many as the Pile has, so that "8 of 30 shards" means the same here
HELD_OUT_PERCENT: dict[Split, int] = {"val": 8, "test": 5}
DOCUMENT_CHARACTERS = 6_000
SHORTEST_DOCUMENT = 200
LONGEST_DOCUMENT = 9_000  # more without a blank line is a table, such as that of all HTML entities
RUN_WORDS = 13  # the run length of GPT-3's and the Pile's own overlap filters
SKIPPED_PARTS = {"test", "tests", "idle_test", "encodings"}  # tests; generated character tables

README = """\
# Python standard library as a text corpus

The `.py` sources (without tests) and `pydoc` help topics of Python {version}, under the Python
Software Foundation License. Split by file, cut into documents, without exact duplicates; validation
and test documents of which at least half the {run_words}-word runs occur in another split are left
out. Layout of the Pile: `train/00..{last_shard}.jsonl.zst`, `val.jsonl.zst`, `test.jsonl.zst`.

| split | documents | characters |
|---|---|---|
{rows}
"""


@dataclass(frozen=True)
class Source:
    """One file or help topic: the unit that falls into a split as a whole."""

    path: str
    text: str


@dataclass(frozen=True)
class Document:
    """Part number `part` of a source."""

    split: Split
    path: str
    part: int
    text: str

    @property
    def order(self) -> str:
        """A key that shuffles documents in the same way on every machine."""
        return _digest(f"{self.path}#{self.part}")


def build_corpus(cache_dir: str | Path | None = None) -> Path:
    """Returns the directory of the corpus of this Python, written on the first call (about 4 MB).

    The name holds the Python version and a hash of the documents, so that a corpus found there is
    the one that would be written. `cache_dir` defaults to ``$PARCONTROL_CACHE`` or
    ``~/.cache/parcontrol``.
    """
    documents = split_documents([*stdlib_sources(), *help_topics()])
    fingerprint = _digest("".join(f"\0{d.split}\0{d.path}\0{d.part}\0{d.text}" for d in documents))
    name = f"python-stdlib-{platform.python_version()}-{fingerprint[:12]}"
    target = cache_directory(cache_dir) / "corpora" / name
    return build_once(target, lambda directory: write_corpus(documents, directory))


def stdlib_sources(root: Path | None = None) -> list[Source]:
    """Reads the standard library's sources below `root` (this Python's), sorted by path."""
    root = root or Path(sysconfig.get_path("stdlib"))
    paths = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    return [
        Source(path.as_posix(), decode_source((root / path).read_bytes()))
        for path in paths
        if path.parts[0].removesuffix(".py") in sys.stdlib_module_names
        and path.as_posix() != "pydoc_data/topics.py"  # comes as help topics
        and not SKIPPED_PARTS.intersection(path.parts)
    ]


def help_topics() -> list[Source]:
    """Returns the language reference as ``help()`` shows it, one source for each topic."""
    from pydoc_data.topics import topics

    return [Source(f"topics/{name}", text) for name, text in sorted(topics.items())]


def split_documents(sources: Iterable[Source]) -> list[Document]:
    """Cuts sources into documents, each in the split of its source, without duplicates.

    The order is shuffled, and the same on every machine.
    """
    documents = [
        Document(split_of(source.path), source.path, part, text)
        for source in sources
        for part, text in enumerate(cut(source.text))
    ]
    documents = without_exact_duplicates(documents)
    train, val, test = ([d for d in documents if d.split == s] for s in ("train", "val", "test"))
    val = without_overlap(val, train)
    test = without_overlap(test, [*train, *val])
    return sorted([*train, *val, *test], key=lambda document: document.order)


def split_of(path: str) -> Split:
    """Returns the split of a file: a function of its path alone."""
    percentile = int(_digest(path), 16) % 100
    if percentile < HELD_OUT_PERCENT["val"]:
        return "val"
    return "test" if percentile < sum(HELD_OUT_PERCENT.values()) else "train"


def cut(text: str) -> list[str]:
    """Cuts a text at blank lines into parts of about `DOCUMENT_CHARACTERS`.

    Cuts before an unindented line (a top-level definition) are preferred; within a longer block
    any blank line serves. Parts shorter than `SHORTEST_DOCUMENT` or longer than `LONGEST_DOCUMENT`
    are dropped.
    """
    blocks = []
    for block in re.split(r"\n\s*\n(?=\S)", text):
        blocks += [block] if len(block) <= DOCUMENT_CHARACTERS else re.split(r"\n[ \t]*\n", block)
    parts = [""]
    for block in blocks:
        if parts[-1] and len(parts[-1]) + len(block) > DOCUMENT_CHARACTERS:
            parts.append("")
        parts[-1] += f"\n\n{block}" if parts[-1] else block
    stripped = (part.strip("\n") for part in parts)
    return [part for part in stripped if SHORTEST_DOCUMENT <= len(part) <= LONGEST_DOCUMENT]


def words(text: str) -> list[str]:
    """Returns a text's words without case, spacing and punctuation."""
    return re.findall(r"\w+", text.lower())


def without_exact_duplicates(documents: Iterable[Document]) -> list[Document]:
    """Keeps the first document of each normalised text; train goes before val before test."""
    splits = ("train", "val", "test")
    first: dict[str, Document] = {}
    for document in sorted(documents, key=lambda d: (splits.index(d.split), d.path, d.part)):
        first.setdefault(_digest(" ".join(words(document.text))), document)
    return list(first.values())


def without_overlap(held_out: list[Document], others: Iterable[Document]) -> list[Document]:
    """Leaves out held-out documents of which half the word runs, or more, stand in `others`."""
    runs_of = [word_runs(document.text) for document in held_out]
    wanted = set().union(*runs_of)  # keeps the memory at the size of the held-out part
    seen = {run for other in others for run in word_runs(other.text) if run in wanted}
    return [document for document, runs in zip(held_out, runs_of, strict=True) if 2 * len(runs & seen) < len(runs)]


def word_runs(text: str) -> set[tuple[str, ...]]:
    """Returns all runs of `RUN_WORDS` consecutive words; a shorter text is one run."""
    sequence = words(text)
    last_start = max(len(sequence) - RUN_WORDS, 0)
    return {tuple(sequence[start : start + RUN_WORDS]) for start in range(last_start + 1)}


def write_corpus(documents: list[Document], directory: Path) -> None:
    """Writes documents in the Pile's layout, with a README that says what they are."""
    train = [d for d in documents if d.split == "train"]
    held_out = {s: [d for d in documents if d.split == s] for s in ("val", "test")}
    for shard in range(TRAIN_SHARDS):
        _write_shard(train[shard::TRAIN_SHARDS], directory / "train" / f"{shard:02}.jsonl.zst")
    for split, part in held_out.items():
        _write_shard(part, directory / f"{split}.jsonl.zst")
    rows = "\n".join(
        f"| {split} | {len(part)} | {sum(len(d.text) for d in part)} |"
        for split, part in {"train": train, **held_out}.items()
    )
    text = README.format(
        version=platform.python_version(),
        run_words=RUN_WORDS,
        last_shard=TRAIN_SHARDS - 1,
        rows=rows,
    )
    (directory / "README.md").write_text(text, encoding="utf-8")


def _lines(documents: Iterable[Document]) -> Iterator[bytes]:
    for document in documents:
        meta = {"pile_set_name": CORPUS_NAME, "path": document.path, "part": document.part}
        yield json.dumps({"text": document.text, "meta": meta}, ensure_ascii=False).encode() + b"\n"


def _write_shard(documents: Iterable[Document], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(zstandard.ZstdCompressor(level=10).compress(b"".join(_lines(documents))))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
