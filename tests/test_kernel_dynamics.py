"""Trajectories, flow and projection as methods of the kernel: what they pass on, write, and refuse."""

import logging
from dataclasses import replace

import anndata as ad
import numpy as np
import pytest

from cellrank_velot import OTVelocityKernel, datasets, metrics
from cellrank_velot.dynamics import Status, TrajectoryOptions, compute_trajectories
from cellrank_velot.embedding.projection import project_by_linear_map, project_by_transitions
from cellrank_velot.field import FieldOptions, fit_field
from cellrank_velot.storage import pack as storage

QUIET = {"show_progress_bar": False}


@pytest.fixture(scope="module")
def simulated() -> OTVelocityKernel:
    """Return a kernel with its field on 600 simulated cells of two fates."""
    kernel = OTVelocityKernel(datasets.bifurcation(n_cells=600))
    return kernel.compute_transition_matrix(show_progress_bar=False)


@pytest.fixture
def kernel(simulated) -> OTVelocityKernel:
    """Return it with an AnnData of one's own."""
    return simulated.copy(deep=True)


def same(one, other) -> bool:
    return all(np.array_equal(value, other.to_dict()[name]) for name, value in one.to_dict().items())


# ---------------------------------------------------------------------------------------------- trajectories
def test_is_a_thin_call_of_the_function(kernel):
    cells, clusters = kernel.cells, kernel.adata.obs["clusters"]
    by_kernel = kernel.compute_trajectories(start_cluster="Progenitor", n_trajectories=5, random_state=3, **QUIET)
    starts = np.flatnonzero(clusters == "Progenitor")
    options = TrajectoryOptions(n_trajectories=5, random_state=3)
    by_function = compute_trajectories(kernel.field, cells.x, cells.time, starts, options, clusters=clusters)
    assert same(by_kernel, replace(by_function, basis="X_pca"))


def test_forward_ends_in_the_fates_and_backward_in_their_origin(kernel):
    forward = kernel.compute_trajectories(start_cluster="Progenitor", n_trajectories=40, **QUIET).to_frame()
    assert forward["end_cluster"].isin(["Fate A", "Fate B"]).mean() > 0.9
    backward = kernel.compute_trajectories(
        start_cluster=["Fate A", "Fate B"], direction="backward", n_trajectories=40, **QUIET
    ).to_frame()
    stays = backward["status"] != Status.LEFT_DATA.message
    assert stays.mean() > 0.5
    assert (backward.loc[stays, "end_cluster"] == "Progenitor").mean() > 0.8
    assert (backward["end_time"] < backward["start_time"]).mean() > 0.9


def test_all_conditions_on_the_start_must_hold(kernel):
    clusters, time = kernel.adata.obs["clusters"].to_numpy(), kernel.cells.time
    paths = kernel.compute_trajectories(
        {"clusters": ["Progenitor", "Transition"]},
        "Transition",
        start_time=(None, 0.4),
        n_trajectories=1000,
        n_steps=2,
        **QUIET,
    )
    expected = np.flatnonzero((clusters == "Transition") & (time <= 0.4))
    np.testing.assert_array_equal(np.sort(paths.start_ix), expected)


def test_target_keeps_those_that_arrive_and_says_how_many(kernel, caplog):
    with caplog.at_level(logging.INFO, "cellrank_velot"):
        paths = kernel.compute_trajectories(
            start_cluster="Transition", target_cluster="Fate A", n_trajectories=6, max_attempts_factor=20, **QUIET
        )
    assert set(paths.statuses) == {"arrived"}
    assert set(paths.to_frame()["end_cluster"]) == {"Fate A"}
    assert len(paths) <= 6 < paths.n_tried
    assert "forward trajectories arrived at 'Fate A'" in caplog.text


def test_direction_is_that_of_the_kernel(kernel):
    few = {"start_cluster": "Fate A", "n_trajectories": 4, "n_steps": 60, "key_added": None, **QUIET}
    backward = (~kernel).compute_trajectories(**few)
    asked = kernel.compute_trajectories(direction="backward", **few)
    assert (backward.direction == -1).all()
    assert same(backward, asked)
    both = kernel.compute_trajectories(direction="both", **few)
    np.testing.assert_array_equal(both.direction, [1] * 4 + [-1] * 4)


