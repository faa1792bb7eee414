"""Distances along the neighbour graph: positions freed of noise, a graph built anew on them, and the shortest paths.

Noise makes short cuts: cells of different stages that noise brings together are neighbours. Means over the neighbours
lie apart. So distances are those of smoothed positions, and paths lead over the cells that are nearest there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components, dijkstra, minimum_spanning_tree

from cellrank_velot._utils.stage import TINY
from cellrank_velot.graph.smoothing import nearest_cells, smoothed

__all__ = [
    "N_SMOOTHING",
    "N_TIME_STEPS",
    "earliest_cells",
    "geodesic_distances",
    "near_graph",
    "never_falling",
    "shortest_paths",
]

# Number of times that positions are smoothed, and of nearest cells that are joined.
N_SMOOTHING, N_NEAREST = 3, 15
# Shares of the cells that are the root where none is given, and among which there may be others; fewest cells of a part
# of the graph that has a root; number of times that the time is smoothed before it is compared with that around.
FIRST, EARLY, MIN_PART, N_TIME_STEPS = 0.01, 0.1, 10, 4

# Edges whose lengths are found at a time.
BLOCK_EDGES = 32_768


def near_graph(x: NDArray[np.float64], graph: sp.csr_matrix, n_neighbors: int = N_NEAREST) -> sp.csr_matrix:
    """Return the graph of the cells that are nearest in ``x``, whose weights are distances.

    The nearest are chosen among the nearest neighbours and theirs. The graph is symmetric. Where it falls into more
    parts than ``graph``, the shortest edges of ``graph`` join them.
    """
    n_cells, graph = len(x), sp.csr_matrix(graph, copy=True)
    graph.eliminate_zeros()
    chosen = sp.coo_matrix(nearest_cells(x, graph, n_neighbors))
    lengths = _lengths(x, chosen)
    near = _symmetric(chosen.row, chosen.col, lengths, n_cells)
    if connected_components(near)[0] > connected_components(graph)[0]:
        edges = sp.coo_matrix(graph)
        lengths = _lengths(x, edges)
        tree = sp.coo_matrix(minimum_spanning_tree(_symmetric(edges.row, edges.col, lengths, n_cells)))
        near = near.maximum(_symmetric(tree.row, tree.col, tree.data, n_cells))
    return near


def geodesic_distances(lengths: sp.csr_matrix, sources: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the length of the shortest path from the nearest source, infinite where there is none."""
    return np.asarray(dijkstra(lengths, directed=False, indices=sources, min_only=True))


def earliest_cells(time: NDArray[np.float64], lengths: sp.csr_matrix) -> NDArray[np.int64]:
    """Return the earliest cells of each part of the graph that is large enough; of all cells where none is.

    Among early cells, those that are earlier than all around them are roots, too: there may be several.
    """
    near = lengths.sign()
    smooth = smoothed(time, near, N_TIME_STEPS)
    part = connected_components(near, directed=False)[1]
    groups = [np.flatnonzero(part == number) for number in np.flatnonzero(np.bincount(part) >= MIN_PART)]
    lead = smooth.max() + 1.0 - smooth  # above zero: a sparse matrix takes zeros for its largest values otherwise
    most = near.multiply(lead).max(axis=1).toarray().ravel()
    chosen = []
    for cells in groups or [np.arange(time.size)]:
        order = cells[np.argsort(time[cells], kind="stable")]
        early = order[: round(EARLY * cells.size)]
        chosen += [order[: max(1, round(FIRST * cells.size))], early[lead[early] >= most[early]]]
    return np.unique(np.concatenate(chosen))


def shortest_paths(lengths: sp.csr_matrix, sources: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the distances and the cell before each on its path: itself for a source, or where there is no path."""
    distance, before, _ = dijkstra(lengths, directed=False, indices=sources, min_only=True, return_predecessors=True)
    return np.asarray(distance), np.where(before < 0, np.arange(len(before)), before).astype(np.int64)


def never_falling(values: NDArray[np.float64], before: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the largest value on the path to each cell; ``before`` is that of :func:`shortest_paths`."""
    while True:
        values = np.maximum(values, values[before])
        further = before[before]  # steps double
        if (further == before).all():
            return values
        before = further


def _lengths(x: NDArray[np.float64], edges: sp.coo_matrix) -> NDArray[np.float64]:
    """Return the length of each edge, a block at a time: all ends at once would not fit in the cache."""
    lengths = np.empty(edges.nnz)
    for start in range(0, edges.nnz, BLOCK_EDGES):
        part = slice(start, start + BLOCK_EDGES)
        steps = x[edges.row[part]] - x[edges.col[part]]
        lengths[part] = np.sqrt(np.einsum("ij,ij->i", steps, steps))
    return lengths


def _symmetric(
    rows: NDArray[np.integer[Any]], columns: NDArray[np.integer[Any]], lengths: NDArray[np.float64], n_cells: int
) -> sp.csr_matrix:
    """Return the matrix of edges in both directions; cells at one place keep an edge of almost no length."""
    lengths = np.maximum(lengths, max(1e-12 * float(lengths.max(initial=0)), TINY))
    graph = sp.csr_matrix((lengths, (rows, columns)), shape=(n_cells, n_cells))
    return sp.csr_matrix(graph.maximum(graph.T))
