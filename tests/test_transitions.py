"""Transition probabilities against the worked example, CellRank's own kernel, dense algebra, and degenerate graphs."""

import logging
import re
from dataclasses import dataclass

import cellrank as cr
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from scipy.stats import chi, ortho_group

from cellrank_velot._utils import options as options_module
from cellrank_velot._utils import parallel
from cellrank_velot._utils.options import Run
from cellrank_velot.graph import rows as edge_rows
from cellrank_velot.transitions import TransitionOptions as AllOptions
from cellrank_velot.transitions import (
    Transitions,
    check_similarity,
    condition_number,
    effective_neighbors,
    similarities,
)
from cellrank_velot.transitions import compute_transitions as compute_with_weights
from cellrank_velot.transitions import matrix as transitions_module
from cellrank_velot.transitions import monte_carlo as monte_carlo_module
from cellrank_velot.transitions.similarities import edge_similarities

NAMED = ("cosine", "correlation", "dot_product")


# Without the weights of the graph, as CellRank and dense algebra have it; tests of the weights say so.
@dataclass(frozen=True, kw_only=True)
class TransitionOptions(AllOptions):
    weighted: bool = False


def compute_transitions(x, velocity, graph, options=TransitionOptions(), **inputs) -> Transitions:
    return compute_with_weights(x, velocity, graph, options, **inputs)


@pytest.fixture
def velocity(planted) -> np.ndarray:
    """Return noisy velocities, such that no two edges are alike."""
    return planted.velocity + np.random.default_rng(5).normal(size=planted.velocity.shape)


def dense_logits(x, v, graph, similarity, transpose=False) -> np.ndarray:
    """Compare velocity and displacement edge by edge; zero where there is no edge."""
    logits = np.zeros(graph.shape)
    for i, j in zip(*graph.nonzero(), strict=True):
        a, d = (v[j], x[i] - x[j]) if transpose else (v[i], x[j] - x[i])
        if similarity == "correlation":
            a, d = a - a.mean(), d - d.mean()
        logits[i, j] = a @ d
        if similarity != "dot_product":
            logits[i, j] /= np.linalg.norm(a) * np.linalg.norm(d)
    return logits


def softmax(logits: np.ndarray, edges: np.ndarray, scale: float) -> np.ndarray:
    weights = np.where(edges, np.exp(scale * (logits - logits.max(1, keepdims=True))), 0)
    return weights / weights.sum(1, keepdims=True)


# ------------------------------------------------------------------------------------------- worked example
def test_worked_example():
    x = np.array([[2.0, 3.5, 1.0], [3.5, 2.5, 1.5]])
    v = np.array([[1.2, -0.5, 0.3], [0.0, 0.0, 0.0]])
    graph = sp.csr_matrix(np.array([[0.0, 1], [1, 0]]))
    dot = edge_similarities(x, v, graph, TransitionOptions(similarity="dot_product"))[0]
    assert dot == pytest.approx(2.45)
    plain = edge_similarities(x, v, graph)[0]
    assert plain == pytest.approx(2.45 / np.sqrt(3.5 * 1.78))
    assert round(plain, 2) == 0.98
    stabilised = edge_similarities(x, v, graph, TransitionOptions(variance_stabilize=True))[0]
    assert round(stabilised, 2) == 0.99


def test_variance_stabilisation_is_the_signed_root(planted, velocity):
    def root(d):
        return np.sign(d) * np.sqrt(np.abs(d))

    found = edge_similarities(planted.x, velocity, planted.graph, TransitionOptions(variance_stabilize=True))
    i, j = planted.graph.nonzero()
    a, d = root(velocity[i]), root(planted.x[j] - planted.x[i])
    expected = (a * d).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(d, axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-12)


# --------------------------------------------------------------------------------------- CellRank's own kernel
def host_kernel(adata: AnnData, velocity: np.ndarray, *, backward: bool = False):
    adata.obsm["velocity"] = velocity
    return cr.kernels.VelocityKernel(adata, backward=backward, attr="obsm", xkey="X_pca", vkey="velocity")


@pytest.mark.parametrize("similarity", NAMED)
@pytest.mark.parametrize("softmax_scale", [None, 4.0])
def test_forward_equals_cellrank_edge_by_edge(adata: AnnData, planted, velocity, similarity, softmax_scale):
    host = host_kernel(adata, velocity)
    host.compute_transition_matrix(similarity=similarity, softmax_scale=softmax_scale, show_progress_bar=False)
    ours = compute_transitions(
        planted.x,
        velocity,
        planted.graph,
        TransitionOptions(similarity=similarity, softmax_scale=softmax_scale or "median"),
    )
    np.testing.assert_allclose(ours.logits.toarray(), host.logits.toarray(), atol=1e-12)
    np.testing.assert_allclose(ours.matrix.toarray(), host.transition_matrix.toarray(), atol=1e-12)
    assert ours.softmax_scale == pytest.approx(softmax_scale or host.params["softmax_scale"], rel=1e-12)
    assert ours.n_fallback == ours.n_isolated == 0


@pytest.mark.parametrize("similarity", NAMED)
@pytest.mark.parametrize("mode", ["transpose", "negate"])
def test_backward_equals_cellrank_edge_by_edge(adata: AnnData, planted, velocity, similarity, mode):
    # A scale is given: without one CellRank negates twice, and its backward matrix is the forward one.
    host = host_kernel(adata, velocity.copy(), backward=True)
    host.compute_transition_matrix(
        similarity=similarity, softmax_scale=3.0, backward_mode=mode, show_progress_bar=False
    )
    ours = compute_transitions(
        planted.x,
        velocity,
        planted.graph,
        TransitionOptions(similarity=similarity, softmax_scale=3.0, backward_mode=mode),
    )
    np.testing.assert_allclose(ours.logits.toarray(), host.logits.toarray(), atol=1e-12)
    np.testing.assert_allclose(ours.matrix.toarray(), host.transition_matrix.toarray(), atol=1e-12)


def test_transposed_scale_equals_that_of_cellrank(adata: AnnData, planted, velocity):
    host = host_kernel(adata, velocity, backward=True)
    host.compute_transition_matrix(similarity="cosine", show_progress_bar=False)
    ours = compute_transitions(
        planted.x, velocity, planted.graph, TransitionOptions(softmax_scale="median", backward_mode="transpose")
    )
    assert ours.softmax_scale == pytest.approx(host.params["softmax_scale"], rel=1e-12)
    np.testing.assert_allclose(ours.matrix.toarray(), host.transition_matrix.toarray(), atol=1e-12)


@pytest.mark.parametrize("similarity", NAMED)
def test_negate_is_forward_on_the_negative_velocity(planted, velocity, similarity):
    before = velocity.copy()
    negated = compute_transitions(
        planted.x, velocity, planted.graph, TransitionOptions(similarity=similarity, backward_mode="negate")
    )
    forward = compute_transitions(planted.x, -velocity, planted.graph, TransitionOptions(similarity=similarity))
    np.testing.assert_array_equal(negated.matrix.toarray(), forward.matrix.toarray())
    np.testing.assert_array_equal(velocity, before)
    assert negated.softmax_scale == forward.softmax_scale
    usual = compute_transitions(planted.x, velocity, planted.graph, TransitionOptions(similarity=similarity))
    assert np.abs(negated.matrix - usual.matrix).max() > 0.1


