"""A screen of all genes, and a series of doses: against chains solved anew, planted genes, and what is refused."""

import logging

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import kstest

from cellrank_velot import OTVelocityKernel, pl
from cellrank_velot.fates import absorption_probabilities, expected_visits
from cellrank_velot.perturbation import Chain, ScreenOptions, compute_screen, parse_kinds

QUIET = {"show_progress_bar": False}


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def chain_of(n_cells: int, seed: int = 0) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    matrix = sp.random(n_cells, n_cells, 0.1, random_state=seed, format="csr") + sp.eye(n_cells, k=1, format="csr")
    matrix = sp.csr_matrix(matrix + sp.diags(rng.uniform(0.1, 1, n_cells)))
    return sp.csr_matrix(sp.diags(1 / np.asarray(matrix.sum(axis=1)).ravel()) @ matrix)


@pytest.mark.parametrize("n_cells", [40, 900])
def test_visits_are_those_of_a_dense_solution(n_cells):
    matrix, ends = chain_of(n_cells), np.array([3, n_cells - 1])
    start = np.random.default_rng(1).uniform(size=n_cells)
    free = np.setdiff1d(np.arange(n_cells), ends)
    expected = np.zeros(n_cells)
    q = matrix.toarray()[np.ix_(free, free)]
    expected[free] = np.linalg.solve(np.eye(free.size) - q.T, start[free])
    assert_allclose(expected_visits(matrix, ends, start), expected, rtol=1e-7, atol=1e-9)


def test_visits_of_a_chain_without_a_way_to_an_end_are_none():
    matrix = sp.csr_matrix(np.array([[1.0, 0, 0], [0, 0.5, 0.5], [0, 0, 1.0]]))
    assert_allclose(expected_visits(matrix, np.array([2]), np.array([0.5, 0.5, 0])), [0, 1, 0])


