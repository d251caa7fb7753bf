"""FEVER's labels, under the names of `pminervini/hl-fever` and of FEVER itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

SUPPORTED, REFUTED = "supported", "refuted"
_NAMES = {"SUPPORTED": SUPPORTED, "SUPPORTS": SUPPORTED, "REFUTED": REFUTED, "REFUTES": REFUTED}
_UNDECIDED = "NOT ENOUGH INFO"


def keep_decided(rows: Dataset) -> Dataset:
    """Leaves out claims that nothing is known about, and repetitions: FEVER has a row for every piece of evidence.

    Raises:
        ValueError: A row has another label.
    """
    seen, kept = set(), []
    for index, row in enumerate(rows):
        claim = (row.get("id"), row["claim"], row["label"])
        if row["label"] == _UNDECIDED or claim in seen:
            continue
        target(row)
        seen.add(claim)
        kept.append(index)
    return rows.select(kept)


def target(row: Mapping[str, Any]) -> str:
    """The right answer."""
    try:
        return _NAMES[row["label"].upper()]
    except (AttributeError, KeyError):
        allowed = ", ".join([*_NAMES, _UNDECIDED])
        raise ValueError(f"label {row['label']!r} of FEVER is none of {allowed}") from None
