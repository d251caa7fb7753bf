"""What a comparison rests on, checked: each check passed, failed, or could not be made.

The same facts decide whether two runs may be compared at all: a difference between runs that did
not train on the same tokens in the same way is no effect of P, however small its interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, Literal

import numpy as np

from parcontrol.analysis.results import Process, Run, Sweep
from parcontrol.config import config_differences
from parcontrol.diagnostics.collapse import collapsed
from parcontrol.runs import MAY_DIFFER

Status = Literal["passed", "failed", "unknown", "not applicable"]

# What a sweep varies.
_VARIED = ("parscale.P", "training.seed")

# Two seeds give an interval, but one degree of freedom: it is nearly 4 times as wide as with three.
ENOUGH_SEEDS = 3
# Below this a percentile bootstrap over documents is too narrow to be taken at its word.
ENOUGH_DOCUMENTS = 30
# Nats by which the same backbone may differ from one device or batch shape to another.
SAME_BACKBONE = 1e-3
# Distance between the quartiles of a run's speeds, as a share of their median, up to which it is steady.
STEADY_SPEED = 0.2
# From five records on no single one moves the quartiles far: not that of the steps that `training.compile` compiles in.
ENOUGH_SPEEDS = 5
# Nats by which the sums by document may miss the loss that was written beside them: rounding only.
_SAME_LOSS = 1e-9


@dataclass(frozen=True)
class Check:
    """One line of the validity section. `key` names it in JSON."""

    key: str
    title: str
    status: Status
    detail: str

    @property
    def stands(self) -> bool:
        """Whether nothing is to be said against the results from this side."""
        return self.status in ("passed", "not applicable")


def check_sweep(sweep: Sweep) -> list[Check]:
    """Makes every check, in the order of the report."""
    checks = (
        _all_finished,
        _complete,
        _equal_tokens,
        _equal_data,
        _equal_validation,
        _equal_configuration,
        _equal_backbone,
        _equal_code,
        _equal_machine,
        _ordinary_steps,
        _steady_speed,
        _sums_agree,
        _enough_documents,
        _enough_seeds,
        _monotone,
        _not_collapsed,
    )
    return [check(sweep) for check in checks]


def run_differences(a: Run, b: Run) -> dict[str, tuple[Any, Any]]:
    """The keys beside P and seed in which two runs differ, and that may change what they compute."""
    # What both were measured on after training is compared by its hash.
    measured_again = ("data.validation_tokens",) if a.revalidation and b.revalidation else ()
    return {
        key: values
        for key, values in config_differences(a.config, b.config).items()
        if key not in (*_VARIED, *measured_again) and not key.startswith(MAY_DIFFER)
    }


def same_documents(a: Run, b: Run) -> bool:
    """Whether two finished runs were validated on the same documents, token for token."""
    if a.documents is None or b.documents is None:
        return False
    same_text = a.outcome.validation_sha256 == b.outcome.validation_sha256
    return same_text and np.array_equal(a.documents.tokens, b.documents.tokens)


def belonging(runs: Sequence[Run]) -> tuple[tuple[Run, ...], dict[Run, str]]:
    """The finished runs that can be compared with each other, and why each other one is left out.

    A run whose own numbers contradict each other belongs to nothing, nor do two runs in one place. Of
    the rest, the largest group of runs that differ in P and seed alone is kept; among equally large
    groups, the one with the first run.
    """
    left_out = {run: reason for run in runs if (reason := _why_unfit(run, runs)) is not None}
    groups: list[list[Run]] = []
    for run in runs:
        if run not in left_out:
            group = next((group for group in groups if why_incomparable(run, group[0]) is None), None)
            groups.append([run]) if group is None else group.append(run)
    kept = max(groups, key=len, default=[])
    others = [run for group in groups if group is not kept for run in group]
    left_out |= {run: why_incomparable(run, kept[0]) or "" for run in others}
    return tuple(kept), {run: left_out[run] for run in runs if run in left_out}


def _why_unfit(run: Run, runs: Sequence[Run]) -> str | None:
    twins = [other.name for other in runs if other is not run and (other.P, other.seed) == (run.P, run.seed)]
    reasons = _contradictions(run)
    if twins:
        reasons.append(f"{_listed(twins)} {'is' if len(twins) == 1 else 'are'} at P = {run.P}, seed {run.seed}, too")
    return "; ".join(reasons) or None


def why_incomparable(a: Run, b: Run) -> str | None:
    """Why a difference between two finished runs would not be one of P alone, or None."""
    reasons = []
    if a.outcome.tokens != b.outcome.tokens:
        reasons.append(f"{a.outcome.tokens:,} against {b.outcome.tokens:,} tokens")
    if a.outcome.data_sha256 != b.outcome.data_sha256:
        reasons.append("other training data")
    comparable = same_documents(a, b)
    if not comparable:
        reasons.append("other validation documents")
    changed = run_differences(a, b)
    if changed:
        reasons.append(f"other {', '.join(changed)}")
    if _backbone_name(a) != _backbone_name(b):
        reasons.append("another model, revision or tokenizer")
    apart = abs(a.outcome.backbone_validation_loss - b.outcome.backbone_validation_loss)
    if comparable and apart > SAME_BACKBONE:
        reasons.append(f"the backbone's own loss differs by {apart:.1e} nats")
    precisions = [_software(run)["precision"] for run in (a, b)]
    if precisions[0] != precisions[1]:
        reasons.append(f"computed in {precisions[0]}, not in {precisions[1]}")
    return "; ".join(reasons) or None


def _all_finished(sweep: Sweep) -> Check:
    open_runs = [f"{run.name}: {run.status}" for run in sweep.unfinished]
    open_runs += [f"{run.name}: {run.problem}" for run in sweep.broken]
    return Check(
        "all_finished",
        "All runs finished",
        "failed" if open_runs else "passed",
        "; ".join(open_runs) or f"{len(sweep.runs)} of {len(sweep.runs)}",
    )


def _complete(sweep: Sweep) -> Check:
    title = "One run for each P and seed"
    wanted = [(P, seed) for P in sorted({r.P for r in sweep.runs}) for seed in sorted({r.seed for r in sweep.runs})]
    faults = []
    for P, seed in wanted:
        names = [run.name for run in sweep.runs if (run.P, run.seed) == (P, seed)]
        if not names:
            faults.append(f"no run at P = {P}, seed {seed}")
        elif len(names) > 1:
            faults.append(f"{_listed(names)} are all at P = {P}, seed {seed}")
    if wanted and len({P for P, _ in wanted}) > 1 and wanted[0][0] != 1:
        faults.append("no run at P = 1, the baseline")
    seeds = len({seed for _, seed in wanted})
    passed = f"P = {_listed(sorted({P for P, _ in wanted}))}, {seeds} seed{'s' if seeds > 1 else ''}"
    return Check("complete", title, "failed" if faults else "passed", "; ".join(faults) or passed)


def _equal_tokens(sweep: Sweep) -> Check:
    return _equal(sweep, "equal_tokens", "Equal tokens", lambda run: f"{run.outcome.tokens:,} tokens")


def _equal_data(sweep: Sweep) -> Check:
    return _equal(sweep, "equal_data", "Equal training data, by hash", lambda run: run.outcome.data_sha256[:16])


def _equal_validation(sweep: Sweep) -> Check:
    def described(run: Run) -> str:
        assert run.documents is not None
        documents, tokens = len(run.documents.tokens), int(run.documents.tokens.sum())
        return f"{documents:,} documents, {tokens:,} predicted tokens, {run.outcome.validation_sha256[:16]}"

    check = _equal(sweep, "equal_validation", "Equal validation documents", described)
    if check.status == "passed" and not all(same_documents(sweep.finished[0], run) for run in sweep.finished):
        return Check(check.key, check.title, "failed", "the documents hold other numbers of tokens")
    return check


def _equal_configuration(sweep: Sweep) -> Check:
    key, title = "equal_configuration", "Equal everything but P (and seed)"
    if len(sweep.runs) < 2:
        return Check(key, title, "not applicable", "fewer than two runs")
    first = sweep.runs[0]
    changed = dict.fromkeys(name for run in sweep.runs for name in run_differences(first, run))
    faults = [f"{name}: {grouped(sweep.runs, partial(_config_value, name))}" for name in changed]
    return Check(key, title, "failed" if faults else "passed", "; ".join(faults) or "no other key differs")


def _config_value(name: str, run: Run) -> str:
    return repr(attrgetter(name)(run.config))


def _equal_backbone(sweep: Sweep) -> Check:
    key, title = "equal_backbone", "Equal backbone"
    named = _equal(sweep, key, title, _backbone_name)
    if named.status != "passed":
        return named
    losses = [run.outcome.backbone_validation_loss for run in sweep.finished]
    spread = max(losses) - min(losses)
    apart = f"differs by {spread:.1e} nats between runs" if spread else "is the same in all runs"
    detail = f"{named.detail}; its validation loss {apart}"
    return Check(key, title, "passed" if spread <= SAME_BACKBONE else "failed", detail)


def _backbone_name(run: Run) -> str:
    assert run.meta is not None
    revision = run.meta.model_revision
    return f"{run.meta.model} at {revision[:16]}, tokenizer {run.meta.tokenizer_sha256[:16]}"


def _equal_code(sweep: Sweep) -> Check:
    key, title = "equal_code", "Equal code, libraries and precision"
    if len(sweep.finished) < 2:
        return Check(key, title, "not applicable", "fewer than two finished runs")
    found = {run: _software(run) for run in sweep.finished}
    aspects = dict.fromkeys(aspect for software in found.values() for aspect in software)
    same = found[sweep.finished[0]]
    faults = [
        f"{aspect}: {grouped(sweep.finished, partial(_aspect, found, aspect))}"
        for aspect in aspects
        if any(software.get(aspect) != same.get(aspect) for software in found.values())
    ]
    if faults:
        return Check(key, title, "failed", "; ".join(faults))
    detail = ", ".join(f"{aspect} {same[aspect]}" for aspect in ("commit", "torch", "transformers", "precision"))
    if any(process.git and process.git.dirty for run in sweep.finished for process in _all_processes(run)):
        detail += "; but files were changed since that commit, so it does not say what ran"
        return Check(key, title, "unknown", detail)
    return Check(key, title, "passed", detail)


def _aspect(found: dict[Run, dict[str, str]], aspect: str, run: Run) -> str:
    return found[run].get(aspect, "none")


def _software(run: Run) -> dict[str, str]:
    """What a run was computed with, by aspect; several values where it was resumed, or measured again, with others."""
    values: dict[str, dict[str, None]] = {}
    for process in _all_processes(run):
        aspects = {
            "commit": process.git.commit[:10] if process.git else "none",
            **process.versions,
            "Python": process.python,
            "precision": f"{process.compute_dtype} on {process.backbone_dtype} weights",
        }
        for aspect, value in aspects.items():
            values.setdefault(aspect, {})[value] = None
    return {aspect: " then ".join(found) for aspect, found in values.items()}


def _processes(run: Run) -> list[Process]:
    """Those that trained a run."""
    assert run.meta is not None, f"{run.name} is not finished"
    return run.meta.processes


def _all_processes(run: Run) -> list[Process]:
    """Those that trained a run, and the one that measured it again."""
    return _processes(run) + ([run.revalidation.process] if run.revalidation else [])


def _equal_machine(sweep: Sweep) -> Check:
    """For speed and memory; losses do not depend on it beyond rounding."""

    def machine(run: Run) -> str:
        named = (
            f"{p.device} ({p.device_name}), {p.threads} thread{'s' if p.threads > 1 else ''}, {p.platform}"
            + (f", {p.world_size} processes" if p.world_size > 1 else "")
            for p in _processes(run)
        )
        return " then ".join(dict.fromkeys(named))

    return _equal(sweep, "equal_machine", "Equal machine, for speed and memory", machine)


def _ordinary_steps(sweep: Sweep) -> Check:
    """For speed and memory; the gradients are the same."""
    key, title = "ordinary_steps", "All streams at a time, for speed and memory"
    if not sweep.finished:
        return Check(key, title, "not applicable", "no finished run")
    per_pass = {run: run.meta.streams_per_pass for run in sweep.finished if run.meta is not None}
    in_passes = [run for run, streams in per_pass.items() if streams is not None and streams < run.P]
    if in_passes:
        listed = grouped(in_passes, lambda run: f"{per_pass[run]} of {run.P} streams per pass", "; ")
        return Check(key, title, "failed", f"{listed}: slower steps in less memory than ordinary ones")
    return Check(key, title, "passed", "no run took its steps in passes")


def _steady_speed(sweep: Sweep) -> Check:
    key, title = "steady_speed", "Steady speed within every run"
    if not sweep.finished:
        return Check(key, title, "not applicable", "no finished run")
    speeds = {run.name: run.series("tokens_per_second")[1] for run in sweep.finished}
    short = [name for name, values in speeds.items() if len(values) < ENOUGH_SPEEDS]
    spreads = {name: _quartile_spread(values) for name, values in speeds.items() if name not in short}
    uneven = [
        f"{name}: {min(speeds[name]):,.0f} to {max(speeds[name]):,.0f} tokens/s, the middle half {spread:.0%} wide"
        for name, spread in spreads.items()
        if spread > STEADY_SPEED
    ]
    if uneven:
        return Check(key, title, "failed", f"{'; '.join(uneven)}; time per token says little")
    if short:
        return Check(key, title, "unknown", f"fewer than {ENOUGH_SPEEDS} records of speed in {_listed(short)}")
    return Check(key, title, "passed", f"the middle half of the records is at most {max(spreads.values()):.0%} wide")


def _quartile_spread(values: Sequence[float]) -> float:
    """Distance between the quartiles as a share of the median: up to a quarter of slow records does not count."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float((high - low) / middle)


