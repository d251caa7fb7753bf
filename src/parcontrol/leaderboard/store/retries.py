"""The one place that decides how often, and after how long, something is tried again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tenacity

from parcontrol.leaderboard.store.base import StoreError


@dataclass(frozen=True)
class RetryPolicy:
    """Random exponential back-off, so that those who met once do not meet again.

    Attributes:
        first_seconds: Longest first wait; every further one may be twice as long.
        longest_seconds: Longest wait.
        attempts: After so many the failure is reported.
    """

    first_seconds: float
    longest_seconds: float
    attempts: int

    def retrying(
        self,
        again: Callable[[BaseException], bool],
        what: str,
        told_seconds: Callable[[BaseException], float] = lambda error: 0,
    ) -> tenacity.Retrying:
        """Returns a loop, `for attempt in …: with attempt: …`.

        Args:
            again: Whether what failed with an error is to be tried again; other errors pass at once.
            what: What is done, for the message.
            told_seconds: How long the error itself says to wait, which is then the least.

        Raises:
            StoreError: From the loop, when it gives up.
        """
        backoff = tenacity.wait_random_exponential(multiplier=self.first_seconds, max=self.longest_seconds)

        def wait(state: tenacity.RetryCallState) -> float:
            return max(backoff(state), told_seconds(_error(state)))

        def give_up(state: tenacity.RetryCallState) -> Any:
            waited = f"{state.attempt_number} attempts in {state.seconds_since_start or 0:.0f} s"
            error = _error(state)
            raise StoreError(f"{what}: gave up after {waited}: {error}") from error

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(again),
            wait=wait,
            stop=tenacity.stop_after_attempt(self.attempts),
            retry_error_callback=give_up,
        )


def _error(state: tenacity.RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error, "only failures are tried again"
    return error


# Conflicts in a directory are over in milliseconds: about a minute and a half in all.
LOCAL_CONFLICTS = RetryPolicy(first_seconds=0.002, longest_seconds=0.2, attempts=1000)
# Somebody else was faster, or the Hub still shows what was before: about two minutes in all.
HUB_CONFLICTS = RetryPolicy(first_seconds=0.2, longest_seconds=8, attempts=40)
# Overload, errors of the server, time-outs: about a minute in all, and longer where the Hub says how long.
HUB_TROUBLE = RetryPolicy(first_seconds=1, longest_seconds=30, attempts=8)
