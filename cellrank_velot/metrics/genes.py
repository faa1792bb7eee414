"""The velocity of genes, through the PCA loadings, and how well some genes reproduce the transitions of all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellrank_velot.cells import find_genes, read_pca
from cellrank_velot.metrics._kernel import VelocityKernel
from cellrank_velot.metrics.chain import Over, reconstructability
from cellrank_velot.transitions import Similarity

__all__ = ["gene_velocity", "reconstructability_score"]

logger = logging.getLogger("cellrank_velot")

# Cells projected at a time, so that no second array of the size of the result is made.
CHUNK_CELLS = 4096
# Options of a transition matrix that `params` names; it leaves out those with their usual values.
SETTINGS = (
    "similarity",
    "softmax_scale",
    "smooth",
    "weighted",
    "settle",
    "variance_stabilize",
    "threshold",
    "model",
    "n_samples",
    "random_state",
)


def gene_velocity(
    kernel: VelocityKernel,
    genes: Sequence[str] | str | None = None,
    key_added: str = "velot_velocity",
    copy: bool = False,
    *,
    smooth: bool = True,
) -> pd.DataFrame | None:
    """Compute the velocity of genes from the velocity in the PCA.

    With the loadings :math:`W` it is :math:`v_{gene} = v W^T`, in units of the matrix that the PCA was computed on
    (such as log-normalised counts) per unit of time. It holds the part of the change that the components of the basis
    hold. Genes without a weight in the PCA, such as those that are not highly variable, are NaN, never zero.

    Parameters
    ----------
    kernel
        Kernel with a velocity, whose basis is a PCA with loadings in ``adata.varm["PCs"]``.
    genes
        Names of genes, or a boolean column of ``adata.var``; all genes where not given.
    key_added
        Key in ``adata.layers`` to write to. Genes that were not asked for are NaN there. The layer is dense and has all
        genes, 4 bytes per cell and gene: of many cells, take a few genes with ``copy=True``.
    copy
        Whether to return the velocity of these genes and leave ``adata`` as it is.
    smooth
        Whether to use the velocity field. Otherwise the velocity from transport is used, NaN where there is none.

    Returns
    -------
    With ``copy``, a float32 table of cells by genes, in the order asked for. Otherwise nothing; written is
    ``adata.layers[key_added]``, float32 of shape ``[n_cells, n_genes]``.

    Raises
    ------
    KeyError
        If loadings or genes are missing.
    TypeError
        If the column is not boolean.
    ValueError
        If the loadings do not belong to the basis.
    RuntimeError
        If the kernel has no velocity yet.

    Examples
    --------
    >>> table = metrics.gene_velocity(vk, ["FateA", "FateB"], copy=True)
    >>> table.shape
    (300, 2)
    >>> metrics.gene_velocity(vk)
    >>> adata.layers["velot_velocity"].shape
    (300, 100)
    """
    adata = kernel.adata
    velocity = kernel.velocity if smooth else kernel.raw_velocity
    chosen = find_genes(adata, genes)
    hint = "Velocities of genes need the loadings of a PCA."
    loadings = read_pca(adata, velocity.shape[1], hint, of="the velocity")[chosen].T
    loadings = np.where((loadings != 0).any(axis=0), loadings, np.nan)
    n_without = int(np.isnan(loadings).any(axis=0).sum())
    if n_without:
        logger.info("%d of %d genes have no weight in the PCA: their velocity is NaN", n_without, chosen.size)
    if copy:
        values = np.empty((velocity.shape[0], chosen.size), dtype=np.float32)
        _project(velocity, loadings, values, slice(None))
        return pd.DataFrame(values, index=adata.obs_names, columns=adata.var_names[chosen], copy=False)
    layer = np.full(adata.shape, np.nan, dtype=np.float32)
    _project(velocity, loadings, layer, slice(None) if genes is None else chosen)
    adata.layers[key_added] = layer
    return None


def reconstructability_score(
    kernel: VelocityKernel, genes: Sequence[str] | str, *, over: Over = "union", **kwargs: Any
) -> float:
    """Return how well a subset of genes reproduces the transitions of all genes.

    A reduced matrix compares velocities and displacements in these genes alone, with the options and the softmax scale
    of the kernel's own matrix. The score is the median correlation of the rows of both. The kernel stays as it is.

    Parameters
    ----------
    kernel
        Kernel with a transition matrix, whose basis is a PCA with loadings in ``adata.varm["PCs"]``.
    genes
        Names of genes, or a boolean column of ``adata.var``. Those without a weight in the PCA add nothing.
    over
        ``"union"`` correlates each row over the cells that one of both matrices leads to; ``"all"`` over all cells.
    **kwargs
        Passed on to ``kernel.compute_transition_matrix``, whose options for the reduced matrix they replace. A
        similarity that is a function must be given here again: the kernel keeps only its name.

    Returns
    -------
    Median correlation of the rows, in ``[-1, 1]``. Above 0.8, these genes drive the dynamics.

    Raises
    ------
    KeyError
        If genes or loadings are missing.
    TypeError
        If the column is not boolean.
    ValueError
        If the kernel's own matrix is of a subset of genes or of a function that was not given, or no gene has a weight.
    RuntimeError
        If the kernel has no transition matrix yet.

    Examples
    --------
    >>> circuit = list(adata.var_names[adata.var["role"] == "circuit"])
    >>> score = metrics.reconstructability_score(vk, circuit)
    >>> 0 < score < metrics.reconstructability_score(vk, adata.var_names)
    True
    """
    params = dict(kernel.params)
    if not params:
        raise RuntimeError("Compute the transition matrix first, as `.compute_transition_matrix()`.")
    if "gene_subset" in params:
        raise ValueError("Expected a transition matrix of all genes, found one of a subset. Compute it again.")
    options = {name: params[name] for name in SETTINGS if name in params} | kwargs
    if "bwd_mode" in params:
        options.setdefault("backward_mode", params["bwd_mode"])
    if not callable(options["similarity"]) and options["similarity"] not in get_args(Similarity):
        raise ValueError(f"Expected the function `{options['similarity']}` as `similarity=`, found its name only.")
    reduced = kernel.copy().compute_transition_matrix(**options, gene_subset=genes)
    return reconstructability(kernel.transition_matrix, reduced.transition_matrix, over)


def _project(
    velocity: NDArray[np.float64],
    loadings: NDArray[np.float64],
    out: NDArray[np.float32],
    columns: slice | NDArray[np.int64],
) -> None:
    """Write the product into these columns, some cells at a time."""
    for start in range(0, velocity.shape[0], CHUNK_CELLS):
        cells = slice(start, start + CHUNK_CELLS)
        out[cells, columns] = velocity[cells] @ loadings
