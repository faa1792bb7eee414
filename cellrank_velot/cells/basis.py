"""Positions of the cells, in the basis of the velocity or in an embedding, read from an AnnData."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cellrank_velot._utils.parallel import blocks
from cellrank_velot._utils.validation import check_integer, check_known, check_scale, first_names

__all__ = ["basis_name", "find_basis", "read_basis", "read_embedding", "read_plane"]

# Rows of positions that are read at a time where they are not in memory.
BLOCK_CELLS = 65_536


def find_basis(adata: AnnData, basis: str) -> str:
    """Return the key of ``basis`` in ``adata.obsm``, given with or without ``X_``."""
    if not isinstance(basis, str):
        raise TypeError(f"Expected `basis` to be a key of `adata.obsm`, found `{type(basis).__name__}`.")
    for key in (basis, f"X_{basis}"):
        if key in adata.obsm:
            return key
    check_known("adata.obsm", basis, adata.obsm.keys(), "Compute it first, e.g. with `scanpy.pp.pca(adata)`.")
    raise AssertionError  # pragma: no cover


def basis_name(key: str) -> str:
    """Return the name of a basis for people: ``"UMAP"`` for ``"X_umap"``."""
    name = key.removeprefix("X_")
    return name.upper() if len(name) <= 4 else name


def read_basis(adata: AnnData, basis: str) -> NDArray[np.float64]:
    """Return the positions, dense and finite, shape ``[n_cells, n_dims]``.

    They may lie in ``adata.obsm`` as a sparse matrix, a data frame, a dask array or a part of a file.
    """
    key = find_basis(adata, basis)
    x = _dense(adata.obsm[key], f"adata.obsm[{key!r}]")
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"Expected `adata.obsm[{key!r}]` to have `2` dimensions, found the shape `{x.shape}`.")
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        raise ValueError(
            f"Expected `adata.obsm[{key!r}]` to be finite, found NaN or infinite values in `{bad.sum()}` cells: "
            f"{first_names(adata.obs_names, bad)}."
        )
    check_scale(f"adata.obsm[{key!r}]", x)
    return x


def read_embedding(adata: AnnData, basis: str) -> tuple[NDArray[np.float64], str]:
    """Return the first two dimensions of an embedding, shape ``[n_cells, 2]``, and its name for people.

    Cells without a place (NaN) are allowed: a plot leaves them out.
    """
    key = find_basis(adata, basis)
    x = _dense(adata.obsm[key], f"adata.obsm[{key!r}]")
    if x.ndim != 2 or x.shape[1] < 2:
        raise ValueError(f"Expected `adata.obsm[{key!r}]` to have at least `2` columns, found the shape `{x.shape}`.")
    return x[:, :2], basis_name(key)


def read_plane(
    adata: AnnData, basis: str, dims: tuple[int, int], known: Mapping[str, NDArray[np.float64]] | None = None
) -> NDArray[np.float64]:
    """Return two columns of the positions, shape ``[n_cells, 2]``.

    ``known`` has positions that were read before, by their keys, such as ``{kernel.basis: kernel.cells.x}``.
    """
    key = find_basis(adata, basis)
    x = known[key] if known and key in known else read_basis(adata, key)
    for dim in dims:
        check_integer("dims", dim)
    if len(dims) != 2 or dims[0] == dims[1] or max(dims) >= x.shape[1]:
        raise ValueError(f"Expected `dims` to be two of the `{x.shape[1]}` columns of {key!r}, found `{dims}`.")
    return x[:, list(dims)]


def _dense(values: Any, slot: str) -> NDArray[np.float64]:
    """Return values in memory. Those of a file or a dask array are read in parts."""
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
        chunks = getattr(values, "chunks", None)  # those of dask; the chunks of a file are smaller than is good
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