# ----------------------------------------------------------------------------------- a fork whose cells answer as told
@pytest.fixture(scope="module")
def fork():
    """A chain along the first dimension that goes to the side to which a cell is displaced along the second."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 4))
    time = rng.uniform(size=400)
    # Each cell is undecided, and steps to the left or the right end.
    left, right = np.arange(2), np.arange(2, 4)

    def matrix_at(shift):
        go = 1 / (1 + np.exp(-(x[:, 1] + shift[:, 1])))
        dense = np.zeros((400, 400))
        dense[:, 0], dense[:, 2] = 1 - go, go
        dense[:4] = np.eye(4, 400)
        return sp.csr_matrix(dense)

    starts = np.ones(400, dtype=bool)
    starts[:4] = False
    return Chain(x, time, matrix_at, starts, {"left": left, "right": right})


def test_a_gene_that_decides_is_found_and_others_are_chance(fork):
    rng = np.random.default_rng(2)
    n_genes = 300
    values = rng.gamma(2.0, size=(400, n_genes))
    values[:, 0] += np.maximum(2 * fork.x[:, 1], 0)
    centred = fork.x - fork.x.mean(axis=0)
    loadings = (values.T @ (centred / np.square(centred).sum(axis=0))).T
    names = np.array([f"g{i}" for i in range(n_genes)])
    found = compute_screen(fork, values, loadings, names, parse_kinds(["knockout"]), ScreenOptions(n_exact=1))
    row = found.to_frame().iloc[0]
    assert (row["gene"], row["change"], row["value"]) == ("g0", "knockout", 0.0)
    assert found.delta[0, 0, 1] < 0 < found.delta[0, 0, 0]
    assert found.p_adjusted[0, 0].max() < 1e-3
    # To first order, and not: the same sign, and about as far.
    assert 0.5 < found.exact[0, 0, 1] / found.delta[0, 0, 1] < 1.5
    assert np.isnan(found.exact[0, 1:]).all()
    # The others know nothing of the fates. Loadings are those of a regression, as their p-values take them to be.
    assert kstest(found.p_values[0, 1:, 1], "uniform").pvalue > 0.01
    assert (found.p_adjusted[0, 1:] < 0.1).mean() < 0.02


def test_a_gene_that_is_not_there_has_no_shift(fork):
    values = np.random.default_rng(3).gamma(2.0, size=(400, 3))
    values[:, 1] = 0
    found = compute_screen(fork, sp.csr_matrix(values), np.ones((4, 3)), np.array(list("abc")), parse_kinds("knockout"))
    assert np.isnan(found.delta[0, 1]).all()
    assert np.isnan(found.p_values[0, 1]).all()
    assert np.isfinite(found.delta[0, [0, 2]]).all()
    assert found.to_frame()["gene"].iloc[-1] == "b"


# --------------------------------------------------------------------------------------------------------- of a kernel
@pytest.fixture
def kernel(computed):
    if "clusters" not in computed.adata.obs:
        computed.adata.obs["clusters"] = "all"
    return computed


def test_exact_shifts_are_those_of_the_perturbed_kernel_and_small_ones_those_to_first_order(kernel):
    states = kernel.suggest_terminal_states(n_halves=0, **QUIET)
    little = {"little": ("scale", 0.98)}
    found = kernel.screen(["gene_1", "gene_5"], little, states=states, n_exact=2, n_null=0, **QUIET)
    assert found.genes.tolist() == ["gene_1", "gene_5"]
    rows = [kernel.adata.obs_names.get_indexer(cells) for cells in states.values()]
    starts = kernel.cells.time <= np.quantile(kernel.cells.time, 0.1)
    starts[np.concatenate(rows)] = False
    walk = sp.diags(1 / np.asarray(kernel.connectivities.sum(axis=1)).ravel()) @ kernel.connectivities

    def fates(one):
        mixed = sp.csr_matrix(0.8 * one.transition_matrix + 0.2 * sp.csr_matrix(walk))
        return absorption_probabilities(mixed, rows)

    before = fates(kernel)
    assert abs(before[starts].mean(axis=0) - found.before).max() < 0.02  # another tenth of the cells, by one or two
    for number, gene in enumerate(found.genes):
        after = fates(kernel.perturbed_kernel({str(gene): little["little"]}, settle=kernel.params.get("settle")))
        expected = (after - before)[starts].mean(axis=0)
        assert_allclose(found.exact[0, number], expected, atol=0.1 * np.abs(expected).max() + 1e-6)
        assert_allclose(found.delta[0, number], found.exact[0, number], rtol=0.1, atol=1e-6)


def test_a_screen_leaves_the_kernel_and_the_data_alone_and_comes_out_the_same(kernel):
    before = kernel.transition_matrix.copy()
    first, second = (kernel.screen(["gene_1"], n_exact=1, n_null=5, random_state=3, **QUIET) for _ in range(2))
    assert_array_equal(first.p_values, second.p_values)
    assert_array_equal(first.exact, second.exact)
    assert (before != kernel.transition_matrix).nnz == 0
    assert "gene_1" in repr(first)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"genes": "Gata9"}, KeyError, "Expected genes of `adata.var_names`, found 'Gata9'"),
        ({"changes": "silence"}, ValueError, "Expected `changes` among `.'knockout', 'overexpression'.`"),
        ({"changes": {"half": ("scale", -1)}}, ValueError, "half"),
        ({"n_exact": -1}, ValueError, "`n_exact`"),
        ({"weight": 0}, ValueError, "`weight`"),
        ({"states": {"a": ["0"]}}, (ValueError, KeyError), "state"),
        ({"source_time": (2, 3)}, ValueError, "found none"),
    ],
)
def test_what_a_screen_refuses(kernel, options, error, match):
    with pytest.raises(error, match=match):
        kernel.screen(**{"genes": ["gene_1"], "n_exact": 0, "n_null": 0, **QUIET, **options})


def test_a_matrix_of_another_origin_is_refused(adata, kernel):
    other = kernel.copy()
    other.transition_matrix = kernel.transition_matrix
    with pytest.raises(RuntimeError, match="cannot be made again for displaced cells"):
        other.screen(["gene_1"], **QUIET)
    backward = OTVelocityKernel(adata, backward=True).compute_transition_matrix(**QUIET)
    with pytest.raises(RuntimeError, match="forward kernel"):
        backward.screen(["gene_1"], **QUIET)


# --------------------------------------------------------------------------------------------------------------- doses
def test_doses_start_from_no_change_and_agree_with_single_shifts(kernel, caplog):
    flow = {"step_size": 0.03, "diffusion": 0.2}
    where = {"cluster_key": "clusters", "n_particles": 40, **QUIET}
    with caplog.at_level(logging.ERROR):
        doses = kernel.dose_response("gene_1", [0, 1, 3], **where, **flow)
        shift = kernel.fate_shift({"gene_1": 0.0}, n_null=0, **where, **flow)
    assert_allclose(doses.shares[1], shift.before[0])
    assert_allclose(doses.shares[0], shift.after[0])
    assert_allclose(doses.shares.sum(axis=1), 1)
    assert_allclose(doses.low[1], doses.shares[1])
    assert (doses.low <= doses.shares).all()
    assert (doses.shares <= doses.high).all()
    assert doses.to_frame().shape == (3 * doses.lineages.size, 5)


def test_what_doses_refuse(kernel):
    with pytest.raises(ValueError, match="at least one factor"):
        kernel.dose_response("gene_1", [], cluster_key="clusters")
    with pytest.raises(ValueError, match="`factors`"):
        kernel.dose_response("gene_1", [-1], cluster_key="clusters")
    with pytest.raises(TypeError, match="as in `fate_shift`, found `step`"):
        kernel.dose_response("gene_1", cluster_key="clusters", step=1)


# ------------------------------------------------------------------------------------------------------------ pictures
def test_pictures_of_screen_and_doses(kernel):
    found = kernel.screen(n_exact=4, n_null=10, **QUIET)
    panels = pl.screen(kernel, found, n_genes=3, show=False)
    assert [panel.get_title(loc="left") for panel in panels] == found.lineages.tolist()
    names = [label.get_text() for label in panels[0].get_yticklabels()]
    assert len(names) == 3
    assert set(names) <= set(found.genes)
    with pytest.raises(KeyError, match="lineages"):
        pl.screen(kernel, found, lineages="Gamma", show=False)
    with pytest.raises(TypeError, match="`Screen`"):
        pl.screen(kernel, found.to_frame(), show=False)
    doses = kernel.dose_response("gene_1", [3, 0, 1], cluster_key="clusters", n_particles=20, step_size=0.05, **QUIET)
    ax = pl.dose_response(kernel, doses, show=False)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "3"]
    line = next(line for line in ax.get_lines() if line.get_label() == str(doses.lineages[0]))
    assert_allclose(line.get_ydata(), doses.shares[[1, 2, 0], 0])
