"""Transition probabilities against the worked example, CellRank's own kernel, dense algebra, and degenerate graphs."""

import logging

import cellrank as cr
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from scipy.stats import ortho_group

from cellrank_velot import transitions as transitions_module
from cellrank_velot.transitions import (
    compute_transitions,
    condition_number,
    edge_similarities,
    effective_neighbors,
)

NAMED = ("cosine", "correlation", "dot_product")


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
    dot = edge_similarities(x, v, graph, "dot_product")[0]
    assert dot == pytest.approx(2.45)
    plain = edge_similarities(x, v, graph, "cosine")[0]
    assert plain == pytest.approx(2.45 / np.sqrt(3.5 * 1.78))
    assert round(plain, 2) == 0.98
    stabilised = edge_similarities(x, v, graph, "cosine", variance_stabilize=True)[0]
    assert round(stabilised, 2) == 0.99


def test_variance_stabilisation_is_the_signed_root(planted, velocity):
    def root(d):
        return np.sign(d) * np.sqrt(np.abs(d))

    found = edge_similarities(planted.x, velocity, planted.graph, variance_stabilize=True)
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
    ours = compute_transitions(planted.x, velocity, planted.graph, similarity=similarity, softmax_scale=softmax_scale)
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
        planted.x, velocity, planted.graph, similarity=similarity, softmax_scale=3.0, backward_mode=mode
    )
    np.testing.assert_allclose(ours.logits.toarray(), host.logits.toarray(), atol=1e-12)
    np.testing.assert_allclose(ours.matrix.toarray(), host.transition_matrix.toarray(), atol=1e-12)


def test_transposed_scale_equals_that_of_cellrank(adata: AnnData, planted, velocity):
    host = host_kernel(adata, velocity, backward=True)
    host.compute_transition_matrix(similarity="cosine", show_progress_bar=False)
    ours = compute_transitions(planted.x, velocity, planted.graph, backward_mode="transpose")
    assert ours.softmax_scale == pytest.approx(host.params["softmax_scale"], rel=1e-12)
    np.testing.assert_allclose(ours.matrix.toarray(), host.transition_matrix.toarray(), atol=1e-12)


@pytest.mark.parametrize("similarity", NAMED)
def test_negate_is_forward_on_the_negative_velocity(planted, velocity, similarity):
    before = velocity.copy()
    negated = compute_transitions(planted.x, velocity, planted.graph, similarity=similarity, backward_mode="negate")
    forward = compute_transitions(planted.x, -velocity, planted.graph, similarity=similarity)
    np.testing.assert_array_equal(negated.matrix.toarray(), forward.matrix.toarray())
    np.testing.assert_array_equal(velocity, before)
    assert negated.softmax_scale == forward.softmax_scale
    usual = compute_transitions(planted.x, velocity, planted.graph, similarity=similarity)
    assert np.abs(negated.matrix - usual.matrix).max() > 0.1


# ------------------------------------------------------------------------------------------------ dense algebra
@pytest.mark.parametrize("similarity", NAMED)
@pytest.mark.parametrize("mode", [None, "transpose"])
def test_agrees_with_dense_algebra(planted, velocity, similarity, mode):
    logits = dense_logits(planted.x, velocity, planted.graph, similarity, transpose=mode == "transpose")
    edges = planted.graph.toarray() != 0
    ours = compute_transitions(planted.x, velocity, planted.graph, similarity=similarity, backward_mode=mode)
    np.testing.assert_allclose(ours.logits.toarray(), logits, atol=1e-12)
    scale = 1 / np.median(np.abs(logits[edges]))
    assert ours.softmax_scale == pytest.approx(scale)
    np.testing.assert_allclose(ours.matrix.toarray(), softmax(logits, edges, scale), atol=1e-12)
    np.testing.assert_allclose(ours.matrix.sum(1), 1, rtol=0, atol=1e-12)


def test_points_along_the_velocity(planted):
    inner = (planted.time > 0.1) & (planted.time < 0.9)  # the last cells have nowhere to go
    for mode, sign in ((None, 1), ("transpose", -1), ("negate", -1)):
        result = compute_transitions(planted.x, planted.velocity, planted.graph, softmax_scale=8.0, backward_mode=mode)
        assert np.mean(sign * (result.matrix @ planted.time - planted.time)[inner] > 0) > 0.85


@pytest.mark.parametrize("elements", [1, 7, 50, 333, 10**9])
@pytest.mark.parametrize("transpose", [False, True])
def test_chunks_do_not_matter(planted, velocity, monkeypatch, elements: int, transpose: bool):
    expected = edge_similarities(planted.x, velocity, planted.graph, transpose=transpose)
    monkeypatch.setattr(transitions_module, "CHUNK_ELEMENTS", elements)
    found = edge_similarities(planted.x, velocity, planted.graph, transpose=transpose)
    np.testing.assert_array_equal(found, expected)


def test_chunks_step_over_isolated_cells(monkeypatch):
    rng = np.random.default_rng(0)
    x, v = rng.normal(size=(8, 2)), rng.normal(size=(8, 2))
    dense = np.zeros((8, 8))
    dense[[1, 1, 1, 4, 6, 6], [0, 2, 4, 1, 1, 7]] = 1  # nothing in rows 0, 2, 3, 5 and 7
    graph = sp.csr_matrix(dense)
    expected = dense_logits(x, v, graph, "cosine")[graph.nonzero()]
    for elements in (2, 4, 6, 100):
        monkeypatch.setattr(transitions_module, "CHUNK_ELEMENTS", elements)
        np.testing.assert_allclose(edge_similarities(x, v, graph), expected, atol=1e-12)


