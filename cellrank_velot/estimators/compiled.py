"""Compiled loops over long vectors: products with the matrix, and with a basis of many vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from cellrank_velot._utils.jit import compiled, compiled_in_order

__all__ = ["along_base", "multiply", "take_away"]

# Libraries of matrices are slow at products of a long basis with two rows. Here each number of the basis is read once
# for both rows, four vectors of the basis at a time.
CHUNK = 256  # cells of which all vectors stay in the nearest cache


# A column's number without a sign is not looked at for counting from the end: two thirds of the time.
@compiled_in_order
def multiply(indptr: Any, indices: Any, data: Any, columns: Any, result: Any, first: int, last: int) -> None:
    """Set some columns of the result, two rows of it at a time."""
    for i in range(first, last):
        for k in range(0, columns.shape[1] - 1, 2):
            one = two = 0.0
            for edge in range(indptr[i], indptr[i + 1]):
                weight, j = data[edge], np.uint32(indices[edge])
                one += weight * columns[j, k]
                two += weight * columns[j, k + 1]
            result[k, i], result[k + 1, i] = one, two
        if columns.shape[1] % 2:
            one = 0.0
            for edge in range(indptr[i], indptr[i + 1]):
                one += data[edge] * columns[np.uint32(indices[edge]), columns.shape[1] - 1]
            result[columns.shape[1] - 1, i] = one


@compiled
def along_base(base: Any, rows: Any, first: int, last: int) -> Any:
    """Return the products of vectors of the basis with rows, over some cells: ``[size, rows]``."""
    size = base.shape[0]
    out = np.zeros((size, rows.shape[0]))
    for begin in range(first, last, CHUNK):
        end = min(begin + CHUNK, last)
        for k in range(0, rows.shape[0] - 1, 2):
            for j in range(0, size - 3, 4):
                a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = 0.0
                for c in range(begin, end):
                    a, b = rows[k, c], rows[k + 1, c]
                    a0 += base[j, c] * a
                    a1 += base[j + 1, c] * a
                    a2 += base[j + 2, c] * a
                    a3 += base[j + 3, c] * a
                    b0 += base[j, c] * b
                    b1 += base[j + 1, c] * b
                    b2 += base[j + 2, c] * b
                    b3 += base[j + 3, c] * b
                out[j, k] += a0
                out[j + 1, k] += a1
                out[j + 2, k] += a2
                out[j + 3, k] += a3
                out[j, k + 1] += b0
                out[j + 1, k + 1] += b1
                out[j + 2, k + 1] += b2
                out[j + 3, k + 1] += b3
            for j in range(size - size % 4, size):
                a0 = b0 = 0.0
                for c in range(begin, end):
                    a0 += base[j, c] * rows[k, c]
                    b0 += base[j, c] * rows[k + 1, c]
                out[j, k] += a0
                out[j, k + 1] += b0
    return out


@compiled
def take_away(base: Any, along: Any, rows: Any, first: int, last: int) -> None:
    """Take from rows, over some cells, what lies along the vectors of a basis."""
    size = base.shape[0]
    for begin in range(first, last, CHUNK):
        end = min(begin + CHUNK, last)
        for k in range(0, rows.shape[0] - 1, 2):
            for j in range(0, size - 3, 4):
                a0, a1, a2, a3 = along[j, k], along[j + 1, k], along[j + 2, k], along[j + 3, k]
                b0, b1, b2, b3 = along[j, k + 1], along[j + 1, k + 1], along[j + 2, k + 1], along[j + 3, k + 1]
                for c in range(begin, end):
                    v0, v1, v2, v3 = base[j, c], base[j + 1, c], base[j + 2, c], base[j + 3, c]
                    rows[k, c] -= a0 * v0 + a1 * v1 + a2 * v2 + a3 * v3
                    rows[k + 1, c] -= b0 * v0 + b1 * v1 + b2 * v2 + b3 * v3
            for j in range(size - size % 4, size):
                a0, b0 = along[j, k], along[j, k + 1]
                for c in range(begin, end):
                    rows[k, c] -= a0 * base[j, c]
                    rows[k + 1, c] -= b0 * base[j, c]
