"""What sweeps show, in numbers: losses per P, differences with intervals, the law, the price.

Everything that a report says is computed here once; the report only words it. Losses are nats per
predicted token. A number that cannot be had is None, with the reason beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from statistics import fmean, median
from typing import Any

import numpy as np

from parcontrol.analysis import published
from parcontrol.analysis.accelerators import ACCELERATORS, DEFAULT_ACCELERATOR
from parcontrol.analysis.cost import (
    Cost,
    ModelShape,
    Rates,
    aggregation_seconds,
    logits_seconds,
    predict,
    stack_seconds,
)
from parcontrol.analysis.law import CONFIDENCE, StreamFit, fit_streams
from parcontrol.analysis.law_report import LawReport
from parcontrol.analysis.law_report import report as fit_law
from parcontrol.analysis.loss_table import LossTable
from parcontrol.analysis.model_config import model_sizes, shape_and_workload
from parcontrol.analysis.results import Results, Run, RunResult, Sweep
from parcontrol.analysis.statistics import (
    RESAMPLES,
    Array,
    Interval,
    covers_zero,
    percentile_interval,
    resampled_losses,
    standard_deviation,
    t_interval,
)
from parcontrol.analysis.validity import (
    Check,
    belonging,
    check_sweep,
    mean_loss,
    same_documents,
    why_incomparable,
)

# The corpora whose published E and alpha L(P) borrows, the one that the project trains on first.
CORPORA = ("Pile", "Stack-V2-Python")
_LAW_RESAMPLES = 1000
JOINT_SIZES = 3
# Nats by which a loss is moved to see how the fit follows.
_NUDGE = 1e-4
_BAND_POINTS = 33
# Compute without traffic: with these rates the cost formulas count flops.
_FLOPS = Rates(flops_per_s=1.0, bytes_per_s=math.inf)


class DocumentSamples:
    """Losses of finished runs on resampled documents; runs on the same documents share the draws."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._samples: dict[Run, tuple[Array, Array] | None] = {}
        for run in runs:
            if run not in self._samples:
                self._resample([other for other in runs if same_documents(run, other)])

    def of(self, run: Run) -> Array | None:
        """Losses of the trained model [R], or None where there are too few documents."""
        pair = self._samples[run]
        return None if pair is None else pair[0]

    def of_backbone(self, run: Run) -> Array | None:
        """Losses of the backbone alone [R] in the same draws."""
        pair = self._samples[run]
        return None if pair is None else pair[1]

    def _resample(self, runs: list[Run]) -> None:
        documents = [run.documents for run in runs if run.documents is not None]
        if len(documents[0].tokens) < 2:
            self._samples |= dict.fromkeys(runs)
            return
        rows = [row for each in documents for row in (each.loss_sum, each.backbone_loss_sum)]
        columns = resampled_losses(np.stack(rows), documents[0].tokens)
        self._samples |= {run: (columns[:, 2 * i], columns[:, 2 * i + 1]) for i, run in enumerate(runs)}


@dataclass(frozen=True)
class Difference:
    """A mean difference of losses, what is compared minus the reference, over the seeds of both.

    Attributes:
        value: Nats per token, negative where the loss is lower; None where it is refused.
        documents: Paired bootstrap interval over validation documents.
        seeds: t interval over seeds; None with fewer than two.
        refused: Why this is no difference that P (or the sweep) alone makes.
    """

    compared: str
    reference: str
    value: float | None
    documents: Interval | None
    seeds: Interval | None
    seed_count: int
    refused: str | None

    @property
    def verdict(self) -> str:
        """Lower, higher, or nothing that these data show."""
        if self.refused is not None:
            return f"not compared: {self.refused}"
        assert self.value is not None
        if self.documents is None:
            return "no difference shown: too few documents for an interval"
        intervals = [interval for interval in (self.documents, self.seeds) if interval is not None]
        if any(map(covers_zero, intervals)):
            return "no difference shown"
        return "lower" if self.value < 0 else "higher"

    @property
    def shown(self) -> bool:
        """Whether the data tell the two apart."""
        return self.verdict in ("lower", "higher")

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, ready for JSON."""
        return {
            "compared": self.compared,
            "reference": self.reference,
            "difference": self.value,
            "interval_documents": self.documents,
            "interval_seeds": self.seeds,
            "seeds": self.seed_count,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class StreamSummary:
    """All finished runs of a sweep at one P.

    `seed_spread` and `seed_interval` are the standard deviation and the t interval of the mean over
    seeds. `gain` is the difference from the frozen backbone.
    """

    P: int
    runs: tuple[Run, ...]
    loss: float
    seed_spread: float | None
    seed_interval: Interval | None
    gain: Difference

    @property
    def perplexity(self) -> float:
        """exp(loss), per token."""
        return math.exp(self.loss)

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, ready for JSON."""
        return {
            "P": self.P,
            "runs": [run.name for run in self.runs],
            "loss": self.loss,
            "perplexity": self.perplexity,
            "seed_spread": self.seed_spread,
            "interval_seeds": self.seed_interval,
            "against_backbone": self.gain.as_dict(),
        }


