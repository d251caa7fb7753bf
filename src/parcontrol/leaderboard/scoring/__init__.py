"""Scoring of stored generations, some of it by models, without the model that wrote them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parcontrol.leaderboard.scoring.scorers import Scorer


def rescore(directory: Path, scorers: Iterable[Scorer] | None = None) -> dict[str, str]:
    """Fills in the metrics of a finished task that scorers compute; see `rescoring.rescore`.

    Imports the scorers only when called: the tasks use parts of this package without them.
    """
    from parcontrol.leaderboard.scoring import rescoring

    return rescoring.rescore(directory, scorers)
