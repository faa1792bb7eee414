"""Regulation: planted fields are read exactly, a toggle switch by its signs; the bootstrap, genes, and the kernel."""

import logging
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import kneighbors_graph

from cellrank_velot import OTVelocityKernel, datasets
from cellrank_velot._utils.options import Run
from cellrank_velot.field import FieldOptions, VelocityField, fit_field
from cellrank_velot.regulation import RegulationOptions, Variables, derivatives
from cellrank_velot.regulation.derivatives import has_growth, jacobians
from cellrank_velot.regulation.groups import bin_times, name_intervals
from cellrank_velot.regulation.matrix import MAX_GENES, Regulation, compute_growth_genes, compute_regulation


class Planted:
    """A field of functions of tensors."""

    def __init__(self, velocity, growth=None):
        self.velocity = velocity
        if growth is not None:
            self.growth_on = lambda device: growth

    def on(self, device):
        return self.velocity


def linear(matrix, **kwargs) -> Planted:
    weights = torch.tensor(np.asarray(matrix), dtype=torch.float64)
    return Planted(lambda x, time: x @ weights.T, **kwargs)


def bent(matrix) -> Planted:
    """Return a field that is not linear in the position, nor in time."""
    weights = torch.tensor(matrix)
    return Planted(lambda x, time: torch.sin(x @ weights.T) * (1 + time.unsqueeze(1) ** 2))


def toggle(x: np.ndarray, power: int = 4, half: float = 0.5) -> np.ndarray:
    """Return the drift of two genes that repress each other and activate themselves, and decay at rate one."""
    own = x**power / (half**power + x**power)
    other = half**power / (half**power + x[:, ::-1] ** power)
    return own + other - x


@pytest.fixture(scope="module")
def switch() -> VelocityField:
    """Return a field that is fitted to a toggle switch."""
    x = np.random.default_rng(0).uniform(0, 2, size=(800, 2))
    return fit_field(
        x,
        np.zeros(800),
        toggle(x),
        np.ones(800),
        sp.csr_matrix((800, 800)),
        options=FieldOptions(use_time=False, lambda_smooth=0, n_steps=600, hidden=(64, 64)),
        run=Run(device="cpu"),
    )


@pytest.fixture
def cells() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.normal(size=(60, 3)), rng.uniform(size=60)


XYZ = Variables(("X", "Y", "Z"))
MATRIX = np.array([[0.5, -1.0, 0.0], [2.0, -0.3, 0.7], [0.0, 1.5, -2.0]])


# ------------------------------------------------------------------------------------------------- derivatives
def test_jacobian_of_a_linear_field_is_its_matrix(cells):
    found = jacobians(linear(MATRIX), *cells)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, np.broadcast_to(MATRIX, (60, 3, 3)), atol=1e-14)


def test_jacobian_agrees_with_finite_differences(cells):
    x, time = cells
    field = bent(MATRIX)

    def value(at):
        return field.on("cpu")(torch.tensor(at), torch.tensor(time)).numpy()

    step = 1e-6
    expected = np.stack([(value(x + step * e) - value(x - step * e)) / (2 * step) for e in np.eye(3)], axis=2)
    np.testing.assert_allclose(jacobians(field, x, time), expected, atol=1e-8)


def test_chunks_change_nothing(cells, monkeypatch):
    genes = Variables(("a", "b"), decoder=torch.sinh, chosen=np.array([2, 0]))
    whole = jacobians(bent(MATRIX), *cells), compute_regulation(bent(MATRIX), *cells, variables=genes).jacobian
    monkeypatch.setattr(derivatives, "CHUNK_VALUES", 7 * 3 * (3 + derivatives.USUAL_WIDTH))
    parts = jacobians(bent(MATRIX), *cells), compute_regulation(bent(MATRIX), *cells, variables=genes).jacobian
    np.testing.assert_array_equal(parts[0], whole[0])
    np.testing.assert_allclose(parts[1], whole[1], atol=1e-14)


def test_one_time_for_all_and_no_point(cells):
    x, _ = cells
    field = bent(MATRIX)
    np.testing.assert_array_equal(jacobians(field, x, 0.3), jacobians(field, x, np.full(60, 0.3)))
    assert jacobians(field, x[:0], 0.3).shape == (0, 3, 3)


