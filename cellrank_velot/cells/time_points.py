"""Real time points: whether a time is a series of snapshots, and which interval a time is in."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

__all__ = ["check_snapshots", "next_time"]

logger = logging.getLogger("cellrank_velot")

# Fewer cells say little of a population; it is said, not refused.
FEW_CELLS = 20
# Time that changes from cell to cell is no series of snapshots.
MIN_CELLS_PER_TIME = 3


def check_snapshots(time: NDArray[np.float64], name: str = "time") -> NDArray[np.float64]:
    """Return the time points, ascending, shape ``[n_times]``.

    Parameters
    ----------
    time
        Time of each cell, shape ``[n_cells]``, finite.
    name
        What messages call it.

    Raises
    ------
    ValueError
        If there is one time point only, or about one for each cell.
    """
    points, counts = np.unique(time, return_counts=True)
    if points.size < 2:
        raise ValueError(f"Expected at least two time points in `{name}`, found `{points.size}`: {points.tolist()}.")
    if time.size < MIN_CELLS_PER_TIME * points.size:
        raise ValueError(
            f"Expected time points with many cells each in `{name}`, found `{points.size}` time points of "
            f"`{time.size}` cells. A pseudotime needs `time_kind='pseudotime'`."
        )
    if (counts < FEW_CELLS).any():
        few = ", ".join(f"{points[k]:g} ({counts[k]})" for k in np.flatnonzero(counts < FEW_CELLS)[:5])
        logger.warning("Time points with fewer than %d cells say little of their population: %s", FEW_CELLS, few)
    return points


def next_time(points: NDArray[np.float64], time: float) -> int:
    """Return the number of the interval that a time is in, from zero. The last time is in the last interval."""
    if not points[0] <= time <= points[-1]:
        raise ValueError(f"Expected a time from `{points[0]:g}` to `{points[-1]:g}`, found `{time}`.")
    return int(np.clip(np.searchsorted(points, time, side="right") - 1, 0, points.size - 2))
