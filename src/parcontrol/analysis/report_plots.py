"""The plots of a report: one panel each, so that they stand side by side or, on a phone, in a column.

Needs matplotlib, so it is imported only where a report is made. A number of streams has the same
colour and marker in every plot. Everything that is not a colour of data is drawn in three stand-in
colours, which the page replaces by those of its light or dark theme.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, NullLocator

from parcontrol.analysis.figures import COLOURS, new_figure, tidy
from parcontrol.analysis.findings import Difference, Findings, Price, StreamLaw, SweepFindings
from parcontrol.analysis.published import LAWS
from parcontrol.analysis.results import Run
from parcontrol.analysis.validity import SAME_BACKBONE

# Stand-ins for text, for what recedes, and for the page.
TEXT, MUTED, PAGE = "#1b1f24", "#6b7480", "#fefefe"
MARKERS = "osD^vPX"
_PANEL = (4.8, 3.4)
_DPI = 200
# Characters of a legend's row across a panel, and of a name in one.
_LEGEND_CHARACTERS, _NAME_CHARACTERS = 64, 48
# Behind text that a line may run through.
_COVER = {"facecolor": PAGE, "edgecolor": "none", "alpha": 0.7, "pad": 0.5}
# The backbone gets a strip of its own when it is further from the losses than this many of their ranges.
_FAR = 1.0
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": TEXT,
    "figure.facecolor": PAGE,
    "grid.color": MUTED,
    "text.color": TEXT,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.markeredgecolor": PAGE,
    "lines.markersize": 6,
    # Names of users stand in titles; a dollar sign in one is no formula.
    "text.parse_math": False,
    # Text stays text, and the same numbers give the same file.
    "svg.fonttype": "none",
    "svg.hashsalt": "parcontrol",
}


@contextmanager
def style() -> Iterator[None]:
    """Draws and saves in the style of the report."""
    with matplotlib.rc_context(_STYLE):
        yield


def render(figure: Figure) -> tuple[str, bytes]:
    """The figure as an SVG document and as a PNG file wide enough for a high-resolution screen."""
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", dpi=_DPI, metadata={"Date": None})
    figure.set_layout_engine("none")  # laid out by now, and that is half of the work
    figure.savefig(png, format="png", dpi=_DPI, metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


class Palette:
    """A colour and a marker for every number of streams: powers of two always have the same."""

    def __init__(self, streams: Sequence[int]) -> None:
        powers = {2**exponent: exponent for exponent in range(len(COLOURS))}
        spare = cycle([index for power, index in powers.items() if power not in streams] or range(len(COLOURS)))
        self._index = {P: powers[P] if P in powers else next(spare) for P in sorted(set(streams))}

    def index(self, P: int) -> int:
        """Number of the colour of P streams."""
        return self._index[P]

    def colour(self, P: int) -> str:
        """Colour of P streams, as a hex code."""
        return COLOURS[self._index[P]]

    def marker(self, P: int) -> str:
        """Marker of P streams."""
        return MARKERS[self._index[P]]


def loss_over_tokens(found: SweepFindings, palette: Palette) -> Figure:
    """Validation loss over tokens: a line per run, and the frozen backbone."""
    figure, axes = _panel()
    labelled = set()
    for run in found.sweep.runs:
        tokens, losses = run.series("validation_loss")
        if not tokens:
            continue
        label = None if run.P in labelled else f"P = {run.P}"
        labelled.add(run.P)
        axes.plot(
            tokens,
            losses,
            color=palette.colour(run.P),
            marker=palette.marker(run.P),
            markersize=4.5,
            linewidth=1.8,
            linestyle="-" if run.finished else ":",
            label=label,
        )
    backbone = _common([run.result.backbone_validation_loss for run in found.compared.runs if run.result])
    if backbone is not None:
        _draw_backbone(axes, backbone)
    _token_axis(axes)
    axes.set_ylabel("validation loss (nats per token)")
    _legend(figure, axes)
    return figure


def loss_over_streams(found: SweepFindings, palette: Palette) -> Figure:
    """Final loss over log2 P: runs, their means, intervals of the difference from the first P, and the fit.

    The frozen backbone is a line; where it lies far from the rest, the axis is broken between them.
    """
    backbone = _common([run.outcome.backbone_validation_loss for run in found.compared.finished])
    losses = [run.outcome.final_validation_loss for run in found.compared.finished]
    far = backbone is not None and _FAR * (max(losses) - min(losses)) < max(
        backbone - max(losses), min(losses) - backbone
    )
    if backbone is None or not far:
        figure, axes = _panel()
        _draw_losses(axes, found, palette)
        if backbone is not None:
            _draw_backbone(axes, backbone)
    else:
        figure, axes = _broken_panel(found, palette, backbone, above=backbone > max(losses))
    axes.set_ylabel("final loss (nats per token)")
    _legend(figure, axes)
    return figure


def _broken_panel(found: SweepFindings, palette: Palette, backbone: float, above: bool) -> tuple[Figure, Axes]:
    """The losses at full scale, and the backbone in a strip of its own above or below."""
    figure = new_figure(1, panel=_PANEL)
    ratios = [1, 7] if above else [7, 1]
    panels = figure.subplots(2, 1, sharex=True, height_ratios=ratios)
    figure.set_layout_engine("constrained", hspace=0.03)
    strip, axes = panels if above else panels[::-1]
    _draw_losses(axes, found, palette)
    strip.axhline(backbone, color=MUTED, linestyle="--", linewidth=1.4)
    axes.plot([], [], color=MUTED, linestyle="--", linewidth=1.4, label=f"frozen backbone: {backbone:.4f}")
    strip.set_ylim(backbone - 1, backbone + 1)
    strip.set_yticks([backbone], [f"{backbone:.3f}"])
    tidy(strip)
    panels[0].spines["bottom"].set_visible(False)
    panels[0].tick_params(axis="x", length=0, labelbottom=False)
    panels[0].set_xlabel("")
    panels[1].set_xlabel("streams P")
    cut = {"marker": [(-1, -0.6), (1, 0.6)], "markersize": 8, "linestyle": "none", "clip_on": False}
    for panel, edge in zip(panels, (0, 1), strict=True):
        panel.plot(0, edge, transform=panel.transAxes, color=MUTED, markeredgecolor=MUTED, **cut)
    return figure, axes


def _draw_losses(axes: Axes, found: SweepFindings, palette: Palette) -> None:
    assert found.reference is not None
    law = found.law
    if law is not None and law.band is not None:
        P = np.array(list(law.band))
        low, high = np.array(list(law.band.values())).T + law.fit.single_stream_loss
        axes.fill_between(P, low, high, color=MUTED, alpha=0.18, linewidth=0)
    if law is not None:
        P = np.geomspace(1, found.compared.streams[-1], 100)
        axes.plot(P, law.fit.predict(P), color=MUTED, linewidth=1.4, label=f"fitted L(P), k = {law.fit.k:.3f}")
    intervals = {difference.compared: difference.documents for difference in found.differences}
    for summary in found.streams:
        colour = palette.colour(summary.P)
        interval = intervals.get(f"P = {summary.P}")
        if interval is not None:
            ends = found.reference.loss + np.array(interval)
            axes.plot([summary.P] * 2, ends, color=colour, linewidth=2.2, solid_capstyle="butt")
        if len(summary.runs) > 1:
            seeds = [run.outcome.final_validation_loss for run in summary.runs]
            axes.plot([summary.P] * len(seeds), seeds, "_", color=colour, markeredgecolor=colour, markersize=12)
        axes.plot(summary.P, summary.loss, palette.marker(summary.P), color=colour, zorder=5)
        axes.annotate(
            f"{summary.loss:.4f}",
            (summary.P, summary.loss),
            (9, 5),
            textcoords="offset points",
            fontsize=9,
            zorder=4,
            bbox=_COVER,
        )
    _stream_axis(axes, found.compared.streams)


def differences(found: SweepFindings, palette: Palette) -> Figure:
    """Differences from the first P with their intervals, and zero."""
    streams = {f"P = {summary.P}": summary.P for summary in found.streams}
    shown = [(streams[d.compared], d) for d in found.differences if d.value is not None]
    figure, axes = _panel(height=1.3 + 0.55 * len(shown))
    axes.axvline(0, color=MUTED, linewidth=1)
    for row, (P, difference) in enumerate(shown):
        _whiskers(axes, row, difference, palette.colour(P))
        assert difference.value is not None
        axes.plot(difference.value, row, palette.marker(P), color=palette.colour(P), zorder=5, markersize=7)
    axes.set_yticks(range(len(shown)), [f"P = {P}" for P, _ in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(f"loss minus that of {shown[0][1].reference} (nats per token)")
    axes.tick_params(axis="y", length=0)
    tidy(axes)
    axes.grid(False, axis="y")
    return figure


def _whiskers(axes: Axes, row: int, difference: Difference, colour: str) -> None:
    if difference.seeds is not None:
        axes.plot(difference.seeds, [row + 0.22] * 2, color=colour, linewidth=1.2, linestyle=(0, (2, 1.5)))
    if difference.documents is not None:
        # Above the marker, which would hide a narrow one; ends that are seen however close they are.
        axes.plot(difference.documents, [row - 0.22] * 2, color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot(difference.documents, [row - 0.22] * 2, "|", color=colour, markeredgecolor=colour, markersize=7)


def worth(law: StreamLaw, streams: Sequence[int], palette: Palette) -> Figure:
    """What P streams are worth in parameters here, beside the paper's value for both corpora."""
    figure, axes = _panel()
    largest = max(*streams, 8)
    P = np.geomspace(1, largest, 100)
    for (corpus, published), dashes in zip(LAWS.items(), ("--", ":"), strict=True):
        factor = 1 + published.k * np.log(P)
        axes.plot(P, factor, color=MUTED, linestyle=dashes, label=f"paper, {corpus}: k = {published.k:.3f}")
    if law.k_widest is not None:
        low, high = (1 + k * np.log(P) for k in law.k_widest[0])
        axes.fill_between(P, low, high, color=MUTED, alpha=0.25, linewidth=0)
    inside, beyond = (np.geomspace(*ends, 100) for ends in ((1, max(streams)), (max(streams), largest)))
    label = f"fitted here: k = {law.fit.k:.3f}"
    axes.plot(inside, 1 + law.fit.k * np.log(inside), color=TEXT, linewidth=1.8, label=label)
    axes.plot(beyond, 1 + law.fit.k * np.log(beyond), color=TEXT, linewidth=1.2, linestyle=(0, (5, 4)))
    for count in streams:
        colour, value, interval = palette.colour(count), law.measured(count), law.measured_documents(count)
        if interval is not None:
            axes.plot([count] * 2, interval, color=colour, linewidth=2.2, solid_capstyle="butt", zorder=4)
        if value is not None:
            axes.plot(count, value, palette.marker(count), color=colour, zorder=5)
    _stream_axis(axes, sorted({*streams, *(2**i for i in range(int(math.log2(largest)) + 1))}))
    axes.set_ylabel("worth, times the parameters")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    _legend(figure, axes)
    return figure


