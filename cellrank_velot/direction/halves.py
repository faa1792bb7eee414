"""Halves of the genes: one half orders the cells, and the order must explain the other half.

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

N_COMPONENTS = 20
# Cells of a small group, within which there is no other structure than the order.
GROUP = 25


class Explained(NamedTuple):
    """What the order of the cells in one half of the genes explains of the other half.

    ``z`` is in standard deviations of chance; so is ``border_z``, the flow across each border, whose mean cosine with
    the way across, weighted by lengths, is ``flow``.
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
    dense = np.asarray(sp.csr_matrix(values).toarray() if sp.issparse(values) else values, dtype=np.float64)
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
    and neighbours must agree in it. Chance: the same if what is left of each cell's other half had a random sign.
    Types without cells in between pass for nothing, however much they differ: their differences lie between groups.
    """
    graph = nearest(own)
    time = rooted_time(slow_modes(graph), first)[:, None]
    n_groups = max(2, len(own) // GROUP)
    groups = KMeans(n_groups, n_init=1, max_iter=20, random_state=int(rng.integers(2**31))).fit_predict(own)
    member = sp.csr_matrix((np.ones(len(own)), (groups, np.arange(len(own)))))
    average = sp.csr_matrix(sp.diags(1 / np.maximum(np.asarray(member.sum(axis=1)).ravel(), 1)) @ member)
    centre = np.asarray(member.T @ (average @ other))
    later = time - member.T @ (average @ time)
    later = later / np.sqrt(np.maximum(member.T @ (average @ later**2), 1e-12))
    step = later * (other - centre)

    mean = sp.csr_matrix(sp.diags(1 / np.asarray(graph.sum(axis=1)).ravel()) @ graph)  # over others than the cell
    edges = ((mean + mean.T) / 2).tocoo()
    agree = edges.data * np.einsum("ij,ij->i", step[edges.row], step[edges.col])
    z, flow = [_standardised(agree.sum(), np.sqrt(2 * (agree**2).sum()))], []
    velocity = np.asarray(mean @ step)
    for border in borders:
        way = _way_across(border, centre)
        share = (step * (mean.T @ way)).sum(axis=1)
        z.append(_standardised(share.sum(), np.sqrt((share**2).sum())))
        flow.append(_standardised(share.sum(), (np.linalg.norm(velocity, axis=1) * np.linalg.norm(way, axis=1)).sum()))
    return Explained(z[0], np.array(z[1:]), np.array(flow))


def _standardised(value: float, scale: float) -> float:
    return float(value / scale) if scale > 0 else 0.0


def _way_across(border: Border, centre: FloatArray) -> FloatArray:
    """Return the sum of the ways between the groups at the sides of a border, from a to b, of each cell at it."""
    way, total = centre[border.to_b] - centre[border.from_a], np.zeros_like(centre)
    np.add.at(total, border.from_a, way)
    np.add.at(total, border.to_b, way)
    return total
