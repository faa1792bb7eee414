"""Paths along the graph: planted curves, agreement with an exhaustive search, and what noise must not do."""

import numpy as np
import pytest
import scipy.sparse as sp
from planted import neighbor_graph, plant_cells
from scipy.stats import spearmanr
from sklearn.neighbors import kneighbors_graph

from cellrank_velot.graph.geodesic import (
    N_SMOOTHING,
    geodesic_distances,
    near_graph,
    never_falling,
    shortest_paths,
)
from cellrank_velot.graph.smoothing import smoothed


def spiral(n_cells: int = 500, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return cells along two turns of a spiral, whose turns are 1 apart, and the length of the way to each."""
    rng = np.random.default_rng(seed)
    angle = 2 * np.pi * np.sort(rng.uniform(1, 3, n_cells))
    radius = angle / (2 * np.pi)
    x = np.column_stack([radius * np.cos(angle), radius * np.sin(angle), *np.zeros((3, n_cells))])
    steps = np.linalg.norm(np.diff(x, axis=0, prepend=x[:1]), axis=1)
    return x + noise * rng.normal(size=x.shape), np.cumsum(steps)


def test_smoothing_halves_the_way_to_the_neighbours_mean():
    graph = sp.csr_matrix(np.array([[0, 1, 3, 0], [1, 0, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]], dtype=float))
    values = np.array([0.0, 4.0, 8.0, 5.0])
    np.testing.assert_allclose(smoothed(values, graph, 1), [3.5, 2.0, 4.0, 5.0])  # the last has no neighbour
    np.testing.assert_allclose(smoothed(values, 7 * graph, 2), smoothed(smoothed(values, graph, 1), graph, 1))


def test_nearest_in_two_steps_are_the_nearest_of_all():
    cells = plant_cells(400)
    near = near_graph(smoothed(cells.x, cells.graph, N_SMOOTHING), cells.graph, 6)
    exact = kneighbors_graph(smoothed(cells.x, cells.graph, N_SMOOTHING), 6, mode="distance")
    assert abs(near - exact.maximum(exact.T)).max() < 1e-12


def test_few_cells_and_cells_at_one_place_have_edges():
    x = np.zeros((4, 2))
    near = near_graph(x, sp.csr_matrix(np.ones((4, 4)) - np.eye(4)), 15)
    assert near.nnz == 12
    assert (near.data > 0).all()


def test_distances_are_lengths_of_the_curve():
    x, length = spiral()
    found = geodesic_distances(near_graph(x, neighbor_graph(x), 4), np.array([0]))
    np.testing.assert_allclose(found, length, rtol=0.02, atol=0.02)


def test_parts_are_joined_by_the_shortest_edges_only_where_the_graph_is_whole():
    x = np.concatenate([np.linspace(0, 1, 30), np.linspace(3, 4, 30)])[:, None]
    graph = neighbor_graph(x, 4).tolil()
    assert np.isinf(geodesic_distances(near_graph(x, sp.csr_matrix(graph), 4), np.array([0]))[30:]).all()
    graph[29, 30] = graph[30, 29] = graph[0, 59] = graph[59, 0] = 0.1
    found = geodesic_distances(near_graph(x, sp.csr_matrix(graph), 4), np.array([0]))
    np.testing.assert_allclose(found, x.ravel(), atol=1e-9)


def test_values_never_fall_along_the_paths():
    x, length = spiral(200)
    distance, before = shortest_paths(near_graph(x, neighbor_graph(x), 4), np.array([0]))
    assert before[0] == 0
    assert (distance[before][1:] < distance[1:]).all()
    np.testing.assert_array_equal(never_falling(length, before), length)
    falling = np.minimum(length, 6 - length)
    found = never_falling(falling, before)
    assert np.diff(found[np.argsort(distance)]).min() >= 0
    assert found.max() == falling.max()


def test_zero_weights_are_no_edges():
    x, _ = spiral(200)
    graph = neighbor_graph(x)
    wide = sp.csr_matrix(graph + sp.csr_matrix(([1.0], ([0], [199])), shape=graph.shape))
    wide[0, 199] = 0.0
    assert wide.nnz > graph.nnz
    assert abs(near_graph(x, wide) - near_graph(x, graph)).max() == 0


@pytest.mark.parametrize("seed", range(3))
def test_noise_makes_no_short_cuts_over_smoothed_positions(seed: int):
    x, length = spiral(800, noise=0.1, seed=seed)
    graph = neighbor_graph(x, 30)
    edges = sp.coo_matrix(graph)
    lengths = np.linalg.norm(x[edges.row] - x[edges.col], axis=1)
    raw = geodesic_distances(sp.csr_matrix((lengths, (edges.row, edges.col)), shape=graph.shape), np.array([0]))
    found = geodesic_distances(near_graph(smoothed(x, graph, N_SMOOTHING), graph), np.array([0]))
    assert spearmanr(raw, length).statistic < 0.9
    assert spearmanr(found, length).statistic > 0.999


def test_order_rotation_and_units_do_not_matter():
    cells = plant_cells()
    rng = np.random.default_rng(2)
    order, turn = rng.permutation(len(cells.x)), np.linalg.qr(rng.normal(size=(5, 5)))[0]

    def distances(x: np.ndarray, graph: sp.csr_matrix, root: int) -> np.ndarray:
        return geodesic_distances(near_graph(smoothed(x, graph, N_SMOOTHING), graph), np.array([root]))

    usual = distances(cells.x, cells.graph, 0)
    changed = distances(7 * cells.x[order] @ turn, cells.graph[order][:, order], int(np.argmin(order)))
    np.testing.assert_allclose(changed, 7 * usual[order], rtol=1e-9)
