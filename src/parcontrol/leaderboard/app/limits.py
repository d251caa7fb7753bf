"""What the page is guarded against: floods, large bodies, and the endpoints of Gradio that it has no use for.

`guard` puts the checks in front of a whole application. What they let through still has to be checked where it is used:
a submission by `submit_part`, a view by `view`.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

import fastapi
import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parcontrol.leaderboard.app.submit.visitors import Hosting, client_address, hosting

MAX_BODY_BYTES = 1 << 20
# An open page makes about ten requests a minute, and opening one about ten; many may share one address.
REQUESTS, PER_SECONDS = 300, 60.0
# A page holds two streams open, and a browser at most six connections.
MAX_OPEN = 100

# Files of Gradio itself, which browsers keep, count for nothing.
_UNCOUNTED = ("/assets/", "/static/", "/svelte/", "/favicon.ico", "/theme.css", "/gradio_api/theme.css")
# Below /gradio_api/ only what a page and a client need: events, their descriptions, files that the page offers.
_API = "/gradio_api/"
_API_PATHS = frozenset(
    "app_id cancel info login_check openapi.json queue/data queue/join reset startup-events theme.css".split()
)
_API_PREFIXES = ("api/", "call/", "file=", "heartbeat/", "run/")
_ADDRESS = re.compile(r"[\s/\\]*[a-z][a-z0-9+.-]*:|[\s]*[/\\]{2}", re.IGNORECASE)
_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})
# Nothing is loaded from elsewhere, whatever a name or an output might have smuggled in. Gradio needs inline code, and
# on a Space asks the Hub how the Space is.
_CONTENT_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; connect-src 'self' https://huggingface.co"
)


class TokenBuckets:
    """A bucket of tokens for each key: it holds `capacity`, and fills up by one every `seconds / capacity` seconds.

    Safe to use from several threads. Only the keys that were used last are kept; a forgotten one is full again.

    Args:
        capacity: How often something may be done at once.
        seconds: Time in which an empty bucket is full again.
        keys: How many keys are kept.
        clock: Returns the time in seconds, and never goes back.
    """

    def __init__(
        self, capacity: int, seconds: float, keys: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._capacity, self._per_second, self._keys, self._clock = capacity, capacity / seconds, keys, clock
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: Hashable) -> float:
        """Takes one token and returns 0, or takes none and returns in how many seconds there will be one."""
        with self._lock:
            now = self._clock()
            tokens, since = self._buckets.pop(key, (float(self._capacity), now))
            tokens = min(self._capacity, tokens + (now - since) * self._per_second)
            wait = 0.0 if tokens >= 1 else (1 - tokens) / self._per_second
            self._buckets[key] = (tokens if wait else tokens - 1, now)
            if len(self._buckets) > self._keys:
                self._buckets.popitem(last=False)
            return wait


def guard(app: fastapi.FastAPI) -> None:
    """Puts a `Guard` in front of an application; to be called before it starts."""
    app.add_middleware(Guard, hosting=hosting())


class Guard:
    """ASGI middleware that refuses what the page has no use for.

    - 403 for Gradio's uploads, proxy, deep links, component functions, run history and everything else below
      `/gradio_api/` that is not needed, for files that are addresses, and for bodies that name files;
    - 413 for bodies of more than `MAX_BODY_BYTES`, 415 for bodies that are not JSON, 400 for broken JSON;
    - 429 for a client with more than `REQUESTS` requests in `PER_SECONDS`, or more than `MAX_OPEN` at once.

    Args:
        app: What is guarded.
        hosting: Where the page runs: decides how clients are told apart.
        clock: As in `TokenBuckets`.
    """

    def __init__(self, app: ASGIApp, hosting: Hosting, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._hosting = app, hosting
        self._requests = TokenBuckets(REQUESTS, PER_SECONDS, clock=clock)
        self._open: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or passes on."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            await self._answer(scope, receive, _with_headers(send))
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = client_address(scope.get("client"), Headers(scope=scope), self._hosting)
        refusal = _unwanted(scope["path"]) or self._too_often(client, scope["path"])
        if refusal is None and scope["method"] not in _WITHOUT_BODY:
            refusal, receive = await _checked_body(Headers(scope=scope), receive)
        if refusal is not None:
            return await refusal(scope, receive, send)
        self._open[client] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]

    def _too_often(self, client: str, path: str) -> PlainTextResponse | None:
        if path.startswith(_UNCOUNTED):
            return None
        wait = self._requests.take(client)
        if wait == 0 and self._open[client] < MAX_OPEN:
            return None
        seconds = max(1, round(wait + 0.5))
        return _refusal(429, f"too many requests: try again in {seconds} s", {"Retry-After": str(seconds)})


def _refusal(status: int, reason: str, headers: dict[str, str] | None = None) -> PlainTextResponse:
    return PlainTextResponse(f"{reason}\n", status, {"Connection": "close", **(headers or {})})


def _unwanted(path: str) -> PlainTextResponse | None:
    if path.startswith("/monitoring"):
        return _refusal(403, "the page has no use for this address")
    _, found, name = path.partition(_API)
    if not found or name.rstrip("/") in _API_PATHS:
        return None
    if not name.startswith(_API_PREFIXES):
        return _refusal(403, "the page has no use for this address, and takes no uploads")
    if name.startswith("file=") and _ADDRESS.match(name.removeprefix("file=")):
        return _refusal(403, "nothing is fetched from elsewhere")
    return None


async def _checked_body(headers: Headers, receive: Receive) -> tuple[PlainTextResponse | None, Receive]:
    """Returns a refusal or None, and how the application receives the body, which has been read by then."""
    stated = headers.get("content-length", "0")
    if not (stated.isascii() and stated.isdigit()):
        return _refusal(400, "the length of the body is no number"), receive
    body = None if int(stated) > MAX_BODY_BYTES else await _read(receive)
    if body is None:
        return _refusal(413, f"a request has at most {MAX_BODY_BYTES:,} bytes"), receive
    return _wrong_body(headers, body), _again(body, receive)


async def _read(receive: Receive) -> bytes | None:
    """The whole body, None if it is too large."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body"):  # also when the client has gone away
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


def _wrong_body(headers: Headers, body: bytes) -> PlainTextResponse | None:
    if not body:
        return None
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return _refusal(415, "a request holds JSON, and the page takes no uploads")
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return _refusal(400, f"no valid JSON: {error}")
    return _refusal(403, "the page takes no files") if _names_files(data) else None


def _names_files(data: Any) -> bool:
    """Whether there is anything that Gradio would take for a file, and fetch if it is an address."""
    unseen = [data]
    while unseen:
        value = unseen.pop()
        if isinstance(value, dict):
            if "meta" in value and ("path" in value or "url" in value):
                return True
            unseen += value.values()
        elif isinstance(value, list):
            unseen += value
    return False


def _with_headers(send: Send) -> Callable[[Message], Awaitable[None]]:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("Content-Security-Policy", _CONTENT_POLICY)
            headers.setdefault("X-Content-Type-Options", "nosniff")
            headers.setdefault("Referrer-Policy", "same-origin")
        await send(message)

    return send_with_headers
