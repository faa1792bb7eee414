"""Transition probabilities from velocities: one similarity per edge of the neighbour graph, then a softmax per cell.

Depends on numpy, scipy and torch; knows neither AnnData nor CellRank.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, lsmr, onenormest, splu

from cellrank_velot._validation import check_choice, check_number

__all__ = [
    "BackwardMode",
    "Similarity",
    "SimilarityFunction",
    "Transitions",
    "check_similarity",
    "compute_transitions",
    "condition_number",
    "edge_similarities",
    "effective_neighbors",
]

logger = logging.getLogger("cellrank_velot")

Similarity = Literal["cosine", "correlation", "dot_product"]
BackwardMode = Literal["transpose", "negate"]
SimilarityFunction = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]

# Elements of the displacements held at a time, edges times dimensions: 2 MiB stay in a processor's cache.
CHUNK_ELEMENTS = 2**18
# Above this many cells a factorisation fills too much memory, and the condition number is bounded iteratively.
FACTORIZE_BELOW = 20_000


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
    softmax_scale: float | None = None,
    variance_stabilize: bool = False,
    backward_mode: BackwardMode | None = None,
    threshold: float | None = None,
    loadings: NDArray[np.float64] | None = None,
    device: str | torch.device = "cpu",
) -> Transitions:
    r"""Turn velocities into transition probabilities along the neighbour graph.

    With the similarity :math:`\pi_{ij}` of the velocity of cell i and the displacement to its neighbour j,
    :math:`T_{ij} = \exp(\pi_{ij} / \sigma^2) / \sum_k \exp(\pi_{ik} / \sigma^2)`.

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
        :math:`1 / \sigma^2`; one over the median of :math:`|\pi_{ij}|` where not given.
    variance_stabilize
        Whether to replace each component :math:`a` of both vectors by :math:`\mathrm{sign}(a) \sqrt{|a|}`.
    backward_mode
        ``None`` for the forward process; ``"transpose"`` compares the displacement from the neighbour with the
        neighbour's velocity, ``"negate"`` turns the velocities around.
    threshold
        Probabilities below are dropped, the largest of each cell excepted.
    loadings
        Matrix of shape ``[n_dims, n_genes]`` that takes both vectors to genes before they are compared.
    device
        Torch device that works on the edges.

    Raises
    ------
    ValueError
        If an option is unknown or out of range.

    Notes
    -----
    Cosine and exponential kernel as in :cite:`bergen:20`, the schemes as in :cite:`lange:22`.
    """
    if softmax_scale is not None:
        check_number("softmax_scale", softmax_scale, low=0, open_low=True)
    if threshold is not None:
        check_number("threshold", threshold, low=0, high=1, open_high=True)
    if backward_mode is not None:
        check_choice("backward_mode", backward_mode, BackwardMode)
    graph = _with_edges(graph)
    known = np.isfinite(velocity).all(axis=1) & (velocity != 0).any(axis=1)
    velocity = np.where(known[:, None], -velocity if backward_mode == "negate" else velocity, 0.0)
    transpose = backward_mode == "transpose"
    logits = edge_similarities(
        x,
        velocity,
        graph,
        similarity,
        variance_stabilize=variance_stabilize,
        transpose=transpose,
        loadings=loadings,
        device=device,
    )
    degree = np.diff(graph.indptr)
    # An edge tells something where the velocity that it is compared with is known.
    told = known[graph.indices] if transpose else np.repeat(known, degree)
    if softmax_scale is None:
        median = float(np.median(np.abs(logits[told]))) if told.any() else 0.0
        softmax_scale = 1.0 / median if median > 0 else 1.0
    informed = np.bincount(np.repeat(np.arange(x.shape[0]), degree)[told], minlength=x.shape[0]) > 0
    probabilities = _softmax(logits * softmax_scale, degree)
    by_graph = np.repeat(~informed, degree)
    probabilities[by_graph] = _normalized(graph.data, degree)[by_graph]
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
        softmax_scale=float(softmax_scale),
        n_fallback=int((~informed & ~isolated).sum()),
        n_isolated=int(isolated.sum()),
    )


def edge_similarities(
    x: NDArray[np.float64],
    velocity: NDArray[np.float64],
    graph: sp.csr_matrix,
    similarity: Similarity | SimilarityFunction = "cosine",
    *,
    variance_stabilize: bool = False,
    transpose: bool = False,
    loadings: NDArray[np.float64] | None = None,
    device: str | torch.device = "cpu",
) -> NDArray[np.float64]:
    """Compare, along each edge of the graph, velocity and displacement.

    Parameters are those of :func:`compute_transitions`; a zero vector has similarity zero.

    Returns
    -------
    Similarities in the order of ``graph.data``, shape ``[n_edges]``.
    """
    if not callable(similarity):
        check_choice("similarity", similarity, Similarity)
    positions, velocities = torch.tensor(x, device=device), torch.tensor(velocity, device=device)
    genes = None if loadings is None else torch.tensor(loadings, dtype=torch.float64, device=device)
    result = np.empty(graph.indices.size)
    width = x.shape[1] if genes is None else max(genes.shape)
    for rows, edges in _chunks(graph, width):
        source = torch.from_numpy(rows).to(device)
        target = torch.from_numpy(graph.indices[edges].astype(np.int64)).to(device)
        displacement = positions[target] - positions[source]
        at_edge = velocities[target] if transpose else velocities[source]
        if transpose:
            displacement = -displacement
        if genes is not None:
            displacement, at_edge = displacement @ genes, at_edge @ genes
        if variance_stabilize:
            displacement, at_edge = (a.sign() * a.abs().sqrt() for a in (displacement, at_edge))
        result[edges] = _compare(at_edge, displacement, similarity)
    return result


def check_similarity(similarity: Similarity | SimilarityFunction, n_dims: int) -> None:
    """Refuse an unknown similarity, or a function that does not return one finite number per edge.

    Raises
    ------
    ValueError
        If it is one of these, or a correlation of one dimension, which is always one.
    """
    if callable(similarity):
        v, d = torch.ones((3, n_dims), dtype=torch.float64), torch.eye(3, n_dims, dtype=torch.float64) + 0.5
        _compare(v, d, similarity)
    elif check_choice("similarity", similarity, Similarity) == "correlation" and n_dims < 2:
        raise ValueError("Expected at least `2` dimensions for a correlation, found `1`: use the cosine.")


def effective_neighbors(matrix: sp.csr_matrix) -> NDArray[np.float64]:
    """Return the effective number of targets of each cell, the exponential of its entropy, shape ``[n_cells]``."""
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
    graph = sp.csr_matrix(graph, dtype=np.float64, copy=True)
    graph.sum_duplicates()
    graph.eliminate_zeros()
    return graph


def _chunks(graph: sp.csr_matrix, width: int) -> Iterator[tuple[NDArray[np.int64], slice]]:
    """Yield the source cells of successive edges and the slice of these edges."""
    step = max(1, CHUNK_ELEMENTS // width)
    indptr = graph.indptr.astype(np.int64)
    for start in range(0, graph.indices.size, step):
        stop = min(start + step, graph.indices.size)
        first, last = np.searchsorted(indptr, [start, stop - 1], side="right") - 1
        inside = np.clip(indptr[first : last + 2], start, stop)
        yield np.repeat(np.arange(first, last + 1), np.diff(inside)), slice(start, stop)


def _compare(v: torch.Tensor, d: torch.Tensor, similarity: Similarity | SimilarityFunction) -> NDArray[np.float64]:
    if callable(similarity):
        values = np.asarray(similarity(v.cpu().numpy(), d.cpu().numpy()), dtype=np.float64)
        if values.shape != (v.shape[0],):
            raise ValueError(f"Expected `similarity` to return the shape `({v.shape[0]},)`, found `{values.shape}`.")
        if not np.isfinite(values).all():
            raise ValueError("Expected `similarity` to return finite values, found NaN or infinite ones.")
        return values
    if similarity == "correlation":
        v, d = v - v.mean(1, keepdim=True), d - d.mean(1, keepdim=True)
    product = (v * d).sum(1)
    if similarity != "dot_product":
        norm = v.norm(dim=1) * d.norm(dim=1)
        product = torch.where(norm > 0, product / torch.where(norm > 0, norm, 1.0), 0.0)
    return np.asarray(product.cpu().numpy(), dtype=np.float64)


def _softmax(values: NDArray[np.float64], degree: NDArray[np.int64]) -> NDArray[np.float64]:
    filled = degree > 0
    starts = (np.cumsum(degree) - degree)[filled]
    shifted = np.exp(values - np.repeat(np.maximum.reduceat(values, starts), degree[filled])) if values.size else values
    return _normalized(shifted, degree)


def _normalized(values: NDArray[np.float64], degree: NDArray[np.int64]) -> NDArray[np.float64]:
    """Divide the values of each row by their sum."""
    if not values.size:
        return values
    filled = degree > 0
    starts = (np.cumsum(degree) - degree)[filled]
    return np.asarray(values / np.repeat(np.add.reduceat(values, starts), degree[filled]))


def _thresholded(p: NDArray[np.float64], degree: NDArray[np.int64], threshold: float) -> NDArray[np.float64]:
    filled = degree > 0
    largest = np.repeat(np.maximum.reduceat(p, (np.cumsum(degree) - degree)[filled]), degree[filled])
    return _normalized(np.where((p >= threshold) | (p == largest), p, 0.0), degree)
