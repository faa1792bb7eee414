"""What is read from an AnnData, and that bad input gets a clear error and changes nothing."""

import logging
import re

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from cellrank_velot.cells import (
    TIME_KEYS,
    check_clusters,
    find_basis,
    find_cluster_key,
    find_genes,
    find_time_key,
    gene_names,
    read_basis,
    read_cells,
    read_clusters,
    read_colors,
    read_embedding,
    read_loadings,
    read_pca,
    read_plane,
    read_root,
    read_time,
    warn_about_graph,
)

KEYS = {"time_key": "dpt_pseudotime", "basis": "X_pca", "cluster_key": None}


def test_reads_positions_time_and_clusters(adata: AnnData, planted):
    cells = read_cells(adata, time_key="dpt_pseudotime", basis="X_pca", cluster_key="clusters")
    np.testing.assert_array_equal(cells.x, planted.x)
    assert (cells.n_cells, cells.n_dims) == planted.x.shape
    assert cells.time.min() == 0
    assert cells.time.max() == 1
    np.testing.assert_allclose(cells.time, planted.time / planted.time.max(), atol=1e-15)
    for code in range(3):  # one code per cluster, whatever its number
        assert np.unique(adata.obs["clusters"].to_numpy()[cells.labels == code]).size == 1


@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e9])
def test_time_is_scaled_whatever_its_unit(adata: AnnData, factor: float):
    expected = read_cells(adata, **KEYS).time
    adata.obs["dpt_pseudotime"] = adata.obs["dpt_pseudotime"] * factor - 3 * factor
    np.testing.assert_allclose(read_cells(adata, **KEYS).time, expected, atol=1e-9)


def test_cells_do_not_follow_later_changes(adata: AnnData, planted):
    cells = read_cells(adata, time_key="dpt_pseudotime", basis="X_pca", cluster_key="clusters")
    time, labels = cells.time.copy(), cells.labels.copy()
    adata.obsm["X_pca"][:] = 0
    adata.obs["dpt_pseudotime"] = 0.5
    adata.obs["clusters"] = "stem"
    np.testing.assert_array_equal(cells.x, planted.x)
    np.testing.assert_array_equal(cells.time, time)
    np.testing.assert_array_equal(cells.labels, labels)


# ------------------------------------------------------------------------------------------------------ keys
def test_first_known_time_key_is_chosen_and_logged(adata: AnnData, caplog):
    caplog.set_level(logging.INFO, "cellrank_velot")
    adata.obs["latent_time"] = 0.0
    assert find_time_key(adata, None) == "dpt_pseudotime"
    assert "adata.obs['dpt_pseudotime']" in caplog.text
    del adata.obs["dpt_pseudotime"], adata.obs["latent_time"]
    for key in reversed(TIME_KEYS):
        adata.obs[key] = 0.0
        assert find_time_key(adata, None) == key  # each one precedes those added before
    assert find_time_key(adata, "stage") == "stage"


def test_time_keys_are_those_promised():
    assert TIME_KEYS == (
        "pseudotime",
        "consensus_pseudotime",
        "geodesic_pseudotime",
        "dpt_pseudotime",
        "palantir_pseudotime",
        "latent_time",
        "velocity_pseudotime",
        "ct_pseudotime",
    )


def test_no_time_says_what_to_do(adata: AnnData):
    del adata.obs["dpt_pseudotime"]
    with pytest.raises(KeyError, match=r"'palantir_pseudotime'.* found the keys \['clusters', 'stage'\].*pp\.prepare"):
        find_time_key(adata, None)
    with pytest.raises(KeyError, match=r"Expected `adata.obs\['age'\]`, found the keys \['clusters', 'stage'\]"):
        find_time_key(adata, "age")


def test_basis_is_found_with_and_without_prefix(adata: AnnData):
    assert find_basis(adata, "pca") == find_basis(adata, "X_pca") == "X_pca"
    adata.obsm["scVI"] = adata.obsm["X_pca"]
    assert find_basis(adata, "scVI") == "scVI"
    adata.obsm["pca"] = adata.obsm["X_pca"]
    assert find_basis(adata, "pca") == "pca"


