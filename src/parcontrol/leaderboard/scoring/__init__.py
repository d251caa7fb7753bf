"""Scoring of stored generations, some of it by models, without the model that wrote them."""

from __future__ import annotations

from pathlib import Path


def rescore(directory: Path) -> dict[str, str]:
    """Fills in the missing metrics of a finished task in the spool; see `rescoring.rescore_directory`.

    Imports the scorers only when called: the tasks use parts of this package without them.

    Returns:
        The metrics that could not be computed, with the reasons.
    """
    from parcontrol.leaderboard.scoring.rescoring import rescore_directory

    return rescore_directory(directory).failures
