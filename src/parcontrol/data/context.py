"""Training text for the context initialisation of prefixes."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from parcontrol.data.documents import deal, read_documents
from parcontrol.data.seeding import seeded_int
from parcontrol.data.source import Corpus
from parcontrol.data.tokens import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts to choose from: enough that seeds differ, few enough that the start of a run waits for no download.
POOL = 128


def context_ids(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, *, P: int, length: int, seed: int
) -> npt.NDArray[np.int64]:
    """Returns the beginnings of P different training documents, chosen by seed.

    Stream p gets the same text at every P, so that runs which differ in P alone start alike.

    Args:
        corpus: The corpus.
        tokenizer: The backbone's tokenizer.
        P: Number of streams.
        length: Tokens per stream (K).
        seed: Seed of the choice (`training.seed`).

    Returns:
        Token ids [P, K].

    Raises:
        ValueError: The corpus has fewer than P different documents of K tokens, or is bad.
    """
    encoder = Encoder(tokenizer)
    documents = deal([read_documents(shard) for shard in corpus.train_shards], seed=0)
    beginnings: dict[tuple[int, ...], None] = {}  # a set that keeps its order
    while len(beginnings) < max(P, POOL):
        texts = [document.text for document in islice(documents, POOL)]
        if not texts:
            break
        for tokens in encoder.encode(texts):
            if len(tokens) > length:  # its EOS is no text
                beginnings[tuple(tokens[:length].tolist())] = None
    if len(beginnings) < P:
        raise ValueError(
            f"the train shards of {corpus.name} have {len(beginnings)} different documents of at least "
            f"parscale.prefix_length {length} tokens, but parscale.P {P} streams need one each"
        )
    pool = list(beginnings)[: max(P, POOL)]
    order = sorted(range(len(pool)), key=lambda index: seeded_int("context", seed, index))
    return np.array([pool[index] for index in order[:P]], dtype=np.int64)
