"""The validation set: a fixed head of the validation split, the same at every evaluation and for every P."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from parcontrol.data.documents import in_batches, read_documents
from parcontrol.data.source import Corpus
from parcontrol.data.tokens import EMPTY_CHAIN, Encoder, Tokens, extend_chain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ValidationSet:
    """Packed validation text.

    Attributes:
        blocks: Token ids [N, T].
        document_ids: For each token the number of its document [N, T], counted from 0 in the order of the split; EOS
            belongs to the document that it ends.
        sha256: Hash chain over the blocks (`tokens.extend_chain`).
        documents: Number of documents that the blocks touch.
    """

    blocks: npt.NDArray[np.int64]
    document_ids: npt.NDArray[np.int64]
    sha256: str
    documents: int


def load_validation(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, *, sequence_length: int, tokens: int
) -> ValidationSet:
    """Reads the validation split in order and packs it as training packs, up to a number of tokens.

    Args:
        corpus: The corpus.
        tokenizer: The backbone's tokenizer.
        sequence_length: Tokens per block (T).
        tokens: Size of the set; what does not fill a block at its end is left out.

    Raises:
        ValueError: The split is empty, bad, or has fewer tokens; or `tokens` do not fill one block.
    """
    if tokens < sequence_length:
        raise ValueError(
            f"{tokens} validation tokens do not fill one block of data.sequence_length {sequence_length} tokens"
        )
    documents = _encode_head(corpus, Encoder(tokenizer), tokens)
    blocks = np.concatenate(documents)[: tokens - tokens % sequence_length].reshape(-1, sequence_length)
    lengths = [len(document) for document in documents]
    document_ids = np.repeat(np.arange(len(documents)), lengths)[: blocks.size].reshape(blocks.shape)
    return ValidationSet(
        blocks.astype(np.int64), document_ids, extend_chain(EMPTY_CHAIN, blocks), int(document_ids[-1, -1]) + 1
    )


def _encode_head(corpus: Corpus, encoder: Encoder, wanted: int) -> list[Tokens]:
    """Returns the documents from the start of the split that hold at least `wanted` tokens."""
    encoded: list[Tokens] = []
    found = 0
    split = chain.from_iterable(read_documents(shard) for shard in corpus.validation_shards)
    for batch in in_batches(split):
        for document in encoder.encode([document.text for document in batch]):
            if len(document):
                encoded.append(document)
                found += len(document)
        if found >= wanted:
            return encoded
    names = ", ".join(shard.name for shard in corpus.validation_shards)
    raise ValueError(
        f"the validation split of {corpus.name} ({names}) "
        + (f"has only {found} tokens, and {wanted} validation tokens are asked for" if found else "is empty")
    )
