"""Projections to an embedding, places of points there, and the grid: planted truth, invariances, and refusals."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import Ridge
from sklearn.neighbors import kneighbors_graph

from cellrank_velot.embedding import projection
from cellrank_velot.embedding.grid import velocity_on_grid
from cellrank_velot.embedding.projection import (
    embed_points,
    project_by_linear_map,
    project_by_transitions,
)


def random_rotation(n_dims: int, seed: int = 3) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n_dims, n_dims)))[0]


def random_chain(n_cells: int = 40, n_dims: int = 2, seed: int = 0) -> tuple[sp.csr_matrix, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_cells, n_dims))
    graph = sp.csr_matrix(kneighbors_graph(x, 7))
    graph.data = rng.random(graph.nnz)
    return sp.csr_matrix(graph.multiply(1 / graph.sum(axis=1))), x


def row_of(matrix: sp.csr_matrix, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours of a cell and what the matrix stores for them."""
    row = matrix[i].tocoo()
    return row.col[row.col != i], row.data[row.col != i]


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


# ---------------------------------------------------------------------------------------------------- transitions
def one_cell_at_a_time(transitions, x, weight=None):
    """The formulas of the docstring, cell by cell; `weight` is a dense matrix."""
    result = np.zeros_like(x)
    for i in range(len(x)):
        columns, t = row_of(transitions, i)
        units = x[columns] - x[i]
        length = np.linalg.norm(units, axis=1, keepdims=True)
        units = np.divide(units, length, out=np.zeros_like(units), where=length > 0)
        if columns.size and weight is None:
            result[i] = t @ units - units.mean(axis=0)
        elif columns.size:
            w = weight[i, columns]
            result[i] = t.sum() * (w * t) @ units / (w @ t) - w @ units / w.sum()
    return result


