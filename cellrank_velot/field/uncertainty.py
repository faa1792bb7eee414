"""How far the velocity of each cell may be off: the spread of fields of half the cells, calibrated on simulations."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.stats import norm

from cellrank_velot._utils import parallel
from cellrank_velot._utils.options import Options, Run
from cellrank_velot._utils.stage import Stage, stored
from cellrank_velot._utils.validation import check_integer, check_number, check_seed
from cellrank_velot.field.network import VelocityField
from cellrank_velot.field.training import FieldOptions, fit_field
from cellrank_velot.graph.smoothing import smooth_cells
from cellrank_velot.transport.estimate import estimate_velocity
from cellrank_velot.transport.problem import TransportOptions
from cellrank_velot.transport.windows import WindowOptions, Windows, build_windows

__all__ = [
    "Steps",
    "Uncertainty",
    "UncertaintyOptions",
    "compute_uncertainty",
    "half_velocities",
    "part_velocities",
]

logger = logging.getLogger("cellrank_velot")

# Of the logarithm of the true squared deviation over the spread of the members, on the simulated families of counts in
# `tests/benchmarks/calibration.py`: its mean over families, the mean of the worst family, and its standard deviation
# within a family.
LOG_RATIO_MEAN, LOG_RATIO_WORST, LOG_RATIO_STD = 0.97, 1.72, 1.0
# With more cells halves agree more, while the error that they share stays: by how much the logarithm grows with that of
# the number of cells, beyond the number that the constants are of.
LOG_RATIO_SLOPE, USUAL_CELLS = 0.5, 1000


@dataclass(frozen=True, slots=True, eq=False)
class Uncertainty(Stage):
    """How far the velocity of each cell may be off.

    Attributes
    ----------
    spread
        Mean squared distance between the direction of a cell's velocity and that of each member, both of length one,
        shape ``[n_cells]``.
    std
        Standard deviation of the velocity per dimension, in units of the basis per unit of time, shape
        ``[n_cells, n_dims]``. It covers the direction; the error of the length is not calibrated.
    n_members
        Number of fields.

    Examples
    --------
    >>> found = vk.uncertainty
    >>> bool((found.angle(0.5) <= found.angle(0.9)).all()), found.n_members
    (True, 2)
    """

    spread: NDArray[np.float64] = field(metadata=stored("n_cells", low=0))
    std: NDArray[np.float64] = field(metadata=stored("n_cells", "n_dims", low=0))
    n_members: int = field(metadata=stored(low=2))

    def _facts(self) -> dict[str, Any]:
        return {"cells": self.std.shape[0], "members": self.n_members, "median_angle": float(np.median(self.angle()))}

    def angle(self, level: float = 2 / 3) -> NDArray[np.float64]:
        """Return a bound: an angle within which the true direction lies in at least a share of the cells.

        The members share errors, and how large these are depends on the data and cannot be seen in them. So the angle
        is that of the worst of the simulated families that it was calibrated on. On most data more cells hold. Beyond
        1000 cells, where members agree more and err together as before, it is widened with the number of cells.

        Parameters
        ----------
        level
            The share, in ``(0, 1)``.

        Returns
        -------
        Angles in degrees, at most 180, shape ``[n_cells]``.
        """
        check_number("level", level, low=0, high=1, open_low=True, open_high=True)
        square = self.spread * np.exp(_shared(self.spread.size) + LOG_RATIO_WORST + LOG_RATIO_STD * norm.ppf(level))
        return np.degrees(2 * np.arcsin(np.minimum(np.sqrt(square) / 2, 1.0)))


@dataclass(frozen=True, kw_only=True)
class UncertaintyOptions(Options):
    """Options that :meth:`~cellrank_velot.OTVelocityKernel.compute_uncertainty` explains."""

    n_members: int = 4
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        check_integer("n_members", self.n_members, low=2)
        if self.n_members % 2:
            raise ValueError(f"Expected an even `n_members`, as cells are halved, found `{self.n_members}`.")
        check_seed(self.random_state)


@dataclass(frozen=True, kw_only=True)
class Steps(Options):
    """Options of the steps from positions and time to a field."""

    windows: WindowOptions = WindowOptions()
    velocity: TransportOptions = TransportOptions()
    field: FieldOptions = FieldOptions()

    def of_part(self, windows: Windows, share: float = 0.5, *, cluster: bool) -> Steps:
        """Return those for a share of the cells: as many clusters, by KMeans if ``cluster``, and smaller windows."""
        whole = self.windows
        smallest = max(2, int(whole.min_window_size * share))
        part = replace(
            whole,
            n_clusters=int(np.unique(windows.cluster).size) if cluster else None,
            time_lag=windows.time_lag if np.isfinite(windows.time_lag) else None,
            min_window_size=smallest,
            window_size=None if whole.window_size is None else max(smallest, int(whole.window_size * share)),
        )
        return replace(self, windows=part)


def compute_uncertainty(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    graph: sp.csr_matrix,
    windows: Windows,
    field: VelocityField,
    options: UncertaintyOptions = UncertaintyOptions(),
    *,
    steps: Steps = Steps(),
    labels: NDArray[np.int64] | None = None,
    components: NDArray[np.int64] | None = None,
    run: Run = Run(),
) -> Uncertainty:
    """Fit fields to halves of the cells and compare them with the field of all.

    Cells are halved at random, and each half goes through windows, transport and training by itself. The spread of
    such half-samples is the sampling variance of the whole :cite:`mccarthy:69`. The error is larger, as all share what
    the noise of the cells does to the graph and to the time. The angles are widened by as much as the worst of the
    simulated families needs, where the truth is known.
    """
    found = half_velocities(
        *(x, time, graph, windows, options), steps=steps, labels=labels, components=components, run=run
    )
    velocity = field(x, time)
    direction, speed = _directions(velocity), np.linalg.norm(velocity, axis=1)
    square = np.zeros_like(x)
    with closing(found):
        for other in found:
            square += (_directions(other) - direction) ** 2 / options.n_members
    spread = square.sum(axis=1)
    return Uncertainty(spread, _std(square, spread, speed, graph), options.n_members)


def half_velocities(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    graph: sp.csr_matrix,
    windows: Windows,
    options: UncertaintyOptions,
    *,
    steps: Steps = Steps(),
    labels: NDArray[np.int64] | None = None,
    components: NDArray[np.int64] | None = None,
    run: Run = Run(),
) -> Generator[NDArray[np.float64], None, None]:
    """Return the velocities of all cells from the field of each half, one at a time."""
    rng = np.random.default_rng(options.random_state)
    halves = [
        np.sort(part) for _ in range(options.n_members // 2) for part in np.array_split(rng.permutation(len(x)), 2)
    ]
    return part_velocities(
        *(x, time, graph, windows, halves, options.random_state),
        steps=steps,
        labels=labels,
        components=components,
        run=run,
        called="halves of the cells",
    )


def part_velocities(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    graph: sp.csr_matrix,
    windows: Windows,
    parts: Sequence[NDArray[np.int64]],
    random_state: int = 0,
    *,
    steps: Steps = Steps(),
    labels: NDArray[np.int64] | None = None,
    components: NDArray[np.int64] | None = None,
    run: Run = Run(),
    called: str = "parts of the cells",
) -> Generator[NDArray[np.float64], None, None]:
    """Return the velocities of all cells from the field of each part of them, given by numbers, one at a time."""
    cluster = labels is None
    tasks = [
        (part, (random_state + number) % 2**32, steps.of_part(windows, _share(part.size, len(x)), cluster=cluster))
        for number, part in enumerate(parts)
    ]
    shared = (x, time, graph, labels, components, run.device, called)
    bar: dict[str, Any] = {"desc": called, "show_progress_bar": run.show_progress_bar}
    return parallel.run(_member, tasks, shared, n_jobs=run.n_jobs, **bar)


def _share(n: int, n_cells: int) -> float:
    """Return the share of the cells in a part; both halves of an odd number are halves."""
    return 0.5 if abs(2 * n - n_cells) <= 1 else n / n_cells


def _member(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    graph: sp.csr_matrix,
    labels: NDArray[np.int64] | None,
    components: NDArray[np.int64] | None,
    device: str,
    called: str,
    half: NDArray[np.int64],
    seed: int,
    steps: Steps,
) -> NDArray[np.float64]:
    """Return the velocity of all cells from the field of some of them."""
    part, at, edges = x[half], time[half], sp.csr_matrix(graph[half][:, half])
    codes, pieces = (None if values is None else values[half] for values in (labels, components))
    try:
        options = replace(steps.windows, random_state=seed)
        cells = smooth_cells(part, at, edges, options.n_smooth, n_jobs=1)
        windows = build_windows(cells.x, cells.time, options, labels=codes, components=pieces)
        transport = estimate_velocity(cells, windows, steps.velocity, Run(device=device, n_jobs=1))
        values = transport.velocity, transport.fit_weight, cells.graph, transport.relaxation
        fitting = replace(steps.field, random_state=seed)
        field = fit_field(part, at, *values, fitting, Run(device=device), smoothed=cells)
    except ValueError as error:
        raise ValueError(
            f"Expected enough cells for fields of {called}, found that `{half.size}` do not do: {error}"
        ) from error
    return field(x, time)


def _shared(n_cells: int) -> float:
    """Return by how much the logarithm of deviation over spread is larger than with the usual number of cells."""
    return LOG_RATIO_SLOPE * np.log(max(n_cells / USUAL_CELLS, 1.0))


def _directions(velocity: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(velocity, axis=1, keepdims=True)
    return velocity / np.where(length > 0, length, 1.0)


def _std(
    square: NDArray[np.float64], spread: NDArray[np.float64], speed: NDArray[np.float64], graph: sp.csr_matrix
) -> NDArray[np.float64]:
    """Return the standard deviation by dimension, whose sum of squares is the expected squared deviation.

    A few members are too few for each dimension: its share of the variance is averaged with the neighbours.
    """
    around = square + graph @ square
    total = around.sum(axis=1, keepdims=True)
    profile = np.divide(around, total, out=np.full_like(around, 1 / square.shape[1]), where=total > 0)
    expected = spread * np.exp(_shared(spread.size) + LOG_RATIO_MEAN + LOG_RATIO_STD**2 / 2)
    return np.asarray(speed[:, None] * np.sqrt(expected[:, None] * profile))
