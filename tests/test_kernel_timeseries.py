"""Experimental time through the kernel: every step, what is written and read, the host's own kernel, and refusals."""

import logging

import anndata as ad
import cellrank as cr
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from cellrank_velot import OTTimeSeriesKernel, OTVelocityKernel, datasets
from cellrank_velot.dynamics import Rescaled
from cellrank_velot.field import ProcessOptions, fit_process
from cellrank_velot.kernel.populations import _some_of_each
from cellrank_velot.timeseries import CouplingOptions, PopulationOptions, SnapshotOptions
from cellrank_velot.timeseries.couplings import couple_snapshots
from cellrank_velot.timeseries.interpolation import interpolate_paths

QUIET = {"show_progress_bar": False}
FAST = {"hidden": (16, 16), "n_steps": 120, "batch_size": 128, "device": "cpu", **QUIET}
SERIES = {"time_key": "day", "time_kind": "experimental"}
POINTS = (0.0, 1.0, 2.5)


@pytest.fixture(scope="module")
def simulated() -> AnnData:
    return datasets.birth_death(n_cells=150, times=POINTS, random_state=0)


@pytest.fixture
def adata(simulated) -> AnnData:
    return simulated.copy()


def masses(adata: AnnData) -> dict[float, float]:
    known = adata.uns["birth_death"]
    return dict(zip(known["times"].tolist(), known["mass"].tolist(), strict=True))


@pytest.fixture(scope="module")
def computed(simulated) -> OTVelocityKernel:
    kernel = OTVelocityKernel(simulated.copy(), cluster_key="clusters", **SERIES)
    kernel.compute_velocity(mass=masses(simulated), **QUIET).fit_field(**FAST)
    return kernel.compute_transition_matrix()


@pytest.fixture
def kernel(computed) -> OTVelocityKernel:
    """Return a computed kernel of one's own, with an AnnData of one's own."""
    return computed.copy(deep=True)


def row_sums(kernel) -> np.ndarray:
    return np.asarray(kernel.transition_matrix.sum(axis=1)).ravel()


# ------------------------------------------------------------------------------------------------- the steps
def test_everything_runs_with_defaults(adata, monkeypatch):
    fit = OTTimeSeriesKernel.fit_field
    monkeypatch.setattr(OTTimeSeriesKernel, "fit_field", lambda kernel, **run: fit(kernel, n_steps=50, **run))
    kernel = OTVelocityKernel(adata, time_kind="experimental").compute_transition_matrix(**QUIET)
    assert isinstance(kernel, OTTimeSeriesKernel)
    assert kernel.windows.n_pairs == 2
    np.testing.assert_allclose(row_sums(kernel), 1)
    assert kernel.transition_matrix.data.min() >= 0


def test_steps_are_those_of_the_stages(kernel):
    cells, mass = kernel.cells, np.array(list(masses(kernel.adata).values()))
    np.testing.assert_array_equal(cells.time, kernel.adata.obs["day"], err_msg="time is in its own units")
    couplings, transport = couple_snapshots(cells.x, cells.time, kernel.windows, mass=mass)
    for name, value in couplings.to_dict().items():
        np.testing.assert_array_equal(value, getattr(kernel.couplings, name), err_msg=name)
    np.testing.assert_array_equal(kernel.transport.growth, transport.growth)
    np.testing.assert_array_equal(kernel.raw_velocity, transport.velocity)
    field = fit_process(couplings, cells.x, ProcessOptions.split(FAST)[0])
    np.testing.assert_array_equal(kernel.velocity, field(cells.x, cells.time))
    np.testing.assert_array_equal(kernel.growth, field.growth(cells.x, cells.time))
    found = kernel.interpolate(1.7, n_passes=CouplingOptions.n_passes)
    np.testing.assert_array_equal(found.x, interpolate_paths(couplings, cells.x, 1.7).x)


def test_matrix_steps_along_the_drift_and_onward_in_time(kernel):
    np.testing.assert_allclose(row_sums(kernel), 1)
    np.testing.assert_array_equal(kernel.transition_matrix.shape, (450, 450))
    time = kernel.cells.time
    step = (kernel.transition_matrix @ time - time)[time < 2.5]
    assert step[time[time < 2.5] == 0].mean() > 0
    true, found = kernel.adata.obsm["true_velocity_pca"], kernel.velocity
    cosine = np.sum(true * found, 1) / np.linalg.norm(true, axis=1) / np.linalg.norm(found, axis=1)
    assert cosine[time < 2.5].mean() > 0.4


