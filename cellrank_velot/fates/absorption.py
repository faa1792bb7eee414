"""Where a chain is absorbed and when: linear systems ``(I - Q) X = B`` for all columns at once, at any size.

Arrays in and out. Products with columns of cells are preconditioned by algebraic multigrid, whose aggregates are groups
of cells between which the chain moves. Rows are weighted by how often their cells are visited, so that an aggregate
stands for a group of cells as the chain fills it; without the weights, groups that hold cells for 1e9 steps are not
solved. For the same reason the residual is computed from differences along the edges, ``q_ij (x_i - x_j)``.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import lu_factor, lu_solve
from scipy.sparse.csgraph import breadth_first_order, reverse_cuthill_mckee
from threadpoolctl import threadpool_limits

from cellrank_velot._utils.jit import read_only
from cellrank_velot._utils.lazy import pyamg
from cellrank_velot._utils.slices import Slices, count_threads
from cellrank_velot.fates.compiled import (
    WIDTH,
    backward_sweep,
    difference_product,
    forward_sweep,
    product,
    step_back,
    take_away,
)

__all__ = ["Solution", "Transient", "expected_visits", "reaching"]

logger = logging.getLogger("cellrank_velot")

Array = NDArray[np.float64]

COARSEST = 500  # aggregates that are solved for directly
STRENGTH = ("classical", {"theta": 0.25})  # which steps join cells in an aggregate
VISITS = 300  # steps that tell how often each cell is visited
INNER = 1e-3  # by how much one round reduces the residual
RESTART = 30
MOST_ROUNDS = 25
BASIS_BYTES = 4e9  # that vectors of GMRES may take: fewer threads solve for parts of the columns where they take more
TOLERANCE = 1e-10


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Columns ``X`` of ``(I - Q) X = B``, their error relative to the largest value, and the steps that it took."""

    x: Array
    error: float
    n_steps: int
    converged: bool


