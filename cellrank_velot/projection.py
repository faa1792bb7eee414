"""Velocity in an embedding: projection through a transition matrix, and smoothing onto a grid for pictures.

Plain arrays in and out. Depends on numpy, scipy and scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from cellrank_velot._stage import Stage
from cellrank_velot._validation import check_integer, check_number

__all__ = ["VelocityGrid", "project_velocity", "velocity_on_grid"]

FloatArray = NDArray[np.float64]

MAX_GRID_NEIGHBORS = 200


@dataclass(frozen=True, slots=True, eq=False)
class VelocityGrid(Stage):
    """Velocity on a regular grid of two dimensions.

    Attributes
    ----------
    x, y
        Positions of the columns and rows, shapes ``[n_x]`` and ``[n_y]``.
    velocity
        Velocity at each point, shape ``[n_y, n_x, 2]``; NaN where there are too few cells.
    """

    x: FloatArray
    y: FloatArray
    velocity: FloatArray

    @property
    def speed(self) -> FloatArray:
        """Length of the velocity, shape ``[n_y, n_x]``."""
        return np.asarray(np.linalg.norm(self.velocity, axis=2))


def project_velocity(transitions: sp.csr_matrix, embedding: FloatArray) -> FloatArray:
    r"""Project the velocity behind a transition matrix to an embedding.

    The expected direction of a transition, less the mean direction to the neighbours, which would otherwise point to
    where cells are dense: :math:`\nu_i = \sum_{j \ne i} (T_{ij} - 1 / n_i) \, \delta_{ij} / \|\delta_{ij}\|` with
    :math:`\delta_{ij} = s_j - s_i` and the sum over the :math:`n_i` neighbours of a cell :cite:`bergen:20`.

    Parameters
    ----------
    transitions
        Transition matrix of shape ``[n_cells, n_cells]``; what it stores off the diagonal are the neighbours.
    embedding
        Positions of shape ``[n_cells, n_dims]``.

    Returns
    -------
    Velocities of shape ``[n_cells, n_dims]``, of length 2 at most; 0 for a cell without neighbours.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    """
    matrix = sp.csr_matrix(transitions)
    embedding = np.asarray(embedding, dtype=np.float64)
    n_cells = embedding.shape[0]
    if matrix.shape != (n_cells, n_cells):
        raise ValueError(f"Expected `transitions` of shape `[{n_cells}, {n_cells}]`, found `{matrix.shape}`.")
    rows = np.repeat(np.arange(n_cells), np.diff(matrix.indptr))
    others = rows != matrix.indices
    rows, columns, probability = rows[others], matrix.indices[others], matrix.data[others]
    direction = embedding[columns] - embedding[rows]
    length = np.linalg.norm(direction, axis=1)
    weight = probability - 1.0 / np.bincount(rows, minlength=n_cells)[rows]
    # Cells on the same spot have no direction between them.
    weight = np.divide(weight, length, out=np.zeros_like(length), where=length > 0)
    return np.column_stack([np.bincount(rows, weight * part, minlength=n_cells) for part in direction.T])


def velocity_on_grid(
    embedding: FloatArray,
    velocity: FloatArray,
    *,
    n_grid: int = 50,
    smooth: float = 1.0,
    min_density: float = 0.02,
) -> VelocityGrid:
    """Average the velocities of cells around each point of a regular grid.

    Parameters
    ----------
    embedding
        Positions of shape ``[n_cells, 2]``.
    velocity
        Velocities of shape ``[n_cells, 2]``. Cells with NaN are left out.
    n_grid
        Number of points along each axis.
    smooth
        Standard deviation of the Gaussian weights, in grid spacings, and no less than cells are apart.
    min_density
        Density of cells below which a point has no velocity, as a share of the 95th percentile over the points near
        cells.

    Raises
    ------
    ValueError
        If an option is out of range or no cell has a velocity.
    """
    check_integer("n_grid", n_grid, low=2)
    check_number("smooth", smooth, low=0, open_low=True)
    check_number("min_density", min_density, low=0, high=1)
    known = np.isfinite(embedding).all(axis=1) & np.isfinite(velocity).all(axis=1)
    if not known.any():
        raise ValueError("Expected cells with a velocity, found none.")
    x, v = embedding[known], velocity[known]
    margin = 0.02 * np.ptp(x, axis=0) + 1e-9
    axes = np.linspace(x.min(axis=0) - margin, x.max(axis=0) + margin, n_grid)
    points = np.stack(np.meshgrid(axes[:, 0], axes[:, 1]), axis=-1).reshape(-1, 2)

    # Two cells may be apart by different units in x and y: distances are in grid spacings.
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
