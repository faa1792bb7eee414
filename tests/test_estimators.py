"""The estimator at any size: agreement with CellRank's dense way and with direct solvers, planted chains, errors."""

import logging
from importlib.metadata import version

import cellrank as cr
import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import scipy.sparse as sp
from anndata import AnnData, read_h5ad

from cellrank_velot import OTVelocityKernel, datasets, estimators, write_h5ad
from cellrank_velot._utils.slices import Slices
from cellrank_velot.estimators import estimator, memberships
from cellrank_velot.estimators.drivers import correlate
from cellrank_velot.estimators.schur import closed_classes, partial_schur, splits_pair
from cellrank_velot.fates import absorption
from cellrank_velot.fates.absorption import Transient, reaching

N_CELLS = 520


# ------------------------------------------------------------------------------------------------------------- chains
def piece(n_cells: int, seed: int, drift: float = 0.3) -> sp.csr_matrix:
    """A chain on a line of cells that moves to the right more often than to the left."""
    rng = np.random.default_rng(seed)
    steps = sp.diags(
        [
            rng.uniform(0.2, 1, n_cells - 1),
            rng.uniform(0.2, 1, n_cells),
            rng.uniform(0.2 + drift, 1 + drift, n_cells - 1),
        ],
        [-1, 0, 1],
    )
    return normalized(steps)


def normalized(steps) -> sp.csr_matrix:
    steps = sp.csr_matrix(steps)
    return sp.csr_matrix(sp.diags(1 / np.asarray(steps.sum(axis=1)).ravel()) @ steps)


def coupled(pieces, strength: float) -> sp.csr_matrix:
    """Pieces whose last cells lead to the first cells of all others."""
    steps = sp.lil_matrix(sp.block_diag(pieces))
    first = np.cumsum([0] + [p.shape[0] for p in pieces])
    for i in range(len(pieces)):
        for j in range(len(pieces)):
            if i != j:
                steps[first[i + 1] - 1, first[j]] = strength
    return normalized(steps)


