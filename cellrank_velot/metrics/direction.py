"""Whether a velocity points to the next cluster because of time, as its neighbours do, or along a known velocity.

Cells whose velocity is NaN are left out. A velocity of zero has a cosine of zero with any vector.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from cellrank_velot._utils.options import Run
from cellrank_velot._utils.validation import check_choice, check_number
from cellrank_velot.graph.residuals import residuals
from cellrank_velot.transitions.similarities import edge_similarities

__all__ = [
    "BoundaryKind",
    "cosine_to_truth",
    "cosines",
    "cross_boundary_correctness",
    "cross_boundary_direction",
    "inner_cluster_coherence",
]

BoundaryKind = Literal["cosine", "fraction"]


def cross_boundary_direction(
    x: ArrayLike,
    velocity: ArrayLike,
    reversed_velocity: ArrayLike,
    graph: sp.csr_matrix,
    labels: Any,
    edges: Iterable[tuple[Any, Any]],
) -> pd.DataFrame:
    r"""Return how far time makes cells at the border of two clusters move across it.

    With :math:`C(t)` the cosine across a border of :func:`cross_boundary_correctness`, and :math:`C(-t)` that of the
    velocity which the same method gives in reversed time, the score is :math:`(C(t) - C(-t)) / 2`.

    Why not :math:`C(t)`: it pays for noise. The position of a cell has noise, its neighbours lie about where the cell
    would lie without it, and so a vector back to the mean of the neighbours points to all of them, also across the
    border. Such a vector does not depend on time. It is the same in reversed time, and the score takes it off: what is
    direction changes its sign with time.

    Parameters
    ----------
    x
        Positions of shape ``[n_cells, n_dims]``, finite.
    velocity
        Velocities of shape ``[n_cells, n_dims]``.
    reversed_velocity
        Velocities of the same method with the same options where time runs the other way, such as
        :meth:`OTVelocityKernel.reversed_velocity() <cellrank_velot.OTVelocityKernel.reversed_velocity>` returns; shape
        ``[n_cells, n_dims]``. A cell with NaN in either velocity is left out of all columns.
    graph
        Neighbour graph of shape ``[n_cells, n_cells]``.
    labels
        Cluster of each cell, shape ``[n_cells]``; a cell with a missing label belongs to none.
    edges
        Pairs of clusters, from and to. A pair that is given twice counts once.

    Returns
    -------
    A row for each edge, index ``source`` and ``target``, NaN where no cell counts. Columns are

    - ``direction``: the score, in ``[-1, 1]``. Above zero, time leads across the border; zero is no direction;
    - ``forward`` and ``reversed``: :math:`C(t)` and :math:`C(-t)`, their mean is what does not depend on time;
    - ``no_time``: C of the way to the mean of the neighbours. A ``forward`` that is no higher says nothing.

    Raises
    ------
    KeyError
        If an edge names a cluster that is not in ``labels``.
    ValueError
        If shapes do not fit, a position is not finite, or ``edges`` are no pairs.

    Examples
    --------
    >>> edges = [("Progenitor", "Transition"), ("Transition", "Fate A")]
    >>> cells = vk.cells.x, vk.velocity, vk.reversed_velocity(), vk.connectivities
    >>> table = metrics.cross_boundary_direction(*cells, adata.obs["clusters"], edges)
    >>> table.columns.tolist(), bool((table["direction"] > 0).all())
    (['direction', 'forward', 'reversed', 'no_time'], True)
    """
    x = np.asarray(x, dtype=np.float64)
    forward, known = _velocities(velocity)
    backward, known_backward = _velocities(reversed_velocity, "reversed_velocity")
    if forward.shape != backward.shape:
        raise ValueError(f"Expected `reversed_velocity` of shape `{forward.shape}`, found `{backward.shape}`.")
    unknown = ~(known & known_backward)
    edges = list(edges)

    def across(vectors: NDArray[np.float64]) -> pd.Series:
        return cross_boundary_correctness(x, np.where(unknown[:, None], np.nan, vectors), graph, labels, edges)

    scores = {"forward": across(forward), "reversed": across(backward), "no_time": across(_to_neighbors(x, graph))}
    return pd.DataFrame({"direction": (scores["forward"] - scores["reversed"]) / 2, **scores})


def cross_boundary_correctness(
    x: ArrayLike,
    velocity: ArrayLike,
    graph: sp.csr_matrix,
    labels: Any,
    edges: Iterable[tuple[Any, Any]],
    kind: BoundaryKind = "cosine",
) -> pd.Series:
    r"""Return whether cells at the border of two clusters point to their neighbours across it.

    **Not a goal by itself**: it pays for noise. A vector from each cell to the mean of its neighbours knows no time and
    scores more than most velocities; on simulated counts it scores more than the true one. Read
    :func:`cross_boundary_direction`, which is made of two of these scores.

    For an edge (A, B), the score of a cell i of A with neighbours :math:`N_i` in B is
    :math:`\frac{1}{|N_i|} \sum_{j \in N_i} \cos(v_i, x_j - x_i)`, or the share of positive cosines. The score of the
    edge is the mean over these cells. The score of the velocity is the mean over the edges, ``.mean()`` of the result
    :cite:`gao:22`. Weights of the graph, stored zeros and self-loops do not count.

    Parameters
    ----------
    x
        Positions of shape ``[n_cells, n_dims]``, finite.
    velocity
        Velocities of shape ``[n_cells, n_dims]``; cells with NaN are left out.
    graph
        Neighbour graph of shape ``[n_cells, n_cells]``.
    labels
        Cluster of each cell, shape ``[n_cells]``; a cell with a missing label belongs to none.
    edges
        Pairs of clusters, from and to. A pair that is given twice counts once.
    kind
        ``"cosine"``: the mean cosine, in ``[-1, 1]``. ``"fraction"``: the share of the neighbours in B that lie ahead,
        in ``[0, 1]``.

    Returns
    -------
    Score by edge, index ``source`` and ``target``; NaN where no cell of A has an estimate and a neighbour in B.

    Raises
    ------
    KeyError
        If an edge names a cluster that is not in ``labels``.
    ValueError
        If shapes do not fit, a position is not finite, ``kind`` is unknown or ``edges`` are no pairs.

    Examples
    --------
    >>> edges = [("Progenitor", "Transition"), ("Transition", "Fate A")]
    >>> clusters = adata.obs["clusters"]
    >>> score = metrics.cross_boundary_correctness(
    ...     vk.cells.x, vk.velocity, vk.connectivities, clusters, edges
    ... )
    >>> bool((score > 0).all())
    True
    """
    check_choice("kind", kind, BoundaryKind)
    x, finite = _velocities(x, "x")
    velocity, known = _velocities(velocity)
    if x.shape != velocity.shape:
        raise ValueError(f"Expected `velocity` of shape `{x.shape}`, found `{velocity.shape}`.")
    if not finite.all():
        raise ValueError(f"Expected finite positions `x`, found NaN or infinite values in `{(~finite).sum()}` cells.")
    n_cells = x.shape[0]
    codes, clusters = _codes(labels, n_cells)
    pairs = _cluster_pairs(edges, clusters)
    # The last row and column are those of cells without a cluster, whose code is -1.
    number = np.full((len(clusters) + 1, len(clusters) + 1), -1, dtype=np.int64)
    number[clusters.get_indexer([a for a, _ in pairs]), clusters.get_indexer([b for _, b in pairs])] = range(len(pairs))

    rows, cols = _graph_edges(graph, n_cells)
    crosses = (number[codes[rows], codes[cols]] >= 0) & known[rows]
    border = _pattern(rows[crosses], cols[crosses], n_cells)
    score = edge_similarities(x, velocity, border, run=Run(device="cpu"))
    if kind == "fraction":
        score = (score > 0).astype(np.float64)
    rows = np.repeat(np.arange(n_cells), np.diff(border.indptr))
    # A cell takes part in each edge that leaves its cluster.
    cell = number[codes[rows], codes[border.indices]] * n_cells + rows
    per_cell = _group_means(score, cell, len(pairs) * n_cells)
    taking_part = np.flatnonzero(np.isfinite(per_cell))
    values = _group_means(per_cell[taking_part], taking_part // n_cells, len(pairs))
    index = pd.MultiIndex.from_tuples(pairs, names=["source", "target"])
    return pd.Series(values, index=index, name=f"cross_boundary_{kind}")


def inner_cluster_coherence(velocity: ArrayLike, graph: sp.csr_matrix, labels: Any) -> pd.Series:
    """Return how alike the velocities of neighbours are within each cluster.

    The score of a cell is the mean cosine of its velocity with the velocities of its neighbours in the same cluster.
    The score of a cluster is the mean over its cells with such neighbours, and the score of the velocity is the mean
    over the clusters, ``.mean()`` of the result :cite:`gao:22`. A constant field has coherence one, whatever its
    direction: read it with :func:`cross_boundary_direction`. Weights of the graph, stored zeros and self-loops do not
    count.

    Parameters
    ----------
    velocity
        Velocities of shape ``[n_cells, n_dims]``; cells with NaN are left out, as neighbours too.
    graph
        Neighbour graph of shape ``[n_cells, n_cells]``.
    labels
        Cluster of each cell, shape ``[n_cells]``; a cell with a missing label belongs to none.

    Returns
    -------
    Score by cluster, in ``[-1, 1]``; NaN where no two neighbours in the cluster have an estimate.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> score = metrics.inner_cluster_coherence(
    ...     vk.velocity, vk.connectivities, adata.obs["clusters"]
    ... )
    >>> score.index.tolist(), bool((score > 0.5).all())
    (['Progenitor', 'Transition', 'Fate A', 'Fate B'], True)
    """
    velocity, known = _velocities(velocity)
    n_cells = velocity.shape[0]
    codes, clusters = _codes(labels, n_cells)
    rows, cols = _graph_edges(graph, n_cells)
    same = (codes[rows] == codes[cols]) & (codes[rows] >= 0) & known[rows] & known[cols]
    neighbors = _pattern(rows[same], cols[same], n_cells)
    direction = _unit(velocity)
    degree = np.diff(neighbors.indptr)
    # The sum of the cosines with all neighbours is one product with the sum of their directions.
    total = np.einsum("ij,ij->i", direction, neighbors @ direction)
    counted = degree > 0
    values = _group_means(total[counted] / degree[counted], codes[counted], len(clusters))
    return pd.Series(values, index=pd.Index(clusters, name="cluster"), name="inner_cluster_coherence")


def cosine_to_truth(velocity: ArrayLike, truth: ArrayLike, fastest: float = 0.8) -> float:
    """Return the mean cosine of the velocity with a known velocity, over the cells that truly move.

    Parameters
    ----------
    velocity
        Velocities of shape ``[n_cells, n_dims]``; cells with NaN are left out.
    truth
        Known velocities of shape ``[n_cells, n_dims]``; cells with NaN or zero have no direction and are left out.
    fastest
        Share of the cells that count, in ``(0, 1]``: the fastest ones by the norm of ``truth``. They are chosen before
        cells without an estimate are left out, so that an estimate cannot choose its cells.

    Returns
    -------
    Mean cosine in ``[-1, 1]``; NaN where no cell is left.

    Raises
    ------
    ValueError
        If shapes do not fit or ``fastest`` is out of range.

    Examples
    --------
    >>> metrics.cosine_to_truth(vk.velocity, adata.obsm["true_velocity_pca"]) > 0.7
    True
    >>> metrics.cosine_to_truth([[1.0, 0.0]], [[-2.0, 0.0]])
    -1.0
    """
    check_number("fastest", fastest, low=0, high=1, open_low=True)
    cosine = cosines(velocity, truth)
    speed = np.linalg.norm(np.asarray(truth, dtype=np.float64), axis=1)
    moves = np.isfinite(speed) & (speed > 0)
    if not moves.any():
        return float("nan")
    counted = moves & np.isfinite(cosine)
    counted[moves] &= speed[moves] >= np.quantile(speed[np.isfinite(speed)], 1 - fastest)
    return float(cosine[counted].mean()) if counted.any() else float("nan")


def cosines(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Return the cosine of two vectors of each cell.

    Parameters
    ----------
    first
        Vectors of shape ``[n_cells, n_dims]``.
    second
        Other vectors of the same shape.

    Returns
    -------
    Cosines in ``[-1, 1]``, shape ``[n_cells]``; NaN where a vector is not finite, zero where one is zero.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> round(float(metrics.cosines([[1.0, 0.0]], [[1.0, 1.0]])[0]), 3)
    0.707
    >>> metrics.cosines(vk.velocity, adata.obsm["true_velocity_pca"]).shape
    (300,)
    """
    a, known_a = _velocities(first, "first")
    b, known_b = _velocities(second, "second")
    if a.shape != b.shape:
        raise ValueError(f"Expected vectors of one shape, found `{a.shape}` and `{b.shape}`.")
    return np.where(known_a & known_b, np.clip(np.einsum("ij,ij->i", _unit(a), _unit(b)), -1, 1), np.nan)


