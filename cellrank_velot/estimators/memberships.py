"""Memberships of cells in macrostates, from Schur vectors, by the optimisation of G-PCCA.

The method is that of Röblitz and Weber (2013) and Reuter et al. (2019): the corners of a simplex as a start, then a
search (Nelder-Mead) for the crispest memberships that are not negative, as pyGPCCA does it. Each step asks which cells
lie farthest in some directions. Boxes around cells that lie together tell that without a look at all of them.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.optimize import fmin

from cellrank_velot._utils.jit import compiled, read_only
from cellrank_velot.estimators.schur import PartialSchur, Which, closed_classes, partial_schur, splits_pair

__all__ = ["CoarseGraining"]

logger = logging.getLogger("cellrank_velot")

Array = NDArray[np.float64]

FEW_CELLS = 2_000  # up to which the search looks at all cells
BOX = 64  # cells
ROUNDING = 1e-9  # memberships below zero by less are zero


class CoarseGraining:
    """A chain of cells seen as a chain of macrostates. The names are those that CellRank asks pyGPCCA for."""

    def __init__(self, matrix: sp.csr_matrix, weights: Array | None, which: Which, schur: PartialSchur) -> None:
        n_cells = matrix.shape[0]
        self.matrix, self.weights, self.which = matrix, weights, which
        self.input_distribution = np.full(n_cells, 1 / n_cells) if weights is None else weights
        self.memberships: Array | None = None
        self.coarse_grained_transition_matrix: Array | None = None
        self.coarse_grained_input_distribution: Array | None = None
        self.coarse_grained_stationary_probability: Array | None = None
        self._take(schur)

    def _take(self, schur: PartialSchur) -> None:
        self.schur = schur
        self._p_X = schur.vectors / np.sqrt(self.input_distribution)[:, None]
        self._p_X[:, 0] = 1.0
        self._p_R, self._p_eigenvalues = schur.matrix, schur.eigenvalues

    def minChi(self, m_min: int, m_max: int) -> list[float]:  # CellRank's name
        """Return, for each number of macrostates, the least membership of the simplex: near zero where it fits."""
        self._reach(m_max)
        least = []
        for m in range(m_min, m_max + 1):
            x = self._p_X[:, :m]
            least.append(float((x @ np.linalg.pinv(x[_corners(x)])).min()))
        return least

    def optimize(self, m: int) -> CoarseGraining:
        """Find the crispest memberships in ``m`` macrostates."""
        if m > self.matrix.shape[0]:
            raise ValueError(f"Expected at most as many macrostates as cells, {self.matrix.shape[0]}, found {m}.")
        n_closed = closed_classes(self.matrix)[1].size
        if m < n_closed:
            raise ValueError(
                f"Expected at least {n_closed} macrostates, found {m}: the chain has {n_closed} groups of cells that "
                "no step leaves."
            )
        self._reach(m)
        if splits_pair(self._p_eigenvalues, m):
            raise ValueError(f"Clustering into {m} clusters will split complex conjugate eigenvalues.")
        chi = _memberships(self._p_X[:, :m])
        weighted = chi * self.input_distribution[:, None]
        self.memberships = chi
        self.coarse_grained_input_distribution = weighted.sum(0)
        coarse = np.linalg.pinv(chi.T @ weighted) @ (weighted.T @ np.asarray(self.matrix @ chi))
        self.coarse_grained_transition_matrix = coarse
        self.coarse_grained_stationary_probability = None if n_closed > 1 else _stationary(coarse)
        return self

    def _reach(self, m: int) -> None:
        """Compute more Schur vectors where there are too few."""
        if self.schur.n_components < m:
            self._take(partial_schur(self.matrix, m, self.weights, self.which))


def _stationary(coarse: Array) -> Array:
    """Return the stationary distribution of the macrostates: that of the cells, summed by memberships."""
    size = coarse.shape[0]
    system = np.vstack([coarse.T - np.eye(size), np.ones(size)])
    return np.linalg.lstsq(system, np.append(np.zeros(size), 1.0), rcond=None)[0]


def _corners(x: Array) -> NDArray[np.int64]:
    """Return the rows that span the largest simplex, found one by one."""
    found = np.zeros(x.shape[1], dtype=np.int64)
    found[0] = np.argmax(np.linalg.norm(x, axis=1))
    rest = x - x[found[0]]
    for j in range(1, x.shape[1]):
        if j > 1:
            along = rest[found[j - 1]].copy()
            rest -= np.outer(rest @ along, along)
        distance = np.linalg.norm(rest, axis=1)
        found[j] = np.argmax(distance)
        rest /= distance[found[j]]
    return found


def _memberships(x: Array) -> Array:
    corners = _corners(x)
    condition = np.linalg.cond(x[corners])
    if not condition < 1 / np.finfo(float).eps:
        raise ValueError(f"{x.shape[1]} macrostates cannot be told apart. Expected fewer.")
    farthest = _Farthest(x[:, 1:])
    rotation = _fill(_search(np.asarray(np.linalg.pinv(x[corners])), farthest), farthest)
    chi = x @ rotation
    if chi.min() < -ROUNDING:
        raise ValueError(f"{x.shape[1]} macrostates have memberships below zero, {chi.min():.1e}. Expected others.")
    chi = np.maximum(chi, 0)
    return np.asarray(chi / chi.sum(axis=1, keepdims=True))


def _search(start: Array, farthest: _Farthest) -> Array:
    """Return the rotation with the crispest memberships."""
    size = start.shape[0]

    def rotation_of(alpha: Array) -> Array:
        rotation = np.zeros((size, size))
        rotation[1:, 1:] = alpha.reshape(size - 1, size - 1)
        return rotation

    def lack_of_crispness(alpha: Array) -> float:
        rotation = _fill(rotation_of(alpha), farthest)
        return float(size - ((rotation**2).sum(axis=0) / rotation[0]).sum())

    return rotation_of(fmin(lack_of_crispness, start[1:, 1:].ravel(), disp=False))


def _fill(rotation: Array, farthest: _Farthest) -> Array:
    """Complete a rotation so that memberships sum to one and none is negative."""
    rotation[1:, 0] = -rotation[1:, 1:].sum(axis=1)
    rotation[0] = farthest(-rotation[1:])
    rotation = rotation / rotation[0].sum()
    if (rotation[0] <= 0).any():
        raise ValueError(f"{rotation.shape[0]} macrostates cannot be told apart. Expected fewer.")
    return rotation


class _Farthest:
    """The largest product of any row with a direction, found without looking at all rows.

    Rows that lie together share a box. Only boxes that reach farther than the best row so far are looked into.
    """

    def __init__(self, x: Array) -> None:
        order = _into_boxes(x) if x.shape[0] > FEW_CELLS else np.arange(x.shape[0])
        self.x = np.ascontiguousarray(x[order])
        self.first = np.arange(0, x.shape[0], BOX)
        low, high = (np.asarray(f.reduceat(self.x, self.first, axis=0)) for f in (np.minimum, np.maximum))
        self.middle, self.half = (low + high) / 2, (high - low) / 2

    def __call__(self, directions: Array) -> Array:
        if self.x.shape[0] <= FEW_CELLS:
            return np.asarray((self.x @ directions).max(axis=0))
        reach = np.ascontiguousarray((self.middle @ directions + self.half @ np.abs(directions)).T)
        return np.asarray(_largest(*read_only(self.x, reach, np.ascontiguousarray(directions.T)), BOX))


def _into_boxes(x: Array) -> NDArray[np.int64]:
    """Return an order of rows in which each ``BOX`` that follow each other lie together: halves of halves."""
    parts: list[NDArray[np.int64]] = [np.arange(x.shape[0])]
    while parts[0].size > BOX:
        halves: list[NDArray[np.int64]] = []
        for part in parts:
            if part.size <= BOX:
                halves.append(part)
                continue
            values = x[part]
            along = values[:, np.argmax(np.ptp(values, axis=0))]
            middle = BOX * ((part.size + BOX) // BOX // 2)  # whole boxes on one side
            ranked = np.argpartition(along, middle)
            halves += [part[ranked[:middle]], part[ranked[middle:]]]
        parts = halves
    return np.concatenate(parts)


@compiled
def _largest(x: Any, reach: Any, directions: Any, box: int) -> Any:
    n_directions, n_dims = directions.shape
    out = np.empty(n_directions)
    for j in range(n_directions):
        direction = directions[j]
        best, widest = -np.inf, np.argmax(reach[j])
        for at in range(-1, reach.shape[1]):
            group = widest if at == -1 else at
            if reach[j, group] <= best:
                continue
            for i in range(group * box, min((group + 1) * box, x.shape[0])):
                value = 0.0
                for k in range(n_dims):
                    value += x[i, k] * direction[k]
                best = max(best, value)
        out[j] = best
    return out
