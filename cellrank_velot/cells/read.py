"""Cells: what the stages need to know of an AnnData, read and checked before any work begins.

One of the few modules that know AnnData. Depends on compiled, anndata, numpy, scipy, pandas and scikit-learn.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from cellrank_velot._utils.parallel import blocks
from cellrank_velot._utils.stage import Stage
from cellrank_velot._utils.validation import check_choice, check_known, first_names
from cellrank_velot.cells.time_points import check_snapshots
from cellrank_velot.graph.compiled import connected_components

__all__ = [
    "TIME_KEYS",
    "CellStates",
    "TimeKind",
    "check_graph",
    "find_basis",
    "find_time_key",
    "read_basis",
    "read_cells",
    "read_loadings",
    "read_time",
    "readable",
    "warn_about_graph",
]

logger = logging.getLogger("cellrank_velot")

# Rows of positions that are read at a time where they are not in memory.
BLOCK_CELLS = 65_536
# Of positions and times: squares of them, and what they are together, must be numbers with all their digits.
LARGEST, SMALLEST = 1e100, 1e-100
TimeKind = Literal["pseudotime", "experimental"]

#: Columns that a pseudotime is looked for in, in this order.
TIME_KEYS = (
    "pseudotime",
    "dpt_pseudotime",
    "palantir_pseudotime",
    "latent_time",
    "velocity_pseudotime",
    "ct_pseudotime",
)
SERIES_KEYS = ("day", "time", "hours", "age", "experimental_time")


@dataclass(frozen=True, slots=True, eq=False)
class CellStates(Stage):
    """Positions, time and clusters of the cells.

    Attributes
    ----------
    x
        Positions in the basis, shape ``[n_cells, n_dims]``, finite.
    time
        Time of each cell, shape ``[n_cells]``: pseudotime scaled to ``[0, 1]``, or experimental time in its own units.
    labels
        Codes of the clusters given by the user, shape ``[n_cells]``; ``None`` where no ``cluster_key`` was given.
    time_kind
        ``"pseudotime"`` or ``"experimental"``.

    Examples
    --------
    >>> cells = sk.cells
    >>> cells.x.shape, cells.time_points.tolist(), cells.time_range
    ((400, 10), [0.0, 1.0, 2.0, 3.0], (0.0, 3.0))
    >>> float(cells.unit_time.max())
    1.0
    """

    x: NDArray[np.float64]
    time: NDArray[np.float64]
    labels: NDArray[np.int64] | None
    time_kind: TimeKind = "pseudotime"

    @property
    def is_series(self) -> bool:
        """Whether the cells are snapshots at real time points."""
        return self.time_kind == "experimental"

    @property
    def time_points(self) -> NDArray[np.float64]:
        """The times that there are, ascending: of a time series its time points, shape ``[n_times]``."""
        return np.unique(self.time)

    @property
    def unit_time(self) -> NDArray[np.float64]:
        """Time of each cell as a share of the whole time, in ``[0, 1]``, shape ``[n_cells]``."""
        if not self.is_series:
            return self.time
        first, last = self.time_range
        return (self.time - first) / (last - first)

    @property
    def time_range(self) -> tuple[float, float]:
        """First and last time."""
        return float(self.time.min()), float(self.time.max())

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.x.shape[0])

    def time_at(self, positions: NDArray[np.float64], n_neighbors: int = 15) -> NDArray[np.float64]:
        """Return the mean time of the cells nearest to each position, shape ``[n_points]``."""
        if not positions.size:
            return np.empty(0)
        search = NearestNeighbors(n_neighbors=min(n_neighbors, self.n_cells)).fit(self.x)
        return np.asarray(self.time[search.kneighbors(positions, return_distance=False)].mean(axis=1))

    @property
    def n_dims(self) -> int:
        """Number of dimensions of the basis."""
        return int(self.x.shape[1])


def readable(adata: AnnData, conn_key: str) -> AnnData:
    """Return an AnnData that CellRank can read: itself, or for a lazy one a copy whose cells and graph are in memory.

    Expression and positions stay where they are.

    Parameters
    ----------
    adata
        Annotated data.
    conn_key
        Key in ``adata.obsp`` of the neighbour graph.

    Examples
    --------
    >>> from cellrank_velot.cells.read import readable
    >>> readable(adata, "connectivities") is adata  # nothing is lazy
    True
    """
    if isinstance(adata.obs, pd.DataFrame):
        return adata
    logger.info("Reading `obs` and `obsp[%r]` of a lazy AnnData into memory", conn_key)
    graphs = {key: values.compute() if key == conn_key else values for key, values in adata.obsp.items()}
    obs, var = adata.obs.to_memory(), adata.var.to_memory()
    kept = {name: dict(getattr(adata, name)) for name in ("uns", "obsm", "varm", "varp", "layers")}
    return AnnData(adata.X, obs=obs, var=var, obsp=graphs, **kept)


def find_time_key(adata: AnnData, time_key: str | None, time_kind: TimeKind = "pseudotime") -> str:
    """Return ``time_key``, or the first of :data:`TIME_KEYS`, of a series of ``SERIES_KEYS``, in ``adata.obs``.

    Parameters
    ----------
    adata
        Annotated data.
    time_key
        Key in ``adata.obs``, returned as it is; looked for where ``None``.
    time_kind
        ``"pseudotime"``, or ``"experimental"`` for a series.

    Raises
    ------
    KeyError
        If there is none.

    Examples
    --------
    >>> from cellrank_velot.cells.read import find_time_key
    >>> find_time_key(adata, None), find_time_key(series, None, "experimental")
    ('dpt_pseudotime', 'day')
    """
    if time_key is not None:
        check_known("adata.obs", time_key, adata.obs.columns)
        return time_key
    series = check_choice("time_kind", time_kind, TimeKind) == "experimental"
    usual = SERIES_KEYS if series else TIME_KEYS
    found = [key for key in usual if key in adata.obs]
    if not found:
        hint = (
            ""
            if series
            else ", or compute a pseudotime, e.g. with `cellrank_velot.pp.prepare(adata, root_cluster=...)`"
        )
        raise KeyError(
            f"Expected one of {list(usual)} in `adata.obs`, found the keys {sorted(map(str, adata.obs.columns))}. "
            f"Pass `time_key`{hint}."
        )
    logger.info("Using time from `adata.obs[%r]`", found[0])
    return found[0]


def find_basis(adata: AnnData, basis: str) -> str:
    """Return the key of ``basis`` in ``adata.obsm``, given with or without ``X_``.

    Parameters
    ----------
    adata
        Annotated data.
    basis
        Key in ``adata.obsm``, with or without ``X_``.

    Raises
    ------
    KeyError
        If neither is there.
    TypeError
        If it is no name.

    Examples
    --------
    >>> from cellrank_velot.cells.read import find_basis
    >>> find_basis(adata, "umap")
    'X_umap'
    """
    if not isinstance(basis, str):
        raise TypeError(f"Expected `basis` to be a key of `adata.obsm`, found `{type(basis).__name__}`.")
    for key in (basis, f"X_{basis}"):
        if key in adata.obsm:
            return key
    check_known("adata.obsm", basis, adata.obsm.keys(), "Compute it first, e.g. with `scanpy.pp.pca(adata)`.")
    raise AssertionError  # pragma: no cover


def read_cells(
    adata: AnnData,
    *,
    time_key: str,
    basis: str,
    cluster_key: str | None,
    conn_key: str = "connectivities",
    time_kind: TimeKind = "pseudotime",
) -> CellStates:
    """Read and check what the stages need.

    Parameters
    ----------
    adata
        Annotated data.
    time_key
        Key in ``adata.obs`` of the time, numeric.
    basis
        Key in ``adata.obsm`` of the positions.
    cluster_key
        Key in ``adata.obs`` of clusters to use in place of KMeans, or ``None``.
    conn_key
        Key in ``adata.obsp`` of the neighbour graph, which is checked to belong to the basis.
    time_kind
        ``"pseudotime"``, or ``"experimental"`` for snapshots at real time points.

    Returns
    -------
    Positions, time and codes of clusters, as arrays of their own.

    Raises
    ------
    KeyError
        If a slot is missing.
    TypeError
        If time or basis is not numeric.
    ValueError
        If a value is missing, infinite or constant, or experimental time changes from cell to cell.

    Examples
    --------
    >>> from cellrank_velot.cells.read import read_cells
    >>> cells = read_cells(
    ...     adata, time_key="dpt_pseudotime", basis="X_pca", cluster_key="clusters"
    ... )
    >>> cells.x.shape, int(cells.labels.max())
    ((300, 20), 3)
    """
    check_choice("time_kind", time_kind, TimeKind)
    x = read_basis(adata, basis)
    time = read_time(adata, time_key)
    if time_kind == "experimental":
        check_snapshots(time, f"adata.obs[{time_key!r}]")
    else:
        _warn_about_outliers(time, time_key)
        time = (time - time.min()) / np.ptp(time)
    _warn_about_duplicates(x)
    _warn_about_representation(adata, basis, conn_key)
    labels = None if cluster_key is None else _read_labels(adata, cluster_key)
    return CellStates(x=x, time=time, labels=labels, time_kind=time_kind)


def read_basis(adata: AnnData, basis: str) -> NDArray[np.float64]:
    """Return the positions, dense and in double precision, shape ``[n_cells, n_dims]``.

    Parameters
    ----------
    adata
        Annotated data; positions may be sparse, a data frame or a dask array.
    basis
        Key in ``adata.obsm``.

    Raises
    ------
    TypeError
        If the positions are not numeric.
    ValueError
        If they have not two dimensions, or NaN or infinite values.

    Examples
    --------
    >>> from cellrank_velot.cells.read import read_basis
    >>> read_basis(adata, "X_umap").shape
    (300, 2)
    """
    x = _dense(adata.obsm[basis], f"adata.obsm[{basis!r}]")
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"Expected `adata.obsm[{basis!r}]` to have `2` dimensions, found the shape `{x.shape}`.")
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        raise ValueError(
            f"Expected `adata.obsm[{basis!r}]` to be finite, found NaN or infinite values in `{bad.sum()}` cells: "
            f"{first_names(adata.obs_names, bad)}."
        )
    _check_scale(x, f"adata.obsm[{basis!r}]")
    return x


def read_time(adata: AnnData, time_key: str) -> NDArray[np.float64]:
    """Return the time of each cell, finite and not constant, shape ``[n_cells]``.

    Parameters
    ----------
    adata
        Annotated data.
    time_key
        Key in ``adata.obs``.

    Raises
    ------
    TypeError
        If the time is not numeric.
    ValueError
        If there are no cells, or the time has NaN or infinite values or is constant.

    Examples
    --------
    >>> from cellrank_velot.cells.read import read_time
    >>> np.unique(read_time(series, "day")).tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    column = adata.obs[time_key]
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if pd.api.types.is_bool_dtype(column.dtype) or column.dtype.kind in "cmM":
        raise TypeError(f"Expected `adata.obs[{time_key!r}]` to be numeric, found `{column.dtype}`.")
    try:
        time = pd.to_numeric(column).to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise TypeError(f"Expected `adata.obs[{time_key!r}]` to be numeric, found `{column.dtype}`.") from error
    if time.size == 0:
        raise ValueError("Expected an AnnData with cells, found none.")
    bad = ~np.isfinite(time)
    if bad.any():
        raise ValueError(
            f"Expected `adata.obs[{time_key!r}]` to be finite, found NaN or infinite values in `{bad.sum()}` of "
            f"`{time.size}` cells: {first_names(adata.obs_names, bad)}. Diffusion pseudotime is infinite for cells "
            "that the neighbour graph does not connect with the root: remove them, or use more neighbours."
        )
    if (time == time[0]).all():
        raise ValueError(f"Expected `adata.obs[{time_key!r}]` to vary, found the constant `{time[0]:g}`.")
    _check_scale(time, f"adata.obs[{time_key!r}]")
    return time


