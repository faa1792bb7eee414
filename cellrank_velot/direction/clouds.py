"""Clouds: cells from which all structure was removed but for means and covariances, to compare the true cells with.

A *course* is more than one cloud: the walk over its cells takes longer along it than across. It is also more than
several clouds: there are cells in between. Each comparison draws clouds and measures them as it does the cells.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import t as student
from sklearn.cluster import KMeans

from cellrank_velot.direction._common import FloatArray, IntArray
from cellrank_velot.direction.walk import nearest, slow_modes

__all__ = ["Comparison", "compare_continuity", "compare_length"]

# How much more than by chance counts: logarithms of a ratio. Clouds of real cells are not quite elliptic.
LENGTH_MARGIN, CONTINUITY_MARGIN = 0.15, 0.15
# A number of clouds that explains the cells so well ends the search.
ENOUGH = 0.3
# Below this share of the variance, cells in between are too few to compare.
FEW = 0.01
MOST_CLOUDS = 6
# The modes that separate types are slower than the next one by this much.
GAP = 0.5


class Comparison(NamedTuple):
    """A logarithm measured in the cells, its mean in clouds, and the p-value."""

    observed: float
    chance: float
    p_value: float


def compare_length(x: FloatArray, n_draws: int, rng: np.random.Generator) -> Comparison:
    """Ask whether the cells form a course that is longer than one cloud of the same covariance."""
    drawn = np.array([_length(_cloud(x, rng)) for _ in range(n_draws)])
    return _compare(_length(x), drawn, LENGTH_MARGIN)


def compare_continuity(x: FloatArray, n_draws: int, rng: np.random.Generator) -> Comparison:
    """Ask whether there are more cells in between than between several clouds; the least sure number counts.

    Clouds are the clusters in the slow modes of the walk: k types have k - 1 of them and then a gap. What is compared
    is the variance of the modes within them: types without cells in between are points there.
    """
    walk = slow_modes(nearest(x))
    worst = Comparison(np.nan, np.nan, 0.0)
    gaps = -np.diff(walk.log_steps[:MOST_CLOUDS])
    for n_clouds in 2 + np.flatnonzero(gaps >= min(GAP, gaps.max())):
        modes = _unit(walk.modes[:, : n_clouds - 1])
        labels = KMeans(n_clouds, n_init=4, random_state=int(rng.integers(2**31))).fit_predict(modes)
        drawn = np.array([_in_between(_clouds(x, labels, rng), labels, n_clouds) for _ in range(n_draws)])
        found = _compare(_spread(modes, labels), drawn, CONTINUITY_MARGIN)
        if found.p_value >= worst.p_value:
            worst = found
        if worst.p_value > ENOUGH:
            break
    return worst


def _compare(observed: float, drawn: FloatArray, margin: float) -> Comparison:
    """Return the p-value of a new draw from the normal distribution of which some draws are known."""
    mean, spread = float(drawn.mean()), float(drawn.std(ddof=1))
    z = (observed - margin - mean) / max(spread * np.sqrt(1 + 1 / drawn.size), 1e-9)
    return Comparison(observed, mean, float(student.sf(z, drawn.size - 1)))


def _length(x: FloatArray) -> float:
    """Return how much slower the slowest mode of the walk is than the fifth and later ones, as a logarithm."""
    steps = slow_modes(nearest(x)).log_steps
    return float(steps[0] - steps[4:].mean())


def _in_between(x: FloatArray, labels: IntArray, n_clouds: int) -> float:
    """Return the variance within clusters of the slow modes, which are found anew from those of the clouds."""
    modes = _unit(slow_modes(nearest(x)).modes[:, : n_clouds - 1])
    centres = np.stack([modes[labels == label].mean(axis=0) for label in np.unique(labels)])
    return _spread(modes, KMeans(len(centres), init=centres, n_init=1).fit_predict(modes))


def _spread(modes: FloatArray, labels: IntArray) -> float:
    """Return the logarithm of the share of the variance of the modes that lies within clusters."""
    groups = [modes[labels == label] for label in np.unique(labels)]
    inside = sum(float(((group - group.mean(axis=0)) ** 2).sum()) for group in groups)
    return float(np.log(inside / modes.shape[1] + FEW))


def _unit(modes: FloatArray) -> FloatArray:
    return np.asarray(modes / np.linalg.norm(modes, axis=0))


def _clouds(x: FloatArray, labels: IntArray, rng: np.random.Generator) -> FloatArray:
    """Draw each group of cells anew as a cloud."""
    drawn = np.empty_like(x)
    for label in np.unique(labels):
        inside = labels == label
        drawn[inside] = _cloud(x[inside], rng)
    return drawn


def _cloud(x: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Draw an elliptic cloud of the same mean, covariance and Mahalanobis distances.

    The distances keep what is not Gaussian but no structure either: cells of few counts lie farther out.
    """
    mean = x.mean(axis=0)
    u, scale, axes = np.linalg.svd(x - mean, full_matrices=False)
    kept = scale > scale[0] * 1e-8 if scale.size and scale[0] > 0 else np.zeros(scale.size, dtype=bool)
    if not kept.any() or len(x) < 2 * kept.sum():  # too few cells for distances: each is a mixture of all
        return mean + rng.standard_normal((len(x), len(x))) @ (x - mean) / np.sqrt(len(x))
    u, scale, axes = u[:, kept], scale[kept], axes[kept]
    drawn = rng.standard_normal(u.shape)
    drawn *= (np.linalg.norm(u, axis=1) / np.linalg.norm(drawn, axis=1))[:, None]
    drawn -= drawn.mean(axis=0)
    drawn = np.linalg.solve(np.linalg.cholesky(drawn.T @ drawn), drawn.T).T
    return np.asarray(mean + drawn * scale @ axes)
