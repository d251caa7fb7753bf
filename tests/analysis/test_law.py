from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from parcontrol.analysis import law as laws
from parcontrol.analysis import published
from parcontrol.analysis.law import (
    CONSTANT_CORRELATION,
    LOGARITHMIC,
    akaike_information,
    fit,
    fit_streams,
    uncertainty,
)
from parcontrol.analysis.law_report import report
from parcontrol.analysis.loss_table import LossTable, published_tables

TABLES = {table.name: table for table in published_tables()}

# What the official fit script prints for the published table.
OFFICIAL = {
    "Stack-V2-Python": {"r_squared": 0.99783, "objective": 3.67674e-5},
    "Pile": {"r_squared": 0.99868, "objective": 1.81393e-5},
}


def table_of(loss, name="made", sizes=(5e8, 1e9, 2e9, 4e9), streams=(1, 2, 4, 8)) -> LossTable:
    N, P = (axis.ravel() for axis in np.meshgrid(np.array(sizes, float), np.array(streams, float)))
    return LossTable(name, N, P, loss(N, P))


def logarithmic(E, A, k, alpha):
    return lambda N, P: E + (A / (N * (k * np.log(P) + 1))) ** alpha


def constant_correlation(E, A, rho, alpha):
    """In the paper's own form, with its DIVERSITY."""

    def loss(N, P):
        diversity = ((P - 1) * rho + 1) ** (-1 / alpha)
        return E + (A / (N * P ** (1 / alpha) * diversity)) ** alpha

    return loss


def huber_sum(predicted, measured, delta=1e-3) -> float:
    total = 0.0
    for a, b in zip(predicted, measured, strict=True):
        r = abs(math.log(a) - math.log(b))
        total += r * r / 2 if r <= delta else delta * (r - delta / 2)
    return total


@pytest.mark.parametrize("corpus", TABLES)
def test_reproduces_the_published_fit(corpus):
    fitted, official = fit(TABLES[corpus]), published.LAWS[corpus]
    assert pytest.approx(official.E, rel=5e-3) == fitted.E
    assert pytest.approx(official.A, rel=5e-3) == fitted.A
    assert fitted.stream == pytest.approx(official.k, rel=5e-3)
    assert fitted.alpha == pytest.approx(official.alpha, rel=5e-3)
    assert f"{fitted.r_squared:.4f}" == f"{OFFICIAL[corpus]['r_squared']:.4f}"
    assert fitted.objective <= OFFICIAL[corpus]["objective"] + 5e-11
    # No worse than the official parameters themselves, without their rounding in print.
    table = TABLES[corpus]
    theirs = logarithmic(official.E, official.A, official.k, official.alpha)(table.N, table.P)
    assert fitted.objective <= huber_sum(theirs, table.loss)


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize("corpus", TABLES)
def test_objective_is_the_summed_huber_loss_of_its_own_predictions(corpus, law):
    table = TABLES[corpus]
    fitted = fit(table, law)
    predicted = fitted.predict(table.N, table.P)
    assert fitted.objective == pytest.approx(huber_sum(predicted, table.loss), rel=1e-9)
    residuals = table.loss - predicted
    r_squared = 1 - np.sum(residuals**2) / np.sum((table.loss - np.mean(table.loss)) ** 2)
    assert fitted.r_squared == pytest.approx(r_squared, rel=1e-12)


@pytest.mark.parametrize("corpus", TABLES)
@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.name)
def test_an_independent_optimiser_finds_nothing_better(corpus, law):
    """scipy's trust-region least squares with its own Huber loss and numerical derivatives."""
    table = TABLES[corpus]
    formula = {"logarithmic": logarithmic, "constant-correlation": constant_correlation}[law.name]

    def residuals(theta):
        E, log_A, stream, alpha = theta
        return np.log(formula(E, math.exp(log_A), stream, alpha)(table.N, table.P)) - np.log(table.loss)

    smallest = table.loss.min()
    best = min(
        least_squares(
            residuals,
            [share * smallest, math.log(1e8), stream, 0.2],
            jac="3-point",
            loss="huber",
            f_scale=1e-3,
            x_scale=[0.1, 1.0, 0.1, 0.05],
            xtol=1e-13,
            ftol=1e-13,
            gtol=1e-13,
            max_nfev=2000,
            bounds=([1e-6, 0, 1e-3, 1e-3], [smallest, 40, 5, 2]),
        ).cost
        for share in (0.4, 0.7)
        for stream in (0.3, 0.8)
    )
    assert fit(table, law).objective <= best * (1 + 1e-9)


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.name)
def test_derivatives_agree_with_finite_differences(law):
    table = TABLES["Pile"]
    problem = laws._Problem.of(table, law, 1e-3)
    theta = np.array([[-0.4, -0.7, -1.6, 0.37], [0.2, -0.2, -1.2, 0.8]])
    _, derivatives = problem.log_loss(theta)
    for i in range(4):
        h = np.zeros(4)
        h[i] = 1e-5
        numerical = (problem.log_loss(theta + h)[0] - problem.log_loss(theta - h)[0]) / 2e-5
        np.testing.assert_allclose(derivatives[:, :, i], numerical, atol=2e-9)