def read_loadings(adata: AnnData, basis: str, genes: Sequence[str] | str) -> NDArray[np.float64]:
    """Return the loadings of some genes, which take the basis to these genes, shape ``[n_dims, n_genes]``.

    Parameters
    ----------
    adata
        Annotated data with loadings in ``varm["PCs"]``.
    basis
        Key of the positions, which must be a PCA.
    genes
        Names of genes, or a boolean column of ``adata.var``.

    Raises
    ------
    KeyError
        If loadings or genes are missing.
    TypeError
        If the column is not boolean.
    ValueError
        If the loadings do not belong to the basis, or no gene is left.

    Examples
    --------
    >>> from cellrank_velot.cells.read import read_loadings
    >>> loadings = read_loadings(adata, "X_pca", ["FateA", "FateB"])
    >>> loadings.shape, (vk.velocity @ loadings).shape  # the velocity of two genes
    ((20, 2), (300, 2))
    """
    if basis != "X_pca":
        raise ValueError(
            f"Expected the basis `X_pca`, whose loadings are in `adata.varm['PCs']`, found `{basis}`: a subset of "
            "genes needs the way from the basis to the genes."
        )
    check_known("adata.varm", "PCs", adata.varm.keys(), "A subset of genes needs the loadings of a PCA.")
    loadings = np.asarray(adata.varm["PCs"], dtype=np.float64)
    n_dims = adata.obsm[basis].shape[1]
    if loadings.shape[1] != n_dims:
        raise ValueError(
            f"Expected the loadings `adata.varm['PCs']` to have the `{n_dims}` dimensions of "
            f"`adata.obsm[{basis!r}]`, found `{loadings.shape[1]}`."
        )
    if isinstance(genes, str):
        check_known("adata.var", genes, adata.var.columns)
        if not pd.api.types.is_bool_dtype(adata.var[genes].dtype):
            raise TypeError(f"Expected `adata.var[{genes!r}]` to be boolean, found `{adata.var[genes].dtype}`.")
        chosen = adata.var[genes].to_numpy(dtype=bool)
    else:
        genes = list(genes)
        missing = [str(gene) for gene in genes if gene not in adata.var_names]
        if missing:
            raise KeyError(f"Expected genes of `adata.var_names`, found `{len(missing)}` others: {missing[:5]}.")
        chosen = adata.var_names.isin(genes)
    chosen = chosen & (loadings != 0).any(axis=1)
    if not chosen.any():
        raise ValueError("Expected genes with a weight in the PCA, found none: were they among the variable genes?")
    return loadings[chosen].T


