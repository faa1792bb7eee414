"""Velocity of each cell from the couplings of its windows.

Depends on manifold, transport and windows, numpy, scipy and torch; knows no AnnData.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from cellrank_velot._device import resolve_device, single_thread
from cellrank_velot._stage import Stage
from cellrank_velot._validation import check_choice, check_integer, check_number
from cellrank_velot.manifold import residuals, structured_share
from cellrank_velot.transport import Couplings, sinkhorn
from cellrank_velot.windows import Windows

__all__ = [
    "TransportVelocity",
    "check_velocity_options",
    "compute_velocity",
    "end_cells",
    "pair_coupling",
    "report_convergence",
]

logger = logging.getLogger("cellrank_velot")

# Elements of the cost matrices solved together: small enough for a processor's cache, large enough to hide the
# cost of a call. From 2**16 to 2**19 the time of 3000 cells differed by less than a tenth.
BATCH_ELEMENTS = 2**17
# Pairs that are solved beforehand to learn what a typical displacement is.
PILOT_PAIRS = 64
# Tolerance to which: a median needs no more.
PILOT_TOL = 1e-3
# The relaxation that is kept has at most this share of the size of the current velocity.
MAX_RELAXATION = 0.47
# Share of the whole time in which a cell is taken to return to the manifold.
RELAXATION_TIME = 0.03
# Cells with a neighbour that is later by more than this share of the time between windows are at no end.
END_SHARE = 0.25
# A weight below exp(-MAX_EXCESS) would be lost, and with it the cell that has no better.
MAX_EXCESS = 20.0


@dataclass(frozen=True, slots=True, eq=False)
class TransportVelocity(Stage):
    """Optimal-transport velocity of each cell.

    Attributes
    ----------
    velocity
        Velocity in units of the basis per unit of time, shape ``[n_cells, n_dims]``; NaN without an estimate.
    relaxation
        The part of it that returns the cell to the manifold, shape ``[n_cells, n_dims]``; zero without an estimate.
        Neighbours differ in it, while they share the rest.
    spread
        Variance per dimension of the velocities to the places that a coupling of the cell leads to, the diagonal of
        their conditional covariance, mean over its couplings, shape ``[n_cells, n_dims]``; NaN without an estimate.
    n_effective
        Effective number of places that a coupling leads a cell to, shape ``[n_cells]``; 0 without an estimate.
    disagreement
        Variance between the velocities of a cell's window pairs, forward and backward each by itself, sum over the
        dimensions, shape ``[n_cells]``; NaN without an estimate.
    support
        How plausible the displacements of a cell are, in ``[0, 1]``, shape ``[n_cells]``: one where none is much longer
        than usual, forward or backward, whichever is better; 0 without an estimate.
    n_forward, n_backward
        Number of window pairs that a cell goes out from and comes in by, shape ``[n_cells]``.
    converged
        Whether the coupling of each window pair converged, shape ``[n_pairs]``.
    marginal_error
        Euclidean norm of the deviation of each coupling from its marginal, shape ``[n_pairs]``; NaN where the pair has
        no difference in time and was left out.
    growth
        Growth rate of each cell, per time, shape ``[n_cells]``; None where mass is kept, as in pseudotime.
    """

    velocity: NDArray[np.float64]
    relaxation: NDArray[np.float64]
    spread: NDArray[np.float64]
    n_effective: NDArray[np.float64]
    disagreement: NDArray[np.float64]
    support: NDArray[np.float64]
    n_forward: NDArray[np.int64]
    n_backward: NDArray[np.int64]
    converged: NDArray[np.bool_]
    marginal_error: NDArray[np.float64]
    growth: NDArray[np.float64] | None = None

    @property
    def n_windows(self) -> NDArray[np.int64]:
        """Number of window pairs that contributed to each cell, shape ``[n_cells]``."""
        return self.n_forward + self.n_backward

    @property
    def variance(self) -> NDArray[np.float64]:
        """Variance of the velocity per dimension that the couplings' spread gives, shape ``[n_cells, n_dims]``.

        As of the mean over so many places as are effective: window pairs share cells, and don't count as independent.
        """
        return self.spread / np.maximum(self.n_effective, 1.0)[:, None]

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Confidence in each velocity, in ``[0, 1]``, shape ``[n_cells]``.

        The product of its support, of the share of the squared velocity in its sum with its variance and with that of
        the mean over its window pairs, and of the number of these pairs over the largest of any cell.
        """
        square = np.nan_to_num(np.sum(self.velocity**2, axis=1))
        between = self.disagreement / np.maximum(self.n_windows, 1)
        total = square + np.nan_to_num(self.variance.sum(axis=1) + between)
        share = np.divide(square, total, out=np.ones_like(square), where=total > 0)  # no motion at all is certain, too
        return self.support * share * self.n_windows / max(int(self.n_windows.max()), 1)

    @property
    def has_estimate(self) -> NDArray[np.bool_]:
        """Whether a cell has an estimate, shape ``[n_cells]``."""
        return self.n_windows > 0


