"""Velocity of each cell from the couplings of its windows.

Depends on transport and windows, numpy, scipy and torch; knows no AnnData.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
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
from cellrank_velot.transport import sinkhorn
from cellrank_velot.windows import Windows

__all__ = ["TransportVelocity", "check_velocity_options", "compute_velocity", "noise_filter"]

logger = logging.getLogger("cellrank_velot")

# Elements of the cost matrices solved together: small enough for a processor's cache, large enough to hide the
# cost of a call. From 2**16 to 2**19 the time of 3000 cells differed by less than a tenth.
BATCH_ELEMENTS = 2**17


@dataclass(frozen=True, slots=True, eq=False)
class TransportVelocity(Stage):
    """Optimal-transport velocity of each cell.

    Attributes
    ----------
    velocity
        Velocity in units of the basis per unit of time, shape ``[n_cells, n_dims]``; NaN without an estimate.
    n_forward, n_backward
        Number of window pairs that a cell goes out from and comes in by, shape ``[n_cells]``.
    converged
        Whether the coupling of each window pair converged, shape ``[n_pairs]``.
    marginal_error
        Euclidean norm of the deviation of each coupling from its marginal, shape ``[n_pairs]``; NaN where the pair has
        no difference in time and was left out.
    """

    velocity: NDArray[np.float64]
    n_forward: NDArray[np.int64]
    n_backward: NDArray[np.int64]
    converged: NDArray[np.bool_]
    marginal_error: NDArray[np.float64]

    @property
    def n_windows(self) -> NDArray[np.int64]:
        """Number of window pairs that contributed to each cell, shape ``[n_cells]``."""
        return self.n_forward + self.n_backward

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Share of the most window pairs that any cell has, in ``[0, 1]``, shape ``[n_cells]``."""
        return self.n_windows / max(int(self.n_windows.max()), 1)

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
    relaxation
        Share of the relaxation to the manifold that is kept: ``1`` is the forward velocity, which VelOT reports,
        ``0`` the current velocity. ``"auto"`` keeps, in each direction of the basis, what exceeds the noise floor,
        see :func:`noise_filter`; it needs ``graph``. A cell that has one of both velocities takes its relaxation from
        its residual to the mean of its neighbours; without a graph it keeps that velocity as it is.
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
    check_velocity_options(epsilon, lambda_time, lambda_knn, relaxation, tol, max_iter)
    keep = _relaxation(x, graph, relaxation)
    where = resolve_device(device)
    use = np.flatnonzero(windows.dt > 0)
    if use.size < windows.n_pairs:
        logger.warning("Left out %d window pairs without a difference in time", windows.n_pairs - use.size)
    penalised = graph if lambda_knn > 0 else None

    # Columns: displacement, time and number of pairs.
    forward = torch.zeros((x.shape[0], x.shape[1] + 2), dtype=torch.float64, device=where)
    backward = torch.zeros_like(forward)
    converged = np.zeros(windows.n_pairs, dtype=np.bool_)
    error = np.full(windows.n_pairs, np.nan)
    positions, times = (torch.tensor(a, dtype=torch.float64, device=where) for a in (x, time))
    bar = tqdm(total=use.size, desc="transport", unit="pair", disable=not show_progress_bar)
    with bar, single_thread(where):
        for batch in _batches(windows, use):
            pair = _PairBatch(windows, batch, positions, times, penalised)
            cost = pair.cost(lambda_time, lambda_knn)
            couplings = sinkhorn(cost, pair.source_weights, pair.target_weights, epsilon, tol=tol, max_iter=max_iter)
            pair.add_to(forward, backward, couplings.plan)
            converged[batch] = couplings.converged.cpu().numpy()
            error[batch] = couplings.marginal_error.cpu().numpy()
            bar.update(batch.size)

    ahead, n_ahead = _mean_velocity(forward)
    behind, n_behind = _mean_velocity(backward)
    velocity = _combined(ahead, behind, None if graph is None else _residuals(x, graph), keep)
    _report(n_ahead + n_behind, converged[use], error[use])
    return TransportVelocity(velocity, n_ahead, n_behind, converged, error)


