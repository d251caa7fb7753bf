"""What a sweep runs: every P, and every seed of it, from one base configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from parcontrol.config import RunConfig, load_config
from parcontrol.runs import RunDirectory

OUTPUT_DIR = Path("outputs/multi_P_experiment")

State = Literal["new", "resume", "finished"]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep; its configuration names its run directory."""

    config: RunConfig

    @property
    def name(self) -> str:
        """The name of the run directory, such as `P2` or `P2_seed1`."""
        return self.config.run_directory.name

    @property
    def directory(self) -> RunDirectory:
        """The run directory, for reading."""
        return RunDirectory(self.config.run_directory)

    @property
    def total_tokens(self) -> int:
        """Real tokens of the whole run."""
        return self.config.total_steps * self.config.tokens_per_step

    @property
    def state(self) -> State:
        """What starting it would do: begin, go on from a checkpoint, or nothing."""
        if self.directory.finished:
            return "finished"
        return "resume" if self.directory.checkpoints() else "new"


def make_plan(
    base_config: Path | None,
    overrides: Mapping[str, Any],
    P_values: Sequence[int],
    seeds: Sequence[int] | None = None,
    output_dir: Path = OUTPUT_DIR,
) -> list[PlannedRun]:
    """Returns the runs of a sweep, seed by seed, so that the first comparison is complete early.

    Args:
        base_config: YAML file that all runs share; None means the built-in defaults.
        overrides: Values by dotted name that win over the file, for all runs.
        P_values: Numbers of streams.
        seeds: Values of `training.seed`; the data stay the same. None leaves the seed as it is.
        output_dir: Where the run directories `P{P}[_seed{S}]` go.

    Raises:
        ValueError: A value is given twice, or a run's configuration is not allowed.
    """
    _check_distinct("--P-values", P_values)
    _check_distinct("--seeds", seeds or [])
    by_suffix: dict[str, dict[str, Any]] = {f"_seed{seed}": {"training.seed": seed} for seed in seeds or []}
    runs = []
    for suffix, seed in (by_suffix or {"": {}}).items():
        for P in P_values:
            chosen = {"parscale.P": P, "output_dir": str(output_dir / f"P{P}{suffix}")}
            runs.append(PlannedRun(load_config(base_config, {**overrides, **seed, **chosen})))
    return runs


def _check_distinct(flag: str, values: Sequence[int]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ValueError(f"{flag}: {twice[0]} is given twice")
