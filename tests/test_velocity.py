"""Velocity from couplings: planted flows, equivariances, cells without an estimate, and a naive loop over POT."""

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ot
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import ortho_group
from sklearn.neighbors import kneighbors_graph

from cellrank_velot._utils.options import Run
from cellrank_velot.transport import batches as pair_batches
from cellrank_velot.transport import sums as pairs_module
from cellrank_velot.transport.problem import TransportOptions
from cellrank_velot.transport.sinkhorn import sinkhorn
from cellrank_velot.transport.velocity import TransportVelocity, compute_velocity, end_cells
from cellrank_velot.transport.windows import WindowOptions, Windows, build_windows

# The method of the reference, VelOT 1.0.0, solved to the end.
REFERENCE = {
    "epsilon": 0.05, "lambda_time": 1.0, "lambda_knn": 1.0, "reach": None, "relaxation": 1.0, "tol": 1e-10,
    "max_iter": 5000,
}  # fmt: skip
# What a user gets of transport, solved to the end.
DEFAULT = {**REFERENCE, "lambda_knn": 0.0, "reach": 2.0, "relaxation": 0.0}


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
    options, rest = TransportOptions.split({**REFERENCE, **kwargs})
    return compute_velocity(x, time, windows, graph, options, Run(**rest))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def rms(vectors: np.ndarray) -> float:
    return float(np.sqrt(np.nanmean(np.sum(vectors**2, axis=1))))


@dataclass(frozen=True)
class Flow:
    """Cells, their windows, and the velocity that some options give."""

    x: np.ndarray
    time: np.ndarray
    graph: sp.csr_matrix
    windows: Windows
    result: TransportVelocity
    options: dict[str, Any]

    @property
    def known(self) -> np.ndarray:
        return self.result.has_estimate

    def again(self, **changes) -> TransportVelocity:
        """Solve with other cells, windows or options."""
        inputs = [changes.pop(name, getattr(self, name)) for name in ("x", "time", "windows", "graph")]
        return solve(*inputs, **{**self.options, **changes})


def flow_of(planted, options: dict[str, Any]) -> Flow:
    windows = in_windows(planted.time, planted.labels)
    result = solve(planted.x, planted.time, windows, planted.graph, **options)
    return Flow(planted.x, planted.time, planted.graph, windows, result, options)


@pytest.fixture(scope="module")
def flow(planted) -> Flow:
    return flow_of(planted, REFERENCE)


@pytest.fixture(scope="module", params=[REFERENCE, DEFAULT], ids=["reference", "default"])
def any_flow(planted, request) -> Flow:
    return flow_of(planted, request.param)


PER_CELL = (
    "velocity", "relaxation", "spread", "n_effective", "disagreement", "support", "n_forward", "n_backward",
)  # fmt: skip


def assert_same(found: TransportVelocity, expected: TransportVelocity, order=slice(None), **allowed: float) -> None:
    """Compare all that is known of each cell, confidence and variance included."""
    for name in (*PER_CELL, "variance", "confidence"):
        a, b = getattr(found, name), getattr(expected, name)[order]
        np.testing.assert_allclose(a, b, err_msg=name, **allowed)


# -------------------------------------------------------------------------------------------- planted truth
@pytest.mark.parametrize("reach", [None, 2.0])
@pytest.mark.parametrize("epsilon", [0.01, 0.05])
def test_recovers_a_drift(epsilon: float, reach):
    rng = np.random.default_rng(0)
    drift = np.array([3.0, -2.0, 0.0, 1.0])
    time = np.sort(rng.random(200))
    x = time[:, None] * drift + rng.normal(scale=0.02, size=(200, 4))
    result = solve(x, time, in_windows(time), epsilon=epsilon, reach=reach)
    found = result.velocity[result.has_estimate]
    assert np.median(cosine(found, np.broadcast_to(drift, found.shape))) > 0.99
    np.testing.assert_allclose(found.mean(0), drift, atol=0.25)


def test_recovers_the_planted_bifurcation(any_flow: Flow, planted):
    known = any_flow.known
    assert known.mean() > 0.6
    assert (cosine(any_flow.result.velocity[known], planted.velocity[known]) > 0).mean() > 0.9
    for label in range(3):  # measurement noise averages out within the stem and within each fate
        part = known & (planted.labels == label)
        found, truth = any_flow.result.velocity[part].mean(0), planted.velocity[part].mean(0)
        assert cosine(found[None], truth[None])[0] > 0.97
        assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(truth), rel=0.35)


@pytest.mark.parametrize("reach", [None, 2.0])
def test_cells_that_only_change_places_have_no_drift(reach):
    rng = np.random.default_rng(1)
    time = np.sort(rng.random(240))
    x = rng.normal(size=(240, 3))
    result = solve(x, time, in_windows(time), reach=reach)
    speed = np.linalg.norm(result.velocity[result.has_estimate].mean(0)) * result.has_estimate.size**-0.5
    assert speed < 0.2


# ------------------------------------------------------------------------------------ an independent solver
@dataclass(frozen=True)
class Move:
    """What one window pair says of one cell."""

    pair: int
    direction: str
    cell: int
    displacement: np.ndarray
    variance: np.ndarray
    n_effective: float
    dt: float


