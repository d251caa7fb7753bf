"""SQuAD v2 as in the harness, scored without downloading code, and with examples by the rule of all tasks.

Prompts and requests are the harness's. Its scores come from the metric `squad_v2`, whose code it fetches from the Hub;
here the same definitions (those of SQuAD's evaluation script) are computed row by row, so that the scores have
standard errors.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks.squadv2.task import SQuAD2

from parcontrol.leaderboard.tasks.exact_match import normalize

# exact match or F1 of a row, P(unanswerable), whether it has an answer, whether the model gave one
Scored = tuple[float, float, bool, bool]


class SQuADv2(SQuAD2):
    """The harness's task over one split. All scores are percentages, as there."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        # The harness's own constructor has no room for a configuration, nor does the configuration for the class.
        ConfigurableTask.__init__(self, config={key: value for key, value in config.items() if key != "class"})

    def has_training_docs(self) -> bool:
        """No: examples come from the evaluated split."""
        return False

    def doc_to_text(self, doc: Mapping[str, Any], doc_to_text: Any = None) -> str:
        """The harness's prompt; its method lacks the argument that the harness itself gives for examples."""
        return super().doc_to_text(doc)

    def doc_to_target(self, doc: Mapping[str, Any], doc_to_target: Any = None) -> str:
        """The answer of an example, without the space that the delimiter already is."""
        return super().doc_to_target(doc).removeprefix(" ")

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        """Scores one row: a text, and the likelihood of "unanswerable"."""
        text, (loglikelihood, _) = results
        # A question without an answer is answered by silence.
        golds = [gold for gold in doc["answers"]["text"] if normalize(gold)] or [""]
        answerable, answered = bool(doc["answers"]["text"]), bool(text)
        exact = 100 * max(float(normalize(text) == normalize(gold)) for gold in golds)
        f1 = 100 * max(_f1(normalize(text).split(), normalize(gold).split()) for gold in golds)
        p_unanswerable = math.exp(loglikelihood)
        return {
            "exact": exact,
            "f1": f1,
            "best_exact": (exact, p_unanswerable, answerable, answered),
            "best_f1": (f1, p_unanswerable, answerable, answered),
        }

    def aggregation(self) -> dict[str, Any]:
        """How rows are put together."""
        return {"exact": mean, "f1": mean, "best_exact": best_over_thresholds, "best_f1": best_over_thresholds}

    def higher_is_better(self) -> dict[str, bool]:
        """All scores are better when higher."""
        return dict.fromkeys(self.aggregation(), True)


def best_over_thresholds(rows: Sequence[Scored]) -> float:
    """The score with the best threshold on P(unanswerable), above which a question counts as left unanswered.

    Starts with all questions left unanswered, and takes the answers back in the order of growing P.
    """
    total = best = 100.0 * sum(not answerable for _, _, answerable, _ in rows)
    for score, _, answerable, answered in sorted(rows, key=lambda row: row[1]):
        total += score if answerable else -100.0 * answered
        best = max(best, total)
    return best / len(rows)


def _f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """F1 of two bags of words; of empty ones, whether both are."""
    if not predicted or not gold:
        return float(predicted == gold)
    common = (Counter(predicted) & Counter(gold)).total()
    return 2 * common / (len(predicted) + len(gold))
