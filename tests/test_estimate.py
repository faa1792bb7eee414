"""Regression on time and its mean with transport: exact lines, numpy's polyfit, and streams that meet."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import ortho_group
from sklearn.neighbors import kneighbors_graph

from cellrank_velot.graph import SmoothedCells
from cellrank_velot.transport import TransportOptions, WindowOptions, Windows, build_windows, compute_velocity
from cellrank_velot.transport.estimate import estimate_velocity, regress_on_time


def joined(x: np.ndarray, time: np.ndarray, k: int = 12) -> SmoothedCells:
    """Return cells that are taken as they are, with a symmetric graph."""
    graph = kneighbors_graph(x, k)
    return SmoothedCells(x, time, sp.csr_matrix(graph.maximum(graph.T)))


def in_windows(cells: SmoothedCells, size: int = 24, lag: float | str = 0.06) -> Windows:
    options = WindowOptions(window_size=size, min_window_size=5, time_lag=lag)
    return build_windows(cells.x, cells.time, options, labels=np.zeros(cells.time.size, dtype=int))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def noisy_curve(n_cells: int = 300, seed: int = 0) -> SmoothedCells:
    rng = np.random.default_rng(seed)
    time = rng.permutation(np.linspace(0, 1, n_cells))
    x = np.column_stack([4 * time, 4 * time**2, np.zeros(n_cells)]) + rng.normal(scale=0.1, size=(n_cells, 3))
    return joined(x, time)


@pytest.fixture(scope="module")
def cells() -> SmoothedCells:
    return noisy_curve()


# ------------------------------------------------------------------------------------------------ regression
@pytest.mark.parametrize("start", [0.0, 1e5])
def test_slope_of_a_line_is_exact(start: float):
    drift, time = np.array([3.0, -2.0, 0.0, 1.0]), np.random.default_rng(0).random(200)
    found = regress_on_time(joined(np.outer(time, drift) + start, time - start))
    np.testing.assert_allclose(found.velocity, np.tile(drift, (200, 1)), rtol=1e-9 if start == 0 else 1e-4, atol=1e-4)
    assert (found.time_variance > 0).all()


def test_agrees_with_polyfit_weighted_by_where_a_walk_ends(cells: SmoothedCells):
    found = regress_on_time(cells)
    steps = cells.graph.toarray() + np.eye(300)
    walk = np.linalg.matrix_power(steps / steps.sum(axis=1, keepdims=True), 4)
    slopes = np.array([np.polyfit(cells.time, cells.x, 1, w=np.sqrt(weights))[0] for weights in walk])
    np.testing.assert_allclose(found.velocity, slopes, rtol=1e-8, atol=1e-8)
    variances = np.array([np.cov(cells.time, aweights=weights, ddof=0) for weights in walk])
    np.testing.assert_allclose(found.time_variance, variances, rtol=1e-9)
    assert variances.min() > 0.1 * np.median(variances)


def test_where_time_hardly_varies_the_speed_is_not_huge():
    """A few cells go a long way in no time: the direction is that of the slope, divided by a tenth of the median."""
    parts = noisy_curve(200, 0), noisy_curve(60, 1)
    x, time = np.vstack([part.x for part in parts]), np.append(parts[0].time, 0.5 + 0.01 * parts[1].time)
    found = regress_on_time(SmoothedCells(x, time, sp.csr_matrix(sp.block_diag([part.graph for part in parts]))))
    fast, alone = slice(200, None), regress_on_time(replace(parts[1], time=0.01 * parts[1].time))
    np.testing.assert_allclose(cosine(found.velocity[fast], alone.velocity), 1)
    shrunk = alone.time_variance / (0.1 * np.median(found.time_variance))
    assert shrunk.max() < 0.1
    np.testing.assert_allclose(found.velocity[fast], alone.velocity * shrunk[:, None], rtol=1e-6)


def test_where_time_does_not_vary_there_is_no_slope():
    """One part of the cells has one time, and one cell is alone."""
    parts = [noisy_curve(100, seed) for seed in (0, 1)]
    x = np.vstack([parts[0].x, parts[1].x, np.zeros((1, 3))])
    time = np.concatenate([parts[0].time, np.full(100, 0.3), [0.5]])
    graph = sp.csr_matrix(sp.block_diag([parts[0].graph, parts[1].graph, sp.csr_matrix((1, 1))]))
    found = regress_on_time(SmoothedCells(x, time, graph))
    assert (found.time_variance[:100] > 0).all()
    np.testing.assert_array_equal(found.time_variance[100:], 0)
    np.testing.assert_array_equal(found.velocity[100:], 0)


def test_weights_of_the_graph_do_not_matter(cells: SmoothedCells):
    other = cells.graph.copy()
    other.data = np.random.default_rng(1).uniform(0.1, 5, other.nnz)
    found, expected = (regress_on_time(replace(cells, graph=graph)) for graph in (other, cells.graph))
    np.testing.assert_array_equal(found.velocity, expected.velocity)


# ---------------------------------------------------------------------------------------- the mean of both
def test_where_streams_of_different_times_meet_transport_decides():
    """Two streams come from either side; the late one starts when the early one is half of its way on."""
    rng, n = np.random.default_rng(0), 300
    age, late = np.tile(np.linspace(0, 1, n), 2), np.repeat([False, True], n)
    x = rng.normal(scale=0.03, size=(2 * n, 3))
    x[:, 0] += np.where(late, 2 - age, age)
    truth = np.column_stack([np.where(late, -1.0, 1.0), np.zeros((2 * n, 2))])
    cells = joined(x, age + 0.5 * late)
    windows, options = in_windows(cells), TransportOptions(epsilon=0.02)
    both = estimate_velocity(cells, windows, options)
    fitted, transport = regress_on_time(cells).velocity, compute_velocity(x, cells.time, windows, cells.graph, options)
    meeting = late & (age > 0.88)  # the last of the late ones lie beside the last of the early ones
    assert np.median(cosine(fitted, truth)[meeting]) < -0.5  # from early ones to late ones, against the stream
    assert np.median(cosine(transport.velocity, truth)[meeting]) > 0.9
    assert np.median(cosine(both.velocity, truth)[meeting]) > 0.9
    assert np.median(both.agreement[meeting]) < 0  # a contradiction
    assert np.median(both.confidence[meeting]) == 0  # time falls along the velocity
    away = age < 0.7
    assert cosine(both.velocity, truth)[away].min() > 0.9
    assert np.median(both.confidence[away]) > 0.95


def test_agrees_with_dense_matrices(cells: SmoothedCells):
    """Transport is averaged over two steps of the walk, and counts by what it differs in, a tenth at the least."""
    windows = in_windows(cells)
    windows = Windows.from_dict({**windows.to_dict(), "pairs": windows.pairs[6:-6], "dt": windows.dt[6:-6]})
    alone = compute_velocity(cells.x, cells.time, windows, cells.graph)
    found = estimate_velocity(cells, windows)
    steps = cells.graph.toarray() + np.eye(300)
    walk = np.linalg.matrix_power(steps / steps.sum(axis=1, keepdims=True), 2) * (alone.n_windows > 0)
    reached = walk.sum(axis=1) > 0
    current = walk @ np.nan_to_num(alone.velocity) / np.where(reached, walk.sum(axis=1), 1)[:, None]
    fitted = regress_on_time(cells)
    agreement = np.where(reached, cosine(np.where(reached[:, None], current, 1.0), fitted.velocity), 0)
    share = np.where(reached, np.clip(1 - agreement, 0.1, 1), 0)[:, None]
    assert 0 < (~reached).sum() < (alone.n_windows == 0).sum()
    np.testing.assert_allclose(found.velocity, share * current + (1 - share) * fitted.velocity, atol=1e-9)
    np.testing.assert_allclose(found.agreement, agreement, atol=1e-9)
    np.testing.assert_allclose(found.explained, explained(cells, found.velocity), atol=1e-9)
    weight = (fitted.time_variance / np.median(fitted.time_variance)).clip(1e-3, 3)
    np.testing.assert_allclose(found.fit_weight, weight, rtol=1e-9)
    assert found.has_estimate.all()  # by regression at least
    for name in ("spread", "n_effective", "disagreement", "support", "n_forward", "n_backward", "relaxation"):
        np.testing.assert_array_equal(getattr(found, name), getattr(alone, name), err_msg=name)


def explained(cells: SmoothedCells, velocity: np.ndarray) -> np.ndarray:
    """Return the squared correlation of time and position along the velocity, over all that positions vary, by hand."""
    steps = cells.graph.toarray() + np.eye(len(cells.x))
    walk = np.linalg.matrix_power(steps / steps.sum(axis=1, keepdims=True), 4)
    found = np.zeros(len(cells.x))
    for cell, weight in enumerate(walk):
        x, t = cells.x - weight @ cells.x, cells.time - weight @ cells.time
        along = weight @ (x @ velocity[cell] * t) / np.linalg.norm(velocity[cell])
        found[cell] = max(along, 0) ** 2 / ((weight @ t**2) * (weight @ (x**2).sum(axis=1)))
    return found


def test_confidence_is_the_cosine_to_be_expected(cells: SmoothedCells):
    """It is one where time explains all, and falls with noise; relaxation does not count."""
    windows = in_windows(cells)
    found = estimate_velocity(cells, windows)
    rest = 0.05 * (1 - found.explained) / found.explained
    np.testing.assert_allclose(found.confidence, 1 / np.sqrt(1 + rest))
    relaxed = estimate_velocity(cells, windows, TransportOptions(relaxation=1.0))
    np.testing.assert_allclose(relaxed.confidence, found.confidence)
    line = np.outer(np.linspace(0, 1, 200), [1.0, 2, 2])
    certain = joined(line, np.linspace(0, 1, 200))
    np.testing.assert_allclose(estimate_velocity(certain, in_windows(certain)).confidence, 1)
    noisy = cells.x + np.random.default_rng(0).normal(scale=0.5, size=cells.x.shape)
    assert estimate_velocity(replace(cells, x=noisy), windows).confidence.mean() < found.confidence.mean() - 0.1


def test_relaxation_is_added_to_the_mean(cells: SmoothedCells):
    windows = in_windows(cells)
    none, all_ = (estimate_velocity(cells, windows, TransportOptions(relaxation=share)) for share in (0.0, 1.0))
    assert np.abs(all_.relaxation).max() > 0.1
    np.testing.assert_allclose(all_.velocity - all_.relaxation, none.velocity, atol=1e-9)
    np.testing.assert_allclose(all_.agreement, none.agreement, atol=1e-9)


def test_without_regression_transport_is_alone(cells: SmoothedCells):
    windows, options = in_windows(cells), TransportOptions(regression=False)
    found = estimate_velocity(cells, windows, options)
    alone = compute_velocity(cells.x, cells.time, windows, cells.graph, options)
    np.testing.assert_array_equal(found.velocity, alone.velocity)
    np.testing.assert_array_equal(found.fit_weight, alone.confidence)
    assert found.agreement is found.explained is None
    assert found.weight is None


def test_cells_of_which_nothing_is_known_are_nan_and_do_not_count(cells: SmoothedCells):
    """They are in no window, and alone in the graph."""
    x, time = np.vstack([cells.x, np.zeros((2, 3))]), np.append(cells.time, [0.2, 0.4])
    graph = sp.csr_matrix(sp.block_diag([cells.graph, sp.csr_matrix((2, 2))]))
    windows = in_windows(cells)
    pairs = [[windows.cells(i) for i in pair] for pair in windows.pairs]
    found = estimate_velocity(SmoothedCells(x, time, graph), Windows.from_pairs(pairs, time))
    assert np.isnan(found.velocity[-2:]).all()
    np.testing.assert_array_equal(np.flatnonzero(~found.has_estimate), [300, 301])
    np.testing.assert_array_equal(found.fit_weight[-2:], 0)
    np.testing.assert_array_equal(found.confidence[-2:], 0)


# ---------------------------------------------------------------------------------------------- invariances
def test_knows_no_axes_units_or_order(cells: SmoothedCells):
    windows = in_windows(cells)
    pairs = [[windows.cells(i) for i in pair] for pair in windows.pairs]
    expected = estimate_velocity(cells, windows)
    rotation = ortho_group.rvs(3, random_state=0)
    turned = SmoothedCells(10 * cells.x @ rotation - 3, 24 * cells.time + 5, cells.graph)
    found = estimate_velocity(turned, Windows.from_pairs(pairs, turned.time))
    np.testing.assert_allclose(found.velocity * 2.4 @ rotation.T, expected.velocity, atol=1e-5)
    np.testing.assert_allclose(found.agreement, expected.agreement, atol=1e-6)
    np.testing.assert_allclose(found.fit_weight, expected.fit_weight, rtol=1e-8)

    order = np.random.default_rng(1).permutation(300)
    place = np.argsort(order)
    mixed = SmoothedCells(cells.x[order], cells.time[order], cells.graph[order][:, order])
    again = estimate_velocity(mixed, Windows.from_pairs([[place[w] for w in pair] for pair in pairs], mixed.time))
    np.testing.assert_allclose(again.velocity, expected.velocity[order], atol=1e-6)


def test_reversed_time_turns_the_velocity_around(cells: SmoothedCells):
    windows = in_windows(cells)
    pairs = [[windows.cells(i) for i in pair[::-1]] for pair in windows.pairs]
    back = replace(cells, time=-cells.time)
    forward, backward = (
        estimate_velocity(cells, windows),
        estimate_velocity(back, Windows.from_pairs(pairs, -cells.time)),
    )
    np.testing.assert_allclose(backward.velocity, -forward.velocity, atol=0.01)  # as far as the pilot is solved


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_number_of_jobs_does_not_matter(cells: SmoothedCells, n_jobs: int):
    expected, found = (regress_on_time(cells, n_jobs=n).velocity for n in (None, n_jobs))
    np.testing.assert_array_equal(found, expected)