@pytest.mark.parametrize("mass", ["given", "counts", None])
def test_velocity_in_reversed_time_is_that_of_the_same_steps(adata, mass):
    """What grows then shrinks, and each time point has its own mass."""

    def velocity(kernel, mass):
        kernel.compute_velocity(mass=mass, growth_key="true_growth", tau=(0.95, 0.9), **QUIET)
        return kernel.fit_field(**FAST)

    mirrored = adata.copy()
    mirrored.obs["day"] = -mirrored.obs["day"]
    mirrored.obs["true_growth"] *= -1
    given = mass if mass != "given" else masses(adata)
    other = mass if mass != "given" else {-day: size for day, size in given.items()}
    found = velocity(OTTimeSeriesKernel(adata, time_key="day"), given).reversed_velocity()
    expected = velocity(OTTimeSeriesKernel(mirrored, time_key="day"), other).velocity
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_growth_is_of_transport_before_the_field(adata):
    kernel = OTVelocityKernel(adata, **SERIES)
    with pytest.raises(RuntimeError, match=r"transport first, as `.compute_velocity\(\)`"):
        _ = kernel.growth
    assert kernel.couplings is None
    kernel.compute_velocity(**QUIET)
    np.testing.assert_array_equal(kernel.growth, kernel.transport.growth)
    first = adata.obs["day"] == 0
    assert np.corrcoef(kernel.growth[~first], adata.obs["true_growth"][~first])[0, 1] > 0.3


def test_backward_and_algebra(kernel):
    backward = ~kernel
    assert backward.backward
    backward.compute_transition_matrix()
    np.testing.assert_allclose(row_sums(backward), 1)
    time = kernel.cells.time
    assert ((backward.transition_matrix @ time - time)[time > 0]).mean() < 0
    mixed = 0.8 * kernel + 0.2 * cr.kernels.ConnectivityKernel(kernel.adata).compute_transition_matrix()
    np.testing.assert_allclose(np.asarray(mixed.transition_matrix.sum(axis=1)).ravel(), 1)


@pytest.mark.parametrize("smooth", [False, True])
def test_options_of_the_matrix(kernel, smooth: bool):
    kernel.compute_transition_matrix(similarity="correlation", smooth=smooth, settle=True, threshold=0.01)
    np.testing.assert_allclose(row_sums(kernel), 1)


def test_samples_of_the_field_are_refused_before_work(adata):
    kernel = OTTimeSeriesKernel(adata, time_key="day")
    with pytest.raises(RuntimeError, match="no `compute_uncertainty`. Pass `smooth=False`"):
        kernel.compute_transition_matrix(model="monte_carlo")
    assert kernel.windows is None


def test_matrix_is_cached_and_what_comes_after_a_step_is_cleared(kernel):
    matrix = kernel.transition_matrix
    assert kernel.compute_transition_matrix().transition_matrix is matrix
    kernel.fit_field(**FAST)
    assert kernel._transition_matrix is None
    assert kernel.couplings is not None
    kernel.compute_windows(batch_size=70)
    assert (kernel.couplings, kernel.transport, kernel.field) == (None, None, None)
    assert kernel.settings == {"windows": {"batch_size": 70, "random_state": 0}}


def test_settings_say_what_was_done(kernel):
    assert kernel.settings == {
        "windows": {"batch_size": 1500, "random_state": 0},
        "velocity": {
            "tau": 0.9,
            "n_passes": 4,
            "n_draws": 4,
            "epsilon": 0.05,
            "growth_key": None,
            "mass": "given",
            "clone_key": None,
            "tol": 1e-6,
            "max_iter": 500,
            "random_state": 0,
        },
        "field": {**kernel.settings["field"], "n_steps": 120, "batch_size": 128, "diffusion": "auto"},
    }
    assert set(kernel.settings["field"]) == {
        "hidden",
        "n_steps",
        "batch_size",
        "learning_rate",
        "diffusion",
        "random_state",
    }