@dataclass(frozen=True)
class StreamLaw:
    """L(P) fitted to one sweep, with E and alpha borrowed from the published fit on `corpus`.

    `k_documents` is k's interval over documents; `band` maps values of P to the interval of
    L(P) - L(1) over documents. Both are propagated from the resampled losses to first order: the
    fit is smooth in its losses, and documents move them by parts in a thousand. `measured_worth` inverts
    the law at the measured loss of each P, starting from that of the first, with its interval over documents.
    """

    corpus: str
    fit: StreamFit
    k_documents: Interval | None
    band: dict[float, Interval] | None
    measured_worth: dict[int, tuple[float | None, Interval | None]]

    def worth(self, P: int) -> float:
        """Factor on the parameters that P streams are worth."""
        return self.fit.parameter_factor(P)

    @property
    def k_widest(self) -> tuple[Interval, str] | None:
        """The wider of k's intervals over documents and over residuals, and which it is."""
        residuals = None if self.fit.intervals is None else self.fit.intervals["k"]
        known = [(ends, over) for ends, over in ((self.k_documents, "documents"), (residuals, "residuals")) if ends]
        return max(known, key=lambda pair: pair[0][1] - pair[0][0], default=None)

    def worth_interval(self, P: int) -> Interval | None:
        """Interval of that factor, from the widest of k."""
        if self.k_widest is None:
            return None
        low, high = (1 + k * math.log(P) for k in self.k_widest[0])
        return low, high

    def measured(self, P: int) -> float | None:
        """Factor at which the law gives the measured loss; None where no factor does."""
        return self.measured_worth[P][0]

    def measured_documents(self, P: int) -> Interval | None:
        """Its interval over documents."""
        return self.measured_worth[P][1]

    def paper(self, P: int) -> float:
        """The published factor on the same corpus."""
        return 1 + published.LAWS[self.corpus].k * math.log(P)

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, ready for JSON."""
        intervals = self.fit.intervals
        return {
            "borrowed_from": self.corpus,
            "E": self.fit.E,
            "alpha": self.fit.alpha,
            "single_stream_loss": self.fit.single_stream_loss,
            "k": self.fit.k,
            "k_interval_documents": self.k_documents,
            "k_interval_residuals": None if intervals is None else intervals["k"],
            "k_published": published.LAWS[self.corpus].k,
        }


@dataclass(frozen=True)
class Price:
    """What training at one P took, beside what the cost model predicts; means over the runs.

    Attributes:
        tokens_per_second: Tokens trained on per second spent in steps: the median of a run's records.
        peak_memory_bytes: The most that a run took, device memory or (on a CPU) main memory.
        flops_per_token: Predicted, of one forward pass over a training sequence.
        inference: Predicted memory and latency of generating 64 tokens after 64, batch 1, bf16.
        unpredicted: Why there is no prediction.
    """

    P: int
    runs: tuple[Run, ...]
    tokens_per_second: float
    training_seconds: float
    data_wait_fraction: float
    peak_memory_bytes: float
    flops_per_token: float | None
    inference: Cost | None
    unpredicted: str | None

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, ready for JSON."""
        return {
            "P": self.P,
            "tokens_per_second": self.tokens_per_second,
            "training_seconds": self.training_seconds,
            "data_wait_fraction": self.data_wait_fraction,
            "peak_memory_bytes": self.peak_memory_bytes,
            "predicted_forward_flops_per_token": self.flops_per_token,
            "predicted_inference": None if self.inference is None else self.inference.as_dict(),
            "unpredicted": self.unpredicted,
        }


