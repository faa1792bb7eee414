"""Checks of an AnnData and its expression, before anything is computed or written."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

__all__ = ["check_anndata", "check_finite", "check_writeable", "stored"]


def check_anndata(adata: Any) -> None:
    """Refuse what is no AnnData."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"Expected `adata` to be an AnnData, found `{type(adata).__name__}`.")


def check_writeable(adata: AnnData, hint: str | None = None) -> None:
    """Refuse a view and an AnnData in a file; ``hint`` says what to do, else to copy it."""
    if adata.is_view or adata.isbacked:
        found, cure = ("a view", "copy()") if adata.is_view else ("backed by a file", "to_memory()")
        hint = f"Pass `adata.{cure}`." if hint is None else hint
        raise ValueError(f"Expected an AnnData to write to, found one that is {found}. {hint}")


def check_finite(matrix: Any, slot: str) -> NDArray[Any]:
    """Return the stored values of a matrix of expression, which must be numbers and finite."""
    values = stored(matrix)
    if not np.issubdtype(values.dtype, np.number):
        raise TypeError(f"Expected `{slot}` to be numeric, found `{values.dtype}`.")
    n_bad = np.count_nonzero(~np.isfinite(values))
    if n_bad:
        raise ValueError(f"Expected `{slot}` to be finite, found `{n_bad}` NaN or infinite values.")
    return values


def stored(matrix: Any) -> NDArray[Any]:
    """Return the stored values of a dense or sparse matrix."""
    return np.asarray(matrix.data if sp.issparse(matrix) else matrix)
