"""What the page is guarded against, on a real server, and with buckets whose clock the test turns."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
import httpx2
import pytest
import uvicorn
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st

from parcontrol.leaderboard.app import limits
from parcontrol.leaderboard.app.limits import MAX_BODY_BYTES, PER_SECONDS, Guard, TokenBuckets, guard
from parcontrol.leaderboard.app.submit.visitors import Hosting, client_address, hosting

FEW = 8


class Clock:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serves an application; gives its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", proxy_headers=False))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


# --- buckets ---


@given(
    capacity=st.integers(1, 5),
    seconds=st.floats(1, 100),
    steps=st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 50)), max_size=40),
)
def test_nobody_gets_more_than_capacity_and_rate(capacity: int, seconds: float, steps: list[tuple[str, float]]) -> None:
    clock = Clock()
    buckets = TokenBuckets(capacity, seconds, clock=clock)
    taken: dict[str, list[float]] = {"a": [], "b": []}
    for key, passed in steps:
        clock.now += passed
        if buckets.take(key) == 0:
            taken[key].append(clock.now)
    for times in taken.values():
        for first in range(len(times)):
            for last in range(first, len(times)):
                most = capacity + (times[last] - times[first]) * capacity / seconds
                assert last - first + 1 <= most + 1e-6


def test_a_refusal_says_when_to_come_back_and_costs_nothing() -> None:
    clock = Clock()
    buckets = TokenBuckets(2, 10, clock=clock)
    assert [buckets.take("a") for _ in range(4)] == [0, 0, pytest.approx(5), pytest.approx(5)]
    assert buckets.take("b") == 0
    clock.now += 4.9
    assert buckets.take("a") == pytest.approx(0.1)
    clock.now += 0.2
    assert buckets.take("a") == 0
    clock.now += 1e6
    assert [buckets.take("a") > 0 for _ in range(3)] == [False, False, True]


def test_only_the_keys_used_last_are_kept() -> None:
    buckets = TokenBuckets(1, 1e9, keys=100, clock=Clock())
    assert buckets.take("mine") == 0
    for number in range(1000):
        assert buckets.take(number) == 0
        assert buckets.take("mine") > 0
    assert len(buckets) == 100


# --- clients ---


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("", "10.0.0.1"),
        ("8.8.4.4", "8.8.4.4"),
        ("1.1.1.1, 8.8.4.4", "8.8.4.4"),  # what stands first is the client's own invention
        ("1.1.1.1, 8.8.4.4, 10.2.3.4", "8.8.4.4"),
        ("<script>, unknown", "10.0.0.1"),
        ("2001:4860:4860::8888", "2001:4860:4860::/64"),
        ("2001:4860:4860:0:ffff::1", "2001:4860:4860::/64"),
        ("::ffff:8.8.4.4", "8.8.4.4"),
    ],
)
def test_clients_of_a_space_are_told_apart_by_what_its_proxy_says(forwarded: str, address: str) -> None:
    headers = {"x-forwarded-for": forwarded}
    assert client_address(("10.0.0.1", 5), headers, Hosting(space=True)) == address
    assert client_address(("10.0.0.1", 5), headers, Hosting()) == "10.0.0.1"


def test_where_the_page_runs_is_read_from_the_environment() -> None:
    assert hosting({}) == Hosting()
    oauth = dict.fromkeys(["OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL"], "x")
    assert hosting(oauth) == Hosting()
    space = {"SPACE_ID": "a/b", "SPACE_HOST": "a-b.hf.space,Board.example"}
    assert hosting(space) == Hosting(True, False, frozenset({"a-b.hf.space", "board.example"}))
    assert hosting({**space, **oauth}).sign_in
    # With an empty secret anybody could sign a cookie.
    assert not hosting({**space, **oauth, "OAUTH_CLIENT_SECRET": ""}).sign_in


# --- a real Gradio application behind the guard ---


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    with served(asyncio.run(echoing())) as address:
        yield address


async def echoing() -> FastAPI:
    """A page with one event; made inside a loop, because Gradio leaves one open otherwise."""
    with gr.Blocks(analytics_enabled=False) as blocks:
        text = gr.Textbox()
        text.submit(lambda value: f"got {value}", text, text, api_name="echo", queue=False)
    app = FastAPI()

    @app.post("/length")
    async def length(request: Request) -> int:
        return len(await request.body())

    guard(app)
    return gr.mount_gradio_app(app, blocks, path="/", ssr_mode=False)


def json_of(page: str, path: str, data: Any) -> httpx2.Response:
    return httpx2.post(page + path, json=data)


def test_what_the_page_needs_is_let_through(page: str) -> None:
    start = httpx2.get(page)
    assert start.status_code == 200
    for path in ("/config", "/gradio_api/info", "/theme.css", "/gradio_api/startup-events"):
        assert httpx2.get(page + path).status_code == 200
    assert json_of(page, "/gradio_api/run/echo", {"data": ["x"]}).json()["data"] == ["got x"]
    policy = start.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy.replace("https://huggingface.co", "")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/upload/"),
        ("POST", "/anything/gradio_api/upload"),
        ("GET", "/gradio_api/upload_progress?upload_id=1"),
        ("GET", "/gradio_api/proxy=https://example.org/x"),
        ("HEAD", "/gradio_api/proxy=https://example.org/x"),
        ("GET", "/gradio_api/file=https://example.org/x.png"),
        ("GET", "/gradio_api/file=HTTPS%3A//example.org/x.png"),
        ("GET", "/gradio_api/file=//example.org/x.png"),
        ("GET", "/gradio_api/file/etc/passwd"),
        ("GET", "/gradio_api/deep_link?session_hash=x"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-edit"),
        ("GET", "/gradio_api/runs"),
        ("POST", "/gradio_api/run-history/connect"),
        ("GET", "/gradio_api/stream/a/1/2/playlist.m3u8"),
        ("GET", "/gradio_api/dev/reload"),
        ("GET", "/monitoring"),
        ("GET", "/monitoring/summary"),
    ],
)
def test_what_the_page_has_no_use_for_is_refused(page: str, method: str, path: str) -> None:
    assert httpx2.request(method, page + path).status_code == 403


@pytest.mark.parametrize("path", ["/etc/passwd", "pyproject.toml", "../../etc/passwd", "src/parcontrol/__init__.py"])
def test_files_of_the_machine_are_not_served(page: str, path: str) -> None:
    assert httpx2.get(f"{page}/gradio_api/file={path}").status_code in (403, 404)


def test_a_body_has_a_largest_size(page: str) -> None:
    def chunks(size: int) -> Iterator[bytes]:
        yield b'"'
        for _ in range(size // 65536):
            yield b"x" * 65536
        yield b'"'

    headers = {"Content-Type": "application/json"}
    fits = b'"%s"' % (b"x" * (MAX_BODY_BYTES - 2))
    assert httpx2.post(f"{page}/length", content=fits, headers=headers).json() == MAX_BODY_BYTES
    assert httpx2.post(f"{page}/length", content=fits + b" ", headers=headers).status_code == 413
    # Without a stated length what arrives is counted.
    assert httpx2.post(f"{page}/length", content=chunks(65536), headers=headers).json() == 65538
    assert httpx2.post(f"{page}/length", content=chunks(2 * MAX_BODY_BYTES), headers=headers).status_code == 413


def test_a_body_is_json(page: str) -> None:
    assert httpx2.post(f"{page}/length", files={"file": b"x"}).status_code == 415
    assert httpx2.post(f"{page}/length", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    for broken in (b"{", b"NaN", b"[" * 100_000):
        headers = {"Content-Type": "application/json"}
        assert httpx2.post(f"{page}/length", content=broken, headers=headers).status_code == 400
    assert httpx2.post(f"{page}/length").json() == 0


def test_nothing_that_a_body_names_is_fetched(page: str) -> None:
    fetched = []
    target = FastAPI()

    @target.get("/{path:path}")
    def fetch(path: str) -> str:
        fetched.append(path)
        return "x"

    with served(target) as elsewhere:
        for file in (f"{elsewhere}/secret.txt", "/etc/passwd"):
            data = {"path": file, "url": file, "meta": {"_type": "gradio.FileData"}}
            for hidden in (data, [data], {"a": [{"b": data}]}):
                answer = json_of(page, "/gradio_api/run/echo", {"data": [hidden]})
                assert answer.status_code == 403
        escaped = b'{"data": [{"path": "%s/x", "m\\u0065ta": {"_type": "gr\\u0061dio.FileData"}}]}' % elsewhere.encode()
        headers = {"Content-Type": "application/json"}
        assert httpx2.post(f"{page}/gradio_api/run/echo", content=escaped, headers=headers).status_code == 403
    assert not fetched


# --- rates ---


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Clock]]:
    monkeypatch.setattr(limits, "REQUESTS", FEW)
    clock = Clock()
    app = FastAPI()
    app.add_middleware(Guard, hosting=Hosting(space=True), clock=clock)

    @app.get("/{path:path}")
    def answer(path: str) -> str:
        return path

    with served(app) as address:
        yield address, clock


def test_requests_of_one_client_are_counted_and_files_of_gradio_are_not(limited: tuple[str, Clock]) -> None:
    address, clock = limited
    with httpx2.Client(base_url=address) as client:
        for _ in range(FEW):
            assert client.get("/gradio_api/info").status_code == 200
        refused = client.get("/gradio_api/info")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/assets/x.js").status_code == 200
        # Another client is another count, and nobody becomes another one by what stands first.
        assert client.get("/", headers={"X-Forwarded-For": "8.8.8.8"}).status_code == 200
        assert client.get("/", headers={"X-Forwarded-For": "10.0.0.7"}).status_code == 429
        clock.now += PER_SECONDS
        for _ in range(FEW):
            assert client.get("/").status_code == 200


def test_open_requests_of_one_client_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_OPEN", 2)
    app = FastAPI()
    guard(app)
    release = threading.Event()
    entered = threading.Semaphore(0)

    @app.get("/slow")
    def slow() -> str:
        entered.release()
        release.wait(30)
        return "done"

    with served(app) as address:
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(httpx2.get(f"{address}/slow").status_code)) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
            entered.acquire(timeout=30)
        assert httpx2.get(f"{address}/slow").status_code == 429
        release.set()
        for thread in threads:
            thread.join()
        assert answers == [200, 200]
        assert httpx2.get(f"{address}/slow").status_code == 200


def test_websockets_are_refused() -> None:
    from starlette.testclient import TestClient, WebSocketDenialResponse
    from starlette.websockets import WebSocket, WebSocketDisconnect

    app = FastAPI()

    @app.websocket("/socket")
    async def socket_(websocket: WebSocket) -> None:
        await websocket.accept()

    guard(app)
    with pytest.raises((WebSocketDisconnect, WebSocketDenialResponse)), TestClient(app).websocket_connect("/socket"):
        pass
