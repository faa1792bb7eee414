"""In place of other kernels: CellRank's names and objects, keys of scanpy, symbols of genes, stores of zarr."""

from enum import StrEnum

import anndata
import cellrank as cr
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData

from cellrank_velot import OTTimeSeriesKernel, OTVelocityKernel, datasets, pl, write_zarr
from cellrank_velot.cells import find_genes
from cellrank_velot.cells.select import select_cells

QUIET = {"show_progress_bar": False}


def fitted(adata: AnnData, **options) -> OTVelocityKernel:
    return OTVelocityKernel(adata, **options).compute_velocity(**QUIET).fit_field(n_steps=25, **QUIET)


@pytest.fixture
def vk(adata: AnnData) -> OTVelocityKernel:
    return fitted(adata)


# ------------------------------------------------------------------------------------------------ CellRank's objects
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (cr.kernels.utils.Cosine, "cosine"),
        (cr.kernels.utils.Correlation, "correlation"),
        (cr.kernels.utils.DotProduct, "dot_product"),
    ],
)
def test_similarities_of_cellrank_are_ours(vk, theirs, ours):
    expected = vk.compute_transition_matrix(ours, **QUIET).transition_matrix.copy()
    params = dict(vk.params)
    vk.compute_transition_matrix(theirs(), **QUIET)
    np.testing.assert_array_equal(vk.transition_matrix.toarray(), expected.toarray())
    assert vk.params == params


class Scheme(cr.kernels.utils.SimilarityABC):
    """Cosines by CellRank, of a class that we do not know; it writes to what it is given."""

    def __call__(self, v, D, softmax_scale=1.0):
        D -= 0
        return cr.kernels.utils.Cosine()(v, D, softmax_scale)

    def hessian(self, v, D, softmax_scale=1.0):
        raise AssertionError("no Hessian is needed")


def test_a_scheme_of_ones_own_gives_its_logits(vk):
    expected = vk.compute_transition_matrix("cosine", softmax_scale=2.0, **QUIET).logits.copy()
    vk.compute_transition_matrix(Scheme(), softmax_scale=2.0, **QUIET)
    np.testing.assert_allclose(vk.logits.toarray(), expected.toarray(), atol=1e-6)
    assert vk.params["similarity"] == str(Scheme())
    backward = fitted(vk.adata, backward=True)
    backward.compute_transition_matrix(Scheme(), **QUIET)
    np.testing.assert_allclose(backward.transition_matrix.sum(axis=1), 1)


def test_seed_is_the_random_state(vk):
    vk.compute_uncertainty(2, **QUIET)
    options = {"model": "monte_carlo", "n_samples": 4, **QUIET}
    one = vk.compute_transition_matrix(seed=3, **options).transition_matrix.copy()
    other = vk.compute_transition_matrix(random_state=4, **options).transition_matrix.copy()
    again = vk.compute_transition_matrix(random_state=3, **options).transition_matrix
    assert abs(one - again).max() == 0
    assert abs(one - other).max() > 0


@pytest.mark.parametrize("name", [1311, None])
def test_a_similarity_that_is_neither_name_nor_function_is_of_the_wrong_type(vk, name):
    with pytest.raises(TypeError, match="Expected `similarity` to be a name or a function, found"):
        vk.compute_transition_matrix(similarity=name)


def test_names_as_cellrank_enumerates_them(vk, tmp_path):
    class Name(StrEnum):
        MODEL, MODE = "deterministic", "negate"

    back = (~vk).compute_transition_matrix(model=Name.MODEL, backward_mode=Name.MODE, **QUIET)
    assert {type(back.params[name]) for name in ("model", "bwd_mode")} == {str}
    back.write_to_adata(key="T")
    back.adata.write_h5ad(tmp_path / "cells.h5ad")
    assert anndata.read_h5ad(tmp_path / "cells.h5ad").uns["T_params"]["params"] == back.params


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_a_backend_does_the_work_and_changes_nothing(vk, backend):
    expected = vk.compute_transition_matrix("dot_product", **QUIET).transition_matrix.copy()
    vk.compute_transition_matrix(**QUIET)
    vk.compute_transition_matrix("dot_product", n_jobs=2, backend=backend, **QUIET)
    assert abs(vk.transition_matrix - expected).max() == 0
    with pytest.raises(ValueError, match="Expected `backend` to be one of .*'loky'"):
        vk.compute_transition_matrix(backend="abacus")


