"""Rows of SHROOM as a choice between "Hallucination" and "Not Hallucination"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scipy.special import softmax

if TYPE_CHECKING:
    from datasets import Dataset

HALLUCINATION, NOT_HALLUCINATION = 0, 1  # positions of the choices
_LABELS = {"hallucination": HALLUCINATION, "not hallucination": NOT_HALLUCINATION}


def process_docs(rows: Dataset) -> Dataset:
    """Keeps the annotated rows and adds `gold`, the position of the right choice, and `p`, the annotators' share.

    The share comes from the column `p(Hallucination)`, or else from the annotators' `labels`; the right choice from
    `label`, or else from the share: what at most half of them call a hallucination is none.

    Raises:
        ValueError: No row is annotated, or one has a label that is neither.
    """
    annotated = rows.filter(_is_annotated, with_indices=True).map(_add_gold)
    if not len(annotated):
        raise ValueError("no row of SHROOM is annotated: p(Hallucination), labels and label are all empty")
    return annotated


def definition_prompt(doc: Mapping[str, Any]) -> str:
    """Asks about the output of definition modelling."""
    return _prompt("explained the meaning of a word that its source marks", doc)


def translation_prompt(doc: Mapping[str, Any]) -> str:
    """Asks about the output of machine translation."""
    return _prompt("translated its source", doc)


def paraphrase_prompt(doc: Mapping[str, Any]) -> str:
    """Asks about the output of paraphrase generation."""
    return _prompt("put its source into other words", doc)


def _prompt(done: str, doc: Mapping[str, Any]) -> str:
    """Asks about one output. Empty fields are left out: paraphrases often have no reference, for instance."""
    texts = [("Source", doc["src"]), ("Reference", doc["tgt"]), ("Output", doc["hyp"])]
    return "\n".join(
        [
            f"A system {done}. An output that says something its source and its reference do not "
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


def _is_annotated(row: Mapping[str, Any], index: int) -> bool:
    try:
        for label in row.get("labels") or []:
            _choice(label)
        if row.get("label"):
            _choice(row["label"])
    except ValueError as error:
        raise ValueError(f"row {index + 1} of SHROOM {error}") from error
    return _share(row) is not None


def _choice(label: object) -> int:
    """Position of the choice that a label names."""
    if (choice := _LABELS.get(str(label).strip().lower())) is None:
        raise ValueError(f"has the label {label!r}, and neither 'Hallucination' nor 'Not Hallucination'")
    return choice


def _share(row: Mapping[str, Any]) -> float | None:
    if row.get("p(Hallucination)") is not None:
        return float(row["p(Hallucination)"])
    labels = row.get("labels")
    return sum(_choice(label) == HALLUCINATION for label in labels) / len(labels) if labels else None


def _add_gold(row: Mapping[str, Any]) -> dict[str, Any]:
    share = _share(row)
    assert share is not None
    majority = HALLUCINATION if share > 0.5 else NOT_HALLUCINATION
    return {"gold": _choice(row["label"]) if row.get("label") else majority, "p": share}