@pytest.mark.parametrize("smooth", [True, False])
def test_without_the_network_paths_go_the_same_way(kernel, smooth):
    options = {"start_cluster": "Progenitor", "n_trajectories": 20, "n_steps": 150, **QUIET}
    network = kernel.compute_trajectories(**options)
    nearest = kernel.compute_trajectories(use_network=False, smooth=smooth, **options)
    way = [paths.ends - paths.starts for paths in (network, nearest)]
    cosine = np.sum(way[0] * way[1], axis=1) / np.prod([np.linalg.norm(part, axis=1) for part in way], axis=0)
    assert np.median(cosine) > 0.8
    assert not same(network, nearest)


def test_raw_velocity_needs_no_field(adata):
    kernel = OTVelocityKernel(adata).compute_windows(min_window_size=10).compute_velocity(**QUIET)
    paths = kernel.compute_trajectories(use_network=False, smooth=False, n_trajectories=3, n_steps=20, **QUIET)
    assert kernel.field is None
    assert len(paths) == 3


def test_missing_steps_are_run(adata):
    kernel = OTVelocityKernel(adata)
    kernel.compute_trajectories(n_trajectories=2, n_steps=5, **QUIET)
    assert kernel.field is not None


def test_the_current_is_fitted_once_and_forgotten_with_the_field(kernel):
    kernel.compute_velocity(relaxation=0.3, **QUIET).fit_field(n_steps=50, **QUIET)
    current = kernel.current_field(**QUIET)
    assert kernel.current_field() is current is not kernel.field
    transport, settings = kernel.transport, kernel.settings["field"]
    again = fit_field(
        kernel.cells.x,
        kernel.cells.time,
        transport.velocity - transport.relaxation,
        transport.fit_weight,
        kernel.smoothed.graph,
        options=FieldOptions(**settings),
        smoothed=kernel.smoothed,
    )
    for name, weights in again.weights.items():
        np.testing.assert_array_equal(weights, current.weights[name])
    assert (~kernel).current_field() is current
    kernel.fit_field(n_steps=25, **QUIET)
    assert kernel.current_field(**QUIET) is not current


def test_without_relaxation_the_current_is_the_field(adata):
    kernel = OTVelocityKernel(adata).compute_windows(min_window_size=10)
    kernel.compute_velocity(**QUIET).fit_field(n_steps=25, **QUIET)
    assert kernel.current_field() is kernel.field


# ------------------------------------------------------------------------------------------------------ flow
@pytest.mark.parametrize("seed", [70])
def test_fates_of_the_flow_agree_with_those_of_cellrank(seed):
    """Within 0.1 on simulated cells whose two fates are equally likely.

    Not on every set: over seeds the flow spreads more than CellRank's chain does, docs/dynamics.md counts them.
    """
    import cellrank as cr

    adata = datasets.bifurcation(n_cells=1000, random_state=seed)
    kernel = OTVelocityKernel(adata).compute_transition_matrix(**QUIET)
    estimator = cr.estimators.GPCCA(kernel)
    estimator.set_terminal_states(kernel.suggest_terminal_states("clusters"))
    estimator.compute_fate_probabilities(use_petsc=False, solver="direct", show_progress_bar=False)
    lineages = [str(name) for name in estimator.fate_probabilities.names]
    source = (adata.obs["clusters"] == "Progenitor").to_numpy()
    expected = np.asarray(estimator.fate_probabilities.X)[source].mean(axis=0)
    flow = kernel.simulate_flow(source_cluster="Progenitor", terminal_clusters=lineages, n_particles=400, **QUIET)
    fates = flow.fates(lineages)
    assert fates.loc["none", "share"] < 0.1
    np.testing.assert_allclose(fates.loc[lineages, "probability"], expected, atol=0.1)


def test_particles_start_early_where_nothing_is_said(kernel):
    time = kernel.cells.time
    forward = kernel.simulate_flow(n_particles=30, n_steps=2, **QUIET)
    assert time[forward.start_ix].max() <= 0.1
    backward = kernel.simulate_flow(n_particles=30, n_steps=2, direction="backward", **QUIET)
    assert time[backward.start_ix].min() >= 0.9


