"""Groups of cells to average over: bins of time, points along trajectories, and groups with enough cells."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_integer
from cellrank_velot.dynamics import Trajectories

__all__ = ["bin_times", "large_groups", "name_groups", "name_intervals", "points_along"]

logger = logging.getLogger("cellrank_velot")

FloatArray = NDArray[np.float64]

# A column with more different numbers than these does not name groups.
MAX_LEVELS = 50


def bin_times(time: FloatArray, n_bins: int) -> pd.Categorical:
    """Return bins of time with as many cells each, named by their ends.

    Where there are no more times than bins, as in a time series, each time is a bin.
    """
    check_integer("n_bins", n_bins, low=1)
    values, codes = np.unique(time, return_inverse=True)
    if values.size <= n_bins:
        return pd.Categorical.from_codes(codes.ravel(), [f"{value:.6g}" for value in values])
    bins = pd.qcut(time, n_bins, duplicates="drop")
    ends = [max(bins.categories[0].left, values[0]), *(each.right for each in bins.categories)]
    return bins.rename_categories(name_intervals(ends))


def points_along(trajectories: Trajectories, n_bins: int) -> tuple[FloatArray, FloatArray, pd.Categorical]:
    """Return position, time and bin of the point of each trajectory nearest to the middle of each bin of time."""
    check_integer("n_bins", n_bins, low=1)
    time = trajectories.time
    if not np.ptp(time) > 0:
        raise ValueError("Expected trajectories whose time moves, found none.")
    ends = np.linspace(time.min(), time.max(), n_bins + 1)
    code = np.clip(np.searchsorted(ends, time, side="right") - 1, 0, n_bins - 1)
    owner = np.repeat(np.arange(len(trajectories.ids)), np.diff(trajectories.offsets))
    order = np.lexsort([np.abs(time - (ends[code] + ends[code + 1]) / 2), code, owner])
    _, first = np.unique((owner * n_bins + code)[order], return_index=True)
    kept = order[first]
    return trajectories.x[kept], time[kept], pd.Categorical.from_codes(code[kept], name_intervals(ends))


def name_intervals(ends: Sequence[float] | FloatArray) -> list[str]:
    """Return a name for each interval between two ends, with as few digits as tell them apart."""
    for digits in (3, 6, 12, 17):
        texts = [f"{end:.{digits}g}" for end in ends]
        if len(set(texts)) == len(texts):
            break
    return [f"{low} to {high}" for low, high in pairwise(texts)]


def name_groups(labels: pd.Categorical, slot: str) -> pd.Categorical:
    """Return groups of a slot of AnnData, which are named in short where they are numbers."""
    if not pd.api.types.is_numeric_dtype(labels.categories.dtype):
        return labels
    if labels.categories.size > MAX_LEVELS:
        raise ValueError(
            f"Expected groups in `{slot}`, found `{labels.categories.size}` numbers. For bins of time, pass `n_bins`."
        )
    return labels.rename_categories([f"{value:.6g}" for value in labels.categories])


def large_groups(groups: Any, n_cells: int, min_cells: int) -> dict[str, NDArray[np.int64]]:
    """Return the cells of each group that has enough of them, and name the others in a warning."""
    labels = pd.Categorical(np.full(n_cells, "all") if groups is None else groups)
    if len(labels) != n_cells:
        raise ValueError(f"Expected a group for each of the `{n_cells}` cells, found `{len(labels)}`.")
    codes: NDArray[Any] = np.asarray(labels.codes)
    cells = {str(name): np.flatnonzero(codes == at) for at, name in enumerate(labels.categories)}
    few = {name: part.size for name, part in cells.items() if 0 < part.size < min_cells}
    if few:
        logger.warning("Groups of fewer than `min_cells=%d` cells are left out: %s", min_cells, few)
    enough = {name: part for name, part in cells.items() if part.size >= min_cells}
    if not enough:
        raise ValueError(f"Expected a group of at least `min_cells={min_cells}` cells, found none.")
    return enough
