"""What sweeps show: planted losses, differences, laws and prices must be found again."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest

from parcontrol.analysis import published
from parcontrol.analysis.cost import ModelShape
from parcontrol.analysis.findings import DocumentSamples, analyse, forward_flops, non_embedding_parameters
from parcontrol.analysis.law import fit_streams
from parcontrol.analysis.loss_table import LossTable
from parcontrol.analysis.results import load_experiment_results
from tests.analysis.sweeps import BACKBONE_LOSS, GAINS, MODEL, PARAMETERS, TOKENS, write_run, write_sweep

PILE = published.LAWS["Pile"]


def findings_of(*directories):
    return analyse(load_experiment_results(*directories))


def sweep_of(directory):
    return findings_of(directory).sweeps[0]


# --- losses and differences ---


def test_planted_losses_are_found(tmp_path):
    write_sweep(tmp_path, streams=(1, 2, 4, 8), loss=lambda P, seed: BACKBONE_LOSS - GAINS[P])
    found = sweep_of(tmp_path)
    assert [summary.P for summary in found.streams] == [1, 2, 4, 8]
    for summary in found.streams:
        assert summary.loss == pytest.approx(BACKBONE_LOSS - GAINS[summary.P], abs=1e-12)
        assert summary.gain.value == pytest.approx(-GAINS[summary.P], abs=1e-12)
        assert summary.gain.verdict == "lower"
        assert summary.perplexity == pytest.approx(math.exp(summary.loss))
        assert (summary.seed_spread, summary.seed_interval) == (None, None)
    assert [(d.compared, d.reference) for d in found.differences] == [(f"P = {P}", "P = 1") for P in (2, 4, 8)]
    assert [(d.compared, d.reference) for d in found.steps] == [("P = 4", "P = 2"), ("P = 8", "P = 4")]
    for difference, P in zip(found.differences, (2, 4, 8), strict=True):
        low, high = difference.documents
        assert difference.value == pytest.approx(GAINS[1] - GAINS[P], abs=1e-12)
        assert low < difference.value < high
        assert (difference.verdict, difference.seeds, difference.seed_count) == ("lower", None, 1)


def test_a_difference_s_interval_is_that_of_its_documents(tmp_path):
    """Against the closed form: plus and minus 1.96 standard errors of a ratio of sums."""
    write_sweep(tmp_path, streams=(1, 2), documents=400)
    found = sweep_of(tmp_path)
    a, b = (found.sweep.at(P)[0].documents for P in (2, 1))
    difference, tokens = a.loss_sum - b.loss_sum, a.tokens
    value = difference.sum() / tokens.sum()
    error = np.sqrt(((difference - value * tokens) ** 2).sum()) / tokens.sum()
    low, high = found.differences[0].documents
    assert low == pytest.approx(value - 1.96 * error, abs=0.12 * error)
    assert high == pytest.approx(value + 1.96 * error, abs=0.12 * error)


def test_no_difference_is_shown_where_the_interval_covers_zero(tmp_path):
    write_sweep(tmp_path, streams=(1, 2), loss=lambda P, seed: 2.3900 - 1e-5 * P, document_noise=0.05)
    (difference,) = sweep_of(tmp_path).differences
    low, high = difference.documents
    assert low < 0 < high
    assert (difference.verdict, difference.shown) == ("no difference shown", False)


def test_a_worse_P_is_called_higher(tmp_path):
    write_sweep(tmp_path, streams=(1, 2), loss=lambda P, seed: 2.3 + 0.05 * P)
    assert sweep_of(tmp_path).differences[0].verdict == "higher"


def test_several_seeds_give_a_t_interval_of_paired_differences(tmp_path):
    """Seeds 1, 2, 3 shift both P alike and their difference by -1, 0 and 1 thousandth."""
    write_sweep(
        tmp_path,
        streams=(1, 2),
        seeds=(1, 2, 3),
        loss=lambda P, seed: 2.4 + 0.1 * seed - (P == 2) * (0.010 + 0.001 * (seed - 2)),
    )
    found = sweep_of(tmp_path)
    (difference,) = found.differences
    half = 4.302653 * 0.001 / math.sqrt(3)
    assert difference.value == pytest.approx(-0.010, abs=1e-9)
    assert difference.seeds == (pytest.approx(-0.010 - half, abs=1e-8), pytest.approx(-0.010 + half, abs=1e-8))
    assert (difference.verdict, difference.seed_count) == ("lower", 3)
    assert found.streams[0].seed_spread == pytest.approx(0.1)
    assert found.streams[0].loss == pytest.approx(2.6)


def test_seeds_that_disagree_show_no_difference_however_sure_the_documents_are(tmp_path):
    write_sweep(
        tmp_path,
        streams=(1, 2),
        seeds=(1, 2),
        loss=lambda P, seed: 2.4 - (P == 2) * (0.03 if seed == 1 else 0.01),
        document_noise=0.001,
    )
    (difference,) = sweep_of(tmp_path).differences
    assert difference.documents[1] < 0 < difference.seeds[1]
    assert difference.verdict == "no difference shown"


def test_seeds_are_paired_and_the_others_left_out(tmp_path):
    write_run(tmp_path / "P1_seed1", 1, 1, loss=2.40)
    write_run(tmp_path / "P1_seed2", 1, 2, loss=2.50)
    write_run(tmp_path / "P2_seed2", 2, 2, loss=2.45)
    (difference,) = sweep_of(tmp_path).differences
    assert (difference.value, difference.seed_count) == (pytest.approx(-0.05), 1)


def test_runs_without_a_common_seed_are_not_compared(tmp_path):
    write_run(tmp_path / "P1", 1, 1)
    write_run(tmp_path / "P2", 2, 2)
    (difference,) = sweep_of(tmp_path).differences
    assert (difference.value, difference.verdict) == (None, "not compared: no seed in common")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tokens": 5000}, f"5,000 against {TOKENS:,} tokens"),
        ({"settings": {"training.learning_rate": 0.01}}, "other training.learning_rate"),
        ({"result": {"data_sha256": "e" * 64}}, "other training data"),
        ({"result": {"validation_sha256": "e" * 64}}, "other validation documents"),
        ({"documents": 60}, "other validation documents"),
    ],
)
def test_runs_that_differ_in_more_than_P_are_not_compared(tmp_path, changes, reason):
    write_sweep(tmp_path, streams=(1, 2))
    write_run(tmp_path / "P4", 4, **changes)
    found = sweep_of(tmp_path)
    good, bad = found.differences
    assert good.verdict == "lower"
    assert (bad.value, bad.documents, bad.verdict) == (None, None, f"not compared: {reason}")
    assert {run.name: why for run, why in found.left_out.items()} == {"P4": reason}
    assert [summary.P for summary in found.streams] == [1, 2]
    # The law is that of the sweep without it.
    alone = write_sweep(tmp_path / "alone", streams=(1, 2))
    assert [law.fit for law in found.laws] == [law.fit for law in sweep_of(alone).laws]


FOREIGN = {
    "learning rate": ({"settings": {"training.learning_rate": 0.02}}, "other training.learning_rate"),
    "revision": ({"meta": {"model_revision": "7" * 40}}, "another model, revision or tokenizer"),
    "precision": ({"process": {"compute_dtype": "bfloat16"}}, "computed in bfloat16 on float32 weights"),
    "P of the result": ({"result": {"P": 4}}, "the result is of P = 4, the configuration says 2"),
    "sums": ({"result": {"final_validation_loss": 1.0}}, "final loss 1.000000 reported, 1.900000 by document"),
    "backbone": ({"result": {"backbone_validation_loss": 2.0}}, "backbone loss 2.000000 reported"),
}


@pytest.mark.parametrize("fault", FOREIGN)
def test_a_foreign_seed_enters_no_mean_no_difference_and_no_law(tmp_path, fault):
    changes, reason = FOREIGN[fault]
    write_run(tmp_path / "P1_seed1", 1, 1)
    write_run(tmp_path / "P2_seed1", 2, 1)
    before = sweep_of(tmp_path)
    write_run(tmp_path / "P2_seed2", 2, 2, loss=1.9, **changes)
    after = sweep_of(tmp_path)
    assert next(why for run, why in after.left_out.items() if run.name == "P2_seed2").startswith(reason)
    for part in ("streams", "differences", "laws", "prices"):
        assert after.as_dict()[part] == before.as_dict()[part]


def test_a_whole_seed_of_other_settings_is_left_out(tmp_path):
    for seed, rate in ((1, 0.003), (2, 0.02)):
        for P in (1, 2):
            settings = {"training.learning_rate": rate}
            write_run(tmp_path / f"P{P}_seed{seed}", P, seed, loss=2.4 - 0.1 * seed * P, settings=settings)
    found = sweep_of(tmp_path)
    assert [run.name for run in found.left_out] == ["P1_seed2", "P2_seed2"]
    assert found.differences[0].value == pytest.approx(-0.1)
    assert len(found.laws[0].measured_worth) == 2


def test_two_runs_in_one_place_are_both_left_out(tmp_path):
    write_sweep(tmp_path, streams=(1, 2, 4))
    write_run(tmp_path / "again", 2, loss=1.9)
    found = sweep_of(tmp_path)
    assert {run.name for run in found.left_out} == {"P2", "again"}
    assert found.differences[0].refused == "again is at P = 2, seed 42, too; P2 is at P = 2, seed 42, too"
    assert found.differences[1].shown


def test_most_runs_decide_what_belongs(tmp_path):
    write_run(tmp_path / "P1", 1, tokens=5000)
    write_run(tmp_path / "P2", 2)
    write_run(tmp_path / "P4", 4)
    found = sweep_of(tmp_path)
    assert [(d.compared, d.reference, d.shown) for d in found.differences] == [
        ("P = 1", "P = 2", False),
        ("P = 4", "P = 2", True),
    ]


def test_one_document_gives_no_interval_and_shows_nothing(tmp_path):
    write_sweep(tmp_path, streams=(1, 2), documents=1)
    (difference,) = sweep_of(tmp_path).differences
    assert difference.documents is None
    assert difference.verdict == "no difference shown: too few documents for an interval"


def test_unfinished_runs_take_no_part(tmp_path):
    write_sweep(tmp_path, streams=(1, 2))
    write_run(tmp_path / "P4", 4, steps=10)
    found = sweep_of(tmp_path)
    assert [summary.P for summary in found.streams] == [1, 2]
    assert [price.P for price in found.prices] == [1, 2]


# --- the law ---


def law_loss(k: float, E: float, alpha: float, single: float = 2.40):
    return lambda P, seed: E + (single - E) * (k * math.log(P) + 1) ** -alpha


def test_a_planted_k_is_found(tmp_path):
    write_sweep(tmp_path, streams=(1, 2, 4, 8), loss=law_loss(0.2, PILE.E, PILE.alpha))
    pile, stack = sweep_of(tmp_path).laws
    assert (pile.corpus, stack.corpus) == ("Pile", "Stack-V2-Python")
    assert pile.fit.k == pytest.approx(0.2, abs=1e-5)
    assert pile.fit.single_stream_loss == pytest.approx(2.40, abs=1e-6)
    assert pile.worth(4) == pytest.approx(1 + 0.2 * math.log(4), abs=1e-5)
    assert pile.paper(4) == pytest.approx(1 + 0.334456 * math.log(4))
    low, high = pile.k_documents
    assert low < 0.2 < high
    assert stack.fit.k != pytest.approx(0.2, abs=0.01)


def test_the_interval_of_k_is_that_of_refitting_every_resample(tmp_path):
    """The first-order interval and band against 150 fits of resampled losses."""
    write_sweep(tmp_path, streams=(1, 2, 4), loss=law_loss(0.2, PILE.E, PILE.alpha), document_noise=0.05)
    found = sweep_of(tmp_path)
    samples = DocumentSamples(found.sweep.finished)
    columns = np.stack([samples.of(run) for run in found.sweep.finished], axis=1)[:150]
    P = np.array([1.0, 2.0, 4.0])
    fits = [fit_streams(LossTable("x", np.ones(3), P, row), PILE.E, PILE.alpha, resamples=1) for row in columns]
    refitted = np.array([fit.k for fit in fits])
    # The same 150 resamples, so only the linearisation can differ.
    pile = found.laws[0]
    width = pile.k_documents[1] - pile.k_documents[0]
    assert np.std(refitted) * 3.92 == pytest.approx(width, rel=0.2)
    falls = np.array([float(fit.predict(4.0)) - fit.single_stream_loss for fit in fits])
    low, high = pile.band[4.0]
    assert np.std(falls) * 3.92 == pytest.approx(high - low, rel=0.2)
    assert np.mean(falls) == pytest.approx((low + high) / 2, abs=0.2 * (high - low))


def test_one_P_gives_no_law(tmp_path):
    write_run(tmp_path / "P2", 2)
    found = sweep_of(tmp_path)
    assert (found.laws, found.differences) == ([], [])
    assert found.unfitted == "a fit of L(P) needs at least two values of P"


def test_losses_below_a_published_E_use_the_other_corpus(tmp_path):
    write_sweep(tmp_path, loss=lambda P, seed: 1.2 - 0.01 * P)
    found = sweep_of(tmp_path)
    assert [law.corpus for law in found.laws] == ["Stack-V2-Python"]
    assert found.unfitted.startswith("with E and alpha of Pile: E is 1.288766")


def test_parameters_without_embeddings(tmp_path):
    run = write_run(tmp_path / "P1", 1)
    (sweep,) = load_experiment_results(tmp_path).sweeps
    assert non_embedding_parameters(sweep.runs[0]) == PARAMETERS
    untied = {**MODEL, "tie_word_embeddings": False, "parscale_n": 1, "parscale_n_tokens": 4}
    (run.final_dir / "config.json").write_text(json.dumps(untied))
    (sweep,) = load_experiment_results(tmp_path).sweeps
    assert non_embedding_parameters(sweep.runs[0]) == PARAMETERS - MODEL["vocab_size"] * MODEL["hidden_size"]
    del untied["tie_word_embeddings"]
    (run.final_dir / "config.json").write_text(json.dumps(untied))
    (sweep,) = load_experiment_results(tmp_path).sweeps
    assert non_embedding_parameters(sweep.runs[0]) is None


def write_backbones(root, sizes, **changes):
    for N in sizes:
        write_sweep(
            root / f"N{N}",
            streams=(1, 2, 4),
            loss=lambda P, seed, N=N: PILE.E + (PILE.A / (N * (0.3 * math.log(P) + 1))) ** PILE.alpha,
            parameters=N,
            **changes,
        )


def test_several_backbones_give_the_joint_law(tmp_path):
    write_backbones(tmp_path, (10**8, 3 * 10**8, 10**9))
    found = findings_of(tmp_path)
    assert found.joint_refused is None
    law = found.joint.fits[0]
    assert law.stream == pytest.approx(0.3, rel=1e-3)
    assert (law.E, law.alpha) == (pytest.approx(PILE.E, rel=1e-3), pytest.approx(PILE.alpha, rel=1e-3))


def test_the_joint_law_needs_three_sizes_and_equal_tokens(tmp_path):
    write_backbones(tmp_path / "two", (10**8, 10**9))
    two = "it needs at least 3 model sizes, and the sweeps have 2"
    assert findings_of(tmp_path / "two").joint_refused == two
    write_backbones(tmp_path / "tokens", (10**8, 3 * 10**8))
    write_backbones(tmp_path / "tokens", (10**9,), tokens=5000)
    assert findings_of(tmp_path / "tokens").joint_refused == "the runs trained on other numbers of tokens"
    write_backbones(tmp_path / "data", (10**8, 3 * 10**8))
    write_backbones(tmp_path / "data", (10**9,), result={"data_sha256": "e" * 64})
    assert findings_of(tmp_path / "data").joint_refused == "the runs trained on other data"
    write_backbones(tmp_path / "text", (10**8, 3 * 10**8))
    write_backbones(tmp_path / "text", (10**9,), result={"validation_sha256": "e" * 64})
    assert "other documents" in findings_of(tmp_path / "text").joint_refused
    write_backbones(tmp_path / "gone", (10**8, 3 * 10**8, 10**9), final=False)
    assert findings_of(tmp_path / "gone").joint_refused == "P1 has no final checkpoint that says its size"


def test_what_is_left_out_of_its_sweep_is_left_out_of_the_joint_law(tmp_path):
    write_backbones(tmp_path, (10**8, 3 * 10**8, 10**9))
    shutil.rmtree(tmp_path / "N300000000" / "P4")
    settings = {"training.learning_rate": 0.02}
    write_run(tmp_path / "N300000000" / "P4", 4, loss=1.9, parameters=3 * 10**8, settings=settings)
    found = findings_of(tmp_path)
    assert len(found.joint.table) == 8
    assert found.joint.fits[0].stream == pytest.approx(0.3, rel=1e-3)


def test_a_very_small_backbone_is_one_size_however_it_grows_with_P(tmp_path):
    for name in ("a", "b"):
        for P in (1, 2, 4):
            write_run(tmp_path / name / f"P{P}", P, parameters=10**6 * P)
    assert findings_of(tmp_path).joint_refused == "it needs at least 3 model sizes, and the sweeps have 1"


def test_measured_worth_inverts_the_law(tmp_path):
    """Losses made of chosen factors, which no k ln P + 1 gives, are read back."""
    factors = {1: 1.0, 2: 1.5, 4: 1.6}
    single = 2.4 - PILE.E
    write_sweep(tmp_path, loss=lambda P, seed: PILE.E + single * factors[P] ** -PILE.alpha)
    law = sweep_of(tmp_path).law
    for P, factor in factors.items():
        low, high = law.measured_documents(P)
        assert law.measured(P) == pytest.approx(factor, rel=1e-9)
        assert low <= factor <= high
    documents, residuals = law.k_documents, law.fit.intervals["k"]
    assert residuals[1] - residuals[0] > documents[1] - documents[0]
    assert law.k_widest == (residuals, "residuals")
    assert law.worth_interval(4) == pytest.approx([1 + k * math.log(4) for k in residuals])


# --- several sweeps ---


def test_sweeps_are_compared_at_equal_P(tmp_path):
    write_sweep(tmp_path / "a", streams=(1, 2))
    write_sweep(
        tmp_path / "b",
        streams=(2, 4),
        loss=lambda P, seed: BACKBONE_LOSS - GAINS[P] - 0.02,
        settings={"training.learning_rate": 0.01},
    )
    (difference,) = findings_of(tmp_path).between
    assert (difference.compared, difference.reference) == ("b, P = 2", "a, P = 2")
    assert difference.value == pytest.approx(-0.02, abs=1e-9)
    assert difference.verdict == "lower"


def test_sweeps_on_other_documents_are_not_compared(tmp_path):
    write_sweep(tmp_path / "a", streams=(1,))
    write_sweep(tmp_path / "b", streams=(1,), documents=60)
    (difference,) = findings_of(tmp_path).between
    assert difference.verdict == "not compared: other validation documents"


# --- the price ---


def test_predicted_flops_by_hand():
    """Two products per weight: every layer for every stream, head and aggregator once a token."""
    shape = ModelShape(64, 128, 3, 4, 2, 100, 512)
    h, f, T = 64, 128, 16
    attention = 2 * (2 * h * h + 2 * h * h * 2 / 4) + 4 * T * h
    layer = attention + 2 * 3 * h * f + 2 * 5 * h
    head = 2 * 100 * h
    assert forward_flops(shape, 1, T) == pytest.approx(3 * layer + head)
    for P in (2, 4):
        aggregator = 2 * P * h * (h + 1)
        assert forward_flops(shape, P, T) == pytest.approx(P * 3 * layer + head + aggregator)


def test_measured_and_predicted_price(tmp_path):
    write_sweep(tmp_path, streams=(1, 4), seeds=(1, 2))
    one, four = sweep_of(tmp_path).prices
    assert one.tokens_per_second / four.tokens_per_second == pytest.approx(4)
    assert four.peak_memory_bytes == 5 * 2**30
    assert 3 < four.flops_per_token / one.flops_per_token < 4
    assert four.inference.memory.total > one.inference.memory.total
    assert (one.unpredicted, four.unpredicted) == (None, None)


def test_time_per_token_is_the_median_of_the_records(tmp_path):
    write_run(tmp_path / "P1", 1)
    path = tmp_path / "P1" / "metrics.jsonl"
    slow = path.read_text().replace('"tokens_per_second": 900.0', '"tokens_per_second": 47.0', 1)
    path.write_text(slow)
    assert sweep_of(tmp_path).prices[0].tokens_per_second == 900


def test_without_sizes_there_is_no_prediction(tmp_path):
    write_sweep(tmp_path, streams=(1,), final=False)
    (price,) = sweep_of(tmp_path).prices
    assert (price.flops_per_token, price.inference) == (None, None)
    assert price.unpredicted == "there is no final checkpoint that says the model's sizes"


def test_an_architecture_that_the_formulas_do_not_describe_has_no_prediction(tmp_path):
    run = write_run(tmp_path / "P1", 1)
    (run.final_dir / "config.json").write_text(json.dumps({**MODEL, "head_dim": 128}))
    (price,) = sweep_of(tmp_path).prices
    assert price.flops_per_token is None
    assert "heads of width 128" in price.unpredicted
