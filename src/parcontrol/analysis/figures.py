"""Figures without a display: what all plots of the analysis share."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")

# A sequence that stays readable in grey and for colour-blind readers (Okabe and Ito).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")


def new_figure(columns: int, rows: int = 1, panel: tuple[float, float] = (5.2, 4.0)) -> Figure:
    """An empty figure for `rows` x `columns` panels of `panel` inches each."""
    return Figure(figsize=(panel[0] * columns, panel[1] * rows), layout="constrained")


def tidy(axes: Axes) -> None:
    """Light grid, no frame on top and right."""
    axes.grid(True, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def check_figure_path(path: str | Path) -> Path:
    """Return `path` if a figure can be written there.

    Raises:
        ValueError: the suffix is none of .png, .svg, .pdf, or the folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"cannot plot to {str(path)!r}; the name must end in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ValueError(f"cannot plot to {str(path)!r}; there is no folder {str(path.parent)!r}")
    return path


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write `figure` in the format that the suffix names."""
    path = check_figure_path(path)
    figure.savefig(path, dpi=150)
    return path
