"""Transition probabilities from velocities: one similarity per edge of the neighbour graph, then a softmax per cell.

Depends on edge_rows, monte_carlo and similarities, numpy, scipy and torch; knows neither AnnData nor CellRank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.sparse.linalg import LinearOperator, lsmr, onenormest, splu

from cellrank_velot._utils.memory import jobs_within
from cellrank_velot._utils.parallel import count_jobs
from cellrank_velot._utils.validation import check_choice, check_integer, check_number, check_seed
from cellrank_velot.graph.rows import BLOCK_EDGES, normalized, softmax
from cellrank_velot.transitions.monte_carlo import mean_probabilities
from cellrank_velot.transitions.similarities import Similarity, SimilarityFunction, check_similarity, edge_similarities

__all__ = [
    "BackwardMode",
    "Model",
    "ScaleRule",
    "Similarity",
    "SimilarityFunction",
    "Transitions",
    "check_similarity",
    "check_transition_options",
    "compute_transitions",
    "condition_number",
    "edge_similarities",
    "effective_neighbors",
]

BackwardMode = Literal["transpose", "negate"]
Model = Literal["deterministic", "monte_carlo"]
ScaleRule = Literal["auto", "median"]

# Above this many cells a factorisation fills too much memory, and the condition number is bounded iteratively.
FACTORIZE_BELOW = 20_000
# Share of a cell's neighbours, itself one of them set aside, that `softmax_scale="auto"` leaves effective.
EFFECTIVE_SHARE = 0.5
# Share of the steps of a cell at an end that may lead away from the ends: without, the chain would fall into pieces.
LEAVE_END = 0.1
# Cells that tell that scale: more move it by less than a percent.
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
    >>> bool(np.isclose(found.softmax_scale, 1 / np.median(abs(found.logits.data))))
    True
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
    *,
    similarity: Similarity | SimilarityFunction = "cosine",
    softmax_scale: float | ScaleRule | None = None,
    variance_stabilize: bool = False,
    backward_mode: BackwardMode | None = None,
    threshold: float | None = None,
    ends: NDArray[np.bool_] | None = None,
    loadings: NDArray[np.float64] | None = None,
    model: Model = "deterministic",
    velocity_std: NDArray[np.float64] | None = None,
    n_samples: int = 64,
    random_state: int = 0,
    device: str | torch.device = "cpu",
    n_jobs: int | None = None,
    memory_limit: float | str | None = None,
    show_progress_bar: bool = False,
) -> Transitions:
    r"""Turn velocities into transition probabilities along the neighbour graph.

    With the similarity :math:`\pi_{ij}` of the velocity of cell i and the displacement to its neighbour j,
    :math:`T_{ij} = \exp(\pi_{ij} / \sigma^2) / \sum_k \exp(\pi_{ik} / \sigma^2)`. The model ``"monte_carlo"`` takes
    the mean of :math:`T_{ij}` over velocities drawn around the given ones, so that an uncertain velocity makes a row
    flatter.

    Parameters
    ----------
    x
        Positions of shape ``[n_cells, n_dims]``.
    velocity
        Velocities of shape ``[n_cells, n_dims]``; NaN or zero where unknown.
    graph
        Neighbour graph of shape ``[n_cells, n_cells]``.
    similarity
        ``"cosine"``; ``"correlation"``, the cosine after each vector is centred; ``"dot_product"``; or a function of
        velocities and displacements, both of shape ``[n_edges, n_dims]``, that returns shape ``[n_edges]``.
    softmax_scale
        :math:`1 / \sigma^2`, or a rule: ``"median"``, which is taken where not given, is one over the median of
        :math:`|\pi_{ij}|`; ``"auto"`` leaves half of the neighbours effective in the median cell,
        :math:`(e^{H_i} - 1) / (k_i - 1) = 1/2` with the entropy :math:`H_i` of the row and its :math:`k_i` neighbours.
    variance_stabilize
        Whether to replace each component :math:`a` of both vectors by :math:`\mathrm{sign}(a) \sqrt{|a|}`.
    backward_mode
        ``None`` for the forward process; ``"transpose"`` compares the displacement from the neighbour with the
        neighbour's velocity, ``"negate"`` turns the velocities around.
    threshold
        Probabilities below are dropped, the largest of each cell excepted; nothing where not given.
    ends
        Cells at which the process ends, shape ``[n_cells]``: nine of ten of their steps lead, by the weights of the
        graph, to neighbours that are such cells, too, where there are any. None where not given.
    loadings
        Matrix of shape ``[n_dims, n_genes]`` that takes both vectors to genes before they are compared; they are
        compared in the basis where not given.
    model
        ``"deterministic"``, or ``"monte_carlo"`` for the mean over sampled velocities, at the softmax scale of the
        given ones.
    velocity_std
        Standard deviation of the error of each velocity, normal and independent by dimension, shape
        ``[n_cells, n_dims]``; needed by ``"monte_carlo"``, and not read where the velocity is unknown.
    n_samples
        Number of velocities drawn per cell, best an even number: they come in pairs, mirrored at the given velocity.
    random_state
        Seed of the samples.
    device
        Torch device that works on the edges.
    n_jobs
        Number of jobs on the CPU, see :func:`cellrank_velot.transport.velocity.compute_velocity`. The result is the
        same.
    memory_limit
        Bytes, or ``"4 GB"``, that this process may take besides what it holds, the result included.
    show_progress_bar
        Whether to show a progress bar.

    Returns
    -------
    The matrix, and what it was made from.

    Raises
    ------
    MemoryError
        If ``memory_limit`` is too low for so many edges.
    TypeError
        If an option is of the wrong type.
    ValueError
        If an option is unknown or out of range, or ``velocity_std`` is missing, of another shape, negative or NaN.

    Notes
    -----
    Cosine and exponential kernel as in :cite:`bergen:20`, the schemes as in :cite:`lange:22`. Named similarities of
    the forward process and of ``"negate"`` sample all edges of a cell at once; a function or ``"transpose"`` takes as
    long as `n_samples` deterministic matrices.

    Examples
    --------
    >>> from cellrank_velot.transitions.matrix import compute_transitions
    >>> found = compute_transitions(
    ...     vk.cells.x, vk.velocity, vk.connectivities, softmax_scale=4.0
    ... )
    >>> bool(np.allclose(found.matrix.sum(axis=1), 1))
    True
    """
    check_transition_options(softmax_scale, backward_mode, threshold, model, n_samples, random_state)
    if memory_limit is not None:
        # Similarities, probabilities, what finds their median, and the indices of two matrices.
        of_edge = 3 * 8 + 2 * graph.indices.itemsize + 1 + 64 * (ends is not None) + 48 * (threshold is not None)
        of_edge += 0 if _is_clean(graph) else 8 + graph.indices.itemsize
        needed = graph.nnz * of_edge + 3 * velocity.nbytes
        if model == "monte_carlo":
            needed += 24 * graph.nnz + 8 * velocity.nbytes
        n_jobs = jobs_within(memory_limit, needed, 4 * 8 * BLOCK_EDGES, count_jobs(n_jobs), "the transition matrix")
    graph = _with_edges(graph)
    known = np.isfinite(velocity).all(axis=1) & (velocity != 0).any(axis=1)
    std = _known_std(velocity_std, known, velocity.shape) if model == "monte_carlo" else None
    velocity = np.where(known[:, None], -velocity if backward_mode == "negate" else velocity, 0.0)
    transpose = backward_mode == "transpose"
    options: dict[str, Any] = {
        "variance_stabilize": variance_stabilize,
        "loadings": loadings,
        "device": device,
        "n_jobs": n_jobs,
    }
    logits = edge_similarities(
        *(x, velocity, graph, similarity), transpose=transpose, show_progress_bar=show_progress_bar, **options
    )
    degree = np.diff(graph.indptr)
    # An edge tells something where the velocity that it is compared with is known.
    told = _told(known, graph, transpose)
    informed = degree > 0 if told is None else np.asarray(_sums(told, graph.indptr) > 0)
    if softmax_scale in (None, "median"):
        scale = _reciprocal(np.abs(logits if told is None else logits[told]))
    elif softmax_scale == "auto":
        scale = _scale_of_neighbors(logits, graph.indptr, np.flatnonzero(informed & (degree > 1)))
    else:
        scale = float(softmax_scale)
    probabilities = softmax(logits, graph.indptr, scale, n_jobs)
    if std is not None and std.any():
        probabilities = mean_probabilities(
            *(probabilities, x, velocity, std, graph, scale, similarity),
            n_samples=n_samples,
            random_state=random_state,
            transpose=transpose,
            **options,
        )
    if not informed.all():
        by_graph = np.repeat(~informed, degree)
        probabilities[by_graph] = normalized(graph.data, degree)[by_graph]
    if ends is not None:
        probabilities = _settled(probabilities, graph, ends)
    if threshold is not None:
        probabilities = _thresholded(probabilities, degree, threshold)
    matrix = sp.csr_matrix((probabilities, graph.indices.copy(), graph.indptr.copy()), shape=graph.shape)
    if threshold is not None:
        matrix.eliminate_zeros()
    isolated = degree == 0
    if isolated.any():
        matrix = sp.csr_matrix(matrix + sp.diags(isolated.astype(np.float64)))
    return Transitions(
        matrix=matrix,
        logits=sp.csr_matrix((logits, graph.indices.copy(), graph.indptr.copy()), shape=graph.shape),
        softmax_scale=scale,
        n_fallback=int((~informed & ~isolated).sum()),
        n_isolated=int(isolated.sum()),
    )


def check_transition_options(
    softmax_scale: Any = None,
    backward_mode: Any = None,
    threshold: Any = None,
    model: Any = "deterministic",
    n_samples: Any = 64,
    random_state: Any = 0,
) -> None:
    """Refuse bad options of :func:`compute_transitions` before anything is computed.

    Raises
    ------
    TypeError
        If one is of the wrong type.
    ValueError
        If one is unknown or out of range.
    """
    if isinstance(softmax_scale, str):
        check_choice("softmax_scale", softmax_scale, ScaleRule)
    elif softmax_scale is not None:
        check_number("softmax_scale", softmax_scale, low=0, open_low=True)
    if backward_mode is not None:
        check_choice("backward_mode", backward_mode, BackwardMode)
    if threshold is not None:
        check_number("threshold", threshold, low=0, high=1, open_high=True)
    check_choice("model", model, Model)
    check_integer("n_samples", n_samples, low=1)
    check_seed(random_state)


def effective_neighbors(matrix: sp.csr_matrix) -> NDArray[np.float64]:
    """Return the effective number of targets of each cell, the exponential of its entropy, shape ``[n_cells]``.

    Parameters
    ----------
    matrix
        Transition matrix of shape ``[n_cells, n_cells]``.

    Examples
    --------
    >>> import scipy.sparse as sp
    >>> from cellrank_velot.transitions.matrix import effective_neighbors
    >>> effective_neighbors(sp.csr_matrix([[0.5, 0.5], [0.0, 1.0]])).round(6).tolist()
    [2.0, 1.0]
    """
    p = matrix.data
    terms = np.where(p > 0, -p * np.log(np.where(p > 0, p, 1.0)), 0.0)
    return np.exp(np.bincount(np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)), terms, matrix.shape[0]))


def condition_number(matrix: sp.csr_matrix) -> float:
    """Estimate the condition number of a transition matrix without a dense copy of it.

    Parameters
    ----------
    matrix
        Matrix of shape ``[n_cells, n_cells]``.

    Returns
    -------
    Up to 20 000 cells the condition number in the 1-norm, estimated from a sparse factorisation as in
    :cite:`higham:00`, infinite for a singular matrix; above, the lower bound that LSMR accumulates.

    Examples
    --------
    >>> import scipy.sparse as sp
    >>> from cellrank_velot.transitions.matrix import condition_number
    >>> round(float(condition_number(sp.csr_matrix([[0.5, 0.5], [0.0, 1.0]]))), 6)
    3.0
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


