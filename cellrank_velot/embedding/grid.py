"""Velocity on a regular grid of a plane, averaged over the cells around each point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from cellrank_velot._utils.stage import Stage
from cellrank_velot._utils.validation import check_integer, check_number

__all__ = ["VelocityGrid", "velocity_on_grid"]

FloatArray = NDArray[np.float64]

MAX_GRID_NEIGHBORS = 200


@dataclass(frozen=True, slots=True, eq=False)
class VelocityGrid(Stage):
    """Velocity on a regular grid of a plane."""

    # Positions of the columns and the rows, [n_x] and [n_y].
    x: FloatArray
    y: FloatArray
    # Velocity at each point, [n_y, n_x, 2]. NaN where there are too few cells.
    velocity: FloatArray

    @property
    def speed(self) -> FloatArray:
        """Length of the velocity, shape ``[n_y, n_x]``."""
        return np.asarray(np.linalg.norm(self.velocity, axis=2))


def velocity_on_grid(
    embedding: FloatArray,
    velocity: FloatArray,
    *,
    n_grid: int = 50,
    smooth: float = 1.0,
    min_density: float = 0.02,
    corners: FloatArray | None = None,
) -> VelocityGrid:
    """Average the velocities of cells, shape ``[n_cells, 2]``, around each point of a grid of ``n_grid`` by ``n_grid``.

    Weights are Gaussian. Their standard deviation is ``smooth`` spacings of the grid, or the distance between cells
    where that is longer. A point has no velocity where the density of cells is below ``min_density`` times its 95th
    percentile over the points near cells. Cells with NaN are left out. The grid spans the cells, or two ``corners``.
    """
    check_integer("n_grid", n_grid, low=2)
    check_number("smooth", smooth, low=0, open_low=True)
    check_number("min_density", min_density, low=0, high=1)
    known = np.isfinite(embedding).all(axis=1) & np.isfinite(velocity).all(axis=1)
    if not known.any():
        raise ValueError("Expected cells with a velocity, found none.")
    x, v = embedding[known], velocity[known]
    low, high = (x.min(axis=0), x.max(axis=0)) if corners is None else corners
    margin = 0.02 * (high - low) + 1e-9
    axes = np.linspace(low - margin, high + margin, n_grid)
    points = np.stack(np.meshgrid(axes[:, 0], axes[:, 1]), axis=-1).reshape(-1, 2)

    # The two axes may have different units, so distances are in spacings of the grid.
    spacing = axes[1] - axes[0]
    search = NearestNeighbors(n_neighbors=min(x.shape[0], MAX_GRID_NEIGHBORS)).fit(x / spacing)
    distance, neighbors = search.kneighbors(points / spacing)
    width = max(smooth, _typical_distance(search, x / spacing))
    weight = np.exp(-0.5 * (distance / width) ** 2)
    density = weight.sum(axis=1)
    mean = np.einsum("pk,pkd->pd", weight, v[neighbors]) / np.maximum(density, np.finfo(float).tiny)[:, None]
    near = distance[:, 0] <= 1.5 * width
    typical = np.percentile(density[near], 95) if near.any() else np.inf
    mean[~near | (density < min_density * typical)] = np.nan
    return VelocityGrid(x=axes[:, 0], y=axes[:, 1], velocity=mean.reshape(n_grid, n_grid, 2))


def _typical_distance(search: NearestNeighbors, x: FloatArray) -> float:
    """Return the median distance of a cell to its fifth neighbour, or to the last where there are fewer."""
    n_neighbors = min(6, x.shape[0])
    distance, _ = search.kneighbors(x, n_neighbors=n_neighbors)
    return float(np.median(distance[:, -1]))