def test_drift_is_asked_in_place_of_velocity(cells):
    field = linear(MATRIX)
    field.drift_on = linear(2 * MATRIX).on
    np.testing.assert_allclose(compute_regulation(field, *cells).jacobian[0], 2 * MATRIX)


# ------------------------------------------------------------------------------------------------ planted truth
def test_toggle_switch_has_its_four_signs(switch):
    x = np.random.default_rng(1).uniform(0.2, 1.0, size=(300, 2))
    found = compute_regulation(switch, x, np.zeros(300), variables=Variables(("X", "Y")), degradation=1.0)
    signs = found.edges().set_index(["source", "target"])["sign"].to_dict()
    assert signs == {("X", "X"): 1, ("Y", "Y"): 1, ("X", "Y"): -1, ("Y", "X"): -1}
    assert found.stability.min() == 1
    step = 1e-5
    exact = np.stack([(toggle(x + step * e) - toggle(x - step * e)).mean(0) / (2 * step) for e in np.eye(2)], axis=1)
    np.testing.assert_allclose(found.jacobian[0], exact + np.eye(2), rtol=0.2)


def test_without_degradation_the_diagonal_is_what_is_left_of_both(switch):
    high = np.random.default_rng(1).uniform(1.2, 2.0, size=(300, 2))
    raw = compute_regulation(switch, high, np.zeros(300)).jacobian[0]
    assert (np.diag(raw) < -0.5).all()  # saturated: decay alone is left
    rid = compute_regulation(switch, high, np.zeros(300), degradation=[1.0, 0.5]).jacobian[0]
    np.testing.assert_allclose(rid - raw, np.diag([1.0, 0.5]), atol=1e-12)


def test_loadings_give_what_their_decoder_gives(cells):
    loadings = np.linalg.qr(np.random.default_rng(2).normal(size=(9, 3)))[0].T
    names = ("c", "a", "b", "d")
    chosen = np.array([7, 0, 3, 4])
    by_loadings = compute_regulation(
        bent(MATRIX), *cells, variables=Variables(names, loadings=loadings[:, chosen]), degradation=[1, 2, 3, 4]
    )
    weights = torch.tensor(loadings)
    by_decoder = compute_regulation(
        bent(MATRIX),
        *cells,
        variables=Variables(names, decoder=lambda x: x @ weights, chosen=chosen),
        degradation=[1, 2, 3, 4],
    )
    for name in ("jacobian", "std", "lower", "upper", "stability", "held"):
        np.testing.assert_allclose(getattr(by_decoder, name), getattr(by_loadings, name), atol=1e-10, err_msg=name)
    np.testing.assert_allclose(by_loadings.held[0], (loadings[:, chosen] ** 2).sum(axis=0))
    mean = jacobians(bent(MATRIX), *cells).mean(axis=0)
    raw = compute_regulation(bent(MATRIX), *cells, variables=Variables(names, loadings=loadings[:, chosen]))
    np.testing.assert_allclose(raw.jacobian[0], loadings[:, chosen].T @ mean @ loadings[:, chosen], atol=1e-12)


def test_genes_are_recovered_from_a_bent_basis(cells):
    # Genes follow a linear system; the basis is a curved image of them, and the decoder is the way back.
    x, time = cells
    weights = torch.tensor(MATRIX)
    field = Planted(lambda x, time: (torch.sinh(x) @ weights.T) / torch.cosh(x))
    found = compute_regulation(field, x, time, variables=Variables(("a", "b", "c"), decoder=torch.sinh))
    np.testing.assert_allclose(found.jacobian[0], MATRIX, atol=1e-9)
    np.testing.assert_allclose(found.held, 1, atol=1e-12)


def test_decay_of_all_genes_is_taken_off_exactly_by_a_basis_that_holds_few(cells):
    rng = np.random.default_rng(3)
    loadings = np.linalg.qr(rng.normal(size=(9, 3)))[0].T
    genes = Variables(("a", "b"), loadings=loadings[:, [0, 5]])
    with_decay = compute_regulation(linear(MATRIX - 0.8 * np.eye(3)), *cells, variables=genes, degradation=0.8)
    without = compute_regulation(linear(MATRIX), *cells, variables=genes)
    np.testing.assert_allclose(with_decay.jacobian, without.jacobian, atol=1e-12)