@pytest.mark.parametrize("n_dims", [2, 3])
def test_transitions_are_the_formula(n_dims):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, n_dims))
    x[1] = x[0]
    dense = rng.random((40, 40)) * (rng.random((40, 40)) < 0.3)
    dense[5] = 0
    dense[5, 5] = 1
    matrix = sp.csr_matrix(dense / dense.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(project_by_transitions(matrix, x), one_cell_at_a_time(matrix, x), atol=1e-14)
    np.testing.assert_array_equal(project_by_transitions(matrix, x)[5], 0)


@pytest.mark.parametrize("n_dims", [2, 3])
def test_weighted_transitions_are_the_formula(n_dims):
    matrix, x = random_chain(n_dims=n_dims)
    confidence = np.random.default_rng(1).random(40)
    weight = (confidence[:, None] + confidence) / 2
    found = project_by_transitions(matrix, x, weighting="confidence", confidence=confidence)
    np.testing.assert_allclose(found, one_cell_at_a_time(matrix, x, weight), atol=1e-13)

    distance = np.linalg.norm(x[:, None] - x, axis=2)
    width = np.array([np.median(distance[i, row_of(matrix, i)[0]]) for i in range(40)])
    weight = np.exp(-(distance**2) / (2 * width[:, None] ** 2))
    found = project_by_transitions(matrix, x, weighting="distance")
    np.testing.assert_allclose(found, one_cell_at_a_time(matrix, x, weight), atol=1e-13)


@pytest.mark.parametrize("level", [0.3, 1.0])
def test_equal_weights_are_no_weights(level):
    matrix, x = random_chain()
    plain = project_by_transitions(matrix, x)
    equal = project_by_transitions(matrix, x, weighting="confidence", confidence=np.full(40, level))
    np.testing.assert_allclose(equal, plain, atol=1e-13)
    ring = np.column_stack([np.cos(np.arange(12) * np.pi / 6), np.sin(np.arange(12) * np.pi / 6)])  # equal distances
    steps = sp.csr_matrix(np.roll(0.7 * np.eye(12), 1, axis=1) + np.roll(0.3 * np.eye(12), -1, axis=1))
    near = project_by_transitions(steps, ring, weighting="distance")
    np.testing.assert_allclose(near, project_by_transitions(steps, ring), atol=1e-13)


@pytest.mark.parametrize("weighting", ["none", "distance", "confidence"])
def test_steps_by_the_weights_of_the_graph_have_no_velocity(weighting):
    rng = np.random.default_rng(0)
    matrix, x = random_chain()
    graph = matrix.multiply(rng.uniform(1, 9, size=(40, 1))).tocsr()
    options = {"weighting": weighting, "confidence": rng.random(40) if weighting == "confidence" else None}
    np.testing.assert_allclose(project_by_transitions(matrix, x, graph=graph, **options), 0, atol=1e-13)
    assert np.abs(project_by_transitions(matrix, x, **options)).max() > 0.1
    # Equal weights are none, and edges that the graph lacks have no share.
    pattern = matrix.copy()
    pattern.data[:] = 3.0
    plain = project_by_transitions(matrix, x, **options)
    np.testing.assert_allclose(project_by_transitions(matrix, x, graph=pattern, **options), plain, atol=1e-13)
    empty = sp.csr_matrix((40, 40))
    nothing_less = project_by_transitions(matrix, x, graph=empty)
    np.testing.assert_allclose(nothing_less[3], row_of(matrix, 3)[1] @ _units(x, row_of(matrix, 3)[0], 3), atol=1e-13)


def _units(x, columns, i):
    step = x[columns] - x[i]
    return step / np.linalg.norm(step, axis=1, keepdims=True)


@pytest.mark.parametrize("weighting", ["none", "distance", "confidence"])
def test_equal_probabilities_have_no_velocity(weighting):
    rng = np.random.default_rng(0)
    graph = sp.csr_matrix(kneighbors_graph(rng.normal(size=(50, 2)), 5) / 5)
    confidence = rng.random(50) if weighting == "confidence" else None
    found = project_by_transitions(graph, rng.normal(size=(50, 2)), weighting=weighting, confidence=confidence)
    np.testing.assert_allclose(found, 0, atol=1e-14)


@pytest.mark.parametrize("weighting", ["none", "distance", "confidence"])
def test_transitions_turn_and_do_not_stretch(weighting):
    matrix, x = random_chain()
    confidence = np.random.default_rng(1).random(40) if weighting == "confidence" else None
    turn = random_rotation(2)
    one = project_by_transitions(matrix, x, weighting=weighting, confidence=confidence)
    other = project_by_transitions(matrix, 7 * x @ turn + 3, weighting=weighting, confidence=confidence)
    np.testing.assert_allclose(other, one @ turn, atol=1e-12)
    assert np.linalg.norm(one, axis=1).max() <= 2


def test_distance_ignores_a_neighbor_torn_away():
    x = np.array([[0.0, 0], [1, 0], [0, 1], [-1, 0], [0, -1], [500, 500]])
    matrix = sp.lil_matrix((6, 6))
    matrix[0] = [0, 0.3, 0.1, 0.1, 0.1, 0.4]
    matrix[1:, 0] = 1
    near = project_by_transitions(sp.csr_matrix(matrix), x, weighting="distance")[0]
    assert near[0] > 0.2
    np.testing.assert_allclose(near[1], 0, atol=1e-12)
    assert project_by_transitions(sp.csr_matrix(matrix), x)[0, 1] > 0.1


def test_confidence_shifts_to_sure_neighbors():
    x = np.array([[0.0, 0], [1, 0], [0, 1]])
    matrix = sp.csr_matrix(np.array([[0, 0.5, 0.5], [1, 0, 0], [1, 0, 0]]))
    found = project_by_transitions(matrix, x, weighting="confidence", confidence=np.array([0.0, 0.0, 0.0]))
    assert np.isnan(found).all()  # nothing is known at all
    matrix = sp.csr_matrix(np.array([[0, 0.6, 0.4], [1, 0, 0], [1, 0, 0]]))
    unsure = project_by_transitions(matrix, x, weighting="confidence", confidence=np.array([0.0, 0.1, 0.9]))
    sure = project_by_transitions(matrix, x, weighting="confidence", confidence=np.array([1.0, 0.1, 0.9]))
    plain = project_by_transitions(matrix, x)
    assert np.linalg.norm(unsure[0] - plain[0]) > np.linalg.norm(sure[0] - plain[0]) > 0


def test_distance_with_most_neighbors_on_the_spot():
    x = np.array([[0.0, 0], [0, 0], [0, 0], [1, 0]])
    matrix = sp.csr_matrix((np.ones((4, 4)) - np.eye(4)) / 3)
    found = project_by_transitions(matrix, x, weighting="distance")
    np.testing.assert_allclose(found, 0, atol=1e-14)


def test_transitions_refuse():
    matrix, x = random_chain()
    with pytest.raises(ValueError, match=r"`transitions` of shape `\[4, 4\]`, found `\(40, 40\)`"):
        project_by_transitions(matrix, np.zeros((4, 2)))
    with pytest.raises(ValueError, match="Expected finite `embedding`, found 1 cells"):
        project_by_transitions(matrix, np.where(np.arange(40)[:, None] == 3, np.nan, x))
    with pytest.raises(ValueError, match="Expected `embedding` to have `2` dimensions, found `1`"):
        project_by_transitions(matrix, x[:, 0])
    with pytest.raises(ValueError, match="Expected `weighting` to be one of"):
        project_by_transitions(matrix, x, weighting="nearest")
    with pytest.raises(ValueError, match="`confidence` together with .*found none"):
        project_by_transitions(matrix, x, weighting="confidence")
    with pytest.raises(ValueError, match="`confidence` together with .*weighting='none'"):
        project_by_transitions(matrix, x, confidence=np.ones(40))
    with pytest.raises(ValueError, match=r"`confidence` of shape `\[40\]`, found `\(3,\)`"):
        project_by_transitions(matrix, x, weighting="confidence", confidence=np.ones(3))
    wrong = np.concatenate([[np.nan, 2], np.ones(38)])
    with pytest.raises(ValueError, match=r"`confidence` in \[0, 1\], found 2 cells"):
        project_by_transitions(matrix, x, weighting="confidence", confidence=wrong)


# ----------------------------------------------------------------------------------------------------- linear map
def random_cells(n_cells: int = 200, n_dims: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_cells, n_dims)), rng.normal(size=(n_cells, n_dims))


