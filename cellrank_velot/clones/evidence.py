"""What a clone tells: fate probabilities as a prior, the outcomes of sisters as evidence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import gammaln, psi, softmax

from cellrank_velot.clones.sisters import Sisters

__all__ = ["CloneModel", "fit_clones"]

FloatArray = NDArray[np.float64]

# Share of the mean fates that is mixed into those of a cell: a probability of zero could not be mended.
MIXED = 0.01
# Spread of the priors: of the log sharpness, of the offsets of the fates, and of the log concentration around its
# middle. They only matter where there are few clones.
PRIOR_SD, MIDDLE = (0.5, 1.0, 2.0), np.log(2.0)
LARGEST = 1e4
N_ROUNDS, SETTLED = 2, 0.005


@dataclass(frozen=True, eq=False)
class CloneModel:
    r"""How fates and the outcomes of sisters belong together.

    The fates :math:`f` of a cell are first brought in line with the clones, :math:`m \propto f^\gamma e^b`. The
    composition of its clone is Dirichlet around them, with concentration :math:`\alpha`. Sisters that were kept
    together are alike by more than that, with correlation :math:`\rho`.
    """

    sharpness: float
    offset: FloatArray
    concentration: float
    correlation: float
    mean: FloatArray
    log_likelihood: float

    def prior(self, fates: FloatArray) -> FloatArray:
        """Return fates in line with the clones."""
        return np.asarray(softmax(self.sharpness * _log(fates, self.mean) + self.offset, axis=1))

    def effective(self, counts: FloatArray) -> FloatArray:
        """Return what sisters that were kept together count for."""
        return counts * _worth(counts.sum(axis=1, keepdims=True), self.correlation)

    def posterior(self, fates: FloatArray, counts: FloatArray) -> FloatArray:
        """Return fates after the evidence of counts that are independent, both ``[n, n_fates]``."""
        total = self.concentration + counts.sum(axis=1, keepdims=True)
        return np.asarray((self.concentration * self.prior(fates) + counts) / total)


def _log(fates: FloatArray, mean: FloatArray) -> FloatArray:
    return np.asarray(np.log((1 - MIXED) * fates + MIXED * mean))


def _worth(n: FloatArray, correlation: float) -> FloatArray:
    """Return what a member of a group of ``n`` counts for, in independent ones."""
    return np.asarray(1.0 / (1.0 + np.maximum(n - 1.0, 0.0) * correlation))


def fit_clones(sisters: Sisters, fates: FloatArray, *, recalibrate: bool = True) -> CloneModel:
    """Fit sharpness, offsets and concentration by the marginal likelihood of the outcomes, a Dirichlet-multinomial.

    ``fates`` are those of the early cells, ``[n, n_fates]``. The correlation within groups is that which pairs of
    sisters of one group agree more often than pairs of two groups of a clone; zero where each has one group only.
    """
    mean = sisters.mean(fates).mean(axis=0)
    log = _log(fates, mean)
    correlation = 0.0
    model = _maximise(sisters, log, mean, correlation, recalibrate)
    for _ in range(N_ROUNDS):
        before, correlation = correlation, _correlation(sisters, model.prior(fates))
        if abs(correlation - before) < SETTLED:
            break
        model = _maximise(sisters, log, mean, correlation, recalibrate, model)
    return model


def _maximise(
    sisters: Sisters,
    log: FloatArray,
    mean: FloatArray,
    correlation: float,
    recalibrate: bool,
    start: CloneModel | None = None,
) -> CloneModel:
    """Maximise the marginal likelihood for a given correlation."""
    n = sisters.group_counts.sum(axis=1, keepdims=True)
    counts = sisters.summed(sisters.group_counts * _worth(n, correlation))
    total = counts.sum(axis=1)
    # The units of a clone share their sisters.
    weight = 1.0 / np.bincount(sisters.clone)[sisters.clone]
    share = 1.0 / sisters.unit_size[sisters.unit]
    n_fates = counts.shape[1]

    def loss(values: FloatArray) -> tuple[float, FloatArray]:
        log_alpha, log_gamma, offset = values[0], values[1], values[2:]
        alpha, gamma = np.exp(log_alpha), np.exp(log_gamma)
        prior = softmax(gamma * log + offset, axis=1)
        m = np.maximum(sisters.mean(prior), 1e-12)
        more = psi(alpha * m + counts) - psi(alpha * m)
        each = gammaln(alpha) - gammaln(alpha + total) + (gammaln(alpha * m + counts) - gammaln(alpha * m)).sum(axis=1)
        by_alpha = weight @ (psi(alpha) - psi(alpha + total) + (m * more).sum(axis=1))
        by_prior = (weight[:, None] * alpha * more)[sisters.unit] * share[:, None]
        by_logit = prior * (by_prior - (prior * by_prior).sum(axis=1, keepdims=True))
        gradient = np.concatenate([[alpha * by_alpha], [gamma * (by_logit * log).sum()], by_logit.sum(axis=0)])
        if not recalibrate:
            gradient[1:] = 0.0
        away = np.concatenate([[log_alpha - MIDDLE], values[1:]])
        sd = np.concatenate([[PRIOR_SD[2]], [PRIOR_SD[0]], np.full(n_fates, PRIOR_SD[1])])
        return float(-(weight @ each) + 0.5 * ((away / sd) ** 2).sum()), -gradient + away / sd**2

    bounds = [(-np.log(LARGEST), np.log(LARGEST)), *([(-3.0, 3.0)] * (1 + n_fates))]
    first = np.concatenate([[MIDDLE], np.zeros(1 + n_fates)])
    if start is not None:
        first = np.concatenate([[np.log(start.concentration), np.log(start.sharpness)], start.offset])
    found = minimize(loss, first, jac=True, method="L-BFGS-B", bounds=bounds)
    offset = found.x[2:] - found.x[2:].mean()
    return CloneModel(
        sharpness=float(np.exp(found.x[1])),
        offset=offset,
        concentration=float(np.exp(found.x[0])),
        correlation=correlation,
        mean=mean,
        log_likelihood=float(-found.fun),
    )


def _correlation(sisters: Sisters, prior: FloatArray) -> float:
    r"""Return how much more than their clone sisters of one group are alike.

    With the expected composition :math:`m`, two members of a clone agree with the probability :math:`s + r (1 - s)`,
    :math:`s = \sum_k m_k^2`; r is that of two groups or of one, and the rest of the latter is what is asked for.
    """
    m = sisters.mean(prior)
    by_chance = (m**2).sum(axis=1)
    groups, unit = sisters.group_counts, sisters.group_unit
    n = groups.sum(axis=1)
    pairs_in, agree_in = n * (n - 1), (groups * (groups - 1)).sum(axis=1)
    total = sisters.counts
    size = total.sum(axis=1)
    pairs_all, agree_all = size * (size - 1), (total * (total - 1)).sum(axis=1)
    pairs_of: FloatArray = np.bincount(unit, pairs_in, minlength=size.size).astype(np.float64)
    agree_of: FloatArray = np.bincount(unit, agree_in, minlength=size.size).astype(np.float64)
    within = _excess(agree_of, pairs_of, by_chance, size)
    across = _excess(agree_all - agree_of, pairs_all - pairs_of, by_chance, size)
    if not np.isfinite(within) or not np.isfinite(across) or across >= 1:
        return 0.0
    return float(np.clip(1 - (1 - within) / (1 - np.clip(across, 0, 1)), 0, 0.99))


def _excess(agree: FloatArray, pairs: FloatArray, by_chance: FloatArray, size: FloatArray) -> float:
    """Return the share of pairs that agree beyond chance; units count by their size, not by their pairs."""
    known = pairs > 0
    if not known.any():
        return float("nan")
    weight = size[known]
    observed = weight @ (agree[known] / pairs[known]) / weight.sum()
    chance = weight @ by_chance[known] / weight.sum()
    return float((observed - chance) / max(1 - chance, 1e-9))