def test_a_rotated_basis_gives_the_same_genes(cells):
    x, time = cells
    rng = np.random.default_rng(4)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    loadings = np.linalg.qr(rng.normal(size=(9, 3)))[0].T
    torch_turn = torch.tensor(turn)
    field = bent(MATRIX)
    turned = Planted(lambda x, time: field.on("cpu")(x @ torch_turn, time) @ torch_turn.T)
    one = compute_regulation(field, x, time, variables=Variables(tuple("abcdefghi"), loadings=loadings))
    other = compute_regulation(
        turned, x @ turn.T, time, variables=Variables(tuple("abcdefghi"), loadings=turn @ loadings)
    )
    np.testing.assert_allclose(other.jacobian, one.jacobian, atol=1e-10)
    np.testing.assert_allclose(other.upper, one.upper, atol=1e-10)


def test_a_module_is_called_in_its_own_precision(cells):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.SiLU(), torch.nn.Linear(8, 6))
    found = compute_regulation(linear(MATRIX), *cells, variables=Variables(tuple("abcdef"), decoder=module))
    exact = compute_regulation(linear(MATRIX), *cells, variables=Variables(tuple("abcdef"), decoder=module.double()))
    np.testing.assert_allclose(found.jacobian, exact.jacobian, rtol=1e-3, atol=1e-3)
    assert all(weight.grad is None for weight in module.parameters())


def test_contraction_is_minus_the_mean_diagonal(cells):
    assert compute_regulation(linear(-1.5 * np.eye(3)), *cells).contraction == pytest.approx([1.5])


def test_toggle_switches_are_found_through_a_pca_from_the_order_of_cells(caplog):
    adata = datasets.tree(n_cells=800, preprocess=False)
    pca = PCA(20, random_state=0)
    adata.obsm["X_pca"] = pca.fit_transform(adata.X)
    adata.varm["PCs"] = pca.components_.T
    graph = kneighbors_graph(adata.obsm["X_pca"], 15)
    adata.obsp["connectivities"] = sp.csr_matrix(graph.maximum(graph.T))
    pairs = [("BranchA", "BranchB"), ("FateA1", "FateA2"), ("FateB1", "FateB2")]
    genes = [gene for pair in pairs for gene in pair]
    quiet = {"show_progress_bar": False}

    def is_found(kernel: OTVelocityKernel, **options: float) -> bool:
        found = kernel.compute_regulation(genes, **options).matrix("all")
        repressed = [found.loc[a, b] for pair in pairs for a, b in (pair, pair[::-1])]
        return bool(max(repressed) < -0.1 and np.diag(found).min() > 0)

    kernel = OTVelocityKernel(adata, time_key="true_time").fit_field(**quiet)
    assert is_found(kernel)
    # Nothing brings cells together by default. A decay that is not there cannot be taken off, and the answer says so.
    contraction = float(kernel.compute_regulation().contraction[0])
    assert contraction < 0
    with pytest.raises(ValueError, match=r"leave `degradation` out, as in `.compute_regulation\(genes\)`"):
        kernel.compute_regulation(genes, degradation=contraction)
    with caplog.at_level(logging.WARNING, "cellrank_velot"):
        kernel.compute_regulation(genes, degradation=1.0)
    assert "holds no decay that `degradation` could take off. Leave `degradation` out" in caplog.text
    # Relaxation does, and is taken off again.
    kernel.compute_velocity(relaxation=0.5, **quiet).fit_field(**quiet)
    caplog.clear()
    assert is_found(kernel, degradation=float(kernel.compute_regulation().contraction[0]))
    assert not caplog.text