@settings(max_examples=25)
@given(
    E=st.floats(0.3, 2.0),
    log_A=st.floats(math.log(1e7), math.log(5e8)),
    k=st.floats(-0.2, 1.5),
    alpha=st.floats(0.12, 0.6),
)
def test_recovers_a_logarithmic_law_without_noise(E, log_A, k, alpha):
    table = table_of(logarithmic(E, math.exp(log_A), k, alpha))
    fitted = fit(table, LOGARITHMIC)
    np.testing.assert_allclose(fitted.predict(table.N, table.P), table.loss, rtol=1e-7)
    assert fitted.stream == pytest.approx(k, rel=1e-2, abs=1e-3)
    assert pytest.approx(E, rel=1e-2, abs=1e-2) == fitted.E


@settings(max_examples=25)
@given(
    E=st.floats(0.3, 2.0),
    log_A=st.floats(math.log(1e7), math.log(5e8)),
    rho=st.floats(0.1, 1.0),
    alpha=st.floats(0.12, 0.6),
)
def test_recovers_a_constant_correlation_law_without_noise(E, log_A, rho, alpha):
    table = table_of(constant_correlation(E, math.exp(log_A), rho, alpha))
    fitted = fit(table, CONSTANT_CORRELATION)
    np.testing.assert_allclose(fitted.predict(table.N, table.P), table.loss, rtol=1e-7)
    assert fitted.stream == pytest.approx(rho, rel=1e-2, abs=1e-3)


def test_constant_correlation_is_the_variance_of_a_correlated_mean():
    """The derivation, by simulation: mean of P residuals, any two correlated by rho."""
    rng, P, rho = np.random.default_rng(0), 4, 0.6
    covariance = np.full((P, P), rho) + (1 - rho) * np.eye(P)
    mean = rng.multivariate_normal(np.zeros(P), covariance, size=200_000).mean(axis=1)
    fitted = laws.Fit(CONSTANT_CORRELATION, E=1.0, A=2e8, stream=rho, alpha=0.3, objective=0, r_squared=1)
    reducible = [float(fitted.predict(1e9, streams)) - 1.0 for streams in (P, 1)]
    assert reducible[0] / reducible[1] == pytest.approx(float(np.var(mean)), rel=0.02)


def test_one_stream_is_the_plain_scaling_law_under_both():
    N = np.geomspace(1e8, 1e10, 5)
    for law, stream in ((LOGARITHMIC, 0.4), (CONSTANT_CORRELATION, 0.9)):
        fitted = laws.Fit(law, E=1.0, A=2e8, stream=stream, alpha=0.3, objective=0, r_squared=1)
        np.testing.assert_allclose(fitted.predict(N, 1), 1.0 + (2e8 / N) ** 0.3, rtol=1e-14)
        assert fitted.parameter_factor(1) == 1


def test_parameter_factor_is_the_growth_that_matches_the_streams():
    for law, stream in ((LOGARITHMIC, 0.4), (CONSTANT_CORRELATION, 0.9)):
        fitted = laws.Fit(law, E=1.0, A=2e8, stream=stream, alpha=0.3, objective=0, r_squared=1)
        grown = 1e9 * fitted.parameter_factor(8)
        assert float(fitted.predict(grown, 1)) == pytest.approx(float(fitted.predict(1e9, 8)), rel=1e-13)


def test_huber_ignores_an_outlier_where_least_squares_does_not():
    truth = logarithmic(1.2, 2e8, 0.4, 0.3)
    table = table_of(truth)
    spoiled = LossTable("spoiled", table.N, table.P, table.loss * np.where(np.arange(16) == 5, 1.1, 1))
    robust, squares = fit(spoiled), fit(spoiled, delta=math.inf)
    clean = table.loss
    robust_error = np.abs(robust.predict(table.N, table.P) / clean - 1).max()
    squares_error = np.abs(squares.predict(table.N, table.P) / clean - 1).max()
    assert robust_error < 1e-3 < 1e-2 < squares_error


