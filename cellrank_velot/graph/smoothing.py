"""Cells as the velocity is estimated from them: positions and time smoothed over the graph, and a graph of their own.

Single-cell counts scatter a cell far off the way that it goes, in every direction, and its pseudotime with it.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellrank_velot._utils.parallel import blocks, run
from cellrank_velot._utils.shown import as_line
from cellrank_velot.graph.compiled import nearest_around
from cellrank_velot.graph.order import MemoryOrder
from cellrank_velot.graph.residuals import means_over

__all__ = ["SmoothedCells", "means_over", "nearest_cells", "smooth_cells", "smoothed"]

# Number of nearest cells that the new graph joins, but at most a share of the cells.
N_NEAREST, NEAREST_SHARE = 30, 0.1
# Number of nearest neighbours whose neighbours may be among them.
N_AROUND = 15
# Number of times that the time is smoothed: a diffusion pseudotime has the noise of the cell in it.
TIME_STEPS = 10
# Cells of one task.
BLOCK_CELLS = 8192


@dataclass(frozen=True, eq=False)
class SmoothedCells:
    """Cells without most of their noise, as the velocity is estimated from them.

    Attributes
    ----------
    x
        Smoothed positions in the basis, shape ``[n_cells, n_dims]``.
    time
        Smoothed time, on the scale of the time, shape ``[n_cells]``.
    graph
        Graph that joins the nearest of the smoothed cells, with weights of one, shape ``[n_cells, n_cells]``.

    Examples
    --------
    >>> cells = vk.smoothed
    >>> bool(np.isclose(cells.time.std(), vk.cells.time.std())), cells.graph.shape
    (True, (300, 300))
    """

    x: NDArray[np.float64]
    time: NDArray[np.float64]
    graph: sp.csr_matrix

    def __repr__(self) -> str:
        facts = {"cells": self.x.shape[0], "dims": self.x.shape[1], "neighbors": self.graph.nnz / self.x.shape[0]}
        return as_line(type(self).__name__, facts)


def smooth_cells(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    graph: sp.csr_matrix,
    n_steps: int,
    *,
    n_jobs: int | None = None,
) -> SmoothedCells:
    """Move each cell half of the way to its neighbours' mean, ``n_steps`` times, and join those that are near then.

    The new graph has the nearest cells among the neighbours' neighbours: it joins nothing that the graph does not. The
    time is smoothed over it in the same way, and brought back to its own mean and spread. With ``n_steps=0`` all is
    left as it is.
    """
    if n_steps == 0:
        return SmoothedCells(x, time, graph)
    if not graph.data.all():  # an edge of weight zero is none
        graph = graph.copy()
        graph.eliminate_zeros()
    order = MemoryOrder.of(graph)
    graph = order.graph(graph)
    smooth = smoothed(order.values(x), graph, n_steps, n_jobs=n_jobs)
    near = _nearest(smooth, graph, n_jobs)
    smooth_time = order.back(smoothed(order.values(time), near, TIME_STEPS, n_jobs=n_jobs))
    return SmoothedCells(order.back(smooth), _on_scale(smooth_time, time), order.graph_back(near))


def smoothed(
    values: NDArray[np.float64], graph: sp.csr_matrix, n_steps: int, *, n_jobs: int | None = None
) -> NDArray[np.float64]:
    """Return ``values``, one or more of each cell, after steps to half of them and half of the neighbours' mean.

    A cell without neighbours keeps its own.
    """
    smooth: NDArray[np.float64] = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    for _ in range(n_steps):
        smooth = (smooth + means_over(graph, smooth, n_jobs=n_jobs)) / 2
    return smooth.reshape(values.shape)


def _nearest(x: NDArray[np.float64], graph: sp.csr_matrix, n_jobs: int | None) -> sp.csr_matrix:
    """Return the graph of the nearest cells among the nearest neighbours' neighbours, of weight one, both ways."""
    near = nearest_cells(x, graph, int(min(N_NEAREST, max(2, NEAREST_SHARE * x.shape[0]))), n_jobs=n_jobs)
    joined = (near + near.T).tocsr()
    joined.data[:] = 1.0
    joined.sort_indices()
    return joined


def nearest_cells(x: NDArray[np.float64], graph: sp.csr_matrix, k: int, *, n_jobs: int | None = None) -> sp.csr_matrix:
    """Return an edge from each cell to the ``k`` nearest of its nearest neighbours and of theirs.

    With all neighbours of all neighbours, ten times as many cells would be compared, and hardly another one found.
    """
    around = _nearest_of(x, graph, N_AROUND, False, n_jobs)
    return _nearest_of(x, around, k, True, n_jobs)


def _nearest_of(
    x: NDArray[np.float64], graph: sp.csr_matrix, k: int, beyond: bool, n_jobs: int | None
) -> sp.csr_matrix:
    """Return an edge from each cell to the ``k`` nearest of its neighbours, ``beyond`` them of theirs, too."""
    shared = (np.ascontiguousarray(x, dtype=np.float64), graph.indptr, graph.indices, k, beyond)
    found = run(nearest_around, blocks(x.shape[0], BLOCK_CELLS), shared, n_jobs=n_jobs)
    with closing(found):
        near = np.concatenate(list(found))
    there = near >= 0
    indptr = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    return sp.csr_matrix((np.ones(int(indptr[-1])), near[there], indptr), shape=graph.shape)


def _on_scale(smooth: NDArray[np.float64], time: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bring a smoothed time back to the mean and the spread of the time."""
    spread = float(smooth.std())
    if spread == 0:
        return time
    return np.asarray((smooth - smooth.mean()) * (float(time.std()) / spread) + time.mean())
