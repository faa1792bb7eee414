"""Transition probabilities from velocities: one similarity per edge of the neighbour graph, then a softmax per cell.

Also their mean over the error of the velocities, by sampling. Depends on compiled, numpy, scipy and torch; knows
neither AnnData nor CellRank.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.sparse.linalg import LinearOperator, lsmr, onenormest, splu
from scipy.stats import chi
from tqdm.auto import tqdm

from cellrank_velot._device import as_tensor, in_parts
from cellrank_velot._memory import jobs_within
from cellrank_velot._parallel import blocks, count_jobs, run
from cellrank_velot._validation import check_choice, check_integer, check_number
from cellrank_velot.compiled import edge_similarities as compiled_similarities
from cellrank_velot.compiled import row_softmax

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

logger = logging.getLogger("cellrank_velot")

Similarity = Literal["cosine", "correlation", "dot_product"]
BackwardMode = Literal["transpose", "negate"]
Model = Literal["deterministic", "monte_carlo"]
ScaleRule = Literal["auto", "median"]
SimilarityFunction = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]

# Elements of the displacements held at a time, edges times dimensions: on a processor 2 MiB, which stay in its cache.
CHUNK_ELEMENTS = {"cpu": 2**18, "other": 2**26}
# Edges of one task: some hundredths of a second.
BLOCK_EDGES = 2**19
# Seconds before a progress bar is shown: it is rarely needed.
BAR_DELAY = 1.0
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
        Probabilities below are dropped, the largest of each cell excepted.
    ends
        Cells at which the process ends, shape ``[n_cells]``: nine of ten of their steps lead, by the weights of
        the graph, to neighbours that are such cells, too, where there are any.
    loadings
        Matrix of shape ``[n_dims, n_genes]`` that takes both vectors to genes before they are compared.
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
        Number of jobs on the CPU, see :func:`cellrank_velot.velocity.compute_velocity`. The result is the same.
    memory_limit
        Bytes, or ``"4 GB"``, that this process may take besides what it holds, the result included.
    show_progress_bar
        Whether to show a progress bar.

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
    probabilities = _softmax(logits, graph.indptr, scale, n_jobs)
    if std is not None and std.any():
        rng = np.random.default_rng(random_state)
        normals = _standard_samples(n_samples, x.shape[1], rng)
        # Signs of its own make the sampling error of a cell independent of its neighbours'.
        spread = std * rng.choice([-1.0, 1.0], std.shape)
        sampled = (x, velocity, spread, normals, graph, scale)
        if transpose or callable(similarity):
            probabilities = _mean_by_edge(*sampled, similarity, transpose=transpose, **options)
        else:
            # A cell without an error keeps its row: the mean over samples is taken in single precision.
            uncertain = np.repeat(std.any(axis=1), degree)
            probabilities[uncertain] = _mean_by_cell(*sampled, similarity, **options)[uncertain]
    if not informed.all():
        by_graph = np.repeat(~informed, degree)
        probabilities[by_graph] = _normalized(graph.data, degree)[by_graph]
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
    n_jobs: int | None = None,
    show_progress_bar: bool = False,
) -> NDArray[np.float64]:
    """Compare, along each edge of the graph, velocity and displacement.

    Parameters are those of :func:`compute_transitions`; a zero vector has similarity zero.

    Returns
    -------
    Similarities in the order of ``graph.data``, shape ``[n_edges]``.
    """
    if not callable(similarity):
        check_choice("similarity", similarity, Similarity)
    where = torch.device(device)
    x, velocity = (np.ascontiguousarray(values, dtype=np.float64) for values in (x, velocity))
    loops = _has_loops(where) and not callable(similarity) and not variance_stabilize
    if loops:
        if loadings is not None:
            root = _root(loadings, similarity)
            x, velocity = (x - x.mean(axis=0)) @ root, velocity @ root
        elif similarity == "correlation":
            x, velocity = (values - values.mean(axis=1, keepdims=True) for values in (x, velocity))
        return _similarities_in_loops(x, velocity, graph, similarity, transpose, n_jobs, show_progress_bar)
    positions, velocities = as_tensor(x, where), as_tensor(velocity, where)
    genes, width = _genes(loadings, x.shape[1], where)
    result = np.empty(graph.indices.size)
    step = max(1, CHUNK_ELEMENTS["cpu" if where.type == "cpu" else "other"] // width)

    def compare(edges: range) -> NDArray[np.float64]:
        source = torch.from_numpy(_sources(graph, edges)).to(where)
        target = torch.from_numpy(graph.indices[edges.start : edges.stop].astype(np.int64)).to(where)
        displacement = positions[target] - positions[source]
        at_edge = velocities[target] if transpose else velocities[source]
        if transpose:
            displacement = -displacement
        at_edge, displacement = (_transformed(a, genes, variance_stabilize) for a in (at_edge, displacement))
        return _compare(at_edge, displacement, similarity)

    parts = [range(*part) for part in blocks(result.size, step)]
    with tqdm(total=result.size, desc="edges", unit="edge", delay=BAR_DELAY, disable=not show_progress_bar) as bar:
        for edges, values in in_parts(compare, parts, "the transition matrix"):
            result[edges.start : edges.stop] = values
            bar.update(len(edges))
    return result


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
    check_integer("random_state", random_state)


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


def _has_loops(device: torch.device) -> bool:
    return device.type == "cpu"


def _similarities_in_loops(
    x: NDArray[np.float64],
    velocity: NDArray[np.float64],
    graph: sp.csr_matrix,
    similarity: Similarity | SimilarityFunction,
    transpose: bool,
    n_jobs: int | None,
    show_progress_bar: bool,
) -> NDArray[np.float64]:
    """Compare along the edges, in compiled loops: the product, or the cosine, of vectors as they are."""
    rows = _row_blocks(graph.indptr)
    shared = (x, velocity, graph.indptr, graph.indices, transpose, similarity != "dot_product")
    bar: dict[str, Any] = {"desc": "edges", "show_progress_bar": show_progress_bar, "delay": BAR_DELAY}
    found = run(compiled_similarities, rows, shared, n_jobs=n_jobs, **bar)
    return _joined(found, rows, graph.indptr)


def _root(loadings: NDArray[np.float64], similarity: Similarity | SimilarityFunction) -> NDArray[np.float64]:
    """Return a matrix that takes vectors to where their products are those among genes.

    Products depend on the loadings by their products alone, so that no vector of genes is needed. For a correlation
    each vector is centred over the genes, and so are the loadings.
    """
    if similarity == "correlation":
        loadings = loadings - loadings.mean(axis=1, keepdims=True)
    left, singular, _ = np.linalg.svd(loadings, full_matrices=False)
    return np.asarray(left * singular)


def _row_blocks(indptr: NDArray[np.integer[Any]]) -> list[tuple[int, int]]:
    """Return successive rows of about as many edges each, as the first and the one after the last."""
    n_blocks = -(-int(indptr[-1]) // BLOCK_EDGES)
    at = np.unique(np.searchsorted(indptr, np.linspace(0, int(indptr[-1]), n_blocks + 1)[1:-1]))
    ends = np.unique([0, *at, indptr.size - 1])
    return [(int(first), int(last)) for first, last in pairwise(ends)]


def _joined(
    parts: Generator[NDArray[np.float64], None, None], rows: Sequence[tuple[int, int]], indptr: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """Return the values of all edges from those of successive rows."""
    result = np.empty(int(indptr[-1]))
    with closing(parts):
        for (first, last), values in zip(rows, parts, strict=True):
            result[indptr[first] : indptr[last]] = values
    return result


def _sources(graph: sp.csr_matrix, edges: range) -> NDArray[np.int64]:
    """Return the source cells of successive edges."""
    first, last = np.searchsorted(graph.indptr, [edges.start, edges.stop - 1], side="right") - 1
    inside = np.clip(graph.indptr[first : last + 2], edges.start, edges.stop)
    return np.repeat(np.arange(first, last + 1), np.diff(inside))


def _told(known: NDArray[np.bool_], graph: sp.csr_matrix, transpose: bool) -> NDArray[np.bool_] | None:
    """Return which edges have a velocity to compare with; nothing where all have."""
    if known.all():
        return None
    return known[graph.indices] if transpose else np.repeat(known, np.diff(graph.indptr))


def _sums(values: NDArray[Any], indptr: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return the sum of the edges' values in each row."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return np.asarray(total[indptr[1:]] - total[indptr[:-1]])


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


def _genes(
    loadings: NDArray[np.float64] | None, n_dims: int, device: str | torch.device
) -> tuple[torch.Tensor | None, int]:
    """Return the loadings on the device, and the most numbers that a vector has before or after them."""
    if loadings is None:
        return None, n_dims
    return as_tensor(loadings, torch.device(device)), max(loadings.shape)


def _transformed(a: torch.Tensor, genes: torch.Tensor | None, variance_stabilize: bool) -> torch.Tensor:
    """Return vectors, in the last dimension, as they are compared."""
    a = a if genes is None else a @ genes
    return a.sign() * a.abs().sqrt() if variance_stabilize else a


def _unit(a: torch.Tensor, similarity: Similarity) -> torch.Tensor:
    """Return vectors whose product is the similarity; zero vectors stay zero."""
    if similarity == "dot_product":
        return a
    if similarity == "correlation":
        a = a - a.mean(-1, keepdim=True)
    norm = a.norm(dim=-1, keepdim=True)
    return a / torch.where(norm > 0, norm, 1.0)


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


def _standard_samples(n_samples: int, n_dims: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw standard normal vectors that cover space evenly: mirrored pairs of orthogonal directions.

    With random signs of the dimensions each has the distribution of a plain sample. Orthogonal directions as in
    :cite:`yu:16`; the lengths are drawn from as many equal shares as there are pairs, one from each.
    """
    n_pairs = -(-n_samples // 2)
    n_blocks = -(-n_pairs // n_dims)
    directions = np.linalg.qr(rng.standard_normal((n_blocks, n_dims, n_dims)))[0].reshape(-1, n_dims)
    lengths = chi.ppf((rng.permutation(n_pairs) + rng.random(n_pairs)) / n_pairs, n_dims)
    half = directions[:n_pairs] * lengths[:, None]
    return np.asarray(np.concatenate([half, -half])[:n_samples])


def _mean_by_edge(
    x: NDArray[np.float64],
    velocity: NDArray[np.float64],
    spread: NDArray[np.float64],
    normals: NDArray[np.float64],
    graph: sp.csr_matrix,
    scale: float,
    similarity: Similarity | SimilarityFunction,
    **options: Any,
) -> NDArray[np.float64]:
    """Return the mean probability of each edge over samples, one deterministic matrix after the other."""
    total = np.zeros(graph.indices.size)
    for normal in normals:
        logits = edge_similarities(x, velocity + spread * normal, graph, similarity, **options)
        total += _softmax(logits, graph.indptr, scale, options["n_jobs"])
    return total / len(normals)


def _mean_by_cell(
    x: NDArray[np.float64],
    velocity: NDArray[np.float64],
    spread: NDArray[np.float64],
    normals: NDArray[np.float64],
    graph: sp.csr_matrix,
    scale: float,
    similarity: Similarity,
    *,
    variance_stabilize: bool,
    loadings: NDArray[np.float64] | None,
    device: str | torch.device,
    n_jobs: int | None,
) -> NDArray[np.float64]:
    """Return the mean probability of each edge over samples, all edges of cells of one degree at once."""
    where = torch.device(device)
    bound = CHUNK_ELEMENTS["cpu" if where.type == "cpu" else "other"]
    width = x.shape[1] if loadings is None else max(loadings.shape)
    degree = np.diff(graph.indptr)
    order = np.argsort(degree, kind="stable")
    tasks = []
    for alike in np.split(order, np.flatnonzero(np.diff(degree[order])) + 1):
        n_edges = int(degree[alike[0]])
        step = max(1, bound // (width * (n_edges + len(normals)) + n_edges * len(normals)))
        tasks += [(alike[first:last],) for first, last in blocks(alike.size, step) if n_edges]
    arrays = (x, velocity, spread, normals, graph.indptr, graph.indices)
    shared = (*arrays, scale, similarity, variance_stabilize, loadings, where)
    result = np.empty(graph.indices.size)
    found = run(_mean_of_cells, tasks, shared, n_jobs=n_jobs if where.type == "cpu" else 1)
    with closing(found):
        for (cells,), values in zip(tasks, found, strict=True):
            result[graph.indptr[cells][:, None] + np.arange(values.shape[1])] = values
    return _normalized(result, degree)


def _mean_of_cells(
    x: NDArray[np.float64],
    velocity: NDArray[np.float64],
    spread: NDArray[np.float64],
    normals: NDArray[np.float64],
    indptr: NDArray[np.integer[Any]],
    indices: NDArray[np.integer[Any]],
    scale: float,
    similarity: Similarity,
    variance_stabilize: bool,
    loadings: NDArray[np.float64] | None,
    device: torch.device,
    cells: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Return the mean probabilities of the edges of some cells, which have as many each, shape ``[n, n_edges]``."""
    genes, _ = _genes(loadings, x.shape[1], device)

    def means(some: NDArray[np.int64]) -> NDArray[np.float32]:
        targets = indices[indptr[some][:, None] + np.arange(indptr[some[0] + 1] - indptr[some[0]])]
        here, there, v, s, standard = (
            as_tensor(values, device) for values in (x[some], x[targets], velocity[some], spread[some], normals)
        )
        vectors = (v[:, None] + s[:, None] * standard, there - here[:, None])
        unit_v, unit_d = (_unit(_transformed(a, genes, variance_stabilize), similarity) for a in vectors)
        # Single precision is three times as fast, and its error thousands of times below that of the samples.
        logits = (scale * unit_v).float() @ unit_d.float().mT
        return np.asarray(torch.softmax(logits, dim=2).mean(1).cpu().numpy())

    return np.concatenate([found for _, found in in_parts(means, [cells], "the transition matrix")])


def _settled(p: NDArray[np.float64], graph: sp.csr_matrix, ends: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return probabilities with which cells at an end mostly keep among themselves."""
    degree = np.diff(graph.indptr)
    among = np.where(np.repeat(ends, degree) & ends[graph.indices], graph.data, 0.0)
    row = np.repeat(np.arange(degree.size), degree)
    total = np.bincount(row, among, minlength=degree.size)[row]
    share = np.divide(among, total, out=np.zeros_like(p), where=total > 0)
    return np.where(total > 0, (1 - LEAVE_END) * share + LEAVE_END * p, p)


def _softmax(
    values: NDArray[np.float64], indptr: NDArray[np.integer[Any]], scale: float, n_jobs: int | None
) -> NDArray[np.float64]:
    """Return the softmax of each row."""
    rows = _row_blocks(indptr)
    return _joined(run(row_softmax, rows, (values, indptr, scale), n_jobs=n_jobs), rows, indptr)


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
