"""Corpora for tests, and the slow, obvious way to the token stream that the data path must agree with."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zstandard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

EOS = "<|endoftext|>"


def byte_tokenizer(eos: str | None = EOS) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte, written out here, so that no library version changes its ids."""
    vocabulary = {symbol: index for index, symbol in enumerate([EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos)


def lines_of(texts: Iterable[str]) -> bytes:
    """The lines of a shard."""
    return b"".join(json.dumps({"text": text, "meta": {}}).encode() + b"\n" for text in texts)


def write_shard(path: Path, content: bytes, frames: int = 1) -> None:
    """Writes bytes as a zstd file of one or several frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cuts = [len(content) * index // frames for index in range(frames + 1)]
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    parts = [compressor.compress(content[start:end]) for start, end in itertools.pairwise(cuts)]
    path.write_bytes(b"".join(parts))


def write_corpus(folder: Path, shards: Sequence[Sequence[str]], validation: Sequence[str] = ("held out",)) -> Path:
    """Writes train shards 00, 01, … and the validation split."""
    for index, texts in enumerate(shards):
        write_shard(folder / f"train/{index:02d}.jsonl.zst", lines_of(texts))
    write_shard(folder / "val.jsonl.zst", lines_of(validation))
    return folder


class Expected(NamedTuple):
    """A document as the oracle sees it."""

    shard: str
    byte_start: int
    byte_end: int
    tokens: list[int]


def expected_documents(
    folder: Path, names: Sequence[str], tokenizer: PreTrainedTokenizerFast, seed: int
) -> list[Expected]:
    """All documents of the shards in the order of dealing, by whole-file operations only."""
    waiting = {name: _whole_shard(folder, name, tokenizer) for name in names}
    dealt: list[Expected] = []
    while any(waiting.values()):
        attempt = 0
        while True:
            key = f"deal/{seed}/{len(dealt)}/{attempt}"
            drawn = names[int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) % len(names)]
            if waiting[drawn]:
                break
            attempt += 1
        dealt.append(waiting[drawn].pop(0))
    return dealt


def expected_blocks(documents: Iterable[Expected], sequence_length: int) -> np.ndarray:
    """Everything that fills blocks [N, T]."""
    tokens = [token for document in documents for token in document.tokens]
    whole = len(tokens) - len(tokens) % sequence_length
    return np.array(tokens[:whole], dtype=np.int64).reshape(-1, sequence_length)


def expected_provenance(documents: Iterable[Expected], blocks: np.ndarray, names: Sequence[str]) -> Mapping[str, Any]:
    """What the provenance must be after these blocks."""
    zero = {"byte_start": 0, "byte_end": 0, "documents": 0, "tokens": 0}
    shards = {name: {"shard": name, **zero} for name in names}
    left = blocks.size
    for document in documents:
        if not left:
            break
        taken = min(left, len(document.tokens))
        shards[document.shard]["byte_end"] = document.byte_end
        shards[document.shard]["documents"] += taken > 0
        shards[document.shard]["tokens"] += taken
        left -= taken
    digest = bytes(32)
    for block in blocks.tolist():
        digest = hashlib.sha256(digest + b"".join(token.to_bytes(4, "little") for token in block)).digest()
    return {"shards": list(shards.values()), "tokens": blocks.size, "sha256": digest.hex()}


def _whole_shard(folder: Path, name: str, tokenizer: PreTrainedTokenizerFast) -> list[Expected]:
    with zstandard.open(folder / name, "rb") as file:
        content = file.read()
    documents, start = [], 0
    for line in content.splitlines(keepends=True):
        ids = tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"]
        documents.append(Expected(name, start, start + len(line), [*ids, tokenizer.eos_token_id] if ids else []))
        start += len(line)
    return documents
