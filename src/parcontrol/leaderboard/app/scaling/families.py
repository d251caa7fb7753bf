"""Families of models that differ only in P: their values, seed by seed, and whether these rise with P."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from parcontrol.leaderboard.app.board import Board
from parcontrol.leaderboard.app.quantities import quantities, values_of, versions_of
from parcontrol.leaderboard.app.table.selection import type_words

# What the models of a family have in common, beside the versions of the tasks.
COMMON = ("base_model", "tokens", "precision", "weight_type", "chat_template", "conditions", "model_type")
USUAL = "Faithfulness"
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Run:
    """One model of a family."""

    key: str
    name: str
    value: float
    stderr: float
    seed: int | None


@dataclass(frozen=True)
class Point:
    """The models of a family with one P.

    Attributes:
        streams: P.
        runs: By seed.
        seeds: How many different seeds they have; those that do not say one count as one.
        mean: Over seeds.
        error: Standard deviation over seeds; with one seed, the standard error of the task. NaN if there is none.
    """

    streams: int
    runs: tuple[Run, ...]
    seeds: int
    mean: float
    error: float


@dataclass(frozen=True)
class Trend:
    """What a weighted least squares line through the runs of a family says, in units per doubling of P.

    Attributes:
        slope: Of the line.
        low, high: Ends of the 95 % interval, NaN if the runs do not give one.
        runs: How many runs it goes through.
    """

    slope: float
    low: float
    high: float
    runs: int

    @property
    def verdict(self) -> Literal["rises", "falls", "no trend shown"]:
        """Rises or falls only where the interval leaves zero out."""
        return "rises" if self.low > 0 else "falls" if self.high < 0 else "no trend shown"


@dataclass(frozen=True)
class Base:
    """The model that a family was made from, evaluated the same way."""

    key: str
    name: str
    value: float
    stderr: float
    precision: str


@dataclass(frozen=True)
class Family:
    """Models that differ only in P and seed.

    Attributes:
        base_model: What they were made from.
        details: What else they have in common, in words.
        points: By P, at least two.
        trend: Of the value over log2 P.
        base: The base model itself, None if it is not on the board.
    """

    base_model: str
    details: str
    points: tuple[Point, ...]
    trend: Trend
    base: Base | None

    @property
    def one_seed(self) -> bool:
        """Whether there is a P at which nothing is known of the noise of seeds."""
        return any(point.seeds == 1 for point in self.points)


def families(board: Board, label: str) -> list[Family]:
    """Returns the families that have values of a quantity for at least two P.

    Left out are flagged and withdrawn models, values on a part of the rows, and models that do not say what they were
    made from: nobody can tell what else differs.

    Args:
        board: The leaderboard.
        label: One of `quantities()`.
    """
    runs = _comparable(board.table)
    runs = runs[runs["P"].notna() & (runs["base_model"] != "")]
    runs = runs.assign(**values_of(board, runs, label), version=versions_of(board, runs, label))
    runs = runs[runs["value"].notna()]
    found = runs.groupby([*COMMON, "version"], dropna=False, sort=True)
    return [_family(board, label, models) for _, models in found if models["P"].nunique() > 1]


def usual_label(board: Board) -> str:
    """Returns the first quantity that a family has values of: Faithfulness, if any has it."""
    return next((label for label in quantities() if families(board, label)), USUAL)


def _comparable(table: pd.DataFrame) -> pd.DataFrame:
    return table[~table["limited"].astype(bool) & (table["mark"] == "")]


def _family(board: Board, label: str, models: pd.DataFrame) -> Family:
    first = models.iloc[0]
    points = tuple(_point(int(streams), runs) for streams, runs in models.groupby("P", sort=True))
    trend = fit(np.log2(models["P"].to_numpy(float)), models["value"].to_numpy(), models["stderr"].to_numpy())
    return Family(first["base_model"], _details(first, label), points, trend, _base(board, label, first))


def _point(streams: int, models: pd.DataFrame) -> Point:
    runs = tuple(
        Run(run.key, run.name, run.value, run.stderr, None if pd.isna(run.seed) else int(run.seed))
        for run in models.sort_values("seed", kind="stable").itertuples(index=False)
    )
    # Two models of one seed are no two draws from the noise of seeds.
    by_seed = models.groupby("seed", dropna=False)["value"].mean()
    error = by_seed.std(ddof=1) if len(by_seed) > 1 else models["stderr"].mean(skipna=False)
    return Point(streams, runs, len(by_seed), float(by_seed.mean()), float(error))


def _details(model: pd.Series, label: str) -> str:
    tokens = "training tokens not stated" if pd.isna(model["tokens"]) else f"{model['tokens']:,} training tokens"
    parts = [
        tokens,
        type_words(model["model_type"]),
        model["precision"],
        "" if model["weight_type"] == "Original" else f"{model['weight_type']} weights",
        "chat template" if model["chat_template"] else "",
        model["conditions"],
        "" if model["version"] == quantities()[label].version else "another version of the task",
    ]
    return ", ".join(part for part in parts if part)


def _base(board: Board, label: str, member: pd.Series) -> Base | None:
    """The base model's row, evaluated like the members; in their precision, if there is one."""
    table = _comparable(board.table)
    rows = table[
        (table["model"] == member["base_model"])
        & (table["chat_template"] == member["chat_template"])
        & (table["conditions"] == member["conditions"])
    ]
    rows = rows.assign(**values_of(board, rows, label), version=versions_of(board, rows, label))
    rows = rows[rows["value"].notna() & (rows["version"] == member["version"])]
    if not len(rows):
        return None
    alike = [(rows[name] == member[name]).to_numpy(int) for name in ("precision", "weight_type")]
    best = rows.iloc[int(np.argmax(2 * alike[0] + alike[1]))]
    return Base(best["key"], best["name"], best["value"], best["stderr"], best["precision"])


