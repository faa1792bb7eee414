"""The mean of the neighbours of each cell, and its residual, which is the way there."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellrank_velot._utils.parallel import blocks, run
from cellrank_velot.graph.compiled import neighbor_means

__all__ = ["means_over", "residuals"]

# Cells of one task.
BLOCK_CELLS = 8192


def means_over(
    graph: sp.csr_matrix,
    values: NDArray[np.float64],
    cells: NDArray[np.int64] | None = None,
    *,
    own: float = 0.0,
    n_jobs: int | None = None,
) -> NDArray[np.float64]:
    """Return the weighted mean of the neighbours of each cell, or each of ``cells``, ``[n_cells, n_values]``.

    The cell itself has the weight ``own``. Without neighbours it keeps its own values.
    """
    rows = np.arange(values.shape[0]) if cells is None else cells
    parts = [slice(*part) for part in blocks(rows.size, BLOCK_CELLS)]
    weights = np.asarray(graph.data, dtype=np.float64)
    shared = (np.ascontiguousarray(values, dtype=np.float64), graph.indptr, graph.indices, weights, own)
    out = np.empty((rows.size, values.shape[1]))
    found = run(neighbor_means, [(rows[part],) for part in parts], shared, n_jobs=n_jobs)
    with closing(found):
        for part, mean in zip(parts, found, strict=True):
            out[part] = mean
    return out


def residuals(
    x: NDArray[np.float64],
    graph: sp.csr_matrix,
    cells: NDArray[np.int64] | None = None,
    *,
    n_jobs: int | None = None,
) -> NDArray[np.float64]:
    """Return the way from each cell, or each of ``cells``, to its neighbours' weighted mean, ``[n_cells, n_dims]``.

    It is zero for a cell without neighbours.
    """
    out = means_over(graph, x, cells, n_jobs=n_jobs)
    if cells is None:
        return np.subtract(out, x, out=out)
    for start, stop in blocks(cells.size, BLOCK_CELLS):
        out[start:stop] -= x[cells[start:stop]]
    return out
