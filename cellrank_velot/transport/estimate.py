"""The velocity of each cell from two estimates that err in different ways: regression on time, and transport."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellrank_velot._utils.options import Run
from cellrank_velot._utils.stage import TINY, frozen
from cellrank_velot.graph.order import MemoryOrder
from cellrank_velot.graph.residuals import means_over
from cellrank_velot.graph.smoothing import SmoothedCells
from cellrank_velot.transport.problem import TransportOptions
from cellrank_velot.transport.velocity import TransportVelocity, compute_velocity
from cellrank_velot.transport.windows import Windows

__all__ = ["Regression", "estimate_velocity", "regress_on_time"]

# Steps of the random walk whose ends are the neighbourhood that is regressed, and over which transport is averaged.
REGRESSION_STEPS, TRANSPORT_STEPS = 4, 2
# Least variance of time that a slope is divided by, as a share of the median.
LEAST_VARIANCE = 0.1
# Least weight of transport in the mean of both.
LEAST_TRANSPORT = 0.1
# A cell counts in the field by the variance of time around it, up to so many times the median.
MAX_WEIGHT = 3.0


@dataclass(frozen=True, eq=False)
class Regression:
    """Slope of position over time around each cell."""

    velocity: NDArray[np.float64]  # [n_cells, n_dims], zero where time does not vary
    covariance: NDArray[np.float64]  # of position and time, [n_cells, n_dims]
    time_variance: NDArray[np.float64]  # [n_cells]
    variance: NDArray[np.float64]  # of position, sum over the dimensions, [n_cells]

    def explained(self, velocity: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of the variance of positions that goes with time along the direction of a velocity."""
        length = np.linalg.norm(velocity, axis=1)
        scale = length * np.sqrt(self.time_variance) * np.sqrt(self.variance)
        along = np.maximum(np.einsum("ij,ij->i", velocity, self.covariance), 0.0)
        share = np.divide(along, scale, out=np.zeros_like(scale), where=scale > TINY)
        return np.minimum(share**2, 1.0)


def regress_on_time(cells: SmoothedCells, walk: _Walk | None = None, *, n_jobs: int | None = None) -> Regression:
    r"""Regress position on time among the cells around each cell: :math:`v = \mathrm{cov}(x, t) / \mathrm{var}(t)`.

    A cell counts by the chance that a random walk of a few steps ends there: near cells count most, and the walk keeps
    to the branch.
    """
    x, time = cells.x - cells.x.mean(axis=0), cells.time - cells.time.mean()
    n_dims, t = x.shape[1], time[:, None]
    walk = _Walk.on(cells.graph) if walk is None else walk
    moments = np.hstack([x, t, x * t, np.einsum("ij,ij->i", x, x)[:, None], t * t])
    values = walk.mean(moments, REGRESSION_STEPS, n_jobs)
    mean_x, mean_t = values[:, :n_dims], values[:, n_dims : n_dims + 1]
    of_x = np.maximum(values[:, -2] - np.einsum("ij,ij->i", mean_x, mean_x), 0.0)
    of_x[of_x < np.finfo(np.float64).eps * float(x.var(axis=0).sum())] = 0.0
    variance = values[:, -1:] - mean_t**2
    variance[variance < np.finfo(np.float64).eps * float(time.var())] = 0.0
    covariance = values[:, n_dims + 1 : -2] - mean_x * mean_t
    # Where time hardly varies the direction is known, but the speed is not: it would be huge.
    steady = np.maximum(variance, LEAST_VARIANCE * np.median(variance))
    velocity = np.divide(covariance, steady, out=np.zeros_like(covariance), where=variance > 0)
    return Regression(velocity, covariance, variance[:, 0], of_x)


def estimate_velocity(
    cells: SmoothedCells, windows: Windows, options: TransportOptions = TransportOptions(), run: Run = Run()
) -> TransportVelocity:
    r"""Transport the windows, and take the mean with the regression on time where ``options`` ask for that.

    Regression has less noise, but where streams of different times meet it takes the way from one to the other for
    motion. Transport does not. So it has the weight :math:`1 - \cos` of the angle between both, and at least 0.1.
    """
    transport = compute_velocity(cells.x, cells.time, windows, cells.graph, options, run)
    if not options.regression:
        return transport
    walk = _Walk.on(cells.graph)
    found = regress_on_time(cells, walk, n_jobs=run.n_jobs)
    current, known = _averaged(transport, walk, run.n_jobs)
    product = np.einsum("ij,ij->i", current, found.velocity)
    length = np.linalg.norm(current, axis=1) * np.linalg.norm(found.velocity, axis=1)
    agreement = np.divide(product, length, out=np.zeros_like(product), where=length > TINY)
    share = np.clip(1 - agreement, LEAST_TRANSPORT, 1.0)
    share[~known], share[found.time_variance <= 0] = 0.0, 1.0
    mean = share[:, None] * current + (1 - share[:, None]) * found.velocity
    velocity = mean + transport.relaxation
    unknown = ~known & (found.time_variance <= 0)
    velocity[unknown] = np.nan
    median = float(np.median(found.time_variance)) or 1.0
    return replace(
        transport,
        velocity=frozen(velocity),
        agreement=np.where(known, np.clip(agreement, -1.0, 1.0), 0.0),
        explained=found.explained(mean),
        weight=np.where(unknown, 0.0, np.clip(found.time_variance / median, 1e-3, MAX_WEIGHT)),
    )


@dataclass(frozen=True, eq=False)
class _Walk:
    """A random walk along the edges, in which a cell stays where it is as often as it takes one edge."""

    order: MemoryOrder
    graph: sp.csr_matrix  # in this order, with weights of one

    @classmethod
    def on(cls, graph: sp.csr_matrix) -> Self:
        """Return the walk on the edges of a graph, whatever their weights."""
        order = MemoryOrder.of(graph)
        moved = order.graph(graph)
        return cls(order, sp.csr_matrix((np.ones(moved.nnz), moved.indices, moved.indptr), shape=moved.shape))

    def mean(self, values: NDArray[np.float64], n_steps: int, n_jobs: int | None) -> NDArray[np.float64]:
        """Return the mean of values ``[n_cells, n_values]`` over where the walk from each cell may be after steps."""
        values = self.order.values(values)
        for _ in range(n_steps):
            values = means_over(self.graph, values, own=1.0, n_jobs=n_jobs)
        return self.order.back(values)


def _averaged(
    transport: TransportVelocity, walk: _Walk, n_jobs: int | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return transport's velocity without the relaxation, averaged over the cells around, and where there is one."""
    has = transport.has_estimate.astype(np.float64)[:, None]
    values = np.hstack([np.nan_to_num(transport.velocity - transport.relaxation) * has, has])
    values = walk.mean(values, TRANSPORT_STEPS, n_jobs)
    known = values[:, -1] > 0
    return values[:, :-1] / np.where(known, values[:, -1], 1.0)[:, None], known
