"""Velocity from couplings: planted flows, equivariances, cells without an estimate, and a naive loop over POT."""

import logging
from dataclasses import dataclass

import numpy as np
import ot
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import ortho_group

from cellrank_velot import velocity as velocity_module
from cellrank_velot.velocity import TransportVelocity, compute_velocity, noise_filter
from cellrank_velot.windows import Windows

# The method of the reference, VelOT 1.0.0, solved to the end.
REFERENCE = {
    "epsilon": 0.05, "lambda_time": 1.0, "lambda_knn": 1.0, "relaxation": 1.0, "tol": 1e-10, "max_iter": 5000,
}  # fmt: skip


def in_windows(time: np.ndarray, labels: np.ndarray | None = None) -> Windows:
    """Return overlapping windows of time, of sizes that differ: equal ones may need endless iterations."""
    pairs = []
    for label in (None,) if labels is None else np.unique(labels):
        cells = np.arange(time.size) if label is None else np.flatnonzero(labels == label)
        cells = cells[np.argsort(time[cells], kind="stable")]
        sizes = (24, 19, 29)
        windows = [cells[start : start + sizes[i % 3]] for i, start in enumerate(range(0, cells.size - 29, 12))]
        pairs += zip(windows[:-1], windows[1:], strict=True)
    return Windows.from_pairs(pairs, time)


def solve(x, time, windows, graph=None, **kwargs) -> TransportVelocity:
    return compute_velocity(x, time, windows, graph, **{**REFERENCE, **kwargs})


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@dataclass(frozen=True)
class Flow:
    """Cells, their windows, and the velocity that the defaults of :data:`REFERENCE` give."""

    x: np.ndarray
    time: np.ndarray
    graph: sp.csr_matrix
    windows: Windows
    result: TransportVelocity

    @property
    def known(self) -> np.ndarray:
        return self.result.has_estimate


@pytest.fixture(scope="module")
def flow(planted) -> Flow:
    windows = in_windows(planted.time, planted.labels)
    return Flow(planted.x, planted.time, planted.graph, windows, solve(planted.x, planted.time, windows, planted.graph))


# -------------------------------------------------------------------------------------------- planted truth
@pytest.mark.parametrize("epsilon", [0.01, 0.05])
def test_recovers_a_drift(epsilon: float):
    rng = np.random.default_rng(0)
    drift = np.array([3.0, -2.0, 0.0, 1.0])
    time = np.sort(rng.random(200))
    x = time[:, None] * drift + rng.normal(scale=0.02, size=(200, 4))
    result = solve(x, time, in_windows(time), epsilon=epsilon)
    found = result.velocity[result.has_estimate]
    assert np.median(cosine(found, np.broadcast_to(drift, found.shape))) > 0.99
    np.testing.assert_allclose(found.mean(0), drift, atol=0.25)


def test_recovers_the_planted_bifurcation(flow: Flow, planted):
    known = flow.known
    assert known.mean() > 0.6
    assert (cosine(flow.result.velocity[known], planted.velocity[known]) > 0).mean() > 0.9
    for label in range(3):  # measurement noise averages out within the stem and within each fate
        part = known & (planted.labels == label)
        found, truth = flow.result.velocity[part].mean(0), planted.velocity[part].mean(0)
        assert cosine(found[None], truth[None])[0] > 0.97
        assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(truth), rel=0.35)


def test_cells_that_only_change_places_have_no_drift():
    rng = np.random.default_rng(1)
    time = np.sort(rng.random(240))
    x = rng.normal(size=(240, 3))
    result = solve(x, time, in_windows(time))
    speed = np.linalg.norm(result.velocity[result.has_estimate].mean(0)) * result.has_estimate.size**-0.5
    assert speed < 0.2


