"""Smoothed cells: noise goes, curves stay, parts stay apart, and the new graph is the one of a search by hand."""

from importlib import import_module

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import ortho_group
from sklearn.neighbors import kneighbors_graph

from cellrank_velot.fates import find_ends
from cellrank_velot.graph import SmoothedCells, smooth_cells
from cellrank_velot.graph.order import MemoryOrder
from cellrank_velot.transport.estimate import regress_on_time


def neighbors(x: np.ndarray, k: int = 15) -> sp.csr_matrix:
    """Return a symmetric graph of nearest neighbours, weighted by how near they are."""
    graph = kneighbors_graph(x, k, mode="distance")
    graph.data = np.exp(-graph.data / graph.data.mean())
    return sp.csr_matrix(graph.maximum(graph.T))


def curve(n_cells: int, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return cells along a turn of a helix, in no order of time, their time, and the tangent."""
    rng = np.random.default_rng(seed)
    time = rng.permutation(np.linspace(0, 1, n_cells))
    angle = 4 * time
    x = np.column_stack([np.cos(angle), np.sin(angle), angle / 2])
    tangent = 4 * np.column_stack([-np.sin(angle), np.cos(angle), np.full(n_cells, 0.5)])
    return np.hstack([x, np.zeros((n_cells, 3))]) + rng.normal(scale=noise, size=(n_cells, 6)), time, tangent


def assert_same(found: SmoothedCells, expected: SmoothedCells, **allowed: float) -> None:
    np.testing.assert_allclose(found.x, expected.x, **allowed)
    np.testing.assert_allclose(found.time, expected.time, **allowed)
    assert (found.graph != expected.graph).nnz == 0


# -------------------------------------------------------------------------------------------- planted truth
def test_cells_without_noise_stay_on_their_curve():
    x, time, tangent = curve(1000)
    cells = smooth_cells(x, time, neighbors(x), 2)
    inner = np.flatnonzero((time > 0.05) & (time < 0.95))
    order = inner[np.argsort(time[inner])]
    assert np.abs(cells.x - x)[inner].max() < 1e-3
    assert np.abs(cells.time - time)[inner].max() < 0.02
    assert (np.diff(cells.time[order]) > 0).all()  # in the same order
    way = cells.x[order[20:]] - cells.x[order[:-20]]
    middle = tangent[order[10:-10]]
    cosine = (way[:, :3] * middle).sum(1) / np.linalg.norm(way, axis=1) / np.linalg.norm(middle, axis=1)
    assert cosine.min() > 0.999


def test_noise_goes_and_neighbours_become_those_in_time():
    x, time, _ = curve(1000, noise=0.15)
    at = time + np.random.default_rng(1).normal(scale=0.15, size=1000)
    graph = neighbors(x, 30)
    cells, true = smooth_cells(x, at, graph, 2), curve(1000)[0]
    inner = (time > 0.1) & (time < 0.9)
    off, before = (np.sqrt(np.mean((y - true)[inner] ** 2)) for y in (cells.x, x))
    assert off < 0.7 * before  # of their own noise a quarter stays, whatever the neighbours say
    assert np.std((cells.time - time)[inner]) < np.std((at - time)[inner]) / 2
    apart = [np.median(np.abs(np.subtract(*(time[ends] for ends in g.nonzero())))) for g in (cells.graph, graph)]
    assert apart[0] < apart[1]


def test_time_keeps_its_mean_and_spread_and_knows_no_unit():
    x, time, _ = curve(400, noise=0.1)
    graph = neighbors(x)
    plain, other = smooth_cells(x, time, graph, 2), smooth_cells(x, 7 - 24 * time, graph, 2)
    assert plain.time.mean() == pytest.approx(time.mean())
    assert plain.time.std() == pytest.approx(time.std())
    np.testing.assert_allclose(other.time, 7 - 24 * plain.time, atol=1e-10)
    np.testing.assert_array_equal(smooth_cells(x, np.full(400, 3.0), graph, 2).time, 3)


# ------------------------------------------------------------------------------------------ agreement by hand
@pytest.mark.parametrize(("n_cells", "n_neighbors"), [(60, 5), (400, 12), (400, 40)])
def test_agrees_with_a_search_by_hand(n_cells: int, n_neighbors: int):
    """Nearest among the nearest neighbours and theirs, either way: a tenth of the cells, and at most thirty."""
    x, time, _ = curve(n_cells, noise=0.2)
    graph = neighbors(x, n_neighbors)
    cells = smooth_cells(x, time, graph, 3)
    mean = graph.multiply(1 / graph.sum(axis=1)).toarray()
    half = (np.eye(n_cells) + mean) / 2
    y = np.linalg.matrix_power(half, 3) @ x
    np.testing.assert_allclose(cells.x, y, atol=1e-12)

    k = min(30, n_cells // 10)
    square = ((y[:, None] - y) ** 2).sum(-1)
    hop = np.zeros((n_cells, n_cells), dtype=bool)
    expected = np.zeros_like(hop)
    for i in range(n_cells):
        around = graph[i].indices
        hop[i, around[np.argsort(square[i, around])[: min(15, k)]]] = True
    for i in range(n_cells):
        around = hop[i] | hop[hop[i]].any(axis=0)
        around[i] = False
        around = np.flatnonzero(around)
        expected[i, around[np.argsort(square[i, around])[:k]]] = True
    np.testing.assert_array_equal(cells.graph.toarray(), (expected | expected.T).astype(float))

    near = cells.graph.toarray()
    at = np.linalg.matrix_power((np.eye(n_cells) + near / near.sum(axis=1, keepdims=True)) / 2, 10) @ time
    np.testing.assert_allclose(cells.time, (at - at.mean()) / at.std() * time.std() + time.mean(), atol=1e-10)


# ---------------------------------------------------------------------------------------------- invariances
def test_parts_are_smoothed_as_if_they_were_alone():
    """Two sets of cells in the same place, between which the graph has no edge, or edges of weight zero."""
    x, time, _ = curve(400, noise=0.15)
    other, later, _ = curve(300, noise=0.15, seed=1)
    graphs = neighbors(x), neighbors(other)
    alone = [smooth_cells(y, t, g, 2) for y, t, g in zip((x, other), (time, later), graphs, strict=True)]
    joined = sp.block_diag(graphs, format="csr")
    row, column = joined.nonzero()
    ends = np.append(row, [3, 450]), np.append(column, [450, 3])
    stored = sp.csr_matrix((np.append(joined.data, [0.0, 0.0]), ends), shape=joined.shape)
    assert stored.nnz == joined.nnz + 2
    for graph in (joined, stored):
        both = smooth_cells(np.vstack([x, other]), np.append(time, later), graph, 2)
        np.testing.assert_allclose(both.x, np.vstack([cells.x for cells in alone]), atol=1e-12)
        assert (both.graph != sp.block_diag([cells.graph for cells in alone], format="csr")).nnz == 0
    assert stored.nnz == joined.nnz + 2  # the user's


def test_order_of_the_cells_and_axes_do_not_matter():
    x, time, _ = curve(400, noise=0.15)
    graph = neighbors(x)
    plain = smooth_cells(x, time, graph, 2)
    order = np.random.default_rng(2).permutation(400)
    moved = SmoothedCells(plain.x[order], plain.time[order], plain.graph[order][:, order])
    assert_same(smooth_cells(x[order], time[order], graph[order][:, order], 2), moved, atol=1e-12)
    rotation = ortho_group.rvs(6, random_state=3)
    turned = SmoothedCells(5 * plain.x @ rotation + 2, plain.time, plain.graph)
    assert_same(smooth_cells(5 * x @ rotation + 2, time, graph, 2), turned, atol=1e-11)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_blocks_and_jobs_do_not_matter(monkeypatch, n_jobs: int):
    x, time, _ = curve(400, noise=0.15)
    graph = neighbors(x)
    whole = smooth_cells(x, time, graph, 2)
    for name in ("smoothing", "residuals"):
        monkeypatch.setattr(import_module(f"cellrank_velot.graph.{name}"), "BLOCK_CELLS", 37)
    assert_same(smooth_cells(x, time, graph, 2, n_jobs=n_jobs), whole, rtol=0)


# ----------------------------------------------------------------------------------------- degenerate input
def test_without_steps_all_is_left_as_it_is(planted):
    cells = smooth_cells(planted.x, planted.time, planted.graph, 0)
    assert cells.x is planted.x
    assert cells.time is planted.time
    assert cells.graph is planted.graph


def test_graph_is_symmetric_without_loops_and_inputs_are_left_alone(planted):
    before = planted.graph.copy()
    cells = smooth_cells(planted.x, planted.time, planted.graph, 2)  # whose arrays nobody may write to
    assert (cells.graph != cells.graph.T).nnz == 0
    np.testing.assert_array_equal(cells.graph.diagonal(), 0)
    np.testing.assert_array_equal(cells.graph.data, 1)
    assert (planted.graph != before).nnz == 0


def test_cell_without_neighbours_stays_where_it_is(planted):
    keep = sp.diags((np.arange(240) != 7).astype(float))
    alone = sp.csr_matrix(keep @ planted.graph @ keep)
    cells = smooth_cells(planted.x, planted.time, alone, 2)
    np.testing.assert_array_equal(cells.x[7], planted.x[7])
    assert cells.graph[7].nnz == cells.graph[:, [7]].nnz == 0
    assert np.isfinite(cells.time).all()
    none = smooth_cells(planted.x, planted.time, sp.csr_matrix((240, 240)), 2)
    np.testing.assert_array_equal(none.x, planted.x)
    np.testing.assert_allclose(none.time, planted.time, atol=1e-12)
    assert none.graph.nnz == 0


@pytest.mark.parametrize("n_cells", [1, 2, 3, 5])
def test_fewer_cells_than_neighbours(n_cells: int):
    rng = np.random.default_rng(n_cells)
    x, graph = rng.normal(size=(n_cells, 4)), np.ones((n_cells, n_cells)) - np.eye(n_cells)
    cells = smooth_cells(x, np.arange(n_cells, dtype=float), sp.csr_matrix(graph), 2)
    assert np.isfinite(cells.x).all()
    assert np.isfinite(cells.time).all()
    assert (cells.graph.sum(axis=1) >= min(2, n_cells - 1)).all()  # two nearest, if there are two


def test_cells_in_one_place_are_joined_with_as_many_as_others():
    x, time = np.zeros((100, 3)), np.linspace(0, 1, 100)
    cells = smooth_cells(x, time, sp.csr_matrix(np.ones((100, 100))), 2)
    np.testing.assert_array_equal(cells.x, 0)
    assert (np.diff(cells.graph.indptr) >= 10).all()
    np.testing.assert_array_equal(cells.graph.diagonal(), 0)


def test_many_cells_are_taken_in_another_order_and_come_out_the_same(planted, monkeypatch):
    mix = np.random.default_rng(0).permutation(240)
    x, time, graph = planted.x[mix], planted.time[mix], sp.csr_matrix(planted.graph[mix][:, mix])

    def computed():
        cells = smooth_cells(x, time, graph, 2)
        velocity = regress_on_time(cells).velocity
        labels = planted.labels[mix].astype(str)
        ends = find_ends(x, graph, time, cells, velocity, labels, roots=np.array([int(time.argmin())]))
        return cells, velocity, ends

    own = computed()
    monkeypatch.setattr("cellrank_velot.graph.order.WORTH_FROM", 2)
    assert not MemoryOrder.of(graph).is_own
    other = computed()
    np.testing.assert_allclose(other[0].x, own[0].x, atol=1e-12)
    np.testing.assert_allclose(other[0].time, own[0].time, atol=1e-12)
    assert (other[0].graph != own[0].graph).nnz == 0
    np.testing.assert_allclose(other[1], own[1], atol=1e-9)
    np.testing.assert_array_equal(other[2].label, own[2].label)
    assert own[2].label.max() >= 1


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_graph_moves_into_the_order_and_back(monkeypatch, dtype):
    monkeypatch.setattr("cellrank_velot.graph.order.WORTH_FROM", 100)
    monkeypatch.setattr("cellrank_velot.graph.rows.BLOCK_EDGES", 1000)
    dense = sp.random(400, 400, 0.02, dtype=dtype, random_state=0).toarray()
    dense[:2] = 1  # rows of many edges
    dense[7] = dense[:, 7] = 0
    graph = sp.csr_matrix(dense + dense.T)
    order = MemoryOrder.of(graph)
    moved = order.graph(graph)
    np.testing.assert_array_equal(moved.toarray(), graph.toarray()[order.cells][:, order.cells])
    assert moved.dtype == dtype
    assert moved.has_canonical_format
    assert (order.graph_back(moved) != graph).nnz == 0
    directed = sp.csr_matrix(sp.triu(graph))  # an order for edges in one direction is one, too
    np.testing.assert_array_equal(np.sort(MemoryOrder.of(directed).cells), np.arange(400))