def _to_neighbors(x: NDArray[np.float64], graph: sp.csr_matrix) -> NDArray[np.float64]:
    """Return the way from each cell to the mean of its neighbours, shape ``[n_cells, n_dims]``; zero without any."""
    rows, cols = _graph_edges(graph, x.shape[0])
    return residuals(x, _pattern(rows, cols, x.shape[0]))


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return vectors of length one, zero where they are zero."""
    # Scaled first: the square of a very small or large component leaves the range of floats.
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
    scaled = vectors / np.where(largest > 0, largest, 1.0)
    norm = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.asarray(scaled / np.where(norm > 0, norm, 1.0))


def _velocities(velocity: ArrayLike, name: str = "velocity") -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the velocities, zero where unknown, and where they are known."""
    values = np.asarray(velocity, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"Expected `{name}` of shape `[n_cells, n_dims]`, found `{values.shape}`.")
    known = np.asarray(np.isfinite(values).all(axis=1))
    return np.where(known[:, None], values, 0.0), known


def _codes(labels: Any, n_cells: int) -> tuple[NDArray[np.int64], pd.Index]:
    """Return the cluster of each cell as a number, -1 where missing, and the clusters."""
    categorical = pd.Categorical(labels)
    if len(categorical) != n_cells:
        raise ValueError(f"Expected `labels` of shape `({n_cells},)`, found `({len(categorical)},)`.")
    return np.asarray(categorical.codes, dtype=np.int64), categorical.categories


