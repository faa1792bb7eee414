"""Scores of transition matrices: whether a reduced one reproduces the full one, whether steps lead forward in time."""

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

    It is the median over the cells of the correlation of their rows,
    :math:`\mathrm{median}_i\, \mathrm{corr}(\pi_i, \pi'_i)`: the reconstructability score of scVelo :cite:`bergen:20`.

    Parameters
    ----------
    matrix
        Full transition matrix, shape ``[n_cells, n_cells]``.
    reduced
        Reduced transition matrix of the same shape.
    over
        ``"union"`` correlates each row over the cells that one of both matrices leads to; ``"all"`` over all cells.

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
    matrix
        Transition matrix, shape ``[n_cells, n_cells]``.
    reduced
        Another one of the same shape.
    over
        ``"union"`` correlates each row over the cells that one of both matrices leads to. ``"all"`` correlates over all
        cells, most of which have probability zero in both rows: any two matrices of one graph then correlate well.

    Returns
    -------
    Correlations in ``[-1, 1]``, shape ``[n_cells]``. A constant row, such as that of a cell without a neighbour or
    without a velocity, has none: NaN.

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
    rows, values = _aligned(matrix, reduced)
    n_rows, n_cols = matrix.shape
    stored = np.bincount(rows, minlength=n_rows)
    size = np.maximum(stored if over == "union" else n_cols, 1)
    absent = size - stored  # entries that are zero in both rows
    means = np.stack([np.bincount(rows, p, minlength=n_rows) / size for p in values])
    a, b = values - means[:, rows]
    covariance = np.bincount(rows, a * b, minlength=n_rows) + absent * means[0] * means[1]
    squares = np.stack([np.bincount(rows, d * d, minlength=n_rows) for d in (a, b)])
    spreads = np.sqrt(squares + absent * means**2)
    # A row of equal entries varies by rounding only.
    varies = (spreads > 1e-12 * np.abs(means) * size).all(axis=0)
    result = np.full(n_rows, np.nan)
    np.divide(covariance, spreads[0] * spreads[1], out=result, where=varies)
    return np.clip(result, -1, 1)


def step_forward_fraction(matrix: sp.csr_matrix, time: ArrayLike) -> float:
    """Return the share of cells whose expected time after one step, :math:`(T t)_i`, is later than their own.

    Parameters
    ----------
    matrix
        Transition matrix of shape ``[n_cells, n_cells]``.
    time
        Time of each cell, shape ``[n_cells]``, finite.

    Returns
    -------
    Share in ``[0, 1]``. A cell that stays does not count. The share is below one, as the last cells cannot step on.

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


def _aligned(matrix: sp.csr_matrix, reduced: sp.csr_matrix) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the row of each entry that either matrix has, and its value in both, shape ``[2, n_entries]``."""
    if matrix.shape != reduced.shape:
        raise ValueError(f"Expected matrices of one shape, found `{matrix.shape}` and `{reduced.shape}`.")
    entries = [_entries(m) for m in (matrix, reduced)]
    union = np.union1d(entries[0][0], entries[1][0])
    both = np.zeros((2, union.size))
    for row, (place, value) in zip(both, entries, strict=True):
        row[np.searchsorted(union, place)] = value
    return union // max(matrix.shape[1], 1), both


def _entries(matrix: sp.csr_matrix) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the place of each entry, counted row by row, and its value."""
    entries = sp.csr_matrix(matrix, dtype=np.float64, copy=True)
    entries.sum_duplicates()
    entries.eliminate_zeros()
    rows = np.repeat(np.arange(entries.shape[0], dtype=np.int64), np.diff(entries.indptr))
    return rows * entries.shape[1] + entries.indices, entries.data