def reaching(matrix: sp.csr_matrix, ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the cells from which some end can be reached."""
    n_cells = matrix.shape[0]
    back = sp.csr_matrix(matrix.T)
    # One more node that leads to all ends.
    start = sp.csr_matrix((np.ones(ends.size), (np.zeros(ends.size, dtype=int), ends)), shape=(1, n_cells))
    graph = sp.bmat([[back, None], [start, sp.csr_matrix((1, 1))]], format="csr")
    found = np.zeros(n_cells + 1, dtype=bool)
    found[breadth_first_order(graph, n_cells, directed=True, return_predecessors=False)] = True
    return found[:n_cells]


def expected_visits(matrix: sp.csr_matrix, ends: NDArray[np.int64], start: Array) -> Array:
    r"""Return how often each cell is visited, before an end is, by walks that start as ``start [n_cells]`` says.

    They solve :math:`(I - Q)^T n = s`. As shares of the visits :math:`v` of walks from all cells, this is a chain that
    runs back, :math:`q'_{ij} = q_{ji} v_j / v_i`, which leaves where the walks set out. No visits of the ends, nor of
    cells without a way to one, are counted.
    """
    visits = np.zeros(matrix.shape[0])
    free = reaching(matrix, ends)
    free[ends] = False
    rows = np.flatnonzero(free)
    if not rows.size or not start[rows].any():
        return visits
    q = sp.csr_matrix(matrix[rows][:, rows])
    scale = _visits(q)
    back = sp.csr_matrix(sp.diags(1 / scale) @ q.T @ sp.diags(scale))
    leave = 1 - np.asarray(back.sum(axis=1)).ravel()
    found = Transient(back, leave).solve(start[rows] / scale)
    if not found.converged:
        logger.warning("Visits of cells are known to %.1g only", found.error)
    visits[rows] = np.maximum(found.x[:, 0] * scale, 0)
    return visits


class Transient:
    """The transient part ``Q`` of a chain, with the chance of each cell to leave it in one step."""

    def __init__(self, q: sp.csr_matrix, leave: Array) -> None:
        q = sp.csr_matrix(q, dtype=np.float64)
        q.sum_duplicates()
        # Neighbours close to each other in memory: half of the time of a sweep.
        self.order = reverse_cuthill_mckee(q, symmetric_mode=True)  # as edges lead both ways, but for their weights
        self.q = sp.csr_matrix(q[self.order][:, self.order])
        self.leave = np.ascontiguousarray(leave, dtype=np.float64)[self.order]
        self.visits = _visits(self.q)
        matrix = _off_diagonal(self.q, self.leave)
        self._levels = _hierarchy(sp.csr_matrix(sp.diags(self.visits) @ matrix))

    def solve(self, b: Array, tolerance: float = TOLERANCE, smallest: float = 1.0) -> Solution:
        """Solve for all columns, some of them in each thread.

        The tolerance is that of each value, relative to itself, or to ``smallest`` times the largest if that is more.
        """
        n_cells = self.leave.size
        b = np.asarray(b, dtype=np.float64).reshape(n_cells, -1)[self.order]
        n_parts = max(1, -(-b.shape[1] // (WIDTH - 1)))
        parts = np.array_split(np.arange(b.shape[1]), n_parts)
        n_threads = min(count_threads(), n_parts, max(1, int(BASIS_BYTES / (8 * RESTART * WIDTH * n_cells))))
        with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(n_threads) as pool:
            found = list(pool.map(lambda part: self._solve(b[:, part], tolerance, smallest), parts))
        x = np.empty_like(b)
        x[self.order] = np.hstack([part.x for part in found])
        return Solution(
            x=x,
            error=max(part.error for part in found),
            n_steps=sum(part.n_steps for part in found),
            converged=all(part.converged for part in found),
        )

    def _solve(self, b: Array, tolerance: float, smallest: float) -> Solution:
        """Solve for some columns, and for one whose solution is known: to leave at all, which is one."""
        n_columns = b.shape[1]
        b = np.column_stack([b, np.broadcast_to(self.leave[:, None], (self.leave.size, WIDTH - n_columns))])
        x, steps, error = np.zeros_like(b), 0, np.inf
        arrays = read_only(self.q.indptr, self.q.indices, self.q.data, self.leave)
        for _ in range(MOST_ROUNDS):
            residual = b - difference_product(*arrays, x)
            correction, n_steps = self._correct(residual * self.visits[:, None])
            x += correction
            steps += n_steps
            size = np.abs(x)
            size = np.maximum(size, np.maximum(smallest * size.max(axis=0), 1e-300))
            change = (np.abs(correction) / size).max()
            error = max(float(change), float(np.abs(x[:, -1] - 1).max()))
            if error <= tolerance or not np.isfinite(error):
                break
        return Solution(x=x[:, :n_columns], error=error, n_steps=steps, converged=error <= tolerance)

    def _correct(self, b: Array) -> tuple[Array, int]:
        """Return an approximate solution by GMRES for each column, preconditioned by one cycle."""
        size = np.sqrt((b * b).sum(0))
        size[size == 0] = 1
        basis = [b / size]
        h = np.zeros((WIDTH, RESTART + 1, RESTART))
        for step in range(RESTART):
            _, w = self._cycle(basis[step])
            for i, other in enumerate(basis):
                h[:, i, step] = take_away(other, w)
            norm = np.sqrt(np.einsum("ij,ij->j", w, w))
            h[:, step + 1, step] = norm
            w *= _ratio(np.ones_like(norm), norm)
            basis.append(w)
            weights, missing = _least_squares(h[:, : step + 2, : step + 1])
            if missing <= INNER:
                break
        combined = np.zeros_like(b)
        for i in range(step + 1):
            combined += weights[:, i] * basis[i]
        return self._cycle(combined)[0] * size, step + 1

    def _cycle(self, b: Array, level: int = 0) -> tuple[Array, Array]:
        """Return one cycle of multigrid, started from zero, and its product with the matrix."""
        at = self._levels[level]
        if at.factors is not None:
            x = np.ascontiguousarray(lu_solve(at.factors, b))
            return x, b.copy()
        x, rest = np.empty_like(b), np.empty_like(b)
        forward_sweep(*at.matrix, b, x, rest)
        coarse = product(*at.down, rest)
        below, image = self._cycle(coarse, level + 1)
        if level > 0 and self._levels[level + 1].factors is None:  # twice on the small levels
            below = below + self._cycle(coarse - image, level + 1)[0]
        x += product(*at.up, below)
        backward_sweep(*at.matrix, b, x, rest)
        return x, rest


@dataclass
class _Level:
    """Arrays of the matrix and its diagonal, of the sums over aggregates and of what aggregates give to their cells.

    The last level has the factors of its matrix alone.
    """

    matrix: tuple[NDArray[Any], ...] = ()
    down: tuple[NDArray[Any], ...] = ()
    up: tuple[NDArray[Any], ...] = ()
    factors: Any = None


def _hierarchy(matrix: sp.csr_matrix) -> list[_Level]:
    """Return the matrix and its aggregates' matrices, down to one that is small enough to be factorised."""
    made = pyamg.smoothed_aggregation_solver(
        matrix,
        symmetry="nonsymmetric",
        strength=STRENGTH,
        smooth=None,
        presmoother=None,
        postsmoother=None,
        improve_candidates=None,
        max_coarse=COARSEST,
        max_levels=25,
    )
    levels = [
        _Level(matrix=(*_arrays(level.A), level.A.diagonal()), down=_arrays(level.R), up=_arrays(level.P))
        for level in made.levels[:-1]
    ]
    return [*levels, _Level(factors=lu_factor(sp.csr_matrix(made.levels[-1].A).toarray()))]


def _arrays(matrix: Any) -> tuple[NDArray[Any], ...]:
    """Return the arrays of a matrix, each row in the order of its columns."""
    matrix = sp.csr_matrix(matrix)
    matrix.sort_indices()
    return read_only(matrix.indptr, matrix.indices, matrix.data)


def _off_diagonal(q: sp.csr_matrix, leave: Array) -> sp.csr_matrix:
    """Return ``I - Q`` with a diagonal that is summed from where the cells go, as one minus itself would lose it."""
    own = sp.diags(q.diagonal())
    others = sp.csr_matrix(q - own)
    others.eliminate_zeros()
    diagonal = np.asarray(others.sum(axis=1)).ravel() + leave
    result = sp.csr_matrix(sp.diags(diagonal) - others)
    result.sort_indices()
    return result


def _least_squares(h: Array) -> tuple[Array, float]:
    """Return the combinations of a basis with the least residual, and the largest residual of all columns."""
    right = np.zeros(h.shape[1])
    right[0] = 1
    weights = np.array([np.linalg.lstsq(each, right, rcond=None)[0] for each in h])
    missing = right - np.einsum("kij,kj->ki", h, weights)
    return weights, float(np.linalg.norm(missing, axis=1).max())


def _ratio(a: Array, b: Array) -> Array:
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)


def _visits(q: sp.csr_matrix) -> Array:
    """Return how often each cell is visited within so many steps, from all cells, their mean scaled to one."""
    back = sp.csr_matrix(q.T)
    arrays = read_only(back.indptr, back.indices, back.data)
    visits, following = np.ones(q.shape[0]), np.empty(q.shape[0])
    with Slices(q.shape[0], size=16_384) as slices:
        for _ in range(VISITS):
            slices.map(lambda part: step_back(*arrays, visits, following, part.start, part.stop))  # noqa: B023
            visits, following = following, visits
    return visits / visits.mean()
