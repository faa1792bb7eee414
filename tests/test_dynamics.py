"""Motion: solvers against closed forms and their order, the region against sklearn, ends and fates that are planted."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from scipy.stats import ortho_group
from sklearn.neighbors import NearestNeighbors

from cellrank_velot import OTVelocityKernel, datasets
from cellrank_velot._utils.device import single_thread
from cellrank_velot._utils.options import Run
from cellrank_velot.dynamics import (
    NO_FATE,
    FlowOptions,
    Interpolated,
    Status,
    Trajectories,
    TrajectoryOptions,
    compute_trajectories,
    simulate_flow,
)
from cellrank_velot.dynamics import region as region_module
from cellrank_velot.dynamics.drift import confined, diffusing, drift_of
from cellrank_velot.dynamics.motion import LOOK_EVERY, Motion, _Crowd, move
from cellrank_velot.dynamics.options import MotionOptions
from cellrank_velot.dynamics.region import NearestCells, Region
from cellrank_velot.dynamics.solvers import OdeStep, SdeStep
from cellrank_velot.storage import pack as storage

METHODS = ("euler", "rk4", "dopri5")
ORDERS = {"euler": 1, "rk4": 4, "dopri5": 5}
LOOSE = 1e9  # a tolerance that every step meets
MAX_DISTANCE = MotionOptions().max_distance


@dataclass(frozen=True)
class Known:
    """A field that is given by a formula of position and time."""

    formula: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def on(self, _device):
        return self.formula


def trajectories(
    field, x, time, starts, *, clusters=None, target_cluster=None, current=None, device="auto", **options
) -> Trajectories:
    where = {"clusters": clusters, "target_cluster": target_cluster, "current": current, "run": Run(device=device)}
    return compute_trajectories(field, x, time, starts, TrajectoryOptions(**options), **where)


def let_flow(
    field, x, time, starts, *, clusters=None, terminal_clusters=None, device="auto", **options
) -> Trajectories:
    where = {"clusters": clusters, "terminal_clusters": terminal_clusters, "run": Run(device=device)}
    return simulate_flow(field, x, time, starts, FlowOptions(**options), **where)


@pytest.fixture(autouse=True)
def _one_thread():
    """Use one thread: for few particles, waiting for several costs far more than it saves."""
    with single_thread(torch.device("cpu")):
        yield


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tensor(values) -> torch.Tensor:
    return torch.tensor(np.asarray(values, dtype=np.float64))


def constant(*velocity: float) -> Known:
    return Known(lambda x, _time: tensor(velocity).expand_as(x))


def slope(sizes, errors) -> float:
    """Return the exponent with which errors grow with the size of the step."""
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def follow(step, x, n_steps: int, dt, time=0.0, clock: int = 0) -> np.ndarray:
    """Take so many steps of length ``dt``, one for all particles or one for each."""
    x = tensor(x)
    ids = torch.arange(len(x))
    dt = tensor(dt).expand(len(x))
    time = tensor(time).expand(len(x))
    for _ in range(n_steps):
        x = step(x, time, ids, dt, clock)
        time = time + clock * dt
    return x.numpy()


# -------------------------------------------------------------------------------------------------- the solvers
MATRIX = np.array([[-1.0, 0.7, 0.0], [-0.4, -0.2, 0.5], [0.3, 0.0, -0.8]])
TURN = np.array([[0.0, -2.0], [2.0, 0.0]])
POINTS = np.random.default_rng(0).normal(size=(5, 3))


def along(matrix: np.ndarray):
    return lambda x, _time, _ids: x @ tensor(matrix).T


def braking(x: torch.Tensor, time: torch.Tensor, _ids) -> torch.Tensor:
    """Return ``-2 t x^2``: from 1 at time 0, ``1 / (1 + t^2)``."""
    return -2 * time.unsqueeze(1) * x**2


def braked(x0, t0, t1):
    return 1 / (1 / x0 + t1**2 - t0**2)


def pendulum(x: torch.Tensor, time: torch.Tensor, _ids) -> torch.Tensor:
    """Return a driven pendulum, which has no closed form."""
    return torch.stack([x[:, 1], -4 * torch.sin(x[:, 0]) + torch.cos(3 * time)], dim=1)


@pytest.mark.parametrize(("method", "n_steps", "atol"), [("euler", 800, 5e-3), ("rk4", 50, 1e-6), ("dopri5", 20, 1e-8)])
@pytest.mark.parametrize("matrix", [MATRIX, TURN], ids=["linear", "rotation"])
def test_linear_fields_are_solved_by_the_exponential(method: str, n_steps: int, atol: float, matrix: np.ndarray):
    start = POINTS[:, : len(matrix)]
    found = follow(OdeStep(along(matrix), method, rtol=1e-9, atol=1e-10), start, n_steps, 1.5 / n_steps)
    np.testing.assert_allclose(found, start @ expm(1.5 * matrix).T, atol=6 * atol)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_a_rotation_keeps_the_radius(method: str):
    start = POINTS[:, :2]
    found = follow(OdeStep(along(TURN), method, rtol=1e-8, atol=1e-9), start, 200, np.pi / 200)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(start, axis=1), rtol=1e-6)
    np.testing.assert_allclose(found, start, atol=1e-6)  # one turn


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("clock", "t0", "expected"),
    [
        (1, 0.2, lambda x, s: braked(x, 0.2, 0.2 + s)),
        (-1, 1.0, lambda x, s: 1 / (1 / x + 1 - (1 - s) ** 2)),  # the time falls, the drift is not turned
        (0, 0.7, lambda x, s: 1 / (1 / x + 2 * 0.7 * s)),
    ],
    ids=["rising", "falling", "still"],
)
def test_the_clock_of_a_field_that_changes_with_time(method: str, clock: int, t0: float, expected):
    x = np.array([[1.0], [0.5], [2.0]])
    found = follow(OdeStep(braking, method, rtol=1e-9, atol=1e-11), x, 160, 0.8 / 160, t0, clock)
    np.testing.assert_allclose(found, expected(x, 0.8), rtol=1e-2 if method == "euler" else 1e-7)


def test_the_way_back_undoes_the_way_there():
    x = np.array([[1.0], [0.5]])
    there = follow(OdeStep(braking), x, 100, 0.01, 0.0, 1)
    back = follow(OdeStep(lambda x, t, ids: -braking(x, t, ids)), there, 100, 0.01, 1.0, -1)
    np.testing.assert_allclose(back, x, rtol=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("drift", "start", "n_steps"),
    [(pendulum, [[0.3, 1.0], [2.0, -1.0]], (8, 16, 32, 64)), (along(TURN), [[1.0, 0.0]], (4, 8, 16, 32))],
    ids=["pendulum", "rotation"],
)
def test_the_order_of_each_solver(method: str, drift, start, n_steps):
    def right(t, y):
        return drift(tensor(y.reshape(-1, 2)), tensor(t).expand(len(start)), None).numpy().ravel()

    truth = solve_ivp(right, (0, 1), np.ravel(start), method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1].reshape(-1, 2)
    step = OdeStep(drift, method, rtol=LOOSE, atol=LOOSE)
    if method == "euler":
        n_steps = [16 * n for n in n_steps]  # small enough for the leading error
    errors = [np.abs(follow(step, start, n, 1 / n, 0.0, 1) - truth).max() for n in n_steps]
    assert slope([1 / n for n in n_steps], errors) == pytest.approx(ORDERS[method], abs=0.3)


def test_a_loose_tolerance_takes_one_step_and_a_tight_one_more():
    n_calls = []

    def counted(x, time, ids):
        n_calls.append(len(x))
        return pendulum(x, time, ids)

    calls, errors = [], []
    truth = solve_ivp(
        lambda t, y: [y[1], -4 * np.sin(y[0]) + np.cos(3 * t)], (0, 1), [0.3, 1.0], rtol=1e-12, atol=1e-13
    ).y[:, -1]
    for tolerance in (LOOSE, 1e-3, 1e-5, 1e-7, 1e-9):
        n_calls.clear()
        found = follow(OdeStep(counted, "dopri5", rtol=tolerance, atol=tolerance), [[0.3, 1.0]], 1, 1.0, 0.0, 1)
        calls.append(len(n_calls))
        errors.append(np.abs(found - truth).max())
    assert calls[0] <= 8
    assert all(a < b for a, b in zip(calls[:-1], calls[1:], strict=True))
    assert all(a > 3 * b for a, b in zip(errors[:-1], errors[1:], strict=True))
    assert errors[-1] < 1e-7


@pytest.mark.parametrize("method", METHODS)
def test_each_particle_has_a_step_of_its_own(method: str):
    x, t0, dt = np.full((4, 1), 1.0), np.array([0.0, 0.3, 0.0, 0.9]), np.array([0.02, 0.01, 0.0, 0.03])
    together = follow(OdeStep(braking, method, rtol=1e-8, atol=1e-10), x, 1, dt, t0, 1)
    alone = [follow(OdeStep(braking, method, rtol=1e-8, atol=1e-10), x[[i]], 1, dt[i], t0[i], 1)[0] for i in range(4)]
    np.testing.assert_allclose(together, alone, rtol=1e-8)
    np.testing.assert_allclose(together, braked(x.T, t0, t0 + dt).T, rtol=3e-3)
    assert together[2] == 1.0  # no time, no motion


@pytest.mark.parametrize("method", METHODS)
def test_a_velocity_that_is_no_number_is_a_matter_of_one_particle(method: str):
    def drift(x, _time, ids):
        return torch.where((ids == 1).unsqueeze(1), torch.nan, -x)

    x = np.ones((3, 2))
    found = follow(OdeStep(drift, method), x, 1, 0.1)
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[[0, 2]], follow(OdeStep(drift, method), x[:1], 1, 0.1).repeat(2, 0), rtol=1e-6)


# ----------------------------------------------------------------------------------------- stochastic equations
def ornstein_uhlenbeck(rate: float, sigma: float):
    """Return the coefficients of ``dx = -rate x ds + sigma dW``."""
    return lambda x, _time, _ids: (-rate * x, lambda increment: sigma * increment)


def geometric(growth: float, sigma: float):
    """Return the coefficients of ``dx = growth x ds + sigma x dW``."""
    return lambda x, _time, _ids: (growth * x, lambda increment: sigma * x * increment)


def test_moments_of_an_ornstein_uhlenbeck_process():
    rate, sigma, n, dt = 1.5, 0.8, 20_000, 0.005
    step = SdeStep(ornstein_uhlenbeck(rate, sigma), 1, generator())
    x = np.full((n, 1), 2.0)
    for k, time in enumerate((0.25, 0.5, 1.0, 2.0)):
        x = follow(step, x, round((time - (0.0, 0.25, 0.5, 1.0)[k]) / dt), dt)
        mean, variance = 2 * np.exp(-rate * time), sigma**2 / (2 * rate) * (1 - np.exp(-2 * rate * time))
        assert x.mean() == pytest.approx(mean, abs=4 * (variance / n) ** 0.5 + rate**2 * time * dt * mean)
        assert x.var() == pytest.approx(variance, rel=4 * (2 / n) ** 0.5 + rate * dt)
    normal = (x - x.mean()) / x.std()
    assert (normal**3).mean() == pytest.approx(0, abs=4 * (6 / n) ** 0.5)
    assert (normal**4).mean() == pytest.approx(3, abs=4 * (24 / n) ** 0.5)


def test_noise_has_the_covariance_of_its_linear_map():
    factor = tensor([[1.0, 0.5, 0.0], [0.0, 0.3, 0.8]])  # two dimensions from three noises
    step = SdeStep(lambda x, _time, _ids: (0 * x, lambda increment: increment @ factor.T), 3, generator())
    n, dt = 40_000, np.array(0.04)
    moved = follow(step, np.zeros((n, 2)), 1, dt)
    expected = dt * (factor @ factor.T).numpy()
    np.testing.assert_allclose(np.cov(moved.T), expected, atol=4 * expected.max() * (2 / n) ** 0.5)


def coarse_and_fine(coefficients, x0: float, n: int, powers, finest: int) -> tuple[dict, np.ndarray]:
    """Return where the same Wiener paths lead at steps of ``2 ** -power``, and the paths' ends."""
    step = SdeStep(coefficients, 1, generator())
    fine = 2 ** (-finest / 2) * torch.randn((2**finest, n, 1), generator=generator(1), dtype=torch.float64)
    ids, time = torch.arange(n), torch.zeros(n, dtype=torch.float64)
    ends = {}
    for power in (*powers, finest):
        x = torch.full((n, 1), x0, dtype=torch.float64)
        dt = torch.full((n,), 2.0**-power, dtype=torch.float64)
        for increment in fine.view(2**power, -1, n, 1).sum(1):
            x = step.move(x, time, ids, dt, increment)
        ends[power] = x.numpy()
    return ends, fine.sum(0).numpy()


