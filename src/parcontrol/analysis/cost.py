"""Memory and latency of generating with a ParScale model, as closed formulas.

The formulas are those behind the paper's inference costs (arXiv 2505.10475, section 4; official
`cost_analysis.py` on llm-analysis 0.2.2), so results agree with it digit for digit. They need plain
arithmetic only; this module imports nothing outside the standard library.

Symbols: h hidden size, f intermediate size, L layers, a attention heads, g key/value heads,
V vocabulary, P streams, K prefix tokens, B batch, F flops per second, W bytes per second.
`rows` and `tokens` are the two axes of the activations that a block sees.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from parcontrol.analysis.accelerators import Accelerator

GIB = 2**30

# Beyond this an integer no longer has an exact double, and every result would be a guess.
LARGEST_SIZE = 2**53

# Of efficiencies close to 0 the times would be no numbers any more.
SMALLEST_EFFICIENCY = 1e-9

# The source counts normalisation traffic at four bytes an element whatever the model's own width.
NORM_TRAFFIC_BYTES = 4


def _require_at_least(smallest: dict[str, int], owner: object) -> None:
    for name, minimum in smallest.items():
        value = getattr(owner, name)
        if not minimum <= value <= LARGEST_SIZE:
            raise ValueError(f"{name} is {value}; it must be from {minimum} to 2^53")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a decoder with grouped-query attention, a gated MLP and tied embeddings.

    Raises:
        ValueError: a size is out of range, or the heads do not divide into key/value groups.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int = 36
    num_attention_heads: int = 16
    num_key_value_heads: int = 2
    vocab_size: int = 151936
    max_position_embeddings: int = 2048
    element_bytes: int = 2

    def __post_init__(self) -> None:
        _require_at_least(
            {
                "hidden_size": 1,
                "intermediate_size": 1,
                "num_hidden_layers": 0,
                "num_attention_heads": 1,
                "num_key_value_heads": 1,
                "vocab_size": 1,
                "max_position_embeddings": 0,
                "element_bytes": 1,
            },
            self,
        )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}; it must be a multiple of "
                f"num_key_value_heads, {self.num_key_value_heads}"
            )

    @property
    def attention_parameters(self) -> float:
        """Parameters of one layer's attention, without biases: p_A = 2h² + 2h²·g/a."""
        h = self.hidden_size
        return 2 * h * h + 2 * h * h * self.num_key_value_heads / self.num_attention_heads

    @property
    def mlp_parameters(self) -> int:
        """Parameters of one layer's gated MLP: p_M = 3·h·f."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def weight_bytes(self) -> float:
        """Bytes of the plain model: all layers with two norms each, embedding, final norm."""
        h = self.hidden_size
        layer = self.attention_parameters + self.mlp_parameters + 2 * h
        return self.element_bytes * (self.num_hidden_layers * layer + self.vocab_size * h + h)


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked of the model: P streams, K prefix tokens, B rows, prompt and answer length.

    Raises:
        ValueError: a size is out of range, or there is nothing to prefill.
    """

    P: int = 1
    parscale_prefix_tokens: int = 48
    batch_size: int = 1
    input_length: int = 64
    output_length: int = 64

    def __post_init__(self) -> None:
        _require_at_least(
            {
                "P": 1,
                "parscale_prefix_tokens": 0,
                "batch_size": 1,
                "input_length": 0,
                "output_length": 1,
            },
            self,
        )
        if self.prefill_tokens == 0:
            raise ValueError("input_length is 0 and there is no prefix; nothing would be prefilled")

    @property
    def stack_rows(self) -> int:
        """Rows that the decoder stack sees: b = B·P."""
        return self.batch_size * self.P

    @property
    def prefill_tokens(self) -> int:
        """Tokens of one prefilled row: the prompt, and the prefix where there is one (P > 1)."""
        return self.input_length + (self.parscale_prefix_tokens if self.P > 1 else 0)

    @property
    def text_tokens(self) -> int:
        """Prompt and answer together, without the prefix."""
        return self.input_length + self.output_length


