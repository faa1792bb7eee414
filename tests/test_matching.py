"""Fields with heads: velocity, growth and score of a planted population, what they add up to, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cellrank_velot._utils.options import Run
from cellrank_velot.dynamics import SimulationOptions, simulate_process
from cellrank_velot.field import ProcessOptions, VelocityField, fit_process
from cellrank_velot.timeseries.couplings import couple_snapshots
from cellrank_velot.timeseries.options import CouplingOptions
from cellrank_velot.timeseries.snapshots import build_snapshots

SPEED, RATE, SIGMA = np.array([1.5, 0.0]), 0.5, 0.4
QUICK = {"hidden": (16, 16), "n_steps": 60}


def width(time):
    return 0.6 + 0.3 * np.asarray(time)


def planted(n: int = 400, seed: int = 0):
    """Return positions and times of a Gaussian that moves and widens, exact in mean and variance at each time."""
    rng = np.random.default_rng(seed)
    time = np.repeat([0.0, 1.0, 2.0], n)
    z = rng.normal(size=(3, n, 2))
    z = (z - z.mean(axis=1, keepdims=True)) / z.std(axis=1, keepdims=True)
    return time[:, None] * SPEED + width(time)[:, None] * z.reshape(-1, 2), time


@pytest.fixture(scope="module")
def coupled():
    x, time = planted()
    mass = np.exp(RATE * np.arange(3))
    return (
        x,
        time,
        couple_snapshots(x, time, build_snapshots(time), CouplingOptions(tau=1.0, max_iter=2000), mass=mass)[0],
    )


@pytest.fixture(scope="module")
def field(coupled) -> VelocityField:
    x, _, couplings = coupled
    return fit_process(couplings, x, ProcessOptions(diffusion=SIGMA), run=Run(device="cpu"))


@pytest.fixture(scope="module")
def quick(coupled) -> VelocityField:
    x, _, couplings = coupled
    return fit_process(couplings, x, ProcessOptions(**QUICK))


def points(time: float, n: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Return positions in the planted population, and how many of its widths they are from its mean."""
    z = np.random.default_rng(1).normal(size=(n, 2)).clip(-1.5, 1.5)
    return time * SPEED + width(time) * z, z