def test_strong_order_is_one_for_additive_noise():
    powers, finest = (3, 4, 5, 6, 7), 12
    ends, _ = coarse_and_fine(ornstein_uhlenbeck(2.0, 0.7), 1.0, 500, powers, finest)
    errors = [np.abs(ends[power] - ends[finest]).mean() for power in powers]
    assert slope([2.0**-power for power in powers], errors) == pytest.approx(1.0, abs=0.1)


def test_strong_order_is_a_half_for_multiplicative_noise():
    powers, finest = (4, 5, 6, 7, 8, 9), 10
    ends, wiener = coarse_and_fine(geometric(0.5, 1.0), 1.0, 4000, powers, finest)
    truth = np.exp((0.5 - 1.0**2 / 2) + 1.0 * wiener)
    errors = [np.abs(ends[power] - truth).mean() for power in powers]
    assert slope([2.0**-power for power in powers], errors) == pytest.approx(0.5, abs=0.1)


def test_mean_of_a_geometric_brownian_motion():
    n = 20_000
    found = follow(SdeStep(geometric(0.5, 0.4), 1, generator()), np.ones((n, 1)), 200, 0.005)
    spread = np.exp(0.5) * (np.exp(0.4**2) - 1) ** 0.5
    assert found.mean() == pytest.approx(np.exp(0.5), abs=4 * spread / n**0.5 + 0.005)


def test_no_spread_is_eulers_method():
    step = SdeStep(lambda x, time, ids: (braking(x, time, ids), torch.zeros_like), 1, generator())
    x = np.array([[1.0], [0.4]])
    dt = np.array([0.01, 0.02])
    found, expected = (follow(s, x, 30, dt, 0.1, 1) for s in (step, OdeStep(braking, "euler")))
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_a_seed_is_a_path():
    runs = [follow(SdeStep(geometric(0.5, 1.0), 1, generator(seed)), np.ones((9, 1)), 20, 0.01) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).all()
    assert np.unique(runs[0]).size == 9  # noises of particles are their own


def test_noise_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state().clone()
    follow(SdeStep(geometric(0.5, 1.0), 1, generator()), np.ones((3, 1)), 2, 0.01)
    assert torch.equal(before, torch.random.get_rng_state())


# --------------------------------------------------------------------------------------------------- the region
def sheet(n: int = 900, size=(10.0, 2.0), seed: int = 0) -> np.ndarray:
    """Return cells that are spread evenly over a rectangle, with its corner at the origin."""
    return np.random.default_rng(seed).random((n, len(size))) * size


@pytest.mark.parametrize("unit", [1e-60, 1e-13, 1e16, 1e60])
def test_extents_beyond_single_precision_are_refused(unit: float):
    """Each cell would be at no distance from each other, or at an infinite one."""
    assert np.isfinite(Region.of(sheet() * min(max(unit, 1e-9), 1e12)).typical_spacing)
    with pytest.raises(ValueError, match=r"extent from 1e-12 to 1e\+15 .* multiply the positions"):
        Region.of(sheet() * unit)


def look(region: Region, points) -> tuple[np.ndarray, np.ndarray]:
    points = tensor(points)
    ratio, label = region.look(points, region.nearest(points))
    return ratio.numpy(), label.numpy()


@pytest.mark.parametrize("n_dims", [1, 2, 10])
@pytest.mark.parametrize("n_neighbors", [5, 15])
def test_neighbors_agree_with_sklearn(n_dims: int, n_neighbors: int):
    rng = np.random.default_rng(0)
    cells, points = rng.normal(3.0, 1.0, (300, n_dims)), rng.normal(3.0, 1.5, (80, n_dims))
    region = Region.of(cells, n_neighbors=n_neighbors)
    found = np.sort(region.nearest(tensor(points)).numpy(), axis=1)
    expected = NearestNeighbors(n_neighbors=n_neighbors).fit(cells).kneighbors(points)[1]
    assert (found == np.sort(expected, axis=1)).mean() > 0.999  # float32 may turn a tie
    spacing = NearestNeighbors(n_neighbors=6).fit(cells).kneighbors(cells)[0][:, 5]
    np.testing.assert_allclose(region.spacing.numpy(), spacing, rtol=2e-3, atol=1e-4)
    assert region.typical_spacing == pytest.approx(np.median(spacing), rel=0.02)


def test_many_points_are_searched_in_pieces(monkeypatch):
    region, points = Region.of(sheet()), tensor(sheet(50, seed=1))
    whole = region.nearest(points)
    monkeypatch.setattr(region_module, "CHUNK_DISTANCES", 7 * 900)
    np.testing.assert_array_equal(np.sort(region.nearest(points)), np.sort(whole))


@pytest.mark.parametrize("n_dims", [2, 10])
def test_a_cell_is_at_about_one(n_dims: int):
    cells = np.random.default_rng(0).normal(size=(1000, n_dims))
    ratio, _ = look(Region.of(cells), cells)
    assert np.median(ratio) == pytest.approx(1.0, abs=0.15)
    assert np.quantile(ratio, 0.95) < 2
    between, _ = look(Region.of(cells), np.random.default_rng(1).normal(size=(1000, n_dims)))
    assert np.median(between) == pytest.approx(1.0, abs=0.2)


def test_the_ratio_grows_with_the_distance_and_not_with_the_scale():
    cells = np.random.default_rng(0).normal(size=(500, 4))
    way = tensor([1.0, 0.0, 0.0, 0.0])
    far = np.array([20.0, 40.0, 80.0, 160.0])
    ratio, _ = look(Region.of(cells), far[:, None] * way.numpy())
    distance = NearestNeighbors(n_neighbors=5).fit(cells).kneighbors(far[:, None] * way.numpy())[0][:, 4]
    assert (ratio / distance).std() < 0.05 * (ratio / distance).mean()
    assert (np.diff(ratio) > 0).all()
    for scale, shift in ((1e-3, 0.0), (1e3, 1e4)):
        again, _ = look(Region.of(cells * scale + shift), far[:, None] * way.numpy() * scale + shift)
        np.testing.assert_allclose(again, ratio, rtol=1e-3)


