"""Transport of all pairs of windows, and for each cell the sums over the pairs that it takes part in.

On the CPU in compiled loops, one pair after the other in each job; on another device in padded batches.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from tqdm.auto import tqdm

from cellrank_velot._utils import parallel
from cellrank_velot._utils.device import as_tensor, in_parts, single_thread
from cellrank_velot._utils.lazy import torch
from cellrank_velot._utils.options import Run
from cellrank_velot.transport.batches import PaddedPairs, like_sized
from cellrank_velot.transport.compiled import add_rows, transport_pairs
from cellrank_velot.transport.problem import TransportOptions, TransportProblem
from cellrank_velot.transport.windows import Windows

__all__ = ["CellSums", "memory_of_sums", "pair_plan", "sum_pairs", "typical_square"]

# Elements of the cost matrices that are solved together: few enough for the cache of a processor; elsewhere many enough
# that the cost of a call does not show.
BATCH_ELEMENTS = {"cpu": 2**17, "other": 2**23}
# Elements of the cost matrices of one task, which takes some hundredths of a second.
TASK_ELEMENTS = 2**21
# Finished tasks of each job that may wait to be added, with a limit on memory.
TASKS_WAITING = 2
# Pairs that are solved beforehand for the median displacement, and their tolerance: a median needs no more.
PILOT_PAIRS = 64
PILOT_TOL = 1e-3
_NO_GRAPH = (np.zeros(1, np.int32), np.zeros(0, np.int32), np.zeros(0))


@dataclass(frozen=True, eq=False)
class CellSums:
    """Sums over the window pairs of each cell, and how well each pair was solved."""

    cells: NDArray[np.int64]  # the cell of each row
    # Forward and backward, [2, n_cells, 2 * n_dims + 5]: displacement, spread, time, effective number of partners and
    # squared speed, all weighted, the weight, and the number of pairs.
    total: NDArray[np.float64]
    converged: NDArray[np.bool_]  # [n_pairs]
    marginal_error: NDArray[np.float64]  # [n_pairs], NaN where the pair was left out


def sum_pairs(
    problem: TransportProblem,
    use: NDArray[np.int64],
    limit: float,
    reach: float,
    device: torch.device,
    run: Run,
) -> CellSums:
    """Transport the pairs ``use``, shape ``[n_used]``, and sum what their cells have from that.

    Squared displacements up to ``limit`` count in full; ``reach`` is the limit in units of the median square.
    """
    if device.type == "cpu":
        return _sum_in_loops(problem, use, limit, reach, run)
    return _sum_in_batches(problem, use, limit, reach, device, run.show_progress_bar)


def memory_of_sums(problem: TransportProblem, use: NDArray[np.int64]) -> tuple[float, float]:
    """Return the bytes that :func:`sum_pairs` takes on the CPU in any case, and those of one job."""
    windows, graph = problem.windows, problem.graph
    n_cells, n_dims = problem.x.shape
    row = 2 * 8 * (2 * n_dims + 5)
    # Cells in another order, their windows, their graph; sums of all cells.
    fixed = n_cells * 8 * (n_dims + 5) + 8 * windows.indices.size + (24 * graph.nnz if graph is not None else 0)
    entries = [int(windows.sizes[np.unique(windows.pairs[part])].sum()) for part in _tasks(windows, use)]
    plans = 4 * 8 * int(windows.sizes.max(initial=0)) ** 2
    return fixed + n_cells * row, (1 + TASKS_WAITING) * max(entries, default=0) * row + plans


def typical_square(problem: TransportProblem, use: NDArray[np.int64], device: torch.device) -> float:
    """Return the median squared displacement, of some pairs that are spread evenly over all."""
    windows = problem.windows
    pilot = use[:: max(1, use.size // PILOT_PAIRS)]
    rough = replace(problem.options, tol=PILOT_TOL)
    squares = []
    cells = problem.cells_on(device)

    def squares_of(chosen: NDArray[np.int64]) -> list[torch.Tensor]:
        batch = PaddedPairs.of(problem, pilot[chosen], *cells)
        return batch.squares(batch.couplings(rough).plan)

    with single_thread(device):
        batches = like_sized(windows.sizes[windows.pairs[pilot]], BATCH_ELEMENTS["cpu"])
        for _, found in in_parts(squares_of, batches, "transport"):
            squares += found
    median = float(torch.cat(squares).median()) if squares else 0.0
    return median if median > 0 else np.inf


def pair_plan(problem: TransportProblem, pair: int, device: torch.device) -> NDArray[np.float64]:
    """Return the plan of one pair, shape ``[n_source, n_target]``."""
    batch = PaddedPairs.of(problem, np.array([pair]), *problem.cells_on(device))
    with single_thread(device):
        plan = batch.couplings(problem.options).plan[0]
    result: NDArray[np.float64] = plan.cpu().numpy()
    return result


def _sum_in_batches(
    problem: TransportProblem,
    use: NDArray[np.int64],
    limit: float,
    reach: float,
    device: torch.device,
    show_progress_bar: bool,
) -> CellSums:
    windows = problem.windows
    n_cells, n_dims = problem.x.shape
    error = np.full(windows.n_pairs, np.nan)
    positions, times = problem.cells_on(device)
    total = positions.new_zeros((2, n_cells, 2 * n_dims + 5))

    def solve(chosen: NDArray[np.int64]) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], NDArray[np.float64]]:
        batch = PaddedPairs.of(problem, use[chosen], positions, times)
        couplings = batch.couplings(problem.options)
        return batch.addends(couplings.plan, limit, reach), couplings.marginal_error.cpu().numpy()

    batches = like_sized(windows.sizes[windows.pairs[use]], BATCH_ELEMENTS["other"])
    with tqdm(total=use.size, desc="transport", unit="pair", disable=not show_progress_bar) as bar:
        # Added here and not in `solve`: a batch that is done again in halves must not count twice.
        for chosen, (addends, errors) in in_parts(solve, batches, "transport"):
            _add(total, addends)
            error[use[chosen]] = errors
            bar.update(chosen.size)
    sums = total.cpu().numpy().astype(np.float64)
    return CellSums(np.arange(n_cells), sums, error <= problem.options.tol, error)


def _sum_in_loops(
    problem: TransportProblem,
    use: NDArray[np.int64],
    limit: float,
    reach: float,
    run: Run,
) -> CellSums:
    x, time, windows, graph = problem.x, problem.time, problem.windows, problem.graph
    parts = _tasks(windows, use)
    # Cells of one window lie next to each other in memory, where they are read faster.
    order = np.lexsort((time, windows.cluster))
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    if graph is not None:
        graph = graph[order][:, order]
    adjacency = _NO_GRAPH if graph is None else (graph.indptr, graph.indices, graph.data)
    shared = (x[order], time[order], rank[windows.indices], windows.offsets, *adjacency, problem.options, limit, reach)
    found = parallel.run(
        _sum_task,
        [(windows.pairs[part], windows.dt[part]) for part in parts],
        shared,
        n_jobs=run.n_jobs,
        desc="transport",
        show_progress_bar=run.show_progress_bar,
        # With little memory, tasks wait until the sums of those before are added.
        at_a_time=(1 + TASKS_WAITING) * parallel.count_jobs(run.n_jobs) if run.memory_limit is not None else None,
    )
    total = np.zeros((2, x.shape[0], 2 * x.shape[1] + 5))
    error = np.full(windows.n_pairs, np.nan)
    with closing(found):
        for part, (cells, sums, errors) in zip(parts, found, strict=True):
            add_rows(total, cells, sums)
            error[part] = errors
    return CellSums(order, total, error <= problem.options.tol, error)


def _sum_task(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    indices: NDArray[np.int64],
    offsets: NDArray[np.int64],
    indptr: NDArray[np.int32],
    neighbors: NDArray[np.int32],
    weights: NDArray[np.float64],
    options: TransportOptions,
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
        (float(options.epsilon), float(options.lambda_time), float(options.lambda_knn)),
        (float(options.tol), int(options.max_iter)),
        (float(limit), float(reach)),
    )
    left = np.flatnonzero(error < 0)
    if left.size:
        # Their scalings left the safe range: the solver in torch works in the log domain.
        graph = sp.csr_matrix((weights, neighbors, indptr), shape=(x.shape[0],) * 2) if options.lambda_knn > 0 else None
        positions, times = (as_tensor(values, torch.device("cpu")) for values in (x, time))
        sums = torch.from_numpy(total)
        for part in like_sized(np.diff(offsets)[pairs[left]], BATCH_ELEMENTS["cpu"]):
            chosen = left[part]
            batch = PaddedPairs(indices, offsets, pairs[chosen], dt[chosen], positions, times, graph)
            couplings = batch.couplings(options)
            _add(sums, batch.addends(couplings.plan, limit, reach, torch.from_numpy(cells)))
            error[chosen] = couplings.marginal_error.numpy()
    return cells, total, error


def _add(total: torch.Tensor, addends: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for side, (rows, values) in zip(total, addends, strict=True):
        side.index_add_(0, rows, values)


def _tasks(windows: Windows, use: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the pairs in parts that take about as long; successive pairs share cells."""
    elements = np.cumsum(windows.sizes[windows.pairs[use]].prod(axis=1))
    return np.split(use, np.flatnonzero(np.diff(elements // TASK_ELEMENTS)) + 1) if use.size else []
