"""Transport of pairs of windows, and what each cell has from the pairs of its windows in sum.

On the processor one pair after the other in compiled loops, in as many threads, processes or machines as there are; on
another device in padded batches. Depends on compiled, transport and windows, numpy, scipy and torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from cellrank_velot._device import as_tensor, in_parts, single_thread
from cellrank_velot._parallel import count_jobs, run
from cellrank_velot.compiled import MAX_EXCESS, add_rows, transport_pairs
from cellrank_velot.transport import Couplings, sinkhorn
from cellrank_velot.windows import Windows

__all__ = ["PairCosts", "PairSums", "memory_of_sums", "pair_plan", "sum_pairs", "typical_square"]

# Elements of the cost matrices solved together: on a processor small enough for its cache, elsewhere as large as hides
# the cost of a call, and takes little memory.
BATCH_ELEMENTS = {"cpu": 2**17, "other": 2**23}
# Pairs of one task, by the elements of their cost matrices: some hundredths of a second.
TASK_ELEMENTS = 2**21
# Tasks that have been done and wait to be added, at most, for each job, where memory is short.
TASKS_WAITING = 2
# Pairs that are solved beforehand to learn what a typical displacement is.
PILOT_PAIRS = 64
# Tolerance to which: a median needs no more.
PILOT_TOL = 1e-3
_NO_GRAPH = (np.zeros(1, np.int32), np.zeros(0, np.int32), np.zeros(0))


@dataclass(frozen=True)
class PairCosts:
    """What moving costs, and how exactly the transport is solved; see :func:`cellrank_velot.velocity.compute_velocity`.

    Attributes
    ----------
    epsilon, lambda_time, lambda_knn
        Regularisation, and what going back in time or to no neighbour costs.
    tol, max_iter
        Tolerance and bound on the iterations.
    """

    epsilon: float
    lambda_time: float
    lambda_knn: float
    tol: float
    max_iter: int


@dataclass(frozen=True, eq=False)
class PairSums:
    """Sums over the window pairs of each cell.

    Attributes
    ----------
    cells
        Cell of each row of the sums, shape ``[n_cells]``.
    total
        Forward and backward, shape ``[2, n_cells, 2 * n_dims + 5]``. Columns are displacement, spread, time, effective
        number of places and squared speed, all weighted, the weight, and the number of pairs.
    converged
        Whether the coupling of each pair converged, shape ``[n_pairs]``.
    marginal_error
        Deviation of each coupling from its marginal, shape ``[n_pairs]``; NaN where the pair was left out.
    """

    cells: NDArray[np.int64]
    total: NDArray[np.float64]
    converged: NDArray[np.bool_]
    marginal_error: NDArray[np.float64]


def sum_pairs(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    windows: Windows,
    use: NDArray[np.int64],
    graph: sp.csr_matrix | None,
    costs: PairCosts,
    limit: float,
    reach: float,
    device: torch.device,
    *,
    n_jobs: int | None = None,
    few_at_a_time: bool = False,
    show_progress_bar: bool = False,
) -> PairSums:
    """Transport each window to its target and sum what its cells have from that.

    Parameters
    ----------
    x, time
        Positions of shape ``[n_cells, n_dims]``, and the time of each cell.
    windows, use
        Windows, and the pairs to take.
    graph
        Neighbour graph, where ``lambda_knn`` is above zero.
    costs
        Costs and options of the solver.
    limit, reach
        Squared displacement up to which one counts in full, and that in units of the typical one.
    device
        Where to do it.
    n_jobs
        See :func:`cellrank_velot._parallel.run`.
    few_at_a_time
        Whether to wait with tasks until the sums of those before are added.
    show_progress_bar
        Whether to show a progress bar.
    """
    options = (costs if graph is not None else replace(costs, lambda_knn=0.0), limit, reach)
    if device.type == "cpu":
        return _sum_in_loops(x, time, windows, use, graph, options, n_jobs, few_at_a_time, show_progress_bar)
    return _sum_in_batches(x, time, windows, use, graph, options, device, show_progress_bar)


def memory_of_sums(
    x: NDArray[np.float64], windows: Windows, use: NDArray[np.int64], graph: sp.csr_matrix | None
) -> tuple[float, float]:
    """Return the bytes that :func:`sum_pairs` takes on the CPU in any case, and those of one job."""
    n_cells, n_dims = x.shape
    row = 2 * 8 * (2 * n_dims + 5)
    # Cells in another order, their windows, their graph; sums of all cells.
    fixed = n_cells * 8 * (n_dims + 5) + 8 * windows.indices.size + (24 * graph.nnz if graph is not None else 0)
    entries = [int(windows.sizes[np.unique(windows.pairs[part])].sum()) for part in _tasks(windows, use)]
    plans = 4 * 8 * int(windows.sizes.max(initial=0)) ** 2
    return fixed + n_cells * row, (1 + TASKS_WAITING) * max(entries, default=0) * row + plans


def typical_square(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    windows: Windows,
    use: NDArray[np.int64],
    graph: sp.csr_matrix | None,
    costs: PairCosts,
    device: torch.device,
) -> float:
    """Return the median squared displacement over some pairs, spread over all; parameters are as in `sum_pairs`."""
    pilot = use[:: max(1, use.size // PILOT_PAIRS)]
    rough = replace(costs, tol=PILOT_TOL)
    squares = []
    positions, times = as_tensor(x, device), as_tensor(time, device)

    def squares_of(chosen: NDArray[np.int64]) -> list[torch.Tensor]:
        batch = _PairBatch.of(windows, pilot[chosen], positions, times, graph)
        return batch.squares(batch.couplings(rough).plan)

    with single_thread(device):
        batches = _batches(windows.sizes[windows.pairs[pilot]], BATCH_ELEMENTS["cpu"])
        for _, found in in_parts(squares_of, batches, "transport"):
            squares += found
    median = float(torch.cat(squares).median()) if squares else 0.0
    return median if median > 0 else np.inf


def pair_plan(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    windows: Windows,
    pair: int,
    graph: sp.csr_matrix | None,
    costs: PairCosts,
    device: torch.device,
) -> NDArray[np.float64]:
    """Return the plan of one pair, shape ``[n_source, n_target]``; parameters are as in `sum_pairs`."""
    batch = _PairBatch.of(windows, np.array([pair]), as_tensor(x, device), as_tensor(time, device), graph)
    with single_thread(device):
        plan = batch.couplings(costs).plan[0]
    result: NDArray[np.float64] = plan.cpu().numpy()
    return result


def _sum_in_batches(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    windows: Windows,
    use: NDArray[np.int64],
    graph: sp.csr_matrix | None,
    options: tuple[PairCosts, float, float],
    device: torch.device,
    show_progress_bar: bool,
) -> PairSums:
    """Do what :func:`sum_pairs` does in padded batches."""
    costs, limit, reach = options
    error = np.full(windows.n_pairs, np.nan)
    positions, times = as_tensor(x, device), as_tensor(time, device)
    total = torch.zeros((2, x.shape[0], 2 * x.shape[1] + 5), dtype=positions.dtype, device=device)

    def solve(chosen: NDArray[np.int64]) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], NDArray[np.float64]]:
        batch = _PairBatch.of(windows, use[chosen], positions, times, graph)
        couplings = batch.couplings(costs)
        return batch.addends(couplings.plan, limit, reach), couplings.marginal_error.cpu().numpy()

    batches = _batches(windows.sizes[windows.pairs[use]], BATCH_ELEMENTS["other"])
    with tqdm(total=use.size, desc="transport", unit="pair", disable=not show_progress_bar) as bar:
        # Added here: of a batch that is done again in halves, nothing must have been added.
        for chosen, (addends, errors) in in_parts(solve, batches, "transport"):
            for side, (rows, values) in zip(total, addends, strict=True):
                side.index_add_(0, rows, values)
            error[use[chosen]] = errors
            bar.update(chosen.size)
    sums = total.cpu().numpy().astype(np.float64)
    return PairSums(np.arange(x.shape[0]), sums, error <= costs.tol, error)


def _sum_in_loops(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    windows: Windows,
    use: NDArray[np.int64],
    graph: sp.csr_matrix | None,
    options: tuple[PairCosts, float, float],
    n_jobs: int | None,
    few_at_a_time: bool,
    show_progress_bar: bool,
) -> PairSums:
    """Do what :func:`sum_pairs` does in compiled loops."""
    parts = _tasks(windows, use)
    # Cells of one window are brought together in memory: from all over it, they would be waited for.
    order = np.lexsort((time, windows.cluster))
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    if graph is not None:
        graph = graph[order][:, order]
    adjacency = _NO_GRAPH if graph is None else (graph.indptr, graph.indices, graph.data)
    shared = (x[order], time[order], rank[windows.indices], windows.offsets, *adjacency, *options)
    found = run(
        _sum_task,
        [(windows.pairs[part], windows.dt[part]) for part in parts],
        shared,
        n_jobs=n_jobs,
        desc="transport",
        show_progress_bar=show_progress_bar,
        at_a_time=(1 + TASKS_WAITING) * count_jobs(n_jobs) if few_at_a_time else None,
    )
    total = np.zeros((2, x.shape[0], 2 * x.shape[1] + 5))
    error = np.full(windows.n_pairs, np.nan)
    with closing(found):
        for part, (cells, sums, errors) in zip(parts, found, strict=True):
            add_rows(total, cells, sums)
            error[part] = errors
    return PairSums(order, total, error <= options[0].tol, error)


def _sum_task(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    indices: NDArray[np.int64],
    offsets: NDArray[np.int64],
    indptr: NDArray[np.int32],
    neighbors: NDArray[np.int32],
    weights: NDArray[np.float64],
    costs: PairCosts,
    limit: float,
    reach: float,
    pairs: NDArray[np.int64],
    dt: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the cells of some pairs, their sums, and the error of each pair."""
    used = np.unique(pairs)
    cells = np.unique(np.concatenate([indices[offsets[window] : offsets[window + 1]] for window in used]))
    total, error = transport_pairs(
        *(x, time, indices, offsets, (indptr, neighbors, weights), pairs, dt, cells),
        (float(costs.epsilon), float(costs.lambda_time), float(costs.lambda_knn)),
        (float(costs.tol), int(costs.max_iter)),
        (float(limit), float(reach)),
    )
    left = np.flatnonzero(error < 0)
    if left.size:
        # Their scalings left the safe range: the other solver works in the log domain.
        graph = sp.csr_matrix((weights, neighbors, indptr), shape=(x.shape[0],) * 2) if costs.lambda_knn > 0 else None
        positions, times = (as_tensor(values, torch.device("cpu")) for values in (x, time))
        sums = torch.from_numpy(total)
        for part in _batches(np.diff(offsets)[pairs[left]], BATCH_ELEMENTS["cpu"]):
            chosen = left[part]
            batch = _PairBatch(indices, offsets, pairs[chosen], dt[chosen], positions, times, graph)
            couplings = batch.couplings(costs)
            batch.add_to(sums, couplings.plan, limit, reach, torch.from_numpy(cells))
            error[chosen] = couplings.marginal_error.numpy()
    return cells, total, error


