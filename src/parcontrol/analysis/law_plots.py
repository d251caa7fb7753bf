"""Plots of the scaling law. Needs matplotlib, so it is imported only where a plot is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from parcontrol.analysis.figures import COLOURS, new_figure, tidy
from parcontrol.analysis.law import Fit
from parcontrol.analysis.law_report import LawReport, StreamReport


def plot(reports: Sequence[LawReport] | Sequence[StreamReport]) -> Figure:
    """Plot reports of one kind, in the way of that kind."""
    laws = [item for item in reports if isinstance(item, LawReport)]
    return plot_laws(laws) if laws else plot_streams([item for item in reports if isinstance(item, StreamReport)])


def plot_laws(reports: Sequence[LawReport]) -> Figure:
    """A row per corpus: contours of the fitted loss over N and P, and the two laws over P."""
    figure = new_figure(2, len(reports), panel=(5.6, 4.2))
    panels = figure.subplots(len(reports), 2, squeeze=False)
    for (contours, curves), item in zip(panels, reports, strict=True):
        _draw_contours(figure, contours, item)
        _draw_curves(curves, item)
    return figure


def plot_streams(reports: Sequence[StreamReport]) -> Figure:
    """Loss over P at one size: measured and fitted, a panel per table."""
    figure = new_figure(len(reports))
    for axes, item in zip(figure.subplots(1, len(reports), squeeze=False)[0], reports, strict=True):
        P = np.geomspace(1, item.table.P.max(), 100)
        axes.plot(P, item.fitted.predict(P), color=COLOURS[0], label=f"fitted, k = {item.fitted.k:.3f}")
        axes.plot(item.table.P, item.table.loss, "o", color=COLOURS[3], label="measured")
        _stream_axis(axes, item.table.P)
        axes.set_ylabel("loss (nats)")
        axes.set_title(_plain(item.table.name), loc="left")
        axes.legend(frameon=False)
    return figure


def _draw_contours(figure: Figure, axes: Axes, item: LawReport) -> None:
    table, fitted = item.table, item.fits[0]
    N = np.geomspace(table.N.min() / 1.3, table.N.max() * 1.3, 200)
    P = np.geomspace(1, table.P.max() * 1.5, 200)
    loss = fitted.predict(N[None, :], P[:, None])
    filled = axes.contourf(N, P, loss, levels=14, cmap="viridis")
    lines = axes.contour(N, P, loss, levels=np.asarray(filled.levels)[::2], colors="white", linewidths=0.7)
    axes.plot(table.N, table.P, "o", markersize=4, color="white", markeredgecolor="black", clip_on=False, zorder=5)
    axes.set_xscale("log")
    axes.set_xlabel("non-embedding parameters N")
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yscale("log", base=2)
    streams = np.unique(table.P)
    axes.set_yticks(streams, [f"{value:g}" for value in streams])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("streams P")
    axes.set_title(f"{_plain(item.table.name)}: fitted loss (nats), dots are measured", loc="left", fontsize=10)
    figure.colorbar(filled, ax=axes, pad=0.02).add_lines(lines)


def _draw_curves(axes: Axes, item: LawReport) -> None:
    table = item.table
    P = np.geomspace(1, table.P.max(), 100)
    sizes = _sizes(item)
    for colour, members in zip(np.resize(COLOURS, len(sizes)), sizes, strict=True):
        N = _parameters_over(P, table.P[members], table.N[members])
        _draw_law(axes, item.fits[0], N, P, colour, "-")
        _draw_law(axes, item.fits[1], N, P, colour, ":")
        axes.plot(table.P[members], table.loss[members], "o", markersize=4, color=colour)
        axes.annotate(
            _short(float(table.N[members].min())),
            (P[-1], float(item.fits[0].predict(N[-1], P[-1]))),
            (5, -3),
            textcoords="offset points",
            fontsize=8,
            color=colour,
        )
    _stream_axis(axes, table.P)
    axes.set_xlim(0.93, table.P.max() * 1.35)
    axes.set_ylabel("loss (nats)")
    axes.set_title(
        f"{_plain(table.name)}: solid {item.fits[0].law.name}, dotted {item.fits[1].law.name}", loc="left", fontsize=10
    )


def _draw_law(axes: Axes, fitted: Fit, N: np.ndarray, P: np.ndarray, colour: str, style: str) -> None:
    axes.plot(P, fitted.predict(N, P), linestyle=style, color=colour, linewidth=1.2)


def _sizes(item: LawReport) -> list[np.ndarray]:
    """Row indices of each model size, smallest first."""
    order = np.argsort(item.table.N, kind="stable")
    labels = item.table.size_labels()
    return [order[labels[order] == label] for label in range(item.table.sizes)]


def _parameters_over(P: np.ndarray, known_P: np.ndarray, known_N: np.ndarray) -> np.ndarray:
    """N of one size over P, between its known counts: prefixes and aggregator grow with P."""
    order = np.argsort(known_P)
    return np.interp(P, known_P[order], known_N[order])


def _stream_axis(axes: Axes, P: np.ndarray) -> None:
    streams = np.unique(P)
    axes.set_xscale("log", base=2)
    axes.set_xticks(streams, [f"{value:g}" for value in streams])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("streams P")
    tidy(axes)


def _plain(name: str) -> str:
    """A name in which a dollar sign begins no formula."""
    return name.replace("$", r"\$") if rcParams["text.parse_math"] else name


def _short(count: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:g}"
