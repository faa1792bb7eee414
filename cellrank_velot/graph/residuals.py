"""The residual of each cell, which is the way to its neighbours' mean, and how much of it is more than noise."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellrank_velot._utils.parallel import blocks, run
from cellrank_velot.graph.compiled import neighbor_means

__all__ = ["residuals", "structured_share"]

# Cells of one task.
BLOCK_CELLS = 32_768


def residuals(
    x: NDArray[np.float64],
    graph: sp.csr_matrix,
    cells: NDArray[np.int64] | None = None,
    *,
    n_jobs: int | None = None,
) -> NDArray[np.float64]:
    """Return the way from each cell, or each of ``cells``, to its neighbours' weighted mean, ``[n_cells, n_dims]``.

    It is zero for a cell without neighbours.
    """
    rows = np.arange(x.shape[0]) if cells is None else cells
    x = np.ascontiguousarray(x, dtype=np.float64)
    weights = np.asarray(graph.data, dtype=np.float64)
    parts = [slice(*part) for part in blocks(rows.size, BLOCK_CELLS)]
    shared = (x, graph.indptr, graph.indices, weights)
    means = run(neighbor_means, [(rows[part],) for part in parts], shared, n_jobs=n_jobs)
    out = np.empty((rows.size, x.shape[1]))
    with closing(means):
        for part, mean in zip(parts, means, strict=True):
            np.subtract(mean, x[rows[part]], out=out[part])
    return out


def structured_share(residual: NDArray[np.float64]) -> float:
    r"""Return the share of the residuals, shape ``[n_cells, n_dims]``, that is more than noise, in ``[0, 1]``.

    The residuals have a variance :math:`s_k` in each principal direction. We take the noise to have one variance
    :math:`s` in all directions: the lower quartile of the variances that reach a tenth of their median. The share is
    the mean of :math:`\max(0, 1 - s / s_k)`, the gain of a Wiener filter, over the directions with any variance. It
    is zero where no cell deviates. Structure that is equal in all directions counts as noise.
    """
    variance = np.linalg.eigvalsh(residual.T @ residual / residual.shape[0])
    variance = variance[variance > variance.size * np.finfo(np.float64).eps * variance.max()]
    if variance.size == 0:
        return 0.0
    floor = np.quantile(variance[variance >= np.median(variance) / 10], 0.25)
    return float(np.clip(1 - floor / variance, 0, 1).mean())
