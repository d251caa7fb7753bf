"""Stored rows: what is shown of them, what they may do to the process that reads them, and what is kept."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import zstandard

from parcontrol.leaderboard.app.model import samples as module
from parcontrol.leaderboard.app.model.samples import (
    SampleReader,
    SamplesError,
    StillReadingError,
    read_origin,
    read_task,
    samples_path,
)
from parcontrol.leaderboard.registry import registry
from parcontrol.leaderboard.scoring.published import _samples_path
from parcontrol.leaderboard.store import LocalStore, StoreError, update
from tests.leaderboard.result_documents import harness, ours

SPECS = {spec.name: spec for spec in registry()}
NQ = SPECS["nq_open"]


def packed(rows: list[Any]) -> bytes:
    return zstandard.ZstdCompressor().compress(b"".join(orjson.dumps(row) + b"\n" for row in rows))


def generated(number: int, value: Any, metric: str = "exact_match", **fields: Any) -> dict[str, Any]:
    return {
        "doc_id": number,
        "doc_hash": f"{number:064x}",
        "filter": "none",
        "arguments": [[f"Q: {number}?\nA:", {"until": ["\n"]}]],
        "filtered_resps": [f"answer {number}"],
        "target": [f"target {number}", "another"],
        metric: value,
        **fields,
    }


def chosen(likelihoods: list[float], target: Any, texts: list[str] | None = None, **fields: Any) -> dict[str, Any]:
    texts = texts or [f" choice {number}" for number in range(len(likelihoods))]
    return {
        "doc_id": 7,
        "doc_hash": "ab",
        "arguments": [["Question\nAnswer:", text] for text in texts],
        "filtered_resps": [[likelihood, False] for likelihood in likelihoods],
        "target": target,
        "acc": 1.0,
        **fields,
    }


def test_right_and_wrong_rows_are_the_first_of_each() -> None:
    values = [0, 1, 1, 0, 1, 1, 1, 1, 0, 1]
    found = read_task(packed([generated(number, float(value)) for number, value in enumerate(values)]), NQ)
    assert found.binary
    assert found.count == 10
    assert [sample.doc_id for sample in found.best] == [1, 2, 4, 5, 6]
    assert [sample.doc_id for sample in found.worst] == [0, 3, 8]
    assert found.best[0].prompt == "Q: 1?\nA:"
    assert found.best[0].answer == "answer 1"
    assert found.best[0].expected == ("target 1", "another")


def test_graded_rows_are_the_extremes_and_no_row_is_both() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(9)
    rows = [generated(number, float(value), "rougeL") for number, value in enumerate(values)]
    found = read_task(packed(rows), SPECS["xsum"])
    order = np.argsort(-values).tolist()
    assert not found.binary
    assert found.metric == "rougeL"
    assert [sample.doc_id for sample in found.best] == order[:5]
    assert [sample.doc_id for sample in found.worst] == order[:4:-1]
    assert sorted(found.rows["rougeL"].values) == sorted(values)


def test_all_rows_right() -> None:
    found = read_task(packed([generated(number, 1.0) for number in range(3)]), NQ)
    assert len(found.best) == 3
    assert found.worst == ()


def test_choices_have_the_probabilities_of_their_likelihoods() -> None:
    likelihoods = [-3.0, -1.0, -2.0]
    (sample,) = read_task(packed([chosen(likelihoods, 2)]), SPECS["truefalse"]).best
    total = sum(map(math.exp, likelihoods))
    assert [choice.probability for choice in sample.choices] == pytest.approx(
        [math.exp(x) / total for x in likelihoods]
    )
    assert [choice.chosen for choice in sample.choices] == [False, True, False]
    assert [choice.expected for choice in sample.choices] == [False, False, True]
    assert [choice.text for choice in sample.choices] == ["choice 0", "choice 1", "choice 2"]
    assert sample.expected == ()


@pytest.mark.parametrize(
    ("target", "doc", "expected"),
    [
        ("choice 1", {}, [False, True, False]),
        ("1", {}, [False, True, False]),
        (0, {"mc2_targets": {"labels": [0, 1, 1]}}, [False, True, True]),
        (9, {}, [None, None, None]),
        (None, {}, [None, None, None]),
    ],
)
def test_the_expected_choice(target: Any, doc: dict[str, Any], expected: list[bool | None]) -> None:
    (sample,) = read_task(packed([chosen([-1.0, -2.0, -3.0], target, doc=doc)]), SPECS["truthfulqa_mc2"]).best
    assert [choice.expected for choice in sample.choices] == expected


def test_choices_in_the_prompt_are_told_apart_there() -> None:
    """WinoGrande asks for the likelihood of one end after two beginnings."""
    row = chosen([-1.0, -2.0], 0)
    row["arguments"] = [
        ["The cup did not fit as the cup", " was big."],
        ["The cup did not fit as the bag", " was big."],
    ]
    (sample,) = read_task(packed([row]), SPECS["winogrande"]).best
    assert [choice.text for choice in sample.choices] == ["cup", "bag"]
    assert sample.prompt == "The cup did not fit as the … was big."


def test_long_texts_are_cut_and_say_so() -> None:
    row = generated(0, 1.0, arguments=[["x" * 30_000 + "end", {}]], filtered_resps=["y" * 5_000], target="z" * 5_000)
    (sample,) = read_task(packed([row]), NQ).best
    assert len(sample.prompt) == module.MAX_PROMPT
    assert sample.prompt.endswith("end")
    assert sample.prompt_left_out == 30_003 - module.MAX_PROMPT
    assert sample.answer == "y" * module.MAX_ANSWER + "… (3,000 characters more)"
    assert len(sample.expected[0]) < 500


def test_control_and_direction_signs_are_not_shown() -> None:
    (sample,) = read_task(packed([generated(0, 1.0, filtered_resps=["a\x00b\u202ec\x1b[31m\nd\u3000e"])]), NQ).best
    assert sample.answer == "a�b�c�[31m\nd\u3000e"


@pytest.mark.parametrize("value", [None, "1", [1.0], {"a": 1}])
def test_metrics_that_are_no_number_have_no_rows(value: Any) -> None:
    found = read_task(packed([generated(0, value), generated(1, 1.0)]), NQ)
    assert found.rows == {}
    assert (found.best, found.worst, found.metric) == ((), (), "")


def test_rows_that_are_there_twice_cannot_be_matched() -> None:
    assert read_task(packed([generated(0, 1.0), generated(0, 0.0)]), NQ).rows == {}


def test_rows_of_another_filter_do_not_count() -> None:
    found = read_task(packed([generated(0, 1.0), generated(0, 0.0, filter="strict")]), NQ)
    assert found.rows["exact_match"].values.tolist() == [1.0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no zstd", "cannot be decompressed"),
        (packed([]), "empty"),
        (packed([[1]]), "row 1 is no row"),
        (packed([generated(0, 1.0), {"doc_id": "1", "doc_hash": ""}]), "row 2 is no row"),
        (packed([generated(True, 1.0)]), "row 1 is no row"),
        (packed([generated(0, 1.0, filter=[])]), "filter"),
        (zstandard.ZstdCompressor().compress(b'{"a"\n'), "row 1 is no JSON"),
        (zstandard.ZstdCompressor().compress(b'{"doc_id":1,"doc_hash":"a"}'), "cut off"),
        (zstandard.ZstdCompressor().compress(b"[" * 100_000 + b"\n"), "no JSON"),
    ],
)
def test_broken_files(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_task(content, NQ)


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.95])
def test_files_that_end_too_early(cut: float) -> None:
    rng = np.random.default_rng(0)
    content = packed([generated(number, 1.0, doc={"noise": rng.bytes(300).hex()}) for number in range(1000)])
    with pytest.raises(ValueError, match=r"cut off|empty|decompressed"):
        read_task(content[: int(len(content) * cut)], NQ)


def test_files_that_grow_without_end_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DECOMPRESSED_BYTES", 2**22)
    content = zstandard.ZstdCompressor().compress(b" " * 2**23)
    assert len(content) < 2000
    with pytest.raises(ValueError, match="more than 4 MiB"):
        read_task(content, NQ)


def test_too_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 3)
    with pytest.raises(ValueError, match="more than 3 rows"):
        read_task(packed([generated(number, 1.0) for number in range(4)]), NQ)


@pytest.mark.parametrize("path", ["org/m/results_2026-01-01T00-00-00.json", "results_x.json"])
def test_the_path_is_that_of_who_writes_the_rows(path: str) -> None:
    assert samples_path(path, "nq_open") == _samples_path(path, "nq_open")


# --- origins ---


def test_origin_of_our_files() -> None:
    document = ours({"nq_open": {}}, packages={"torch": "2.13", "odd": None}, limit=20, seed=7, sample_set=True)
    origin = read_origin(orjson.dumps(document))
    assert origin.ours
    assert origin.harness == "0.4.13"
    assert origin.packages == (("torch", "2.13"),)
    assert origin.versions == (("nq_open", "1"),)
    assert (origin.seed, origin.limit, origin.sample_set, origin.backend) == (7, 20, True, "hf")


def test_origin_of_other_files_and_of_nonsense() -> None:
    assert not read_origin(orjson.dumps(harness({"nq_open": {}}))).ours
    odd = {"parcontrol": {"seed": "x", "limit": [], "packages": [1], "backend": 3}, "versions": 4, "results": "r"}
    origin = read_origin(orjson.dumps(odd))
    assert (origin.seed, origin.limit, origin.packages, origin.backend, origin.tasks) == (None, None, (), "hf", ())
    with pytest.raises(ValueError, match="no JSON"):
        read_origin(b"{")


# --- the reader ---

RESULT = "org/m/results_1.json"
ROWS = samples_path(RESULT, "nq_open")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path)
    files: dict[str, bytes | None] = {RESULT: b"{}", ROWS: packed([generated(0, 1.0), generated(1, 0.0)])}
    update(store, lambda snapshot: files, "rows")
    return store


class Counting:
    """A store that counts what is read from it, and can be down or slow."""

    def __init__(self, store: LocalStore) -> None:
        self.store = store
        self.reads: list[str] = []
        self.snapshots = 0
        self.down = False
        self.go = threading.Event()
        self.go.set()

    def snapshot(self) -> Any:
        self.snapshots += 1
        self._be_there()
        return self.store.snapshot()

    def read(self, path: str, *more: Any) -> bytes:
        self.reads.append(path)
        self._be_there()
        return self.store.read(path, *more)

    def _be_there(self) -> None:
        self.go.wait(30)
        if self.down:
            raise StoreError("no route to host.")


@pytest.fixture
def counting(store: LocalStore) -> Counting:
    return Counting(store)


@pytest.fixture
def reader(counting: Counting) -> SampleReader:
    return SampleReader(counting)  # type: ignore[arg-type]


def test_a_file_is_read_once(reader: SampleReader, counting: Counting) -> None:
    snapshot = reader.snapshot("")
    assert reader.samples(RESULT, NQ, snapshot) is reader.samples(RESULT, NQ, snapshot)
    assert counting.reads == [ROWS]


def test_changed_rows_are_read_again(reader: SampleReader, counting: Counting) -> None:
    assert reader.samples(RESULT, NQ, reader.snapshot("")).count == 2
    update(counting.store, lambda snapshot: {ROWS: packed([generated(0, 1.0)])}, "fewer")
    assert reader.samples(RESULT, NQ, reader.snapshot("newer")).count == 1


def test_the_store_is_asked_only_for_what_the_board_has_and_we_have_not(
    reader: SampleReader, counting: Counting
) -> None:
    revision = reader.snapshot("").revision
    reader.snapshot(revision)
    assert counting.snapshots == 1
    reader.snapshot("another")
    assert counting.snapshots == 2


def test_what_is_not_stored(reader: SampleReader) -> None:
    with pytest.raises(SamplesError, match=r"^The run that gave this result stored no rows of popqa\.$"):
        reader.samples(RESULT, SPECS["popqa"], reader.snapshot(""))
    with pytest.raises(SamplesError, match="no longer in the store"):
        reader.origin("org/gone/results_1.json", reader.snapshot(""))


def test_broken_rows_are_read_once_and_told_each_time(reader: SampleReader, counting: Counting) -> None:
    update(counting.store, lambda snapshot: {ROWS: b"junk"}, "broken")
    for _ in range(2):
        with pytest.raises(SamplesError, match=f"^The file {ROWS} is broken: it cannot be decompressed"):
            reader.samples(RESULT, NQ, reader.snapshot(""))
    assert counting.reads == [ROWS]


def test_a_file_that_is_too_large(reader: SampleReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_COMPRESSED_BYTES", 10)
    with pytest.raises(SamplesError, match="larger than what is read here"):
        reader.samples(RESULT, NQ, reader.snapshot(""))


def test_store_down_and_up_again(reader: SampleReader, counting: Counting) -> None:
    counting.down = True
    with pytest.raises(SamplesError, match=r"^The store cannot be read just now: no route to host\.$"):
        reader.snapshot("")
    counting.down = False
    snapshot = reader.snapshot("")
    counting.down = True
    with pytest.raises(SamplesError, match=r"cannot be read just now: no route to host\.$"):
        reader.samples(RESULT, NQ, snapshot)
    assert reader.snapshot("newer") is snapshot  # the last good one
    counting.down = False
    assert reader.samples(RESULT, NQ, snapshot).count == 2
    counting.down = True
    assert reader.samples(RESULT, NQ, snapshot).count == 2  # kept


def test_nobody_waits_for_a_store_that_hangs(reader: SampleReader, counting: Counting) -> None:
    snapshot = reader.snapshot("")
    counting.go.clear()
    for _ in range(3):
        with pytest.raises(StillReadingError):
            reader.samples(RESULT, NQ, snapshot, seconds=0)
    assert reader.snapshot("newer", seconds=0) is snapshot
    counting.go.set()
    assert reader.samples(RESULT, NQ, snapshot, seconds=30).count == 2
    assert counting.reads == [ROWS]


def test_few_wait_at_once(reader: SampleReader, counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 1)
    snapshot = reader.snapshot("")
    counting.go.clear()
    with pytest.raises(StillReadingError, match="still being read"):
        reader.samples(RESULT, NQ, snapshot, seconds=0)
    with pytest.raises(StillReadingError, match="Too much"):
        reader.origin(RESULT, snapshot, seconds=0)
    counting.go.set()
    reader.samples(RESULT, NQ, snapshot, seconds=30)
    assert reader.origin(RESULT, snapshot).ours is False


def test_what_was_used_last_is_kept_within_bounds(store: LocalStore) -> None:
    files: dict[str, bytes | None] = {
        samples_path(f"org/m/results_{number}.json", "nq_open"): packed([generated(number, 1.0)]) for number in range(9)
    }
    update(store, lambda snapshot: files, "more rows")
    counting = Counting(store)
    probe = SampleReader(store)
    size = probe.samples("org/m/results_0.json", NQ, probe.snapshot("")).bytes_held
    reader = SampleReader(counting, cache_bytes=int(3.5 * size))  # type: ignore[arg-type]
    snapshot = reader.snapshot("")

    def read(number: int) -> bool:
        """Whether it had to be read from the store."""
        before = len(counting.reads)
        reader.samples(f"org/m/results_{number}.json", NQ, snapshot)
        return len(counting.reads) > before

    assert [read(number) for number in (0, 1, 2)] == [True] * 3
    assert not read(0)
    assert read(3)  # takes the place of 1, which was used longest ago
    assert not read(0)
    assert read(1)
    for number in range(9):
        read(number)
    assert reader._held <= 3.5 * size


def test_memory_grows_with_rows_by_a_few_bytes_each() -> None:
    few, many = (
        read_task(packed([generated(number, 1.0, doc={"text": "x" * 1000}) for number in range(count)]), NQ).bytes_held
        for count in (1000, 5000)
    )
    assert many - few == 4000 * 16


def test_every_task_that_a_run_stores_can_be_shown() -> None:
    """One metric at least of every task is looked for under the name that the harness gives it."""
    for spec in registry():
        column = spec.columns[0]
        row: dict[str, Any] = chosen([-1.0, -2.0], 0) if spec.kind == "choice" else generated(0, 1.0)
        row |= {column.metric: 1.0, "filter": column.filter}
        assert read_task(packed([row]), spec).metric == column.metric, spec.name