# ------------------------------------------------------------------------------------ an independent solver
def by_loops(x, time, windows, graph, epsilon, lambda_time, lambda_knn):
    """Solve one pair at a time by POT and average cell by cell; return both velocities and their pairs."""
    sums = {direction: (np.zeros_like(x), np.zeros(len(x)), np.zeros(len(x), dtype=int)) for direction in "+-"}
    for number, (source, target) in enumerate(windows.pairs):
        here, there = windows.cells(source), windows.cells(target)
        cost = ot.dist(x[here], x[there])
        cost /= cost.max()
        cost += lambda_time * (time[here][:, None] > time[there])
        adjacent = np.ones(cost.shape, dtype=bool)
        if lambda_knn:
            adjacent = graph[here][:, there].toarray() != 0
            cost += lambda_knn * ~adjacent
        plan = ot.sinkhorn(ot.unif(here.size), ot.unif(there.size), cost, epsilon, stopThr=1e-12, numItermax=50_000)
        moves = [("+", cell, plan[i] @ x[there] / plan[i].sum() - x[cell], adjacent[i]) for i, cell in enumerate(here)]
        moves += [
            ("-", cell, x[cell] - plan[:, j] @ x[here] / plan[:, j].sum(), adjacent[:, j])
            for j, cell in enumerate(there)
        ]
        for direction, cell, move, reach in moves:
            if reach.any():
                displacement, elapsed, count = sums[direction]
                displacement[cell] += move
                elapsed[cell] += windows.dt[number]
                count[cell] += 1
    with np.errstate(invalid="ignore"):
        (ahead, n_ahead), (behind, n_behind) = ((d / e[:, None], n) for d, e, n in sums.values())
    return ahead, n_ahead, behind, n_behind


def joined(x, graph, ahead, behind, keep) -> np.ndarray:
    """Return the current velocity and a share of what relaxes the cell, cell by cell.

    Where a cell has one velocity only, its relaxation is in proportion to its residual from its neighbours.
    """
    residual = np.zeros_like(x)
    for cell in range(len(x)):
        row = graph[cell].toarray().ravel()
        if row.sum() > 0:
            residual[cell] = row @ x / row.sum() - x[cell]
    has_ahead, has_behind = (np.isfinite(v).all(1) for v in (ahead, behind))
    both = has_ahead & has_behind
    halves = (ahead - behind)[both] / 2
    rate = (residual[both] * halves).sum() / (residual[both] ** 2).sum()
    velocity = np.full_like(ahead, np.nan)
    for cell in range(len(x)):
        if both[cell]:
            relaxation = (ahead[cell] - behind[cell]) / 2
            velocity[cell] = (ahead[cell] + behind[cell]) / 2 + keep @ relaxation
        elif has_ahead[cell]:
            velocity[cell] = ahead[cell] - rate * residual[cell] + keep @ (rate * residual[cell])
        elif has_behind[cell]:
            velocity[cell] = behind[cell] + rate * residual[cell] + keep @ (rate * residual[cell])
    return velocity


@pytest.mark.parametrize("relaxation", [0.0, 0.3, 1.0, "auto"])
@pytest.mark.parametrize(
    ("epsilon", "lambda_time", "lambda_knn"), [(0.05, 1.0, 1.0), (0.02, 0.0, 0.3), (0.3, 2.0, 0.0)]
)
def test_agrees_with_a_loop_over_pot(flow: Flow, relaxation, epsilon: float, lambda_time: float, lambda_knn: float):
    options = {"epsilon": epsilon, "lambda_time": lambda_time, "lambda_knn": lambda_knn}
    result = solve(flow.x, flow.time, flow.windows, flow.graph, relaxation=relaxation, **options)
    ahead, n_ahead, behind, n_behind = by_loops(flow.x, flow.time, flow.windows, flow.graph, **options)
    assert result.converged.all()
    np.testing.assert_array_equal(result.n_forward, n_ahead)
    np.testing.assert_array_equal(result.n_backward, n_behind)
    keep = noise_filter(flow.x, flow.graph) if relaxation == "auto" else relaxation * np.eye(5)
    expected = joined(flow.x, flow.graph, ahead, behind, keep)
    np.testing.assert_allclose(result.velocity, expected, atol=1e-6)  # NaN where NaN
    assert np.isnan(expected).any()


