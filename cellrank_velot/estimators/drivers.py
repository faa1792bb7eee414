"""Correlation of genes with fate probabilities, in blocks of cells: no copy of the expression is made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy import stats

__all__ = ["correlate", "driver_table"]

Array = NDArray[np.float64]

BLOCK = 20_000  # cells


@np.errstate(invalid="ignore", over="ignore")
def correlate(x: Any, y: Array, rows: NDArray[np.int64] | None = None) -> Array:
    """Return the correlation of each gene with each column of ``y``, ``[n_genes, n_lineages]``.

    It is NaN where a gene is constant, or has values that are not finite or whose squares are not.
    ``x`` has ``n_cells`` rows, and may be dense, sparse or on disk; ``rows`` are those that ``y`` is about. CellRank
    2.0 gives ``n / (n - 1)`` times this correlation.
    """
    n_cells, n_genes = y.shape[0], x.shape[1]
    parts = [slice(first, min(first + BLOCK, n_cells)) for first in range(0, n_cells, BLOCK)]

    def taken(part: slice) -> Any:
        return x[part] if rows is None else x[rows[part]]

    mean = np.zeros(n_genes)
    for part in parts:
        mean += np.asarray(taken(part).sum(axis=0, dtype=np.float64)).ravel()
    mean /= n_cells
    centered = y - y.mean(axis=0)
    product, square = np.zeros((n_genes, y.shape[1])), np.zeros(n_genes)
    for part in parts:
        block = taken(part)
        if sp.issparse(block):
            product += np.asarray(block.T @ centered[part])
            square += np.asarray(block.multiply(block).sum(axis=0, dtype=np.float64)).ravel()
        else:
            block = np.asarray(block, dtype=np.float64) - mean
            product += block.T @ centered[part]
            square += np.einsum("ij,ij->j", block, block)
    variance = square / n_cells
    if sp.issparse(block):
        variance -= mean**2
    constant = variance <= 1e-12 * np.maximum(mean**2, 1e-300)
    deviation = np.sqrt(np.where(constant, np.nan, variance))
    spread = y.std(axis=0)
    return np.asarray(product / (n_cells * deviation[:, None] * np.where(spread > 0, spread, np.nan)))


def driver_table(
    correlation: Array, n_cells: int, genes: pd.Index, lineages: list[str], confidence: float
) -> pd.DataFrame:
    """Return what CellRank returns for Fisher's test: correlation, p, q (Benjamini-Hochberg) and an interval."""
    correlation = np.clip(correlation, -1, 1)
    with np.errstate(divide="ignore"):
        z = np.arctanh(correlation)
    error = 1 / np.sqrt(n_cells - 3)
    width = stats.norm.ppf(confidence + (1 - confidence) / 2) * error
    p = 2 * stats.norm.cdf(-np.abs(z / error))
    columns: dict[str, Array] = {}
    for k, name in enumerate(lineages):
        known = ~np.isnan(p[:, k])
        q = np.full(p.shape[0], np.nan)
        if known.any():
            q[known] = stats.false_discovery_control(p[known, k])
        columns |= {
            f"{name}_corr": correlation[:, k],
            f"{name}_pval": p[:, k],
            f"{name}_qval": q,
            f"{name}_ci_low": np.tanh(z[:, k] - width),
            f"{name}_ci_high": np.tanh(z[:, k] + width),
        }
    table = pd.DataFrame(columns, index=genes)
    return table.sort_values(by=[f"{name}_corr" for name in lineages], ascending=False)
