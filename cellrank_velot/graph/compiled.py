"""Compiled loops along the edges of the neighbour graph: similarities, softmax, neighbours' means, components."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellrank_velot._utils.jit import compiled, read_only

__all__ = ["connected_components", "edge_similarities", "move_rows", "nearest_around", "neighbor_means", "row_softmax"]

# Up to so many edges of a row are sorted by putting each in its place.
FEW = 128


def edge_similarities(
    x: NDArray[np.float64],
    velocity: NDArray[np.float64],
    indptr: NDArray[np.integer[Any]],
    indices: NDArray[np.integer[Any]],
    transpose: bool,
    cosine: bool,
    first: int,
    last: int,
) -> NDArray[np.float64]:
    """Return the product of velocity and displacement along each edge of the rows from ``first`` to ``last``.

    With ``transpose`` the displacement leads from the neighbour to the cell, and the velocity is the neighbour's. With
    ``cosine`` the product is divided by both lengths, and is zero where one of them is.
    """
    return _edge_similarities(*read_only(x, velocity, indptr, indices), transpose, cosine, first, last)


def row_softmax(
    values: NDArray[np.float64], indptr: NDArray[np.integer[Any]], scale: float, first: int, last: int
) -> NDArray[np.float64]:
    """Return the softmax of ``scale`` times the values of each row from ``first`` to ``last``, for all its edges."""
    return _row_softmax(*read_only(values, indptr), scale, first, last)


def neighbor_means(
    x: NDArray[np.float64],
    indptr: NDArray[np.integer[Any]],
    indices: NDArray[np.integer[Any]],
    weights: NDArray[np.float64],
    own: float,
    rows: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the mean position of the neighbours of some cells and of themselves, which have the weight ``own``.

    It is their own position where no weight is above zero.
    """
    return _neighbor_means(*read_only(x, indptr, indices, weights), own, *read_only(rows))


def nearest_around(
    x: NDArray[np.float64],
    indptr: NDArray[np.integer[Any]],
    indices: NDArray[np.integer[Any]],
    n_nearest: int,
    beyond: bool,
    first: int,
    last: int,
) -> NDArray[np.int64]:
    """Return the nearest of the neighbours of some rows, ``[n_rows, n_nearest]``; -1 where there are fewer.

    With ``beyond`` the neighbours' neighbours count, too.
    """
    return np.asarray(_nearest_around(*read_only(x, indptr, indices), n_nearest, beyond, first, last))


def move_rows(
    graph: sp.csr_matrix,
    moved: sp.csr_matrix,
    cells: NDArray[np.int64],
    places: NDArray[np.int64],
    first: int,
    last: int,
) -> None:
    """Fill in some rows of the matrix whose rows and columns are those of ``cells``, each in the order of its columns.

    ``places`` says where each cell is among them.
    """
    rows = read_only(graph.indptr, graph.indices, graph.data, cells, places, moved.indptr)
    _move_rows(*rows, moved.indices, moved.data, first, last)


def connected_components(
    indptr: NDArray[np.integer[Any]], indices: NDArray[np.integer[Any]], weights: NDArray[Any]
) -> NDArray[np.int64]:
    """Return the connected component of each cell, numbered by their first cells; edges of weight zero do not count."""
    return np.asarray(_connected_components(*read_only(indptr, indices, weights)))


@compiled
def _edge_similarities(
    x: Any, velocity: Any, indptr: Any, indices: Any, transpose: bool, cosine: bool, first: int, last: int
) -> Any:
    n_dims = x.shape[1]
    start = indptr[first]
    out = np.empty(indptr[last] - start)
    for i in range(first, last):
        own, of_own = x[i], velocity[i]
        own_speed = 0.0
        for k in range(n_dims):
            own_speed += of_own[k] * of_own[k]
        for edge in range(indptr[i], indptr[i + 1]):
            j = indices[edge]
            other = x[j]
            product = length = speed = 0.0
            if transpose:
                of_other = velocity[j]
                for k in range(n_dims):
                    step = own[k] - other[k]
                    product += of_other[k] * step
                    length += step * step
                    speed += of_other[k] * of_other[k]
            else:
                speed = own_speed
                for k in range(n_dims):
                    step = other[k] - own[k]
                    product += of_own[k] * step
                    length += step * step
            if cosine:
                norm = np.sqrt(length) * np.sqrt(speed)
                product = product / norm if norm > 0 else 0.0
            out[edge - start] = product
    return out


