"""Weights & Biases offline: what is written can be read back, without an account or a network."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from parcontrol.config import RunConfig
from parcontrol.runs import RunDirectory
from parcontrol.training.loop import TrainingLoop
from parcontrol.training.run import run

MakeConfig = Callable[..., RunConfig]

HEADER_BYTES = 7
BLOCK_BYTES = 32 * 1024
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def read_wandb_file(path: Path) -> Iterator[Any]:
    """Yields the records of a .wandb file: a LevelDB log of protocol buffers behind a header.

    Format: github.com/google/leveldb/blob/main/doc/log_format.md; the header is `:W&B`, a magic
    number and a version.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    assert content.startswith(b":W&B")
    position, parts = HEADER_BYTES, b""
    while position + HEADER_BYTES <= len(content):
        if BLOCK_BYTES - position % BLOCK_BYTES < HEADER_BYTES:
            position += BLOCK_BYTES - position % BLOCK_BYTES  # a block's tail is too short for a header
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        position += HEADER_BYTES
        parts += content[position : position + length]
        position += length
        if kind in (FULL, LAST):
            yield Record.FromString(parts)
            parts = b""


def whole_wandb_file(path: Path) -> list[Any]:
    """The records of a file, once W&B's own process has written the last: it may do so after `finish` returns."""
    for _ in range(600):
        records = list(read_wandb_file(path))
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


def history(records: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            rows.append({key: json.loads(value) for key, value in items.items()})
    return rows


def test_offline_run_reads_back_what_the_run_recorded(make_config: MakeConfig) -> None:
    config = make_config(logging__wandb="offline", logging__wandb_project="tiny", training__tokens_per_run=9 * 128)
    result = run(config)
    directory = RunDirectory(config.run_directory)
    (path,) = directory.path.glob("wandb/offline-run-*/*.wandb")
    records = whole_wandb_file(path)
    by_step: dict[int, dict[str, Any]] = {}
    for row in history(records):
        by_step.setdefault(row["_step"], {}).update(row)

    metrics, streams = directory.read_metrics(), directory.read_streams()
    for record in metrics:
        kind = "train" if "loss" in record else "validation"
        for key in ("loss", "learning_rate", "grad_norm", "tokens", "validation_loss"):
            if key in record:
                assert by_step[record["step"]][f"{kind}/{key}"] == record[key]
    for record in streams:
        logged = by_step[record["step"]]
        assert [logged[f"streams/mean_weight/{p}"] for p in range(2)] == record["mean_weight"]
        assert logged["streams/cosine_similarity/0/1"] == record["cosine_similarity"][0][1]

    (started,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (started.project, started.run_id) == ("tiny", directory.read_meta()["run_id"])
    settings = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert settings["parscale"]["P"] == 2
    summary: dict[str, Any] = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    assert summary["result/final_validation_loss"] == result["final_validation_loss"]


def test_a_run_that_fails_is_failed_there_too(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(TrainingLoop, "_backward", fail)
    config = make_config(logging__wandb="offline", training__tokens_per_run=3 * 128)
    with pytest.raises(RuntimeError, match="planted"):
        run(config)
    (path,) = config.run_directory.glob("wandb/offline-run-*/*.wandb")
    (end,) = [record.exit for record in whole_wandb_file(path) if record.WhichOneof("record_type") == "exit"]
    assert end.exit_code == 1


def test_disabled_is_the_default_and_writes_nothing(make_config: MakeConfig) -> None:
    config = make_config(training__tokens_per_run=3 * 128)
    assert config.logging.wandb == "disabled"
    run(config)
    assert not list(config.run_directory.rglob("*wandb*"))


def test_online_without_an_account_is_one_clear_error(make_config: MakeConfig) -> None:
    config = make_config(logging__wandb="online", training__tokens_per_run=3 * 128)
    with pytest.raises(ValueError, match="--wandb-offline, which needs no account"):
        run(config)
    assert not RunDirectory(config.run_directory).finished
