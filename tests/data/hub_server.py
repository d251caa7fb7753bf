"""A Hub on this machine: the part of its HTTP interface that reading a dataset repository needs.

Serves the files of a folder as one dataset repository with one branch, `main`, and the commits that it is told of. It
notes every request, and can be told to fail in the ways that networks and servers do.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit


class Served(NamedTuple):
    """A request for bytes of a file: its path, the commit in the address, first byte, and bytes sent."""

    path: str
    commit: str
    start: int
    length: int


class HubServer(ThreadingHTTPServer):
    """The server; `served` and `requests` grow while it runs.

    Attributes:
        failures: What the next requests for file contents get instead: a status code, `cut` for a body that ends in
            its middle, or `hang` for no answer until `released`.
        api_failures: The same for requests for revisions and listings, without `cut`; `pass` for the right answer.
        released: Ends all hanging.
    """

    daemon_threads = True

    def __init__(self, folder: Path, repo: str, commit: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.repo, self.commit = folder, repo, commit
        self.requests: list[str] = []
        self.served: list[Served] = []
        self.failures: list[int | str] = []
        self.api_failures: list[int | str] = []
        self.released = threading.Event()
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    """Runs any server for the block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def hub_server(folder: Path, repo: str, commit: str) -> Iterator[HubServer]:
    """Runs a server for the block."""
    server = HubServer(folder, repo, commit)
    with running(server):
        yield server


class HubHandler(BaseHTTPRequestHandler):
    """How every Hub on this machine answers: errors with the Hub's headers, JSON, and ranges of a content."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which holds a body back for 40 ms after its headers

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        raise NotImplementedError

    def requested_span(self, length: int) -> tuple[int, int]:
        """First byte, and the one after the last, that are asked for."""
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "bytes=0-"))
        assert span, self.headers["Range"]
        return int(span[1]), min(int(span[2] or length) + 1, length)

    def send_content_head(self, start: int, end: int, length: int, headers: dict[str, str]) -> None:
        """Sends status and headers of the bytes from `start` to `end` of a content."""
        self.send_response(206 if "Range" in self.headers else 200)
        ours = {
            "Accept-Ranges": "bytes",
            "Content-Range": f"bytes {start}-{end - 1}/{length}",
            "Content-Length": str(end - start),
        }
        for name, value in {**headers, **ours}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_json(self, content: Any, headers: dict[str, str] | None = None) -> None:
        """Sends JSON."""
        self.send_whole(200, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def send_hub_error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        """Sends an error as the Hub does, with its code and message in headers."""
        self.send_whole(status, b"", {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})})

    def send_whole(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Sends a status and a body."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Handler(HubHandler):
    server: HubServer

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.server.lock:
            self.server.requests.append(f"{self.command} {path}")
        if path.startswith("/api/") and self._fails(self.server.api_failures):
            return
        repo = re.escape(self.server.repo)
        if match := re.fullmatch(rf"/api/datasets/{repo}(?:/revision/(?P<revision>[^/]+))?", path):
            self._info(match["revision"] or "main")
        elif match := re.fullmatch(rf"/api/datasets/{repo}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", path):
            self._tree(match["revision"], match["path"] or "")
        elif match := re.fullmatch(rf"/datasets/{repo}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", path):
            self._resolve(match["revision"], match["path"])
        else:
            self.send_hub_error(404, "RepoNotFound", "Repository not found")

    def _fails(self, failures: list[int | str]) -> bool:
        """Fails as told next, if at all."""
        with self.server.lock:
            failure = failures.pop(0) if failures else None
        if failure == "hang":
            self.server.released.wait(60)
            self.close_connection = True
        elif isinstance(failure, int):
            told = {"Retry-After": "3"} if failure == 429 else {}
            self.send_hub_error(failure, "", "told to fail", told)
        return failure not in (None, "pass")

    def _knows(self, revision: str) -> bool:
        known = revision in ("main", self.server.commit)
        if not known:
            self.send_hub_error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return known

    def _info(self, revision: str) -> None:
        if self._knows(revision):
            self.send_json({"_id": "0", "id": self.server.repo, "sha": self.server.commit, "siblings": [], "tags": []})

    def _tree(self, revision: str, path: str) -> None:
        if not self._knows(revision):
            return
        folder = self.server.folder / path
        if not folder.is_dir():
            self.send_hub_error(404, "EntryNotFound", f"{path} does not exist")
            return
        recursive = "recursive=true" in self.path.lower()
        found = sorted(folder.rglob("*") if recursive else folder.iterdir())
        self.send_json([self._entry(entry) for entry in found])

    def _entry(self, path: Path) -> dict[str, Any]:
        name = path.relative_to(self.server.folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
        return {"type": "file", "oid": "0" * 40, "size": path.stat().st_size, "path": name}

    def _resolve(self, revision: str, path: str) -> None:
        if not self._knows(revision):
            return
        if not (self.server.folder / path).is_file():
            self.send_hub_error(404, "EntryNotFound", f"{path} does not exist")
            return
        with self.server.lock:
            cut = self.server.failures[:1] == ["cut"]
            del self.server.failures[: int(cut)]
        if not cut and self._fails(self.server.failures):
            return
        content = (self.server.folder / path).read_bytes()
        start, end = self.requested_span(len(content))
        body = content[start:end]
        self.send_content_head(start, end, len(content), {"ETag": '"0"', "X-Repo-Commit": self.server.commit})
        if cut:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif self.command == "GET":
            with self.server.lock:
                self.server.served.append(Served(path, revision, start, len(body)))
            self.wfile.write(body)
