"""Residuals against a loop over the cells, and the share of structure in them against planted noise."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import ortho_group
from sklearn.neighbors import kneighbors_graph

from cellrank_velot.graph.residuals import residuals, structured_share


def drawn(scales: list[float], n_cells: int = 4000, seed: int = 0) -> np.ndarray:
    """Return residuals that have a given standard deviation in each direction, in a basis of no matter which."""
    rng = np.random.default_rng(seed)
    n_dims = len(scales)
    rotation = ortho_group.rvs(n_dims, random_state=seed) if n_dims > 1 else np.eye(1)
    return rng.normal(size=(n_cells, n_dims)) * scales @ rotation


# ------------------------------------------------------------------------------------------------ residuals
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


# --------------------------------------------------------------------------------------- share of structure
def test_noise_alike_in_all_directions_is_no_structure():
    assert structured_share(drawn([0.3] * 20)) < 0.08


@pytest.mark.parametrize("scales", [[10, 1, 1, 1, 1], [5, 3, 1, 1, 1, 1, 1, 1], [2] + [1] * 11])
def test_share_is_the_mean_wiener_gain_of_planted_structure(scales: list[float]):
    expected = np.mean(1 - 1 / np.square(scales))
    assert structured_share(drawn(scales, 20_000)) == pytest.approx(expected, abs=0.03)


def test_agrees_with_principal_components_by_singular_values(planted):
    residual = residuals(planted.x, planted.graph)
    variance = np.linalg.svd(residual, compute_uv=False) ** 2 / 240
    floor = np.percentile([v for v in variance if v >= np.median(variance) / 10], 25)
    expected = np.mean([max(0, 1 - floor / v) for v in variance])
    assert structured_share(residual) == pytest.approx(expected, abs=1e-12)


def test_direction_of_hardly_any_variance_is_not_taken_for_the_noise():
    found = structured_share(drawn([*[0.01] * 4, *[1.0] * 7, 3.0], 20_000))
    assert found == pytest.approx((1 - 1 / 9) / 12, abs=0.03)  # the low ones as the floor would take it to 8 / 12


@pytest.mark.parametrize("factor", [1e-8, 1.0, 1e5])
def test_share_knows_neither_units_nor_axes_nor_order(factor: float):
    residual = drawn([3, 2, 1, 1, 1], 500)
    expected = structured_share(residual)
    rotation = ortho_group.rvs(5, random_state=9)
    order = np.random.default_rng(4).permutation(500)
    assert structured_share(factor * residual @ rotation) == pytest.approx(expected, abs=1e-9)
    assert structured_share(-residual[order]) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected < 1


@pytest.mark.parametrize("n_empty", [1, 5, 40])
def test_empty_directions_do_not_matter(n_empty: int):
    residual = drawn([3, 2, 1, 1, 1], 500)
    wider = np.column_stack([residual, np.zeros((500, n_empty))]) @ ortho_group.rvs(5 + n_empty, random_state=5)
    assert structured_share(wider) == pytest.approx(structured_share(residual), abs=1e-9)


def test_where_no_cell_deviates_nothing_is_structure(planted):
    assert structured_share(np.zeros((30, 4))) == 0
    assert structured_share(residuals(planted.x, sp.csr_matrix((240, 240)))) == 0
    assert structured_share(residuals(np.ones((4, 3)), sp.csr_matrix(np.ones((4, 4))))) == 0


def test_one_direction_cannot_tell_structure_from_noise():
    assert structured_share(drawn([5.0], 100)) == 0


def test_fewer_cells_than_dimensions():
    assert 0 <= structured_share(np.random.default_rng(6).normal(size=(5, 50))) <= 1
