"""How well a time point that is left out is predicted from the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellrank_velot._utils.lazy import ot
from cellrank_velot._utils.options import Run, options_of
from cellrank_velot._utils.validation import check_choice, check_integer, check_seed
from cellrank_velot.cells import check_snapshots
from cellrank_velot.dynamics import SimulationOptions, simulate_process
from cellrank_velot.field import ProcessOptions, fit_process
from cellrank_velot.timeseries import (
    PATH_PASSES,
    CouplingOptions,
    Population,
    SnapshotCouplings,
    SnapshotOptions,
    build_snapshots,
    couple_snapshots,
    interpolate_paths,
)

__all__ = ["HeldOutMethod", "held_out_time", "wasserstein"]

HeldOutMethod = Literal["paths", "field", "exact", "previous"]


def held_out_time(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    held_out: float | Sequence[float] | None = None,
    *,
    methods: Sequence[HeldOutMethod] = ("paths", "exact", "previous"),
    mass: Sequence[float] | None = None,
    prior: NDArray[np.float64] | None = None,
    n_cells: int = 1500,
    coupling_options: Mapping[str, Any] | None = None,
    field_options: Mapping[str, Any] | None = None,
    random_state: int = 0,
) -> pd.DataFrame:
    """Leave time points out, predict them from the others, and measure the distance to the cells that were there.

    Parameters
    ----------
    x
        Positions of shape ``[n_cells, n_dims]``.
    time
        Time of each cell, shape ``[n_cells]``; at least three time points.
    held_out
        Time points to leave out, one at a time; all but the first and the last where not given.
    methods
        Predictions to compare. ``"paths"``: paths of the couplings of the other time points. ``"field"``: the cells of
        the time point before, moved by a field that is fitted to the others. ``"exact"``: straight lines between the
        time points before and after, by exact optimal transport. ``"previous"``: the time point before, as it is.
    mass
        Mass of each time point, shape ``[n_times]``; one where not given.
    prior
        Growth rate of each cell that the couplings expect, per unit of time, shape ``[n_cells]``; zero where not given.
    n_cells
        Largest number of cells on each side of a distance and of the exact transport. More cells are drawn at random.
    coupling_options
        Options of the couplings by name, such as ``{"tau": 0.8}``: ``epsilon``, ``tau``, ``n_passes``, ``n_draws``,
        ``tol``, ``max_iter``, ``random_state``, ``device`` and ``show_progress_bar``. They are those of
        ``compute_velocity`` of the kernel of a time series, with its defaults; for ``"paths"`` one pass, as
        ``interpolate`` of the kernel has it, where ``n_passes`` is not given.
    field_options
        Options of the field by name, such as ``{"n_steps": 300}``: ``hidden``, ``diffusion``, ``n_steps``,
        ``batch_size``, ``learning_rate``, ``random_state``, ``device`` and ``show_progress_bar``. They are those of
        ``fit_field`` of the kernel of a time series, with its defaults.
    random_state
        Seed.

    Returns
    -------
    One row for each time point and method: ``w1`` and ``w2``, exact Wasserstein distances with Euclidean cost, in units
    of the basis, and ``mass_ratio``, the predicted mass over the given one.

    Raises
    ------
    TypeError
        If an option is unknown or of the wrong type.
    ValueError
        If there are fewer than three time points, or ``held_out`` is no time point between the first and the last.

    Examples
    --------
    >>> table = metrics.held_out_time(
    ...     sk.cells.x, sk.cells.time, held_out=1.0, methods=["paths", "previous"]
    ... )
    >>> table.set_index("method")["w1"].idxmin()
    'paths'
    """
    points = check_snapshots(time)
    check_integer("n_cells", n_cells, low=2)
    check_seed(random_state)
    for method in methods:
        check_choice("methods", method, HeldOutMethod)
    seed = {"random_state": random_state}
    coupling = options_of("coupling_options", coupling_options, CouplingOptions, Run, **seed)
    field = options_of("field_options", field_options, ProcessOptions, Run, **seed)
    wanted = points[1:-1] if held_out is None else np.atleast_1d(np.asarray(held_out, dtype=np.float64))
    inner = np.isin(wanted, points[1:-1])
    if points.size < 3 or not inner.all():
        raise ValueError(
            f"Expected `held_out` between the first and the last of the time points {points.tolist()}, "
            f"found {wanted[~inner].tolist()}."
        )
    masses = np.ones(points.size) if mass is None else np.asarray(mass, dtype=np.float64)
    rows = []
    for point in wanted:
        rng = np.random.default_rng(random_state)
        truth = _some(x[time == point], n_cells, rng)
        k = int(np.searchsorted(points, point))
        others = time != point
        task = _Task(
            x=x[others],
            time=time[others],
            point=float(point),
            before=k - 1,
            mass=np.delete(masses, k),
            prior=None if prior is None else prior[others],
            n_cells=n_cells,
            random_state=random_state,
            coupling=coupling,
            path_passes=coupling[0].n_passes if "n_passes" in (coupling_options or {}) else PATH_PASSES,
            field=field,
            rng=rng,
        )
        for method in methods:
            found = PREDICT[method](task)
            guess = found if method == "exact" else _thinned(found, n_cells, random_state)
            w1, w2 = wasserstein(guess.x, truth, guess.weights)
            rows.append((float(point), method, w1, w2, found.mass / masses[k]))
    return pd.DataFrame(rows, columns=["time", "method", "w1", "w2", "mass_ratio"])


def wasserstein(
    x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64] | None = None
) -> tuple[float, float]:
    """Return the exact Wasserstein-1 and -2 distances of two point clouds with Euclidean cost.

    Parameters
    ----------
    x
        Positions of the first cloud, shape ``[n, n_dims]``.
    y
        Positions of the second cloud, shape ``[m, n_dims]``.
    weights
        Weights of ``x``, shape ``[n]``, which are scaled to sum to one; equal where not given.

    Returns
    -------
    Both distances, in units of the positions: the mean distance that mass moves, and the root of the mean squared
    distance, each under the transport plan that makes it smallest.

    Examples
    --------
    >>> w1, w2 = metrics.wasserstein(np.zeros((2, 1)), np.array([[1.0], [3.0]]))
    >>> round(w1, 6), round(w2**2, 6)
    (2.0, 5.0)
    """
    a = np.full(x.shape[0], 1.0 / x.shape[0]) if weights is None else weights / weights.sum()
    b = np.full(y.shape[0], 1.0 / y.shape[0])
    square = ot.dist(x, y, metric="sqeuclidean")
    first = ot.emd2(a, b, np.sqrt(np.maximum(square, 0.0)), numItermax=10_000_000)
    second = ot.emd2(a, b, square, numItermax=10_000_000)
    return float(first), float(np.sqrt(max(second, 0.0)))


@dataclass(frozen=True, eq=False)
class _Task:
    """A time to predict, and the cells of the other time points."""

    x: NDArray[np.float64]
    time: NDArray[np.float64]
    point: float
    before: int
    mass: NDArray[np.float64]
    prior: NDArray[np.float64] | None
    n_cells: int
    random_state: int
    coupling: tuple[CouplingOptions, Run]
    path_passes: int
    field: tuple[ProcessOptions, Run]
    rng: np.random.Generator

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The time points before and after."""
        points = np.unique(self.time)
        return points[self.before], points[self.before + 1]

    @cached_property
    def _made(self) -> dict[int, SnapshotCouplings]:
        return {}

    def coupled(self, n_passes: int) -> SnapshotCouplings:
        """Return couplings of the other time points, made once for all methods that ask for so many passes."""
        if n_passes not in self._made:
            windows = build_snapshots(self.time, SnapshotOptions(random_state=self.random_state))
            options, run = replace(self.coupling[0], n_passes=n_passes), self.coupling[1]
            found, _ = couple_snapshots(self.x, self.time, windows, options, prior=self.prior, mass=self.mass, run=run)
            self._made[n_passes] = found
        return self._made[n_passes]