def check_velocity_options(
    epsilon: float, lambda_time: float, lambda_knn: float, relaxation: float | str, tol: float, max_iter: int
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
    if isinstance(relaxation, str):
        check_choice("relaxation", relaxation, ["auto"])
    else:
        check_number("relaxation", relaxation, low=0, high=1)
    check_number("tol", tol, low=0, open_low=True)
    check_integer("max_iter", max_iter, low=1)


def noise_filter(x: NDArray[np.float64], graph: sp.csr_matrix) -> NDArray[np.float64]:
    r"""Return the matrix that keeps of a deviation from the manifold what exceeds the noise floor.

    The residuals of the cells from the mean of their neighbours have, in each principal direction, a variance
    :math:`s_k`. Noise of measurement has one variance in all of them: the smallest, :math:`s`, of those that reach a
    tenth of their median. What exceeds it is structure, and a direction keeps the share :math:`(1 - s / s_k)^2` of a
    deviation. The share without the square is the gain of a Wiener filter. The square and the smallest variance as the
    floor are no theory: of a few such rules they gave the best trade on the sets of ``docs/accuracy.md``.

    Parameters
    ----------
    x
        Positions of shape ``[n_cells, n_dims]``.
    graph
        Neighbour graph of shape ``[n_cells, n_cells]``.

    Returns
    -------
    Symmetric matrix of shape ``[n_dims, n_dims]`` with eigenvalues in ``[0, 1]``.
    """
    residual = _residuals(x, graph)
    variance, directions = np.linalg.eigh(residual.T @ residual / residual.shape[0])
    floor = variance[variance >= np.median(variance) / 10].min()
    gain = np.clip(1 - floor / np.maximum(variance, np.finfo(np.float64).tiny), 0, 1) ** 2
    return (directions * gain) @ directions.T


def _relaxation(x: NDArray[np.float64], graph: sp.csr_matrix | None, relaxation: float | str) -> NDArray[np.float64]:
    """Return the matrix F of :func:`compute_velocity`."""
    if isinstance(relaxation, str):
        if graph is None:
            raise ValueError("Expected a neighbour graph for `relaxation='auto'`, found none.")
        return noise_filter(x, graph)
    return relaxation * np.eye(x.shape[1])


def _residuals(x: NDArray[np.float64], graph: sp.csr_matrix) -> NDArray[np.float64]:
    """Return the way from each cell to the mean of its neighbours, zero without any, shape ``[n_cells, n_dims]``."""
    degree = np.asarray(graph.sum(axis=1)).reshape(-1, 1)
    return np.where(degree > 0, graph @ x / np.where(degree > 0, degree, 1.0) - x, 0.0)


def _combined(
    ahead: NDArray[np.float64],
    behind: NDArray[np.float64],
    residual: NDArray[np.float64] | None,
    keep: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the current velocity plus what is kept of the relaxation.

    Where a cell has one of both velocities, its relaxation is taken to be in proportion to its residual from the mean
    of its neighbours, as it is in the cells that have both.
    """
    forward_only = np.asarray(np.isnan(behind).any(axis=1))
    two_sided = ~forward_only & ~np.asarray(np.isnan(ahead).any(axis=1))
    relaxation = (ahead - behind) / 2
    if residual is not None:
        square = np.sum(residual[two_sided] ** 2)
        rate = np.sum(residual[two_sided] * relaxation[two_sided]) / square if square > 0 else 0.0
        relaxation[~two_sided] = rate * residual[~two_sided]
    else:
        relaxation[~two_sided] = 0.0
    one_sided = np.where(forward_only[:, None], ahead - relaxation, behind + relaxation)
    current = np.where(two_sided[:, None], (ahead + behind) / 2, one_sided)
    return np.asarray(current + relaxation @ keep)


def _mean_velocity(total: torch.Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return displacement over time, NaN where no pair contributed, and the number of pairs."""
    sums = total.cpu().numpy()
    counts = sums[:, -1].astype(np.int64)
    velocity = np.full((sums.shape[0], sums.shape[1] - 2), np.nan)
    np.divide(sums[:, :-2], sums[:, -2:-1], out=velocity, where=counts[:, None] > 0)
    return velocity, counts


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

    def add_to(self, forward: torch.Tensor, backward: torch.Tensor, plan: torch.Tensor) -> None:
        """Add displacement, time and count of each cell to its row: of sources forward, of targets backward."""
        ahead = self.source_real if self.adjacent is None else self.source_real & self._reach(self.target_real, 2)
        behind = self.target_real if self.adjacent is None else self.target_real & self._reach(self.source_real, 1)
        goal = torch.bmm(plan, self.x_target) / _mass(plan, 2)
        self._add(forward, self.source, goal - self.x_source, ahead)
        origin = torch.bmm(plan.transpose(1, 2), self.x_source) / _mass(plan, 1)
        self._add(backward, self.target, self.x_target - origin, behind)

    def _add(self, total: torch.Tensor, cells: torch.Tensor, displacement: torch.Tensor, counts: torch.Tensor) -> None:
        one = torch.ones_like(displacement[..., :1])
        rows = torch.cat([displacement, self.dt[:, None, None] * one, one], dim=2)
        total.index_add_(0, cells[counts], rows[counts])

    def _reach(self, real: torch.Tensor, dim: Literal[1, 2]) -> torch.Tensor:
        """Return whether a cell has a neighbour among the real cells along a dimension."""
        assert self.adjacent is not None
        return (self.adjacent & real.unsqueeze(3 - dim)).any(dim)


def _mass(plan: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the mass of each cell, one for padding, shape ``[n, n_cells, 1]``."""
    mass = plan.sum(dim).unsqueeze(2)
    return torch.where(mass > 0, mass, 1.0)


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


def _report(n_windows: NDArray[np.int64], converged: NDArray[np.bool_], error: NDArray[np.float64]) -> None:
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
    if (n_windows == 0).any():
        logger.info("%d of %d cells have no estimate from transport", (n_windows == 0).sum(), n_windows.size)