def test_particles_start_in_the_box(kernel):
    x = kernel.adata.obsm["X_umap"]
    middle = float(np.median(x[:, 0]))
    flow = kernel.simulate_flow(source_x_lim=(None, middle), source_y_lim=(x[:, 1].min(), None), n_steps=2, **QUIET)
    assert x[flow.start_ix, 0].max() <= middle
    assert kernel.cells.time[flow.start_ix].max() > 0.1
    with pytest.raises(ValueError, match="found none"):
        kernel.simulate_flow(source_x_lim=(1e6, None), **QUIET)
    with pytest.raises(KeyError, match="X_umap"):
        kernel.simulate_flow(source_x_lim=(0, None), basis="tsne", **QUIET)


# ---------------------------------------------------------------------------------------------------- storage
def test_paths_fates_and_statuses_survive_h5ad(kernel, tmp_path):
    few = {"start_cluster": "Progenitor", "n_trajectories": 5, "n_steps": 60, "direction": "both", **QUIET}
    paths = kernel.compute_trajectories(**few)
    flow = kernel.simulate_flow(n_particles=20, n_steps=60, terminal_clusters="Fate A", save_every=10, **QUIET)
    kernel.write_to_adata()
    kernel.adata.write_h5ad(tmp_path / "cells.h5ad")
    read = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert same(storage.read_trajectories(read, "velot_trajectories"), paths)
    assert same(storage.read_trajectories(read, "velot_flow"), flow)
    again = OTVelocityKernel.from_adata(read, "T_fwd")
    repeated = again.compute_trajectories(**few)
    assert same(repeated, paths)


def test_key_added_and_nothing_written_without(kernel):
    before = set(kernel.adata.uns)
    kernel.compute_trajectories(n_trajectories=2, n_steps=2, key_added=None, **QUIET)
    kernel.simulate_flow(n_particles=2, n_steps=2, key_added=None, **QUIET)
    assert set(kernel.adata.uns) == before
    kernel.compute_trajectories(n_trajectories=2, n_steps=2, key_added="mine", **QUIET)
    assert len(storage.read_trajectories(kernel.adata, "mine")) == 2


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"start_cluster": "Nowhere"}, KeyError, "found 'Nowhere'"),
        ({"target_cluster": "Nowhere"}, KeyError, "found 'Nowhere'"),
        ({"cluster_key": "louvain"}, KeyError, "louvain"),
        ({"start_time": (2, 3)}, ValueError, "meet all conditions"),
        ({"start_ixs": []}, ValueError, "meet all conditions"),
        ({"direction": "sideways"}, ValueError, "direction"),
        ({"device": "abacus"}, ValueError, "device"),
        ({"method": "leapfrog"}, ValueError, "method"),
        ({"n_steps": 0}, ValueError, "n_steps"),
    ],
)
def test_refuses_and_writes_nothing(kernel, options, error, match):
    before = set(kernel.adata.uns)
    with pytest.raises(error, match=match):
        kernel.compute_trajectories(**options, **QUIET)
    assert set(kernel.adata.uns) == before


def test_clusters_must_be_named_where_none_is_known(adata):
    del adata.obs["clusters"]
    kernel = OTVelocityKernel(adata)
    with pytest.raises(KeyError, match="cluster_key"):
        kernel.compute_trajectories(start_cluster="stem", **QUIET)
    paths = kernel.compute_trajectories(n_trajectories=2, n_steps=2, **QUIET)
    assert paths.clusters.size == 0
    assert paths.to_frame()["end_cluster"].isna().all()


# ------------------------------------------------------------------------------------------------- projection
def test_projection_is_written_where_scvelo_finds_it(kernel):
    x = kernel.adata.obsm["X_umap"]
    velocity = kernel.project_velocity("umap")
    np.testing.assert_array_equal(kernel.adata.obsm["velocity_umap"], velocity)
    np.testing.assert_array_equal(
        velocity, project_by_transitions(kernel.transition_matrix, x, graph=kernel.connectivities)
    )
    by_map = kernel.project_velocity("X_umap", "linear_map", key_added="mine")
    np.testing.assert_array_equal(kernel.adata.obsm["mine"], by_map)
    expected = project_by_linear_map(kernel.cells.x, kernel.velocity, x, kernel.connectivities)
    np.testing.assert_array_equal(by_map, expected)


