"""Distances along the neighbour graph: positions freed of noise, a graph built anew on them, and the shortest paths.

Noise makes short cuts: cells of different stages that noise brings together are neighbours. Means over the neighbours
lie apart. So distances are those of smoothed positions, and paths lead over the cells that are nearest there.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components, dijkstra, minimum_spanning_tree

from cellrank_velot._utils.jit import compiled, read_only
from cellrank_velot._utils.parallel import blocks, run
from cellrank_velot._utils.stage import TINY

__all__ = ["geodesic_distances", "near_graph", "never_falling", "shortest_paths", "smoothed"]

# Cells of one task.
BLOCK_CELLS = 8192
N_SMOOTHING, N_NEAREST = 3, 15


def smoothed(values: NDArray[np.float64], graph: sp.csr_matrix, n_steps: int = N_SMOOTHING) -> NDArray[np.float64]:
    """Return ``values``, one or more of each cell, after steps to half of them and half of the neighbours' mean.

    A cell without neighbours keeps its own.
    """
    degree = np.asarray(graph.sum(axis=1)).ravel()
    alone = degree <= 0
    share = np.where(alone, 0.0, 0.5 / np.where(alone, 1.0, degree))
    step = sp.csr_matrix(sp.diags(share) @ graph + sp.diags(np.where(alone, 1.0, 0.5)))
    for _ in range(n_steps):
        values = step @ values
    return np.asarray(values, dtype=np.float64)


def near_graph(x: NDArray[np.float64], graph: sp.csr_matrix, n_neighbors: int = N_NEAREST) -> sp.csr_matrix:
    """Return the graph of the cells that are nearest in ``x``, whose weights are distances.

    The nearest are chosen among the neighbours and their neighbours. The graph is symmetric. Where it falls into more
    parts than ``graph``, the shortest edges of ``graph`` join them.
    """
    n_cells, graph = len(x), sp.csr_matrix(graph, copy=True)
    graph.eliminate_zeros()
    shared = (np.ascontiguousarray(x, dtype=np.float64), graph.indptr, graph.indices, n_neighbors)
    with closing(run(_nearest, blocks(n_cells, BLOCK_CELLS), shared)) as parts:
        found = list(parts)
    there, squares = (np.concatenate([part[i] for part in found]) for i in range(2))
    inside = there >= 0
    rows = np.repeat(np.arange(n_cells), inside.sum(axis=1))
    near = _symmetric(rows, there[inside], np.sqrt(squares[inside]), n_cells)
    if connected_components(near)[0] > connected_components(graph)[0]:
        edges = sp.coo_matrix(graph)
        lengths = np.linalg.norm(x[edges.row] - x[edges.col], axis=1)
        tree = sp.coo_matrix(minimum_spanning_tree(_symmetric(edges.row, edges.col, lengths, n_cells)))
        near = near.maximum(_symmetric(tree.row, tree.col, tree.data, n_cells))
    return near


def geodesic_distances(lengths: sp.csr_matrix, sources: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the length of the shortest path from the nearest source, infinite where there is none."""
    return np.asarray(dijkstra(lengths, directed=False, indices=sources, min_only=True))


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


def _symmetric(
    rows: NDArray[np.integer[Any]], columns: NDArray[np.integer[Any]], lengths: NDArray[np.float64], n_cells: int
) -> sp.csr_matrix:
    """Return the matrix of edges in both directions; cells at one place keep an edge of almost no length."""
    lengths = np.maximum(lengths, max(1e-12 * float(lengths.max(initial=0)), TINY))
    graph = sp.csr_matrix((lengths, (rows, columns)), shape=(n_cells, n_cells))
    return sp.csr_matrix(graph.maximum(graph.T))


def _nearest(
    x: NDArray[np.float64],
    indptr: NDArray[np.integer[Any]],
    indices: NDArray[np.integer[Any]],
    n_neighbors: int,
    first: int,
    last: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the nearest cells within two steps of those from ``first`` to ``last``, and squared distances.

    Of shape ``[n, n_neighbors]``, nearest first; where there are fewer, the rest is -1 and infinity.
    """
    there, squares = _nearest_in_two_steps(*read_only(x, indptr, indices), n_neighbors, first, last)
    return there, squares


@compiled
def _nearest_in_two_steps(x: Any, indptr: Any, indices: Any, n_neighbors: int, first: int, last: int) -> Any:
    n_cells, n_dims = x.shape
    there = np.full((last - first, n_neighbors), -1, dtype=np.int64)
    squares = np.full((last - first, n_neighbors), np.inf)
    seen = np.full(n_cells, -1, dtype=np.int64)  # the last cell that met this one
    for i in range(first, last):
        seen[i] = i
        nearest, cells = squares[i - first], there[i - first]
        for edge in range(indptr[i] - 1, indptr[i + 1]):
            via = i if edge < indptr[i] else indices[edge]  # first the neighbours, then theirs
            for onward in range(indptr[via], indptr[via + 1]):
                j = indices[onward]
                if seen[j] == i:
                    continue
                seen[j] = i
                square = 0.0
                for k in range(n_dims):
                    step = x[i, k] - x[j, k]
                    square += step * step
                place = n_neighbors
                while place > 0 and nearest[place - 1] > square:
                    place -= 1
                if place == n_neighbors:
                    continue
                for k in range(n_neighbors - 1, place, -1):
                    nearest[k], cells[k] = nearest[k - 1], cells[k - 1]
                nearest[place], cells[place] = square, j
    return there, squares