def test_missing_basis_lists_those_there(adata: AnnData):
    with pytest.raises(KeyError, match=r"obsm\['X_scVI'\]`, found the keys \['X_pca', 'X_umap'\].*scanpy\.pp\.pca"):
        find_basis(adata, "X_scVI")


# ------------------------------------------------------------------------------------------------------ time
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_unusable_time_is_counted_and_named(adata: AnnData, bad: float):
    adata.obs.loc[["cell_3", "cell_5", "cell_8", "cell_13"], "dpt_pseudotime"] = bad
    cause = "The time of one lineage" if np.isnan(bad) else "A pseudotime is infinite .* connect with the root"
    with pytest.raises(ValueError, match=rf"in `4` of `240` cells: 'cell_3', 'cell_5', 'cell_8', \.\.\.\. {cause}"):
        read_time(adata, "dpt_pseudotime")


def test_error_about_a_time_by_lineage_has_remedies_that_work(adata: AnnData):
    time = adata.obs.pop("dpt_pseudotime")
    adata.obs["sling_1"] = time.where(adata.obs["clusters"] != "left")
    adata.obs["sling_2"] = time.where(adata.obs["clusters"] != "right") + 0.1
    adata.obs["far"] = time.where(time < 0.9, np.inf)

    def remedies(key: str) -> list[str]:
        with pytest.raises(ValueError, match="Slingshot, Palantir, Monocle|more neighbours") as error:
            read_time(adata, key)
        return re.findall(r"`(adata[^`]* = [^`]*)`", str(error.value))

    names = {"adata": adata.copy(), "np": np}
    fewer, mean = remedies("sling_1")
    assert "'sling_1', 'sling_2'" in mean
    exec(mean, names)
    assert read_time(names["adata"], "pseudotime").size == 240
    exec(fewer, names)
    assert read_time(names["adata"], "sling_1").size == (adata.obs["clusters"] != "left").sum()
    exec(*remedies("far"), names)
    assert read_time(names["adata"], "far").max() < 0.9


def test_nothing_but_nan_is_refused(adata: AnnData):
    adata.obs["dpt_pseudotime"] = np.nan
    with pytest.raises(ValueError, match="in `240` of `240` cells"):
        read_time(adata, "dpt_pseudotime")


def test_constant_time_is_refused(adata: AnnData):
    adata.obs["dpt_pseudotime"] = 0.25
    with pytest.raises(
        ValueError, match=r"Expected `adata.obs\['dpt_pseudotime'\]` to vary, found the constant `0.25`"
    ):
        read_time(adata, "dpt_pseudotime")


def test_no_cells_are_refused(adata: AnnData):
    with pytest.raises(ValueError, match="Expected an AnnData with cells, found none"):
        read_time(adata[:0].copy(), "dpt_pseudotime")


@pytest.mark.parametrize("key", ["clusters", "early"])
def test_time_that_is_no_number_is_refused(adata: AnnData, key: str):
    adata.obs["early"] = adata.obs["dpt_pseudotime"] < 0.5
    with pytest.raises(TypeError, match=rf"Expected `adata.obs\['{key}'\]` to be numeric, found `(object|str|bool)`"):
        read_time(adata, key)


@pytest.mark.parametrize("dtype", ["float32", "int8", "Int64", "category", "ordered"])
def test_time_of_any_numeric_kind_is_read(adata: AnnData, dtype: str):
    whole = np.floor(adata.obs["dpt_pseudotime"].to_numpy() * 5).astype(int)
    kind = pd.CategoricalDtype([4, 3, 2, 1, 0], ordered=True) if dtype == "ordered" else dtype
    adata.obs["age"] = pd.Series(whole, index=adata.obs_names).astype(kind)
    time = read_time(adata, "age")
    assert time.dtype == np.float64
    np.testing.assert_array_equal(time, whole)


def test_missing_value_of_a_nullable_column_counts_as_nan(adata: AnnData):
    age = pd.Series(np.arange(240), index=adata.obs_names).astype("Int64")
    age.iloc[7] = pd.NA
    adata.obs["age"] = age
    with pytest.raises(ValueError, match="in `1` of `240` cells: 'cell_7'"):
        read_time(adata, "age")


