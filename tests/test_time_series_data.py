"""What is known of the real and simulated time series."""

import os
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

from cellrank_velot import OTVelocityKernel, datasets
from cellrank_velot.dynamics import SimulationOptions, labels_near, simulate_process
from cellrank_velot.dynamics.process import count_lost
from cellrank_velot.field import ProcessOptions, fit_process
from cellrank_velot.metrics import held_out_time, wasserstein
from cellrank_velot.timeseries import build_snapshots, couple_snapshots

DATA = Path(os.environ.get("CELLRANK_VELOT_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_data = pytest.mark.skipif(not (DATA / "misa_time_series.h5ad").exists(), reason=f"no data in {DATA}")


@pytest.fixture(scope="module")
def grown():
    """The kernel of a simulated process whose growth is known, with the masses that it has."""
    adata = datasets.birth_death(n_cells=800, sigma=0.2)
    truth = adata.uns["birth_death"]
    kernel = OTVelocityKernel(adata, time_key="day", time_kind="experimental")
    mass = dict(zip(map(float, truth["times"]), map(float, truth["mass"]), strict=True))
    kernel.compute_velocity(mass=mass, show_progress_bar=False)
    return kernel.fit_field(show_progress_bar=False)


@pytest.mark.slow
def test_growth_is_found(grown):
    truth = grown.adata.obs["true_growth"].to_numpy()
    assert np.corrcoef(grown.growth, truth)[0, 1] > 0.9
    assert grown.growth.mean() == pytest.approx(truth.mean(), abs=0.1)


@pytest.mark.slow
def test_branches_have_their_mass(grown):
    adata, truth = grown.adata, grown.adata.uns["birth_death"]
    last = adata.obs["day"].to_numpy() == 3
    clusters = adata.obs["clusters"].astype("category")
    names = list(clusters.cat.categories)
    paths = grown.simulate_process(n_particles=6000, show_progress_bar=False)
    codes = clusters.cat.codes.to_numpy().astype(np.int64)
    shares = labels_near(paths.ends, adata.obsm["X_pca"][last], codes[last], len(names))
    mass = shares.T @ paths.weights / paths.n_particles
    # The sample that we see has its own shares of the branches; the mass of the whole is known.
    seen = np.bincount(codes[last], minlength=len(names)) / last.sum() * truth["mass"][-1]
    for name in ("Fate A", "Fate B"):
        at = names.index(name)
        assert mass[at] == pytest.approx(seen[at], rel=0.1), name


@needs_data
@pytest.mark.slow
def test_the_circuit_of_misa_is_read_from_its_snapshots():
    adata = ad.read_h5ad(DATA / "misa_time_series.h5ad")
    sc.pp.neighbors(adata, use_rep="X_state")
    kernel = OTVelocityKernel(adata, time_key="day", time_kind="experimental", basis="X_state")
    kernel.fit_field(n_steps=600, show_progress_bar=False)
    # Both genes decay at the rate 1, which the mean path shows, too.
    found = kernel.compute_regulation(names=["X", "Y"], cells={"day": [2, 2]}, degradation=1.0)
    edges = found.edges(4).set_index(["source", "target"])
    for source, target, sign in (("X", "X", 1), ("Y", "Y", 1), ("X", "Y", -1), ("Y", "X", -1)):
        edge = edges.loc[(source, target)]
        assert np.sign(edge["effect"]) == sign, (source, target)
        assert edge["lower"] * edge["upper"] > 0, (source, target)


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["misa", "zebrafish"])
def test_held_out_times_are_foretold_better_than_by_exact_transport(name):
    adata = ad.read_h5ad(DATA / f"{name}_time_series.h5ad")
    x = np.asarray(adata.obsm["X_state" if name == "misa" else "X_latent"], dtype=np.float64)
    rows = held_out_time(x, adata.obs["day"].to_numpy(), methods=["paths", "exact"], n_cells=700)
    w1 = rows.pivot_table(index="time", columns="method", values="w1")
    ratio = w1["paths"] / w1["exact"]
    assert (ratio < 1).all(), ratio
    assert ratio.mean() < 0.9, ratio


def test_pairs_of_one_pass_come_nearer_where_cells_are_known_at_each_time():
    """Cells that move, branch, divide and die; growth is found better by four passes, see above."""
    adata = datasets.birth_death(300, sigma=0.2, n_dims=2, random_state=5)
    x, day = adata.obsm["X_pca"], adata.obs["day"].to_numpy(dtype=np.float64)
    one, four = (
        held_out_time(x, day, methods=["paths"], coupling_options={"n_passes": n})["w1"].to_numpy() for n in (1, 4)
    )
    np.testing.assert_array_equal(held_out_time(x, day, methods=["paths"])["w1"], one, err_msg="the default")
    assert (one < 0.95 * four).all(), (one, four)


def series(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and times."""
    if name == "misa":
        adata = ad.read_h5ad(DATA / "misa_time_series.h5ad")
        return np.asarray(adata.obsm["X_state"], dtype=np.float64), adata.obs["day"].to_numpy(dtype=np.float64)
    frame = pd.read_csv(DATA / "series" / "dyngen_growth.csv")
    return frame.filter(like="x").to_numpy(dtype=np.float64), frame["samples"].to_numpy(dtype=np.float64)


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["misa", "dyngen"])
def test_no_diffusion_leads_out_of_the_data(name):
    """From a hundredth to ten times the automatic one, the cells of the first time come to where later ones are."""
    x, times = series(name)
    points, counts = np.unique(times, return_counts=True)
    mass = counts / counts[0]
    couplings, _ = couple_snapshots(x, times, build_snapshots(times), mass=mass)
    # The circuit is smooth, and learned to the same distances in a third of the usual steps.
    field = fit_process(couplings, x, ProcessOptions(n_steps=500 if name == "misa" else 1500))
    first = x[times == points[0]]
    for factor in (0.01, 0.1, 1.0, 10.0):
        noisy = replace(field, diffusion=factor * field.diffusion)
        here, weights = np.resize(first[:300], (300, x.shape[1])), np.ones(300)
        for k in range(1, points.size):
            # With one seed for all intervals, a particle would be pushed the same way in each.
            paths = simulate_process(noisy, here, points[k - 1], points[k], SimulationOptions(random_state=k))
            here, weights = paths.ends, weights * paths.weights
            there, before = x[times == points[k]], x[times == points[k - 1]]
            # as many particles as stand for the same mass
            rng = np.random.default_rng(0)
            some = rng.choice(300, 600, p=weights / weights.sum())
            others = rng.permutation(there)[:600]
            assert wasserstein(here[some], others)[0] < wasserstein(rng.permutation(before)[:600], others)[0]
            assert 1 / 1.5 < weights.mean() / mass[k] < 1.5
        assert count_lost(paths, x) < 0.1 * paths.n_particles