def moves_by_loops(x, time, windows, graph, epsilon, lambda_time, lambda_knn) -> list[Move]:
    """Solve one pair at a time by POT, and look at each cell's share of the plan."""
    moves = []
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
        for direction, cells, others, shares, near in (
            ("+", here, there, plan, adjacent), ("-", there, here, plan.T, adjacent.T)
        ):  # fmt: skip
            for cell, share, reached in zip(cells, shares, near, strict=True):
                if reached.any():
                    p = share / share.sum()
                    displacement = (p @ x[others] - x[cell]) * (1 if direction == "+" else -1)
                    variance = np.diag(np.cov(x[others].T, aweights=p, ddof=0))
                    moves.append(
                        Move(number, direction, cell, displacement, variance, 1 / (p**2).sum(), windows.dt[number])
                    )
    return moves


def joined_by_loops(x, time, windows, graph, moves: list[Move], reach, relaxation, pilot=slice(None)):
    """Average cell by cell, and join both directions by their support; return all that is known of each cell.

    Where a cell has little support in one direction, its relaxation is in proportion to its residual from its
    neighbours.
    """
    in_pilot = set(range(windows.n_pairs)[pilot])
    squares = sorted(m.displacement @ m.displacement for m in moves if m.pair in in_pilot)
    typical = squares[(len(squares) - 1) // 2]
    sums = {(cell, direction): np.zeros(2 * x.shape[1] + 5) for cell in range(len(x)) for direction in "+-"}
    for m in moves:
        excess = 0 if reach is None else max(0.0, m.displacement @ m.displacement / typical - reach)
        speed = m.displacement @ m.displacement / m.dt**2
        row = np.concatenate([m.displacement, m.variance, [m.dt, m.n_effective, speed, 1]])
        sums[m.cell, m.direction] += np.append(np.exp(-min(20, excess)) * row, 1)

    n_dims = x.shape[1]
    nan, sides, balance = np.full(n_dims, np.nan), {}, np.zeros(len(x))
    for key, (*rows, dt, n_effective, speed, weight, count) in sums.items():
        if count:
            d, spread = np.array(rows[:n_dims]), np.array(rows[n_dims:])
            between = max(0.0, speed / weight - (d / dt) @ (d / dt))
            spread, n_effective = spread / weight / (dt / weight) ** 2, n_effective / weight
            sides[key] = d / dt, spread, n_effective, weight / count, int(count), between
        else:
            sides[key] = nan, nan, 0.0, 0.0, 0, 0.0
    residual, measured, even = np.zeros_like(x), np.zeros_like(x), np.zeros(len(x), dtype=bool)
    for cell in range(len(x)):
        row = graph[cell].toarray().ravel()
        if row.sum() > 0:
            residual[cell] = row @ x / row.sum() - x[cell]
        (a, _, _, sa, na, _), (b, _, _, sb, nb, _) = sides[cell, "+"], sides[cell, "-"]
        balance[cell] = (sa - sb) / (sa + sb) if na + nb else 0
        measured[cell] = (a - b) / 2 if na and nb else 0
        even[cell] = na and nb and abs(balance[cell]) < 0.5
    rate = (residual[even] * measured[even]).sum() / (residual[even] ** 2).sum()

    current, relaxing, spread = (np.full_like(x, np.nan) for _ in range(3))
    n_effective, support, disagreement = np.zeros(len(x)), np.zeros(len(x)), np.full(len(x), np.nan)
    for cell, m in enumerate(balance):
        support[cell] = max(sides[cell, side][3] for side in "+-")
        if not support[cell]:
            continue
        expected = rate * residual[cell]
        shares = [(share, side) for share, side in (((1 + m) / 2, "+"), ((1 - m) / 2, "-")) if share > 0]
        current[cell] = sum(share * sides[cell, side][0] for share, side in shares) - m * expected
        relaxing[cell] = (1 - abs(m)) * measured[cell] + abs(m) * expected
        spread[cell] = sum(share * sides[cell, side][1] for share, side in shares)
        n_effective[cell] = sum(share * sides[cell, side][2] for share, side in shares)
        disagreement[cell] = sum(share * sides[cell, side][5] for share, side in shares)
    return {
        "velocity": current + relaxation * relaxing,
        "relaxation": np.nan_to_num(relaxation * relaxing),
        "spread": spread,
        "n_effective": n_effective,
        "disagreement": disagreement,
        "support": support,
        "n_forward": [sides[cell, "+"][4] for cell in range(len(x))],
        "n_backward": [sides[cell, "-"][4] for cell in range(len(x))],
    }


@pytest.mark.parametrize(
    ("epsilon", "lambda_time", "lambda_knn"), [(0.05, 1.0, 1.0), (0.02, 0.0, 0.3), (0.3, 2.0, 0.0)]
)
def test_agrees_with_a_loop_over_pot(flow: Flow, monkeypatch, epsilon: float, lambda_time: float, lambda_knn: float):
    monkeypatch.setattr(pairs_module, "PILOT_TOL", 1e-10)
    options = {"epsilon": epsilon, "lambda_time": lambda_time, "lambda_knn": lambda_knn}
    cells = flow.x, flow.time, flow.windows, flow.graph
    moves = moves_by_loops(*cells, **options)
    for reach in (None, 0.5, 2.0):
        for relaxation in (0.0, 0.3, 1.0):
            result = flow.again(reach=reach, relaxation=relaxation, **options)
            assert result.converged.all()
            expected = joined_by_loops(*cells, moves, reach, relaxation)
            for name, values in expected.items():  # NaN where NaN
                np.testing.assert_allclose(getattr(result, name), values, atol=1e-6, rtol=1e-6, err_msg=name)
            assert np.isnan(result.velocity).any()


@pytest.mark.parametrize("n_pairs", [1, 3, 5])
def test_typical_displacement_comes_from_some_pairs_among_all(flow: Flow, monkeypatch, n_pairs: int):
    monkeypatch.setattr(pairs_module, "PILOT_TOL", 1e-10)
    monkeypatch.setattr(pairs_module, "PILOT_PAIRS", n_pairs)
    cells = flow.x, flow.time, flow.windows, flow.graph
    moves = moves_by_loops(*cells, epsilon=0.05, lambda_time=1.0, lambda_knn=1.0)
    every = flow.windows.n_pairs // n_pairs
    assert every > 1
    expected = joined_by_loops(*cells, moves, 1.0, 0.5, pilot=slice(None, None, every))
    result = flow.again(reach=1.0, relaxation=0.5)
    np.testing.assert_allclose(result.velocity, expected["velocity"], atol=1e-6)
    np.testing.assert_allclose(result.support, expected["support"], atol=1e-7)
    assert (expected["support"] < 0.99).any()


def test_pilot_need_not_be_solved_to_the_end(flow: Flow, monkeypatch):
    quick = flow.again(reach=2.0)
    monkeypatch.setattr(pairs_module, "PILOT_TOL", 1e-10)
    np.testing.assert_allclose(quick.velocity, flow.again(reach=2.0).velocity, atol=0.02)


def test_default_tolerance_is_tight_enough(any_flow: Flow):
    loose = any_flow.again(tol=1e-6, max_iter=500)
    np.testing.assert_allclose(loose.velocity, any_flow.result.velocity, atol=1e-3)


# ---------------------------------------------------------------------------------------------- invariances
def test_rotated_and_moved_cells_have_rotated_velocities(any_flow: Flow):
    rotation = ortho_group.rvs(any_flow.x.shape[1], random_state=0)
    result, expected = any_flow.again(x=any_flow.x @ rotation + 7), any_flow.result
    turned = {name: getattr(expected, name) @ rotation for name in ("velocity", "relaxation")}
    np.testing.assert_allclose(result.spread.sum(1), expected.spread.sum(1), rtol=1e-6)  # per axis, it can't turn
    assert_same(replace(result, spread=expected.spread), replace(expected, **turned), atol=1e-6)


@pytest.mark.parametrize("factor", [1e-6, 100.0])
def test_scaled_cells_have_scaled_velocities(any_flow: Flow, factor: float):
    result = any_flow.again(x=factor * any_flow.x)
    unscaled = {name: getattr(result, name) / factor for name in ("velocity", "relaxation")}
    unscaled |= {name: getattr(result, name) / factor**2 for name in ("spread", "disagreement")}
    assert_same(replace(result, **unscaled), any_flow.result, atol=1e-6)


@pytest.mark.parametrize(("factor", "start"), [(1e-3, 0.0), (24.0, 0.0), (2.0, -5.0)])
def test_velocity_is_per_unit_of_time(any_flow: Flow, factor: float, start: float):
    time = factor * any_flow.time + start
    pairs = [[any_flow.windows.cells(i) for i in pair] for pair in any_flow.windows.pairs]
    result = any_flow.again(time=time, windows=Windows.from_pairs(pairs, time))
    unscaled = {name: getattr(result, name) * factor for name in ("velocity", "relaxation")}
    unscaled |= {name: getattr(result, name) * factor**2 for name in ("spread", "disagreement")}
    assert_same(replace(result, **unscaled), any_flow.result, atol=1e-6)


def test_permuted_cells_have_permuted_velocities(any_flow: Flow, planted):
    order = np.random.default_rng(2).permutation(any_flow.time.size)
    time, labels = any_flow.time[order], planted.labels[order]
    graph = any_flow.graph[order][:, order]
    result = any_flow.again(x=any_flow.x[order], time=time, windows=in_windows(time, labels), graph=graph)
    assert_same(result, any_flow.result, order, atol=1e-8)


def test_permuted_cells_have_the_same_pilot(planted):
    """With more window pairs than the typical displacement is learnt from."""
    order = np.random.default_rng(2).permutation(planted.time.size)
    results = []
    for ix in (np.arange(planted.time.size), order):
        x, time, graph = planted.x[ix], planted.time[ix], planted.graph[ix][:, ix]
        windows = build_windows(
            x,
            time,
            WindowOptions(window_size=6, min_window_size=4, overlap=0.7, time_lag=0.05),
            labels=planted.labels[ix],
        )
        assert windows.n_pairs > 2 * pairs_module.PILOT_PAIRS
        results.append(compute_velocity(x, time, windows, graph))
    assert (results[0].support < 0.9).any()
    assert_same(results[1], results[0], order, atol=1e-8)


@pytest.mark.parametrize("relaxation", [0.0, 1.0])
@pytest.mark.parametrize("reach", [None, 0.5, 2.0])
def test_reversed_time_turns_the_velocities_around(flow: Flow, reach, relaxation: float, monkeypatch):
    monkeypatch.setattr(pairs_module, "PILOT_TOL", 1e-10)
    pairs = [[flow.windows.cells(i) for i in pair[::-1]] for pair in flow.windows.pairs]
    reversed_windows = Windows.from_pairs(pairs, 1 - flow.time)
    forward = flow.again(relaxation=relaxation, reach=reach)
    backward = flow.again(time=1 - flow.time, windows=reversed_windows, relaxation=relaxation, reach=reach)
    np.testing.assert_array_equal(forward.n_forward, backward.n_backward)
    if relaxation == 0:  # the current velocity knows no arrow of time
        np.testing.assert_allclose(backward.velocity, -forward.velocity, atol=1e-6)
    else:  # and what relaxes the cell always points back
        known = forward.has_estimate
        assert (cosine(forward.velocity[known], -backward.velocity[known]) > 0).mean() > 0.7
        np.testing.assert_allclose(backward.relaxation, forward.relaxation, atol=1e-6)
    for name in ("spread", "n_effective", "support"):
        np.testing.assert_allclose(getattr(backward, name), getattr(forward, name), atol=1e-6, err_msg=name)


def test_reversed_time_turns_the_current_velocity_of_the_defaults_around(any_flow: Flow):
    """As far as the pilot is solved."""
    pairs = [[any_flow.windows.cells(i) for i in pair[::-1]] for pair in any_flow.windows.pairs]
    windows = Windows.from_pairs(pairs, 1 - any_flow.time)
    back = any_flow.again(time=1 - any_flow.time, windows=windows)
    current, again = (r.velocity - r.relaxation for r in (any_flow.result, back))
    np.testing.assert_allclose(again, -current, atol=0.01)


def test_relaxation_moves_from_the_current_to_the_forward_velocity(any_flow: Flow):
    none, some, all_ = (any_flow.again(relaxation=share) for share in (0.0, 0.25, 1.0))
    np.testing.assert_allclose(some.velocity, 0.75 * none.velocity + 0.25 * all_.velocity, atol=1e-9)
    for result in (none, some, all_, any_flow.result):
        np.testing.assert_allclose(result.velocity - result.relaxation, none.velocity, atol=1e-9)
        assert_same(replace(result, velocity=none.velocity, relaxation=none.relaxation), none, atol=1e-9)
    np.testing.assert_array_equal(none.relaxation, 0)


@pytest.mark.parametrize("reach", [None, 2.0])
def test_current_velocity_is_free_of_the_noise_of_the_cell(reach):
    rng = np.random.default_rng(5)
    time = np.sort(rng.random(300))
    noise = rng.normal(scale=0.1, size=(300, 3))
    x = np.column_stack([3 * time, np.zeros((300, 2))]) + noise
    current, forward = (
        solve(x, time, in_windows(time), lambda_time=0.0, relaxation=share, reach=reach).velocity
        for share in (0.0, 1.0)
    )
    both = solve(x, time, in_windows(time)).n_backward > 0
    slopes = [np.polyfit(noise[both, 1], v[both, 1], 1)[0] for v in (current, forward)]
    assert slopes[1] < -5  # forward, what the noise has added is taken back within a window
    assert abs(slopes[0]) < abs(slopes[1]) / 5


def test_far_from_the_origin_nothing_cancels(any_flow: Flow):
    assert_same(any_flow.again(x=any_flow.x + 1e6), any_flow.result, atol=1e-5)


@pytest.mark.parametrize("elements", [1, 2000, 10**9])
def test_size_of_the_batches_does_not_matter(any_flow: Flow, monkeypatch, elements: int):
    monkeypatch.setattr(pairs_module, "BATCH_ELEMENTS", {"cpu": elements, "other": elements})
    monkeypatch.setattr(pairs_module, "TASK_ELEMENTS", elements)
    result = any_flow.again()
    assert_same(result, any_flow.result, atol=1e-9)
    np.testing.assert_array_equal(result.converged, any_flow.result.converged)


def in_batches(monkeypatch) -> None:
    """Work in padded batches, as on a device that is no processor."""

    def batched(problem, use, limit, reach, run):
        return pairs_module._sum_in_batches(problem, use, limit, reach, torch.device("cpu"), run.show_progress_bar)

    monkeypatch.setattr(pairs_module, "_sum_in_loops", batched)


@pytest.mark.parametrize("epsilon", [0.5, 0.05, 5e-4])
@pytest.mark.parametrize("lambda_knn", [0.0, 0.7])
def test_loops_and_batches_agree(any_flow: Flow, monkeypatch, epsilon: float, lambda_knn: float):
    options = {"epsilon": epsilon, "lambda_knn": lambda_knn, "tol": 1e-10, "max_iter": 200}
    expected = any_flow.again(**options)
    in_batches(monkeypatch)
    found = any_flow.again(**options)
    assert_same(found, expected, atol=1e-6, rtol=1e-6)  # a step more or less of a solver that is done
    np.testing.assert_allclose(found.marginal_error, expected.marginal_error, atol=1e-10)


def test_scalings_out_of_range_are_solved_in_the_log_domain(any_flow: Flow, monkeypatch):
    solved = []

    def counting(*args, **kwargs):
        found = sinkhorn(*args, **kwargs)
        solved.append(len(found.converged))
        return found

    monkeypatch.setattr(pair_batches, "sinkhorn", counting)
    any_flow.again(epsilon=0.05, reach=None)
    pilot = sum(solved)
    found = any_flow.again(epsilon=1e-4, reach=None, max_iter=2000)
    assert sum(solved) > 2 * pilot  # each pair of the pilot once more, and others
    assert np.isfinite(found.marginal_error).all()
    np.testing.assert_array_equal(np.isfinite(found.velocity).all(axis=1), found.has_estimate)


@pytest.mark.parametrize("n_jobs", [1, 2, 3])
def test_number_of_jobs_does_not_matter(any_flow: Flow, monkeypatch, n_jobs: int):
    monkeypatch.setattr(pairs_module, "TASK_ELEMENTS", 2000)
    expected = any_flow.again(n_jobs=1)
    found = any_flow.again(n_jobs=n_jobs)
    for name in (*PER_CELL, "marginal_error"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def test_order_of_the_pairs_does_not_matter(any_flow: Flow):
    order = np.random.default_rng(4).permutation(any_flow.windows.n_pairs)
    windows = Windows.from_dict(
        {**any_flow.windows.to_dict(), "pairs": any_flow.windows.pairs[order], "dt": any_flow.windows.dt[order]}
    )
    result = any_flow.again(windows=windows)
    assert_same(result, any_flow.result, atol=1e-9)
    np.testing.assert_allclose(result.marginal_error, any_flow.result.marginal_error[order], atol=1e-12)


def test_everyone_a_neighbour_is_no_graph(flow: Flow):
    alone = flow.again(graph=None)
    both = (alone.n_forward > 0) & (alone.n_backward > 0)  # the others are relaxed by their neighbours
    complete = sp.csr_matrix(np.ones((flow.time.size,) * 2))
    found = flow.again(graph=complete)
    np.testing.assert_allclose(found.velocity[both], alone.velocity[both], atol=1e-9)
    ignored = flow.again(lambda_knn=0.0)
    np.testing.assert_allclose(ignored.velocity[both], alone.velocity[both], atol=1e-12)
    np.testing.assert_array_equal(ignored.n_windows, alone.n_windows)


def test_without_a_graph_a_velocity_that_is_alone_stays_as_it_is(flow: Flow):
    for reach in (None, 2.0):
        none, all_ = (flow.again(graph=None, relaxation=share, reach=reach) for share in (0.0, 1.0))
        one = none.has_estimate & ((none.n_forward == 0) | (none.n_backward == 0))
        assert one.any()
        np.testing.assert_array_equal(none.velocity[one], all_.velocity[one])
        np.testing.assert_array_equal(all_.relaxation[one], 0)


def test_repeats_are_bit_equal_and_threads_are_given_back(any_flow: Flow):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = any_flow.again()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    for name in PER_CELL:
        np.testing.assert_array_equal(getattr(again, name), getattr(any_flow.result, name))


# ---------------------------------------------------------------------------------------------------- reach
@dataclass(frozen=True)
class Ending:
    """Two branches, of which one has no cells after time 0.7, and the velocity that made them."""

    x: np.ndarray
    time: np.ndarray
    velocity: np.ndarray
    last: np.ndarray
    newcomers: np.ndarray
    before: np.ndarray

    def solve(self, **options) -> TransportVelocity:
        graph = sp.csr_matrix(kneighbors_graph(self.x, 10))
        labels = np.zeros(self.time.size, dtype=np.int64)
        windows = build_windows(self.x, self.time, WindowOptions(window_size=24, time_lag=0.06), labels=labels)
        return compute_velocity(self.x, self.time, windows, graph, TransportOptions(**options))


@pytest.fixture(scope="module", params=range(3))
def ending(request) -> Ending:
    rng, time = np.random.default_rng(request.param), np.linspace(0, 1, 600)
    side = np.where(np.arange(600) % 2, 1.0, -1.0)  # in turn, so that windows have as many cells of each
    side[time > 0.7] = 1
    x = rng.normal(scale=0.05, size=(600, 3))
    x[:, 0] += 4 * time
    x[:, 1] += 4 * side * np.maximum(time - 0.3, 0)
    velocity = np.column_stack([np.full(600, 4.0), 4 * side * (time > 0.3), np.zeros(600)])
    last, newcomers = (side < 0) & (time > 0.66), (time > 0.7) & (time < 0.75)
    return Ending(x, time, velocity, last, newcomers, (time > 0.35) & (time < 0.6))


@pytest.mark.parametrize("relaxation", [0.0, 0.1])
def test_branch_that_ends_goes_on_as_it_came(ending: Ending, relaxation):
    """All mass of its last cells has to go to the other branch, far away; where they came from is still right."""
    misled, led = (ending.solve(reach=reach, relaxation=relaxation) for reach in (None, 2.0))
    wrong, right = (cosine(result.velocity, ending.velocity) for result in (misled, led))
    assert (wrong[ending.last] < 0).all()
    assert (right[ending.last] > 0.95).all()
    assert np.median(wrong[ending.newcomers]) < 0.93  # as much mass came from the branch that ended
    assert (right[ending.newcomers] > 0.95).all()
    before = ending.before  # nothing ends there
    assert rms(led.velocity[before] - misled.velocity[before]) < 0.05 * rms(misled.velocity[before])
    length = np.linalg.norm(led.velocity[ending.last], axis=1)
    # Somewhat slower: the last windows reach beyond the end, and are later than the cells of the branch in them.
    assert np.median(length) == pytest.approx(np.sqrt(32), rel=0.25)


def test_one_direction_is_support_enough(ending: Ending):
    led = ending.solve()
    assert (led.support[ending.last] > 0.5).all()
    assert (led.n_forward[ending.last] > 0).all()
    # What relaxes them is not half of a jump to the other branch, but in proportion to their residual.
    jump, residual = (ending.solve(reach=reach, relaxation=1.0).relaxation[ending.last] for reach in (None, 2.0))
    assert np.linalg.norm(jump, axis=1).min() > 2 * np.linalg.norm(residual, axis=1).max()


def test_longer_reach_supports_more_until_all_counts_alike(any_flow: Flow):
    supports = [any_flow.again(reach=reach).support for reach in (1e-3, 0.5, 2.0, 8.0, 1e9, None)]
    for less, more in zip(supports[:-1], supports[1:], strict=True):
        assert (less <= more + 1e-12).all()
    for support in supports:
        assert 0 <= support.min() <= support.max() <= 1
        np.testing.assert_array_equal(support > 0, any_flow.known)
    assert supports[0].max() < 1
    np.testing.assert_array_equal(supports[-1], any_flow.known)
    assert_same(any_flow.again(reach=1e9), any_flow.again(reach=None), atol=1e-12)


def test_displacement_counts_less_by_its_excess_over_the_median():
    # Single cells have no choice: displacements 1, 1, 1, 2 and 3 with a median square of one.
    x, time = np.cumsum([0.0, 1, 1, 1, 2, 3])[:, None], np.arange(6.0)
    windows = Windows.from_pairs([([i], [i + 1]) for i in range(5)], time)
    result = solve(x, time, windows, reach=2.0, relaxation=0.0)
    weight = np.exp([0, 0, 0, -2, -7])  # squares 4 and 9, less the two that are in reach
    np.testing.assert_allclose(result.support, [1, 1, 1, 1, np.exp(-2), np.exp(-7)])
    step = np.diff(x[:, 0])
    blend = (weight * step)[:-1] + (weight * step)[1:]
    np.testing.assert_allclose(result.velocity[:, 0], [1, *blend / (weight[:-1] + weight[1:]), 3])


@pytest.mark.parametrize("jump", [30.0, 1e6])
def test_cell_that_has_nothing_better_keeps_its_displacement(jump: float):
    x, time = np.array([0.0, 1, 2, 3, 3 + jump])[:, None], np.arange(5.0)
    windows = Windows.from_pairs([([i], [i + 1]) for i in range(4)], time)
    result = solve(x, time, windows, reach=2.0)
    np.testing.assert_allclose(result.velocity[:, 0], [1, 1, 1, 1, jump], rtol=1e-6 * jump)
    np.testing.assert_allclose(result.support, [1, 1, 1, 1, np.exp(-20)])
    assert result.confidence[4] < 1e-8


def test_cells_that_mostly_stay_have_no_typical_displacement():
    x, time = np.array([0.0, 0, 0, 0, 0, 5])[:, None], np.arange(6.0)
    windows = Windows.from_pairs([([i], [i + 1]) for i in range(5)], time)
    result = solve(x, time, windows, reach=2.0)
    np.testing.assert_array_equal(result.support, 1)
    np.testing.assert_allclose(result.velocity[-1], 5)


# --------------------------------------------------------------------------------------- spread and confidence
def test_all_or_one_place_to_go_to():
    rng = np.random.default_rng(7)
    time = np.repeat([0.0, 0.5], 12)
    x = rng.normal(size=(24, 2))
    windows = Windows.from_pairs([(np.arange(12), np.arange(12, 24))], time)
    anywhere = solve(x, time, windows, epsilon=1e6)
    np.testing.assert_allclose(anywhere.n_effective, 12)
    np.testing.assert_allclose(anywhere.spread[:12], np.tile(x[12:].var(0) / 0.25, (12, 1)), rtol=1e-5)
    np.testing.assert_allclose(anywhere.spread[12:], np.tile(x[:12].var(0) / 0.25, (12, 1)), rtol=1e-5)
    np.testing.assert_allclose(anywhere.variance, anywhere.spread / 12)
    far = np.outer(200 * np.sqrt(np.arange(2.0, 14)), [1, 1])  # all have their own place, a little further
    there = solve(np.vstack([far, far + [3, 4]]), time, windows, epsilon=1e-4)
    np.testing.assert_allclose(there.n_effective, 1)
    np.testing.assert_allclose(there.spread, 0, atol=1e-6)
    assert (there.spread >= 0).all()  # whatever rounding says
    np.testing.assert_allclose(there.velocity, np.tile([6.0, 8], (24, 1)), atol=1e-6)


def test_windows_that_disagree_are_told():
    """One cell goes out by two pairs, to places on opposite sides; another twice to the same."""
    x = np.array([[0.0, 0], [3, 4], [-3, -4], [10, 0], [13, 4], [13, 4]])
    time = np.array([0.0, 0.5, 0.5, 0.0, 0.5, 0.5])
    pairs = [(np.array([i]), np.array([j])) for i, j in ((0, 1), (0, 2), (3, 4), (3, 5))]
    result = solve(x, time, Windows.from_pairs(pairs, time))
    np.testing.assert_allclose(result.disagreement[[0, 3]], [100, 0], atol=1e-12)  # speed 10 to either side
    assert result.confidence[0] < result.confidence[3]


def test_confidence_multiplies_support_precision_and_windows(any_flow: Flow):
    result = any_flow.result
    assert 0 <= result.confidence.min() <= result.confidence.max() <= 1
    for cell in range(240):
        if not result.n_windows[cell]:
            assert result.confidence[cell] == 0
            continue
        square, variance = (result.velocity[cell] ** 2).sum(), (result.spread[cell] / result.n_effective[cell]).sum()
        variance += result.disagreement[cell] / result.n_windows[cell]
        windows = result.n_windows[cell] / result.n_windows.max()
        expected = result.support[cell] * square / (square + variance) * windows
        assert result.confidence[cell] == pytest.approx(expected)
    np.testing.assert_array_equal(result.n_windows, result.n_forward + result.n_backward)
    assert (result.n_effective[result.has_estimate] >= 1 - 1e-9).all()
    np.testing.assert_array_equal(np.isnan(result.spread).all(1), ~result.has_estimate)


def test_confidence_where_nothing_is_known_is_zero():
    zeros, nan = np.zeros(3, dtype=int), np.full((3, 2), np.nan)
    none = TransportVelocity(
        velocity=nan, relaxation=np.zeros((3, 2)), spread=nan, n_effective=np.zeros(3), support=np.zeros(3),
        disagreement=np.full(3, np.nan),
        n_forward=zeros, n_backward=zeros, converged=np.zeros(0, dtype=bool), marginal_error=np.zeros(0),
    )  # fmt: skip
    np.testing.assert_array_equal(none.confidence, 0)
    assert np.isnan(none.variance).all()


def test_ends_are_the_cells_that_none_is_known_to_go_on_from(any_flow: Flow):
    result, windows, time, graph = any_flow.result, any_flow.windows, any_flow.time, any_flow.graph
    step = windows.dt.mean() / 4
    found = {}
    for backward, sign in ((False, 1), (True, -1)):
        ends = end_cells(result, windows, time, graph, backward=backward)
        gone, come = (result.n_forward, result.n_backward)[::sign]
        for cell in range(240):
            ahead = max((sign * (time[other] - time[cell]) for other in graph[cell].indices), default=0)
            assert ends[cell] == (gone[cell] == 0 < come[cell] and ahead <= step)
        found[backward] = ends
    assert not (found[False] & found[True]).any()
    assert not (found[False] | found[True])[~result.has_estimate].any()  # of which nothing is known


# --------------------------------------------------------------------------------------- degenerate input
def test_cell_without_an_estimate_is_nan(any_flow: Flow, caplog):
    caplog.set_level(logging.INFO, "cellrank_velot")
    pairs = any_flow.windows.pairs[::4]
    windows = Windows.from_dict({**any_flow.windows.to_dict(), "pairs": pairs, "dt": any_flow.windows.dt[::4]})
    result = any_flow.again(windows=windows)
    used = np.unique(np.concatenate([windows.cells(window) for window in pairs.ravel()]))
    outside = np.setdiff1d(np.arange(any_flow.time.size), used)
    assert outside.size > 0
    assert np.isnan(result.velocity[outside]).all()
    assert (result.n_windows[outside] == 0).all()
    for name in ("velocity", "spread"):
        np.testing.assert_array_equal(np.isfinite(getattr(result, name)).all(1), result.has_estimate)
        np.testing.assert_array_equal(np.isnan(getattr(result, name)).all(1), ~result.has_estimate)
    for name in ("relaxation", "n_effective", "support", "confidence"):
        np.testing.assert_array_equal(getattr(result, name)[~result.has_estimate], 0)
        assert np.isfinite(getattr(result, name)).all()
    assert f"{(~result.has_estimate).sum()} of 240 cells have no estimate" in caplog.text


@pytest.mark.parametrize("stored", [False, True])
def test_cell_without_a_neighbour_in_the_other_window_takes_nothing(flow: Flow, stored: bool):
    cell = int(flow.windows.cells(flow.windows.pairs[0, 0])[0])
    graph = flow.graph.copy()
    row = np.repeat(np.arange(240), np.diff(graph.indptr))
    graph.data = np.where((row == cell) | (graph.indices == cell), 0, graph.data)
    if not stored:
        graph.eliminate_zeros()
    result = flow.again(graph=graph)
    assert flow.result.n_windows[cell] > result.n_windows[cell] == 0
    assert np.isnan(result.velocity[cell]).all()


def test_pairs_without_a_difference_in_time_are_left_out(any_flow: Flow, caplog):
    dt = any_flow.windows.dt.copy()
    dt[[0, 3]] = [0, -1]
    windows = Windows.from_dict({**any_flow.windows.to_dict(), "dt": dt})
    result = any_flow.again(windows=windows)
    assert "Left out 2 window pairs without a difference in time" in caplog.text
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(result.marginal_error)), [0, 3])
    assert not result.converged[[0, 3]].any()
    assert np.isfinite(result.velocity[result.has_estimate]).all()
    nothing = any_flow.again(windows=Windows.from_dict({**any_flow.windows.to_dict(), "dt": np.zeros_like(dt)}))
    assert not nothing.has_estimate.any()
    np.testing.assert_array_equal(nothing.confidence, 0)


