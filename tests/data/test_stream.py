"""The token stream: against the slow way, in any portions, with any workers, resumed anywhere, and with bad input."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from parcontrol.config import DataConfig
from parcontrol.data import Corpus, TrainStream, documents, open_corpus, tokenizer_sha256
from tests.data.corpora import (
    byte_tokenizer,
    expected_blocks,
    expected_documents,
    expected_provenance,
    lines_of,
    write_corpus,
    write_shard,
)

T = 16
SEED = 42
# Shards of different lengths, with empty documents in places where a block may end.
SHARDS = [
    [f"shard {shard}, document {number}: " + "blah é " * ((shard * 7 + number * 5) % 11) for number in range(count)]
    for shard, count in enumerate([12, 3, 30, 1])
]
SHARDS[0][3:3] = ["", ""]
SHARDS[2].append("")
NAMES = [f"train/{index:02d}.jsonl.zst" for index in range(len(SHARDS))]
TOKENIZER = byte_tokenizer()


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("parcontrol")]
    assert not left, left


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), SHARDS)


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return open_corpus(DataConfig(repo=str(folder), num_shards=len(SHARDS)))


@pytest.fixture(scope="module", autouse=True)
def _small_batches() -> Iterator[None]:
    """Batches of a few documents, so that a small corpus has many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "BATCH_BYTES", 300)
        yield


@pytest.fixture(params=[0, 1, 3], ids=lambda workers: f"{workers} workers")
def workers(request: pytest.FixtureRequest) -> int:
    return request.param


def open_stream(corpus: Corpus, num_workers: int = 1, tokenizer: Any = TOKENIZER, **options: Any) -> TrainStream:
    return TrainStream(corpus, tokenizer, **{"sequence_length": T, "seed": SEED, "num_workers": num_workers, **options})


def take_all(stream: TrainStream) -> tuple[list[np.ndarray], str]:
    """Block after block until the error that ends the stream, and its message."""
    blocks = []
    try:
        while True:
            blocks.append(stream.next_blocks(1))
    except ValueError as error:
        return blocks, str(error)


def test_the_stream_is_what_the_slow_way_gives(folder: Path, corpus: Corpus, workers: int) -> None:
    dealt = expected_documents(folder, NAMES, TOKENIZER, SEED)
    blocks = expected_blocks(dealt, T)
    with open_stream(corpus, workers) as stream:
        for index, block in enumerate(blocks, 1):
            got = stream.next_blocks(1)
            assert got.dtype == np.int64
            np.testing.assert_array_equal(got, block[None])
            assert stream.provenance() == expected_provenance(dealt, blocks[:index], NAMES)
        with pytest.raises(ValueError, match="smaller than the token budget") as error:
            stream.next_blocks(1)
        assert stream.provenance() == expected_provenance(dealt, blocks, NAMES), "nothing more was handed out"
    tokens = sum(len(document.tokens) for document in dealt)
    assert f"end after {tokens} tokens" in str(error.value)
    assert f"the 4 chosen train shards of {folder} ({', '.join(NAMES)})" in str(error.value)


def test_the_stream_is_pinned(corpus: Corpus) -> None:
    """Another hash means another token stream for every run that was ever recorded."""
    with open_stream(corpus) as stream:
        stream.next_blocks(100)
        assert stream.provenance()["sha256"] == "da34b8fe9aa9fe0d44cee1446f7ceb6092faf11cd3c8f6f687bdf786cbd32050"


def test_every_token_is_text_or_the_eos_behind_it(corpus: Corpus) -> None:
    with open_stream(corpus) as stream:
        tokens = np.concatenate(take_all(stream)[0]).ravel().tolist()
    texts = TOKENIZER.decode(tokens).split("<|endoftext|>")
    written = [text for shard in SHARDS for text in shard if text]
    assert sorted(texts[:-1]) == sorted(set(written) & set(texts[:-1])), "whole documents, no empty ones"
    assert len(texts) >= len(written) - 1
    assert any(text.startswith(texts[-1]) for text in written), "the last one is cut where the blocks end"


