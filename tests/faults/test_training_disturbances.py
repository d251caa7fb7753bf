"""What a run meets while it lasts: bad shards, a clock that jumps, and another process that wants its directory."""

from __future__ import annotations

import itertools
import random
import re
import shutil
import time
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from parcontrol.runs import RunDirectory
from tests.data.corpora import lines_of, write_shard
from tests.faults.training_processes import LONG_RUN, MakeConfig, Training, finish, reference
from tests.training.same_run import assert_same_run

DAY = 86_400.0
SHARD = "train/00.jsonl.zst"


def assert_refused(training: Training, reason: str) -> None:
    """The command ends with its code for bad input and one line that tells the reason."""
    exit_code, output = training.end()
    assert exit_code == 2, output
    assert "Traceback" not in output
    assert len(training.errors) == 1, output
    assert re.search(reason, training.errors[0]), output


# --- shards ---


@pytest.fixture
def corpus(tmp_path: Path, tiny_corpus_dir: Path) -> Path:
    """A corpus with one train shard of little more text than a run needs, in frames with checksums."""
    folder, chosen = tmp_path / "corpus", random.Random(0)
    (folder / "train").mkdir(parents=True)
    shutil.copy(tiny_corpus_dir / "val.jsonl.zst", folder)
    words = "river stone wind sun takes gives holds breaks".split()
    write_shard(folder / SHARD, lines_of(" ".join(chosen.choices(words, k=18)) for _ in range(320)), frames=8)
    return folder


def one_shard(corpus: Path) -> dict[str, object]:
    """A run that reads no text but that of its steps: prefixes from texts would have met a bad shard before them."""
    return {**LONG_RUN, "data__repo": str(corpus), "data__num_shards": 1, "parscale__prefix_init": "normal"}


def spoil(corpus: Path, change: Callable[[bytes], bytes]) -> bytes:
    """Changes the content of the shard and returns what it was."""
    good = (corpus / SHARD).read_bytes()
    (corpus / SHARD).write_bytes(change(good))
    return good


def test_a_shard_that_ends_in_its_middle(make_config: MakeConfig, corpus: Path) -> None:
    """The run stops with the tokens that are there, every time, and another shard never takes the place of this one."""
    run = one_shard(corpus)
    whole = reference(make_config, **run)
    good = spoil(corpus, lambda content: content[: len(content) * 3 // 4])
    config = make_config("spoilt", **run)
    for _ in range(2):
        training = Training(config)
        assert_refused(training, rf"{SHARD}: the zstd stream is truncated at byte [1-9]\d+ of its text")
        records = training.run.read_provenance()
        shared = [record["sha256"] for record in whole.read_provenance()[: len(records)]]
        assert [record["sha256"] for record in records] == shared
        assert 0 < records[-1]["tokens"] < whole.read_provenance()[-1]["tokens"]
    (corpus / SHARD).write_bytes(good)
    assert_refused(Training(config), "the data stream cannot go on: its shards was")


@pytest.mark.parametrize("seed", [1, *(pytest.param(s, marks=pytest.mark.full) for s in range(2, 7))])
def test_a_shard_with_a_corrupt_bit(make_config: MakeConfig, corpus: Path, seed: int) -> None:
    """Once the bit is right again, the run goes on as if it had never been wrong."""
    chosen = random.Random(seed)

    def corrupt(content: bytes) -> bytes:
        place = chosen.randrange(len(content) // 2)  # which the run needs
        return content[:place] + bytes([content[place] ^ 1 << chosen.randrange(8)]) + content[place + 1 :]

    run = one_shard(corpus)
    whole = reference(make_config, **run)
    good = spoil(corpus, corrupt)
    config = make_config("spoilt", **run)
    assert_refused(Training(config), rf"{SHARD}: the zstd stream is (corrupt|truncated) at byte \d+ of its text")
    (corpus / SHARD).write_bytes(good)
    finish(config)
    assert_same_run(whole.path, config.run_directory)


# --- the clock ---


def clock_jumps() -> None:
    """Lets the clock of this process jump by a day, forward and back, each time that it is asked."""
    from parcontrol.training import meta

    plain, jumps = time.time, itertools.cycle((0.0, DAY, -DAY))

    class JumpingDate(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(seconds=next(jumps))

    time.time = lambda: plain() + next(jumps)
    time.time_ns = lambda: int(time.time() * 1e9)
    meta.datetime = JumpingDate  # type: ignore[attr-defined]


def test_a_clock_that_jumps(make_config: MakeConfig) -> None:
    """Durations are those that passed, in a run that goes on after a jump too."""
    whole = reference(make_config)
    config = make_config("jumping", **LONG_RUN)
    before = time.monotonic()
    training = Training(config, clock_jumps)
    training.wait_for_records(4)
    training.process.kill()
    training.end()
    exit_code, output = Training(config, clock_jumps).end()
    passed = time.monotonic() - before
    assert exit_code == 0, output
    assert_same_run(whole.path, config.run_directory)
    run = RunDirectory(config.run_directory)
    steps = [record for record in run.read_metrics() if "tokens_per_second" in record]
    assert all(record["tokens_per_second"] > 0 for record in steps)
    seconds = [0.0, *(record["seconds"] for record in steps), run.read_result()["seconds"], passed]
    assert seconds == sorted(seconds)
    result = run.read_result()
    assert 0 < result["training_seconds"] < result["seconds"]
    assert 0 <= result["data_wait_fraction"] < 1
    started = [datetime.fromisoformat(process["started"]) for process in run.read_meta()["processes"]]
    assert len(started) == 2
    assert any(abs(moment.timestamp() - time.time()) > DAY / 2 for moment in started), "the clock did jump"


# --- two at once ---


def test_a_second_run_is_refused_and_the_first_not_disturbed(make_config: MakeConfig) -> None:
    whole = reference(make_config)
    config = make_config("wanted", **LONG_RUN)
    first = Training(config)
    first.wait_for_records(2)
    assert_refused(Training(config), rf"{first.run.path} is in use: process {first.process.pid} works there")
    exit_code, output = first.end()
    assert exit_code == 0, output
    assert_same_run(whole.path, config.run_directory)


@pytest.mark.parametrize("times", [1, pytest.param(8, marks=pytest.mark.full)])
def test_of_two_that_start_at_the_same_moment_one_trains(make_config: MakeConfig, times: int) -> None:
    whole = reference(make_config)
    for number in range(times):
        config = make_config(f"wanted_{number}", **LONG_RUN)
        both = [Training(config), Training(config)]
        ended = sorted((training.end() for training in both), key=lambda end: end[0] or 0)
        assert [exit_code for exit_code, _ in ended] == [0, 2], ended
        assert "is in use: process" in ended[1][1]
        assert_same_run(whole.path, config.run_directory)
