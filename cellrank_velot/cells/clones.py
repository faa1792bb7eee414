"""Clones of the cells, read from an AnnData."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cellrank_velot._utils.validation import first_names

__all__ = ["CLONE_KEYS", "find_clone_key", "read_clones"]

logger = logging.getLogger("cellrank_velot")

# Where barcodes are looked for, in this order.
CLONE_KEYS = ("X_clone", "clone_id", "clone", "clones", "barcode", "lineage_barcode")
# Texts that files and tables have in the place of a missing value.
MISSING = ("", "nan", "NaN", "NA", "N/A", "None", "none", "<NA>", "null")


def find_clone_key(adata: AnnData, clone_key: str | None = None) -> str:
    """Return ``clone_key``, with or without ``X_``, or the first usual key of ``adata.obsm`` and ``adata.obs``."""
    wanted = CLONE_KEYS if clone_key is None else (clone_key, f"X_{clone_key}")
    for key in wanted:
        if key in adata.obs or key in adata.obsm:
            return key
    raise KeyError(
        f"Expected clones in `adata.obs` or `adata.obsm` as {' or '.join(map(repr, wanted))}, found the keys "
        f"{sorted(map(str, adata.obs.columns))} and {sorted(map(str, adata.obsm.keys()))}."
    )


def read_clones(adata: AnnData, clone_key: str | None = None) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Return the clone of each cell, -1 for none, shape ``[n_cells]``, and the names of the clones.

    They lie in a column of ``adata.obs``, in which NaN, an empty text or a negative number is no clone; or in
    ``adata.obsm`` as a matrix of cells by barcodes, in which any entry above zero is a barcode that was found. A cell
    with several barcodes belongs to the one that most cells have.
    """
    key = find_clone_key(adata, clone_key)
    if key in adata.obs:
        codes, names = _of_column(adata.obs[key], key)
    else:
        codes, names = _of_matrix(adata, key)
    if not (codes >= 0).any():
        raise ValueError(f"Expected cells with a clone in {key!r}, found none among `{adata.n_obs}`.")
    return codes, names


def _of_column(column: pd.Series, key: str) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    numbers = pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)
    if numbers:
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        if (values % 1 != 0)[np.isfinite(values)].any() or np.isinf(values).any():
            raise TypeError(f"Expected names or whole numbers of clones in `adata.obs[{key!r}]`, found `{values[0]}`.")
        known, texts = values >= 0, column
    else:
        texts = column.astype(object)
        known = (column.notna() & ~texts.astype(str).isin(MISSING)).to_numpy()
    codes = np.full(column.size, -1, dtype=np.int64)
    codes[known], names = pd.factorize(texts[known].to_numpy(), sort=False)
    names = [str(int(name)) if numbers else str(name) for name in names]
    return codes, np.array(names, dtype=np.str_)


def _of_matrix(adata: AnnData, key: str) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    stored: Any = adata.obsm[key]
    names = list(map(str, stored.columns)) if isinstance(stored, pd.DataFrame) else None
    stored = stored.to_numpy() if isinstance(stored, pd.DataFrame) else stored
    stored = stored.compute() if hasattr(stored, "compute") else stored  # dask
    stored = stored[:] if type(stored).__module__.startswith(("h5py", "zarr", "anndata")) else stored
    try:
        matrix = sp.csr_matrix(stored)
        data = np.asarray(matrix.data, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"Expected `adata.obsm[{key!r}]` to be a matrix of numbers or flags, found others.") from error
    rows = np.repeat(np.arange(adata.n_obs), np.diff(matrix.indptr))
    bad = np.zeros(adata.n_obs, dtype=bool)
    bad[rows[~(data >= 0)]] = True
    if bad.any():
        raise ValueError(
            f"Expected `adata.obsm[{key!r}]` without NaN and negative values, found some in `{bad.sum()}` cells: "
            f"{first_names(adata.obs_names, bad)}."
        )
    rows, columns = rows[data > 0], matrix.indices[data > 0].astype(np.int64)
    sizes = np.bincount(columns, minlength=matrix.shape[1])
    order = np.lexsort((columns, -sizes[columns], rows))
    rows, columns = rows[order], columns[order]
    first = np.flatnonzero(np.diff(rows, prepend=-1))
    codes = np.full(adata.n_obs, -1, dtype=np.int64)
    codes[rows[first]] = columns[first]
    several = np.unique(rows[np.diff(rows, prepend=-1) == 0]).size
    if several:
        logger.info("%d cells with several barcodes belong to the clone of the one that most cells have", several)
    return codes, np.array(names or list(map(str, range(matrix.shape[1]))), dtype=np.str_)