# ----------------------------------------------------------------------------------------- groups and bootstrap
def test_groups_average_their_own_cells_in_the_order_of_categories(cells, caplog):
    x, time = cells
    codes = np.repeat([1, 0, -1, 2], [20, 25, 12, 3])
    groups = pd.Categorical.from_codes(codes, ["z", "a", "few", "none"])
    with caplog.at_level(logging.WARNING, "cellrank_velot"):
        found = compute_regulation(bent(MATRIX), x, time, groups)
    assert found.groups.tolist() == ["z", "a"]
    assert found.n_cells.tolist() == [25, 20]
    assert "{'few': 3}" in caplog.text
    each = jacobians(bent(MATRIX), x, time)
    np.testing.assert_allclose(found.jacobian, [each[20:45].mean(axis=0), each[:20].mean(axis=0)], atol=1e-12)
    np.testing.assert_allclose(found.matrix("a"), each[:20].mean(axis=0), atol=1e-12)
    # A group does not depend on which others there are.
    alone = compute_regulation(bent(MATRIX), x[:20], time[:20])
    np.testing.assert_array_equal(alone.std[0], found.std[1])


def test_bootstrap_has_the_standard_error_of_the_mean(monkeypatch):
    rng = np.random.default_rng(5)
    x, time = rng.normal(size=(150, 2)), np.zeros(150)
    matrix = np.array([[1.0, 0.5], [-0.4, 0.8]])
    each = jacobians(bent(matrix), x, time)
    expected = each.std(axis=0) / np.sqrt(150)
    monkeypatch.setattr(derivatives, "CHUNK_VALUES", 16 * 2 * (2 + derivatives.USUAL_WIDTH))
    found = compute_regulation(bent(matrix), x, time, options=RegulationOptions(n_bootstrap=4000))
    np.testing.assert_allclose(found.std[0], expected, rtol=0.06)
    np.testing.assert_allclose((found.upper - found.lower)[0] / 2, 1.96 * expected, rtol=0.08)
    np.testing.assert_allclose((found.upper + found.lower)[0] / 2, found.jacobian[0], atol=0.4 * expected.max())
    # Draws of chunks add up to as many as there are cells: what is the same everywhere does not vary.
    assert compute_regulation(linear(matrix), x, time).std.max() < 1e-14


def test_stability_is_the_share_of_replicates_of_the_same_sign():
    x = np.array([[-1.0], [-1.0], [1.0], [1.0], [1.0]])
    field = Planted(lambda x, time: x**2 / 2)  # its derivative is the position
    found = compute_regulation(field, x, np.zeros(5), options=RegulationOptions(n_bootstrap=20_000, random_state=1))
    assert found.jacobian[0, 0, 0] == pytest.approx(0.2)
    # Of five draws, three or more are positive: a binomial of probability 3/5.
    assert found.stability[0, 0, 0] == pytest.approx(0.68256, abs=0.01)


def test_several_fields_widen_the_interval_by_what_they_differ_in(cells):
    found = compute_regulation(
        [linear(MATRIX - 0.1), linear(MATRIX + 0.1)], *cells, options=RegulationOptions(n_bootstrap=100)
    )
    np.testing.assert_allclose(found.jacobian[0], MATRIX, atol=1e-12)
    np.testing.assert_allclose(found.std[0], 0.1, atol=1e-12)
    assert found.stability[0, 0, 2] == 0  # the mean is zero, no replicate is
    assert found.stability[0, 0, 0] == 1


def test_same_seed_same_result(cells):
    one, same, other = (
        compute_regulation(bent(MATRIX), *cells, options=RegulationOptions(random_state=seed)) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one.std, same.std)
    assert (one.std != other.std)[one.std > 0].all()
    np.testing.assert_array_equal(one.jacobian, other.jacobian)


# ------------------------------------------------------------------------------------------------------- tables
def test_edges_are_sorted_and_say_who_drives_whom(cells):
    x, time = cells
    found = compute_regulation(linear(MATRIX), x, time, np.repeat(["b", "a"], 30), variables=XYZ)
    table = found.edges()
    assert list(table) == ["source", "target", "group", "effect", "std", "lower", "upper", "sign", "stability"]
    assert len(table) == 18
    first = table.iloc[0]
    assert {first["source"], first["target"]} in ({"X", "Y"}, {"Z"})
    by_pair = table[table["group"] == "a"].set_index(["source", "target"])["effect"]
    assert by_pair["X", "Y"] == pytest.approx(2.0)  # the first column drives the second row
    assert by_pair["Y", "X"] == pytest.approx(-1.0)
    assert table.groupby("group")["effect"].apply(lambda e: e.abs().is_monotonic_decreasing).all()
    assert found.edges(2)["group"].tolist() == ["a", "a", "b", "b"]
    loops = found.edges(group="b", self_loops=False)
    assert (loops["source"] != loops["target"]).all()
    assert set(loops["group"]) == {"b"}
    assert (found.edges(min_stability=0.5)["effect"] != 0).all()