def _sums_agree(sweep: Sweep) -> Check:
    key, title = "sums_agree", "Losses by document add up to the losses reported"
    if not sweep.finished:
        return Check(key, title, "not applicable", "no finished run")
    faults = [f"{run.name}: {fault}" for run in sweep.finished for fault in _contradictions(run)]
    return Check(key, title, "failed" if faults else "passed", "; ".join(faults) or "to rounding, in every run")


def _contradictions(run: Run) -> list[str]:
    """Where the result of a finished run disagrees with its configuration or its documents."""
    assert run.documents is not None
    faults = []
    if run.outcome.P != run.P:
        faults.append(f"the result is of P = {run.outcome.P}, the configuration says {run.P}")
    for what, sums, reported in (
        ("final", run.documents.loss_sum, run.outcome.final_validation_loss),
        ("backbone", run.documents.backbone_loss_sum, run.outcome.backbone_validation_loss),
    ):
        found = float(sums.sum() / run.documents.tokens.sum())
        if abs(found - reported) > _SAME_LOSS:
            faults.append(f"{what} loss {reported:.6f} reported, {found:.6f} by document")
    return faults


def _enough_documents(sweep: Sweep) -> Check:
    key, title = "enough_documents", "Enough validation documents for intervals"
    counts = [len(run.documents.tokens) for run in sweep.finished if run.documents is not None]
    if not counts:
        return Check(key, title, "not applicable", "no finished run")
    fewest = min(counts)
    detail = f"{fewest:,} documents"
    if fewest < ENOUGH_DOCUMENTS:
        detail += f"; with fewer than {ENOUGH_DOCUMENTS} the bootstrap intervals are too narrow"
    return Check(key, title, "passed" if fewest >= ENOUGH_DOCUMENTS else "failed", detail)


