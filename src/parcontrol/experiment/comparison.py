"""Whether the runs of a sweep can be compared: nothing but P differs, and all saw the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parcontrol.config import config_differences
from parcontrol.experiment.plan import PlannedRun
from parcontrol.runs import MAY_DIFFER, RunDirectory

# What a sweep varies, and what does not change what a run computes.
_VARIED = ("parscale.P", "training.seed", *MAY_DIFFER)
# What must be equal in all results, whatever the configurations say.
_SAME_DATA = ("tokens", "data_sha256", "validation_sha256")


class NotComparableError(Exception):
    """The runs of a sweep do not measure the same thing; names the runs and the values."""


def check_plan(runs: Sequence[PlannedRun], resume: bool = True) -> None:
    """Checks, before anything starts, that only P and the seed differ between the runs.

    The runs are the planned ones and those that lie beside them, which a report would show too.

    Raises:
        NotComparableError: Two runs differ in something else, or a directory holds another run
            than the one planned there.
        ValueError: A run is there already and `resume` is false.
    """
    first = runs[0]
    for run in runs[1:]:
        _refuse_differences(first.name, run.name, config_differences(first.config, run.config), _VARIED)
    planned = {run.name: run for run in runs}
    for directory in _started_runs(first.config.run_directory.parent):
        config = _read_config(directory)
        if directory.path.name not in planned:
            differences = config_differences(first.config, config)
            _refuse_differences(f"the plan for {first.name}", str(directory.path), differences, _VARIED)
            continue
        run = planned[directory.path.name]
        differences = config_differences(run.config, config)
        _refuse_differences(f"the plan for {run.name}", str(directory.path), differences, MAY_DIFFER)
        if not resume:
            raise ValueError(f"{directory.path} already holds a run: resume it, or choose another --output-dir")


def check_results(output_dir: Path) -> dict[str, dict[str, Any]]:
    """Checks that all finished runs of a sweep were trained and validated on the same tokens.

    Returns:
        The results, by name of the run.

    Raises:
        NotComparableError: Tokens or their hashes differ, or a result cannot be read.
    """
    finished = [directory for directory in _started_runs(output_dir) if directory.finished]
    results = {directory.path.name: _read_result(directory) for directory in finished}
    for key in _SAME_DATA:
        values = {name: result[key] for name, result in results.items()}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in values.items())
            raise NotComparableError(f"the runs in {output_dir} cannot be compared: their {key} differ ({listed})")
    return results


def _started_runs(output_dir: Path) -> list[RunDirectory]:
    """The run directories in a folder that hold more than a configuration, by name."""
    folders = sorted(path for path in output_dir.glob("*") if path.is_dir())
    return [run for run in map(RunDirectory, folders) if run.started]


def _read_config(run: RunDirectory) -> Any:
    try:
        return run.read_config()
    except ValueError as error:
        raise NotComparableError(f"{run.path} holds a run of an unknown configuration: {error}") from error


def _read_result(run: RunDirectory) -> dict[str, Any]:
    try:
        result = run.read_result()
    except ValueError as error:
        raise NotComparableError(f"the result of {run.path.name} cannot be compared: {error}") from error
    missing = [key for key in _SAME_DATA if key not in result]
    if missing:
        raise NotComparableError(f"the result of {run.path.name} cannot be compared: it has no {', '.join(missing)}")
    return result


def _refuse_differences(
    one: str, other: str, differences: dict[str, tuple[Any, Any]], allowed: tuple[str, ...]
) -> None:
    refused = {key: values for key, values in differences.items() if not key.startswith(allowed)}
    if refused:
        listed = ", ".join(f"{key} {a!r} and {b!r}" for key, (a, b) in refused.items())
        raise NotComparableError(f"{one} and {other} cannot be compared: they differ in {listed}")