def test_scvelo_draws_it(kernel):
    import scvelo as scv

    kernel.project_velocity("umap")
    ax = scv.pl.velocity_embedding_stream(kernel.adata, basis="umap", color="clusters", show=False)
    assert ax.has_data()


def test_cellrank_draws_the_projection_that_knows_the_weights(kernel, monkeypatch):
    drawn = []
    monkeypatch.setattr("scvelo.pl.velocity_embedding_stream", lambda *_, vkey, **__: drawn.append(vkey))
    kernel.plot_projection("X_umap", color="clusters")
    np.testing.assert_array_equal(kernel.adata.obsm["T_fwd_umap"], kernel.project_velocity("umap"))
    truth = project_by_linear_map(kernel.cells.x, kernel.adata.obsm["true_velocity_pca"], kernel.adata.obsm["X_umap"])
    ours = metrics.cosine_to_truth(kernel.adata.obsm["T_fwd_umap"], truth)
    kernel.plot_projection(connectivities=kernel.connectivities, key_added="theirs", recompute=True)
    theirs = metrics.cosine_to_truth(kernel.adata.obsm["theirs_umap"], truth)
    assert ours > theirs + 0.03
    assert drawn == ["T_fwd", "theirs"]


@pytest.mark.parametrize("method", ["transitions", "linear_map"])
def test_backward_projection_points_back(kernel, method):
    forward = kernel.project_velocity("umap", method)
    backward = (~kernel).compute_transition_matrix(backward_mode="negate").project_velocity("umap", method)
    cosine = np.sum(forward * backward, axis=1) / np.linalg.norm(forward, axis=1) / np.linalg.norm(backward, axis=1)
    assert np.median(cosine) < -0.8


def test_projection_to_three_dimensions_and_a_warning_for_tsne(kernel, caplog):
    kernel.adata.obsm["X_tsne"] = np.column_stack([kernel.adata.obsm["X_umap"], np.zeros(600)])
    assert kernel.project_velocity("tsne").shape == (600, 3)
    assert "t-SNE" in caplog.text
    assert "velocity_tsne" in kernel.adata.obsm


def test_weighted_projection_uses_the_confidence(kernel):
    plain = kernel.project_velocity("umap")
    weighted = kernel.project_velocity("umap", weighting="confidence")
    assert not np.array_equal(plain, weighted)
    cosine = np.sum(plain * weighted, axis=1) / np.linalg.norm(plain, axis=1) / np.linalg.norm(weighted, axis=1)
    assert np.nanmedian(cosine) > 0.95


def test_raw_projection_has_no_number_where_there_is_no_velocity(kernel):
    velocity = kernel.project_velocity("umap", "linear_map", smooth=False)
    np.testing.assert_array_equal(np.isnan(velocity).any(axis=1), np.isnan(kernel.raw_velocity).any(axis=1))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"basis": "tsne"}, KeyError, "X_umap"),
        ({"method": "magic"}, ValueError, "method"),
        ({"weighting": "magic"}, ValueError, "weighting"),
        ({"method": "linear_map", "ridge": -1}, ValueError, "ridge"),
    ],
)
def test_projection_refuses(kernel, options, error, match):
    with pytest.raises(error, match=match):
        kernel.project_velocity(**options)


def test_projection_needs_the_transition_matrix(adata):
    kernel = OTVelocityKernel(adata)
    with pytest.raises(RuntimeError, match="compute_transition_matrix"):
        kernel.project_velocity("umap")
    with pytest.raises(RuntimeError, match="fit_field"):
        kernel.project_velocity("umap", "linear_map")