def compute_velocity(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    windows: Windows,
    graph: sp.csr_matrix | None = None,
    *,
    epsilon: float = 0.05,
    lambda_time: float = 1.0,
    lambda_knn: float = 0.0,
    reach: float | None = 2.0,
    relaxation: float | Literal["auto"] = "auto",
    tol: float = 1e-6,
    max_iter: int = 500,
    device: str = "auto",
    show_progress_bar: bool = False,
) -> TransportVelocity:
    r"""Transport each window to its target and average the displacements of each cell.

    The cost of moving cell i to cell j is :math:`\|x_i - x_j\|^2` over its maximum in the pair, plus
    ``lambda_time`` where j is earlier than i, plus ``lambda_knn`` where j is no neighbour of i. A cell is displaced
    forward to :math:`\sum_j P_{ij} x_j / \sum_j P_{ij}`, the mean of where it goes, and backward to the mean of where
    it comes from. The forward velocity :math:`v^+` is the sum of its forward displacements over the sum of the time
    between the windows, :math:`v^-` likewise.

    All mass of a window has to go to its target. Where a branch ends in between, that is another branch, and the
    displacement unusually long: ``reach`` says from where on it counts less. If that leaves a cell little support in
    one direction, the other is relied on.

    The mean of both, the current velocity, is free of the cell's own noise: whatever takes it off the manifold, the
    forward displacement takes back and the backward one adds. What is left, :math:`(v^+ - v^-) / 2`, relaxes the cell
    to the manifold :cite:`nelson:66`. Measurement noise does that as well as regulation does, so that a share F of it
    is kept, :math:`v = (v^+ + v^-) / 2 + F (v^+ - v^-) / 2`.

    Parameters
    ----------
    x
        Positions of shape ``[n_cells, n_dims]``.
    time
        Time of each cell, shape ``[n_cells]``.
    windows
        Windows and their pairs.
    graph
        Neighbour graph of shape ``[n_cells, n_cells]``; without it ``lambda_knn`` has no effect.
    epsilon
        Entropic regularisation, relative to the largest squared distance of a pair of windows.
    lambda_time
        Cost of going back in time.
    lambda_knn
        Cost of going to a cell that is no neighbour. With it, a cell without a neighbour in the other window takes
        nothing from that pair.
    reach
        Squared displacement, in units of the median one, up to which a displacement counts in full. Beyond, its weight
        falls exponentially. ``None`` counts all alike, as VelOT does.
    relaxation
        Share of the relaxation to the manifold that is kept: ``1`` is the forward velocity, which VelOT reports,
        ``0`` the current velocity. ``"auto"`` takes a cell to return in 0.03 of the whole time, whatever the time
        between the windows, and keeps of this the :func:`~cellrank_velot.manifold.structured_share` of the residuals;
        in the root mean square over the cells at most 0.47 of the current velocity. It needs ``graph``. A cell with
        support in one direction takes its relaxation from its residual to the mean of its neighbours; without a graph
        it keeps that velocity as it is.
    tol, max_iter
        Tolerance and bound of the solver, see :func:`cellrank_velot.transport.sinkhorn`.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or another torch device.
    show_progress_bar
        Whether to show a progress bar.

    Raises
    ------
    ValueError
        If a parameter is out of range, or ``relaxation="auto"`` comes without a graph.
    """
    check_velocity_options(epsilon, lambda_time, lambda_knn, reach, relaxation, tol, max_iter)
    if relaxation == "auto" and graph is None:
        raise ValueError("Expected a neighbour graph for `relaxation='auto'`, found none.")
    where = resolve_device(device)
    use = np.flatnonzero(windows.dt > 0)
    if use.size < windows.n_pairs:
        logger.warning("Left out %d window pairs without a difference in time", windows.n_pairs - use.size)
    penalised = graph if lambda_knn > 0 else None
    positions, times = (torch.tensor(a, dtype=torch.float64, device=where) for a in (x, time))

    def solve(batch: NDArray[np.int64], tol: float) -> tuple[_PairBatch, Couplings]:
        pair = _PairBatch(windows, batch, positions, times, penalised)
        return pair, pair.couplings(epsilon, lambda_time, lambda_knn, tol, max_iter)

    forward, backward = (_Sums(x.shape[0], x.shape[1], where) for _ in range(2))
    converged = np.zeros(windows.n_pairs, dtype=np.bool_)
    error = np.full(windows.n_pairs, np.nan)
    bar = tqdm(total=use.size, desc="transport", unit="pair", disable=not show_progress_bar)
    with bar, single_thread(where):
        limit = np.inf if reach is None else reach * _typical_square(solve, windows, use)
        for batch in _batches(windows, use):
            pair, couplings = solve(batch, tol)
            pair.add_to(forward, backward, couplings.plan, limit, reach or 1.0)
            converged[batch] = couplings.converged.cpu().numpy()
            error[batch] = couplings.marginal_error.cpu().numpy()
            bar.update(batch.size)

    ahead, behind = forward.mean(), backward.mean()
    residual = None if graph is None else residuals(x, graph)
    current, relaxing, balance = _current(ahead, behind, residual)
    lag = float(windows.dt[use].mean() / np.ptp(time)) if use.size else 0.0
    share = _kept_share(relaxation, current, relaxing, residual, lag)
    of_ahead, of_behind = (1 + balance) / 2, (1 - balance) / 2
    spread = of_ahead[:, None] * np.nan_to_num(ahead.spread) + of_behind[:, None] * np.nan_to_num(behind.spread)
    n_windows = ahead.n + behind.n
    report_convergence(converged[use], error[use])
    if (n_windows == 0).any():
        logger.info("%d of %d cells have no estimate from transport", (n_windows == 0).sum(), n_windows.size)
    return TransportVelocity(
        velocity=current + share * relaxing,
        relaxation=np.nan_to_num(share * relaxing),
        spread=np.where(n_windows[:, None] > 0, spread, np.nan),
        n_effective=of_ahead * ahead.n_effective + of_behind * behind.n_effective,
        disagreement=np.where(
            n_windows > 0,
            of_ahead * np.nan_to_num(ahead.disagreement) + of_behind * np.nan_to_num(behind.disagreement),
            np.nan,
        ),
        support=np.maximum(ahead.support, behind.support),
        n_forward=ahead.n,
        n_backward=behind.n,
        converged=converged,
        marginal_error=error,
    )