def test_default_tolerance_is_tight_enough(flow: Flow):
    loose = solve(flow.x, flow.time, flow.windows, flow.graph, tol=1e-6, max_iter=500)
    np.testing.assert_allclose(loose.velocity, flow.result.velocity, atol=1e-3)


# ---------------------------------------------------------------------------------------------- invariances
def test_rotated_and_moved_cells_have_rotated_velocities(flow: Flow):
    rotation = ortho_group.rvs(flow.x.shape[1], random_state=0)
    result = solve(flow.x @ rotation + 7, flow.time, flow.windows, flow.graph)
    np.testing.assert_allclose(result.velocity, flow.result.velocity @ rotation, atol=1e-6)


@pytest.mark.parametrize("factor", [1e-6, 100.0])
def test_scaled_cells_have_scaled_velocities(flow: Flow, factor: float):
    result = solve(factor * flow.x, flow.time, flow.windows, flow.graph)
    np.testing.assert_allclose(result.velocity / factor, flow.result.velocity, atol=1e-6)


@pytest.mark.parametrize("factor", [1e-3, 24.0])
def test_velocity_is_per_unit_of_time(flow: Flow, factor: float):
    time = factor * flow.time
    windows = Windows.from_pairs([[flow.windows.cells(i) for i in pair] for pair in flow.windows.pairs], time)
    result = solve(flow.x, time, windows, flow.graph)
    np.testing.assert_allclose(result.velocity * factor, flow.result.velocity, atol=1e-6)


def test_permuted_cells_have_permuted_velocities(flow: Flow, planted):
    order = np.random.default_rng(2).permutation(flow.time.size)
    time, labels = flow.time[order], planted.labels[order]
    graph = flow.graph[order][:, order]
    result = solve(flow.x[order], time, in_windows(time, labels), graph)
    np.testing.assert_allclose(result.velocity, flow.result.velocity[order], atol=1e-8)
    np.testing.assert_array_equal(result.n_windows, flow.result.n_windows[order])


@pytest.mark.parametrize("relaxation", [0.0, 1.0])
def test_reversed_time_turns_the_velocities_around(flow: Flow, relaxation: float):
    pairs = [[flow.windows.cells(i) for i in pair[::-1]] for pair in flow.windows.pairs]
    reversed_windows = Windows.from_pairs(pairs, 1 - flow.time)
    forward = solve(flow.x, flow.time, flow.windows, flow.graph, relaxation=relaxation)
    backward = solve(flow.x, 1 - flow.time, reversed_windows, flow.graph, relaxation=relaxation)
    np.testing.assert_array_equal(forward.n_forward, backward.n_backward)
    if relaxation == 0:  # the current velocity knows no arrow of time
        np.testing.assert_allclose(backward.velocity, -forward.velocity, atol=1e-6)
    else:
        known = forward.has_estimate
        assert (cosine(forward.velocity[known], -backward.velocity[known]) > 0).mean() > 0.7


def test_relaxation_moves_from_the_current_to_the_forward_velocity(flow: Flow):
    none, some, all_ = (
        solve(flow.x, flow.time, flow.windows, flow.graph, relaxation=share).velocity for share in (0.0, 0.25, 1.0)
    )
    np.testing.assert_allclose(some, 0.75 * none + 0.25 * all_, atol=1e-9)


def test_current_velocity_is_free_of_the_noise_of_the_cell():
    rng = np.random.default_rng(5)
    time = np.sort(rng.random(300))
    noise = rng.normal(scale=0.1, size=(300, 3))
    x = np.column_stack([3 * time, np.zeros((300, 2))]) + noise
    current, forward = (
        solve(x, time, in_windows(time), lambda_time=0.0, relaxation=share).velocity for share in (0.0, 1.0)
    )
    both = solve(x, time, in_windows(time)).n_backward > 0
    slopes = [np.polyfit(noise[both, 1], v[both, 1], 1)[0] for v in (current, forward)]
    assert slopes[1] < -5  # forward, what the noise has added is taken back within a window
    assert abs(slopes[0]) < abs(slopes[1]) / 5


