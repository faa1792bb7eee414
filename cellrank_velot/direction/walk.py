"""A random walk over the cells: their nearest neighbours, its slow modes, and the pseudotime that follows from them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import eigsh

from cellrank_velot.direction._common import FloatArray, IntArray

__all__ = ["Walk", "N_MODES", "nearest", "parts", "rooted_time", "slow_modes"]

N_MODES = 10


class Walk(NamedTuple):
    """Slow modes of the walk: eigenvalues below one, and eigenvectors of shape ``[n_cells, n_modes]``."""

    eigenvalues: FloatArray
    modes: FloatArray

    @property
    def log_steps(self) -> FloatArray:
        """Logarithm of the number of steps in which each mode decays, the slowest first."""
        return -np.log(np.maximum(1 - self.eigenvalues, 1e-6))


def nearest(x: FloatArray) -> sp.csr_matrix:
    """Return a symmetric graph of a tenth of the cells, 10 to 30, as neighbours with Gaussian weights."""
    n = len(x)
    k = min(max(n // 10, 10), 30, n - 1)
    x = x - x.mean(axis=0)
    norm = (x**2).sum(axis=1)
    square = norm[:, None] + norm - 2 * x @ x.T
    np.fill_diagonal(square, np.inf)
    column = np.argpartition(square, k - 1, axis=1)[:, :k]
    square = np.take_along_axis(square, column, axis=1).clip(0)
    # Where most cells lie at one place: not so small that a product vanishes or a ratio has no end.
    width = np.maximum(np.median(square, axis=1), max(1e-12 * square.max(), 1e-150))
    weight = np.exp(-square / np.sqrt(width[:, None] * width[column]))
    graph = sp.csr_matrix((weight.ravel(), column.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
    return graph.maximum(graph.T).tocsr()


def parts(graph: sp.csr_matrix) -> IntArray:
    """Return the connected part of each cell, shape ``[n_cells]``."""
    return np.asarray(sp.csgraph.connected_components(graph, directed=False)[1], dtype=np.int64)


def slow_modes(graph: sp.csr_matrix) -> Walk:
    """Return the slowest modes of the walk on a connected graph whose density has been divided out, as for DPT."""
    degree = sp.diags(1 / np.asarray(graph.sum(axis=1)).ravel())
    kernel = sp.csr_matrix(degree @ graph @ degree)
    root = np.sqrt(np.asarray(kernel.sum(axis=1)).ravel())
    walk = sp.csr_matrix(sp.diags(1 / root) @ kernel @ sp.diags(1 / root))
    n_modes = min(N_MODES + 1, graph.shape[0] - 2)
    values, vectors = eigsh(walk, n_modes, v0=root, tol=1e-4)
    order = np.argsort(-values)[1:]
    return Walk(values[order], vectors[:, order] / root[:, None] * np.linalg.norm(root))


def rooted_time(walk: Walk, first: IntArray) -> FloatArray:
    """Return the ranks, in [0, 1], of the diffusion pseudotime :cite:p:`haghverdi:16` from the mean of some cells."""
    eigenvalues = walk.eigenvalues
    position = walk.modes * (eigenvalues / np.maximum(1 - eigenvalues, 1e-6))
    distance = np.linalg.norm(position - position[first].mean(axis=0), axis=1)
    return np.argsort(np.argsort(distance, kind="stable"), kind="stable") / (len(distance) - 1)
