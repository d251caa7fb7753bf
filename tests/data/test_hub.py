"""The Hub path: a real HTTP server, the real client library, and a process that reads from one through the other."""

import itertools
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parcontrol.config import DataConfig
from parcontrol.data import TrainStream, open_corpus
from parcontrol.data.documents import CHUNK_BYTES
from tests.data.corpora import byte_tokenizer, lines_of, write_corpus, write_shard
from tests.data.hub_server import HubServer, hub_server

REPO, COMMIT = "someone/texts", "0123456789abcdef0123456789abcdef01234567"
SHARDS, CHOSEN, T = 5, 2, 1024
# Smaller than in earnest, so that a small corpus takes many requests.
BLOCK_SIZE, BATCH_BYTES = 1 << 18, 1 << 17

# Opens a corpus, reads documents or blocks as asked on standard input, answers on standard output. One reading process
# serves several questions, because its start is what takes time.
CLIENT = f"""
import json, sys, time
from huggingface_hub import constants
from parcontrol import hub
from parcontrol.config import DataConfig
from parcontrol.data import TrainStream, documents, open_corpus, source
from parcontrol.data.documents import read_documents
from tests.data.corpora import byte_tokenizer

source.BLOCK_SIZE, documents.BATCH_BYTES = {BLOCK_SIZE}, {BATCH_BYTES}
waits = []
time.sleep = waits.append  # between the attempts of the client library
for line in sys.stdin:
    question = json.loads(line)
    waits.clear()
    constants.HF_HUB_DOWNLOAD_TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT = question.get("timeout", 10)
    hub.TIMEOUT_SECONDS["read"] = question.get("timeout", 60)
    try:
        corpus = open_corpus(DataConfig(**question["data"]))
        answer = dict(revision=corpus.revision, shards=[shard.name for shard in corpus.train_shards])
        if "blocks" in question:
            with TrainStream(corpus, byte_tokenizer(), sequence_length=question["T"], seed=42) as stream:
                stream.next_blocks(question["blocks"])
                answer["provenance"] = stream.provenance()
        if "documents" in question:
            answer["texts"] = [document.text for document in read_documents(corpus.validation_shards[0])]
    except ValueError as error:
        answer = dict(error=str(error))
    if "timeout" in question:
        answer["waits"] = list(waits)
    print(json.dumps(answer), flush=True)
"""


