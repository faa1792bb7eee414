"""How well a time point that is left out is foretold from the others.

Depends on couplings, dynamics, field, interpolation, snapshots, numpy, pandas and POT; knows no AnnData.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import ot
import pandas as pd
from numpy.typing import NDArray

from cellrank_velot._utils.options import Run
from cellrank_velot._utils.validation import check_choice, check_integer, check_seed
from cellrank_velot.cells.time_points import check_snapshots
from cellrank_velot.dynamics import SimulationOptions, simulate_process
from cellrank_velot.field import ProcessOptions, fit_process
from cellrank_velot.timeseries.couplings import CouplingOptions, SnapshotCouplings, couple_snapshots
from cellrank_velot.timeseries.interpolation import Population, interpolate_paths
from cellrank_velot.timeseries.snapshots import SnapshotOptions, build_snapshots

__all__ = ["HeldOutMethod", "held_out_time", "wasserstein"]

HeldOutMethod = Literal["paths", "field", "exact", "previous"]


def held_out_time(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    held_out: float | Sequence[float] | None = None,
    *,
    methods: Sequence[HeldOutMethod] = ("paths", "exact", "previous"),
    mass: Sequence[float] | None = None,
    n_cells: int = 1500,
    random_state: int = 0,
    field_options: dict[str, Any] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Leave time points out, foretell them from the others, and measure the distance to what was there.

    Parameters
    ----------
    x
        Positions of shape ``[n_cells, n_dims]``.
    time
        Time of each cell, shape ``[n_cells]``; at least three time points.
    held_out
        Time points to leave out, one at a time; all but the first and the last where not given.
    methods
        ``"paths"``: paths of the couplings of the other time points; ``"field"``: the cells before, moved by a field
        that is fitted to the others; ``"exact"``: straight lines between the time points beside, by exact optimal
        transport; ``"previous"``: the time point before, as it is.
    mass
        Mass of each time point, shape ``[n_times]``; one where not given.
    n_cells
        Largest number of cells on each side of a distance, drawn at random, and of the exact transport.
    random_state
        Seed.
    field_options
        Passed on to :func:`cellrank_velot.field.fit_process`.
    **options
        Passed on to :func:`cellrank_velot.timeseries.couplings.couple_snapshots`.

    Returns
    -------
    One row for each time point and method: ``w1`` and ``w2``, exact Wasserstein distances with Euclidean cost, in units
    of the basis, and ``mass_ratio``, the mass foretold over that given.

    Raises
    ------
    ValueError
        If there are fewer than three time points, or one to leave out is none or has no neighbour on a side.

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
        task = _Task(x[others], time[others], float(point), np.delete(masses, k), n_cells, random_state, rng)
        for method in methods:
            found = FORETELL[method](task, options, field_options or {})
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
    x, y
        Positions, shapes ``[n, n_dims]`` and ``[m, n_dims]``.
    weights
        Weights of ``x``, shape ``[n]``, scaled to sum to one; even where not given.

    Returns
    -------
    Both distances, in units of the positions: the mean length of the ways of the mass, and the root of the mean squared
    length, each of the plan for which it is least.

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


class _Task:
    """A time to foretell, and what is known of the others."""

    def __init__(
        self,
        x: NDArray[np.float64],
        time: NDArray[np.float64],
        point: float,
        mass: NDArray[np.float64],
        n_cells: int,
        random_state: int,
        rng: np.random.Generator,
    ) -> None:
        self.x, self.time, self.point, self.mass = x, time, point, mass
        self.n_cells, self.random_state, self.rng = n_cells, random_state, rng
        self.couplings: SnapshotCouplings | None = None
        points = np.unique(time)
        self.before = int(np.searchsorted(points, point)) - 1
        self.ends = points[self.before], points[self.before + 1]
        self.share = (point - self.ends[0]) / (self.ends[1] - self.ends[0])

    def couple(self, options: dict[str, Any]) -> SnapshotCouplings:
        """Return the couplings of the other time points, made once for all methods."""
        if self.couplings is None:
            windows = build_snapshots(self.time, SnapshotOptions(random_state=self.random_state))
            given, rest = CouplingOptions.split({"random_state": self.random_state, **options})
            inputs = {"mass": rest.pop("mass", self.mass), "prior": rest.pop("prior", None)}
            self.couplings = couple_snapshots(self.x, self.time, windows, given, **inputs, run=Run(**rest))[0]
        return self.couplings


def _by_paths(task: _Task, options: dict[str, Any], _: dict[str, Any]) -> Population:
    return interpolate_paths(task.couple(options), task.x, task.point)


def _by_field(task: _Task, options: dict[str, Any], field_options: dict[str, Any]) -> Population:
    given, rest = ProcessOptions.split({"random_state": task.random_state, **field_options})
    straight = rest.pop("straight", False)
    field = fit_process(task.couple(options), task.x, given, straight=straight, run=Run(**rest))
    starts = np.flatnonzero(task.time == task.ends[0])
    starts = task.rng.permutation(starts)[: 2 * task.n_cells]
    # The flow has less chance in it than the process, and moves the population alike.
    paths = simulate_process(field, task.x[starts], task.ends[0], task.point, SimulationOptions(noise=False))
    return Population(paths.ends, paths.weights * task.mass[task.before] / starts.size, task.point, starts)


def _by_exact_transport(task: _Task, _: dict[str, Any], __: dict[str, Any]) -> Population:
    x, y = (_some(task.x[task.time == end], task.n_cells, task.rng) for end in task.ends)
    plan = ot.emd(ot.unif(x.shape[0]), ot.unif(y.shape[0]), ot.dist(x, y), numItermax=10_000_000)
    i, j = np.nonzero(plan)
    mass = task.mass[task.before] ** (1 - task.share) * task.mass[task.before + 1] ** task.share
    return Population((1 - task.share) * x[i] + task.share * y[j], mass * plan[i, j], task.point, i)


def _by_the_previous(task: _Task, _: dict[str, Any], __: dict[str, Any]) -> Population:
    cells = np.flatnonzero(task.time == task.ends[0])
    return Population(task.x[cells], np.full(cells.size, task.mass[task.before] / cells.size), task.point, cells)


FORETELL: dict[str, Callable[[_Task, dict[str, Any], dict[str, Any]], Population]] = {
    "paths": _by_paths,
    "field": _by_field,
    "exact": _by_exact_transport,
    "previous": _by_the_previous,
}


def _thinned(population: Population, n: int, random_state: int) -> Population:
    """Return at most so many particles of a population, alike in weight."""
    if population.weights.size <= n:
        return population
    x = population.sample(n, random_state)
    return Population(x, np.full(n, population.mass / n), population.time, np.arange(n))


def _some(x: NDArray[np.float64], n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return x if x.shape[0] <= n else x[rng.choice(x.shape[0], n, replace=False)]