@dataclass(frozen=True)
class SweepFindings:
    """What one sweep shows.

    `compared` holds the finished runs that belong together, which all numbers are made of; `left_out`
    says why each other finished run does not.
    """

    sweep: Sweep
    compared: Sweep
    left_out: dict[Run, str]
    checks: list[Check]
    streams: list[StreamSummary]
    differences: list[Difference]
    steps: list[Difference]
    laws: list[StreamLaw]
    unfitted: str | None
    prices: list[Price]
    parameters: int | None

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, ready for JSON."""
        return {
            "name": self.sweep.name,
            "directory": str(self.sweep.path),
            "checks": [asdict(check) for check in self.checks],
            "runs": [run_as_dict(run) for run in self.sweep.runs],
            "broken_runs": [{"run": run.name, "problem": run.problem} for run in self.sweep.broken],
            "left_out": [{"run": run.name, "reason": reason} for run, reason in self.left_out.items()],
            "streams": [summary.as_dict() for summary in self.streams],
            "differences": [difference.as_dict() for difference in (*self.differences, *self.steps)],
            "laws": [law.as_dict() | {"worth": self._worth(law)} for law in self.laws],
            "unfitted": self.unfitted,
            "prices": [price.as_dict() for price in self.prices],
            "non_embedding_parameters": self.parameters,
        }

    def _worth(self, law: StreamLaw) -> list[dict[str, Any]]:
        return [
            {
                "P": P,
                "factor": law.worth(P),
                "interval": law.worth_interval(P),
                "interval_of": None if law.k_widest is None else law.k_widest[1],
                "measured": law.measured(P),
                "measured_interval_documents": law.measured_documents(P),
                "paper": law.paper(P),
            }
            for P in self.compared.streams
        ]

    @property
    def reference(self) -> StreamSummary | None:
        """The smallest P that belongs, which the others are compared with."""
        return self.streams[0] if self.streams else None

    @property
    def law(self) -> StreamLaw | None:
        """The fit that the report speaks of first."""
        return self.laws[0] if self.laws else None

    @property
    def shown(self) -> set[int]:
        """The values of P whose loss differs from that of the first P."""
        names = {difference.compared for difference in self.differences if difference.shown}
        return {P for P in self.compared.streams if f"P = {P}" in names}

    @property
    def faults(self) -> list[Check]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.stands]


@dataclass(frozen=True)
class Findings:
    """What all sweeps show; `between` compares later sweeps with the first one at equal P."""

    sweeps: list[SweepFindings]
    between: list[Difference]
    joint: LawReport | None
    joint_refused: str | None

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, ready for JSON."""
        return {
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "sweeps": [found.as_dict() for found in self.sweeps],
            "between_sweeps": [difference.as_dict() for difference in self.between],
            "joint_law": None if self.joint is None else self.joint.as_dict(),
            "joint_law_refused": self.joint_refused,
        }


def run_as_dict(run: Run) -> dict[str, Any]:
    """One run in a flat row: who it is, how far it came, and its result."""
    fields = RunResult.model_fields
    known = run.outcome.model_dump() if run.finished else dict.fromkeys(fields)
    again = run.revalidation.process.started if run.revalidation else None
    who = {"run": run.name, "P": run.P, "seed": run.seed, "status": run.status, "steps_done": run.step}
    return {**who, "measured_again": again, **known}


def analyse(results: Results) -> Findings:
    """Computes everything that a report on `results` says."""
    parts = [belonging(sweep.finished) for sweep in results.sweeps]
    compared = [replace(sweep, runs=kept, broken=()) for sweep, (kept, _) in zip(results.sweeps, parts, strict=True)]
    samples = DocumentSamples([run for sweep in compared for run in sweep.runs])
    joint, refused = _joint_law(compared)
    return Findings(
        [
            _analyse_sweep(sweep, kept, left_out, samples)
            for sweep, kept, (_, left_out) in zip(results.sweeps, compared, parts, strict=True)
        ],
        _between_sweeps(compared, samples),
        joint,
        refused,
    )


