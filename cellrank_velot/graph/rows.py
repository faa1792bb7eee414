"""Values of the edges of a graph, row by row: blocks of rows, the softmax of each row, shares that sum to one.

``indptr`` of shape ``[n_rows + 1]`` says where the edges of each row start, as in a CSR matrix.
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
    """Return blocks of successive rows with about as many edges each: the first row, and the one after the last."""
    n_blocks = -(-int(indptr[-1]) // BLOCK_EDGES)
    at = np.unique(np.searchsorted(indptr, np.linspace(0, int(indptr[-1]), n_blocks + 1)[1:-1]))
    ends = np.unique([0, *at, indptr.size - 1])
    return [(int(first), int(last)) for first, last in pairwise(ends)]


def joined(
    parts: Generator[NDArray[np.float64], None, None], rows: Sequence[tuple[int, int]], indptr: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """Return the values of all edges, shape ``[n_edges]``, from those of each block of :func:`row_blocks`."""
    result = np.empty(int(indptr[-1]))
    with closing(parts):
        for (first, last), values in zip(rows, parts, strict=True):
            result[indptr[first] : indptr[last]] = values
    return result


def softmax(
    values: NDArray[np.float64], indptr: NDArray[np.integer[Any]], scale: float, n_jobs: int | None
) -> NDArray[np.float64]:
    """Return the softmax of ``scale`` times the values in each row, shape ``[n_edges]``."""
    rows = row_blocks(indptr)
    return joined(run(row_softmax, rows, (values, indptr, scale), n_jobs=n_jobs), rows, indptr)


def normalized(values: NDArray[np.float64], degree: NDArray[np.int64]) -> NDArray[np.float64]:
    """Divide the values of each row, of ``degree`` edges, by their sum, which is positive."""
    if not values.size:
        return values
    filled = degree > 0
    starts = (np.cumsum(degree) - degree)[filled]
    return np.asarray(values / np.repeat(np.add.reduceat(values, starts), degree[filled]))