def _enough_seeds(sweep: Sweep) -> Check:
    key, title = "enough_seeds", "Enough seeds"
    if not sweep.finished:
        return Check(key, title, "not applicable", "no finished run")
    counts = {P: len({run.seed for run in sweep.at(P)}) for P in sweep.streams}
    fewest = min(counts.values())
    if fewest >= ENOUGH_SEEDS:
        return Check(key, title, "passed", f"{fewest} at every P")
    if fewest == 1:
        single = [P for P, count in counts.items() if count == 1]
        where = "" if len(single) == len(counts) else f" at P = {_listed(single)}"
        detail = (
            f"one seed{where}: seed noise is unmeasured, so differences between P have no error bars from seeds; "
            "the intervals are over validation documents only"
        )
    else:
        detail = (
            f"{fewest} seeds: their spread has {fewest - 1} degree of freedom; {ENOUGH_SEEDS} or more give a usable one"
        )
    return Check(key, title, "failed", detail)


def _monotone(sweep: Sweep) -> Check:
    key, title = "monotone", "Loss falls with every step in P"
    if len(sweep.streams) < 2:
        return Check(key, title, "not applicable", "fewer than two values of P")
    losses = {P: mean_loss(sweep.at(P)) for P in sweep.streams}
    rises = [
        f"from P = {a} to P = {b} it {'rises' if losses[b] > losses[a] else 'stays the same'} "
        f"({losses[a]:.4f} to {losses[b]:.4f})"
        for a, b in zip(sweep.streams, sweep.streams[1:], strict=False)
        if losses[b] >= losses[a]
    ]
    falls = ", ".join(f"{loss:.4f} at P = {P}" for P, loss in losses.items())
    return Check(key, title, "failed" if rises else "passed", "; ".join(rises) or falls)


