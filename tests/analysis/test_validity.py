"""The validity section against planted faults: each must fail its own check and no other."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from parcontrol.analysis.results import load_experiment_results
from parcontrol.analysis.validity import belonging, check_sweep, same_documents, why_incomparable
from parcontrol.runs import RunDirectory
from tests.analysis.sweeps import BACKBONE_LOSS, GAINS, TOKENS, write_revalidation, write_run, write_sweep

SEEDS = (1, 2, 3)


def checks_of(directory):
    (sweep,) = load_experiment_results(directory).sweeps
    return {check.key: check for check in check_sweep(sweep)}


def standing_against(directory):
    return {key: check.detail for key, check in checks_of(directory).items() if not check.stands}


@pytest.fixture
def good(tmp_path):
    """P = 1, 2, 4 with three seeds and nothing to be said against it."""
    return write_sweep(tmp_path / "sweep", seeds=SEEDS)


def test_a_sweep_without_a_fault_passes_every_check(good):
    assert {check.status for check in checks_of(good).values()} == {"passed"}


def replant(directory, name, P, seed, **changes):
    shutil.rmtree(directory / name)
    loss = BACKBONE_LOSS - GAINS[P] + 1e-4 * (seed % 3)
    write_run(directory / name, P, seed, **{"loss": loss, **changes})


FAULTS = {
    "unequal tokens": ({"tokens": TOKENS // 2}, "equal_tokens", f"{TOKENS:,} tokens in P1_seed1"),
    "another learning rate": (
        {"settings": {"training.learning_rate": 0.01}},
        "equal_configuration",
        "training.learning_rate: 0.003 in P1_seed1, P1_seed2, P1_seed3, P2_seed1, P2_seed3, P4_seed1, P4_seed2, "
        "P4_seed3 against 0.01 in P2_seed2",
    ),
    "other training data": ({"result": {"data_sha256": "e" * 64}}, "equal_data", "e" * 16 + " in P2_seed2"),
    "other validation text": (
        {"result": {"validation_sha256": "e" * 64}},
        "equal_validation",
        "e" * 16 + " in P2_seed2",
    ),
    "another backbone": ({"meta": {"model_revision": "7" * 40}}, "equal_backbone", "7" * 16),
    "another tokenizer": ({"meta": {"tokenizer_sha256": "8" * 64}}, "equal_backbone", "8" * 16),
    "another commit": (
        {"process": {"git": {"commit": "f" * 40, "dirty": False}}},
        "equal_code",
        "commit: cccccccccc in P1_seed1",
    ),
    "another precision": (
        {"process": {"compute_dtype": "bfloat16"}},
        "equal_code",
        "bfloat16 on float32 weights in P2_seed2",
    ),
    "another library": (
        {"process": {"versions": {"parcontrol": "0.1.0", "torch": "2.12.0", "transformers": "5.23.0"}}},
        "equal_code",
        "against 2.12.0 in P2_seed2",
    ),
    "another machine": ({"process": {"device": "cuda:0"}}, "equal_machine", "cuda:0 (planted)"),
    "another number of processes": ({"process": {"world_size": 4}}, "equal_machine", ", 4 processes in P2_seed2"),
    "steps in passes": (
        {"meta": {"streams_per_pass": 1}},
        "ordinary_steps",
        "1 of 2 streams per pass in P2_seed2: slower steps",
    ),
    "a collapsed stream": (
        {"weights": [0.949, 0.051]},
        "not_collapsed",
        "P2_seed2: stream 0 of 2 has 94.9% of the weight, where attn_smooth 0.1 allows at most 95.0%",
    ),
    "an unfinished run": ({"steps": 12}, "all_finished", "P2_seed2: unfinished, 12 of 20 steps"),
    "a loss that its documents do not add up to": (
        {"result": {"final_validation_loss": 2.381}},
        "sums_agree",
        "P2_seed2: final loss 2.381000 reported, 2.3812",
    ),
    "the result of another P": ({"result": {"P": 4}}, "sums_agree", "the result is of P = 4"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_in_one_run_fails_its_check(good, fault):
    changes, key, words = FAULTS[fault]
    replant(good, "P2_seed2", 2, 2, **changes)
    found = standing_against(good)
    # An unfinished run leaves one seed too few at its P, too.
    allowed = {key, "enough_seeds"} if fault == "an unfinished run" else {key}
    assert set(found) == allowed
    assert words in found[key]


def revalidate(sweep, but=()):
    """Measures the runs of a sweep again, on documents that put them 0.01 nats lower."""
    (found,) = load_experiment_results(sweep).sweeps
    for run in found.runs:
        if run.name not in but:
            write_revalidation(RunDirectory(run.path), run.outcome.final_validation_loss - 0.01)


def test_a_sweep_that_was_measured_again_is_compared_by_that(good):
    revalidate(good)
    assert standing_against(good) == {}
    assert checks_of(good)["equal_validation"].detail.startswith("120 documents, ")


def test_a_run_that_was_not_measured_again_with_the_others_is_left_out(good):
    revalidate(good, but=["P2_seed2"])
    assert set(standing_against(good)) == {"equal_validation"}
    (found,) = load_experiment_results(good).sweeps
    _, left_out = belonging(found.finished)
    assert {run.name: reason for run, reason in left_out.items()} == {"P2_seed2": "other validation documents"}


def test_runs_with_validation_sets_of_their_own_are_comparable_once_all_are_measured_on_the_same(good):
    longer = {"settings": {"data.validation_tokens": 40_000}, "result": {"validation_sha256": "f" * 64}}
    replant(good, "P2_seed2", 2, 2, **longer)
    assert set(standing_against(good)) == {"equal_validation", "equal_configuration"}
    revalidate(good)
    assert standing_against(good) == {}


def test_runs_that_were_measured_again_by_other_code_are_told_apart(good):
    revalidate(good, but=["P2_seed2"])
    process = RunDirectory(good / "P2_seed1").read_revalidation()["process"]
    other = process | {"git": {"commit": "f" * 40, "dirty": False}}
    write_revalidation(RunDirectory(good / "P2_seed2"), BACKBONE_LOSS - GAINS[2] - 0.01, process=other)
    found = standing_against(good)
    assert set(found) == {"equal_code"}
    assert "cccccccccc then ffffffffff in P2_seed2" in found["equal_code"]


def test_a_missing_run(good):
    shutil.rmtree(good / "P4_seed2")
    found = standing_against(good)
    assert found["complete"] == "no run at P = 4, seed 2"
    assert set(found) == {"complete", "enough_seeds"}


def test_a_run_that_never_started(good):
    (good / "P8_seed1").mkdir()
    assert standing_against(good) == {"all_finished": "P8_seed1: has not started: there is no configuration"}


def test_a_missing_baseline(tmp_path):
    write_sweep(tmp_path, streams=(2, 4), seeds=SEEDS)
    assert standing_against(tmp_path) == {"complete": "no run at P = 1, the baseline"}


def test_two_runs_for_one_place(good):
    write_run(good / "again", 2, 2, loss=2.3811)
    assert standing_against(good) == {"complete": "P2_seed2, again are all at P = 2, seed 2"}


def test_a_loss_that_rises(tmp_path):
    write_sweep(tmp_path, seeds=SEEDS, loss=lambda P, seed: {1: 2.40, 2: 2.41, 4: 2.39}[P])
    assert standing_against(tmp_path) == {"monotone": "from P = 1 to P = 2 it rises (2.4000 to 2.4100)"}


def test_a_loss_that_stays(tmp_path):
    write_sweep(tmp_path, seeds=SEEDS, loss=lambda P, seed: {1: 2.40, 2: 2.39, 4: 2.39}[P], document_noise=0.0)
    assert "from P = 2 to P = 4 it" in standing_against(tmp_path)["monotone"]


@pytest.mark.parametrize(("seeds", "words"), [((1,), "one seed: seed noise is unmeasured"), ((1, 2), "2 seeds")])
def test_too_few_seeds(tmp_path, seeds, words):
    write_sweep(tmp_path, seeds=seeds)
    found = standing_against(tmp_path)
    assert set(found) == {"enough_seeds"}
    assert words in found["enough_seeds"]


def test_one_seed_says_that_differences_have_no_error_bars_from_seeds(tmp_path):
    write_sweep(tmp_path)
    assert "differences between P have no error bars from seeds" in standing_against(tmp_path)["enough_seeds"]


def test_too_few_documents(tmp_path):
    write_sweep(tmp_path, seeds=SEEDS, documents=10)
    assert standing_against(tmp_path) == {
        "enough_documents": "10 documents; with fewer than 30 the bootstrap intervals are too narrow"
    }


def test_documents_of_other_lengths_under_the_same_hash(good):
    path = good / "P2_seed2" / "validation_documents.npz"
    with np.load(path) as arrays:
        content = dict(arrays)
    # The same totals, so that no other check can notice.
    content["tokens"][:2] = content["tokens"][1::-1]
    np.savez(path, **content)
    assert standing_against(good) == {"equal_validation": "the documents hold other numbers of tokens"}


def test_another_backbone_under_the_same_name(good):
    path = good / "P2_seed2" / "validation_documents.npz"
    with np.load(path) as arrays:
        content = dict(arrays)
    content["backbone_loss_sum"] *= 1.01
    np.savez(path, **content)
    changed = content["backbone_loss_sum"].sum() / content["tokens"].sum()
    run = good / "P2_seed2" / "result.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"backbone_validation_loss": changed}))
    found = standing_against(good)
    assert set(found) == {"equal_backbone"}
    assert "its validation loss differs by 2.5e-02 nats" in found["equal_backbone"]


def test_a_changed_working_tree_is_not_known_to_be_equal(tmp_path):
    write_sweep(tmp_path, seeds=SEEDS, process={"git": {"commit": "c" * 40, "dirty": True}})
    check = checks_of(tmp_path)["equal_code"]
    assert (check.status, "does not say what ran" in check.detail) == ("unknown", True)


def test_an_installed_package_without_a_checkout_passes(tmp_path):
    write_sweep(tmp_path, seeds=SEEDS, process={"git": None})
    assert checks_of(tmp_path)["equal_code"].status == "passed"


def test_a_resumed_run_with_another_library_is_told_apart(good):
    path = good / "P1_seed1" / "meta.json"
    meta = json.loads(path.read_text())
    second = dict(meta["processes"][0], versions={**meta["processes"][0]["versions"], "torch": "2.14.0"})
    path.write_text(json.dumps(meta | {"processes": [*meta["processes"], second]}))
    assert "torch: 2.13.0 then 2.14.0 in P1_seed1" in standing_against(good)["equal_code"]


def test_streams_without_statistics_are_not_known_to_be_healthy(good):
    (good / "P4_seed1" / "streams.jsonl").unlink()
    check = checks_of(good)["not_collapsed"]
    assert (check.status, check.detail) == ("unknown", "no stream statistics at the end of P4_seed1")


def test_streams_whose_records_stop_early_are_not_known_to_be_healthy(good):
    path = good / "P4_seed1" / "streams.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    assert checks_of(good)["not_collapsed"].status == "unknown"


@pytest.mark.parametrize(
    ("speeds", "status"),
    [
        ([50, 900, 910, 905, 890], "passed"),  # the first steps of a compiled run
        ([50, 60, 900, 910, 905], "failed"),
        ([47, 120, 208, 60, 50], "failed"),
        ([880, 900, 910, 905, 890], "passed"),
        ([900, 900, 900, 900], "unknown"),
    ],
)
def test_a_speed_that_varies_within_a_run(good, speeds, status):
    path = good / "P4_seed1" / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    timed = [record for record in records if "tokens_per_second" in record]
    untimed = [record for record in records if "tokens_per_second" not in record]
    timed = [timed[0] | {"step": step, "tokens_per_second": float(speed)} for step, speed in enumerate(speeds, 1)]
    path.write_text("".join(json.dumps(record) + "\n" for record in timed + untimed))
    assert checks_of(good)["steady_speed"].status == status


def test_a_recovered_collapse_is_noted(good):
    path = good / "P4_seed1" / "streams.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[0]["cosine_similarity"] = [[1.0] * 4] * 4
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    check = checks_of(good)["not_collapsed"]
    assert check.status == "passed"
    assert check.detail.endswith("P4_seed1 recovered from a collapse during training")


def test_with_one_run_nothing_can_be_unequal(tmp_path):
    write_run(tmp_path / "P1", 1)
    assert set(standing_against(tmp_path)) == {"enough_seeds"}
    assert checks_of(tmp_path)["monotone"].status == "not applicable"
    assert checks_of(tmp_path)["not_collapsed"].status == "not applicable"


def test_with_no_finished_run_only_that_is_said(tmp_path):
    write_run(tmp_path / "P1", 1, steps=5)
    assert set(standing_against(tmp_path)) == {"all_finished"}


def test_runs_are_comparable_when_nothing_but_P_and_seed_differs(good):
    (sweep,) = load_experiment_results(good).sweeps
    assert why_incomparable(sweep.runs[0], sweep.runs[-1]) is None
    assert same_documents(sweep.runs[0], sweep.runs[-1])


def test_why_runs_cannot_be_compared(good):
    replant(
        good,
        "P2_seed2",
        2,
        2,
        tokens=5000,
        result={"data_sha256": "e" * 64, "validation_sha256": "e" * 64},
        settings={"training.learning_rate": 0.01, "training.mode": "full", "logging.level": "DEBUG"},
    )
    (sweep,) = load_experiment_results(good).sweeps
    other = next(run for run in sweep.runs if run.name == "P2_seed2")
    assert why_incomparable(sweep.runs[0], other) == (
        "10,240 against 5,000 tokens; other training data; other validation documents; "
        "other training.mode, training.learning_rate"
    )
