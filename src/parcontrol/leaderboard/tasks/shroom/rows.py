"""Rows of SHROOM as a choice between "Hallucination" and "Not Hallucination"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scipy.special import softmax

if TYPE_CHECKING:
    from datasets import Dataset

HALLUCINATION, NOT_HALLUCINATION = 0, 1  # positions of the choices
_LABEL = "Hallucination"

_SYSTEMS = {
    "DM": "explained the meaning of a word that its source marks",
    "MT": "translated its source",
    "PG": "put its source into other words",
}


def process_docs(rows: Dataset) -> Dataset:
    """Keeps the annotated rows and adds `gold`, the position of the right choice, and `p`, the annotators' share.

    The share comes from the column `p(Hallucination)`, or else from the annotators' `labels`; the right choice from
    `label`, or else from the share: what at most half of them call a hallucination is none.

    Raises:
        ValueError: No row is annotated.
    """
    annotated = rows.filter(lambda row: _share(row) is not None).map(_add_gold)
    if not len(annotated):
        raise ValueError("no row of SHROOM is annotated: p(Hallucination), labels and label are all empty")
    return annotated


def prompt(doc: Mapping[str, Any]) -> str:
    """Asks about one output. Empty fields are left out: paraphrases often have no reference, for instance."""
    texts = [("Source", doc["src"]), ("Reference", doc["tgt"]), ("Output", doc["hyp"])]
    return "\n".join(
        [
            f"A system {_SYSTEMS[doc['task']]}. An output that says something its source and its reference do not "
            "support is a hallucination.",
            *(f"{name}: {text.strip()}" for name, text in texts if text and text.strip()),
            "Label:",
        ]
    )


def process_results(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Scores one row: right or wrong, and the pair (the model's, the annotators') of P(Hallucination)."""
    likelihoods = [likelihood for likelihood, _ in results]
    p = float(softmax(likelihoods)[HALLUCINATION])
    chosen = HALLUCINATION if likelihoods[HALLUCINATION] > likelihoods[NOT_HALLUCINATION] else NOT_HALLUCINATION
    return {"acc": float(chosen == doc["gold"]), "spearman": (p, doc["p"])}


def _share(row: Mapping[str, Any]) -> float | None:
    if row.get("p(Hallucination)") is not None:
        return float(row["p(Hallucination)"])
    labels = row.get("labels")
    return sum(label == _LABEL for label in labels) / len(labels) if labels else None


def _add_gold(row: Mapping[str, Any]) -> dict[str, Any]:
    share = _share(row)
    assert share is not None
    hallucinated = row["label"] == _LABEL if row.get("label") else share > 0.5
    return {"gold": HALLUCINATION if hallucinated else NOT_HALLUCINATION, "p": share}