def test_the_spacing_is_that_of_the_cells_nearby():
    rng = np.random.default_rng(0)
    cells = np.concatenate([rng.normal(size=(400, 2)), rng.normal(size=(400, 2)) * 10 + [200, 0]])
    ratio, _ = look(Region.of(cells), [[0.0, 5.0], [200.0, 5.0]])
    assert ratio[0] > 3
    assert ratio[1] < 1.5


def test_most_of_the_neighbors_name_the_cluster_and_the_nearer_ones_settle_a_tie():
    cells = np.arange(10.0)[:, None]
    for labels, expected in (
        ([0] * 6 + [1] * 4, 0),
        ([0] * 4 + [1] * 6, 1),
        ([0] * 5 + [1] * 5, 0),
        ([1] * 5 + [0] * 5, 1),
        ([-1] * 6 + [1] * 4, -1),
        ([-1, 2, 2, 2, 0, 1, 1, 0, 0, 3], 2),
    ):
        _, label = look(Region.of(cells, labels=np.array(labels), n_neighbors=10), [[-3.0]])
        assert label.tolist() == [expected], labels


@pytest.mark.parametrize("n_neighbors", [15, 101, 251])
def test_one_vote_more_decides(n_neighbors: int):
    few = n_neighbors // 2
    labels = np.array([0] * few + [1] * (few + 1))
    _, label = look(Region.of(np.arange(float(n_neighbors))[:, None], labels=labels, n_neighbors=n_neighbors), [[-3.0]])
    assert label.tolist() == [1]


def test_without_clusters_there_is_none():
    assert look(Region.of(sheet()), [[1.0, 1.0]])[1].tolist() == [-1]


def test_what_is_no_number_is_outside():
    region = Region.of(sheet(), labels=np.zeros(900, int))
    points = np.array(
        [[np.nan, 1.0], [np.inf, 1.0], [1.0, -np.inf], [np.nan, np.nan], [1e30, 0.0], [1e200, 0.0], [5.0, 1.0]]
    )
    ratio, _ = look(region, points)
    assert (ratio[:6] > 1e6).all()
    assert not np.isnan(ratio).any()
    assert ratio[6] < 2
    near = NearestCells(region, 0.1)
    ids = torch.arange(7)
    for _ in range(2):
        assert near.of(tensor(points), ids).shape == (7, 15)


@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
def test_cells_on_the_same_spot(share: float):
    cells = sheet(400)
    cells[: int(share * 400)] = [5.0, 1.0]
    region = Region.of(cells, labels=np.zeros(400, int))
    ratio, label = look(region, [[5.0, 1.0], [100.0, 1.0]])
    assert np.isfinite(ratio[0])
    assert ratio[0] <= 1.1
    assert ratio[1] > 10
    assert label.tolist() == [0, 0]


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_fewer_cells_than_neighbors(n: int):
    cells = np.arange(2.0 * n).reshape(n, 2)
    region = Region.of(cells, np.arange(n) / n, np.zeros(n, int))
    assert region.n_neighbors == n
    ratio, label = look(region, cells)
    assert label.tolist() == [0] * n
    assert np.isfinite(ratio).all()
    around = region.around(tensor(cells), region.nearest(tensor(cells)))
    assert torch.isfinite(around.offset).all()
    np.testing.assert_allclose(around.weight.sum(1), 1, rtol=1e-5)


def test_a_sample_stands_for_many_cells(monkeypatch):
    cells = sheet(600)
    labels, time = (cells[:, 0] > 5).astype(int), cells[:, 0] / 10
    monkeypatch.setattr(region_module, "MAX_CELLS", 200)
    region, again, other = (Region.of(cells, time, labels, random_state=seed) for seed in (0, 0, 1))
    assert region.chosen.size == np.unique(region.chosen).size == 200
    np.testing.assert_array_equal(region.chosen, again.chosen)
    assert (region.chosen != other.chosen).any()
    np.testing.assert_allclose(region.cells.numpy() + cells.mean(0), cells[region.chosen], atol=1e-5)
    np.testing.assert_array_equal(region.time.numpy(), time[region.chosen])
    np.testing.assert_array_equal(region.labels.numpy(), labels[region.chosen])
    ratio, label = look(region, [[1.0, 1.0], [9.0, 1.0], [30.0, 1.0]])
    assert label.tolist() == [0, 1, 1]
    assert ratio[:2].max() < 2 < ratio[2]


def test_surroundings_agree_with_a_loop():
    rng = np.random.default_rng(0)
    cells, time, points = rng.normal(7.0, 1.0, (200, 3)), rng.random(200), rng.normal(7.0, 1.0, (6, 3))
    region = Region.of(cells, time)
    around = region.around(tensor(points), region.nearest(tensor(points)))
    factors = torch.randn((6, 15), generator=generator())
    moved = around.scatter(factors).numpy()
    covariance = around.scatter(torch.eye(15)[:6])  # factors of one cell each
    for i, point in enumerate(points):
        index = region.nearest(tensor(points))[i].numpy()
        distance = np.linalg.norm(cells[index] - point, axis=1)
        weight = np.exp(-0.5 * (distance / (0.5 * distance.max())) ** 2)
        weight /= weight.sum()
        mean = weight @ cells[index]
        np.testing.assert_allclose(around.offset[i], mean - point, atol=1e-4)
        assert float(around.time[i]) == pytest.approx(weight @ time[index], abs=1e-5)
        deviations = np.sqrt(weight)[:, None] * (cells[index] - mean)
        np.testing.assert_allclose(moved[i], factors[i].numpy() @ deviations, atol=1e-4)
        np.testing.assert_allclose(covariance[i], deviations[i], atol=1e-4)


def test_neighbors_that_are_always_searched_are_the_nearest():
    region, points = Region.of(sheet()), tensor(sheet(40, seed=1))
    fresh, lazy = NearestCells(region, 0.0), NearestCells(region, 0.5)
    ids = torch.arange(40)
    for shift in (0.0, 0.01, 0.3):
        at = points + shift
        np.testing.assert_array_equal(np.sort(fresh.of(at, ids)), np.sort(region.nearest(at)))
        some = torch.tensor([30, 3, 17])
        np.testing.assert_array_equal(np.sort(fresh.of(at[some], some)), np.sort(region.nearest(at[some])))
    first = lazy.of(points, ids)
    step = 0.49 * region.typical_spacing
    np.testing.assert_array_equal(lazy.of(points + tensor([step, 0.0]), ids), first)
    again = lazy.of(points + tensor([2 * step, 0.0]), ids)  # from where it was searched, not from where it was asked
    np.testing.assert_array_equal(np.sort(again), np.sort(region.nearest(points + tensor([2 * step, 0.0]))))


def test_a_walk_finds_the_nearest_cells_of_particles_that_move():
    rng = np.random.default_rng(0)
    shape = rng.normal(size=(2, 20))
    cells = rng.uniform(-3, 3, (3000, 2)) @ shape + rng.normal(size=(3000, 20))
    region = Region.of(cells)
    near, x, ids = NearestCells(region, 0.0), torch.tensor(cells[:2000]), torch.arange(2000)
    x[5] = torch.nan
    for _ in range(12):
        # Half of a spacing at random, and a part of the way back, as in a flow.
        x = x + 0.5 * region.typical_spacing * torch.tensor(rng.normal(size=x.shape)) / 20**0.5
        x = x + 0.5 * region.around(x, near.of(x, ids)).offset
        found, exact = near.of(x, ids).numpy(), region.nearest(x).numpy()
        kept = np.array([np.isin(*pair).mean() for pair in zip(exact, found, strict=True)])
        assert kept.mean() > 0.999
    # All particles in the first step; after that only the one without a place.
    assert near.n_compared == 2 * 2000 + 2 * 11


def test_a_walk_over_a_gap_finds_the_cells_on_the_other_side():
    cells = np.concatenate([sheet(1500), sheet(1500, seed=1) + [3.0, 0.0]])
    region, ids = Region.of(cells), torch.arange(1500)
    near, start = NearestCells(region, 0.0), tensor(cells[:1500])
    for way in (0.0, 0.01, 1.5, 2.4, 3.0):
        at = start + tensor([way, 0.0])
        found, exact = np.sort(near.of(at, ids)), np.sort(region.nearest(at))
        assert (found == exact).mean() > 0.999


def test_interpolation_follows_a_linear_field():
    cells = sheet(2000, (4.0, 4.0))
    velocity = cells @ np.array([[0.5, -1.0], [1.0, 0.3]]) + [1.0, 2.0]
    points = sheet(100, (3.0, 3.0), seed=1) + 0.5
    expected = points @ np.array([[0.5, -1.0], [1.0, 0.3]]) + [1.0, 2.0]
    found = Interpolated(cells, velocity).on("cpu")(tensor(points), torch.zeros(100)).numpy()
    np.testing.assert_allclose(found, expected, atol=0.12)
    assert np.abs(found - expected).mean() < 0.03


