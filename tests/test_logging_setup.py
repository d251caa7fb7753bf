"""Logging: strict JSON lines with everything that was logged, and a readable console."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from parcontrol.logging_setup import setup_logging


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    """Gives the next test the logging that this one found."""
    root, ours = logging.getLogger(), logging.getLogger("parcontrol")
    before = root.level, ours.level, list(root.handlers)
    yield
    logging.captureWarnings(False)
    for handler in [h for h in root.handlers if h not in before[2]]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(before[0])
    ours.setLevel(before[1])


def entries(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_one_json_object_per_message(tmp_path: Path) -> None:
    path = setup_logging("INFO", tmp_path / "a" / "logs", "P2_run")
    before = datetime.now(UTC)
    logging.getLogger("parcontrol.training").info(
        "step %d\nof %s", 3, "größer", extra={"loss": 2.5, "_library_mark": 1}
    )
    (entry,) = entries(path)
    assert path == tmp_path / "a" / "logs" / "P2_run.jsonl"
    assert abs((datetime.fromisoformat(entry.pop("time")) - before).total_seconds()) < 60
    assert entry == {
        "level": "INFO",
        "logger": "parcontrol.training",
        "message": "step 3\nof größer",
        "loss": 2.5,
    }


def test_levels_of_our_own_and_of_other_messages(tmp_path: Path) -> None:
    path = setup_logging("DEBUG", tmp_path, "run")
    for name in ("parcontrol.data", "httpx"):
        logging.getLogger(name).debug("detail")
        logging.getLogger(name).warning("trouble")
    assert [(e["logger"], e["message"]) for e in entries(path)] == [
        ("parcontrol.data", "detail"),
        ("parcontrol.data", "trouble"),
        ("httpx", "trouble"),
    ]
    setup_logging("WARNING", tmp_path, "quiet")
    logging.getLogger("parcontrol").info("not worth it")
    assert entries(tmp_path / "quiet.jsonl") == []


def test_exceptions_and_warnings_are_kept(tmp_path: Path) -> None:
    path = setup_logging("INFO", tmp_path, "run")
    try:
        raise KeyError("gone")
    except KeyError:
        logging.getLogger("parcontrol").exception("failed")
    with warnings.catch_warnings(action="default"):
        warnings.warn("old style", UserWarning, stacklevel=1)
    failed, warned = entries(path)
    assert failed["level"] == "ERROR"
    assert failed["exception"].startswith("Traceback")
    assert failed["exception"].endswith("KeyError: 'gone'")
    assert warned["logger"] == "py.warnings"
    assert "old style" in warned["message"]


def test_no_field_can_lose_a_message_or_break_the_json(tmp_path: Path) -> None:
    path = setup_logging("INFO", tmp_path, "run")
    fields = {
        "loss": float("nan"),
        "norms": [1.0, float("inf")],
        "where": Path("/x"),
        "nested": {1: (True, None)},
        "level": "mine",  # must not hide the record's own
    }
    logging.getLogger("parcontrol").info("odd", extra=fields)
    (entry,) = entries(path)
    assert entry["loss"] == "nan"
    assert entry["norms"] == [1.0, "inf"]
    assert entry["where"] == "/x"
    assert entry["nested"] == {"1": [True, None]}
    assert entry["level"] == "INFO"


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    for message in ("first", "second"):
        path = setup_logging("INFO", tmp_path, "run")
        logging.getLogger("parcontrol").info(message)
    assert [e["message"] for e in entries(path)] == ["first", "second"]


def test_the_second_call_takes_the_place_of_the_first(tmp_path: Path) -> None:
    first, second = (setup_logging("INFO", tmp_path, name) for name in ("first", "second"))
    logging.getLogger("parcontrol").info("once")
    assert entries(first) == []
    assert [e["message"] for e in entries(second)] == ["once"]


def test_the_console_shows_level_and_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("INFO", tmp_path, "run")
    logging.getLogger("parcontrol").warning("memory is [nearly] full")
    shown = capsys.readouterr().out
    assert "WARNING" in shown
    assert "memory is [nearly] full" in shown


def test_an_unknown_level_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'LOUD' is not one of DEBUG, INFO, WARNING, ERROR"):
        setup_logging("LOUD", tmp_path / "logs", "run")
    assert not (tmp_path / "logs").exists()


def test_an_unwritable_file_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(ValueError, match="cannot write the log file"):
        setup_logging("INFO", tmp_path / "logs", "run")