def test_repr_names_the_strongest_edge(cells):
    found = compute_regulation(linear(MATRIX), *cells, variables=XYZ)
    assert repr(found) == "Regulation[groups=1; names=3; X to Y: +2 in all]"
    assert repr(compute_regulation(linear([[1.0]]), cells[0][:, :1], cells[1])) == "Regulation[groups=1; names=1]"


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"group": "none"}, KeyError, r"groups\['none'\].*'all'"),
        ({"n": 0}, ValueError, "at least `1`"),
        ({"min_stability": 2}, ValueError, r"\[0, 1\]"),
    ],
)
def test_edges_refuse_what_is_not_there(cells, kwargs, error, match):
    with pytest.raises(error, match=match):
        compute_regulation(linear(MATRIX), *cells).edges(**kwargs)


def test_result_survives_pickling_and_a_file(cells):
    found = compute_regulation(linear(MATRIX), *cells, variables=XYZ)
    from_file = found.to_dict() | {name: getattr(found, name).astype(object) for name in ("names", "groups")}
    for copy in (pickle.loads(pickle.dumps(found)), Regulation.from_dict(from_file)):
        pd.testing.assert_frame_equal(copy.edges(), found.edges())
    with pytest.raises(ValueError, match=r"`std` of the shape `\(1, 3, 3\)`"):
        replace(found, std=found.std[:, :2])


# ------------------------------------------------------------------------------------------------------ growth
def test_growth_genes_of_a_planted_gradient(cells):
    slope = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    field = linear(MATRIX, growth=lambda x, time: x @ slope + 3 * time)
    table = compute_growth_genes(field, *cells, variables=XYZ)
    assert table["gene"].tolist() == ["Y", "X", "Z"]
    np.testing.assert_allclose(table["effect"], [-2, 1, 0], atol=1e-14)
    assert table["sign"].tolist() == [-1, 1, 0]
    loadings = np.linalg.qr(np.random.default_rng(2).normal(size=(500, 3)))[0].T
    names = tuple(f"g{i}" for i in range(500))
    weights = torch.tensor(loadings)
    by_loadings = compute_growth_genes(field, *cells, variables=Variables(names, loadings=loadings)).set_index("gene")
    by_decoder = compute_growth_genes(field, *cells, variables=Variables(names, decoder=lambda x: x @ weights))
    np.testing.assert_allclose(by_loadings.loc[list(names), "effect"], slope.numpy() @ loadings, atol=1e-12)
    np.testing.assert_allclose(by_decoder.set_index("gene").loc[list(names), "effect"], slope.numpy() @ loadings)