@pytest.mark.parametrize("n_dims", [2, 3])
def test_linear_embedding_is_exact(n_dims):
    x, velocity = random_cells()
    mapping = np.random.default_rng(1).normal(size=(6, n_dims))
    found = project_by_linear_map(x, velocity, x @ mapping + 5, ridge=1e-9)
    np.testing.assert_allclose(found, velocity @ mapping, atol=1e-6)
    default = project_by_linear_map(x, velocity, x @ mapping)
    assert np.median(cosine(default, velocity @ mapping)) > 0.999
    assert 0.9 < np.median(np.linalg.norm(default, axis=1) / np.linalg.norm(velocity @ mapping, axis=1)) < 1


def test_few_neighbors_give_the_part_they_span():
    x, velocity = random_cells(n_dims=30)
    mapping = np.random.default_rng(1).normal(size=(30, 2))
    graph = sp.csr_matrix(kneighbors_graph(x, 10))
    found = project_by_linear_map(x, velocity, x @ mapping, graph, ridge=1e-10)
    for i in (0, 7, 99):
        basis = np.linalg.qr((x[row_of(graph, i)[0]] - x[i]).T)[0]
        np.testing.assert_allclose(found[i], velocity[i] @ basis @ basis.T @ mapping, atol=1e-6)


@pytest.mark.parametrize("n_neighbors", [4, 6, 15])
@pytest.mark.parametrize("ridge", [0.01, 0.2, 5.0])
def test_agrees_with_ridge_regression_of_each_cell(n_neighbors, ridge):
    x, velocity = random_cells(n_cells=60)
    y = np.random.default_rng(1).normal(size=(60, 2))
    graph = sp.csr_matrix(kneighbors_graph(x, n_neighbors))
    graph = sp.csr_matrix(graph + graph.T + sp.identity(60))  # of unequal degree, and with a diagonal
    found = project_by_linear_map(x, velocity, y, graph, ridge=ridge)
    for i in range(60):
        columns, _ = row_of(graph, i)
        d = x[columns] - x[i]
        model = Ridge(alpha=ridge * (d**2).sum(axis=1).mean(), fit_intercept=False, solver="svd").fit(
            d, y[columns] - y[i]
        )
        np.testing.assert_allclose(found[i], velocity[i] @ model.coef_.T, atol=1e-10)


@pytest.mark.parametrize("n_neighbors", [5, 20])
def test_linear_map_turns_and_scales(n_neighbors):
    x, velocity = random_cells()
    y = np.tanh(x[:, :3])
    one = project_by_linear_map(x, velocity, y, n_neighbors=n_neighbors)
    turn, other = random_rotation(6), random_rotation(3)
    turned = project_by_linear_map(x @ turn + 1, velocity @ turn, y @ other - 2, n_neighbors=n_neighbors)
    np.testing.assert_allclose(turned, one @ other, atol=1e-10)
    # units: those of the basis cancel, those of the embedding and of time stay
    scaled = project_by_linear_map(1e4 * x, 3e4 * velocity, 0.01 * y, n_neighbors=n_neighbors)
    np.testing.assert_allclose(scaled, 0.03 * one, rtol=1e-8)