def test_what_did_not_converge_is_counted(any_flow: Flow, caplog):
    result = any_flow.again(max_iter=1)
    n_pairs = any_flow.windows.n_pairs
    assert (~result.converged).sum() > 0
    assert f"{(~result.converged).sum()} of {n_pairs} couplings did not converge" in caplog.text
    np.testing.assert_array_equal(result.converged, result.marginal_error <= REFERENCE["tol"])
    assert np.isfinite(result.velocity[result.has_estimate]).all()


@pytest.mark.parametrize("options", [REFERENCE, DEFAULT], ids=["reference", "default"])
def test_cells_at_one_position_do_not_move(options: dict):
    time = np.arange(48) / 48
    windows = Windows.from_pairs([(np.arange(24), np.arange(24, 48))], time)
    result = solve(np.ones((48, 3)), time, windows, sp.csr_matrix(np.ones((48, 48))), **options)
    for name in ("velocity", "relaxation", "spread"):
        np.testing.assert_allclose(getattr(result, name), 0, atol=1e-12)
    np.testing.assert_array_equal(result.support, 1)
    np.testing.assert_array_equal(result.confidence, 1)  # they stay, for sure


def test_windows_of_one_cell():
    x, time = np.array([[0.0, 0], [2, 1], [3, 3]]), np.array([0.0, 0.5, 1.0])
    result = solve(x, time, Windows.from_pairs([([0], [1]), ([1], [2])], time))
    np.testing.assert_allclose(result.velocity, [[4, 2], [2, 4], [2, 4]])
    np.testing.assert_array_equal(result.spread, 0)
    np.testing.assert_array_equal(result.n_effective, 1)


