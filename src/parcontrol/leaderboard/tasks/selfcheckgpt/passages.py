"""The task SelfCheckGPT: for every person one greedy passage and several sampled ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from parcontrol.leaderboard.scoring.selfcheck.ngram import NgramScorer
from parcontrol.leaderboard.scoring.selfcheck.passage import Passage, consistency
from parcontrol.leaderboard.scoring.selfcheck.sentences import split_sentences


class SelfCheckGPT(ConfigurableTask):
    """A generation task that asks several times: first greedily, then by sampling.

    How often and how hot stands in the metadata of the YAML. The samples depend on the seed that the evaluation is
    started with, and on the batch size.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        # The harness hands over the key that named this class.
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        """Returns the greedy request and the sampled ones, in this order."""
        greedy = super().construct_requests(doc, ctx, **kwargs)
        context, how = greedy.arguments
        # Pure sampling, whatever the model's own generation_config says. The harness never caches sampled replies.
        how = {**how, "do_sample": True, "temperature": self.config.metadata["temperature"], "top_p": 1.0, "top_k": 0}
        return [greedy] + [
            Instance("generate_until", doc, (context, dict(how)), 1 + index, metadata=greedy.metadata)
            for index in range(self.config.metadata["samples"])
        ]


def prompt(doc: Mapping[str, Any]) -> str:
    """Asks for a passage; ends with the first sentence of the Wikipedia entry, which a base model continues."""
    first = split_sentences(doc["wiki_bio_text"])[0]
    return f"Write a short passage, as in Wikipedia, that goes on from this first sentence.\n\n{first}"


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores one passage with the n-gram scorer, which needs no model; the scoring pass adds the others."""
    return consistency(NgramScorer(), Passage(results[0], results[1:]))
