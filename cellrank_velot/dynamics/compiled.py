"""The compiled walk from cell to cell that finds the cells nearest to a point which has moved a little."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.jit import compiled, read_only

__all__ = ["walk"]


def walk(
    points: NDArray[np.float32],
    cells: NDArray[np.float32],
    lists: NDArray[np.int64],
    start: NDArray[np.int64],
    n_held: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the cells nearest to points, in their order, and the squared distance to the first.

    The walk goes from the cells ``start [n_points, k]`` to those in their ``lists [n_cells, n_listed]``, always on from
    the nearest one that it has not yet left, until it has left the ``n_held`` nearest that it knows. Of these it
    returns the first k.
    """
    index, square = _walk(*read_only(points, cells, lists, start), max(n_held, start.shape[1]))
    return np.asarray(index), np.asarray(square)


@compiled
def _walk(points: Any, cells: Any, lists: Any, start: Any, n_held: int) -> Any:
    n_points, k = start.shape
    index, square = np.empty((n_points, k), np.int64), np.empty(n_points, np.float32)
    # The point that last came to each cell.
    visitor = np.full(cells.shape[0], -1)
    cell, distance, left = np.empty(n_held, np.int64), np.empty(n_held, np.float32), np.empty(n_held, np.bool_)
    for i in range(n_points):
        n = 0
        # The first list is that of the cells to start from.
        source, at = start[i], -1
        while True:
            on = at + 1
            for j in source:
                if visitor[j] == i:
                    continue
                visitor[j] = i
                d = np.float32(0.0)
                for dim in range(cells.shape[1]):
                    step = points[i, dim] - cells[j, dim]
                    d += step * step
                if n == n_held and not d < distance[n - 1]:
                    continue
                n = min(n + 1, n_held)
                place = n - 1
                while place > 0 and distance[place - 1] > d:
                    distance[place], cell[place] = distance[place - 1], cell[place - 1]
                    left[place] = left[place - 1]
                    place -= 1
                distance[place], cell[place], left[place] = d, j, False
                on = min(on, place)
            at = on
            while at < n and left[at]:
                at += 1
            if at == n:
                break
            left[at] = True
            source = lists[cell[at]]
        index[i] = cell[:k]
        square[i] = distance[0]
    return index, square
