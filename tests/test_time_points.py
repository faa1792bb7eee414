import numpy as np
import pytest

from cellrank_velot.metrics import held_out_time, wasserstein


@pytest.fixture(scope="module")
def moving():
    """Three snapshots of a cloud that moves at a constant speed."""
    rng = np.random.default_rng(0)
    time = np.repeat([0.0, 1.0, 3.0], 150)
    x = rng.normal(scale=0.2, size=(450, 2))
    x[:, 0] += 2 * time
    return x, time


def test_wasserstein_of_a_shift_is_its_length():
    x = np.random.default_rng(0).normal(size=(40, 3))
    assert wasserstein(x, x + np.array([3.0, 0.0, 4.0])) == pytest.approx((5.0, 5.0))
    assert wasserstein(x, x) == pytest.approx((0.0, 0.0), abs=1e-7)


def test_wasserstein_takes_weights():
    x, y = np.array([[0.0], [1.0]]), np.array([[0.0]])
    assert wasserstein(x, y, np.array([3.0, 1.0])) == pytest.approx((0.25, 0.5))


def test_constant_motion_is_foretold(moving):
    found = held_out_time(*moving, methods=["paths", "field", "exact", "previous"], field_options={"n_steps": 300})
    rows = found.set_index("method")
    assert (found["time"] == 1.0).all()
    assert rows.loc["previous", "w1"] == pytest.approx(2.0, abs=0.1)
    for method in ("paths", "exact", "field"):
        assert rows.loc[method, "w1"] < 0.25, method
    assert (rows["w2"] >= rows["w1"]).all()
    np.testing.assert_allclose(rows.loc[["paths", "exact", "previous"], "mass_ratio"], 1.0)


def test_mass_ratio_is_of_masses_that_grow_at_a_constant_rate(moving):
    found = held_out_time(*moving, methods=["paths", "previous"], mass=[1.0, 2.0, 8.0]).set_index("method")
    np.testing.assert_allclose(found.loc["paths", "mass_ratio"], 1.0)
    np.testing.assert_allclose(found.loc["previous", "mass_ratio"], 0.5)


def test_no_cell_of_the_time_left_out_is_used(moving):
    x, time = moving
    other = x.copy()
    other[time == 1.0] += 100.0
    a, b = (held_out_time(data, time, methods=["paths"]).w1[0] for data in (x, other))
    assert b == pytest.approx(np.hypot(100, 100), rel=0.02)
    assert a < 1


def test_every_inner_time_is_left_out_and_seeds_repeat():
    rng = np.random.default_rng(0)
    time = np.repeat([0, 1, 2, 3], 40).astype(float)
    x = rng.normal(size=(160, 2)) + time[:, None]
    first, again = (held_out_time(x, time, n_cells=30, random_state=3) for _ in range(2))
    assert first["time"].unique().tolist() == [1.0, 2.0]
    assert first.equals(again)
    assert not first.equals(held_out_time(x, time, n_cells=30, random_state=4))


@pytest.mark.parametrize("held_out", [0.0, 3.0, 0.5, [1.0, 7.0]])
def test_times_without_neighbours_are_refused(moving, held_out):
    with pytest.raises(ValueError, match="between the first and the last of the time points"):
        held_out_time(*moving, held_out)


def test_unknown_methods_and_two_time_points_are_refused(moving):
    x, time = moving
    with pytest.raises(ValueError, match="Expected `methods` to be one of"):
        held_out_time(x, time, methods=["magic"])
    with pytest.raises(ValueError, match="between the first and the last"):
        held_out_time(x[time < 2], time[time < 2], 1.0)
    with pytest.raises(TypeError, match=r"'tau'.* in `coupling_options`, found \['eta'\]"):
        held_out_time(x, time, coupling_options={"eta": 1})
    with pytest.raises(TypeError, match=r"'diffusion'.* in `field_options`, found \['tau'\]"):
        held_out_time(x, time, field_options={"tau": 1})


def test_couplings_take_their_options_and_the_growth_that_is_expected(moving):
    x, time = moving
    usual, exact, prior = (
        held_out_time(x, time, methods=["paths"], n_cells=60, **options).w1[0]
        for options in ({}, {"coupling_options": {"tau": 1.0}}, {"prior": x[:, 1]})
    )
    assert usual != exact
    assert usual != prior
