"""Velocities of us, of peers and of baselines, each as a function of positions, neighbour graph, time and AnnData.

The AnnData holds the same cells: their true velocity, and whatever else a kernel reads. Every parameter of a method is
at its default.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable

import anndata as ad
import cellrank as cr
import numpy as np
import scipy.sparse as sp
import velot
from numpy.typing import NDArray

import cellrank_velot as cv
from cellrank_velot._utils.options import Run
from cellrank_velot.field import fit_field

__all__ = ["METHODS", "Method", "ceiling", "reversed_time"]

Array = NDArray[np.float64]
Method = Callable[[Array, sp.csr_matrix, Array, ad.AnnData], Array]


def reversed_time(time: Array) -> Array:
    """Return the time that runs the other way over the same range."""
    return time.max() + time.min() - time


def ours(x: Array, graph: sp.csr_matrix, time: Array, adata: ad.AnnData) -> Array:
    """Return the velocity of the kernel."""
    kernel = cv.OTVelocityKernel(_cells(x, graph, time, adata), time_key="pseudotime")
    return kernel.fit_field(show_progress_bar=False).velocity


def local_regression(x: Array, graph: sp.csr_matrix, time: Array, adata: ad.AnnData) -> Array:
    """Return the slope of position over time, ``cov(x, t) / var(t)``, among neighbours and their neighbours."""
    near = _pattern(graph + sp.identity(len(x)))
    near = _mean(_pattern(near @ near))
    t = time[:, None]
    return (near @ (x * t) - (near @ x) * (near @ t)) / np.maximum(near @ t**2 - (near @ t) ** 2, 1e-12)


def theirs(x: Array, graph: sp.csr_matrix, time: Array, adata: ad.AnnData) -> Array:
    """Return the velocity of VelOT, whose network expects a time from 0 to 1."""
    cells = _cells(x, graph, (time - time.min()) / np.ptp(time), adata)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        velot.tl.velocity(cells, project_umap=False, verbose=False)
    return np.asarray(cells.obsm["velot_velocity_pca"], dtype=np.float64)


def pseudotime_kernel(x: Array, graph: sp.csr_matrix, time: Array, adata: ad.AnnData) -> Array:
    """Return the mean step of CellRank's PseudotimeKernel less that of the connectivities alone."""
    kernel = cr.kernels.PseudotimeKernel(_cells(x, graph, time, adata), time_key="pseudotime")
    kernel.compute_transition_matrix(show_progress_bar=False)
    return kernel.transition_matrix @ x - _mean(graph) @ x


def no_time(x: Array, graph: sp.csr_matrix, time: Array, adata: ad.AnnData) -> Array:
    """Return the way to the mean of the neighbours, which knows no time."""
    return _mean(_pattern(graph - sp.diags(graph.diagonal()))) @ x - x


def ceiling(x: Array, graph: sp.csr_matrix, time: Array, adata: ad.AnnData) -> Array:
    """Return what the field makes of the true velocity, ``obsm["true_velocity_pca"]``: no input could do better."""
    truth = np.asarray(adata.obsm["true_velocity_pca"], dtype=np.float64)
    field = fit_field(x, time, truth, np.ones(len(x)), sp.csr_matrix(graph), run=Run(show_progress_bar=False))
    return field(x, time)


METHODS: dict[str, Method] = {
    "cellrank_velot": ours,
    "local regression": local_regression,
    "VelOT 1.0.0": theirs,
    "PseudotimeKernel": pseudotime_kernel,
    "no time": no_time,
}


def _cells(x: Array, graph: sp.csr_matrix, time: Array, adata: ad.AnnData) -> ad.AnnData:
    """Return a copy of the AnnData with these positions, this graph and this time where the packages look for them."""
    cells = adata.copy()
    cells.obs["pseudotime"], cells.obsm["X_pca"], cells.obsp["connectivities"] = time, x, graph
    return cells


def _pattern(graph: sp.csr_matrix) -> sp.csr_matrix:
    """Return the graph with weights of one."""
    return sp.csr_matrix(graph > 0, dtype=np.float64)


def _mean(graph: sp.csr_matrix) -> sp.csr_matrix:
    """Return the graph with rows that sum to one, or to zero for a cell without neighbours."""
    total = np.asarray(graph.sum(axis=1), dtype=np.float64).ravel()
    return sp.diags(np.divide(1, total, out=np.zeros_like(total), where=total > 0)).tocsr() @ graph
