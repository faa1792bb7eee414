"""What a clone tells: fate probabilities as a prior, the outcomes of sisters as evidence."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
# Probability, before the clones are seen, that sisters tell of their own clone.
TOLD = 0.5
STEP = 1e-3  # for the curvature of the likelihood


@dataclass(frozen=True, eq=False)
class CloneModel:
    r"""How fates and the outcomes of sisters belong together.

    The fates :math:`f` of a cell are first brought in line with the clones, :math:`m \propto f^\gamma e^b`. The
    composition of its clone is Dirichlet around them, with concentration :math:`\alpha`. Sisters that were kept
    together are alike by more than that, with correlation :math:`\rho`.

    This is so with the probability ``told``. Otherwise sisters tell nothing of their own clone: all clones together
    either bring fates in line, which is ``in_line`` with a probability of its own, or leave them as they are.
    """

    sharpness: float
    offset: FloatArray
    concentration: float
    correlation: float
    mean: FloatArray
    log_likelihood: float
    evidence: float
    told: float = 1.0
    in_line: CloneModel | None = None

    def prior(self, fates: FloatArray) -> FloatArray:
        """Return fates in line with the clones."""
        return np.asarray(softmax(self.sharpness * _log(fates, self.mean) + self.offset, axis=1))

    def effective(self, counts: FloatArray) -> FloatArray:
        """Return what sisters that were kept together count for."""
        return counts * _worth(counts.sum(axis=1, keepdims=True), self.correlation)

    def posterior(self, fates: FloatArray, counts: FloatArray) -> FloatArray:
        """Return fates after the evidence of counts that are independent, both ``[n, n_fates]``."""
        total = self.concentration + counts.sum(axis=1, keepdims=True)
        found = self.told * (self.concentration * self.prior(fates) + counts) / total
        left = 1.0 - self.told
        if self.in_line is not None:
            found += self.in_line.told * self.in_line.prior(fates)
            left -= self.in_line.told
        return np.asarray(found + left * fates)

    def weight(self, n: FloatArray) -> FloatArray:
        """Return the weight of the evidence of ``n`` independent sisters."""
        return np.asarray(self.told * n / (self.concentration + n))


def _log(fates: FloatArray, mean: FloatArray) -> FloatArray:
    return np.asarray(np.log((1 - MIXED) * fates + MIXED * mean))


def _worth(n: FloatArray, correlation: float) -> FloatArray:
    """Return what a member of a group of ``n`` counts for, in independent ones."""
    return np.asarray(1.0 / (1.0 + np.maximum(n - 1.0, 0.0) * correlation))


def fit_clones(sisters: Sisters, fates: FloatArray, *, recalibrate: bool = True) -> CloneModel:
    """Fit sharpness, offsets and concentration by the marginal likelihood of the outcomes, a Dirichlet-multinomial.

    ``fates`` are those of the early cells, ``[n, n_fates]``. The correlation within groups is that which pairs of
    sisters of one group agree more often than pairs of two groups of a clone; zero where each has one group only. The
    model is weighed against those in which sisters tell nothing of their own clone.
    """
    mean = sisters.mean(fates).mean(axis=0)
    log = _log(fates, mean)
    correlation = 0.0
    model = _maximise(_Likelihood.of(sisters, log, mean, correlation, recalibrate))
    for _ in range(N_ROUNDS):
        before, correlation = correlation, _correlation(sisters, model.prior(fates))
        if abs(correlation - before) < SETTLED:
            break
        model = _maximise(_Likelihood.of(sisters, log, mean, correlation, recalibrate), model)
    others = [
        _maximise(_Likelihood.of(sisters, log, mean, model.correlation, in_line, told=False))
        for in_line in ([False, True] if recalibrate else [False])
    ]
    return _weighed(model, others)


def _weighed(model: CloneModel, others: list[CloneModel]) -> CloneModel:
    """Return the model with its probability beside others, the first of which leaves fates as they are."""
    before = np.array([TOLD, *([(1 - TOLD) / len(others)] * len(others))])
    chances = softmax([one.evidence for one in (model, *others)] + np.log(before))
    in_line = replace(others[1], told=float(chances[2])) if len(others) > 1 else None
    return replace(model, told=float(chances[0]), in_line=in_line)


@dataclass(frozen=True, eq=False)
class _Likelihood:
    """Likelihood of the outcomes and priors, of log concentration, log sharpness and offsets; some are not ``free``.

    Without a concentration, sisters are independent.
    """

    sisters: Sisters
    log: FloatArray
    mean: FloatArray
    correlation: float
    free: NDArray[np.bool_]
    counts: FloatArray
    weight: FloatArray
    share: FloatArray

    @classmethod
    def of(
        cls,
        sisters: Sisters,
        log: FloatArray,
        mean: FloatArray,
        correlation: float,
        recalibrate: bool,
        *,
        told: bool = True,
    ) -> _Likelihood:
        """Return it for a given correlation."""
        n = sisters.group_counts.sum(axis=1, keepdims=True)
        return cls(
            sisters=sisters,
            log=log,
            mean=mean,
            correlation=correlation,
            free=np.array([told, *([recalibrate] * (1 + mean.size))]),
            counts=sisters.summed(sisters.group_counts * _worth(n, correlation)),
            # The units of a clone share their sisters.
            weight=1.0 / np.bincount(sisters.clone)[sisters.clone],
            share=1.0 / sisters.unit_size[sisters.unit],
        )

    @property
    def sd(self) -> FloatArray:
        """Spread of the priors."""
        return np.concatenate([[PRIOR_SD[2]], [PRIOR_SD[0]], np.full(self.mean.size, PRIOR_SD[1])])

    def __call__(self, values: FloatArray) -> tuple[float, FloatArray]:
        """Return the negative logarithm, and its gradient."""
        gamma = np.exp(values[1])
        prior = softmax(gamma * self.log + values[2:], axis=1)
        each, by_alpha, by_mean = self._outcomes(
            np.exp(values[0]), np.maximum(self.sisters.mean(prior), 1e-12), told=bool(self.free[0])
        )
        by_prior = (self.weight[:, None] * by_mean)[self.sisters.unit] * self.share[:, None]
        by_logit = prior * (by_prior - (prior * by_prior).sum(axis=1, keepdims=True))
        gradient = [[self.weight @ by_alpha], [gamma * (by_logit * self.log).sum()], by_logit.sum(axis=0)]
        away = np.concatenate([[values[0] - MIDDLE], values[1:]]) / self.sd
        loss = -(self.weight @ each) + 0.5 * np.square(away[self.free]).sum()
        return float(loss), np.where(self.free, away / self.sd - np.concatenate(gradient), 0.0)

    def _outcomes(self, alpha: float, m: FloatArray, *, told: bool) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the log-likelihood of each unit, and its derivatives by log alpha and by its expected composition."""
        counts, total = self.counts, self.counts.sum(axis=1)
        if not told:
            return (counts * np.log(m)).sum(axis=1), np.zeros(len(m)), counts / m
        each = gammaln(alpha) - gammaln(alpha + total)
        each = each + (gammaln(alpha * m + counts) - gammaln(alpha * m)).sum(axis=1)
        more = psi(alpha * m + counts) - psi(alpha * m)
        by_alpha = psi(alpha) - psi(alpha + total) + (m * more).sum(axis=1)
        return np.asarray(each), np.asarray(alpha * by_alpha), np.asarray(alpha * more)

    def narrower(self, at: FloatArray) -> float:
        """Return by how many nats less likely than at its best the model is as a whole, after Laplace."""
        if not self.free.any():
            return 0.0
        steps = STEP * np.eye(at.size)[self.free]
        curve = np.array([(self(at + step)[1] - self(at - step)[1])[self.free] for step in steps]) / (2 * STEP)
        sd = self.sd[self.free]
        return float(0.5 * np.linalg.slogdet((curve + curve.T) / 2 * np.outer(sd, sd))[1])


def _maximise(likelihood: _Likelihood, start: CloneModel | None = None) -> CloneModel:
    """Return the model of the largest likelihood."""
    n_fates = likelihood.mean.size
    bounds = [(-np.log(LARGEST), np.log(LARGEST)), *([(-3.0, 3.0)] * (1 + n_fates))]
    first = np.concatenate([[MIDDLE], np.zeros(1 + n_fates)])
    if start is not None:
        first = np.concatenate([[np.log(start.concentration), np.log(start.sharpness)], start.offset])
    found = minimize(likelihood, first, jac=True, method="L-BFGS-B", bounds=bounds)
    return CloneModel(
        sharpness=float(np.exp(found.x[1])),
        offset=found.x[2:] - found.x[2:].mean(),
        concentration=float(np.exp(found.x[0])),
        correlation=likelihood.correlation,
        mean=likelihood.mean,
        log_likelihood=-float(found.fun),
        evidence=-float(found.fun) - likelihood.narrower(found.x),
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
