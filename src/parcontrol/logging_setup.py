"""Logging of a process: a readable console and a file of JSON lines."""

import json
import logging
import math
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.logging import RichHandler

# What every log record has; everything else was given as `extra`.
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

_installed: list[logging.Handler] = []


def setup_logging(level: str, directory: str | Path, run_name: str) -> Path:
    """Logs to the console and to ``directory/run_name.jsonl``, and returns that file.

    Our own messages are logged from `level` on, those of other libraries and Python's warnings from
    WARNING on. The file is appended to, because a run may be resumed. A second call takes the place
    of the first. The console is rich's own, so that messages and progress bars do not disturb each
    other.

    Raises:
        ValueError: `level` is no level, or the file cannot be written.
    """
    if level not in logging.getLevelNamesMapping():
        known = ", ".join(("DEBUG", "INFO", "WARNING", "ERROR"))
        raise ValueError(f"logging level {level!r} is not one of {known}")
    path = log_file(directory, run_name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file_handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write the log file {path}: {error}") from error
    file_handler.setFormatter(JsonLinesFormatter())
    console_handler = RichHandler(show_path=False, rich_tracebacks=True, log_time_format="%X")

    root = logging.getLogger()
    while _installed:
        handler = _installed.pop()
        root.removeHandler(handler)
        handler.close()
    for handler in (file_handler, console_handler):
        _installed.append(handler)
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("parcontrol").setLevel(level)
    logging.captureWarnings(True)
    return path


def silence_logging() -> None:
    """Lets a process say nothing: one of several, of which another one logs."""
    logging.getLogger().addHandler(logging.NullHandler())
    logging.captureWarnings(True)


def log_file(directory: str | Path, run_name: str) -> Path:
    """Returns where `setup_logging` writes."""
    return Path(directory) / f"{run_name}.jsonl"


class _LogFile(logging.FileHandler):
    """A log file on a disk that may become full: that is said once, in one line."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            print(f"warning: the log file {self.baseFilename} cannot be written: {error}", file=sys.stderr)


class JsonLinesFormatter(logging.Formatter):
    """Formats a record as one line of strict JSON.

    Fields: time (ISO 8601, UTC), level, logger, message, whatever was given as `extra`, and
    exception (the traceback) if there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record as one line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        # Libraries mark records for themselves with private attributes, Ray each one since it was imported.
        extra = {k: v for k, v in vars(record).items() if k not in _STANDARD_FIELDS and not k.startswith("_")}
        entry |= {key: _plain(value) for key, value in extra.items() if key not in entry}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """Returns `value` as strict JSON can hold it: a message must not be lost over its fields."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)
