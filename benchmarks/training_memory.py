"""Peak memory of a PEFT step whose streams are taken one at a time, its time, and the prediction of it.

Claims: (a) at P = 8 and P = 16 the peak is at most 1.25 × that at P = 1 with the same B and T; (b) a step in passes
takes at most 1.6 × the ordinary step at the same P; (c) the predicted peak is within 10 % of the measured one.

SmolLM2-135M shapes with random weights, bf16, K = 48. Every memory figure is the peak of three steps of the training
loop, optimiser included: of a process of its own, libraries and all, and on CUDA of the allocator, which can be asked
anew. The prediction is made before the model is. Times of (b) are of both kinds of step taking turns in one process.
"""

import gc
import json
import subprocess
import sys
from typing import Any

import numpy as np
import psutil
import torch
from harness import parser, ratio, report, side_by_side
from shapes import SHAPES
from transformers import LlamaForCausalLM, PreTrainedModel

from parcontrol.config import RunConfig, load_config
from parcontrol.diagnostics.footprint import peak_bytes, size_of
from parcontrol.diagnostics.memory import MemoryMonitor
from parcontrol.parscale.convert import convert_to_parscale_model, create_parscale_config
from parcontrol.training.device import choose_precision
from parcontrol.training.fitting import memory_setting
from parcontrol.training.freed_memory import freed_memory_kept
from parcontrol.training.loop import TrainingLoop

CLAIMED_MEMORY, CLAIMED_TIME, CLAIMED_ERROR = 1.25, 1.6, 0.10
STEPS = 3
# P, B, T, streams per pass: what (c) is checked on beside the runs of (a).
GRID = [
    (1, 1, 128, 1),
    (1, 1, 1024, 1),
    (2, 4, 256, 2),
    (4, 1, 256, 4),
    (4, 4, 256, 2),
    (8, 2, 128, 2),
    (2, 2, 512, 1),
    (4, 2, 512, 4),
]
GPU_GRID = [
    *GRID,
    (4, 4, 256, 4),
    (8, 8, 256, 8),
    (1, 8, 1024, 1),
    (4, 8, 1024, 4),
    (8, 8, 1024, 1),
    (16, 8, 1024, 1),
    (8, 8, 1024, 2),
    (1, 16, 1024, 1),
]


class RandomBlocks:
    """Random tokens in the place of a corpus."""

    wait_seconds = 0.0

    def __init__(self, T: int) -> None:
        self.T = T

    def next_blocks(self, n: int) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 49152, (n, self.T))

    def provenance(self) -> dict[str, Any]:
        return {}


def make_config(P: int, B: int, T: int, streams_per_pass: int, compiled: bool = False) -> RunConfig:
    return load_config(
        None,
        {
            "parscale.P": P,
            "training.streams_per_pass": streams_per_pass,
            "training.compile": compiled,
            "training.microbatch_size": B,
            "training.gradient_accumulation_steps": 1,
            "training.tokens_per_run": 1000 * B * T,
            "data.sequence_length": T,
        },
    )


def make_model(config: RunConfig, device: str | torch.device) -> PreTrainedModel:
    """A model with random weights of the shapes of SmolLM2-135M."""
    precision = choose_precision(config.training)
    with torch.device(device):
        plain = LlamaForCausalLM._from_config(SHAPES["SmolLM2-135M"], dtype=precision.backbone)
        return convert_to_parscale_model(plain, create_parscale_config(config.parscale.P))


def make_loop(config: RunConfig) -> TrainingLoop:
    precision = choose_precision(config.training)
    model = make_model(config, precision.device).train()
    return TrainingLoop(config, model, RandomBlocks(config.data.sequence_length), precision, [])


def measure_here(P: int, B: int, T: int, streams_per_pass: int, compiled: bool) -> dict[str, float]:
    """Predicted and measured peak of this process, in bytes."""
    config = make_config(P, B, T, streams_per_pass, compiled)
    precision = choose_precision(config.training)
    size = size_of(make_model(config, "meta"))
    libraries = psutil.Process().memory_info().rss
    predicted = peak_bytes(config, size, memory_setting(config.training, precision, size), libraries)
    loop = make_loop(config)
    with freed_memory_kept(precision.device):
        for _ in range(STEPS):
            loop._train_step()
    monitor = MemoryMonitor(precision.device)
    return {"predicted": predicted, "measured": monitor.device_peak_bytes or monitor.peak_bytes, "libraries": libraries}


def measure(*shape: int, compiled: bool) -> dict[str, float]:
    """As above, of a new process; on CUDA of this one, as if it were new."""
    if torch.cuda.is_available():
        gc.collect()
        torch.compiler.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return measure_here(*shape, compiled)
    command = [sys.executable, __file__, "--child", *map(str, shape), *(["--compile"] if compiled else [])]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def memory_row(shape: tuple[int, int, int, int], baseline: float | None, compiled: bool) -> dict[str, Any]:
    peak = measure(*shape, compiled=compiled)
    row = dict(zip(("P", "B", "T", "streams_per_pass"), shape, strict=True))
    row["megabytes"] = {name: round(value / 1e6) for name, value in peak.items()}
    row["prediction_error"] = round(peak["predicted"] / peak["measured"] - 1, 3)
    row["claimed_error"] = CLAIMED_ERROR
    if baseline:
        row |= {"over_P1": round(peak["measured"] / baseline, 3), "claim": CLAIMED_MEMORY}
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def time_row(P: int, B: int, T: int, rounds: int) -> dict[str, Any]:
    loops = {name: make_loop(make_config(P, B, T, streams)) for name, streams in (("ordinary", P), ("passes", 1))}
    with freed_memory_kept(loops["passes"].precision.device):
        seconds = side_by_side({name: loop._train_step for name, loop in loops.items()}, rounds)
    over = ratio(seconds["passes"], seconds["ordinary"])
    return {"P": P, "B": B, "T": T, "passes_over_ordinary": over, "claim": CLAIMED_TIME, "seconds": seconds}


def main() -> None:
    arguments = parser(__doc__, rounds=3)
    arguments.add_argument("--B", type=int, default=4)
    arguments.add_argument("--T", type=int, default=256)
    arguments.add_argument("--P", type=int, nargs="*", default=[8, 16], help="for the memory (default %(default)s)")
    arguments.add_argument("--time-P", type=int, nargs="*", default=[8, 16], help="for the time (default %(default)s)")
    arguments.add_argument("--no-grid", action="store_true", help="leave out the grid of (c)")
    arguments.add_argument("--compile", action="store_true", help="memory with training.compile")
    arguments.add_argument("--child", type=int, nargs=4, help="P B T streams_per_pass: only measure this process")
    args = arguments.parse_args()
    if args.child:
        print(json.dumps(measure_here(*args.child, args.compile)))
        return
    rows = []
    if args.P:
        rows.append(memory_row((1, args.B, args.T, 1), None, args.compile))
        baseline = rows[0]["megabytes"]["measured"] * 1e6
        rows += [memory_row((P, args.B, args.T, 1), baseline, args.compile) for P in args.P]
    grid = [] if args.no_grid else GPU_GRID if torch.cuda.is_available() else GRID
    rows += [memory_row(shape, None, args.compile) for shape in grid]
    rows += [time_row(P, args.B, args.T, args.rounds) for P in args.time_P]
    report(rows, args.json)


if __name__ == "__main__":
    main()