def cycle(n_cells: int) -> sp.csr_matrix:
    """A chain that goes round a circle: its eigenvalues come in pairs."""
    near = np.arange(n_cells)
    steps = sp.coo_matrix((np.full(n_cells, 0.8), (near, (near + 1) % n_cells)), shape=(n_cells,) * 2)
    wide = sp.coo_matrix((np.full(n_cells, 0.2), (near, (near + n_cells // 20) % n_cells)), shape=(n_cells,) * 2)
    return normalized(0.3 * sp.eye(n_cells) + steps + wide + 0.02 * piece(n_cells, 3))


def precomputed(matrix) -> cr.kernels.PrecomputedKernel:
    n_cells = matrix.shape[0]
    rng = np.random.default_rng(0)
    adata = AnnData(
        sp.random(n_cells, 30, 0.3, format="csr", random_state=0, dtype=np.float32),
        obs=pd.DataFrame(
            {"clusters": pd.Categorical(np.array(["a", "b", "c"])[np.arange(n_cells) * 3 // n_cells])},
            index=[f"cell{i}" for i in range(n_cells)],
        ),
        obsm={"X_umap": rng.normal(size=(n_cells, 2))},
    )
    return cr.kernels.PrecomputedKernel(matrix, adata)


@pytest.fixture(scope="module")
def ours() -> OTVelocityKernel:
    adata = datasets.bifurcation(n_cells=N_CELLS)
    return OTVelocityKernel(adata).compute_transition_matrix(show_progress_bar=False)


@pytest.fixture(scope="module")
def kernels(ours):
    adata = ours.adata
    near = cr.kernels.ConnectivityKernel(adata).compute_transition_matrix()
    time = cr.kernels.PseudotimeKernel(adata, time_key="dpt_pseudotime")
    return {
        "ours": ours,
        "combined": 0.8 * ours + 0.2 * near,
        "connectivity": near,
        "pseudotime": time.compute_transition_matrix(show_progress_bar=False),
        "backward": (~ours.copy()).compute_transition_matrix(show_progress_bar=False),
        "unsettled": ours.copy().compute_transition_matrix(settle=False, show_progress_bar=False),
        "nearly reducible": precomputed(coupled([piece(180, 0), piece(200, 1), piece(140, 2)], 1e-7)),
        "dense": precomputed(coupled([piece(180, 0), piece(200, 1), piece(140, 2)], 1e-3).toarray()),
        "cycle": precomputed(cycle(N_CELLS)),
        "line": precomputed(piece(N_CELLS, 5, drift=0.02)),
    }


NAMES = (
    "ours", "combined", "connectivity", "pseudotime", "backward", "unsettled", "nearly reducible", "dense", "cycle",
    "line",
)  # fmt: skip


def condition(matrix) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues in falling order of their real part, and how far rounding moves each."""
    values, left, right = scipy.linalg.eig(matrix, left=True)
    order = np.lexsort((-values.imag, -values.real.round(10)))
    return values[order], 1 / np.maximum(np.abs((left.conj() * right).sum(axis=0)), 1e-15)[order]


@pytest.mark.parametrize("name", NAMES)
def test_schur_vectors_and_memberships_are_those_of_the_dense_way(kernels, name):
    theirs, found = cr.estimators.GPCCA(kernels[name]), estimators.GPCCA(kernels[name])
    theirs.compute_schur(12, method="brandts", verbose=False)
    found.compute_schur(12, method="sparse", tolerance=1e-13)
    mine, dense = found.eigendecomposition["D"], theirs.eigendecomposition["D"]
    _, sensitive = condition(sp.csr_matrix(found.transition_matrix).toarray())
    n = min(len(mine), len(dense))
    # Directed chains have eigenvalues that rounding alone moves: the dense way is no better there.
    assert (np.abs(mine[:n] - dense[:n]) < 1e-8 + 1e-14 * sensitive[:n]).all()
    m = next(n for n in (3, 4, 2) if not splits_pair(mine, n))
    theirs.compute_macrostates(m, n_cells=10), found.compute_macrostates(m, n_cells=10)
    np.testing.assert_allclose(found.macrostates_memberships.X, theirs.macrostates_memberships.X, atol=1e-6)
    np.testing.assert_allclose(found.coarse_T, theirs.coarse_T, atol=1e-6)
    np.testing.assert_allclose(found.coarse_initial_distribution, theirs.coarse_initial_distribution, atol=1e-6)
    if name != "line":  # where many cells are of one state alone
        np.testing.assert_array_equal(found.macrostates.cat.codes, theirs.macrostates.cat.codes)
    if name in ("connectivity", "cycle", "dense", "line"):
        matrix = sp.csr_matrix(found.transition_matrix).toarray()
        system = np.vstack([(np.eye(N_CELLS) - matrix).T, np.ones(N_CELLS)])
        truth = np.linalg.lstsq(system, np.append(np.zeros(N_CELLS), 1), rcond=None)[0]
        np.testing.assert_allclose(
            found.coarse_stationary_distribution, truth @ found.macrostates_memberships.X, atol=1e-6
        )


@pytest.mark.parametrize("name", ["combined", "connectivity", "pseudotime", "unsettled", "dense", "cycle"])
def test_fates_and_times_are_those_of_a_direct_solver(kernels, name):
    ends = {f"end {i}": list(kernels[name].adata.obs_names[i * 200 + np.arange(8)]) for i in range(3)}
    theirs, found = cr.estimators.GPCCA(kernels[name]), estimators.GPCCA(kernels[name])
    for each in (theirs, found):
        each.set_terminal_states(ends)
    theirs.compute_fate_probabilities(solver="direct", use_petsc=False)
    found.compute_fate_probabilities()
    np.testing.assert_allclose(found.fate_probabilities.X, theirs.fate_probabilities.X, atol=1e-8)
    np.testing.assert_allclose(found.fate_probabilities.X.sum(axis=1), 1, atol=1e-12)
    if name == "dense":  # CellRank 2.0 fails there
        return
    theirs.compute_absorption_times(solver="direct", use_petsc=False)
    found.compute_absorption_times()
    pd.testing.assert_frame_equal(found.absorption_times, theirs.absorption_times, rtol=1e-6)


def test_variance_of_absorption_times(kernels):
    kernel = kernels["combined"]
    found = estimators.GPCCA(kernel).set_terminal_states({"end": list(kernel.adata.obs_names[:9])})
    found.compute_absorption_times(calculate_variance=True)
    matrix = kernel.transition_matrix.toarray()[9:, 9:]
    visits = np.linalg.inv(np.eye(len(matrix)) - matrix)
    mean = visits.sum(axis=1)
    np.testing.assert_allclose(found.absorption_times["end_mean"][9:], mean, rtol=1e-8)
    np.testing.assert_allclose(found.absorption_times["end_var"][9:], 2 * visits @ mean - mean - mean**2, rtol=1e-8)
    np.testing.assert_array_equal(found.absorption_times[:9], 0)


# --------------------------------------------------------------------------------------------------- planted answers
def test_pieces_are_the_macrostates_of_a_chain_in_pieces():
    pieces = [piece(150 + 20 * i, i) for i in range(4)]
    matrix = sp.csr_matrix(sp.block_diag(pieces))
    label = np.repeat(range(4), [p.shape[0] for p in pieces])
    found = estimators.GPCCA(precomputed(matrix)).compute_schur(8)
    np.testing.assert_allclose(found.eigendecomposition["D"][:4], 1, atol=1e-12)
    found.compute_macrostates(4)
    chi = found.macrostates_memberships.X
    np.testing.assert_allclose(chi.max(axis=1), 1, atol=1e-8)
    assert len(set(zip(label, chi.argmax(axis=1), strict=True))) == 4
    assert found.coarse_stationary_distribution is None
    with pytest.raises(ValueError, match="Expected at least 4 macrostates, found 2: the chain has 4 groups"):
        found.compute_macrostates(2)


def test_equal_eigenvalues_are_all_found():
    matrix = coupled([piece(90, 0)] * 7, 1e-3)  # six copies of one eigenvalue: more than a block has vectors
    found = partial_schur(matrix, 9)
    dense = np.sort(np.linalg.eigvals(matrix.toarray()).real)[::-1]
    np.testing.assert_allclose(found.eigenvalues[:7].real, dense[:7], atol=1e-9)
    assert abs(found.eigenvalues[1] - found.eigenvalues[6]) < 1e-9


def test_pairs_are_never_split_and_vectors_are_orthonormal():
    matrix = cycle(700)
    for n in (2, 3, 4, 5):
        found = partial_schur(matrix, n)
        assert found.n_components in (n, n + 1)
        assert not splits_pair(found.eigenvalues, found.n_components)
        np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(found.n_components), atol=1e-10)
        np.testing.assert_allclose(matrix @ found.vectors, found.vectors @ found.matrix, atol=1e-8)
        assert found.residual < 1e-9


def test_weights_are_those_of_the_input_distribution(kernels):
    weights = np.random.default_rng(0).uniform(0.5, 1.5, N_CELLS)
    theirs, found = cr.estimators.GPCCA(kernels["combined"]), estimators.GPCCA(kernels["combined"])
    theirs.compute_schur(6, initial_distribution=weights / weights.sum(), method="brandts", verbose=False)
    found.compute_schur(6, initial_distribution=weights, method="sparse", tolerance=1e-13)
    for each in (theirs, found):
        each.compute_macrostates(3)
    np.testing.assert_allclose(found.macrostates_memberships.X, theirs.macrostates_memberships.X, atol=1e-6)
    np.testing.assert_allclose(found.coarse_initial_distribution, theirs.coarse_initial_distribution, atol=1e-6)


def test_boxes_tell_what_all_cells_tell(monkeypatch):
    rng = np.random.default_rng(0)
    x = np.vstack([rng.normal(size=(3000, 5)), np.zeros((200, 5))])
    directions = rng.normal(size=(5, 50))
    np.testing.assert_allclose(memberships._Farthest(x)(directions), (x @ directions).max(axis=0), rtol=1e-12)
    x = np.abs(rng.normal(size=(700, 4))) @ np.diag([1, 0.9, 0.8, 0.7]) / 30
    x = np.column_stack([np.ones(700), x[:, 1:] - x[:, :3]])
    whole = memberships._memberships(x)
    monkeypatch.setattr(memberships, "FEW_CELLS", 10)
    np.testing.assert_allclose(memberships._memberships(x), whole, atol=1e-9)


@pytest.mark.parametrize("leak", [1e-5, 1e-9, 1e-12])
def test_traps_are_solved_for(leak):
    """From a trap, a chain that leaves it goes to the ends as planted, however long it stays."""
    rng = np.random.default_rng(0)
    n_cells = 700
    trap = normalized(sp.random(n_cells, n_cells, 0.03, random_state=1) + sp.eye(n_cells))
    stay = np.linalg.lstsq(
        np.vstack([(np.eye(n_cells) - trap.toarray()).T, np.ones(n_cells)]), np.append(np.zeros(n_cells), 1), rcond=None
    )[0]
    s = np.zeros((n_cells, 2))
    s[rng.choice(n_cells, 20, replace=False), 0] = leak
    s[rng.choice(n_cells, 20, replace=False), 1] = 3 * leak
    q = sp.diags(1 - s.sum(axis=1)) @ trap
    found = Transient(sp.csr_matrix(q), s.sum(axis=1)).solve(s)
    expected = stay @ s / (stay @ s).sum()
    np.testing.assert_allclose(found.x, np.tile(expected, (n_cells, 1)), atol=50 * leak + 1e-7)
    np.testing.assert_allclose(found.x.sum(axis=1), 1, atol=1e-9)
    assert found.converged


def test_fates_and_sums_are_the_same_whatever_the_number_of_threads(monkeypatch):
    rng = np.random.default_rng(0)
    q, values = normalized(sp.random(600, 600, 0.03, random_state=1) + sp.eye(600)), rng.normal(size=600)
    s = rng.random((600, 9)) * (rng.random((600, 9)) < 0.02)
    found = []
    for n_threads in (1, 3):
        for place in ("cellrank_velot._utils.slices", "cellrank_velot.fates.absorption"):
            monkeypatch.setattr(f"{place}.count_threads", lambda n=n_threads: n)
        chain = Transient(sp.csr_matrix(sp.diags(1 / (1 + s.sum(axis=1))) @ q), s.sum(axis=1) / (1 + s.sum(axis=1)))
        with Slices(600, size=7) as slices:
            parts = slices.map(lambda part: (part.start, values[part].sum()))
        found.append((parts, chain.solve(s / (1 + s.sum(axis=1, keepdims=True))).x))
    assert found[0][0] == found[1][0]
    assert [start for start, _ in found[0][0]] == list(range(0, 600, 7))
    np.testing.assert_array_equal(found[0][1], found[1][1])
    np.testing.assert_allclose(found[0][1].sum(axis=1), 1, atol=1e-9)


def test_cells_that_reach_an_end():
    matrix = sp.csr_matrix(np.array([[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    np.testing.assert_array_equal(reaching(matrix, np.array([2])), [True, True, True, False])
    label, closed = closed_classes(matrix)
    assert set(closed) == {label[2], label[3]}


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_drivers_are_those_of_cellrank(kernels, kind, monkeypatch):
    monkeypatch.setattr("cellrank_velot.estimators.drivers.BLOCK", 100)
    adata = kernels["combined"].adata
    kernel = kernels["combined"].copy(deep=True)
    kernel.adata.X = sp.csr_matrix(adata.X) if kind == "sparse" else np.asarray(adata.to_df())
    ends = {"left": list(adata.obs_names[:9]), "right": list(adata.obs_names[-9:])}
    found, theirs = estimators.GPCCA(kernel), cr.estimators.GPCCA(kernel.copy(deep=True))
    for each in (found, theirs):
        each.set_terminal_states(ends)
        each.compute_fate_probabilities(solver="direct", use_petsc=False)
    compare_drivers(*(each.compute_lineage_drivers() for each in (found, theirs)), adata.n_obs)
    some = {"cluster_key": "clusters", "clusters": ["Progenitor", "Fate A"], "lineages": "left"}
    n_cells = int(adata.obs["clusters"].isin(some["clusters"]).sum())
    compare_drivers(*(each.compute_lineage_drivers(**some) for each in (found, theirs)), n_cells)
    assert "terminal_lineage_drivers" in " ".join(found.adata.varm)


def compare_drivers(found, theirs, n_cells):
    if version("cellrank").startswith("2.0"):  # its correlations are too large by n / (n - 1)
        corr = [name for name in theirs if name.endswith("_corr")]
        found, theirs = found[corr], theirs[corr] * (n_cells - 1) / n_cells
    pd.testing.assert_frame_equal(found.loc[theirs.index], theirs, atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200])
def test_a_gene_with_a_value_that_is_no_number_has_no_correlation(value):
    rng = np.random.default_rng(0)
    x, y = rng.poisson(1.0, (50, 4)).astype(float), rng.random((50, 2))
    expected = correlate(x, y)
    x[3, 1] = value
    for kind in (x, sp.csr_matrix(x)):
        corr = correlate(kind, y)
        assert np.isnan(corr[1]).all()
        np.testing.assert_allclose(np.delete(corr, 1, axis=0), np.delete(expected, 1, axis=0), atol=1e-12)


def test_genes_that_do_not_vary_have_no_correlation():
    x = np.column_stack([np.ones(50), np.arange(50.0)])
    y = np.arange(50.0)[:, None]
    for kind in (x, sp.csr_matrix(x)):
        corr = correlate(kind, y)
        assert np.isnan(corr[0, 0])
        assert corr[1, 0] == pytest.approx(1)


# ------------------------------------------------------------------------------------------- states, files and errors
def test_states_are_set_predicted_saved_and_read(kernels, tmp_path):
    kernel = kernels["combined"].copy(deep=True)
    g = estimators.GPCCA(kernel)
    assert g.compute_schur(6, method="sparse") is g
    assert g.compute_macrostates(3, cluster_key="clusters") is g
    g.predict_initial_states(1)
    g.predict_terminal_states(method="top_n", n_states=2)
    assert len(g.terminal_states.cat.categories) == 2
    g.rename_terminal_states({g.terminal_states.cat.categories[0]: "renamed"})
    g.compute_fate_probabilities()
    g.compute_absorption_times()
    g.compute_lineage_drivers()
    g.compute_lineage_priming()
    g.write(tmp_path / "g.pickle")
    again = estimators.GPCCA.read(tmp_path / "g.pickle")
    assert isinstance(again, estimators.GPCCA)
    np.testing.assert_array_equal(again.fate_probabilities.X, g.fate_probabilities.X)
    again.compute_macrostates(2)
    written = g.to_adata()
    write_h5ad(written, tmp_path / "g.h5ad")
    back = estimators.GPCCA.from_adata(read_h5ad(tmp_path / "g.h5ad"), obsp_key="T_fwd")
    np.testing.assert_allclose(back.macrostates_memberships.X, g.macrostates_memberships.X)
    np.testing.assert_allclose(back.fate_probabilities.X, g.fate_probabilities.X)
    np.testing.assert_array_equal(g.copy(deep=True).fate_probabilities.X, g.fate_probabilities.X)
    assert "sparse" in str(g.params["schur_decomposition_fwd"])


def test_more_macrostates_than_vectors_are_computed_anew(kernels):
    g = estimators.GPCCA(kernels["combined"]).compute_schur(3, method="sparse")
    g.compute_macrostates(4)
    assert g.macrostates_memberships.shape[1] == 4
    assert g.schur_vectors.shape[1] >= 4


def test_auto_is_dense_for_few_cells_and_sparse_for_many(kernels, monkeypatch):
    small = precomputed(piece(300, 0))
    assert not isinstance(estimators.GPCCA(small).compute_schur(5)._gpcca, memberships.CoarseGraining)
    many = estimators.GPCCA(kernels["combined"]).compute_schur(5)
    assert isinstance(many._gpcca, memberships.CoarseGraining)


def test_options_are_checked(kernels):
    g = estimators.GPCCA(kernels["combined"])
    with pytest.raises(ValueError, match="method"):
        g.compute_schur(5, method="arnoldi")
    with pytest.raises(ValueError, match="Expected `initial_distribution` for 520 cells, found 3"):
        g.compute_schur(5, initial_distribution=[1, 2, 3], method="sparse")
    with pytest.raises(ValueError, match="Expected `initial_distribution` to be positive"):
        g.compute_schur(5, initial_distribution=np.zeros(N_CELLS), method="sparse")


def test_vectors_that_do_not_converge_are_an_error(kernels, monkeypatch, caplog):
    monkeypatch.setattr("cellrank_velot.estimators.schur.GUARD", 4)
    monkeypatch.setattr(estimator, "partial_schur", lambda *args: partial_schur(*args, most_products=1))
    with pytest.raises(RuntimeError, match="Schur vectors have not converged after .* products"):
        estimators.GPCCA(kernels["unsettled"]).compute_schur(5, method="sparse")


def test_cells_without_an_end_are_named():
    matrix = sp.csr_matrix(sp.block_diag([piece(300, 0), piece(300, 1)]))
    g = estimators.GPCCA(precomputed(matrix)).set_terminal_states({"end": ["cell0"], "other": ["cell299"]})
    with pytest.raises(ValueError, match="From 300 of 598 cells no terminal state can be reached, such as"):
        g.compute_fate_probabilities()
    with pytest.raises(ValueError, match="Name a terminal state among them"):
        g.compute_absorption_times()


def test_inaccurate_fates_are_said(kernels, monkeypatch, caplog):
    monkeypatch.setattr(absorption, "MOST_ROUNDS", 1)
    g = estimators.GPCCA(kernels["cycle"]).set_terminal_states({"a": ["cell0"], "b": ["cell1"]})
    monkeypatch.setattr(absorption, "COARSEST", 20)
    with caplog.at_level(logging.WARNING, "cellrank_velot"):
        g.compute_fate_probabilities()
    assert "Fate probabilities have an error of up to" in caplog.text


def test_drivers_say_what_is_missing(kernels):
    kernel = kernels["combined"].copy(deep=True)
    g = estimators.GPCCA(kernel)
    with pytest.raises(RuntimeError, match="Expected fate probabilities, found none"):
        g.compute_lineage_drivers()
    g.set_terminal_states({"end": list(kernel.adata.obs_names[:5])})
    g.compute_fate_probabilities()
    with pytest.raises(ValueError, match=r"Expected at least two lineages, found \['end'\]: all cells go there"):
        g.compute_lineage_drivers()
    g.set_terminal_states({"left": list(kernel.adata.obs_names[:5]), "right": list(kernel.adata.obs_names[-5:])})
    g.compute_fate_probabilities()
    with pytest.raises(KeyError, match="Expected one of the lineages"):
        g.compute_lineage_drivers("middle")
    with pytest.raises(KeyError, match="Expected one of the clusters"):
        g.compute_lineage_drivers(cluster_key="clusters", clusters="none")
    with pytest.raises(KeyError, match="Expected one of the layers"):
        g.compute_lineage_drivers(layer="none")
    kernel.adata.X = None
    with pytest.raises(RuntimeError, match="found no genes"):
        g.compute_lineage_drivers()


def test_cells_without_genes(ours):
    kernel = ours.copy(deep=True)
    kernel.adata.X = None
    g = estimators.GPCCA(kernel).compute_macrostates(2)
    assert kernel.adata.X is None
    assert g.macrostates_memberships.shape == (N_CELLS, 2)


def test_an_unknown_host_is_named(kernels, monkeypatch):
    monkeypatch.setattr(estimator, "_HOST_NAMES", ("_compute_fates",))
    with pytest.raises(RuntimeError, match=r"CellRank .* lacks \['_compute_fates'\], which"):
        estimators.GPCCA(kernels["combined"])
