"""`parcontrol validate DIR --tokens N`: measure finished runs again, on more text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error
from parcontrol.runs import RunDirectory

STOPPED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Measures every finished run below the directories, and prints a line for each.

    Returns:
        0 when all are measured, 2 for bad input, 1 when a loss is not finite or the machine has run out of something.
    """
    parser = OneLineParser(
        prog="parcontrol validate",
        description="Measure finished runs, and their backbones, again: on the first N tokens of the validation "
        "split, in the types and batches of the run. Results are kept beside those of the training, and a report "
        "then takes them in their place. A run that has been measured on N tokens is skipped; a measurement on "
        "another number of tokens is replaced.",
    )
    parser.add_argument(
        "directories", nargs="+", type=Path, metavar="DIR", help="sweep, run directory, or directory of sweeps"
    )
    parser.add_argument("--tokens", type=int, required=True, metavar="N", help="size of the validation set")
    parser.add_argument("--device", metavar="DEVICE", help="cuda, cuda:INDEX, mps or cpu; default: the first there is")
    args = parser.parse_args(argv)
    try:
        return _validate(_finished_runs(args.directories), args.tokens, args.device)
    except ValueError as error:
        print_error(error)
        return USAGE_ERROR


def _finished_runs(directories: Sequence[Path]) -> list[Path]:
    """The runs to measure; says which ones are left out."""
    from parcontrol.analysis.results import load_experiment_results

    results = load_experiment_results(*directories)
    paths = [run.path for run in results.runs if run.finished]
    if not paths:
        raise ValueError(f"there is no finished run in {', '.join(map(str, directories))}")
    for sweep in results.sweeps:
        for broken in sweep.broken:
            print(f"{broken.path}: left out, {broken.problem}")
        for run in sweep.unfinished:
            print(f"{run.path}: left out, {run.status}")
    return paths


def _validate(paths: Sequence[Path], tokens: int, device: str | None) -> int:
    from rich import get_console
    from rich.progress import Progress

    from parcontrol.training.errors import RunStoppedError
    from parcontrol.training.revalidate import Revalidator

    with Progress(disable=not get_console().is_terminal, transient=True) as progress:
        task = progress.add_task("")
        revalidator = Revalidator(
            tokens,
            device,
            lambda what, done, total: progress.update(task, description=what, completed=done, total=total),
        )
        for path in paths:
            revalidator.check(RunDirectory(path))
        for number, path in enumerate(paths, 1):
            with RunDirectory.open_finished(path) as run:
                before = run.read_revalidation()
                try:
                    record = revalidator.measure(run)
                except (RunStoppedError, OSError) as error:
                    print_error(RuntimeError(f"{path}: {error}"))
                    return STOPPED
            print(
                f"{path} ({number} of {len(paths)}): {record['final_validation_loss']:.4f} nats, backbone "
                f"{record['backbone_validation_loss']:.4f}, on {record['validation_predicted_tokens']:,} tokens of "
                f"{record['validation_documents']:,} documents{' (measured before)' if record == before else ''}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
