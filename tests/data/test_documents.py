"""From shards to documents: byte ranges, bad input, and the order of dealing."""

import json
import re
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from parcontrol.data.documents import BATCH_BYTES, Document, deal, in_batches, read_documents
from parcontrol.data.source import Shard
from tests.data.corpora import lines_of, write_shard

NAME = "train/00.jsonl.zst"


def shard_at(path: Path) -> Shard:
    return Shard(NAME, str(path), path.stat().st_size, LocalFileSystem())


def shard_of(folder: Path, content: bytes, frames: int = 1) -> Shard:
    write_shard(folder / NAME, content, frames)
    return shard_at(folder / NAME)


@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=50), max_size=20),
    frames=st.integers(1, 4),
    last_newline=st.booleans(),
)
def test_texts_and_byte_ranges(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], frames: int, last_newline: bool
) -> None:
    content = lines_of(texts)
    if not last_newline:
        content = content.removesuffix(b"\n")
    shard = shard_of(tmp_path_factory.mktemp("shard"), content, frames)
    documents = list(read_documents(shard))
    assert [document.text for document in documents] == texts
    assert b"".join(content[d.byte_start : d.byte_end] for d in documents) == content, "the ranges join without gaps"
    for document in documents:
        assert json.loads(content[document.byte_start : document.byte_end])["text"] == document.text
        assert document.shard == NAME
        assert list(read_documents(shard, document.byte_start)) == documents[documents.index(document) :]
    assert list(read_documents(shard, len(content))) == []


def test_lines_longer_than_what_is_read_at_a_time(tmp_path: Path) -> None:
    texts = ["short", "x" * 3_000_000, "", "y" * 700_000, "z"]
    shard = shard_of(tmp_path, lines_of(texts))
    documents = list(read_documents(shard))
    assert [document.text for document in documents] == texts
    assert list(read_documents(shard, documents[2].byte_start)) == documents[2:]


def test_a_skippable_frame_is_skipped(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, lines_of(["a"]))
    path = tmp_path / NAME
    path.write_bytes(struct.pack("<II", 0x184D2A50, 4) + b"meta" + path.read_bytes())
    assert [document.text for document in read_documents(shard_at(path))] == ["a"]
    assert shard.size < path.stat().st_size


def read_until_error(shard: Shard) -> tuple[list[Document], str]:
    """The documents before the error that there must be, and its message."""
    got: list[Document] = []
    try:
        for document in read_documents(shard):
            got.append(document)
    except ValueError as error:
        return got, str(error)
    pytest.fail(f"the end of a bad file looked like the end of a good one, after {len(got)} documents")


