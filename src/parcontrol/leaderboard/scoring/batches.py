"""Texts through a classifier, in batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from parcontrol.leaderboard.scoring.models import ScorerModel


def by_length(texts: Sequence[str], size: int) -> Iterator[list[int]]:
    """Yields positions of texts in batches, the longest first, so that memory runs out at once if at all."""
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.inference_mode()
def classify(
    scorer: ScorerModel, texts: Sequence[str], batch_size: int, second: Sequence[str] | None = None
) -> torch.Tensor:
    """Returns what a classifier of texts, or of pairs of texts, says, on the CPU.

    What does not fit into the model is cut from the end, of a pair from the end of the longer text.

    Shapes: N texts in, [N, labels] out.
    """
    logits = torch.empty(len(texts), scorer.model.config.num_labels)
    lengths = texts if second is None else [a + b for a, b in zip(texts, second, strict=True)]
    for batch in by_length(lengths, batch_size):
        inputs = scorer.tokenizer(
            [texts[index] for index in batch],
            None if second is None else [second[index] for index in batch],
            padding=True,
            truncation="longest_first",
            max_length=scorer.max_length,
            return_tensors="pt",
        ).to(scorer.device)
        logits[batch] = scorer.model(**inputs).logits.float().cpu()
    return logits
