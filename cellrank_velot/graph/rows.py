"""Values of the edges of a graph, by the rows of their cells: in blocks of rows, their softmax, their shares.

Depends on compiled and numpy.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.parallel import run
from cellrank_velot.graph.compiled import row_softmax

__all__ = ["BLOCK_EDGES", "joined", "normalized", "row_blocks", "softmax"]

# Edges of one task: some hundredths of a second.
BLOCK_EDGES = 2**19


def row_blocks(indptr: NDArray[np.integer[Any]]) -> list[tuple[int, int]]:
    """Return successive rows of about as many edges each, as the first and the one after the last.

    Parameters
    ----------
    indptr
        Where the edges of each row start, and the end, shape ``[n_rows + 1]``.

    Examples
    --------
    >>> from cellrank_velot.graph.rows import row_blocks
    >>> row_blocks(vk.connectivities.indptr)  # few edges: all rows at once
    [(0, 300)]
    """
    n_blocks = -(-int(indptr[-1]) // BLOCK_EDGES)
    at = np.unique(np.searchsorted(indptr, np.linspace(0, int(indptr[-1]), n_blocks + 1)[1:-1]))
    ends = np.unique([0, *at, indptr.size - 1])
    return [(int(first), int(last)) for first, last in pairwise(ends)]


def joined(
    parts: Generator[NDArray[np.float64], None, None], rows: Sequence[tuple[int, int]], indptr: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """Return the values of all edges from those of successive rows.

    Parameters
    ----------
    parts
        Values of the edges of some rows at a time.
    rows
        First row of each part and the one after its last, see :func:`row_blocks`.
    indptr
        Where the edges of each row start, and the end, shape ``[n_rows + 1]``.

    Examples
    --------
    >>> from cellrank_velot.graph.rows import joined
    >>> indptr = np.array([0, 2, 3])
    >>> parts = (np.full(n, float(n)) for n in (2, 1))
    >>> joined(parts, [(0, 1), (1, 2)], indptr).tolist()
    [2.0, 2.0, 1.0]
    """
    result = np.empty(int(indptr[-1]))
    with closing(parts):
        for (first, last), values in zip(rows, parts, strict=True):
            result[indptr[first] : indptr[last]] = values
    return result


def softmax(
    values: NDArray[np.float64], indptr: NDArray[np.integer[Any]], scale: float, n_jobs: int | None
) -> NDArray[np.float64]:
    """Return the softmax of each row.

    Parameters
    ----------
    values
        Values of the edges, shape ``[n_edges]``.
    indptr
        Where the edges of each row start, and the end, shape ``[n_rows + 1]``.
    scale
        What values are multiplied by.
    n_jobs
        Number of jobs, see :func:`cellrank_velot.transport.velocity.compute_velocity`.

    Examples
    --------
    >>> from cellrank_velot.graph.rows import softmax
    >>> softmax(np.array([0.0, 0.0, 5.0]), np.array([0, 2, 3]), 1.0, n_jobs=1).tolist()
    [0.5, 0.5, 1.0]
    """
    rows = row_blocks(indptr)
    return joined(run(row_softmax, rows, (values, indptr, scale), n_jobs=n_jobs), rows, indptr)


def normalized(values: NDArray[np.float64], degree: NDArray[np.int64]) -> NDArray[np.float64]:
    """Divide the values of each row by their sum.

    Parameters
    ----------
    values
        Values of the edges, shape ``[n_edges]``, with a positive sum in each row that has any.
    degree
        Number of edges of each row, shape ``[n_rows]``.

    Returns
    -------
    Shares of shape ``[n_edges]``.

    Examples
    --------
    >>> from cellrank_velot.graph.rows import normalized
    >>> normalized(np.array([1.0, 3.0, 2.0]), np.array([2, 1])).tolist()
    [0.25, 0.75, 1.0]
    """
    if not values.size:
        return values
    filled = degree > 0
    starts = (np.cumsum(degree) - degree)[filled]
    return np.asarray(values / np.repeat(np.add.reduceat(values, starts), degree[filled]))
