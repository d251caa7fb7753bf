"""From shards to documents: zstd stream, lines, rows, and the order in which they are dealt.

Byte offsets count the uncompressed stream. A document's range is its line with the newline, so that the ranges of a
shard's documents join without gaps.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple, NoReturn

import orjson
import zstandard

from parcontrol.data.seeding import seeded_int
from parcontrol.data.source import READ_ERRORS, Shard, one_line

CHUNK_BYTES = 1 << 17
# Large enough to keep all cores busy in one call of the tokenizer, small enough to start at once.
BATCH_BYTES = 1 << 20


class Document(NamedTuple):
    """A row of a shard.

    Attributes:
        shard: Name of the shard.
        byte_start: Where its line starts in the uncompressed shard.
        byte_end: Where the next line starts.
        text: The row's `text`.
    """

    shard: str
    byte_start: int
    byte_end: int
    text: str


def read_documents(shard: Shard, start: int = 0) -> Iterator[Document]:
    """Yields a shard's documents from a byte offset on, reading only as far as is asked for.

    Args:
        shard: The shard to read.
        start: Offset of a line in the uncompressed stream. zstd has no random access, so what lies before is
            decompressed and dropped.

    Raises:
        ValueError: The shard cannot be read, is truncated or corrupt, or a line is no JSON object with a string `text`.
            The message names the shard and the byte offset.
    """
    for byte_start, byte_end, line in _lines(_skip(shard, start), start):
        yield Document(shard.name, byte_start, byte_end, _parse(shard, byte_start, line))


def deal(shards: Sequence[Iterator[Document]], seed: int, start: int = 0) -> Iterator[Document]:
    """Yields the documents of several shards in the order that the seed gives, until all shards have ended.

    The n-th document comes from a shard drawn uniformly; a draw that meets the end of its shard is repeated. That
    depends on n and the positions in the shards alone, which is all the state that a resume needs.

    Args:
        shards: The documents of each shard.
        seed: Seed of the order.
        start: Number of documents dealt before.
    """
    for number in itertools.count(start):
        document = _draw(shards, seed, number)
        if document is None:
            return
        yield document


def in_batches(documents: Iterable[Document]) -> Generator[list[Document]]:
    """Yields documents in batches of about BATCH_BYTES; those before an error come before it."""
    batch: list[Document] = []
    size = 0
    try:
        for document in documents:
            batch.append(document)
            size += document.byte_end - document.byte_start
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    except ValueError:
        yield batch
        raise
    if batch:
        yield batch


def _draw(shards: Sequence[Iterator[Document]], seed: int, number: int) -> Document | None:
    ended: set[int] = set()
    attempts = itertools.count()
    while len(ended) < len(shards):
        index = seeded_int("deal", seed, number, next(attempts)) % len(shards)
        document = next(shards[index], None)
        if document is not None:
            return document
        ended.add(index)
    return None


def _parse(shard: Shard, byte_start: int, line: bytes) -> str:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{shard.name}: the line at byte {byte_start} is not JSON: {one_line(error)}") from error
    if not isinstance(row, dict) or "text" not in row:
        found = f"has the fields {sorted(row)}" if isinstance(row, dict) else f"is a {type(row).__name__}"
        raise ValueError(f"{shard.name}: the row at byte {byte_start} has no 'text': it {found}")
    if not isinstance(row["text"], str):
        kind = type(row["text"]).__name__
        raise ValueError(f"{shard.name}: the 'text' of the row at byte {byte_start} is no string but a {kind}")
    return row["text"]


def _lines(chunks: Iterable[bytes], start: int) -> Iterator[tuple[int, int, bytes]]:
    """Yields start, end and content (without the newline) of each line."""
    unfinished: list[bytes] = []
    for chunk in chunks:
        lines = chunk.split(b"\n")
        if len(lines) == 1:
            unfinished.append(chunk)
            continue
        lines[0] = b"".join([*unfinished, lines[0]])
        unfinished = [lines.pop()]
        for line in lines:
            end = start + len(line) + 1
            yield start, end, line
            start = end
    last = b"".join(unfinished)
    if last:
        yield start, start + len(last), last


def _skip(shard: Shard, start: int) -> Iterator[bytes]:
    """Yields the uncompressed stream from `start` on, which must be where a line starts."""
    position = 0
    before = b"\n"  # the byte before `start`
    for chunk in _decompress(shard):
        skipped = min(len(chunk), start - position)
        if skipped:
            before = chunk[skipped - 1 : skipped]
            position += skipped
        if skipped < len(chunk):
            if before != b"\n":
                raise _not_the_same(shard, f"no line starts at byte {start}")
            yield chunk[skipped:]
    if position < start:
        raise _not_the_same(shard, f"it ends at byte {position}, before byte {start}")


def _not_the_same(shard: Shard, what: str) -> ValueError:
    return ValueError(f"{shard.name}: {what}: this is not the shard that was read before")


def _decompress(shard: Shard) -> Iterator[bytes]:
    """Yields the uncompressed stream of all frames of a shard."""
    # decompressobj rather than stream_reader, which ends without a word in a truncated frame.
    decompressor = zstandard.ZstdDecompressor()
    frame = None
    read = written = 0

    def fail(what: str, error: Exception | None = None) -> NoReturn:
        reason = f": {one_line(error)}" if error else ""
        raise ValueError(
            f"{shard.name}: {what} at byte {written} of its text (byte {read} of {shard.size} of the file){reason}"
        ) from error

    try:
        file = shard.open()
    except READ_ERRORS as error:
        fail("the file cannot be opened", error)
    with file:
        while True:
            try:
                compressed = file.read(CHUNK_BYTES)
            except READ_ERRORS as error:
                fail("the file cannot be read", error)
            if not compressed:
                break
            while compressed:
                if frame is None or frame.eof:
                    frame = decompressor.decompressobj()
                try:
                    text = frame.decompress(compressed)
                except zstandard.ZstdError as error:
                    fail("the zstd stream is corrupt", error)
                read += len(compressed) - len(frame.unused_data)
                compressed = frame.unused_data
                written += len(text)
                if text:
                    yield text
    if frame is None or not frame.eof:
        fail("the zstd stream is truncated")
    if read != shard.size:
        fail("the file has changed its length")
