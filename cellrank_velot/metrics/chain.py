"""What transition matrices say: how far a reduced one reproduces the full one, and whether steps lead forward in time.

Depends on numpy and scipy; knows neither AnnData nor CellRank.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from cellrank_velot._utils.validation import check_choice

__all__ = ["Over", "reconstructability", "row_correlations", "step_forward_fraction"]

Over = Literal["union", "all"]


def reconstructability(matrix: sp.csr_matrix, reduced: sp.csr_matrix, over: Over = "union") -> float:
    r"""Return how well a reduced transition matrix reproduces the full one.

    :math:`r = \mathrm{median}_i\, \mathrm{corr}(\pi_i, \pi'_i)` of the rows of both matrices, the reconstructability
    score of scVelo :cite:`bergen:20`.

    Parameters
    ----------
    matrix, reduced, over
        As in :func:`row_correlations`.

    Returns
    -------
    Median over the cells that have a correlation, in ``[-1, 1]``; one for equal matrices, NaN where no cell has one.

    Raises
    ------
    ValueError
        If shapes do not fit or ``over`` is unknown.

    Examples
    --------
    >>> full = vk.transition_matrix
    >>> vk = vk.compute_transition_matrix(gene_subset=["Stem", "FateA", "FateB"])
    >>> 0 < metrics.reconstructability(full, vk.transition_matrix) < 1
    True
    """
    correlation = row_correlations(matrix, reduced, over)
    known = np.isfinite(correlation)
    return float(np.median(correlation[known])) if known.any() else float("nan")


def row_correlations(matrix: sp.csr_matrix, reduced: sp.csr_matrix, over: Over = "union") -> NDArray[np.float64]:
    """Return Pearson's correlation of the rows of two transition matrices.

    Parameters
    ----------
    matrix, reduced
        Matrices of shape ``[n_cells, n_cells]``.
    over
        ``"union"`` correlates over the cells that either row leads to. ``"all"`` takes in all other cells, with
        probability zero in both: with few neighbours among many cells it is large for any two matrices of one graph.

    Returns
    -------
    Correlations in ``[-1, 1]``, shape ``[n_cells]``; NaN where a row is constant, e.g. that of a cell without a
    neighbour or without a velocity.

    Raises
    ------
    ValueError
        If shapes do not fit or ``over`` is unknown.

    Examples
    --------
    >>> sharp = vk.transition_matrix.power(2)
    >>> correlations = metrics.row_correlations(vk.transition_matrix, sharp)
    >>> correlations.shape, bool((correlations > 0).all())
    ((300,), True)
    """
    check_choice("over", over, Over)
    rows, a, b, shape = _aligned(matrix, reduced)
    stored = np.bincount(rows, minlength=shape[0])
    size = np.maximum(stored if over == "union" else shape[1], 1)
    mean_a, mean_b = (np.bincount(rows, p, minlength=shape[0]) / size for p in (a, b))
    a, b = a - mean_a[rows], b - mean_b[rows]
    absent = size - stored  # entries that are zero in both rows
    covariance = np.bincount(rows, a * b, minlength=shape[0]) + absent * mean_a * mean_b
    spread_a, spread_b = (
        np.sqrt(np.bincount(rows, d * d, minlength=shape[0]) + absent * m**2) for d, m in ((a, mean_a), (b, mean_b))
    )
    # A row of equal entries varies by rounding only.
    varies = (spread_a > 1e-12 * np.abs(mean_a) * size) & (spread_b > 1e-12 * np.abs(mean_b) * size)
    result = np.full(shape[0], np.nan)
    np.divide(covariance, spread_a * spread_b, out=result, where=varies)
    return np.clip(result, -1, 1)


def step_forward_fraction(matrix: sp.csr_matrix, time: ArrayLike) -> float:
    r"""Return the share of cells whose expected time after a step, :math:`(T t)_i`, is later than their own.

    Parameters
    ----------
    matrix
        Transition matrix of shape ``[n_cells, n_cells]``.
    time
        Time of each cell, shape ``[n_cells]``, finite.

    Returns
    -------
    Share in ``[0, 1]``. The last cells cannot step forward, so that one is out of reach; a cell that stays does not.

    Raises
    ------
    ValueError
        If shapes do not fit or a time is not finite.

    Examples
    --------
    >>> forward = metrics.step_forward_fraction(vk.transition_matrix, vk.cells.time)
    >>> ck = cr.kernels.ConnectivityKernel(adata).compute_transition_matrix()
    >>> metrics.step_forward_fraction(ck.transition_matrix, vk.cells.time) < forward
    True
    """
    times = np.asarray(time, dtype=np.float64)
    if times.ndim != 1 or matrix.shape != (times.size, times.size):
        raise ValueError(f"Expected a square `matrix` and one `time` a cell, found `{matrix.shape}`, `{times.shape}`.")
    if times.size == 0 or not np.isfinite(times).all():
        raise ValueError("Expected a finite `time` for each cell, found none, NaN or infinite values.")
    rounding = 1e-12 * np.abs(times).max()
    return float((matrix @ times - times > rounding).mean())


def _aligned(
    matrix: sp.csr_matrix, reduced: sp.csr_matrix
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], tuple[int, int]]:
    """Return, for each entry that either matrix has, its row and its value in both."""
    if matrix.shape != reduced.shape:
        raise ValueError(f"Expected matrices of one shape, found `{matrix.shape}` and `{reduced.shape}`.")
    keys, values = zip(*(_entries(m) for m in (matrix, reduced)), strict=True)
    union = np.union1d(*keys)
    both = np.zeros((2, union.size))
    for row, key, value in zip(both, keys, values, strict=True):
        row[np.searchsorted(union, key)] = value
    n_rows, n_cols = matrix.shape
    return union // max(n_cols, 1), both[0], both[1], (n_rows, n_cols)


def _entries(matrix: sp.csr_matrix) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the place of each entry, counted row by row, and its value."""
    entries = sp.csr_matrix(matrix, dtype=np.float64, copy=True)
    entries.sum_duplicates()
    entries.eliminate_zeros()
    rows = np.repeat(np.arange(entries.shape[0], dtype=np.int64), np.diff(entries.indptr))
    return rows * entries.shape[1] + entries.indices, entries.data
