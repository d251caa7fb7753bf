"""`parcontrol cost`: memory and latency of inference; `cost compare` and `cost measure`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, fields, replace
from typing import Any

from parcontrol.analysis.accelerators import DEFAULT_ACCELERATOR, find_accelerator
from parcontrol.analysis.cost import GIB, Cost, ModelShape, Rates, Workload, predict
from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error

SWEEP_P = (1, 2, 4, 8)
SWEEP_BATCH_SIZES = (1, 2, 4, 8)


def main(argv: Sequence[str] | None = None, abbreviations: bool = False) -> int:
    """Run `parcontrol cost`; the exit code is 2 for bad input, with one line on stderr.

    `abbreviations` are what the official script takes: beginnings of flags that fit one flag alone.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    subcommands: dict[str, Callable[[list[str]], int]] = {"compare": _compare, "measure": _measure}
    try:
        if arguments and arguments[0] in subcommands:
            return subcommands[arguments[0]](arguments[1:])
        return _cost(arguments, abbreviations)
    except (ValueError, OSError) as error:
        print_error(error)
        return USAGE_ERROR


def _cost_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="parcontrol cost",
        description="Memory and latency of generating with a ParScale model, by formula.",
        epilog="Further: `parcontrol cost compare` rederives the paper's efficiency claim, "
        "`parcontrol cost measure MODEL_DIR` times a real model on this device.",
    )
    parser.add_argument(
        "--model",
        metavar="DIR_OR_ID",
        help="read the sizes from this model's config.json (local directory or Hub id); flags given beside it win",
    )
    for name, default in _size_defaults().items():
        note = "required unless --model is given" if default is None else f"default {default}"
        parser.add_argument(f"--{name}", type=int, help=note)
    parser.add_argument("--gpu_config", default=DEFAULT_ACCELERATOR, help="default %(default)s")
    parser.add_argument("--flops_efficiency", type=float, default=0.7, help="default %(default)s, in (0, 1]")
    parser.add_argument("--hbm_memory_efficiency", type=float, default=0.9, help="default %(default)s, in (0, 1]")
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="a table over P = 1, 2, 4, 8 and batch size 1, 2, 4, 8",
    )
    parser.add_argument("--plot", metavar="FILE", help="also plot the sweep (.png, .svg or .pdf)")
    _add_format(parser)
    return parser


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("text", "json"), default="text")


def _size_defaults() -> dict[str, int | None]:
    """Flag names with their defaults; None where there is none."""
    sizes = [f for f in (*fields(ModelShape), *fields(Workload)) if f.name != "element_bytes"]
    return {f.name: None if f.default is MISSING else f.default for f in sizes}


def _cost(argv: list[str], abbreviations: bool) -> int:
    parser = _cost_parser()
    parser.allow_abbrev = abbreviations
    args = parser.parse_args(argv)
    if args.model is None and (args.hidden_size is None or args.intermediate_size is None):
        parser.error("--hidden_size and --intermediate_size are required unless --model is given")
    if args.plot and not args.sweep:
        raise ValueError("--plot draws a sweep; give --sweep too")
    if args.sweep and (args.P is not None or args.batch_size is not None):
        raise ValueError("--sweep sets P and batch size itself; leave --P and --batch_size out")
    rates = Rates.of(find_accelerator(args.gpu_config), args.flops_efficiency, args.hbm_memory_efficiency)
    shape, workload = _sizes(args)
    settings = {
        "accelerator": args.gpu_config,
        "flops_efficiency": args.flops_efficiency,
        "hbm_memory_efficiency": args.hbm_memory_efficiency,
        "model": args.model,
        **asdict(shape),
    }
    if args.sweep:
        return _sweep(args, settings, shape, workload, rates)
    cost = predict(shape, workload, rates)
    if args.format == "json":
        _print_json({**settings, **asdict(workload), **cost.as_dict()})
    else:
        print(cost)
    return 0


def _sizes(args: argparse.Namespace) -> tuple[ModelShape, Workload]:
    from parcontrol.analysis.model_config import model_sizes, read_config, shape_and_workload

    given = {name: value for name, value in vars(args).items() if name in _size_defaults()}
    sizes = {name: value for name, value in given.items() if value is not None}
    if args.model is not None:
        config = read_config(args.model)
        sizes = {**model_sizes(config, args.model), **sizes}
        if config.get("tie_word_embeddings") is False:
            print(
                f"note: {args.model} has an output head of its own; the cost model counts the embedding table once",
                file=sys.stderr,
            )
    return shape_and_workload(sizes)


