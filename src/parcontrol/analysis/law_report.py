"""What a fit of the scaling law says: as text, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parcontrol.analysis.law import (
    CONFIDENCE,
    CONSTANT_CORRELATION,
    LOGARITHMIC,
    Fit,
    StreamFit,
    Uncertainty,
    akaike_information,
    fit,
    fit_streams,
    uncertainty,
)
from parcontrol.analysis.loss_table import LossTable
from parcontrol.analysis.tables import format_table

_PERCENT = f"{100 * CONFIDENCE:.0f} %"


@dataclass(frozen=True)
class LawReport:
    """Both laws on one table, each with its uncertainty and AIC; the logarithmic law comes first."""

    table: LossTable
    fits: tuple[Fit, Fit]
    uncertainties: tuple[Uncertainty, Uncertainty]
    aic: tuple[float, float]

    @property
    def akaike_weight(self) -> float:
        """Weight of evidence for the logarithmic law against its rival, from 0 to 1."""
        return float(1 / (1 + np.exp(np.clip((self.aic[0] - self.aic[1]) / 2, -700, 700))))

    def rows(self) -> list[tuple[str, str, float, float | None, float | None]]:
        """Every number as (law, quantity, value, lower end, upper end)."""
        rows: list[tuple[str, str, float, float | None, float | None]] = []
        for fitted, doubt, aic in zip(self.fits, self.uncertainties, self.aic, strict=True):
            name = fitted.law.name
            rows += [(name, key, value, *doubt.intervals[key]) for key, value in fitted.values().items()]
            figures = {
                "r_squared": fitted.r_squared,
                "objective": fitted.objective,
                "aic": aic,
                "left_out_rms": doubt.left_out_rms,
                "left_out_max": doubt.left_out_max,
            }
            rows += [(name, key, value, None, None) for key, value in figures.items()]
        return rows

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, ready for JSON."""
        laws = {}
        for fitted, doubt, aic in zip(self.fits, self.uncertainties, self.aic, strict=True):
            predicted = fitted.predict(self.table.N, self.table.P)
            laws[fitted.law.name] = {
                "formula": fitted.law.formula,
                "parameters": fitted.values(),
                "intervals": _json_intervals(doubt.intervals),
                "r_squared": fitted.r_squared,
                "objective": fitted.objective,
                "aic": aic,
                "resamples": doubt.resamples,
                "unsettled_resamples": doubt.unsettled,
                "left_out_rms": doubt.left_out_rms,
                "left_out_max": doubt.left_out_max,
                "parameter_factor": {str(P): fitted.parameter_factor(P) for P in self._streams()},
                "predicted": predicted.tolist(),
                "left_out_predicted": doubt.left_out.tolist(),
            }
        table = {"N": self.table.N.tolist(), "P": self.table.P.tolist(), "loss": self.table.loss.tolist()}
        return {
            "corpus": self.table.name,
            "table": table,
            "confidence": CONFIDENCE,
            "laws": laws,
            "akaike_weight_logarithmic": self.akaike_weight,
        }

    def __str__(self) -> str:
        streams = ", ".join(str(P) for P in self._streams())
        head = f"{self.table.name}: {len(self.table)} losses, {self.table.sizes} sizes, P = {streams}"
        parts = [self._law_text(i) for i in range(len(self.fits))]
        return "\n\n".join([head, *parts, f"{self._worth()}\n{self._verdict()}"])

    def _streams(self) -> list[int]:
        return [int(P) for P in np.unique(self.table.P)]

    def _law_text(self, index: int) -> str:
        fitted, doubt = self.fits[index], self.uncertainties[index]
        rows = [
            [name, f"{value:.6g}", "{:.4g} to {:.4g}".format(*doubt.intervals[name])]
            for name, value in fitted.values().items()
        ]
        lines = [
            f"{fitted.law.name}: L = {fitted.law.formula}",
            format_table(["", "estimate", f"{_PERCENT} interval"], rows),
            f"R² {fitted.r_squared:.5f}   objective {fitted.objective:.5e}   AIC {self.aic[index]:.1f}",
            f"error on a left-out row: {doubt.left_out_rms:.2%} rms, {doubt.left_out_max:.2%} at most",
        ]
        if doubt.unsettled:
            lines.append(f"{doubt.unsettled} of {doubt.resamples} resamples did not settle and count as they stood")
        return "\n".join(lines)

    def _worth(self) -> str:
        ends = self.uncertainties[0].intervals["k"]
        worth = []
        for P in self._streams():
            low, high = (1 + k * np.log(P) for k in ends)
            if P > 1:
                worth.append(f"{self.fits[0].parameter_factor(P):.2f}x at P = {P} ({low:.2f}x to {high:.2f}x)")
        return f"P streams are worth, in parameters: {', '.join(worth)}."

    def _verdict(self) -> str:
        difference = self.aic[1] - self.aic[0]
        preferred = self.fits[0 if difference >= 0 else 1].law.name
        weight = max(self.akaike_weight, 1 - self.akaike_weight)
        return (
            f"The {preferred} law describes this table better: AIC lower by {abs(difference):.1f}, "
            f"Akaike weight {weight:.4f}."
        )