def test_far_from_the_origin_nothing_cancels(flow: Flow):
    result = solve(flow.x + 1e6, flow.time, flow.windows, flow.graph)
    np.testing.assert_allclose(result.velocity, flow.result.velocity, atol=1e-5)


@pytest.mark.parametrize("elements", [1, 2000, 10**9])
def test_size_of_the_batches_does_not_matter(flow: Flow, monkeypatch, elements: int):
    monkeypatch.setattr(velocity_module, "BATCH_ELEMENTS", elements)
    result = solve(flow.x, flow.time, flow.windows, flow.graph)
    np.testing.assert_allclose(result.velocity, flow.result.velocity, atol=1e-9)
    np.testing.assert_array_equal(result.converged, flow.result.converged)


def test_order_of_the_pairs_does_not_matter(flow: Flow):
    order = np.random.default_rng(4).permutation(flow.windows.n_pairs)
    windows = Windows.from_dict(
        {**flow.windows.to_dict(), "pairs": flow.windows.pairs[order], "dt": flow.windows.dt[order]}
    )
    result = solve(flow.x, flow.time, windows, flow.graph)
    np.testing.assert_allclose(result.velocity, flow.result.velocity, atol=1e-9)
    np.testing.assert_allclose(result.marginal_error, flow.result.marginal_error[order], atol=1e-12)


def test_everyone_a_neighbour_is_no_graph(flow: Flow):
    alone = solve(flow.x, flow.time, flow.windows)
    both = (alone.n_forward > 0) & (alone.n_backward > 0)  # the others are relaxed by their neighbours
    complete = sp.csr_matrix(np.ones((flow.time.size,) * 2))
    found = solve(flow.x, flow.time, flow.windows, complete)
    np.testing.assert_allclose(found.velocity[both], alone.velocity[both], atol=1e-9)
    ignored = solve(flow.x, flow.time, flow.windows, flow.graph, lambda_knn=0.0)
    np.testing.assert_allclose(ignored.velocity[both], alone.velocity[both], atol=1e-12)
    np.testing.assert_array_equal(ignored.n_windows, alone.n_windows)


def test_without_a_graph_a_velocity_that_is_alone_stays_as_it_is(flow: Flow):
    none, all_ = (solve(flow.x, flow.time, flow.windows, relaxation=share) for share in (0.0, 1.0))
    one = none.has_estimate & ((none.n_forward == 0) | (none.n_backward == 0))
    assert one.any()
    np.testing.assert_array_equal(none.velocity[one], all_.velocity[one])


def test_repeats_are_bit_equal_and_threads_are_given_back(flow: Flow):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = solve(flow.x, flow.time, flow.windows, flow.graph)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(again.velocity, flow.result.velocity)


# --------------------------------------------------------------------------------------- degenerate input
def test_cell_without_an_estimate_is_nan(flow: Flow, caplog):
    caplog.set_level(logging.INFO, "cellrank_velot")
    pairs = flow.windows.pairs[::4]
    windows = Windows.from_dict({**flow.windows.to_dict(), "pairs": pairs, "dt": flow.windows.dt[::4]})
    result = solve(flow.x, flow.time, windows, flow.graph)
    used = np.unique(np.concatenate([windows.cells(window) for window in pairs.ravel()]))
    outside = np.setdiff1d(np.arange(flow.time.size), used)
    assert outside.size > 0
    assert np.isnan(result.velocity[outside]).all()
    assert (result.n_windows[outside] == 0).all()
    np.testing.assert_array_equal(np.isfinite(result.velocity).all(1), result.has_estimate)
    np.testing.assert_array_equal(np.isnan(result.velocity).all(1), ~result.has_estimate)
    assert f"{(~result.has_estimate).sum()} of 240 cells have no estimate" in caplog.text


@pytest.mark.parametrize("stored", [False, True])
def test_cell_without_a_neighbour_in_the_other_window_takes_nothing(flow: Flow, stored: bool):
    cell = int(flow.windows.cells(flow.windows.pairs[0, 0])[0])
    graph = flow.graph.copy()
    row = np.repeat(np.arange(240), np.diff(graph.indptr))
    graph.data = np.where((row == cell) | (graph.indices == cell), 0, graph.data)
    if not stored:
        graph.eliminate_zeros()
    result = solve(flow.x, flow.time, flow.windows, graph)
    assert flow.result.n_windows[cell] > result.n_windows[cell] == 0
    assert np.isnan(result.velocity[cell]).all()


