"""From the populations of one or more times to their landscape.

Depends on the rest of this folder and numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_integer, check_number
from cellrank_velot.landscape.density import (
    PlaneCells,
    check_population,
    densities,
    effective_number,
    grid_axes,
    kernel_of,
    widened,
)
from cellrank_velot.landscape.surface import Landscape

__all__ = ["MIN_CELLS", "WINDOW", "compute_landscape"]

FloatArray = NDArray[np.float64]

# With pseudotime: how far from a time its cells are, and how many at least are a population.
WINDOW, MIN_CELLS = 0.1, 20


def compute_landscape(
    populations: Sequence[PlaneCells],
    *,
    diffusion: float | None = None,
    states: Sequence[str] = (),
    n_grid: int = 100,
    bandwidth: float = 0.5,
    min_cells: float = 1.0,
    basis: str = "",
    dims: tuple[int, int] = (0, 1),
    window: float = 0.0,
) -> Landscape:
    r"""Compute the landscape of cells in a plane from their density at each time.

    The density is a Gaussian kernel estimate, computed by binning and the fast Fourier transform
    :cite:`silverman:82`: its cost does not depend on the number of cells once they are binned. The covariance of the
    kernel at each time is that of the cells times the square of Scott's factor :cite:`scott:92`,

    .. math:: h = s \, n^{-1/6}, \qquad n = \Bigl(\sum_i w_i\Bigr)^2 \Big/ \sum_i w_i^2,

    with :math:`s` the ``bandwidth`` and :math:`n` the effective number of the weighted cells, and at least half a
    spacing of the grid in every direction. The rule is meant for one cloud of cells and blurs several: of barriers of 2
    and 3 between two wells, 10 000 cells show 1.6 and 2.4 with ``bandwidth=1`` and 1.9 and 2.8 with 0.5; 1000 cells
    show 1.2 and 1.8, and 1.8 and 2.6. Smaller values make hills of chance: within one Gaussian cloud of 1000 cells,
    barriers of 0.1 with 0.5 and of 0.5 with 0.25. So barriers are bounds from below, and differences of some tenths of
    :math:`\sigma^2 / 2` mean nothing.

    It is the landscape of these two dimensions: what the others would add to a barrier is averaged over. A density in
    more dimensions from so few cells would say more of the noise than of the states.

    Parameters
    ----------
    populations
        Cells at each time.
    diffusion
        :math:`\sigma` of :math:`dx = b \, dt + \sigma \, dW`, in units of the basis per root of time, so that the
        potential is in squared units of the basis per time. Where ``None``, :math:`\sigma^2 / 2` is 1 and the potential
        is the negative logarithm of the density.
    states
        Names of the states that the labels of the populations number.
    n_grid
        Number of points of the grid along each dimension. One grid has room for all populations.
    bandwidth
        Factor on Scott's rule, positive.
    min_cells
        Density below which it is negligible and the potential is NaN, as the number of effective cells whose kernels
        would give it where they are highest. At this bound the relative error of the density is about
        ``sqrt(0.5 / min_cells)``; with 1, a lone cell has no potential.
    basis, dims, window
        What is said of the positions, see :class:`Landscape`.

    Returns
    -------
    The landscape at the times of the populations, rising.

    Raises
    ------
    ValueError
        If there is no population, one has fewer than three cells or is not finite, two are of one time, labels and
        states don't fit, the cells don't spread in both dimensions, or an option is out of range.

    Examples
    --------
    >>> from cellrank_velot.landscape import PlaneCells, compute_landscape
    >>> x, labels = series.obsm["X_state"], series.obs["clusters"].cat.codes.to_numpy(dtype=int)
    >>> states = list(series.obs["clusters"].cat.categories)
    >>> landscape = compute_landscape([PlaneCells(x, labels=labels)], states=states, n_grid=50)
    >>> landscape.potential.shape
    (1, 50, 50)
    """
    check_integer("n_grid", n_grid, low=10)
    check_number("bandwidth", bandwidth, low=0, open_low=True)
    check_number("min_cells", min_cells, low=0, open_low=True)
    if diffusion is not None:
        check_number("diffusion", diffusion, low=0, open_low=True)
    times = _checked_times(populations)
    order = np.argsort(times)
    checked = [check_population(populations[i], len(states)) for i in order]
    populations, weights = [pair[0] for pair in checked], [pair[1] for pair in checked]

    numbers = [effective_number(p, w) for p, w in zip(populations, weights, strict=True)]
    kernels = [kernel_of(p.x, w, n, bandwidth) for p, w, n in zip(populations, weights, numbers, strict=True)]
    x, y = grid_axes(populations, kernels, n_grid)
    spacing = np.array([x[1] - x[0], y[1] - y[0]])
    kernels = [widened(kernel, spacing) for kernel in kernels]

    density, region, floor = [], [], []
    for population, weight, kernel, n in zip(populations, weights, kernels, numbers, strict=True):
        labels = np.full(weight.size, -1) if population.labels is None else population.labels
        parts = densities(population.x, weight, labels + 1, len(states) + 1, x, y, kernel)
        floor.append(min_cells / (n * 2 * np.pi * np.sqrt(np.linalg.det(kernel))))
        density.append(parts.sum(axis=0))
        region.append(_largest(parts[1:], seen=density[-1] >= floor[-1]))
    return Landscape(
        x=x,
        y=y,
        times=times[order],
        density=np.stack(density),
        floor=np.array(floor),
        region=np.stack(region),
        states=np.array([str(name) for name in states], dtype=np.str_),
        bandwidth=np.stack(kernels),
        diffusion=None if diffusion is None else float(diffusion),
        basis=basis,
        dims=dims,
        window=window,
    )


def _checked_times(populations: Sequence[PlaneCells]) -> FloatArray:
    times = np.array([population.time for population in populations], dtype=np.float64)
    if not times.size:
        raise ValueError("Expected one population or more, found none.")
    if times.size > 1 and (np.isnan(times).any() or np.unique(times).size < times.size):
        raise ValueError(f"Expected populations of different times, found the times {times.tolist()}.")
    return times


def _largest(parts: FloatArray, seen: NDArray[np.bool_]) -> NDArray[np.int16]:
    """Return the state with the largest part of the density at each point, -1 where there is none."""
    if not len(parts):
        return np.full(seen.shape, -1, dtype=np.int16)
    found = np.where(seen & (parts.max(axis=0) > 0), parts.argmax(axis=0), -1)
    return found.astype(np.int16)
