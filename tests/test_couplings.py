"""Couplings of snapshots and the bridges of their pairs: exact masses, planted growth, invariances, smooth paths."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import ortho_group

from cellrank_velot.timeseries.bridges import Bridges, limited_slope
from cellrank_velot.timeseries.couplings import SnapshotCouplings, couple_snapshots
from cellrank_velot.timeseries.interpolation import interpolate_paths
from cellrank_velot.timeseries.options import CouplingOptions
from cellrank_velot.timeseries.snapshots import SnapshotOptions, build_snapshots

GROWTH = np.log([1.5, 0.5]) / 2


def moving(*sizes: int, dt: float = 2.0, speed: float = 0.5, seed: int = 0):
    """Return positions and times of a cloud that moves along the first of three dimensions."""
    rng = np.random.default_rng(seed)
    time = np.repeat(dt * np.arange(len(sizes)), sizes)
    x = rng.normal(size=(time.size, 3))
    x[:, 0] += speed * time
    return x, time


def two_groups(apart: float = 8.0, shift=(0.0, 1.0), seed: int = 0):
    """Return positions, times and groups of cells half of which multiply by 1.5 in 2 units of time, half by 0.5."""
    rng = np.random.default_rng(seed)
    sizes, time = [100, 100, 150, 50], np.repeat([0.0, 2.0], 200)
    group = np.repeat([0, 1, 0, 1], sizes)
    x = rng.normal(scale=0.5, size=(400, 3))
    x[:, 0] += apart * group
    x[time > 0, :2] += shift
    return x, time, group


def couple(x, time, *, batch_size: int = 1500, **options):
    windows = build_snapshots(time, SnapshotOptions(batch_size=batch_size))
    options, inputs = CouplingOptions.split(options)
    return couple_snapshots(x, time, windows, options, **inputs)


# --------------------------------------------------------------------------------------------------- masses
@pytest.mark.parametrize("tau", [1.0, 0.9, (1.0, 0.8), (0.8, 1.0), 0.3])
@pytest.mark.parametrize("batch_size", [1500, 40])
def test_pairs_of_a_cell_have_its_mass(batch_size: int, tau):
    x, time = moving(90, 70, 110)
    mass = np.array([1.0, 3.0, 0.5])
    couplings, _ = couple(x, time, batch_size=batch_size, tau=tau, mass=mass)
    for k, point in enumerate(couplings.times):
        own = np.where(time == point, mass[k] / (time == point).sum(), 0.0)
        if k < 2:
            part = couplings.pairs(k)
            np.testing.assert_allclose(np.bincount(couplings.source[part], couplings.start[part], 270), own, rtol=1e-12)
        if k > 0:
            part = couplings.pairs(k - 1)
            np.testing.assert_allclose(np.bincount(couplings.target[part], couplings.end[part], 270), own, rtol=1e-12)
    np.testing.assert_array_equal(time[couplings.target] - time[couplings.source], 2.0)
    assert (couplings.start > 0).all()
    assert (couplings.end > 0).all()
    assert couplings.n_pairs == couplings.offsets[-1] == 4 * (90 + 70 + 70 + 110)


def test_mass_between_is_geometric_and_its_matrix_is_the_coupling():
    x, time = moving(60, 80)
    couplings, _ = couple(x, time, mass=np.array([1.0, 4.0]))
    part = couplings.pairs(0)
    np.testing.assert_allclose(couplings.mass_at(part, 0.0), couplings.start)
    np.testing.assert_allclose(couplings.mass_at(part, 1.0), couplings.end)
    np.testing.assert_allclose(couplings.mass_at(part, 0.25), couplings.start * np.exp(couplings.rate * 0.5))
    matrix = couplings.matrix(0, 140)
    assert matrix.shape == (140, 140)
    assert matrix[60:].nnz == matrix[:, :60].nnz == 0
    assert matrix.sum() == pytest.approx(couplings.mass_at(part, 0.5).sum())


# --------------------------------------------------------------------------------------------------- growth
def test_planted_growth_of_groups_is_found():
    x, time, group = two_groups()
    couplings, velocity = couple(x, time)
    for k, rate in enumerate(GROWTH):
        for point in (0.0, 2.0):
            found = velocity.growth[(group == k) & (time == point)]
            assert found.mean() == pytest.approx(rate, abs=0.02)
            assert found.std() < 0.03
        pairs = group[couplings.source] == k
        assert np.average(couplings.rate[pairs], weights=couplings.start[pairs]) == pytest.approx(rate, abs=0.05)
    assert (group[couplings.source] == group[couplings.target]).mean() > 0.99


def test_strict_weights_let_nothing_grow_and_force_cells_across():
    x, time, group = two_groups()
    couplings, velocity = couple(x, time, tau=1.0, tol=1e-9, max_iter=5000)
    np.testing.assert_allclose(velocity.growth, 0, atol=1e-5)
    across = couplings.mass_at(slice(None), 0.5)[group[couplings.source] != group[couplings.target]].sum()
    assert across == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("tau", [1.0, 0.9])
def test_masses_of_the_time_points_add_their_rate(tau: float):
    x, time = moving(80, 80)
    plain, more = (couple(x, time, tau=tau, mass=mass)[1].growth for mass in (None, np.array([2.0, 2.0 * np.exp(3)])))
    np.testing.assert_allclose(more - plain, 1.5, atol=1e-10)


def test_expected_growth_is_kept_where_weights_are_strict():
    x, time = moving(100, 90)
    rng = np.random.default_rng(1)
    prior = rng.normal(size=190)
    _, velocity = couple(x, time, tau=1.0, prior=prior)
    source = time == 0
    # What all cells gain is no news: the mass of the time point is given.
    expected = prior[source] - np.log(np.mean(np.exp(2 * prior[source]))) / 2
    np.testing.assert_allclose(velocity.growth[source], expected, atol=1e-3)


def test_expected_growth_moves_mass_of_relaxed_couplings():
    x, time = moving(150, 150)
    prior = np.where(x[:, 1] > 0, 0.5, -0.5)
    _, plain = couple(x, time)
    _, guided = couple(x, time, prior=prior)
    gain = (guided.growth - plain.growth)[time == 0]
    up = prior[time == 0] > 0
    assert gain[up].mean() > 0.1 > -0.1 > gain[~up].mean()


def test_more_passes_take_off_what_all_cells_move():
    x, time, group = two_groups(4.0, shift=(2.0, 0.0))
    off = []
    for n_passes in (1, 3):
        growth = couple(x, time, n_passes=n_passes)[1].growth
        off.append([abs(growth[(group == k) & (time == 0)].mean() - rate) for k, rate in enumerate(GROWTH)])
    assert off[1][0] < off[0][0]
    assert off[1][1] < off[0][1]


@pytest.mark.parametrize("n_draws", [2, 4])
def test_chance_of_the_draws_is_no_growth(n_draws: int):
    x, time = moving(200, 150)
    mass = np.array([1.0, 2.0])
    couplings, velocity = couple(x, time, tau=1.0, mass=mass, n_draws=n_draws)
    assert np.sqrt(np.average((couplings.rate - np.log(2) / 2) ** 2, weights=couplings.start)) < 0.04
    couplings, velocity = couple(x, time, mass=mass, n_draws=n_draws)
    mean = np.bincount(couplings.source, couplings.start * couplings.rate) / np.bincount(
        couplings.source, couplings.start
    )
    assert np.corrcoef(mean, velocity.growth[time == 0])[0, 1] > 0.75


def test_mass_that_stays_is_support():
    x, time, group = two_groups()
    _, velocity = couple(x, time)
    assert (velocity.support <= 1).all()
    shrinking, growing = (velocity.support[(group == k) & (time == 0)].mean() for k in (1, 0))
    assert shrinking < growing


# ------------------------------------------------------------------------------------- velocity and invariances
@pytest.mark.parametrize("points", [(0.0, 2.0, 4.0), (-1.0, 0.0, 10.0)])
def test_velocity_of_a_moving_cloud(points):
    rng = np.random.default_rng(0)
    time = np.repeat(points, 150)
    x = 0.3 * rng.normal(size=(450, 3)) + np.outer(time, [0.5, -0.2, 0.0])
    couplings, velocity = couple(x, time, epsilon=0.01, tau=1.0, tol=1e-10, max_iter=5000)
    centres = np.stack([x[time == point].mean(0) for point in points])
    for k, moved in enumerate(np.diff(centres, axis=0) / np.diff(points)[:, None]):
        np.testing.assert_allclose(couplings.after[time == points[k]].mean(0), moved, atol=1e-6)
        np.testing.assert_allclose(couplings.before[time == points[k + 1]].mean(0), moved, atol=1e-3)
    assert np.sqrt(np.mean((velocity.velocity - [0.5, -0.2, 0.0]) ** 2)) < 0.1
    first, last = time == points[0], time == points[-1]
    assert np.isnan(couplings.before[first]).all()
    assert np.isnan(couplings.after[last]).all()
    assert np.isfinite(couplings.before[~first]).all()
    assert np.isfinite(couplings.after[~last]).all()
    np.testing.assert_array_equal(velocity.n_forward, ~last)
    np.testing.assert_array_equal(velocity.n_backward, ~first)
    # Between two time points, the velocity is that of the parabola: the nearer one weighs more.
    middle, (before, after) = time == points[1], np.diff(points)
    expected = (couplings.before * after + couplings.after * before)[middle] / (before + after)
    np.testing.assert_allclose(velocity.velocity[middle], expected, atol=1e-12)


def test_rotation_translation_and_units():
    x, time = moving(80, 90, 70)
    turn, by = ortho_group.rvs(3, random_state=0), np.array([500.0, -300.0, 100.0])
    couplings, plain = couple(x, time)
    turned, other = couple(3 * x @ turn + by, time / 10)
    np.testing.assert_allclose(other.velocity, 30 * plain.velocity @ turn, atol=1e-6)
    np.testing.assert_allclose(other.growth, 10 * plain.growth, atol=1e-6)
    assert (turned.target == couplings.target).mean() > 0.999
    assert turned.diffusion == pytest.approx(3 * np.sqrt(10) * couplings.diffusion, rel=1e-9)


def test_order_of_cells_does_not_matter():
    x, time = moving(80, 90, 70)
    order = np.random.default_rng(0).permutation(time.size)
    _, plain = couple(x, time)
    _, mixed = couple(x[order], time[order])
    np.testing.assert_allclose(mixed.velocity, plain.velocity[order], atol=1e-5)
    np.testing.assert_allclose(mixed.growth, plain.growth[order], atol=1e-5)


def test_batches_agree_with_the_whole():
    x, time = moving(400, 400, speed=1.0)
    whole, parts = (couple(x, time, batch_size=size)[1] for size in (1500, 100))
    assert np.corrcoef(whole.velocity.ravel(), parts.velocity.ravel())[0, 1] > 0.95
    np.testing.assert_allclose(parts.velocity.mean(0), whole.velocity.mean(0), atol=0.05)


def test_seeds():
    x, time = moving(60, 60)
    (first, a), (again, b), (other, c) = (couple(x, time, random_state=seed) for seed in (1, 1, 2))
    for name, value in first.to_dict().items():
        np.testing.assert_array_equal(value, again.to_dict()[name], err_msg=name)
    assert not np.array_equal(first.target, other.target)
    np.testing.assert_array_equal(a.velocity, c.velocity, err_msg="only the pairs are drawn")
    np.testing.assert_array_equal(a.growth, b.growth)


def test_scale_and_diffusion_are_those_of_a_brownian_bridge():
    x, time = moving(50, 60, 40)
    couplings, _ = couple(x, time, epsilon=0.07)
    groups = [x[time == point] for point in couplings.times]
    scale = [np.mean(cdist(groups[k], groups[k + 1]) ** 2) for k in range(2)]
    np.testing.assert_allclose(couplings.scale, scale)
    assert couplings.diffusion**2 * 4 == pytest.approx(0.07 * sum(scale) / 2)


# -------------------------------------------------------------------------------------------------- hard input
@pytest.mark.parametrize("tau", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("far", [30.0, 1e3, 1e6])
def test_a_cell_far_out_is_finite_and_spoils_nothing(far: float, tau: float):
    x, time = moving(120, 100, 110)
    _, clean = couple(x, time, tau=tau)
    x[0, 1], x[150, 2], x[-1, 0] = far, -far, far
    couplings, velocity = couple(x, time, tau=tau)
    for name in ("velocity", "growth", "spread", "n_effective", "disagreement", "support", "confidence"):
        assert np.isfinite(getattr(velocity, name)).all(), name
    assert velocity.converged.all()
    assert np.isfinite(np.log(couplings.start / couplings.end)).all()
    if tau == 1 and far < 100:
        others = np.setdiff1d(np.arange(330), [0, 150, 329])
        assert np.median(np.abs(velocity.velocity - clean.velocity)[others]) < 0.5


def test_snapshots_of_a_few_cells():
    x, time = moving(5, 3, 40)
    couplings, velocity = couple(x, time)
    assert np.isfinite(velocity.velocity).all()
    assert np.isfinite(velocity.growth).all()
    assert np.bincount(couplings.source, minlength=48)[:8].min() >= 4


def test_cells_on_one_spot():
    x, time = moving(30, 30)
    couplings, velocity = couple(np.zeros_like(x), time)
    np.testing.assert_allclose(velocity.velocity, 0, atol=1e-12)
    np.testing.assert_allclose(velocity.growth, 0, atol=1e-6)
    assert couplings.diffusion > 0


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"epsilon": 0.0}, ValueError, r"`epsilon` to be in \(0, inf\), found `0.0`"),
        ({"tau": 0.0}, ValueError, r"`tau` to be in \(0, 1\]"),
        ({"tau": 1.01}, ValueError, r"`tau` to be in \(0, 1\]"),
        ({"tau": (0.9, 2.0)}, ValueError, r"`tau` to be in \(0, 1\]"),
        ({"tau": (0.9, 0.9, 0.9)}, ValueError, "`tau` as one number, or as two for source and target, found `3`"),
        ({"tau": "strict"}, TypeError, "`tau` to be a number"),
        ({"n_passes": 0}, ValueError, "`n_passes` to be at least `1`"),
        ({"n_draws": 0}, ValueError, "`n_draws` to be at least `1`"),
        ({"n_draws": 1001}, ValueError, "`n_draws` to be at most `1000`"),
        ({"n_draws": 2.5}, TypeError, "`n_draws` to be an integer"),
        ({"tol": 0}, ValueError, "`tol`"),
        ({"max_iter": 0}, ValueError, "`max_iter` to be at least `1`"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, error: type[Exception], match: str):
    with pytest.raises(error, match=match):
        couple(*moving(20, 20), **options)


def test_parts_that_do_not_belong_together_are_refused():
    couplings, _ = couple(*moving(20, 20))
    with pytest.raises(ValueError, match="`end` of shape"):
        replace(couplings, end=couplings.end[1:])
    with pytest.raises(ValueError, match="`offsets` of `2` values"):
        replace(couplings, offsets=couplings.offsets[:1])


# ----------------------------------------------------------------------------------------------------- bridges
def chains(points: np.ndarray, times) -> tuple[SnapshotCouplings, np.ndarray]:
    """Return couplings of cells that keep their number: ``points`` of shape ``[n_times, n_cells, n_dims]``."""
    n_times, n, n_dims = points.shape
    cells, times = np.arange(n_times * n).reshape(n_times, n), np.asarray(times, dtype=float)
    secants = np.diff(points, axis=0) / np.diff(times)[:, None, None]
    none = np.full((1, n, n_dims), np.nan)
    size = (n_times - 1) * n
    couplings = SnapshotCouplings(
        source=cells[:-1].ravel(),
        target=cells[1:].ravel(),
        offsets=n * np.arange(n_times),
        start=np.full(size, 1 / n),
        end=np.full(size, 1 / n),
        times=times,
        mass=np.ones(n_times),
        before=np.concatenate([none, secants]).reshape(-1, n_dims),
        after=np.concatenate([secants, none]).reshape(-1, n_dims),
        scale=np.ones(n_times - 1),
        epsilon=0.05,
        tau=np.ones(2),
    )
    return couplings, points.reshape(-1, n_dims)


def move(bridges: Bridges, share: float) -> tuple[np.ndarray, np.ndarray]:
    pairs = torch.arange(bridges.couplings.n_pairs)
    return tuple(part.numpy() for part in bridges.move(pairs, torch.full(pairs.shape, share, dtype=torch.float64)))


@pytest.fixture(scope="module")
def real() -> Bridges:
    """Return the bridges of three uneven intervals, with pairs that split and join."""
    x, _ = moving(40, 50, 30, 45)
    time = np.repeat([0.0, 1.0, 4.0, 4.5], [40, 50, 30, 45])
    return Bridges(couple(x, time)[0], x)


def test_bridges_pass_their_ends(real):
    for share, cells in ((0.0, real.couplings.source), (1.0, real.couplings.target)):
        np.testing.assert_allclose(move(real, share)[0], real.x.numpy()[cells], atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_velocity_is_the_derivative_of_the_position(real, share: float):
    step = 1e-4
    dt = np.repeat(np.diff(real.couplings.times), np.diff(real.couplings.offsets))[:, None]
    (before, _), (after, _) = move(real, share - step), move(real, share + step)
    np.testing.assert_allclose(move(real, share)[1], (after - before) / (2 * step * dt), atol=1e-6)


def test_bridges_of_one_interval_are_straight_and_so_are_all_when_asked(real):
    x, time = moving(30, 40)
    alone = Bridges(couple(x, time)[0], x)
    for bridges in (alone, Bridges(real.couplings, real.x.numpy(), straight=True)):
        here, there = (bridges.x.numpy()[cells] for cells in (bridges.couplings.source, bridges.couplings.target))
        for share in (0.2, 0.7):
            position, velocity = move(bridges, share)
            np.testing.assert_allclose(position, here + share * (there - here), atol=1e-12)
            dt = bridges.length[bridges.interval].numpy()[:, None]
            np.testing.assert_allclose(velocity, (there - here) / dt, atol=1e-12)


@pytest.mark.parametrize("times", [(0, 1, 2), (0, 1, 5), (-3, 1, 1.5, 2)])
def test_uniform_motion_stays_uniform(times):
    rng = np.random.default_rng(0)
    start, speed = rng.normal(size=(2, 6, 4))
    bridges = Bridges(*chains(np.stack([start + speed * time for time in times]), times))
    for share in (0.0, 0.3, 0.8, 1.0):
        at = bridges.times[:-1] + share * bridges.length
        position, velocity = move(bridges, share)
        np.testing.assert_allclose(position, np.concatenate([start + speed * float(t) for t in at]), atol=1e-12)
        np.testing.assert_allclose(velocity, np.tile(speed, (len(times) - 1, 1)), atol=1e-12)


def test_slopes_agree_on_both_sides_of_a_time_point():
    rng = np.random.default_rng(1)
    bridges = Bridges(*chains(rng.normal(size=(4, 9, 3)), (0.0, 1.0, 1.5, 4.0)))
    (_, start), (_, end) = move(bridges, 0.0), move(bridges, 1.0)
    np.testing.assert_allclose(end[:-9], start[9:], atol=1e-12)


def test_a_parabola_is_followed_closely():
    times = np.array([0.0, 1.0, 2.5, 3.0])
    bridges = Bridges(*chains(np.stack([[[t, 0.05 * t**2]] for t in times]), times))
    for share in (0.25, 0.5, 0.75):
        at = (bridges.times[:-1] + share * bridges.length).numpy()
        np.testing.assert_allclose(move(bridges, share)[0], np.column_stack([at, 0.05 * at**2]), atol=5e-3)
        np.testing.assert_allclose(move(bridges, share)[1], np.column_stack([at**0, 0.1 * at]), atol=3e-2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-100, 100), min_size=3, max_size=6),
    st.lists(st.floats(0.01, 100), min_size=6, max_size=6),
)
def test_in_one_dimension_no_bridge_leaves_the_range_of_its_ends(heights, lengths):
    times = np.concatenate([[0.0], np.cumsum(lengths[: len(heights) - 1])])
    couplings, x = chains(np.array(heights)[:, None, None], times)
    bridges = Bridges(couplings, x)
    low, high = np.minimum(x[:-1], x[1:]), np.maximum(x[:-1], x[1:])
    for share in np.linspace(0, 1, 15):
        position, velocity = move(bridges, share)
        assert (position >= low - 1e-9).all()
        assert (position <= high + 1e-9).all()
        assert (velocity * np.diff(x, axis=0) >= -1e-9).all(), "monotone, too"


def test_limited_slope_turns_with_the_axes():
    rng = np.random.default_rng(0)
    before, after = torch.from_numpy(rng.normal(size=(2, 200, 5)))
    times = torch.from_numpy(rng.random((2, 200, 1)) + 0.1)
    turn = torch.from_numpy(ortho_group.rvs(5, random_state=0))
    slope = limited_slope(before, after, *times)
    torch.testing.assert_close(limited_slope(before @ turn, after @ turn, *times), slope @ turn)
    steepest = 3 * torch.minimum(before.norm(dim=1), after.norm(dim=1))
    assert (slope.norm(dim=1) <= steepest + 1e-12).all()
    assert (slope[(before * after).sum(1) < 0] == 0).all()
    assert (slope[(before * after).sum(1) > 0].norm(dim=1) > 0).all()
    torch.testing.assert_close(limited_slope(after, before, times[1], times[0]), slope, msg="time may run backward")


def test_limited_slope_of_like_and_of_no_secants():
    one, time = torch.tensor([[1.0, 2.0]]).double(), torch.ones(1, 1).double()
    torch.testing.assert_close(limited_slope(one, one, time, 3 * time), one)
    torch.testing.assert_close(limited_slope(one, 0 * one, time, time), 0 * one)
    torch.testing.assert_close(limited_slope(0 * one, 0 * one, time, time), 0 * one)


def test_mass_of_bridges_is_that_of_their_pairs(real):
    pairs = torch.arange(real.couplings.n_pairs)
    for share in (0.0, 0.3, 1.0):
        mass = real.log_mass(pairs, torch.tensor(share)).exp().numpy()
        np.testing.assert_allclose(mass, real.couplings.mass_at(slice(None), share))


def test_one_tau_in_an_array_is_a_number():
    assert CouplingOptions(tau=np.array(0.8)) == CouplingOptions(tau=0.8)
    assert CouplingOptions(tau=np.array([0.9, 0.8])) == CouplingOptions(tau=[0.9, 0.8])


# ------------------------------------------------------------------------------------------- populations that go round
def going_round(angle: float, n_times: int = 6, n_cells: int = 30, n_dims: int = 5, width: float = 0.1, growth=1.0):
    """Return snapshots of a cloud on a circle in some plane, and where it is at any time."""
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.normal(size=(n_dims, 2)))[0].T
    cloud = width * rng.normal(size=(n_cells, n_dims))

    def at(time):
        radius = 3 * growth**time
        return cloud + radius * np.array([np.cos(angle * time), np.sin(angle * time)]) @ plane + 2.0

    times = np.arange(n_times, dtype=float)
    return np.concatenate([at(t) for t in times]), np.repeat(times, n_cells), at


@pytest.mark.parametrize(("angle", "growth"), [(1.2, 1.0), (2.7, 1.0), (-2.0, 0.95)])
def test_a_population_that_goes_round_does_so_between_its_time_points(angle, growth):
    x, time, at = going_round(angle, growth=growth)
    couplings = couple(x, time)[0]
    bridges = Bridges(couplings, x)
    assert bridges.turn is not None
    for moment in (0.5, 2.3, 4.9):
        found = interpolate_paths(couplings, x, moment)
        assert np.linalg.norm(found.mean - at(moment).mean(axis=0)) < 0.05
        straight = interpolate_paths(couplings, x, moment, straight=True)
        assert np.linalg.norm(straight.mean - at(moment).mean(axis=0)) > 0.1
    share, step = 0.4, 1e-5
    (before, _), (after, _) = move(bridges, share - step), move(bridges, share + step)
    np.testing.assert_allclose(move(bridges, share)[1], (after - before) / (2 * step), atol=1e-5)
    for share, cells in ((0.0, couplings.source), (1.0, couplings.target)):
        np.testing.assert_allclose(move(bridges, share)[0], x[cells], atol=1e-9)


@pytest.mark.parametrize("case", ["few times", "wide", "one way", "half a turn", "uneven"])
def test_what_does_not_go_round_has_no_turn(case):
    x, time, _ = going_round(np.pi if case == "half a turn" else 1.2, 4 if case == "few times" else 6)
    if case == "wide":
        x = going_round(1.2, width=3.0)[0]
    if case == "one way":
        x[:, 0] += 20 * time
        x[:, 1:] = 0.01 * x[:, 1:]
    if case == "uneven":
        time = time**1.1
    assert Bridges(couple(x, time)[0], x).turn is None