@dataclass(frozen=True, slots=True)
class Rates:
    """Attained speed of a device: flops per second and bytes per second."""

    flops_per_s: float
    bytes_per_s: float

    @classmethod
    def of(
        cls,
        accelerator: Accelerator,
        flops_efficiency: float = 0.7,
        hbm_memory_efficiency: float = 0.9,
    ) -> Rates:
        """Data-sheet figures times the fractions of them that are attained.

        Raises:
            ValueError: an efficiency is below SMALLEST_EFFICIENCY or above 1.
        """
        efficiencies = {
            "flops_efficiency": flops_efficiency,
            "hbm_memory_efficiency": hbm_memory_efficiency,
        }
        for name, value in efficiencies.items():
            if not SMALLEST_EFFICIENCY <= value <= 1:
                raise ValueError(f"{name} is {value}; it must be from {SMALLEST_EFFICIENCY} to 1")
        return cls(
            accelerator.peak_tflops * 1e12 * flops_efficiency,
            accelerator.bandwidth_gb_per_s * 1e9 * hbm_memory_efficiency,
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that generation needs at its peak."""

    weights: float
    kv_cache: float
    aggregator: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.kv_cache + self.aggregator + self.activations


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds that generation takes. `logits_correction` is negative where P > 1."""

    prefill: float
    decode_step: float
    decode: float
    aggregation: float
    logits_correction: float

    @property
    def total(self) -> float:
        return self.prefill + self.decode + self.aggregation + self.logits_correction


@dataclass(frozen=True, slots=True)
class Cost:
    """Memory and latency of one workload on one model."""

    memory: Memory
    latency: Latency

    def __str__(self) -> str:
        return f"Memory: {self.memory.total / GIB:.3f}GB; Latency: {self.latency.total:.3f}s"

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Every part by name with its unit, ready for JSON."""
        memory = {f"{f.name}_bytes": getattr(self.memory, f.name) for f in fields(Memory)}
        latency = {f"{f.name}_seconds": getattr(self.latency, f.name) for f in fields(Latency)}
        return {
            "memory": {
                **memory,
                "total_bytes": self.memory.total,
                "total_gib": self.memory.total / GIB,
            },
            "latency": {**latency, "total_seconds": self.latency.total},
        }


def predict(shape: ModelShape, workload: Workload, rates: Rates) -> Cost:
    """Price one generation: `output_length` tokens after a prompt of `input_length`.

    Raises:
        ValueError: the prompt is longer than the model's positions.
    """
    if workload.input_length > shape.max_position_embeddings:
        raise ValueError(
            f"input_length is {workload.input_length}; it must be at most "
            f"max_position_embeddings, {shape.max_position_embeddings}"
        )
    return Cost(_memory(shape, workload), _latency(shape, workload, rates))


def aggregator_parameters(shape: ModelShape, P: int) -> int:
    """Parameters of the aggregator as the source counts them: q = P·h·(h + 1), 0 at P = 1.

    The true module has h + P more; they are left out there and therefore here.
    """
    return P * shape.hidden_size * (shape.hidden_size + 1) if P > 1 else 0


def kv_cache_bytes(shape: ModelShape, workload: Workload) -> float:
    """Keys and values at full length, prefix included, for every stream of every row."""
    cached = workload.prefill_tokens + workload.output_length
    width = shape.hidden_size * shape.num_key_value_heads * shape.num_hidden_layers
    elements = 2 * workload.stack_rows * cached * width / shape.num_attention_heads
    return shape.element_bytes * elements


def _memory(shape: ModelShape, workload: Workload) -> Memory:
    rows, tokens = workload.stack_rows, workload.prefill_tokens
    layer = max(
        _attention_activation_bytes(shape, rows, tokens),
        _mlp_activation_bytes(shape, rows, tokens),
    )
    # The head runs once, after aggregation: B rows. All prefill positions' logits are held.
    logits = shape.element_bytes * workload.batch_size * tokens * shape.vocab_size
    return Memory(
        weights=shape.weight_bytes,
        kv_cache=kv_cache_bytes(shape, workload),
        aggregator=shape.element_bytes * aggregator_parameters(shape, workload.P),
        activations=max(layer, logits),
    )


def _attention_activation_bytes(shape: ModelShape, rows: int, tokens: int) -> int:
    h = shape.hidden_size
    return shape.element_bytes * rows * tokens * max(3 * h, 2 * h + 4 * shape.num_attention_heads)


def _mlp_activation_bytes(shape: ModelShape, rows: int, tokens: int) -> int:
    return shape.element_bytes * rows * tokens * max(shape.hidden_size, shape.intermediate_size)


def attention_seconds(shape: ModelShape, rates: Rates, rows: int, tokens: int) -> float:
    """One layer's attention: projections, and scores over the full square of `tokens`."""
    h = shape.hidden_size
    projections = 2 * rows * tokens * shape.attention_parameters
    scores = 4 * rows * tokens**2 * h
    traffic = shape.element_bytes * shape.attention_parameters
    traffic += _attention_activation_bytes(shape, rows, tokens)
    return max((projections + scores) / rates.flops_per_s, traffic / rates.bytes_per_s)


def mlp_seconds(shape: ModelShape, rates: Rates, rows: int, tokens: int) -> float:
    """One layer's gated MLP."""
    flops = 2 * rows * tokens * shape.mlp_parameters
    traffic = shape.element_bytes * shape.mlp_parameters
    traffic += _mlp_activation_bytes(shape, rows, tokens)
    return max(flops / rates.flops_per_s, traffic / rates.bytes_per_s)


def norm_seconds(shape: ModelShape, rates: Rates, rows: int, tokens: int) -> float:
    """One normalisation."""
    elements = rows * tokens * shape.hidden_size
    return max(5 * elements / rates.flops_per_s, NORM_TRAFFIC_BYTES * elements / rates.bytes_per_s)


def embedding_seconds(shape: ModelShape, rates: Rates) -> float:
    """Reading the whole embedding table once."""
    return shape.element_bytes * shape.vocab_size * shape.hidden_size / rates.bytes_per_s


def logits_seconds(shape: ModelShape, rates: Rates, rows: int, tokens: int) -> float:
    """The output head over `tokens` positions: compute only, as in the source."""
    return 2 * rows * tokens * shape.vocab_size * shape.hidden_size / rates.flops_per_s


def stack_seconds(shape: ModelShape, rates: Rates, rows: int, tokens: int) -> float:
    """All layers: blocks add up, each limited by the slower of compute and traffic."""
    layer = attention_seconds(shape, rates, rows, tokens)
    layer += mlp_seconds(shape, rates, rows, tokens)
    layer += 2 * norm_seconds(shape, rates, rows, tokens)
    return shape.num_hidden_layers * layer


def pass_seconds(shape: ModelShape, rates: Rates, rows: int, tokens: int) -> float:
    """One forward pass with logits for every row and position."""
    stack = stack_seconds(shape, rates, rows, tokens)
    return stack + embedding_seconds(shape, rates) + logits_seconds(shape, rates, rows, tokens)


def aggregation_seconds(shape: ModelShape, rates: Rates, P: int, rows: int, tokens: int) -> float:
    """The aggregator, priced as the fraction q / p_M of one layer's MLP."""
    share = aggregator_parameters(shape, P) / shape.mlp_parameters
    return share * mlp_seconds(shape, rates, rows, tokens)


def _latency(shape: ModelShape, workload: Workload, rates: Rates) -> Latency:
    rows, batch, text = workload.stack_rows, workload.batch_size, workload.text_tokens
    # Every step loads and stores the cache at its final length.
    cache_traffic = 2 * kv_cache_bytes(shape, workload) / rates.bytes_per_s
    decode_step = pass_seconds(shape, rates, rows, 1) + cache_traffic
    # The passes above count logits for B·P rows, the model computes B. The source takes the prefix
    # positions out of this correction, so theirs stay counted B·P times.
    logits = logits_seconds(shape, rates, batch, text) - logits_seconds(shape, rates, rows, text)
    return Latency(
        prefill=pass_seconds(shape, rates, rows, workload.prefill_tokens),
        decode_step=decode_step,
        decode=workload.output_length * decode_step,
        aggregation=aggregation_seconds(shape, rates, workload.P, batch, text),
        logits_correction=logits,
    )
