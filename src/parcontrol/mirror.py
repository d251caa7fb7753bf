"""Where a repository of the Hub lies on this machine: as a folder, or in an offline mirror of the Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

MIRROR_VARIABLE = "PARCONTROL_MIRROR"


def mirror_directory(configured: str | None = None) -> Path | None:
    """Returns the mirror in use: the configured one, or the one that PARCONTROL_MIRROR names; None without either."""
    mirror = configured or os.environ.get(MIRROR_VARIABLE)
    return Path(mirror).expanduser() if mirror else None


def is_path(name: str) -> bool:
    """Whether a name can only be meant as a place on this machine, and not as an id of the Hub."""
    return name.startswith(("/", "./", "../", "~")) or name.count("/") > 1


def local_copy(kind: Literal["datasets", "models"], repo: str, mirror: str | None = None) -> Path | None:
    """Returns where a repository lies on this machine, None if it does not.

    Args:
        kind: Which kind of repository.
        repo: A folder, which wins, or a Hub id.
        mirror: Directory laid out as `datasets/<id>` and `models/<id>`; None takes PARCONTROL_MIRROR.
    """
    directory = mirror_directory(mirror)
    places = [Path(repo).expanduser()] + ([directory / kind / repo] if directory else [])
    return next((place for place in places if place.is_dir()), None)