def test_interpolation_leaves_out_what_is_not_known():
    cells = sheet(600)
    velocity = np.ones_like(cells)
    velocity[::3, 1] = np.nan
    velocity[1::3] = 7.0
    velocity[1::3, 0] = np.inf
    found = Interpolated(cells, velocity).on("cpu")(tensor(cells), torch.zeros(600)).numpy()
    np.testing.assert_allclose(found, 1.0, rtol=1e-5)
    with pytest.raises(ValueError, match="cells with a velocity to interpolate between, found none"):
        Interpolated(cells, np.full_like(cells, np.nan)).on("cpu")


# ---------------------------------------------------------------------------------------- what moves a particle
def test_drift_forward_and_backward():
    velocity = Known(lambda x, time: 3 * x + time.unsqueeze(1))
    current = Known(lambda x, _time: x)
    x, time = tensor(POINTS), torch.full((5,), 0.3, dtype=torch.float64)
    v, c = 3 * POINTS + 0.3, POINTS
    for given, sign, expected in (
        (None, 1, v),
        (current, 1, v),
        (None, -1, -v),
        (current, -1, v - 2 * c),
    ):
        np.testing.assert_allclose(drift_of(velocity, given, sign, "cpu")(x, time, None), expected)


@pytest.mark.parametrize("confine", [0.25, 1.0])
@pytest.mark.parametrize("speed", [0.5, 4.0])
def test_a_particle_returns_by_the_factor_that_is_documented(confine: float, speed: float):
    line = np.stack([np.arange(0, 20, 0.1), np.zeros(200)], axis=1)
    region = Region.of(line)
    assert region.typical_spacing == pytest.approx(0.3, rel=0.01)
    options = MotionOptions(confine=confine, time_from="start")
    drift = confined(drift_of(constant(speed, 0.0), None, 1, "cpu"), NearestCells(region, 0.0), options)
    start = np.array([[8.0, 0.2], [8.0, -0.4]])
    n_spacings = 3
    found = follow(OdeStep(drift), start, 60, n_spacings * region.typical_spacing / speed / 60)
    np.testing.assert_allclose(found[:, 1], start[:, 1] * np.exp(-confine * n_spacings), rtol=1e-3)
    np.testing.assert_allclose(found[:, 0], 8 + 0.9, atol=0.1)


def test_confinement_is_switched_off_by_zero():
    plain = drift_of(constant(1.0, 0.0), None, 1, "cpu")
    near = NearestCells(Region.of(sheet()), 0.1)
    assert confined(plain, near, MotionOptions(confine=0.0, time_from="start")) is plain
    options = MotionOptions(confine=0.0, time_from="cells")
    asked = confined(plain, near, options)(tensor([[5.0, 1.0]]), torch.zeros(1), torch.tensor([0]))
    np.testing.assert_array_equal(asked, [[1.0, 0.0]])


@pytest.mark.parametrize(("time_from", "low", "high"), [("cells", 0.45, 0.55), ("start", 0.0, 0.0), ("path", 0.0, 0.0)])
def test_the_field_is_asked_at_the_time_of_the_cells_around(time_from: str, low: float, high: float):
    cells = sheet()
    seen = []
    field = Known(lambda x, time: (seen.append(time), torch.ones_like(x))[1])
    near = NearestCells(Region.of(cells, cells[:, 0] / 10), 0.0)
    args = tensor([[5.0, 1.0]]), torch.zeros(1, dtype=torch.float64), torch.tensor([0])
    drift = drift_of(field, None, 1, "cpu")
    options = FlowOptions(confine=0.5, diffusion=0.5, time_from=time_from, step_size=0.01)
    confined(drift, near, options)(*args)
    diffusing(drift, near, options)(*args)
    assert all(low <= float(time) <= high for time in seen)


def band(n: int = 1500, length: float = 30.0, n_dims: int = 2, seed: int = 0) -> np.ndarray:
    """Return cells along the first dimension, spread evenly over a cross-section of unit variance."""
    cells = 12**0.5 * (np.random.default_rng(seed).random((n, n_dims)) - 0.5)
    cells[:, 0] = np.random.default_rng(seed + 1).random(n) * length
    return cells


@pytest.mark.parametrize("diffusion", [0.5, 2.0])
def test_noise_keeps_the_spread_of_the_cells(diffusion: float):
    cells, speed, dt = band(), 10.0, 0.005
    near = NearestCells(Region.of(cells), 0.25)
    options = FlowOptions(diffusion=diffusion, confine=0.0, time_from="start", step_size=dt)
    coefficients = diffusing(drift_of(constant(speed, 0.0), None, 1, "cpu"), near, options)
    start = np.resize(cells[cells[:, 0] < 3], (300, 2))
    found = follow(SdeStep(coefficients, 15, generator()), start, 240, dt)
    assert found[:, 0].mean() == pytest.approx(start[:, 0].mean() + 12, abs=2)
    assert found[:, 1].mean() == pytest.approx(0, abs=0.3)
    assert found[:, 1].var() == pytest.approx(1.0, abs=0.25)

    # The noise alone, without the drift that goes with it, would spread them by far more.
    def alone(x, time, ids):
        _, spread = coefficients(x, time, ids)
        return tensor([[speed, 0.0]]).expand_as(x), spread

    assert follow(SdeStep(alone, 15, generator()), start, 240, dt)[:, 1].var() > 1.5


def test_noise_runs_along_the_data():
    flat = np.concatenate([sheet(1000, (10.0, 4.0)), np.zeros((1000, 1))], axis=1)
    near = NearestCells(Region.of(flat), 0.1)
    options = FlowOptions(diffusion=1.0, confine=0.0, time_from="start", step_size=0.005)
    coefficients = diffusing(drift_of(constant(2.0, 0.0, 0.0), None, 1, "cpu"), near, options)
    found = follow(SdeStep(coefficients, 15, generator()), np.tile([3.0, 2.0, 0.0], (200, 1)), 100, 0.005)
    assert found[:, 1].std() > 0.1
    np.testing.assert_allclose(found[:, 2], 0, atol=1e-5)


def test_noise_scales_with_the_speed():
    cells = sheet(1000, (10.0, 10.0))
    near = NearestCells(Region.of(cells), 0.0)
    x, ids, time = tensor(np.tile([[5.0, 5.0]], (3, 1))), torch.arange(3), torch.zeros(3)
    field = Known(lambda x, _time: tensor([[0.0, 0.0], [1.0, 0.0], [4.0, 0.0]]))
    options = FlowOptions(diffusion=0.5, confine=0.0, time_from="start", step_size=1e-3)
    _, spread = diffusing(drift_of(field, None, 1, "cpu"), near, options)(x, time, ids)
    size = spread(torch.ones((3, 15)) * torch.randn((1, 15), generator=generator())).norm(dim=1)
    assert float(size[0]) == 0
    assert float(size[2] / size[1]) == pytest.approx(2, rel=3e-3)  # the variance goes with the speed


def test_the_way_back_keeps_to_the_data_where_the_current_is_known():
    cells = band(800, 10.0)
    cells[:, 1] *= 0.3
    field = Known(lambda x, _time: torch.stack([torch.full_like(x[:, 0], 4.0), -12 * x[:, 1]], dim=1))
    current = constant(4.0, 0.0)
    starts = np.flatnonzero(cells[:, 0] > 9)
    options = {"direction": "backward", "confine": 0.0, "time_from": "start", "n_steps": 600}
    paths = {
        name: trajectories(field, cells, cells[:, 0] / 10, starts, current=given, **options)
        for name, given in (("with", current), ("without", None))
    }
    assert (paths["with"].ends[:, 0] < 0.6).mean() > 0.9  # came to the other end
    assert np.abs(paths["with"].ends[:, 1]).max() < 0.1
    assert (paths["without"].ends[:, 0] > 5).all()
    assert set(paths["without"].statuses) == {"left the data"}


# ------------------------------------------------------------------------------------------------ how paths end
THIRDS = np.array(["a", "b", "c"])


def run(
    field: Known, cells: np.ndarray, start, *, time=0.0, sign=1, targets=None, min_speed=0.0, **options
) -> Trajectories:
    """Move particles by Euler's method, with three clusters along the first dimension; speeds in units of the basis."""
    region = Region.of(cells, cells[:, 0] / 10, np.digitize(cells[:, 0], [4.0, 6.0]))
    start = np.atleast_2d(np.asarray(start, dtype=float))
    options = MotionOptions(**{"n_steps": 300, "step_size": 0.01, "time_from": "start", **options})
    motion = Motion(NearestCells(region, 0.0), options, min_speed, THIRDS, targets, sign)
    step = OdeStep(drift_of(field, None, sign, "cpu"), "euler")
    return move(motion, step, start, np.broadcast_to(time, len(start)), np.arange(len(start)))


@pytest.fixture(scope="module")
def cells() -> np.ndarray:
    return sheet()


@pytest.fixture(scope="module")
def spacing(cells: np.ndarray) -> float:
    return Region.of(cells).typical_spacing


def test_one_that_passes_through_the_target_ends_where_it_leaves_it(cells: np.ndarray, spacing: float):
    speed, step = 5.0, 0.05
    paths = run(constant(speed, 0.0), cells, [[1.0, 0.7], [2.0, 1.2]], targets=np.array([1]))
    assert paths.statuses == ["arrived"] * 2
    assert paths.end_cluster.tolist() == [1, 1]
    assert paths.start_cluster.tolist() == [0, 0]
    # The border between clusters of cells is sharp to their spacing; the crowd looks at every half of it.
    np.testing.assert_allclose(paths.ends[:, 0], 6.0, atol=(LOOK_EVERY + 1) * spacing + step)
    region = Region.of(cells, labels=np.digitize(cells[:, 0], [4.0, 6.0]))
    for path in paths.paths:
        _, label = look(region, path)
        assert label[-1] == 1
        assert (np.diff(label[: -round(spacing / step)]) >= 0).all()
        _, later = look(region, path[-1:] + [[LOOK_EVERY * spacing + step, 0.0]])
        assert later.tolist() == [2]


