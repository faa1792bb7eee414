"""Numbers at the ends of their range: what comes out is finite, says how good it is, and does not depend on units."""

import anndata as ad
import cellrank as cr
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import connected_components

from cellrank_velot import OTVelocityKernel, datasets
from cellrank_velot.transport.sinkhorn import sinkhorn

QUIET = {"show_progress_bar": False}
EPSILONS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
SCALES = (1e-12, 1e-6, 1e-3, 1.0, 1e3, 1e6, 1e12)
N_SOURCE, N_TARGET = 12, 15


@pytest.fixture(scope="module")
def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N_SOURCE, 3)), rng.normal(size=(N_TARGET, 3)) + 1
    cost = ((x[:, None] - y[None]) ** 2).sum(axis=2)
    a, b = np.full(N_SOURCE, 1 / N_SOURCE), rng.dirichlet(np.ones(N_TARGET))
    return tuple(torch.from_numpy(values)[None] for values in (cost / cost.max(), a, b))


# ------------------------------------------------------------------------------------------------- transport
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_balanced_plan_keeps_its_mass_and_says_how_far_it_is_off(problem, epsilon: float, scale: float):
    cost, a, b = problem
    found = sinkhorn(cost * scale, a, b, epsilon, max_iter=100)
    assert torch.isfinite(found.plan).all()
    assert (found.plan >= 0).all()
    torch.testing.assert_close(found.plan.sum(2), a, rtol=1e-12, atol=0)
    off = (found.plan.sum(1) - b).norm(dim=1)
    torch.testing.assert_close(found.marginal_error, off, rtol=1e-6, atol=1e-12)
    assert found.converged.equal(found.marginal_error <= 1e-6)


@pytest.mark.parametrize("tau", [0.01, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_relaxed_plan_is_a_number_wherever_there_is_mass(problem, epsilon: float, scale: float, tau: float):
    cost, a, b = problem
    found = sinkhorn(cost * scale, a, b, epsilon, tau=(tau, tau), max_iter=100)
    assert torch.isfinite(found.plan).all()
    assert (found.plan >= 0).all()
    assert torch.isfinite(found.marginal_error).all()
    # By its optimality, mass is gone where keeping it costs too much: never more than that.
    strength = tau / (1 - tau) * epsilon
    cheapest = float(cost.min() * scale)
    assert float(found.plan.sum()) <= 1 + 1e-6
    if found.converged.item() and cheapest < 10 * min(strength, epsilon):
        assert (found.plan.sum(2) > 0).all()
        assert (found.plan.sum(1) > 0).all()


# ------------------------------------------------------------------------------------------------- the whole chain
@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    return datasets.bifurcation(n_cells=300, n_genes=30)


def kernel_of(adata: ad.AnnData, **options) -> OTVelocityKernel:
    kernel = OTVelocityKernel(adata).compute_velocity(**QUIET, **options)
    return kernel.fit_field(n_steps=30, **QUIET).compute_transition_matrix(**QUIET)


@pytest.mark.parametrize("unit", [1e-60, 1e-12, 1e12, 1e60])
def test_units_of_the_positions_do_not_matter(adata, unit: float):
    expected, other = kernel_of(adata), adata.copy()
    other.obsm["X_pca"] = np.asarray(adata.obsm["X_pca"], dtype=float) * unit
    found = kernel_of(other)
    speed = np.sqrt(np.nanmean(expected.raw_velocity**2))
    np.testing.assert_allclose(found.raw_velocity / unit, expected.raw_velocity, rtol=1e-4, atol=1e-5 * speed)
    np.testing.assert_allclose(found.transition_matrix.data, expected.transition_matrix.data, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("unit", "start"), [(1e-60, 0.0), (1e60, 0.0), (1.0, 1e6)])
def test_units_and_start_of_pseudotime_do_not_matter(adata, unit: float, start: float):
    expected, other = kernel_of(adata), adata.copy()
    other.obs["dpt_pseudotime"] = adata.obs["dpt_pseudotime"].to_numpy(dtype=float) * unit + start
    found = kernel_of(other)
    np.testing.assert_allclose(found.transition_matrix.data, expected.transition_matrix.data, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_every_epsilon_gives_a_matrix(adata, epsilon: float, caplog):
    kernel = kernel_of(adata, epsilon=epsilon, tol=1e-9, max_iter=50)
    assert np.isfinite(kernel.velocity).all()
    sums = np.asarray(kernel.transition_matrix.sum(axis=1)).ravel()
    np.testing.assert_allclose(sums, 1, rtol=0, atol=1e-12)
    transport = kernel.transport
    np.testing.assert_array_equal(transport.converged, transport.marginal_error <= 1e-9)
    if transport.marginal_error.max() > 1e-3:
        assert f"{(~transport.converged).sum()} of {transport.converged.size} couplings did not converge" in caplog.text


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("options", [{}, {"softmax_scale": 30.0}, {"settle": True}, {"variance_stabilize": True}])
def test_each_cell_can_be_reached_from_each(adata, backward: bool, options: dict):
    """No probability of an edge is lost: a softmax has none of zero."""
    kernel = OTVelocityKernel(adata, backward=backward).fit_field(n_steps=30, **QUIET)
    matrix = kernel.compute_transition_matrix(**options, **QUIET).transition_matrix
    assert connected_components(kernel.connectivities)[0] == 1
    assert connected_components(matrix, directed=True, connection="strong")[0] == 1
    np.testing.assert_allclose(np.asarray(matrix.sum(axis=1)).ravel(), 1, rtol=0, atol=1e-12)
    assert matrix.data.min() > 0


@pytest.mark.parametrize("weight", [0.0, 0.2])
def test_solvers_of_the_host_converge_without_petsc(adata, weight: float):
    kernel = kernel_of(adata)
    if weight:
        kernel = (1 - weight) * kernel + weight * cr.kernels.ConnectivityKernel(adata).compute_transition_matrix()
    estimator = cr.estimators.GPCCA(kernel)
    estimator.compute_schur(n_components=6, method="brandts")
    estimator.compute_macrostates(n_states=3)
    late = np.argsort(adata.obs["dpt_pseudotime"].to_numpy())[::-1]
    ends = {
        name: adata.obs_names[[i for i in late if adata.obs["clusters"].iloc[i] == name][:15]].tolist()
        for name in ("Fate A", "Fate B")
    }
    estimator.set_terminal_states(ends)
    for solver in ("gmres", "direct"):
        estimator.compute_fate_probabilities(solver=solver, use_petsc=False, **QUIET)
        np.testing.assert_allclose(np.asarray(estimator.fate_probabilities).sum(axis=1), 1, atol=1e-4)


def test_a_sum_of_rows_is_exact_for_many_neighbors():
    rng = np.random.default_rng(0)
    n = 400
    adata = ad.AnnData(np.zeros((n, 1), dtype=np.float32))
    adata.obs_names = [str(i) for i in range(n)]
    adata.obs["pseudotime"] = np.linspace(0, 1, n)
    adata.obsm["X_pca"] = rng.normal(size=(n, 5)) + adata.obs["pseudotime"].to_numpy()[:, None]
    adata.obsp["connectivities"] = sp.csr_matrix(np.ones((n, n)))
    matrix = kernel_of(adata).transition_matrix
    np.testing.assert_allclose(np.asarray(matrix.sum(axis=1)).ravel(), 1, rtol=0, atol=1e-12)
