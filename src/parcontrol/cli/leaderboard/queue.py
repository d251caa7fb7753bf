"""`parcontrol leaderboard requeue` and `cancel`: put a request back into the queue, or withdraw it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error

if TYPE_CHECKING:
    from parcontrol.leaderboard.queue import Queue
    from parcontrol.leaderboard.records import Request

FAILED = 1


def requeue(argv: Sequence[str] | None = None) -> int:
    """Puts a request that is over back into the queue; returns 0, 2 when it is refused, 1 when the store fails."""
    description = "Put a request that is FINISHED, FAILED or CANCELLED back into the queue, with all its attempts."
    return _run("requeue", description, argv, lambda queue, path, user: queue.requeue(path, user))


def cancel(argv: Sequence[str] | None = None) -> int:
    """Withdraws a request that waits or runs; returns 0, 2 when it is refused, 1 when the store fails."""
    description = "Withdraw a request that waits or runs. It still counts as a submission of the week."
    return _run("cancel", description, argv, lambda queue, path, user: queue.cancel(path, user))


def _run(name: str, description: str, argv: Sequence[str] | None, change: Callable[[Queue, str, str], Request]) -> int:
    parser = OneLineParser(prog=f"parcontrol leaderboard {name}", description=description)
    parser.add_argument("request", help="path of the request in the requests repository, or the model's name")
    args = parser.parse_args(argv)
    from parcontrol.leaderboard.queue import Queue
    from parcontrol.leaderboard.settings import Settings
    from parcontrol.leaderboard.store import StoreError, open_stores

    try:
        store = open_stores(Settings.from_environment()).requests
        queue = Queue(store)
        path = queue.find(args.request)
        request = change(queue, path, store.user())
    except ValueError as error:
        print_error(error)
        return USAGE_ERROR
    except StoreError as error:
        print_error(error)
        return FAILED
    print(f"{request.model} in {request.precision} is {request.status}: {path}")
    return 0