def _told(known: NDArray[np.bool_], graph: sp.csr_matrix, transpose: bool) -> NDArray[np.bool_] | None:
    """Return which edges have a velocity to compare with; nothing where all have."""
    if known.all():
        return None
    return known[graph.indices] if transpose else np.repeat(known, np.diff(graph.indptr))


def _sums(values: NDArray[Any], indptr: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return the sum of the edges' values in each row."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return np.asarray(total[indptr[1:]] - total[indptr[:-1]])


def _reciprocal(similarities: NDArray[np.float64]) -> float:
    """Return the customary scale, one over the median absolute similarity; one where that is zero.

    The similarities lose their order.
    """
    median = float(np.median(similarities, overwrite_input=True)) if similarities.size else 0.0
    return 1.0 / median if median > 0 else 1.0


def _scale_of_neighbors(logits: NDArray[np.float64], indptr: NDArray[np.int32], cells: NDArray[np.int64]) -> float:
    """Return the scale at which the given cells, each with two edges or more, keep their share of neighbours."""
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

    # Where more than half of the cells have ties for their best, no scale is sharp enough: take a sharp one.
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


def _settled(p: NDArray[np.float64], graph: sp.csr_matrix, ends: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return probabilities with which cells at an end mostly keep among themselves."""
    degree = np.diff(graph.indptr)
    among = np.where(np.repeat(ends, degree) & ends[graph.indices], graph.data, 0.0)
    row = np.repeat(np.arange(degree.size), degree)
    total = np.bincount(row, among, minlength=degree.size)[row]
    share = np.divide(among, total, out=np.zeros_like(p), where=total > 0)
    return np.where(total > 0, (1 - LEAVE_END) * share + LEAVE_END * p, p)


def _thresholded(p: NDArray[np.float64], degree: NDArray[np.int64], threshold: float) -> NDArray[np.float64]:
    filled = degree > 0
    largest = np.repeat(np.maximum.reduceat(p, (np.cumsum(degree) - degree)[filled]), degree[filled])
    return normalized(np.where((p >= threshold) | (p == largest), p, 0.0), degree)
