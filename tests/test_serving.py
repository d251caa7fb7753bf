"""`parcontrol serve` as its users meet it: a real process, asked by the real openai client."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from parcontrol.cli.main import main
from parcontrol.parscale.convert import convert_to_parscale_model, create_parscale_config
from tests.data.hub_server import HubServer, hub_server
from tests.parscale.models import randomise

# As of the Qwen2 models that the tiny ones are: transformers splits their answers at its marks.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MESSAGES: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the old bird sings"}]
TOKENS = 24
ENDLESS = 1_000_000


@dataclass(frozen=True)
class Server:
    """A running `parcontrol serve`."""

    directory: Path
    process: subprocess.Popen[str]
    client: openai.OpenAI
    log: Path

    @property
    def name(self) -> str:
        return str(self.directory)

    def end(self, signum: signal.Signals) -> tuple[int, str]:
        """Sends a signal; returns the exit code and what came on stderr."""
        self.process.send_signal(signum)
        return self.process.wait(timeout=60), self.log.read_text(encoding="utf-8")


Start = Callable[..., Server]


@pytest.fixture(scope="module")
def save_model(
    save_tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int | None, str | None], Path]:
    """Returns a function that saves a model with P streams, or without any, and a tokenizer that chats, or does not.

    Its weights are random, but its head prefers tokens that are text, so that answers can be compared as text.
    """

    def save(P: int | None, chat_template: str | None = CHAT_TEMPLATE) -> Path:
        plain = save_tiny_model(tie_word_embeddings=False)
        tokenizer = AutoTokenizer.from_pretrained(plain)
        model = randomise(AutoModelForCausalLM.from_pretrained(plain))
        if P is not None:
            model = randomise(convert_to_parscale_model(model, create_parscale_config(P, prefix_length=4)), seed=P)
        texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
        is_text = [text.isascii() and text.isprintable() and "|" not in text for text in texts]
        with torch.no_grad():
            model.lm_head.weight[~torch.tensor(is_text)] = 0
        directory = tmp_path_factory.mktemp("served")
        model.save_pretrained(directory)
        tokenizer.chat_template = chat_template
        tokenizer.save_pretrained(directory)
        return directory

    return save


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A Hub that could be asked."""
    with hub_server(tmp_path_factory.mktemp("hub"), "owner/data", "0" * 40) as hub:
        yield hub


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, hub: HubServer) -> Iterator[Start]:
    """Returns a function that starts a server on a free port and waits for the line that says where.

    It is not told to be offline: the Hub within its reach shows that it asks for nothing.
    """
    processes, clients = [], []
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}

    def start(directory: Path) -> Server:
        log = tmp_path_factory.mktemp("server") / "stderr"
        command = [sys.executable, "-m", "parcontrol.cli.serve", str(directory), "--port", "0"]
        with log.open("w") as errors:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | environment
            )
        processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(rf"serving {re.escape(str(directory))} on \w+: (http://127\.0\.0\.1:\d+/v1)\n", line)
        assert found, (line, log.read_text())
        # One client for a server, closed at the end: left to the garbage collector, its sockets warn in other tests.
        clients.append(openai.OpenAI(base_url=found[1], api_key="none", max_retries=0, timeout=60))
        return Server(directory, process, clients[-1], log)

    yield start
    for client in clients:
        client.close()
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module", params=[None, 1, 2, 4], ids=["plain", "P=1", "P=2", "P=4"])
def server(request: pytest.FixtureRequest, start: Start, save_model: Callable[..., Path]) -> Server:
    return start(save_model(request.param))


