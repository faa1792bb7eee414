"""Transition probabilities: a similarity for each edge of the neighbour graph, then a softmax over those of a cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.sparse.linalg import LinearOperator, lsmr, onenormest, splu

from cellrank_velot._utils.options import Run
from cellrank_velot.graph.rows import BLOCK_EDGES, normalized, softmax
from cellrank_velot.transitions.monte_carlo import mean_probabilities
from cellrank_velot.transitions.options import TransitionOptions
from cellrank_velot.transitions.similarities import edge_similarities

__all__ = ["Transitions", "compute_transitions", "condition_number", "effective_neighbors"]

# Above this many cells a factorisation fills too much memory, and the condition number is bounded iteratively.
FACTORIZE_BELOW = 20_000
# Share of the neighbours of a cell, less one, that `softmax_scale="auto"` leaves effective.
EFFECTIVE_SHARE = 0.5
# Share of the steps of a cell at an end that may leave the ends: else the chain would fall into pieces.
LEAVE_END = 0.1
# Cells that this scale is found from: more change it by less than a percent.
SCALE_CELLS = 2_000


@dataclass(frozen=True, eq=False)
class Transitions:
    """Transition matrix and what it was made from.

    Attributes
    ----------
    matrix
        Row-stochastic matrix of shape ``[n_cells, n_cells]``.
    logits
        Similarity of each edge, same sparsity as the neighbour graph.
    softmax_scale
        Scale used.
    n_fallback
        Cells without a velocity, whose row is that of the neighbour graph.
    n_isolated
        Cells without a neighbour, whose row is a self-loop.

    Examples
    --------
    >>> from cellrank_velot.transitions.matrix import compute_transitions
    >>> found = compute_transitions(vk.cells.x, vk.velocity, vk.connectivities)
    >>> found.n_fallback, found.n_isolated  # all cells have a velocity and neighbours
    (0, 0)
    >>> found.softmax_scale
    2.0
    """

    matrix: sp.csr_matrix
    logits: sp.csr_matrix
    softmax_scale: float
    n_fallback: int
    n_isolated: int


def compute_transitions(
    x: NDArray[np.float64],
    velocity: NDArray[np.float64],
    graph: sp.csr_matrix,
    options: TransitionOptions = TransitionOptions(),
    *,
    ends: NDArray[np.int64] | NDArray[np.bool_] | None = None,
    loadings: NDArray[np.float64] | None = None,
    velocity_std: NDArray[np.float64] | None = None,
    run: Run = Run(),
) -> Transitions:
    r"""Turn velocities into transition probabilities along the neighbour graph.

    With the similarity :math:`\pi_{ij}` of the velocity of cell i and the displacement to its neighbour j,
    :math:`T_{ij} = w_{ij} \exp(\pi_{ij} / \sigma^2) / \sum_k w_{ik} \exp(\pi_{ik} / \sigma^2)`
    :cite:`bergen:20,lange:22`, where :math:`w_{ij}` are the weights of the graph, or one where ``options`` say so. The
    model ``"monte_carlo"`` takes the mean of :math:`T_{ij}` over velocities drawn around the given ones with the
    standard deviations ``velocity_std``, shape ``[n_cells, n_dims]``. Cells of NaN or zero velocity follow the graph.
    Cells at an end mostly step to neighbours at the same one: ``ends`` has its number for each cell, below zero for
    none, or says whether there is one. Vectors are compared among genes with ``loadings``, shape ``[n_dims, n_genes]``.
    """
    run = _within_memory(graph, velocity, options, ends, run)
    graph = _with_edges(graph)
    known = np.isfinite(velocity).all(axis=1) & (velocity != 0).any(axis=1)
    std = _known_std(velocity_std, known, velocity.shape) if options.model == "monte_carlo" else None
    velocity = np.where(known[:, None], -velocity if options.backward_mode == "negate" else velocity, 0.0)
    logits = edge_similarities(x, velocity, graph, options, loadings=loadings, run=run)
    degree = np.diff(graph.indptr)
    # An edge counts where the velocity that it is compared with is known, a cell where one of its edges does.
    edge_known = _edges_with_velocity(known, graph, options.transpose)
    cell_known = degree > 0 if edge_known is None else np.asarray(_sums(edge_known, graph.indptr) > 0)
    rule = options.rule
    if rule == "median":
        scale = _reciprocal(np.abs(logits if edge_known is None else logits[edge_known]))
    elif rule == "auto":
        scale = _scale_of_neighbors(logits, graph.indptr, np.flatnonzero(cell_known & (degree > 1)))
    else:
        scale = float(rule)
    # A weight in the exponent, so that one softmax does for both.
    weights = np.log(graph.data) / scale if options.weighted else None
    probabilities = softmax(logits if weights is None else logits + weights, graph.indptr, scale, run.n_jobs)
    if std is not None and std.any():
        sampled = (probabilities, x, velocity, std, graph, weights, scale, options)
        probabilities = mean_probabilities(*sampled, loadings=loadings, run=run)
    if not cell_known.all():
        by_graph = np.repeat(~cell_known, degree)
        probabilities[by_graph] = normalized(graph.data, degree)[by_graph]
    if ends is not None:
        probabilities = _settled(probabilities, graph, ends)
    if options.threshold is not None:
        probabilities = _thresholded(probabilities, degree, options.threshold)
    matrix = sp.csr_matrix((probabilities, graph.indices.copy(), graph.indptr.copy()), shape=graph.shape)
    if options.threshold is not None:
        matrix.eliminate_zeros()
    isolated = degree == 0
    if isolated.any():
        matrix = sp.csr_matrix(matrix + sp.diags(isolated.astype(np.float64)))
    return Transitions(
        matrix=matrix,
        logits=sp.csr_matrix((logits, graph.indices.copy(), graph.indptr.copy()), shape=graph.shape),
        softmax_scale=scale,
        n_fallback=int((~cell_known & ~isolated).sum()),
        n_isolated=int(isolated.sum()),
    )


def effective_neighbors(matrix: sp.csr_matrix) -> NDArray[np.float64]:
    """Return the effective number of targets of each cell, the exponential of its entropy, shape ``[n_cells]``."""
    p = matrix.data
    terms = np.where(p > 0, -p * np.log(np.where(p > 0, p, 1.0)), 0.0)
    return np.exp(np.bincount(np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)), terms, matrix.shape[0]))


def condition_number(matrix: sp.csr_matrix) -> float:
    """Estimate the condition number of a transition matrix without a dense copy of it, infinite if it is singular.

    Up to 20 000 cells in the 1-norm, from a sparse factorisation :cite:`higham:00`; above, LSMR's lower bound.
    """
    if matrix.shape[0] > FACTORIZE_BELOW:
        return float(lsmr(matrix, np.ones(matrix.shape[0]), maxiter=200)[6])
    try:
        factors = splu(sp.csc_matrix(matrix))
    except RuntimeError:  # exactly singular
        return float("inf")
    inverse = LinearOperator(
        matrix.shape,
        matvec=factors.solve,
        rmatvec=lambda b: factors.solve(b, "T"),
        matmat=factors.solve,
        rmatmat=lambda b: factors.solve(b, "T"),
        dtype=np.float64,
    )
    # With one column the estimator draws no random numbers.
    return float(onenormest(matrix, t=1) * onenormest(inverse, t=1))


def _within_memory(
    graph: sp.csr_matrix,
    velocity: NDArray[np.float64],
    options: TransitionOptions,
    ends: NDArray[Any] | None,
    run: Run,
) -> Run:
    """Return how to run within the memory."""
    # Similarities, probabilities, what finds their median, and the indices of two matrices.
    of_edge = (
        (3 + 2 * options.weighted) * 8
        + 2 * graph.indices.itemsize
        + 1
        + 64 * (ends is not None)
        + 48 * (options.threshold is not None)
    )
    of_edge += 0 if _is_clean(graph) else 8 + graph.indices.itemsize
    needed = graph.nnz * of_edge + 3 * velocity.nbytes
    if options.model == "monte_carlo":
        needed += 24 * graph.nnz + 8 * velocity.nbytes
    return run.limited(needed, 4 * 8 * BLOCK_EDGES, "the transition matrix")


def _with_edges(graph: sp.csr_matrix) -> sp.csr_matrix:
    """Return the graph in sorted rows, each edge once and none of zero; the caller's stays as it is."""
    graph = sp.csr_matrix(graph)
    if _is_clean(graph):
        return graph
    graph = sp.csr_matrix(graph, dtype=np.float64, copy=True)
    graph.sum_duplicates()
    graph.eliminate_zeros()
    return graph