def report(table: LossTable, resamples: int) -> LawReport:
    """Fit both laws to `table`.

    Raises:
        ValueError: the table does not determine them.
    """
    first, second = fit(table, LOGARITHMIC), fit(table, CONSTANT_CORRELATION)
    return LawReport(
        table,
        (first, second),
        (uncertainty(first, table, resamples), uncertainty(second, table, resamples)),
        (akaike_information(table, LOGARITHMIC), akaike_information(table, CONSTANT_CORRELATION)),
    )


@dataclass(frozen=True)
class StreamReport:
    """L(P) of one backbone."""

    table: LossTable
    fitted: StreamFit

    def rows(self) -> list[tuple[str, str, float, float | None, float | None]]:
        """Every number as (law, quantity, value, lower end, upper end)."""
        intervals = self.fitted.intervals or {}
        name = "logarithmic at fixed N"
        return [
            (name, "E", self.fitted.E, None, None),
            (name, "alpha", self.fitted.alpha, None, None),
            *(
                (name, key, getattr(self.fitted, key), *intervals.get(key, (None, None)))
                for key in ("single_stream_loss", "k")
            ),
            (name, "per_doubling", self.fitted.per_doubling, None, None),
        ]

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, ready for JSON."""
        intervals = self.fitted.intervals
        return {
            "corpus": self.table.name,
            "table": {"N": self.table.N.tolist(), "P": self.table.P.tolist(), "loss": self.table.loss.tolist()},
            "confidence": CONFIDENCE,
            "assumed": {"E": self.fitted.E, "alpha": self.fitted.alpha},
            "parameters": {"single_stream_loss": self.fitted.single_stream_loss, "k": self.fitted.k},
            "intervals": None if intervals is None else _json_intervals(intervals),
            "per_doubling": self.fitted.per_doubling,
            "parameter_factor": {str(int(P)): self.fitted.parameter_factor(P) for P in np.unique(self.table.P)},
            "predicted": self.fitted.predict(self.table.P).tolist(),
        }

    def __str__(self) -> str:
        fitted = self.fitted
        rows = []
        for name, value in (("L(1)", fitted.single_stream_loss), ("k", fitted.k)):
            ends = (fitted.intervals or {}).get("k" if name == "k" else "single_stream_loss")
            rows.append([name, f"{value:.6g}", "{:.4g} to {:.4g}".format(*ends) if ends else "no spare row"])
        largest = int(self.table.P.max())
        return "\n".join(
            (
                f"{self.table.name}: {len(self.table)} losses at one size",
                f"L(P) = E + (L(1) - E)·(k·ln P + 1)^(-alpha), assuming E = {fitted.E:g}, alpha = {fitted.alpha:g}",
                format_table(["", "estimate", f"{_PERCENT} interval"], rows),
                f"From P = 1 to 2 the loss changes by {fitted.per_doubling:+.4f} nats; "
                f"P = {largest} is worth {fitted.parameter_factor(largest):.2f}x the parameters.",
            )
        )


def stream_report(table: LossTable, E: float, alpha: float, resamples: int) -> StreamReport:
    """Fit L(P) at fixed N to `table`; raises as `fit_streams` does."""
    return StreamReport(table, fit_streams(table, E, alpha, resamples))


def _json_intervals(intervals: dict[str, tuple[float, float]]) -> dict[str, list[float | None]]:
    # JSON has no infinity, which is where A goes when a resample's alpha goes to zero.
    return {name: [end if math.isfinite(end) else None for end in ends] for name, ends in intervals.items()}


def to_csv(reports: Sequence[LawReport | StreamReport]) -> str:
    """One line per corpus, law and quantity: value and, where there is one, its interval."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["corpus", "law", "quantity", "value", "low", "high"])
    for item in reports:
        for law, quantity, value, low, high in item.rows():
            ends = ["" if end is None else repr(end) for end in (low, high)]
            writer.writerow([item.table.name, law, quantity, repr(value), *ends])
    return out.getvalue()