@compiled
def _row_softmax(values: Any, indptr: Any, scale: float, first: int, last: int) -> Any:
    start = indptr[first]
    out = np.empty(indptr[last] - start)
    for i in range(first, last):
        begin, end = indptr[i], indptr[i + 1]
        if begin == end:
            continue
        largest = values[begin]
        for edge in range(begin, end):
            largest = max(largest, values[edge])
        total = 0.0
        for edge in range(begin, end):
            out[edge - start] = np.exp(scale * values[edge] - scale * largest)
            total += out[edge - start]
        for edge in range(begin, end):
            out[edge - start] /= total
    return out


@compiled
def _neighbor_means(x: Any, indptr: Any, indices: Any, weights: Any, own: float, rows: Any) -> Any:
    n_dims = x.shape[1]
    out = np.empty((rows.size, n_dims))
    total = np.empty(n_dims)
    for at in range(rows.size):
        i = rows[at]
        weight = own
        for k in range(n_dims):
            total[k] = own * x[i, k] if own > 0 else 0.0  # of a cell that is infinitely late, too
        for edge in range(indptr[i], indptr[i + 1]):
            other = x[indices[edge]]
            for k in range(n_dims):
                total[k] += weights[edge] * other[k]
            weight += weights[edge]
        for k in range(n_dims):
            out[at, k] = total[k] / weight if weight > 0 else x[i, k]
    return out


@compiled
def _nearest_around(x: Any, indptr: Any, indices: Any, n_nearest: int, beyond: bool, first: int, last: int) -> Any:
    n_dims = x.shape[1]
    out = np.full((last - first, n_nearest), -1, dtype=np.int64)
    seen = np.full(indptr.size - 1, -1, dtype=np.int64)
    square = np.empty(n_nearest)
    for i in range(first, last):
        own, kept = x[i], out[i - first]
        seen[i] = i
        n_kept = 0
        for edge in range(indptr[i], (indptr[i + 1] if beyond else indptr[i]) + 1):
            # The neighbours themselves come first: they are near, and most of the others are then farther than those.
            middle = i if edge == indptr[i] else indices[edge - 1]
            for other in range(indptr[middle], indptr[middle + 1]):
                j = indices[other]
                if seen[j] == i:
                    continue
                seen[j] = i
                limit = square[0] if n_kept == n_nearest else np.inf
                there, length = x[j], 0.0
                for k in range(n_dims):
                    step = there[k] - own[k]
                    length += step * step
                if length >= limit:
                    continue
                if n_kept < n_nearest:  # up from a leaf of the heap, whose root is the farthest
                    at = n_kept
                    n_kept += 1
                    while at > 0 and square[(at - 1) // 2] < length:
                        square[at], kept[at] = square[(at - 1) // 2], kept[(at - 1) // 2]
                        at = (at - 1) // 2
                else:  # down from the root
                    at = 0
                    while 2 * at + 1 < n_nearest:
                        below = 2 * at + 1
                        if below + 1 < n_nearest and square[below + 1] > square[below]:
                            below += 1
                        if square[below] <= length:
                            break
                        square[at], kept[at] = square[below], kept[below]
                        at = below
                square[at], kept[at] = length, j
    return out


@compiled
def _move_rows(
    indptr: Any,
    indices: Any,
    data: Any,
    cells: Any,
    places: Any,
    starts: Any,
    columns: Any,
    values: Any,
    first: int,
    last: int,
) -> None:
    for row in range(first, last):
        start, end, begin = starts[row], starts[row + 1], indptr[cells[row]]
        if end - start > FEW:
            moved = places[indices[begin : begin + end - start]]
            order = np.argsort(moved)
            columns[start:end], values[start:end] = moved[order], data[begin : begin + end - start][order]
            continue
        for edge in range(end - start):
            column, value, at = places[indices[begin + edge]], data[begin + edge], start + edge
            while at > start and columns[at - 1] > column:
                columns[at], values[at] = columns[at - 1], values[at - 1]
                at -= 1
            columns[at], values[at] = column, value


@compiled
def _connected_components(indptr: Any, indices: Any, weights: Any) -> Any:
    n_cells = indptr.size - 1
    above = np.arange(n_cells)
    for i in range(n_cells):
        for edge in range(indptr[i], indptr[i + 1]):
            if weights[edge] == 0:
                continue
            a, b = i, indices[edge]
            # Each step towards the root of its component halves the way of a cell.
            while above[a] != a:
                above[a] = above[above[a]]
                a = above[a]
            while above[b] != b:
                above[b] = above[above[b]]
                b = above[b]
            above[max(a, b)] = min(a, b)
    number, n_found = np.empty(n_cells, dtype=np.int64), 0
    for i in range(n_cells):
        if above[i] == i:
            number[i] = n_found
            n_found += 1
        else:  # the root of a component is its first cell
            number[i] = number[above[i]]
    return number
