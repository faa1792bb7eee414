"""Genes: the velocity of each through the PCA loadings, and how well some of them reproduce the transitions.

Reads AnnData through a kernel, which does not import it in turn; depends on chain, numpy and pandas.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_known
from cellrank_velot.metrics.chain import Over, reconstructability
from cellrank_velot.transitions.similarities import Similarity

if TYPE_CHECKING:
    from cellrank_velot.kernel import OTVelocityKernel

__all__ = ["gene_velocity", "reconstructability_score"]

logger = logging.getLogger("cellrank_velot")

# Cells projected at a time, so that no second array of the size of the result is made.
CHUNK_CELLS = 4096
# What `params` says of a transition matrix, and what it leaves out where usual.
SETTINGS = (
    "similarity",
    "softmax_scale",
    "smooth",
    "settle",
    "variance_stabilize",
    "threshold",
    "model",
    "n_samples",
    "random_state",
)


def gene_velocity(
    kernel: OTVelocityKernel,
    genes: Sequence[str] | str | None = None,
    key_added: str = "velot_velocity",
    copy: bool = False,
    *,
    smooth: bool = True,
) -> pd.DataFrame | None:
    """Take the velocity to genes, through the PCA loadings :math:`W`: :math:`v_{gene} = v W^T`.

    It is in units of the matrix that the PCA was computed on (log-normalised counts, say) per unit of time, and holds
    what the components of the basis hold of the change of a gene. A gene without a weight in the PCA, as those that
    are not highly variable, has no estimate: NaN, not zero.

    Parameters
    ----------
    kernel
        Kernel with a velocity, whose basis is a PCA with loadings in ``adata.varm["PCs"]``.
    genes
        Names of genes, or a boolean column of ``adata.var``; all genes where not given.
    key_added
        Key in ``adata.layers`` to write to; genes that were not asked for are NaN there. A layer is dense and has
        every gene, 4 bytes per cell and gene: with many cells, take a few genes with ``copy=True``.
    copy
        Whether to return the velocity, of the genes asked for only, and leave ``adata`` as it is.
    smooth
        Whether to use the velocity field; the transport velocity, NaN where there is none, otherwise.

    Returns
    -------
    Cells by genes, float32, in the order asked for, if ``copy``; otherwise nothing, and writes
    ``adata.layers[key_added]``, float32 of shape ``[n_cells, n_genes]``.

    Raises
    ------
    KeyError
        If loadings or genes are missing.
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
    chosen = _gene_positions(adata, genes)
    loadings = _loadings(adata, velocity.shape[1], chosen)
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
    kernel: OTVelocityKernel, genes: Sequence[str] | str, *, over: Over = "union", **kwargs: Any
) -> float:
    """Return how well a subset of genes reproduces the transitions of all genes.

    The reduced matrix compares velocity and displacement in these genes alone, with the options and the softmax scale
    of the kernel's own matrix; the kernel stays as it is.

    Parameters
    ----------
    kernel
        Kernel with a transition matrix, whose basis is a PCA with loadings in ``adata.varm["PCs"]``.
    genes
        Names of genes, or a boolean column of ``adata.var``. Those without a weight in the PCA add nothing.
    over
        As in :func:`~cellrank_velot.metrics.row_correlations`.
    **kwargs
        Options of :meth:`~cellrank_velot.OTVelocityKernel.compute_transition_matrix` that differ for the reduced
        matrix. A similarity that is a function must be given again, for the kernel keeps but its name.

    Returns
    -------
    Median correlation of the rows, in ``[-1, 1]``; values above 0.8 say that these genes drive the dynamics.

    Raises
    ------
    KeyError
        If genes or loadings are missing.
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


def _gene_positions(adata: AnnData, genes: Sequence[str] | str | None) -> NDArray[np.int64]:
    """Return where the genes are in ``adata.var``, in the order asked for."""
    if genes is None:
        return np.arange(adata.n_vars)
    if isinstance(genes, str):
        check_known("adata.var", genes, adata.var.columns)
        return np.flatnonzero(adata.var[genes].to_numpy(dtype=bool))
    missing = [str(gene) for gene in genes if gene not in adata.var_names]
    if missing:
        raise KeyError(f"Expected genes of `adata.var_names`, found `{len(missing)}` others: {missing[:5]}.")
    # Names may repeat in `var`; `get_indexer` would refuse them all.
    first = ~adata.var_names.duplicated()
    return np.flatnonzero(first)[adata.var_names[first].get_indexer(list(genes))]


def _loadings(adata: AnnData, n_dims: int, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the loadings of some genes, NaN for those without, shape ``[n_dims, n_genes]``."""
    check_known("adata.varm", "PCs", adata.varm.keys(), "Velocities of genes need the loadings of a PCA.")
    loadings = np.asarray(adata.varm["PCs"], dtype=np.float64)[chosen]
    if loadings.shape[1] != n_dims:
        raise ValueError(
            f"Expected the loadings `adata.varm['PCs']` to have the `{n_dims}` dimensions of the velocity, found "
            f"`{loadings.shape[1]}`."
        )
    return np.where((loadings != 0).any(axis=1)[:, None], loadings, np.nan).T


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