def greedy(directory: Path, prompt: str | None = None) -> str:
    """What the model says by `generate`, to the messages or after a prompt."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=False)
    if prompt is None:
        inputs = tokenizer.apply_chat_template(
            MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)
    return str(tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))


def test_a_chat_is_what_generate_says(server: Server) -> None:
    expected = greedy(server.directory)
    assert len(expected) > TOKENS
    answer = server.client.chat.completions.create(
        model=server.name, messages=MESSAGES, temperature=0, max_tokens=TOKENS
    )
    assert answer.model == server.name
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == TOKENS


def test_a_stream_comes_in_pieces_and_is_the_same_text(server: Server) -> None:
    chunks = server.client.chat.completions.create(
        model=server.name, messages=MESSAGES, temperature=0, max_tokens=TOKENS, stream=True
    )
    pieces = [text for chunk in chunks if (text := chunk.choices[0].delta.content)]
    assert len(pieces) > TOKENS // 2
    assert "".join(pieces) == greedy(server.directory)


def test_a_temperature_samples_and_a_seed_repeats_it(server: Server) -> None:
    def say(**options: Any) -> str | None:
        answer = server.client.chat.completions.create(
            model=server.name, messages=MESSAGES, max_tokens=TOKENS, **options
        )
        return answer.choices[0].message.content

    expected = greedy(server.directory)
    sampled = {say(temperature=1.5, seed=seed) for seed in range(3)}
    assert len(sampled) == 3
    assert expected not in sampled
    assert say(temperature=1.5, seed=1) in sampled
    assert say(top_p=1, seed=1) != expected
    assert say() == say(temperature=0) == expected


def test_the_list_names_the_one_model(server: Server) -> None:
    assert [model.id for model in server.client.models.list()] == [server.name]


def test_nothing_is_asked_of_the_hub(server: Server, hub: HubServer) -> None:
    server.client.chat.completions.create(model=server.name, messages=MESSAGES, max_tokens=2)
    assert hub.requests == []


def test_other_models_are_neither_served_nor_loaded(server: Server, tiny_model_dir: Path) -> None:
    client = server.client
    for create in (client.chat.completions.create, client.completions.create):
        question = {"messages": MESSAGES} if create == client.chat.completions.create else {"prompt": "the"}
        with pytest.raises(openai.BadRequestError, match="Server is pinned to") as refused:
            create(model=str(tiny_model_dir), max_tokens=1, **question)  # type: ignore[call-overload]
        assert server.name in refused.value.message
    root = client.with_options(base_url=str(client.base_url).removesuffix("/v1/"))
    loaded = root.post("/load_model", cast_to=str, body={"model": str(tiny_model_dir)})
    assert '"status": "error"' in loaded
    assert "is not served here" in loaded
    assert [model.id for model in client.models.list()] == [server.name]


def test_what_cannot_be_answered_is_refused_with_the_reason(server: Server) -> None:
    chat = server.client.chat.completions.create
    with pytest.raises(openai.BadRequestError, match="temperature is -1: 0, for the likeliest tokens, or more"):
        chat(model=server.name, messages=MESSAGES, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="messages is 'hello': a list of objects"):
        chat(model=server.name, messages="hello")  # type: ignore[call-overload]
    with pytest.raises(openai.BadRequestError, match=r"messages is \[\{'content': 'x'\}\]: a list of objects"):
        chat(model=server.name, messages=[{"content": "x"}])  # type: ignore[list-item]
    with pytest.raises(openai.BadRequestError, match="top_p is 5: a number from 0 to 1"):
        chat(model=server.name, messages=MESSAGES, top_p=5)
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="max_tokens is 0: a number from 1 on"):
            chat(model=server.name, messages=MESSAGES, max_tokens=0, stream=stream)
    with pytest.raises(openai.BadRequestError, match=r"input is \['the'\]: a text, or a list of objects"):
        server.client.responses.create(model=server.name, input=["the"])  # type: ignore[list-item]
    with pytest.raises(openai.BadRequestError, match="prompt must be a string"):
        server.client.completions.create(model=server.name, prompt=["the"])
    with pytest.raises(openai.BadRequestError, match="strictly positive float"):
        server.client.chat.completions.create(
            model=server.name,
            messages=MESSAGES,
            extra_body={"generation_config": '{"do_sample": true, "temperature": -1.0}'},
        )


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_without_tokens_is_refused(server: Server, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match="the prompt '' has no tokens"):
        server.client.completions.create(model=server.name, prompt="", stream=stream)


def test_without_chat_template_prompts_are_continued_and_chats_refused(start: Start, save_model: Any) -> None:
    server = start(save_model(2, chat_template=None))
    assert "has no chat template" in server.log.read_text()
    with pytest.raises(openai.BadRequestError, match="chat_template"):
        server.client.chat.completions.create(model=server.name, messages=MESSAGES)
    prompt = "the old bird"
    answer = server.client.completions.create(model=server.name, prompt=prompt, temperature=0, max_tokens=TOKENS)
    assert answer.choices[0].text == greedy(server.directory, prompt)


# --- the end ---


def test_ctrl_c_ends_it_with_one_word(start: Start, save_model: Any) -> None:
    server = start(save_model(1))
    assert server.client.models.list().data
    code, errors = server.end(signal.SIGINT)
    assert code == 130
    assert "Traceback" not in errors
    assert errors.endswith("\ninterrupted\n")


def test_an_answer_without_end_does_not_keep_it_from_ending(start: Start, save_model: Any) -> None:
    server = start(save_model(2))
    outcomes: list[Exception] = []

    def ask(stream: bool) -> None:
        try:
            answer = server.client.chat.completions.create(
                model=server.name, messages=MESSAGES, temperature=0, max_tokens=ENDLESS, stream=stream
            )
            list(answer)
        except openai.APIError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=ask, args=[stream]) for stream in (True, False)]
    for thread in threads:
        thread.start()
    while server.log.read_text().count("Request received") < 2:
        time.sleep(0.05)
    code, errors = server.end(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert code == 0
    assert "Traceback" not in errors
    assert {type(outcome) for outcome in outcomes} == {openai.APIError, openai.InternalServerError}
    assert any("the server is ending" in str(outcome) for outcome in outcomes)


# --- what it refuses ---


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Returns a function that runs the command with what it refuses, and returns its one line."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> str:
        assert main(["serve", *map(str, arguments)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err

    yield run
    signal.signal(signal.SIGTERM, before)


def test_a_directory_without_a_model_is_refused(refusal: Callable[..., str], tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == f"error: '{tmp_path / 'nowhere'}' is not a directory\n"
    assert refusal(tmp_path) == f"error: '{tmp_path}' holds no model: config.json is missing\n"
    final = tmp_path / "checkpoints" / "final"
    final.mkdir(parents=True)
    assert refusal(tmp_path) == f"error: '{tmp_path}' holds no model; the model of this run is '{final}'\n"
    (tmp_path / "config.json").write_text("{}")
    assert "cannot be loaded" in refusal(tmp_path, "--port", 0)


def test_a_port_that_is_taken_is_refused_before_the_model_is_loaded(
    refusal: Callable[..., str], tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parcontrol.serving.server.load_backbone", lambda *_, **__: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refusal(tiny_model_dir, "--port", port)
    assert f"cannot listen on 127.0.0.1, port {port}" in line
    assert "in use" in line
    assert "cannot listen on nowhere.invalid" in refusal(tiny_model_dir, "--host", "nowhere.invalid")


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "DIR", f"--port={port}"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        f"error: argument --port: {port!r} is not allowed: a number from 0 to 65535 is needed\n"
    )


def test_missing_libraries_are_named(refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parcontrol.serving.server.is_serve_available", lambda: False)
    assert "pip install 'parcontrol[serve]'" in refusal("DIR")
