"""Plot of measured times beside their roofline."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from parcontrol.analysis.figures import COLOURS, new_figure, tidy
from parcontrol.measure.report import Measurement


def plot_measurement(measurement: Measurement) -> Figure:
    """Prefill and decode step over batch size: a colour per P, measured solid, roofline dotted."""
    figure = new_figure(2, panel=(5.2, 4.2))
    for axes, part, title in zip(
        figure.subplots(1, 2),
        ("prefill", "decode_step"),
        (f"Prefill of {measurement.input_length} tokens (ms)", "One decode step (ms)"),
        strict=True,
    ):
        _draw(axes, measurement, part)
        axes.set_title(title, loc="left")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(
        f"{Path(measurement.model).name} on {measurement.device}, {measurement.dtype} "
        "(solid: measured, dotted: roofline)",
        fontsize=10,
    )
    return figure


def _draw(axes: Axes, measurement: Measurement, part: str) -> None:
    batches = sorted({row.timing.batch_size for row in measurement.rows})
    streams = sorted({row.timing.P for row in measurement.rows})
    for index, P in enumerate(streams):
        colour = COLOURS[index % len(COLOURS)]
        rows = sorted((r for r in measurement.rows if r.timing.P == P), key=lambda r: r.timing.batch_size)
        x = [row.timing.batch_size for row in rows]
        axes.plot(x, [1e3 * getattr(row.timing, part) for row in rows], "o-", color=colour, label=f"P = {P}")
        axes.plot(x, [1e3 * getattr(row.roofline, part) for row in rows], ":", color=colour)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("batch size")
    tidy(axes)
