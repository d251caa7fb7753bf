"""Measured times of generation beside a roofline and the cost model, both at measured rates."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from parcontrol.analysis.cost import (
    Cost,
    ModelShape,
    Rates,
    Workload,
    aggregation_seconds,
    embedding_seconds,
    kv_cache_bytes,
    logits_seconds,
    predict,
    stack_seconds,
)
from parcontrol.analysis.model_config import SHAPE_KEYS, model_sizes
from parcontrol.analysis.tables import format_table
from parcontrol.measure.generation import Timing, check_streams, default_streams, prefix_tokens, time_generation
from parcontrol.measure.rates import measure_rates
from parcontrol.parscale.loading import load_backbone
from parcontrol.training.device import choose_device, has_native_bf16

DEFAULT_PREFIX_LENGTH = 48


@dataclass(frozen=True)
class Roofline:
    """Seconds below which the device, at its measured rates, cannot do the work."""

    prefill: float
    decode_step: float


@dataclass(frozen=True)
class Row:
    """One P and batch size: measured, bound from below, and as the cost model has it."""

    timing: Timing
    roofline: Roofline
    cost: Cost


@dataclass(frozen=True)
class Measurement:
    """A model's generation on one device. `threads` counts the processor's threads that torch used."""

    model: str
    device: str
    dtype: str
    threads: int
    rates: Rates
    input_length: int
    output_length: int
    rows: list[Row]

    def measured_total(self, row: Row) -> float:
        """Seconds of prefill and `output_length` steps."""
        return row.timing.prefill + self.output_length * row.timing.decode_step

    def as_dict(self) -> dict[str, Any]:
        """Everything by name with its unit, ready for JSON."""
        rows = [
            {
                "P": row.timing.P,
                "batch_size": row.timing.batch_size,
                "prefill_seconds": row.timing.prefill,
                "decode_step_seconds": row.timing.decode_step,
                "total_seconds": self.measured_total(row),
                "roofline": {f"{name}_seconds": value for name, value in asdict(row.roofline).items()},
                "cost_model_total_seconds": row.cost.latency.total,
            }
            for row in self.rows
        ]
        named = {name: getattr(self, name) for name in ("model", "device", "dtype", "threads")}
        lengths = {"input_length": self.input_length, "output_length": self.output_length}
        return {**named, **asdict(self.rates), **lengths, "rows": rows}

    def __str__(self) -> str:
        plain = {row.timing.batch_size: row.timing.decode_step for row in self.rows if row.timing.P == 1}
        table = []
        for row in self.rows:
            timing, roofline = row.timing, row.roofline
            base = plain.get(timing.batch_size)
            table.append(
                [
                    str(timing.P),
                    str(timing.batch_size),
                    f"{1e3 * timing.prefill:.2f}",
                    f"{timing.prefill / roofline.prefill:.1f}x",
                    f"{1e3 * timing.decode_step:.2f}",
                    f"{timing.decode_step / roofline.decode_step:.1f}x",
                    "-" if base is None else f"{timing.decode_step / base:.2f}x",
                    f"{timing.batch_size / timing.decode_step:.1f}",
                    f"{self.measured_total(row):.3f}",
                    f"{row.cost.latency.total:.3f}",
                ]
            )
        header = ["P", "batch", "prefill ms", "/ roofline", "step ms", "/ roofline", "/ P = 1", "tokens/s"]
        return "\n".join(
            (
                f"{self.model} on {self.device}, {self.dtype}, {self.threads} threads, "
                f"{self.input_length} + {self.output_length} tokens",
                f"measured rates: {self.rates.flops_per_s / 1e9:.4g} GFLOP/s in matrix products, "
                f"{self.rates.bytes_per_s / 1e9:.4g} GB/s of memory",
                "",
                format_table([*header, "total s", "cost model s"], table),
            )
        )


def roofline(shape: ModelShape, workload: Workload, rates: Rates) -> Roofline:
    """Lower bound by the blocks of the cost model, for what the model really does.

    Other than the cost model as published: prefixes are keys and values only, so prefill runs over the
    prompt alone; logits are made for B rows and one position; a step reads the cache once, at its mean
    length, and does not store it again.
    """
    P, rows, batch = workload.P, workload.stack_rows, workload.batch_size

    def one_pass(tokens: int) -> float:
        head = max(embedding_seconds(shape, rates), logits_seconds(shape, rates, batch, 1))
        return stack_seconds(shape, rates, rows, tokens) + head + aggregation_seconds(shape, rates, P, batch, tokens)

    full = kv_cache_bytes(shape, workload)
    length = workload.prefill_tokens + workload.output_length
    mean_length = workload.prefill_tokens + workload.output_length / 2
    return Roofline(one_pass(workload.input_length), one_pass(1) + full * mean_length / length / rates.bytes_per_s)


def measure(
    model_name: str,
    *,
    P_values: Sequence[int] | None,
    batch_sizes: Sequence[int],
    input_length: int,
    output_length: int,
    repeats: int,
    device_name: str | None = None,
    dtype_name: str = "auto",
    progress: Callable[[str], None] = lambda line: None,
) -> Measurement:
    """Load a model, measure the device, time every P and batch size.

    The model is a ParScale checkpoint, or a backbone, which gets untrained streams. `dtype_name` is
    bf16, fp32 or auto (bf16 where the device computes it in hardware).

    Raises:
        ValueError: the model or device cannot be had, a size is out of range, or the model is one that
            the cost model does not describe.
    """
    device = choose_device(device_name)
    bf16 = dtype_name == "bf16" or (dtype_name == "auto" and has_native_bf16(device))
    dtype = torch.bfloat16 if bf16 else torch.float32
    model, _ = load_backbone(model_name, dtype=dtype, device=device)
    model.eval()
    sizes = model_sizes(model.config.to_dict(), model_name)
    shape = ModelShape(**{key: sizes[key] for key in SHAPE_KEYS}, element_bytes=dtype.itemsize)
    streams = list(P_values) if P_values else default_streams(model)
    check_streams(model, streams)
    # At P = 1 a checkpoint keeps its one prefix, a backbone has none; the cost model knows only the latter.
    K = prefix_tokens(model, DEFAULT_PREFIX_LENGTH)
    base = Workload(parscale_prefix_tokens=K, input_length=input_length, output_length=output_length)
    workloads = {(P, b): replace(base, P=P, batch_size=b) for P in streams for b in batch_sizes}
    progress(f"measuring {device} in {str(dtype).removeprefix('torch.')}")
    rates = measure_rates(device, dtype)
    # Predicted first, so that what the cost model refuses is refused before anything is timed.
    predicted = {key: predict(shape, workload, rates) for key, workload in workloads.items()}
    timings = time_generation(
        model,
        P_values=streams,
        batch_sizes=batch_sizes,
        input_length=input_length,
        output_length=output_length,
        prefix_length=K,
        repeats=repeats,
        progress=progress,
    )
    keyed = {(timing.P, timing.batch_size): timing for timing in timings}
    rows = [Row(keyed[key], roofline(shape, work, rates), predicted[key]) for key, work in workloads.items()]
    return Measurement(
        model=model_name,
        device=_device_name(device),
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        rates=rates,
        input_length=input_length,
        output_length=output_length,
        rows=rows,
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.processor() or platform.machine()})"
