"""Transport of one pair of windows after the other, each in the processor's cache, in compiled loops.

``sinkhorn`` and ``batches`` do the same in torch for many pairs at once.
"""

from __future__ import annotations

from math import factorial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.jit import compiled, inlined, read_only

__all__ = ["MAX_EXCESS", "add_rows", "transport_pairs"]

# Iterations between two checks of the error, as in `sinkhorn`.
CHECK_EVERY = 10
# Scalings beyond e^(+-150) lose digits; such a pair is left to the solver in the log domain.
SAFE = 1e65
# exp(-700) is about the smallest number there is.
HIGHEST = 700.0
# Taylor's series of the exponential, highest power first: below 1/2, the rest is less than a last digit.
TAYLOR = tuple(1.0 / factorial(k) for k in range(13, -1, -1))
# Smaller weights than exp(-MAX_EXCESS) would vanish, and with them cells that have no larger one.
MAX_EXCESS = 20.0


@inlined
def _gibbs(cost: Any, epsilon: float) -> None:
    """Turn costs C into exp(-C / epsilon), in place: a Taylor series, then squaring, which the processor vectorises."""
    n, m = cost.shape
    largest = 0.0
    for i in range(n):
        for j in range(m):
            largest = max(largest, cost[i, j])
    steepest = min(largest / epsilon, HIGHEST)
    n_squares = 0
    while steepest > 0.5 * 2.0**n_squares:
        n_squares += 1
    scale = -(0.5**n_squares) / epsilon
    lowest = -HIGHEST * 0.5**n_squares
    for i in range(n):
        row = cost[i]
        for j in range(m):
            y = max(row[j] * scale, lowest)
            value = TAYLOR[0]
            for k in range(1, 14):
                value = value * y + TAYLOR[k]
            row[j] = value
        for _ in range(n_squares):
            for j in range(m):
                row[j] *= row[j]


@inlined
def _cost(xs: Any, ys: Any, ts: Any, tt: Any, adjacent: Any, lambda_time: float, lambda_knn: float) -> Any:
    """Return the costs: squared distances over their maximum, and what going back or to no neighbour costs besides."""
    n, d = xs.shape
    m = ys.shape[0]
    cost = np.dot(xs, ys.T)
    norms = np.zeros(m)
    for j in range(m):
        for k in range(d):
            norms[j] += ys[j, k] * ys[j, k]
    largest = 0.0
    for i in range(n):
        own = 0.0
        for k in range(d):
            own += xs[i, k] * xs[i, k]
        for j in range(m):
            cost[i, j] = max(own + norms[j] - 2.0 * cost[i, j], 0.0)
            largest = max(largest, cost[i, j])
    scale = 1.0 / largest if largest > 0 else 1.0
    for i in range(n):
        for j in range(m):
            cost[i, j] = cost[i, j] * scale + (lambda_time if ts[i] > tt[j] else 0.0)
    if lambda_knn > 0:
        for i in range(n):
            for j in range(m):
                cost[i, j] += 0.0 if adjacent[i, j] else lambda_knn
    return cost


@inlined
def _are_safe(scalings: Any) -> bool:
    safe = True
    for i in range(scalings.size):
        safe = safe and 1 / SAFE < scalings[i] < SAFE  # nor is a NaN
    return safe


@inlined
def _scale(kernel: Any, tol: float, max_iter: int) -> Any:
    """Scale a kernel, in place, to the plan of even marginals; return the deviation of its columns, negative if unsafe.

    Each step reads the kernel once: the scaling of a row and its part of the columns are computed together.
    """
    n, m = kernel.shape
    a, b = 1.0 / n, 1.0 / m
    u, v, columns, new = np.ones(n), np.ones(m), np.zeros(m), np.zeros(m)
    for i in range(n):
        for j in range(m):
            columns[j] += kernel[i, j]
    error, done, next_look = np.inf, 0, 1
    while done < max_iter and error > tol:
        for j in range(m):
            v[j] = b / columns[j]
            new[j] = 0.0
        for i in range(n):
            reached = 0.0
            for j in range(m):
                reached += kernel[i, j] * v[j]
            u[i] = a / reached
            for j in range(m):
                new[j] += u[i] * kernel[i, j]
        columns, new = new, columns
        done += 1
        if done in (next_look, max_iter):
            next_look = min(next_look + CHECK_EVERY, max_iter)
            square = 0.0
            for j in range(m):
                off = v[j] * columns[j] - b
                square += off * off
            error = np.sqrt(square)
            if not (_are_safe(u) and _are_safe(v)):
                return -1.0
    for i in range(n):
        for j in range(m):
            kernel[i, j] *= u[i] * v[j]
    return error