def test_one_that_stays_in_the_target_ends_there(cells: np.ndarray):
    sink = Known(lambda x, _time: 3 * (tensor([5.0, 1.0]) - x))
    paths = run(sink, cells, [[1.0, 0.7], [8.5, 1.2]], targets=np.array([1]), min_speed=0.3)
    assert paths.statuses == ["arrived"] * 2
    np.testing.assert_allclose(paths.ends, [[5.0, 1.0]] * 2, atol=0.05)
    late = run(sink, cells, [[1.0, 0.7]], targets=np.array([1]), n_steps=60)
    assert late.statuses == ["arrived"]  # in the target as the steps ran out
    assert late.lengths.tolist() == [61]


def test_only_targets_are_arrived_at(cells: np.ndarray):
    start = [[1.0, 0.7], [7.0, 1.2]]
    paths = run(constant(5.0, 0.0), cells, start, targets=np.array([1, 2]))
    assert paths.statuses == ["arrived"] * 2
    assert paths.end_cluster.tolist() == [1, 2]  # absorbed by the first, though the second lies behind it
    elsewhere = run(constant(-5.0, 0.0), cells, start, targets=np.array([2]))
    assert elsewhere.statuses == ["left the data", "arrived"]  # one that starts there has arrived
    assert elsewhere.ends[1, 0] == pytest.approx(6.0, abs=0.5)


def test_one_that_converges_stalls_at_the_sink(cells: np.ndarray, spacing: float):
    sink = Known(lambda x, _time: 4 * (tensor([7.0, 1.0]) - x))
    paths = run(sink, cells, [[5.0, 0.5], [8.8, 1.5]], min_speed=0.4)
    assert paths.statuses == ["stalled at a sink"] * 2
    np.testing.assert_allclose(paths.ends, [[7.0, 1.0]] * 2, atol=LOOK_EVERY * spacing)
    assert (paths.lengths < 301).all()
    assert run(sink, cells, [[5.0, 0.5]], min_speed=0.0).statuses == ["ran out of steps"]


@pytest.mark.parametrize(("radius", "status"), [(0.2, "stalled at a sink"), (2.0, "ran out of steps")])
def test_one_that_goes_in_a_small_circle_stalls(cells: np.ndarray, spacing: float, radius: float, status: str):
    turn = Known(lambda x, _time: (x - tensor([5.0, 1.0])) @ tensor([[0.0, 3.0], [-3.0, 0.0]]))
    start = [[5.0 + radius * spacing, 1.0]]
    paths = run(turn, cells, start, min_speed=0.1, step_size=0.002, n_steps=1500)
    assert paths.statuses == [status]
    np.testing.assert_allclose(paths.ends, [[5.0, 1.0]], atol=1.3 * radius * spacing)


def test_one_slower_than_the_limit_stalls_and_one_faster_does_not(cells: np.ndarray):
    for speed, status in ((0.45, "stalled at a sink"), (0.55, "ran out of steps")):
        paths = run(constant(speed, 0.0), cells, [[2.0, 1.0]], min_speed=0.5)
        assert paths.statuses == [status], speed


@pytest.mark.parametrize("sign", [1, -1])
def test_one_that_runs_off_ends_where_it_was_last_among_the_data(cells: np.ndarray, spacing: float, sign: int):
    start = np.array([[3.0, 0.5], [6.0, 1.0]])
    paths = run(constant(5.0, 0.0), cells, start, sign=sign)
    assert paths.statuses == ["left the data"] * 2
    assert paths.end_cluster.tolist() == ([2, 2] if sign > 0 else [0, 0])
    assert paths.direction.tolist() == [sign] * 2
    region = Region.of(cells)
    assert look(region, paths.ends)[0].max() <= MAX_DISTANCE
    assert look(region, paths.x)[0].max() <= 1.1 * MAX_DISTANCE
    beyond = paths.ends + sign * np.array([LOOK_EVERY * spacing + 0.05, 0.0])
    assert look(region, beyond)[0].min() > MAX_DISTANCE
    for path, first in zip(paths.paths, start, strict=True):
        np.testing.assert_allclose(path, first + sign * 0.05 * np.arange(len(path))[:, None] * [1.0, 0.0], atol=1e-12)


def test_the_edge_is_where_the_limit_puts_it(cells: np.ndarray):
    ends = [run(constant(5.0, 0.0), cells, [[6.0, 1.0]], max_distance=limit).ends[0, 0] for limit in (1.5, 3.0, 10.0)]
    assert ends[0] < ends[1] < ends[2]
    assert ends[2] > 11
    assert run(constant(5.0, 0.0), cells, [[6.0, 1.0]], max_distance=1e6).statuses == ["ran out of steps"]


def test_one_that_is_still_on_its_way_runs_out_of_steps(cells: np.ndarray):
    paths = run(constant(1.0, 0.0), cells, [[1.0, 1.0]], n_steps=37)
    assert paths.statuses == ["ran out of steps"]
    assert paths.lengths.tolist() == [38]
    np.testing.assert_allclose(paths.x[:, 0], 1 + 0.01 * np.arange(38), rtol=1e-12)


@pytest.mark.parametrize(("sign", "end"), [(1, 1.0), (-1, 0.0)])
def test_one_that_comes_to_the_end_of_time_ends_there_exactly(cells: np.ndarray, sign: int, end: float):
    time = np.array([0.83, 0.3, 0.5, end])
    start = np.tile([5.0, 1.0], (4, 1))
    paths = run(constant(1.0, 0.0), cells, start, sign=sign, time_from="path", time=time, step_size=0.04)
    assert set(paths.statuses) == {"came to the end of time"}
    for path, times, first in zip(paths.paths, paths.times, time, strict=True):
        assert times[0] == first
        assert times[-1] == pytest.approx(end, abs=1e-14)
        np.testing.assert_allclose(np.diff(times)[:-1], sign * 0.04, rtol=1e-9)
        assert len(path) == max(np.ceil(abs(end - first) / 0.04 - 1e-9), 1) + 1
        np.testing.assert_allclose(path[:, 0] - 5, times - first, atol=1e-12)  # at the speed of one


@pytest.mark.parametrize("time_from", ["start", "path"])
def test_time_stands_or_goes_along(cells: np.ndarray, time_from: str):
    seen = []
    field = Known(lambda x, time: (seen.append(time.clone()), torch.ones_like(x))[1])
    paths = run(field, cells, [[2.0, 1.0]], n_steps=10, time=0.25, time_from=time_from)
    expected = 0.25 + 0.01 * np.arange(11) * (time_from == "path")
    np.testing.assert_allclose(paths.time, expected, rtol=1e-12)
    np.testing.assert_allclose(torch.cat(seen), expected[:-1], rtol=1e-12)


def test_time_of_the_cells_is_that_of_the_cells_around(cells: np.ndarray):
    paths = run(constant(2.0, 0.0), cells, [[2.0, 1.0]], time_from="cells")
    inner = (paths.x[:, 0] > 0.5) & (paths.x[:, 0] < 9.5)
    np.testing.assert_allclose(paths.time[inner], paths.x[inner, 0] / 10, atol=0.02)


SEVERAL = [[1.0, 0.7], [4.0, 1.2], [8.0, 0.5], [5.5, 1.0]]


@pytest.mark.parametrize("save_every", [2, 7, 50, 1000])
@pytest.mark.parametrize(
    ("field", "options"),
    [
        (constant(5.0, 0.0), {}),
        (constant(5.0, 0.0), {"targets": np.array([1])}),
        (Known(lambda x, _time: 3 * (tensor([5.0, 1.0]) - x)), {"min_speed": 0.3}),
        (constant(0.3, 0.1), {"n_steps": 35}),
        (constant(1.0, 0.0), {"time_from": "path", "time": np.array([0.1, 0.95, 0.5, 0.777])}),
    ],
    ids=["leaves", "arrives", "stalls", "runs out", "end of time"],
)
def test_a_thinner_path_has_some_of_the_points_and_the_last(cells: np.ndarray, save_every: int, field, options):
    every = run(field, cells, SEVERAL, **options)
    some = run(field, cells, SEVERAL, save_every=save_every, **options)
    np.testing.assert_array_equal(some.status, every.status)
    np.testing.assert_array_equal(some.end_cluster, every.end_cluster)
    for i, path in enumerate(every.paths):
        last = len(path) - 1
        kept = [*range(0, last, save_every), last]
        np.testing.assert_array_equal(some.paths[i], path[kept])
        np.testing.assert_array_equal(some.times[i], every.times[i][kept])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", [*METHODS, "noisy"])
