"""Rows that a run has stored beside its result, and how the result was made: read when somebody looks, within bounds.

A samples file has one JSON object on each line, as the harness logs rows, compressed with zstd. All of it is untrusted.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import orjson
import zstandard
from scipy.special import softmax

from parcontrol.leaderboard.records import quoted_text
from parcontrol.leaderboard.registry import TaskSpec
from parcontrol.leaderboard.result_file import MAX_BYTES, parse
from parcontrol.leaderboard.store import FileTooLargeError, Snapshot, Store, StoreError

MAX_COMPRESSED_BYTES = 64 * 2**20
# The longest file of a complete run, TriviaQA with 64 examples in front of every row, has about 200 MB.
MAX_DECOMPRESSED_BYTES = 512 * 2**20
MAX_ROWS = 100_000
CACHE_BYTES = 64 * 2**20
WAIT_SECONDS = 8.0
MAX_WAITING = 64  # files that somebody waits for
SHOWN_ROWS = 5  # right ones, and as many wrong ones
MAX_PROMPT, MAX_ANSWER, MAX_EXPECTED = 20_000, 2_000, 400  # characters
MAX_CHOICES, MAX_EXPECTED_ANSWERS = 26, 12

_CHUNK_BYTES = 2**20
_LOG2_WINDOW = 27  # what zstd's highest usual levels need
_BYTES_PER_CHARACTER = 4

Found = TypeVar("Found")


class SamplesError(Exception):
    """What was asked for cannot be shown; says why in one sentence."""


class StillReadingError(SamplesError):
    """What was asked for is not there yet."""


@dataclass(frozen=True)
class Choice:
    """One of the answers that a model was given.

    Attributes:
        text: The answer.
        probability: How likely the model found it, against the other choices.
        chosen: Whether it is the likeliest.
        expected: Whether it is right; None where the row does not say so.
    """

    text: str
    probability: float
    chosen: bool
    expected: bool | None


@dataclass(frozen=True)
class Sample:
    """One row as it is shown; long texts are cut.

    Attributes:
        doc_id: Its number.
        prompt: What the model read, without the beginning if it is too long.
        prompt_left_out: Characters that are missing there.
        answer: What the model wrote; empty for choices.
        choices: What the model could choose from; empty if it wrote a text.
        expected: What would have been right, as far as the row says so.
        value: Its score, in the unit of the rows.
    """

    doc_id: int
    prompt: str
    prompt_left_out: int
    answer: str
    choices: tuple[Choice, ...]
    expected: tuple[str, ...]
    value: float


@dataclass(frozen=True)
class Rows:
    """The values of one metric, row by row.

    Attributes:
        keys: [N] names of the rows, from doc_id and doc_hash, ascending; no two are equal.
        values: [N] in the unit of the rows.
    """

    keys: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class TaskSamples:
    """What a samples file holds.

    Attributes:
        rows: Values by metric; metrics that are not made of one number for each row are missing.
        count: How many rows there are.
        metric: The metric that the shown rows are told apart by; empty if there is none.
        binary: Whether a row is either right or wrong.
        best, worst: Rows to show, at most `SHOWN_ROWS`: right and wrong ones, or those with the highest and lowest
            values.
    """

    rows: Mapping[str, Rows]
    count: int
    metric: str
    binary: bool
    best: tuple[Sample, ...]
    worst: tuple[Sample, ...]

    @property
    def bytes_held(self) -> int:
        """About how much memory it takes."""
        arrays = sum(rows.keys.nbytes + rows.values.nbytes for rows in self.rows.values())
        texts = sum(
            len(sample.prompt) + len(sample.answer) + sum(map(len, sample.expected))
            + sum(len(choice.text) for choice in sample.choices)
            for sample in (*self.best, *self.worst)
        )  # fmt: skip
        return arrays + _BYTES_PER_CHARACTER * texts + 2**10


@dataclass(frozen=True)
class Origin:
    """How a result file was made, as it says itself.

    Attributes:
        ours: Whether it is a file of this project, which says all of the following.
        harness: Version of the harness.
        packages: Names and versions.
        versions: Version of every task.
        tasks: The tasks that it has results of.
        seed, limit: As they were given; None if they were not, or if the file does not say.
        sample_set: Whether tasks ran on the small sample set.
        backend: What ran the model.
        base_model: What an adapter or delta was put on.
        instruction_sha256: Hash of the text that replaced the instruction to a judge; empty without.
    """

    ours: bool
    harness: str
    packages: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    tasks: tuple[str, ...]
    seed: int | None
    limit: int | None
    sample_set: bool
    backend: str
    base_model: str
    instruction_sha256: str

    @property
    def bytes_held(self) -> int:
        """About how much memory it takes."""
        pairs = (*self.packages, *self.versions)
        return 2**10 + _BYTES_PER_CHARACTER * sum(len(first) + len(second) + 100 for first, second in pairs)


def samples_path(result_path: str, task: str) -> str:
    """Returns where the rows of a task lie that a result file is of."""
    folder, _, name = result_path.rpartition("/")
    moment = name.removeprefix("results_").removesuffix(".json")
    return f"{folder}/samples_{task}_{moment}.jsonl.zst".lstrip("/")


class SampleReader:
    """Reads samples and origins from a results repository, and keeps those that were used last.

    One file is read at a time, by a thread of its own, so that memory is bounded however many people look. Whoever has
    waited long enough is told so, and finds the file when they look again.

    Args:
        store: The results repository.
        cache_bytes: How much is kept.
    """

    def __init__(self, store: Store, cache_bytes: int = CACHE_BYTES) -> None:
        self._store = store
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[tuple[str, str], tuple[Any, int]] = OrderedDict()
        self._held = 0
        self._running: dict[tuple[str, str], Future[Any]] = {}
        self._mutex, self._one_at_a_time = threading.Lock(), threading.Lock()
        self._newest: Snapshot | None = None

    def snapshot(self, revision: str, seconds: float = WAIT_SECONDS) -> Snapshot:
        """Returns the files there are; where the store does not answer, those that there were.

        Args:
            revision: Of the board. The store is asked only if it is not what is known here.
            seconds: How long to wait for the store.

        Raises:
            SamplesError: The store cannot be read, and has not been before.
        """
        newest = self._newest
        if newest is not None and newest.revision == revision:
            return newest
        try:
            self._newest = self._shared(("snapshot", revision), self._store.snapshot, seconds, nullcontext())
        except StoreError as error:
            if newest is None:
                raise SamplesError(f"The store cannot be read just now: {_reason(error)}.") from error
        except StillReadingError:
            if newest is None:
                raise
        assert self._newest is not None
        return self._newest

    def samples(
        self, result_path: str, spec: TaskSpec, snapshot: Snapshot, seconds: float = WAIT_SECONDS
    ) -> TaskSamples:
        """Returns the rows of a task that a result file is of.

        Args:
            result_path: The result file.
            spec: The task.
            snapshot: The files there are.
            seconds: How long to wait.

        Raises:
            StillReadingError: They have not been read by then.
            SamplesError: There are none, or they cannot be read.
        """
        path = samples_path(result_path, spec.harness_task)
        if path not in snapshot.files:
            raise SamplesError(f"The run that gave this result stored no rows of {spec.name}.")
        load = partial(self._load, path, snapshot, MAX_COMPRESSED_BYTES, partial(read_task, spec=spec))
        found: TaskSamples = self._get((snapshot.files[path], spec.name), load, seconds)
        return found

    def origin(self, result_path: str, snapshot: Snapshot, seconds: float = WAIT_SECONDS) -> Origin:
        """Returns how a result was made.

        Raises:
            StillReadingError: The file has not been read in this time.
            SamplesError: The result file is gone or cannot be read.
        """
        if result_path not in snapshot.files:
            raise SamplesError(f"The file {result_path} is no longer in the store.")
        load = partial(self._load, result_path, snapshot, MAX_BYTES, read_origin)
        found: Origin = self._get((snapshot.files[result_path], ""), load, seconds)
        return found

    def _get(self, key: tuple[str, str], load: Callable[[], Any], seconds: float) -> Any:
        found = self._kept(key)
        if found is None:
            found = self._shared(key, lambda: self._keep(key, load()), seconds, self._one_at_a_time)
        if isinstance(found, SamplesError):
            raise SamplesError(*found.args)
        return found

    def _shared(
        self,
        key: tuple[str, str],
        call: Callable[[], Found],
        seconds: float,
        turn: AbstractContextManager[Any],
    ) -> Found:
        """Calls once for all who ask for the same, in a thread that nobody has to wait for."""
        with self._mutex:
            future = self._running.get(key)
            if future is None:
                if len(self._running) >= MAX_WAITING:
                    raise StillReadingError("Too much is being read just now: look again in a moment.")
                future = self._running[key] = Future()
                threading.Thread(target=self._run, args=(key, call, turn, future), daemon=True).start()
        try:
            found: Found = future.result(max(seconds, 0))
        except TimeoutError:
            raise StillReadingError("The store is still being read: look again in a moment.") from None
        return found

    def _run(
        self, key: tuple[str, str], call: Callable[[], Any], turn: AbstractContextManager[Any], future: Future[Any]
    ) -> None:
        try:
            with turn:
                found = call()
        except BaseException as error:  # goes to those who wait
            outcome = partial(future.set_exception, error)
        else:
            outcome = partial(future.set_result, found)
        with self._mutex:
            del self._running[key]
        outcome()

    def _load(
        self, path: str, snapshot: Snapshot, max_bytes: int, parse_content: Callable[[bytes], Found]
    ) -> Found | SamplesError:
        """What a file holds, or why it holds nothing, which does not change either."""
        try:
            content = self._store.read(path, snapshot, max_bytes)
        except FileTooLargeError:
            return SamplesError(f"The file {path} is larger than what is read here ({max_bytes // 2**20} MiB).")
        except FileNotFoundError as error:
            raise SamplesError(f"The file {path} is no longer in the store.") from error
        except StoreError as error:
            raise SamplesError(f"The file {path} cannot be read just now: {_reason(error)}.") from error
        try:
            return parse_content(content)
        except ValueError as error:
            return SamplesError(f"The file {path} is broken: {_reason(error)}.")

    def _kept(self, key: tuple[str, str]) -> Any:
        with self._mutex:
            if key not in self._cache:
                return None
            self._cache.move_to_end(key)
            return self._cache[key][0]

    def _keep(self, key: tuple[str, str], found: Found) -> Found:
        size = 2**10 if isinstance(found, SamplesError) else found.bytes_held  # type: ignore[attr-defined]
        with self._mutex:
            self._cache[key] = (found, size)
            self._held += size
            while self._held > self._cache_bytes:
                _, (_, freed) = self._cache.popitem(last=False)
                self._held -= freed
        return found


def _reason(error: Exception) -> str:
    return quoted_text(str(error), 200).rstrip(".")


def reader_of(store: Store) -> SampleReader:
    """Returns the reader of a repository, which all parts of the page share."""
    key: Any = store
    return _reader(key)


@lru_cache(maxsize=1)
def _reader(store: Any) -> SampleReader:
    return SampleReader(store)


def read_task(content: bytes, spec: TaskSpec) -> TaskSamples:
    """Reads a samples file.

    Raises:
        ValueError: It is none, or larger than what is allowed.
    """
    columns = list(dict.fromkeys((column.metric, column.filter) for column in spec.columns))
    keys: dict[str, list[int]] = {filter_: [] for _, filter_ in columns}
    values: dict[tuple[str, str], list[float]] = {column: [] for column in columns}
    shown = {column: _Extremes() for column in columns}
    count = 0
    for line in _lines(content):
        row = _row(line, count)
        count += 1
        for column in columns:
            metric, filter_ = column
            if row.get("filter", "none") == filter_:
                value = _number(row.get(metric))
                values[column].append(value)
                shown[column].add(value, row)
        if row.get("filter", "none") in keys:
            keys[row.get("filter", "none")].append(_key(row))
    found = {column: _rows(keys[column[1]], values[column]) for column in columns}
    rows = {column[0]: one for column, one in found.items() if one is not None}
    first = next((column for column, one in found.items() if one is not None), None)
    if first is None:
        return TaskSamples(rows, count, "", False, (), ())
    binary = is_binary(rows[first[0]].values)
    best, worst = shown[first].split(binary)
    return TaskSamples(rows, count, first[0], binary, *(
        tuple(_sample(row, value, spec) for value, row in some) for some in (best, worst)
    ))  # fmt: skip


def is_binary(values: np.ndarray) -> bool:
    """Whether all values are either 0 or one other value above it, 1 or 100."""
    return bool(np.isin(values, (0, 1)).all() or np.isin(values, (0, 100)).all())


def read_origin(content: bytes) -> Origin:
    """Reads from a result file how it was made.

    Raises:
        ValueError: It is no result file.
    """
    document = parse(content)
    block = _mapping(document.get("parcontrol"))
    limit, seed = block.get("limit"), block.get("seed")
    return Origin(
        ours=bool(block),
        harness=_word(document.get("lm_eval_version")) or _word(document.get("git_hash")),
        packages=_pairs(block.get("packages")),
        versions=_pairs(document.get("versions")),
        tasks=tuple(quoted_text(task, 100) for task in list(_mapping(document.get("results")))[:500]),
        seed=seed if type(seed) is int else None,
        limit=int(limit) if isinstance(limit, int | float) and 0 < limit < 1e9 else None,
        sample_set=block.get("sample_set") is True,
        backend=_word(block.get("backend")) or "hf",
        base_model=_word(block.get("base_model")),
        instruction_sha256=_word(block.get("instruction_sha256")),
    )


class _Extremes:
    """Of rows that pass by: those with the highest and with the lowest values, the first of equal ones."""

    def __init__(self) -> None:
        self._high: list[tuple[float, int, dict[str, Any]]] = []
        self._low: list[tuple[float, int, dict[str, Any]]] = []
        self._count = 0

    def add(self, value: float, row: dict[str, Any]) -> None:
        """Looks at a row. The count tells equal values apart, so that rows are never compared."""
        self._count += 1
        if not math.isnan(value):
            _push(self._high, (value, -self._count, row))
            _push(self._low, (-value, -self._count, row))

    def split(self, binary: bool) -> tuple[list[tuple[float, dict[str, Any]]], list[tuple[float, dict[str, Any]]]]:
        """Returns the highest, best first, and the lowest, worst first, as (value, row); no row is in both."""
        high = [(value, -count, row) for value, count, row in sorted(self._high, key=lambda one: one[:2], reverse=True)]
        low = [(-value, -count, row) for value, count, row in sorted(self._low, key=lambda one: one[:2], reverse=True)]
        if binary:
            high, low = [one for one in high if one[0]], [one for one in low if not one[0]]
        else:
            few = (self._count + 1) // 2
            high = high[:few]
            taken = {count for _, count, _ in high}
            low = [one for one in low if one[1] not in taken]
        return [(value, row) for value, _, row in high], [(value, row) for value, _, row in low]


def _push(heap: list[tuple[float, int, dict[str, Any]]], entry: tuple[float, int, dict[str, Any]]) -> None:
    if len(heap) < SHOWN_ROWS:
        heapq.heappush(heap, entry)
    elif entry[:2] > heap[0][:2]:
        heapq.heapreplace(heap, entry)


def _lines(content: bytes) -> Iterator[bytes]:
    """The lines of a compressed file, which is never in memory as a whole."""
    reader = zstandard.ZstdDecompressor(max_window_size=2**_LOG2_WINDOW).stream_reader(content, read_across_frames=True)
    rest, total, rows = bytearray(), 0, 0
    while True:
        try:
            chunk = reader.read(_CHUNK_BYTES)
        except zstandard.ZstdError as error:
            raise ValueError(f"it cannot be decompressed ({error})") from error
        if not chunk:
            break
        total += len(chunk)
        if total > MAX_DECOMPRESSED_BYTES:
            raise ValueError(f"it has more than {MAX_DECOMPRESSED_BYTES // 2**20} MiB when decompressed")
        *lines, tail = chunk.split(b"\n")
        for line in lines:
            rows += 1
            if rows > MAX_ROWS:
                raise ValueError(f"it has more than {MAX_ROWS:,} rows")
            yield bytes(rest + line)
            rest.clear()
        rest += tail
    if rest:
        raise ValueError("its last row is cut off")
    if not rows:
        raise ValueError("it is empty")


def _row(line: bytes, number: int) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"row {number + 1} is no JSON ({error})") from error
    if not isinstance(row, dict) or type(row.get("doc_id")) is not int or not isinstance(row.get("doc_hash"), str):
        raise ValueError(f"row {number + 1} is no row of the harness: it lacks doc_id or doc_hash")
    if not isinstance(row.get("filter", "none"), str):
        raise ValueError(f"row {number + 1} has a filter that is no text")
    return row


def _key(row: dict[str, Any]) -> int:
    text = f"{row['doc_id']}\0{row['doc_hash']}"
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest(), "little")


def _number(value: Any) -> float:
    """A finite number, NaN for anything else."""
    number = float(value) if isinstance(value, int | float) and abs(value) < 1e300 else math.nan
    return number if math.isfinite(number) else math.nan


def _rows(keys: Sequence[int], values: Sequence[float]) -> Rows | None:
    """The values in the order of their keys; None if one is missing, or if two rows are the same."""
    array, names = np.array(values), np.array(keys, dtype=np.uint64)
    order = np.argsort(names)
    names = names[order]
    if not len(array) or np.isnan(array).any() or (names[1:] == names[:-1]).any():
        return None
    return Rows(names, array[order])


def _sample(row: dict[str, Any], value: float, spec: TaskSpec) -> Sample:
    arguments = [pair for pair in _list(row.get("arguments")) if isinstance(pair, list) and pair]
    contexts = [_text(pair[0]) for pair in arguments]
    answers = _list(row.get("filtered_resps")) or _list(row.get("resps"))
    choices: tuple[Choice, ...] = ()
    answer, prompt = "", contexts[0] if contexts else ""
    if spec.kind == "choice":
        prompt, texts = _choice_texts(contexts, [_text(pair[1]) if len(pair) > 1 else "" for pair in arguments])
        choices = _choices(texts, answers, _expected_choices(row, texts))
    else:
        answer = next((text for text in map(_first_text, answers) if text is not None), "")
    left_out = max(len(prompt) - MAX_PROMPT, 0)
    return Sample(
        doc_id=row["doc_id"],
        prompt=_shown(prompt[left_out:]),
        prompt_left_out=left_out,
        answer=_cut(answer, MAX_ANSWER),
        choices=choices,
        expected=() if any(choice.expected for choice in choices) else _expected(row),
        value=value,
    )


def _choice_texts(contexts: list[str], answers: list[str]) -> tuple[str, list[str]]:
    """What all choices have in common, and what tells them apart: the answer, or, as in WinoGrande, the prompt."""
    if len(set(answers)) > 1 or len(set(contexts)) < 2:
        return (contexts[0] if contexts else ""), answers
    first, last = min(contexts), max(contexts)  # between these all others sort
    length = next((at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return f"{first[:length]}…{answers[0]}", [context[length:] for context in contexts]


def _choices(texts: list[str], answers: list[Any], expected: set[int] | None) -> tuple[Choice, ...]:
    likelihoods = [_number(answer[0]) if isinstance(answer, list) and answer else math.nan for answer in answers]
    if not likelihoods or len(likelihoods) != len(texts) or any(map(math.isnan, likelihoods)):
        return ()
    probabilities = softmax(likelihoods)
    likeliest = int(np.argmax(likelihoods))
    return tuple(
        Choice(_cut(text.strip(), MAX_EXPECTED), float(probability), number == likeliest,
               None if expected is None else number in expected)
        for number, (text, probability) in enumerate(zip(texts, probabilities, strict=True))
    )[:MAX_CHOICES]  # fmt: skip


def _expected_choices(row: dict[str, Any], texts: list[str]) -> set[int] | None:
    """Which choices are right: the target is a number or a text; TruthfulQA MC2 has several right ones."""
    labels = _list(_mapping(_mapping(row.get("doc")).get("mc2_targets")).get("labels"))
    if labels and len(labels) == len(texts):
        return {number for number, label in enumerate(labels) if label == 1}
    target = row.get("target")
    if isinstance(target, str) and target.strip().isdecimal() and len(target) < 4:
        target = int(target)
    if type(target) is int:
        return {target} if 0 <= target < len(texts) else None
    found = {number for number, text in enumerate(texts) if isinstance(target, str) and text.strip() == target.strip()}
    return found or None


def _expected(row: dict[str, Any]) -> tuple[str, ...]:
    target, document = row.get("target"), _mapping(row.get("doc"))
    answers = target if isinstance(target, list) else [target]
    texts = [_text(answer) for answer in answers if isinstance(answer, str | int | float)]
    texts = [text for text in texts if text.strip()]
    if not texts:  # TruthfulQA's generations have many references and no target
        texts = [_text(answer) for answer in _list(document.get("correct_answers"))]
    return tuple(dict.fromkeys(_cut(text.strip(), MAX_EXPECTED) for text in texts[:MAX_EXPECTED_ANSWERS]))


def _first_text(answer: Any) -> str | None:
    while isinstance(answer, list) and answer:
        answer = answer[0]
    return answer if isinstance(answer, str) else None


def _text(value: Any) -> str:
    """A text as it is, anything else as JSON."""
    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _cut(text: str, length: int) -> str:
    """A text without what cannot be shown, and not too long."""
    shown = _shown(text[:length])
    return shown if len(text) <= length else f"{shown}… ({len(text) - length:,} characters more)"


# Control characters but newline and tab, and those that turn the direction of what stands around them.
_UNSHOWN = dict.fromkeys(
    (
        *(set(range(0x20)) - {0x09, 0x0A}),
        *range(0x7F, 0xA0),
        0x200E,
        0x200F,
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
    ),
    "�",
)


def _shown(text: str) -> str:
    return text.translate(_UNSHOWN)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _word(value: Any) -> str:
    return quoted_text(value, 100) if isinstance(value, str) else ""


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    pairs = list(_mapping(value).items())[:500]
    return tuple(
        (quoted_text(name, 100), quoted_text(f"{version:g}" if isinstance(version, int | float) else str(version), 100))
        for name, version in pairs
        if isinstance(version, str | int | float)
    )