# -------------------------------------------------------------------------------------------- writing and reading
@pytest.mark.parametrize("tau", [0.9, (0.95, 0.9)])
def test_all_of_it_survives_a_file(kernel, tmp_path, tau):
    kernel.compute_velocity(tau=tau, mass="counts", **QUIET).fit_field(**FAST).compute_transition_matrix()
    kernel.write_to_adata()
    np.testing.assert_array_equal(kernel.adata.obs["velot_growth"], kernel.growth)
    kernel.adata.write_h5ad(tmp_path / "kernel.h5ad")
    again = OTVelocityKernel.from_adata(ad.read_h5ad(tmp_path / "kernel.h5ad"), key="T_fwd")
    assert again.cells.is_series
    np.testing.assert_array_equal(again.cells.time, kernel.cells.time)
    for stage in ("windows", "transport", "couplings", "field"):
        for name, value in getattr(kernel, stage).to_dict().items():
            found = getattr(getattr(again, stage), name)
            if isinstance(value, dict):
                assert all(np.array_equal(found[key], part) for key, part in value.items())
            else:
                np.testing.assert_array_equal(found, value, err_msg=f"{stage}.{name}")
    np.testing.assert_array_equal(again.growth, kernel.growth)
    np.testing.assert_equal(again.settings, kernel.settings)
    cells = ("Progenitor A", "Progenitor B")
    one, other = (
        k.fate_probabilities({"clusters": cells[:1]}, until=2.5, n_particles=2).table for k in (kernel, again)
    )
    pd.testing.assert_frame_equal(one, other)
    assert again.compute_transition_matrix().transition_matrix.nnz == kernel.transition_matrix.nnz


def test_growth_of_an_earlier_kernel_does_not_stay(kernel):
    kernel.write_to_adata()
    adata = kernel.adata
    adata.obs["pt"] = np.random.default_rng(0).random(adata.n_obs)
    other = OTVelocityKernel(adata, time_key="pt")
    other.compute_transition_matrix(similarity="cosine", smooth=False, **QUIET).write_to_adata()
    assert "velot_growth" not in adata.obs


def test_copies_share_stages_and_not_the_annotation(kernel):
    shallow, deep = kernel.copy(), kernel.copy(deep=True)
    assert shallow.couplings is deep.couplings is kernel.couplings
    assert shallow.adata is kernel.adata
    assert deep.adata is not kernel.adata
    deep.compute_velocity(**QUIET)
    assert deep.couplings is not kernel.couplings


# ---------------------------------------------------------------------------------------------- what it is for
@pytest.mark.parametrize("method", ["paths", "field"])
def test_interpolation_between_and_at_time_points(kernel, method: str):
    known = masses(kernel.adata)
    for time in (0.0, 0.5, 1.0, 1.9, 2.5):
        found = kernel.interpolate(time, method=method)
        assert found.time == time
        assert np.isfinite(found.x).all()
        expected = np.exp(np.interp(time, list(known), np.log(list(known.values()))))
        assert found.mass == pytest.approx(expected, rel=1e-9 if method == "paths" or time in POINTS else 0.25)
    assert kernel.interpolate(1.0, method=method).x.shape[1] == kernel.cells.n_dims


def test_paths_are_of_one_pass_with_all_else_as_the_couplings_have_it(adata, kernel):
    """Growth is found by more passes, and stays as it is; what was expected of it stays what it was at that time."""
    adata.obs["expected"] = np.linspace(-0.5, 0.5, adata.n_obs)
    options = {"tau": 0.8, "epsilon": 0.1, "random_state": 3}
    several = OTTimeSeriesKernel(adata).compute_velocity(**options, growth_key="expected", mass="counts", **QUIET)
    one = OTTimeSeriesKernel(adata).compute_velocity(
        **options, growth_key="expected", mass="counts", n_passes=1, **QUIET
    )
    del adata.obs["expected"]
    before = several.couplings
    for time in (0.5, 1.7):
        found, expected = several.interpolate(time), one.interpolate(time)
        np.testing.assert_array_equal(found.x, expected.x)
        np.testing.assert_array_equal(found.weights, expected.weights)
    assert several.couplings is before
    assert not np.array_equal(found.weights, several.interpolate(1.7, n_passes=4).weights)
    # Other couplings have other paths.
    several.compute_velocity(**QUIET)
    assert not np.array_equal(found.weights, several.interpolate(1.7).weights)
    rigid = OTTimeSeriesKernel(adata).compute_velocity(tau=1, **QUIET)
    np.testing.assert_array_equal(rigid.interpolate(1.7).x, rigid.interpolate(1.7, n_passes=4).x)
    with pytest.raises(ValueError, match="`n_passes`"):
        kernel.interpolate(1.7, n_passes=0)


