"""A Hub on this machine that can be written to: repositories with commits, over HTTP.

What huggingface_hub needs for repositories of models and datasets: identity, creating, reading, committing with a named
parent, large files. Commits are compare-and-swap: another parent than the head of `main` is answered with 412. It can
be told to misbehave as networks, overloaded servers and replicas that lag behind do.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from tests.data.hub_server import HubHandler, running

Kind = Literal["datasets", "models"]
LARGE = (".parquet", ".safetensors", ".zst")
PAGE = 1000
REPOSITORY = r"(?P<repo>[^/]+(?:/[^/]+)?)"


@dataclass(frozen=True)
class Commit:
    """A state of a repository: the contents of all files, and which of them are large."""

    sha: str
    files: Mapping[str, bytes]
    message: str


@dataclass
class Repository:
    """A repository with one branch, oldest commit first."""

    commits: list[Commit]
    private: bool = False

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.head
        return next((commit for commit in self.commits if commit.sha == revision), None)


@dataclass
class Fault:
    """What the next requests that match get instead of, or after, what they ask for.

    Attributes:
        pattern: Regular expression for `METHOD path`.
        what: A status code; `silence` for no answer until the client gives up; `lost` for doing what is asked, and
            closing the connection without an answer; `lost-500` likewise with status 500; `stale` for the head before
            the last commit.
        times: How often.
        headers: Sent along with a status code.
    """

    pattern: str
    what: int | Literal["silence", "lost", "lost-500", "stale"]
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class WritableHub(ThreadingHTTPServer):
    """The server.

    Attributes:
        users: User of every token.
        faults: What goes wrong next; used up one by one.
        requests: `METHOD path` of all requests, and the token that came with each.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, users: Mapping[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.users = dict(users)
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str | None]] = []
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.lock = threading.RLock()
        self.stopping = threading.Event()

    def server_close(self) -> None:
        self.stopping.set()
        super().server_close()

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.server_port}"

    def create(self, kind: Kind, name: str, files: Mapping[str, bytes] | None = None, private: bool = False) -> None:
        """Makes a repository with a first commit."""
        with self.lock:
            first = _commit("", {".gitattributes": b"", **(files or {})}, "initial commit")
            self.repositories[kind, name] = Repository([first], private)

    def create_from(self, kind: Kind, name: str, folder: Path) -> str:
        """Makes a repository of the files in a folder, and returns its commit."""
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        self.create(kind, name, files)
        return self.repositories[kind, name].head.sha

    def files(self, name: str, kind: Kind = "datasets") -> Mapping[str, bytes]:
        """What a repository holds now."""
        with self.lock:
            return self.repositories[kind, name].head.files

    def push(self, name: str, files: Mapping[str, bytes], message: str = "push", kind: Kind = "datasets") -> str:
        """Commits files, as somebody else might."""
        with self.lock:
            repository = self.repositories[kind, name]
            repository.commits.append(_commit(repository.head.sha, {**repository.head.files, **files}, message))
            return repository.head.sha

    def fail(self, pattern: str, what: Any, times: int = 1, **headers: str) -> None:
        """Lets the next requests that match go wrong."""
        with self.lock:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            self.faults.append(Fault(pattern, what, times, named))

    def next_fault(self, request: str) -> Fault | None:
        """The fault that a request meets, which is used up."""
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def writable_hub(users: Mapping[str, str] | None = None) -> Iterator[WritableHub]:
    """Runs a server for the block; by default the token `secret-token` is that of `alice`."""
    server = WritableHub({"secret-token": "alice"} if users is None else users)
    with running(server):
        yield server


