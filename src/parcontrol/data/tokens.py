"""From documents to tokens: a tokenizer as data needs it, and the hash of a token stream."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import orjson
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = npt.NDArray[np.int32]
# Hash of the stream of no blocks, from which the chain starts.
EMPTY_CHAIN = bytes(32).hex()


class Encoder:
    """Encodes documents, each closed by EOS, with a private copy of a tokenizer.

    A copy, because the original's padding and truncation may be changed by whoever else uses it,
    and because encoding runs in other threads.

    Args:
        tokenizer: A tokenizer of transformers that is backed by the `tokenizers` library.

    Raises:
        ValueError: It has no EOS token or no such backend.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ValueError(
                f"the tokenizer {type(tokenizer).__name__} is not backed by the tokenizers library "
                "(a tokenizer.json), which the data path needs"
            )
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path!r} has no EOS token, which separates the documents"
            )
        self.eos_token_id: int = tokenizer.eos_token_id
        self._tokenizer = Tokenizer.from_str(backend.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # What reads like a control token in a document is text that speaks of one.
        self._tokenizer.encode_special_tokens = True

    @property
    def sha256(self) -> str:
        """Hash of everything that decides how a document is encoded, EOS included."""
        content = orjson.loads(self._tokenizer.to_str())
        # Saving and loading turns None into "" here; both mean that there is none.
        model = {key: value for key, value in content["model"].items() if value not in (None, "")}
        decides = {key: content[key] for key in ("added_tokens", "normalizer", "pre_tokenizer")}
        decides |= {"model": model, "eos_token_id": self.eos_token_id}
        return hashlib.sha256(orjson.dumps(decides, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Returns the tokens of each text and EOS; a text without tokens gives no EOS either."""
        # The fast variant leaves out the offsets of tokens in the text; the ids are the same.
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [self._close(encoding.ids) for encoding in encodings]

    def _close(self, ids: list[int]) -> Tokens:
        return np.array([*ids, self.eos_token_id] if ids else [], dtype=np.int32)


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the hash of everything that decides how `tokenizer` encodes a document."""
    return Encoder(tokenizer).sha256


def extend_chain(chain: str, blocks: Tokens) -> str:
    """Returns the hash of a token stream with blocks [N, T] added.

    h_n = SHA-256(h_{n-1} + block n as little-endian int32), h_0 = 32 zero bytes: it can be carried
    on from any block and does not depend on how many blocks were taken at a time.
    """
    digest = bytes.fromhex(chain)
    for block in blocks.astype("<i4", copy=False):
        digest = hashlib.sha256(digest + block.tobytes()).digest()
    return digest.hex()
