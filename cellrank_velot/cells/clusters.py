"""Clusters of the cells and their colours, read from an AnnData."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.colors import is_color_like

from cellrank_velot._utils.validation import check_known, first_names

__all__ = ["check_clusters", "find_cluster_key", "read_clusters", "read_colors"]


def find_cluster_key(adata: AnnData, cluster_key: str | None, usual: str | None = None) -> str | None:
    """Return ``cluster_key``, else the kernel's ``usual`` one, else ``"clusters"`` where ``adata.obs`` has it."""
    key = cluster_key or usual or ("clusters" if "clusters" in adata.obs else None)
    if key is not None:
        check_known("adata.obs", key, adata.obs.columns)
    return key


def read_clusters(adata: AnnData, cluster_key: str, hint: str = "", *, complete: bool = False) -> pd.Series:
    """Return the cluster of each cell as categories: those of a categorical column in its order, else sorted.

    A cell without a cluster is NaN, or an error where the clusters must be ``complete``. ``hint`` ends the message
    about a missing column.
    """
    check_known("adata.obs", cluster_key, adata.obs.columns, hint)
    clusters = adata.obs[cluster_key].astype("category")
    without = clusters.isna()
    if complete and without.any():
        raise ValueError(
            f"Expected a cluster for each cell in `adata.obs[{cluster_key!r}]`, found none for `{without.sum()}` "
            f"cells: {first_names(adata.obs_names, without)}."
        )
    return clusters


def check_clusters(adata: AnnData, cluster_key: str, names: Iterable[object]) -> None:
    """Refuse names that are not clusters of ``adata.obs[cluster_key]``."""
    available = list(read_clusters(adata, cluster_key).cat.categories)
    missing = [name for name in dict.fromkeys(names) if name not in available]
    if missing:
        raise KeyError(f"Expected clusters of `adata.obs[{cluster_key!r}]`, {available}, found {missing}.")


def read_colors(adata: AnnData, cluster_key: str) -> list[str]:
    """Return ``adata.uns["{cluster_key}_colors"]``, the colours of clusters; none where one of them is no colour."""
    stored = adata.uns.get(f"{cluster_key}_colors")
    if stored is None or isinstance(stored, str | Mapping) or np.ndim(stored) != 1:
        return []
    colors = [str(color) for color in stored]
    return colors if all(is_color_like(color) for color in colors) else []