def test_velocity_is_total_displacement_over_total_time():
    x, time = np.array([[0.0], [1], [5]]), np.array([0.0, 0.25, 1.0])
    windows = Windows.from_pairs([([0], [1]), ([0], [2])], time)
    np.testing.assert_allclose(solve(x, time, windows).velocity[0], (1 + 5) / (0.25 + 1.0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_positions_of_either_precision(any_flow: Flow, dtype: type):
    result = any_flow.again(x=any_flow.x.astype(dtype), time=any_flow.time.astype(dtype))
    assert_same(result, any_flow.result, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"epsilon": 0}, ValueError, r"Expected `epsilon` to be in \(0, inf\), found `0`"),
        ({"epsilon": -0.05}, ValueError, r"Expected `epsilon` to be in \(0, inf\), found `-0.05`"),
        ({"epsilon": np.nan}, ValueError, "Expected `epsilon` to be in"),
        ({"epsilon": "small"}, TypeError, "Expected `epsilon` to be a number, found `str`"),
        ({"lambda_time": -1}, ValueError, r"Expected `lambda_time` to be in \[0, inf\)"),
        ({"lambda_knn": np.inf}, ValueError, r"Expected `lambda_knn` to be in \[0, inf\)"),
        ({"reach": 0}, ValueError, r"Expected `reach` to be in \(0, inf\), found `0`"),
        ({"reach": -2.0}, ValueError, r"Expected `reach` to be in \(0, inf\), found `-2.0`"),
        ({"reach": np.inf}, ValueError, r"Expected `reach` to be in \(0, inf\), found `inf`"),
        ({"reach": "far"}, TypeError, "Expected `reach` to be a number, found `str`"),
        ({"relaxation": 1.5}, ValueError, r"Expected `relaxation` to be in \[0, 1\], found `1.5`"),
        ({"relaxation": "some"}, TypeError, "Expected `relaxation` to be a number, found `str`"),
        ({"relaxation": None}, TypeError, "Expected `relaxation` to be a number"),
        ({"regression": "False"}, TypeError, "Expected `regression` to be `True` or `False`, found `'False'`"),
        ({"tol": 0}, ValueError, r"Expected `tol` to be in \(0, inf\)"),
        ({"max_iter": 0}, ValueError, "Expected `max_iter` to be at least `1`, found `0`"),
        ({"max_iter": 10.0}, TypeError, "Expected `max_iter` to be an integer"),
        ({"device": "abacus"}, ValueError, "Expected `device` to be 'auto'"),
    ],
)
def test_bad_options(flow: Flow, option: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        flow.again(**option)


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
    found = pair_batches._adjacency(graph, source, target)
    expected = graph.toarray()[source[:, :, None], target[:, None, :]] != 0
    np.testing.assert_array_equal(found, expected)