@inlined
def _side(plan: Any, x: Any, y: Any, sign: float, moved: Any, spread: Any, n_effective: Any, square: Any) -> None:
    """Write for each row of the plan: displacement, spread, effective number of partners, squared displacement."""
    n, m = plan.shape
    d = x.shape[1]
    both = np.empty((m, 2 * d))
    for j in range(m):
        for k in range(d):
            both[j, k] = y[j, k]
            both[j, d + k] = y[j, k] * y[j, k]
    moments = np.dot(plan, both)
    for i in range(n):
        mass = of_squares = 0.0
        for j in range(m):
            mass += plan[i, j]
            of_squares += plan[i, j] * plan[i, j]
        mass = mass if mass > 0 else 1.0
        total = 0.0
        for k in range(d):
            place = moments[i, k] / mass
            spread[i, k] = max(moments[i, d + k] / mass - place * place, 0.0)
            moved[i, k] = sign * (place - x[i, k])
            total += moved[i, k] * moved[i, k]
        square[i] = total
        n_effective[i] = mass * mass / (of_squares if of_squares > 0 else 1.0)


@inlined
def _adjacent(graph: Any, here: Any, there: Any, place: Any, goes: Any, comes: Any) -> Any:
    """Return which target cells are neighbours of which source cells, and mark in both those that have any.

    ``place``, of all cells, is -1 before and after.
    """
    indptr, indices, data = graph
    found = np.zeros((here.size, there.size), dtype=np.bool_)
    for j in range(there.size):
        place[there[j]] = j
    for i in range(here.size):
        for edge in range(indptr[here[i]], indptr[here[i] + 1]):
            at = place[indices[edge]]
            if data[edge] != 0 and at >= 0:
                found[i, at] = goes[i] = comes[at] = True
    for j in range(there.size):
        place[there[j]] = -1
    return found


@inlined
def _solve(x: Any, time: Any, here: Any, there: Any, adjacent: Any, costs: Any, tol: float, max_iter: int) -> Any:
    """Transport one window to its target; return positions of both, relative to the pair, the plan and its error."""
    epsilon, lambda_time, lambda_knn = costs
    n, m, d = here.size, there.size, x.shape[1]
    xs, ys = np.empty((n, d)), np.empty((m, d))
    # Centred at the pair, so that the squared distances don't cancel far from the origin.
    for k in range(d):
        centre = x[there[0], k]
        for i in range(n):
            xs[i, k] = x[here[i], k] - centre
        for j in range(m):
            ys[j, k] = x[there[j], k] - centre
    plan = _cost(xs, ys, time[here], time[there], adjacent, lambda_time, lambda_knn)
    _gibbs(plan, epsilon)
    error = _scale(plan, tol, max_iter)
    return xs, ys, plan, error


@inlined
def _add(
    total: Any, cells: Any, window: Any, counts: Any, plan: Any, x: Any, y: Any, sign: float, rest: Any, columns: Any
) -> None:
    """Add displacements of the cells of a window to their rows of the sums."""
    dt, limit, reach = rest
    d = x.shape[1]
    moved, spread, n_effective, square = columns
    _side(plan, x, y, sign, moved, spread, n_effective, square)
    for i in range(window.size):
        if not counts[i]:
            continue
        # Beyond the limit, the weight falls exponentially with the excess over the median square, limit / reach.
        excess = max(square[i] / limit - 1.0, 0.0) * reach
        weight = np.exp(-min(excess, MAX_EXCESS))
        first, last = 0, cells.size - 1
        while first < last:  # as `np.searchsorted`, which takes seconds to compile
            middle = (first + last) // 2
            if cells[middle] < window[i]:
                first = middle + 1
            else:
                last = middle
        row = total[first]
        for k in range(d):
            row[k] += weight * moved[i, k]
            row[d + k] += weight * spread[i, k]
        row[2 * d] += weight * dt
        row[2 * d + 1] += weight * n_effective[i]
        row[2 * d + 2] += weight * square[i] / (dt * dt)
        row[2 * d + 3] += weight
        row[2 * d + 4] += 1.0


