"""Shortest paths, and paths around a group, against SciPy's on the graph without the group."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.csgraph import dijkstra

from cellrank_velot.graph.shortest import ShortestPaths


def random_graph(n_cells: int, n_edges: int, seed: int) -> sp.csr_matrix:
    """Return a symmetric graph with lengths, whose parts need not hang together."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(n_cells, size=(2, n_edges))
    graph = sp.csr_matrix((rng.uniform(0.1, 2, n_edges), (rows, columns)), (n_cells, n_cells))
    graph.setdiag(0)
    graph.eliminate_zeros()
    return sp.csr_matrix(graph.maximum(graph.T))


@pytest.mark.parametrize("seed", range(8))
def test_paths_and_paths_around_a_group_are_those_of_scipy(seed):
    rng = np.random.default_rng(seed)
    lengths = random_graph(300, 500 if seed % 2 else 260, seed)
    sources = rng.choice(300, 1 + seed, replace=False)
    paths = ShortestPaths.of(lengths, sources)
    exact = dijkstra(lengths, directed=False, indices=sources, min_only=True)
    np.testing.assert_array_equal(paths.distance, exact)
    assert paths.order.size == np.isfinite(exact).sum()
    assert (np.diff(exact[paths.order]) >= 0).all()
    for size in (1, 20, 150, 290):
        group = rng.choice(300, size, replace=False)
        left = np.setdiff1d(np.arange(300), group)
        at = np.searchsorted(left, np.setdiff1d(sources, group))
        around = paths.without(group)
        expected = dijkstra(lengths[left][:, left], directed=False, indices=at, min_only=True) if at.size else np.inf
        np.testing.assert_array_equal(around[left], np.broadcast_to(expected, left.size))
        assert np.isinf(around[group]).all()
    np.testing.assert_array_equal(paths.distance, exact)  # as it was


def test_a_path_leads_back_to_a_source():
    lengths = random_graph(200, 600, 3)
    paths = ShortestPaths.of(lengths, np.array([5, 17]))
    for cell in paths.order:
        steps, at = 0.0, cell
        while paths.before[at] >= 0:
            steps += lengths[at, paths.before[at]]
            at = paths.before[at]
        assert at in (5, 17)
        np.testing.assert_allclose(steps, paths.distance[cell])


def test_no_cell_is_left_where_all_sources_are_in_the_group():
    paths = ShortestPaths.of(random_graph(50, 200, 0), np.array([3]))
    assert np.isinf(paths.without(np.array([3, 4]))).all()
