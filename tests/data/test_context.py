"""Text for prefixes: distinct, from the train shards, by seed."""

from pathlib import Path

import numpy as np
import pytest

from parcontrol.config import DataConfig
from parcontrol.data import Corpus, context_ids, open_corpus
from tests.data.corpora import byte_tokenizer, write_corpus

TOKENIZER = byte_tokenizer()
# Every third document is long enough for eight tokens, and one of those comes twice.
TEXTS = [[f"{shard}-{n:02d} long enough" if n % 3 == 0 else "short" for n in range(60)] for shard in range(3)]
TEXTS[1][3] = TEXTS[0][3]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = write_corpus(tmp_path_factory.mktemp("corpus"), TEXTS)
    return open_corpus(DataConfig(repo=str(folder), num_shards=3))


def texts_of(corpus: Corpus, P: int, seed: int = 42, length: int = 8) -> list[str]:
    ids = context_ids(corpus, TOKENIZER, P=P, length=length, seed=seed)
    assert ids.shape == (P, length)
    assert ids.dtype == np.int64
    return TOKENIZER.batch_decode(ids)


def test_each_stream_gets_the_beginning_of_another_document(corpus: Corpus) -> None:
    beginnings = texts_of(corpus, P=8)
    assert len(set(beginnings)) == 8
    assert set(beginnings) <= {text[:8] for shard in TEXTS for text in shard if text != "short"}


def test_the_seed_decides(corpus: Corpus) -> None:
    assert texts_of(corpus, P=4) == texts_of(corpus, P=4)
    assert len({tuple(texts_of(corpus, P=4, seed=seed)) for seed in range(10)}) == 10


def test_a_stream_starts_alike_at_every_P(corpus: Corpus) -> None:
    assert texts_of(corpus, P=8)[:2] == texts_of(corpus, P=2)
    assert texts_of(corpus, P=2)[:1] == texts_of(corpus, P=1)


def test_texts_are_distinct_even_when_documents_are_not(corpus: Corpus) -> None:
    distinct = len({text[:8] for shard in TEXTS for text in shard if text != "short"})
    assert len(set(texts_of(corpus, P=distinct))) == distinct == 59
    with pytest.raises(ValueError, match=r"have 59 different documents of at least .* 8 tokens, but parscale.P 60"):
        texts_of(corpus, P=60)


def test_too_short_documents_are_an_error(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match=r"have 0 different documents of at least .* 100 tokens"):
        texts_of(corpus, P=1, length=100)


def test_eos_is_no_text(corpus: Corpus) -> None:
    assert TOKENIZER.eos_token not in "".join(texts_of(corpus, P=8, length=len("0-00 long enough")))
    with pytest.raises(ValueError, match="have 0 different documents"):
        texts_of(corpus, P=1, length=len("0-00 long enough") + 1)


def test_a_large_corpus_is_read_only_at_its_beginning(tmp_path: Path) -> None:
    """The texts come from the first documents dealt: nothing waits for a download."""
    write_corpus(tmp_path, [[f"{n:08d} and so on" for n in range(5000)]])
    corpus = open_corpus(DataConfig(repo=str(tmp_path), num_shards=1))
    assert all(int(text) < 128 for text in texts_of(corpus, P=8))