def test_confidence_is_the_share_of_windows(flow: Flow):
    confidence = flow.result.confidence
    assert confidence.max() == 1
    np.testing.assert_allclose(confidence * flow.result.n_windows.max(), flow.result.n_windows)
    np.testing.assert_array_equal(flow.result.n_windows, flow.result.n_forward + flow.result.n_backward)
    zeros = np.zeros(3, dtype=int)
    none = TransportVelocity(np.full((3, 2), np.nan), zeros, zeros, np.zeros(0, dtype=bool), np.zeros(0))
    np.testing.assert_array_equal(none.confidence, 0)


def test_pairs_without_a_difference_in_time_are_left_out(flow: Flow, caplog):
    dt = flow.windows.dt.copy()
    dt[[0, 3]] = [0, -1]
    windows = Windows.from_dict({**flow.windows.to_dict(), "dt": dt})
    result = solve(flow.x, flow.time, windows, flow.graph)
    assert "Left out 2 window pairs without a difference in time" in caplog.text
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(result.marginal_error)), [0, 3])
    assert not result.converged[[0, 3]].any()
    assert np.isfinite(result.velocity[result.has_estimate]).all()
    nothing = Windows.from_dict({**flow.windows.to_dict(), "dt": np.zeros_like(dt)})
    assert not solve(flow.x, flow.time, nothing, flow.graph).has_estimate.any()


def test_what_did_not_converge_is_counted(flow: Flow, caplog):
    result = solve(flow.x, flow.time, flow.windows, flow.graph, max_iter=1)
    n_pairs = flow.windows.n_pairs
    assert (~result.converged).sum() > 0
    assert f"{(~result.converged).sum()} of {n_pairs} couplings did not converge" in caplog.text
    np.testing.assert_array_equal(result.converged, result.marginal_error <= REFERENCE["tol"])
    assert np.isfinite(result.velocity[result.has_estimate]).all()


def test_cells_at_one_position_do_not_move():
    time = np.arange(48) / 48
    windows = Windows.from_pairs([(np.arange(24), np.arange(24, 48))], time)
    result = solve(np.ones((48, 3)), time, windows)
    np.testing.assert_allclose(result.velocity, 0, atol=1e-12)


def test_windows_of_one_cell():
    x, time = np.array([[0.0, 0], [2, 1], [3, 3]]), np.array([0.0, 0.5, 1.0])
    result = solve(x, time, Windows.from_pairs([([0], [1]), ([1], [2])], time))
    np.testing.assert_allclose(result.velocity, [[4, 2], [2, 4], [2, 4]])


