"""Cells: what the stages need to know of an AnnData.

In goes an AnnData with the names of its slots. Out come arrays, checked: a missing slot, a wrong type or a value out of
range is an error that names the slot. There is one reader for each question:

time
    ``find_time_key(adata, time_key)``, ``read_time(adata, time_key)``, ``read_root(adata, time_key)`` (the root cell)
    and ``read_roots(adata, time_key)`` (all of them), or ``None``
positions
    ``find_basis(adata, basis)`` (its key), ``read_basis(adata, basis)`` (all dimensions), ``read_embedding(adata,
    basis)`` (two for a plot, and their name), ``read_plane(adata, basis, dims, known={kernel.basis: kernel.cells.x})``
clusters
    ``find_cluster_key(adata, cluster_key, usual=kernel.cluster_key)``, ``read_clusters(adata, cluster_key, hint)`` (a
    categorical series), ``check_clusters(adata, cluster_key, names)``, ``read_colors(adata, cluster_key)``
genes
    ``find_genes(adata, genes)`` (where), ``gene_names(adata, genes)``, ``read_loadings(adata, basis, genes)`` (some),
    ``read_gene_loadings(adata, basis, genes)`` (names and loadings, in the order asked for), ``read_pca(adata,
    n_dims)`` (all), ``read_expression(adata, layer)`` (counts, where there are)
clones, fates
    ``read_clones(adata, clone_key)`` (number of each cell's clone, and the names of the clones), ``read_fates(adata,
    fates)`` (a table, of whatever gives fate probabilities)
"""

from cellrank_velot.cells.basis import basis_name, find_basis, read_basis, read_embedding, read_plane
from cellrank_velot.cells.clones import CLONE_KEYS, find_clone_key, read_clones
from cellrank_velot.cells.clusters import check_clusters, find_cluster_key, read_clusters, read_colors
from cellrank_velot.cells.fates import read_fates
from cellrank_velot.cells.genes import (
    by_symbol,
    find_genes,
    gene_names,
    read_expression,
    read_gene_loadings,
    read_loadings,
    read_pca,
)
from cellrank_velot.cells.graph import check_graph, find_graph, readable, warn_about_graph
from cellrank_velot.cells.read import CellStates, read_cells
from cellrank_velot.cells.select import (
    CellSelector,
    Interval,
    cells_in_box,
    cells_in_cluster,
    cells_in_time,
    rows_of_state,
    rows_of_states,
    select_cells,
)
from cellrank_velot.cells.time import TIME_KEYS, TimeKind, find_time_key, read_root, read_roots, read_time
from cellrank_velot.cells.time_points import check_snapshots, next_time

__all__ = [
    "CLONE_KEYS",
    "TIME_KEYS",
    "CellSelector",
    "CellStates",
    "Interval",
    "TimeKind",
    "basis_name",
    "by_symbol",
    "cells_in_box",
    "cells_in_cluster",
    "cells_in_time",
    "check_clusters",
    "check_graph",
    "check_snapshots",
    "find_basis",
    "find_clone_key",
    "find_cluster_key",
    "find_genes",
    "find_graph",
    "find_time_key",
    "gene_names",
    "next_time",
    "read_basis",
    "read_cells",
    "read_clones",
    "read_clusters",
    "read_colors",
    "read_embedding",
    "read_expression",
    "read_fates",
    "read_gene_loadings",
    "read_loadings",
    "read_pca",
    "read_plane",
    "read_root",
    "read_roots",
    "read_time",
    "readable",
    "rows_of_state",
    "rows_of_states",
    "select_cells",
    "warn_about_graph",
]
