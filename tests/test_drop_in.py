"""In place of other kernels: CellRank's names and objects, keys of scanpy, symbols of genes, stores of zarr."""

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
    assert vk.params["similarity"] == "Scheme"
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
