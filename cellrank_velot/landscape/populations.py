"""Which cells make the landscape at each time: of a time point, between two, or around a pseudotime."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from cellrank_velot._utils.validation import check_number
from cellrank_velot.cells import CellStates
from cellrank_velot.landscape.density import PlaneCells
from cellrank_velot.timeseries.interpolation import Population

__all__ = ["MIN_CELLS", "populations_of"]

FloatArray = NDArray[np.float64]
Labels = NDArray[np.int64] | None

# Fewer cells within a window of pseudotime are not a population.
MIN_CELLS = 20


def populations_of(
    cells: CellStates,
    plane: FloatArray,
    labels: Labels,
    times: Sequence[float] | float | None,
    window: float,
    interpolate: Callable[[float], tuple[FloatArray, Population]],
) -> list[PlaneCells]:
    """Return the cells at each time. Without times, these are the time points, or all cells with a pseudotime.

    ``interpolate`` returns the population between two time points, and its positions in the plane.
    """
    if times is None and not cells.is_series:
        return [PlaneCells(plane, labels=labels)]
    low, high = cells.time_range
    asked = np.atleast_1d(cells.time_points if times is None else times).tolist()
    asked = [check_number("times", time, low=low, high=high) for time in asked]
    if cells.is_series:
        return [_at(cells, time, plane, labels, interpolate) for time in asked]
    return [_around(cells, time, plane, labels, window) for time in asked]


def _around(cells: CellStates, time: float, plane: FloatArray, labels: Labels, window: float) -> PlaneCells:
    """Return the cells within a window of pseudotime."""
    inside = np.abs(cells.time - time) <= window
    if inside.sum() < MIN_CELLS:
        raise ValueError(
            f"Expected at least `{MIN_CELLS}` cells within a `window` of {window:g} around the time {time:g}, "
            f"found `{inside.sum()}`: use a larger one."
        )
    return PlaneCells(plane[inside], time=time, labels=None if labels is None else labels[inside])


def _at(
    cells: CellStates,
    time: float,
    plane: FloatArray,
    labels: Labels,
    interpolate: Callable[[float], tuple[FloatArray, Population]],
) -> PlaneCells:
    """Return the cells of a time point, or the interpolated ones of a time between two."""
    points = cells.time_points
    nearest = points[np.abs(points - time).argmin()]
    if np.isclose(nearest, time):
        inside = cells.time == nearest
        return PlaneCells(plane[inside], time=float(nearest), labels=None if labels is None else labels[inside])
    positions, found = interpolate(time)
    near = None if labels is None else _labels_near(cells, found.x, time, labels)
    # There is a position for each pair of cells, but no more independent cells than those the pairs are made of.
    number = np.exp(np.interp(time, points, np.log([np.sum(cells.time == point) for point in points])))
    return PlaneCells(positions, np.asarray(found.weights), time, near, float(number))


def _labels_near(cells: CellStates, x: FloatArray, time: float, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the label of the nearest cell of the time points before and after."""
    points = cells.time_points
    after = int(np.searchsorted(points, time))
    around = np.flatnonzero(np.isin(cells.time, points[after - 1 : after + 1]))
    search = NearestNeighbors(n_neighbors=1).fit(cells.x[around])
    return labels[around[search.kneighbors(x, return_distance=False)[:, 0]]]
