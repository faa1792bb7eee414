"""What a sample is summed up in: mean fates, shares of cells, speed and direction, each one number for each sample."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellrank_velot._utils.stage import TINY

__all__ = ["cluster_shares", "commitment", "counts", "lineage_shares", "mean_fates", "rotations", "velocities"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# The earliest cells, as a share of all, whose mean fates are those before any choice.
EARLY = 0.1


def commitment(fates: FloatArray, time: FloatArray) -> FloatArray:
    r"""Return how far each cell has chosen among its fates, from 0 to 1, shape ``[n_cells]``.

    It is :math:`1 - H(p) / H(p, p_0)`, one minus the entropy of the fates :math:`p` of the cell over their cross
    entropy with the mean fates :math:`p_0` of the earliest cells. A cell whose fates are those of the start has 0, and
    one that is sure of a fate has 1, be the fate frequent or rare. Cells without fates have 0.
    """
    known = np.isfinite(fates).all(axis=1) & (np.nan_to_num(fates).sum(axis=1) > 0)
    early = known & (time <= np.nanquantile(time[known], EARLY)) if known.any() else known
    p = np.where(known[:, None], fates, 1 / fates.shape[1])
    p = p / p.sum(axis=1, keepdims=True)
    start = np.maximum(p[early].mean(axis=0) if early.any() else np.full(fates.shape[1], 1 / fates.shape[1]), TINY)
    entropy = -(p * np.log(np.maximum(p, TINY))).sum(axis=1)
    cross = -(p * np.log(start)).sum(axis=1)
    chosen = 1 - np.divide(entropy, cross, out=np.ones_like(entropy), where=cross > TINY)
    return np.where(known, np.clip(chosen, 0, 1), 0.0)


def counts(
    sample: IntArray, group: IntArray, n_samples: int, n_groups: int, weight: FloatArray | None = None
) -> FloatArray:
    """Return the cells, or their weight, of each sample in each group, ``[n_samples, n_groups]``; group -1 is none."""
    inside = group >= 0
    place = sample[inside] * n_groups + group[inside]
    weights = None if weight is None else weight[inside]
    return np.bincount(place, weights, minlength=n_samples * n_groups).reshape(n_samples, n_groups).astype(np.float64)


def cluster_shares(sample: IntArray, group: IntArray, n_samples: int, n_groups: int) -> FloatArray:
    """Return the share of the cells of each sample in each group, shape ``[n_samples, n_groups]``."""
    number = counts(sample, group, n_samples, n_groups)
    return _divided(number, number.sum(axis=1, keepdims=True))


def lineage_shares(
    sample: IntArray, fates: FloatArray, chosen: FloatArray, n_samples: int, min_cells: int
) -> tuple[FloatArray, FloatArray]:
    """Return the share of the committed cells of each sample on each lineage, and their number ``[n_samples]``.

    A cell counts by its commitment, and for each lineage by its fate. Samples with too few committed cells have NaN.
    """
    weighted = np.nan_to_num(fates) * chosen[:, None]
    of_sample = _indicator(sample, n_samples)
    sums, number = np.asarray(of_sample @ weighted), np.asarray(of_sample @ chosen)
    shares = _divided(sums, sums.sum(axis=1, keepdims=True))
    shares[number < min_cells] = np.nan
    return shares, number


def mean_fates(
    sample: IntArray, group: IntArray, fates: FloatArray, n_samples: int, n_groups: int, min_cells: int
) -> FloatArray:
    """Return the mean fates of the cells of each sample in each group, shape ``[n_samples, n_groups, n_lineages]``."""
    known = np.isfinite(fates).all(axis=1) & (np.nan_to_num(fates).sum(axis=1) > 0)
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


def _indicator(sample: IntArray, n_samples: int) -> sp.csr_matrix:
    return sp.csr_matrix((np.ones(sample.size), (sample, np.arange(sample.size))), shape=(n_samples, sample.size))


def _divided(values: FloatArray, by: FloatArray) -> FloatArray:
    return np.divide(values, by, out=np.full(values.shape, np.nan), where=by > 0)
