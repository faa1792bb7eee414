"""Two projections of velocities to an embedding, and the places of points in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from cellrank_velot._utils.validation import check_choice, check_integer, check_number

__all__ = ["Weighting", "embed_points", "project_by_linear_map", "project_by_transitions"]

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.intp]

Weighting = Literal["none", "distance", "confidence"]

# Numbers that one batch of cells or points holds: 64 MB.
BATCH_SIZE = 2**23
# A smaller reach tears paths where the embedding is whole: on a simulated bifurcation ten times as often at 3 as at 6.
ISLAND_REACH = 6.0
# Steps of mean shift after which a place in the embedding hardly moves.
N_SHIFTS = 5


def project_by_transitions(
    transitions: sp.csr_matrix,
    embedding: FloatArray,
    *,
    graph: sp.csr_matrix | None = None,
    weighting: Weighting = "none",
    confidence: FloatArray | None = None,
) -> FloatArray:
    r"""Project the velocity behind a transition matrix to an embedding, shape ``[n_cells, n_dims]``.

    A cell's arrow is the mean direction of its transitions less the mean direction to its neighbours, which only says
    where cells are dense :cite:`bergen:20`. With :math:`u_{ij} = (s_j - s_i) / \|s_j - s_i\|`, weights :math:`w_{ij}`
    of the neighbours enter both means:

    .. math::
        \nu_i = \sum_{j \ne i} \left(
            m_i \frac{w_{ij} T_{ij}}{\sum_l w_{il} T_{il}} - \frac{w_{ij} c_{ij}}{\sum_l w_{il} c_{il}}
        \right) u_{ij}, \qquad m_i = \sum_{j \ne i} T_{ij}

    Without a velocity, transitions would be in proportion to :math:`c_{ij}`: the weights of the ``graph`` where it is
    given, as those that the transitions were computed with, otherwise 1. So such transitions have no arrow.
    :math:`w_{ij}` is 1 with ``weighting="none"``; :math:`\exp(-\|s_j - s_i\|^2 / 2 h_i^2)` with
    ``"distance"``, where :math:`h_i` is the median distance of the cell to its neighbours; and :math:`(c_i + c_j) / 2`
    with ``"confidence"``. In a product of both confidences, :math:`c_i` would cancel.

    Lengths are at most 2. An arrow is 0 for a cell without neighbours, and NaN where all weights are 0.
    """
    check_choice("weighting", weighting, Weighting)
    embedding = _checked("embedding", embedding)
    n_cells = embedding.shape[0]
    known = _check_confidence(confidence, weighting, n_cells)
    rows, columns, probability = _edges("transitions", transitions, n_cells)
    direction = embedding[columns] - embedding[rows]
    length = np.linalg.norm(direction, axis=1)
    still = np.ones(rows.size) if graph is None else _values_at(rows, columns, graph)
    if weighting == "none":
        total = np.bincount(rows, still, minlength=n_cells)[rows]
        coefficient = probability - np.divide(still, total, out=np.zeros_like(still), where=total > 0)
    else:
        weight = _nearness(rows, length, n_cells) if weighting == "distance" else (known[rows] + known[columns]) / 2
        coefficient = _reweighed(rows, probability, weight, still, n_cells)
    # Cells on the same spot have no direction between them.
    coefficient = np.divide(coefficient, length, out=np.zeros_like(length), where=length > 0)
    return np.column_stack([np.bincount(rows, coefficient * part, minlength=n_cells) for part in direction.T])


def _check_confidence(confidence: FloatArray | None, weighting: str, n_cells: int) -> FloatArray:
    """Return the confidence of each cell, ones where the weighting has no use for it."""
    if (confidence is not None) != (weighting == "confidence"):
        found = "none" if confidence is None else f"one and weighting={weighting!r}"
        raise ValueError(f"Expected `confidence` together with `weighting='confidence'`, found {found}.")
    if confidence is None:
        return np.ones(n_cells)
    confidence = np.asarray(confidence, dtype=np.float64)
    if confidence.shape != (n_cells,):
        raise ValueError(f"Expected `confidence` of shape `[{n_cells}]`, found `{confidence.shape}`.")
    outside = ~((confidence >= 0) & (confidence <= 1))
    if outside.any():
        raise ValueError(f"Expected `confidence` in [0, 1], found {outside.sum()} cells outside or NaN.")
    return confidence


def _nearness(rows: IndexArray, length: FloatArray, n_cells: int) -> FloatArray:
    """Return a Gaussian weight of each edge, whose width is the median length of the cell's edges."""
    order = np.lexsort((length, rows))
    degree = np.bincount(rows, minlength=n_cells)
    start, some = np.cumsum(degree) - degree, degree > 0
    median = np.zeros(n_cells)
    ranked = length[order]
    median[some] = (ranked[(start + (degree - 1) // 2)[some]] + ranked[(start + degree // 2)[some]]) / 2
    # Where most neighbours are on the spot of the cell itself, only those count, and they have no direction.
    scaled = np.divide(length, median[rows], out=np.where(length > 0, np.inf, 0.0), where=median[rows] > 0)
    return np.exp(-0.5 * scaled**2)


def _values_at(rows: IndexArray, columns: IndexArray, graph: sp.csr_matrix) -> FloatArray:
    """Return the values of a graph at these edges, 0 where it has none."""
    found = sp.csr_matrix(graph)[rows, columns] if rows.size else np.zeros(0)
    return np.asarray(found, dtype=np.float64).ravel()


def _reweighed(
    rows: IndexArray, probability: FloatArray, weight: FloatArray, still: FloatArray, n_cells: int
) -> FloatArray:
    """Return the weighted probability of each edge, of the same mass, less its share without a velocity."""
    mass = np.bincount(rows, probability, minlength=n_cells)
    weighted = np.bincount(rows, weight * probability, minlength=n_cells)
    total = np.bincount(rows, weight * still, minlength=n_cells)
    scale = np.divide(mass, weighted, out=np.where(mass > 0, np.nan, 0.0), where=weighted > 0)
    share = np.divide(1.0, total, out=np.full(n_cells, np.nan), where=total > 0)
    return weight * (scale[rows] * probability - still * share[rows])


def project_by_linear_map(
    x: FloatArray,
    velocity: FloatArray,
    embedding: FloatArray,
    graph: sp.csr_matrix | None = None,
    *,
    n_neighbors: int = 30,
    ridge: float = 0.2,
) -> FloatArray:
    r"""Project velocities to an embedding by the linear map that carries each cell's neighbours there.

    With the displacements to the :math:`k` neighbours as rows, :math:`D` in the basis and :math:`E` in the embedding,
    the map :math:`A` minimises :math:`\|D A - E\|^2 + \lambda \|A\|^2`. The velocity in the embedding is
    :math:`v A = E^\top (D D^\top + \lambda)^{-1} D v`, a sum over the neighbours. It comes from ``k`` or
    ``n_basis_dims`` equations, whichever are fewer.

    Where the map explains the share :math:`r` of the displacements, ridge regression is best at :math:`\lambda =
    \frac{1 - r}{r} \overline{\|D_j\|^2}`. ``ridge`` is :math:`(1 - r) / r`, a ratio of noise to signal. Directions
    hardly depend on it; velocities become shorter as it grows.

    The neighbours are what ``graph`` stores off the diagonal, or the ``n_neighbors`` nearest cells without a graph.
    Velocities are in units of the embedding per unit of time. They are NaN for a cell without a velocity, without
    neighbours, or with all neighbours on its own spot.
    """
    check_integer("n_neighbors", n_neighbors, low=1)
    check_number("ridge", ridge, low=0, open_low=True)
    x, embedding = _checked("x", x), _checked("embedding", embedding)
    velocity = np.asarray(velocity, dtype=np.float64)
    n_cells = x.shape[0]
    if velocity.shape != x.shape:
        raise ValueError(f"Expected `velocity` of the shape of `x`, `{x.shape}`, found `{velocity.shape}`.")
    if embedding.shape[0] != n_cells:
        raise ValueError(f"Expected `embedding` of shape `[{n_cells}, n_dims]`, found `{embedding.shape}`.")
    rows, columns, _ = _edges("graph", _nearest(x, n_neighbors) if graph is None else graph, n_cells)
    degree = np.bincount(rows, minlength=n_cells)
    start = np.cumsum(degree) - degree
    result = np.full(embedding.shape, np.nan)
    wanted = np.flatnonzero(np.isfinite(velocity).all(axis=1) & (degree > 0))
    for cells in _batches(wanted, degree, x.shape[1]):
        slot = np.arange(degree[cells].max())
        used = slot < degree[cells, None]
        neighbors = columns[np.where(used, start[cells, None] + slot, 0)]
        # Cells with fewer neighbours are filled up with rows of zeros, which change nothing.
        d_basis = np.where(used[..., None], x[neighbors] - x[cells, None], 0.0)
        d_embedding = np.where(used[..., None], embedding[neighbors] - embedding[cells, None], 0.0)
        share = _shares(d_basis, velocity[cells], degree[cells], ridge)
        result[cells] = np.matmul(share[:, None, :], d_embedding)[:, 0]
    return result


def _batches(cells: IndexArray, degree: IndexArray, n_dims: int) -> Iterator[IndexArray]:
    """Split cells into batches of like degree, whose padded displacements and equations fit into memory."""
    cells = cells[np.argsort(-degree[cells], kind="stable")]
    first = 0
    while first < cells.size:
        largest = int(degree[cells[first]])
        # Positions, displacements and their difference, and the smaller side of the equations.
        n_numbers = largest * (3 * n_dims + min(largest, n_dims)) + min(largest, n_dims) ** 2
        last = first + max(BATCH_SIZE // n_numbers, 1)
        yield cells[first:last]
        first = last


def _shares(displacement: FloatArray, velocity: FloatArray, degree: IndexArray, ridge: float) -> FloatArray:
    """Return the share of each neighbour in the velocities, shape ``[n_cells, n_neighbors]``.

    ``displacement`` leads to the neighbours, shape ``[n_cells, n_neighbors, n_dims]``. ``degree`` counts those that are
    not padding. Shares are NaN where all displacements are zero.
    """
    _, n_neighbors, n_dims = displacement.shape
    transposed = displacement.transpose(0, 2, 1)
    scale = np.einsum("ikd,ikd->i", displacement, displacement) / degree
    penalty = (ridge * np.where(scale > 0, scale, 1.0))[:, None, None] * np.eye(min(n_neighbors, n_dims))
    column = velocity[..., None]
    if n_neighbors < n_dims:
        share = np.linalg.solve(displacement @ transposed + penalty, displacement @ column)
    else:
        share = displacement @ np.linalg.solve(transposed @ displacement + penalty, column)
    return np.where(scale[:, None] > 0, share[..., 0], np.nan)


def embed_points(points: FloatArray, x: FloatArray, embedding: FloatArray, *, n_neighbors: int = 15) -> FloatArray:
    """Place points of the basis, such as those of a path, in an embedding of the cells.

    A point gets the mean place of its nearest cells. Weights are Gaussian in the distance and fall to zero at the last
    cell, so that a moving point does not jump when its nearest cells change. Where the embedding is torn, the mean of
    two islands would lie in the void between them. So only cells near the place of most weight count: their weights
    fall to zero at six times the distance within which a cell has a third of the others. A point that crosses a tear
    jumps. A point with NaN has no place.
    """
    check_integer("n_neighbors", n_neighbors, low=1)
    x, embedding = _checked("x", x), _checked("embedding", embedding)
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != x.shape[1]:
        raise ValueError(f"Expected `points` of shape `[n_points, {x.shape[1]}]`, found `{points.shape}`.")
    if embedding.shape[0] != x.shape[0] or not x.shape[0]:
        raise ValueError(f"Expected `embedding` of shape `[{x.shape[0]}, n_dims]`, found `{embedding.shape}`.")
    n_neighbors = min(n_neighbors, x.shape[0])
    search = NearestNeighbors(n_neighbors=n_neighbors).fit(x)
    result = np.full((points.shape[0], embedding.shape[1]), np.nan)
    known = np.flatnonzero(np.isfinite(points).all(axis=1))
    step = max(BATCH_SIZE // (n_neighbors**2 * (embedding.shape[1] + 2)), 1)
    for first in range(0, known.size, step):
        batch = known[first : first + step]
        distance, neighbors = search.kneighbors(points[batch])
        result[batch] = _robust_mean(embedding[neighbors], _tapered(distance))
    return result


def _tapered(distance: FloatArray) -> FloatArray:
    """Return Gaussian weights of sorted distances, shape ``[n_points, n_neighbors]``, that end in zero at the last."""
    reach = distance[:, -1:]
    scaled = np.divide(distance, reach, out=np.zeros_like(distance), where=reach > 0)
    # The floor keeps the sum of weights positive where all cells are equally far.
    return np.exp(-2.0 * scaled**2) - np.exp(-2.0) + 1e-9


def _robust_mean(y: FloatArray, weight: FloatArray) -> FloatArray:
    """Return the weighted mean place, ``[n_points, n_dims]``, of neighbours ``[n_points, n_neighbors, n_dims]``.

    Only those around the place of most weight count.
    """
    between = np.linalg.norm(y[:, :, None] - y[:, None, :], axis=3)
    # A third, as three islands of equal size must not be taken for one.
    third = np.partition(between, (y.shape[1] - 1) // 3, axis=2)[:, :, (y.shape[1] - 1) // 3]
    # Neighbours on the same spot all count, whatever the rounding of their mean.
    rounding = 1e-9 * np.abs(y).max(axis=(1, 2)) + np.finfo(np.float64).tiny
    reach = np.maximum(ISLAND_REACH * np.median(third, axis=1), rounding)[:, None]
    vote = np.einsum("pl,pjl->pj", weight, _biweight(between / reach[..., None]))
    centre = np.take_along_axis(y, vote.argmax(axis=1)[:, None, None], axis=1)
    # The cell with most votes changes in jumps. Mean shift from there makes the place continuous.
    for _ in range(N_SHIFTS):
        local = weight * _biweight(np.linalg.norm(y - centre, axis=2) / reach)
        centre = (local[..., None] * y).sum(axis=1, keepdims=True) / local.sum(axis=1)[:, None, None]
    return centre[:, 0]


def _biweight(scaled: FloatArray) -> FloatArray:
    """Return Tukey's weights, which fall from 1 at distance 0 to 0 at distance 1."""
    return np.maximum(1.0 - np.minimum(scaled, 1.0) ** 2, 0.0) ** 2


def _nearest(x: FloatArray, n_neighbors: int) -> sp.csr_matrix:
    """Return the graph of the nearest other cells."""
    n_neighbors = min(n_neighbors, x.shape[0] - 1)
    if n_neighbors < 1:
        return sp.csr_matrix((x.shape[0], x.shape[0]))
    return sp.csr_matrix(NearestNeighbors(n_neighbors=n_neighbors).fit(x).kneighbors_graph())


def _edges(name: str, graph: sp.csr_matrix, n_cells: int) -> tuple[IndexArray, IndexArray, FloatArray]:
    """Return rows, columns and values of what a matrix stores off the diagonal, row by row."""
    matrix = sp.csr_matrix(graph)
    if matrix.shape != (n_cells, n_cells):
        raise ValueError(f"Expected `{name}` of shape `[{n_cells}, {n_cells}]`, found `{matrix.shape}`.")
    rows = np.repeat(np.arange(n_cells), np.diff(matrix.indptr))
    others = rows != matrix.indices
    return rows[others], matrix.indices[others], matrix.data[others]


def _checked(name: str, values: FloatArray) -> FloatArray:
    """Return finite positions, one row per cell."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"Expected `{name}` to have `2` dimensions, found `{values.ndim}`.")
    unknown = ~np.isfinite(values).all(axis=1)
    if unknown.any():
        raise ValueError(f"Expected finite `{name}`, found {unknown.sum()} cells with NaN or infinite values.")
    return values