def check_graph(adata: AnnData, conn_key: str) -> None:
    """Check that a neighbour graph can be read, and that its weights are weights.

    Parameters
    ----------
    adata
        Annotated data.
    conn_key
        Key of the graph in ``adata.obsp``.

    Raises
    ------
    KeyError
        If there is none.
    TypeError
        If it is no matrix of numbers that CellRank reads.
    ValueError
        If a weight is negative, NaN or infinite.
    """
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
    """Say whether the neighbour graph is in pieces, and how large they are.

    Parameters
    ----------
    graph
        Neighbour graph of shape ``[n_cells, n_cells]``.
    strict
        Whether a graph in pieces is an error; a warning in the log otherwise.

    Returns
    -------
    The component of each cell, shape ``[n_cells]``; ``None`` for a connected graph.

    Raises
    ------
    ValueError
        If it is and ``strict`` holds.

    Examples
    --------
    >>> import scipy.sparse as sp
    >>> from cellrank_velot.cells.read import warn_about_graph
    >>> print(warn_about_graph(vk.connectivities))  # one piece
    None
    >>> pieces = sp.csr_matrix([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
    >>> warn_about_graph(pieces).tolist()
    [0, 0, 1, 1]
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


def _read_labels(adata: AnnData, cluster_key: str) -> NDArray[np.int64]:
    check_known("adata.obs", cluster_key, adata.obs.columns)
    codes, _ = pd.factorize(adata.obs[cluster_key], sort=True)
    if (codes < 0).any():
        raise ValueError(
            f"Expected a cluster for each cell in `adata.obs[{cluster_key!r}]`, found none for `{(codes < 0).sum()}` "
            f"cells: {first_names(adata.obs_names, codes < 0)}."
        )
    return codes.astype(np.int64)


def _dense(values: Any, slot: str) -> NDArray[np.float64]:
    """Return values in memory; those that lie elsewhere, in a file or as blocks of dask, are read in parts."""
    if sp.issparse(values):
        values = values.toarray()
    types = pd.api.types
    for dtype in values.dtypes if isinstance(values, pd.DataFrame) else [getattr(values, "dtype", np.dtype(object))]:
        if types.is_complex_dtype(dtype) or not (types.is_object_dtype(dtype) or types.is_numeric_dtype(dtype)):
            raise TypeError(f"Expected `{slot}` to be numeric, found `{dtype}`.")
    try:
        if isinstance(values, np.ndarray | pd.DataFrame) or getattr(values, "ndim", 0) != 2:
            return np.array(values, dtype=np.float64)
        out = np.empty(values.shape)
        chunks = getattr(values, "chunks", None)  # of dask; those of a file are smaller than is good
        rows = chunks[0] if chunks and isinstance(chunks[0], tuple) else None
        start = 0
        for n_rows in rows or [stop - start for start, stop in blocks(len(out), BLOCK_CELLS)]:
            part = values[start : start + n_rows]
            part = part.compute() if hasattr(part, "compute") else part
            out[start : start + n_rows] = part.toarray() if sp.issparse(part) else part
            start += n_rows
    except (TypeError, ValueError) as error:
        raise TypeError(f"Expected `{slot}` to be numeric, found `{type(values).__name__}`.") from error
    return out


def _check_scale(values: NDArray[np.float64], slot: str) -> None:
    size = float(np.abs(values).max(initial=0))
    extent = float(np.ptp(values, axis=0).max()) if values.size and size <= LARGEST else 0.0
    if size > LARGEST or 0 < extent < SMALLEST:
        found = f"values up to `{size:g}`" if size > LARGEST else f"an extent of `{extent:g}`"
        raise ValueError(
            f"Expected `{slot}` to have values up to {LARGEST:g} and an extent of at least {SMALLEST:g}, found "
            f"{found}. Rescale it: squares of these are no numbers."
        )


def _warn_about_outliers(time: NDArray[np.float64], time_key: str) -> None:
    low, high = np.quantile(time, [0.01, 0.99])
    if high - low < 0.2 * np.ptp(time):
        logger.warning(
            "98 %% of the cells have a time from %.3g to %.3g, all of them one from %.3g to %.3g. A few outliers in "
            "`adata.obs[%r]` set the scale: consider clipping them, or ranks",
            *(low, high, time.min(), time.max(), time_key),
        )


def _warn_about_duplicates(x: NDArray[np.float64]) -> None:
    # One random direction tells cells apart as surely as all dimensions do, at the cost of one sort of n numbers.
    direction = np.random.default_rng(0).normal(size=x.shape[1])
    n_duplicates = x.shape[0] - np.unique(np.einsum("ij,j->i", x, direction)).size
    if n_duplicates:
        logger.warning("Found %d cells at the same position as another cell", n_duplicates)


def _warn_about_representation(adata: AnnData, basis: str, conn_key: str) -> None:
    entries = [entry for entry in adata.uns.values() if isinstance(entry, Mapping)]
    params = [e.get("params", {}) for e in entries if e.get("connectivities_key") == conn_key]
    # scanpy takes the PCA where it was not told what to take, and doesn't write that down.
    used = params[0].get("use_rep", "X_pca" if "X_pca" in adata.obsm else None) if params else None
    if isinstance(used, str) and used != basis:
        logger.warning(
            "The neighbour graph was built on %r and velocities are computed in %r. "
            "Consider `scanpy.pp.neighbors(adata, use_rep=%r)`",
            used,
            basis,
            basis,
        )