class _Handler(HubHandler):
    server: WritableHub
    stale = False

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        with self.server.lock:
            self.server.requests.append((request, token))
        fault = self.server.next_fault(request)
        self.stale = fault is not None and fault.what == "stale"
        if fault and isinstance(fault.what, int):
            self.send_hub_error(fault.what, "", "told to fail", fault.headers)
        elif fault and fault.what == "silence":
            self.server.stopping.wait(30)
            self.close_connection = True
        elif fault and fault.what in ("lost", "lost-500"):
            self._do_but_lose_the_answer(path, fault)
        else:
            self._route(path, token)

    def _do_but_lose_the_answer(self, path: str, fault: Fault) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        real, self.wfile = self.wfile, _Nowhere()  # type: ignore[assignment]
        try:
            self._route(path, token)
        finally:
            self.wfile = real
        if fault.what == "lost-500":
            self.send_hub_error(500, "", "told to fail")
        self.close_connection = True

    def _route(self, path: str, token: str | None) -> None:
        if token is not None and token not in self.server.users:
            self.send_hub_error(401, "", "Invalid credentials in Authorization header")
            return
        command = "GET" if self.command == "HEAD" else self.command
        for method, pattern, function in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == command:
                function(self, **match.groupdict())
                return
        self.send_hub_error(404, "", f"no such address: {command} {path}")

    @property
    def user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        return self.server.users.get(token)

    # --- identity and creating ---

    def whoami(self) -> None:
        if self.user is None:
            self.send_hub_error(401, "", "Invalid username or password.")
        else:
            self.send_json({"type": "user", "id": "0", "name": self.user, "fullname": self.user, "orgs": []})

    def create(self) -> None:
        asked = json.loads(self.body)
        kind: Kind = "datasets" if asked.get("type") == "dataset" else "models"
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        if self.user is None:
            self.send_hub_error(401, "", "Invalid username or password.")
            return
        with self.server.lock:
            if (kind, name) in self.server.repositories:
                self.send_hub_error(409, "", "You already created this repo")
                return
            self.server.create(kind, name, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        self.send_json({"url": f"{self.server.endpoint}/{'datasets/' if kind == 'datasets' else ''}{name}"})

    # --- reading ---

    def _repository(self, kind: str, repo: str) -> Repository | None:
        repository = self.server.repositories.get((kind, repo))
        if repository is None or (repository.private and self.user is None):
            self.send_hub_error(401 if self.user is None else 404, "RepoNotFound", "Repository not found")
            return None
        return repository

    def _commit_at(self, kind: str, repo: str, revision: str) -> Commit | None:
        repository = self._repository(kind, repo)
        if repository is None:
            return None
        commit = repository.at(revision)
        if self.stale and revision == "main" and len(repository.commits) > 1:
            commit = repository.commits[-2]
        if commit is None:
            self.send_hub_error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def info(self, kind: str, repo: str, revision: str | None = None) -> None:
        commit = self._commit_at(kind, repo, revision or "main")
        if commit:
            siblings = [{"rfilename": path} for path in commit.files]
            self.send_json(
                {
                    "_id": "0",
                    "id": repo,
                    "sha": commit.sha,
                    "siblings": siblings,
                    "tags": [],
                    "likes": 3,
                    "downloads": 0,
                }
            )

    def tree(self, kind: str, repo: str, revision: str, path: str | None = None) -> None:
        commit = self._commit_at(kind, repo, revision)
        if commit is None:
            return
        query = parse_qs(urlsplit(self.path).query)
        inside = {name: body for name, body in commit.files.items() if not path or name.startswith(f"{path}/")}
        if path and not inside:
            self.send_hub_error(404, "EntryNotFound", f"{path} does not exist")
            return
        entries = [_entry(name, body) for name, body in sorted(inside.items())]
        start = int(query.get("cursor", ["0"])[0])
        headers = {}
        if start + PAGE < len(entries):
            address = f"{self.server.endpoint}{urlsplit(self.path).path}?recursive=true&cursor={start + PAGE}"
            headers["Link"] = f'<{address}>; rel="next"'
        self.send_json(entries[start : start + PAGE], headers)

    def paths_info(self, kind: str, repo: str, revision: str) -> None:
        commit = self._commit_at(kind, repo, revision)
        if commit:
            form = parse_qs(self.body.decode())
            asked = form.get("paths") or json.loads(self.body)["paths"]
            self.send_json([_entry(path, commit.files[path]) for path in asked if path in commit.files])

    def resolve(self, repo: str, revision: str, path: str, kind: str = "models") -> None:
        commit = self._commit_at(kind, repo, revision)
        if commit is None:
            return
        if path not in commit.files:
            self.send_hub_error(404, "EntryNotFound", f"{path} does not exist")
            return
        body = commit.files[path]
        start, end = self.requested_span(len(body))
        self.send_content_head(
            start, end, len(body), {"ETag": f'"{_entry(path, body)["oid"]}"', "X-Repo-Commit": commit.sha}
        )
        if self.command == "GET":
            self.wfile.write(body[start:end])

    def resolve_dataset(self, repo: str, revision: str, path: str) -> None:
        self.resolve(repo, revision, path, kind="datasets")

    # --- writing ---

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        commit = self._commit_at(kind, repo, revision)
        if commit:
            asked = json.loads(self.body)["files"]
            self.send_json({"files": [self._upload_mode(file["path"], commit) for file in asked]})

    def _upload_mode(self, path: str, commit: Commit) -> dict[str, Any]:
        body = commit.files.get(path)
        mode = "lfs" if path.endswith(LARGE) else "regular"
        return {
            "path": path,
            "uploadMode": mode,
            "shouldIgnore": False,
            "oid": _oid(body) if body is not None else None,
        }

    def validate_yaml(self) -> None:
        self.send_json({"errors": [], "warnings": []})

    def batch(self, repo: str) -> None:
        objects = json.loads(self.body)["objects"]
        self.send_json({"transfer": "basic", "objects": [self._upload_action(o["oid"], o["size"]) for o in objects]})

    def _upload_action(self, oid: str, size: int) -> dict[str, Any]:
        if oid in self.server.large_files:
            return {"oid": oid, "size": size}
        return {"oid": oid, "size": size, "actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{oid}"}}}

    def upload(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.large_files[oid] = self.body
        self.send_whole(200, b"", {})

    def commit(self, kind: str, repo: str, revision: str) -> None:
        assert revision == "main"
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        asked = header["value"]
        with self.server.lock:
            repository = self._repository(kind, repo)
            if repository is None:
                return
            if self.user is None:
                self.send_hub_error(401, "", "Invalid username or password.")
                return
            head = repository.head
            if asked.get("parentCommit") not in (None, head.sha):
                self.send_hub_error(412, "", "A commit has happened since. Please refresh and try again.")
                return
            files = self._applied(dict(head.files), operations)
            if files is None:
                self.send_hub_error(404, "EntryNotFound", "A file with this name doesn't exist")
                return
            made = _commit(head.sha, files, asked["summary"])
            repository.commits.append(made)
        address = f"{self.server.endpoint}/{'datasets/' if kind == 'datasets' else ''}{repo}/commit/{made.sha}"
        self.send_json({"success": True, "commitOid": made.sha, "commitUrl": address, "hookOutput": ""})

    def _applied(self, files: dict[str, bytes], operations: list[dict[str, Any]]) -> dict[str, bytes] | None:
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.large_files[value["oid"]]
            elif value["path"] not in files:
                return None
            else:
                assert operation["key"] == "deletedFile", operation
                del files[value["path"]]
        return files


class _Nowhere:
    """Takes an answer that never arrives."""

    def write(self, content: bytes) -> int:
        return len(content)

    def flush(self) -> None:
        pass


def _commit(parent: str, files: Mapping[str, bytes], message: str) -> Commit:
    state = json.dumps([parent, message, time.time_ns(), {path: _oid(body) for path, body in files.items()}])
    return Commit(hashlib.sha1(state.encode()).hexdigest(), files, message)


def _oid(body: bytes) -> str:
    return hashlib.sha1(f"blob {len(body)}\0".encode() + body).hexdigest()


def _entry(path: str, body: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": _oid(body), "size": len(body), "path": path}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
    return entry


_API = rf"/api/(?P<kind>datasets|models)/{REPOSITORY}"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("GET", rf"{_API}/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", _Handler.tree),
    ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("GET", _API, _Handler.info),
    ("GET", rf"/datasets/{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve_dataset),
    ("POST", rf"/datasets/{REPOSITORY}\.git/info/lfs/objects/batch", _Handler.batch),
    ("GET", rf"/{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler.upload),
]
