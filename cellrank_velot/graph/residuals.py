"""The residual of each cell, which is the way to its neighbours' mean."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellrank_velot._utils.parallel import blocks, run
from cellrank_velot.graph.compiled import neighbor_means

__all__ = ["residuals"]

# Cells of one task.
BLOCK_CELLS = 32_768


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
    rows = np.arange(x.shape[0]) if cells is None else cells
    x = np.ascontiguousarray(x, dtype=np.float64)
    weights = np.asarray(graph.data, dtype=np.float64)
    parts = [slice(*part) for part in blocks(rows.size, BLOCK_CELLS)]
    shared = (x, graph.indptr, graph.indices, weights)
    means = run(neighbor_means, [(rows[part],) for part in parts], shared, n_jobs=n_jobs)
    out = np.empty((rows.size, x.shape[1]))
    with closing(means):
        for part, mean in zip(parts, means, strict=True):
            np.subtract(mean, x[rows[part]], out=out[part])
    return out
