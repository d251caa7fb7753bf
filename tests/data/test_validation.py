"""The validation set: fixed, in order, with the document of each token."""

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from parcontrol.config import DataConfig
from parcontrol.data import Corpus, ValidationSet, load_validation, open_corpus
from tests.data.corpora import byte_tokenizer, expected_provenance, lines_of, write_corpus, write_shard

TEXTS = ["first", "", "the second, a longer one", "third", "4", "the fifth and last"]
TOKENIZER = byte_tokenizer()
TOKENS = sum(len(text) + 1 for text in TEXTS if text)


def corpus_with(folder: Path, validation: list[str]) -> Corpus:
    return open_corpus(DataConfig(repo=str(write_corpus(folder, [["train"]], validation)), num_shards=1))


def load(corpus: Corpus, tokens: int, sequence_length: int = 8) -> ValidationSet:
    return load_validation(corpus, TOKENIZER, sequence_length=sequence_length, tokens=tokens)


@pytest.mark.parametrize("tokens", [8, 9, 30, TOKENS - 1, TOKENS])
def test_blocks_and_documents(tmp_path: Path, tokens: int) -> None:
    validation = load(corpus_with(tmp_path, TEXTS), tokens)
    flat = [
        (token, document)
        for document, text in enumerate(text for text in TEXTS if text)
        for token in [*TOKENIZER(text)["input_ids"], TOKENIZER.eos_token_id]
    ][: tokens // 8 * 8]
    assert validation.blocks.shape == validation.document_ids.shape == (tokens // 8, 8)
    assert validation.blocks.dtype == validation.document_ids.dtype == np.int64
    assert list(zip(validation.blocks.ravel(), validation.document_ids.ravel(), strict=True)) == flat
    assert validation.documents == len({document for _, document in flat})
    assert validation.sha256 == expected_provenance([], validation.blocks, [])["sha256"]


def test_it_is_a_head_of_the_split(tmp_path: Path) -> None:
    corpus = corpus_with(tmp_path, TEXTS)
    small, large = load(corpus, 16), load(corpus, 48)
    np.testing.assert_array_equal(small.blocks, large.blocks[:2])
    assert small.sha256 != large.sha256


def test_it_reads_several_shards_in_order(tmp_path: Path) -> None:
    one = corpus_with(tmp_path / "one", TEXTS)
    several = corpus_with(tmp_path / "several", [])
    (tmp_path / "several/val.jsonl.zst").unlink()
    for index, text in enumerate(TEXTS):
        write_shard(tmp_path / f"several/val/{index}.jsonl.zst", lines_of([text]))
    several = open_corpus(DataConfig(repo=str(tmp_path / "several"), num_shards=1))
    assert load(several, TOKENS).sha256 == load(one, TOKENS).sha256


def test_fewer_tokens_than_asked_for_is_an_error(tmp_path: Path) -> None:
    corpus = corpus_with(tmp_path, TEXTS)
    with pytest.raises(ValueError, match=rf"\(val\.jsonl\.zst\) has only {TOKENS} tokens, and {TOKENS + 1} validation"):
        load(corpus, TOKENS + 1)


@pytest.mark.parametrize("texts", [[], [""]])
def test_an_empty_split_is_an_error(tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"\(val\.jsonl\.zst\) is empty"):
        load(corpus_with(tmp_path, texts), 8)


def test_less_than_a_block_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"7 validation tokens do not fill one block of data.sequence_length 8"):
        load(corpus_with(tmp_path, TEXTS), 7)


def test_a_bad_line_is_an_error_where_it_is_needed(tmp_path: Path) -> None:
    corpus_with(tmp_path, TEXTS)
    good = lines_of(TEXTS[:3])
    write_shard(tmp_path / "val.jsonl.zst", good + b"oops\n")
    corpus = open_corpus(DataConfig(repo=str(tmp_path), num_shards=1))
    assert load(corpus, 24).blocks.size == 24
    with pytest.raises(ValueError, match=rf"val\.jsonl\.zst: the line at byte {len(good)} is not JSON"):
        load(corpus, 40)


def test_the_tiny_corpus(tiny_corpus_dir: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    corpus = open_corpus(DataConfig(repo=str(tiny_corpus_dir)))
    validation = load_validation(corpus, tiny_tokenizer, sequence_length=64, tokens=1000)
    ends = validation.blocks.ravel() == tiny_tokenizer.eos_token_id
    assert (np.diff(validation.document_ids.ravel()) == ends[:-1]).all(), "a new document begins behind each EOS"


@pytest.mark.mirror
@pytest.mark.model
def test_the_split_of_the_mirror_has_the_tokens_that_its_card_says(mirror: Path, smollm2_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    corpus = open_corpus(DataConfig(mirror=str(mirror)))
    documents, tokens = 2_194, 1_492_160  # counted without the data path, EOS not included
    with pytest.raises(ValueError, match=rf"has only {tokens + documents} tokens"):
        load_validation(corpus, tokenizer, sequence_length=1024, tokens=10_000_000)
    assert load_validation(corpus, tokenizer, sequence_length=1024, tokens=1_000_000).blocks.shape == (976, 1024)