def test_growth_varies_over_cells_and_groups(cells):
    x, time = cells
    field = linear(MATRIX, growth=lambda x, time: (x**2).sum(dim=1) / 2)  # its gradient is the position
    table = compute_growth_genes(field, x, time, np.repeat(["b", "a"], 30), options=RegulationOptions(n_bootstrap=2000))
    found = table.set_index(["group", "gene"])
    np.testing.assert_allclose(found.loc["a"].loc[["0", "1", "2"], "effect"], x[30:].mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(found.loc["b"].loc[["0", "1", "2"], "std"], x[:30].std(axis=0) / 30**0.5, rtol=0.1)


def test_growth_needs_a_field_that_has_it(cells, switch):
    assert not has_growth(switch)
    with pytest.raises(RuntimeError, match="Expected a field with growth"):
        compute_growth_genes(linear(MATRIX), *cells)


# ------------------------------------------------------------------------------------------------------- checks
@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"variables": Variables(("X", "Y"))}, ValueError, "each of the `3` dimensions"),
        ({"variables": Variables(("X", "X", "Y"))}, ValueError, "a different name"),
        ({"degradation": [1.0, 2.0]}, ValueError, "`degradation` of `3` genes"),
        ({"degradation": -1.0}, ValueError, "not negative"),
        ({"options": RegulationOptions(min_cells=100)}, ValueError, "a group of at least `min_cells=100`"),
        ({"groups": ["a"]}, ValueError, "a group for each of the `60` cells, found `1`"),
        ({"variables": Variables(("a",), loadings=np.ones((2, 1)))}, ValueError, "loadings of the `3` dimensions"),
        ({"variables": Variables(("a", "b"), decoder=torch.sinh)}, ValueError, "the `2` genes named, found `3`"),
        (
            {"variables": Variables(("a",), decoder=lambda x: x[:, 0])},
            ValueError,
            r"shape `\[2, n_genes\]`, found `\(2,\)`",
        ),
        ({"variables": Variables(("a",), decoder=lambda x: x.numpy())}, ValueError, "found `ndarray`"),
        (
            {"variables": Variables(tuple(map(str, range(MAX_GENES + 1))), loadings=np.ones((3, MAX_GENES + 1)))},
            ValueError,
            "at most `200` genes.*Name those",
        ),
    ],
)
def test_wrong_input_is_refused(cells, kwargs, error, match):
    with pytest.raises(error, match=match):
        compute_regulation(linear(MATRIX), *cells, **kwargs)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"n_bootstrap": 1}, ValueError, "`n_bootstrap` to be at least `2`"),
        ({"n_bootstrap": 10.0}, TypeError, "`n_bootstrap` to be an integer"),
        ({"level": 1}, ValueError, r"\(0, 1\)"),
        ({"min_cells": 0}, ValueError, "`min_cells`"),
        ({"random_state": -1}, ValueError, "`random_state`"),
    ],
)
def test_wrong_options_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        RegulationOptions(**options)


def test_other_wrong_input_is_refused(cells):
    x, time = cells
    with pytest.raises(ValueError, match="a time for each of the `60` cells"):
        compute_regulation(linear(MATRIX), x, time[:5])
    with pytest.raises(ValueError, match="a field or several"):
        compute_regulation([], x, time)
    with pytest.raises(FloatingPointError, match="not finite"):
        compute_regulation(Planted(lambda x, time: x.abs().sqrt()), np.zeros((5, 1)), np.zeros(5))
    with pytest.raises(ValueError, match="found both"):
        Variables(("a",), loadings=np.ones((3, 1)), decoder=torch.sinh)
    with pytest.raises(ValueError, match="each gene once"):
        Variables(("a", "a"), loadings=np.ones((3, 2)))
    with pytest.raises(ValueError, match="`1` names, found `2`"):
        Variables(("a",), loadings=np.ones((3, 2)))


# -------------------------------------------------------------------------------------------------------- bins
def test_bins_of_time_have_as_many_cells_each():
    time = np.random.default_rng(0).beta(1, 4, size=1000)
    bins = bin_times(time, 4)
    assert np.bincount(bins.codes).tolist() == [250] * 4
    means = pd.Series(time).groupby(np.asarray(bins.codes)).mean()
    assert means.is_monotonic_increasing
    assert bins.categories[0].startswith(f"{time.min():.3g} to ")


def test_each_time_of_a_series_is_a_bin():
    bins = bin_times(np.array([3.0, 0.0, 0.5, 3.0]), 5)
    assert bins.categories.tolist() == ["0", "0.5", "3"]
    assert bins.codes.tolist() == [2, 0, 1, 2]
    with pytest.raises(ValueError, match="`n_bins` to be at least `1`"):
        bin_times(np.arange(3.0), 0)


def test_names_of_intervals_have_the_digits_that_tell_them_apart():
    assert name_intervals([0, 0.25, 0.5]) == ["0 to 0.25", "0.25 to 0.5"]
    assert name_intervals([1.0001, 1.0002, 1.0003]) == ["1.0001 to 1.0002", "1.0002 to 1.0003"]


# ------------------------------------------------------------------------------------------------------ kernel
@pytest.fixture(scope="module")
def fitted(planted) -> OTVelocityKernel:
    kernel = OTVelocityKernel(planted.adata(), cluster_key="clusters")
    kernel.compute_windows(min_window_size=10).compute_velocity(show_progress_bar=False)
    return kernel.fit_field(hidden=(16, 16), n_steps=60, show_progress_bar=False)


