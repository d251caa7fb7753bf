"""The paper's headline claim, rederived: P streams against more parameters, at equal loss.

Claim (arXiv 2505.10475, abstract and figure 4): the 1.6B model at P = 8 needs up to 22 times less
added memory and 6 times less added latency than a larger plain model with the same loss. Both
added costs are counted from the plain 1.6B model:

    ratio = (cost of the equal-loss plain model - cost of plain 1.6B)
            / (cost of 1.6B at P = 8 - cost of plain 1.6B)

What the claim rests on is the size of the equal-loss plain model, which nobody has trained. Each
`Derivation` below is one way to infer it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from parcontrol.analysis import published
from parcontrol.analysis.accelerators import ACCELERATORS, DEFAULT_ACCELERATOR
from parcontrol.analysis.cost import GIB, ModelShape, Rates, Workload, predict
from parcontrol.analysis.tables import format_table

SIZE, STREAMS = "1.6B", 8
LENGTHS = (64, 128, 256, 512)
BATCH_SIZES = (1, 2, 4, 8)
PAPER_MEMORY_RATIO, PAPER_LATENCY_RATIO = 22, 6

ASSUMPTIONS = (
    f"compared: {SIZE} at P = {STREAMS} against a plain (P = 1) model of the same loss, both as "
    f"an increase over plain {SIZE}",
    "costs: the formulas of `parcontrol cost` (docs/cost.md) on "
    f"{DEFAULT_ACCELERATOR}, flops efficiency 0.7, memory efficiency 0.9, 2 bytes a number",
    "lengths: mean over input = output = 64, 128, 256 and 512 tokens; the paper does not say "
    "whether it averaged these four pairs or all sixteen combinations",
    "shapes: 36 layers, 16 heads, 2 key/value heads, vocabulary 151936, 48 prefix tokens",
    "between published sizes the cost of a plain model is linear in its non-embedding parameters",
    "losses: training losses of the Stack-V2-Python runs, unless a line says Pile",
    "the interpolation behind the printed 22 and 6 is not published; the two measured-loss lines bracket it",
)


@dataclass(frozen=True, slots=True)
class Price:
    """Memory in GiB and latency in seconds, each a mean over lengths."""

    memory: float
    latency: float


@dataclass(frozen=True, slots=True)
class Derivation:
    """One way to find the equal-loss plain model.

    `basis` is "measured" where it interpolates the measured losses, "law" where it goes through a
    fitted law. `parameters` is that model's size, or None where costs are interpolated directly.
    `price` maps the prices of the published plain models to that of the equal-loss one.
    """

    name: str
    basis: str
    parameters: float | None
    price: Callable[[dict[str, Price]], Price]


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times less ParScale adds than the equal-loss plain model does."""

    derivation: str
    basis: str
    parameters: float | None
    batch_size: int
    memory: float
    latency: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The claim and its rederivations.

    `ratios` covers every derivation and batch size at the averaged lengths; `by_length` is the
    first derivation at batch size 1 for other choices of lengths.
    """

    ratios: list[Ratio]
    by_length: dict[str, Ratio]

    def at_batch(self, batch_size: int) -> list[Ratio]:
        return [ratio for ratio in self.ratios if ratio.batch_size == batch_size]

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, ready for JSON."""
        return {
            "paper": {"memory_ratio": PAPER_MEMORY_RATIO, "latency_ratio": PAPER_LATENCY_RATIO},
            "assumptions": list(ASSUMPTIONS),
            "ratios": [asdict(ratio) for ratio in self.ratios],
            "batch_1_by_length": {name: asdict(ratio) for name, ratio in self.by_length.items()},
            "limit": self.limit(),
        }

    def limit(self) -> str:
        """Where the claim ends, in a sentence."""
        largest = self.at_batch(BATCH_SIZES[-1])
        low, high = _span(ratio.latency for ratio in largest)
        if high < 1:
            verdict = "ParScale is the slower one by every derivation"
        elif low < 1:
            verdict = "which of the two is slower depends on the derivation"
        else:
            verdict = "ParScale is still the faster one"
        memory = "{:.1f}x to {:.1f}x".format(*_span(ratio.memory for ratio in largest))
        return (
            f"The claim holds at batch size 1 and shrinks as the batch grows. At batch size "
            f"{BATCH_SIZES[-1]} the latency ratio is {low:.2f}x to {high:.2f}x: {verdict}. "
            f"The memory ratio there is {memory}."
        )

    def __str__(self) -> str:
        claim = (
            f"Claim: {SIZE} at P = {STREAMS}, batch size 1, adds up to {PAPER_MEMORY_RATIO}x less "
            f"memory and {PAPER_LATENCY_RATIO}x less latency\n"
            "than parameter scaling to the same loss."
        )
        assumptions = "\n".join(f"- {line}" for line in ASSUMPTIONS)
        return "\n\n".join(
            (
                claim,
                f"Assumptions\n{assumptions}",
                self._derivation_table(),
                self._batch_table(),
                self._length_table(),
                f"{self._origin()}\n{self.limit()}",
            )
        )

    def _origin(self) -> str:
        first = self.at_batch(1)
        text = []
        for basis in ("measured", "law"):
            chosen = [r for r in first if r.basis == basis and not r.derivation.startswith("Pile")]
            memory, latency = _span(r.memory for r in chosen), _span(r.latency for r in chosen)
            text.append(
                f"{memory[0]:.1f}x to {memory[1]:.1f}x memory and {latency[0]:.1f}x to {latency[1]:.1f}x latency"
            )
        return (
            f"The printed {PAPER_MEMORY_RATIO}x and {PAPER_LATENCY_RATIO}x come from the measured "
            f"losses ({text[0]}), not from the fitted law ({text[1]})."
        )

    def _derivation_table(self) -> str:
        rows = [
            [
                ratio.derivation,
                "-" if ratio.parameters is None else f"{ratio.parameters / 1e9:.3f}B",
                f"{ratio.memory:.1f}x",
                f"{ratio.latency:.2f}x",
            ]
            for ratio in self.at_batch(1)
        ]
        header = ["Batch size 1: how the equal-loss model is found", "its N", "memory", "latency"]
        return format_table(header, rows)

    def _batch_table(self) -> str:
        rows = [
            [
                first.derivation,
                *(
                    f"{ratio.memory:.1f}x / {ratio.latency:.2f}x"
                    for ratio in self.ratios
                    if ratio.derivation == first.derivation
                ),
            ]
            for first in self.at_batch(1)
        ]
        header = ["Memory / latency over batch size", *(f"batch {b}" for b in BATCH_SIZES)]
        return format_table(header, rows)

    def _length_table(self) -> str:
        rows = [[name, f"{ratio.memory:.1f}x", f"{ratio.latency:.2f}x"] for name, ratio in self.by_length.items()]
        derivation = next(iter(self.by_length.values())).derivation
        header = [f"Batch size 1 over lengths ({derivation})", "memory", "latency"]
        return format_table(header, rows)


