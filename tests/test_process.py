"""The process and its reversal against closed forms, growth weights, tables of descent, and a simulated truth."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch

from cellrank_velot import OTVelocityKernel, datasets
from cellrank_velot.dynamics import ProcessPaths, SimulationOptions, fate_table, labels_near, simulate_process
from cellrank_velot.field import VelocityField

N = 20_000


@dataclass(frozen=True)
class OrnsteinUhlenbeck:
    """Cells drift to ``centre`` at a rate, from a Gaussian; all its laws are Gaussian, too."""

    rate: float = 0.7
    diffusion: float = 0.8
    centre: float = 2.0
    mean0: float = -1.0
    variance0: float = 0.25
    growth: float = 0.0
    acceleration: float = 0.0

    def law(self, time):
        """Return mean and variance at a time."""
        decay, rest = np.exp(-self.rate * time), self.diffusion**2 / (2 * self.rate)
        return self.centre + (self.mean0 - self.centre) * decay, rest + (self.variance0 - rest) * decay**2

    def width(self, time):
        return np.sqrt(self.law(time)[1])

    def heads_on(self, device):
        def evaluate(x, time):
            decay, rest = torch.exp(-self.rate * time), self.diffusion**2 / (2 * self.rate)
            mean = self.centre + (self.mean0 - self.centre) * decay
            variance = rest + (self.variance0 - rest) * decay**2
            score = -(x - mean[:, None]) / variance[:, None]
            velocity = self.rate * (self.centre - x) - self.diffusion**2 / 2 * score
            return velocity, self.growth + self.acceleration * time, score

        return evaluate


FIELD = OrnsteinUhlenbeck()


def follow(field, x, time, until, *, start_ix=None, **options) -> ProcessPaths:
    return simulate_process(field, x, time, until, SimulationOptions(**options), start_ix=start_ix)


def start(time: float, n: int = N, seed: int = 0) -> np.ndarray:
    mean, variance = FIELD.law(time)
    return mean + np.sqrt(variance) * np.random.default_rng(seed).normal(size=(n, 1))


def assert_law(x: np.ndarray, time: float) -> None:
    """Check mean and variance within four standard errors and the error of the steps."""
    mean, variance = FIELD.law(time)
    assert x.mean() == pytest.approx(mean, abs=4 * np.sqrt(variance / x.size) + 0.01)
    assert x.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / x.size) + 0.02)


# ----------------------------------------------------------------------------------------------- closed forms
@pytest.mark.parametrize("noise", [True, False])
def test_forward_has_the_law_of_the_process(noise: bool):
    paths = follow(FIELD, start(0.0), 0.0, 1.5, noise=noise, n_saved=2)
    assert paths.direction == "forward"
    assert paths.x.shape == (3, N, 1)
    for x, time in zip(paths.x, (0.0, 0.75, 1.5), strict=True):
        assert_law(x, time)
    np.testing.assert_allclose(paths.time, np.broadcast_to([[0.0], [0.75], [1.5]], (3, N)), atol=1e-12)


@pytest.mark.parametrize("noise", [True, False])
def test_backward_recovers_the_law_of_the_start(noise: bool):
    paths = follow(FIELD, start(1.5), 1.5, 0.0, noise=noise, n_saved=2)
    assert paths.direction == "backward"
    for x, time in zip(paths.x, (1.5, 0.75, 0.0), strict=True):
        assert_law(x, time)


def test_forward_and_backward_have_one_joint_law():
    forward = follow(FIELD, start(0.0), 0.0, 1.0, random_state=1)
    backward = follow(FIELD, start(1.0, seed=3), 1.0, 0.0, random_state=2)
    covariance = FIELD.variance0 * np.exp(-FIELD.rate)
    for paths in (forward, backward):
        assert np.cov(paths.x[0, :, 0], paths.ends[:, 0])[0, 1] == pytest.approx(covariance, abs=0.015)


def test_noise_spreads_what_the_flow_keeps_apart():
    x = np.zeros((N, 1))
    free = follow(FIELD, x, 0.0, 0.5).ends
    decay = np.exp(-0.5 * FIELD.rate)
    expected = FIELD.diffusion**2 / (2 * FIELD.rate) * (1 - decay**2)
    assert free.var() == pytest.approx(expected, rel=0.05)
    assert free.mean() == pytest.approx(FIELD.centre * (1 - decay), abs=0.02)
    assert follow(FIELD, x, 0.0, 0.5, noise=False).ends.std() < 1e-12


def test_error_falls_with_the_number_of_steps():
    decay, rest = np.exp(-FIELD.rate * 1.5), FIELD.diffusion**2 / (2 * FIELD.rate)
    # A flow of Gaussians takes quantiles to quantiles.
    (m0, v0), (m1, v1) = FIELD.law(0.0), FIELD.law(1.5)
    assert v1 == pytest.approx(rest + (v0 - rest) * decay**2)
    x = m0 + np.sqrt(v0) * np.array([[-2.0], [0.0], [1.0]])
    exact = m1 + np.sqrt(v1) * np.array([[-2.0], [0.0], [1.0]])
    off = [np.abs(follow(FIELD, x, 0.0, 1.5, noise=False, n_steps=n).ends - exact).max() for n in (20, 40, 80)]
    assert off[2] < 0.02
    assert 1.7 < off[0] / off[1] < 4.5
    assert 1.7 < off[1] / off[2] < 4.5


# ------------------------------------------------------------------------------------------------- weights
@pytest.mark.parametrize(("since", "until"), [(0.5, 2.0), (2.0, 0.5)])
def test_growth_weights_are_exact_for_constant_and_linear_growth(since: float, until: float):
    field = OrnsteinUhlenbeck(growth=0.3, acceleration=-0.8)
    paths = follow(field, np.zeros((5, 1)), since, until, n_steps=7, n_saved=7)
    integral = 0.3 * (paths.time - since) - 0.4 * (paths.time**2 - since**2)
    np.testing.assert_allclose(paths.log_weight, integral, atol=1e-12)
    np.testing.assert_allclose(paths.weights, np.exp(integral[-1]))
    assert (paths.log_weight[0] == 0).all()


@pytest.mark.parametrize("since", [0.0, 1 / 7, 7.1])
def test_the_end_is_exactly_where_it_was_asked_for(since: float):
    assert (follow(FIELD, np.zeros((3, 1)), since, 0.1 + 0.2, n_steps=97).time[-1] == 0.1 + 0.2).all()


def test_particles_may_start_at_their_own_times():
    times = np.array([0.0, 0.5, 1.0, 1.0])
    paths = follow(OrnsteinUhlenbeck(growth=1.0), np.zeros((4, 1)), times, 1.0, n_saved=4)
    np.testing.assert_allclose(paths.time[-1], 1.0)
    np.testing.assert_allclose(paths.log_weight[-1], 1 - times, atol=1e-12)
    np.testing.assert_array_equal(paths.x[:, 2:], 0, err_msg="whoever is there already stays")
    assert (paths.x[-1, :2] != 0).all()


def test_slices_and_threads_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    sizes = {"0.weight": (64, 3), "0.bias": (64,), "2.weight": (5, 64), "2.bias": (5,)}
    weights = {name: rng.normal(scale=0.3, size=size).astype(np.float32) for name, size in sizes.items()}
    field = VelocityField(weights, np.zeros(2), 1.0, 0.0, 1.0, 1.0, True, {}, 0, diffusion=0.1, growth_scale=1.0)
    x, found = rng.normal(size=(600, 2)), []
    for size, n_threads in ((600, 1), (100, 1), (100, 2)):
        monkeypatch.setattr("cellrank_velot.dynamics.process.SLICE", size)
        monkeypatch.setattr("cellrank_velot._utils.slices.count_threads", lambda n=n_threads: n)
        found.append(follow(field, x, 0.0, 1.0, n_steps=10))
    np.testing.assert_array_equal(found[1].x, found[2].x)
    np.testing.assert_array_equal(found[1].log_weight, found[2].log_weight)
    np.testing.assert_allclose(found[0].x, found[1].x, rtol=0, atol=1e-4 * np.ptp(x))


def test_seeds_and_what_is_kept():
    x = start(0.0, 50)
    first, again, other = (follow(FIELD, x, 0.0, 1.0, random_state=s, n_saved=5) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.x, again.x)
    assert (first.ends != other.ends).all()
    assert first.x.shape == (6, 50, 1)
    np.testing.assert_array_equal(first.start_ix, np.arange(50))
    np.testing.assert_array_equal(first.x[0], x)
    last = follow(FIELD, x, 0.0, 1.0, random_state=1, start_ix=np.arange(50)[::-1])
    np.testing.assert_array_equal(last.ends, first.ends)
    assert last.start_ix[0] == 49
    assert last.n_particles == 50
    assert isinstance(ProcessPaths.from_dict(last.to_dict()), ProcessPaths)


@pytest.mark.parametrize(
    ("x", "time", "until", "options", "error", "match"),
    [
        (np.zeros((2, 1)), np.array([0.0, 2.0]), 1.0, {}, ValueError, "`until` after all starts or before all"),
        (np.zeros((2, 1)), 0.0, np.nan, {}, ValueError, "`until` after all starts or before all"),
        (np.zeros((0, 1)), 0.0, 1.0, {}, ValueError, "with particles, found"),
        (np.zeros((2, 1)), 0.0, 1.0, {"n_steps": 0}, ValueError, "`n_steps` to be at least `1`"),
        (np.zeros((2, 1)), 0.0, 1.0, {"n_saved": 0}, ValueError, "`n_saved` to be at least `1`"),
        (np.zeros((2, 1)), 0.0, 1.0, {"random_state": 1.0}, TypeError, "`random_state` to be an integer"),
    ],
)
def test_options_out_of_range_are_refused(x, time, until, options: dict, error: type[Exception], match: str):
    with pytest.raises(error, match=match):
        follow(FIELD, x, time, until, **options)


def test_particles_that_leave_all_bounds_are_said():
    @dataclass(frozen=True)
    class Away(OrnsteinUhlenbeck):
        def width(self, time):
            return np.ones_like(time)

    with pytest.raises(FloatingPointError, match="Particles left all bounds"):
        follow(Away(rate=-1e6), np.ones((2, 1)), 0.0, 1e3, n_steps=100)


@pytest.mark.parametrize("diffusion", [0.01, 1.0, 30.0])
def test_any_noise_keeps_the_law_of_the_population(diffusion: float):
    """The score takes back what the noise adds, in steps of any length."""

    @dataclass(frozen=True)
    class Still(OrnsteinUhlenbeck):
        def law(self, time):
            return np.zeros_like(time), 0.09 + np.zeros_like(time)

        def heads_on(self, device):
            return lambda x, time: (0 * x, 0 * time, -x / 0.09)

    x = 0.3 * np.random.default_rng(0).normal(size=(N, 1))
    for n_steps in (3, 100):
        ends = follow(Still(diffusion=diffusion), x, 0.0, 1.0, n_steps=n_steps).ends
        assert ends.std() == pytest.approx(0.3, rel=0.02)
        assert (np.corrcoef(x[:, 0], ends[:, 0])[0, 1] > 0.99) == (diffusion < 0.1)


@pytest.mark.parametrize("diffusion", [0.3, 3.0, 30.0])
def test_any_noise_keeps_a_population_that_is_far_wider_than_a_pair(diffusion: float):
    @dataclass(frozen=True)
    class Wide(OrnsteinUhlenbeck):
        def law(self, time):
            return np.zeros_like(time), 0.01 + np.zeros_like(time)

        def heads_on(self, device):
            return lambda x, time: (0 * x, 0 * time, -x)

    x = np.random.default_rng(0).normal(size=(N, 1))
    ends = follow(Wide(diffusion=diffusion), x, 0.0, 1.0, n_steps=100).ends
    assert ends.std() == pytest.approx(x.std(), rel=0.02)
    assert np.corrcoef(x[:, 0], ends[:, 0])[0, 1] < 0.97


# --------------------------------------------------------------------------------------------------- tables
def test_labels_of_the_nearest_cells():
    x = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    labels = np.array([0, 0, 1, 2, 2, -1])
    shares = labels_near(np.array([[0.9], [11.0]]), x, labels, 4, n_neighbors=3)
    np.testing.assert_allclose(shares, [[2 / 3, 1 / 3, 0, 0], [0, 0, 1, 0]])
    everywhere = labels_near(np.array([[5.0]]), x, labels, 4, n_neighbors=50)
    np.testing.assert_allclose(everywhere, [[0.4, 0.2, 0.4, 0]])


def test_table_is_the_weighted_mean_by_group():
    shares = np.array([[1.0, 0, 0], [0, 1, 0], [0.5, 0.5, 0], [0, 0, 1]])
    weights = np.array([1.0, 3.0, 2.0, 4.0])
    found = fate_table(shares, weights, ["b", "b", "a", "a"], ["x", "y", "z"])
    expected = pd.DataFrame([[0.25, 0.75, 0], [1 / 6, 1 / 6, 2 / 3]], index=["b", "a"], columns=["x", "y", "z"])
    pd.testing.assert_frame_equal(found.table, expected)
    assert found.growth.to_dict() == {"b": 2.0, "a": 3.0}
    assert ((found.low <= found.table + 1e-12) & (found.table <= found.high + 1e-12)).all(axis=None)
    rest = fate_table(shares, weights, ["b", "b", "a", "a"], ["x", "y", "z"], ["y"]).table
    np.testing.assert_allclose(rest[["y", "rest"]], [[0.75, 0.25], [1 / 6, 5 / 6]])
    frame = found.to_frame()
    assert frame.columns.tolist() == ["from", "to", "share", "low", "high"]
    assert frame.query("`from` == 'a' and to == 'z'")["share"].item() == pytest.approx(2 / 3)
    assert "2 rows and 3 clusters" in repr(found)


def test_clusters_that_do_not_occur_are_left_out_unless_wanted():
    shares = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert fate_table(shares, np.ones(2), ["a", "a"], ["x", "y"]).table.columns.tolist() == ["x"]
    assert fate_table(shares, np.ones(2), ["a", "a"], ["x", "y"], ["y"]).table.to_dict("list") == {
        "y": [0.0],
        "rest": [1.0],
    }


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(100):
        side = (rng.random(150) < 0.3).astype(float)
        found = fate_table(np.column_stack([side, 1 - side]), np.ones(150), ["a"] * 150, ["x", "y"], None, seed)
        inside += found.low.loc["a", "x"] <= 0.3 <= found.high.loc["a", "x"]
    assert 85 <= inside <= 100


# ---------------------------------------------------------------------------------------- a simulated truth
@pytest.fixture(scope="module")
def descent():
    """Return the joint tables of founders and fates: forward, backward, and of the simulated population."""
    adata = datasets.birth_death(n_cells=300, random_state=0)
    known = adata.uns["birth_death"]
    kernel = OTVelocityKernel(adata, time_key="day", time_kind="experimental")
    kernel.compute_velocity(mass=dict(zip(known["times"], known["mass"], strict=True)), show_progress_bar=False)
    kernel.fit_field(n_steps=1000, device="cpu", show_progress_bar=False)
    founders, fates = ["Progenitor A", "Progenitor B"], ["Fate A", "Fate B"]
    at = {
        time: adata.obs["clusters"][adata.obs["day"] == time].value_counts(normalize=True)
        for time in (known["times"][0], known["times"][-1])
    }
    forward = kernel.fate_probabilities(group_by="clusters", n_particles=20, noise=1.0)
    backward = kernel.ancestry(group_by="clusters", n_particles=20, noise=1.0)
    number = forward.growth * at[known["times"][0]].reindex(forward.growth.index)
    tables = {
        "default": kernel.fate_probabilities(group_by="clusters", n_particles=20).table,
        "forward": forward.table.mul(number / number.sum(), axis=0),
        "backward": backward.table.mul(at[known["times"][-1]].reindex(backward.table.index), axis=0).T,
        "true": known["lineages"] / known["lineages"].to_numpy().sum(),
    }
    return {name: table.reindex(index=founders, columns=fates).fillna(0) for name, table in tables.items()}


@pytest.mark.slow
def test_fates_and_ancestors_agree(descent):
    assert (descent["forward"] - descent["backward"]).abs().to_numpy().max() < 0.1, descent
    for name in ("forward", "backward"):
        assert 0.9 < descent[name].to_numpy().sum() <= 1 + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["forward", "backward"])
def test_lineages_are_near_those_that_were_simulated(descent, name: str):
    assert (descent[name] - descent["true"]).abs().to_numpy().max() < 0.15, descent


@pytest.mark.slow
def test_as_many_cells_change_sides_as_in_truth(descent):
    """With the diffusion of the couplings hardly any does."""
    shares = {
        name: table.div(table.sum(axis=1), axis=0).loc["Progenitor A", "Fate B"] for name, table in descent.items()
    }
    assert abs(shares["default"] - shares["true"]) < 0.03, shares
    assert shares["forward"] < shares["true"] - 0.03, shares


def test_a_velocity_field_serves():
    constant = np.array([1.0, 0.0, 0.7, 0.0, 0.0], dtype=np.float32)
    weights = {"0.weight": np.zeros((5, 3), dtype=np.float32), "0.bias": constant}
    field = VelocityField(weights, np.zeros(2), 1.0, 0.0, 1.0, 2.0, True, {}, 0, diffusion=0.1, growth_scale=3.0)
    paths = follow(field, np.zeros((4, 2)), 0.0, 2.0, noise=False)
    np.testing.assert_allclose(paths.ends, np.tile([4.0, 0.0], (4, 1)), rtol=1e-5)
    np.testing.assert_allclose(paths.log_weight[-1], 0.7 * 3 * 2, rtol=1e-5)
