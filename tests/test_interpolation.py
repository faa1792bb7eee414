"""Populations between time points: the snapshots at their own times, geometric masses and straight or curved ways."""

import numpy as np
import pytest

from cellrank_velot.timeseries.couplings import couple_snapshots
from cellrank_velot.timeseries.interpolation import Population, interpolate_paths
from cellrank_velot.timeseries.snapshots import build_snapshots

POINTS = (0.0, 1.0, 4.0)
MASS = np.array([2.0, 6.0, 1.5])


def planted(seed: int = 0):
    """Return positions and times of a cloud on its way along an arc."""
    rng = np.random.default_rng(seed)
    time = np.repeat(POINTS, [80, 60, 100])
    angle = time * np.pi / 8
    x = 0.3 * rng.normal(size=(240, 3))
    x[:, 0] += 3 * np.sin(angle)
    x[:, 1] += 3 * np.cos(angle)
    return x, time


@pytest.fixture(scope="module")
def coupled():
    x, time = planted()
    return x, time, couple_snapshots(x, time, build_snapshots(time), mass=MASS)[0]


@pytest.mark.parametrize("straight", [False, True])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_snapshots_come_out_at_their_times(coupled, k: int, straight: bool):
    x, time, couplings = coupled
    found = interpolate_paths(couplings, x, POINTS[k], straight=straight)
    own = x[time == POINTS[k]]
    assert found.time == POINTS[k]
    assert found.mass == pytest.approx(MASS[k])
    np.testing.assert_allclose(found.mean, own.mean(0), atol=1e-10)
    variance = np.average((found.x - found.mean) ** 2, axis=0, weights=found.weights)
    np.testing.assert_allclose(variance, own.var(0), rtol=1e-9)


def test_cells_are_their_own_source_at_the_start(coupled):
    x, _, couplings = coupled
    found = interpolate_paths(couplings, x, 1.0)
    np.testing.assert_allclose(found.x, x[found.source], atol=1e-12)
    weight = np.bincount(found.source, found.weights)
    np.testing.assert_allclose(weight[weight > 0], MASS[1] / 60)


@pytest.mark.parametrize(("time", "k", "share"), [(0.25, 0, 0.25), (0.9, 0, 0.9), (2.5, 1, 0.5), (3.7, 1, 0.9)])
def test_mass_between_is_geometric(coupled, time: float, k: int, share: float):
    x, _, couplings = coupled
    found = interpolate_paths(couplings, x, time)
    assert found.mass == pytest.approx(MASS[k] ** (1 - share) * MASS[k + 1] ** share)
    assert (found.weights > 0).all()
    assert found.x.shape == (found.source.size, 3)


def test_population_moves_without_a_jump(coupled):
    x, _, couplings = coupled
    for time in (1.0, 2.2):
        before, after = (interpolate_paths(couplings, x, time + by) for by in (-1e-6, 1e-6))
        np.testing.assert_allclose(before.mean, after.mean, atol=1e-5)
        assert before.mass == pytest.approx(after.mass, rel=1e-4)


def test_curved_ways_are_nearer_to_the_arc_than_straight_ones(coupled):
    x, _, couplings = coupled
    off = []
    for straight in (False, True):
        means = [interpolate_paths(couplings, x, time, straight=straight).mean for time in (0.5, 2.0, 2.5, 3.0)]
        off.append(np.mean(np.abs(np.linalg.norm(np.stack(means)[:, :2], axis=1) - 3)))
    assert off[0] < 0.75 * off[1]


@pytest.mark.parametrize("time", [-0.1, 4.1, np.nan])
def test_time_outside_is_refused(coupled, time: float):
    x, _, couplings = coupled
    with pytest.raises(ValueError, match="Expected a time from `0` to `4`"):
        interpolate_paths(couplings, x, time)


# -------------------------------------------------------------------------------------------------- sampling
def test_sample_is_in_proportion_to_the_weights_and_by_seed():
    x = np.arange(4.0)[:, None]
    population = Population(x, np.array([1.0, 0.0, 2.0, 5.0]), 0.0, np.arange(4))
    drawn = population.sample(80, random_state=1)
    assert drawn.shape == (80, 1)
    np.testing.assert_array_equal(np.bincount(drawn[:, 0].astype(int), minlength=4), [10, 0, 20, 50])
    np.testing.assert_array_equal(drawn, population.sample(80, random_state=1))
    seeds = [population.sample(3, random_state=seed).ravel().tolist() for seed in range(10)]
    assert len({tuple(values) for values in seeds}) > 1
    assert population.mass == 8
    np.testing.assert_allclose(population.mean, [(4 + 15) / 8])


def test_sample_of_the_interpolated_population_has_its_mean(coupled):
    x, _, couplings = coupled
    found = interpolate_paths(couplings, x, 2.0)
    np.testing.assert_allclose(found.sample(5000).mean(0), found.mean, atol=0.02)
