"""Velocity of each cell from the couplings of its windows."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellrank_velot._utils.device import resolve_device
from cellrank_velot._utils.options import Run
from cellrank_velot._utils.parallel import blocks
from cellrank_velot._utils.shown import extent
from cellrank_velot._utils.stage import Stage, frozen, stored
from cellrank_velot._utils.validation import check_integer
from cellrank_velot.graph.residuals import residuals
from cellrank_velot.transport.problem import TransportOptions, TransportProblem
from cellrank_velot.transport.sums import CellSums, memory_of_sums, pair_plan, sum_pairs, typical_square
from cellrank_velot.transport.windows import Windows

__all__ = [
    "TransportVelocity",
    "compute_velocity",
    "end_cells",
    "pair_coupling",
    "report_convergence",
]

logger = logging.getLogger("cellrank_velot")

# Cells whose sums are combined at a time: they stay in a processor's cache.
BLOCK_CELLS = 8192
# Squared tangent of the error of a direction for each unit of unexplained over explained variance, on simulated counts.
UNEXPLAINED_ERROR = 0.05
# A cell with a neighbour that is later by more than this share of the time between windows is at no end.
END_SHARE = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class TransportVelocity(Stage):
    """Optimal-transport velocity of each cell.

    Attributes
    ----------
    velocity
        Velocity in units of the basis per unit of time, shape ``[n_cells, n_dims]``; NaN without an estimate.
    relaxation
        The part of it that returns the cell to the mean of its neighbours, shape ``[n_cells, n_dims]``; zero without an
        estimate. Neighbours differ in it, while they share the rest.
    spread
        Variance per dimension of the velocities to the partners of the cell in a coupling, mean over its couplings,
        shape ``[n_cells, n_dims]``; NaN where the cell is in no coupling.
    n_effective
        Effective number of partners of the cell in a coupling, shape ``[n_cells]``; 0 where it is in none.
    disagreement
        Variance between the velocities from the window pairs of a cell, computed forward and backward separately, sum
        over the dimensions, shape ``[n_cells]``; NaN where the cell is in no coupling.
    support
        Mean weight of the displacements of a cell, in ``[0, 1]``, forward or backward, whichever is larger, shape
        ``[n_cells]``: one where none is much longer than usual, 0 where the cell is in no coupling.
    n_forward, n_backward
        Number of window pairs in which a cell is a source, and a target, shape ``[n_cells]``.
    converged
        Whether the coupling of each window pair converged, shape ``[n_pairs]``.
    marginal_error
        Euclidean norm of the deviation of each coupling from its marginal, shape ``[n_pairs]``; NaN where the pair has
        no difference in time and was left out.
    growth
        Growth rate of each cell, per time, shape ``[n_cells]``; None where mass is kept, as in pseudotime.
    agreement
        Cosine between the velocity by transport and that by regression on time, shape ``[n_cells]``; zero without an
        estimate by transport, None where transport is alone.
    explained
        Share of the variance of the positions around the cell that goes with time, along its velocity, in ``[0, 1]``,
        shape ``[n_cells]``; None where transport is alone.
    weight
        Weight of the cell in the field, shape ``[n_cells]``: the variance of time around it, in units of the median;
        None where transport is alone, and the confidence is the weight.

    Examples
    --------
    >>> cosine = metrics.cosines(vk.transport.velocity, adata.obsm["true_velocity_pca"])
    >>> bool(cosine.mean() > 0.9)
    True
    >>> bool(
    ...     abs(vk.transport.confidence.mean() - cosine.mean()) < 0.1
    ... )  # it says what cosine to expect
    True
    >>> float(vk.transport.converged.mean()), float(vk.transport.has_estimate.mean())
    (1.0, 1.0)
    """

    velocity: NDArray[np.float64] = field(metadata=stored("n_cells", "n_dims", gaps=True))
    relaxation: NDArray[np.float64] = field(metadata=stored("n_cells", "n_dims"))
    spread: NDArray[np.float64] = field(metadata=stored("n_cells", "n_dims", low=0, gaps=True))
    n_effective: NDArray[np.float64] = field(metadata=stored("n_cells", low=0))
    disagreement: NDArray[np.float64] = field(metadata=stored("n_cells", low=0, gaps=True))
    support: NDArray[np.float64] = field(metadata=stored("n_cells", low=0, high=1 + 1e-9))
    n_forward: NDArray[np.int64] = field(metadata=stored("n_cells", low=0))
    n_backward: NDArray[np.int64] = field(metadata=stored("n_cells", low=0))
    converged: NDArray[np.bool_] = field(metadata=stored("n_pairs"))
    marginal_error: NDArray[np.float64] = field(metadata=stored("n_pairs", gaps=True))
    growth: NDArray[np.float64] | None = field(default=None, metadata=stored("n_cells"))
    agreement: NDArray[np.float64] | None = field(default=None, metadata=stored("n_cells", low=-1, high=1))
    explained: NDArray[np.float64] | None = field(default=None, metadata=stored("n_cells", low=0, high=1))
    weight: NDArray[np.float64] | None = field(default=None, metadata=stored("n_cells", low=0))

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = dict(zip(("cells", "dims"), self.velocity.shape, strict=True))
        facts["with_estimate"] = int(self.has_estimate.sum())
        facts["couplings_converged"] = f"{int(self.converged.sum())} of {self.converged.size}"
        return facts | ({} if self.growth is None else {"growth": extent(self.growth)})

    @property
    def n_windows(self) -> NDArray[np.int64]:
        """Number of window pairs that contributed to each cell, shape ``[n_cells]``."""
        return self.n_forward + self.n_backward

    @property
    def variance(self) -> NDArray[np.float64]:
        """Variance of the velocity per dimension, the spread over the effective number of partners.

        Shape ``[n_cells, n_dims]``. Window pairs share cells, and are not counted as independent.
        """
        return self.spread / np.maximum(self.n_effective, 1.0)[:, None]

    @property
    def confidence(self) -> NDArray[np.float64]:
        r"""Confidence in each velocity, in ``[0, 1]``, shape ``[n_cells]``.

        The cosine to the true direction that is to be expected, :math:`1 / \sqrt{1 + 0.05 (1 - R) / R}`, where
        :math:`R` is ``explained``; calibrated on simulated counts. Where transport is alone, a product of three:
        the support; :math:`|v|^2 / (|v|^2 + s)`, where :math:`s` adds the variance of the velocity and that of the mean
        over its window pairs; and the number of window pairs over that of the cell with most.
        """
        if self.explained is not None:
            rest = UNEXPLAINED_ERROR * (1 - self.explained)
            return np.sqrt(self.explained / (self.explained + rest))
        square = np.nan_to_num(np.sum(self.velocity**2, axis=1))
        between = self.disagreement / np.maximum(self.n_windows, 1)
        total = square + np.nan_to_num(self.variance.sum(axis=1) + between)
        share = np.divide(square, total, out=np.ones_like(square), where=total > 0)  # no motion at all is certain, too
        return self.support * share * self.n_windows / max(int(self.n_windows.max()), 1)

    @property
    def fit_weight(self) -> NDArray[np.float64]:
        """Weight with which the cell counts in the field, shape ``[n_cells]``."""
        return self.confidence if self.weight is None else self.weight

    @property
    def has_estimate(self) -> NDArray[np.bool_]:
        """Whether a cell has an estimate, by transport or by regression, shape ``[n_cells]``."""
        return np.asarray(np.isfinite(self.velocity).all(axis=1))


def compute_velocity(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    windows: Windows,
    graph: sp.csr_matrix | None = None,
    options: TransportOptions = TransportOptions(),
    run: Run = Run(),
) -> TransportVelocity:
    r"""Transport each window to its target and average the displacements of each cell.

    With the couplings P, a cell is displaced forward to :math:`\sum_j P_{ij} x_j / \sum_j P_{ij}`, the mean of where
    it goes, and backward to the mean of where it comes from. Its forward velocity :math:`v^+` is the sum of its forward
    displacements over the sum of the times between the windows, :math:`v^-` likewise. The velocity is :math:`v = (v^+ +
    v^-) / 2 + F (v^+ - v^-) / 2`: the mean of both is free of the cell's own noise, and their difference returns the
    cell to its neighbours' mean :cite:`nelson:66`, of which the share F is kept.
    """
    where = resolve_device(run.device)
    problem = TransportProblem.of(x, time, windows, graph, options)
    use = np.flatnonzero(windows.dt > 0)
    if use.size < windows.n_pairs:
        logger.warning("Left out %d window pairs without a difference in time", windows.n_pairs - use.size)
    if run.memory_limit is not None:
        fixed, of_job = memory_of_sums(problem, use)
        fixed += 4 * problem.x.nbytes + 80 * problem.x.shape[0]  # what comes out of the sums, and the residuals
        run = run.limited(fixed, of_job, "transport")
    limit = np.inf if options.reach is None else options.reach * typical_square(problem, use, where)
    sums = sum_pairs(problem, use, limit, options.reach or 1.0, where, run)
    report_convergence(sums.converged[use], sums.marginal_error[use])
    residual = None if graph is None else residuals(problem.x, graph, n_jobs=run.n_jobs)
    result = _combine(sums, residual, options.relaxation)
    n_none = int((~result.has_estimate).sum())
    if n_none:
        logger.info("%d of %d cells have no estimate from transport", n_none, problem.x.shape[0])
    return result


def pair_coupling(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    windows: Windows,
    pair: int,
    graph: sp.csr_matrix | None = None,
    options: TransportOptions = TransportOptions(),
    device: str = "cpu",
) -> NDArray[np.float64]:
    """Solve one pair again, as :func:`compute_velocity` did: the plan of row ``pair``, shape ``[n_source, n_target]``.

    Its rows and columns are in the order of ``windows.cells``, its sum is one. No plan is kept: they are large.
    """
    if check_integer("pair", pair) >= windows.n_pairs:
        raise ValueError(f"Expected `pair` below the number of pairs, `{windows.n_pairs}`, found `{pair}`.")
    if not windows.dt[pair] > 0:
        raise ValueError(f"Expected a pair whose target is later, found `{windows.dt[pair]:g}` of time to it.")
    return pair_plan(TransportProblem.of(x, time, windows, graph, options), pair, resolve_device(device))


def end_cells(
    transport: TransportVelocity,
    windows: Windows,
    time: NDArray[np.float64],
    graph: sp.csr_matrix,
    backward: bool = False,
) -> NDArray[np.bool_]:
    """Return the cells at an end of the process, shape ``[n_cells]``; at its beginning if ``backward``.

    They have a window before and none after, and no neighbour that is later by more than a quarter of the time from a
    window to its target.
    """
    if backward:
        gone, come, time = transport.n_backward, transport.n_forward, -time
    else:
        gone, come = transport.n_forward, transport.n_backward
    row = np.repeat(np.arange(time.size), np.diff(graph.indptr))
    ahead = np.zeros(time.size)
    np.maximum.at(ahead, row, np.where(graph.data != 0, time[graph.indices] - time[row], 0.0))
    return np.asarray((gone == 0) & (come > 0) & (ahead <= END_SHARE * windows.dt.mean()))


@dataclass(frozen=True, eq=False)
class _Side:
    """Means over the displacements of some cells in one direction, forward or backward; zero without any."""

    velocity: NDArray[np.float64]
    spread: NDArray[np.float64]
    n_effective: NDArray[np.float64]
    disagreement: NDArray[np.float64]
    support: NDArray[np.float64]
    n: NDArray[np.int64]

    @classmethod
    def of(cls, sums: NDArray[np.float64]) -> _Side:
        """Take the means of sums of shape ``[n_cells, 2 * n_dims + 5]``, see :class:`CellSums`."""
        d = sums.shape[1] // 2 - 2
        time, n_effective, square, weight, count = sums[:, 2 * d :].T
        none = weight <= 0
        time, weight, count = (np.where(none, 1.0, values) for values in (time, weight, count))
        velocity = sums[:, :d] / time[:, None]
        return cls(
            velocity=velocity,
            spread=sums[:, d : 2 * d] / (time * time / weight)[:, None],
            n_effective=n_effective / weight,
            disagreement=np.maximum(square / weight - np.einsum("ij,ij->i", velocity, velocity), 0.0),
            support=np.where(none, 0.0, weight / count),
            n=sums[:, -1].astype(np.int64),
        )


@dataclass(frozen=True, eq=False)
class _Both:
    """Both directions of some cells, and what they have in common."""

    ahead: _Side
    behind: _Side

    @property
    def balance(self) -> NDArray[np.float64]:
        """Balance of support, from -1 (backward) to 1 (forward)."""
        total = self.ahead.support + self.behind.support
        difference = self.ahead.support - self.behind.support
        return np.divide(difference, total, out=np.zeros_like(total), where=total > 0)

    @property
    def measured(self) -> NDArray[np.float64]:
        """Relaxation as measured, half the difference of the velocities."""
        return (self.ahead.velocity - self.behind.velocity) / 2

    def even(self) -> NDArray[np.bool_]:
        """Return which cells have both directions, with about as much support."""
        return (self.ahead.n > 0) & (self.behind.n > 0) & (np.abs(self.balance) < 0.5)


def _combine(sums: CellSums, residual: NDArray[np.float64] | None, relaxation: float) -> TransportVelocity:
    """Return the velocity of each cell from its sums, some cells at a time.

    Where one direction lacks support, the relaxation is estimated from the residual of the cell from the mean of its
    neighbours: in the cells with both directions the two are in proportion.
    """
    n_cells, n_dims = sums.total.shape[1], sums.total.shape[2] // 2 - 2
    parts = [slice(*part) for part in blocks(n_cells, BLOCK_CELLS)]

    def both(part: slice) -> _Both:
        return _Both(*(_Side.of(side[part]) for side in sums.total))

    slope = 0.0 if residual is None else _slope((both(part), residual[sums.cells[part]]) for part in parts)
    velocity, relaxing, spread = (np.empty((n_cells, n_dims)) for _ in range(3))
    by_cell, counts = np.empty((3, n_cells)), np.empty((2, n_cells), dtype=np.int64)
    for part in parts:
        now, cells = both(part), sums.cells[part]
        expected = slope * residual[cells] if residual is not None else np.zeros_like(now.ahead.velocity)
        m = now.balance[:, None]
        forward, back = (1 + m) / 2, (1 - m) / 2
        none = (now.ahead.n + now.behind.n) == 0
        current = forward * now.ahead.velocity + back * now.behind.velocity - m * expected
        returning = (1 - np.abs(m)) * now.measured + np.abs(m) * expected
        returning[none] = 0.0
        velocity[cells] = np.where(none[:, None], np.nan, current)
        relaxing[cells] = returning
        both_spread = forward * now.ahead.spread + back * now.behind.spread
        spread[cells] = np.where(none[:, None], np.nan, both_spread)
        of_ahead, of_behind = forward[:, 0], back[:, 0]
        disagreement = of_ahead * now.ahead.disagreement + of_behind * now.behind.disagreement
        by_cell[0, cells] = of_ahead * now.ahead.n_effective + of_behind * now.behind.n_effective
        by_cell[1, cells] = np.where(none, np.nan, disagreement)
        by_cell[2, cells] = np.maximum(now.ahead.support, now.behind.support)
        counts[:, cells] = now.ahead.n, now.behind.n
    relaxing *= relaxation
    velocity += relaxing
    n_effective, disagreement, support = by_cell
    return TransportVelocity(
        velocity=frozen(velocity),
        relaxation=frozen(relaxing),
        spread=frozen(spread),
        n_effective=n_effective,
        disagreement=disagreement,
        support=support,
        n_forward=counts[0],
        n_backward=counts[1],
        converged=sums.converged,
        marginal_error=sums.marginal_error,
    )


def _slope(parts: Iterable[tuple[_Both, NDArray[np.float64]]]) -> float:
    """Return the relaxation as a multiple of the residual, over the cells that have both directions."""
    product = square = 0.0
    for both, residual in parts:
        even = both.even()
        product += np.sum(residual[even] * both.measured[even])
        square += np.sum(residual[even] ** 2)
    return float(product / square) if square > 0 else 0.0


def report_convergence(converged: NDArray[np.bool_], error: NDArray[np.float64]) -> None:
    """Log how many couplings did not converge, if any, and the largest error."""
    if not converged.all():
        # A smaller error does not change a velocity visibly.
        level = logging.WARNING if error.max() > 1e-3 else logging.INFO
        logger.log(
            level,
            "%d of %d couplings did not converge (largest marginal error %.1e). Raise `max_iter` or `epsilon`",
            (~converged).sum(),
            converged.size,
            error.max(),
        )
