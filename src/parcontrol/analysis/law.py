"""The parallel scaling law: fit it, doubt it, compare it with its rival.

Loss falls with N non-embedding parameters and P streams. Both laws here have the form

    L(N, P) = E + s(N, P),    ln s = c - alpha·ln N + g(P)

with the irreducible loss E in nats and c = alpha·ln A. They differ in what streams are worth, g:

- `LOGARITHMIC`, the law of ParScale (arXiv 2505.10475, section 3): L = E + (A / (N·(k·ln P + 1)))^alpha.
  P streams act like k·ln P + 1 times the parameters, so g = -alpha·ln(k·ln P + 1).
- `CONSTANT_CORRELATION`, what the paper's theory (section 3, theoretical analysis) gives when
  streams disagree equally at every P. Let the relative residual of a stream's prediction p_i be
  d_i = (p_i - p) / p, with mean zero. To second order the loss is E + E[d²] / 2, and the scaling law of a
  single stream says E[d_i²] / 2 = (A / N)^alpha. The mean of P streams, any two correlated by rho, has
  E[d²] = E[d_i²]·(1 + (P - 1)·rho) / P, hence L = E + (A / N)^alpha·((P - 1)·rho + 1) / P. The paper writes the
  same as (A / (N·P^(1/alpha)·DIVERSITY))^alpha with DIVERSITY = ((P - 1)·rho + 1)^(-1/alpha). Streams cannot
  beat E + rho·(A / N)^alpha however many there are, where the logarithmic law has no such floor.

As in the official fit, the objective is the Huber loss (delta 0.001) of the residuals of ln L, summed
over the table. It is minimised by iteratively reweighted Levenberg-Marquardt steps with analytic
derivatives in (ln E, c, ln alpha, k or rho), ln N centred: there ln L = logaddexp(ln E, ln s), all four
directions have comparable scale, and a handful of starts finds what a grid of hundreds finds in
(E, A, k, alpha). Many fits of one table (starts, resamples, left-out rows) run as one stack.

Shapes: S fits in a stack, n rows of the table, 4 parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parcontrol.analysis.loss_table import LossTable

Array = NDArray[np.float64]

HUBER_DELTA = 1e-3
CONFIDENCE = 0.95
PARAMETER_COUNT = 4

# Starting points: E as a share of the smallest loss. The rest follows by linear regression.
_E_SHARES = (0.3, 0.6, 0.9)

_MAX_ITERATIONS = 1000
# A fit has settled after this many steps without a relative gain above _LITTLE.
_LITTLE = 1e-13
_PATIENCE = 6


@dataclass(frozen=True)
class Law:
    """What P streams do to the reducible loss.

    `stream_term(P [n], alpha [S, 1], value [S, 1])` returns g and its derivatives with respect to
    ln alpha and to the stream parameter, each [S, n]; NaN or infinite where g does not exist.
    """

    name: str
    formula: str
    stream_parameter: str
    starts: tuple[float, ...]
    stream_term: Callable[[Array, Array, Array], tuple[Array, Array, Array]]


def _logarithmic_term(P: Array, alpha: Array, k: Array) -> tuple[Array, Array, Array]:
    log_P = np.log(P)
    worth = 1 + k * log_P
    term = -alpha * np.log(worth)
    return term, term, -alpha * log_P / worth


def _correlation_term(P: Array, alpha: Array, rho: Array) -> tuple[Array, Array, Array]:
    variance = 1 + (P - 1) * rho
    return np.log(variance / P), np.zeros_like(variance), (P - 1) / variance


LOGARITHMIC = Law(
    name="logarithmic",
    formula="E + (A / (N·(k·ln P + 1)))^alpha",
    stream_parameter="k",
    starts=(0.1, 1.0),
    stream_term=_logarithmic_term,
)
CONSTANT_CORRELATION = Law(
    name="constant-correlation",
    formula="E + (A / N)^alpha·((P - 1)·rho + 1) / P",
    stream_parameter="rho",
    starts=(0.5, 0.9),
    stream_term=_correlation_term,
)
LAWS = (LOGARITHMIC, CONSTANT_CORRELATION)


@dataclass(frozen=True)
class Fit:
    """A law fitted to one table.

    `stream` is k or rho. A is in parameters, E in nats, `objective` the summed Huber loss. R² is
    taken on the losses themselves, as published.
    """

    law: Law
    E: float
    A: float
    stream: float
    alpha: float
    objective: float
    r_squared: float

    def predict(self, N: Array | float, P: Array | float) -> Array:
        """Loss in nats at N parameters and P streams (broadcast against each other)."""
        return _predict(self.law, self._values(), np.asarray(N, float), np.asarray(P, float))

    def parameter_factor(self, P: float) -> float:
        """By what factor a plain model must grow to match P streams: k·ln P + 1, or its equal."""
        term = self.law.stream_term(np.array([float(P)]), np.array([[self.alpha]]), np.array([[self.stream]]))[0]
        return float(np.exp(-term[0, 0] / self.alpha))

    def values(self) -> dict[str, float]:
        """The four parameters by name."""
        return dict(zip(parameter_names(self.law), map(float, self._values()), strict=True))

    def _values(self) -> Array:
        return np.array([self.E, self.A, self.stream, self.alpha])


@dataclass(frozen=True)
class Uncertainty:
    """How far a fit can be trusted.

    `intervals` are percentile intervals of a residual bootstrap; `unsettled` of its resamples did not
    settle (as a rule because their E runs to zero) and count as they stood. `left_out` [n] holds what
    the law fitted without a row predicts for that row; the errors are relative to the measured loss.
    """

    intervals: dict[str, tuple[float, float]]
    resamples: int
    unsettled: int
    left_out: Array
    left_out_rms: float
    left_out_max: float


def parameter_names(law: Law) -> tuple[str, str, str, str]:
    return ("E", "A", law.stream_parameter, "alpha")


def fit(table: LossTable, law: Law = LOGARITHMIC, delta: float = HUBER_DELTA) -> Fit:
    """Fit `law` to `table` by Huber loss on ln L; `delta` = infinity gives least squares.

    Raises:
        ValueError: the table does not determine the law (it needs more rows than parameters, three
            sizes and two values of P), or the fit does not settle on it.
    """
    table.require(rows=PARAMETER_COUNT + 1, sizes=3, streams=2)
    if np.ptp(table.loss) == 0:
        raise ValueError(f"all losses of {table.name} are {table.loss[0]}; there is nothing to fit")
    problem = _Problem.of(table, law, delta)
    theta, objective, settled = _solve(problem, _starts(table, law), np.log(table.loss))
    best = int(np.nanargmin(objective))
    values = _values_of(theta[best : best + 1], problem.centre)
    if not settled[best] or not np.isfinite(values).all() or (values[:, [0, 1, 3]] <= 0).any():
        raise ValueError(f"the {law.name} law does not settle on {table.name}; its losses do not follow such a law")
    return _fit_of(problem, theta[best], float(objective[best]), table)


def uncertainty(fitted: Fit, table: LossTable, resamples: int = 1000, seed: int = 0) -> Uncertainty:
    """Bootstrap the residuals of ln L for intervals, and leave out each row once.

    The design (N, P) stays as it is, so every resample determines the law. Residuals are widened by
    sqrt(n / (n - 4)) for the degrees of freedom that the fit used up. They are taken as independent;
    a table whose rows share errors (one seed, one size) deserves wider intervals than these.
    """
    problem = _Problem.of(table, fitted.law, HUBER_DELTA)
    start = _theta_of(fitted, problem.centre)
    log_loss, n = np.log(table.loss), len(table)
    log_fit = np.log(fitted.predict(table.N, table.P))
    spread = (log_loss - log_fit) * math.sqrt(n / (n - PARAMETER_COUNT))
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    theta, _, settled = _solve(problem, np.tile(start, (resamples, 1)), log_fit + spread[drawn])
    values = _values_of(theta, problem.centre)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    left_out = _leave_one_out(problem, start, table)
    errors = left_out / table.loss - 1
    return Uncertainty(
        intervals={
            name: (float(a), float(b)) for name, a, b in zip(parameter_names(fitted.law), low, high, strict=True)
        },
        resamples=resamples,
        unsettled=int(np.sum(~settled)),
        left_out=left_out,
        left_out_rms=float(np.sqrt(np.mean(errors**2))),
        left_out_max=float(np.abs(errors).max()),
    )


def akaike_information(table: LossTable, law: Law) -> float:
    """AIC of the law with normal errors in ln L, at its own least-squares fit.

    The Huber objective is no likelihood, so the laws are compared where there is one:
    AIC = n·ln(RSS / n) + 2·(4 + 1), the variance being the fifth parameter. Lower is better.
    """
    fitted = fit(table, law, delta=math.inf)
    n = len(table)
    rss = max(2 * fitted.objective, np.finfo(float).tiny)
    return n * math.log(rss / n) + 2 * (PARAMETER_COUNT + 1)


@dataclass(frozen=True)
class StreamFit:
    """L(P) of one backbone: L = E + (L1 - E)·(k·ln P + 1)^(-alpha), with E and alpha given.

    `single_stream_loss` is L1, the fitted loss at P = 1. `intervals` is None where the table has no
    degree of freedom left.
    """

    E: float
    alpha: float
    single_stream_loss: float
    k: float
    intervals: dict[str, tuple[float, float]] | None

    def predict(self, P: Array | float) -> Array:
        """Loss in nats at P streams."""
        reducible = self.single_stream_loss - self.E
        return self.E + reducible * (1 + self.k * np.log(np.asarray(P, float))) ** -self.alpha

    def parameter_factor(self, P: float) -> float:
        """By what factor a plain model must grow to match P streams."""
        return 1 + self.k * math.log(P)

    @property
    def per_doubling(self) -> float:
        """Change of the loss from P = 1 to P = 2, nats."""
        return float(self.predict(2.0)) - self.single_stream_loss


def fit_streams(table: LossTable, E: float, alpha: float, resamples: int = 1000, seed: int = 0) -> StreamFit:
    """Fit L(P) at fixed N, where E and alpha cannot be told from data and must come from elsewhere.

    By least squares on ln L: with the handful of rows that one backbone gives, the Huber loss would
    run through two of them and ignore the rest.

    Raises:
        ValueError: there are fewer than two values of P, the table mixes model sizes, or E is not
            below all losses; or the fit does not settle.
    """
    table.require(rows=2, sizes=1, streams=2)
    if table.sizes > 1:
        raise ValueError(f"{table.name} has {table.sizes} model sizes; L(P) at fixed N takes one")
    if not 0 < E < table.loss.min():
        raise ValueError(f"E is {E}; it must be above 0 and below the smallest loss, {table.loss.min()}")
    if alpha <= 0:
        raise ValueError(f"alpha is {alpha}; it must be above 0")
    # One size: ln N takes no part, its small changes with P belong to the streams' price.
    problem = _Problem(
        np.zeros(len(table)), table.P, LOGARITHMIC, math.inf, 0.0, free=np.array([False, True, False, True])
    )
    smallest = table.loss[np.argmin(table.P)]
    # k > -1 / ln P everywhere; one start is close to that end.
    ks = np.array([-0.9 / math.log(table.P.max()), 0.0, 0.1, 1.0, 10.0])
    starts = np.tile([math.log(E), math.log(smallest - E), math.log(alpha), 0.0], (len(ks), 1))
    starts[:, 3] = ks
    log_loss = np.log(table.loss)
    found, objective, settled = _solve(problem, starts, log_loss)
    best = int(np.argmin(objective))
    if not settled[best]:
        raise ValueError(f"L(P) does not settle on {table.name}; its losses do not follow such a law")
    theta = found[best : best + 1]
    spare = len(table) - 2
    intervals = None
    if spare > 0:
        log_fit = problem.log_loss(theta)[0][0]
        spread = (log_loss - log_fit) * math.sqrt(len(table) / spare)
        drawn = np.random.default_rng(seed).integers(len(table), size=(resamples, len(table)))
        resampled, _, _ = _solve(problem, np.tile(theta, (resamples, 1)), log_fit + spread[drawn])
        tail = (1 - CONFIDENCE) / 2
        samples = {"single_stream_loss": E + np.exp(resampled[:, 1]), "k": resampled[:, 3]}
        intervals = {
            name: (float(np.quantile(s, tail)), float(np.quantile(s, 1 - tail))) for name, s in samples.items()
        }
    return StreamFit(E, alpha, E + math.exp(theta[0, 1]), float(theta[0, 3]), intervals)


@dataclass(frozen=True)
class _Problem:
    """One design with its law: everything of a fit but the losses and the parameters."""

    log_N: Array
    P: Array
    law: Law
    delta: float
    centre: float
    free: NDArray[np.bool_]

    @classmethod
    def of(cls, table: LossTable, law: Law, delta: float) -> _Problem:
        log_N = np.log(table.N)
        centre = float(log_N.mean())
        return cls(log_N - centre, table.P, law, delta, centre, np.ones(PARAMETER_COUNT, bool))

    def log_loss(self, theta: Array) -> tuple[Array, Array]:
        """Predicted ln L [S, n] and its derivatives [S, n, 4]; theta [S, 4]."""
        log_E, c, log_alpha, stream = (theta[:, i : i + 1] for i in range(PARAMETER_COUNT))
        alpha = np.exp(log_alpha)
        term, term_by_alpha, term_by_stream = self.law.stream_term(self.P, alpha, stream)
        log_s = c - alpha * self.log_N + term
        predicted = np.logaddexp(log_E, log_s)
        share = np.exp(log_s - predicted)
        by_alpha = share * (term_by_alpha - alpha * self.log_N)
        derivatives = np.stack([1 - share, share, by_alpha, share * term_by_stream], axis=-1)
        return predicted, derivatives * self.free

    def objective(self, residuals: Array, weights: Array) -> Array:
        """Summed Huber loss [S]."""
        size = np.abs(residuals)
        inside = 0.5 * size**2
        outside = self.delta * (size - 0.5 * self.delta)
        return np.sum(weights * np.where(size <= self.delta, inside, outside), axis=1)


def _solve(
    problem: _Problem, theta: Array, log_loss: Array, weights: Array | None = None
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Minimise the objective from each start of `theta` [S, 4].

    `log_loss` is [n] or [S, n]; `weights` [S, n] leaves rows out (0) or in (1). Each step solves the
    normal equations of the quadratic that majorises the Huber loss at the present residuals, damped
    after Levenberg and Marquardt; steps that do not improve a fit are not taken.

    Returns:
        Parameters [S, 4], objectives [S], and whether each has settled [S].
    """
    fits = len(theta)
    log_loss = np.broadcast_to(log_loss, (fits, len(problem.P)))
    weights = np.ones_like(log_loss) if weights is None else weights
    theta = theta.copy()
    damping = np.full(fits, 1e-3)
    idle = np.zeros(fits, int)
    active = np.arange(fits)
    # A step may leave the domain of a logarithm; its objective is then NaN and it is not taken.
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        predicted, derivatives = problem.log_loss(theta)
        objective = problem.objective(predicted - log_loss, weights)
        for _ in range(_MAX_ITERATIONS):
            target, used = log_loss[active], weights[active]
            residuals = predicted[active] - target
            step = _step(problem, residuals, derivatives[active], used, damping[active])
            trial = theta[active] + step
            trial_predicted, trial_derivatives = problem.log_loss(trial)
            trial_objective = problem.objective(trial_predicted - target, used)
            better = trial_objective <= objective[active]
            gained = better & (objective[active] - trial_objective > _LITTLE * objective[active])
            # A step out of the domain says nothing about having arrived: it is tried again, shorter.
            outside = ~np.isfinite(trial_objective)
            idle[active] = np.where(gained, 0, np.where(outside, idle[active], idle[active] + 1))
            taken = active[better]
            theta[taken], objective[taken] = trial[better], trial_objective[better]
            predicted[taken], derivatives[taken] = trial_predicted[better], trial_derivatives[better]
            damping[active] = np.where(
                better, np.maximum(damping[active] / 5, 1e-12), np.minimum(damping[active] * 4, 1e12)
            )
            active = active[idle[active] < _PATIENCE]
            if not len(active):
                break
    return theta, objective, idle >= _PATIENCE


