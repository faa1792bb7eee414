"""The branching process against its own drift, growth and noise, and its lineages against its fates."""

from __future__ import annotations

from importlib import import_module

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.integrate import solve_ivp

from cellrank_velot.datasets import BirthDeath, birth_death, process_of
from cellrank_velot.datasets.branching import CLUSTERS, simulate

TIMES = (0.0, 1.0, 2.0, 3.0)


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return birth_death(n_cells=300, n_founders=3000)


def plain(sigma: float = 0.3, growth_contrast: float = 1.2, n_dims: int = 3) -> BirthDeath:
    return BirthDeath(sigma, growth_contrast, np.eye(n_dims))


def small(**options) -> ad.AnnData:
    return birth_death(**{"n_cells": 40, "times": (0, 1), "n_dims": 3, "n_founders": 60} | options)


def test_mass_is_the_integral_of_growth(cells):
    # the founders, sent along the drift with noise and without branching, weighted by what they have grown by
    process, known = process_of(cells), cells.uns["birth_death"]
    rng = np.random.default_rng(7)
    x = np.tile(cells.obsm["X_pca"][(cells.obs["day"] == 0).to_numpy()], (20, 1))
    log_mass, dt = np.zeros(len(x)), 0.02
    for number in range(1, 151):
        log_mass += process.growth(x) * dt
        x = x + process.drift(x) * dt + known["sigma"] * np.sqrt(dt) * rng.standard_normal(x.shape)
        if number % 50 == 0:
            time = number // 50
            assert known["mass"][time] == pytest.approx(np.exp(log_mass).mean(), rel=0.06)
            share = np.exp(log_mass) @ (process.clusters(x)[:, None] == np.arange(4)) / len(x)
            np.testing.assert_allclose(known["cluster_mass"][time], share, atol=0.12)
    assert known["mass"][-1] > 3


def test_equal_growth_is_exponential():
    population = simulate(plain(growth_contrast=0), 4000, np.array(TIMES), rng=np.random.default_rng(0))
    mass = np.array([len(part.x) for part in population]) / 4000
    # the variance of a birth-death process with rates 0.4 and 0.1
    spread = np.sqrt(0.5 / 0.3 * mass * (mass - 1) / 4000)
    assert (np.abs(mass - np.exp(0.3 * np.array(TIMES))) <= 3 * spread).all()


def test_paths_without_noise_follow_the_drift():
    adata = small(sigma=0, times=(0, 1.5))
    process = process_of(adata)
    late = (adata.obs["day"] == 1.5).to_numpy()
    before, after = adata.obsm["ancestor_pca_0"][late], adata.obsm["X_pca"][late]
    path = solve_ivp(
        lambda _, flat: process.drift(flat.reshape(before.shape)).ravel(), (0, 1.5), before.ravel(), rtol=1e-8
    )
    np.testing.assert_allclose(after, path.y[:, -1].reshape(before.shape), atol=0.02)
    assert np.linalg.norm(after - before, axis=1).min() > 1


def test_noise_spreads_by_sigma_in_every_direction():
    adata = birth_death(None, (0, 0.02), n_dims=4, sigma=0.7, n_founders=4000)
    late = (adata.obs["day"] == 0.02).to_numpy()
    before = adata.obsm["ancestor_pca_0"][late]
    noise = adata.obsm["X_pca"][late] - before - 0.02 * process_of(adata).drift(before)
    np.testing.assert_allclose(np.cov(noise.T) / 0.02, 0.49 * np.eye(4), atol=0.06)


def test_columns_agree_with_the_process(cells):
    process, x = process_of(cells), cells.obsm["X_pca"]
    np.testing.assert_allclose(cells.obs["true_growth"], process.birth(x) - process.death(x))
    np.testing.assert_allclose(cells.obsm["true_velocity_pca"], process.drift(x))
    np.testing.assert_array_equal(cells.obs["clusters"].cat.codes, process.clusters(x))
    np.testing.assert_allclose((cells.X - cells.var["mean"].to_numpy()) @ cells.varm["PCs"], x, atol=1e-10)
    assert min(process.birth(x).min(), process.death(x).min()) > 0