def test_linear_map_follows_a_curved_embedding():
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.uniform(-1, 1, (2000, 2)), rng.normal(scale=0.05, size=(2000, 8))])
    y = np.column_stack([np.sin(2 * x[:, 0]) + x[:, 1], x[:, 1] ** 2 + x[:, 0]])
    velocity = np.concatenate([rng.normal(size=(2000, 2)), np.zeros((2000, 8))], axis=1)
    truth = np.column_stack(
        [2 * np.cos(2 * x[:, 0]) * velocity[:, 0] + velocity[:, 1], 2 * x[:, 1] * velocity[:, 1] + velocity[:, 0]]
    )
    assert np.median(cosine(project_by_linear_map(x, velocity, y), truth)) > 0.99


def test_cells_without_velocity_or_neighbors_have_none():
    x, velocity = random_cells(n_cells=30)
    velocity[3, 2] = np.nan
    x[10:16] = x[10]  # all on one spot
    graph = sp.lil_matrix(kneighbors_graph(x, 5))
    graph[20] = 0
    graph[20, 20] = 1
    graph[10] = 0
    graph[10, 11:16] = 1
    found = project_by_linear_map(x, velocity, x[:, :2], sp.csr_matrix(graph))
    assert np.flatnonzero(np.isnan(found).any(axis=1)).tolist() == [3, *range(10, 16), 20]
    assert np.isnan(project_by_linear_map(x[:1], velocity[:1], x[:1, :2])).all()
    assert np.isnan(project_by_linear_map(x, np.full_like(x, np.nan), x[:, :2])).all()


def test_a_velocity_of_zero_stays_zero():
    x, _ = random_cells()
    np.testing.assert_array_equal(project_by_linear_map(x, np.zeros_like(x), x[:, :2]), 0)


def test_batches_change_nothing(monkeypatch):
    x, velocity = random_cells()
    y = np.tanh(x[:, :2])
    graph = sp.csr_matrix(kneighbors_graph(x, 5))
    graph = graph + graph.T
    once = project_by_linear_map(x, velocity, y, graph), embed_points(velocity, x, y)
    monkeypatch.setattr(projection, "BATCH_SIZE", 1000)
    np.testing.assert_allclose(project_by_linear_map(x, velocity, y, graph), once[0], atol=1e-12)
    np.testing.assert_allclose(embed_points(velocity, x, y), once[1], atol=1e-12)


def test_linear_map_refuses():
    x, velocity = random_cells(n_cells=10)
    with pytest.raises(ValueError, match=r"`velocity` of the shape of `x`, `\(10, 6\)`, found `\(10, 2\)`"):
        project_by_linear_map(x, velocity[:, :2], x[:, :2])
    with pytest.raises(ValueError, match=r"`embedding` of shape `\[10, n_dims\]`, found `\(9, 2\)`"):
        project_by_linear_map(x, velocity, x[:9, :2])
    with pytest.raises(ValueError, match=r"`graph` of shape `\[10, 10\]`, found `\(3, 3\)`"):
        project_by_linear_map(x, velocity, x[:, :2], sp.identity(3, format="csr"))
    with pytest.raises(ValueError, match="Expected finite `x`"):
        project_by_linear_map(np.full_like(x, np.nan), velocity, x[:, :2])
    with pytest.raises(ValueError, match="Expected `ridge`"):
        project_by_linear_map(x, velocity, x[:, :2], ridge=0.0)
    with pytest.raises(TypeError, match="Expected `n_neighbors` to be an integer"):
        project_by_linear_map(x, velocity, x[:, :2], n_neighbors=2.5)


# --------------------------------------------------------------------------------------------------------- points
def test_points_of_a_plane_are_found_again():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (4000, 2))
    y = 10 * x @ random_rotation(2)
    points = rng.uniform(-0.8, 0.8, (300, 2))
    off = np.linalg.norm(embed_points(points, x, y) - 10 * points @ random_rotation(2), axis=1)
    spacing = 10 / np.sqrt(1000)
    assert np.median(off) < 0.3 * spacing
    assert off.max() < spacing


@pytest.mark.parametrize("n_dims", [2, 3])
def test_a_point_on_a_cell_lands_near_it(n_dims):
    x, _ = random_cells(n_cells=1000)
    y = np.tanh(x[:, :n_dims])
    own = np.linalg.norm(embed_points(x, x, y) - y, axis=1)
    graph = kneighbors_graph(x, 15)
    around = np.array([np.median(np.linalg.norm(y[row_of(graph, i)[0]] - y[i], axis=1)) for i in range(1000)])
    assert np.median(own / around) < 0.5
    np.testing.assert_allclose(embed_points(x[:5], x, y, n_neighbors=1), y[:5])