# ------------------------------------------------------------------------------------------------ dense algebra
@pytest.mark.parametrize("similarity", NAMED)
@pytest.mark.parametrize("mode", [None, "transpose"])
def test_agrees_with_dense_algebra(planted, velocity, similarity, mode):
    logits = dense_logits(planted.x, velocity, planted.graph, similarity, transpose=mode == "transpose")
    edges = planted.graph.toarray() != 0
    ours = compute_transitions(
        planted.x,
        velocity,
        planted.graph,
        TransitionOptions(similarity=similarity, softmax_scale="median", backward_mode=mode),
    )
    np.testing.assert_allclose(ours.logits.toarray(), logits, atol=1e-12)
    scale = 1 / np.median(np.abs(logits[edges]))
    assert ours.softmax_scale == pytest.approx(scale)
    np.testing.assert_allclose(ours.matrix.toarray(), softmax(logits, edges, scale), atol=1e-12)
    np.testing.assert_allclose(ours.matrix.sum(1), 1, rtol=0, atol=1e-12)


def test_points_along_the_velocity(planted):
    inner = (planted.time > 0.1) & (planted.time < 0.9)  # the last cells have nowhere to go
    for mode, sign in ((None, 1), ("transpose", -1), ("negate", -1)):
        result = compute_transitions(
            planted.x, planted.velocity, planted.graph, TransitionOptions(softmax_scale=8.0, backward_mode=mode)
        )
        assert np.mean(sign * (result.matrix @ planted.time - planted.time)[inner] > 0) > 0.85


