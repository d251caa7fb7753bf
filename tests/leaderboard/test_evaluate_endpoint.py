"""An OpenAI-compatible endpoint through the harness, against a server that answers with a tiny model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from parcontrol.leaderboard.evaluate import run as run_module
from parcontrol.leaderboard.evaluate.endpoint import check_address
from parcontrol.leaderboard.evaluate.errors import EvaluationError, ModelRefusedError
from parcontrol.leaderboard.evaluate.model_spec import Conditions, Job, ModelSpec
from parcontrol.leaderboard.evaluate.spool import Spooled, finished_tasks, read_samples
from parcontrol.leaderboard.model_source import content_hash
from parcontrol.leaderboard.registry import select
from parcontrol.leaderboard.store import LocalStore
from parcontrol.leaderboard.worker import Settings, Worker

KEY = "sk-very-secret"
Server = TypeVar("Server", bound=ThreadingHTTPServer)


class Endpoint(ThreadingHTTPServer):
    """Serves completions of a tiny model.

    Attributes:
        prompt_logprobs: Whether it gives the log-probabilities of a prompt.
        asked: Bodies of all requests.
        keys: The `Authorization` header of each.
        status: What it answers with.
    """

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model = AutoModelForCausalLM.from_pretrained(directory).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.prompt_logprobs, self.status = True, 200
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def choice(self, index: int, prompt: str | list[int], body: dict[str, Any]) -> dict[str, Any]:
        """Continues one prompt greedily; with `echo` the prompt's own tokens are scored too."""
        ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
        start = len(ids)
        with torch.no_grad():
            for _ in range(min(body["max_tokens"], 4)):
                ids.append(int(self.model(torch.tensor([ids])).logits[0, -1].argmax()))
            logprobs = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        text = self.tokenizer.decode(ids[start:])
        if not (body.get("echo") and body.get("logprobs") and self.prompt_logprobs):
            return {"index": index, "text": text, "logprobs": None}
        scores = [None, *(float(logprobs[place, token]) for place, token in enumerate(ids[1:]))]
        best = [None, *({"best": float(row.max())} for row in logprobs[:-1])]
        return {"index": index, "text": text, "logprobs": {"token_logprobs": scores, "top_logprobs": best}}


