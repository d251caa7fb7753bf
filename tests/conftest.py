"""What the tests share: a tiny tokenizer, tiny models, a tiny corpus, and two things from outside.

Everything tiny is made here, deterministically and without a network. What comes from outside (an
offline mirror of the Hub, a small pretrained model) is skipped, visibly, where it cannot be had.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before any library reads them: no test may reach for the Hub, and two test processes on two
# cores get one thread each.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import zstandard
from hypothesis import settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# No deadline: a test never depends on time. The same examples in every run.
settings.register_profile("parcontrol", deadline=None, derandomize=True, database=None)
settings.load_profile("parcontrol")

REPOSITORY = Path(__file__).resolve().parents[1]
EOS, PAD = "<|endoftext|>", "<|pad|>"
TRAIN_SHARDS, DOCUMENTS_PER_SHARD, HELD_OUT_DOCUMENTS = 8, 40, 60
PILE_SETS = ("Pile-CC", "Github", "Wikipedia (en)")
WORDS = (
    "the a one every some old new small large quick slow bright cold river stone tree house bird "
    "fish road light night day hand word book king child wind rain sun moon sees finds takes gives "
    "holds breaks sings moves and then but when über façade naïve 数 données 42 3.14"
).split()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips, visibly, what a machine without a GPU cannot answer."""
    if item.get_closest_marker("cuda"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what the caller's environment says about data and devices out of the tests."""
    monkeypatch.delenv("PARCONTROL_MIRROR", raising=False)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with 384 tokens, end of text and padding among them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    # Beside a Qwen2 model, AutoTokenizer loads any tokenizer as Qwen2's, which splits words and
    # digits its own way: the same way here, or the saved tokenizer would give other tokens.
    qwen2 = Qwen2Tokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = qwen2.normalizer
    tokenizer.pre_tokenizer = qwen2.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_documents(seed=0, count=200), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)


@pytest.fixture(scope="session")
def save_tiny_model(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Returns a function that saves a tiny Qwen2 with the tiny tokenizer, tied or not."""

    def save(tie_word_embeddings: bool = True, seed: int = 0) -> Path:
        import torch
        from transformers import Qwen2Config, Qwen2ForCausalLM

        config = Qwen2Config(
            vocab_size=len(tiny_tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=tie_word_embeddings,
            bos_token_id=None,
            eos_token_id=tiny_tokenizer.eos_token_id,
            pad_token_id=tiny_tokenizer.pad_token_id,
        )
        directory = tmp_path_factory.mktemp("tiny_model")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            Qwen2ForCausalLM(config).save_pretrained(directory)
        tiny_tokenizer.save_pretrained(directory)
        return directory

    return save


@pytest.fixture(scope="session")
def tiny_model_dir(save_tiny_model: Callable[..., Path]) -> Path:
    """A saved tiny Qwen2 (hidden 32, 2 layers, 4 heads, 2 key/value heads), tied, with tokenizer."""
    return save_tiny_model()


@pytest.fixture(scope="session")
def tiny_untied_model_dir(save_tiny_model: Callable[..., Path]) -> Path:
    """Like `tiny_model_dir`, with an output head of its own."""
    return save_tiny_model(tie_word_embeddings=False)


@pytest.fixture(scope="session")
def tiny_corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus in the Pile's layout: 8 train shards of 40 documents, 60 to validate, 60 to test."""
    directory = tmp_path_factory.mktemp("tiny_corpus")
    (directory / "train").mkdir()
    for shard in range(TRAIN_SHARDS):
        documents = _documents(seed=shard + 1, count=DOCUMENTS_PER_SHARD)
        _write_shard(directory / "train" / f"{shard:02d}.jsonl.zst", documents)
    for seed, split in ((101, "val"), (102, "test")):
        _write_shard(directory / f"{split}.jsonl.zst", _documents(seed=seed, count=HELD_OUT_DOCUMENTS))
    return directory


@pytest.fixture(scope="session")
def mirror() -> Path:
    """An offline mirror of the Hub with part of the Pile, named by PARCONTROL_TEST_MIRROR."""
    named = os.environ.get("PARCONTROL_TEST_MIRROR")
    if not named:
        pytest.skip("PARCONTROL_TEST_MIRROR names no offline mirror of the Hub")
    directory = Path(named)
    # A wrong name is a mistake, not a machine without a mirror.
    assert (directory / "datasets").is_dir(), f"no mirror: {directory} holds no datasets/"
    return directory


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """The directory of SmolLM2-135M-Instruct, downloaded once into the cache."""
    from parcontrol.demo.model import get_model

    try:
        return get_model()
    except ValueError as error:
        if not str(error).startswith("could not download"):
            raise
        pytest.skip(str(error).splitlines()[0])


def _documents(seed: int, count: int) -> Iterator[str]:
    """Yields documents of 5 to 120 words in sentences, the same ones for the same seed."""
    chosen = random.Random(seed)
    for _ in range(count):
        words = chosen.choices(WORDS, k=chosen.randint(5, 120))
        sentences = [" ".join(words[i : i + 8]).capitalize() for i in range(0, len(words), 8)]
        yield ".\n".join(sentences) + "."


def _write_shard(path: Path, documents: Iterator[str]) -> None:
    lines = [
        json.dumps({"text": text, "meta": {"pile_set_name": PILE_SETS[index % len(PILE_SETS)]}})
        for index, text in enumerate(documents)
    ]
    path.write_bytes(zstandard.ZstdCompressor().compress(("\n".join(lines) + "\n").encode()))
