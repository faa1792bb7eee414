"""Residuals against a loop over the cells, and against planted noise."""

import numpy as np
import scipy.sparse as sp
from scipy.stats import ortho_group
from sklearn.neighbors import kneighbors_graph

from cellrank_velot.graph.residuals import residuals


def test_residual_leads_to_the_weighted_mean_of_the_neighbours():
    x = np.array([[0.0, 0], [4, 0], [0, 8], [1, 1]])
    graph = sp.csr_matrix([[0, 3, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 2, 2, 4]])
    np.testing.assert_allclose(residuals(x, graph), [[3, 2], [-4, 0], [0, 0], [0.5, 1.5]])


def test_agrees_with_a_loop(planted):
    expected = np.zeros_like(planted.x)
    for cell in range(planted.time.size):
        row = planted.graph[cell]
        expected[cell] = np.average(planted.x[row.indices], axis=0, weights=row.data) - planted.x[cell]
    np.testing.assert_allclose(residuals(planted.x, planted.graph), expected, atol=1e-12)


def test_residuals_are_the_noise_around_a_planted_line():
    rng = np.random.default_rng(1)
    noise = rng.normal(scale=0.05, size=(1000, 4))
    noise[:, 0] = 0
    x = np.outer(np.linspace(0, 100, 1000), [1, 0, 0, 0]) + noise
    found = residuals(x, kneighbors_graph(x, 20))  # neighbours come from the line alone: it is much longer
    np.testing.assert_allclose(found[:, 1:].std(0), 0.05, rtol=0.1)
    slopes = [np.polyfit(noise[:, k], found[:, k], 1)[0] for k in (1, 2, 3)]
    np.testing.assert_allclose(slopes, -1, atol=0.1)


def test_residuals_turn_move_and_scale_with_the_cells(planted):
    rotation = ortho_group.rvs(5, random_state=2)
    plain, turned = residuals(planted.x, planted.graph), residuals(7 * planted.x @ rotation + 30, planted.graph)
    np.testing.assert_allclose(turned, 7 * plain @ rotation, atol=1e-10)
    np.testing.assert_allclose(residuals(planted.x, 5 * planted.graph), plain, atol=1e-12)
    order = np.random.default_rng(3).permutation(240)
    permuted = residuals(planted.x[order], planted.graph[order][:, order])
    np.testing.assert_allclose(permuted, plain[order], atol=1e-12)


def test_cell_without_neighbours_has_no_residual(planted):
    np.testing.assert_array_equal(residuals(planted.x, sp.csr_matrix((240, 240))), 0)
    stored = planted.graph.copy()
    stored.data[stored.indptr[7] : stored.indptr[8]] = 0  # edges that are none
    found = residuals(planted.x, stored)
    np.testing.assert_array_equal(found[7], 0)
    np.testing.assert_array_equal(found[8], residuals(planted.x, planted.graph)[8])