@pytest.fixture
def kernel(fitted) -> OTVelocityKernel:
    return fitted.copy(deep=True)


def test_kernel_is_a_thin_call_and_keeps_the_order_of_genes(kernel):
    asked = ["gene_7", "gene_2", "gene_11"]
    found = kernel.compute_regulation(asked, "clusters", degradation=dict.fromkeys(asked, 2.0), random_state=3)
    loadings = kernel.adata.varm["PCs"][[7, 2, 11]].T
    genes = Variables(tuple(asked), loadings=loadings)
    x, time, clusters = kernel.cells.x, kernel.cells.time, kernel.adata.obs["clusters"].array
    direct = compute_regulation(
        kernel.field, x, time, clusters, variables=genes, degradation=2.0, options=RegulationOptions(random_state=3)
    )
    pd.testing.assert_frame_equal(found.edges(), direct.edges())
    assert found.groups.tolist() == ["left", "right", "stem"]
    assert found.names.tolist() == asked
    assert kernel.regulation is found


def test_kernel_names_dimensions_and_selects_cells(kernel):
    found = kernel.compute_regulation(cells={"clusters": "left"})
    assert found.names.tolist() == ["PCA1", "PCA2", "PCA3", "PCA4", "PCA5"]
    left = (kernel.adata.obs["clusters"] == "left").to_numpy()
    each = jacobians(kernel.field, kernel.cells.x[left], kernel.cells.time[left])
    np.testing.assert_allclose(found.jacobian[0], each.mean(axis=0), atol=1e-12)
    assert kernel.compute_regulation(names=list("abcde")).names.tolist() == list("abcde")
    assert kernel.compute_regulation("highly_variable").names.size == 12


def test_kernel_groups_by_numbers_bins_and_labels(kernel):
    kernel.adata.obs["day"] = np.repeat([0.0, 0.5, 2.0], 80)
    assert kernel.compute_regulation(groups="day").groups.tolist() == ["0", "0.5", "2"]
    assert kernel.compute_regulation(n_bins=3).n_cells.tolist() == [80, 80, 80]
    assert kernel.compute_regulation(groups=["a"] * 200 + ["b"] * 40).n_cells.tolist() == [200, 40]


def test_kernel_reads_a_decoder(kernel):
    weights = torch.tensor(kernel.adata.varm["PCs"].T)
    by_loadings = kernel.compute_regulation(["gene_3", "gene_1"])
    by_decoder = kernel.compute_regulation(["gene_3", "gene_1"], decoder=lambda x: x @ weights)
    np.testing.assert_allclose(by_decoder.jacobian, by_loadings.jacobian, atol=1e-8)
    few = kernel.compute_regulation(decoder=lambda x: (x @ weights)[:, :6], decoder_genes=list("abcdef"))
    assert few.names.tolist() == list("abcdef")


def test_kernel_averages_along_trajectories(kernel):
    paths = kernel.compute_trajectories(start_cluster="stem", n_trajectories=12, n_steps=200, show_progress_bar=False)
    found = kernel.compute_regulation(trajectories=paths, n_bins=3, min_cells=1)
    assert found.n_cells.max() <= 12
    ends = np.linspace(paths.time.min(), paths.time.max(), 4)
    expected = []
    for at, (start, stop) in enumerate(zip(paths.offsets[:-1], paths.offsets[1:], strict=True)):
        time = paths.time[start:stop]
        inside = np.flatnonzero((time >= ends[1]) & (time < ends[2]))
        if inside.size:
            middle = inside[np.argmin(np.abs(time[inside] - ends[1:3].mean()))]
            expected.append(paths.x[paths.offsets[at] + middle])
    assert found.n_cells[1] == len(expected)


def test_a_result_goes_with_the_field_it_is_of(kernel):
    kernel.compute_regulation()
    assert kernel.copy().regulation is not None
    assert pickle.loads(pickle.dumps(kernel)).regulation is not None
    kernel.fit_field(hidden=(8,), n_steps=25, show_progress_bar=False)
    assert kernel.regulation is None
    with pytest.raises(RuntimeError, match="compute_regulation"):
        kernel.plot_regulation()


