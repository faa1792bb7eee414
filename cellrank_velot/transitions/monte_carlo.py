"""Transition probabilities under the error of the velocities: their mean over samples."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.stats import chi

from cellrank_velot._utils import parallel
from cellrank_velot._utils.device import as_tensor, in_parts, resolve_device
from cellrank_velot._utils.lazy import torch
from cellrank_velot._utils.options import Run
from cellrank_velot._utils.parallel import blocks
from cellrank_velot.graph.rows import normalized, softmax
from cellrank_velot.transitions.options import Similarity, TransitionOptions
from cellrank_velot.transitions.similarities import (
    edge_similarities,
    elements_at_a_time,
    genes_on,
    transformed,
    unit_vectors,
)

__all__ = ["mean_probabilities"]


def mean_probabilities(
    certain: NDArray[np.float64],
    x: NDArray[np.float64],
    velocity: NDArray[np.float64],
    std: NDArray[np.float64],
    graph: sp.csr_matrix,
    weights: NDArray[np.float64] | None,
    scale: float,
    options: TransitionOptions,
    *,
    loadings: NDArray[np.float64] | None,
    run: Run,
) -> NDArray[np.float64]:
    """Return the mean probability of each edge over velocities drawn around the given ones, shape ``[n_edges]``.

    ``certain`` are the probabilities of the given ones, ``std`` is the error of each, shape ``[n_cells, n_dims]``.
    ``weights`` are the logarithms of the graph's over the scale, where these count.
    """
    rng = np.random.default_rng(options.random_state)
    normals = _standard_samples(options.n_samples, x.shape[1], rng)
    # Random signs for each cell make its sampling error independent of its neighbours'.
    spread = std * rng.choice([-1.0, 1.0], std.shape)
    sampled = (x, velocity, spread, normals, graph, weights, scale, options, loadings, run)
    if options.transpose or callable(options.similarity):
        return _mean_by_edge(*sampled)
    # A cell without an error keeps its row: the mean over samples is taken in single precision.
    uncertain = np.repeat(std.any(axis=1), np.diff(graph.indptr))
    return np.where(uncertain, _mean_by_cell(*sampled), certain)


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
    weights: NDArray[np.float64] | None,
    scale: float,
    options: TransitionOptions,
    loadings: NDArray[np.float64] | None,
    run: Run,
) -> NDArray[np.float64]:
    """Return the mean probability of each edge over samples, one deterministic matrix after the other."""
    quiet = replace(run, show_progress_bar=False)
    total = np.zeros(graph.indices.size)
    for normal in normals:
        sampled = velocity + spread * normal
        logits = edge_similarities(x, sampled, graph, options, loadings=loadings, run=quiet)
        total += softmax(logits if weights is None else logits + weights, graph.indptr, scale, run.n_jobs)
    return total / len(normals)


def _mean_by_cell(
    x: NDArray[np.float64],
    velocity: NDArray[np.float64],
    spread: NDArray[np.float64],
    normals: NDArray[np.float64],
    graph: sp.csr_matrix,
    weights: NDArray[np.float64] | None,
    scale: float,
    options: TransitionOptions,
    loadings: NDArray[np.float64] | None,
    run: Run,
) -> NDArray[np.float64]:
    """Return the mean probability of each edge over samples, all edges of cells of one degree at once."""
    where = resolve_device(run.device)
    bound = elements_at_a_time(where)
    width = x.shape[1] if loadings is None else max(loadings.shape)
    degree = np.diff(graph.indptr)
    order = np.argsort(degree, kind="stable")
    tasks = []
    for alike in np.split(order, np.flatnonzero(np.diff(degree[order])) + 1):
        n_edges = int(degree[alike[0]])
        step = max(1, bound // (width * (n_edges + len(normals)) + n_edges * len(normals)))
        tasks += [(alike[first:last],) for first, last in blocks(alike.size, step) if n_edges]
    arrays = (x, velocity, spread, normals, graph.indptr, graph.indices)
    shared = (*arrays, weights, scale, options.similarity, options.variance_stabilize, loadings, where)
    result = np.empty(graph.indices.size)
    found = parallel.run(_mean_of_cells, tasks, shared, n_jobs=run.n_jobs if where.type == "cpu" else 1)
    with closing(found):
        for (cells,), values in zip(tasks, found, strict=True):
            result[graph.indptr[cells][:, None] + np.arange(values.shape[1])] = values
    return normalized(result, degree)


def _mean_of_cells(
    x: NDArray[np.float64],
    velocity: NDArray[np.float64],
    spread: NDArray[np.float64],
    normals: NDArray[np.float64],
    indptr: NDArray[np.integer[Any]],
    indices: NDArray[np.integer[Any]],
    weights: NDArray[np.float64] | None,
    scale: float,
    similarity: Similarity,
    variance_stabilize: bool,
    loadings: NDArray[np.float64] | None,
    device: torch.device,
    cells: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Return the mean probabilities of the edges of some cells, which have as many each, shape ``[n, n_edges]``."""
    genes, _ = genes_on(loadings, x.shape[1], device)

    def means(some: NDArray[np.int64]) -> NDArray[np.float32]:
        edges = indptr[some][:, None] + np.arange(indptr[some[0] + 1] - indptr[some[0]])
        targets = indices[edges]
        here, there, v, s, standard = (
            as_tensor(values, device) for values in (x[some], x[targets], velocity[some], spread[some], normals)
        )
        vectors = (v[:, None] + s[:, None] * standard, there - here[:, None])
        unit_v, unit_d = (unit_vectors(transformed(a, genes, variance_stabilize), similarity) for a in vectors)
        # Single precision is three times as fast, and its error is thousands of times below that of the samples.
        logits = (scale * unit_v).float() @ unit_d.float().mT
        if weights is not None:
            logits = logits + as_tensor(scale * weights[edges], device).float()[:, None]
        return np.asarray(torch.softmax(logits, dim=2).mean(1).cpu().numpy())

    return np.concatenate([found for _, found in in_parts(means, [cells], "the transition matrix")])