@pytest.mark.parametrize("method", ["paths", "field"])
@pytest.mark.parametrize("time", [-0.1, 2.6, np.nan])
def test_no_interpolation_outside(kernel, time: float, method: str):
    with pytest.raises(ValueError, match="Expected a time from `0` to `2.5`"):
        kernel.interpolate(time, method=method)


def test_fates_and_ancestors(kernel):
    fates = kernel.fate_probabilities("Progenitor A", ["Fate A", "Fate B"], n_particles=4)
    clusters, day = kernel.adata.obs["clusters"], kernel.adata.obs["day"]
    assert fates.table.index.tolist() == kernel.adata.obs_names[(clusters == "Progenitor A") & (day == 0)].tolist()
    assert fates.table.columns[:2].tolist() == ["Fate A", "Fate B"]
    np.testing.assert_allclose(fates.table.sum(axis=1), 1)
    assert (fates.growth > 0).all()
    assert fates.table["Fate A"].mean() > 0.5
    grouped = kernel.ancestry(group_by="clusters", n_particles=3)
    np.testing.assert_allclose(grouped.table.sum(axis=1), 1)
    np.testing.assert_allclose(grouped.growth, 1)
    assert grouped.table.loc["Fate A", "Progenitor A"] > grouped.table.loc["Fate B", "Progenitor A"]
    middle = kernel.ancestry({"day": (1.0, 1.0)}, until=0.0, n_particles=2, group_by="clusters")
    np.testing.assert_allclose(middle.table.sum(axis=1), 1)
    unweighted = kernel.fate_probabilities(group_by="day", n_particles=3, weighted=False)
    np.testing.assert_allclose(unweighted.growth, 1)
    same = [kernel.fate_probabilities(group_by="day", n_particles=3, random_state=s).table for s in (5, 5, 6)]
    pd.testing.assert_frame_equal(same[0], same[1])
    assert not same[0].equals(same[2])


def test_groups_that_lie_at_the_same_places_are_pointed_out(kernel, caplog):
    mixed = np.random.default_rng(0).integers(3, size=kernel.adata.n_obs).astype(str)
    kernel.adata.obs["mixed"] = pd.Categorical(mixed)
    with caplog.at_level(logging.WARNING):
        kernel.fate_probabilities(group_by="mixed", n_particles=10)
    assert "All 3 groups have nearly the same descendants" in caplog.text
    caplog.clear()
    kernel.adata.obs["apart"] = np.where(mixed == "0", "first", kernel.adata.obs["clusters"].astype(str))
    with caplog.at_level(logging.WARNING):
        kernel.fate_probabilities(group_by="apart", n_particles=10)
    assert "nearly the same" not in caplog.text


def test_clusters_may_be_numbers(kernel):
    kernel.adata.obs["leiden"] = pd.Categorical(kernel.adata.obs["clusters"].cat.codes.to_numpy())
    table = kernel.fate_probabilities(None, [2, 3], cluster_key="leiden", group_by="day", n_particles=2).table
    assert table.columns[:2].tolist() == ["2", "3"]


def test_process_of_some_cells(kernel):
    paths = kernel.simulate_process(n_particles=70, n_saved=4)
    assert paths.x.shape == (5, 70, kernel.cells.n_dims)
    assert (paths.time[0] == 0).all()
    np.testing.assert_allclose(paths.time[-1], 2.5)
    assert np.bincount(paths.start_ix).max() == 1
    chosen = kernel.simulate_process({"clusters": "Fate A", "day": (2.5, 2.5)}, 0.0, n_particles=10)
    assert chosen.direction == "backward"
    assert set(kernel.adata.obs["clusters"].iloc[chosen.start_ix]) == {"Fate A"}
    back = kernel.simulate_process("Fate A", 0.0, n_particles=10)
    assert (back.time[0] == 2.5).all(), "backward, a cluster is that of the last time point"


