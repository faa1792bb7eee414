"""Preparation: planted roots and orders, agreement of the ways in, and an AnnData that no failure changes."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from scipy.stats import spearmanr

from cellrank_velot import datasets, pp
from cellrank_velot.cells import find_time_key
from cellrank_velot.preprocessing import pseudotime

N_CELLS = 120


def counts(n_cells: int = N_CELLS, n_genes: int = 80, seed: int = 0) -> ad.AnnData:
    """Poisson counts along a line: gene programmes come and go as time passes, from cluster "early" to "late"."""
    rng = np.random.default_rng(seed)
    time = rng.permutation(np.linspace(0, 1, n_cells))
    peak = rng.uniform(-0.2, 1.2, size=n_genes)
    mean = 1 + 30 * np.exp(-((time[:, None] - peak) ** 2) / 0.08)
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(mean).astype(np.float32)))
    adata.obs_names = [f"c{i}" for i in range(n_cells)]
    adata.var_names = [f"g{i}" for i in range(n_genes)]
    adata.obs["time"] = time
    adata.obs["clusters"] = pd.Categorical(np.where(time < 0.25, "early", np.where(time < 0.7, "middle", "late")))
    return adata


OPTIONS = {"n_pcs": 10, "n_neighbors": 15, "n_hvg": 50}


def snapshot(adata: ad.AnnData) -> dict:
    slots = ("obsm", "varm", "obsp", "layers", "uns")
    kept = {slot: sorted(map(str, getattr(adata, slot))) for slot in slots}
    x = adata.X.toarray() if sp.issparse(adata.X) else np.array(adata.X)
    return kept | {"obs": adata.obs.to_csv(), "var": adata.var.to_csv(), "X": x.tobytes()}


@pytest.fixture(scope="module")
def prepared() -> ad.AnnData:
    adata = counts()
    assert pp.prepare(adata, root_cluster="early", **OPTIONS) is None
    return adata


def test_pseudotime_recovers_a_planted_line(prepared):
    assert spearmanr(prepared.obs["time"], prepared.obs["dpt_pseudotime"]).statistic > 0.97
    assert prepared.obs["dpt_pseudotime"].min() == 0
    assert prepared.obs["dpt_pseudotime"].max() == 1
    assert prepared.obs["time"].iloc[prepared.uns["iroot"]] < 0.05


@pytest.mark.parametrize("method", ["consensus", "geodesic"])
def test_pseudotime_along_paths_recovers_a_planted_line_and_is_what_the_kernel_takes(method):
    prepared = pp.prepare(counts(), root_cluster="early", pseudotime=method, copy=True, **OPTIONS)
    time = prepared.obs[f"{method}_pseudotime"]
    assert spearmanr(prepared.obs["time"], time).statistic > 0.98
    assert (time.min(), time.max()) == (0, 1)
    assert prepared.uns["pseudotime"]["method"] == method
    assert find_time_key(prepared) == prepared.uns["pseudotime"]["key"] == f"{method}_pseudotime"
    assert list(prepared.uns["pseudotime"]["roots"]) == [prepared.obs_names[prepared.uns["iroot"]]]


def test_the_bar_names_each_step(capsys):
    named = []
    for show in (True, False):
        pp.prepare(counts(), root_cluster="early", copy=True, show_progress_bar=show, **OPTIONS)
        shown = capsys.readouterr().err
        named.append([name for name in ("PCA and neighbors", "pseudotime", "UMAP", "4/4") if name in shown])
    assert named == [["PCA and neighbors", "pseudotime", "UMAP", "4/4"], []]


def test_diffusion_pseudotime_leaves_no_other_time_behind(prepared):
    adata = prepared.copy()
    pp.prepare(adata, root_cluster="early", pseudotime="diffusion", **OPTIONS)
    assert find_time_key(adata) == adata.uns["pseudotime"]["key"] == "dpt_pseudotime"
    np.testing.assert_allclose(adata.obs["dpt_pseudotime"], prepared.obs["dpt_pseudotime"], atol=1e-5)


def test_pseudotime_along_paths_follows_a_curved_tree():
    adata = datasets.tree(600, random_state=51)
    pp.prepare(adata, root_cluster="Progenitor", n_pcs=20, normalize=False)
    pp.set_pseudotime(adata, [adata.uns["iroot"]], "geodesic")
    keys = ("dpt_pseudotime", "consensus_pseudotime", "geodesic_pseudotime")
    found = [spearmanr(adata.obs[key], adata.obs["true_time"]).statistic for key in keys]
    assert np.all(np.diff(found) > 0.005)
    assert found[1] > 0.96


def test_consensus_does_not_fall_where_diffusion_pseudotime_does(monkeypatch, prepared):
    usual = pseudotime._diffusion_time
    truth = prepared.obs["time"].to_numpy()
    monkeypatch.setattr(pseudotime, "_diffusion_time", lambda *args: usual(*args) - np.clip(truth - 0.5, 0, 0.2) * 3)
    adata = prepared.copy()
    pp.set_pseudotime(adata, [adata.uns["iroot"]])
    pp.set_pseudotime(adata, [adata.uns["iroot"]], "consensus")
    assert spearmanr(adata.obs["dpt_pseudotime"], truth).statistic < 0.95
    assert spearmanr(adata.obs["consensus_pseudotime"], truth).statistic > 0.98


def test_cells_that_no_path_leads_to_are_infinitely_late():
    adata = two_islands()
    pp.prepare(adata, pseudotime_key="time", **OPTIONS)
    sc.tl.diffmap(adata)
    for method in ("geodesic", "consensus"):
        pp.set_pseudotime(adata, [50], method)
        np.testing.assert_array_equal(np.isinf(adata.obs[f"{method}_pseudotime"]), np.arange(N_CELLS) < 40)
    with pytest.raises(ValueError, match="`method` to be one of"):
        pp.set_pseudotime(adata, [50], "palantir")


def test_all_slots_are_written(prepared):
    assert prepared.obsm["X_pca"].shape == (N_CELLS, 10)
    assert prepared.varm["PCs"].shape == (80, 10)
    assert prepared.obsm["X_umap"].shape == (N_CELLS, 2)
    assert prepared.var["highly_variable"].sum() == 50
    assert {"connectivities", "distances"} <= set(prepared.obsp)
    assert {"neighbors", "pca", "umap", "diffmap_evals", "iroot", "log1p"} <= set(prepared.uns)


def test_normalisation_and_counts(prepared):
    raw = counts().X.toarray()
    np.testing.assert_array_equal(prepared.layers["counts"].toarray(), raw)
    expected = np.log1p(1e4 * raw / raw.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(prepared.X.toarray(), expected, rtol=1e-5)


def test_dense_sparse_and_integer_counts_agree(prepared):
    for convert in (lambda x: x.toarray(), sp.csc_matrix, lambda x: x.astype(np.int64)):
        adata = counts()
        adata.X = convert(adata.X)
        pp.prepare(adata, root_cluster="early", **OPTIONS)
        for key in ("dpt_pseudotime", "consensus_pseudotime"):
            np.testing.assert_allclose(adata.obs[key], prepared.obs[key], atol=1e-3)


def test_log_normalised_data_are_recognised_and_kept(prepared, caplog):
    adata = prepared.copy()
    before = adata.X.copy()
    del adata.layers["counts"]
    with caplog.at_level(logging.INFO, logger="cellrank_velot"):
        pp.prepare(adata, root_cluster="early", **OPTIONS)
    assert "taken as log-normalised" in caplog.text
    assert abs(adata.X - before).max() == 0
    assert "counts" not in adata.layers
    np.testing.assert_allclose(adata.obs["dpt_pseudotime"], prepared.obs["dpt_pseudotime"], atol=1e-5)


def test_fractions_that_are_not_logarithms_are_pointed_out(caplog):
    adata = counts()
    adata.X = adata.X * 1.5
    pp.prepare(adata, pseudotime_key="time", **OPTIONS)
    assert "pass `normalize=True` if it is not logarithmic" in caplog.text


def test_an_existing_counts_layer_is_kept():
    adata = counts()
    adata.layers["counts"] = 2 * adata.X
    pp.prepare(adata, pseudotime_key="time", **OPTIONS)
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), 2 * counts().X.toarray())


def test_negative_values_pass_where_asked_for():
    adata = counts()
    adata.X = np.random.default_rng(0).normal(size=adata.shape) + 4 * adata.obs["time"].to_numpy()[:, None]
    pp.prepare(adata, root_cluster="early", normalize=False, **OPTIONS)
    assert adata.X.min() < 0
    assert adata.var["highly_variable"].all()


def test_root_cell_by_name_and_by_position_agree(prepared):
    root = prepared.uns["iroot"]
    for root_cell in (root, np.int64(root), f"c{root}", [f"c{root}"]):
        adata = pp.prepare(counts(), root_cell=root_cell, copy=True, **OPTIONS)
        np.testing.assert_array_equal(adata.obs["dpt_pseudotime"], prepared.obs["dpt_pseudotime"])


def test_order_of_the_cells_does_not_matter(prepared):
    order = np.random.default_rng(1).permutation(N_CELLS)
    adata = counts()[order].copy()
    pp.prepare(adata, root_cell=f"c{prepared.uns['iroot']}", **OPTIONS)
    there = prepared.obs["dpt_pseudotime"].loc[adata.obs_names]
    np.testing.assert_allclose(adata.obs["dpt_pseudotime"], there, atol=1e-2)


def test_two_roots_give_the_time_from_the_nearer_one():
    adata = counts()
    pp.prepare(adata, root_cluster=["early", "late"], **OPTIONS)
    from_end = np.minimum(adata.obs["time"], 1 - adata.obs["time"])
    assert spearmanr(from_end, adata.obs["dpt_pseudotime"]).statistic > 0.85


def test_pseudotime_agrees_with_that_of_scanpy(prepared):
    adata = prepared.copy()
    assert adata.uns["diffmap_evals"][1] < 0.9994
    sc.tl.dpt(adata)
    np.testing.assert_allclose(adata.obs["dpt_pseudotime"], prepared.obs["dpt_pseudotime"], atol=1e-3)


def test_a_long_thin_process_keeps_its_order():
    # scanpy 1.12 drops the first component here, as its eigenvalue is above 0.9994
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 1.2 * np.pi, 1500)
    x = np.stack([np.cos(angle), np.sin(angle), angle, *np.zeros((2, 1500))], axis=1)
    adata = ad.AnnData(x + 0.01 * rng.normal(size=x.shape))
    pp.prepare(adata, root_cell=0, normalize=False, n_pcs=4, n_neighbors=15)
    assert adata.uns["diffmap_evals"][1] > 0.9994
    assert spearmanr(angle, adata.obs["dpt_pseudotime"]).statistic > 0.99


def test_root_is_the_far_end_of_its_cluster(prepared, caplog):
    for cluster, end in (("early", 0), ("late", 1)):
        with caplog.at_level("INFO", logger="cellrank_velot"):
            root = pp.choose_root_cell(prepared, cluster)
        assert abs(prepared.obs["time"].iloc[root] - end) < 0.05
        assert "the other cells lie on one side of it, so the root is the cell at its far end" in caplog.text
    assert abs(prepared.obs["time"].iloc[pp.choose_root_cell(prepared, "middle")] - 0.475) < 0.1


def star(n_cells: int, seed: int, *, n_genes: int = 300) -> ad.AnnData:
    """Counts along four arms that leave one middle, cluster "root", in directions of their own."""
    rng = np.random.default_rng(seed)
    time, arm = rng.random(n_cells), rng.integers(4, size=n_cells)
    change = rng.normal(scale=0.9, size=(4, n_genes))[arm] * time[:, None]
    mean = np.exp(rng.normal(-1, 1, n_genes) + change)
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(2000 * mean / mean.sum(axis=1, keepdims=True)).astype(np.float32)))
    adata.obs["time"], names = time, np.array([f"arm {number}" for number in range(4)])
    adata.obs["clusters"] = pd.Categorical(np.where(time < 0.25, "root", names[arm]))
    return adata


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_root_is_the_middle_of_a_star(seed: int, caplog):
    adata = star(600, seed)
    with caplog.at_level("INFO", logger="cellrank_velot"):
        pp.prepare(adata, root_cluster="root")
    assert adata.obs["time"].iloc[adata.uns["iroot"]] < 0.2
    assert "branches leave it, so the root is the cell in the middle" in caplog.text
    right = spearmanr(adata.obs["time"], adata.obs["consensus_pseudotime"]).statistic
    assert right > 0.93
    # From a cell at the border to an arm, much of the order is lost.
    pp.set_pseudotime(adata, [int(np.argmin(np.abs(adata.obs["time"] - 0.3)))], "consensus")
    assert spearmanr(adata.obs["time"], adata.obs["consensus_pseudotime"]).statistic < right - 0.08


def test_root_among_wrong_names_and_apart(prepared):
    adata = prepared.copy()
    names = adata.obs["clusters"].astype(str).to_numpy()
    names[np.argsort(adata.obs["time"])[2:24:7]] = "late"
    adata.obs["clusters"] = names
    assert adata.obs["time"].iloc[pp.choose_root_cell(adata, "early")] < 0.08
    inside = names == "early"
    graph = sp.lil_matrix(adata.obsp["connectivities"])
    graph[np.ix_(inside, ~inside)] = graph[np.ix_(~inside, inside)] = 0
    adata.obsp["connectivities"] = sp.csr_matrix(graph)
    assert names[pp.choose_root_cell(adata, "early")] == "early"


def test_root_needs_a_graph():
    adata = counts()
    adata.obsm["X_pca"] = np.zeros((adata.n_obs, 2))
    with pytest.raises(KeyError, match=r"adata.obsp\['connectivities'\].*scanpy.pp.neighbors"):
        pp.choose_root_cell(adata, "early")


def test_a_given_pseudotime_is_used_as_it_is():
    adata = counts()
    pp.prepare(adata, pseudotime_key="time", **OPTIONS)
    assert not {"dpt_pseudotime", "consensus_pseudotime"} & set(adata.obs)
    assert "X_umap" in adata.obsm
    np.testing.assert_array_equal(adata.obs["time"], counts().obs["time"])


def test_too_many_components_and_neighbors_are_lowered(caplog):
    adata = counts(n_cells=40, n_genes=20)
    pp.prepare(adata, pseudotime_key="time", n_pcs=30, n_neighbors=30)
    assert adata.obsm["X_pca"].shape == (40, 19)
    assert adata.uns["neighbors"]["params"]["n_neighbors"] == 20
    assert "Lowered `n_pcs` from 30 to 19" in caplog.text
    assert "Lowered `n_neighbors` from 30 to 20" in caplog.text


def test_copy_leaves_the_original(prepared):
    adata = counts()
    before = snapshot(adata)
    copied = pp.prepare(adata, root_cluster="early", copy=True, **OPTIONS)
    assert snapshot(adata) == before
    np.testing.assert_array_equal(copied.obsm["X_umap"], prepared.obsm["X_umap"])


def test_view_and_backed_are_copied_or_refused(tmp_path):
    adata = counts()
    view = adata[:100]
    with pytest.raises(ValueError, match="one that is a view. Pass `copy=True`"):
        pp.prepare(view, pseudotime_key="time", **OPTIONS)
    assert pp.prepare(view, pseudotime_key="time", copy=True, **OPTIONS).n_obs == 100
    assert view.is_view

    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with pytest.raises(ValueError, match="backed by a file"):
        pp.prepare(backed, pseudotime_key="time", **OPTIONS)
    copied = pp.prepare(backed, pseudotime_key="time", copy=True, **OPTIONS)
    assert not copied.isbacked
    assert "X_pca" in copied.obsm
    backed.file.close()


def with_values(key: str, value: object) -> ad.AnnData:
    adata = counts()
    if key == "X":
        adata.X = adata.X.toarray()
        adata.X[3, :2] = value
    else:
        adata.obs[key] = value
    return adata


def two_islands() -> ad.AnnData:
    adata = counts()
    far = adata.X.toarray()
    far[:40] = far[:40, ::-1] * 0
    far[:40, :5] = 500 + np.arange(40)[:, None]
    adata.X = far
    return adata


EARLY = {"root_cluster": "early"}
FAILURES = {
    "no source": (counts, {}, ValueError, "found none"),
    "two sources": (counts, EARLY | {"root_cell": 0}, ValueError, "found `root_cluster` and `root_cell`"),
    "unknown cluster": (counts, {"root_cluster": "x"}, ValueError, r"of \['early', 'late', 'middle'\].*found \['x'\]"),
    "no cluster column": (counts, EARLY | {"cluster_key": "x"}, KeyError, r"adata.obs\['x'\].*'clusters', 'time'"),
    "one cluster": (lambda: with_values("clusters", "early"), EARLY, ValueError, "every cell in cluster 'early'"),
    "unknown cell": (counts, {"root_cell": "x"}, KeyError, "found 'x'"),
    "position": (counts, {"root_cell": 500}, ValueError, "below `120`, found `500`"),
    "negative position": (counts, {"root_cell": -1}, ValueError, "at least `0`, found `-1`"),
    "no cell": (counts, {"root_cell": []}, ValueError, "at least one cell"),
    "no column": (counts, {"pseudotime_key": "x"}, KeyError, r"adata.obs\['x'\]"),
    "NaN time": (lambda: with_values("t", np.nan), {"pseudotime_key": "t"}, ValueError, "`120` of `120` cells: 'c0'"),
    "constant time": (lambda: with_values("t", 1.0), {"pseudotime_key": "t"}, ValueError, "constant"),
    "text as time": (counts, {"pseudotime_key": "clusters"}, TypeError, "numeric"),
    "NaN": (lambda: with_values("X", np.nan), EARLY, ValueError, "found `2` NaN or infinite"),
    "negative": (lambda: with_values("X", -1), EARLY, ValueError, "`2` negative values.*normalize=False"),
    "normalize": (counts, EARLY | {"normalize": "yes"}, ValueError, r"\[True, False, 'auto'\], found `'yes'`"),
    "method": (counts, EARLY | {"pseudotime": "x"}, ValueError, r"`pseudotime`.*\['consensus', 'geodesic'"),
    "n_pcs": (counts, EARLY | {"n_pcs": 0}, ValueError, "`n_pcs` to be at least `2`, found `0`"),
    "n_neighbors": (counts, EARLY | {"n_neighbors": 2.5}, TypeError, "`n_neighbors` to be an integer"),
    "few cells": (lambda: counts(n_cells=9), EARLY, ValueError, "at least `10` cells.*found `9` cells"),
    "islands": (two_islands, EARLY, ValueError, "2 components, of 80, 40 cells"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failure_says_why_and_changes_nothing(case):
    build, options, error, message = FAILURES[case]
    adata = build()
    before = snapshot(adata)
    with pytest.raises(error, match=message):
        pp.prepare(adata, **OPTIONS | options)
    assert snapshot(adata) == before


def test_late_failure_changes_nothing(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(sc.tl, "umap", fail)
    adata = counts()
    before = snapshot(adata)
    with pytest.raises(RuntimeError, match="out of luck"):
        pp.prepare(adata, root_cluster="early", **OPTIONS)
    assert snapshot(adata) == before


def test_not_an_anndata():
    with pytest.raises(TypeError, match="AnnData, found `ndarray`"):
        pp.prepare(np.ones((20, 20)), root_cell=0)


def test_disconnected_graph_with_a_given_time_is_a_warning(caplog):
    pp.prepare(two_islands(), pseudotime_key="time", **OPTIONS)
    assert "2 components, of 80, 40 cells" in caplog.text


def test_global_random_state_is_left_alone():
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    pp.prepare(counts(), root_cluster="early", **OPTIONS)
    np.testing.assert_array_equal(np.random.random(3), expected)  # noqa: NPY002


def test_pancreas_is_ordered_as_it_develops(data_dir):
    adata = ad.read_h5ad(data_dir / "pancreas_739.h5ad")
    pp.prepare(adata, root_cluster="Ductal")
    for key in ("consensus_pseudotime", "dpt_pseudotime"):
        mean = adata.obs.groupby("clusters", observed=True)[key].mean()
        early = mean[["Ductal", "Ngn3 low EP", "Ngn3 high EP", "Pre-endocrine"]]
        assert early.is_monotonic_increasing
        assert mean[["Alpha", "Beta", "Delta", "Epsilon"]].min() > early.iloc[-1]
    assert adata.var["highly_variable"].sum() == 2000
    assert adata.obsm["X_pca"].shape == (739, 30)