def test_fates_grow_apart_by_the_contrast():
    process = plain(growth_contrast=0.8)
    middle = np.array([[0.0, 0.3, 0.0], [3.0, 1.5, 0.0], [3.0, -1.5, 0.0]])
    np.testing.assert_allclose(process.growth(middle), [0.3, 0.7, -0.1], atol=0.02)
    np.testing.assert_array_equal(process.clusters(middle), [0, 2, 3])
    # branches and the end of the way are at rest, and attract
    np.testing.assert_allclose(process.drift(middle)[1:], 0, atol=0.01)
    nudged = middle[1:] + [0.1, 0.1, 0.1]
    assert (process.drift(nudged) < 0).all()


def test_rotation_turns_everything_with_it():
    turned = BirthDeath(0.3, 1.2, np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0])
    x = np.random.default_rng(1).normal(size=(50, 3))
    moved = x @ turned.rotation.T
    np.testing.assert_allclose(turned.drift(moved), plain().drift(x) @ turned.rotation.T, atol=1e-12)
    np.testing.assert_allclose(turned.growth(moved), plain().growth(x))


def test_lineages_agree_with_expected_descendants(cells):
    first = (cells.obs["day"] == 0).to_numpy()
    table = cells.uns["birth_death"]["lineages"]
    expected = pd.DataFrame(cells.obsm["true_descendants"][first], columns=table.columns)
    expected = expected.groupby(cells.obs["clusters"].to_numpy()[first], observed=True).mean()
    for name in ("Progenitor A", "Progenitor B"):
        fates, predicted = (part.loc[name] / part.loc[name].sum() for part in (table, expected))
        np.testing.assert_allclose(fates, predicted, atol=0.08)
    ancestry = (table / table.sum()).loc["Progenitor A"]
    assert 0.7 < ancestry["Fate A"] < 0.95
    assert 0.05 < ancestry["Fate B"] < 0.4


def test_growth_makes_descendants_differ_from_fates(cells):
    first = (cells.obs["clusters"] == "Progenitor B").to_numpy() & (cells.obs["day"] == 0).to_numpy()
    by_path = cells.obsm["true_fates"][first].mean(axis=0)
    by_lineage = cells.obsm["true_descendants"][first].mean(axis=0)
    np.testing.assert_allclose(cells.obsm["true_fates"].sum(axis=1), 1)
    assert by_path[1] > 0.75
    assert by_lineage[1] / by_lineage.sum() < by_path[1] - 0.15


def test_sampled_ancestry_agrees_with_the_whole(cells):
    last = cells[cells.obs["day"] == 3].obs
    sampled = pd.crosstab(last["ancestor_cluster_0"], last["clusters"], normalize="columns")
    table = cells.uns["birth_death"]["lineages"]
    whole = (table / table.sum()).loc[["Progenitor A", "Progenitor B"]]
    np.testing.assert_allclose(sampled["Fate A"], whole["Fate A"], atol=0.1)


def test_ancestors_form_one_lineage():
    adata = birth_death(None, (0, 0.5, 1), n_founders=100, n_dims=3)
    obs, x = adata.obs, adata.obsm["X_pca"]
    first = x[(obs["day"] == 0).to_numpy()]
    for day in (0.5, 1):
        later = (obs["day"] == day).to_numpy()
        np.testing.assert_array_equal(adata.obsm["ancestor_pca_0"][later], first[obs["clone"][later]])
    middle = {tuple(place) for place in x[(obs["day"] == 0.5).to_numpy()]}
    assert {tuple(place) for place in adata.obsm["ancestor_pca_0.5"][(obs["day"] == 1).to_numpy()]} <= middle
    assert obs["ancestor_cluster_0"].isna().equals(obs["day"] == 0)
    assert obs["ancestor_cluster_0.5"].isna().equals(obs["day"] < 1)
    np.testing.assert_array_equal(obs["clone"][obs["day"] == 0], np.arange(100))