def test_wrong_questions_of_descent_are_refused(kernel):
    for call, match in (
        (lambda: kernel.fate_probabilities("Fate Z"), "Fate Z"),
        (lambda: kernel.fate_probabilities(None, "Fate Z"), "Fate Z"),
        (lambda: kernel.ancestry(group_by="batch"), "batch"),
        (lambda: kernel.ancestry(cluster_key="leiden"), "leiden"),
    ):
        with pytest.raises(KeyError, match=match):
            call()
    with pytest.raises(ValueError, match="Expected cells earlier than `until=1`"):
        kernel.fate_probabilities({"day": (0.0, 1.0)}, until=1.0)
    with pytest.raises(ValueError, match="Expected cells later than `until=1`"):
        kernel.ancestry({"day": (1.0, 2.5)}, until=1.0)
    with pytest.raises(ValueError, match="Expected cells of 'Fate B' at time `0`, found none"):
        kernel.fate_probabilities("Fate B")
    with pytest.raises(ValueError, match="`n_particles` to be at least `1`"):
        kernel.ancestry(n_particles=0)
    with pytest.raises(ValueError, match="`method` to be one of"):
        kernel.interpolate(1.0, method="mean")


# ------------------------------------------------------------------------------------------- the host's own kernel
def test_couplings_serve_the_real_time_kernel(kernel):
    adata = kernel.adata
    adata.obs["stage"] = pd.Categorical(adata.obs["day"])
    pairs = list(zip(POINTS[:-1], POINTS[1:], strict=True))
    couplings = {pair: kernel.coupling(*pair) for pair in pairs}
    for (source, target), coupling in couplings.items():
        assert coupling.obs_names.tolist() == adata.obs_names[adata.obs["day"] == source].tolist()
        assert coupling.var_names.tolist() == adata.obs_names[adata.obs["day"] == target].tolist()
        np.testing.assert_allclose(np.asarray(coupling.X.sum(axis=1)).ravel(), 1)
    rtk = cr.kernels.RealTimeKernel(adata, "stage", couplings=couplings)
    rtk.compute_transition_matrix(threshold=None, self_transitions="all", conn_weight=0.2)
    matrix = rtk.transition_matrix
    assert matrix.shape == (450, 450)
    np.testing.assert_allclose(np.asarray(matrix.sum(axis=1)).ravel(), 1)
    first, second = (np.flatnonzero(adata.obs["day"] == day) for day in POINTS[:2])
    np.testing.assert_allclose(np.asarray(matrix[first][:, second].sum(axis=1)).ravel(), 0.8)
    assert kernel.coupling().shape == kernel.coupling(0.0, 1.0).shape
    mixed = 0.5 * kernel + 0.5 * rtk
    np.testing.assert_allclose(np.asarray(mixed.transition_matrix.sum(axis=1)).ravel(), 1)


@pytest.mark.parametrize("pair", [(0.0, 2.5), (1.0, 0.0), (2.5, 3.0), (0.5, 1.0), (None, 2.5)])
def test_coupling_of_other_pairs_is_refused(kernel, pair):
    with pytest.raises(ValueError, match="two consecutive of the time points"):
        kernel.coupling(*pair)


# ---------------------------------------------------------------------------------- trajectories in real units
@pytest.mark.parametrize("use_network", [True, False])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_trajectories_have_times_in_real_units(kernel, direction: str, use_network: bool):
    start = 0.0 if direction == "forward" else 2.5
    paths = kernel.compute_trajectories(
        direction=direction, start_time=(start, start), n_trajectories=12, use_network=use_network, **QUIET
    )
    frame = paths.to_frame()
    np.testing.assert_allclose(frame["start_time"], start)
    assert frame["end_time"].between(0.0, 2.5).all()
    sign = 1 if direction == "forward" else -1
    assert (sign * (frame["end_time"] - start) > 0).mean() > 0.9
    ended = np.abs(frame["end_time"] - (2.5 - start))
    assert ended.min() < 1e-6, "some come to the end of time"


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_flow_has_times_in_real_units(kernel, direction: str):
    paths = kernel.simulate_flow(direction=direction, n_particles=40, n_steps=200, **QUIET)
    frame = paths.to_frame()
    np.testing.assert_allclose(frame["start_time"], 0.0 if direction == "forward" else 2.5)
    assert frame["end_time"].between(0.0, 2.5).all()
    np.testing.assert_allclose(paths.fates()["share"].sum(), 1)


