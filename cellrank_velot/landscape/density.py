"""The density of weighted cells on a grid of a plane, by a Gaussian kernel.

Depends on numpy and scipy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, next_fast_len, rfft2

from cellrank_velot._utils.stage import Stage
from cellrank_velot._utils.validation import check_number

__all__ = ["PlaneCells", "check_population", "densities", "effective_number", "grid_axes", "kernel_of", "widened"]

FloatArray = NDArray[np.float64]

# The grid goes on beyond the outermost cell by so many standard deviations of the kernel.
MARGIN = 3.0
# Narrowest standard deviation of the kernel, in spacings of the grid: narrower ones the grid would not show.
MIN_WIDTH = 0.5
# Cells are binned on a grid so fine that a standard deviation of the kernel has so many of its spacings.
FINE_SPACINGS = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class PlaneCells(Stage):
    """Cells in a plane at one time.

    Attributes
    ----------
    x
        Positions, shape ``[n_cells, 2]``, finite.
    weights
        Weight of each cell, not negative, shape ``[n_cells]``; all alike where ``None``.
    time
        Time of the population; NaN where it is of all times.
    labels
        Number of each cell's state, -1 for none, shape ``[n_cells]``; ``None`` where there are no states.
    n_independent
        Number of independent cells that these are made of, where they are not independent themselves; what the weights
        say where ``None``, and at most that.

    Examples
    --------
    >>> from cellrank_velot.landscape import PlaneCells, compute_landscape
    >>> days = series.obs["day"].to_numpy()
    >>> populations = [
    ...     PlaneCells(series.obsm["X_state"][days == day], time=day) for day in (0.0, 3.0)
    ... ]
    >>> compute_landscape(populations).times.tolist()
    [0.0, 3.0]
    """

    x: FloatArray
    weights: FloatArray | None = None
    time: float = np.nan
    labels: NDArray[np.int64] | None = None
    n_independent: float | None = None


def check_population(population: PlaneCells, n_states: int) -> tuple[PlaneCells, FloatArray]:
    """Return the cells that have a weight, and their weights, with sum 1, after a check of all there is."""
    x, at = population.x, "" if np.isnan(population.time) else f" at time {population.time:g}"
    if x.ndim != 2 or x.shape[1] != 2 or not np.isfinite(x).all():
        raise ValueError(f"Expected finite positions of the shape `[n_cells, 2]`{at}, found the shape `{x.shape}`.")
    labels = population.labels
    if labels is not None and labels.shape != x.shape[:1]:
        raise ValueError(f"Expected a label for each of the `{len(x)}` cells{at}, found the shape `{labels.shape}`.")
    if labels is not None and labels.size and (labels.min() < -1 or labels.max() >= n_states):
        found = f"from `{labels.min()}` to `{labels.max()}`"
        raise ValueError(f"Expected labels{at} from `-1` to `{n_states - 1}`, the last of the states, found {found}.")
    weights = np.ones(len(x)) if population.weights is None else population.weights
    if weights.shape != x.shape[:1] or not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(f"Expected a finite weight, not negative, for each of the `{len(x)}` cells{at}.")
    if np.count_nonzero(weights) < 3:
        raise ValueError(f"Expected three cells or more with a weight{at}, found `{np.count_nonzero(weights)}`.")
    if population.n_independent is not None:
        check_number("n_independent", population.n_independent, low=1)
    kept = weights > 0
    population = replace(population, x=x[kept], weights=weights[kept], labels=None if labels is None else labels[kept])
    return population, np.asarray(weights[kept] / weights.sum())


def effective_number(population: PlaneCells, weights: FloatArray) -> float:
    """Return the effective number of cells, from weights with sum 1."""
    number = 1.0 / np.square(weights).sum()
    return float(number if population.n_independent is None else min(number, population.n_independent))


def kernel_of(x: FloatArray, weights: FloatArray, n_effective: float, bandwidth: float) -> FloatArray:
    """Return the covariance of the kernel by Scott's rule, shape ``[2, 2]``."""
    centred = x - weights @ x
    covariance = (weights[:, None] * centred).T @ centred / (1.0 - np.square(weights).sum())
    return np.asarray(covariance * (bandwidth * n_effective ** (-1 / 6)) ** 2)


