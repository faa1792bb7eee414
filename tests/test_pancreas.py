"""The main job on real cells: from counts to fates and driver genes."""

import re
import warnings
from pathlib import Path

import anndata
import cellrank as cr
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import cellrank_velot as cv
from cellrank_velot import metrics
from cellrank_velot.dynamics import Status

FATES = ("Alpha", "Beta", "Delta", "Epsilon")
EDGES = [
    ("Ductal", "Ngn3 low EP"),
    ("Ngn3 low EP", "Ngn3 high EP"),
    ("Ngn3 high EP", "Pre-endocrine"),
    *(("Pre-endocrine", fate) for fate in FATES),
]


@pytest.fixture(scope="module")
def kernel(data_dir):
    adata = anndata.read_h5ad(data_dir / "pancreas_739.h5ad")
    cv.pp.prepare(adata, root_cluster="Ductal")
    return cv.OTVelocityKernel(adata).compute_transition_matrix(show_progress_bar=False)


def test_velocity_follows_the_known_tree(kernel):
    clusters = kernel.adata.obs["clusters"]
    velocities = kernel.velocity, kernel.reversed_velocity()
    across = metrics.cross_boundary_direction(kernel.cells.x, *velocities, kernel.connectivities, clusters, EDGES)
    within = metrics.inner_cluster_coherence(kernel.velocity, kernel.connectivities, clusters)
    assert across["direction"].min() > 0  # no edge is walked backwards
    assert across["direction"].mean() >= 0.18
    assert within.mean() >= 0.55
    assert metrics.step_forward_fraction(kernel.transition_matrix, kernel.cells.time) > 0.7


@pytest.mark.parametrize("weight", [1.0, 0.8])
def test_chain_reaches_fates_and_drivers(kernel, weight):
    other = cr.kernels.ConnectivityKernel(kernel.adata).compute_transition_matrix()
    g = cr.estimators.GPCCA(kernel if weight == 1 else weight * kernel + (1 - weight) * other)
    g.compute_schur(n_components=12, method="brandts")
    g.compute_macrostates(n_states=5, n_cells=20, cluster_key="clusters")
    assert "Beta" in set(g.macrostates.cat.categories)
    states = {fate: kernel.adata.obs_names[kernel.adata.obs["clusters"] == fate] for fate in FATES}
    g.set_terminal_states({fate: list(cells) for fate, cells in states.items()})
    g.compute_fate_probabilities(use_petsc=False, show_progress_bar=False)
    fates = np.asarray(g.fate_probabilities)
    np.testing.assert_allclose(fates.sum(axis=1), 1, atol=1e-3)
    assert (fates >= 0).all()
    drivers = g.compute_lineage_drivers(lineages=["Alpha", "Beta"])
    assert "Gcg" in drivers["Alpha_corr"].nlargest(10).index
    assert {"Ins1", "Ins2"} & set(drivers["Beta_corr"].nlargest(20).index)


def test_trajectories_end_in_hormone_producing_cells_and_come_from_progenitors(kernel):
    options = {"n_trajectories": 60, "show_progress_bar": False}
    forward = kernel.compute_trajectories(start_cluster="Ngn3 low EP", **options).to_frame()
    assert forward["end_cluster"].isin(FATES).mean() >= 0.8
    for fate in FATES:
        backward = kernel.compute_trajectories(start_cluster=fate, direction="backward", **options).to_frame()
        stays = backward["status"] != Status.LEFT_DATA.message
        assert stays.mean() >= 0.8
        assert backward.loc[stays, "end_cluster"].isin(["Ductal", "Ngn3 low EP"]).mean() >= 0.8


def test_flow_comes_to_all_hormone_producing_types(kernel):
    flow = kernel.simulate_flow(
        source_cluster="Ngn3 low EP", terminal_clusters=FATES, n_particles=500, show_progress_bar=False
    )
    fates = flow.fates(FATES)
    assert fates.loc["none", "share"] < 0.2
    # Most go to Beta, where time ends the latest; how few go elsewhere is in docs/dynamics.md.
    assert (fates.loc[list(FATES), "n_particles"] > 0).all()


def test_root_is_suggested_and_time_has_a_direction(kernel):
    assert any(name.startswith("Ductal") for name in kernel.suggest_initial_states("clusters"))
    assert kernel.test_direction(flip=False).found


def test_hormone_producing_states_are_suggested_and_keep_their_cells(kernel):
    states = kernel.suggest_terminal_states("clusters")
    assert set(states) == set(FATES)
    assert len(states["Delta"]) == 10  # of 16
    mixed = 0.8 * kernel.copy().compute_transition_matrix(settle="clusters", show_progress_bar=False)
    mixed += 0.2 * cr.kernels.ConnectivityKernel(kernel.adata).compute_transition_matrix()
    g = cr.estimators.GPCCA(mixed).set_terminal_states(states)
    g.compute_fate_probabilities(use_petsc=False, show_progress_bar=False)
    fates = pd.DataFrame(np.asarray(g.fate_probabilities), columns=list(g.fate_probabilities.names))
    clusters = kernel.adata.obs["clusters"].to_numpy()
    means = fates.groupby(clusters, observed=True).mean()
    for name in ("Alpha", "Delta", "Epsilon"):
        assert means.loc[name, name] > 0.8
        assert means.loc[name, "Beta"] < 0.1
    early = means.loc["Ngn3 low EP"]
    assert (early > 0.05).all()
    shares = pd.Series(clusters).value_counts()[["Alpha", "Beta"]] / np.isin(clusters, FATES).sum()
    assert (early[["Alpha", "Beta"]] / shares).between(0.5, 2).all()
    drivers = g.compute_lineage_drivers()
    assert {f"{name}_corr" for name in FATES} <= set(drivers)


def test_hormone_producing_states_are_macrostates_of_cells_that_settle(kernel):
    settled = kernel.copy()
    settled.compute_transition_matrix(settle="clusters", show_progress_bar=False)
    g = cr.estimators.GPCCA(settled)
    g.compute_schur(n_components=12, method="brandts")
    g.compute_macrostates(n_states=5, n_cells=20, cluster_key="clusters")
    g.predict_terminal_states(n_cells=10)
    assert set(g.terminal_states.cat.categories) == set(FATES)
    g.compute_fate_probabilities(solver="direct", use_petsc=False, show_progress_bar=False)
    np.testing.assert_allclose(np.asarray(g.fate_probabilities).sum(axis=1), 1, atol=1e-3)


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_first_pages_lead_from_counts_to_drivers_without_a_warning(page, data_dir, tmp_path, monkeypatch, capfd):
    """As a newcomer would type them, with the progress bars and all that is printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cv.datasets, "pancreas", lambda: anndata.read_h5ad(data_dir / "pancreas_739.h5ad"))
    text = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
    names = {"__name__": "__main__"}
    for block in re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        if "birth_death" in block or "test_direction" in block:  # other data, and minutes of tests
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # what Python shows nobody: deprecated calls between other libraries, such as anndata's of a new pandas
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("error", category=DeprecationWarning, module=r"__main__|cellrank_velot")
            exec(compile(block, page, "exec"), names)
        if "drivers" in names:
            break
    plt.close("all")
    assert set(names["states"]) == set(FATES)
    drivers = names["drivers"]
    assert "Gcg" in drivers["Alpha_corr"].nlargest(3).index
    assert {"Ins1", "Ins2"} & set(drivers["Beta_corr"].nlargest(3).index)
    assert "Ghrl" in drivers["Epsilon_corr"].nlargest(3).index
    printed = capfd.readouterr()
    assert "WARNING" not in printed.out + printed.err