def test_speed_of_trajectories_is_that_of_the_field(kernel):
    cells = kernel.cells
    rescaled = Rescaled(kernel.field, *cells.time_range)
    x, time = torch.tensor(cells.x[:5]), torch.tensor(cells.time[:5])
    found = rescaled.on("cpu")(x, torch.tensor(cells.unit_time[:5]))
    torch.testing.assert_close(found, kernel.field.on("cpu")(x, time) * 2.5)
    np.testing.assert_allclose(cells.unit_time, cells.time / 2.5)


# ------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("compute_windows", {"n_clusters": 3}),
        ("compute_windows", {"overlap": 0.2}),
        ("compute_windows", {"time_lag": None}),
        ("compute_velocity", {"lambda_time": 0.5}),
        ("compute_velocity", {"reach": None}),
        ("compute_velocity", {"relaxation": 0.1}),
        ("fit_field", {"use_time": False}),
        ("fit_field", {"lambda_curl": 1.0}),
        ("fit_field", {"patience": 3}),
    ],
)
def test_options_of_pseudotime_are_refused(adata, method: str, options: dict):
    kernel = OTVelocityKernel(adata, **SERIES)
    (name,) = options
    with pytest.raises(TypeError, match=f"Expected `{name}` with pseudotime only"):
        getattr(kernel, method)(**options)
    assert kernel.windows is None


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("compute_windows", {"batch_size": 100}),
        ("compute_velocity", {"tau": 0.9}),
        ("compute_velocity", {"tau": np.array([0.9, 0.9])}),
        ("compute_velocity", {"mass": "counts"}),
        ("compute_velocity", {"growth_key": "growth"}),
        ("compute_velocity", {"n_passes": 2}),
        ("fit_field", {"diffusion": "auto"}),
    ],
)
def test_options_of_real_time_are_refused_in_pseudotime(planted, method: str, options: dict):
    kernel = OTVelocityKernel(planted.adata())
    (name,) = options
    with pytest.raises(TypeError, match=f"Expected `{name}` with snapshots at real time points only"):
        getattr(kernel, method)(**options)


def test_questions_of_real_time_are_refused_in_pseudotime(planted):
    kernel = OTVelocityKernel(planted.adata(), cluster_key="clusters")
    assert kernel.couplings is None
    for call in (
        lambda: kernel.growth,
        lambda: kernel.interpolate(0.5),
        lambda: kernel.simulate_process(),
        lambda: kernel.fate_probabilities(),
        lambda: kernel.ancestry(),
        lambda: kernel.coupling(),
    ):
        with pytest.raises(RuntimeError, match="snapshots at real time points, found pseudotime"):
            call()


def test_steps_that_are_missing_are_named(adata):
    kernel = OTVelocityKernel(adata, **SERIES)
    for call in (lambda: kernel.interpolate(0.5), lambda: kernel.coupling()):
        with pytest.raises(RuntimeError, match=r"couplings first, as `.compute_velocity\(\)`"):
            call()