@pytest.mark.parametrize("n_cells", [40, (40, 30), None])
def test_snapshots_have_the_size_asked_for(n_cells):
    adata = small(n_cells=n_cells)
    population = adata.uns["birth_death"]["population"]
    assert population[0] == 60
    expected = population if n_cells is None else np.broadcast_to(n_cells, 2)
    np.testing.assert_array_equal(adata.obs["day"].value_counts().sort_index(), expected)


def test_ready_for_the_kernel_and_for_h5ad(cells, tmp_path):
    assert cells.shape == (1200, 50)
    assert list(cells.obs["clusters"].cat.categories) == list(CLUSTERS)
    assert cells.uns["neighbors"]["params"]["n_neighbors"] == 30
    assert cells.X.min() > -1
    cells.write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(again.uns["birth_death"]["lineages"], cells.uns["birth_death"]["lineages"])
    np.testing.assert_array_equal(again.obsm["ancestor_pca_2"], cells.obsm["ancestor_pca_2"])
    np.testing.assert_allclose(process_of(again).growth(again.obsm["X_pca"]), cells.obs["true_growth"])


def test_same_seed_same_cells_and_no_global_state():
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    one, other, third = small(random_state=3), small(random_state=3), small(random_state=4)
    np.testing.assert_array_equal(np.random.random(3), expected)  # noqa: NPY002
    for key in ("X_pca", "true_fates", "true_descendants", "ancestor_pca_0"):
        np.testing.assert_array_equal(one.obsm[key], other.obsm[key])
    np.testing.assert_array_equal(one.X, other.X)
    assert one.obs.equals(other.obs)
    assert not np.allclose(one.obsm["X_pca"], third.obsm["X_pca"])


def test_the_population_does_not_depend_on_the_sample():
    one, other = small(n_cells=40), small(n_cells=20)
    np.testing.assert_array_equal(one.uns["birth_death"]["cluster_mass"], other.uns["birth_death"]["cluster_mass"])
    np.testing.assert_array_equal(one.varm["PCs"], other.varm["PCs"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_cells": 5}, ValueError, "`n_cells` to be at least `10`, found `5`"),
        ({"n_cells": (40, 40, 40)}, ValueError, r"one per time \(`2`\), found `\(40, 40, 40\)`"),
        ({"n_cells": "many"}, TypeError, "`n_cells` to be an integer, found `str`"),
        ({"n_cells": 61}, ValueError, "at least `61` cells alive at time `0`, found `60`"),
        ({"times": (0,)}, ValueError, "at least two increasing numbers"),
        ({"times": (1, 0)}, ValueError, "at least two increasing numbers"),
        ({"times": ("a", "b")}, TypeError, "`times` to be numbers"),
        ({"n_dims": 1}, ValueError, "`n_dims` to be at least `2`"),
        ({"sigma": -1}, ValueError, "`sigma` to be in"),
        ({"growth_contrast": np.nan}, ValueError, "`growth_contrast`"),
        ({"n_founders": 2}, ValueError, "`n_founders` to be at least `10`"),
        ({"times": (0, 40)}, ValueError, "grew beyond `2000000` cells"),
    ],
)
def test_options_out_of_range(options, error, message, monkeypatch):
    if "grew" in message:
        # by name, as the package has a function called like this module
        monkeypatch.setattr(import_module("cellrank_velot.datasets.branching"), "_MAX_POPULATION", 2_000)
        message = "grew beyond `2000` cells"
    with pytest.raises(error, match=message):
        small(**options)


def test_process_of_other_data():
    with pytest.raises(KeyError, match=r"adata.uns\['birth_death'\].*datasets.birth_death"):
        process_of(ad.AnnData(np.zeros((3, 2))))
