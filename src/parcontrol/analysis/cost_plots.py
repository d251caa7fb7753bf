"""Plots of the cost model. Needs matplotlib, so it is imported only where a plot is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from parcontrol.analysis.cost import GIB, Cost
from parcontrol.analysis.cost_compare import (
    PAPER_LATENCY_RATIO,
    PAPER_MEMORY_RATIO,
    SIZE,
    STREAMS,
    Ratio,
)
from parcontrol.analysis.figures import COLOURS, new_figure, tidy


def plot_sweep(costs: Mapping[tuple[int, int], Cost], title: str) -> Figure:
    """Memory and latency over batch size, a line per P. Keys of `costs` are (P, batch size)."""
    figure = new_figure(2)
    memory, latency = figure.subplots(1, 2)
    streams = sorted({P for P, _ in costs})
    batches = sorted({batch for _, batch in costs})
    for colour, P in zip(COLOURS, streams, strict=False):
        style = {"color": colour, "marker": "o", "markersize": 4, "label": f"P = {P}"}
        memory.plot(batches, [costs[P, b].memory.total / GIB for b in batches], **style)
        latency.plot(batches, [costs[P, b].latency.total for b in batches], **style)
    memory.set_title("Peak memory (GiB)", loc="left")
    latency.set_title("Latency of one generation (s)", loc="left")
    for axes in (memory, latency):
        axes.set_ylim(bottom=0)
        _batch_axis(axes, batches)
    memory.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def plot_comparison(ratios: Sequence[Ratio]) -> Figure:
    """How many times less ParScale adds than parameters do, over batch size, per derivation."""
    figure = new_figure(2, panel=(5.6, 4.6))
    panels = figure.subplots(1, 2, sharey=True)
    batches = sorted({ratio.batch_size for ratio in ratios})
    names = list(dict.fromkeys(ratio.derivation for ratio in ratios))
    for axes, quantity, paper in zip(
        panels, ("memory", "latency"), (PAPER_MEMORY_RATIO, PAPER_LATENCY_RATIO), strict=True
    ):
        for colour, name in zip(COLOURS, names, strict=False):
            line = [ratio for ratio in ratios if ratio.derivation == name]
            axes.plot(
                batches,
                [getattr(ratio, quantity) for ratio in line],
                color=colour,
                marker="o",
                markersize=4,
                linestyle="-" if line[0].basis == "measured" else "--",
                label=name,
            )
        axes.plot(1, paper, "k*", markersize=12, markeredgecolor="white", zorder=5)
        axes.annotate(f"paper: up to {paper}x", (1, paper), (14, 6), textcoords="offset points", fontsize=9)
        axes.axhspan(0.1, 1, color="black", alpha=0.06, linewidth=0)
        axes.set_yscale("log")
        axes.set_yticks([0.5, 1, 2, 5, 10, 20], ["0.5x", "1x", "2x", "5x", "10x", "20x"])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0.45, 40)
        axes.tick_params(labelleft=True)
        axes.set_title(f"Added {quantity}: more parameters / more streams", loc="left", fontsize=10)
        axes.text(0.02, 0.03, "below 1x: ParScale adds more", transform=axes.transAxes, fontsize=8)
        _batch_axis(axes, batches)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=8,
        handlelength=3.5,
    )
    figure.suptitle(
        f"{SIZE} at P = {STREAMS} against a plain model of the same loss (solid: measured losses, dashed: fitted law)",
        fontsize=10,
    )
    return figure


def _batch_axis(axes: Axes, batches: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("batch size")
    tidy(axes)