def non_embedding_parameters(run: Run) -> int | None:
    """Parameters without embeddings, with prefixes and aggregator: the N of the published law.

    None where the final checkpoint does not say how large its embeddings are.
    """
    config = run.model_config
    if config is None:
        return None
    tied, vocabulary, hidden = map(config.get, ("tie_word_embeddings", "vocab_size", "hidden_size"))
    if not (isinstance(tied, bool) and isinstance(vocabulary, int) and isinstance(hidden, int)):
        return None
    return run.outcome.parameters_total - (1 if tied else 2) * vocabulary * hidden


def _analyse_sweep(sweep: Sweep, compared: Sweep, left_out: dict[Run, str], samples: DocumentSamples) -> SweepFindings:
    first, later = compared.streams[:1], compared.streams[1:]
    differences = {P: _stream_difference(compared, P, first[0], samples) for P in later}
    if first:
        absent = set(sweep.streams) - set(compared.streams)
        differences |= {P: _refused_difference(P, first[0], left_out) for P in absent}
    no_pair = next((item.refused for P, item in sorted(differences.items()) if item.refused and P in later), None)
    if no_pair is None:
        laws, unfitted = _stream_laws(compared, samples)
    else:
        laws, unfitted = [], f"the runs cannot be compared ({no_pair})"
    return SweepFindings(
        sweep,
        compared,
        left_out,
        check_sweep(sweep),
        [_summary(compared, P, samples) for P in compared.streams],
        [difference for _, difference in sorted(differences.items())],
        [_stream_difference(compared, b, a, samples) for a, b in pairwise(later)],
        laws,
        unfitted,
        [_price(P, compared.at(P)) for P in compared.streams],
        non_embedding_parameters(compared.runs[0]) if compared.runs else None,
    )


def _refused_difference(P: int, reference: int, left_out: dict[Run, str]) -> Difference:
    """The place of a difference at a P none of whose runs belongs to the comparison."""
    reasons = dict.fromkeys(reason for run, reason in left_out.items() if run.P == P)
    return Difference(f"P = {P}", f"P = {reference}", None, None, None, 0, "; ".join(reasons))


def _summary(sweep: Sweep, P: int, samples: DocumentSamples) -> StreamSummary:
    runs = sweep.at(P)
    seeds = [mean_loss(at_seed) for at_seed in _by_seed(runs).values()]
    gains = [
        (
            mean_loss(at_seed) - fmean(run.outcome.backbone_validation_loss for run in at_seed),
            _minus(_mean(map(samples.of, at_seed)), _mean(map(samples.of_backbone, at_seed))),
        )
        for at_seed in _by_seed(runs).values()
    ]
    several = len(seeds) > 1
    return StreamSummary(
        P,
        runs,
        fmean(seeds),
        standard_deviation(seeds) if several else None,
        t_interval(seeds) if several else None,
        _difference(f"P = {P}", "frozen backbone", gains),
    )


def _stream_difference(sweep: Sweep, P: int, reference: int, samples: DocumentSamples) -> Difference:
    names = (f"P = {P}", f"P = {reference}")
    return _paired_difference(*names, sweep.at(P), sweep.at(reference), samples, why_incomparable)


def _between_sweeps(sweeps: Sequence[Sweep], samples: DocumentSamples) -> list[Difference]:
    def why(a: Run, b: Run) -> str | None:
        return None if same_documents(a, b) else "other validation documents"

    first, *others = sweeps
    return [
        _paired_difference(f"{other.name}, P = {P}", f"{first.name}, P = {P}", other.at(P), first.at(P), samples, why)
        for other in others
        for P in other.streams
        if P in first.streams
    ]


def _paired_difference(
    compared: str,
    reference: str,
    runs: Sequence[Run],
    references: Sequence[Run],
    samples: DocumentSamples,
    why_not: Callable[[Run, Run], str | None],
) -> Difference:
    """Compares runs with references seed by seed."""
    seeds, reference_seeds = _by_seed(runs), _by_seed(references)
    pairs = [(seeds[seed], reference_seeds[seed]) for seed in seeds if seed in reference_seeds]
    reasons = [why_not(a, b) for some, others in pairs for a in some for b in others]
    refused = next(filter(None, reasons), None) if pairs else "no seed in common"
    if refused is not None:
        return Difference(compared, reference, None, None, None, len(pairs), refused)
    values = [
        (mean_loss(a) - mean_loss(b), _minus(_mean(map(samples.of, a)), _mean(map(samples.of, b)))) for a, b in pairs
    ]
    return _difference(compared, reference, values)


