"""One published result for each model, commit, precision, weight type, chat template and task."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parcontrol.leaderboard.evaluate.model_spec import Conditions
from parcontrol.leaderboard.evaluate.spool import read_samples
from parcontrol.leaderboard.publish import publish, published_tasks, summary
from parcontrol.leaderboard.store import LocalStore, Store, StoreError, update
from tests.leaderboard.evaluation import MODEL, finished
from tests.leaderboard.stores import hub_store, online_hub


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return LocalStore(tmp_path / "results")


def documents(store: Store) -> list[dict[str, Any]]:
    paths = sorted(path for path in store.snapshot().files if path.endswith(".json"))
    return [json.loads(store.read(path)) for path in paths]


def test_several_tasks_are_one_file_of_the_harness_and_one_commit(store: Store, tmp_path: Path) -> None:
    before = store.snapshot().revision
    tasks = [finished(tmp_path, "nq_open"), finished(tmp_path, "memo_trap", value=0.25)]
    published = publish(store, tasks, failed={"xsum": "no dataset"})
    snapshot = store.snapshot()
    assert store.changes(before).revision == snapshot.revision != before
    (path,) = (path for path in snapshot.files if path.endswith(".json"))
    assert re.fullmatch(r"org/model/results_\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{6}\.json", path)
    moment = path.removeprefix("org/model/results_").removesuffix(".json")
    samples = {f"org/model/samples_{task}_{moment}.jsonl.zst" for task in ("nq_open", "memo_trap")}
    assert set(snapshot.files) == samples | {path} == set(published.paths)
    (document,) = documents(store)
    assert (
        set(document["results"]) == set(document["versions"]) == set(document["n-samples"]) == {"nq_open", "memo_trap"}
    )
    assert document["results"]["memo_trap"]["acc,none"] == 0.25
    assert document["total_evaluation_time_seconds"] == "3.0"
    block = document["parcontrol"]
    assert block["failed"] == {"xsum": "no dataset"}
    assert block["duration_s"] == {"nq_open": 1.5, "memo_trap": 1.5}
    assert "task" not in block
    (tmp_path / "samples").write_bytes(store.read(sorted(samples)[0]))
    assert [row["resps"] for row in read_samples(tmp_path / "samples")] == [[["yes"]], [["no"]]]


def test_what_is_published_is_not_published_again(store: Store, tmp_path: Path) -> None:
    publish(store, [finished(tmp_path, "nq_open", value=0.1)])
    again = publish(store, [finished(tmp_path, "nq_open", value=0.9), finished(tmp_path, "memo_trap")])
    assert (again.tasks, again.taken) == (("memo_trap",), ("nq_open",))
    values = [document["results"].get("nq_open", {}).get("exact_match,none") for document in documents(store)]
    assert values == [0.1, None]


@pytest.mark.parametrize(
    "change", [{"sha": "b" * 40}, {"precision": "float16"}, {"weight_type": "Adapter"}, {"chat_template": True}]
)
def test_another_commit_precision_weight_type_or_template_is_another_result(
    change: dict[str, Any], store: Store, tmp_path: Path
) -> None:
    publish(store, [finished(tmp_path, "nq_open")])
    assert publish(store, [finished(tmp_path, "nq_open", replace(MODEL, **change))]).tasks == ("nq_open",)
    assert len(documents(store)) == 2


def test_by_force_it_is_published_again(store: Store, tmp_path: Path) -> None:
    publish(store, [finished(tmp_path, "nq_open", value=0.1)])
    publish(store, [finished(tmp_path, "nq_open", value=0.2, forced=True)])
    assert [document["results"]["nq_open"]["exact_match,none"] for document in documents(store)] == [0.1, 0.2]


@pytest.mark.parametrize(
    ("there", "wanted", "will_do"),
    [
        ({"limit": None}, Conditions(), True),
        ({"limit": None}, Conditions(limit=5), True),
        ({"limit": 5}, Conditions(limit=5), True),
        ({"limit": 5}, Conditions(limit=6), False),
        ({"limit": 5}, Conditions(), False),
        ({"seed": 7}, Conditions(seed=8), True),
        ({"sample_set": True}, Conditions(), False),
        ({}, Conditions(sample_set=True), False),
        ({"instruction_sha256": "1" * 64}, Conditions(), False),
        ({"backend": "dummy"}, Conditions(), False),
        ({}, Conditions(backend="dummy"), False),
        ({"backend": "dummy"}, Conditions(backend="dummy"), True),
        ({"version": 99.0}, Conditions(), False),
    ],
)
def test_which_results_will_do(
    there: dict[str, Any], wanted: Conditions, will_do: bool, store: Store, tmp_path: Path
) -> None:
    publish(store, [finished(tmp_path, "nq_open", **there)])
    assert set(published_tasks(store, MODEL, wanted)) == ({"nq_open"} if will_do else set())


def test_tasks_of_different_conditions_are_different_files(store: Store, tmp_path: Path) -> None:
    publish(store, [finished(tmp_path, "nq_open", limit=5), finished(tmp_path, "memo_trap")])
    assert [(set(one["results"]), one["parcontrol"]["limit"]) for one in documents(store)] == [
        ({"nq_open"}, 5),
        ({"memo_trap"}, None),
    ]


def test_files_of_others_are_no_results_of_ours(store: Store, tmp_path: Path) -> None:
    foreign = {
        "org/model/results_broken.json": b"{",
        "org/model/results_list.json": b"[]",
        "org/model/results_harness.json": json.dumps({"results": {"nq_open": {}}, "versions": {"nq_open": 1}}).encode(),
    }
    update(store, lambda snapshot: foreign, "foreign")
    assert published_tasks(store, MODEL, Conditions()) == {}


@pytest.mark.parametrize(
    "damage",
    [
        {"parcontrol": {"limit": "abc"}},
        {"parcontrol": {"limit": [1]}},
        {"parcontrol": {"sha": ["x"]}},
        {"parcontrol": None},
        {"versions": ["x"]},
        {"versions": None},
        {"versions": {"nq_open": [1]}},
        {"results": {"nq_open": 3}},
    ],
)
def test_a_broken_file_is_no_result(
    damage: dict[str, Any], store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(store, [finished(tmp_path, "nq_open")])
    (document,) = documents(store)
    for key, value in damage.items():
        document[key] = document[key] | value if isinstance(value, dict) else value
    (path,) = (path for path in store.snapshot().files if path.endswith(".json"))
    update(store, lambda snapshot: {path: json.dumps(document).encode()}, "damage")
    for conditions in (Conditions(), Conditions(limit=3)):
        assert published_tasks(store, MODEL, conditions) == {}
    assert damage == {"parcontrol": None} or f"{path} is set aside" in caplog.text
    assert publish(store, [finished(tmp_path, "nq_open")]).tasks == ("nq_open",)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # between huggingface_hub and httpx
@pytest.mark.parametrize("place", ["local", "hub"])
def test_of_workers_that_publish_at_once_one_wins(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = 6
    with online_hub(tmp_path / "cache", monkeypatch) as hub:
        hub.create("datasets", "alice/requests")
        stores: list[Store] = [
            hub_store(hub) if place == "hub" else LocalStore(tmp_path / "results") for _ in range(workers)
        ]
        barrier, outcomes = threading.Barrier(workers), []

        def work(number: int) -> None:
            task = finished(tmp_path / str(number), "nq_open", value=number / 10)
            barrier.wait()
            outcomes.append(publish(stores[number], [task]))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(len(outcome.tasks) for outcome in outcomes) == [0] * (workers - 1) + [1]
        assert sorted(len(outcome.taken) for outcome in outcomes) == [0] + [1] * (workers - 1)
        assert len(documents(stores[0])) == 1


def test_a_store_that_fails_gets_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(changes: Mapping[str, bytes | None], message: str, parent: str) -> str:
        raise StoreError("no space left")

    monkeypatch.setattr(store, "commit", fail)
    with pytest.raises(StoreError):
        publish(store, [finished(tmp_path, "nq_open")])
    assert not store.snapshot().files


def test_the_summary_shows_scaled_values(tmp_path: Path) -> None:
    assert summary(finished(tmp_path, "memo_trap", value=0.25)) == ["MemoTrap/Acc: 25.00 (2 of 4 rows)"]