def _by_paths(task: _Task) -> Population:
    return interpolate_paths(task.coupled(task.path_passes), task.x, task.point)


def _by_field(task: _Task) -> Population:
    options, run = task.field
    field = fit_process(task.coupled(task.coupling[0].n_passes), task.x, options, run=run)
    starts = np.flatnonzero(task.time == task.ends[0])
    starts = task.rng.permutation(starts)[: 2 * task.n_cells]
    # The flow has less noise than the process, and moves the population alike.
    paths = simulate_process(field, task.x[starts], task.ends[0], task.point, SimulationOptions(noise=False))
    return Population(paths.ends, paths.weights * task.mass[task.before] / starts.size, task.point, starts)


def _by_exact_transport(task: _Task) -> Population:
    x, y = (_some(task.x[task.time == end], task.n_cells, task.rng) for end in task.ends)
    plan = ot.emd(ot.unif(x.shape[0]), ot.unif(y.shape[0]), ot.dist(x, y), numItermax=10_000_000)
    i, j = np.nonzero(plan)
    share = (task.point - task.ends[0]) / (task.ends[1] - task.ends[0])
    mass = task.mass[task.before] ** (1 - share) * task.mass[task.before + 1] ** share
    return Population((1 - share) * x[i] + share * y[j], mass * plan[i, j], task.point, i)


def _by_the_previous(task: _Task) -> Population:
    cells = np.flatnonzero(task.time == task.ends[0])
    return Population(task.x[cells], np.full(cells.size, task.mass[task.before] / cells.size), task.point, cells)


PREDICT: dict[str, Callable[[_Task], Population]] = {
    "paths": _by_paths,
    "field": _by_field,
    "exact": _by_exact_transport,
    "previous": _by_the_previous,
}


def _thinned(population: Population, n: int, random_state: int) -> Population:
    """Return a population of at most ``n`` particles, all of one weight where some had to be drawn."""
    if population.weights.size <= n:
        return population
    x = population.sample(n, random_state)
    return Population(x, np.full(n, population.mass / n), population.time, np.arange(n))


def _some(x: NDArray[np.float64], n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return x if x.shape[0] <= n else x[rng.choice(x.shape[0], n, replace=False)]
