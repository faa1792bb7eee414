"""Velocity of each cell from the couplings of its windows.

Depends on transport and windows, numpy, scipy and torch; knows no AnnData.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from cellrank_velot._device import resolve_device, single_thread
from cellrank_velot._stage import Stage
from cellrank_velot._validation import check_integer, check_number
from cellrank_velot.transport import sinkhorn
from cellrank_velot.windows import Windows

__all__ = ["TransportVelocity", "compute_velocity"]

logger = logging.getLogger("cellrank_velot")

# Elements of the cost matrices solved together: small enough for a processor's cache, large enough to hide the
# cost of a call (found by tests/benchmarks/transport_speed.py).
BATCH_ELEMENTS = 2**17


@dataclass(frozen=True, slots=True, eq=False)
class TransportVelocity(Stage):
    """Optimal-transport velocity of each cell.

    Attributes
    ----------
    velocity
        Velocity in units of the basis per unit of time, shape ``[n_cells, n_dims]``; NaN without an estimate.
    n_windows
        Number of window pairs that contributed to each cell, shape ``[n_cells]``.
    converged
        Whether the coupling of each window pair converged, shape ``[n_pairs]``.
    marginal_error
        Total absolute deviation of each coupling from its marginal, shape ``[n_pairs]``; NaN where the pair has
        no difference in time and was left out.
    """

    velocity: NDArray[np.float64]
    n_windows: NDArray[np.int64]
    converged: NDArray[np.bool_]
    marginal_error: NDArray[np.float64]

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
    lambda_knn: float = 1.0,
    tol: float = 1e-6,
    max_iter: int = 500,
    device: str = "auto",
    show_progress_bar: bool = False,
) -> TransportVelocity:
    r"""Transport each window to its target and average the displacements of each cell.

    The cost of moving cell i to cell j is :math:`\|x_i - x_j\|^2` over its maximum in the pair, plus
    ``lambda_time`` where j is earlier than i, plus ``lambda_knn`` where j is no neighbour of i. The displacement of a
    cell is barycentric, :math:`\sum_j P_{ij} x_j / \sum_j P_{ij} - x_i`; its velocity is the sum of its
    displacements over the sum of the time between its windows. A cell without a neighbour in the target window
    takes nothing from that pair.

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
        Cost of going to a cell that is no neighbour.
    tol, max_iter
        Tolerance and bound of the solver, see :func:`cellrank_velot.transport.sinkhorn`.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or another torch device.
    show_progress_bar
        Whether to show a progress bar.

    Raises
    ------
    ValueError
        If a parameter is out of range.
    """
    check_number("epsilon", epsilon, low=0, open_low=True)
    check_number("lambda_time", lambda_time, low=0)
    check_number("lambda_knn", lambda_knn, low=0)
    check_number("tol", tol, low=0, open_low=True)
    check_integer("max_iter", max_iter, low=1)
    where = resolve_device(device)
    use = np.flatnonzero(windows.dt > 0)
    if use.size < windows.n_pairs:
        logger.warning("Left out %d window pairs without a difference in time", windows.n_pairs - use.size)
    graph = graph if lambda_knn > 0 else None

    total = torch.zeros((x.shape[0], x.shape[1] + 2), dtype=torch.float64, device=where)
    converged = np.zeros(windows.n_pairs, dtype=np.bool_)
    error = np.full(windows.n_pairs, np.nan)
    positions = torch.tensor(x, device=where)
    times = torch.tensor(time, device=where)
    bar = tqdm(total=use.size, desc="transport", unit="pair", disable=not show_progress_bar)
    with bar, single_thread(where):
        for batch in _batches(windows, use):
            pair = _PairBatch(windows, batch, positions, times, graph)
            couplings = sinkhorn(
                pair.cost(lambda_time, lambda_knn),
                pair.source_weights,
                pair.target_weights,
                epsilon,
                tol=tol,
                max_iter=max_iter,
            )
            pair.add_to(total, couplings.plan)
            converged[batch] = couplings.converged.cpu().numpy()
            error[batch] = couplings.marginal_error.cpu().numpy()
            bar.update(batch.size)

    sums = total.cpu().numpy()
    n_windows = sums[:, -1].astype(np.int64)
    velocity = np.full(x.shape, np.nan)
    np.divide(sums[:, :-2], sums[:, -2:-1], out=velocity, where=n_windows[:, None] > 0)
    _report(n_windows, converged[use], error[use])
    return TransportVelocity(velocity, n_windows, converged, error)


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
        return self.source_real / self.source_real.sum(1, keepdim=True, dtype=torch.float64)

    @property
    def target_weights(self) -> torch.Tensor:
        return self.target_real / self.target_real.sum(1, keepdim=True, dtype=torch.float64)

    def cost(self, lambda_time: float, lambda_knn: float) -> torch.Tensor:
        """Return the costs, shape ``[n_pairs, n_source, n_target]``."""
        cost = torch.cdist(self.x_source, self.x_target).square_()
        real = self.source_real.unsqueeze(2) & self.target_real.unsqueeze(1)
        largest = torch.where(real, cost, 0.0).amax((1, 2), keepdim=True)
        cost /= torch.where(largest > 0, largest, 1.0)
        cost += lambda_time * (self.t_source.unsqueeze(2) > self.t_target.unsqueeze(1))
        if self.adjacent is not None:
            cost += lambda_knn * ~self.adjacent
        return cost

    def add_to(self, total: torch.Tensor, plan: torch.Tensor) -> None:
        """Add each source cell's displacement, time and count to its row of ``total``."""
        mass = plan.sum(2, keepdim=True)
        displacement = torch.bmm(plan, self.x_target) / torch.where(mass > 0, mass, 1.0) - self.x_source
        counts = self.source_real if self.adjacent is None else self.source_real & self._has_neighbour()
        one = torch.ones_like(displacement[..., :1])
        rows = torch.cat([displacement, self.dt[:, None, None] * one, one], dim=2)[counts]
        total.index_add_(0, self.source[counts], rows)

    def _has_neighbour(self) -> torch.Tensor:
        assert self.adjacent is not None
        return (self.adjacent & self.target_real.unsqueeze(1)).any(2)


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
        logger.warning(
            "%d of %d couplings did not converge (largest marginal error %.1e). Raise `max_iter` or `epsilon`",
            (~converged).sum(),
            converged.size,
            error.max(),
        )
    if (n_windows == 0).any():
        logger.info("%d of %d cells have no estimate from transport", (n_windows == 0).sum(), n_windows.size)