def pair_coupling(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    windows: Windows,
    pair: int,
    graph: sp.csr_matrix | None = None,
    *,
    epsilon: float = 0.05,
    lambda_time: float = 1.0,
    lambda_knn: float = 0.0,
    tol: float = 1e-6,
    max_iter: int = 500,
    device: str = "cpu",
) -> NDArray[np.float64]:
    """Return the transport plan of one pair of windows, the one that :func:`compute_velocity` takes its cells along.

    It keeps no plans: they would take more memory than all else. Called with its parameters, this solves one again.

    Parameters
    ----------
    x, time, windows, graph
        Cells and windows, as for :func:`compute_velocity`.
    pair
        Which row of ``windows.pairs``.
    epsilon, lambda_time, lambda_knn, tol, max_iter, device
        As for :func:`compute_velocity`.

    Returns
    -------
    Mass from each source cell to each target cell, one in all, shape ``[n_source, n_target]``, in the order of
    ``windows.cells``.

    Raises
    ------
    TypeError
        If the pair is not an integer.
    ValueError
        If there is no such pair, it has no difference in time, so that no velocity was taken from it, or a parameter
        is out of range.
    """
    check_velocity_options(epsilon, lambda_time, lambda_knn, None, 0.0, tol, max_iter)
    if check_integer("pair", pair) >= windows.n_pairs:
        raise ValueError(f"Expected `pair` below the number of pairs, `{windows.n_pairs}`, found `{pair}`.")
    if not windows.dt[pair] > 0:
        raise ValueError(f"Expected a pair whose target is later, found `{windows.dt[pair]:g}` of time to it.")
    where = resolve_device(device)
    positions, times = (torch.tensor(a, dtype=torch.float64, device=where) for a in (x, time))
    one = _PairBatch(windows, np.array([pair]), positions, times, graph if lambda_knn > 0 else None)
    with single_thread(where):
        plan = one.couplings(epsilon, lambda_time, lambda_knn, tol, max_iter).plan[0]
    result: NDArray[np.float64] = plan.cpu().numpy()
    return result