class _PairBatch:
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
        cls,
        windows: Windows,
        which: NDArray[np.int64],
        positions: torch.Tensor,
        times: torch.Tensor,
        graph: sp.csr_matrix | None,
    ) -> _PairBatch:
        """Return some pairs of windows."""
        pairs, dt = windows.pairs[which], windows.dt[which]
        return cls(windows.indices, windows.offsets, pairs, dt, positions, times, graph)

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

    def couplings(self, costs: PairCosts) -> Couplings:
        """Solve the transport of each pair."""
        cost = self.cost(costs.lambda_time, costs.lambda_knn)
        weights = self.source_weights, self.target_weights
        return sinkhorn(cost, *weights, costs.epsilon, tol=costs.tol, max_iter=costs.max_iter)

    def squares(self, plan: torch.Tensor) -> list[torch.Tensor]:
        """Return the squared displacements, of sources forward and of targets backward."""
        return [d.square().sum(2)[counts] for _, counts, d, _, _ in self._sides(plan)]

    def add_to(
        self, total: torch.Tensor, plan: torch.Tensor, limit: float, reach: float, cells: torch.Tensor | None = None
    ) -> None:
        """Add what each cell has from its pair to its row of the sums: of sources forward, of targets backward.

        Rows are those of all cells, or of ``cells``, which ascend.
        """
        for sums, (rows, values) in zip(total, self.addends(plan, limit, reach, cells), strict=True):
            sums.index_add_(0, rows, values)

    def addends(
        self, plan: torch.Tensor, limit: float, reach: float, cells: torch.Tensor | None = None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return what :meth:`add_to` adds to which rows, forward and backward."""
        result = []
        for of, counts, d, spread, n_effective in self._sides(plan):
            # In units of the typical square, of which the limit has so many as the reach says.
            square = d.square().sum(2, keepdim=True)
            weight = torch.exp(-((square / limit - 1).clamp_(min=0) * reach).clamp_(max=MAX_EXCESS))
            time = self.dt[:, None, None].expand_as(weight)
            values = torch.cat([d, spread, time, n_effective, square / time**2, torch.ones_like(weight)], 2) * weight
            rows = of[counts] if cells is None else torch.searchsorted(cells, of[counts])
            result.append((rows, torch.cat([values, torch.ones_like(weight)], dim=2)[counts]))
        return result

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


def _tasks(windows: Windows, use: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return successive pairs, which share their cells, in parts that take about as long."""
    elements = np.cumsum(windows.sizes[windows.pairs[use]].prod(axis=1))
    return np.split(use, np.flatnonzero(np.diff(elements // TASK_ELEMENTS)) + 1) if use.size else []


def _batches(shape: NDArray[np.int64], bound: int) -> Iterator[NDArray[np.int64]]:
    """Yield pairs of like size, as many as the bound on the elements allows, given their sizes ``[n_pairs, 2]``."""
    order = np.lexsort((shape[:, 1], shape[:, 0]))
    shape = shape[order]
    start = 0
    while start < order.size:
        # Sizes ascend, so a batch that starts here is at most as large as its last pair says.
        elements = np.arange(1, order.size - start + 1) * shape[start:, 0] * np.maximum.accumulate(shape[start:, 1])
        stop = start + max(1, int(np.searchsorted(elements, bound, side="right")))
        yield order[start:stop]
        start = stop


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