def test_pseudotime_of_a_backward_kernel_is_the_reverse(vk, planted):
    np.testing.assert_allclose(vk.pseudotime, planted.time / planted.time.max(), atol=1e-12)
    np.testing.assert_allclose((~vk).pseudotime, 1 - vk.pseudotime)


# ----------------------------------------------------------------------------------------------- algebra and origins
def test_params_of_a_combination_say_what_each_part_was_asked(vk):
    vk.compute_transition_matrix(softmax_scale=4, **QUIET)
    graph = [cr.kernels.ConnectivityKernel(vk.adata).compute_transition_matrix(density_normalize=n) for n in (0, 1)]
    params = list((vk + (graph[0] + graph[1])).params.values())
    assert {"model": "deterministic", "similarity": "cosine", "softmax_scale": 4} in params
    assert len(params) == 3


def test_product_and_inverse_of_combinations(vk):
    vk.compute_transition_matrix(**QUIET)
    ck = cr.kernels.ConnectivityKernel(vk.adata).compute_transition_matrix()
    product = vk.transition_matrix.toarray() * ck.transition_matrix.toarray()
    np.testing.assert_allclose((vk * ck).transition_matrix.toarray(), product / product.sum(axis=1, keepdims=True))
    assert list((vk + vk + vk).kernels) == [vk]
    back = ~(vk + ck)
    assert (back.backward, vk.backward) == (True, False)
    assert repr(back).startswith("~(1.0 * OTVelocityKernel[n=240] + 1.0 * ConnectivityKernel[n=240")
    with pytest.raises(RuntimeError, match="is uninitialized"):
        back.compute_transition_matrix()
    with pytest.raises(ValueError, match="Unable to combine both forward"):
        _ = vk + ~vk
    with pytest.raises(ValueError, match="to be positive"):
        _ = -1 * vk


def test_a_matrix_handed_on_knows_its_origin(vk):
    with pytest.raises(RuntimeError, match="Compute transition matrix"):
        cr.kernels.PrecomputedKernel(OTVelocityKernel(vk.adata))
    vk.compute_transition_matrix(**QUIET)
    handed_on = cr.kernels.PrecomputedKernel(vk)
    assert handed_on.transition_matrix is vk.transition_matrix
    assert handed_on.params == {**vk.params, "origin": repr(vk)}


def test_another_adata_must_have_the_same_shape(vk):
    with pytest.raises(ValueError, match="to have same shape"):
        vk.adata = vk.adata[:2].copy()
    vk.adata = other = vk.adata.copy()
    assert vk.adata is other


@pytest.mark.parametrize("written_first", [True, False])
def test_projections_are_noted_where_scvelo_looks(vk, written_first):
    steps = [vk.compute_transition_matrix(**QUIET).write_to_adata, lambda: vk.plot_projection("umap", show=False)]
    for step in steps if written_first else reversed(steps):
        step()
    noted = vk.adata.uns["T_fwd_params"]
    assert noted == {"init": noted["init"], "params": vk.params, "embeddings": ["umap"]}
    vk.plot_projection("X_umap", key_added="mine", show=False)
    assert vk.adata.uns["mine_params"] == {"embeddings": ["umap"]}
    assert vk.adata.obsm["mine_umap"].shape == (240, 2)
    with pytest.raises(KeyError, match="foo"):
        vk.plot_projection("foo")


# --------------------------------------------------------------------------------------------------------- the graph
def test_graph_by_the_key_that_scanpy_was_given(adata, tmp_path):
    sc.pp.neighbors(adata, 7, use_rep="X_pca", key_added="foo")
    vk = OTVelocityKernel(adata, conn_key="foo")
    assert abs(vk.connectivities - adata.obsp["foo_connectivities"]).max() < 1e-7
    usual = OTVelocityKernel(adata, conn_key=None)
    assert abs(usual.connectivities - adata.obsp["connectivities"]).max() < 1e-7
    fitted(adata, conn_key="foo").compute_transition_matrix(**QUIET).write_to_adata()
    again = OTVelocityKernel.from_adata(adata, "T_fwd")
    assert abs(again.connectivities - adata.obsp["foo_connectivities"]).max() < 1e-7
    with pytest.raises(KeyError, match=r"Expected `adata.obsp\['bar'\]`"):
        OTVelocityKernel(adata, conn_key="bar")