def test_uncertainty_from_halves_is_of_pseudotime(kernel):
    with pytest.raises(
        RuntimeError,
        match="Expected pseudotime, found .* which has no `compute_uncertainty`",
    ):
        kernel.compute_uncertainty(**QUIET)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"tau": 0.0}, ValueError, r"`tau` to be in \(0, 1\]"),
        ({"tau": 1.5}, ValueError, r"`tau` to be in \(0, 1\]"),
        ({"tau": [0.9, -1]}, ValueError, r"`tau` to be in \(0, 1\]"),
        ({"epsilon": -1.0}, ValueError, "`epsilon`"),
        ({"n_passes": 0}, ValueError, "`n_passes`"),
        ({"random_state": -1}, ValueError, "`random_state` to be at least `0`"),
        ({"growth_key": "missing"}, KeyError, "score_growth"),
        ({"growth_key": "clusters"}, TypeError, r"adata.obs\['clusters'\]` to be numeric"),
        ({"growth_key": "holes"}, ValueError, r"found NaN or infinite ones in `2` cells: 'cell0', 'cell7'"),
        ({"mass": "cells"}, ValueError, r"`mass` to be one of \['counts'\]"),
        ({"mass": {0.0: 1.0, 1.0: 2.0}}, ValueError, r"one for each time point of \[0.0, 1.0, 2.5\]"),
        ({"mass": {0.0: 1.0, 1.0: 2.0, 2.5: -1.0}}, ValueError, r"positive `mass`, found \[1.0, 2.0, -1.0\]"),
        ({"mass": [1.0, 2.0]}, ValueError, r"`mass` as 'counts', or one for each"),
        ({"mass": {"early": 1.0, "middle": 2.0, "late": 3.0}}, ValueError, r"one for each time point of"),
    ],
)
def test_wrong_options_of_transport_are_refused_before_work(adata, options: dict, error: type[Exception], match: str):
    adata.obs["holes"] = 0.1
    adata.obs.iloc[[0, 7], adata.obs.columns.get_loc("holes")] = np.nan
    kernel = OTVelocityKernel(adata, **SERIES)
    with pytest.raises(error, match=match):
        kernel.compute_velocity(**options, **QUIET)
    assert kernel.windows is None
    assert kernel.couplings is None


def test_none_stands_for_the_default_as_in_version_0_1(adata):
    kernel = OTVelocityKernel(adata, **SERIES).compute_windows(batch_size=None)
    kernel.compute_velocity(tau=None, n_passes=None, n_draws=None, **QUIET)
    assert kernel.settings["windows"] == SnapshotOptions().to_dict()
    assert kernel.settings["velocity"] == PopulationOptions().to_dict()
    none = dict.fromkeys(("diffusion", "n_steps", "batch_size", "learning_rate"))
    assert ProcessOptions(**none) == ProcessOptions()


def test_layer_sizes_that_are_no_sequence_are_refused(adata):
    kernel = OTVelocityKernel(adata, **SERIES)
    with pytest.raises(TypeError, match="`hidden` to be a sequence of layer sizes, found `int`"):
        kernel.fit_field(hidden=5)
    assert kernel.windows is None


def test_masses_of_a_series_of_pandas_are_saved(kernel):
    kernel.compute_velocity(mass=pd.Series(masses(kernel.adata)), **QUIET)
    assert kernel.settings["velocity"]["mass"] == "given"


def test_masses_keep_to_their_time_points(adata):
    # As texts, these times would be in another order.
    adata.obs["day"] = adata.obs["day"].map({0.0: 2.0, 1.0: 7.5, 2.5: 10.0})
    kernel = OTVelocityKernel(adata, **SERIES)
    kernel.compute_velocity(mass={7.5: 6.0, 10: 30.0, 2: 2.0}, **QUIET)
    np.testing.assert_array_equal(kernel.couplings.mass, [1, 3, 15])
    kernel.compute_velocity(mass="counts", **QUIET)
    np.testing.assert_array_equal(kernel.couplings.mass, [1, 1, 1])


def test_expected_growth_is_read(adata):
    adata.obs["expected"] = np.where(adata.obs["clusters"].isin(["Progenitor A", "Fate A"]), 0.5, -0.5)
    plain, guided = (
        OTVelocityKernel(adata, **SERIES).compute_velocity(growth_key=key, **QUIET).growth for key in (None, "expected")
    )
    early = adata.obs["day"] == 0
    more = guided - plain
    assert more[early & (adata.obs["expected"] > 0)].mean() > 0.05 > more[early & (adata.obs["expected"] < 0)].mean()


# ---------------------------------------------------------------------------------------------------- the time
@pytest.mark.parametrize("kind", [int, float, str])
def test_time_may_be_categorical(adata, kind):
    adata.obs["day"] = pd.Categorical([kind(value) for value in adata.obs["day"].map({0.0: 0, 1.0: 2, 2.5: 10})])
    kernel = OTVelocityKernel(adata, **SERIES)
    np.testing.assert_array_equal(kernel.cells.time_points, [0, 2, 10])
    assert kernel.cells.time_range == (0.0, 10.0)
    assert kernel.compute_velocity(**QUIET).couplings.n_intervals == 2