def weights(run: Run) -> Figure:
    """Mean weight of each stream over training, as a heat map: the middle of the scale is even use."""
    figure, axes = _panel(height=1.35 + 0.3 * run.P)
    tokens, rows = run.series("mean_weight", streams=True)
    weight_PT = np.array(rows).T
    edges = np.concatenate([[_start_of_first(tokens)], tokens])
    mesh = axes.pcolormesh(
        edges,
        np.arange(run.P + 1),
        weight_PT,
        cmap="cividis",
        vmin=0,
        vmax=max(2 / run.P, float(weight_PT.max())),
        rasterized=True,
    )
    for stream, last in enumerate(weight_PT[:, -1]):
        axes.annotate(
            f"{last:.3f}",
            (1, stream + 0.5),
            (5, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(np.arange(run.P) + 0.5, [f"stream {p}" for p in range(run.P)])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("tokens trained on")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    bar = figure.colorbar(mesh, ax=axes, pad=0.13, aspect=12, ticks=[0, 1 / run.P, mesh.norm.vmax or 1])
    bar.ax.set_yticklabels(["0", f"even, 1/{run.P}", f"{mesh.norm.vmax:.2g}"])
    bar.outline.set_visible(False)
    return figure


def _start_of_first(tokens: Sequence[int]) -> float:
    """Where the first interval began: log points are evenly spaced, and nothing is before 0."""
    return max(0, tokens[0] - (tokens[1] - tokens[0])) if len(tokens) > 1 else 0


def entropy(found: SweepFindings, palette: Palette) -> Figure:
    """Entropy of a token's weights within the attainable range, over tokens."""
    figure = _stream_curves(found, palette, "entropy_relative", "entropy, part of its attainable range")
    figure.axes[0].set_ylim(-0.03, 1.05)
    return figure


def similarity(found: SweepFindings, palette: Palette) -> Figure:
    """Mean cosine similarity between the streams' final hidden states, over tokens."""
    return _stream_curves(found, palette, "mean_cosine_similarity", "mean cosine between streams")


def _stream_curves(found: SweepFindings, palette: Palette, key: str, label: str) -> Figure:
    figure, axes = _panel()
    labelled = set()
    for run in found.sweep.runs:
        tokens, values = run.series(key, streams=True)
        if tokens:
            axes.plot(
                tokens,
                values,
                color=palette.colour(run.P),
                marker=palette.marker(run.P),
                markersize=4.5,
                markevery=max(1, len(tokens) // 12),
                linestyle="-" if run.finished else ":",
                label=None if run.P in labelled else f"P = {run.P}",
            )
            labelled.add(run.P)
    _token_axis(axes)
    axes.set_ylabel(label)
    _legend(figure, axes)
    return figure


def price(prices: Sequence[Price], palette: Palette) -> Figure:
    """Time and memory of training relative to the first P, measured, beside the predicted compute."""
    figure, axes = _panel()
    first = prices[0]
    P = [item.P for item in prices]
    lines = {
        "time per token, measured": ([first.tokens_per_second / item.tokens_per_second for item in prices], "-", TEXT),
        "peak memory, measured": ([item.peak_memory_bytes / first.peak_memory_bytes for item in prices], "-.", TEXT),
    }
    flops = [item.flops_per_token for item in prices if item.flops_per_token is not None]
    if len(flops) == len(prices):
        lines["compute, predicted"] = ([count / flops[0] for count in flops], ":", MUTED)
    for label, (values, dashes, colour) in lines.items():
        axes.plot(P, values, dashes, color=colour, linewidth=1.5, label=label)
        if colour == TEXT:
            for count, value in zip(P, values, strict=True):
                axes.plot(count, value, palette.marker(count), color=palette.colour(count), zorder=5)
    _stream_axis(axes, P)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"relative to P = {first.P}")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    _legend(figure, axes)
    return figure


def sweeps(found: Findings) -> Figure:
    """Final loss over log2 P, a line per sweep."""
    figure, axes = _panel()
    drawn = [item for item in found.sweeps if item.streams]
    for item, colour, marker in zip(drawn, cycle(COLOURS[::-1]), cycle(MARKERS), strict=False):
        axes.plot(
            item.compared.streams,
            [summary.loss for summary in item.streams],
            color=TEXT if colour == COLOURS[-1] else colour,
            marker=marker,
            label=_shortened(item.sweep.name),
        )
    _stream_axis(axes, sorted({P for item in drawn for P in item.compared.streams}))
    axes.set_ylabel("final validation loss (nats per token)")
    _legend(figure, axes)
    return figure


def _legend(figure: Figure, axes: Axes) -> None:
    """A legend above the panel, where no line runs through it, in as few rows as its labels allow."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    columns = next(n for n in (4, 3, 2, 1) if n == 1 or n * (max(map(len, labels)) + 6) <= _LEGEND_CHARACTERS)
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)


def _shortened(name: str) -> str:
    """A name that fits into a legend: as much of both ends as there is room for."""
    return (
        name if len(name) <= _NAME_CHARACTERS else f"{name[: _NAME_CHARACTERS // 2]}…{name[-_NAME_CHARACTERS // 2 :]}"
    )


def _panel(height: float = _PANEL[1]) -> tuple[Figure, Axes]:
    figure = new_figure(1, panel=(_PANEL[0], height))
    return figure, figure.subplots()


def _token_axis(axes: Axes) -> None:
    axes.set_xlabel("tokens trained on")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    tidy(axes)


def _stream_axis(axes: Axes, streams: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(streams, [str(P) for P in streams])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(min(streams) / 1.25, max(streams) * 1.5)
    axes.set_xlabel("streams P")
    tidy(axes)


def _draw_backbone(axes: Axes, loss: float) -> None:
    axes.axhline(loss, color=MUTED, linestyle="--", linewidth=1.4, label=f"frozen backbone: {loss:.4f}")


def _common(backbone_losses: Sequence[float]) -> float | None:
    """The loss of the backbone alone, where all finished runs agree on it."""
    agree = backbone_losses and max(backbone_losses) - min(backbone_losses) < SAME_BACKBONE
    return backbone_losses[0] if agree else None