def _difference(compared: str, reference: str, by_seed: Sequence[tuple[float, Array | None]]) -> Difference:
    """Puts together one difference, and its resamples over documents, per seed."""
    values = [value for value, _ in by_seed]
    resampled = _mean(draws for _, draws in by_seed)
    return Difference(
        compared,
        reference,
        fmean(values),
        None if resampled is None else percentile_interval(resampled),
        t_interval(values) if len(values) > 1 else None,
        len(values),
        None,
    )


def _stream_laws(sweep: Sweep, samples: DocumentSamples) -> tuple[list[StreamLaw], str | None]:
    """Fits L(P) with the E and alpha of each published corpus that allows it."""
    runs = sweep.finished
    if len(sweep.streams) < 2:
        return [], "a fit of L(P) needs at least two values of P"
    table = LossTable(
        sweep.name,
        np.ones(len(runs)),  # one size, whatever it is
        np.array([run.P for run in runs], float),
        np.array([run.outcome.final_validation_loss for run in runs]),
    )
    laws, refusals = [], []
    for corpus in CORPORA:
        try:
            draws = [samples.of(run) for run in runs]
            laws.append(_stream_law(corpus, table, draws, _mean_losses(sweep, samples)))
        except ValueError as error:
            refusals.append(f"with E and alpha of {corpus}: {error}")
    return laws, "; ".join(refusals) or None


_Losses = dict[int, tuple[float, Array | None]]


def _mean_losses(sweep: Sweep, samples: DocumentSamples) -> _Losses:
    """Loss at each P, and its resamples over documents."""
    return {P: (mean_loss(runs), _mean(map(samples.of, runs))) for P in sweep.streams if (runs := sweep.at(P))}


def _measured_worth(fitted: StreamFit, losses: _Losses) -> dict[int, tuple[float | None, Interval | None]]:
    first = min(losses)
    start, start_draws = losses[first]

    def factor(loss: Any, single: Any) -> Any:
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.divide(np.subtract(single, fitted.E), np.subtract(loss, fitted.E))
            return fitted.parameter_factor(first) * ratio ** (1 / fitted.alpha)

    worth: dict[int, tuple[float | None, Interval | None]] = {}
    for P, (loss, draws) in losses.items():
        value = float(factor(loss, start))
        spread = None if draws is None or start_draws is None else factor(draws, start_draws)
        usable = spread is not None and bool(np.isfinite(spread).all())
        worth[P] = (
            value if math.isfinite(value) else None,
            percentile_interval(spread) if spread is not None and usable else None,
        )
    return worth


def _stream_law(corpus: str, table: LossTable, draws: Sequence[Array | None], losses: _Losses) -> StreamLaw:
    law = published.LAWS[corpus]
    fitted = fit_streams(table, law.E, law.alpha, _LAW_RESAMPLES)
    measured = _measured_worth(fitted, losses)
    columns = [column for column in draws if column is not None]
    if len(columns) < len(draws):
        return StreamLaw(corpus, fitted, None, None, measured)
    # First order: k and L(1) follow the losses along their derivatives, by central differences.
    moved = np.stack(columns, axis=1) - table.loss
    up, down = ([_refit(table, law, row, side * _NUDGE) for row in range(len(table))] for side in (1, -1))
    slopes = (np.array(up) - np.array(down)) / (2 * _NUDGE)
    single, k = (np.array([fitted.single_stream_loss, fitted.k]) + moved @ slopes).T
    grid = np.geomspace(1, table.P.max(), _BAND_POINTS)
    worth = 1 + np.outer(k, np.log(grid))
    band = None
    if (worth > 0).all():
        change = (single - law.E)[:, None] * (worth**-law.alpha - 1)
        band = {float(P): percentile_interval(change[:, i]) for i, P in enumerate(grid)}
    return StreamLaw(corpus, fitted, percentile_interval(k), band, measured)


def _refit(table: LossTable, law: published.PublishedLaw, row: int, nudge: float) -> tuple[float, float]:
    loss = table.loss.copy()
    loss[row] += nudge
    fitted = fit_streams(replace(table, loss=loss), law.E, law.alpha, resamples=1)
    return fitted.single_stream_loss, fitted.k