def test_an_unused_category_is_no_time_point(adata):
    adata.obs["day"] = pd.Categorical(adata.obs["day"], categories=[0.0, 1.0, 1.5, 2.5, 7.0])
    assert OTVelocityKernel(adata, **SERIES).cells.time_points.tolist() == list(POINTS)


def test_usual_keys_are_found(adata):
    assert OTVelocityKernel(adata, time_kind="experimental").cells.time_points.tolist() == list(POINTS)
    adata.obs["batch_time"] = adata.obs.pop("day")
    with pytest.raises(KeyError, match="Expected one of .*'day'"):
        OTVelocityKernel(adata, time_kind="experimental")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda day: day.map({0.0: "E18", 1.0: "P0", 2.5: "P2"}), TypeError, "to be numeric"),
        (lambda day: pd.Categorical(day.map({0.0: "a", 1.0: "b", 2.5: "c"})), TypeError, "to be numeric"),
        (lambda day: day.where(day > 0), ValueError, "to be finite, found NaN or infinite values in `150` of `450`"),
        (lambda day: day * 0 + 3, ValueError, "to vary, found the constant `3`"),
        (lambda day: day + np.random.default_rng(0).random(450), ValueError, "A pseudotime needs `time_kind="),
    ],
)
def test_wrong_time_is_refused(adata, change, error: type[Exception], match: str):
    adata.obs["day"] = change(adata.obs["day"])
    with pytest.raises(error, match=match):
        OTVelocityKernel(adata, **SERIES)


def test_unknown_kind_of_time_is_refused(adata):
    with pytest.raises(ValueError, match=r"`time_kind` to be one of \['pseudotime', 'experimental'\]"):
        OTVelocityKernel(adata, time_key="day", time_kind="real")


def test_a_time_point_of_five_cells_works_and_is_said(adata, caplog):
    few = np.r_[0:5, 150:450]
    adata = adata[few].copy()
    with caplog.at_level(logging.WARNING, "cellrank_velot"):
        kernel = OTVelocityKernel(adata, **SERIES)
    assert "fewer than 20 cells say little of their population: 0 (5)" in caplog.text
    kernel.compute_velocity(**QUIET).fit_field(**FAST).compute_transition_matrix()
    np.testing.assert_allclose(row_sums(kernel), 1)
    assert np.isfinite(kernel.growth).all()


def test_kernel_of_a_pseudotime_is_as_it_was(planted):
    kernel = OTVelocityKernel(planted.adata())
    assert not kernel.cells.is_series
    assert kernel.cells.time_range == (0.0, 1.0)
    assert kernel.cells.unit_time is kernel.cells.time


def test_groups_start_from_equally_many_cells(monkeypatch):
    monkeypatch.setattr("cellrank_velot.kernel.populations.MAX_STARTS", 100)
    groups = pd.Index(["many"] * 500 + ["some"] * 60 + ["few"] * 7)
    starts = np.random.default_rng(0).permutation(567)
    chosen = _some_of_each(starts, groups[starts], 0)
    assert groups[chosen].value_counts().to_dict() == {"few": 7, "some": 46, "many": 47}
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, _some_of_each(starts, groups[starts], 0))
    assert not np.array_equal(chosen, _some_of_each(starts, groups[starts], 1))
    np.testing.assert_array_equal(_some_of_each(starts[:100], groups[starts[:100]], 0), starts[:100])


def test_a_table_of_groups_takes_fewer_particles_from_many_cells(kernel, monkeypatch):
    followed = []
    process = type(kernel)._process

    def counted(self, starts, *more):
        followed.append(starts.size)
        return process(self, starts, *more)

    monkeypatch.setattr(type(kernel), "_process", counted)
    n_first = int((kernel.cells.time == kernel.cells.time_points[0]).sum())
    for in_all, each in ((10_000, 20), (12 * n_first, 12), (1, 5)):
        monkeypatch.setattr("cellrank_velot.kernel.populations.PARTICLES_OF_GROUPS", in_all)
        kernel.fate_probabilities(group_by="clusters", n_steps=5)
        assert followed[-1] == each * n_first
    kernel.fate_probabilities(n_steps=5)
    assert followed[-1] == 20 * n_first
