"""Simulated sets against their own equations, solved independently; readiness for the kernel; errors."""

from __future__ import annotations

from urllib.error import URLError

import anndata as ad
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import expit
from scipy.stats import spearmanr
from sklearn.neighbors import NearestNeighbors

from cellrank_velot import datasets
from cellrank_velot.datasets.circuit import BIFURCATION, CONVERGENCE, TREE, draw_network, integrate

CIRCUITS = {"bifurcation": BIFURCATION, "tree": TREE, "convergence": CONVERGENCE}
ROOTS = {"bifurcation": ["Progenitor"], "tree": ["Progenitor"], "convergence": ["Root A", "Root B"]}
FATES = {
    "bifurcation": ["Fate A", "Fate B"],
    "tree": ["Fate A1", "Fate A2", "Fate B1", "Fate B2"],
    "convergence": ["Fate"],
}
families = pytest.mark.parametrize("family", CIRCUITS)


@pytest.fixture(scope="module")
def prepared() -> dict[str, ad.AnnData]:
    return {name: getattr(datasets, name)(n_cells=500, n_genes=60) for name in CIRCUITS}


def simulated(family: str, **kwargs) -> ad.AnnData:
    return getattr(datasets, family)(**{"n_cells": 60, "n_genes": 40, "preprocess": False} | kwargs)


def equation(adata: ad.AnnData):
    """The gene-circuit equation from what the AnnData documents, for all cells in one flat vector."""
    rate, bias, base, amplitude = (adata.var[key].to_numpy() for key in ("rate", "bias", "base", "amplitude"))

    def change(_, flat):
        x = (flat.reshape(adata.shape) - base) / amplitude
        return (amplitude * rate * (expit(x @ adata.varp["true_regulation"] + bias) - x)).ravel()

    return change


@families
def test_velocity_is_the_derivative_of_the_noise_free_path(family):
    adata = simulated(family)
    h = 1e-4
    before = adata.layers["true_expression"].ravel()
    path = solve_ivp(equation(adata), (0, h), before, rtol=1e-10, atol=1e-12)
    moved = (path.y[:, -1] - before).reshape(adata.shape) / h
    np.testing.assert_allclose(adata.layers["true_velocity"], moved, atol=5e-4)
    assert np.abs(moved).max() > 0.3


@families
def test_every_path_ends_in_one_of_the_fates(family):
    adata = simulated(family, n_cells=200)
    end = solve_ivp(equation(adata), (0, 60), adata.layers["true_expression"].ravel(), rtol=1e-6).y[:, -1]
    attractors = np.unique(np.round(end.reshape(adata.shape), 1)[:, adata.var["role"] == "circuit"], axis=0)
    assert len(attractors) == len(FATES[family])


@families
def test_noise_free_integration_converges_at_first_order(family):
    network = draw_network(CIRCUITS[family], 30, np.random.default_rng(1))
    start = network.start(CIRCUITS[family].starts[0])
    exact = solve_ivp(lambda _, x: network.drift(x[None])[0], (0, 3), start, rtol=1e-10, atol=1e-12).y[:, -1]
    steps = np.array([50, 100, 200, 400])
    errors = [
        np.abs(
            integrate(network, start[None], np.array([3.0]), process_sd=0, rng=np.random.default_rng(), n_steps=n)
            - exact
        ).max()
        for n in steps
    ]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(-1, abs=0.15)


def test_process_noise_has_the_stationary_spread_of_its_theory():
    # an unrelated gene is an Ornstein-Uhlenbeck process: variance sd^2 / (2 rate), whatever the number of steps
    network = draw_network(BIFURCATION, 40, np.random.default_rng(0))
    start = np.tile(network.start({"Stem": 1.0}), (4000, 1))
    rng = np.random.default_rng(1)
    end = integrate(network, start, np.full(4000, 10.0), process_sd=0.1, rng=rng)
    unrelated = np.array(network.roles) == "unrelated"
    np.testing.assert_allclose(end.std(axis=0)[unrelated], 0.1 / np.sqrt(2 * network.rate[unrelated]), rtol=0.08)


