"""How long a request to the Hub may wait for an answer, and how often it is made."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session

if TYPE_CHECKING:
    import httpx2

# Of connecting, reading, writing and getting a connection, each; huggingface_hub itself has no limit for most requests.
TIMEOUT_SECONDS = {"connect": 10.0, "read": 60.0, "write": 60.0, "pool": 60.0}
# What huggingface_hub itself tries again where it does, and how long it waits between; not all its requests do.
_PASSING_STATUS = (408, 429, 500, 502, 503, 504)
_PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0, 8.0)

Answer = TypeVar("Answer")


def patiently(ask: Callable[[], Answer]) -> Answer:
    """Asks the Hub again, up to five times, where it answers that it cannot just now; as late as it says, if it does.

    Raises:
        HfHubHTTPError: The last refusal, or one that waiting does not mend.
    """
    for pause in _PAUSES_SECONDS:
        try:
            return ask()
        except HfHubHTTPError as error:
            if error.response.status_code not in _PASSING_STATUS:
                raise
            told = error.response.headers.get("Retry-After", "")
            time.sleep(float(told) if told.isdigit() else pause)
    return ask()


def limit_waiting() -> None:
    """Gives every request of huggingface_hub that has none a time-out, so that a Hub that hangs ends in an error.

    To be called before requests, and not once: the library makes a new session after a failure to connect.
    """
    session = get_session()
    hooks = session.event_hooks
    if _set_timeouts not in hooks["request"]:
        session.event_hooks = {**hooks, "request": [*hooks["request"], _set_timeouts]}


def _set_timeouts(request: httpx2.Request) -> None:
    given = {name: seconds for name, seconds in request.extensions["timeout"].items() if seconds is not None}
    request.extensions = {**request.extensions, "timeout": TIMEOUT_SECONDS | given}