def test_velocity_is_total_displacement_over_total_time():
    x, time = np.array([[0.0], [1], [5]]), np.array([0.0, 0.25, 1.0])
    windows = Windows.from_pairs([([0], [1]), ([0], [2])], time)
    np.testing.assert_allclose(solve(x, time, windows).velocity[0], (1 + 5) / (0.25 + 1.0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_positions_of_either_precision(flow: Flow, dtype: type):
    result = solve(flow.x.astype(dtype), flow.time.astype(dtype), flow.windows, flow.graph)
    np.testing.assert_allclose(result.velocity, flow.result.velocity, atol=1e-3)


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"epsilon": 0}, ValueError, r"Expected `epsilon` to be in \(0, inf\), found `0`"),
        ({"epsilon": -0.05}, ValueError, r"Expected `epsilon` to be in \(0, inf\), found `-0.05`"),
        ({"epsilon": np.nan}, ValueError, "Expected `epsilon` to be in"),
        ({"epsilon": "small"}, TypeError, "Expected `epsilon` to be a number, found `str`"),
        ({"lambda_time": -1}, ValueError, r"Expected `lambda_time` to be in \[0, inf\)"),
        ({"lambda_knn": np.inf}, ValueError, r"Expected `lambda_knn` to be in \[0, inf\)"),
        ({"relaxation": 1.5}, ValueError, r"Expected `relaxation` to be in \[0, 1\], found `1.5`"),
        ({"relaxation": "some"}, ValueError, r"Expected `relaxation` to be one of \['auto'\], found `'some'`"),
        ({"relaxation": None}, TypeError, "Expected `relaxation` to be a number"),
        ({"tol": 0}, ValueError, r"Expected `tol` to be in \(0, inf\)"),
        ({"max_iter": 0}, ValueError, "Expected `max_iter` to be at least `1`, found `0`"),
        ({"max_iter": 10.0}, TypeError, "Expected `max_iter` to be an integer"),
        ({"device": "abacus"}, ValueError, "Expected `device` to be 'auto'"),
    ],
)
def test_bad_options(flow: Flow, option: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        solve(flow.x, flow.time, flow.windows, flow.graph, **option)


def test_automatic_relaxation_needs_a_graph(flow: Flow):
    with pytest.raises(ValueError, match="Expected a neighbour graph for `relaxation='auto'`, found none"):
        solve(flow.x, flow.time, flow.windows, relaxation="auto")


# -------------------------------------------------------------------------------------------- noise filter
def noisy_residuals(scales: list[float], n_cells: int = 2000) -> tuple[np.ndarray, sp.csr_matrix]:
    """Return cells whose residuals from the mean of random neighbours have given scales."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=(n_cells, len(scales))) * scales
    return x, sp.csr_matrix(
        (np.ones(20 * n_cells), (np.repeat(np.arange(n_cells), 20), rng.integers(n_cells, size=20 * n_cells)))
    )


def test_filter_drops_noise_and_keeps_structure():
    x, graph = noisy_residuals([1, 1, 10, 3, 1, 1, 1, 1])
    gain = np.diag(noise_filter(x, graph))
    expected = (1 - 1 / np.array([100, 9])) ** 2
    np.testing.assert_allclose(gain[[2, 3]], expected, atol=0.03)
    assert (gain[[0, 1, 4, 5, 6, 7]] < 0.05).all()


def test_filter_is_a_contraction_that_turns_with_the_cells():
    x, graph = noisy_residuals([1, 2, 5, 1, 1], 500)
    rotation = ortho_group.rvs(5, random_state=2)
    found = noise_filter(x, graph)
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    assert (np.linalg.eigvalsh(found) > -1e-9).all()
    assert (np.linalg.eigvalsh(found) <= 1 + 1e-9).all()
    np.testing.assert_allclose(noise_filter(7 * x @ rotation + 3, graph), rotation.T @ found @ rotation, atol=1e-8)


def test_filter_of_cells_without_neighbours_or_residuals_is_finite():
    assert np.isfinite(noise_filter(np.eye(4), sp.csr_matrix((4, 4)))).all()
    assert np.isfinite(noise_filter(np.ones((4, 3)), sp.csr_matrix(np.ones((4, 4))))).all()
    assert np.isfinite(noise_filter(np.arange(4.0)[:, None], sp.csr_matrix(np.ones((4, 4))))).all()


# ---------------------------------------------------------------------------------------------- adjacency
@pytest.mark.parametrize("seed", range(4))
def test_adjacency_agrees_with_dense_indexing(seed: int):
    rng = np.random.default_rng(seed)
    n_cells = 30
    dense = (rng.random((n_cells, n_cells)) < [0.0, 0.1, 0.5, 1.0][seed]).astype(float)
    graph = sp.csr_matrix(dense)
    zeros = rng.random(graph.nnz) < 0.2
    graph.data[zeros] = 0  # stored, but no edge
    source = np.array([rng.choice(n_cells, 7, replace=False) for _ in range(5)])
    target = np.array([rng.choice(n_cells, 9, replace=False) for _ in range(5)])
    found = velocity_module._adjacency(graph, source, target)
    expected = graph.toarray()[source[:, :, None], target[:, None, :]] != 0
    np.testing.assert_array_equal(found, expected)
