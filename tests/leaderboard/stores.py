"""Stores for tests: a directory, or a Hub on this machine whose waits are short."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants
from pydantic import SecretStr

from parcontrol.leaderboard.store.hub import HubStore
from parcontrol.leaderboard.store.retries import RetryPolicy
from tests.leaderboard.hub_server import WritableHub, writable_hub

TOKEN = "secret-token"
REPOSITORY = "alice/requests"
TROUBLE = RetryPolicy(first_seconds=0.01, longest_seconds=0.05, attempts=6)
CONFLICTS = RetryPolicy(first_seconds=0.01, longest_seconds=0.1, attempts=500)


@contextmanager
def online_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    """A Hub that this process may talk to, with caches of its own."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HOME", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    with writable_hub({TOKEN: "alice", "other-token": "bob"}) as hub:
        yield hub


def hub_store(hub: WritableHub, token: str | None = TOKEN, repository: str = REPOSITORY) -> HubStore:
    """A repository of the Hub."""
    return HubStore(repository, SecretStr(token) if token else None, hub.endpoint, TROUBLE, CONFLICTS)