def in_chunks(monkeypatch, elements: int) -> None:
    """Work on so many numbers at a time, in loops as in arrays."""
    monkeypatch.setattr(similarities, "CHUNK_ELEMENTS", {"cpu": elements, "other": elements})
    monkeypatch.setattr(edge_rows, "BLOCK_EDGES", max(1, elements // 3))


@pytest.mark.parametrize("similarity", NAMED)
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("with_loadings", [False, True])
def test_loops_and_arrays_agree(planted, velocity, monkeypatch, similarity, transpose: bool, with_loadings: bool):
    loadings = np.random.default_rng(6).normal(size=(planted.x.shape[1], 12)) if with_loadings else None
    options = TransitionOptions(similarity=similarity, backward_mode="transpose" if transpose else None)
    loops = edge_similarities(planted.x, velocity, planted.graph, options, loadings=loadings)
    monkeypatch.setattr(similarities, "_in_loops", lambda options, device: False)
    arrays = edge_similarities(planted.x, velocity, planted.graph, options, loadings=loadings)
    np.testing.assert_allclose(loops, arrays, rtol=1e-11, atol=1e-11)


def test_single_precision_is_compared_in_double(planted, velocity):
    single = planted.x.astype(np.float32), velocity.astype(np.float32)
    expected = edge_similarities(*(values.astype(np.float64) for values in single), planted.graph)
    np.testing.assert_array_equal(edge_similarities(*single, planted.graph), expected)


@pytest.mark.parametrize("n_jobs", [2, 5])
@pytest.mark.parametrize("similarity", NAMED)
def test_number_of_jobs_does_not_matter(planted, velocity, monkeypatch, n_jobs: int, similarity):
    in_chunks(monkeypatch, 100)
    expected = compute_transitions(
        planted.x, velocity, planted.graph, TransitionOptions(similarity=similarity), run=Run(n_jobs=1)
    )
    found = compute_transitions(
        planted.x, velocity, planted.graph, TransitionOptions(similarity=similarity), run=Run(n_jobs=n_jobs)
    )
    np.testing.assert_array_equal(found.matrix.data, expected.matrix.data)
    np.testing.assert_array_equal(found.logits.data, expected.logits.data)


@pytest.mark.parametrize("elements", [1, 7, 50, 333, 10**9])
@pytest.mark.parametrize("transpose", [False, True])
def test_chunks_do_not_matter(planted, velocity, monkeypatch, elements: int, transpose: bool):
    options = TransitionOptions(backward_mode="transpose" if transpose else None)
    expected = edge_similarities(planted.x, velocity, planted.graph, options)
    in_chunks(monkeypatch, elements)
    found = edge_similarities(planted.x, velocity, planted.graph, options)
    np.testing.assert_array_equal(found, expected)


def test_chunks_step_over_isolated_cells(monkeypatch):
    rng = np.random.default_rng(0)
    x, v = rng.normal(size=(8, 2)), rng.normal(size=(8, 2))
    dense = np.zeros((8, 8))
    dense[[1, 1, 1, 4, 6, 6], [0, 2, 4, 1, 1, 7]] = 1  # nothing in rows 0, 2, 3, 5 and 7
    graph = sp.csr_matrix(dense)
    expected = dense_logits(x, v, graph, "cosine")[graph.nonzero()]
    for elements in (2, 4, 6, 100):
        in_chunks(monkeypatch, elements)
        np.testing.assert_allclose(edge_similarities(x, v, graph), expected, atol=1e-12)


def test_blocks_of_rows_have_as_many_edges_each(monkeypatch):
    monkeypatch.setattr(edge_rows, "BLOCK_EDGES", 4)
    assert edge_rows.row_blocks(np.arange(10)) == [(0, 3), (3, 6), (6, 9)]
    assert edge_rows.row_blocks(np.array([0, 0, 8, 8, 9, 10, 11, 12])) == [(0, 2), (2, 7)]
    assert edge_rows.row_blocks(np.array([0, 1, 2, 12])) == [(0, 3)]


@pytest.mark.parametrize("options", [{}, {"model": "monte_carlo", "n_samples": 4}])
def test_all_loops_get_the_number_of_jobs(planted, velocity, monkeypatch, options):
    asked = []
    for module in (edge_rows, parallel):
        inner = module.run
        monkeypatch.setattr(
            module, "run", lambda *args, _inner=inner, **kw: asked.append(kw["n_jobs"]) or _inner(*args, **kw)
        )
    compute_transitions(
        planted.x, velocity, planted.graph, TransitionOptions(**options), velocity_std=velocity**2, run=Run(n_jobs=3)
    )
    assert asked == [3] * (2 + len(options) // 2)


@pytest.mark.parametrize("similarity", NAMED)
@pytest.mark.parametrize("elements", [40, 2**21])
def test_genes_through_the_loadings(planted, velocity, monkeypatch, similarity, elements: int):
    in_chunks(monkeypatch, elements)
    loadings = np.random.default_rng(6).normal(size=(planted.x.shape[1], 12))
    through = compute_transitions(
        planted.x, velocity, planted.graph, TransitionOptions(similarity=similarity), loadings=loadings
    )
    direct = compute_transitions(
        planted.x @ loadings, velocity @ loadings, planted.graph, TransitionOptions(similarity=similarity)
    )
    np.testing.assert_allclose(through.matrix.toarray(), direct.matrix.toarray(), atol=1e-11)
    stabilised = [
        edge_similarities(
            planted.x, velocity, planted.graph, TransitionOptions(variance_stabilize=True), loadings=loadings
        ),
        edge_similarities(
            planted.x @ loadings, velocity @ loadings, planted.graph, TransitionOptions(variance_stabilize=True)
        ),
    ]
    np.testing.assert_allclose(*stabilised, atol=1e-7)  # roots of rounding errors


@pytest.mark.parametrize(
    ("options", "of_edge", "of_number"),
    [
        # Three numbers, two indices of four bytes and a flag of an edge; three numbers of each that the velocity has.
        ({}, 33, 24),
        ({"ends": np.arange(240) > 200}, 97, 24),
        ({"threshold": 0.1}, 81, 24),
        ({"model": "monte_carlo"}, 57, 88),
    ],
)
@pytest.mark.parametrize("stored_zero", [False, True])
def test_memory_that_is_asked_for(planted, velocity, monkeypatch, options, of_edge, of_number, stored_zero: bool):
    graph, asked, jobs = planted.graph.copy(), [], []
    graph.sum_duplicates()
    if stored_zero:  # a copy of the graph is made without it
        graph.data[0], of_edge = 0, of_edge + 12
    monkeypatch.setattr(options_module, "jobs_within", lambda *args: asked.append(args) or 2)
    run = edge_rows.run
    monkeypatch.setattr(edge_rows, "run", lambda *args, n_jobs: jobs.append(n_jobs) or run(*args, n_jobs=n_jobs))
    options, inputs = TransitionOptions.split(options)
    limited = Run(n_jobs=3, memory_limit="3 GB")
    compute_transitions(planted.x, velocity, graph, options, **inputs, velocity_std=0 * velocity, run=limited)
    needed = of_edge * graph.nnz + of_number * velocity.size
    assert asked == [("3 GB", needed, 2**24, 3, "the transition matrix")]
    assert jobs == [2]


# --------------------------------------------------------------------------------------------- invariances
def test_rotated_moved_and_scaled_cells_have_the_same_cosines(planted, velocity):
    expected = compute_transitions(planted.x, velocity, planted.graph).matrix.toarray()
    rotation = ortho_group.rvs(planted.x.shape[1], random_state=1)
    found = compute_transitions(3 * planted.x @ rotation - 8, 0.1 * velocity @ rotation, planted.graph)
    np.testing.assert_allclose(found.matrix.toarray(), expected, atol=1e-12)


def test_permuted_cells_have_permuted_probabilities(planted, velocity):
    order = np.random.default_rng(7).permutation(len(planted.x))
    expected = compute_transitions(planted.x, velocity, planted.graph).matrix[order][:, order]
    found = compute_transitions(planted.x[order], velocity[order], planted.graph[order][:, order])
    np.testing.assert_allclose(found.matrix.toarray(), expected.toarray(), atol=1e-14)


def test_order_of_the_edges_and_their_type_do_not_matter(planted, velocity):
    graph = planted.graph.copy()
    expected = compute_transitions(planted.x, velocity, graph)
    shuffled = graph.copy()
    for row in range(graph.shape[0]):  # reverse the entries of each row
        part = slice(graph.indptr[row], graph.indptr[row + 1])
        shuffled.indices[part], shuffled.data[part] = graph.indices[part][::-1], graph.data[part][::-1]
    shuffled.has_sorted_indices = False
    before = shuffled.indices.copy()
    found = compute_transitions(planted.x, velocity, shuffled)
    np.testing.assert_array_equal(found.matrix.toarray(), expected.matrix.toarray())
    np.testing.assert_array_equal(shuffled.indices, before)
    for other in (sp.csc_matrix(graph), graph != 0, graph.astype(np.float32)):
        found = compute_transitions(planted.x, velocity, other)
        np.testing.assert_allclose(found.matrix.toarray(), expected.matrix.toarray(), atol=1e-12)


def test_repeats_are_bit_equal_and_inputs_stay(planted, velocity):
    before = velocity.copy(), planted.graph.data.copy()
    first, second = (compute_transitions(planted.x, velocity, planted.graph) for _ in range(2))
    np.testing.assert_array_equal(first.matrix.data, second.matrix.data)
    np.testing.assert_array_equal(velocity, before[0])
    np.testing.assert_array_equal(planted.graph.data, before[1])


# ------------------------------------------------------------------------------------------ cells without
@pytest.mark.parametrize("bad", [0.0, np.nan])
@pytest.mark.parametrize("mode", [None, "negate"])
def test_cell_without_a_velocity_follows_the_graph(planted, velocity, bad: float, mode: str | None):
    cells = [3, 50, 51]
    velocity[cells] = bad
    result = compute_transitions(
        planted.x, velocity, planted.graph, TransitionOptions(softmax_scale="median", backward_mode=mode)
    )
    expected = planted.graph[cells] / planted.graph[cells].sum(1)
    np.testing.assert_allclose(result.matrix[cells].toarray(), expected.toarray(), atol=1e-14)
    assert result.n_fallback == 3
    assert np.isfinite(result.matrix.data).all()
    assert np.isfinite(result.logits.data).all()
    np.testing.assert_allclose(result.matrix.sum(1), 1, rtol=0, atol=1e-12)
    # The other rows are as if these cells were not there to be compared.
    others = np.setdiff1d(np.arange(240), cells)
    known = np.abs(result.logits[others].data)
    assert result.softmax_scale == pytest.approx(1 / np.median(known))


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float32])
def test_graph_of_another_type_is_followed_in_double_precision(planted, velocity, dtype: type):
    velocity[:3] = np.nan
    graph = (planted.graph != 0).astype(dtype)
    result = compute_transitions(planted.x, velocity, graph)
    expected = graph[:3].toarray() / graph[:3].getnnz(axis=1)[:, None]
    np.testing.assert_allclose(result.matrix[:3].toarray(), expected, rtol=1e-14)


def test_one_component_of_nan_makes_a_velocity_unknown(planted, velocity):
    velocity[9, 2] = np.nan
    result = compute_transitions(planted.x, velocity, planted.graph)
    assert result.n_fallback == 1
    assert np.isfinite(result.matrix.data).all()


def test_transposed_row_follows_the_graph_where_no_neighbour_has_a_velocity(planted, velocity):
    cell = 17
    neighbours = planted.graph[cell].indices
    velocity[neighbours] = np.nan
    result = compute_transitions(planted.x, velocity, planted.graph, TransitionOptions(backward_mode="transpose"))
    expected = (planted.graph[cell] / planted.graph[cell].sum()).toarray()
    np.testing.assert_allclose(result.matrix[cell].toarray(), expected, atol=1e-14)
    assert result.n_fallback >= 1
    np.testing.assert_allclose(result.matrix.sum(1), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", [None, "transpose", "negate"])
def test_no_velocity_at_all_gives_the_graph(planted, mode):
    result = compute_transitions(
        planted.x, np.full_like(planted.x, np.nan), planted.graph, TransitionOptions(backward_mode=mode)
    )
    expected = planted.graph.toarray() / planted.graph.toarray().sum(1, keepdims=True)
    np.testing.assert_allclose(result.matrix.toarray(), expected, atol=1e-14)
    assert result.n_fallback == 240
    assert result.softmax_scale == 1


@pytest.mark.parametrize("threshold", [None, 0.1])
def test_isolated_cells_stay(planted, velocity, threshold):
    cells = [0, 100, 239]
    keep = np.ones(240)
    keep[cells] = 0
    graph = sp.csr_matrix(sp.diags(keep) @ planted.graph @ sp.diags(keep))
    result = compute_transitions(planted.x, velocity, graph, TransitionOptions(threshold=threshold))
    np.testing.assert_array_equal(result.matrix[cells].toarray(), np.eye(240)[cells])
    assert result.n_isolated == 3
    assert result.n_fallback == 0
    np.testing.assert_allclose(result.matrix.sum(1), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("threshold", [None, 0.1])
def test_graph_without_edges(threshold):
    result = compute_transitions(
        np.eye(4), np.ones((4, 4)), sp.csr_matrix((4, 4)), TransitionOptions(threshold=threshold)
    )
    np.testing.assert_array_equal(result.matrix.toarray(), np.eye(4))
    assert result.n_isolated == 4


def test_stored_zero_is_no_edge(planted, velocity):
    graph = planted.graph.copy()
    graph.data = np.where(np.random.default_rng(8).random(graph.nnz) < 0.2, 0, graph.data)
    clean = graph.copy()
    clean.eliminate_zeros()
    result = compute_transitions(planted.x, velocity, graph)
    expected = compute_transitions(planted.x, velocity, clean)
    np.testing.assert_array_equal(result.matrix.toarray(), expected.matrix.toarray())
    assert result.logits.nnz == clean.nnz < graph.nnz


def test_edge_stored_twice_counts_once():
    graph = sp.csr_matrix((np.array([0.5, 0.5, 1, 1, 1]), np.array([1, 1, 2, 0, 0]), np.array([0, 3, 4, 5])))
    x, v = np.array([[0.0, 0], [1, 0], [0, 1]]), np.ones((3, 2))
    expected = compute_transitions(x, v, sp.csr_matrix(graph.toarray()), TransitionOptions(softmax_scale=1.0))
    found = compute_transitions(x, v, graph, TransitionOptions(softmax_scale=1.0))
    np.testing.assert_allclose(found.matrix.toarray(), expected.matrix.toarray(), atol=1e-14)


def test_neighbours_at_the_same_position_have_similarity_zero():
    x = np.array([[0.0, 0], [0, 0], [1, 0]])
    graph = sp.csr_matrix(np.ones((3, 3)) - np.eye(3))
    result = compute_transitions(x, np.ones((3, 2)), graph)
    assert result.logits[0, 1] == 0
    np.testing.assert_allclose(result.matrix.sum(1), 1, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
@pytest.mark.parametrize("similarity", NAMED)
def test_no_scale_overflows(planted, velocity, scale: float, similarity: str):
    result = compute_transitions(
        1e5 * planted.x, 1e5 * velocity, planted.graph, TransitionOptions(similarity=similarity, softmax_scale=scale)
    )
    assert np.isfinite(result.matrix.data).all()
    np.testing.assert_allclose(result.matrix.sum(1), 1, rtol=0, atol=1e-12)
    if scale > 1:
        best = result.logits.toarray() - 1e30 * (planted.graph.toarray() == 0)
        np.testing.assert_array_equal(result.matrix.toarray().argmax(1), best.argmax(1))
    elif similarity == "cosine":
        np.testing.assert_allclose(effective_neighbors(result.matrix), np.diff(planted.graph.indptr), rtol=1e-6)


@pytest.mark.parametrize("options", [{"threshold": 0.5}, {"model": "monte_carlo"}, {"ends": np.arange(4) > 1}])
def test_a_cell_of_one_neighbour_steps_to_it(options: dict):
    x = np.array([[0.0, 0], [1, 0], [2, 1], [3, 0]])
    graph = sp.csr_matrix(np.array([[0, 0.2, 0, 0], [0.2, 0, 0.5, 0], [0, 0.5, 0, 1], [0, 0, 1, 0]]))
    velocity = np.array([[np.nan, 0], [1, 0], [1, 1], [-1, -1]])
    options, inputs = TransitionOptions.split(options)
    result = compute_transitions(x, velocity, graph, options, **inputs, velocity_std=np.full((4, 2), 0.1))
    np.testing.assert_allclose(result.matrix[[0, 3]].toarray(), [[0, 1, 0, 0], [0, 0, 1, 0]], atol=1e-12)
    np.testing.assert_allclose(result.matrix.sum(1), 1, rtol=0, atol=1e-12)
    assert result.n_fallback == 1


# ------------------------------------------------------------------------------------------------ callables
def test_callable_gets_velocities_and_displacements(planted, velocity):
    shapes = []

    def gauss(v, d):
        shapes.append((v.shape, d.shape))
        return -((v - d) ** 2).sum(1)

    result = compute_transitions(
        planted.x, velocity, planted.graph, TransitionOptions(similarity=gauss, softmax_scale=0.1)
    )
    i, j = planted.graph.nonzero()
    expected = -((velocity[i] - (planted.x[j] - planted.x[i])) ** 2).sum(1)
    np.testing.assert_allclose(np.asarray(result.logits[i, j]).ravel(), expected, rtol=1e-12)
    assert shapes == [((planted.graph.nnz, 5),) * 2]


def test_callable_that_is_cosine_is_cosine(planted, velocity):
    def cosine(v, d):
        return (v * d).sum(1) / np.linalg.norm(v, axis=1) / np.linalg.norm(d, axis=1)

    for mode in (None, "transpose", "negate"):
        found = compute_transitions(
            planted.x, velocity, planted.graph, TransitionOptions(similarity=cosine, backward_mode=mode)
        )
        expected = compute_transitions(planted.x, velocity, planted.graph, TransitionOptions(backward_mode=mode))
        np.testing.assert_allclose(found.matrix.toarray(), expected.matrix.toarray(), atol=1e-12)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda v, d: np.zeros(3), r"`similarity` to return the shape `\(\d+,\)`, found `\(3,\)`"),
        (lambda v, d: v, r"`similarity` to return the shape `\(\d+,\)`, found `\(\d+, 5\)`"),
        (lambda v, d: np.full(len(v), np.nan), "`similarity` to return finite values, found NaN"),
    ],
)
def test_callable_must_return_one_number_per_edge(planted, velocity, function, message):
    with pytest.raises(ValueError, match=message):
        compute_transitions(planted.x, velocity, planted.graph, TransitionOptions(similarity=function))


def test_bar_counts_edges_and_is_not_shown_for_a_moment(planted, velocity, monkeypatch, capsys):
    options, run = TransitionOptions(variance_stabilize=True), Run(show_progress_bar=True)
    edge_similarities(planted.x, velocity, planted.graph, options, run=run)
    assert not capsys.readouterr().err
    monkeypatch.setattr(similarities, "BAR_DELAY", 0.0)
    edge_similarities(planted.x, velocity, planted.graph, options, run=run)
    shown = capsys.readouterr().err
    assert re.search(rf"edges: 100%.* {planted.graph.nnz}/{planted.graph.nnz} .*\dedge/s\]", shown), shown


def test_edges_on_a_small_device_are_compared_in_halves(planted, velocity, monkeypatch, caplog):
    expected = edge_similarities(planted.x, velocity, planted.graph, TransitionOptions(variance_stabilize=True))
    compare = similarities._compare

    def limited(v, *args):
        if len(v) > 100:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return compare(v, *args)

    monkeypatch.setattr(similarities, "_compare", limited)
    found = edge_similarities(planted.x, velocity, planted.graph, TransitionOptions(variance_stabilize=True))
    np.testing.assert_array_equal(found, expected)
    assert "at a time of the transition matrix: taking fewer" in caplog.text


def test_similarity_is_tried_on_vectors_that_differ():
    seen = []
    check_similarity(lambda v, d: seen.append((v, d)) or np.zeros(len(v)), 2)
    np.testing.assert_array_equal(seen[0][0], np.ones((3, 2)))
    np.testing.assert_array_equal(seen[0][1], [[1.5, 0.5], [0.5, 1.5], [0.5, 0.5]])
    assert seen[0][0].dtype == seen[0][1].dtype == np.float64
    for name in NAMED:
        check_similarity(name, 2)
    check_similarity("cosine", 1)
    with pytest.raises(ValueError, match="^Expected at least `2` dimensions for a correlation, found `1`: use the cos"):
        check_similarity("correlation", 1)
    with pytest.raises(ValueError, match=r"Expected `similarity` to be one of \['cosine', .*found `'euclidean'`"):
        check_similarity("euclidean", 2)
    with pytest.raises(ValueError, match=r"`similarity` to return the shape `\(3,\)`, found `\(2,\)`"):
        check_similarity(lambda v, d: np.zeros(2), 2)


# --------------------------------------------------------------------------------------------- softmax scale
@pytest.mark.parametrize("similarity", NAMED)
@pytest.mark.parametrize("mode", [None, "transpose", "negate"])
def test_auto_scale_leaves_half_of_the_neighbours(planted, velocity, similarity, mode):
    options = {"similarity": similarity, "backward_mode": mode, "softmax_scale": "auto"}
    result = compute_transitions(planted.x, velocity, planted.graph, TransitionOptions(**options))
    share = (effective_neighbors(result.matrix) - 1) / (np.diff(planted.graph.indptr) - 1)
    assert np.median(share) == pytest.approx(0.5, abs=1e-9)


def test_auto_scale_follows_the_units_of_the_similarity(planted, velocity):
    expected = compute_transitions(
        planted.x, velocity, planted.graph, TransitionOptions(similarity="dot_product", softmax_scale="auto")
    )
    found = compute_transitions(
        planted.x, 1e-7 * velocity, planted.graph, TransitionOptions(similarity="dot_product", softmax_scale="auto")
    )
    assert found.softmax_scale == pytest.approx(1e7 * expected.softmax_scale, rel=1e-8)
    np.testing.assert_allclose(found.matrix.toarray(), expected.matrix.toarray(), atol=1e-9)


@pytest.mark.parametrize("n_dims", [5, 20, 80])
@pytest.mark.parametrize("n_neighbors", [15, 30, 100])
def test_auto_scale_is_the_same_share_whatever_dimension_and_graph(n_dims: int, n_neighbors: int):
    rng = np.random.default_rng(n_dims)
    x, v = rng.normal(size=(400, n_dims)), rng.normal(size=(400, n_dims))
    targets = np.array([rng.permutation(np.delete(np.arange(400), i))[:n_neighbors] for i in range(400)])
    graph = sp.csr_matrix((np.ones(targets.size), targets.ravel(), np.arange(401) * n_neighbors), shape=(400, 400))
    result = compute_transitions(x, v, graph, TransitionOptions(softmax_scale="auto"))
    assert np.median(effective_neighbors(result.matrix)) == pytest.approx((n_neighbors + 1) / 2, rel=1e-6)
    # Cosines in a row vary by 1 / sqrt(2 * n_dims): were they normal, the scale would be sqrt(4 log 2 * n_dims).
    assert result.softmax_scale / np.sqrt(n_dims) == pytest.approx(1.82, abs=0.2)


def test_auto_scale_from_a_part_of_the_cells(planted, velocity, monkeypatch):
    expected = compute_transitions(
        planted.x, velocity, planted.graph, TransitionOptions(softmax_scale="auto")
    ).softmax_scale
    monkeypatch.setattr(transitions_module, "SCALE_CELLS", 100)
    found = compute_transitions(
        planted.x, velocity, planted.graph, TransitionOptions(softmax_scale="auto")
    ).softmax_scale
    assert found != expected
    assert found == pytest.approx(expected, rel=0.1)


def test_auto_scale_without_a_best_neighbour(planted, velocity):
    """Rows that are constant, or tied for their best, are uniform at any scale."""
    for function in (lambda v, d: np.ones(len(v)), lambda v, d: np.arange(len(v)) % 12 / 1e3 > 0):
        result = compute_transitions(
            planted.x,
            velocity,
            planted.graph,
            TransitionOptions(similarity=lambda v, d, f=function: f(v, d).astype(float), softmax_scale="auto"),
        )
        assert np.isfinite(result.softmax_scale)
        np.testing.assert_allclose(result.matrix.sum(1), 1, rtol=0, atol=1e-12)
    flat = compute_transitions(
        planted.x, velocity, planted.graph, TransitionOptions(similarity=lambda v, d: 0 * d[:, 0] + 7)
    )
    assert flat.softmax_scale == 1 / 7
    flat = compute_transitions(
        planted.x,
        velocity,
        planted.graph,
        TransitionOptions(similarity=lambda v, d: 0 * d[:, 0] + 7, softmax_scale="auto"),
    )
    assert flat.softmax_scale == 1
    single = compute_transitions(
        np.eye(4), np.ones((4, 4)), sp.csr_matrix(np.eye(4)[[1, 0, 3, 2]]), TransitionOptions(softmax_scale="auto")
    )
    assert single.softmax_scale == 1
    pairs = sp.csr_matrix(np.eye(240, k=1) + np.eye(240, k=-1))
    assert np.isfinite(
        compute_transitions(planted.x, velocity, pairs, TransitionOptions(softmax_scale="auto")).softmax_scale
    )


def test_the_customary_scale_is_the_default(planted, velocity):
    usual, named = (
        compute_transitions(planted.x, velocity, planted.graph, TransitionOptions(**options))
        for options in ({}, {"softmax_scale": "median"})
    )
    assert usual.softmax_scale == named.softmax_scale == 1 / np.median(np.abs(usual.logits.data))
    np.testing.assert_array_equal(usual.matrix.data, named.matrix.data)


# ---------------------------------------------------------------------------------------------------- the weights
@pytest.mark.parametrize("backward_mode", [None, "transpose", "negate"])
@pytest.mark.parametrize("similarity", ["cosine", "correlation"])
def test_weights_of_the_graph_multiply_the_softmax(planted, velocity, similarity, backward_mode):
    options = {"similarity": similarity, "backward_mode": backward_mode}
    graph = planted.graph.copy()
    graph.data = np.random.default_rng(3).uniform(0.01, 2, graph.nnz)
    plain = compute_transitions(planted.x, velocity, graph, TransitionOptions(**options, softmax_scale=2.0))
    found = compute_with_weights(planted.x, velocity, graph, AllOptions(**options))
    assert found.softmax_scale == 2
    expected = plain.matrix.multiply(graph).toarray()
    np.testing.assert_allclose(found.matrix.toarray(), expected / expected.sum(1, keepdims=True), atol=1e-12)
    same = compute_with_weights(planted.x, velocity, 1e-9 * graph, AllOptions(**options))  # their unit does not matter
    np.testing.assert_allclose(same.matrix.data, found.matrix.data, rtol=1e-9)


def test_equal_weights_change_nothing_and_other_similarities_keep_their_scale(planted, velocity):
    graph = planted.graph.copy()
    graph.data[:] = 0.3
    for options in ({"softmax_scale": 3.0}, {"similarity": "dot_product"}):
        plain = compute_transitions(planted.x, velocity, graph, TransitionOptions(**options))
        found = compute_with_weights(planted.x, velocity, graph, AllOptions(**options))
        assert found.softmax_scale == plain.softmax_scale
        np.testing.assert_allclose(found.matrix.data, plain.matrix.data, rtol=1e-10)


# ------------------------------------------------------------------------------------------------ Monte Carlo
@pytest.fixture
def std(velocity) -> np.ndarray:
    """Return errors of the size of the velocity, not the same in any two dimensions."""
    size = np.linalg.norm(velocity, axis=1, keepdims=True) / np.sqrt(velocity.shape[1])
    return size * np.random.default_rng(9).uniform(0.5, 1.5, size=velocity.shape)


def transitions(planted, velocity, **options):
    options, inputs = TransitionOptions.split(options)
    run, inputs = Run.split(inputs)
    return compute_transitions(planted.x, velocity, planted.graph, options, **inputs, run=run)


def brute_force(planted, velocity, std, scale, n=2000, **options) -> np.ndarray:
    """Return the mean over plain samples, one matrix after the other."""
    rng = np.random.default_rng(11)
    total = 0
    for _ in range(n):
        sampled = velocity + std * rng.normal(size=std.shape)
        total = total + transitions(planted, sampled, softmax_scale=scale, **options).matrix
    return total.toarray() / n


def monte_carlo(planted, velocity, std, **options):
    return transitions(planted, velocity, model="monte_carlo", velocity_std=std, **options)


def total_variation(first, second) -> float:
    """Return half the mean absolute difference of rows, in [0, 1]."""
    return 0.5 * np.abs(np.asarray(first) - np.asarray(second)).sum(1).mean()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"similarity": "correlation"},
        {"similarity": "dot_product"},
        {"variance_stabilize": True},
        {"backward_mode": "transpose"},
        {"backward_mode": "negate"},
        {"loadings": np.random.default_rng(12).normal(size=(5, 9))},
        {"similarity": lambda v, d: -np.abs(v - d).sum(1)},
        {"threshold": 0.02},
    ],
    ids=["default", "correlation", "dot", "stabilized", "transpose", "negate", "genes", "function", "threshold"],
)
def test_monte_carlo_agrees_with_brute_force(planted, velocity, std, options):
    usual = transitions(planted, velocity, **options)
    found = monte_carlo(planted, velocity, std, **options)
    assert found.softmax_scale == usual.softmax_scale
    np.testing.assert_array_equal(found.logits.data, usual.logits.data)
    np.testing.assert_allclose(found.matrix.sum(1), 1, rtol=0, atol=1e-12)
    options = {name: value for name, value in options.items() if name != "threshold"}
    expected = brute_force(planted, velocity, std, usual.softmax_scale, n=500, **options)
    distance = total_variation(found.matrix.toarray(), expected)
    assert distance < 0.04
    assert distance < 0.35 * total_variation(usual.matrix.toarray(), expected)


