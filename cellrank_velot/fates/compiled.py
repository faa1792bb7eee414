"""Compiled loops of the multigrid solver: products of a sparse matrix with columns, and sweeps over its cells."""

from __future__ import annotations

from typing import Any

import numpy as np

from cellrank_velot._utils.jit import compiled

__all__ = ["WIDTH", "backward_sweep", "difference_product", "forward_sweep", "product", "step_back", "take_away"]

WIDTH = 8  # columns that are solved together, so many that loops over them need no loop


# Loops over columns have a length that the compiler knows.
@compiled
def difference_product(indptr: Any, indices: Any, data: Any, leave: Any, x: Any) -> Any:
    """Return ``(I - Q) x``, summed from the differences along the edges."""
    out = np.empty_like(x)
    rest = np.empty(WIDTH)
    for i in range(x.shape[0]):
        for k in range(WIDTH):
            rest[k] = leave[i] * x[i, k]
        for edge in range(indptr[i], indptr[i + 1]):
            j, weight = indices[edge], data[edge]
            for k in range(WIDTH):
                rest[k] += weight * (x[i, k] - x[j, k])
        for k in range(WIDTH):
            out[i, k] = rest[k]
    return out


@compiled
def product(indptr: Any, indices: Any, data: Any, x: Any) -> Any:
    """Return the product of a matrix with columns."""
    n_rows = indptr.size - 1
    out = np.empty((n_rows, WIDTH))
    rest = np.empty(WIDTH)
    for i in range(n_rows):
        rest[:] = 0.0
        for edge in range(indptr[i], indptr[i + 1]):
            j, weight = indices[edge], data[edge]
            for k in range(WIDTH):
                rest[k] += weight * x[j, k]
        for k in range(WIDTH):
            out[i, k] = rest[k]
    return out


@compiled
def forward_sweep(indptr: Any, indices: Any, data: Any, diagonal: Any, b: Any, x: Any, residual: Any) -> None:
    """Set ``x`` by a sweep that starts from zero, and what it misses: cells later in the order count for that alone."""
    rest = np.empty(WIDTH)
    for i in range(x.shape[0]):
        for k in range(WIDTH):
            rest[k] = b[i, k]
        for edge in range(indptr[i], indptr[i + 1]):
            j, weight = indices[edge], data[edge]
            if j >= i:
                break
            for k in range(WIDTH):
                rest[k] -= weight * x[j, k]
        for k in range(WIDTH):
            x[i, k] = rest[k] / diagonal[i]
    for i in range(x.shape[0]):
        rest[:] = 0.0
        for edge in range(indptr[i + 1] - 1, indptr[i] - 1, -1):
            j, weight = indices[edge], data[edge]
            if j <= i:
                break
            for k in range(WIDTH):
                rest[k] -= weight * x[j, k]
        for k in range(WIDTH):
            residual[i, k] = rest[k]


@compiled
def backward_sweep(indptr: Any, indices: Any, data: Any, diagonal: Any, b: Any, x: Any, image: Any) -> None:
    """Sweep backward over ``x``, and set ``image`` to its product with the matrix.

    When a cell is set, its row holds; then the cells before it change.
    """
    rest, change = np.empty(WIDTH), np.empty_like(x)
    for at in range(x.shape[0]):
        i = x.shape[0] - 1 - at
        for k in range(WIDTH):
            rest[k] = b[i, k]
        for edge in range(indptr[i], indptr[i + 1]):
            j, weight = indices[edge], data[edge]
            for k in range(WIDTH):
                rest[k] -= weight * x[j, k]
        for k in range(WIDTH):
            change[i, k] = rest[k] / diagonal[i]
            x[i, k] += change[i, k]
    for i in range(x.shape[0]):
        for k in range(WIDTH):
            rest[k] = b[i, k]
        for edge in range(indptr[i], indptr[i + 1]):
            j, weight = indices[edge], data[edge]
            if j >= i:
                break
            for k in range(WIDTH):
                rest[k] += weight * change[j, k]
        for k in range(WIDTH):
            image[i, k] = rest[k]


@compiled
def take_away(other: Any, w: Any) -> Any:
    """Take what lies along another array from each column of ``w``, and return how much."""
    along, n_rows = np.zeros(WIDTH), w.shape[0]
    for i in range(n_rows):
        for k in range(WIDTH):
            along[k] += other[i, k] * w[i, k]
    for i in range(n_rows):
        for k in range(WIDTH):
            w[i, k] -= along[k] * other[i, k]
    return along


@compiled
def step_back(indptr: Any, indices: Any, data: Any, visits: Any, following: Any, first: int, last: int) -> None:
    """Set how often some cells are visited in one step more: once at the start, and from the cells before them."""
    for i in range(first, last):
        total = 1.0
        for edge in range(indptr[i], indptr[i + 1]):
            total += data[edge] * visits[indices[edge]]
        following[i] = total
