"""The one source of randomness of the data path.

Hashes instead of a generator: the result depends neither on the platform nor on the version of a
library's shuffle, and the n-th draw is known without the n - 1 before it, so resuming is free.
"""

from __future__ import annotations

import hashlib


def seeded_int(*key: str | int) -> int:
    """Returns a uniform integer in [0, 2**64) that depends on the key alone."""
    text = "/".join(str(part) for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