@pytest.mark.parametrize("similarity", NAMED)
@pytest.mark.parametrize("elements", [40, 2**21])
def test_genes_through_the_loadings(planted, velocity, monkeypatch, similarity, elements: int):
    monkeypatch.setattr(transitions_module, "CHUNK_ELEMENTS", elements)
    loadings = np.random.default_rng(6).normal(size=(planted.x.shape[1], 12))
    through = compute_transitions(planted.x, velocity, planted.graph, similarity=similarity, loadings=loadings)
    direct = compute_transitions(planted.x @ loadings, velocity @ loadings, planted.graph, similarity=similarity)
    np.testing.assert_allclose(through.matrix.toarray(), direct.matrix.toarray(), atol=1e-11)
    stabilised = [
        edge_similarities(planted.x, velocity, planted.graph, loadings=loadings, variance_stabilize=True),
        edge_similarities(planted.x @ loadings, velocity @ loadings, planted.graph, variance_stabilize=True),
    ]
    np.testing.assert_allclose(*stabilised, atol=1e-7)  # roots of rounding errors


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
    result = compute_transitions(planted.x, velocity, planted.graph, backward_mode=mode)
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


def test_one_component_of_nan_makes_a_velocity_unknown(planted, velocity):
    velocity[9, 2] = np.nan
    result = compute_transitions(planted.x, velocity, planted.graph)
    assert result.n_fallback == 1
    assert np.isfinite(result.matrix.data).all()


def test_transposed_row_follows_the_graph_where_no_neighbour_has_a_velocity(planted, velocity):
    cell = 17
    neighbours = planted.graph[cell].indices
    velocity[neighbours] = np.nan
    result = compute_transitions(planted.x, velocity, planted.graph, backward_mode="transpose")
    expected = (planted.graph[cell] / planted.graph[cell].sum()).toarray()
    np.testing.assert_allclose(result.matrix[cell].toarray(), expected, atol=1e-14)
    assert result.n_fallback >= 1
    np.testing.assert_allclose(result.matrix.sum(1), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", [None, "transpose", "negate"])
def test_no_velocity_at_all_gives_the_graph(planted, mode):
    result = compute_transitions(planted.x, np.full_like(planted.x, np.nan), planted.graph, backward_mode=mode)
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
    result = compute_transitions(planted.x, velocity, graph, threshold=threshold)
    np.testing.assert_array_equal(result.matrix[cells].toarray(), np.eye(240)[cells])
    assert result.n_isolated == 3
    assert result.n_fallback == 0
    np.testing.assert_allclose(result.matrix.sum(1), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("threshold", [None, 0.1])
def test_graph_without_edges(threshold):
    result = compute_transitions(np.eye(4), np.ones((4, 4)), sp.csr_matrix((4, 4)), threshold=threshold)
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
    expected = compute_transitions(x, v, sp.csr_matrix(graph.toarray()), softmax_scale=1.0)
    found = compute_transitions(x, v, graph, softmax_scale=1.0)
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
        1e5 * planted.x, 1e5 * velocity, planted.graph, similarity=similarity, softmax_scale=scale
    )
    assert np.isfinite(result.matrix.data).all()
    np.testing.assert_allclose(result.matrix.sum(1), 1, rtol=0, atol=1e-12)
    if scale > 1:
        best = result.logits.toarray() - 1e30 * (planted.graph.toarray() == 0)
        np.testing.assert_array_equal(result.matrix.toarray().argmax(1), best.argmax(1))
    elif similarity == "cosine":
        np.testing.assert_allclose(effective_neighbors(result.matrix), np.diff(planted.graph.indptr), rtol=1e-6)


# ------------------------------------------------------------------------------------------------ callables
def test_callable_gets_velocities_and_displacements(planted, velocity):
    shapes = []

    def gauss(v, d):
        shapes.append((v.shape, d.shape))
        return -((v - d) ** 2).sum(1)

    result = compute_transitions(planted.x, velocity, planted.graph, similarity=gauss, softmax_scale=0.1)
    i, j = planted.graph.nonzero()
    expected = -((velocity[i] - (planted.x[j] - planted.x[i])) ** 2).sum(1)
    np.testing.assert_allclose(np.asarray(result.logits[i, j]).ravel(), expected, rtol=1e-12)
    assert shapes == [((planted.graph.nnz, 5),) * 2]


def test_callable_that_is_cosine_is_cosine(planted, velocity):
    def cosine(v, d):
        return (v * d).sum(1) / np.linalg.norm(v, axis=1) / np.linalg.norm(d, axis=1)

    for mode in (None, "transpose", "negate"):
        found = compute_transitions(planted.x, velocity, planted.graph, similarity=cosine, backward_mode=mode)
        expected = compute_transitions(planted.x, velocity, planted.graph, backward_mode=mode)
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
        compute_transitions(planted.x, velocity, planted.graph, similarity=function)


# ------------------------------------------------------------------------------------------------- threshold
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.2, 0.9])
def test_threshold_drops_small_probabilities_and_keeps_the_largest(planted, velocity, threshold: float):
    full = compute_transitions(planted.x, velocity, planted.graph).matrix.toarray()
    found = compute_transitions(planted.x, velocity, planted.graph, threshold=threshold).matrix
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
        ({"softmax_scale": "auto"}, TypeError, "Expected `softmax_scale` to be a number"),
        ({"threshold": 1.0}, ValueError, r"Expected `threshold` to be in \[0, 1\), found `1.0`"),
        ({"threshold": -0.1}, ValueError, r"Expected `threshold` to be in \[0, 1\)"),
    ],
)
def test_bad_options(planted, velocity, option: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        compute_transitions(planted.x, velocity, planted.graph, **option)


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
