"""Where a chain is absorbed and when: linear systems ``(I - Q) X = B`` for all columns at once, at any size.

Arrays in and out. Products with columns of cells are preconditioned by algebraic multigrid, whose aggregates are groups
of cells between which the chain moves. Rows are weighted by how often their cells are visited, so that an aggregate
stands for a group of cells as the chain fills it; without the weights, groups that hold cells for 1e9 steps are not
solved. For the same reason the residual is computed from differences along the edges, ``q_ij (x_i - x_j)``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import lu_factor, lu_solve
from scipy.sparse.csgraph import breadth_first_order
from threadpoolctl import threadpool_limits

from cellrank_velot._utils.jit import compiled
from cellrank_velot._utils.lazy import pyamg

__all__ = ["Solution", "Transient", "reaching"]

logger = logging.getLogger("cellrank_velot")

Array = NDArray[np.float64]

COARSEST = 500  # aggregates that are solved for directly
STRENGTH = ("classical", {"theta": 0.25})  # which steps join cells in an aggregate
VISITS = 300  # steps that tell how often each cell is visited
INNER = 1e-3  # by how much one round reduces the residual
RESTART = 30
MOST_ROUNDS = 25
BASIS_BYTES = 1.5e9  # that vectors of GMRES may take: more columns are solved one part after the other
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


class Transient:
    """The transient part ``Q`` of a chain, with the chance of each cell to leave it in one step."""

    def __init__(self, q: sp.csr_matrix, leave: Array) -> None:
        self.q = sp.csr_matrix(q, dtype=np.float64)
        self.q.sum_duplicates()
        self.leave = np.ascontiguousarray(leave, dtype=np.float64)
        self.visits = _visits(self.q)
        matrix = _off_diagonal(self.q, self.leave)
        self._levels = _hierarchy(sp.csr_matrix(sp.diags(self.visits) @ matrix))

    def solve(self, b: Array, tolerance: float = TOLERANCE, smallest: float = 1.0) -> Solution:
        """Solve for all columns.

        The tolerance is that of each value, relative to itself, or to ``smallest`` times the largest if that is more.
        """
        b = np.asarray(b, dtype=np.float64).reshape(self.leave.size, -1)
        at_a_time = max(1, int(BASIS_BYTES / (8 * (RESTART + 1) * self.leave.size)) - 1)
        columns = [slice(first, first + at_a_time) for first in range(0, b.shape[1], at_a_time)]
        with threadpool_limits(limits=1, user_api="blas"):  # on a busy machine two threads take ten times as long
            parts = [self._solve(b[:, part], tolerance, smallest) for part in columns]
        return Solution(
            x=np.hstack([part.x for part in parts]),
            error=max(part.error for part in parts),
            n_steps=sum(part.n_steps for part in parts),
            converged=all(part.converged for part in parts),
        )

    def _solve(self, b: Array, tolerance: float, smallest: float) -> Solution:
        """Solve for some columns, and for one whose solution is known: to leave at all, which is one."""
        b = np.column_stack([b, self.leave])
        x, steps, error = np.zeros_like(b), 0, np.inf
        for _ in range(MOST_ROUNDS):
            residual = b - _difference_product(self.q.indptr, self.q.indices, self.q.data, self.leave, x)
            correction, n_steps = self._correct(residual * self.visits[:, None])
            x += correction
            steps += n_steps
            size = np.abs(x)
            size = np.maximum(size, np.maximum(smallest * size.max(axis=0), 1e-300))
            change = (np.abs(correction) / size).max()
            error = max(float(change), float(np.abs(x[:, -1] - 1).max()))
            if error <= tolerance or not np.isfinite(error):
                break
        return Solution(x=x[:, :-1], error=error, n_steps=steps, converged=error <= tolerance)

    def _correct(self, b: Array) -> tuple[Array, int]:
        """Return an approximate solution by GMRES for each column, preconditioned by one cycle."""
        matrix = self._levels[0].matrix
        size = np.sqrt((b * b).sum(0))
        size[size == 0] = 1
        basis = [b / size]
        h = np.zeros((b.shape[1], RESTART + 1, RESTART))
        for step in range(RESTART):
            w = matrix @ self._cycle(basis[step])
            for i, other in enumerate(basis):
                along = np.einsum("ij,ij->j", other, w)
                w -= along * other
                h[:, i, step] = along
            norm = np.sqrt(np.einsum("ij,ij->j", w, w))
            h[:, step + 1, step] = norm
            basis.append(w * _ratio(np.ones_like(norm), norm))
            weights, missing = _least_squares(h[:, : step + 2, : step + 1])
            if missing <= INNER:
                break
        combined = np.zeros_like(b)
        for i in range(step + 1):
            combined += weights[:, i] * basis[i]
        return self._cycle(combined) * size, step + 1

    def _cycle(self, b: Array, level: int = 0) -> Array:
        """Return one cycle of multigrid, started from zero."""
        at = self._levels[level]
        if at.down is None:
            return np.ascontiguousarray(lu_solve(at.factors, b))
        x = np.zeros_like(b)
        args = (at.matrix.indptr, at.matrix.indices, at.matrix.data, at.diagonal)
        _sweep(*args, x, b, True)
        coarse = at.down @ (b - at.matrix @ x)
        below = self._cycle(coarse, level + 1)
        if level > 0 and self._levels[level + 1].down is not None:  # twice on the small levels
            below += self._cycle(coarse - self._levels[level + 1].matrix @ below, level + 1)
        x += at.up @ below
        _sweep(*args, x, b, False)
        return x


@dataclass
class _Level:
    matrix: sp.csr_matrix
    diagonal: Array
    down: Any = None  # sums over aggregates; none on the last level
    up: Any = None
    factors: Any = None  # of the last level


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
    levels = []
    for level in made.levels[:-1]:
        a = sp.csr_matrix(level.A)
        levels.append(_Level(a, a.diagonal(), sp.csr_matrix(level.R), sp.csr_matrix(level.P)))
    last = sp.csr_matrix(made.levels[-1].A)
    levels.append(_Level(last, last.diagonal(), factors=lu_factor(last.toarray())))
    return levels


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


@compiled
def _difference_product(indptr: Any, indices: Any, data: Any, leave: Any, x: Any) -> Any:
    n_rows, n_columns = x.shape
    out = np.empty((n_rows, n_columns))
    for i in range(n_rows):
        for k in range(n_columns):
            out[i, k] = leave[i] * x[i, k]
        for edge in range(indptr[i], indptr[i + 1]):
            j, weight = indices[edge], data[edge]
            for k in range(n_columns):
                out[i, k] += weight * (x[i, k] - x[j, k])
    return out


@compiled
def _sweep(indptr: Any, indices: Any, data: Any, diagonal: Any, x: Any, b: Any, forward: bool) -> None:
    n_rows, n_columns = x.shape
    rest = np.empty(n_columns)
    for at in range(n_rows):
        i = at if forward else n_rows - 1 - at
        for k in range(n_columns):
            rest[k] = b[i, k]
        for edge in range(indptr[i], indptr[i + 1]):
            j = indices[edge]
            if j != i:
                weight = data[edge]
                for k in range(n_columns):
                    rest[k] -= weight * x[j, k]
        for k in range(n_columns):
            x[i, k] = rest[k] / diagonal[i]


def _visits(q: sp.csr_matrix) -> Array:
    """Return how often each cell is visited within so many steps, from all cells, their mean scaled to one."""
    back = sp.csr_matrix(q.T)
    visits = np.ones(q.shape[0])
    for _ in range(VISITS):
        visits = back @ visits + 1.0
    return visits / visits.mean()