class Hanging(ThreadingHTTPServer):
    """Serves a chat, but never answers when a dialogue is to be judged.

    Attributes:
        answer: Set to let those go that wait.
        hung: How often it did not answer.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _HangingHandler)
        self.answer = threading.Event()
        self.hung = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _HangingHandler(BaseHTTPRequestHandler):
    server: Hanging

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        if b"#Dialogue" in self.rfile.read(int(self.headers["Content-Length"])):
            self.server.hung += 1
            self.server.answer.wait()
            return
        content = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": "No"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.keys.append(self.headers.get("Authorization"))
        if self.path.endswith("/chat/completions"):
            answer: dict[str, Any] = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "No"}}]}
        else:
            prompts = body["prompt"]
            if isinstance(prompts, str) or isinstance(prompts[0], int):
                prompts = [prompts]
            answer = {"choices": [self.server.choice(n, prompt, body) for n, prompt in enumerate(prompts)]}
        content = json.dumps(answer).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def running(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def endpoint(tiny_model_dir: Path) -> Iterator[Endpoint]:
    with running(Endpoint(tiny_model_dir)) as server:
        yield server


@pytest.fixture(autouse=True)
def _quick_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "environment_info", lambda: "a machine")


def job(url: str, out: Path, *tasks: str, tokenizer: Path | None = None, batch_size: int = 1) -> Job:
    spec = ModelSpec(
        "tiny", "openai", precision="?", backend="openai", base_url=url, tokenizer=str(tokenizer) if tokenizer else None
    )
    conditions = Conditions(limit=3, sample_set=True, backend="openai")
    return Job(spec, conditions, tasks, str(out), batch_size=batch_size, endpoint_key=KEY)


def perform(job: Job) -> tuple[dict[str, Spooled], list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    run_module.run(job, events.append)
    return finished_tasks(Path(job.out)), events


def scores(task: Spooled) -> list[float]:
    return [response[0][0] for row in read_samples(task.samples) for response in row["resps"]]


@pytest.mark.parametrize("concurrent", [1, 3])
def test_an_endpoint_gives_the_likelihoods_that_the_model_gives_itself(
    concurrent: int, endpoint: Endpoint, tiny_model_dir: Path, tmp_path: Path
) -> None:
    order = job(
        f"{endpoint.url}/completions",
        tmp_path / "http",
        "memo_trap",
        "halueval_qa",
        tokenizer=tiny_model_dir,
        batch_size=concurrent,
    )
    tasks, _ = perform(order)
    here = ModelSpec("local/tiny", content_hash(tiny_model_dir), path=str(tiny_model_dir), precision="float32")
    conditions = replace(order.conditions, backend="hf")
    direct, _ = perform(
        replace(order, spec=here, conditions=conditions, out=str(tmp_path / "here"), batch_size=1, device="cpu")
    )
    assert scores(tasks["memo_trap"]) == pytest.approx(scores(direct["memo_trap"]), rel=1e-4)
    assert set(endpoint.keys) == {f"Bearer {KEY}"}
    assert tasks["memo_trap"].block["backend"] == "openai"


def test_without_likelihoods_only_tasks_that_write_are_done_and_others_refused_by_name(
    endpoint: Endpoint, tiny_model_dir: Path, tmp_path: Path
) -> None:
    endpoint.prompt_logprobs = False
    order = job(f"{endpoint.url}/completions", tmp_path, "memo_trap", "halueval_qa", tokenizer=tiny_model_dir)
    tasks, events = perform(order)
    assert list(tasks) == ["halueval_qa"]
    assert [event["reason"] for event in events if event["event"] == "refused"] == [
        "memo_trap needs log-likelihoods of given answers, which this endpoint does not give"
    ]
    without_tokenizer, _ = perform(job(f"{endpoint.url}/completions", tmp_path / "plain", "memo_trap", "halueval_qa"))
    assert list(without_tokenizer) == ["halueval_qa"]
    assert isinstance(endpoint.asked[-1]["prompt"], str)


def test_a_chat_endpoint_gets_messages(endpoint: Endpoint, tmp_path: Path) -> None:
    tasks, events = perform(job(f"{endpoint.url}/chat/completions", tmp_path, "halueval_qa", "truefalse"))
    assert list(tasks) == ["halueval_qa"]
    assert [event["task"] for event in events if event["event"] == "refused"] == ["truefalse"]
    messages = endpoint.asked[-1]["messages"]
    assert messages[-1]["role"] == "user"
    assert "#Your Judgement#" in messages[-1]["content"]
    replies = [row["resps"][0][0] for row in read_samples(tasks["halueval_qa"].samples)]
    assert replies == ["No"] * 3


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_every_sample_has_a_seed_of_its_own(path: str, endpoint: Endpoint, tmp_path: Path) -> None:
    perform(job(f"{endpoint.url}/{path}", tmp_path, "selfcheckgpt"))
    sampled = [body["seed"] for body in endpoint.asked if body["temperature"] > 0]
    greedy = {body.get("seed") for body in endpoint.asked[1:] if body["temperature"] == 0}  # the first only asks
    assert len(sampled) == 3 * 5
    assert len(set(sampled)) == len(sampled)
    assert len(greedy) == 1
    assert not [body for body in endpoint.asked if "top_k" in body]


def test_the_key_is_written_nowhere(endpoint: Endpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    order = job(f"{endpoint.url}/chat/completions", tmp_path, "halueval_qa")
    perform(order)
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    rows = json.dumps(read_samples(tmp_path / "halueval_qa" / "samples.jsonl.zst"))
    assert files
    assert KEY not in rows
    assert not any(KEY.encode() in content for content in files)
    assert KEY not in caplog.text
    assert KEY not in repr(order)


@pytest.mark.parametrize(
    ("status", "error", "reason"),
    [
        (401, ModelRefusedError, "answers 401"),
        (404, ModelRefusedError, "answers 404"),
        (503, EvaluationError, "answers 503"),
    ],
)
def test_an_endpoint_that_refuses_ends_the_evaluation(
    status: int, error: type[Exception], reason: str, endpoint: Endpoint, tmp_path: Path
) -> None:
    endpoint.status = status
    with pytest.raises(error, match=reason) as raised:
        perform(job(f"{endpoint.url}/completions", tmp_path, "halueval_qa"))
    assert KEY not in str(raised.value)


def test_an_endpoint_that_is_not_there_may_come_back(endpoint: Endpoint, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="does not answer"):
        perform(job("http://127.0.0.1:9/v1/completions", tmp_path, "halueval_qa"))


def test_an_endpoint_that_never_answers_fails_its_task_and_no_other(tmp_path: Path) -> None:
    """A whole worker, with its real process: the endpoint answers until it is asked for a judgement of a dialogue."""
    with running(Hanging()) as server:
        conditions = Conditions(limit=1, sample_set=True, backend="openai")
        names = ("halueval_dialogue", "halueval_qa")
        settings = Settings(tuple(select(names)), conditions, batch_size=1, task_seconds=6)
        model = replace(job(f"{server.url}/chat/completions", tmp_path).spec, model="org/tiny")
        with Worker(LocalStore(tmp_path / "results"), tmp_path / "worker", settings) as worker:
            outcome = worker.evaluate(model, names)
        server.answer.set()
    assert outcome.done == ["halueval_qa"]
    assert outcome.failed == {"halueval_dialogue": "halueval_dialogue was not finished within 6 s"}
    assert server.hung


@pytest.mark.parametrize(
    "url", ["", "ftp://host/v1/completions", "http://host/v1", "http://me:secret@host/completions"]
)
def test_an_address_that_is_no_endpoint_is_refused(url: str) -> None:
    with pytest.raises(ModelRefusedError, match="give the full address") as raised:
        check_address(url)
    assert "secret" not in str(raised.value)
