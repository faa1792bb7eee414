"""Inputs of the main job: time, positions, neighbours and embedding, found or computed, and the kernel on them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsTransformer

from cellrank_velot.cells import (
    check_graph,
    find_basis,
    find_time_key,
    read_basis,
    read_clusters,
    read_colors,
    read_time,
    warn_about_graph,
)
from cellrank_velot.job.conditions import check_conditions
from cellrank_velot.job.options import JobOptions
from cellrank_velot.kernel import OTTimeSeriesKernel, OTVelocityKernel
from cellrank_velot.plotting._draw.colors import palette
from cellrank_velot.preprocessing.prepare import prepare
from cellrank_velot.preprocessing.pseudotime import PSEUDOTIME_KEYS, choose_root_cell, set_pseudotime

__all__ = ["build_kernel", "prepare_inputs"]

logger = logging.getLogger("cellrank_velot")

# Embeddings that are pictures: distances in them mean little.
PICTURES = ("X_umap", "X_tsne", "X_draw_graph_fa", "X_force_directed", "X_phate")
# Fields of halves of the cells that the uncertainty is computed from: each takes as long as the field itself.
N_MEMBERS = 2
# Cells below which neither a neighbour graph nor a diffusion map can be computed.
FEWEST_CELLS = 3
# Dimensions of a basis in which a tree finds neighbours fast.
FEW_DIMS = 10


def prepare_inputs(adata: AnnData, options: JobOptions) -> JobOptions:
    """Find or compute positions, neighbours, time and embedding, and return the options with their keys.

    All keys and names are checked before anything is computed. What is there already is used as it is; what is missing
    is written to ``adata``.
    """
    if adata.n_obs < FEWEST_CELLS:
        raise ValueError(f"Expected at least `{FEWEST_CELLS}` cells, found `{adata.n_obs}`.")
    _make_names_unique(adata)
    _mend(adata)
    options = replace(options, cluster_key=_find_clusters(adata, options))
    check_conditions(adata, options)
    time_key = _find_time(adata, options)
    basis = _find_basis(adata, options)
    if options.embedding not in ("umap", "X_umap"):
        find_basis(adata, options.embedding)
    elif basis is not None and "X_umap" not in adata.obsm and np.shape(adata.obsm[basis])[1] == 2:
        options = replace(options, embedding=basis)  # a plane is drawn as it is

    if basis is None:
        prepare(
            adata,
            root_cluster=options.root_cluster if time_key is None else None,
            root_cell=options.root_cell if time_key is None else None,
            pseudotime_key=time_key,
            pseudotime=options.pseudotime,
            cluster_key=options.cluster_key or "clusters",
            n_pcs=options.n_pcs,
            n_neighbors=options.n_neighbors,
            normalize="auto" if options.normalize == "auto" else options.normalize == "yes",
            random_state=options.seed,
            show_progress_bar=options.show_progress_bar,
        )
        logger.info("Computed PCA, neighbours and UMAP from %d genes", adata.n_vars)
        basis, time_key = "X_pca", time_key or PSEUDOTIME_KEYS[options.pseudotime]
    _complete_graph(adata, basis, options)
    if time_key is None:
        time_key = _time_from_root(adata, basis, options)
    if options.embedding in ("umap", "X_umap") and "X_umap" not in adata.obsm:
        _describe_graph(adata)
        logger.info("Computing a UMAP for the pictures")
        sc.tl.umap(adata, random_state=options.seed)
    _check_root(adata, options, time_key)
    logger.info("Time is `obs[%r]`, positions are `obsm[%r]`, %d cells", time_key, basis, adata.n_obs)
    return replace(options, time_key=time_key, basis=basis, embedding=find_basis(adata, options.embedding))


def _make_names_unique(adata: AnnData) -> None:
    for kind, names, repair in (
        ("cells", adata.obs_names, adata.obs_names_make_unique),
        ("genes", adata.var_names, adata.var_names_make_unique),
    ):
        if not names.is_unique:
            logger.warning("Names of %d %s occur more than once: a number was appended", names.duplicated().sum(), kind)
            repair()


def _mend(adata: AnnData) -> None:
    """Put right what other programs cannot read: half precision, counts beside ``X``, parts of a diffusion map."""
    if adata.X is None and "counts" in adata.layers:
        logger.info("Using `layers['counts']`, as `X` is empty")
        adata.X = adata.layers["counts"].copy()
    if adata.X is not None and adata.X.dtype == np.float16:  # scipy does not know it
        adata.X = adata.X.astype(np.float32)
    # anndata.concat keeps the positions without the eigenvalues, and scanpy's neighbours fail on that.
    if "X_diffmap" in adata.obsm and "diffmap_evals" not in adata.uns:
        logger.info("Leaving out `obsm['X_diffmap']`, whose eigenvalues are missing")
        del adata.obsm["X_diffmap"]


def _make_numeric(adata: AnnData, time_key: str, options: JobOptions) -> str:
    """Write a time as numbers where it is texts or categories of numbers, and return its key.

    A column that also names clusters, conditions or samples stays as it is.
    """
    time = read_time(adata, time_key)
    if pd.api.types.is_numeric_dtype(adata.obs[time_key].dtype):
        return time_key
    if time_key in (options.cluster_key, options.condition_key, options.sample_key):
        time_key = f"velot_{time_key}"
    adata.obs[time_key] = time
    return time_key


def _find_clusters(adata: AnnData, options: JobOptions) -> str | None:
    """Return the column of clusters, made categorical and given colours, after a check of all clusters named."""
    named = [name for name in (options.root_cluster, *options.terminal_states) if name is not None]
    if options.cluster_key is None and not named and "clusters" not in adata.obs:
        logger.info("No clusters given: states are numbered, not named")
        return None
    key = "clusters" if options.cluster_key is None else options.cluster_key
    clusters = read_clusters(adata, key, "Name the column of your clusters with `--cluster-key`.", complete=True)
    colors = dict(zip(map(str, clusters.cat.categories), read_colors(adata, key), strict=False))
    if not isinstance(adata.obs[key].dtype, pd.CategoricalDtype) or clusters.cat.categories.inferred_type != "string":
        clusters = clusters.astype(str).astype("category")
    adata.obs[key] = clusters.cat.remove_unused_categories()
    valid = [str(category) for category in adata.obs[key].cat.categories]
    unknown = [name for name in named if name not in valid]
    if unknown:
        raise ValueError(f"Unknown clusters {unknown} in `adata.obs[{key!r}]`, valid ones are {valid}.")
    known = all(name in colors for name in valid)
    adata.uns[f"{key}_colors"] = [colors[name] for name in valid] if known else palette(len(valid))
    return key


def _find_time(adata: AnnData, options: JobOptions) -> str | None:
    """Return the column of a time that is there; ``None`` where one is to be computed from the root."""
    if options.root_cell is not None and options.root_cell not in adata.obs_names:
        raise KeyError(
            f"Expected `root_cell` to be a name such as {adata.obs_names[0]!r}, found {options.root_cell!r}."
        )
    if options.time_key is None and (options.root_cluster is not None or options.root_cell is not None):
        return None
    hint = "Name a column with `--time-key`, or say where the process begins with `--root-cluster` or `--root-cell`."
    if options.is_series:
        hint = "Name the column of the time points with `--time-key`."
    time_key = find_time_key(adata, options.time_key, options.time_kind, hint=hint)
    return _make_numeric(adata, time_key, options)


def _find_basis(adata: AnnData, options: JobOptions) -> str | None:
    """Return the key of the positions; ``None`` where a PCA is to be computed."""
    if options.basis is not None or "X_pca" in adata.obsm:
        return find_basis(adata, options.basis or "X_pca")
    if adata.X is None or adata.n_vars == 0:
        others = [key for key in adata.obsm if key not in PICTURES]
        if len(others) == 1:
            logger.info("Using `obsm[%r]` as positions: there are no genes, and nothing else", others[0])
            return find_basis(adata, others[0])
        raise KeyError(
            f"Expected genes or a basis, found no genes and the keys {sorted(adata.obsm)} in `adata.obsm`. "
            "Name one of them with `--basis`."
        )
    return None


def _complete_graph(adata: AnnData, basis: str, options: JobOptions) -> None:
    if "connectivities" in adata.obsp:
        check_graph(adata, "connectivities")
        return
    n_neighbors = min(options.n_neighbors, max(2, adata.n_obs // 2))
    logger.info("Computing %d neighbours in `obsm[%r]`", n_neighbors, basis)
    x = read_basis(adata, basis)
    # A tree finds the nearest of many cells in few dimensions, all of them, in a fifth of the time.
    tree = KNeighborsTransformer(n_neighbors=n_neighbors, algorithm="kd_tree", mode="distance")
    finder = tree if x.shape[1] <= FEW_DIMS else None
    # Scanpy is given positions that it can take, whatever holds them, in a unit that single precision can square.
    unit = _unit(x)
    usual = unit == 1 and isinstance(adata.obsm[basis], np.ndarray)
    work = adata if usual else AnnData(obs=adata.obs[[]], obsm={basis: x / unit})
    sc.pp.neighbors(work, n_neighbors=n_neighbors, use_rep=basis, random_state=options.seed, transformer=finder)
    if not usual:
        adata.uns["neighbors"] = work.uns["neighbors"]
        adata.obsp["connectivities"] = work.obsp["connectivities"]
        adata.obsp["distances"] = work.obsp["distances"] * unit


def _unit(x: NDArray[np.floating]) -> float:
    """Return what to divide positions by where they are too far from one: a power of two, which loses no digit."""
    power = float(np.round(np.log2(np.ptp(x) or 1.0)))
    return 1.0 if abs(power) < 40 else 2.0**power


def _time_from_root(adata: AnnData, basis: str, options: JobOptions) -> str:
    """Compute a pseudotime from the root on the graph that is there."""
    _describe_graph(adata)
    warn_about_graph(adata.obsp["connectivities"], strict=True)
    adata.uns.pop("iroot", None)  # scanpy reads it, whatever it is; the root that is found takes its place
    sc.tl.diffmap(adata, random_state=options.seed)
    if options.root_cell is not None:
        root = int(adata.obs_names.get_loc(options.root_cell))
    else:
        root = choose_root_cell(adata, str(options.root_cluster), str(options.cluster_key), basis=basis)
    set_pseudotime(adata, [root], options.pseudotime, basis=basis)
    key, names = PSEUDOTIME_KEYS[options.pseudotime], adata.obs_names[[root]].astype(str).to_numpy(dtype=object)
    adata.uns["pseudotime"] = {"method": options.pseudotime, "key": key, "roots": names}
    logger.info("Computed a %s pseudotime from cell %r", options.pseudotime, str(adata.obs_names[root]))
    return key


def _describe_graph(adata: AnnData) -> None:
    """Complete the entry by which scanpy finds the graph, which other programs leave out in part or all."""
    entry = adata.uns.get("neighbors")
    entry = dict(entry) if isinstance(entry, Mapping) else {}
    params = dict(entry["params"]) if isinstance(entry.get("params"), Mapping) else {}
    if params.get("use_rep", "X") not in ("X", *adata.obsm):
        del params["use_rep"]
    n_neighbors = int(np.median(np.diff(sp.csr_matrix(adata.obsp["connectivities"]).indptr)))
    adata.uns["neighbors"] = {
        **entry,
        "connectivities_key": "connectivities",
        "distances_key": "distances",
        "params": {"n_neighbors": n_neighbors, "method": "umap", **params},
    }


def _check_root(adata: AnnData, options: JobOptions, time_key: str) -> None:
    """Warn where another cluster is clearly earlier than the one said to be the root: the direction would be wrong."""
    if options.root_cluster is None:
        return
    labels = read_clusters(adata, str(options.cluster_key)).astype(str)
    rank = pd.Series(read_time(adata, time_key)).rank(pct=True)
    median = rank.groupby(labels.to_numpy()).median()
    if median[options.root_cluster] > median.min() + 0.1:
        logger.warning(
            "By `obs[%r]` the earliest cluster is %r, not the root %r: check the direction of time",
            time_key,
            median.idxmin(),
            options.root_cluster,
        )


def build_kernel(adata: AnnData, options: JobOptions) -> OTVelocityKernel | OTTimeSeriesKernel:
    """Run all steps of the velocity kernel, with options as :func:`prepare_inputs` returns them."""
    bar = options.show_progress_bar
    basis = options.basis or "X_pca"
    training: dict[str, Any] = {} if options.n_steps is None else {"n_steps": options.n_steps}
    if options.is_series:
        series = OTTimeSeriesKernel(adata, time_key=options.time_key, basis=basis, cluster_key=options.cluster_key)
        series.compute_velocity(random_state=options.seed, show_progress_bar=bar)
        series.fit_field(random_state=options.seed, show_progress_bar=bar, **training)
        series.compute_transition_matrix(show_progress_bar=bar)
        series.write_to_adata()
        return series
    kernel = OTVelocityKernel(adata, time_key=options.time_key, basis=basis)
    kernel.compute_windows(random_state=options.seed)
    kernel.compute_velocity(show_progress_bar=bar)
    kernel.fit_field(random_state=options.seed, show_progress_bar=bar, **training)
    try:
        kernel.compute_uncertainty(N_MEMBERS, random_state=options.seed, show_progress_bar=bar)
    except ValueError as error:
        logger.warning("No uncertainty: %s", error)
    kernel.compute_transition_matrix(show_progress_bar=bar)
    kernel.write_to_adata()
    return kernel
