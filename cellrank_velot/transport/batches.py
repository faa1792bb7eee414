"""Pairs of windows in padded batches, in torch: their costs, couplings, and the displacement of each cell.

``compiled`` does the same in loops, for one pair after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellrank_velot._utils.device import as_tensor
from cellrank_velot._utils.lazy import torch
from cellrank_velot.transport.compiled import MAX_EXCESS
from cellrank_velot.transport.problem import TransportOptions, TransportProblem
from cellrank_velot.transport.sinkhorn import Couplings, sinkhorn

__all__ = ["PaddedPairs", "like_sized"]


def like_sized(shape: NDArray[np.int64], bound: int) -> Iterator[NDArray[np.int64]]:
    """Yield pairs of similar size, whose padded plans have at most ``bound`` elements, given sizes ``[n_pairs, 2]``."""
    order = np.lexsort((shape[:, 1], shape[:, 0]))
    shape = shape[order]
    start = 0
    while start < order.size:
        # Sizes ascend, so a batch that starts here is at most as large as its last pair says.
        elements = np.arange(1, order.size - start + 1) * shape[start:, 0] * np.maximum.accumulate(shape[start:, 1])
        stop = start + max(1, int(np.searchsorted(elements, bound, side="right")))
        yield order[start:stop]
        start = stop


class PaddedPairs:
    """Window pairs of like size, padded to one shape; padding has no weight."""

    def __init__(
        self,
        indices: NDArray[np.int64],
        offsets: NDArray[np.int64],
        pairs: NDArray[np.int64],
        dt: NDArray[np.float64],
        positions: torch.Tensor,
        times: torch.Tensor,
        graph: sp.csr_matrix | None,
    ) -> None:
        device = positions.device
        source, source_real = _padded(indices, offsets, pairs[:, 0])
        target, target_real = _padded(indices, offsets, pairs[:, 1])
        self.adjacent = None
        if graph is not None:
            self.adjacent = torch.from_numpy(_adjacency(graph, source, target)).to(device)
        self.dt = as_tensor(dt, device)
        self.source, self.target = torch.from_numpy(source).to(device), torch.from_numpy(target).to(device)
        self.source_real, self.target_real = (torch.from_numpy(r).to(device) for r in (source_real, target_real))
        # Centred at the pair, so that the squared distances don't cancel far from the origin.
        centre = positions[self.target[:, :1]]
        self.x_source, self.x_target = positions[self.source] - centre, positions[self.target] - centre
        self.t_source, self.t_target = times[self.source], times[self.target]

    @classmethod
    def of(
        cls, problem: TransportProblem, which: NDArray[np.int64], positions: torch.Tensor, times: torch.Tensor
    ) -> PaddedPairs:
        """Return some pairs of windows, of cells that are on the device."""
        windows = problem.windows
        pairs, dt = windows.pairs[which], windows.dt[which]
        return cls(windows.indices, windows.offsets, pairs, dt, positions, times, problem.graph)

    @property
    def source_weights(self) -> torch.Tensor:
        """Mass of each source cell, one in all, none for padding, shape ``[n_pairs, n_source]``."""
        return self.source_real / self.source_real.sum(1, keepdim=True, dtype=self.dt.dtype)

    @property
    def target_weights(self) -> torch.Tensor:
        """Mass of each target cell, one in all, none for padding, shape ``[n_pairs, n_target]``."""
        return self.target_real / self.target_real.sum(1, keepdim=True, dtype=self.dt.dtype)

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

    def couplings(self, options: TransportOptions) -> Couplings:
        """Solve the transport of each pair."""
        cost = self.cost(options.lambda_time, options.lambda_knn)
        weights = self.source_weights, self.target_weights
        return sinkhorn(cost, *weights, options.epsilon, tol=options.tol, max_iter=options.max_iter)

    def squares(self, plan: torch.Tensor) -> list[torch.Tensor]:
        """Return the squared displacements, of sources forward and of targets backward."""
        return [d.square().sum(2)[counts] for _, counts, d, _, _ in self._sides(plan)]

    def addends(
        self, plan: torch.Tensor, limit: float, reach: float, cells: torch.Tensor | None = None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return rows and values to add to :attr:`CellSums.total`, of sources forward and of targets backward.

        Rows are those of all cells, or of ``cells``, which ascend.
        """
        result = []
        for of, counts, d, spread, n_effective in self._sides(plan):
            # Beyond the limit, the weight falls exponentially with the excess over the median, limit / reach.
            square = d.square().sum(2, keepdim=True)
            weight = torch.exp(-((square / limit - 1).clamp_(min=0) * reach).clamp_(max=MAX_EXCESS))
            time = self.dt[:, None, None].expand_as(weight)
            values = torch.cat([d, spread, time, n_effective, square / time**2, torch.ones_like(weight)], 2) * weight
            rows = of[counts] if cells is None else torch.searchsorted(cells, of[counts])
            result.append((rows, torch.cat([values, torch.ones_like(weight)], dim=2)[counts]))
        return result

    def _sides(self, plan: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield, forward and backward: cells, which count, displacement, spread and effective number of partners."""
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
        """Return which sources (1) or targets (-1) count; with a graph, those with a neighbour in the other window."""
        mine, other = (self.source_real, self.target_real)[::direction]
        return mine if self.adjacent is None else mine & self._has_neighbor(other, 2 if direction > 0 else 1)

    def _has_neighbor(self, real: torch.Tensor, dim: Literal[1, 2]) -> torch.Tensor:
        """Return whether a cell has a neighbour among the real cells along a dimension."""
        assert self.adjacent is not None
        return (self.adjacent & real.unsqueeze(3 - dim)).any(dim)


def _padded(
    indices: NDArray[np.int64], offsets: NDArray[np.int64], which: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the cells of some windows, shape ``[n, longest]``, and which of them are no padding."""
    sizes = np.diff(offsets)[which]
    position = np.arange(int(sizes.max()))
    real = position < sizes[:, None]
    entries = offsets[which][:, None] + np.minimum(position, sizes[:, None] - 1)
    return indices[entries], real


def _adjacency(graph: sp.csr_matrix, source: NDArray[np.int64], target: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which target cells are neighbours of which source cells, shape ``[n, n_source, n_target]``."""
    n, n_source, n_target = source.shape[0], source.shape[1], target.shape[1]
    rows = source.ravel()
    start, degree = graph.indptr[rows].astype(np.int64), np.diff(graph.indptr)[rows].astype(np.int64)
    entry = np.repeat(start - np.cumsum(degree) + degree, degree) + np.arange(degree.sum())
    slot = np.repeat(np.arange(rows.size), degree)  # source cell of each edge, counted through the batch
    kept = graph.data[entry] != 0
    slot, neighbour = slot[kept], graph.indices[entry[kept]].astype(np.int64)

    # One number for the pair and the cell, so that one search serves the whole batch.
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