def fit(doublings: np.ndarray, values: np.ndarray, errors: np.ndarray) -> Trend:
    """Fits a line by weighted least squares and returns its slope with a 95 % interval.

    Weights are the inverse squares of the standard errors, equal if one is missing. The interval is Student's t with
    two degrees of freedom less than there are runs. Where runs scatter more than their standard errors explain, as
    seeds make them, it is widened by that factor (the square root of the reduced chi-square); it is never narrowed.
    Two runs leave no scatter to see: the interval is then normal, of the standard errors alone.

    Args:
        doublings: log2 P of every run; at least two different ones.
        values: Of every run.
        errors: Standard errors, NaN where there is none.
    """
    known = bool(np.all(np.isfinite(errors) & (errors > 0)))
    weights = 1 / errors**2 if known else np.ones(len(values))
    middle = np.average(doublings, weights=weights)
    spread = np.sum(weights * (doublings - middle) ** 2)
    slope = float(np.sum(weights * (doublings - middle) * values) / spread)
    residuals = values - np.average(values, weights=weights) - slope * (doublings - middle)
    freedom = len(values) - 2
    if freedom:
        scatter = float(np.sum(weights * residuals**2) / freedom)
        scale = max(scatter, 1.0) if known else scatter
        half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, freedom)) * math.sqrt(scale / spread)
    else:
        half = float(stats.norm.ppf((1 + _CONFIDENCE) / 2)) / math.sqrt(spread) if known else math.nan
    return Trend(slope, slope - half, slope + half, len(values))


def sentence(label: str, trend: Trend) -> str:
    """Returns what a trend says, in words."""
    measure = quantities()[label]
    unit = f" {measure.difference_unit}" if measure.difference_unit else ""
    slope = f"{measure.number(trend.slope, signed=True)}{unit} per doubling of P"
    if math.isnan(trend.low):
        return f"{slope}, from two runs without standard errors: too little to tell a trend."
    ends = " to ".join(measure.number(end, signed=True) for end in (trend.low, trend.high))
    numbers = f"{slope}, 95 % interval {ends}, {trend.runs} runs"
    if trend.verdict == "no trend shown":
        return f"No trend shown: {numbers}."
    better = (trend.verdict == "rises") == measure.higher_is_better
    return f"{label} {trend.verdict} with P, which is {'better' if better else 'worse'}: {numbers}."