def compare() -> Comparison:
    """Rederive the claim in every way, at every batch size."""
    choices = {f"{length} + {length} tokens": [(length, length)] for length in LENGTHS}
    choices["mean of these four pairs"] = [(length, length) for length in LENGTHS]
    choices["mean of all sixteen combinations"] = [(i, o) for i in LENGTHS for o in LENGTHS]
    return Comparison(
        ratios=[ratio for batch_size in BATCH_SIZES for ratio in ratios(batch_size)],
        by_length={name: ratios(1, lengths)[0] for name, lengths in choices.items()},
    )


def _span(values: Iterable[float]) -> tuple[float, float]:
    listed = list(values)
    return min(listed), max(listed)


def mean_price(size: str, P: int, batch_size: int, lengths: Sequence[tuple[int, int]] | None = None) -> Price:
    """Price of a published model, averaged over (input, output) lengths; default: equal pairs."""
    hidden, intermediate = published.SHAPES[size]
    shape = ModelShape(hidden, intermediate)
    rates = Rates.of(ACCELERATORS[DEFAULT_ACCELERATOR])
    pairs = lengths or [(length, length) for length in LENGTHS]
    costs = [
        predict(
            shape,
            Workload(P=P, batch_size=batch_size, input_length=n_in, output_length=n_out),
            rates,
        )
        for n_in, n_out in pairs
    ]
    return Price(
        memory=sum(cost.memory.total for cost in costs) / len(costs) / GIB,
        latency=sum(cost.latency.total for cost in costs) / len(costs),
    )