def test_monte_carlo_error_falls_with_the_samples(planted, velocity, std):
    scale = compute_transitions(planted.x, velocity, planted.graph).softmax_scale
    expected = brute_force(planted, velocity, std, scale)
    error = [
        total_variation(monte_carlo(planted, velocity, std, n_samples=n).matrix.toarray(), expected)
        for n in (4, 16, 64, 256)
    ]
    assert (np.diff(error) < 0).all()
    plain = brute_force(planted, velocity, std, scale, n=64)
    assert error[2] < 0.6 * total_variation(plain, expected)


def test_monte_carlo_without_an_error_is_deterministic(planted, velocity, std):
    for options in ({}, {"backward_mode": "transpose"}, {"similarity": "dot_product"}):
        expected = compute_transitions(
            planted.x, velocity, planted.graph, TransitionOptions(**options)
        ).matrix.toarray()
        found = monte_carlo(planted, velocity, np.zeros_like(std), **options)
        np.testing.assert_array_equal(found.matrix.toarray(), expected)
    expected = compute_transitions(planted.x, velocity, planted.graph).matrix
    std[::2] = 0
    found = monte_carlo(planted, velocity, std).matrix
    np.testing.assert_array_equal(found[::2].toarray(), expected[::2].toarray())
    assert total_variation(found[1::2].toarray(), expected[1::2].toarray()) > 0.03
    # and a small error is nearly none
    np.testing.assert_allclose(monte_carlo(planted, velocity, 1e-9 + 0 * std).matrix.data, expected.data, rtol=1e-4)