@pytest.mark.parametrize(
    ("truth", "better", "worse"),
    [
        (logarithmic(1.2, 2e8, 0.4, 0.3), LOGARITHMIC, CONSTANT_CORRELATION),
        (constant_correlation(1.2, 2e8, 0.9, 0.3), CONSTANT_CORRELATION, LOGARITHMIC),
    ],
    ids=["logarithmic", "constant-correlation"],
)
def test_akaike_prefers_the_law_that_made_the_table(truth, better, worse):
    noise = np.exp(np.random.default_rng(1).normal(0, 5e-4, 16))
    table = table_of(lambda N, P: truth(N, P) * noise)
    assert akaike_information(table, better) < akaike_information(table, worse) - 4
    found = report(table, resamples=10)
    assert f"The {better.name} law describes this table better" in str(found)
    assert (found.akaike_weight > 0.5) == (better is LOGARITHMIC)


def test_akaike_information_is_that_of_normal_errors():
    table = TABLES["Pile"]
    fitted = fit(table, delta=math.inf)
    residuals = np.log(fitted.predict(table.N, table.P)) - np.log(table.loss)
    n = len(table)
    variance = np.mean(residuals**2)
    log_likelihood = np.sum(-0.5 * np.log(2 * np.pi * variance) - residuals**2 / (2 * variance))
    constant = n * (math.log(2 * math.pi) + 1)
    assert akaike_information(table, LOGARITHMIC) == pytest.approx(2 * 5 - 2 * log_likelihood - constant, rel=1e-9)


def test_both_published_corpora_prefer_the_logarithmic_law():
    for table in TABLES.values():
        assert akaike_information(table, LOGARITHMIC) < akaike_information(table, CONSTANT_CORRELATION) - 10


def test_leaving_out_a_row_equals_fitting_the_rest():
    table = TABLES["Stack-V2-Python"]
    doubt = uncertainty(fit(table), table, resamples=2)
    for row in (0, 7, 18, 23):
        rest = np.arange(len(table)) != row
        refitted = fit(LossTable("rest", table.N[rest], table.P[rest], table.loss[rest]))
        alone = float(refitted.predict(table.N[row], table.P[row]))
        assert doubt.left_out[row] == pytest.approx(alone, rel=1e-6)
    errors = doubt.left_out / table.loss - 1
    assert doubt.left_out_max == np.max(np.abs(errors))
    assert doubt.left_out_rms == pytest.approx(math.sqrt(np.mean(errors**2)))


def noisy_table(seed: int, noise: float) -> LossTable:
    drawn = np.exp(np.random.default_rng(seed).normal(0, noise, 16))
    return table_of(lambda N, P: logarithmic(**TRUTH)(N, P) * drawn)


TRUTH = {"E": 1.2, "A": 2e8, "k": 0.4, "alpha": 0.3}


def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_say():
    """95 % intervals; 200 tables give 88 to 97 % for each parameter, so 25 must give at least 19."""
    hits = dict.fromkeys(TRUTH, 0)
    for seed in range(25):
        table = noisy_table(seed, 5e-4)
        for name, (low, high) in uncertainty(fit(table), table, resamples=200).intervals.items():
            hits[name] += low < TRUTH[name] < high
    assert min(hits.values()) >= 19


def test_bootstrap_intervals_hold_the_estimate_and_shrink_with_the_noise():
    widths = []
    for noise in (1e-3, 1e-4):
        table = noisy_table(5, noise)
        fitted = fit(table)
        intervals = uncertainty(fitted, table, resamples=400).intervals
        for name, (low, high) in intervals.items():
            assert low < fitted.values()[name] < high
        widths.append({name: high - low for name, (low, high) in intervals.items()})
    assert all(widths[1][name] < widths[0][name] / 3 for name in TRUTH)


def test_bootstrap_depends_on_the_seed_alone():
    table = TABLES["Pile"]
    fitted = fit(table)
    first, again, other = (uncertainty(fitted, table, 50, seed).intervals for seed in (0, 0, 1))
    assert first == again != other


def test_refuses_tables_that_do_not_determine_the_law():
    loss = logarithmic(1.2, 2e8, 0.4, 0.3)
    with pytest.raises(ValueError, match="2 model sizes"):
        fit(table_of(loss, sizes=(1e9, 2e9)))
    with pytest.raises(ValueError, match="1 values of P"):
        fit(table_of(loss, sizes=(1e8, 1e9, 2e9, 4e9, 8e9), streams=(2,)))
    with pytest.raises(ValueError, match="4 rows"):
        fit(LossTable("few", np.array([1e8, 1e9, 2e9, 4e9]), np.array([1.0, 2, 1, 2]), np.array([4.0, 3, 2, 1])))
    with pytest.raises(ValueError, match="all losses"):
        fit(table_of(lambda N, P: np.full_like(N, 2.0)))


