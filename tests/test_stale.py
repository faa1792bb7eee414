"""Results that are out of date, an AnnData that changed under the kernel, and threads."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from anndata import AnnData

from cellrank_velot import OTVelocityKernel
from cellrank_velot.field.losses import curl_loss, divergence_loss

QUIET = {"show_progress_bar": False}


def fitted(adata: AnnData, **options) -> OTVelocityKernel:
    return OTVelocityKernel(adata, **options).compute_velocity(**QUIET).fit_field(n_steps=25, **QUIET)


@pytest.fixture
def vk(adata: AnnData) -> OTVelocityKernel:
    return fitted(adata, cluster_key="clusters").compute_transition_matrix(**QUIET)


# ------------------------------------------------------------------------------------------------------------ caches
def monte_carlo(vk: OTVelocityKernel):
    return vk.compute_transition_matrix(model="monte_carlo", n_samples=10, **QUIET).transition_matrix


CHANGES = {
    "windows": lambda vk: vk.compute_windows(random_state=3, n_smooth=1),
    "velocity": lambda vk: vk.compute_velocity(epsilon=0.2, **QUIET),
    "field": lambda vk: vk.fit_field(n_steps=25, random_state=5, **QUIET),
    "uncertainty": lambda vk: vk.compute_uncertainty(2, random_state=5, **QUIET),
}


@pytest.mark.parametrize("step", CHANGES)
def test_a_matrix_is_that_of_the_newest_input_of_each_stage(vk, step):
    vk.compute_uncertainty(2, **QUIET)
    before = monte_carlo(vk)
    assert monte_carlo(vk) is before
    CHANGES[step](vk)
    assert vk._transition_matrix is None
    if step != "uncertainty":
        vk.fit_field(n_steps=25, **QUIET).compute_uncertainty(2, **QUIET) if vk.field is None else None
    again = monte_carlo(vk)
    assert abs(again - before).max() > 1e-6
    fresh = pickle.loads(pickle.dumps(vk))
    fresh._forget_matrix()
    np.testing.assert_array_equal(monte_carlo(fresh).toarray(), again.toarray())


def test_a_matrix_that_needs_no_uncertainty_stays(vk):
    before = vk.transition_matrix
    vk.compute_uncertainty(2, **QUIET)
    assert vk.transition_matrix is before
    by_transport = vk.compute_transition_matrix(
        model="monte_carlo", smooth=False, n_samples=4, **QUIET
    ).transition_matrix
    vk.compute_uncertainty(2, random_state=1, **QUIET)
    assert vk.transition_matrix is by_transport


def test_ends_follow_their_inputs(vk):
    first = vk.suggest_terminal_states("clusters", n_halves=0)
    vk.adata.obs["mine"] = pd.Categorical(np.where(vk.adata.obs["clusters"] == "left", "up", "down"))
    assert "up" in vk.suggest_terminal_states("mine", n_halves=0)
    assert set(vk.suggest_terminal_states("clusters", n_halves=0)) == set(first)


def test_logits_are_read_only(vk):
    for kernel in (vk, pickle.loads(pickle.dumps(vk))):
        with pytest.raises(ValueError, match="read-only"):
            kernel.logits.data[0] = 9


# ------------------------------------------------------------------------------------------- an AnnData that changed
@pytest.mark.parametrize("change", [np.arange(239, -1, -1), np.arange(200)])
def test_cells_that_were_moved_or_dropped_are_refused(vk, change):
    vk.adata._inplace_subset_obs(change)
    for call in (
        lambda: vk.compute_trajectories(source_cluster="stem", n_particles=3, **QUIET),
        lambda: vk.write_to_adata(),
        lambda: vk.project_velocity("umap"),
        lambda: vk.adata,
    ):
        with pytest.raises(RuntimeError, match=r"made of 240 cells, and its AnnData has changed since.*new kernel"):
            call()


def test_new_names_of_the_same_cells_are_no_change(vk):
    vk.adata.obs_names = [f"other_{i}" for i in range(240)]
    assert vk.adata.obs_names[3] == "other_3"
    vk.write_to_adata()


def test_loadings_of_another_pca_are_refused(vk):
    sc.pp.pca(vk.adata, n_comps=5)
    for call in (
        lambda: vk.compute_transition_matrix(gene_subset=["gene_1"], **QUIET),
        lambda: vk.perturb({"gene_1": 0.0}),
        lambda: vk.compute_regulation(["gene_1", "gene_2"]),
    ):
        with pytest.raises(RuntimeError, match=r"`adata.obsm\['X_pca'\]` has changed since the kernel was made"):
            call()
    vk.compute_transition_matrix("correlation", **QUIET)  # of what was read


def test_clusters_are_those_that_the_windows_were_made_in(vk, caplog):
    read = vk.adata.obs["clusters"].to_numpy().copy()
    ends = vk.ends.copy()
    vk.adata.obs["clusters"] = pd.Categorical(np.roll(read, 50))
    np.testing.assert_array_equal(vk.ends, ends)
    assert "`adata.obs['clusters']` has changed since the kernel was made" in caplog.text
    vk.write_to_adata()
    np.testing.assert_array_equal(vk.adata.obs["velot_cluster"].to_numpy(), read)


def test_roots_are_those_of_the_time_that_was_read(adata):
    adata.uns["pseudotime"] = {"key": "dpt_pseudotime", "roots": np.array([adata.obs["dpt_pseudotime"].idxmin()])}
    vk = fitted(adata)
    before = str(vk.check_time())
    adata.uns["pseudotime"]["roots"] = np.array([adata.obs["dpt_pseudotime"].idxmax()])
    assert str(vk.check_time()) == before


# ----------------------------------------------------------------------------------------------------------- threads
def linear(matrix: np.ndarray):
    weights = torch.tensor(matrix, dtype=torch.float32, requires_grad=True)
    return weights, lambda inputs: inputs @ weights.T


def test_losses_of_a_linear_field_are_those_of_its_matrix():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(4, 4))
    weights, network = linear(matrix)
    inputs, generator = torch.zeros(20_000, 4), torch.Generator().manual_seed(0)
    curl = curl_loss(network, inputs, 4, generator)
    expected = np.square(matrix - matrix.T).sum() / 8
    assert float(curl.detach()) == pytest.approx(expected, rel=0.03)
    divergence = divergence_loss(network, inputs, 4, generator)
    assert float(divergence.detach()) == pytest.approx(np.trace(matrix) ** 2 / 4, abs=0.1)
    (gradient,) = torch.autograd.grad(curl, weights)
    np.testing.assert_allclose(gradient, (matrix - matrix.T) / 2, atol=0.1)


@pytest.mark.parametrize("penalty", ["lambda_curl", "lambda_divergence"])
def test_penalties_on_derivatives_work_in_threads(adata, penalty):
    found = []
    for n_jobs in (1, 4):
        vk = OTVelocityKernel(adata).compute_velocity(**QUIET).fit_field(n_steps=25, **{penalty: 0.1}, **QUIET)
        found.append(vk.compute_uncertainty(4, n_jobs=n_jobs, **QUIET).velocity_uncertainty)
    np.testing.assert_array_equal(*found)
    usual = fitted(adata).compute_uncertainty(4, n_jobs=1, **QUIET).velocity_uncertainty
    assert np.median(found[0]) < np.median(usual) + 10


def test_two_kernels_in_two_threads(adata):
    adatas = [adata, adata.copy()]

    def job(one: AnnData) -> np.ndarray:
        vk = OTVelocityKernel(one).compute_velocity(**QUIET)
        return vk.fit_field(n_steps=25, lambda_curl=0.1, lambda_divergence=0.1, **QUIET).velocity

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(job, adatas)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, job(adata))


def test_a_decoder_in_two_threads(vk):
    module = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 20)).double()
    names = list(vk.adata.var_names)

    def job(_: int) -> np.ndarray:
        return vk.compute_regulation(names[:3], decoder=module, decoder_genes=names).jacobian

    with ThreadPoolExecutor(2) as pool:
        first, *others = pool.map(job, range(4))
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-12)
