"""Similarity of velocity and displacement along each edge of the neighbour graph.

Named ones in compiled loops on the processor; a function of the user's, components that are stabilised, and other
devices in chunks of arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from tqdm.auto import tqdm

from cellrank_velot._utils import parallel
from cellrank_velot._utils.device import as_tensor, in_parts, resolve_device
from cellrank_velot._utils.lazy import torch
from cellrank_velot._utils.options import Run
from cellrank_velot._utils.parallel import blocks
from cellrank_velot._utils.validation import check_choice
from cellrank_velot.graph.compiled import edge_similarities as compiled_similarities
from cellrank_velot.graph.rows import joined, row_blocks
from cellrank_velot.transitions.options import Similarity, SimilarityFunction, TransitionOptions

__all__ = [
    "check_similarity",
    "edge_similarities",
    "elements_at_a_time",
    "genes_on",
    "transformed",
    "unit_vectors",
]

# Elements of the displacements held at a time, edges times dimensions: on a processor 2 MiB, which stay in its cache.
CHUNK_ELEMENTS = {"cpu": 2**18, "other": 2**26}
# Seconds before a progress bar is shown: it is rarely needed.
BAR_DELAY = 1.0


def edge_similarities(
    x: NDArray[np.float64],
    velocity: NDArray[np.float64],
    graph: sp.csr_matrix,
    options: TransitionOptions = TransitionOptions(),
    *,
    loadings: NDArray[np.float64] | None = None,
    run: Run = Run(),
) -> NDArray[np.float64]:
    """Compare, along each edge of the graph, velocity and displacement, shape ``[n_edges]`` as ``graph.data``.

    With ``loadings``, shape ``[n_dims, n_genes]``, vectors are compared among genes. A zero vector has similarity zero.
    """
    similarity, transpose = options.similarity, options.transpose
    where = resolve_device(run.device)
    x, velocity = (np.ascontiguousarray(values, dtype=np.float64) for values in (x, velocity))
    if _in_loops(options, where):
        if loadings is not None:
            root = _root(loadings, similarity)
            x, velocity = (x - x.mean(axis=0)) @ root, velocity @ root
        elif similarity == "correlation":
            x, velocity = (values - values.mean(axis=1, keepdims=True) for values in (x, velocity))
        return _similarities_in_loops(x, velocity, graph, options, run)
    positions, velocities = as_tensor(x, where), as_tensor(velocity, where)
    genes, width = genes_on(loadings, x.shape[1], where)
    result = np.empty(graph.indices.size)
    step = max(1, elements_at_a_time(where) // width)

    def compare(edges: range) -> NDArray[np.float64]:
        source = torch.from_numpy(_sources(graph, edges)).to(where)
        target = torch.from_numpy(graph.indices[edges.start : edges.stop].astype(np.int64)).to(where)
        displacement = positions[target] - positions[source]
        at_edge = velocities[target] if transpose else velocities[source]
        if transpose:
            displacement = -displacement
        at_edge, displacement = (transformed(a, genes, options.variance_stabilize) for a in (at_edge, displacement))
        return _compare(at_edge, displacement, similarity)

    parts = [range(*part) for part in blocks(result.size, step)]
    with tqdm(total=result.size, desc="edges", unit="edge", delay=BAR_DELAY, disable=not run.show_progress_bar) as bar:
        for edges, values in in_parts(compare, parts, "the transition matrix"):
            result[edges.start : edges.stop] = values
            bar.update(len(edges))
    return result


def check_similarity(similarity: Similarity | SimilarityFunction, n_dims: int) -> None:
    """Refuse an unknown similarity, or a function that does not return one finite number per edge."""
    if callable(similarity):
        v, d = torch.ones((3, n_dims), dtype=torch.float64), torch.eye(3, n_dims, dtype=torch.float64) + 0.5
        _compare(v, d, similarity)
    elif check_choice("similarity", similarity, Similarity) == "correlation" and n_dims < 2:
        raise ValueError("Expected at least `2` dimensions for a correlation, found `1`: use the cosine.")


def elements_at_a_time(device: torch.device) -> int:
    """Return how many numbers of the displacements are held at a time on a device."""
    return CHUNK_ELEMENTS["cpu" if device.type == "cpu" else "other"]


def genes_on(
    loadings: NDArray[np.float64] | None, n_dims: int, device: str | torch.device
) -> tuple[torch.Tensor | None, int]:
    """Return the loadings on the device, and the most numbers that a vector has before or after them."""
    if loadings is None:
        return None, n_dims
    return as_tensor(loadings, torch.device(device)), max(loadings.shape)


def transformed(a: torch.Tensor, genes: torch.Tensor | None, variance_stabilize: bool) -> torch.Tensor:
    """Return vectors, in the last dimension, as they are compared."""
    a = a if genes is None else a @ genes
    return a.sign() * a.abs().sqrt() if variance_stabilize else a


def unit_vectors(a: torch.Tensor, similarity: Similarity) -> torch.Tensor:
    """Return vectors whose product is the similarity; zero vectors stay zero."""
    if similarity == "dot_product":
        return a
    if similarity == "correlation":
        a = a - a.mean(-1, keepdim=True)
    norm = a.norm(dim=-1, keepdim=True)
    return a / torch.where(norm > 0, norm, 1.0)


def _in_loops(options: TransitionOptions, device: torch.device) -> bool:
    return device.type == "cpu" and not callable(options.similarity) and not options.variance_stabilize


def _similarities_in_loops(
    x: NDArray[np.float64],
    velocity: NDArray[np.float64],
    graph: sp.csr_matrix,
    options: TransitionOptions,
    run: Run,
) -> NDArray[np.float64]:
    """Compare along the edges, in compiled loops: the product, or the cosine, of vectors as they are."""
    rows = row_blocks(graph.indptr)
    shared = (x, velocity, graph.indptr, graph.indices, options.transpose, options.similarity != "dot_product")
    bar: dict[str, Any] = {"desc": "edges", "show_progress_bar": run.show_progress_bar, "delay": BAR_DELAY}
    found = parallel.run(compiled_similarities, rows, shared, n_jobs=run.n_jobs, **bar)
    return joined(found, rows, graph.indptr)


def _root(loadings: NDArray[np.float64], similarity: Similarity | SimilarityFunction) -> NDArray[np.float64]:
    """Return a matrix R, shape ``[n_dims, k]``, such that products of vectors times R are those among genes.

    With loadings L, R R' = L L', so that no vector of all genes is needed. For a correlation, L is centred over genes.
    """
    if similarity == "correlation":
        loadings = loadings - loadings.mean(axis=1, keepdims=True)
    left, singular, _ = np.linalg.svd(loadings, full_matrices=False)
    return np.asarray(left * singular)


def _sources(graph: sp.csr_matrix, edges: range) -> NDArray[np.int64]:
    """Return the source cells of successive edges."""
    first, last = np.searchsorted(graph.indptr, [edges.start, edges.stop - 1], side="right") - 1
    inside = np.clip(graph.indptr[first : last + 2], edges.start, edges.stop)
    return np.repeat(np.arange(first, last + 1), np.diff(inside))


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