# ---------------------------------------------------------------------------------- what must not happen on the way
def test_a_matrix_of_the_raw_velocity_survives_the_field(adata):
    kernel = OTVelocityKernel(adata).compute_windows(min_window_size=10)
    kernel.compute_transition_matrix(smooth=False, **QUIET)
    before = kernel.transition_matrix.copy()
    kernel.write_to_adata()
    for found in (kernel, OTVelocityKernel.from_adata(adata, "T_fwd")):
        assert found.field is None
        found.compute_trajectories(n_trajectories=2, n_steps=2, key_added=None, **QUIET)
        assert found.field is not None
        assert (found.transition_matrix != before).nnz == 0
        assert found.params["smooth"] is False
    kernel.compute_transition_matrix(**QUIET)
    kernel.fit_field(n_steps=25, **QUIET)
    with pytest.raises(RuntimeError, match="compute_transition_matrix"):
        kernel.project_velocity("umap")


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        ("compute_trajectories", {"method": "rk5"}, "method"),
        ("compute_trajectories", {"step_size": 0}, "step_size"),
        ("simulate_flow", {"diffusion": -1}, "diffusion"),
        ("simulate_flow", {"max_distance": 0.5}, "max_distance"),
    ],
)
def test_options_are_checked_before_work_begins(adata, method, options, match):
    kernel = OTVelocityKernel(adata)
    with pytest.raises(ValueError, match=match):
        getattr(kernel, method)(**options, **QUIET)
    assert kernel.windows is None


def test_velocity_is_computed_where_no_field_is_needed(adata):
    kernel = OTVelocityKernel(adata)
    kernel.compute_trajectories(use_network=False, smooth=False, n_trajectories=2, n_steps=2, **QUIET)
    assert kernel.transport is not None
    assert kernel.field is None


def test_fates_are_the_terminal_clusters_of_the_flow(kernel):
    flow = kernel.simulate_flow(
        source_cluster="Progenitor", terminal_clusters=["Fate A", "Fate B"], n_particles=60, n_steps=40, **QUIET
    )
    found = flow.fates()
    assert list(found.index) == ["Fate A", "Fate B", "none"]
    assert found["n_particles"].sum() == 60
    assert found.equals(flow.fates(["Fate A", "Fate B", "Fate A"]))
    assert list(flow.select(flow.ids[:5]).fates().index) == list(found.index)


def test_trajectories_know_their_basis_and_cells(adata):
    adata.obsm["X_turned"] = adata.obsm["X_pca"][:, ::-1].copy()
    kernel = OTVelocityKernel(adata, basis="X_turned")
    paths = kernel.compute_trajectories(n_trajectories=3, n_steps=3, **QUIET)
    assert storage.read_trajectories(adata, "velot_trajectories").basis == paths.basis == "X_turned"
    with pytest.raises(ValueError, match="of these `240` cells"):
        storage.read_trajectories(adata[::-1].copy(), "velot_trajectories")


def test_projection_refuses_options_of_the_other_method(kernel):
    with pytest.raises(ValueError, match="`weighting` with `method='transitions'` only"):
        kernel.project_velocity("umap", "linear_map", weighting="distance")
    with pytest.raises(ValueError, match="`n_neighbors` and `smooth` with `method='linear_map'` only"):
        kernel.project_velocity("umap", smooth=False)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("plot_velocity", ()),
        ("plot_velocity", ("umap", "grid")),
        ("plot_velocity", ("umap", "quiver")),
        ("plot_comparison", ()),
        ("plot_windows", ()),
        ("plot_window_transport", (0,)),
        ("plot_spatial_clusters", ()),
        ("plot_confidence", ()),
        ("plot_training", ()),
        ("plot_trajectories", ()),
        ("plot_flow", ()),
        ("plot_fates", ()),
        ("animate_flow", ()),
    ],
)
def test_each_plot_is_a_method(kernel, method, arguments):
    import matplotlib.pyplot as plt

    options = {"n_steps": 60, "save_every": 10, **QUIET}
    if method == "plot_trajectories":
        kernel.compute_trajectories(start_cluster="Transition", n_trajectories=3, **options)
    if method in ("plot_flow", "plot_fates", "animate_flow"):
        kernel.simulate_flow(source_cluster="Transition", n_particles=5, **options)
    extra = {"n_frames": 2} if method == "animate_flow" else {}
    assert getattr(kernel, method)(*arguments, show=False, **extra) is not None
    plt.close("all")


def test_uncertainty_is_drawn_by_a_method(kernel):
    import matplotlib.pyplot as plt

    with pytest.raises(RuntimeError, match="compute_uncertainty"):
        kernel.plot_uncertainty(show=False)
    plt.close("all")
