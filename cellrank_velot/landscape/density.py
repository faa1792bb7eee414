"""The density of weighted cells on a grid of a plane, by a Gaussian kernel."""

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

# Margin of the grid around the outermost cells, in standard deviations of the kernel.
MARGIN = 3.0
# Narrowest standard deviation of the kernel that the grid shows, in its spacings.
MIN_WIDTH = 0.5
# Spacings of the finer grid, on which cells are binned, in a standard deviation of the kernel.
FINE_SPACINGS = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class PlaneCells(Stage):
    """Cells in a plane at one time."""

    x: FloatArray  # [n_cells, 2]
    weights: FloatArray | None = None  # [n_cells], not negative; all alike where None
    time: float = np.nan  # NaN for cells of all times
    labels: NDArray[np.int64] | None = None  # number of each cell's state, -1 for none; None without states
    # Of how many independent cells they are made, where they are not independent; at most what the weights say.
    n_independent: float | None = None


def check_population(population: PlaneCells, n_states: int) -> tuple[PlaneCells, FloatArray]:
    """Check cells. Return those with a weight, and their weights, which sum to one."""
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
    """Return the effective number of cells, from weights that sum to one."""
    number = 1.0 / np.square(weights).sum()
    return float(number if population.n_independent is None else min(number, population.n_independent))


def kernel_of(x: FloatArray, weights: FloatArray, n_effective: float, bandwidth: float) -> FloatArray:
    r"""Return the covariance of the kernel: that of the cells times :math:`(s \, n^{-1/6})^2` :cite:`scott:92`.

    :math:`s` is the ``bandwidth``, and :math:`n^{-1/6}` Scott's factor for :math:`n` effective cells in two dimensions.
    """
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
    """Return the density of each group on the grid, ``[n_groups, n_y, n_x]``; its integral is the group's weight.

    Cells are binned and convolved by the fast Fourier transform :cite:`silverman:82`. The bins are padded so that the
    kernel does not reach around their ends.
    """
    spacing = np.array([columns[1] - columns[0], rows[1] - rows[0]])
    unit = kernel / np.outer(spacing, spacing)  # in spacings of the grid
    values = np.linalg.eigvalsh(unit)
    fineness = max(1, int(np.ceil(FINE_SPACINGS / np.sqrt(values[0]))))
    n_x, n_y = ((axis.size - 1) * fineness + 1 for axis in (columns, rows))
    reach = int(np.ceil(8 * fineness * np.sqrt(values[-1])))
    shape = (next_fast_len(n_y + reach, real=True), next_fast_len(n_x + reach, real=True))
    # Sharing a cell between bins already spreads it by a sixth of a squared bin on average.
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
    """Return the weights of cells on a grid. Each is shared between the four points around it by its distance."""
    corner = np.floor(at).astype(np.int64)
    part = at - corner
    bins = np.zeros(shape[0] * shape[1])
    for right, up in product((0, 1), (0, 1)):
        share = np.abs(1 - right - part[:, 0]) * np.abs(1 - up - part[:, 1])
        flat = (corner[:, 1] + up) * shape[1] + corner[:, 0] + right
        bins += np.bincount(flat, weights * share, bins.size)
    return bins.reshape(shape)