def _is_clean(graph: sp.csr_matrix) -> bool:
    """Return whether the graph is in double precision, in sorted rows, each edge once and none of zero."""
    return bool(graph.dtype == np.float64 and graph.has_canonical_format and graph.data.all())


def _edges_with_velocity(known: NDArray[np.bool_], graph: sp.csr_matrix, transpose: bool) -> NDArray[np.bool_] | None:
    """Return which edges have a velocity to compare with; ``None`` where all have."""
    if known.all():
        return None
    return known[graph.indices] if transpose else np.repeat(known, np.diff(graph.indptr))


def _sums(values: NDArray[Any], indptr: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return the sum of the edges' values in each row."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return np.asarray(total[indptr[1:]] - total[indptr[:-1]])


def _reciprocal(similarities: NDArray[np.float64]) -> float:
    """Return one over the median absolute similarity, one where that is zero; this reorders the similarities."""
    median = float(np.median(similarities, overwrite_input=True)) if similarities.size else 0.0
    return 1.0 / median if median > 0 else 1.0


def _scale_of_neighbors(logits: NDArray[np.float64], indptr: NDArray[np.int32], cells: NDArray[np.int64]) -> float:
    """Return the scale that leaves ``EFFECTIVE_SHARE`` of the neighbours effective in the median of the given cells."""
    cells = cells[:: -(-cells.size // SCALE_CELLS)] if cells.size else cells
    degree = np.diff(indptr)[cells]
    starts = np.cumsum(degree) - degree
    edges = np.arange(degree.sum()) + np.repeat(indptr[cells] - starts, degree)
    if not edges.size:
        return 1.0
    below = logits[edges] - np.repeat(np.maximum.reduceat(logits[edges], starts), degree)
    spread = float(np.median(np.abs(below)))
    if spread == 0:
        return 1.0

    def excess(log_scale: float) -> float:
        shifted = below * (np.exp(log_scale) / spread)
        weights = np.exp(shifted)
        total = np.add.reduceat(weights, starts)
        entropy = np.log(total) - np.add.reduceat(weights * shifted, starts) / total
        return float(np.median((np.exp(entropy) - 1) / (degree - 1))) - EFFECTIVE_SHARE

    # Where more than half of the cells have several best neighbours, no scale is sharp enough: take a sharp one.
    low, high = np.log(1e-3), np.log(1e3)
    return float(np.exp(brentq(excess, low, high, xtol=1e-12) if excess(high) < 0 else high) / spread)


def _known_std(
    velocity_std: NDArray[np.float64] | None, known: NDArray[np.bool_], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return the standard deviations, zero where the velocity is unknown."""
    if velocity_std is None:
        raise ValueError('Expected `velocity_std` for `model="monte_carlo"`, found none.')
    std = np.asarray(velocity_std, dtype=np.float64)
    if std.shape != shape:
        raise ValueError(f"Expected `velocity_std` of shape `{shape}`, found `{std.shape}`.")
    std = np.where(known[:, None], std, 0.0)
    bad = ~(np.isfinite(std) & (std >= 0)).all(axis=1)
    if bad.any():
        raise ValueError(
            f"Expected `velocity_std` to be finite and not negative, found `{bad.sum()}` cells where it is not, "
            f"the first is cell `{bad.argmax()}`."
        )
    return std


def _settled(
    p: NDArray[np.float64], graph: sp.csr_matrix, ends: NDArray[np.int64] | NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return probabilities with which cells at an end mostly step to others at the same end."""
    degree = np.diff(graph.indptr)
    number = np.where(ends, 0, -1) if ends.dtype == bool else ends
    edges = np.flatnonzero(np.repeat(number >= 0, degree))  # few cells are at an end
    row = np.repeat(np.arange(degree.size), degree)[edges]
    among = np.where(number[graph.indices[edges]] == number[row], graph.data[edges], 0.0)
    total = np.bincount(row, among, minlength=degree.size)[row]
    share = np.divide(among, total, out=np.zeros_like(among), where=total > 0)
    settled = p.copy()
    settled[edges] = np.where(total > 0, (1 - LEAVE_END) * share + LEAVE_END * p[edges], p[edges])
    return settled


def _thresholded(p: NDArray[np.float64], degree: NDArray[np.int64], threshold: float) -> NDArray[np.float64]:
    filled = degree > 0
    largest = np.repeat(np.maximum.reduceat(p, (np.cumsum(degree) - degree)[filled]), degree[filled])
    return normalized(np.where((p >= threshold) | (p == largest), p, 0.0), degree)