def end_cells(
    transport: TransportVelocity,
    windows: Windows,
    time: NDArray[np.float64],
    graph: sp.csr_matrix,
    backward: bool = False,
) -> NDArray[np.bool_]:
    """Return the cells at an end of the process, where none is known to go on.

    Parameters
    ----------
    transport, windows
        Velocities and the windows that they come from.
    time
        Time of each cell, shape ``[n_cells]``.
    graph
        Neighbour graph of shape ``[n_cells, n_cells]``.
    backward
        Whether to return the cells at a beginning instead.

    Returns
    -------
    Whether a cell has a window before and none after it, and no neighbour later by more than a quarter of the time from
    a window to its target; shape ``[n_cells]``.
    """
    if backward:
        gone, come, time = transport.n_backward, transport.n_forward, -time
    else:
        gone, come = transport.n_forward, transport.n_backward
    row = np.repeat(np.arange(time.size), np.diff(graph.indptr))
    ahead = np.zeros(time.size)
    np.maximum.at(ahead, row, np.where(graph.data != 0, time[graph.indices] - time[row], 0.0))
    return np.asarray((gone == 0) & (come > 0) & (ahead <= END_SHARE * windows.dt.mean()))


def check_velocity_options(
    epsilon: float,
    lambda_time: float,
    lambda_knn: float,
    reach: float | None,
    relaxation: float | str,
    tol: float,
    max_iter: int,
) -> None:
    """Refuse options of :func:`compute_velocity` that are out of range.

    Raises
    ------
    TypeError, ValueError
        If one is.
    """
    check_number("epsilon", epsilon, low=0, open_low=True)
    check_number("lambda_time", lambda_time, low=0)
    check_number("lambda_knn", lambda_knn, low=0)
    if reach is not None:
        check_number("reach", reach, low=0, open_low=True)
    if isinstance(relaxation, str):
        check_choice("relaxation", relaxation, ["auto"])
    else:
        check_number("relaxation", relaxation, low=0, high=1)
    check_number("tol", tol, low=0, open_low=True)
    check_integer("max_iter", max_iter, low=1)


@dataclass(frozen=True, eq=False)
class _Side:
    """What the displacements of one direction, forward or backward, come to for each cell."""

    velocity: NDArray[np.float64]
    spread: NDArray[np.float64]
    n_effective: NDArray[np.float64]
    disagreement: NDArray[np.float64]
    support: NDArray[np.float64]
    n: NDArray[np.int64]


