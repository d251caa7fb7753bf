"""The three repositories of the leaderboard, on the Hub or in a local directory."""

from __future__ import annotations

import os
from dataclasses import dataclass

from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store.base import (
    Changes,
    ConflictError,
    FileTooLargeError,
    Snapshot,
    Store,
    StoreError,
    blob_id,
    check_path,
    update,
)
from parcontrol.leaderboard.store.local import LocalStore

__all__ = [
    "Changes",
    "ConflictError",
    "FileTooLargeError",
    "LocalStore",
    "Snapshot",
    "Store",
    "StoreError",
    "Stores",
    "blob_id",
    "check_path",
    "open_stores",
    "update",
]


@dataclass(frozen=True)
class Stores:
    """The three repositories."""

    requests: Store
    results: Store
    leaderboard: Store


def open_stores(settings: Settings) -> Stores:
    """Returns the three repositories that the settings name; nothing is read or created yet."""
    if not settings.on_hub:
        return Stores(*(LocalStore(settings.root / name) for name in ("requests", "results", "leaderboard")))
    # Xet is one more protocol for large files, which only the public Hub speaks. Read when huggingface_hub is imported.
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    from parcontrol.leaderboard.store.hub import HubStore

    assert settings.queue_repo
    assert settings.results_repo
    assert settings.repo_id
    repositories = (settings.queue_repo, settings.results_repo, settings.repo_id)
    return Stores(*(HubStore(repository, settings.token, settings.endpoint) for repository in repositories))
