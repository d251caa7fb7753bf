"""The one place that decides how often, and how long, something is tried again."""

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
        give_up_seconds: After so long the failure is reported.
    """

    first_seconds: float
    longest_seconds: float
    give_up_seconds: float

    def retrying(self, again: Callable[[BaseException], bool], what: str) -> tenacity.Retrying:
        """Returns the loop that repeats what fails in a way that `again` is true for.

        Raises:
            StoreError: From the loop, when it gives up; other errors pass at once.
        """

        def give_up(state: tenacity.RetryCallState) -> Any:
            assert state.outcome
            error = state.outcome.exception()
            assert error
            raise StoreError(
                f"{what}: gave up after {state.attempt_number} attempts in {state.seconds_since_start:.0f} s: {error}"
            ) from error

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(again),
            wait=tenacity.wait_random_exponential(self.first_seconds, self.longest_seconds),
            stop=tenacity.stop_after_delay(self.give_up_seconds),
            retry_error_callback=give_up,
        )


# Conflicts in a directory are over in milliseconds.
LOCAL = RetryPolicy(first_seconds=0.002, longest_seconds=0.2, give_up_seconds=120)
# The Hub counts requests over five minutes, and answers 429 for the rest of them.
HUB = RetryPolicy(first_seconds=1, longest_seconds=60, give_up_seconds=600)
