"""Figures published with ParScale (arXiv 2505.10475): training losses, sizes and fitted laws.

The fitted constants are what the official fit script prints on this table.
"""

from __future__ import annotations

from dataclasses import dataclass

P_VALUES = (1, 2, 4, 8)
SIZES = ("0.5B", "0.7B", "1.1B", "1.6B", "2.8B", "4.4B")

# Non-embedding parameters, prefixes and aggregator included; one row per P, one column per size.
PARAMETERS: dict[int, tuple[int, ...]] = {
    1: (535813376, 693753856, 1088376320, 1571472384, 2774773760, 4353203200),
    2: (538195842, 696738818, 1092762882, 1577522690, 2784937986, 4368529922),
    4: (540577412, 699722756, 1097148164, 1583571460, 2795100164, 4383854084),
    8: (545340552, 705690632, 1105918728, 1595669000, 2815424520, 4414502408),
}

# Hidden and intermediate size of each; all have 36 layers, 16 heads and 2 key/value heads.
SHAPES: dict[str, tuple[int, int]] = {
    "0.5B": (896, 4864),
    "0.7B": (1024, 5504),
    "1.1B": (1280, 6912),
    "1.6B": (1536, 8320),
    "2.8B": (2048, 11008),
    "4.4B": (2560, 13824),
}

# Training loss in nats per token, laid out as PARAMETERS.
LOSSES: dict[str, dict[int, tuple[float, ...]]] = {
    "Stack-V2-Python": {
        1: (1.1722, 1.1496, 1.1131, 1.0817, 1.0451, 1.0213),
        2: (1.1507, 1.1262, 1.0940, 1.0623, 1.0244, 1.0025),
        4: (1.1354, 1.1124, 1.0808, 1.0490, 1.0126, 0.9906),
        8: (1.1231, 1.0997, 1.0688, 1.0383, 1.0016, 0.9794),
    },
    "Pile": {
        1: (2.1113, 2.0671, 2.0027, 1.9539, 1.8876, 1.8451),
        2: (2.0772, 2.0363, 1.9730, 1.9266, 1.8610, 1.8137),
        4: (2.0544, 2.0128, 1.9509, 1.9040, 1.8394, 1.7938),
        8: (2.0364, 1.9933, 1.9318, 1.8856, 1.8218, 1.7772),
    },
}


@dataclass(frozen=True, slots=True)
class PublishedLaw:
    """L = E + (A / (N·(k·ln P + 1)))^alpha, in nats, with N in parameters."""

    E: float
    A: float
    k: float
    alpha: float


LAWS: dict[str, PublishedLaw] = {
    "Stack-V2-Python": PublishedLaw(E=0.691237, A=1.13062e7, k=0.393463, alpha=0.189371),
    "Pile": PublishedLaw(E=1.288766, A=1.97352e8, k=0.334456, alpha=0.196333),
}


def parameters(size: str, P: int) -> int:
    """Non-embedding parameters of one published model."""
    return PARAMETERS[P][SIZES.index(size)]


def loss(corpus: str, size: str, P: int) -> float:
    """Training loss of one published model, nats per token."""
    return LOSSES[corpus][P][SIZES.index(size)]
