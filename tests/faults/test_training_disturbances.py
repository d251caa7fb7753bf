"""What a run meets while it lasts: bad shards, a clock that jumps, and another process that wants its directory."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
import time
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from parcontrol.runs import RunDirectory
from tests.data.corpora import lines_of, write_shard
from tests.faults.training_processes import LONG_RUN, MakeConfig, Training, finish, reference
from tests.training.same_run import assert_same_run

DAY = 86_400.0


# --- shards ---


@pytest.fixture
def corpus(tmp_path: Path, tiny_corpus_dir: Path) -> Path:
    """The tiny corpus with long train shards in frames with checksums, as the `zstd` command writes them."""
    folder = tmp_path / "corpus"
    shutil.copytree(tiny_corpus_dir, folder)
    words = random.Random(0)
    for shard in folder.glob("train/*.zst"):
        write_shard(shard, lines_of(" ".join(words.choices("river stone wind sun".split(), k=60)) for _ in range(60)))
    return folder


def test_a_shard_that_ends_in_its_middle(make_config: MakeConfig, corpus: Path) -> None:
    """The run stops where the text ends, says in which shard and where, and goes on with no other text."""
    data = {**LONG_RUN, "data__repo": str(corpus), "data__num_shards": 1}
    shard, whole, config = spoilt(make_config, data, lambda content: content[: len(content) // 2])
    training = Training(config)
    assert_refused(training, rf"{shard}: the zstd stream is truncated at byte")
    assert_refused(Training(config), rf"{shard}: the zstd stream is truncated at byte")  # every time
    shard_file(config, shard).write_bytes(shard_file(whole_config(whole), shard).read_bytes())
    assert_refused(Training(config), "the data stream cannot go on: its shards was")  # it would be another shard


@pytest.mark.parametrize("seed", [1, *(pytest.param(s, marks=pytest.mark.full) for s in range(2, 8))])
def test_a_shard_with_a_corrupt_byte(make_config: MakeConfig, corpus: Path, seed: int) -> None:
    """Wherever it is; with the right byte in its place the run goes on as if it had never been wrong."""
    chosen = random.Random(seed)

    def corrupt(content: bytes) -> bytes:
        place = chosen.randrange(4, len(content))
        return content[:place] + bytes([content[place] ^ 1 << chosen.randrange(8)]) + content[place + 1 :]

    data = {**LONG_RUN, "data__repo": str(corpus), "data__num_shards": 1}
    shard, whole, config = spoilt(make_config, data, corrupt)
    assert_refused(Training(config), rf"{shard}: the zstd stream is")
    shard_file(config, shard).write_bytes(shard_file(whole_config(whole), shard).read_bytes())
    finish(config)
    assert_same_run(whole.path, config.run_directory)