class _Sums:
    """Sums over the window pairs of each cell, in one direction."""

    def __init__(self, n_cells: int, n_dims: int, device: torch.device) -> None:
        self.n_dims = n_dims
        # Columns: displacement, spread, time, effective number, squared speed, all weighted; weight; number of pairs.
        self.total = torch.zeros((n_cells, 2 * n_dims + 5), dtype=torch.float64, device=device)

    def add(self, cells: torch.Tensor, rows: torch.Tensor) -> None:
        """Add rows, shape ``[n, 2 * n_dims + 5]``, to those of their cells."""
        self.total.index_add_(0, cells, rows)

    def mean(self) -> _Side:
        """Return means; NaN and zeros where no pair contributed."""
        sums, d = self.total.cpu().numpy(), self.n_dims
        time, n_effective, square, weight, count = sums[:, 2 * d :].T
        known = weight > 0

        def over(values: NDArray[np.float64], by: NDArray[np.float64], fill: float = np.nan) -> NDArray[np.float64]:
            values = values.reshape(by.size, -1)
            result = np.full(values.shape, fill)
            return np.divide(values, by[:, None], out=result, where=known[:, None])

        velocity = over(sums[:, :d], time)
        return _Side(
            velocity=velocity,
            spread=over(sums[:, d : 2 * d], weight) / over(time, weight) ** 2,
            n_effective=over(n_effective, weight, fill=0.0)[:, 0],
            disagreement=np.maximum(over(square, weight)[:, 0] - np.sum(velocity**2, axis=1), 0.0),
            support=over(weight, count, fill=0.0)[:, 0],
            n=count.astype(np.int64),
        )