@families
def test_velocity_in_pca_space_is_the_velocity_through_the_loadings(family, prepared):
    adata = prepared[family]
    loadings = adata.varm["PCs"]
    np.testing.assert_allclose(adata.obsm["X_pca"], (adata.X - adata.X.mean(axis=0)) @ loadings, atol=1e-3)
    np.testing.assert_allclose(adata.obsm["true_velocity_pca"], adata.layers["true_velocity"] @ loadings, atol=1e-6)


@families
def test_velocity_can_be_told_from_the_position(family, prepared):
    adata = prepared[family]
    velocity = adata.obsm["true_velocity_pca"]
    neighbors = NearestNeighbors(n_neighbors=16).fit(adata.obsm["X_pca"]).kneighbors(return_distance=False)
    around = velocity[neighbors].mean(axis=1)
    speed = np.linalg.norm(velocity, axis=1)
    cosine = (around * velocity).sum(axis=1) / speed / np.linalg.norm(around, axis=1)
    assert cosine[speed > np.quantile(speed, 0.2)].mean() > 0.95


@families
def test_pseudotime_follows_the_true_time(family, prepared):
    obs = prepared[family].obs
    assert spearmanr(obs["true_time"], obs["dpt_pseudotime"]).statistic > 0.85
    assert obs["dpt_pseudotime"].between(0, 1).all()


def test_pseudotime_of_two_roots_is_small_in_both(prepared):
    obs = prepared["convergence"].obs
    mean = obs.groupby("clusters", observed=True)["dpt_pseudotime"].mean()
    assert mean[["Root A", "Root B"]].max() < mean["Common"] < mean["Fate"]


@families
@pytest.mark.parametrize("noise", [1, 3])
def test_roots_and_fates_come_in_balanced_proportions(family, noise):
    counts = simulated(family, n_cells=1000, noise=noise, random_state=3).obs["clusters"].value_counts()
    for names in (ROOTS[family], FATES[family]):
        assert counts[names].max() < 1.8 * counts[names].min()
    assert counts[FATES[family]].sum() > 150


@families
def test_ready_for_the_kernel_and_for_h5ad(family, prepared, tmp_path):
    adata = prepared[family]
    assert {"X_pca", "X_umap", "true_velocity_pca"} <= set(adata.obsm)
    assert {"connectivities", "distances"} <= set(adata.obsp)
    assert len(adata.uns["clusters_colors"]) == len(adata.obs["clusters"].cat.categories)
    assert adata.X.min() >= 0
    assert adata.var_names.is_unique
    adata.write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(again.obsm["true_velocity_pca"], adata.obsm["true_velocity_pca"])
    np.testing.assert_array_equal(again.layers["true_expression"], adata.layers["true_expression"])


def test_regulation_is_that_of_the_circuit():
    adata = simulated("bifurcation")
    regulation = adata.to_df().iloc[:0].reindex(adata.var_names)
    regulation[:] = adata.varp["true_regulation"]
    assert regulation.loc["FateA", "FateB"] < 0 < regulation.loc["FateA", "FateA"]
    assert regulation.loc["Stem", "FateA"] < 0
    assert (regulation.loc[adata.var["role"] != "circuit"] == 0).all(axis=None)
    assert (regulation.loc[:, adata.var["role"] == "unrelated"] == 0).all(axis=None)