# -------------------------------------------------------------------------------------------- planted truths
@pytest.mark.parametrize("time", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_velocity_is_that_of_the_flow(field, time: float):
    x, z = points(time)
    error = field(x, time) - SPEED - 0.3 * z
    assert np.sqrt(np.mean(error**2)) < 0.15
    slope = np.sum((field(x, time) - SPEED) * z) / np.sum(z**2)
    assert slope == pytest.approx(0.3, abs=0.12)


@pytest.mark.parametrize("time", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_score_is_that_of_the_gaussian(field, time: float):
    x, z = points(time)
    expected = -z / width(time)
    found = field.score(x, time)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.97
    assert 0.85 < np.sum(found * expected) / np.sum(expected**2) < 1.2


def test_growth_is_constant(field):
    for time in (0.0, 0.7, 1.0, 1.6, 2.0):
        growth = field.growth(points(time)[0], time)
        assert growth.shape == (500,)
        assert growth.mean() == pytest.approx(RATE, abs=0.05)
        assert growth.std() < 0.05


def test_the_cells_of_a_time_point_grow_to_the_mass_of_the_next(coupled, quick):
    x, time, couplings = coupled
    for k in range(2):
        start = x[time == k]
        for field, tolerance in ((quick, 0.01), (replace(quick, growth_shift=np.zeros(0)), 0.2)):
            paths = simulate_process(field, start, float(k), k + 1.0, SimulationOptions(noise=False))
            assert paths.weights.mean() == pytest.approx(np.exp(RATE), rel=tolerance)
    assert quick.growth_shift.shape == (couplings.n_intervals,)
    # The rate of the interval after a time point; at the last one, that of the interval before.
    position = torch.tensor(x)
    for at, k in ((0.0, 0), (0.9, 0), (1.0, 1), (2.0, 1)):
        of_particles = quick.heads_on("cpu")(position, torch.full((len(x),), at, dtype=torch.float64))[1].numpy()
        np.testing.assert_allclose(of_particles - quick.growth(x, at), quick.growth_shift[k], atol=1e-12)


def test_growth_of_two_kinds_is_told_apart():
    rng = np.random.default_rng(0)
    time, kind = np.repeat([0.0, 1.0], [300, 300]), np.repeat([0, 1, 0, 1], [150, 150, 225, 75])
    x = 0.5 * rng.normal(size=(600, 2)) + np.column_stack([6.0 * kind, time])
    couplings, _ = couple_snapshots(x, time, build_snapshots(time))
    field = fit_process(couplings, x, ProcessOptions(hidden=(32, 32), n_steps=400), run=Run(device="cpu"))
    for point in (0.0, 0.5, 1.0):
        spots = np.array([[0.0, point], [6.0, point]])
        growth = field.growth(spots, point)
        assert growth[0] - growth[1] == pytest.approx(np.log(3), abs=0.15)
        # Their mass as a whole is given, and constant here.
        masses = np.exp(np.log([1.5, 0.5]) * point)
        assert np.average(growth, weights=masses) == pytest.approx(0, abs=0.08)
        np.testing.assert_allclose(field(spots, point), np.tile([0.0, 1.0], (2, 1)), atol=0.2)


# --------------------------------------------------------------------------------------------- what heads are
def test_drift_is_velocity_and_half_of_the_diffused_score(field):
    x, _ = points(0.8)
    assert field.has_heads
    assert field.diffusion == SIGMA
    np.testing.assert_allclose(field.drift(x, 0.8), field(x, 0.8) + SIGMA**2 / 2 * field.score(x, 0.8), atol=1e-12)


def test_functions_of_tensors_are_the_same(quick):
    x, _ = points(0.8, 20)
    tensors = torch.tensor(x), torch.full((20,), 0.8, dtype=torch.float64)
    velocity, growth, _ = quick.heads_on("cpu")(*tensors)
    score = quick.score_on("cpu")(*tensors)
    for found, function, plain in (
        (velocity, quick.on, quick(x, 0.8)),
        (growth - float(quick.growth_shift[0]), quick.growth_on, quick.growth(x, 0.8)),
        (score, quick.score_on, quick.score(x, 0.8)),
        (quick.drift_on("cpu")(*tensors), quick.drift_on, quick.drift(x, 0.8)),
    ):
        np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(function("cpu")(*tensors), found)


@pytest.mark.parametrize("name", ["on", "drift_on", "score_on", "growth_on"])
def test_derivatives_agree_with_differences(quick, name: str):
    function = getattr(quick, name)("cpu")
    x, time = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)
    single = torch.func.jacrev(function)(x, time)
    batched = torch.vmap(torch.func.jacrev(function))(x.repeat(3, 1), time.repeat(3))
    torch.testing.assert_close(batched[1], single, atol=1e-5, rtol=1e-4)
    step = 1e-2 * torch.eye(2, dtype=torch.float64)
    numeric = torch.stack([(function(x + s, time) - function(x - s, time)) / 2e-2 for s in step], dim=-1)
    torch.testing.assert_close(single, numeric, atol=5e-3, rtol=5e-2)


def test_a_field_without_heads_has_no_growth(quick):
    keep = {**quick.to_dict(), "diffusion": 0.0}
    name = max((n for n in quick.weights if n.endswith("weight")), key=lambda n: int(n.split(".")[0]))
    last = name.split(".")[0]
    keep["weights"] = {n: value[:2] if n.split(".")[0] == last else value for n, value in quick.weights.items()}
    plain = VelocityField.from_dict(keep)
    x, _ = points(1.0, 5)
    assert not plain.has_heads
    velocity = quick(x, 1.0)  # between time points, bridges widen and narrow
    np.testing.assert_allclose(plain(x, 1.0), velocity, atol=1e-5 * np.abs(velocity).max())  # in single precision
    np.testing.assert_array_equal(plain.drift(x, 1.0), plain(x, 1.0))
    for refused in (plain.growth, plain.score):
        with pytest.raises(RuntimeError, match="a field with growth and score, found one of velocity alone"):
            refused(x, 0.8)
    for refused in (plain.growth_on, plain.score_on):
        with pytest.raises(RuntimeError, match="time_kind='experimental'"):
            refused("cpu")


# ------------------------------------------------------------------------------------------------- training
def test_seeds_are_exact_and_leave_the_global_state(coupled, quick):
    x, _, couplings = coupled
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = fit_process(couplings, x, ProcessOptions(**QUICK))
    assert torch.equal(state, torch.get_rng_state())
    other = fit_process(couplings, x, ProcessOptions(random_state=1, **QUICK))
    for name, value in quick.weights.items():
        np.testing.assert_array_equal(value, again.weights[name], err_msg=name)
        assert not np.array_equal(value, other.weights[name])
    for name, value in quick.history.items():
        np.testing.assert_array_equal(value, again.history[name])


def test_history_falls_and_has_its_parts(field):
    history = field.history
    assert {"step", "held_out", "total", "fit", "growth", "score"} <= set(history)
    assert history["step"][-1] == 1500
    assert field.best_step in history["step"]
    # Within a population wider than its bridges, the noise of a point can hardly be told: that part stays near one.
    assert history["held_out_total"].min() < history["held_out_total"][0] - 0.02
    # Of other points of the same bridges, the error of the velocity is what it is of those that were trained on.
    assert history["held_out"][-1] == pytest.approx(history["fit"][-1], rel=0.15)
    for name in ("fit", "growth"):
        assert history[name][-1] < 0.9 * history[name][0]
    for name in ("score", "noise"):
        assert history[name][-1] < history[name][0]
    assert history["held_out_total"][history["step"] == field.best_step] == history["held_out_total"].min()


def test_diffusion_is_that_of_the_couplings_where_not_given(coupled, quick):
    assert quick.diffusion == pytest.approx(coupled[2].diffusion)


def test_units_of_space_and_time():
    x, time = planted(60)
    fields = []
    for scale, stretch in ((1.0, 1.0), (100.0, 24.0)):
        couplings, _ = couple_snapshots(scale * x, stretch * time, build_snapshots(stretch * time))
        fields.append(fit_process(couplings, scale * x, ProcessOptions(**QUICK)))
    spots, _ = points(0.7, 50)
    plain, scaled = (f(s * spots, t * 0.7) for f, s, t in ((fields[0], 1, 1), (fields[1], 100, 24)))
    np.testing.assert_allclose(scaled, plain * 100 / 24, atol=0.02 * 100 / 24)
    np.testing.assert_allclose(fields[1].growth(100 * spots, 16.8) * 24, fields[0].growth(spots, 0.7), atol=0.02)
    np.testing.assert_allclose(fields[1].score(100 * spots, 16.8) * 100, fields[0].score(spots, 0.7), atol=0.02)


def test_cells_on_one_spot_have_a_field():
    time = np.repeat([0.0, 1.0], 20)
    x = np.zeros((40, 2))
    couplings, _ = couple_snapshots(x, time, build_snapshots(time))
    found = fit_process(couplings, x, ProcessOptions(**QUICK))
    assert np.isfinite(found.drift(x, time)).all()
    assert np.isfinite(found.growth(x, time)).all()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"diffusion": 0.0}, ValueError, r"`diffusion` to be in \(0, inf\)"),
        ({"diffusion": "large"}, ValueError, r"`diffusion` to be one of \['auto'\], found `'large'`"),
        ({"hidden": 64}, TypeError, "`hidden` to be a sequence of layer sizes, found `int`"),
        ({"hidden": (64, 0)}, ValueError, "`hidden` to be at least `1`"),
        ({"n_steps": 0}, ValueError, "`n_steps` to be at least `1`"),
        ({"batch_size": 1.5}, TypeError, "`batch_size` to be an integer"),
        ({"learning_rate": 0}, ValueError, "`learning_rate`"),
        ({"random_state": -1}, ValueError, "`random_state` to be at least `0`"),
    ],
)
def test_options_out_of_range_are_refused(coupled, options: dict, error: type[Exception], match: str):
    x, _, couplings = coupled
    with pytest.raises(error, match=match):
        fit_process(couplings, x, ProcessOptions(**options))


def test_a_step_that_is_far_too_long_is_said(coupled):
    x, _, couplings = coupled
    with pytest.raises(FloatingPointError, match="lower `learning_rate`"):
        fit_process(couplings, x, ProcessOptions(**{**QUICK, "learning_rate": 1e30}))