def grid_axes(populations: Sequence[PlaneCells], kernels: Sequence[FloatArray], n_grid: int) -> tuple[FloatArray, ...]:
    """Return the columns and rows of a grid with room for all populations."""
    margins = [MARGIN * np.sqrt(np.diag(kernel)) for kernel in kernels]
    low = np.min([p.x.min(axis=0) - margin for p, margin in zip(populations, margins, strict=True)], axis=0)
    high = np.max([p.x.max(axis=0) + margin for p, margin in zip(populations, margins, strict=True)], axis=0)
    if not (high - low > 1e-12 * np.maximum(abs(high), abs(low))).all():
        raise ValueError(f"Expected cells that spread in both dimensions, found the ranges {(high - low).tolist()}.")
    return np.linspace(low[0], high[0], n_grid), np.linspace(low[1], high[1], n_grid)


def widened(kernel: FloatArray, spacing: FloatArray) -> FloatArray:
    """Return the covariance with no direction narrower than the grid can show."""
    values, vectors = np.linalg.eigh(kernel / np.outer(spacing, spacing))
    wide = vectors * np.maximum(values, MIN_WIDTH**2) @ vectors.T
    return np.asarray(wide * np.outer(spacing, spacing))


def densities(
    x: FloatArray,
    weights: FloatArray,
    groups: NDArray[np.int64],
    n_groups: int,
    columns: FloatArray,
    rows: FloatArray,
    kernel: FloatArray,
) -> FloatArray:
    """Return the density of each group of cells, with the sum of its weights as integral, on the grid.

    The transform of a Gaussian is known, so that nothing is cut off. The grid of the bins is padded by so much that the
    kernel does not reach around it.
    """
    spacing = np.array([columns[1] - columns[0], rows[1] - rows[0]])
    unit = kernel / np.outer(spacing, spacing)  # in spacings of the grid
    values = np.linalg.eigvalsh(unit)
    fineness = max(1, int(np.ceil(FINE_SPACINGS / np.sqrt(values[0]))))
    n_x, n_y = ((axis.size - 1) * fineness + 1 for axis in (columns, rows))
    reach = int(np.ceil(8 * fineness * np.sqrt(values[-1])))
    shape = (next_fast_len(n_y + reach, real=True), next_fast_len(n_x + reach, real=True))
    # A cell shared out between bins spreads by a sixth of a squared bin, in the mean, which the kernel need not.
    unit = unit * fineness**2 - np.eye(2) / 6
    gy, gx = 2 * np.pi * np.fft.fftfreq(shape[0])[:, None], 2 * np.pi * np.fft.rfftfreq(shape[1])[None, :]
    transfer = np.exp(-0.5 * (unit[0, 0] * gx**2 + 2 * unit[0, 1] * gx * gy + unit[1, 1] * gy**2))

    at = (x - [columns[0], rows[0]]) / spacing * fineness
    density = np.empty((n_groups, rows.size, columns.size))
    for group in range(n_groups):
        chosen = groups == group
        bins = _binned(at[chosen], weights[chosen], shape)
        smooth = irfft2(rfft2(bins) * transfer, s=shape)[:n_y:fineness, :n_x:fineness]
        density[group] = np.maximum(smooth, 0.0) * fineness**2 / spacing.prod()
    return density


def _binned(at: FloatArray, weights: FloatArray, shape: tuple[int, int]) -> FloatArray:
    """Return the weights of cells on a grid, each shared out between the four points around it by its distance."""
    corner = np.floor(at).astype(np.int64)
    part = at - corner
    bins = np.zeros(shape[0] * shape[1])
    for right, up in product((0, 1), (0, 1)):
        share = np.abs(1 - right - part[:, 0]) * np.abs(1 - up - part[:, 1])
        flat = (corner[:, 1] + up) * shape[1] + corner[:, 0] + right
        bins += np.bincount(flat, weights * share, bins.size)
    return bins.reshape(shape)
