"""Fate probabilities of whatever gives them, as a table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

__all__ = ["read_fates"]


def read_fates(adata: AnnData, fates: Any = None, *, backward: bool = False) -> pd.DataFrame:
    """Return fate probabilities as a table with a row for each cell, NaN where there are none.

    They are a table; CellRank's fate probabilities, or an estimator that has them; what has a ``table``, such as the
    fates of a time series; a key of ``adata.obsm``; or, where not given, what an estimator wrote there.
    """
    if fates is None or isinstance(fates, str):
        suffix = "bwd" if backward else "fwd"
        key = fates or f"lineages_{suffix}"
        if key not in adata.obsm:
            raise KeyError(
                f"Expected fate probabilities as `adata.obsm[{key!r}]`, found the keys "
                f"{sorted(map(str, adata.obsm.keys()))}. Compute them with `GPCCA.compute_fate_probabilities()`, or "
                "pass `fates`."
            )
        stored: Any = adata.obsm[key]
        states = adata.obs.get(f"term_states_{suffix}")
        names = getattr(stored, "names", getattr(stored, "columns", None))
        if names is None and states is not None and isinstance(states.dtype, pd.CategoricalDtype):
            names = states.cat.categories  # a file forgets the names of the lineages
        fates = stored if isinstance(stored, pd.DataFrame) else _named(adata, stored, names)
    fates = getattr(fates, "fate_probabilities", fates)
    fates = fates.table if isinstance(getattr(fates, "table", None), pd.DataFrame) else fates
    if hasattr(fates, "names") and hasattr(fates, "X") and not isinstance(fates, pd.DataFrame):  # CellRank's own
        fates = _named(adata, fates, fates.names)
    if not isinstance(fates, pd.DataFrame):
        raise TypeError(f"Expected `fates` as a table, an estimator or its fates, found `{type(fates).__name__}`.")
    if not len(fates) or fates.index.has_duplicates or not fates.index.isin(adata.obs_names).all():
        raise ValueError(
            f"Expected `fates` with one row for each cell, by name, found `{len(fates)}` rows such as "
            f"{list(fates.index[:2])}."
        )
    table = fates.reindex(adata.obs_names).set_axis([str(name) for name in fates.columns], axis=1)
    values = table.to_numpy(dtype=np.float64)
    if table.columns.has_duplicates or (values < -1e-6).any() or np.isinf(values).any():
        raise ValueError("Expected `fates` with columns of different names and no negative or infinite values.")
    return table.clip(lower=0)


def _named(adata: AnnData, stored: Any, names: Any) -> pd.DataFrame:
    values = np.asarray(getattr(stored, "X", stored), dtype=np.float64)
    if values.ndim != 2 or names is None or len(names) != values.shape[1]:
        raise ValueError(
            f"Expected names for the columns of the fates of shape `{values.shape}`, found none. Pass them as a table."
        )
    return pd.DataFrame(values, adata.obs_names, [str(name) for name in names])