def test_same_seed_same_cells(prepared):
    again = datasets.bifurcation(n_cells=500, n_genes=60)
    first = prepared["bifurcation"]
    for slot, key in (
        ("obsm", "X_pca"),
        ("obsm", "X_umap"),
        ("obsm", "true_velocity_pca"),
        ("layers", "true_velocity"),
    ):
        np.testing.assert_array_equal(getattr(again, slot)[key], getattr(first, slot)[key])
    np.testing.assert_array_equal(again.X, first.X)
    np.testing.assert_array_equal(again.obs["dpt_pseudotime"], first.obs["dpt_pseudotime"])
    assert (again.obsp["connectivities"] != first.obsp["connectivities"]).nnz == 0


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("family", ["bifurcation", "tree"])
def test_targets_are_called_after_the_fate_that_they_belong_to(family: str, seed: int):
    adata = simulated(family, random_state=seed, n_cells=600, n_genes=100)
    means = adata.to_df().groupby(adata.obs["clusters"], observed=True).mean().loc[FATES[family]]
    apart = means.columns[np.ptp(means, axis=0) > 0.5]
    named = [gene for gene in apart if gene.startswith("Fate") and "Target" in gene]
    assert len(named) > (20 if family == "bifurcation" else 10)
    belongs = [means[gene].idxmax().replace(" ", "") == gene.split("Target")[0] for gene in named]
    assert np.mean(belongs) >= 0.95


def test_the_network_depends_on_the_seed_alone():
    first = simulated("tree")
    for other in (simulated("tree", noise=3), simulated("tree", n_cells=100)):
        np.testing.assert_array_equal(other.varp["true_regulation"], first.varp["true_regulation"])
        assert other.var.equals(first.var)
    assert not simulated("tree", random_state=1).var.equals(first.var)


def test_noise_scales_the_measurement():
    deviation = [
        np.std(adata.X - adata.layers["true_expression"])
        for adata in (simulated("bifurcation", noise=noise, n_cells=500) for noise in (0, 1, 2))
    ]
    assert deviation[0] == 0
    assert deviation[2] == pytest.approx(2 * deviation[1], rel=0.02)


def test_global_random_state_is_left_alone():
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    datasets.bifurcation(n_cells=60, n_genes=20)
    datasets.gaussian_blob(n_cells=60)
    np.testing.assert_array_equal(np.random.random(3), expected)  # noqa: NPY002


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_cells": 5}, "`n_cells` to be at least `10`, found `5`"),
        ({"n_genes": 2}, "`n_genes` to be at least `3`, found `2`"),
        ({"noise": -1}, r"Expected `noise` to be in \[0, inf\), found `-1`"),
        ({"noise": np.nan}, "Expected `noise`"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        simulated("bifurcation", **options)


def test_blob_has_no_direction():
    adata = datasets.gaussian_blob(n_cells=1500, n_dims=5, random_state=2)
    assert adata.obsm["X_pca"].shape == (1500, 5)
    assert adata.obsp["connectivities"].shape == (1500, 1500)
    assert (adata.obs["clusters"].value_counts() > 300).all()
    correlation = [spearmanr(adata.obs["pseudotime"], column).statistic for column in adata.obsm["X_pca"].T]
    assert np.abs(correlation).max() < 0.1
    np.testing.assert_array_equal(adata.X, datasets.gaussian_blob(n_cells=1500, n_dims=5, random_state=2).X)
    with pytest.raises(ValueError, match="at least `10`, found `3`"):
        datasets.gaussian_blob(n_cells=3)


def test_pancreas_from_a_file(tmp_path):
    simulated("bifurcation").write_h5ad(tmp_path / "local.h5ad")
    assert datasets.pancreas(tmp_path / "local.h5ad").shape == (60, 40)
    with pytest.raises(FileNotFoundError, match=r"h5ad file at `.*missing.h5ad`"):
        datasets.pancreas(tmp_path / "missing.h5ad")


def test_pancreas_without_a_connection(monkeypatch):
    def offline():
        raise URLError("no route to host")

    monkeypatch.setattr("cellrank.datasets.pancreas", offline)
    with pytest.raises(ConnectionError, match=r"no route to host.*pancreas\(path=...\)"):
        datasets.pancreas()