def _step(problem: _Problem, residuals: Array, derivatives: Array, weights: Array, damping: Array) -> Array:
    size = np.maximum(np.abs(residuals), np.finfo(float).tiny)
    reweighted = weights * np.minimum(1, problem.delta / size)
    gradient = np.einsum("sn,snp->sp", reweighted * residuals, derivatives)
    curvature = np.einsum("sn,snp,snq->spq", reweighted, derivatives, derivatives)
    scale = np.einsum("sn,snp->sp", weights, derivatives**2)
    # In units of each parameter's influence the system cannot be singular. A parameter without influence
    # (or fixed) gets a unit diagonal, hence no step.
    size_of_unit = np.sqrt(scale)
    known = size_of_unit > np.sqrt(np.finfo(float).tiny)
    unit = np.where(known, 1 / np.where(known, size_of_unit, 1.0), 0.0)
    diagonal = np.where(known, damping[:, None], 1.0)
    system = unit[:, :, None] * curvature * unit[:, None, :] + diagonal[:, :, None] * np.eye(PARAMETER_COUNT)
    return -unit * np.linalg.solve(system, (unit * gradient)[:, :, None])[:, :, 0]


def _starts(table: LossTable, law: Law) -> Array:
    log_N = np.log(table.N)
    design = np.stack([np.ones(len(table)), log_N.mean() - log_N], axis=1)
    starts = []
    for share in _E_SHARES:
        E = share * table.loss.min()
        c, alpha = np.linalg.lstsq(design, np.log(table.loss - E), rcond=None)[0]
        starts += [[math.log(E), c, math.log(max(alpha, 0.01)), stream] for stream in law.starts]
    return np.array(starts)