def test_one_that_is_no_longer_anywhere_has_left_the_data(cells: np.ndarray, bad: float, method: str):
    field = Known(lambda x, _time: torch.where(x > 5, bad, tensor([4.0, 0.0])))
    starts = np.concatenate([np.flatnonzero(cells[:, 0] < 1), np.flatnonzero((cells[:, 0] > 4) & (cells[:, 0] < 5))])
    options = {"min_speed": 0.0, "n_steps": 80, "max_distance": 3.0}
    if method == "noisy":
        paths = let_flow(field, cells, cells[:, 0] / 10, starts, n_particles=30, **options)
    else:
        paths = trajectories(field, cells, cells[:, 0] / 10, starts, n_trajectories=30, method=method, **options)
    assert np.isfinite(paths.x).all()
    assert np.isfinite(paths.time).all()
    left = paths.status == Status.LEFT_DATA
    assert (left == (cells[paths.start_ix, 0] > 2)).mean() > 0.9  # who started near came to it, and no one else
    assert paths.x[:, 0].max() < 5.3


def test_no_limit_takes_what_is_no_number_for_the_data(cells: np.ndarray):
    field = Known(lambda x, _time: torch.where(x > 5, torch.nan, tensor([4.0, 0.0])))
    paths = run(field, cells, SEVERAL, max_distance=1e30)
    assert paths.statuses == ["left the data"] * 4
    assert np.isfinite(paths.x).all()


def test_whoever_ends_does_not_disturb_the_others(cells: np.ndarray):
    field = Known(lambda x, _time: torch.stack([3 + x[:, 1], torch.sin(x[:, 0])], dim=1))
    together = run(field, cells, SEVERAL)
    for i, start in enumerate(SEVERAL):
        alone = run(field, cells, start)
        np.testing.assert_allclose(together.paths[i], alone.paths[0], rtol=1e-4, atol=1e-4)  # neighbours are float32
        assert together.status[i] == alone.status[0]


# ------------------------------------------------------------------------------------------------- trajectories
@dataclass(frozen=True)
class Strip:
    """Cells of a sheet, which all move along its first dimension at speed 8."""

    x: np.ndarray
    time: np.ndarray
    clusters: np.ndarray
    field: Known

    def compute(self, starts=None, **options) -> Trajectories:
        starts = np.flatnonzero(self.clusters == "a") if starts is None else starts
        field = options.pop("field", self.field)
        return trajectories(field, self.x, self.time, starts, **{"clusters": self.clusters, **options})

    def flow(self, starts=None, **options) -> Trajectories:
        starts = np.flatnonzero(self.clusters == "a") if starts is None else starts
        field = options.pop("field", self.field)
        return let_flow(field, self.x, self.time, starts, **{"clusters": self.clusters, **options})


@pytest.fixture(scope="module")
def strip(cells: np.ndarray) -> Strip:
    return Strip(cells, cells[:, 0] / 10, THIRDS[np.digitize(cells[:, 0], [4.0, 6.0])], constant(8.0, 0.0))


def test_starts_are_drawn_from_those_given(strip: Strip):
    starts = np.flatnonzero(strip.clusters == "a")
    paths = strip.compute(np.tile(starts, 3), n_trajectories=25, n_steps=3)
    assert len(paths) == paths.n_tried == 25
    assert np.unique(paths.start_ix).size == 25
    assert np.isin(paths.start_ix, starts).all()
    assert (np.diff(paths.start_ix) < 0).any()  # in no order
    np.testing.assert_array_equal(paths.starts, strip.x[paths.start_ix])
    np.testing.assert_array_equal(paths.ids, np.arange(25))
    backward = strip.compute(starts[::-1], n_trajectories=25, n_steps=3)
    np.testing.assert_array_equal(backward.start_ix, paths.start_ix)


def test_fewer_starts_than_trajectories_are_all_taken(strip: Strip, caplog):
    with caplog.at_level(logging.INFO, logger="cellrank_velot"):
        paths = strip.compute([3, 7, 7, 11], n_steps=3)
    assert sorted(paths.start_ix) == [3, 7, 11]
    assert "Only 3 cells to start from" in caplog.text


def test_both_directions_give_two_from_each_start(strip: Strip):
    paths = strip.compute(direction="both", n_trajectories=6, n_steps=20, confine=0.0)
    assert len(paths) == paths.n_tried == 12
    np.testing.assert_array_equal(paths.direction, [1] * 6 + [-1] * 6)
    np.testing.assert_array_equal(paths.start_ix[:6], paths.start_ix[6:])
    np.testing.assert_array_equal(paths.ids, np.arange(12))
    gone = (paths.ends - paths.starts)[:, 0]
    assert (gone[:6] > 0).all()
    assert (gone[6:] <= 0).all()
    for sign, name in ((1, "forward"), (-1, "backward")):
        one = strip.compute(direction=name, n_trajectories=6, n_steps=20, confine=0.0)
        part = paths.select(paths.direction == sign)
        np.testing.assert_array_equal(part.x, one.x)
        np.testing.assert_array_equal(part.status, one.status)


def halves(strip: Strip) -> Known:
    """Return a field that leads the upper half of the cells forward, and the lower one backward."""
    return Known(lambda x, _time: torch.where(x[:, 1:] > 1, tensor([[8.0, 0.0]]), tensor([[-8.0, 0.0]])))


@pytest.mark.parametrize(("target", "clusters"), [("b", {1}), (["b"], {1}), (["b", "c"], {1}), (("c",), {2})])
def test_only_those_that_arrive_are_kept(strip: Strip, target, clusters, caplog):
    with caplog.at_level(logging.INFO, logger="cellrank_velot"):
        paths = strip.compute(field=halves(strip), target_cluster=target, n_trajectories=10, max_attempts_factor=4)
    assert len(paths) == 10
    assert paths.n_tried == 40
    assert set(paths.statuses) == {"arrived"}
    assert set(paths.end_cluster) == clusters
    assert (paths.starts[:, 1] > 0.8).all()  # the others went the other way
    np.testing.assert_array_equal(paths.ids, np.arange(10))
    (record,) = caplog.records
    n_arrived = int(record.getMessage().split(" of ")[0])
    assert record.levelno == logging.INFO
    assert record.getMessage() == f"{n_arrived} of 40 forward trajectories arrived at {target!r}"
    assert 10 <= n_arrived <= 30


def test_too_few_arrivals_are_warned_of(strip: Strip, caplog):
    with caplog.at_level(logging.INFO, logger="cellrank_velot"):
        paths = strip.compute(field=halves(strip), target_cluster="c", n_trajectories=30, max_attempts_factor=1)
    assert 0 < len(paths) < 30
    assert paths.n_tried == 30
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"{len(paths)} of 30 forward trajectories arrived at 'c'"


def test_arrivals_in_both_directions(strip: Strip, caplog):
    starts = np.flatnonzero(strip.clusters == "b")
    with caplog.at_level(logging.INFO, logger="cellrank_velot"):
        paths = strip.compute(starts, direction="both", target_cluster=["a", "c"], n_trajectories=5)
    assert [record.getMessage().split()[3] for record in caplog.records] == ["forward", "backward"]
    np.testing.assert_array_equal(paths.ids, np.arange(10))
    np.testing.assert_array_equal(paths.end_cluster, np.where(paths.direction > 0, 2, 0))
    assert paths.n_tried == 100


def test_no_arrivals_are_an_empty_result(strip: Strip, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="cellrank_velot"):
        paths = strip.compute(field=constant(-8.0, 0.0), target_cluster="c", n_trajectories=5)
    assert "0 of 50 forward trajectories arrived at 'c'" in caplog.text
    assert len(paths) == 0
    assert paths.n_tried == 50
    assert paths.n_dims == 2
    assert paths.paths == []
    assert len(paths.to_frame()) == len(paths.points_to_frame()) == 0
    assert paths.fates(["b", "c"])["n_particles"].tolist() == [0, 0, 0]
    adata = AnnData(np.zeros((900, 1), dtype=np.float32))
    storage.write_trajectories(adata, "paths", paths)
    adata.write_h5ad(tmp_path / "paths.h5ad")
    assert len(storage.read_trajectories(adata, "paths")) == 0


def test_targets_must_be_known(strip: Strip):
    with pytest.raises(KeyError, match=r"`clusters\['top'\]`, found the keys \['a', 'b', 'c'\]"):
        strip.compute(target_cluster="top")
    with pytest.raises(KeyError, match=r"`clusters\['top'\]`"):
        strip.flow(terminal_clusters=["a", "top"])
    for target in ([], ()):
        with pytest.raises(ValueError, match="at least one target cluster, found none"):
            strip.compute(target_cluster=target)
    with pytest.raises(ValueError, match="`clusters` where there is a target cluster"):
        strip.compute(target_cluster="a", clusters=None)


def test_clusters_and_starts_must_fit(strip: Strip):
    for run_it in (strip.compute, strip.flow):
        with pytest.raises(ValueError, match="a cluster for each of the `900` cells, found `899`"):
            run_it(clusters=strip.clusters[:-1])
        with pytest.raises(ValueError, match="cells to start from, found none"):
            run_it([])
        with pytest.raises(ValueError, match=r"`starts` in \[0, 899\], found `900` to `900`"):
            run_it([900])
        with pytest.raises(ValueError, match="found `-1`"):
            run_it([-1, 3])
        with pytest.raises(TypeError, match="positions of cells, found `bool`"):
            run_it(np.ones(900, dtype=bool))
        with pytest.raises(TypeError, match="positions of cells, found `float64`"):
            run_it([0.5])


