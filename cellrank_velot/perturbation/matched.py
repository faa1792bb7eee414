"""Other genes whose change moves cells as far: what a perturbation is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_integer, check_seed
from cellrank_velot.perturbation.changes import Change, Perturbation
from cellrank_velot.perturbation.flow import Variants

__all__ = ["draw_matched"]

FloatArray = NDArray[np.float64]

# Genes whose values are dense at a time.
CHUNK_GENES = 256
# Genes drawn from, for each one that is drawn, and at least.
POOL_FACTOR, POOL_SIZE = 3, 30


def draw_matched(
    perturbation: Perturbation,
    expression: FloatArray | sp.spmatrix,
    loadings: FloatArray,
    *,
    n_null: int = 20,
    scale: FloatArray | None = None,
    random_state: int = 0,
) -> tuple[Variants, NDArray[np.int64]]:
    r"""Draw genes that the same change moves as far as the genes perturbed.

    ``expression [n_cells, n_candidates]`` and ``loadings [n_dims, n_candidates]`` are those of the genes to draw from,
    and ``scale [n_candidates]`` is what the PCA divided them by. Returned are the drawn perturbations, and the columns
    drawn, shape ``[n_null, n_genes]``.

    The length of a gene's displacement is :math:`\|L_g\|` times the mean of :math:`|\delta_g|` over the perturbed
    cells. Each gene of the perturbation is compared with genes drawn from those of the nearest length, and the change
    of a drawn gene is scaled to the same length: what differs is the direction, and the cells. Random directions of
    the basis would not do: most of their length lies in components that the field hardly answers to, so that any gene
    would stand out.
    """
    check_integer("n_null", n_null, low=1)
    check_seed(random_state)
    rng = np.random.default_rng(random_state)
    columns = sp.csc_matrix(expression) if sp.issparse(expression) else np.asarray(expression, dtype=np.float64)
    scale = np.ones(loadings.shape[1]) if scale is None else scale
    norms = np.linalg.norm(loadings, axis=0) / scale
    n_cells, n_genes = perturbation.amounts.shape
    drawn = np.empty((n_null, n_genes), dtype=np.int64)
    amounts = np.empty((n_null, n_cells, n_genes))
    for i, change in enumerate(perturbation.changes.values()):
        target = float(
            np.abs(perturbation.amounts[perturbation.cells, i]).mean() * np.linalg.norm(perturbation.directions[i])
        )
        length = norms * _mean_change(columns, change, perturbation.cells)
        drawn[:, i] = _nearest(length, target, n_null, drawn[:, :i], rng)
        values = _dense(columns, drawn[:, i])[perturbation.cells]
        delta = change.of(values) * (target / length[drawn[:, i]] / scale[drawn[:, i]])
        amounts[:, :, i] = 0.0
        amounts[:, perturbation.cells, i] = np.broadcast_to(delta, values.shape).T
    directions = loadings.T[drawn]
    return Variants(amounts, directions, perturbation.effect), drawn


def _nearest(
    length: FloatArray, target: float, n_null: int, taken: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return genes drawn from those of the nearest length, none twice."""
    free = np.setdiff1d(np.flatnonzero(length > 0), taken)
    if free.size < n_null:
        raise ValueError(
            f"Expected at least `n_null={n_null}` other genes with a weight in the PCA that the change moves, found "
            f"`{free.size}`. Lower `n_null`; 0 leaves out the comparison."
        )
    order = np.argsort(np.abs(np.log(length[free] / target)), kind="stable")
    pool = free[order[: max(POOL_FACTOR * n_null, POOL_SIZE)]]
    return np.asarray(rng.choice(pool, n_null, replace=False))


def _mean_change(columns: Any, change: Change, cells: NDArray[np.bool_]) -> FloatArray:
    """Return the mean absolute change of each gene over cells, shape ``[n_candidates]``."""
    result = np.empty(columns.shape[1])
    for start in range(0, columns.shape[1], CHUNK_GENES):
        part = np.arange(start, min(start + CHUNK_GENES, columns.shape[1]))
        values = _dense(columns, part)[cells]
        result[part] = np.abs(np.broadcast_to(change.of(values), values.shape)).mean(axis=0)
    return result


def _dense(columns: Any, chosen: NDArray[np.int64]) -> FloatArray:
    part = columns[:, chosen]
    return np.asarray(part.toarray() if sp.issparse(part) else part, dtype=np.float64)