def test_uncertain_velocity_makes_rows_flatter(planted, velocity, std):
    neighbors = [
        np.median(effective_neighbors(monte_carlo(planted, velocity, factor * std).matrix)) for factor in (0, 0.5, 1, 4)
    ]
    assert (np.diff(neighbors) > 0.5).all()
    flat = monte_carlo(planted, velocity, 1e6 * std).matrix
    assert np.median(effective_neighbors(flat) / np.diff(planted.graph.indptr)) > 0.9


@pytest.mark.parametrize("options", [{}, {"backward_mode": "transpose", "n_samples": 6}])
def test_monte_carlo_is_decided_by_the_seed(planted, velocity, std, options):
    before = velocity.copy(), std.copy()
    first, second = (monte_carlo(planted, velocity, std, random_state=3, **options).matrix for _ in range(2))
    np.testing.assert_array_equal(first.data, second.data)
    other = monte_carlo(planted, velocity, std, random_state=4, **options).matrix
    assert 0 < total_variation(first.toarray(), other.toarray()) < 0.1
    np.testing.assert_array_equal(velocity, before[0])
    np.testing.assert_array_equal(std, before[1])


@pytest.mark.parametrize("elements", [1, 3000, 10**9])
@pytest.mark.parametrize("options", [{}, {"backward_mode": "transpose", "n_samples": 6}])
def test_samples_do_not_depend_on_chunks(planted, velocity, std, monkeypatch, elements: int, options):
    expected = monte_carlo(planted, velocity, std, **options).matrix.data
    in_chunks(monkeypatch, elements)
    found = monte_carlo(planted, velocity, std, **options).matrix.data
    np.testing.assert_allclose(found, expected, atol=1e-5)  # samples are averaged in single precision