# ----------------------------------------------------------------------------------------------------- basis
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_unusable_positions_are_counted_and_named(adata: AnnData, bad: float):
    adata.obsm["X_pca"][[2, 4], 1] = bad
    with pytest.raises(ValueError, match=r"obsm\['X_pca'\]` to be finite, .* in `2` cells: 'cell_2', 'cell_4'"):
        read_basis(adata, "X_pca")


@pytest.mark.parametrize("kind", ["float32", "csr", "csc", "frame", "fortran"])
def test_basis_of_any_kind_is_read(adata: AnnData, planted, kind: str):
    x = planted.x.astype(np.float32) if kind == "float32" else planted.x
    adata.obsm["X_pca"] = {
        "float32": lambda: x,
        "csr": lambda: sp.csr_matrix(x),
        "csc": lambda: sp.csc_matrix(x),
        "frame": lambda: pd.DataFrame(x, index=adata.obs_names, columns=[f"PC{i}" for i in range(x.shape[1])]),
        "fortran": lambda: np.asfortranarray(x),
    }[kind]()
    read = read_basis(adata, "X_pca")
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, x)


def test_basis_of_a_backed_file_is_read(adata: AnnData, planted, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    try:
        assert backed.isbacked
        np.testing.assert_array_equal(read_cells(backed, **KEYS).x, planted.x)
    finally:
        backed.file.close()


def test_basis_without_dimensions_or_numbers_is_refused(adata: AnnData):
    adata.obsm["X_none"] = np.empty((240, 0))
    with pytest.raises(ValueError, match=r"obsm\['X_none'\]` to have `2` dimensions, found the shape `\(240, 0\)`"):
        read_basis(adata, "X_none")
    adata.obsm["X_text"] = pd.DataFrame({"name": adata.obs_names.to_numpy()}, index=adata.obs_names)
    with pytest.raises(TypeError, match=r"Expected `adata.obsm\['X_text'\]` to be numeric, found `(DataFrame|str)`"):
        read_basis(adata, "X_text")


@pytest.mark.parametrize("n_dims", [1, 3, 30])
def test_duplicated_cells_are_counted(adata: AnnData, caplog, n_dims: int):
    x = np.random.default_rng(0).normal(size=(240, n_dims))
    adata.obsm["X_pca"] = x
    read_cells(adata, **KEYS)
    assert "same position" not in caplog.text
    x[[10, 20, 30]] = x[[11, 11, 31]]
    adata.obsm["X_pca"] = x
    assert read_cells(adata, **KEYS).n_cells == 240
    assert "Found 3 cells at the same position as another cell" in caplog.text


def test_graph_of_another_representation_is_told(adata: AnnData, caplog):
    read_cells(adata, **KEYS)
    assert not caplog.records
    read_cells(adata, **{**KEYS, "basis": "X_umap"})
    assert "The neighbour graph was built on 'X_pca' and velocities are computed in 'X_umap'" in caplog.text


# -------------------------------------------------------------------------------------------------- clusters
@pytest.mark.parametrize("dtype", ["category", "object", "float64", "string"])
def test_cluster_without_a_name_is_counted(adata: AnnData, dtype: str):
    codes = pd.Series(adata.obs["clusters"].cat.codes.to_numpy(), index=adata.obs_names)
    column = codes.astype("float64") if dtype == "float64" else codes.map({0: "a", 1: "b", 2: "c"}).astype(dtype)
    column.iloc[[0, 9]] = np.nan
    adata.obs["clusters"] = column
    with pytest.raises(ValueError, match=r"obs\['clusters'\]`, found none for `2` cells: 'cell_0', 'cell_9'"):
        read_cells(adata, **{**KEYS, "cluster_key": "clusters"})


def test_unused_categories_make_no_cluster(adata: AnnData):
    adata.obs["clusters"] = adata.obs["clusters"].cat.add_categories(["a", "zz"])
    labels = read_cells(adata, **{**KEYS, "cluster_key": "clusters"}).labels
    np.testing.assert_array_equal(np.unique(labels), [0, 1, 2])


def test_missing_cluster_key_lists_those_there(adata: AnnData):
    with pytest.raises(KeyError, match=r"obs\['louvain'\]`, found the keys \['clusters', 'dpt_pseudotime', 'stage'\]"):
        read_cells(adata, **{**KEYS, "cluster_key": "louvain"})


# ----------------------------------------------------------------------------------------- graph and loadings
def test_pieces_of_the_graph_are_counted(caplog):
    def ring(n):
        return sp.csr_matrix((np.ones(n), (np.arange(n), np.roll(np.arange(n), 1))), shape=(n, n))

    warn_about_graph(ring(9))
    assert not caplog.records
    pieces = sp.csr_matrix(sp.block_diag([ring(3), ring(5), ring(1)]))
    warn_about_graph(pieces)
    assert "The neighbour graph has 3 components, of 5, 3, 1 cells" in caplog.text
    with pytest.raises(ValueError, match="has 3 components, of 5, 3, 1 cells.*Use more neighbours"):
        warn_about_graph(pieces, strict=True)


def test_edge_of_weight_zero_connects_nothing():
    graph = sp.csr_matrix(np.array([[0, 1, 0, 0], [1, 0, 2, 0], [0, 2, 0, 1], [0, 0, 1, 0]], dtype=float))
    graph.data[graph.data == 2] = 0
    with pytest.raises(ValueError, match="has 2 components, of 2, 2 cells"):
        warn_about_graph(graph, strict=True)


def test_loadings_take_the_basis_to_genes(adata: AnnData):
    genes = ["gene_7", "gene_2"]
    loadings = read_loadings(adata, "X_pca", genes)
    expected = adata[:, ["gene_2", "gene_7"]].X - 5  # in the order of `var_names`
    np.testing.assert_allclose(adata.obsm["X_pca"] @ loadings, expected, atol=1e-5)
    by_column = read_loadings(adata, "X_pca", "highly_variable")
    np.testing.assert_array_equal(by_column, adata.varm["PCs"][:12].T)


def test_genes_without_a_weight_are_left_out(adata: AnnData):
    adata.varm["PCs"][:5] = 0
    assert read_loadings(adata, "X_pca", ["gene_1", "gene_7"]).shape == (5, 1)
    with pytest.raises(ValueError, match="Expected genes with a weight in the PCA, found none"):
        read_loadings(adata, "X_pca", ["gene_1"])


@pytest.mark.parametrize("column", [1.5, 1, "False"])
def test_column_that_chooses_genes_must_be_boolean(adata: AnnData, column):
    adata.var["means"] = column  # as a number or a text each would count as chosen
    with pytest.raises(TypeError, match=r"Expected `adata.var\['means'\]` to be boolean, found"):
        read_loadings(adata, "X_pca", "means")


def test_loadings_errors(adata: AnnData):
    with pytest.raises(KeyError, match=r"found `2` others: \['Sox9', 'Ins1'\]"):
        read_loadings(adata, "X_pca", ["gene_1", "Sox9", "Ins1"])
    with pytest.raises(KeyError, match=r"Expected `adata.var\['driver'\]`, found the keys \['highly_variable'\]"):
        read_loadings(adata, "X_pca", "driver")
    with pytest.raises(ValueError, match=r"Expected the basis `X_pca`.* found `X_umap`"):
        read_loadings(adata, "X_umap", ["gene_1"])
    adata.obsm["X_pca"] = adata.obsm["X_pca"][:, :2]
    with pytest.raises(ValueError, match=r"the `2` dimensions of `adata.obsm\['X_pca'\]`, found `5`"):
        read_loadings(adata, "X_pca", ["gene_1"])
    del adata.varm["PCs"]
    with pytest.raises(KeyError, match=r"Expected `adata.varm\['PCs'\]`, found the keys \[\].*loadings of a PCA"):
        read_loadings(adata, "X_pca", ["gene_1"])


def test_basis_must_be_a_name(adata):
    with pytest.raises(TypeError, match=r"`basis` to be a key of `adata\.obsm`, found `list`"):
        find_basis(adata, [1, 2])


# ----------------------------------------------------------------------------------- root, planes, colours and genes
def test_root_is_a_cell_or_none(adata: AnnData, caplog):
    key = "dpt_pseudotime"
    assert read_root(adata, key) is None
    first = int(adata.obs[key].argmin())
    for root in (first, np.int64(first), np.array(first)):
        adata.uns["iroot"] = root
        assert read_root(adata, key) == first
    assert not caplog.records
    for root in (239.0, 240, -1, "cell_3", [1, 2]):  # 240 cells, or fewer than there were
        adata.uns["iroot"] = root
        assert read_root(adata, key) is None
    assert "no position among 240 cells" in caplog.text
    adata.uns["iroot"] = int(adata.obs[key].argmax())  # in range, but the cells are no longer the same
    assert read_root(adata, key) is None
    assert "is not the earliest cell" in caplog.text


def test_embedding_for_a_plot_has_two_dimensions_and_a_name(adata: AnnData):
    adata.obsm["X_umap"] = np.column_stack([adata.obsm["X_umap"], np.zeros(240)]).astype(np.float32)
    adata.obsm["X_umap"][3] = np.nan
    x, name = read_embedding(adata, "umap")
    assert name == "UMAP"
    np.testing.assert_array_equal(x, adata.obsm["X_umap"][:, :2])
    adata.obsm["X_draw_graph_fa"] = adata.obsm["X_pca"]
    assert read_embedding(adata, "draw_graph_fa")[1] == "draw_graph_fa"
    adata.obsm["line"] = np.zeros((240, 1))
    with pytest.raises(ValueError, match=r"`adata.obsm\['line'\]` to have at least `2` columns.*`\(240, 1\)`"):
        read_embedding(adata, "line")


def test_plane_has_the_columns_asked_for(adata: AnnData, planted):
    np.testing.assert_array_equal(read_plane(adata, "pca", (3, 1)), planted.x[:, [3, 1]])
    known = {"X_pca": planted.x + 1}  # of a kernel, which has read them before
    np.testing.assert_array_equal(read_plane(adata, "pca", (0, 1), known), planted.x[:, :2] + 1)
    for dims in ((0, 0), (0, 5), (0, 1, 2)):
        with pytest.raises(ValueError, match="Expected `dims` to be two of the `5` columns of 'X_pca'"):
            read_plane(adata, "X_pca", dims)
    with pytest.raises(TypeError, match="Expected `dims` to be an integer"):
        read_plane(adata, "X_pca", (0.0, 1))


def test_cluster_key_is_the_one_given_the_usual_or_clusters(adata: AnnData):
    assert find_cluster_key(adata, "stage", "clusters") == "stage"
    assert find_cluster_key(adata, None, "stage") == "stage"
    assert find_cluster_key(adata, None) == "clusters"
    del adata.obs["clusters"]
    assert find_cluster_key(adata, None) is None
    with pytest.raises(KeyError, match=r"Expected `adata.obs\['leiden'\]`"):
        find_cluster_key(adata, "leiden")


def test_clusters_are_categories_in_their_order(adata: AnnData):
    assert read_clusters(adata, "stage").cat.categories.tolist() == [0, 1, 2, 3]
    adata.obs["text"] = adata.obs["clusters"].astype(str).where(adata.obs["clusters"] != "stem")
    assert read_clusters(adata, "text").cat.categories.tolist() == ["left", "right"]
    with pytest.raises(ValueError, match=r"a cluster for each cell in `adata.obs\['text'\]`"):
        read_clusters(adata, "text", complete=True)
    with pytest.raises(KeyError, match=r"`adata.obs\['leiden'\]`.* Pass `cluster_key`\."):
        read_clusters(adata, "leiden", "Pass `cluster_key`.")
    check_clusters(adata, "clusters", ["stem", "left"])
    with pytest.raises(KeyError, match=r"Expected clusters of `adata.obs\['clusters'\]`.*found \['up'\]"):
        check_clusters(adata, "clusters", ["stem", "up", "up"])


def test_colors_are_those_written_where_all_are_colors(adata: AnnData):
    assert read_colors(adata, "clusters") == []
    adata.uns["clusters_colors"] = np.array(["#ff0000", "green", "b"])
    assert read_colors(adata, "clusters") == ["#ff0000", "green", "b"]
    for unusable in (["#ff0000", "no colour", "b"], "red", 3, {"stem": "red"}, np.zeros((3, 3)), None):
        adata.uns["clusters_colors"] = unusable
        assert read_colors(adata, "clusters") == []


def test_genes_are_found_in_the_order_asked_for(adata: AnnData):
    assert find_genes(adata, None).tolist() == list(range(20))
    assert find_genes(adata, ["gene_7", "gene_2"]).tolist() == [7, 2]
    assert gene_names(adata, "highly_variable") == [f"gene_{i}" for i in range(12)]
    adata.var_names = ["twice", "twice", *adata.var_names[2:]]
    assert find_genes(adata, ["gene_7", "twice"]).tolist() == [7, 0]


def test_loadings_of_all_genes_belong_to_the_basis(adata: AnnData):
    assert read_pca(adata, 5).shape == (20, 5)
    with pytest.raises(ValueError, match="the `4` dimensions of the velocity, found `5`"):
        read_pca(adata, 4, of="the velocity")


# ------------------------------------------------------------------------------------------- time written as text
@pytest.mark.parametrize(
    ("values", "expected", "said"),
    [
        (["E8.5", "E9.5", "E7.75"], [8.5, 9.5, 7.75], "'E9.5' is 9.5 days"),
        (["0h", "12h", "4 hours"], [0, 12, 4], "'12h' is 12 hours"),
        (["day 3", "Day 10", "day_0"], [3, 10, 0], "'Day 10' is 10 days"),
        (["d0", "D2", "day4"], [0, 2, 4], "'day4' is 4 days"),
        (["24hpf", "48 hpf", "5hpf"], [24, 48, 5], "'48 hpf' is 48 hours"),
        (["t1", "t3", "t2"], [1, 3, 2], "'t3' is 3"),
        (
            pd.to_datetime(["2024-03-01 00:00", "2024-03-03 12:00", "2024-03-02 00:00"]),
            [0, 2.5, 1],
            "is 2.5 days since the first",
        ),
        (pd.to_timedelta(["0h", "36h", "12h"]), [0, 1.5, 0.5], "is 1.5 days"),
    ],
)
@pytest.mark.parametrize("categorical", [False, True])
def test_time_as_texts_and_dates_is_read_where_it_is_sure(adata, values, expected, said, categorical, caplog):
    column = pd.Series(np.resize(np.asarray(values, dtype=object), adata.n_obs), index=adata.obs_names)
    column = column.infer_objects() if not isinstance(values, list) else column
    adata.obs["stage"] = column.astype("category") if categorical else column
    with caplog.at_level("INFO", logger="cellrank_velot"):
        np.testing.assert_allclose(read_time(adata, "stage"), np.resize(expected, adata.n_obs))
    assert said in caplog.text


@pytest.mark.parametrize(
    "values",
    [
        ["30min", "2h"],
        ["m1", "m2"],
        ["E18.5", "P0"],
        ["2C", "64C"],
        ["HH10", "HH12"],
        ["0", "12h"],
        ["3 days 2h", "4 days"],
        ["2hpf", "2hpi"],
    ],
)
def test_times_that_could_mean_more_than_one_thing_are_refused_with_the_line_that_converts_them(adata, values):
    adata.obs["stage"] = np.resize(values, adata.n_obs)
    match = rf"such as '{values[0]}', '{values[1]}'. Say which number each is: "
    with pytest.raises(TypeError, match=match) as refused:
        read_time(adata, "stage")
    line = str(refused.value).split("`")[-2].replace(", ...", "")
    exec(line, {"adata": adata})
    np.testing.assert_array_equal(read_time(adata, "time"), np.resize([0.0, 1.0], adata.n_obs))


def test_a_pseudotime_of_few_values_is_said_to_drop_growth(adata, caplog):
    adata.obs["dpt_pseudotime"] = np.arange(adata.n_obs) % 3
    read_cells(adata, time_key="dpt_pseudotime", basis="X_pca", cluster_key=None)
    assert "has 3 different values and is taken as a pseudotime: growth is left out" in caplog.text
    assert "time_kind='experimental'" in caplog.text
