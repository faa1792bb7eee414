"""What a sample is summed up in: mean fates, shares of cells, speed and direction, each one number for each sample."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellrank_velot._utils.stage import TINY

__all__ = [
    "cluster_shares",
    "commitment",
    "counts",
    "has_fates",
    "lineage_shares",
    "mean_fates",
    "rotations",
    "start_fates",
    "velocities",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# The earliest cells, as a share of all, whose mean fates are those before any choice.
EARLY = 0.1
# A chance at the start that stands for none: what is never reached from there has no likelihood.
RARE = 1e-3
MOST_ROUNDS, TOLERANCE = 2000, 1e-7


def commitment(fates: FloatArray, time: FloatArray) -> FloatArray:
    r"""Return how far each cell has chosen among its fates, from 0 to 1, shape ``[n_cells]``.

    It is the largest :math:`(p_a - s_a) / (1 - s_a)` over the fates :math:`a`, where :math:`s` are the mean fates of
    the earliest cells: the share of the way from there to being sure. Cells without fates have 0.

    Parameters
    ----------
    fates
        Fates of the cells, shape ``[n_cells, n_lineages]``, NaN for none.
    time
        Time of the cells, shape ``[n_cells]``.
    """
    start = start_fates(fates, time)
    way = (fates - start) / np.maximum(1 - start, TINY)
    return np.where(has_fates(fates), np.clip(np.nan_to_num(way).max(axis=1), 0, 1), 0.0)


def start_fates(fates: FloatArray, time: FloatArray) -> FloatArray:
    """Return the mean fates of the earliest cells, shape ``[n_lineages]``, none of them zero."""
    known = has_fates(fates)
    if not known.any():
        return np.full(fates.shape[1], 1 / fates.shape[1])
    early = known & (time <= np.quantile(time[known], EARLY))
    start = np.maximum(fates[early].mean(axis=0), RARE)
    return np.asarray(start / start.sum())


def has_fates(fates: FloatArray) -> NDArray[np.bool_]:
    """Return which cells have fates, shape ``[n_cells]``."""
    return np.asarray(np.isfinite(fates).all(axis=1) & (np.nan_to_num(fates).sum(axis=1) > 0))


def counts(sample: IntArray, group: IntArray, n_samples: int, n_groups: int) -> FloatArray:
    """Return the number of cells of each sample in each group, ``[n_samples, n_groups]``; group -1 is none."""
    inside = group >= 0
    place = sample[inside] * n_groups + group[inside]
    return np.bincount(place, minlength=n_samples * n_groups).reshape(n_samples, n_groups).astype(np.float64)


def cluster_shares(sample: IntArray, group: IntArray, n_samples: int, n_groups: int) -> FloatArray:
    """Return the share of the cells of each sample in each group, shape ``[n_samples, n_groups]``."""
    number = counts(sample, group, n_samples, n_groups)
    return _divided(number, number.sum(axis=1, keepdims=True))


def lineage_shares(
    sample: IntArray, fates: FloatArray, start: FloatArray, chosen: FloatArray, n_samples: int, min_cells: int
) -> tuple[FloatArray, FloatArray]:
    r"""Return the chance of each lineage in each sample, and the number of its committed cells ``[n_samples]``.

    One chain gave the fates :math:`p_i` of all cells, with the chances :math:`s` at its start. In a sample with other
    chances :math:`x`, a cell stands where it stands with a likelihood in proportion to :math:`\sum_a x_a p_{ia} / s_a`.
    The chances are those of maximum likelihood, found by expectation and maximisation :cite:`saerens:02`. Cells whose
    fates are those of the start tell nothing. Samples with too few committed cells have NaN.
    """
    number: FloatArray = np.bincount(sample, chosen, minlength=n_samples).astype(np.float64)
    shares = np.full((n_samples, fates.shape[1]), np.nan)
    known = has_fates(fates)
    for one in np.flatnonzero(number >= min_cells):
        shares[one] = _most_likely(fates[known & (sample == one)] / start, start)
    return shares, number


def _most_likely(ratios: FloatArray, start: FloatArray) -> FloatArray:
    """Return the chances that make cells with these ratios of likelihoods most likely."""
    chances = start
    for _ in range(MOST_ROUNDS):
        parts = chances * ratios
        parts = parts / np.maximum(parts.sum(axis=1, keepdims=True), TINY)
        found = parts.mean(axis=0)
        change, chances = np.abs(found - chances).max(), found
        if change < TOLERANCE:
            break
    return np.asarray(chances)


def mean_fates(
    sample: IntArray, group: IntArray, fates: FloatArray, n_samples: int, n_groups: int, min_cells: int
) -> FloatArray:
    """Return the mean fates of the cells of each sample in each group, shape ``[n_samples, n_groups, n_lineages]``."""
    known = has_fates(fates)
    return _means(sample, np.where(known, group, -1), np.nan_to_num(fates), n_samples, n_groups, min_cells)


def velocities(
    sample: IntArray, group: IntArray, velocity: FloatArray, n_samples: int, n_groups: int, min_cells: int
) -> tuple[FloatArray, FloatArray]:
    """Return the mean speed ``[n_samples, n_groups]`` and the mean velocity ``[n_samples, n_groups, n_dims]``."""
    known = np.asarray(np.isfinite(velocity).all(axis=1))
    clean = np.where(known[:, None], velocity, 0.0)
    both = np.column_stack([np.linalg.norm(clean, axis=1), clean])
    means = _means(sample, np.where(known, group, -1), both, n_samples, n_groups, min_cells)
    return means[..., 0], means[..., 1:]


def rotations(mean: FloatArray, condition: IntArray) -> FloatArray:
    """Return where the mean direction of each sample stands in each group, in degrees, ``[n_samples, n_groups]``.

    Of ``mean [n_samples, n_groups, n_dims]``, directions are turned within the plane in which those of the samples
    differ most. The plane is found without regard to conditions; those but the first stand on its positive side.
    """
    angles = np.full(mean.shape[:2], np.nan)
    for group in range(mean.shape[1]):
        known = np.isfinite(mean[:, group]).all(axis=1)
        known &= np.linalg.norm(np.nan_to_num(mean[:, group]), axis=1) > TINY
        if known.sum() < 2:
            continue
        unit = mean[known, group] / np.linalg.norm(mean[known, group], axis=1, keepdims=True)
        centre = unit.mean(axis=0)
        if np.linalg.norm(centre) < 1e-6:
            continue
        centre = centre / np.linalg.norm(centre)
        along = unit @ centre
        across = unit - along[:, None] * centre
        _, _, axes = np.linalg.svd(across - across.mean(axis=0), full_matrices=False)
        found = np.degrees(np.arctan2(across @ axes[0], along))
        others = condition[known] > 0
        if others.any() and (~others).any() and found[others].mean() < found[~others].mean():
            found = -found
        angles[known, group] = found
    return angles


def _means(
    sample: IntArray, group: IntArray, values: FloatArray, n_samples: int, n_groups: int, min_cells: int
) -> FloatArray:
    """Return means over the cells of each sample in each group, NaN of fewer cells than enough."""
    inside = np.flatnonzero(group >= 0)
    place = sample[inside] * n_groups + group[inside]
    where = sp.csr_matrix((np.ones(inside.size), (place, inside)), shape=(n_samples * n_groups, values.shape[0]))
    number = np.asarray(where.sum(axis=1)).ravel()
    means = _divided(np.asarray(where @ values), number[:, None])
    means[number < min_cells] = np.nan
    return means.reshape(n_samples, n_groups, values.shape[1])


def _divided(values: FloatArray, by: FloatArray) -> FloatArray:
    return np.divide(values, by, out=np.full(values.shape, np.nan), where=by > 0)
