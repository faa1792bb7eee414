"""Halves of the genes: the order of the cells comes from one half, and the expression that it must explain from the other.

Noise that a pseudotime follows in one half of the genes is not there in the other half. So a time can be tested on the
cells that it was computed from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from sklearn.cluster import KMeans
from sklearn.utils.extmath import randomized_svd

from cellrank_velot.direction._common import FloatArray, IntArray
from cellrank_velot.direction.walk import nearest, rooted_time, slow_modes

__all__ = ["Border", "Explained", "explain_other_half", "gene_halves"]

N_COMPONENTS, N_PERMUTATIONS = 20, 99
# Cells of a small group, within which there is no other structure than the order.
GROUP = 25


class Explained(NamedTuple):
    """What the order of the cells in one half of the genes explains of the other half.

    ``z`` is in standard deviations of chance; so is ``border_z``, the flow across each border, whose mean cosine with
    the way across is ``flow``.
    """

    z: float
    border_z: FloatArray
    flow: FloatArray


class Border(NamedTuple):
    """Two clusters that touch, and the edges of the neighbour graph between them."""

    a: str
    b: str
    from_a: IntArray
    to_b: IntArray


def gene_halves(expression: sp.csr_matrix | FloatArray, counts: bool, rng: np.random.Generator) -> list[FloatArray]:
    """Return the principal components of two random halves of the genes, each normalised by its own counts."""
    order = rng.permutation(expression.shape[1])
    return [_components(expression[:, np.sort(half)], counts, rng) for half in (order[::2], order[1::2])]


def _components(values: sp.csr_matrix | FloatArray, counts: bool, rng: np.random.Generator) -> FloatArray:
    dense = np.asarray(values.todense() if sp.issparse(values) else values, dtype=np.float64)
    total = dense.sum(axis=1, keepdims=True)
    if counts:
        total = np.maximum(total, 1.0)
        dense = np.log1p(dense * (np.median(total) / total))
        total = np.log(total)
    n_components = min(N_COMPONENTS, *(size - 1 for size in dense.shape))
    u, scale, _ = randomized_svd(dense - dense.mean(axis=0), n_components, random_state=int(rng.integers(2**31)))
    return _without_depth(u * scale, total)


def _without_depth(x: FloatArray, depth: FloatArray) -> FloatArray:
    """Return what a parabola of the depth does not explain: both halves of a cell have the same depth."""
    spread = float(depth.std())
    scaled = (depth - depth.mean()) / (spread if spread > 0 else 1.0)
    design = np.hstack([np.ones_like(scaled), scaled, scaled**2])
    return np.asarray(x - design @ np.linalg.lstsq(design, x, rcond=None)[0])


def explain_other_half(
    own: FloatArray, other: FloatArray, first: IntArray, borders: Sequence[Border], rng: np.random.Generator
) -> Explained:
    """Ask whether the order of the cells in one half of the genes explains the other half *within* small groups.

    Within groups of :data:`GROUP` near cells, the velocity of the other half along the time of this one is estimated,
    and neighbours must agree in it. Chance: the same with the cells of each group exchanged. Types without cells in
    between pass for nothing, however much they differ, as their differences lie between the groups.
    """
    graph = nearest(own)
    n = len(own)
    time = rooted_time(slow_modes(graph), first)
    n_groups = max(2, n // GROUP)
    groups = KMeans(n_groups, n_init=1, max_iter=20, random_state=int(rng.integers(2**31))).fit_predict(own)
    member = sp.csr_matrix((np.ones(n), (groups, np.arange(n))))
    size = np.maximum(np.asarray(member.sum(axis=1)), 1)
    centre = np.asarray(member.T @ ((member @ other) / size))
    later = time[:, None] - member.T @ ((member @ time[:, None]) / size)
    later = later / np.sqrt(np.maximum(member.T @ ((member @ later**2) / size), 1e-12))
    ways = [_way_across(border, centre) for border in borders]
    mean = sp.csr_matrix(sp.diags(1 / np.asarray(graph.sum(axis=1)).ravel()) @ graph)

    rest, place = other - centre, np.argsort(groups, kind="stable")
    values = np.empty((N_PERMUTATIONS + 1, 1 + len(ways)))
    for number in range(N_PERMUTATIONS + 1):
        exchanged = rest
        if number:
            exchanged = np.empty_like(rest)
            exchanged[place] = rest[np.lexsort((rng.random(n), groups))]
        step = later * exchanged
        velocity = np.asarray(mean @ step)  # no cell is among its own neighbours
        values[number] = [(step * velocity).sum(), *((velocity[cells] * way).sum() for cells, way in ways)]
        if not number:
            flow = np.array([_cosine(velocity[cells], way) for cells, way in ways])
    z = (values[0] - values[1:].mean(axis=0)) / np.maximum(values[1:].std(axis=0, ddof=1), 1e-300)
    return Explained(float(z[0]), z[1:], flow)


def _way_across(border: Border, centre: FloatArray) -> tuple[IntArray, FloatArray]:
    """Return the cells at a border, and the sum of the ways between the groups at its sides, from a to b."""
    way = centre[border.to_b] - centre[border.from_a]
    cells, place = np.unique(np.concatenate([border.from_a, border.to_b]), return_inverse=True)
    total = np.zeros((cells.size, centre.shape[1]))
    np.add.at(total, place, np.concatenate([way, way]))
    return cells, total


def _cosine(a: FloatArray, b: FloatArray) -> float:
    """Return the mean cosine of rows, weighted by their lengths; NaN where all are zero."""
    size = float((np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)).sum())
    return float((a * b).sum()) / size if size > 0 else np.nan