def test_cells_without_a_cluster(strip: Strip):
    clusters = np.where(strip.clusters == "b", None, strip.clusters)
    sink = Known(lambda x, _time: 5 * (tensor([5.0, 1.0]) - x))
    paths = strip.compute(clusters=clusters, n_trajectories=4, field=sink)
    assert paths.clusters.tolist() == ["a", "c"]
    assert set(paths.end_cluster) == {-1}
    assert paths.to_frame()["end_cluster"].isna().all()
    without = strip.compute(clusters=None, n_trajectories=4, n_steps=5)
    assert without.clusters.size == 0
    assert without.fates()["n_particles"].tolist() == [4]


BOTH_OPTIONS = [
    ("n_steps", 0, ValueError, "`n_steps` to be at least `1`"),
    ("n_steps", 2.5, TypeError, "`n_steps` to be an integer"),
    ("step_size", 0.0, ValueError, r"`step_size` to be in \(0, 1\]"),
    ("step_size", 1.1, ValueError, r"`step_size` to be in \(0, 1\]"),
    ("step_size", "big", TypeError, "`step_size` to be a number"),
    ("save_every", 0, ValueError, "`save_every` to be at least `1`"),
    ("time_from", "now", ValueError, "`time_from` to be one of"),
    ("confine", -0.1, ValueError, r"`confine` to be in \[0, inf\)"),
    ("max_distance", 0.9, ValueError, r"`max_distance` to be in \[1, inf\)"),
    ("max_distance", np.inf, ValueError, r"`max_distance` to be in \[1, inf\)"),
    ("min_speed", -1, ValueError, "`min_speed` to be in"),
    ("min_speed", np.nan, ValueError, "`min_speed` to be in"),
    ("n_neighbors", 0, ValueError, "`n_neighbors` to be at least `1`"),
    ("random_state", -1, ValueError, "`random_state` to be at least `0`"),
    ("direction", "sideways", ValueError, "`direction` to be one of"),
    ("device", "abacus", ValueError, "`device` to be 'auto'"),
    ("device", 0, TypeError, "`device` to be a name"),
]


@pytest.mark.parametrize(
    ("name", "value", "error", "match"),
    [
        *BOTH_OPTIONS,
        ("method", "heun", ValueError, "`method` to be one of"),
        ("n_trajectories", 0, ValueError, "`n_trajectories` to be at least `1`"),
        ("n_trajectories", True, TypeError, "`n_trajectories` to be an integer"),
        ("max_attempts_factor", 0, ValueError, "`max_attempts_factor` to be at least `1`"),
        ("rtol", 0.0, ValueError, r"`rtol` to be in \(0, inf\)"),
        ("atol", -1e-3, ValueError, r"`atol` to be in \(0, inf\)"),
    ],
)
def test_options_of_trajectories_out_of_range(strip: Strip, name: str, value, error, match: str):
    with pytest.raises(error, match=match):
        strip.compute(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "error", "match"),
    [
        *BOTH_OPTIONS,
        ("n_particles", 0, ValueError, "`n_particles` to be at least `1`"),
        ("diffusion", -0.5, ValueError, r"`diffusion` to be in \[0, inf\)"),
        ("noise_scale", -0.5, ValueError, r"`noise_scale` to be in \[0, inf\)"),
        ("noise_scale", None, TypeError, "`noise_scale` to be a number"),
    ],
)
def test_options_of_flow_out_of_range(strip: Strip, name: str, value, error, match: str):
    with pytest.raises(error, match=match):
        strip.flow(**{name: value})


def assert_same(first: Trajectories, second: Trajectories) -> None:
    for name, value in first.to_dict().items():
        np.testing.assert_array_equal(value, getattr(second, name), err_msg=name)


def test_same_seed_same_trajectories(strip: Strip):
    options = {"n_trajectories": 8, "n_steps": 40}
    first = strip.compute(**options)
    assert_same(first, strip.compute(**options))
    assert (strip.compute(random_state=1, **options).start_ix != first.start_ix).any()


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("time_from", ["cells", "path", "start"])
def test_paths_of_a_known_field_are_its_solution(method: str, time_from: str):
    cells = sheet(800, (6.0, 6.0)) - 3
    time = np.full(800, 0.2)
    factor = 2.0 if time_from == "path" else 1.0  # the rotation speeds up with time
    field = Known(lambda x, t: (1 + (factor - 1) * t.unsqueeze(1)) * (x @ tensor([[0.0, 2.0], [-2.0, 0.0]])))
    starts = np.flatnonzero((np.linalg.norm(cells, axis=1) > 1) & (np.linalg.norm(cells, axis=1) < 2))
    paths = trajectories(
        field, cells, time, starts, method=method, time_from=time_from, confine=0.0, n_steps=150, rtol=1e-7, atol=1e-9,
        max_distance=5.0, step_size=0.005,
    )  # fmt: skip
    for path, times in zip(paths.paths, paths.times, strict=True):
        assert len(path) == 151
        s = 0.005 * np.arange(151)
        angle = 2 * s + (2 * (0.2 * s + s**2 / 2) if time_from == "path" else 0.0)
        turned = np.stack([np.cos(angle) * path[0, 0] - np.sin(angle) * path[0, 1],
                           np.sin(angle) * path[0, 0] + np.cos(angle) * path[0, 1]], axis=1)  # fmt: skip
        np.testing.assert_allclose(path, turned, atol=2e-6)
        np.testing.assert_allclose(times, 0.2 + s * (time_from == "path"), atol=1e-6)


def test_rotated_cells_have_rotated_paths(planted):
    turn = ortho_group.rvs(5, random_state=0)
    starts = np.flatnonzero(planted.time < 0.2)
    options = {"clusters": planted.labels, "n_steps": 200, "n_trajectories": 15}
    plain, turned = (
        trajectories(Interpolated(planted.x @ q, planted.velocity @ q), planted.x @ q, planted.time, starts, **options)
        for q in (np.eye(5), turn)
    )
    np.testing.assert_array_equal(turned.start_ix, plain.start_ix)
    np.testing.assert_array_equal(turned.end_cluster, plain.end_cluster)
    for there, here in zip(turned.paths, plain.paths, strict=True):
        n = min(len(there), len(here))
        assert n > 0.9 * max(len(there), len(here))
        np.testing.assert_allclose(there[:n], here[:n] @ turn, atol=0.02)
    assert (plain.lengths > 100).mean() > 0.8


def test_the_planted_stem_leads_to_either_fate_and_back(planted):
    names = np.array(["stem", "left", "right"])[planted.labels]
    field = Interpolated(planted.x, planted.velocity)
    forward = trajectories(field, planted.x, planted.time, np.flatnonzero(planted.time < 0.2), clusters=names)
    ended = forward.to_frame()["end_cluster"]
    assert (ended != "stem").all()
    backward = trajectories(
        field, planted.x, planted.time, np.flatnonzero(planted.time > 0.9), clusters=names, direction="backward"
    ).to_frame()
    assert (backward["end_cluster"] == "stem").all()
    assert (backward["end_time"] < 0.15).mean() > 0.8


# --------------------------------------------------------------------------------------------------------- flow
def test_flow_without_diffusion_is_eulers_method(strip: Strip):
    field = Known(lambda x, time: torch.stack([8 + 0 * x[:, 0], torch.sin(x[:, 0]) + time], dim=1))
    starts = np.flatnonzero(strip.x[:, 0] < 1)
    for options in ({"time_from": "start"}, {"time_from": "path"}):
        options |= {"confine": 0.0, "field": field, "n_steps": 60}
        flow = strip.flow(starts, diffusion=0.0, n_particles=starts.size, **options)
        paths = strip.compute(starts, method="euler", n_trajectories=starts.size, **options)
        assert sorted(flow.start_ix) == sorted(paths.start_ix)
        for number, start in zip(flow.ids, flow.start_ix, strict=True):
            one, other = flow.select([number]), paths.select(paths.start_ix == start)
            n = min(one.lengths[0], other.lengths[0])
            assert n > 10
            np.testing.assert_allclose(one.x[:n], other.x[:n], rtol=1e-12)
            np.testing.assert_allclose(one.time[:n], other.time[:n], rtol=1e-12)
    assert_same(flow, strip.flow(starts, diffusion=0.0, n_particles=starts.size, **options))


def test_confined_flow_without_diffusion_is_close_to_a_trajectory(strip: Strip):
    starts = np.flatnonzero(strip.x[:, 0] < 1)[:20]
    flow = strip.flow(starts, diffusion=0.0, n_particles=20, n_steps=100)
    paths = strip.compute(starts, method="euler", n_steps=100)
    ends = {path.start_ix[0]: path.ends[0] for path in (paths.select([i]) for i in paths.ids)}
    away = [np.linalg.norm(end - ends[start]) for end, start in zip(flow.ends, flow.start_ix, strict=True)]
    assert np.median(away) < Region.of(strip.x).typical_spacing


def test_a_seed_is_a_flow(strip: Strip):
    options = {"n_particles": 12, "n_steps": 25, "noise_scale": 0.5}
    first = strip.flow([5], **options)
    assert_same(first, strip.flow([5], **options))
    other = strip.flow([5], random_state=1, **options)
    assert (first.starts != other.starts).any(axis=1).all()
    assert np.unique(first.ends, axis=0).shape[0] == 12