def _not_collapsed(sweep: Sweep) -> Check:
    key, title = "not_collapsed", "No collapsed stream"
    runs = [run for run in sweep.runs if run.P > 1]
    if not runs:
        return Check(key, title, "not applicable", "one stream cannot collapse")
    faults, silent, recovered = [], [], []
    for run in runs:
        reasons = [collapsed(record, run.config.parscale.attn_smooth) for record in run.streams]
        if not reasons or (run.finished and run.streams[-1]["step"] < run.outcome.steps):
            silent.append(run.name)
        elif reasons[-1] is not None:
            faults.append(f"{run.name}: {reasons[-1]}")
        elif any(reasons):
            recovered.append(run.name)
    if faults:
        return Check(key, title, "failed", "; ".join(faults))
    if silent:
        return Check(key, title, "unknown", f"no stream statistics at the end of {_listed(silent)}")
    note = f"; {_listed(recovered)} recovered from a collapse during training" if recovered else ""
    return Check(key, title, "passed", f"at the last log point of every run with several streams{note}")


def mean_loss(runs: Sequence[Run]) -> float:
    """Mean final validation loss of finished runs, nats per token."""
    return sum(run.outcome.final_validation_loss for run in runs) / len(runs)


def _equal(sweep: Sweep, key: str, title: str, value: Callable[[Run], str]) -> Check:
    """Checks that a value is the same in all finished runs."""
    if len(sweep.finished) < 2:
        return Check(key, title, "not applicable", "fewer than two finished runs")
    values = dict.fromkeys(map(value, sweep.finished))
    if len(values) == 1:
        return Check(key, title, "passed", next(iter(values)))
    return Check(key, title, "failed", grouped(sweep.finished, value))


def grouped(runs: Iterable[Run], value: Callable[[Run], str], between: str = " against ") -> str:
    """Each value with the runs that have it."""
    groups: dict[str, list[str]] = {}
    for run in runs:
        groups.setdefault(value(run), []).append(run.name)
    return between.join(f"{found} in {_listed(names)}" for found, names in groups.items())


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