def _typical_square(
    solve: Callable[[NDArray[np.int64], float], tuple[_PairBatch, Couplings]],
    windows: Windows,
    use: NDArray[np.int64],
) -> float:
    """Return the median squared displacement over some pairs, spread over all."""
    pilot = use[:: max(1, use.size // PILOT_PAIRS)]
    squares = []
    for batch in _batches(windows, pilot):
        pair, couplings = solve(batch, PILOT_TOL)
        squares += pair.squares(couplings.plan)
    median = float(torch.cat(squares).median()) if squares else 0.0
    return median if median > 0 else np.inf


def _current(
    ahead: _Side, behind: _Side, residual: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the current velocity, the relaxation, and the balance of support, from -1 (backward) to 1 (forward).

    Where a direction lacks support, the relaxation is taken to be in proportion to the residual of the cell from the
    mean of its neighbours, as it is in the cells that have both.
    """
    total = ahead.support + behind.support
    balance = np.divide(ahead.support - behind.support, total, out=np.zeros_like(total), where=total > 0)
    two_sided = (ahead.n > 0) & (behind.n > 0)
    a, b = (np.nan_to_num(side.velocity) for side in (ahead, behind))
    measured = (a - b) / 2
    expected = np.zeros_like(a)
    even = two_sided & (np.abs(balance) < 0.5)
    if residual is not None:
        square = np.sum(residual[even] ** 2)
        expected = (np.sum(residual[even] * measured[even]) / square if square > 0 else 0.0) * residual
    m = balance[:, None]
    current = (1 + m) / 2 * a + (1 - m) / 2 * b - m * expected
    relaxing = (1 - np.abs(m)) * measured + np.abs(m) * expected
    none = (ahead.n + behind.n == 0)[:, None]
    return np.where(none, np.nan, current), np.where(none, np.nan, relaxing), balance


def _kept_share(
    relaxation: float | str,
    current: NDArray[np.float64],
    relaxing: NDArray[np.float64],
    residual: NDArray[np.float64] | None,
    lag: float,
) -> float:
    """Return the share F of :func:`compute_velocity`."""
    if not isinstance(relaxation, str):
        return float(relaxation)
    assert residual is not None
    size, of_relaxation = (float(np.sqrt(np.nansum(v**2))) for v in (current, relaxing))
    if of_relaxation == 0:
        return 0.0
    return min(structured_share(residual) * lag / RELAXATION_TIME, MAX_RELAXATION * size / of_relaxation)


class _PairBatch:
    """Window pairs of like size, padded to one shape; padding has no weight."""

    def __init__(
        self,
        windows: Windows,
        batch: NDArray[np.int64],
        positions: torch.Tensor,
        times: torch.Tensor,
        graph: sp.csr_matrix | None,
    ) -> None:
        device = positions.device
        source, source_real = _padded(windows, windows.pairs[batch, 0])
        target, target_real = _padded(windows, windows.pairs[batch, 1])
        self.adjacent = None
        if graph is not None:
            self.adjacent = torch.from_numpy(_adjacency(graph, source, target)).to(device)
        self.dt = torch.from_numpy(windows.dt[batch]).to(device)
        self.source, self.target = torch.from_numpy(source).to(device), torch.from_numpy(target).to(device)
        self.source_real, self.target_real = (torch.from_numpy(r).to(device) for r in (source_real, target_real))
        # Centred at the pair, so that the squared distances don't cancel far from the origin.
        centre = positions[self.target[:, :1]]
        self.x_source, self.x_target = positions[self.source] - centre, positions[self.target] - centre
        self.t_source, self.t_target = times[self.source], times[self.target]

    @property
    def source_weights(self) -> torch.Tensor:
        """Mass of each source cell, one in all, none for padding, shape ``[n_pairs, n_source]``."""
        return self.source_real / self.source_real.sum(1, keepdim=True, dtype=torch.float64)

    @property
    def target_weights(self) -> torch.Tensor:
        """Mass of each target cell, one in all, none for padding, shape ``[n_pairs, n_target]``."""
        return self.target_real / self.target_real.sum(1, keepdim=True, dtype=torch.float64)

    def cost(self, lambda_time: float, lambda_knn: float) -> torch.Tensor:
        """Return the costs, shape ``[n_pairs, n_source, n_target]``."""
        norms = self.x_source.square().sum(2, keepdim=True) + self.x_target.square().sum(2).unsqueeze(1)
        cost = torch.baddbmm(norms, self.x_source, self.x_target.transpose(1, 2), alpha=-2).clamp_(min=0)
        # Padding repeats a cell of the window, so that it changes no maximum.
        largest = cost.amax((1, 2), keepdim=True)
        cost /= torch.where(largest > 0, largest, 1.0)
        if lambda_time:
            cost.add_(self.t_source.unsqueeze(2) > self.t_target.unsqueeze(1), alpha=lambda_time)
        if self.adjacent is not None:
            cost += lambda_knn * ~self.adjacent
        return cost

    def couplings(self, epsilon: float, lambda_time: float, lambda_knn: float, tol: float, max_iter: int) -> Couplings:
        """Solve the transport of each pair."""
        cost = self.cost(lambda_time, lambda_knn)
        return sinkhorn(cost, self.source_weights, self.target_weights, epsilon, tol=tol, max_iter=max_iter)

    def squares(self, plan: torch.Tensor) -> list[torch.Tensor]:
        """Return the squared displacements, of sources forward and of targets backward."""
        return [d.square().sum(2)[counts] for _, counts, d, _, _ in self._sides(plan)]

    def add_to(self, forward: _Sums, backward: _Sums, plan: torch.Tensor, limit: float, reach: float) -> None:
        """Add what each cell has from its pair to its row: of sources forward, of targets backward."""
        for sums, (cells, counts, d, spread, n_effective) in zip((forward, backward), self._sides(plan), strict=True):
            # In units of the typical square, of which the limit has so many as the reach says.
            square = d.square().sum(2, keepdim=True)
            weight = torch.exp(-((square / limit - 1).clamp_(min=0) * reach).clamp_(max=MAX_EXCESS))
            time = self.dt[:, None, None].expand_as(weight)
            values = torch.cat([d, spread, time, n_effective, square / time**2, torch.ones_like(weight)], 2) * weight
            sums.add(cells[counts], torch.cat([values, torch.ones_like(weight)], dim=2)[counts])

    def _sides(self, plan: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield, forward and backward, the cells, which count, displacement, spread and effective number of places."""
        for plan_, x, other, cells, real, sign in (
            (plan, self.x_source, self.x_target, self.source, self._counting(1), 1),
            (plan.transpose(1, 2), self.x_target, self.x_source, self.target, self._counting(-1), -1),
        ):
            mass = plan_.sum(2, keepdim=True)
            mass = torch.where(mass > 0, mass, 1.0)
            place = torch.bmm(plan_, other) / mass
            spread = (torch.bmm(plan_, other.square()) / mass - place.square()).clamp_(min=0)
            square = plan_.square().sum(2, keepdim=True)
            n_effective = mass.square() / torch.where(square > 0, square, 1.0)
            yield cells, real, sign * (place - x), spread, n_effective

    def _counting(self, direction: int) -> torch.Tensor:
        """Return which sources (1) or targets (-1) take part: those with a neighbour on the other side, if asked."""
        mine, other = (self.source_real, self.target_real)[::direction]
        return mine if self.adjacent is None else mine & self._has_neighbor(other, 2 if direction > 0 else 1)

    def _has_neighbor(self, real: torch.Tensor, dim: Literal[1, 2]) -> torch.Tensor:
        """Return whether a cell has a neighbour among the real cells along a dimension."""
        assert self.adjacent is not None
        return (self.adjacent & real.unsqueeze(3 - dim)).any(dim)


def _batches(windows: Windows, use: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield pairs of like size, as many as the bound on the elements allows."""
    sizes = windows.sizes[windows.pairs[use]]
    order = use[np.lexsort((sizes[:, 1], sizes[:, 0]))]
    shape = windows.sizes[windows.pairs[order]]
    start = 0
    while start < order.size:
        # Sizes ascend, so a batch that starts here is at most as large as its last pair says.
        elements = np.arange(1, order.size - start + 1) * shape[start:, 0] * np.maximum.accumulate(shape[start:, 1])
        stop = start + max(1, int(np.searchsorted(elements, BATCH_ELEMENTS, side="right")))
        yield order[start:stop]
        start = stop


def _padded(windows: Windows, which: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the cells of some windows, shape ``[n, longest]``, and which of them are no padding."""
    sizes = windows.sizes[which]
    position = np.arange(int(sizes.max()))
    real = position < sizes[:, None]
    entries = windows.offsets[which][:, None] + np.minimum(position, sizes[:, None] - 1)
    return windows.indices[entries], real


def _adjacency(graph: sp.csr_matrix, source: NDArray[np.int64], target: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which target cells are neighbours of which source cells, shape ``[n, n_source, n_target]``."""
    n, n_source, n_target = source.shape[0], source.shape[1], target.shape[1]
    rows = source.ravel()
    start, degree = graph.indptr[rows].astype(np.int64), np.diff(graph.indptr)[rows].astype(np.int64)
    entry = np.repeat(start - np.cumsum(degree) + degree, degree) + np.arange(degree.sum())
    slot = np.repeat(np.arange(rows.size), degree)  # source cell of each edge, counted through the batch
    kept = graph.data[entry] != 0
    slot, neighbour = slot[kept], graph.indices[entry[kept]].astype(np.int64)

    # A key joins the pair and the cell, so that one search serves the whole batch.
    n_cells = graph.shape[0]
    keys = (np.arange(n)[:, None] * n_cells + target).ravel()
    order = np.argsort(keys, kind="stable")
    wanted = slot // n_source * n_cells + neighbour
    place = np.searchsorted(keys, wanted, sorter=order)
    found = place < keys.size
    found[found] = keys[order[place[found]]] == wanted[found]
    adjacent = np.zeros((n * n_source, n_target), dtype=np.bool_)
    adjacent[slot[found], order[place[found]] % n_target] = True
    return adjacent.reshape(n, n_source, n_target)


def report_convergence(converged: NDArray[np.bool_], error: NDArray[np.float64]) -> None:
    """Say how many couplings did not converge, if any, and how far they are off."""
    if not converged.all():
        # Below this error a plan moves no velocity that anyone could see.
        level = logging.WARNING if error.max() > 1e-3 else logging.INFO
        logger.log(
            level,
            "%d of %d couplings did not converge (largest marginal error %.1e). Raise `max_iter` or `epsilon`",
            (~converged).sum(),
            converged.size,
            error.max(),
        )
