"""Cells to start from and clusters to arrive at: checked, and as numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_known

__all__ = ["check_starts", "codes_of", "target_codes"]


def check_starts(starts: NDArray[np.int64] | Sequence[int], n_cells: int) -> NDArray[np.int64]:
    """Return the cells to start from, each once."""
    found: NDArray[np.int64] = np.unique(np.asarray(starts))
    if found.size == 0:
        raise ValueError("Expected cells to start from, found none.")
    if not np.issubdtype(found.dtype, np.integer):
        raise TypeError(f"Expected `starts` to be positions of cells, found `{found.dtype}`.")
    if found[0] < 0 or found[-1] >= n_cells:
        raise ValueError(f"Expected `starts` in [0, {n_cells - 1}], found `{found[0]}` to `{found[-1]}`.")
    return found.astype(np.int64)


def codes_of(clusters: Sequence[Any] | None, n_cells: int) -> tuple[NDArray[np.int64] | None, NDArray[np.str_]]:
    """Return the cluster of each cell as a number, ``-1`` for none, and the names of the clusters."""
    if clusters is None:
        return None, np.empty(0, dtype=np.str_)
    values = pd.Categorical(clusters)
    if len(values) != n_cells:
        raise ValueError(f"Expected a cluster for each of the `{n_cells}` cells, found `{len(values)}`.")
    return np.asarray(values.codes, dtype=np.int64), np.asarray([str(name) for name in values.categories], np.str_)


def target_codes(target: str | Sequence[str] | None, names: NDArray[np.str_]) -> NDArray[np.int64] | None:
    """Return the numbers of the clusters to arrive at."""
    if target is None:
        return None
    if names.size == 0:
        raise ValueError("Expected `clusters` where there is a target cluster, found none.")
    chosen = [target] if isinstance(target, str) or not isinstance(target, Iterable) else list(target)
    if not chosen:
        raise ValueError("Expected at least one target cluster, found none.")
    for name in chosen:
        check_known("clusters", str(name), names)
    return np.flatnonzero(np.isin(names, [str(name) for name in chosen]))