def test_kernel_averages_over_fields(kernel):
    first = kernel.field
    second = kernel.fit_field(hidden=(8,), n_steps=25, show_progress_bar=False).field
    each = [first], [second], [first, second]
    one, other, both = (kernel.compute_regulation(fields=fields, n_bootstrap=4000) for fields in each)
    np.testing.assert_allclose(both.jacobian, (one.jacobian + other.jacobian) / 2, atol=1e-12)
    assert (both.std >= np.abs(one.jacobian - other.jacobian) / 2 * 0.99).all()


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"genes": ["gene_1", "nothing"]}, KeyError, "found `1` others: \\['nothing'\\]"),
        ({"genes": ["gene_1", "gene_1"]}, ValueError, "each gene once"),
        ({"genes": "nothing"}, KeyError, "highly_variable"),
        ({"groups": "nothing"}, KeyError, "clusters"),
        ({"groups": "dpt_pseudotime"}, ValueError, "found `240` numbers.*`n_bins`"),
        ({"groups": ["a"]}, ValueError, "each of the `240` cells"),
        ({"groups": "clusters", "n_bins": 3}, ValueError, "found both"),
        ({"cells": []}, ValueError, "Expected cells to average over"),
        ({"genes": [], "n_bins": 2}, ValueError, "genes with a weight in the PCA, found none"),
        ({"genes": ["gene_1"], "names": ["a"]}, ValueError, "`names` of dimensions or `genes`, found both"),
        ({"n_bootstrap": 1}, ValueError, "`n_bootstrap`"),
        ({"decoder_genes": ["a"]}, ValueError, "with a `decoder` only"),
        ({"decoder": 3, "genes": ["a"]}, TypeError, "`decoder` to be a function"),
        ({"decoder": torch.sinh}, ValueError, "Expected `genes`, or all `decoder_genes`"),
        ({"decoder": torch.sinh, "genes": ["gene_1"]}, ValueError, "the `20` genes named, found `5`"),
        ({"decoder": torch.sinh, "genes": ["b"], "decoder_genes": list("acdef")}, KeyError, "others: \\['b'\\]"),
        ({"names": list("abcde"), "degradation": {"a": 1}}, KeyError, r"degradation\['b'\]"),
    ],
)
def test_kernel_refuses_wrong_input(kernel, kwargs, error, match):
    with pytest.raises(error, match=match):
        kernel.compute_regulation(**kwargs)


def test_kernel_refuses_genes_without_a_weight(kernel):
    kernel.adata.varm["PCs"][4] = 0
    with pytest.raises(ValueError, match=r"found `1` without: \['gene_4'\]"):
        kernel.compute_regulation(["gene_4", "gene_5"])
    kernel.adata.var["asked"] = np.isin(np.arange(20), [4, 5, 6])
    assert kernel.compute_regulation("asked").names.tolist() == ["gene_5", "gene_6"]


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_kernel_refuses_genes_of_one_name(kernel):
    kernel.adata.var_names = ["gene_1", *kernel.adata.var_names[1:]]
    for options in ({}, {"decoder": torch.sinh}):
        with pytest.raises(ValueError, match=r"genes of different names.*var_names_make_unique"):
            kernel.compute_regulation(["gene_1"], **options)
    assert kernel.compute_regulation(["gene_2", "gene_3"]).names.tolist() == ["gene_2", "gene_3"]


def test_kernel_says_which_step_is_missing(adata, kernel):
    with pytest.raises(RuntimeError, match="fit_field"):
        OTVelocityKernel(adata).compute_regulation()
    with pytest.raises(RuntimeError, match="pseudotime tells nothing of growth"):
        kernel.growth_genes()


def test_kernel_asks_growth_of_a_field_that_has_it(kernel):
    slope = torch.arange(5, dtype=torch.float64)
    field = linear(np.eye(5), growth=lambda x, time: x @ slope)
    table = kernel.growth_genes(["gene_0", "gene_9"], "clusters", fields=[field]).set_index(["group", "gene"])
    expected = kernel.adata.varm["PCs"][[0, 9]] @ slope.numpy()
    np.testing.assert_allclose(table.loc["stem"].loc[["gene_0", "gene_9"], "effect"], expected, atol=1e-12)
    assert kernel.growth_genes("highly_variable", fields=[field])["gene"].nunique() == 12