# --------------------------------------------------------------------------------------------- selectors and masses
def test_a_number_selects_the_category_of_that_value():
    days = datasets.birth_death(n_cells=200)
    days.obs["day"] = pd.Categorical(days.obs["day"].astype(float))
    for chosen in (0, 0.0, "0.0", np.int64(0)):
        np.testing.assert_array_equal(select_cells(days, {"day": chosen}), days.obs["day"] == 0)
    np.testing.assert_array_equal(select_cells(days, {"day": [0, 2]}), days.obs["day"].isin([0, 2]))
    with pytest.raises(KeyError, match=r"one of \['0.0'.*found '9'"):
        select_cells(days, {"day": 9})


def test_masses_in_the_order_of_the_time_points():
    days = datasets.birth_death(n_cells=200)
    sk = OTTimeSeriesKernel(days, time_key="day")
    values = [1.0, 1.5, 2.0, 3.0]
    points = sk.cells.time_points.tolist()
    by_name = sk.compute_velocity(mass=dict(zip(points, values, strict=True)), **QUIET).growth
    for given in (values, tuple(values), np.array(values)):
        np.testing.assert_array_equal(sk.compute_velocity(mass=given, **QUIET).growth, by_name)
    with pytest.raises(ValueError, match=r"one for each time point of \[0.0, 1.0, 2.0, 3.0\].*in their order"):
        sk.compute_velocity(mass=values[:2])


def test_ends_are_those_of_the_process_for_a_backward_kernel(adata):
    forward, backward = (fitted(adata, backward=way) for way in (False, True))
    assert dict(forward.suggest_terminal_states("clusters", n_halves=0)) == dict(
        backward.suggest_terminal_states("clusters", n_halves=0)
    )


# ------------------------------------------------------------------------------------------- embeddings, genes, files
def test_sparse_embeddings_are_drawn_and_projected_to(vk):
    vk.compute_transition_matrix(**QUIET)
    dense = vk.project_velocity("umap")
    vk.adata.obsm["X_umap"] = sp.csr_matrix(vk.adata.obsm["X_umap"])
    np.testing.assert_allclose(vk.project_velocity("umap"), dense)
    for draw in (
        lambda: pl.velocity_stream(vk, show=False),
        lambda: pl.velocity_quiver(vk, show=False),
        lambda: pl.embedding(vk.adata, "clusters", show=False),
        lambda: pl.confidence(vk, show=False),
    ):
        draw()
    assert vk.simulate_flow(source_cluster="stem", n_particles=3, n_steps=3, **QUIET) is not None


def test_genes_by_their_symbols(vk):
    adata = vk.adata
    adata.var["symbol"] = [f"S{i % 19}" for i in range(20)]  # the last one once more
    assert find_genes(adata, ["S3", "gene_5", "S0"]).tolist() == [3, 5, 0]
    by_name = vk.compute_transition_matrix(gene_subset=["gene_1", "gene_2"], **QUIET).transition_matrix
    by_symbol = vk.compute_transition_matrix(gene_subset=["S1", "S2"], **QUIET).transition_matrix
    assert abs(by_name - by_symbol).max() == 0
    pl.embedding(adata, "S3", show=False)
    with pytest.raises(KeyError, match="nothing"):
        find_genes(adata, ["S3", "nothing"])


def test_zarr_holds_what_h5ad_does_and_replaces_stores_only(vk, tmp_path):
    pytest.importorskip("zarr")
    vk.compute_transition_matrix(**QUIET).write_to_adata()
    vk.adata.obsm["lineages_fwd"] = cr.Lineage(np.full((240, 2), 0.5), names=["a", "b"])
    path = tmp_path / "cells.zarr"
    for _ in range(2):
        write_zarr(vk.adata, path)
        assert [one.name for one in tmp_path.iterdir()] == ["cells.zarr"]
    assert list(vk.adata.obsm["lineages_fwd"].names) == ["a", "b"]
    again = OTVelocityKernel.from_adata(anndata.read_zarr(path), "T_fwd")
    np.testing.assert_array_equal(again.velocity, vk.velocity)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="found something else"):
        write_zarr(vk.adata, tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