GOOD = lines_of(["first", "second"])
BAD_LINES = {
    "not JSON": (b"{oops}\n", "is not JSON"),
    "two rows on a line": (b'{"text": "a"} {"text": "b"}\n', "is not JSON"),
    "an empty line": (b"\n", "is not JSON"),
    "no UTF-8": (b'{"text": "\xff"}\n', "is not JSON"),
    "half a surrogate": (b'{"text": "\\ud800"}\n', "is not JSON"),
    "no text": (b'{"meta": {}, "body": "a"}\n', r"has no 'text': it has the fields \['body', 'meta'\]"),
    "no object": (b'["text"]\n', "has no 'text': it is a list"),
    "text is null": (b'{"text": null}\n', "is no string but a NoneType"),
    "text is a number": (b'{"text": 7}\n', "is no string but a int"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named_with_its_offset_after_the_good_ones(tmp_path: Path, case: str) -> None:
    line, reason = BAD_LINES[case]
    documents = read_documents(shard_of(tmp_path, GOOD + line + GOOD))
    assert [next(documents).text, next(documents).text] == ["first", "second"]
    with pytest.raises(ValueError, match=rf"{NAME}: .*byte {len(GOOD)} .*{reason}") as error:
        next(documents)
    assert "\n" not in str(error.value)


BAD_FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda good: good[: len(good) * 3 // 4], "truncated"),
    "last byte missing": (lambda good: good[:-1], "truncated"),
    "truncated in a second frame": (lambda good: good + good[:-1], "truncated"),
    "empty": (lambda good: b"", "truncated"),
    "a flipped bit": (lambda good: good[:-100] + bytes([good[-100] ^ 1]) + good[-99:], "corrupt"),
    "something else behind": (lambda good: good + b"not zstd", "corrupt"),
    "no zstd at all": (lambda good: b'{"text": "plain"}\n', "corrupt"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named_with_its_offsets(tmp_path: Path, case: str) -> None:
    spoil, reason = BAD_FILES[case]
    texts = [f"{index * 7919 % 10007} and some more text" for index in range(100_000)]
    write_shard(tmp_path / NAME, lines_of(texts))
    spoiled = spoil((tmp_path / NAME).read_bytes())
    (tmp_path / NAME).write_bytes(spoiled)
    _, error = read_until_error(shard_at(tmp_path / NAME))
    assert re.fullmatch(rf"{NAME}: .*{reason}.* byte \d+ of .* of {len(spoiled)} of .*", error), error


def test_documents_before_a_truncation_are_good(tmp_path: Path) -> None:
    texts = [f"{index * 7919 % 10007} and some more text" for index in range(100_000)]
    write_shard(tmp_path / NAME, lines_of(texts))
    good = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(good[: len(good) // 2])
    got, error = read_until_error(shard_at(tmp_path / NAME))
    assert 0 < len(got) < len(texts)
    assert [document.text for document in got] == texts[: len(got)]
    offset = int(error.split("truncated at byte ")[1].split()[0])
    next_line = len(lines_of(texts[len(got) : len(got) + 1]))
    assert got[-1].byte_end <= offset <= got[-1].byte_end + next_line, "the offset is where the text ends"


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, GOOD)
    (tmp_path / NAME).unlink()
    with pytest.raises(ValueError, match=rf"{NAME}: the file cannot be opened at byte 0"):
        next(read_documents(shard))


def test_a_file_that_grew_is_refused(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, GOOD)
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes() * 2)
    with pytest.raises(ValueError, match="the file has changed its length"):
        list(read_documents(shard))


@pytest.mark.parametrize("start", [1, len(GOOD) - 1, len(GOOD) + 1])
def test_going_on_in_another_file_than_before_is_refused(tmp_path: Path, start: int) -> None:
    with pytest.raises(ValueError, match="not the shard that was read before"):
        list(read_documents(shard_of(tmp_path, GOOD), start))


def numbered(shard: str, count: int) -> list[Document]:
    return [Document(shard, index, index + 1, f"{shard}{index}") for index in range(count)]


def test_the_order_of_dealing_is_pinned() -> None:
    dealt = deal([iter(numbered(shard, 4)) for shard in "abc"], seed=42)
    assert " ".join(document.text for document in dealt) == "a0 b0 c0 c1 c2 b1 c3 b2 a1 a2 a3 b3"


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8), seed=st.integers(0, 99), data=st.data())
def test_dealing_goes_on_from_anywhere(sizes: list[int], seed: int, data: st.DataObject) -> None:
    shards = [numbered(str(index), size) for index, size in enumerate(sizes)]
    whole = list(deal([iter(shard) for shard in shards], seed))
    assert sorted(whole) == sorted(document for shard in shards for document in shard)
    for index, shard in enumerate(shards):
        assert [document for document in whole if document.shard == str(index)] == shard, "a shard's order stays"
    cut = data.draw(st.integers(0, len(whole)))
    used = Counter(document.shard for document in whole[:cut])
    rest = [iter(shard[used[str(index)] :]) for index, shard in enumerate(shards)]
    assert list(deal(rest, seed, start=cut)) == whole[cut:]


def test_dealing_takes_from_all_shards_alike() -> None:
    shards = [iter(numbered(str(index), 10_000)) for index in range(8)]
    dealt = Counter(document.shard for document, _ in zip(deal(shards, seed=1), range(8000), strict=False))
    # 1000 each, standard deviation sqrt(8000 * 1/8 * 7/8) = 29.6: five of them.
    assert all(abs(count - 1000) < 148 for count in dealt.values()), dealt


def test_batches_keep_what_comes_before_an_error() -> None:
    def documents():
        yield from numbered("a", 3)
        raise ValueError("bad")

    batches = in_batches(documents())
    assert next(batches) == numbered("a", 3)
    with pytest.raises(ValueError, match="bad"):
        next(batches)


def test_batches_are_bounded_by_text() -> None:
    documents = [Document("a", 0, BATCH_BYTES // 3, "") for _ in range(10)]
    assert [len(batch) for batch in in_batches(documents)] == [4, 4, 2]


def test_zstandard_reader_alone_would_not_notice_a_truncation(tmp_path: Path) -> None:
    """Why the data path has its own loop over frames."""
    write_shard(tmp_path / NAME, lines_of([str(index) for index in range(100_000)]))
    whole = (tmp_path / NAME).read_bytes()
    reader = zstandard.ZstdDecompressor().stream_reader(whole[: len(whole) // 2])
    assert 0 < len(reader.read()) < len(lines_of([str(index) for index in range(100_000)]))
