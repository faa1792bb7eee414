"""Which cells: by position or name, by cluster, by time, by CellRank's selector, by a box in an embedding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_known
from cellrank_velot.cells.clusters import read_clusters

__all__ = [
    "CellSelector",
    "Interval",
    "cells_in_box",
    "cells_in_cluster",
    "cells_in_time",
    "rows_of_state",
    "rows_of_states",
    "select_cells",
]

CellSelector = Sequence[int] | Sequence[str] | NDArray[Any] | Mapping[str, Any]
# From where to where; None for no bound.
Interval = tuple[float | None, float | None]


def select_cells(adata: AnnData, selector: CellSelector | None) -> NDArray[np.bool_]:
    """Return which cells are meant, shape ``[n_cells]``; all where ``selector`` is ``None``.

    A selector is positions or names of cells, a mask, or CellRank's: a dictionary from columns of ``adata.obs`` to a
    category or several, or to the two ends of an interval. Where it names several columns, all must hold.
    """
    if selector is None:
        return np.ones(adata.n_obs, dtype=bool)
    if isinstance(selector, Mapping):
        masks = [_by_column(adata, str(key), value) for key, value in selector.items()]
        return np.logical_and.reduce(masks) if masks else np.ones(adata.n_obs, dtype=bool)
    if isinstance(selector, str) or not isinstance(selector, Sequence | np.ndarray | pd.Index | pd.Series):
        raise TypeError(
            "Expected cells as positions, names, a mask or a dictionary such as `{'clusters': 'Ductal'}`, found "
            f"`{selector!r}`."
        )
    return _by_cells(adata, np.asarray(selector))


def _by_cells(adata: AnnData, chosen: NDArray[Any]) -> NDArray[np.bool_]:
    mask = np.zeros(adata.n_obs, dtype=bool)
    if chosen.dtype == bool:
        if chosen.shape != mask.shape:
            raise ValueError(f"Expected a mask of `{adata.n_obs}` cells, found the shape `{chosen.shape}`.")
        return chosen.copy()
    if chosen.size == 0:
        return mask
    if np.issubdtype(chosen.dtype, np.integer):
        if chosen.min() < 0 or chosen.max() >= adata.n_obs:
            raise ValueError(
                f"Expected positions of cells in [0, {adata.n_obs - 1}], found `{chosen.min()}` to `{chosen.max()}`."
            )
        mask[chosen] = True
        return mask
    if np.issubdtype(chosen.dtype, np.number):
        raise TypeError(f"Expected whole positions of cells, found `{chosen.dtype}`.")
    names = chosen.astype(str)
    unknown = ~np.isin(names, adata.obs_names)
    if unknown.any():
        raise KeyError(
            f"Expected names of cells, found {sorted(set(names[unknown].tolist()))[:3]}, which `adata.obs_names` lacks."
        )
    mask[np.isin(adata.obs_names, names)] = True
    return mask


def _by_column(adata: AnnData, key: str, value: Any) -> NDArray[np.bool_]:
    check_known("adata.obs", key, adata.obs.columns)
    column = adata.obs[key]
    numeric = pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)
    if not numeric:
        return cells_in_cluster(adata, key, value)
    return cells_in_time(column.to_numpy(dtype=np.float64, na_value=np.nan), f"adata.obs[{key!r}]", value)


def cells_in_cluster(adata: AnnData, key: str, clusters: Any) -> NDArray[np.bool_]:
    """Return which cells are in a cluster of ``adata.obs[key]``, or in one of several."""
    column = read_clusters(adata, key)
    values, named = column.astype(str), column.notna()
    chosen = [clusters] if isinstance(clusters, str) or not isinstance(clusters, Iterable) else list(clusters)
    known = set(values[named])
    # The number 0 means the category 0.0, as it does in CellRank.
    by_value = {value: str(value) for value in column.cat.categories if isinstance(value, Number)}
    texts = [by_value.get(name, str(name)) if isinstance(name, Number) else str(name) for name in chosen]
    for text in texts:
        if text not in known:
            raise KeyError(f"Expected a cluster of `adata.obs[{key!r}]`, one of {sorted(known)}, found {text!r}.")
    return np.asarray(values.isin(texts) & named)


def cells_in_time(values: NDArray[np.float64], name: str, interval: Interval) -> NDArray[np.bool_]:
    """Return which values lie in an interval, its ends included. NaN lies in none.

    ``name`` is what messages call the values.
    """
    if isinstance(interval, str) or not isinstance(interval, Sequence | np.ndarray) or len(interval) != 2:
        raise ValueError(f"Expected the two ends of an interval of `{name}`, found `{interval!r}`.")
    low, high = (
        infinite if end is None else float(end) for end, infinite in zip(interval, (-np.inf, np.inf), strict=True)
    )
    if not low <= high:
        raise ValueError(f"Expected an interval of `{name}` from low to high, found `{interval!r}`.")
    return np.asarray((values >= low) & (values <= high))


def cells_in_box(embedding: NDArray[np.float64], x_lim: Interval, y_lim: Interval) -> NDArray[np.bool_]:
    """Return which cells lie in a box of the first two dimensions of an embedding."""
    inside = cells_in_time(embedding[:, 0], "source_x_lim", x_lim)
    return inside & cells_in_time(embedding[:, 1], "source_y_lim", y_lim)


def rows_of_state(adata: AnnData, state: str, cells: Sequence[str]) -> NDArray[np.int64]:
    """Return the rows of the cells that stand for a state, by name: at least one, and all of them there."""
    names = pd.Index(cells)
    rows = adata.obs_names.get_indexer(names)
    if not rows.size:
        raise ValueError(f"Expected cells of the state {state!r}, found none.")
    missing = names[rows < 0]
    if missing.size:
        raise KeyError(
            f"Expected cells of the data in state {state!r}, found {missing.size} that it lacks, as {missing[0]!r}."
        )
    return np.asarray(rows, dtype=np.int64)


def rows_of_states(adata: AnnData, states: Mapping[str, Sequence[str]]) -> dict[str, NDArray[np.int64]]:
    """Return the rows of the cells of each state, which must be there."""
    if not isinstance(states, Mapping) or not states:
        found = "none" if isinstance(states, Mapping) else f"`{type(states).__name__}`"
        raise ValueError(f"Expected cells of at least one state, as {{'Beta': [...]}}, found {found}.")
    return {str(name): rows_of_state(adata, str(name), cells) for name, cells in states.items()}