@pytest.mark.parametrize("n_genes", [None, 3, 12])
def test_samples_of_some_cells_stay_within_the_bound(planted, velocity, std, monkeypatch, n_genes: int | None):
    tasks, degree, bound = [], np.diff(planted.graph.indptr), 20_000
    inner = parallel.run

    def noted(function, todo, *args, **kwargs):
        tasks.extend(todo if function is monte_carlo_module._mean_of_cells else [])
        return inner(function, todo, *args, **kwargs)

    monkeypatch.setattr(parallel, "run", noted)
    monkeypatch.setattr(similarities, "CHUNK_ELEMENTS", {"cpu": bound, "other": 1})
    loadings = None if n_genes is None else np.random.default_rng(6).normal(size=(5, n_genes))
    monte_carlo(planted, velocity, std, loadings=loadings, n_samples=20)
    # Of each cell the displacements and the samples, as wide as they get, and the product of both.
    of_cell = max(5, n_genes or 0) * (degree + 20) + degree * 20
    held = [of_cell[cells].sum() for (cells,) in tasks]
    assert bound / 2 < max(held) <= bound
    np.testing.assert_array_equal(np.sort(np.concatenate([cells for (cells,) in tasks])), np.arange(240))
    tasks.clear()
    monkeypatch.setattr(similarities, "CHUNK_ELEMENTS", {"cpu": 1, "other": bound})
    monte_carlo(planted, velocity, std, loadings=loadings, n_samples=2)
    assert [cells.size for (cells,) in tasks] == [1] * 240


