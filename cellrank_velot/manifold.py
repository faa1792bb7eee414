"""How far cells lie from the manifold that their neighbours mark out, and how much of that is structure.

Depends on numpy and scipy; knows neither windows nor transport.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

__all__ = ["residuals", "structured_share"]


def residuals(x: NDArray[np.float64], graph: sp.csr_matrix) -> NDArray[np.float64]:
    """Return the way from each cell to the mean of its neighbours.

    Parameters
    ----------
    x
        Positions of shape ``[n_cells, n_dims]``.
    graph
        Neighbour graph of shape ``[n_cells, n_cells]``.

    Returns
    -------
    Displacements of shape ``[n_cells, n_dims]``; zero for a cell without neighbours.
    """
    degree = np.asarray(graph.sum(axis=1)).reshape(-1, 1)
    return np.where(degree > 0, graph @ x / np.where(degree > 0, degree, 1.0) - x, 0.0)


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
    """
    variance = np.linalg.eigvalsh(residual.T @ residual / residual.shape[0])
    variance = variance[variance > variance.size * np.finfo(np.float64).eps * variance.max()]
    if variance.size == 0:
        return 0.0
    floor = np.quantile(variance[variance >= np.median(variance) / 10], 0.25)
    return float(np.clip(1 - floor / variance, 0, 1).mean())
