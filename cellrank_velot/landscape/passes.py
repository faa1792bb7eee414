"""The lowest pass between two points of a grid of heights."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

__all__ = ["spanning_tree", "tree_path"]


def spanning_tree(potential: NDArray[np.float64]) -> sp.csr_matrix:
    """Return the tree over the points of a grid, ``[n_points, n_points]``, that holds the lowest pass between any two.

    Edges between each point and its eight neighbours weigh as much as their higher end. In the minimum spanning tree of
    this graph, the way between two points is the one whose highest point is lowest of all ways :cite:`hu:61`. Points
    with NaN have no edges.
    """
    n_y, n_x = potential.shape
    number = np.arange(n_y * n_x).reshape(n_y, n_x)
    pairs = (
        (number[:, :-1], number[:, 1:]),
        (number[:-1], number[1:]),
        (number[:-1, :-1], number[1:, 1:]),
        (number[:-1, 1:], number[1:, :-1]),
    )
    one, other = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    heights = np.maximum(potential.ravel()[one], potential.ravel()[other])
    known = np.isfinite(heights)
    if not known.any():
        return sp.csr_matrix((number.size, number.size))
    # Ranks in place of heights: only the order counts, and an edge of weight zero would be none.
    ranks = np.unique(heights[known], return_inverse=True)[1] + 1.0
    graph = sp.csr_matrix((ranks, (one[known], other[known])), shape=(number.size, number.size))
    tree = minimum_spanning_tree(graph)
    return sp.csr_matrix(tree + tree.T)


def tree_path(tree: sp.csr_matrix, start: int, end: int) -> NDArray[np.int64]:
    """Return the points of the way through a tree from start to end; none where they are not connected."""
    before = breadth_first_order(tree, start, directed=True, return_predecessors=True)[1]
    path = [end]
    while path[-1] != start:
        previous = int(before[path[-1]])
        if previous < 0:
            return np.empty(0, dtype=np.int64)
        path.append(previous)
    return np.array(path[::-1], dtype=np.int64)