@given(
    shards=st.lists(st.lists(st.text("ab é\n", max_size=40), min_size=1, max_size=12), min_size=1, max_size=4),
    sequence_length=st.integers(2, 40),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
@settings(max_examples=60)
def test_any_corpus_is_packed_as_the_slow_way_packs_it(
    tmp_path_factory: pytest.TempPathFactory,
    shards: list[list[str]],
    sequence_length: int,
    seed: int,
    data: st.DataObject,
) -> None:
    """Every token once, in order, EOS behind each document; in one go, and resumed at any block."""
    folder = write_corpus(tmp_path_factory.mktemp("corpus"), shards)
    names = [f"train/{index:02d}.jsonl.zst" for index in range(len(shards))]
    corpus = open_corpus(DataConfig(repo=str(folder), num_shards=len(shards)))
    dealt = expected_documents(folder, names, TOKENIZER, seed)
    blocks = expected_blocks(dealt, sequence_length)
    cut = data.draw(st.integers(0, len(blocks)))
    with open_stream(corpus, 0, sequence_length=sequence_length, seed=seed) as stream:
        np.testing.assert_array_equal(stream.next_blocks(cut), blocks[:cut])
        assert stream.provenance() == expected_provenance(dealt, blocks[:cut], names)
        state = json.loads(json.dumps(stream.state_dict()))
    with open_stream(corpus, 1, sequence_length=sequence_length, seed=seed, state=state) as stream:
        np.testing.assert_array_equal(stream.next_blocks(len(blocks) - cut), blocks[cut:])
        assert stream.provenance() == expected_provenance(dealt, blocks, names)
        with pytest.raises(ValueError, match="smaller than the token budget"):
            stream.next_blocks(1)


@given(portions=st.lists(st.integers(0, 20), min_size=1, max_size=9), num_workers=st.sampled_from([0, 1, 2]))
@settings(max_examples=30)
def test_portions_do_not_matter(corpus: Corpus, portions: list[int], num_workers: int) -> None:
    with open_stream(corpus, num_workers) as one, open_stream(corpus, 0) as other:
        parts = np.concatenate([one.next_blocks(n) for n in portions])
        np.testing.assert_array_equal(parts, other.next_blocks(sum(portions)))
        assert one.provenance() == other.provenance()
        assert one.state_dict() == other.state_dict()


@given(cuts=st.lists(st.integers(0, 25), min_size=1, max_size=4), num_workers=st.sampled_from([0, 1, 2]))
@settings(max_examples=40)
def test_a_resumed_stream_goes_on_bit_for_bit(corpus: Corpus, cuts: list[int], num_workers: int) -> None:
    """Interrupted several times, a stream is the one that was never interrupted; what was read ahead is lost."""
    with open_stream(corpus, 0) as stream:
        whole, end = take_all(stream)
        final = stream.state_dict()
    state, got = None, []
    for cut in cuts:
        with open_stream(corpus, num_workers, state=state) as stream:
            got.append(stream.next_blocks(min(cut, len(whole) - sum(map(len, got)))))
            state = json.loads(json.dumps(stream.state_dict()))
    with open_stream(corpus, num_workers, state=state) as stream:
        rest, resumed_end = take_all(stream)
        np.testing.assert_array_equal(np.concatenate([*got, *rest]), np.concatenate(whole))
        assert stream.state_dict() == final
        assert resumed_end == end


def test_a_stream_resumes_at_its_very_end(corpus: Corpus) -> None:
    with open_stream(corpus) as stream:
        take_all(stream)
        state = stream.state_dict()
    with open_stream(corpus, state=state) as stream, pytest.raises(ValueError, match="smaller than the token budget"):
        stream.next_blocks(1)


def test_state_is_of_the_blocks_handed_out_only(corpus: Corpus) -> None:
    with open_stream(corpus, 3) as stream:
        first = stream.state_dict()
        stream.next_blocks(2)
        assert first["position"]["tokens"] == 0, "a state is a copy"
        assert stream.state_dict()["position"]["tokens"] == 2 * T


def test_seeds_deal_differently(corpus: Corpus) -> None:
    with open_stream(corpus, seed=1) as one, open_stream(corpus, seed=2) as other:
        assert (one.next_blocks(10) != other.next_blocks(10)).any()


class TestResumeRefuses:
    """A position in one stream is none in another."""

    @pytest.fixture
    def state(self, corpus: Corpus) -> dict[str, Any]:
        with open_stream(corpus) as stream:
            stream.next_blocks(3)
            return stream.state_dict()

    def test_another_seed(self, corpus: Corpus, state: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="seed was 42 and is now 43"):
            open_stream(corpus, state=state, seed=43)

    def test_another_sequence_length(self, corpus: Corpus, state: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="sequence_length was 16 and is now 32"):
            open_stream(corpus, state=state, sequence_length=32)

    def test_another_tokenizer(
        self, corpus: Corpus, state: dict[str, Any], tiny_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        with pytest.raises(ValueError, match="tokenizer_sha256 was"):
            open_stream(corpus, state=state, tokenizer=tiny_tokenizer)

    def test_another_revision(self, corpus: Corpus, state: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="dataset_revision was 'local' and is now 'abc'"):
            open_stream(Corpus(corpus.name, "abc", corpus.train_shards, ()), state=state)

    def test_other_shards(self, folder: Path, state: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="shards was"):
            open_stream(open_corpus(DataConfig(repo=str(folder), num_shards=2)), state=state)

    def test_a_document_that_is_shorter_than_before(self, tmp_path: Path) -> None:
        corpora = [
            open_corpus(DataConfig(repo=str(write_corpus(tmp_path / name, [[text]])), num_shards=1))
            for name, text in (("before", "é" * 50 + "aaaaaaaaaa"), ("after", "é" * 5))
        ]
        with open_stream(corpora[0]) as stream:
            stream.next_blocks(6)
            state = stream.state_dict()
        state["shards"] = {shard.name: shard.size for shard in corpora[1].train_shards}
        write_shard(tmp_path / "after" / NAMES[0], lines_of(["é" * 5] * 100))
        longer = open_corpus(DataConfig(repo=str(tmp_path / "after"), num_shards=1))
        state["shards"] = {shard.name: shard.size for shard in longer.train_shards}
        with open_stream(longer, state=state) as stream, pytest.raises(ValueError, match="not what was read before"):
            stream.next_blocks(1)


class TestBadInput:
    """Errors in workers arrive at the consumer, at the first block that needs what is bad, and stay."""

    @pytest.fixture
    def bad(self, tmp_path: Path) -> tuple[Corpus, int, int]:
        """A corpus with a bad line in its longest shard; the blocks before it; the line's offset."""
        write_corpus(tmp_path, SHARDS)
        lines = lines_of(SHARDS[2]).splitlines(keepends=True)
        good = b"".join(lines[:10])
        write_shard(tmp_path / NAMES[2], b"".join([good, b"oops\n", *lines[10:]]))
        corpus = open_corpus(DataConfig(repo=str(tmp_path), num_shards=len(SHARDS)))
        write_shard(tmp_path / "whole" / NAMES[2], b"".join(lines))
        for name in NAMES:
            if name != NAMES[2]:
                (tmp_path / "whole" / name).write_bytes((tmp_path / name).read_bytes())
        dealt = expected_documents(tmp_path / "whole", NAMES, TOKENIZER, SEED)
        first_bad = next(i for i, d in enumerate(dealt) if d.shard == NAMES[2] and d.byte_start == len(good))
        return corpus, len(expected_blocks(dealt[:first_bad], T)), len(good)

    def test_arrives_at_the_affected_block(self, bad: tuple[Corpus, int, int], workers: int) -> None:
        corpus, good_blocks, offset = bad
        with open_stream(corpus, workers) as stream:
            blocks, error = take_all(stream)
            assert len(blocks) == good_blocks > 5
            assert error.startswith(f"{NAMES[2]}: the line at byte {offset} is not JSON")
            state = stream.state_dict()
            with pytest.raises(ValueError, match=f"byte {offset} is not JSON"):
                stream.next_blocks(1)
            assert stream.state_dict() == state

    def test_takes_nothing_from_a_request_that_it_breaks(self, bad: tuple[Corpus, int, int], workers: int) -> None:
        corpus, good_blocks, offset = bad
        with open_stream(corpus, workers) as stream:
            stream.next_blocks(good_blocks - 2)
            before = stream.state_dict()
            with pytest.raises(ValueError, match=f"byte {offset} is not JSON"):
                stream.next_blocks(3)
            assert stream.state_dict() == before
            stream.next_blocks(2)
            assert stream.provenance()["tokens"] == good_blocks * T

    def test_of_shards_that_are_removed_after_opening(self, tmp_path: Path, workers: int) -> None:
        corpus = open_corpus(DataConfig(repo=str(write_corpus(tmp_path, SHARDS)), num_shards=len(SHARDS)))
        (tmp_path / NAMES[1]).unlink()
        with open_stream(corpus, workers) as stream:
            _, error = take_all(stream)
        assert f"{NAMES[1]}: the file cannot be opened at byte 0" in error


def test_a_closed_stream_gives_nothing(corpus: Corpus, workers: int) -> None:
    stream = open_stream(corpus, workers)
    stream.next_blocks(1)
    stream.close()
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        stream.next_blocks(100)


def test_an_error_outside_ends_the_workers(corpus: Corpus) -> None:
    with pytest.raises(KeyError, match="outside"), open_stream(corpus, 3):
        raise KeyError("outside")


def test_a_forgotten_stream_leaves_no_threads(corpus: Corpus) -> None:
    stream = open_stream(corpus, 3)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("parcontrol")]
    assert threads
    stream.next_blocks(1)
    del stream
    for thread in threads:
        thread.join(timeout=60)


def test_closing_while_a_read_hangs_waits_for_it_only(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Close cancels what is queued; what is being read comes to its end first."""
    reading, release = threading.Event(), threading.Event()
    opened: list[str] = []
    plain_open = type(corpus.train_shards[0]).open

    def slow_open(shard: Any) -> Any:
        opened.append(shard.name)
        reading.set()
        assert release.wait(60)
        return plain_open(shard)

    monkeypatch.setattr(type(corpus.train_shards[0]), "open", slow_open)
    stream = open_stream(corpus, 2)
    assert reading.wait(60)
    threading.Timer(0.05, release.set).start()
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        stream.next_blocks(1)


def test_waiting_is_measured(corpus: Corpus, workers: int) -> None:
    with open_stream(corpus, workers) as stream:
        stream.next_blocks(5)
        assert stream.wait_seconds > 0
        waited = stream.wait_seconds
        stream.state_dict()
        assert stream.wait_seconds == waited


class TestTokenizer:
    """What the data path takes from a tokenizer, and what it leaves."""

    def test_needs_eos(self, corpus: Corpus) -> None:
        with pytest.raises(ValueError, match="has no EOS token"):
            open_stream(corpus, tokenizer=byte_tokenizer(eos=None))

    def test_needs_the_tokenizers_library(self, corpus: Corpus) -> None:
        class Slow:
            eos_token_id = 0

        with pytest.raises(ValueError, match="Slow is not backed by the tokenizers library"):
            open_stream(corpus, tokenizer=Slow())

    def test_control_tokens_in_text_are_text(self, tmp_path: Path) -> None:
        write_corpus(tmp_path, [["a<|endoftext|>b"]])
        with open_stream(
            open_corpus(DataConfig(repo=str(tmp_path), num_shards=1)), sequence_length=len("a<|endoftext|>b") + 1
        ) as stream:
            tokens = stream.next_blocks(1)[0].tolist()
        assert tokens.count(TOKENIZER.eos_token_id) == 1
        assert tokens[-1] == TOKENIZER.eos_token_id

    def test_padding_and_truncation_of_others_do_not_matter(self, corpus: Corpus) -> None:
        used = byte_tokenizer()
        used.pad_token = used.eos_token
        used(["a", "a longer one"], padding="max_length", truncation=True, max_length=4)
        assert used.backend_tokenizer.truncation
        with open_stream(corpus, tokenizer=used) as one, open_stream(corpus) as other:
            np.testing.assert_array_equal(one.next_blocks(20), other.next_blocks(20))
        assert used.backend_tokenizer.truncation["max_length"] == 4, "the caller's tokenizer stays as it was"
        assert tokenizer_sha256(used) == tokenizer_sha256(TOKENIZER)

    def test_hash_tells_tokenizers_apart(self, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
        other_eos = byte_tokenizer(eos="a")
        assert len({tokenizer_sha256(t) for t in (TOKENIZER, tiny_tokenizer, other_eos)}) == 3
        assert tokenizer_sha256(byte_tokenizer()) == tokenizer_sha256(TOKENIZER)

    def test_hash_survives_saving(self, tiny_tokenizer: PreTrainedTokenizerFast, tiny_model_dir: Path) -> None:
        from transformers import AutoTokenizer

        assert tokenizer_sha256(AutoTokenizer.from_pretrained(tiny_model_dir)) == tokenizer_sha256(tiny_tokenizer)

    def test_merges_agree_with_encoding_one_by_one(
        self, tiny_corpus_dir: Path, tiny_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        names = [f"train/{index:02d}.jsonl.zst" for index in range(8)]
        expected = expected_blocks(expected_documents(tiny_corpus_dir, names, tiny_tokenizer, SEED), T)
        with open_stream(open_corpus(DataConfig(repo=str(tiny_corpus_dir))), tokenizer=tiny_tokenizer) as stream:
            np.testing.assert_array_equal(stream.next_blocks(len(expected)), expected)