def _leave_one_out(problem: _Problem, start: Array, table: LossTable) -> Array:
    n = len(table)
    theta, _, _ = _solve(problem, np.tile(start, (n, 1)), np.log(table.loss), 1 - np.eye(n))
    return np.exp(np.diagonal(problem.log_loss(theta)[0]))


def _values_of(theta: Array, centre: float) -> Array:
    """(E, A, stream, alpha) [S, 4] from the solver's parameters [S, 4]."""
    alpha = np.exp(theta[:, 2])
    # As alpha goes to zero, A goes to infinity; a resample may get there.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        A = np.exp(centre + theta[:, 1] / alpha)
    return np.stack([np.exp(theta[:, 0]), A, theta[:, 3], alpha], axis=1)


def _theta_of(fitted: Fit, centre: float) -> Array:
    c = fitted.alpha * (math.log(fitted.A) - centre)
    return np.array([math.log(fitted.E), c, math.log(fitted.alpha), fitted.stream])


def _predict(law: Law, values: Array, N: Array, P: Array) -> Array:
    E, A, stream, alpha = values
    shape = np.broadcast_shapes(N.shape, P.shape)
    flat_P = np.broadcast_to(P, shape).ravel()
    term = law.stream_term(flat_P, np.array([[alpha]]), np.array([[stream]]))[0][0]
    return E + (A / N) ** alpha * np.exp(term).reshape(shape)


def _fit_of(problem: _Problem, theta: Array, objective: float, table: LossTable) -> Fit:
    values = _values_of(theta[None], problem.centre)[0]
    residuals = table.loss - _predict(problem.law, values, table.N, table.P)
    spread = table.loss - table.loss.mean()
    E, A, stream, alpha = map(float, values)
    return Fit(
        problem.law,
        E,
        A,
        stream,
        alpha,
        objective=objective,
        r_squared=1 - float(residuals @ residuals) / float(spread @ spread),
    )
