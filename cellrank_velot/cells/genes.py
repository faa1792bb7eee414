"""Genes and their loadings, the way from the basis to the genes, read from an AnnData."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_known

__all__ = [
    "by_symbol",
    "find_genes",
    "gene_names",
    "read_expression",
    "read_gene_loadings",
    "read_loadings",
    "read_pca",
]

# Columns of `var` in which the symbols of genes are, where the names are identifiers of Ensembl.
SYMBOLS = (
    "gene_symbols",
    "gene_symbol",
    "symbol",
    "symbols",
    "gene_name",
    "gene_names",
    "gene_short_name",
    "feature_name",
)


def find_genes(adata: AnnData, genes: Sequence[str] | str | None) -> NDArray[np.int64]:
    """Return where genes are in ``adata.var``, in the order asked for, shape ``[n_genes]``; all where ``None``.

    ``genes`` are names or symbols, or a boolean column of ``adata.var``. Of a name that occurs several times, the first
    counts.
    """
    names = adata.var_names
    if genes is None:
        return np.arange(adata.n_vars)
    if isinstance(genes, str):
        check_known("adata.var", genes, adata.var.columns)
        if not pd.api.types.is_bool_dtype(adata.var[genes].dtype):
            raise TypeError(f"Expected `adata.var[{genes!r}]` to be boolean, found `{adata.var[genes].dtype}`.")
        return np.flatnonzero(adata.var[genes].to_numpy(dtype=bool))
    wanted = by_symbol(adata, [str(gene) for gene in genes])
    missing = [gene for gene in wanted if gene not in names]
    if missing:
        raise KeyError(f"Expected genes of `adata.var_names`, found `{len(missing)}` others: {missing[:5]}.")
    first = ~names.duplicated()  # `get_indexer` refuses names that repeat
    return np.flatnonzero(first)[names[first].get_indexer(wanted)]


def by_symbol(adata: AnnData, genes: list[str]) -> list[str]:
    """Return names of genes, those of ``adata.var_names`` for symbols that a column of ``adata.var`` has.

    Names that are neither stay as they are. Of a symbol that occurs several times, the first counts.
    """
    unknown = [gene for gene in genes if gene not in adata.var_names]
    for column in SYMBOLS if unknown else ():
        if column in adata.var:
            symbols = adata.var[column].astype(str)
            known = dict(zip(symbols[::-1], adata.var_names[::-1], strict=True))
            if all(gene in known for gene in unknown):
                return [str(known[gene]) if gene in unknown else gene for gene in genes]
    return genes


def gene_names(adata: AnnData, genes: Sequence[str] | str | None) -> list[str]:
    """Return the names of genes, in the order asked for."""
    return [str(name) for name in adata.var_names[find_genes(adata, genes)]]


def read_pca(adata: AnnData, n_dims: int, hint: str = "", of: str = "the basis") -> NDArray[np.float64]:
    """Return the loadings of all genes, ``adata.varm["PCs"]``, shape ``[n_genes, n_dims]``."""
    check_known("adata.varm", "PCs", adata.varm.keys(), hint)
    loadings = np.asarray(adata.varm["PCs"], dtype=np.float64)
    if loadings.shape[1] != n_dims:
        raise ValueError(
            f"Expected the loadings `adata.varm['PCs']` to have the `{n_dims}` dimensions of {of}, found "
            f"`{loadings.shape[1]}`."
        )
    return loadings


def read_loadings(adata: AnnData, basis: str, genes: Sequence[str] | str) -> NDArray[np.float64]:
    """Return the loadings of some genes, shape ``[n_dims, n_genes]``, in the order of ``adata.var_names``.

    ``genes`` are names, or a boolean column of ``adata.var``. Those without a weight in the PCA are left out.
    """
    if basis != "X_pca":
        raise ValueError(
            f"Expected the basis `X_pca`, whose loadings are in `adata.varm['PCs']`, found `{basis}`: a subset of "
            "genes needs the way from the basis to the genes."
        )
    names, n_dims = adata.var_names, adata.obsm[basis].shape[1]
    hint = "A subset of genes needs the loadings of a PCA."
    loadings = read_pca(adata, n_dims, hint, of=f"`adata.obsm[{basis!r}]`")
    at = find_genes(adata, genes)
    chosen = np.isin(np.arange(adata.n_vars), at) if isinstance(genes, str) else names.isin(names[at])
    chosen = chosen & (loadings != 0).any(axis=1)
    if not chosen.any():
        raise ValueError("Expected genes with a weight in the PCA, found none: were they among the variable genes?")
    return loadings[chosen].T


def read_gene_loadings(adata: AnnData, basis: str, genes: Sequence[str] | str) -> tuple[list[str], NDArray[np.float64]]:
    """Return the names of genes in the order asked for, and their loadings, shape ``[n_dims, n_genes]``.

    Of a boolean column of ``adata.var``, genes without a weight in the PCA are left out. Named ones must have a weight.
    """
    read_loadings(adata, basis, genes)  # its checks
    at, names = find_genes(adata, genes), adata.var_names
    loadings = read_pca(adata, adata.obsm[basis].shape[1])
    has_weight = (loadings[at] != 0).any(axis=1)
    without = [str(gene) for gene in names[at[~has_weight]]]
    if without and not isinstance(genes, str):
        raise ValueError(
            f"Expected genes with a weight in the PCA, found `{len(without)}` without: {without[:5]}. Were they among "
            "the variable genes?"
        )
    at = at[has_weight]
    if names[names.isin(names[at])].has_duplicates:
        raise ValueError("Expected genes of different names, found some twice: call `adata.var_names_make_unique()`.")
    return [str(gene) for gene in names[at]], loadings[at].T


def read_expression(adata: AnnData, layer: str | None = None) -> tuple[Any, bool] | None:
    """Return the expression of the variable genes, shape ``[n_cells, n_genes]``, and whether it holds counts.

    It is that of ``layer``, else ``adata.layers["counts"]``, else ``adata.X``; ``None`` where there is none that is
    finite.
    """
    if layer is not None:
        check_known("adata.layers", layer, adata.layers.keys())
    else:
        layer = "counts" if "counts" in adata.layers else None
    if layer is None and adata.X is None:
        return None
    chosen = np.ones(adata.n_vars, dtype=bool)
    if "highly_variable" in adata.var and adata.var["highly_variable"].any():
        chosen = adata.var["highly_variable"].to_numpy(dtype=bool)
    view = adata[:, chosen]
    view = view.to_memory() if adata.isbacked else view
    matrix = view.X if layer is None else view.layers[layer]
    matrix = sp.csr_matrix(matrix) if sp.issparse(matrix) else np.asarray(matrix)
    if matrix.dtype == np.float16:  # its sums end at 65 504, and scipy does not know it
        matrix = matrix.astype(np.float32)
    values = np.asarray(matrix.data if sp.issparse(matrix) else matrix)
    if not np.issubdtype(values.dtype, np.number) or not np.isfinite(values).all():
        return None
    return matrix, bool((values >= 0).all() and (values == np.round(values)).all())