def test_error_of_an_unknown_velocity_is_not_read(planted, velocity, std):
    velocity[[3, 50]], std[:] = np.nan, 0
    std[[3, 50]] = 1
    for mode in (None, "transpose"):
        expected = compute_transitions(planted.x, velocity, planted.graph, TransitionOptions(backward_mode=mode)).matrix
        found = monte_carlo(planted, velocity, std, backward_mode=mode, n_samples=2).matrix
        np.testing.assert_array_equal(found.data, expected.data)


def test_samples_on_a_small_device_are_taken_of_fewer_cells(planted, velocity, std, monkeypatch, caplog):
    expected = monte_carlo(planted, velocity, std, n_samples=8).matrix
    transformed = monte_carlo_module.transformed

    def limited(a, *args):
        if len(a) > 20:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return transformed(a, *args)

    monkeypatch.setattr(monte_carlo_module, "transformed", limited)
    found = monte_carlo(planted, velocity, std, n_samples=8, n_jobs=1).matrix
    np.testing.assert_allclose(found.data, expected.data, atol=1e-5)
    assert "at a time of the transition matrix: taking fewer" in caplog.text


def test_a_card_takes_more_at_a_time():
    found = {name: similarities.elements_at_a_time(torch.device(name)) for name in ("cpu", "cuda", "mps")}
    assert found == {"cpu": 2**18, "cuda": 2**26, "mps": 2**26}


def test_cells_that_are_alike_get_samples_of_their_own():
    # Forty cells at the origin, and four that they may go to; each dimension of a sample has a sign of its own, and
    # mirrored pairs make half of the eight alike.
    x = np.vstack([np.zeros((40, 3)), np.eye(4, 3)])
    graph = sp.csr_matrix(np.vstack([np.eye(44)[[40, 41, 42, 43]].sum(0)] * 40 + [np.eye(44)[:4]]))
    velocity, std = np.tile([1.0, 0.5, 0.2], (44, 1)), np.full((44, 3), 0.5)
    matrix = compute_transitions(
        x, velocity, graph, TransitionOptions(softmax_scale=3.0, model="monte_carlo", n_samples=2), velocity_std=std
    ).matrix
    assert np.unique(matrix[:40].toarray().round(5), axis=0).shape[0] == 4


@pytest.mark.parametrize("n_samples", [1, 7, 40])
@pytest.mark.parametrize("mode", [None, "negate"])
@pytest.mark.parametrize("weighted", [False, True])
def test_all_edges_at_once_or_one_sample_after_the_other(planted, velocity, std, n_samples: int, mode, weighted):
    def cosine(v, d):
        return (v * d).sum(1) / np.linalg.norm(v, axis=1) / np.linalg.norm(d, axis=1)

    options = {"n_samples": n_samples, "backward_mode": mode, "softmax_scale": 2.5, "weighted": weighted}
    expected = monte_carlo(planted, velocity, std, similarity=cosine, **options)
    np.testing.assert_allclose(
        monte_carlo(planted, velocity, std, **options).matrix.data, expected.matrix.data, atol=1e-5
    )


@pytest.mark.parametrize("n_dims", [1, 2, 5, 30])
def test_samples_are_standard_normal(n_dims: int):
    draws = np.stack(
        [monte_carlo_module._standard_samples(6, n_dims, np.random.default_rng(seed)) for seed in range(4000)]
    )
    np.testing.assert_allclose(draws.sum(1), 0, atol=1e-12)  # mirrored pairs
    single = draws[:, 0] * np.random.default_rng(0).choice([-1, 1], (4000, n_dims))
    np.testing.assert_allclose(single.mean(0), 0, atol=0.08)
    np.testing.assert_allclose(np.cov(single, rowvar=False).reshape(n_dims, n_dims), np.eye(n_dims), atol=0.13)
    assert (single[:, 0] ** 4).mean() == pytest.approx(3, abs=0.5)


@pytest.mark.parametrize("n_dims", [1, 4])
def test_lengths_of_samples_are_one_of_each_equal_share(n_dims: int):
    draws = monte_carlo_module._standard_samples(24, n_dims, np.random.default_rng(0))
    share = 12 * chi.cdf(np.linalg.norm(draws[:12], axis=1), n_dims)
    np.testing.assert_array_equal(np.sort(np.floor(share)), np.arange(12))
    assert 0.1 < np.std(share % 1) < 0.5  # anywhere in its share


@pytest.mark.parametrize("bad", [0.0, np.nan])
@pytest.mark.parametrize("mode", [None, "transpose", "negate"])
def test_monte_carlo_of_cells_without_velocity_or_neighbours(planted, velocity, std, bad: float, mode):
    velocity[[3, 50]] = bad
    std[[3, 50]] = np.nan  # not read
    keep = np.ones(240)
    keep[100] = 0
    graph = sp.csr_matrix(sp.diags(keep) @ planted.graph @ sp.diags(keep))
    options = TransitionOptions(backward_mode=mode, model="monte_carlo", n_samples=8)
    result = compute_transitions(planted.x, velocity, graph, options, velocity_std=std)
    usual = compute_transitions(planted.x, velocity, graph, TransitionOptions(backward_mode=mode))
    assert (result.n_fallback, result.n_isolated) == (usual.n_fallback, usual.n_isolated)
    np.testing.assert_allclose(result.matrix.sum(1), 1, rtol=0, atol=1e-12)
    rows = [100] if mode == "transpose" else [3, 50, 100]
    np.testing.assert_array_equal(result.matrix[rows].toarray(), usual.matrix[rows].toarray())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: None, 'Expected `velocity_std` for `model="monte_carlo"`, found none'),
        (lambda s: s[:, :3], r"Expected `velocity_std` of shape `\(240, 5\)`, found `\(240, 3\)`"),
        (lambda s: s[:, 0], r"Expected `velocity_std` of shape `\(240, 5\)`, found `\(240,\)`"),
        (lambda s: -s, "`velocity_std` to be finite and not negative, found `240` cells"),
        (lambda s: np.where(np.arange(240)[:, None] == 7, np.nan, s), "found `1` cells where it is not, .* cell `7`"),
        (lambda s: np.where(np.arange(240)[:, None] == 7, np.inf, s), "found `1` cells where it is not"),
    ],
)
def test_bad_velocity_std(planted, velocity, std, change, message: str):
    with pytest.raises(ValueError, match=message):
        monte_carlo(planted, velocity, change(std))


