"""The neighbour graph of an AnnData: whether CellRank can read it, and whether it is in pieces."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_known
from cellrank_velot.graph.compiled import connected_components

__all__ = ["check_graph", "find_graph", "readable", "warn_about_graph"]

logger = logging.getLogger("cellrank_velot")


def readable(adata: AnnData, conn_key: str) -> AnnData:
    """Return an AnnData that CellRank can read: itself, or for a lazy one a copy with cells and graph in memory.

    Expression and positions of a lazy AnnData stay where they are.
    """
    if isinstance(adata.obs, pd.DataFrame):
        return adata
    logger.info("Reading `obs` and `obsp[%r]` of a lazy AnnData into memory", conn_key)
    graphs = {key: values.compute() if key == conn_key else values for key, values in adata.obsp.items()}
    obs, var = adata.obs.to_memory(), adata.var.to_memory()
    kept = {name: dict(getattr(adata, name)) for name in ("uns", "obsm", "varm", "varp", "layers")}
    return AnnData(adata.X, obs=obs, var=var, obsp=graphs, **kept)


def find_graph(adata: AnnData, conn_key: str | None) -> str:
    """Return the key of the neighbour graph in ``adata.obsp``.

    ``conn_key`` is that key; or the ``key_added`` of ``scanpy.pp.neighbors``; or ``None`` for the usual one.
    """
    key = "connectivities" if conn_key is None else conn_key
    if key in adata.obsp:
        return key
    entry = adata.uns.get(key)
    for found in (entry.get("connectivities_key") if isinstance(entry, Mapping) else None, f"{key}_connectivities"):
        if isinstance(found, str) and found in adata.obsp:
            return found
    return key  # of which `check_graph` says that it is missing


def check_graph(adata: AnnData, conn_key: str) -> None:
    """Refuse a neighbour graph that is missing, or that CellRank cannot read, or whose weights are not weights."""
    check_known("adata.obsp", conn_key, adata.obsp.keys(), "Compute it with `scanpy.pp.neighbors(adata)`.")
    graph, slot = adata.obsp[conn_key], f"adata.obsp[{conn_key!r}]"
    if not isinstance(graph, np.ndarray | sp.spmatrix) or np.dtype(graph.dtype).kind not in "biuf":
        raise TypeError(
            f"Expected `{slot}` to be a sparse matrix of numbers, found `{type(graph).__name__}` of `{graph.dtype}`, "
            f"which CellRank does not read. Try `{slot} = scipy.sparse.csr_matrix({slot}, dtype=float)`."
        )
    weights = np.asarray(graph.data if sp.issparse(graph) else graph)
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        raise ValueError(
            f"Expected the weights in `{slot}` to be finite and not negative, found `{weights[bad][0]:g}` "
            f"and the like `{int(bad.sum())}` times. Compute it anew with `scanpy.pp.neighbors(adata)`."
        )


def warn_about_graph(graph: sp.csr_matrix, *, strict: bool = False) -> NDArray[np.int64] | None:
    """Return the component of each cell, shape ``[n_cells]``; ``None`` for a connected graph.

    A graph in pieces is a warning in the log, or an error where ``strict``.
    """
    edges = sp.csr_matrix(graph)
    labels = connected_components(edges.indptr, edges.indices, edges.data)
    n_components = int(labels.max(initial=0)) + 1
    if n_components == 1:
        return None
    sizes = np.sort(np.bincount(labels))[::-1]
    shown = ", ".join(map(str, sizes[:10])) + (", ..." if sizes.size > 10 else "")
    message = f"The neighbour graph has {n_components} components, of {shown} cells: no fate crosses between them."
    if strict:
        raise ValueError(f"{message} Use more neighbours, or one component.")
    logger.warning(message)
    return labels
