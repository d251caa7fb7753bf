"""The data: shards -> documents with byte ranges -> tokens -> packed blocks. Deterministic and resumable."""

from parcontrol.data.context import context_ids
from parcontrol.data.source import Corpus, Shard, open_corpus
from parcontrol.data.stream import TrainStream
from parcontrol.data.tokens import tokenizer_sha256
from parcontrol.data.validation import ValidationSet, load_validation
from parcontrol.data.verify import VerifiedData, verify_run

__all__ = [
    "Corpus",
    "Shard",
    "TrainStream",
    "ValidationSet",
    "VerifiedData",
    "context_ids",
    "load_validation",
    "open_corpus",
    "tokenizer_sha256",
    "verify_run",
]
