"""Memberships of cells in macrostates, from Schur vectors, by the optimisation of G-PCCA.

The method is that of Röblitz and Weber (2013) and Reuter et al. (2019): the corners of a simplex as a start, then a
search (Nelder-Mead) for the crispest memberships that are not negative, as pyGPCCA does it. Only cells at the hull of
the vectors matter to the search, so that with many cells it is run on these.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.optimize import fmin

from cellrank_velot.estimators.schur import PartialSchur, Which, closed_classes, partial_schur, splits_pair

__all__ = ["CoarseGraining"]

logger = logging.getLogger("cellrank_velot")

Array = NDArray[np.float64]

FEW_CELLS = 5_000  # up to which the search looks at all cells
MOST_ROUNDS = 12
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

    def minChi(self, m_min: int, m_max: int) -> list[float]:  # noqa: N802  # CellRank's name
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
    start = np.linalg.pinv(x[corners])
    rotation = _fill(_search(x, start, corners), x)
    chi = x @ rotation
    if chi.min() < -ROUNDING:
        raise ValueError(f"{x.shape[1]} macrostates have memberships below zero, {chi.min():.1e}. Expected others.")
    chi = np.maximum(chi, 0)
    return np.asarray(chi / chi.sum(axis=1, keepdims=True))


def _search(x: Array, start: Array, corners: NDArray[np.int64]) -> Array:
    """Return the best rotation, from cells that bind it: more are taken in until no cell asks for another rotation."""
    if x.shape[0] <= FEW_CELLS:
        return _nelder_mead(x, start)[0]
    rng = np.random.default_rng(0)
    directions = [start[1:], rng.standard_normal((x.shape[1] - 1, 500))]
    binding = np.unique(np.concatenate([corners, *(_extreme(x, each) for each in directions)]))
    for _ in range(MOST_ROUNDS):
        rotation, tried = _nelder_mead(x[binding], start)
        lacking = np.setdiff1d(_extreme(x, np.hstack([*tried, rotation[1:]])), binding)
        if not lacking.size:
            break
        binding = np.union1d(binding, lacking)
    return rotation


def _extreme(x: Array, directions: Array) -> NDArray[np.int64]:
    """Return the rows that lie farthest against each direction."""
    found, most = np.zeros(directions.shape[1], dtype=np.int64), np.full(directions.shape[1], -np.inf)
    for first in range(0, x.shape[0], 20_000):
        along = -x[first : first + 20_000, 1:] @ directions
        best = along.argmax(axis=0)
        value = along[best, np.arange(best.size)]
        better = value > most
        found[better], most[better] = first + best[better], value[better]
    return np.unique(found)


def _nelder_mead(x: Array, start: Array) -> tuple[Array, list[Array]]:
    """Return the best rotation and a sample of those tried on the way."""
    size = start.shape[0]
    tried: list[Array] = []
    count = 0

    def rotation_of(alpha: Array) -> Array:
        rotation = np.zeros((size, size))
        rotation[1:, 1:] = alpha.reshape(size - 1, size - 1)
        return rotation

    def lack_of_crispness(alpha: Array) -> float:
        nonlocal count
        rotation = _fill(rotation_of(alpha), x)
        count += 1
        if count % 50 == 0 and len(tried) < 200:
            tried.append(rotation[1:])
        return float(size - ((rotation**2).sum(axis=0) / rotation[0]).sum())

    best: Any = fmin(lack_of_crispness, start[1:, 1:].ravel(), disp=False)
    return rotation_of(best), tried


def _fill(rotation: Array, x: Array) -> Array:
    """Complete a rotation so that memberships sum to one and none is negative."""
    rotation[1:, 0] = -rotation[1:, 1:].sum(axis=1)
    rotation[0] = (-x[:, 1:] @ rotation[1:]).max(axis=0)
    rotation = rotation / rotation[0].sum()
    if (rotation[0] <= 0).any():
        raise ValueError(f"{x.shape[1]} macrostates cannot be told apart. Expected fewer.")
    return rotation