def _joint_law(sweeps: Sequence[Sweep]) -> tuple[LawReport | None, str | None]:
    """Fits L(N, P) over the backbones of all sweeps, through the runs that belong, or says why not."""
    runs = [run for sweep in sweeps for run in sweep.runs]
    if len(sweeps) < 2:
        return None, None
    if not runs:
        return None, "no run is finished"
    if any(not same_documents(runs[0], run) for run in runs):
        return None, "the sweeps were validated on other documents, or with another tokenizer"
    if len({run.outcome.tokens for run in runs}) > 1:
        return None, "the runs trained on other numbers of tokens"
    if len({run.outcome.data_sha256 for run in runs}) > 1:
        return None, "the runs trained on other data"
    if len({run.outcome.mode for run in runs}) > 1:
        return None, "in some sweeps prefixes and aggregator train alone, in others every parameter"
    sizes = [non_embedding_parameters(run) for run in runs]
    if None in sizes:
        return None, f"{runs[sizes.index(None)].name} has no final checkpoint that says its size"
    # Counted at each sweep's first P: of a very small backbone the aggregator makes a new size with every P.
    backbones = [size for sweep in sweeps for run in sweep.runs[:1] if (size := non_embedding_parameters(run))]
    ones = np.ones(len(backbones))
    count = LossTable("backbones", np.array(backbones, float), ones, ones).sizes
    if count < JOINT_SIZES:
        return None, f"it needs at least {JOINT_SIZES} model sizes, and the sweeps have {count}"
    table = LossTable(
        "all sweeps",
        np.array(sizes, float),
        np.array([run.P for run in runs], float),
        np.array([run.outcome.final_validation_loss for run in runs]),
    )
    try:
        return fit_law(table, _LAW_RESAMPLES), None
    except ValueError as error:
        return None, str(error)


def _price(P: int, runs: tuple[Run, ...]) -> Price:
    flops, inference, reason = _predictions(runs)
    return Price(
        P,
        runs,
        tokens_per_second=fmean(map(_median_speed, runs)),
        training_seconds=fmean(run.outcome.training_seconds for run in runs),
        data_wait_fraction=fmean(run.outcome.data_wait_fraction for run in runs),
        peak_memory_bytes=fmean(run.outcome.peak_memory_bytes for run in runs),
        flops_per_token=flops,
        inference=inference,
        unpredicted=reason,
    )


def _median_speed(run: Run) -> float:
    """Median over the records of a run, which other load on the machine for a while does not move."""
    speeds = run.series("tokens_per_second")[1]
    return median(speeds) if speeds else run.outcome.tokens_per_second


def _predictions(runs: tuple[Run, ...]) -> tuple[float | None, Cost | None, str | None]:
    sized = next((run for run in runs if run.model_config is not None), None)
    if sized is None or sized.model_config is None:
        return None, None, "there is no final checkpoint that says the model's sizes"
    try:
        shape, workload = shape_and_workload(model_sizes(sized.model_config, sized.name))
        inference = predict(shape, workload, Rates.of(ACCELERATORS[DEFAULT_ACCELERATOR]))
    except ValueError as error:
        return None, None, str(error)
    return forward_flops(shape, sized.P, sized.config.data.sequence_length), inference, None


def forward_flops(shape: ModelShape, P: int, tokens: int) -> float:
    """Predicted flops per token of a forward pass over one training sequence.

    The cost model's own formulas: P streams through all layers, one head and one aggregator. A
    backward pass costs a multiple of it that is nearly the same at every P, so ratios between P
    hold for training as well.
    """
    stack = stack_seconds(shape, _FLOPS, P, tokens)
    head = logits_seconds(shape, _FLOPS, 1, tokens)
    return (stack + head + aggregation_seconds(shape, _FLOPS, P, 1, tokens)) / tokens


def _by_seed(runs: Iterable[Run]) -> dict[int, list[Run]]:
    seeds: dict[int, list[Run]] = {}
    for run in runs:
        seeds.setdefault(run.seed, []).append(run)
    return seeds


def _mean(draws: Iterable[Array | None]) -> Array | None:
    """Mean over runs, resample by resample; None where one of them has no resamples."""
    columns = list(draws)
    known = [column for column in columns if column is not None]
    return np.mean(known, axis=0) if len(known) == len(columns) else None


def _minus(a: Array | None, b: Array | None) -> Array | None:
    return None if a is None or b is None else a - b
