"""The scorers of the pass over stored generations, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from lm_eval.api.metrics import mean, mean_stderr

from parcontrol.leaderboard.scoring.bertscore import BertScore
from parcontrol.leaderboard.scoring.factkb import FactKB
from parcontrol.leaderboard.scoring.models import AbsentError
from parcontrol.leaderboard.scoring.rank import spearman, spearman_stderr
from parcontrol.leaderboard.scoring.rouge import rouge_l
from parcontrol.leaderboard.scoring.selfcheck.bertscore import BertScoreScorer
from parcontrol.leaderboard.scoring.selfcheck.ngram import NgramScorer
from parcontrol.leaderboard.scoring.selfcheck.nli import NliScorer
from parcontrol.leaderboard.scoring.selfcheck.passage import Passage, SentenceScorer, consistency, metric_names
from parcontrol.leaderboard.scoring.selfcheck.qa import QaScorer

Sample = Mapping[str, Any]  # one row as the harness logs it


class Scored(NamedTuple):
    """One metric of a task: the value of every row, their summary, and its standard error if it has one."""

    rows: list[Any]
    value: float
    stderr: float | None


class Scorer(Protocol):
    """Computes metrics from stored rows; raises AbsentError where it cannot."""

    metrics: tuple[str, ...]

    def score(self, samples: Sequence[Sample]) -> dict[str, Scored]:
        """Returns every metric."""

    def sources(self) -> list[dict[str, str | None]]:
        """Returns the models that were used, as `ScorerModel.source`."""


def averaged(rows: Sequence[float]) -> Scored:
    """Returns the mean and its standard error, to the last digit as the harness computes them."""
    return Scored(list(rows), mean(rows), mean_stderr(rows) if len(rows) > 1 else None)


class RougeLScorer:
    """ROUGE-L of summaries with their references."""

    metrics: tuple[str, ...] = ("rougeL",)

    def score(self, samples: Sequence[Sample]) -> dict[str, Scored]:
        """Returns every metric."""
        return {"rougeL": averaged([rouge_l(_summary(sample), sample["doc"]["summary"]) for sample in samples])}

    def sources(self) -> list[dict[str, str | None]]:
        """No model."""
        return []


class FactKBScorer:
    """P(factual) of summaries given their documents."""

    metrics: tuple[str, ...] = ("factkb",)

    def __init__(self, model: FactKB) -> None:
        self.model = model

    def score(self, samples: Sequence[Sample]) -> dict[str, Scored]:
        """Returns every metric."""
        return {"factkb": averaged(self.model.probabilities(*_summaries_and_documents(samples)))}

    def sources(self) -> list[dict[str, str | None]]:
        """FactKB."""
        return [self.model.loaded.source]


class BertScorePrecisionScorer:
    """BERTScore precision of summaries against their documents: how much of a summary the document supports.

    Against the document, not the reference, as in the work that the summary prompts come from (arXiv 2305.14739) and
    in the study that found it to go along with human judgements of factuality (Pagnoni et al. 2021, arXiv 2104.13346).
    """

    metrics: tuple[str, ...] = ("bertscore_precision",)

    def __init__(self, model: BertScore) -> None:
        self.model = model

    def score(self, samples: Sequence[Sample]) -> dict[str, Scored]:
        """Returns every metric."""
        matches = self.model.match(*_summaries_and_documents(samples))
        return {"bertscore_precision": averaged([match.precision for match in matches])}

    def sources(self) -> list[dict[str, str | None]]:
        """The encoder."""
        return [self.model.loaded.source]


class SelfCheckScorer:
    """Consistency of passages with their samples, by one of the four sentence scorers."""

    def __init__(self, sentences: SentenceScorer) -> None:
        self.sentences = sentences
        self.metrics: tuple[str, ...] = metric_names(sentences.name)

    def score(self, samples: Sequence[Sample]) -> dict[str, Scored]:
        """Returns every metric."""
        passages = [Passage(text, others) for text, *others in (sample["filtered_resps"] for sample in samples)]
        rows = [consistency(self.sentences, passage) for passage in passages]
        return {metric: averaged([row[metric] for row in rows]) for metric in self.metrics}

    def sources(self) -> list[dict[str, str | None]]:
        """The models of the sentence scorer."""
        return self.sentences.sources()


class SpearmanScorer:
    """The rank correlation of SHROOM, whose rows hold the pairs to correlate."""

    metrics: tuple[str, ...] = ("spearman",)

    def score(self, samples: Sequence[Sample]) -> dict[str, Scored]:
        """Returns every metric."""
        pairs = [tuple(sample["spearman"]) for sample in samples]
        rho = spearman(pairs)
        if rho is None:
            side = "the model's" if len({model for model, _ in pairs}) == 1 else "the annotators'"
            raise AbsentError(f"{side} P(Hallucination) is the same in every row: there is no correlation")
        return {"spearman": Scored([sample["spearman"] for sample in samples], rho, spearman_stderr(rho, len(pairs)))}

    def sources(self) -> list[dict[str, str | None]]:
        """No model."""
        return []


SCORERS: dict[str, Callable[[int], Scorer]] = {
    "rougeL": lambda batch_size: RougeLScorer(),
    "factkb": lambda batch_size: FactKBScorer(FactKB(batch_size)),
    "bertscore_precision": lambda batch_size: BertScorePrecisionScorer(BertScore(batch_size)),
    "selfcheck_ngram": lambda batch_size: SelfCheckScorer(NgramScorer()),
    "selfcheck_nli": lambda batch_size: SelfCheckScorer(NliScorer(batch_size)),
    "selfcheck_bertscore": lambda batch_size: SelfCheckScorer(BertScoreScorer(BertScore(batch_size))),
    "selfcheck_qa": lambda batch_size: SelfCheckScorer(QaScorer(batch_size)),
    "spearman": lambda batch_size: SpearmanScorer(),
}


def make_scorers(names: Iterable[str] | None = None, batch_size: int = 16) -> Iterator[Scorer]:
    """Yields scorers, new ones each time, so that a model is in memory no longer than its scorer.

    Args:
        names: Keys of SCORERS; None takes all.
        batch_size: How many texts, or pairs of texts, pass through a model at once.
    """
    for name in SCORERS if names is None else names:
        yield SCORERS[name](batch_size)


def _summary(sample: Sample) -> str:
    text: str = sample["filtered_resps"][0]
    return text


def _summaries_and_documents(samples: Sequence[Sample]) -> tuple[list[str], list[str]]:
    return [_summary(sample) for sample in samples], [sample["doc"]["document"] for sample in samples]