# ------------------------------------------------------------------------------------------------- threshold
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.2, 0.9])
def test_threshold_drops_small_probabilities_and_keeps_the_largest(planted, velocity, threshold: float):
    full = compute_transitions(planted.x, velocity, planted.graph).matrix.toarray()
    found = compute_transitions(planted.x, velocity, planted.graph, TransitionOptions(threshold=threshold)).matrix
    kept = np.where((full >= threshold) | (full == full.max(1, keepdims=True)), full, 0)
    np.testing.assert_allclose(found.toarray(), kept / kept.sum(1, keepdims=True), atol=1e-12)
    assert (found.data > 0).all()
    np.testing.assert_allclose(found.sum(1), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        (
            {"similarity": "euclidean"},
            ValueError,
            r"`similarity` to be one of \['cosine', 'correlation', 'dot_product'\]",
        ),
        ({"backward_mode": "reverse"}, ValueError, r"`backward_mode` to be one of \['transpose', 'negate'\]"),
        ({"softmax_scale": 0}, ValueError, r"Expected `softmax_scale` to be in \(0, inf\), found `0`"),
        ({"softmax_scale": -1.0}, ValueError, r"Expected `softmax_scale` to be in \(0, inf\)"),
        ({"softmax_scale": "mean"}, ValueError, r"`softmax_scale` to be one of \['auto', 'median'\], found `'mean'`"),
        ({"softmax_scale": [2.0]}, TypeError, "Expected `softmax_scale` to be a number"),
        ({"model": "stochastic"}, ValueError, r"`model` to be one of \['deterministic', 'monte_carlo'\]"),
        ({"n_samples": 0}, ValueError, "Expected `n_samples` to be at least `1`, found `0`"),
        ({"n_samples": 3.0}, TypeError, "Expected `n_samples` to be an integer"),
        ({"random_state": -1}, ValueError, "Expected `random_state` to be at least `0`"),
        ({"threshold": 1.0}, ValueError, r"Expected `threshold` to be in \[0, 1\), found `1.0`"),
        ({"threshold": -0.1}, ValueError, r"Expected `threshold` to be in \[0, 1\)"),
    ],
)
def test_bad_options(planted, velocity, option: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        compute_transitions(planted.x, velocity, planted.graph, TransitionOptions(**option))


# ------------------------------------------------------------------------------------------------ diagnostics
def test_effective_neighbors():
    matrix = sp.csr_matrix(np.array([[0.25, 0.25, 0.25, 0.25], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0.9, 0.1, 0, 0]]))
    expected = [4, 1, 2, np.exp(-0.9 * np.log(0.9) - 0.1 * np.log(0.1))]
    np.testing.assert_allclose(effective_neighbors(matrix), expected, rtol=1e-12)
    matrix.data[matrix.data == 1] = 0  # a row of nothing but a stored zero
    assert effective_neighbors(matrix)[1] == 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_cells", [5, 40, 120])
def test_condition_number_agrees_with_dense_algebra(seed: int, n_cells: int):
    matrix = np.random.default_rng(seed).random((n_cells, n_cells)) ** 4
    matrix /= matrix.sum(1, keepdims=True)
    expected = np.linalg.cond(matrix, 1)
    # Hager's estimate is a lower bound, and rarely off by more than a factor of three.
    assert expected / 3 <= condition_number(sp.csr_matrix(matrix)) <= expected * (1 + 1e-6)


def test_condition_number_of_a_permutation_is_one():
    matrix = sp.csr_matrix(np.eye(30)[np.random.default_rng(0).permutation(30)])
    assert condition_number(matrix) == pytest.approx(1)


@pytest.mark.parametrize("n_equal", [2, 3])
def test_condition_number_of_a_singular_matrix_is_infinite(n_equal: int):
    matrix = np.eye(6)
    matrix[:n_equal] = [0.5, 0.25, 0.25, 0, 0, 0]
    assert condition_number(sp.csr_matrix(matrix)) == np.inf


def test_condition_number_draws_no_random_numbers():
    matrix = sp.csr_matrix(np.random.default_rng(0).dirichlet(np.ones(50), 50))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert condition_number(matrix) == condition_number(matrix)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_condition_number_of_many_cells_is_a_lower_bound(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "cellrank_velot")
    matrix = np.random.default_rng(1).dirichlet(np.ones(60), 60) + np.eye(60)
    matrix /= matrix.sum(1, keepdims=True)
    monkeypatch.setattr(transitions_module, "FACTORIZE_BELOW", 50)
    found = condition_number(sp.csr_matrix(matrix))
    assert 1 <= found <= np.linalg.cond(matrix, "fro") * 1.01


def test_cells_at_an_end_keep_among_themselves(planted, velocity):
    x, graph, n = planted.x, planted.graph, len(planted.x)
    ends = planted.time > 0.9
    usual = compute_transitions(x, velocity, graph).matrix
    settled = compute_transitions(x, velocity, graph, ends=ends).matrix
    np.testing.assert_allclose(settled.sum(axis=1), 1)
    np.testing.assert_array_equal(settled[~ends].toarray(), usual[~ends].toarray())
    for cell in np.flatnonzero(ends):
        weights = graph[cell].toarray()[0] * ends
        expected = 0.9 * weights / weights.sum() + 0.1 * usual[cell].toarray()[0]
        np.testing.assert_allclose(settled[cell].toarray()[0], expected)
    assert 0 < ends.sum() < n
    assert (settled.toarray() > 0).sum() == (usual.toarray() > 0).sum()  # it can still leave


def test_cells_at_an_end_do_not_step_to_another_one(planted, velocity):
    late, half = planted.time > 0.7, np.arange(len(planted.x)) % 2 == 0
    ends = np.where(late, half.astype(int), -1)
    usual, settled = (compute_transitions(planted.x, velocity, planted.graph, ends=e).matrix for e in (None, ends))
    other = late[:, None] & late[None] & (half[:, None] != half[None])
    between = usual.toarray()[other].sum(), settled.toarray()[other].sum()
    assert 0 < between[1] <= 0.11 * between[0]


def test_an_end_without_another_goes_on_as_others(planted, velocity):
    ends = np.arange(len(planted.x)) == 7
    usual, settled = (compute_transitions(planted.x, velocity, planted.graph, ends=e).matrix for e in (None, ends))
    np.testing.assert_array_equal(settled.toarray(), usual.toarray())