def _sweep(
    args: argparse.Namespace,
    settings: dict[str, Any],
    shape: ModelShape,
    workload: Workload,
    rates: Rates,
) -> int:
    if args.plot:
        from parcontrol.analysis.figures import check_figure_path

        check_figure_path(args.plot)
    costs = {
        (P, batch): predict(shape, replace(workload, P=P, batch_size=batch), rates)
        for P in SWEEP_P
        for batch in SWEEP_BATCH_SIZES
    }
    if args.format == "json":
        rows = [{"P": P, "batch_size": b, **cost.as_dict()} for (P, b), cost in costs.items()]
        settings |= {
            "parscale_prefix_tokens": workload.parscale_prefix_tokens,
            "input_length": workload.input_length,
            "output_length": workload.output_length,
        }
        _print_json({**settings, "sweep": rows})
    else:
        print(_sweep_tables(costs))
    if args.plot:
        from parcontrol.analysis.cost_plots import plot_sweep
        from parcontrol.analysis.figures import save_figure

        name = args.model or f"hidden size {shape.hidden_size}, {shape.num_hidden_layers} layers"
        lengths = f"{workload.input_length} + {workload.output_length} tokens"
        save_figure(plot_sweep(costs, f"{name}, {lengths}, {args.gpu_config}"), args.plot)
    return 0


def _sweep_tables(costs: dict[tuple[int, int], Cost]) -> str:
    from parcontrol.analysis.tables import format_table

    def table(title: str, value: Callable[[Cost], float]) -> str:
        header = [title, *(f"batch {batch}" for batch in SWEEP_BATCH_SIZES)]
        rows = [[f"P = {P}", *(f"{value(costs[P, batch]):.3f}" for batch in SWEEP_BATCH_SIZES)] for P in SWEEP_P]
        return format_table(header, rows)

    memory = table("Memory (GB)", lambda cost: cost.memory.total / GIB)
    latency = table("Latency (s)", lambda cost: cost.latency.total)
    return f"{memory}\n\n{latency}"


def _compare(argv: list[str]) -> int:
    from parcontrol.analysis import cost_compare

    parser = OneLineParser(
        prog="parcontrol cost compare",
        description="Rederive the paper's claim: 22x less added memory and 6x less added latency "
        "than parameter scaling (1.6B, P = 8, batch 1).",
    )
    parser.add_argument("--plot", metavar="FILE", help="plot the ratios over batch size (.png, .svg or .pdf)")
    _add_format(parser)
    args = parser.parse_args(argv)
    if args.plot:
        from parcontrol.analysis.figures import check_figure_path

        check_figure_path(args.plot)
    comparison = cost_compare.compare()
    if args.format == "json":
        _print_json(comparison.as_dict())
    else:
        print(comparison)
    if args.plot:
        from parcontrol.analysis.cost_plots import plot_comparison
        from parcontrol.analysis.figures import save_figure

        save_figure(plot_comparison(comparison.ratios), args.plot)
    return 0


def _measure(argv: list[str]) -> int:
    parser = OneLineParser(
        prog="parcontrol cost measure",
        description="Time prefill and decoding of a real model on this device for P x batch size, beside a roofline "
        "and the cost model at the device's measured bandwidth and matrix rate.",
    )
    parser.add_argument("model", metavar="MODEL_DIR", help="a ParScale checkpoint, or a backbone to be given streams")
    parser.add_argument("--P", type=int, nargs="+", help="default 1 2 4 8; of a checkpoint, those of its own streams")
    parser.add_argument("--batch_size", type=int, nargs="+", default=[1, 2, 4, 8], help="default 1 2 4 8")
    parser.add_argument("--input_length", type=int, default=64, help="default %(default)s")
    parser.add_argument("--output_length", type=int, default=16, help="decode steps; default %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the median counts; default %(default)s")
    parser.add_argument("--device", help="cuda, mps or cpu; default the first there is")
    parser.add_argument(
        "--dtype", choices=("auto", "bf16", "fp32"), default="auto", help="auto is bf16 where the device computes it"
    )
    parser.add_argument("--plot", metavar="FILE", help="also plot (.png, .svg or .pdf)")
    _add_format(parser)
    args = parser.parse_args(argv)
    if args.repeats < 1:
        raise ValueError(f"--repeats is {args.repeats}; it must be at least 1")
    if args.plot:
        from parcontrol.analysis.figures import check_figure_path

        check_figure_path(args.plot)
    from parcontrol.measure.report import measure

    measurement = measure(
        args.model,
        P_values=args.P,
        batch_sizes=args.batch_size,
        input_length=args.input_length,
        output_length=args.output_length,
        repeats=args.repeats,
        device_name=args.device,
        dtype_name=args.dtype,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if args.format == "json":
        _print_json(measurement.as_dict())
    else:
        print(measurement)
    if args.plot:
        from parcontrol.analysis.figures import save_figure
        from parcontrol.measure.plots import plot_measurement

        save_figure(plot_measurement(measurement), args.plot)
    return 0


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