def transport_pairs(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    indices: NDArray[np.int64],
    offsets: NDArray[np.int64],
    graph: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]],
    pairs: NDArray[np.int64],
    dt: NDArray[np.float64],
    cells: NDArray[np.int64],
    costs: tuple[float, float, float],
    solver: tuple[float, int],
    weights: tuple[float, float],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Transport pairs of windows, ``[n_pairs, 2]``, and return sums of their cells and the error of each plan.

    ``cells`` are those of all windows of the pairs, ascending; sums are as in ``CellSums``, ``[2, n_local, 2 * n_dims +
    5]``. Errors are negative where the scalings left the safe range; such a pair has added nothing. ``costs`` are
    epsilon, ``lambda_time`` and ``lambda_knn``, ``solver`` tolerance and bound, ``weights`` limit and reach.
    """
    arrays = read_only(x, time, indices, offsets)
    return _transport_pairs(*arrays, read_only(*graph), *read_only(pairs, dt, cells), costs, solver, weights)


@compiled
def _transport_pairs(
    x: Any,
    time: Any,
    indices: Any,
    offsets: Any,
    graph: Any,
    pairs: Any,
    dt: Any,
    cells: Any,
    costs: Any,
    solver: Any,
    weights: Any,
) -> Any:
    tol, max_iter = solver
    limit, reach = weights
    d = x.shape[1]
    total = np.zeros((2, cells.size, 2 * d + 5))
    error = np.empty(pairs.shape[0])
    largest = 0
    for p in range(pairs.shape[0]):
        for side in range(2):
            largest = max(largest, offsets[pairs[p, side] + 1] - offsets[pairs[p, side]])
    moved, spread = np.empty((largest, d)), np.empty((largest, d))
    columns = (moved, spread, np.empty(largest), np.empty(largest))
    by_graph = costs[2] > 0
    none = np.zeros((1, 1), dtype=np.bool_)
    place = np.full(x.shape[0] if by_graph else 0, -1)
    for p in range(pairs.shape[0]):
        here = indices[offsets[pairs[p, 0]] : offsets[pairs[p, 0] + 1]]
        there = indices[offsets[pairs[p, 1]] : offsets[pairs[p, 1] + 1]]
        goes, comes = np.full(here.size, not by_graph), np.full(there.size, not by_graph)
        adjacent = _adjacent(graph, here, there, place, goes, comes) if by_graph else none
        xs, ys, plan, error[p] = _solve(x, time, here, there, adjacent, costs, tol, max_iter)
        if error[p] < 0:
            continue
        rest = (dt[p], limit, reach)
        sign = 1.0
        for side in range(2):  # where mass goes to, then, with all turned around, where it comes from
            _add(total[side], cells, here, goes, plan, xs, ys, sign, rest, columns)
            if side == 0:
                here, there, goes, comes, xs, ys = there, here, comes, goes, ys, xs
                plan, sign = plan.T.copy(), -sign
    return total, error


def add_rows(total: NDArray[np.float64], cells: NDArray[np.int64], rows: NDArray[np.float64]) -> None:
    """Add rows, shape ``[n, n_local, n_columns]``, to those of their cells in ``[n, n_cells, n_columns]``."""
    _add_rows(total, *read_only(cells, rows))


@compiled
def _add_rows(total: Any, cells: Any, rows: Any) -> None:
    for side in range(rows.shape[0]):
        for i in range(cells.size):
            for k in range(rows.shape[2]):
                total[side, cells[i], k] += rows[side, i, k]