def test_a_path_looks_smooth():
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.uniform(-1, 1, (3000, 2)), rng.normal(scale=0.1, size=(3000, 8))])
    path = np.zeros((1001, 10))
    path[:, 0] = np.linspace(-0.8, 0.8, 1001)
    steps = np.linalg.norm(np.diff(embed_points(path, x, x[:, :2]), axis=0), axis=1)
    assert steps.max() < 0.02  # a tenth of the way across its neighbours; one step is 0.0016
    assert steps.sum() < 1.6 * 3


@pytest.mark.parametrize("sizes", [(9, 6), (8, 7), (6, 5, 4), (5, 5, 5)])
def test_a_point_between_islands_lands_on_one(sizes):
    rng = np.random.default_rng(0)
    island = np.repeat(np.arange(len(sizes)), sizes)
    x = rng.normal(size=(15, 10))
    y = np.array([[0.0, 0], [50, 0], [0, 50]])[island] + rng.normal(size=(15, 2))
    points = rng.normal(scale=0.3, size=(200, 10))
    nearest = np.linalg.norm(embed_points(points, x, y)[:, None] - y, axis=2).min(axis=1)
    assert nearest.max() < 2
    equal = embed_points(x.mean(axis=0, keepdims=True), x - x.mean(axis=0), y)
    assert np.linalg.norm(equal[:, None] - y, axis=2).min() < 2


def test_points_turn_with_the_embedding():
    x, points = random_cells()
    y = np.tanh(x[:, :2])
    turn, basis = random_rotation(2), random_rotation(6)
    one = embed_points(points, x, y)
    np.testing.assert_allclose(embed_points(points @ basis, x @ basis, 3 * y @ turn + 1), 3 * one @ turn + 1, atol=1e-9)


def test_points_of_degenerate_cells():
    points = np.array([[0.0, 0], [np.nan, 0], [2, 2]])
    found = embed_points(points, np.zeros((20, 2)), np.ones((20, 3)))
    np.testing.assert_allclose(found, [[1, 1, 1], [np.nan] * 3, [1, 1, 1]])
    np.testing.assert_array_equal(embed_points(points[:1], points[2:], np.full((1, 2), 4.0)), [[4, 4]])
    assert embed_points(np.empty((0, 2)), points[[0, 2]], np.ones((2, 2))).shape == (0, 2)


def test_points_refuse():
    x, _ = random_cells(n_cells=10)
    with pytest.raises(ValueError, match=r"`points` of shape `\[n_points, 6\]`, found `\(10, 2\)`"):
        embed_points(x[:, :2], x, x[:, :2])
    with pytest.raises(ValueError, match=r"`embedding` of shape `\[10, n_dims\]`, found `\(3, 6\)`"):
        embed_points(x, x, x[:3])
    with pytest.raises(ValueError, match="Expected `n_neighbors` to be at least `1`"):
        embed_points(x, x, x, n_neighbors=0)


# ----------------------------------------------------------------------------------------------------------- grid
def test_grid_averages_and_masks():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(0, 1, (200, 2)), rng.uniform(4, 5, (200, 2))])
    velocity = np.tile([2.0, -1.0], (400, 1))
    velocity[3] = np.nan
    grid = velocity_on_grid(x, velocity, n_grid=20)
    known = np.isfinite(grid.speed)
    np.testing.assert_allclose(grid.velocity[known], np.tile([2.0, -1.0], (known.sum(), 1)))
    assert 0.03 < known.mean() < 0.4  # the corners without cells have none
    assert not known[0, -1]


def test_grid_does_not_depend_on_units():
    rng = np.random.default_rng(0)
    x, velocity = rng.normal(size=(200, 2)), rng.normal(size=(200, 2))
    one, other = velocity_on_grid(x, velocity), velocity_on_grid(x * [1000, 0.01] + 5, velocity)
    np.testing.assert_allclose(one.velocity, other.velocity, atol=1e-6)


@pytest.mark.parametrize("n_cells", [1, 2, 7])
def test_grid_of_few_cells(n_cells):
    x = np.random.default_rng(0).normal(size=(n_cells, 2))
    assert np.isfinite(velocity_on_grid(x, np.ones((n_cells, 2))).velocity).any()


def test_grid_refuses():
    with pytest.raises(ValueError, match="cells with a velocity"):
        velocity_on_grid(np.zeros((3, 2)), np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match="Expected `smooth`"):
        velocity_on_grid(np.zeros((3, 2)), np.zeros((3, 2)), smooth=0)