def _cluster_pairs(edges: Iterable[tuple[Any, Any]], clusters: pd.Index) -> list[tuple[Any, Any]]:
    """Return the edges, each once and in order, of clusters that there are."""
    pairs: dict[tuple[Any, Any], None] = {}
    for edge in edges:
        if isinstance(edge, str) or len(edge) != 2:
            raise ValueError(f"Expected `edges` to be pairs of clusters, found `{edge!r}`.")
        missing = [cluster for cluster in edge if cluster not in clusters]
        if missing:
            raise KeyError(f"Expected `edges` between the clusters {list(clusters)}, found {missing}.")
        pairs[edge[0], edge[1]] = None
    if not pairs:
        raise ValueError("Expected at least one pair of clusters in `edges`, found none.")
    return list(pairs)


def _graph_edges(graph: sp.csr_matrix, n_cells: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the cells that each edge leaves and reaches, without stored zeros and self-loops."""
    graph = sp.csr_matrix(graph)
    if graph.shape != (n_cells, n_cells):
        raise ValueError(f"Expected `graph` of shape `{(n_cells, n_cells)}`, found `{graph.shape}`.")
    rows = np.repeat(np.arange(n_cells), np.diff(graph.indptr))
    cols = graph.indices.astype(np.int64)
    kept = (graph.data != 0) & (rows != cols)
    return rows[kept], cols[kept]


def _pattern(rows: NDArray[np.int64], cols: NDArray[np.int64], n_cells: int) -> sp.csr_matrix:
    """Return a graph of these edges, all of weight one."""
    pattern = sp.csr_matrix((np.ones(rows.size), (rows, cols)), shape=(n_cells, n_cells))
    pattern.data[:] = 1.0
    return pattern


def _group_means(values: NDArray[np.float64], group: NDArray[np.int64], n_groups: int) -> NDArray[np.float64]:
    """Return the mean of the values of each group, NaN for an empty one."""
    count = np.bincount(group, minlength=n_groups)
    total = np.bincount(group, values, minlength=n_groups)
    return np.divide(total, count, out=np.full(n_groups, np.nan), where=count > 0)
