"""What must not matter to the velocity of a user's cells, on counts: order, axes, units and how time is measured."""

from collections.abc import Callable

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from scipy.stats import ortho_group, rankdata

from cellrank_velot import OTVelocityKernel
from cellrank_velot.metrics import cosines


def counts(n_cells: int = 400, n_genes: int = 400, seed: int = 0) -> AnnData:
    """Return negative-binomial counts of two fates, prepared as users do, and the true time and velocity."""
    rng = np.random.default_rng(seed)
    time, fate = rng.uniform(size=n_cells), rng.integers(2, size=n_cells)
    loading = rng.normal(scale=0.6, size=(3, n_genes)) * (rng.uniform(size=(3, n_genes)) < 0.3)
    base, away = rng.normal(scale=1.3, size=n_genes), np.where(fate, 1.0, -1.0)

    def expected(at: np.ndarray) -> np.ndarray:
        latent = np.column_stack([3 * at, np.sin(3 * at), 3 * away * np.maximum(at - 0.45, 0)])
        mean = np.exp(base + latent @ loading)
        return mean / mean.sum(axis=1, keepdims=True)

    depth = 3000 * np.exp(rng.normal(scale=0.35, size=(n_cells, 1)))
    drawn = rng.poisson(depth * expected(time) * rng.gamma(5, 0.2, (n_cells, n_genes)))
    adata = AnnData(drawn.astype(np.float32))
    adata.obs["time"], adata.obs["true_time"] = time + rng.normal(scale=0.03, size=n_cells), time
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=15, random_state=0)
    ahead, now = (np.log1p(1e4 * expected(at)) for at in (time + 1e-3, time))
    adata.obsm["true_velocity"] = (ahead - now) @ adata.varm["PCs"] / 1e-3
    sc.pp.neighbors(adata, n_neighbors=20, use_rep="X_pca", random_state=0)
    return adata


def velocity(adata: AnnData) -> np.ndarray:
    kernel = OTVelocityKernel(adata, time_key="time")
    return kernel.fit_field(show_progress_bar=False).velocity


@pytest.fixture(scope="module")
def prepared() -> AnnData:
    return counts()


@pytest.fixture(scope="module")
def found(prepared: AnnData) -> np.ndarray:
    """Return the velocity of the cells as they are."""
    return velocity(prepared.copy())


def test_velocity_is_the_planted_one(prepared: AnnData, found: np.ndarray):
    assert np.mean(cosines(found, prepared.obsm["true_velocity"])) > 0.9


def test_order_of_the_cells_does_not_matter(prepared: AnnData, found: np.ndarray):
    order = np.random.default_rng(1).permutation(prepared.n_obs)
    assert np.mean(cosines(velocity(prepared[order].copy()), found[order])) >= 0.995


@pytest.mark.parametrize("unit", [1.0, 100.0])
def test_axes_and_units_of_positions_do_not_matter(prepared: AnnData, found: np.ndarray, unit: float):
    rotation, turned = ortho_group.rvs(15, random_state=2), prepared.copy()
    turned.obsm["X_pca"] = unit * prepared.obsm["X_pca"] @ rotation
    again = velocity(turned) @ rotation.T / unit
    assert np.mean(cosines(again, found)) >= 0.995
    speed = [np.median(np.linalg.norm(v, axis=1)) for v in (again, found)]
    assert speed[0] == pytest.approx(speed[1], rel=0.05)


def test_unit_of_time_does_not_matter(prepared: AnnData, found: np.ndarray):
    hours = prepared.copy()
    hours.obs["time"] = 24 * hours.obs["time"] + 100
    np.testing.assert_allclose(velocity(hours), found, atol=1e-4 * np.abs(found).max())  # it is per whole time


@pytest.mark.parametrize("change", [np.square, np.sqrt, rankdata], ids=["square", "root", "rank"])
def test_monotone_change_of_time_hardly_matters(prepared: AnnData, found: np.ndarray, change: Callable):
    changed = prepared.copy()
    time = prepared.obs["time"].to_numpy()
    changed.obs["time"] = change(time - time.min())
    cosine = cosines(velocity(changed), found)
    assert np.mean(cosine) >= 0.97
    assert np.quantile(cosine, 0.05) >= 0.9


def test_reversed_time_turns_the_velocity_around(prepared: AnnData, found: np.ndarray):
    back = prepared.copy()
    back.obs["time"] = -back.obs["time"]
    assert np.mean(cosines(velocity(back), -found)) >= 0.97
