"""Reading sweeps: what is there, what is not, and what is broken."""

from __future__ import annotations

import json

import numpy as np
import pytest

from parcontrol.analysis.results import load_experiment_results
from tests.analysis.sweeps import STEPS, TOKENS, write_revalidation, write_run, write_sweep


def test_a_sweep_is_read_whole_and_in_order(tmp_path):
    write_sweep(tmp_path / "multi", streams=(4, 1, 2), seeds=(2, 1))
    (sweep,) = load_experiment_results(tmp_path / "multi").sweeps
    assert sweep.name == "multi"
    assert [(run.name, run.P, run.seed) for run in sweep.runs] == [
        (f"P{P}_seed{seed}", P, seed) for P in (1, 2, 4) for seed in (1, 2)
    ]
    assert all(run.finished for run in sweep.runs)
    assert sweep.streams == [1, 2, 4]
    run = sweep.at(4)[0]
    assert run.outcome.tokens == TOKENS
    assert run.documents.tokens.sum() == run.outcome.validation_predicted_tokens
    assert run.series("validation_loss")[0] == [step * TOKENS // 5 for step in range(6)]
    assert len(run.series("mean_weight", streams=True)[1][-1]) == 4


def test_a_single_run_directory_is_a_sweep_of_one(tmp_path):
    write_run(tmp_path / "P2_experiment", 2)
    (sweep,) = load_experiment_results(tmp_path / "P2_experiment").sweeps
    assert (sweep.name, [run.P for run in sweep.runs]) == ("P2_experiment", [2])


def test_a_directory_of_sweeps_gives_each_of_them(tmp_path):
    write_sweep(tmp_path / "small", streams=(1, 2))
    write_sweep(tmp_path / "large", streams=(1,))
    write_run(tmp_path / "P8_experiment", 8)
    (tmp_path / "logs").mkdir()
    sweeps = load_experiment_results(tmp_path).sweeps
    assert [(sweep.path.name, len(sweep.runs)) for sweep in sweeps] == [(tmp_path.name, 1), ("large", 1), ("small", 2)]


def test_several_directories_of_one_name_get_names_that_tell_them_apart(tmp_path):
    for place in ("a", "b"):
        write_sweep(tmp_path / place / "sweep", streams=(1,))
    results = load_experiment_results(tmp_path / "a" / "sweep", tmp_path / "b" / "sweep")
    assert [sweep.name for sweep in results.sweeps] == ["a/sweep", "b/sweep"]


def test_what_was_measured_again_takes_the_place_of_the_losses_alone(tmp_path):
    write_revalidation(write_run(tmp_path / "P2", 2, loss=2.5), loss=2.25, documents=120)
    ((run,),) = [sweep.runs for sweep in load_experiment_results(tmp_path).sweeps]
    assert run.result.final_validation_loss == pytest.approx(2.5)
    assert run.outcome.final_validation_loss == pytest.approx(2.25)
    assert len(run.documents.tokens) == 120
    assert run.documents.tokens.sum() == run.outcome.validation_predicted_tokens
    losses = {key for key in type(run.result).model_fields if "validation" in key}
    assert run.outcome.model_dump(exclude=losses) == run.result.model_dump(exclude=losses)


def without_documents(directory):
    (directory / "documents.npz").unlink()


def without_record(directory):
    (directory / "result.json").unlink()


@pytest.mark.parametrize(
    ("changes", "damage", "problem"),
    [
        ({"run_id": "another"}, None, "it is of run another, but this is run 0123456789ab"),
        ({"final_validation_loss": None}, None, "its record cannot be used: final_validation_loss is None"),
        ({}, without_documents, "its losses by document are missing: no file documents.npz"),
        ({}, without_record, "result.json"),
    ],
)
def test_a_revalidation_that_cannot_be_used_breaks_the_run_and_says_what_to_delete(tmp_path, changes, damage, problem):
    run = write_run(tmp_path / "P2", 2)
    write_revalidation(run, loss=2.25, **changes)
    directory = run.path / "revalidation"
    if damage:
        damage(directory)
    ((broken,),) = [sweep.broken for sweep in load_experiment_results(tmp_path).sweeps]
    assert broken.problem.startswith("its revalidation cannot be used: ")
    assert problem in broken.problem
    assert broken.problem.endswith(f"; delete {directory} to go on without")


def test_an_unfinished_run_is_there_and_marked(tmp_path):
    write_sweep(tmp_path, streams=(1,))
    write_run(tmp_path / "P2", 2, steps=12)
    (sweep,) = load_experiment_results(tmp_path).sweeps
    (run,) = sweep.unfinished
    assert (run.name, run.status, run.result, run.documents) == ("P2", f"unfinished, 12 of {STEPS} steps", None, None)
    assert sweep.streams == [1]


def test_a_run_that_has_not_started_is_there_and_marked(tmp_path):
    write_sweep(tmp_path, streams=(1,))
    (tmp_path / "P4_seed3").mkdir()
    (sweep,) = load_experiment_results(tmp_path).sweeps
    assert [(run.name, run.problem) for run in sweep.broken] == [
        ("P4_seed3", "has not started: there is no configuration")
    ]


def rewrite(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit(name, change):
    """Damages the last record of a file."""

    def damage(run):
        *lines, last = (run / name).read_text().splitlines()
        record = json.loads(last)
        change(record)
        (run / name).write_text("\n".join([*lines, json.dumps(record)]) + "\n")

    return damage


def halve(name):
    def damage(run):
        lines = (run / name).read_text().splitlines(keepends=True)
        (run / name).write_text("".join(lines[: len(lines) // 2]))

    return damage


FAULTS = {
    "empty config.yaml": (lambda run: (run / "config.yaml").write_text(""), "config.yaml: is empty"),
    "null loss": (edit("metrics.jsonl", lambda r: r.update(validation_loss=None)), "validation_loss is None"),
    "loss in words": (edit("metrics.jsonl", lambda r: r.update(loss="2.3")), "step 20 cannot be used: loss is '2.3'"),
    "loss that is NaN": (edit("metrics.jsonl", lambda r: r.update(loss=float("nan"))), "loss is nan"),
    "no speed": (edit("metrics.jsonl", lambda r: r.update(tokens_per_second=0.0)), "tokens_per_second is 0.0"),
    "one weight too few": (
        edit("streams.jsonl", lambda r: r["mean_weight"].pop()),
        "the streams record of step 20 is of 1 streams, not of 2",
    ),
    "weight that is NaN": (
        edit("streams.jsonl", lambda r: r.update(mean_weight=[float("nan"), 0.5])),
        "mean_weight.0 is nan",
    ),
    "shard without bytes": (
        edit("provenance.jsonl", lambda r: r["shards"][0].pop("byte_end")),
        "shards.0.byte_end is missing",
    ),
    "result without speed": (
        lambda run: rewrite(run / "result.json", lambda result: result.update(tokens_per_second=0.0)),
        "tokens_per_second is 0.0",
    ),
    "result without memory": (
        lambda run: rewrite(run / "result.json", lambda result: result.update(peak_memory_bytes=0)),
        "peak_memory_bytes is 0",
    ),
    "half the metrics": (halve("metrics.jsonl"), "its metrics end at step 8, its result is of step 20"),
    "no metrics": (lambda run: (run / "metrics.jsonl").unlink(), "its metrics end at step 0"),
    "half the provenance": (
        halve("provenance.jsonl"),
        "its provenance ends at 4,096 tokens, its result is of 10,240",
    ),
    "no provenance": (lambda run: (run / "provenance.jsonl").unlink(), "its provenance ends at 0 tokens"),
    "config.yaml": (lambda run: (run / "config.yaml").write_text("parscale: {Q: 3}"), "unknown key 'parscale.Q'"),
    "no meta": (lambda run: (run / "meta.json").unlink(), "cannot be read"),
    "torn result": (lambda run: (run / "result.json").write_text('{"P": 1'), "no valid JSON"),
    "missing number": (
        lambda run: rewrite(run / "result.json", lambda result: result.pop("tokens")),
        "its result cannot be used: tokens is missing",
    ),
    "text for a number": (
        lambda run: rewrite(run / "result.json", lambda result: result.update(final_validation_loss="2.3")),
        "final_validation_loss is '2.3'",
    ),
    "NaN": (
        lambda run: rewrite(run / "result.json", lambda result: result.update(final_validation_loss=float("nan"))),
        "final_validation_loss is nan",
    ),
    "no process": (
        lambda run: rewrite(run / "meta.json", lambda meta: meta.update(processes=[])),
        "its meta data cannot be used: processes is []",
    ),
    "broken record": (lambda run: (run / "metrics.jsonl").write_text("{}\n"), "is no record with a step"),
    "no tokens": (
        lambda run: (run / "streams.jsonl").write_text('{"step": 5}\n'),
        "the streams record of step 5 cannot be used: tokens is missing",
    ),
    "no weights": (
        lambda run: (run / "streams.jsonl").write_text('{"step": 5, "tokens": 9}\n'),
        "the streams record of step 5 cannot be used: mean_weight is missing; argmax_share is missing",
    ),
    "no hash": (
        lambda run: (run / "provenance.jsonl").write_text('{"step": 5, "tokens": 9, "shards": []}\n'),
        "the provenance record of step 5 cannot be used: sha256 is missing",
    ),
    "no documents": (lambda run: (run / "validation_documents.npz").unlink(), "losses by document are missing"),
    "torn documents": (lambda run: (run / "validation_documents.npz").write_bytes(b"PK\x03"), "cannot be read"),
    "half the documents": (
        lambda run: np.savez(run / "validation_documents.npz", tokens=np.ones(3, int)),
        "validation_documents.npz has no loss_sum",
    ),
    "other lengths": (
        lambda run: np.savez(
            run / "validation_documents.npz",
            tokens=np.ones(3, int),
            loss_sum=np.ones(2),
            backbone_loss_sum=np.ones(3),
        ),
        "arrays of shapes (3,), (2,), (3,)",
    ),
    "infinite loss": (
        lambda run: np.savez(
            run / "validation_documents.npz",
            tokens=np.ones(2, int),
            loss_sum=np.array([1.0, np.inf]),
            backbone_loss_sum=np.ones(2),
        ),
        "holds a loss that is not finite",
    ),
    "no tokens at all": (
        lambda run: np.savez(
            run / "validation_documents.npz",
            tokens=np.zeros(2, int),
            loss_sum=np.ones(2),
            backbone_loss_sum=np.ones(2),
        ),
        "counts 0 predicted tokens",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_run_is_kept_with_its_reason(tmp_path, fault):
    write_sweep(tmp_path, streams=(1, 2))
    damage, reason = FAULTS[fault]
    damage(tmp_path / "P2")
    (sweep,) = load_experiment_results(tmp_path).sweeps
    assert [run.name for run in sweep.runs] == ["P1"]
    (broken,) = sweep.broken
    assert broken.name == "P2"
    assert reason in broken.problem
    assert "\n" not in broken.problem


def test_a_removed_checkpoint_costs_the_sizes_alone(tmp_path):
    write_run(tmp_path / "P1", 1, final=False)
    (sweep,) = load_experiment_results(tmp_path).sweeps
    assert sweep.finished[0].model_config is None


def test_what_holds_no_run_is_refused_in_one_line(tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(ValueError, match=r"holds no run: a sweep holds run directories such as P1, P2 or P4_seed1"):
        load_experiment_results(tmp_path)
    with pytest.raises(ValueError, match="is no directory"):
        load_experiment_results(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no directory is given"):
        load_experiment_results()


def test_the_same_run_twice_is_refused(tmp_path):
    write_sweep(tmp_path / "sweep", streams=(1,))
    with pytest.raises(ValueError, match="is given twice"):
        load_experiment_results(tmp_path, tmp_path / "sweep" / ".." / "sweep")
