"""How far cells lie from the manifold that their neighbours mark out, and how much of that is structure.

Depends on compiled, numpy and scipy; knows neither windows nor transport.
"""

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
    """Return the way from each cell to the mean of its neighbours.

    Parameters
    ----------
    x
        Positions of shape ``[n_cells, n_dims]``.
    graph
        Neighbour graph of shape ``[n_cells, n_cells]``.
    cells
        Positions of the cells to return it for, shape ``[n]``; all of them where not given.
    n_jobs
        Number of jobs, see :func:`cellrank_velot.transport.velocity.compute_velocity`.

    Returns
    -------
    Displacements of shape ``[n_cells, n_dims]``; zero for a cell without neighbours.

    Examples
    --------
    >>> import scipy.sparse as sp
    >>> from cellrank_velot.graph.residuals import residuals
    >>> line = sp.csr_matrix([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    >>> residuals(np.array([[0.0], [3.0], [2.0]]), line).tolist()
    [[3.0], [-2.0], [1.0]]
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
    r"""Return the share of the deviation from the manifold that is more than noise of measurement, in ``[0, 1]``.

    The residuals have, in each principal direction, a variance :math:`s_k`. Noise of measurement has one variance in
    all of them: the lower quartile :math:`s` of those that reach a tenth of their median. What exceeds it is structure,
    and the share is the mean over the directions of :math:`1 - s / s_k`, the gain of a Wiener filter, or zero where
    that is negative. Directions in which no cell deviates don't count. That noise is equal in all directions is an
    assumption, and the quartile a convention: structure that spreads over all directions alike cannot be told from
    noise, nor noise that doesn't from structure.

    Parameters
    ----------
    residual
        Way from each cell to the manifold, shape ``[n_cells, n_dims]``.

    Returns
    -------
    The share; zero where no cell deviates.

    Examples
    --------
    >>> from cellrank_velot.graph.residuals import structured_share
    >>> noise = np.random.default_rng(0).normal(size=(500, 10))
    >>> more = np.array([5.0] * 3 + [1.0] * 7)  # than noise, in three directions
    >>> structured_share(noise) < 0.2 < structured_share(noise * more)
    True
    """
    variance = np.linalg.eigvalsh(residual.T @ residual / residual.shape[0])
    variance = variance[variance > variance.size * np.finfo(np.float64).eps * variance.max()]
    if variance.size == 0:
        return 0.0
    floor = np.quantile(variance[variance >= np.median(variance) / 10], 0.25)
    return float(np.clip(1 - floor / variance, 0, 1).mean())
