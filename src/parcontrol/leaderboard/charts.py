"""Heat map and cluster map of models and metrics.

Colours compare models within one column: the worst of its values is dark, the best is light, whichever direction is
better. A missing value is a hatched cell with a dash. The cluster map puts alike models, and alike columns, side by
side: average linkage on the root mean square difference of these colours over what two rows, or columns, both have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.cluster.hierarchy import dendrogram, leaves_list, linkage
from scipy.spatial.distance import squareform

from parcontrol.leaderboard.matrix import Matrix, matrix
from parcontrol.leaderboard.registry import TaskSpec, registry

SUFFIXES = (".png", ".svg")

_COLOURS = "cividis"  # readable in grey and for colour-blind readers
_MISSING = "#e4e4e4"
_CELL = (0.52, 0.3)  # inches
_TREE = 0.9
_MOST_HEIGHT = 45.0
_LEAST_LABELLED = 0.13  # lower rows cannot carry text
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "hatch.color": "#b0b0b0",
    "hatch.linewidth": 0.6,
    # Names of models stand in labels; a dollar sign in one is no formula.
    "text.parse_math": False,
    # Text stays text, and the same numbers give the same file.
    "svg.fonttype": "none",
    "svg.hashsalt": "parcontrol",
}


def heat_map(data: Matrix) -> Figure:
    """Draws models and columns in the order of the table."""
    with matplotlib.rc_context(_STYLE):
        width, height = _cell_sizes(data)
        figure = _new_figure()
        axes = figure.subplots()
        _draw_cells(axes, data, height)
        _finish(figure, data, width, height)
        return figure


def cluster_map(data: Matrix) -> Figure:
    """Draws alike models, and alike columns, side by side, with their trees."""
    with matplotlib.rc_context(_STYLE):
        row_tree, column_tree = _tree(data.goodness), _tree(data.goodness.T)
        rows, columns = _order(row_tree, len(data.models)), _order(column_tree, len(data.columns))
        ordered = Matrix(
            tuple(data.models[row] for row in rows),
            tuple(data.columns[column] for column in columns),
            data.values[np.ix_(rows, columns)],
            data.goodness[np.ix_(rows, columns)],
        )
        width, height = _cell_sizes(data)
        left, top = (_TREE if tree is not None else 0.01 for tree in (row_tree, column_tree))
        figure = _new_figure()
        above, below = figure.subplots(
            2,
            2,
            gridspec_kw={
                "width_ratios": [left, width * len(columns)],
                "height_ratios": [top, height * len(rows)],
            },
        )
        above[0].axis("off")
        _draw_tree(above[1], column_tree, "top")
        _draw_tree(below[0], row_tree, "left")
        _draw_cells(below[1], ordered, height)
        _finish(figure, data, width, height, left, top)
        return figure


def write_all(table: pd.DataFrame, specs: Sequence[TaskSpec], directory: Path) -> list[Path]:
    """Writes both maps as PNG and SVG, and the table with the columns of these tasks as TSV and parquet.

    Returns:
        The files.

    Raises:
        ValueError: There is no value, or the directory cannot be written.
    """
    data = matrix(table, specs)
    figures = {"heatmap": heat_map(data), "clustermap": cluster_map(data)}
    chosen = {column.label for spec in specs for column in spec.columns}
    left_out = {column.label for spec in registry() for column in spec.columns} - chosen
    kept = table.drop(columns=sorted(left_out))
    paths = [directory / f"leaderboard{suffix}" for suffix in (".tsv", ".parquet")]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        kept.to_csv(paths[0], sep="\t", index=False, lineterminator="\n")
        kept.to_parquet(paths[1], index=False)
    except OSError as error:
        raise ValueError(f"{directory} cannot be written: {error}") from error
    for name, figure in figures.items():
        for suffix in SUFFIXES:
            save(figure, directory / f"{name}{suffix}")
            paths.append(directory / f"{name}{suffix}")
    return paths


def save(figure: Figure, path: Path) -> None:
    """Writes a figure in the format that the suffix names; the same figure gives the same file.

    Raises:
        ValueError: It cannot be written there.
    """
    assert path.suffix in SUFFIXES, path
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    try:
        with matplotlib.rc_context(_STYLE):
            figure.savefig(path, dpi=150, bbox_inches="tight", metadata=metadata)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error}") from error


def _tree(points: np.ndarray) -> np.ndarray | None:
    """The linkage of rows, None where there is nothing to tell them apart by."""
    if len(points) < 2:
        return None
    has = ~np.isnan(points)
    filled = np.where(has, points, 0)
    shared = has.astype(float) @ has.T
    # |a - b|² over what both have, without a third dimension for many models.
    squares = (filled**2) @ has.T + has @ (filled**2).T - 2 * filled @ filled.T
    with np.errstate(invalid="ignore", divide="ignore"):
        distances = np.sqrt(np.maximum(squares, 0) / shared)
    # Rows that share nothing cannot be compared: they are as far apart as can be.
    distances[shared == 0] = 1
    np.fill_diagonal(distances, 0)
    return linkage(squareform(distances, checks=False), method="average") if distances.any() else None


def _order(tree: np.ndarray | None, count: int) -> list[int]:
    return list(range(count)) if tree is None else list(map(int, leaves_list(tree)))


def _new_figure() -> Figure:
    figure = Figure()
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    return figure


def _cell_sizes(data: Matrix) -> tuple[float, float]:
    return _CELL[0], min(_CELL[1], _MOST_HEIGHT / len(data.models))


def _draw_cells(axes: Axes, data: Matrix, height: float) -> None:
    rows, columns = data.values.shape
    axes.set_facecolor(_MISSING)
    for row, column in np.argwhere(np.isnan(data.values)):
        axes.fill(
            [column, column + 1, column + 1, column], [row, row, row + 1, row + 1], hatch="////", fill=False, lw=0
        )
    shown = np.ma.masked_invalid(data.goodness)
    axes.pcolormesh(shown, cmap=_COLOURS, vmin=0, vmax=1, edgecolors="white", linewidth=0.5 if height > 0.1 else 0)
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(columns) + 0.5, data.columns, rotation=60, ha="right", rotation_mode="anchor")
    axes.yaxis.tick_right()
    if height < _LEAST_LABELLED:
        axes.set_yticks([])
        axes.set_ylabel(f"{rows:,} models")
        return
    axes.set_yticks(np.arange(rows) + 0.5, data.models)
    size = min(7.0, height * 50)
    for (row, column), value in np.ndenumerate(data.values):
        missing = np.isnan(value)
        light = not missing and data.goodness[row, column] > 0.55
        colour = "#606060" if missing else "black" if light else "white"
        text = "–" if missing else _number(value)
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=size, color=colour)


def _draw_tree(axes: Axes, tree: np.ndarray | None, orientation: str) -> None:
    axes.axis("off")
    if tree is None:
        return
    # scipy gives every leaf ten units.
    dendrogram(
        tree, ax=axes, orientation=orientation, no_labels=True, color_threshold=0, above_threshold_color="#606060"
    )
    for lines in axes.collections:
        lines.set_linewidth(0.8)
    if orientation == "left":
        axes.invert_yaxis()


def _finish(figure: Figure, data: Matrix, width: float, height: float, left: float = 0, top: float = 0) -> None:
    """Size, scale of the colours, and what a hatched cell means."""
    rows, columns = data.values.shape
    names = 0.075 * max(map(len, data.models)) if height >= _LEAST_LABELLED else 0.3
    labels = 0.07 * max(map(len, data.columns))
    figure.set_size_inches(max(4.5, left + width * columns + names + 0.4), top + height * rows + labels + 1.0)
    if rows > 1:
        scale = matplotlib.cm.ScalarMappable(cmap=_COLOURS)
        bar = figure.colorbar(scale, ax=figure.axes, location="top", shrink=0.5, aspect=30, fraction=0.02, pad=0.01)
        bar.set_ticks([0, 1], labels=["worst in column", "best"])
        bar.ax.tick_params(length=0)
        bar.outline.set_visible(False)
    if np.isnan(data.values).any():
        missing = Patch(facecolor=_MISSING, hatch="////", edgecolor="#b0b0b0", lw=0, label="no result")
        figure.legend(handles=[missing], loc="upper right", frameon=False)


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:.2g}"
