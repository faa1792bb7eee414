"""From the cells of one or more times to their landscape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.options import Options
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

__all__ = ["LandscapeOptions", "compute_landscape"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LandscapeOptions(Options):
    """Options of ``OTVelocityKernel.compute_landscape``, which explains them."""

    diffusion: float | None = None
    window: float = 0.1
    n_grid: int = 100
    bandwidth: float = 0.5
    min_cells: float = 1.0

    def __post_init__(self) -> None:
        """Check them."""
        if self.diffusion is not None:
            check_number("diffusion", self.diffusion, low=0, open_low=True)
        check_number("window", self.window, low=0, high=1, open_low=True)
        check_integer("n_grid", self.n_grid, low=10)
        check_number("bandwidth", self.bandwidth, low=0, open_low=True)
        check_number("min_cells", self.min_cells, low=0, open_low=True)


def compute_landscape(
    populations: Sequence[PlaneCells],
    states: Sequence[str] = (),
    options: LandscapeOptions = LandscapeOptions(),
    *,
    basis: str = "",
    dims: tuple[int, int] = (0, 1),
    window: float = 0.0,
) -> Landscape:
    """Compute the landscape at the times of the populations, whose labels number the ``states``.

    Where ``min_cells`` effective cells would give the density, where their kernels are highest, its relative error is
    about ``sqrt(0.5 / min_cells)``. A lower density is negligible.
    """
    times = _checked_times(populations)
    order = np.argsort(times)
    checked = [check_population(populations[i], len(states)) for i in order]
    populations, weights = [pair[0] for pair in checked], [pair[1] for pair in checked]

    numbers = [effective_number(p, w) for p, w in zip(populations, weights, strict=True)]
    kernels = [kernel_of(p.x, w, n, options.bandwidth) for p, w, n in zip(populations, weights, numbers, strict=True)]
    x, y = grid_axes(populations, kernels, options.n_grid)
    spacing = np.array([x[1] - x[0], y[1] - y[0]])
    kernels = [widened(kernel, spacing) for kernel in kernels]

    density, region, floor = [], [], []
    for population, weight, kernel, n in zip(populations, weights, kernels, numbers, strict=True):
        labels = np.full(weight.size, -1) if population.labels is None else population.labels
        parts = densities(population.x, weight, labels + 1, len(states) + 1, x, y, kernel)
        floor.append(options.min_cells / (n * 2 * np.pi * np.sqrt(np.linalg.det(kernel))))
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
        diffusion=None if options.diffusion is None else float(options.diffusion),
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