def test_particles_are_spread_evenly_over_the_starts(strip: Strip):
    starts = np.flatnonzero(strip.clusters == "a")[:7]
    flow = strip.flow(np.tile(starts, 2), n_particles=30, n_steps=2)
    number, count = np.unique(flow.start_ix, return_counts=True)
    np.testing.assert_array_equal(number, starts)
    assert set(count) == {4, 5}
    np.testing.assert_array_equal(flow.starts, strip.x[flow.start_ix])
    few = strip.flow(n_particles=9, n_steps=2)
    assert np.unique(few.start_ix).size == 9


@pytest.mark.parametrize("noise_scale", [0.3, 2.0])
@pytest.mark.parametrize("n_dims", [2, 10])
def test_noise_on_the_start_has_the_length_that_is_documented(noise_scale: float, n_dims: int):
    cells = np.random.default_rng(0).normal(size=(500, n_dims))
    flow = let_flow(
        constant(*np.ones(n_dims)), cells, np.zeros(500), [3, 8], noise_scale=noise_scale, n_particles=4000, n_steps=1
    )
    moved = flow.starts - cells[flow.start_ix]
    length = np.sqrt((moved**2).sum(1).mean())
    assert length == pytest.approx(noise_scale * Region.of(cells).typical_spacing, rel=0.05)
    np.testing.assert_allclose(moved.mean(0), 0, atol=5 * length / (4000 * n_dims) ** 0.5)


def test_flow_in_both_directions(strip: Strip):
    flow = strip.flow(np.flatnonzero(strip.clusters == "b"), direction="both", n_particles=20, diffusion=0.2)
    assert len(flow) == 40
    np.testing.assert_array_equal(flow.direction, [1] * 20 + [-1] * 20)
    np.testing.assert_array_equal(flow.start_ix[:20], flow.start_ix[20:])
    assert (flow.end_cluster == np.where(flow.direction > 0, 2, 0)).mean() > 0.9


def test_flow_ends_in_the_terminal_clusters(strip: Strip):
    flow = strip.flow(terminal_clusters="b", n_particles=60)
    fates = flow.fates(["b"])
    assert fates.loc["b", "n_particles"] == (flow.status == Status.ARRIVED).sum() > 50
    assert set(flow.end_cluster[flow.status == Status.ARRIVED]) == {1}
    beyond = strip.flow(n_particles=60).fates()
    assert beyond.loc["c", "share"] > 0.8  # without terminal clusters they go on


def test_a_flow_goes_on_until_all_have_ended(strip: Strip, caplog):
    # Particles are driven back from either side as fast as they came, so that noise never dies down.
    ridge = Known(lambda x, _time: 8.0 * torch.stack([torch.sign(7.0 - x[:, 0]), 1.0 - x[:, 1]], dim=1))
    few = {"n_particles": 60, "step_size": 0.005, "field": ridge}
    flow = strip.flow(np.flatnonzero(strip.time < 0.2), **few)
    assert flow.statuses == ["stalled at a sink"] * 60
    assert not flow.without_fate.any()
    assert (np.abs(flow.ends[:, 0] - 7.0) < 1.0).sum() >= 58  # the others rest in a clump of cells on the way
    assert flow.lengths.max() < 1000
    assert "no fate" not in caplog.text
    short = strip.flow(np.flatnonzero(strip.time < 0.2), n_steps=60, **few)
    assert short.without_fate.all()
    assert "60 of 60 particles came to no fate: 60 ran out of steps" in caplog.text
    assert repr(short).endswith("without a fate: 60]")
    restless = strip.flow(np.flatnonzero(strip.time < 0.2), n_steps=700, min_speed=0.0, **few)
    assert (restless.status == Status.OUT_OF_STEPS).all()


def test_a_run_without_a_number_of_steps_is_bounded():
    assert FlowOptions().most_steps == TrajectoryOptions().most_steps == 1000
    assert FlowOptions(n_steps=7).most_steps == 7
    assert FlowOptions(min_speed=0.05, step_size=0.02).most_steps == 1000
    assert FlowOptions(min_speed=0.0).most_steps == 10_000
    assert FlowOptions(time_from="path").most_steps == 101


@pytest.fixture(scope="module")
def fork() -> Strip:
    """Return cells of a stem that splits, each with its mirror image, in two dimensions."""
    rng = np.random.default_rng(0)
    time = rng.random(450)
    x = rng.normal(scale=0.25, size=(450, 2))
    x[:, 0] += 8 * time
    x[:, 1] += 5 * np.maximum(time - 0.5, 0)
    velocity = np.stack([np.full(450, 8.0), 5.0 * (time > 0.5)], axis=1)
    mirror = np.array([1.0, -1.0])
    x, velocity, time = np.concatenate([x, x * mirror]), np.concatenate([velocity, velocity * mirror]), np.tile(time, 2)
    side = np.repeat(["up", "down"], 450)
    return Strip(x, time, np.where(time < 0.6, "stem", side), Interpolated(x, velocity))


def test_a_symmetric_fork_leads_to_either_fate_alike(fork: Strip):
    flow = fork.flow(np.flatnonzero(fork.time < 0.15), terminal_clusters=["up", "down"], diffusion=1.0)
    fates = flow.fates(["up", "down"], level=0.99)
    assert fates.loc[["up", "down"], "n_particles"].sum() > 180
    for name in ("up", "down"):
        assert fates.loc[name, "low"] < 0.5 < fates.loc[name, "high"]
    assert fates["n_particles"].sum() == len(flow) == 200
    assert fates["share"].sum() == pytest.approx(1)
    assert fates.loc[NO_FATE, "n_particles"] == 200 - fates.loc[["up", "down"], "n_particles"].sum()
    wide, narrow = ((f["high"] - f["low"]).iloc[0] for f in (fates, flow.fates(["up", "down"], level=0.5)))
    assert wide > 2 * narrow


def test_a_start_in_a_branch_stays_in_it(fork: Strip):
    starts = np.flatnonzero((fork.clusters == "up") & (fork.time > 0.7) & (fork.time < 0.8))
    fates = fork.flow(starts, diffusion=0.5, n_particles=100).fates(["up", "down"])
    assert fates.loc["up", "probability"] > 0.97


# ------------------------------------------------------------------------------- simulated cells and their field
@pytest.fixture(scope="module")
def simulated() -> tuple[OTVelocityKernel, np.ndarray]:
    adata = datasets.bifurcation(n_cells=600)
    kernel = OTVelocityKernel(adata, cluster_key="clusters").fit_field(show_progress_bar=False)
    return kernel, adata.obs["clusters"].astype(str).to_numpy()


def on_cells(simulated, starts, **options) -> Trajectories:
    kernel, clusters = simulated
    ix = np.flatnonzero(np.isin(clusters, starts))
    cells = kernel.cells
    return trajectories(
        kernel.field,
        cells.x,
        cells.time,
        ix,
        clusters=clusters,
        n_trajectories=40,
        n_steps=150,
        step_size=0.01,
        **options,
    )


def test_simulated_fates_lead_back_to_the_progenitor(simulated):
    kernel, _ = simulated
    cells, current = kernel.cells, kernel.current_field(show_progress_bar=False)
    paths = on_cells(simulated, ["Fate A", "Fate B"], direction="backward", current=current)
    frame = paths.to_frame()
    assert frame["end_cluster"].isin(["Progenitor", "Transition"]).mean() >= 0.8
    assert (frame["end_time"] < frame["start_time"]).mean() >= 0.9
    assert look(Region.of(cells.x), paths.ends)[0].max() <= 1.1 * MAX_DISTANCE


def test_simulated_progenitors_come_to_a_fate(simulated):
    paths = on_cells(simulated, ["Progenitor"])
    frame = paths.to_frame()
    assert frame["end_cluster"].isin(["Fate A", "Fate B"]).mean() > 0.5
    assert (frame["end_time"] > frame["start_time"]).mean() > 0.8
    assert look(Region.of(simulated[0].cells.x), paths.x)[0].max() <= 1.1 * MAX_DISTANCE


def test_simulated_flow_ends_where_it_comes_to_rest(simulated):
    kernel, clusters = simulated
    cells, starts = kernel.cells, np.flatnonzero(clusters == "Progenitor")
    given = {"clusters": clusters, "n_particles": 60, "random_state": 1}
    flow = let_flow(kernel.field, cells.x, cells.time, starts, **given)
    assert flow.without_fate.sum() <= 3
    assert (flow.status == Status.STALLED).sum() >= 57
    assert flow.fates().loc[["Fate A", "Fate B"], "n_particles"].sum() >= 57
    # What noise does to a particle at rest is left out: its path is about as long as time.
    assert np.median(flow.lengths) < 300
    bound = let_flow(kernel.field, cells.x, cells.time, starts, **given, terminal_clusters=["Fate A", "Fate B"])
    assert (bound.status == Status.ARRIVED).sum() >= 55
    assert look(Region.of(cells.x), bound.ends)[0].max() <= 1.1 * MAX_DISTANCE


def test_particles_at_rest_that_were_never_there_before_end_where_they_are():
    cells, field = sheet(200, (2.0, 2.0)), Known(lambda x, t: torch.zeros_like(x))
    options = {"clusters": None, "targets": None, "search_every": 0.1, "device": "cpu"}
    motion = Motion.of(field, cells, np.zeros(200), FlowOptions(), **options)
    crowd = _Crowd(replace(motion, min_speed=1.0), cells[:3], np.zeros(3))
    crowd.rest.at[:] = True
    before = crowd.seen.step.clone()
    crowd._cut_at_rest(crowd.seen)  # no step lies before the first
    assert torch.equal(crowd.seen.step, before)
