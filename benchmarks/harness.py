"""What every benchmark shares: measure side by side, report ratios, write JSON.

The machines at hand are noisy, so candidates take turns within one run, and what counts is the median over rounds of
the ratio within a round, never a time by itself.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType


def parser(description: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """Arguments that every benchmark takes."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=rounds, help="rounds; the median counts (default %(default)s)")
    arguments.add_argument("--json", type=Path, help="also write the figures to this file")
    return arguments


def side_by_side(candidates: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every candidate in every round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(rounds + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def kernel_seconds(run: Callable[[], Any]) -> float:
    """Seconds in which a CUDA device works on a call, by its own clock; for the rest it waits for the host."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        run()
        torch.cuda.synchronize()
    return sum(event.device_time for event in profile.events() if event.device_type == DeviceType.CUDA) / 1e6


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Median and extremes of the ratio taken round by round."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def report(rows: list[dict[str, Any]], path: Path | None) -> None:
    """Print one line of JSON per row, and write all of them with what they were measured on."""
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    for row in rows:
        print(json.dumps(row))
    if path:
        path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
