"""Shortest paths from the nearest of some cells, and those left without a group of cells, in compiled loops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellrank_velot._utils.jit import compiled, inlined, read_only

__all__ = ["ShortestPaths"]

SETTLED, UNSEEN = -2, -1


@dataclass(frozen=True, eq=False)
class ShortestPaths:
    """The shortest path to each cell from the nearest of some sources.

    Attributes
    ----------
    lengths
        Graph whose weights are lengths, shape ``[n_cells, n_cells]``, symmetric.
    distance
        Length of the path, infinite where there is none, shape ``[n_cells]``.
    before
        The cell before each on its path, -1 for sources and cells without a path, shape ``[n_cells]``.
    order
        The cells that have a path, the nearest first.
    """

    lengths: sp.csr_matrix
    distance: NDArray[np.float64]
    before: NDArray[np.int64]
    order: NDArray[np.int64]

    @classmethod
    def of(cls, lengths: sp.csr_matrix, sources: NDArray[np.int64]) -> Self:
        """Find them, by Dijkstra's algorithm."""
        n_cells = lengths.shape[0]
        distance, before = np.full(n_cells, np.inf), np.full(n_cells, -1)
        distance[sources] = 0.0
        order = _settle(*_arrays(lengths), np.ones(n_cells, dtype=bool), distance, before)
        return cls(lengths, distance, before, order)

    def without(self, group: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the distances of all cells where those of a group cannot be passed, which get none.

        Sources in the group are lost, too. Only cells whose path led through the group are looked at anew.
        """
        inside = np.zeros(self.distance.size, dtype=bool)
        inside[group] = True
        return np.asarray(_without(*_arrays(self.lengths), *read_only(self.distance, self.before, self.order, inside)))


def _arrays(lengths: sp.csr_matrix) -> tuple[NDArray[Any], ...]:
    return read_only(lengths.indptr, lengths.indices, lengths.data)


@inlined
def _risen(heap: Any, place: Any, distance: Any, at: int, cell: int) -> None:
    """Put a cell where it belongs between ``at`` and the root of the heap."""
    while at > 0:
        above = heap[(at - 1) // 2]
        if distance[above] <= distance[cell]:
            break
        heap[at], place[above] = above, at
        at = (at - 1) // 2
    heap[at], place[cell] = cell, at


@compiled
def _settle(indptr: Any, indices: Any, lengths: Any, is_open: Any, distance: Any, before: Any) -> Any:
    """Shorten distances along the edges between open cells until none gets shorter; return the cells in their order."""
    n_cells = indptr.size - 1
    heap, order = np.empty(n_cells, dtype=np.int64), np.empty(n_cells, dtype=np.int64)
    place = np.full(n_cells, UNSEEN, dtype=np.int64)
    n_waiting = n_settled = 0
    for cell in range(n_cells):
        if is_open[cell] and distance[cell] < np.inf:
            _risen(heap, place, distance, n_waiting, cell)
            n_waiting += 1
    while n_waiting > 0:
        cell = heap[0]
        place[cell] = SETTLED
        order[n_settled] = cell
        n_settled += 1
        n_waiting -= 1
        if n_waiting > 0:  # the last one goes down from the root
            last, at = heap[n_waiting], 0
            while 2 * at + 1 < n_waiting:
                below = 2 * at + 1
                if below + 1 < n_waiting and distance[heap[below + 1]] < distance[heap[below]]:
                    below += 1
                if distance[heap[below]] >= distance[last]:
                    break
                heap[at] = heap[below]
                place[heap[at]] = at
                at = below
            heap[at], place[last] = last, at
        for edge in range(indptr[cell], indptr[cell + 1]):
            other = indices[edge]
            if not is_open[other] or place[other] == SETTLED:
                continue
            length = distance[cell] + lengths[edge]
            if length < distance[other]:
                distance[other], before[other] = length, cell
                at = place[other]
                if at == UNSEEN:
                    at = n_waiting
                    n_waiting += 1
                _risen(heap, place, distance, at, other)
    return order[:n_settled]


@compiled
def _without(indptr: Any, indices: Any, lengths: Any, distance: Any, before: Any, order: Any, inside: Any) -> Any:
    """Keep the distances of paths beside the group, and find those of the others anew, from there."""
    through = inside.copy()
    for at in range(order.size):
        cell = order[at]
        if before[cell] >= 0 and through[before[cell]]:
            through[cell] = True
    found, found_before, is_open = distance.copy(), before.copy(), through.copy()
    for cell in range(inside.size):
        if not through[cell]:
            continue
        found[cell] = np.inf
        is_open[cell] = not inside[cell]
        if is_open[cell]:
            for edge in range(indptr[cell], indptr[cell + 1]):
                if not through[indices[edge]]:
                    found[cell] = min(found[cell], distance[indices[edge]] + lengths[edge])
    _settle(indptr, indices, lengths, is_open, found, found_before)
    return found