class Client:
    """A process whose Hub is the given endpoint."""

    def __init__(self, endpoint: str, cache: Path) -> None:
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache)}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", CLIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        data = {"repo": REPO, "num_shards": CHOSEN, **question.pop("data", {})}
        self.process.stdin.write(json.dumps({"data": data, "T": T, **question}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        return json.loads(line)

    def close(self) -> None:
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five shards of 3 MB compressed (hexadecimal noise, which zstd halves), of which two are chosen."""
    folder = write_corpus(tmp_path_factory.mktemp("repo"), [], ["held out", "text"])
    noise = random.Random(0)
    for index in range(SHARDS):
        write_shard(folder / f"train/{index:02d}.jsonl.zst", lines_of(noise.randbytes(3000).hex() for _ in range(1000)))
    return folder


@pytest.fixture(scope="module")
def running(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubServer, Client]]:
    with hub_server(folder, REPO, COMMIT) as server:
        client = Client(server.endpoint, tmp_path_factory.mktemp("cache"))
        yield server, client
        client.close()


@pytest.fixture
def server(running: tuple[HubServer, Client]) -> HubServer:
    server = running[0]
    server.requests.clear()
    server.served.clear()
    server.failures.clear()
    server.api_failures.clear()
    return server


@pytest.fixture
def client(running: tuple[HubServer, Client]) -> Client:
    return running[1]


def test_blocks_from_the_hub_are_those_from_the_same_folder(server: HubServer, client: Client, folder: Path) -> None:
    answer = client.ask(blocks=300)
    corpus = open_corpus(DataConfig(repo=str(folder), num_shards=CHOSEN))
    with TrainStream(corpus, byte_tokenizer(), sequence_length=T, seed=42) as stream:
        stream.next_blocks(300)
        assert answer["provenance"] == stream.provenance()
    assert answer["shards"] == [shard.name for shard in corpus.train_shards]


def test_the_revision_becomes_a_commit_and_everything_is_read_at_it(server: HubServer, client: Client) -> None:
    for revision in (None, "main", COMMIT):
        assert client.ask(data={"revision": revision}, blocks=1)["revision"] == COMMIT
    assert server.served
    assert {served.commit for served in server.served} == {COMMIT}
    trees = [request for request in server.requests if "/tree/" in request]
    assert all(f"/tree/{COMMIT}" in request for request in trees)


def test_only_the_chosen_shards_are_read_and_only_as_far_as_tokens_are_used(server: HubServer, client: Client) -> None:
    """Per shard one range beyond what the tokens used and the batches read ahead need."""
    read = {}
    for blocks in (100, 2000):
        server.served.clear()
        answer = client.ask(blocks=blocks)
        assert {served.path for served in server.served} == set(answer["shards"])
        assert all(served.length <= BLOCK_SIZE + CHUNK_BYTES for served in server.served), "in ranges"
        for shard in answer["provenance"]["shards"]:
            spans = sorted((s.start, s.start + s.length) for s in server.served if s.path == shard["shard"])
            assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans)), "no byte twice"
            read_ahead = 4 * BATCH_BYTES  # of text, by one worker; hexadecimal noise compresses to a half
            assert spans[-1][1] <= 1.05 * (shard["byte_end"] + read_ahead) / 2 + BLOCK_SIZE + CHUNK_BYTES
        read[blocks] = sum(served.length for served in server.served)
    assert read[100] < read[2000]
    assert read[2000] < 2000 * T / 2 * 1.05 + CHOSEN * (BLOCK_SIZE + CHUNK_BYTES) + 1.05 * 4 * BATCH_BYTES / 2


def test_a_validation_split_from_the_hub(server: HubServer, client: Client) -> None:
    assert client.ask(documents=True)["texts"] == ["held out", "text"]


@pytest.mark.parametrize("failures", [[503], ["cut"], [500, "cut", 429, 503]], ids=str)
def test_a_passing_failure_is_tried_again_and_changes_nothing(
    server: HubServer, client: Client, failures: list[int | str]
) -> None:
    undisturbed = client.ask(blocks=100)
    server.failures += failures
    assert client.ask(blocks=100) == undisturbed
    assert not server.failures


@pytest.mark.parametrize(("failure", "reason"), [(503, "503"), ("cut", "peer closed connection"), (403, "403")])
def test_a_lasting_failure_names_shard_and_offset(
    server: HubServer, client: Client, failure: int | str, reason: str
) -> None:
    server.failures += [failure] * 100
    error = client.ask(documents=True)["error"]
    assert error.startswith("val.jsonl.zst: the file cannot be read at byte 0 of its text (byte 0 of")
    assert reason in error
    assert "\n" not in error
    assert len(server.failures) > 80, "the attempts are bounded"


@pytest.mark.parametrize(
    "failures", [[503], [429, 500], ["pass", 502], ["pass", 429]], ids=lambda failures: str(failures)
)
def test_a_hub_that_fails_to_name_revision_or_shards_for_a_moment_is_asked_again(
    server: HubServer, client: Client, failures: list[int | str]
) -> None:
    undisturbed = client.ask(blocks=10)
    server.api_failures += failures
    answer = client.ask(blocks=10, timeout=1)
    waits = answer.pop("waits")
    assert answer == undisturbed
    assert not server.api_failures
    assert bool({3.0, 4.0} & set(waits)) == (429 in failures), "what Retry-After says, or a second more"


@pytest.mark.parametrize(
    ("api_failures", "failures", "beginning"),
    [
        (["hang"], [], "the dataset 'someone/texts' is no folder here and the Hub is out of reach (timed out)"),
        (["pass", "pass", *["hang"] * 9], [], "the shards of someone/texts cannot be listed: timed out"),
        ([503] * 9, [], "the Hub refuses the dataset 'someone/texts': Server error '503"),
        ([], ["hang"] * 50, "val.jsonl.zst: the file cannot be read at byte 0 of its text (byte 0 of"),
    ],
    ids=["revision", "listing", "refusal", "content"],
)
def test_a_hub_that_hangs_or_refuses_for_good_ends_in_an_error(
    server: HubServer, client: Client, api_failures: list[int | str], failures: list[int | str], beginning: str
) -> None:
    server.api_failures += api_failures
    server.failures += failures
    error = client.ask(documents=True, timeout=0.2)["error"]
    assert error.startswith(beginning)
    assert "\n" not in error


def test_a_shard_that_vanishes_is_named(server: HubServer, client: Client) -> None:
    server.failures += [404]
    error = client.ask(documents=True)["error"]
    assert error.startswith("val.jsonl.zst: the file cannot be read at byte 0")


def test_an_unknown_dataset(server: HubServer, client: Client) -> None:
    error = client.ask(data={"repo": "someone/nothing"})["error"]
    assert error.startswith("the dataset 'someone/nothing' is neither a folder here nor on the Hub")
    assert "\n" not in error
    assert not server.served


def test_an_unknown_revision(server: HubServer, client: Client) -> None:
    error = client.ask(data={"revision": "v9"})["error"]
    assert error == "the dataset 'someone/texts' at revision 'v9' is not on the Hub: there is no such revision"


def test_too_many_shards(server: HubServer, client: Client) -> None:
    error = client.ask(data={"num_shards": 6})["error"]
    assert error == "data.num_shards 6 is more than the 5 train shards (train/*.jsonl.zst) of someone/texts"


def test_a_server_that_is_down(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        client = Client(f"http://127.0.0.1:{unused.getsockname()[1]}", tmp_path)
        error = client.ask()["error"]
        client.close()
    assert error.startswith("the dataset 'someone/texts' is no folder here and the Hub is out of reach (")
    assert "data.mirror or PARCONTROL_MIRROR" in error
