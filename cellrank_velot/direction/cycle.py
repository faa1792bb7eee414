"""Whether cells lie on a closed loop, which has no beginning: a quick look at any number of cells."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.spatial.distance import cdist

__all__ = ["Loop", "find_loop"]

FloatArray = NDArray[np.float64]

N_FIRST = 30  # cells at the beginning whose neighbours are looked at
# Of the neighbours of the first cells, by the tenth of the time that they are in: some are late, from the fifth tenth
# on, with a gap between them and the early ones. Without a loop their number falls; without any order it is even.
LATE, MIN_SHARE, MAX_GAP = 4, 0.1, 0.25
# Cells, evenly over time, that are joined to their nearest ones; the shares of them that are the first and the last.
N_SAMPLE, N_NEAREST, ENDS = 250, 6, (0.15, 0.2)
MIN_SAMPLE, SMALL = 100, 0.1


class Loop(StrEnum):
    """How a time runs on a closed loop, in words."""

    NONE = ""
    CLOSED = (
        "first cells are neighbours of last ones, with none in between. A cycle has no beginning: velocities are wrong "
        "where the time jumps. Remove the cycle, e.g. the genes of the cell cycle, or analyse one turn of it"
    )
    BOTH_WAYS = (
        "two arms lead from the first cells to the same last ones. If that is a cycle, it has no beginning: a distance "
        "from a root runs around it both ways. Take a time that runs around once, such as a phase, or remove the cycle"
    )


def find_loop(x: FloatArray, time: FloatArray, graph: sp.csr_matrix) -> Loop:
    """Say whether the time runs around a closed loop, once or both ways."""
    order = np.argsort(time, kind="stable")
    if not np.ptp(x, axis=0).any():  # in one place all cells are the nearest, and which are taken means nothing
        return Loop.NONE
    if _closes(order, graph):
        return Loop.CLOSED
    if time.size >= MIN_SAMPLE and any(_runs_both_ways(_sample_graph(x, order, graph), share) for share in ENDS):
        return Loop.BOTH_WAYS
    return Loop.NONE


def _closes(order: NDArray[np.int64], graph: sp.csr_matrix) -> bool:
    """Say whether first cells are neighbours of late ones, and not of those in between."""
    rank = np.empty(order.size)
    rank[order] = np.arange(order.size) / order.size
    first = order[: max(1, min(N_FIRST, order.size // 10))]
    found = np.concatenate([graph.indices[graph.indptr[i] : graph.indptr[i + 1]] for i in first])
    if found.size == 0:
        return False
    share = np.bincount((10 * rank[found]).astype(np.int64), minlength=10) / found.size
    peak = LATE + int(share[LATE:].argmax())
    gap = 1 + int(share[1:peak].argmin())
    return bool(share[gap:].sum() > MIN_SHARE and share[gap] < MAX_GAP * share[peak])


def _sample_graph(x: FloatArray, order: NDArray[np.int64], graph: sp.csr_matrix) -> sp.csr_matrix:
    """Return the nearest of some cells, in the order of time, by positions averaged over two steps of the graph."""
    n_sample = min(N_SAMPLE, order.size)
    chosen = order[np.linspace(0, order.size - 1, n_sample).astype(np.int64)]
    rows = graph[chosen]
    around = np.union1d(chosen, rows.indices)  # only these cells are averaged: the graph may be large
    mean = _averaged(x, x[around], graph[around])
    rows = sp.csr_matrix((rows.data, np.searchsorted(around, rows.indices), rows.indptr), (n_sample, around.size))
    mean = _averaged(mean, mean[np.searchsorted(around, chosen)], rows)
    distance = cdist(mean, mean)
    np.fill_diagonal(distance, np.inf)
    nearest = np.argpartition(distance, N_NEAREST, axis=1)[:, :N_NEAREST].ravel()
    size = (n_sample, n_sample)
    near = sp.csr_matrix((np.ones(nearest.size), (np.repeat(np.arange(n_sample), N_NEAREST), nearest)), size)
    np.fill_diagonal(distance, 0)
    return sp.csr_matrix(near + minimum_spanning_tree(distance))


def _averaged(x: FloatArray, own: FloatArray, rows: sp.csr_matrix) -> FloatArray:
    """Return the weighted mean of cells, their own positions and those of the cells that their rows of a graph name."""
    return np.asarray((rows @ x + own) / (1 + np.asarray(rows.sum(axis=1))))


def _runs_both_ways(graph: sp.csr_matrix, share: float) -> bool:
    """Say whether cells between the first and the last, which are one group each, fall into two."""
    n_cells = graph.shape[0]
    n_ends = round(share * n_cells)
    parts = (slice(None, n_ends), slice(n_ends, n_cells - n_ends), slice(n_cells - n_ends, None))
    return [_count_groups(graph[part, part]) for part in parts] == [1, 2, 1]


def _count_groups(graph: sp.csr_matrix) -> int:
    sizes = np.bincount(connected_components(graph, directed=False)[1])
    return int((sizes >= SMALL * graph.shape[0]).sum())
