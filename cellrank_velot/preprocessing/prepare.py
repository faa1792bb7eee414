"""From counts to a time: normalisation, genes, PCA, neighbours and UMAP by scanpy, and a pseudotime from a root."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from tqdm.auto import tqdm

from cellrank_velot._utils.validation import check_choice, check_integer, check_seed
from cellrank_velot.cells import read_time, warn_about_graph
from cellrank_velot.preprocessing._checks import check_anndata, check_finite, check_writeable, stored
from cellrank_velot.preprocessing.pseudotime import (
    PSEUDOTIME_KEYS,
    PseudotimeMethod,
    as_list,
    choose_root_cell,
    known_clusters,
    set_pseudotime,
)

__all__ = ["prepare"]

logger = logging.getLogger("cellrank_velot")

_MIN_CELLS, _MIN_GENES = 10, 3
_TARGET_SUM = 1e4
_N_DIFFUSION = 15  # components that are computed, the trivial one included, as in scanpy
_MAX_LOG = 15.0  # log1p of a cell's 10 000 counts is 9.2, of a million 13.8


def prepare(
    adata: AnnData,
    *,
    root_cluster: str | Sequence[str] | None = None,
    root_cell: str | int | Sequence[str | int] | None = None,
    pseudotime_key: str | None = None,
    pseudotime: PseudotimeMethod = "consensus",
    cluster_key: str = "clusters",
    n_pcs: int = 30,
    n_neighbors: int = 30,
    n_hvg: int = 2000,
    normalize: bool | Literal["auto"] = "auto",
    random_state: int = 0,
    copy: bool = False,
    show_progress_bar: bool = True,
) -> AnnData | None:
    """Prepare an AnnData for :class:`~cellrank_velot.OTVelocityKernel`.

    The time comes from exactly one of `root_cluster`, `root_cell` and `pseudotime_key`: a pseudotime from the root, or
    a column that exists. The direction of every velocity follows from it.

    Parameters
    ----------
    adata
        Cells x genes, with counts or log-normalised expression in `X`, dense or sparse.
    root_cluster
        Category of ``obs[cluster_key]`` where the process begins; :func:`choose_root_cell` finds the cell. Several
        categories give one root each, see Notes.
    root_cell
        Name or position of the cell where the process begins, or several of them.
    pseudotime_key
        Numeric column of `obs`, used in place of a pseudotime from a root. It is checked and stays where it is: give
        the same name to the kernel as ``time_key``.
    pseudotime
        What is computed from the root. ``"diffusion"`` is diffusion pseudotime :cite:p:`haghverdi:16`. On a curved tree
        it may fall along a branch, and the velocity turns around there. ``"geodesic"`` is the length of the shortest
        path over smoothed positions, which does not. ``"consensus"`` is the mean rank of a cell by both. It was the
        best on simulated and real cells. See :func:`set_pseudotime`.
    cluster_key
        Column of `obs` with the clusters, among them `root_cluster`.
    n_pcs
        Number of principal components. It is lowered to what the data allow, with a message in the log.
    n_neighbors
        Number of neighbours in the graph. It is lowered to half of the cells, with a message in the log.
    n_hvg
        Number of highly variable genes that enter the PCA. All genes enter it where there are no more than that, or
        where `X` has negative values.
    normalize
        Whether to scale every cell to 10 000 counts and take ``log1p``. ``"auto"`` does so where `X` holds whole
        numbers only, and otherwise takes `X` to be log-normalised. ``False`` takes `X` as it is, also negative values.
    random_state
        Seed of PCA, neighbours, diffusion map and UMAP.
    copy
        Whether to return a prepared copy rather than to write to `adata`.
    show_progress_bar
        Whether to show a progress bar, with the name of the step.

    Returns
    -------
    ``None``, or the prepared copy. Written are, where normalised, ``X`` and ``layers["counts"]`` (unless that layer
    exists); ``var["highly_variable"]``, ``varm["PCs"]``, ``obsm["X_pca"]`` of shape ``[n_cells, n_pcs]``,
    ``obsm["X_umap"]``, ``obsp["distances"]``, ``obsp["connectivities"]`` and what goes with them in `uns`; unless
    `pseudotime_key` is given, ``obsm["X_diffmap"]``, ``uns["iroot"]``, ``obs["dpt_pseudotime"]`` and
    ``obs["consensus_pseudotime"]`` or ``obs["geodesic_pseudotime"]`` where asked for, in [0, 1]. The kernel prefers
    these to ``obs["dpt_pseudotime"]``. ``uns["pseudotime"]`` has the `method`, the `key` in `obs` and the names of the
    `roots`.

    Raises
    ------
    TypeError
        If `adata` is not an AnnData, an option has the wrong type, or `X` or the column `pseudotime_key` is not
        numeric.
    KeyError
        If `cluster_key`, `pseudotime_key` or a root cell does not exist.
    ValueError
        If none or several of the sources of time are given; if a root cluster is unknown or holds every cell; if `X`
        has NaN, infinite or (unless ``normalize=False``) negative values; if there are too few cells or genes; if a
        root is given and the neighbour graph is not connected; if `adata` is a view or backed, unless ``copy=True``.

    Notes
    -----
    The diffusion map is scanpy's. The diffusion pseudotime is that of :func:`scanpy.tl.dpt` with one difference.
    Scanpy takes components with an eigenvalue above 0.9994 for a sign of a disconnected graph and nearly drops them. In
    a connected graph they are the long axes of a thin process, so here they count in full.

    With several roots, the pseudotime of a cell is that from the nearest root. Diffusion pseudotimes from each root are
    first divided by their largest value.

    All work is done on a copy and written to `adata` at the end: a failure leaves `adata` as it was.

    Examples
    --------
    >>> adata = datasets.bifurcation(n_cells=100, preprocess=False)
    >>> pp.prepare(adata, root_cluster="Progenitor", n_pcs=10, n_neighbors=15, normalize=False)
    >>> adata.obsm["X_pca"].shape, adata.uns["pseudotime"]["key"]
    ((100, 10), 'consensus_pseudotime')
    >>> vk = OTVelocityKernel(adata)
    """
    _check_data(adata, copy=copy)
    for name, value in (("n_pcs", n_pcs), ("n_neighbors", n_neighbors), ("n_hvg", n_hvg)):
        check_integer(name, value, low=2)
    if normalize not in (True, False, "auto"):
        raise ValueError(f"Expected `normalize` to be one of [True, False, 'auto'], found `{normalize!r}`.")
    check_choice("pseudotime", pseudotime, PseudotimeMethod)
    check_seed(random_state)
    _check_one_source(root_cluster=root_cluster, root_cell=root_cell, pseudotime_key=pseudotime_key)
    root_clusters = [] if root_cluster is None else known_clusters(adata, root_cluster, cluster_key)
    roots = [] if root_cell is None else _positions(adata, root_cell)
    if pseudotime_key is not None:
        read_time(adata, pseudotime_key)

    source = adata.to_memory() if adata.isbacked else adata
    _check_expression(source.X, allow_negative=normalize is False)
    n_steps = 3 if pseudotime_key is not None else 4
    with tqdm(total=n_steps, unit="step", disable=not show_progress_bar) as bar:
        bar.set_description("normalize")
        work, normalized = _normalized(source, normalize)
        _next(bar, "PCA and neighbors")
        _reduce(work, n_pcs=n_pcs, n_neighbors=n_neighbors, n_hvg=n_hvg, random_state=random_state)
        warn_about_graph(work.obsp["connectivities"], strict=pseudotime_key is None)
        if pseudotime_key is None:
            _next(bar, "pseudotime")
            sc.tl.diffmap(work, n_comps=min(_N_DIFFUSION, work.n_obs - 2), random_state=random_state)
            roots = roots or [choose_root_cell(work, name, cluster_key) for name in root_clusters]
            _set_times(work, roots, pseudotime)
        _next(bar, "UMAP")
        sc.tl.umap(work, random_state=random_state)
        _next(bar, "prepare")

    if copy and source is adata:
        source = adata.copy()
    _write_back(source, work, normalized=normalized)
    return source if copy else None


def _next(bar: Any, name: str) -> None:
    """Count a step as done, and name the next one."""
    bar.update()
    bar.set_description(name)


def _check_data(adata: Any, *, copy: bool) -> None:
    check_anndata(adata)
    if adata.n_obs < _MIN_CELLS or adata.n_vars < _MIN_GENES:
        raise ValueError(
            f"Expected at least `{_MIN_CELLS}` cells and `{_MIN_GENES}` genes, "
            f"found `{adata.n_obs}` cells and `{adata.n_vars}` genes."
        )
    if not copy:
        check_writeable(adata, "Pass `copy=True`, which returns a prepared copy.")


def _check_one_source(**sources: object) -> None:
    given = [f"`{name}`" for name, value in sources.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            f"Expected exactly one of {', '.join(f'`{name}`' for name in sources)}, which give time its direction, "
            f"found {' and '.join(given) or 'none'}."
        )


def _positions(adata: AnnData, root_cell: str | int | Sequence[str | int]) -> list[int]:
    """Return the positions of the root cells, which were given by name or position."""
    positions = []
    for cell in as_list(root_cell):
        if isinstance(cell, str):
            if cell not in adata.obs_names:
                raise KeyError(f"Expected `root_cell` in `adata.obs_names`, found {cell!r}.")
            positions.append(int(np.flatnonzero(adata.obs_names == cell)[0]))
        else:
            positions.append(check_integer("root_cell", cell))
            if positions[-1] >= adata.n_obs:
                raise ValueError(f"Expected `root_cell` to be below `{adata.n_obs}`, found `{cell}`.")
    if not positions:
        raise ValueError("Expected `root_cell` to name at least one cell, found none.")
    return positions


def _check_expression(matrix: Any, *, allow_negative: bool) -> None:
    if matrix is None:
        raise ValueError("Expected expression in `adata.X`, found none.")
    values = check_finite(matrix, "adata.X")
    n_negative = np.count_nonzero(values < 0)
    if n_negative and not allow_negative:
        raise ValueError(
            f"Expected counts or log-normalised expression in `adata.X`, found `{n_negative}` negative values. "
            "Pass `normalize=False` to use scaled or corrected expression as it is."
        )


def _normalized(source: AnnData, normalize: bool | Literal["auto"]) -> tuple[AnnData, bool]:
    """Return a temporary AnnData with log-normalised expression, and whether it had to be normalised."""
    matrix = sp.csr_matrix(source.X) if sp.issparse(source.X) else np.asarray(source.X)
    # Sums of half precision end at 65 504.
    dtype = np.result_type(matrix.dtype, np.float32) if np.issubdtype(matrix.dtype, np.floating) else np.float32
    var = pd.DataFrame(index=source.var_names)
    work = AnnData(matrix.astype(dtype, copy=True), obs=source.obs.copy(), var=var)

    values = stored(matrix)
    if normalize == "auto":
        normalize = bool((values == np.round(values)).all())
        found = "whole numbers, taken as counts" if normalize else "fractions, taken as log-normalised"
        logger.info("Found %s in `adata.X`", found)
        if not normalize and values.max() > _MAX_LOG:
            logger.warning("`adata.X` reaches %.4g: pass `normalize=True` if it is not logarithmic", values.max())
    if not normalize:
        return work, False
    n_empty = np.count_nonzero(np.asarray(work.X.sum(axis=1)) == 0)
    if n_empty:
        logger.warning("Found %d cells without any count: remove them, e.g. with `scanpy.pp.filter_cells`", n_empty)
    logger.info("Normalising to %d counts per cell, then log1p", _TARGET_SUM)
    sc.pp.normalize_total(work, target_sum=_TARGET_SUM)
    sc.pp.log1p(work)
    return work, True


def _reduce(work: AnnData, *, n_pcs: int, n_neighbors: int, n_hvg: int, random_state: int) -> None:
    """Choose genes, and compute PCA and neighbours."""
    if work.n_vars > n_hvg and stored(work.X).min(initial=0) >= 0:
        sc.pp.highly_variable_genes(work, n_top_genes=n_hvg)
    else:
        work.var["highly_variable"] = True
    limits = {"n_pcs": min(work.n_obs, int(work.var["highly_variable"].sum())) - 1, "n_neighbors": work.n_obs // 2}
    for name, value in (("n_pcs", n_pcs), ("n_neighbors", n_neighbors)):
        if value > limits[name]:
            logger.warning("Lowered `%s` from %d to %d, the most that the data allow", name, value, limits[name])
    sc.pp.pca(work, n_comps=min(n_pcs, limits["n_pcs"]), mask_var="highly_variable", random_state=random_state)
    n_neighbors = min(n_neighbors, limits["n_neighbors"])
    sc.pp.neighbors(work, n_neighbors=n_neighbors, use_rep="X_pca", random_state=random_state)


def _set_times(work: AnnData, roots: Sequence[int], method: PseudotimeMethod) -> None:
    """Write the diffusion pseudotime, which comes with the root, and where asked for another one."""
    work.obs = work.obs.drop(columns=list(PSEUDOTIME_KEYS.values()), errors="ignore")
    set_pseudotime(work, roots)
    if method != "diffusion":
        set_pseudotime(work, roots, method)
    names = work.obs_names[roots].astype(str).to_numpy(dtype=object)
    work.uns["pseudotime"] = {"method": method, "key": PSEUDOTIME_KEYS[method], "roots": names}


def _write_back(target: AnnData, work: AnnData, *, normalized: bool) -> None:
    """Take over from `work` what was computed there."""
    if normalized:
        if "counts" in target.layers:
            logger.info("Kept the existing `adata.layers['counts']`")
        else:
            target.layers["counts"] = target.X.copy()
        target.X = work.X
    target.var["highly_variable"] = work.var["highly_variable"].to_numpy()
    for key in PSEUDOTIME_KEYS.values() if "iroot" in work.uns else ():
        if key in work.obs:
            target.obs[key] = work.obs[key].to_numpy()
        elif key in target.obs:  # from another root, perhaps, and the kernel would take it
            del target.obs[key]
    for slot in ("obsm", "varm", "obsp", "uns"):
        for key, value in getattr(work, slot).items():
            getattr(target, slot)[key] = value