def test_sizes_that_differ_by_their_streams_alone_are_one():
    published_N = TABLES["Pile"].N
    assert TABLES["Pile"].sizes == 6
    one_backbone = published_N.reshape(4, 6)[:, 0]
    assert LossTable("one", one_backbone, np.array([1.0, 2, 4, 8]), np.ones(4)).sizes == 1


def one_backbone(loss_of_P, P=(1, 2, 4, 8, 1, 2, 4, 8)) -> LossTable:
    P = np.array(P, float)
    return LossTable("one", 1.35e8 * (1 + 0.002 * P), P, loss_of_P(P))


@pytest.mark.parametrize("k", [-0.2, 0.0, 0.35, 1.2])
def test_streams_at_fixed_size_recover_k(k):
    table = one_backbone(lambda P: 1.3 + 1.2 * (1 + k * np.log(P)) ** -0.2)
    fitted = fit_streams(table, E=1.3, alpha=0.2)
    assert fitted.k == pytest.approx(k, abs=1e-6)
    assert fitted.single_stream_loss == pytest.approx(2.5, abs=1e-8)
    np.testing.assert_allclose(fitted.predict(table.P), table.loss, rtol=1e-9)
    assert fitted.parameter_factor(8) == pytest.approx(1 + k * math.log(8), abs=1e-5)
    assert fitted.per_doubling == pytest.approx(float(table.loss[1] - table.loss[0]), abs=1e-8)


def test_streams_at_fixed_size_agree_with_an_independent_optimiser():
    noise = np.exp(np.random.default_rng(3).normal(0, 2e-3, 8))
    table = one_backbone(lambda P: (1.3 + 1.2 * (1 + 0.3 * np.log(P)) ** -0.2) * noise)
    fitted = fit_streams(table, E=1.3, alpha=0.2)
    oracle = least_squares(
        lambda t: np.log(1.3 + (t[0] - 1.3) * (1 + t[1] * np.log(table.P)) ** -0.2) - np.log(table.loss),
        [2.4, 0.1],
        xtol=1e-14,
        ftol=1e-14,
        gtol=1e-14,
    )
    assert [fitted.single_stream_loss, fitted.k] == pytest.approx(oracle.x, rel=1e-6)
    low, high = fitted.intervals["k"]
    assert low < fitted.k < high
    assert low < 0.3 < high


def test_streams_without_a_spare_row_have_no_intervals():
    table = one_backbone(lambda P: 2.5 - 0.02 * P, P=(1, 8))
    assert fit_streams(table, E=1.3, alpha=0.2).intervals is None


@pytest.mark.parametrize(
    ("E", "alpha", "message"),
    [(0.0, 0.2, "E is 0.0"), (2.6, 0.2, "E is 2.6"), (math.nan, 0.2, "E is nan"), (1.3, 0.0, "alpha is 0.0")],
)
def test_streams_at_fixed_size_refuse_impossible_assumptions(E, alpha, message):
    table = one_backbone(lambda P: 2.5 - 0.02 * P)
    with pytest.raises(ValueError, match=message):
        fit_streams(table, E, alpha)


def test_streams_at_fixed_size_find_a_k_close_to_the_end_of_its_domain():
    table = LossTable("steep", np.full(3, 1e8), np.array([1.0, 2, 4]), np.array([2.396, 2.381, 5]))
    fitted = fit_streams(table, E=1.288766, alpha=0.196333)
    k = np.linspace(-0.72134, 2, 200_001)[1:, None]
    term = -0.196333 * np.log1p(k * np.log(table.P))

    def objective(single):
        return np.sum(np.log((1.288766 + (single - 1.288766) * np.exp(term)) / table.loss) ** 2, axis=1)

    best = min((objective(single).min(), k[objective(single).argmin(), 0]) for single in np.linspace(2.2, 2.6, 41))
    assert fitted.k == pytest.approx(best[1], abs=2e-3)
    assert np.sum(np.log(fitted.predict(table.P) / table.loss) ** 2) <= best[0]


@pytest.mark.parametrize("size", [1e-7, 1.5])
def test_an_impossible_size_does_not_settle(size):
    table = TABLES["Pile"]
    spoiled = LossTable("spoiled", np.where(np.arange(24) == 3, size, table.N), table.P, table.loss)
    with pytest.raises(ValueError, match="does not settle on spoiled"):
        report(spoiled, 10)


def test_streams_at_fixed_size_refuse_other_tables():
    with pytest.raises(ValueError, match="4 model sizes"):
        fit_streams(table_of(logarithmic(1.2, 2e8, 0.4, 0.3)), E=0.5, alpha=0.2)
    with pytest.raises(ValueError, match="1 values of P"):
        fit_streams(one_backbone(lambda P: 2.5 + 0 * P, P=(2, 2, 2)), E=0.5, alpha=0.2)