def derivations() -> list[Derivation]:
    """All ways to the equal-loss model, those from measured losses first."""
    return [
        _measured_in_log_parameters(),
        _measured_in_cost(),
        _law_at_measured_loss("Stack-V2-Python"),
        _law_alone("Stack-V2-Python", count_at=STREAMS),
        _law_alone("Stack-V2-Python", count_at=1),
        _law_alone("Pile", count_at=STREAMS),
        _law_alone("Pile", count_at=1),
    ]


def ratios(batch_size: int, lengths: Sequence[tuple[int, int]] | None = None) -> list[Ratio]:
    """The ratio by every derivation at one batch size."""
    plain = {size: mean_price(size, 1, batch_size, lengths) for size in published.SIZES}
    base, scaled = plain[SIZE], mean_price(SIZE, STREAMS, batch_size, lengths)
    result = []
    for derivation in derivations():
        larger = derivation.price(plain)
        result.append(
            Ratio(
                derivation.name,
                derivation.basis,
                derivation.parameters,
                batch_size,
                (larger.memory - base.memory) / (scaled.memory - base.memory),
                (larger.latency - base.latency) / (scaled.latency - base.latency),
            )
        )
    return result


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _between_prices(low: Price, high: Price, share: float) -> Price:
    return Price(_between(low.memory, high.memory, share), _between(low.latency, high.latency, share))


def _at_parameters(plain: dict[str, Price], count: float) -> Price:
    """Price of a plain model of `count` parameters, linear between its published neighbours."""
    counts = published.PARAMETERS[1]
    upper = next(i for i in range(1, len(counts)) if count <= counts[i] or i == len(counts) - 1)
    low, high = counts[upper - 1], counts[upper]
    assert low <= count <= high, f"{count} lies outside the published sizes"
    sizes = published.SIZES
    share = (count - low) / (high - low)
    return _between_prices(plain[sizes[upper - 1]], plain[sizes[upper]], share)


def _equal_loss_neighbours(corpus: str) -> tuple[str, str, float]:
    """Published plain sizes around the measured loss, and how far along it lies between them."""
    target = published.loss(corpus, SIZE, STREAMS)
    for smaller, larger in zip(published.SIZES, published.SIZES[1:], strict=False):
        high, low = published.loss(corpus, smaller, 1), published.loss(corpus, larger, 1)
        if low <= target <= high:
            return smaller, larger, (high - target) / (high - low)
    raise AssertionError(f"no published plain model reaches the loss {target}")


def _measured_in_log_parameters() -> Derivation:
    smaller, larger, share = _equal_loss_neighbours("Stack-V2-Python")
    low, high = (math.log(published.parameters(size, 1)) for size in (smaller, larger))
    count = math.exp(_between(low, high, share))
    return Derivation(
        f"measured losses of {smaller} and {larger}, loss linear in ln N",
        "measured",
        count,
        lambda plain: _at_parameters(plain, count),
    )


def _measured_in_cost() -> Derivation:
    smaller, larger, share = _equal_loss_neighbours("Stack-V2-Python")
    return Derivation(
        f"measured losses of {smaller} and {larger}, loss linear in cost",
        "measured",
        None,
        lambda plain: _between_prices(plain[smaller], plain[larger], share),
    )


def _law_at_measured_loss(corpus: str) -> Derivation:
    law = published.LAWS[corpus]
    target = published.loss(corpus, SIZE, STREAMS)
    count = law.A * (target - law.E) ** (-1 / law.alpha)
    return Derivation(
        f"{corpus} law solved for the measured loss {target}",
        "law",
        count,
        lambda plain: _at_parameters(plain, count),
    )


def _law_alone(corpus: str, count_at: int) -> Derivation:
    factor = 1 + published.LAWS[corpus].k * math.log(STREAMS)
    count = published.parameters(SIZE, count_at) * factor
    return Derivation(
        f"{corpus} law alone: N·(1 + k·ln {STREAMS}), N counted at P = {count_at}",
        "law",
        count,
        lambda plain: _at_parameters(plain, count),
    )
