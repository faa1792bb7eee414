"""The kernel: bad input is refused before any work and leaves the caller's AnnData alone; every option arrives."""

import logging

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from cellrank_velot import OTVelocityKernel
from cellrank_velot.field import FieldOptions, fit_field
from cellrank_velot.graph import smooth_cells
from cellrank_velot.transitions.matrix import compute_transitions
from cellrank_velot.transitions.options import TransitionOptions
from cellrank_velot.transport.estimate import estimate_velocity
from cellrank_velot.transport.problem import TransportOptions
from cellrank_velot.transport.velocity import compute_velocity
from cellrank_velot.transport.windows import WindowOptions, build_windows

QUIET = {"show_progress_bar": False}


# ------------------------------------------------------------------------------------------- snapshot of adata
def assert_same(first, second, where: str = "adata") -> None:
    """Compare what lies in an AnnData, slot by slot and bit for bit."""
    if isinstance(first, AnnData):
        assert first.is_view == second.is_view, where
        for slot in ("obs", "var"):
            pd.testing.assert_frame_equal(getattr(first, slot), getattr(second, slot))
        assert_same(first.X, second.X, f"{where}.X")
        assert_same(dict(first.uns), dict(second.uns), f"{where}.uns")
        for slot in ("obsm", "varm", "obsp", "varp", "layers"):
            assert_same(
                {key: getattr(first, slot)[key] for key in getattr(first, slot)},
                {key: getattr(second, slot)[key] for key in getattr(second, slot)},
                f"{where}.{slot}",
            )
    elif isinstance(first, dict):
        assert list(first) == list(second), where
        for key in first:
            assert_same(first[key], second[key], f"{where}[{key!r}]")
    elif sp.issparse(first):
        for part in ("data", "indices", "indptr"):
            assert_same(getattr(first, part), getattr(second, part), f"{where}.{part}")
    elif isinstance(first, np.ndarray):
        assert first.dtype == second.dtype, where
        np.testing.assert_array_equal(first, second, err_msg=where)
    elif isinstance(first, pd.DataFrame):
        pd.testing.assert_frame_equal(first, second)
    else:
        assert first == second, where


def test_the_snapshot_sees_changes(adata: AnnData):
    for change in (
        lambda a: a.obs.__setitem__("new", 1),
        lambda a: a.obsm["X_pca"].__setitem__((0, 0), 9),
        lambda a: a.uns["neighbors"]["params"].__setitem__("n_neighbors", 3),
        lambda a: a.obsp["connectivities"].data.__setitem__(0, 9),
        lambda a: a.obsm.__setitem__("X_new", np.zeros((240, 2))),
    ):
        other = adata.copy()
        change(other)
        with pytest.raises(AssertionError, match="."):
            assert_same(other, adata)
    assert_same(adata.copy(), adata)


# ---------------------------------------------------------------------------------- bad input: the constructor
def set_time(value, rows=slice(None)):
    def change(adata: AnnData) -> None:
        time = adata.obs["dpt_pseudotime"].to_numpy().copy()
        time[rows] = value
        adata.obs["dpt_pseudotime"] = time

    return change


def set_clusters(adata: AnnData) -> None:
    clusters = adata.obs["clusters"].astype(object)
    clusters.iloc[[1, 4]] = np.nan
    adata.obs["clusters"] = pd.Categorical(clusters)


def set_basis(adata: AnnData) -> None:
    adata.obsm["X_pca"][5, 1] = np.nan


BAD_INPUT = {
    "time missing": (
        lambda adata: adata.obs.pop("dpt_pseudotime"), {}, KeyError,
        r"Expected one of \['pseudotime', .*found the keys \['clusters', 'stage'\].*Pass `time_key`",
    ),
    "time key unknown": (None, {"time_key": "age"}, KeyError, r"Expected `adata.obs\['age'\]`, found the keys"),
    "time empty": (set_time(np.nan), {}, ValueError, "in `240` of `240` cells: 'cell_0', 'cell_1', 'cell_2', "),
    "time constant": (set_time(0.5), {}, ValueError, "to vary, found the constant `0.5`"),
    "time NaN": (set_time(np.nan, [3, 7]), {}, ValueError, "in `2` of `240` cells: 'cell_3', 'cell_7'"),
    "time infinite": (set_time(np.inf, [9]), {}, ValueError, "in `1` of `240` cells: 'cell_9'.*with the root"),
    "time of text": (None, {"time_key": "clusters"}, TypeError, r"Expected `adata.obs\['clusters'\]` to be numeric"),
    "basis missing": (None, {"basis": "X_scVI"}, KeyError, r"obsm\['X_scVI'\]`, found the keys .*scanpy\.pp\.pca"),
    "basis NaN": (set_basis, {}, ValueError, r"obsm\['X_pca'\]` to be finite, .* in `1` cells: 'cell_5'"),
    "neighbours missing": (
        lambda adata: adata.obsp.pop("connectivities"), {}, KeyError,
        r"obsp\['connectivities'\]`, found the keys \['distances'\].*scanpy\.pp\.neighbors",
    ),
    "neighbours unknown": (None, {"conn_key": "knn"}, KeyError, r"Expected `adata.obsp\['knn'\]`, found the keys"),
    "cluster key unknown": (None, {"cluster_key": "louvain"}, KeyError, r"Expected `adata.obs\['louvain'\]`, found"),
    "cluster NaN": (set_clusters, {"cluster_key": "clusters"}, ValueError, "none for `2` cells: 'cell_1', 'cell_4'"),
    "option unknown": (None, {"tme_key": "dpt_pseudotime"}, TypeError, "tme_key"),
    "backward no bool": (None, {"backward": 1}, TypeError, "Expected `backward` to be `bool`"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_and_nothing_changes(adata: AnnData, case: str):
    change, options, error, message = BAD_INPUT[case]
    if change is not None:
        change(adata)
    before = adata.copy()
    with pytest.raises(error, match=message):
        OTVelocityKernel(adata, **options)
    assert_same(adata, before)


@pytest.mark.parametrize("other", [None, "cells.h5ad", np.zeros((5, 2)), pd.DataFrame()], ids=type)
def test_only_an_anndata_is_taken(other):
    with pytest.raises(
        TypeError, match="Expected `adata` to be an `AnnData`, found `(NoneType|str|ndarray|DataFrame)`"
    ):
        OTVelocityKernel(other)


# -------------------------------------------------------------------------------------- bad input: the methods
BAD_CALLS = [
    (
        "compute_windows",
        {"min_window_size": 121},
        ValueError,
        "two windows of `min_window_size=121` cells, found `240`",
    ),
    ("compute_windows", {"tail": "keep"}, ValueError, r"`tail` to be one of \['force', 'drop', 'split'\]"),
    ("compute_windows", {"overlap": 1}, ValueError, r"Expected `overlap` to be in \[0, 1\)"),
    ("compute_windows", {"window_size": -3}, ValueError, "Expected `window_size` to be at least"),
    ("compute_velocity", {"epsilon": 0}, ValueError, r"Expected `epsilon` to be in \(0, inf\), found `0`"),
    ("compute_velocity", {"epsilon": -0.1}, ValueError, r"Expected `epsilon` to be in \(0, inf\), found `-0.1`"),
    ("compute_velocity", {"lambda_time": -1}, ValueError, "Expected `lambda_time` to be in"),
    ("compute_velocity", {"device": "abacus"}, ValueError, "Expected `device` to be 'auto', 'cpu', 'cuda'"),
    ("fit_field", {"held_out": 1}, ValueError, "Expected `held_out` to be in"),
    ("fit_field", {"lambda_curl": -1}, ValueError, "Expected `lambda_curl` to be in"),
    (
        "compute_transition_matrix",
        {"similarity": "l2"},
        ValueError,
        r"one of \['cosine', 'correlation', 'dot_product'\]",
    ),
    ("compute_transition_matrix", {"backward_mode": "flip"}, ValueError, r"one of \['transpose', 'negate'\]"),
    ("compute_transition_matrix", {"softmax_scale": 0}, ValueError, r"Expected `softmax_scale` to be in \(0, inf\)"),
    ("compute_transition_matrix", {"threshold": 2}, ValueError, r"Expected `threshold` to be in \[0, 1\)"),
    (
        "compute_transition_matrix",
        {"gene_subset": "driver"},
        KeyError,
        r"Expected `adata.var\['driver'\]`, found the keys",
    ),
]


@pytest.mark.parametrize(("step", "options", "error", "message"), BAD_CALLS)
def test_bad_options_are_refused_and_nothing_changes(computed, step: str, options: dict, error: type, message: str):
    before = computed.adata.copy()
    with pytest.raises(error, match=message):
        getattr(computed, step)(**options)
    assert_same(computed.adata, before)


def test_fewer_cells_than_a_window(adata: AnnData):
    few = adata[:30].copy()
    before = few.copy()
    kernel = OTVelocityKernel(few)
    with pytest.raises(
        ValueError, match="Expected at least two windows of `min_window_size=20` cells, found `30` cells"
    ):
        kernel.compute_transition_matrix()
    assert_same(few, before)
    assert kernel.windows is None


def test_stages_write_nothing_to_the_adata(adata: AnnData):
    before = adata.copy()
    kernel = OTVelocityKernel(adata, cluster_key="clusters").compute_windows(min_window_size=10)
    kernel.compute_velocity(**QUIET).fit_field(hidden=(8,), n_steps=30, **QUIET).compute_transition_matrix()
    kernel.query_velocity(kernel.cells.x)
    assert_same(adata, before)


# ------------------------------------------------------------------------------------------- input that works
def quick(adata: AnnData, **kwargs) -> OTVelocityKernel:
    """Compute a kernel with little training."""
    kernel = OTVelocityKernel(adata, **kwargs).compute_windows(n_clusters=4, min_window_size=10)
    return kernel.compute_velocity(**QUIET).fit_field(hidden=(16,), n_steps=50, **QUIET).compute_transition_matrix()


def test_basis_with_and_without_prefix_are_one(adata: AnnData):
    kernels = [quick(adata, basis=basis) for basis in ("X_pca", "pca")]
    np.testing.assert_array_equal(*(kernel.transition_matrix.toarray() for kernel in kernels))


@pytest.mark.parametrize("kind", ["csr", "float32", "frame"])
def test_basis_of_any_kind(adata: AnnData, kind: str):
    x = np.round(adata.obsm["X_pca"] * 1024) / 1024  # exact in single precision, too
    adata.obsm["X_pca"] = x
    expected = quick(adata).transition_matrix.toarray()
    adata.obsm["X_pca"] = {
        "csr": lambda: sp.csr_matrix(x),
        "float32": lambda: x.astype(np.float32),
        "frame": lambda: pd.DataFrame(x, index=adata.obs_names, columns=[f"PC{i}" for i in range(5)]),
    }[kind]()
    np.testing.assert_array_equal(quick(adata).transition_matrix.toarray(), expected)


def test_backed_file(adata: AnnData, tmp_path):
    expected = quick(adata).transition_matrix.toarray()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    try:
        kernel = quick(backed)
        np.testing.assert_array_equal(kernel.transition_matrix.toarray(), expected)
        assert kernel.copy().adata is backed
        genes = kernel.compute_transition_matrix(gene_subset=["gene_1", "gene_2"])
        assert genes.transition_matrix.shape == (240, 240)
    finally:
        backed.file.close()


def test_view(adata: AnnData):
    chosen = np.sort(np.random.default_rng(0).permutation(240)[:200])
    view = adata[chosen]
    before = adata.copy()
    expected = quick(adata[chosen].copy()).transition_matrix.toarray()
    kernel = quick(view)
    np.testing.assert_array_equal(kernel.transition_matrix.toarray(), expected)
    assert view.is_view
    assert_same(adata, before)
    with pytest.warns(anndata.ImplicitModificationWarning, match="view"):
        kernel.write_to_adata()  # the view becomes an AnnData of its own; what it showed stays as it was
    again = OTVelocityKernel.from_adata(kernel.adata, key="T_fwd")
    np.testing.assert_array_equal(again.transition_matrix.toarray(), expected)
    assert_same(adata, before)


def test_duplicated_cells_work_and_are_told(adata: AnnData, caplog):
    doubled = adata.copy()
    doubled.obsm["X_pca"][100:120] = doubled.obsm["X_pca"][99]
    kernel = quick(doubled)
    assert "Found 20 cells at the same position as another cell" in caplog.text
    assert np.isfinite(kernel.transition_matrix.data).all()
    assert np.isfinite(kernel.velocity).all()
    np.testing.assert_allclose(kernel.transition_matrix.sum(1), 1, rtol=0, atol=1e-12)


def cut_apart(adata: AnnData, first: np.ndarray, rest: np.ndarray) -> None:
    """Keep only the edges within the first and within the other cells."""
    graph, kept = adata.obsp["connectivities"], [sp.diags(cells.astype(float)) for cells in (first, rest)]
    adata.obsp["connectivities"] = sp.csr_matrix(sum(part @ graph @ part for part in kept))
    adata.obsp["connectivities"].eliminate_zeros()


@pytest.mark.parametrize("unit", [2.0**1000, 2.0**-1000])
def test_weights_of_the_graph_count_relative_to_each_other(adata: AnnData, unit):
    adata.obsm["X_pca"] = adata.obsm["X_pca"] + 1e8  # its products with the largest weights are beyond all numbers
    usual = OTVelocityKernel(adata).compute_transition_matrix(show_progress_bar=False).transition_matrix
    graph = adata.obsp["connectivities"] * unit
    adata.obsp["connectivities"] = graph.copy()
    found = OTVelocityKernel(adata).compute_transition_matrix(show_progress_bar=False).transition_matrix
    np.testing.assert_array_equal(found.data, usual.data)
    np.testing.assert_array_equal(adata.obsp["connectivities"].data, graph.data)


def test_disconnected_graph_is_told_with_sizes(adata: AnnData, planted, caplog):
    early = planted.time < 0.35
    cut_apart(adata, early, ~early)
    kernel = quick(adata)
    message = f"The neighbour graph has 2 components, of {(~early).sum()}, {early.sum()} cells"
    assert message in caplog.text
    matrix = kernel.transition_matrix
    assert matrix[early][:, ~early].nnz == matrix[~early][:, early].nnz == 0
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=f"{message}.*Use more neighbours"):
        kernel.compute_transition_matrix(softmax_scale=2, check_connectivity=True)
    with pytest.raises(ValueError, match=message):
        OTVelocityKernel(adata, check_connectivity=True)


def test_isolated_cells_stay_and_are_counted(adata: AnnData, caplog):
    last = np.arange(240) >= 237
    cut_apart(adata, ~last, np.zeros(240, dtype=bool))
    kernel = quick(adata)
    assert "3 cells have no neighbour: they stay where they are" in caplog.text
    np.testing.assert_array_equal(kernel.transition_matrix[last].toarray(), np.eye(240)[last])


# -------------------------------------------------------------------------------------- every option arrives
def test_steps_are_those_of_the_stages(adata: AnnData):
    """The kernel is wiring: it gives what the stages give, called by hand."""
    kernel = OTVelocityKernel(adata, cluster_key="clusters")
    cells, graph = kernel.cells, kernel.connectivities
    cut = {
        "window_size": 15, "overlap": 0.25, "min_window_size": 8, "tail": "split", "tail_threshold": 3, "time_lag": 0.1,
        "overlap_clusters": 2, "n_smooth": 1, "random_state": 5,
    }  # fmt: skip
    smoothed = smooth_cells(cells.x, cells.time, graph, 1)
    windows = build_windows(smoothed.x, smoothed.time, WindowOptions(**cut), labels=cells.labels)
    kernel.compute_windows(**cut)
    for name in ("x", "time"):
        np.testing.assert_array_equal(getattr(kernel.smoothed, name), getattr(smoothed, name))
    np.testing.assert_array_equal(kernel.windows.indices, windows.indices)
    np.testing.assert_array_equal(kernel.windows.dt, windows.dt)
    twice = smooth_cells(cells.x, cells.time, graph, 2)
    found = build_windows(twice.x, twice.time, labels=cells.labels)
    by_default = OTVelocityKernel(adata, cluster_key="clusters").compute_windows().windows
    assert by_default.time_lag == found.time_lag
    np.testing.assert_array_equal(by_default.indices, found.indices)

    solve = {
        "epsilon": 0.1, "lambda_time": 0.5, "lambda_knn": 0.3, "reach": 0.7, "relaxation": 0.4, "tol": 1e-4,
        "max_iter": 77,
    }  # fmt: skip
    alone = compute_velocity(smoothed.x, smoothed.time, windows, smoothed.graph, TransportOptions(**solve))
    kernel.compute_velocity(**solve, regression=False, **QUIET)
    np.testing.assert_array_equal(kernel.raw_velocity, alone.velocity)
    np.testing.assert_array_equal(kernel.confidence, alone.confidence)
    transport = estimate_velocity(smoothed, windows, TransportOptions(**solve))
    kernel.compute_velocity(**solve, **QUIET)
    np.testing.assert_array_equal(kernel.raw_velocity, transport.velocity)
    np.testing.assert_array_equal(kernel.confidence, transport.confidence)

    train = {
        "hidden": (9, 7), "use_time": False, "lambda_smooth": 0.3, "lambda_curl": 0.2, "lambda_divergence": 0.1,
        "n_steps": 60, "batch_size": 50, "learning_rate": 1e-3, "held_out": 0.2, "patience": 3, "random_state": 8,
    }  # fmt: skip
    assert np.abs(transport.relaxation).max() > 0
    field = fit_field(
        cells.x,
        cells.time,
        transport.velocity,
        transport.fit_weight,
        smoothed.graph,
        transport.relaxation,
        FieldOptions(**train),
        smoothed=smoothed,
    )
    kernel.fit_field(**train, **QUIET)
    np.testing.assert_array_equal(kernel.velocity, field(cells.x, cells.time))

    options = {"similarity": "correlation", "softmax_scale": 3.0, "threshold": 0.02, "variance_stabilize": True}
    for smooth, velocity in ((True, kernel.velocity), (False, transport.velocity)):
        settle = smooth
        expected = compute_transitions(
            cells.x,
            velocity,
            graph,
            TransitionOptions(**options),
            ends=kernel._find_ends(kernel.cluster_key).label if settle else None,
        )
        kernel.compute_transition_matrix(smooth=smooth, settle=settle, **options)
        np.testing.assert_allclose(kernel.transition_matrix.toarray(), expected.matrix.toarray(), atol=1e-14)
        np.testing.assert_array_equal(kernel.logits.toarray(), expected.logits.toarray())
    for mode in ("transpose", "negate"):
        back = (~kernel).compute_transition_matrix(backward_mode=mode, settle=True)
        expected = compute_transitions(
            cells.x, kernel.velocity, graph, TransitionOptions(backward_mode=mode), ends=back.ends
        )
        np.testing.assert_array_equal(back.transition_matrix.toarray(), expected.matrix.toarray())


def test_missing_steps_are_run(adata: AnnData):
    kernel = OTVelocityKernel(adata).compute_velocity(**QUIET)
    assert kernel.windows is not None
    assert kernel.transport is not None
    assert kernel.field is None
    kernel.compute_transition_matrix(smooth=False)
    assert kernel.field is None
    transport = kernel.transport
    kernel.compute_transition_matrix(**QUIET)
    assert kernel.transport is transport
    assert kernel.field is not None


def test_default_chain_flows_with_time(adata: AnnData, planted):
    kernel = OTVelocityKernel(adata).compute_transition_matrix(**QUIET)
    np.testing.assert_allclose(kernel.transition_matrix.sum(1), 1, rtol=0, atol=1e-12)
    inner = (planted.time > 0.1) & (planted.time < 0.85)
    cosine = (kernel.velocity * planted.velocity).sum(1)
    cosine /= np.linalg.norm(kernel.velocity, axis=1) * np.linalg.norm(planted.velocity, axis=1)
    assert np.median(cosine[inner]) > 0.9
    assert (cosine[inner] > 0).mean() > 0.95
    drift = kernel.transition_matrix @ planted.time - planted.time
    assert (drift[inner] > 0).mean() > 0.75
    # Time is scaled to [0, 1], and it was so already: speeds are those planted.
    speed = np.median(np.linalg.norm(kernel.velocity[inner], axis=1))
    assert speed == pytest.approx(np.median(np.linalg.norm(planted.velocity[inner], axis=1)), rel=0.35)


def test_reversed_time_reverses_the_flow(adata: AnnData, planted):
    adata.obs["reversed"] = -7 * adata.obs["dpt_pseudotime"].to_numpy()
    kernel = quick(adata, time_key="reversed")
    inner = (planted.time > 0.15) & (planted.time < 0.85)
    assert ((kernel.velocity * planted.velocity).sum(1)[inner] < 0).mean() > 0.9


@pytest.mark.parametrize("backward", [False, True])
def test_velocity_in_reversed_time_is_that_of_the_same_steps(adata: AnnData, backward: bool):
    def steps(time_key: str) -> OTVelocityKernel:
        kernel = OTVelocityKernel(adata, time_key=time_key, backward=backward)
        kernel.compute_windows(min_window_size=10).compute_velocity(epsilon=0.1, **QUIET)
        return kernel.fit_field((8,), n_steps=50, **QUIET)

    adata.obs["reversed"] = adata.obs["dpt_pseudotime"].max() - adata.obs["dpt_pseudotime"]
    kernel = steps("dpt_pseudotime").compute_transition_matrix()
    before = kernel.copy()
    found = kernel.reversed_velocity()
    np.testing.assert_allclose(found, steps("reversed").velocity, rtol=1e-3, atol=1e-3)  # rounded times
    assert kernel.windows is before.windows
    assert kernel.settings == before.settings
    np.testing.assert_array_equal(kernel.cells.time, before.cells.time)
    assert (kernel.transition_matrix != before.transition_matrix).nnz == 0


def test_velocity_in_reversed_time_needs_a_field_and_its_options(adata: AnnData, computed):
    with pytest.raises(RuntimeError, match=r"field first, as `\.fit_field\(\)`"):
        OTVelocityKernel(adata).reversed_velocity()
    computed._options.pop("velocity")  # of a file without them
    with pytest.raises(RuntimeError, match=r"parameters of \['velocity'\] were not saved"):
        computed.reversed_velocity()


def test_genes_are_compared_through_the_loadings(computed):
    genes = [f"gene_{i}" for i in (1, 4, 7, 8, 11)]
    computed.compute_transition_matrix(gene_subset=genes, settle=False)
    loadings = computed.adata.varm["PCs"][[1, 4, 7, 8, 11]].T
    expected = compute_transitions(computed.cells.x, computed.velocity, computed.connectivities, loadings=loadings)
    np.testing.assert_allclose(computed.transition_matrix.toarray(), expected.matrix.toarray(), atol=1e-12)
    by_name = computed.transition_matrix
    again = computed.compute_transition_matrix(gene_subset=pd.Index(genes), settle=False)
    assert again.transition_matrix is by_name
    assert (computed.compute_transition_matrix().transition_matrix != by_name).nnz > 0
    by_column = computed.compute_transition_matrix(gene_subset="highly_variable").transition_matrix
    named = computed.adata.var_names[computed.adata.var["highly_variable"]]
    assert computed.compute_transition_matrix(gene_subset=list(named)).transition_matrix is by_column


def test_condition_number_is_estimated_when_asked(computed):
    assert computed.condition_number is None
    computed.compute_transition_matrix(compute_cond_num=True)
    exact = np.linalg.cond(computed.transition_matrix.toarray(), 1)
    assert exact / 3 <= computed.condition_number <= exact * 1.001
    assert computed.compute_transition_matrix().condition_number is None
    assert (~computed).condition_number is None


def test_logits_have_the_edges_of_the_graph(computed):
    logits = computed.logits
    assert logits.shape == (240, 240)
    assert logits.nnz == computed.connectivities.nnz
    assert np.abs(logits.data).max() <= 1 + 1e-12  # cosines
    computed.compute_transition_matrix(softmax_scale="median")
    scale = 1 / np.median(np.abs(logits.data))
    assert computed.params["softmax_scale"] == pytest.approx(scale)


def test_callable_similarity(computed):
    def nearest(v, d):
        return -np.linalg.norm(d - 0.05 * v, axis=1)

    computed.compute_transition_matrix(nearest)
    assert computed.params["similarity"] == "nearest"
    computed.compute_transition_matrix(nearest)
    np.testing.assert_allclose(computed.transition_matrix.sum(1), 1, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------------ query
def test_query_at_the_cells_is_the_velocity(computed):
    cells = computed.cells
    np.testing.assert_array_equal(computed.query_velocity(cells.x, cells.time), computed.velocity)
    own = computed.query_velocity(cells.x, n_neighbors=1)
    np.testing.assert_allclose(own, computed.velocity, rtol=1e-4, atol=1e-4)


def test_query_takes_time_from_the_nearest_cells(computed):
    cells = computed.cells
    point = cells.x[:1] + 0.01
    nearest = np.argsort(((cells.x - point) ** 2).sum(1))[:4]
    expected = computed.field(point, cells.time[nearest].mean())
    np.testing.assert_allclose(computed.query_velocity(point, n_neighbors=4), expected, rtol=1e-4, atol=1e-4)


def test_query_anywhere_is_finite(computed):
    points = np.random.default_rng(0).normal(scale=100, size=(50, 5))
    for time in (None, 0.0, np.linspace(0, 1, 50)):
        assert np.isfinite(computed.query_velocity(points, time)).all()
    assert computed.query_velocity(points[:0]).shape == (0, 5)
    assert computed.query_velocity(points.tolist()).shape == (50, 5)


@pytest.mark.parametrize(
    ("positions", "options", "message"),
    [
        (np.zeros((3, 4)), {}, r"Expected `positions` of shape `\[n_points, 5\]`, found `\(3, 4\)`"),
        (np.zeros(5), {}, r"found `\(5,\)`"),
        (np.full((2, 5), np.nan), {"time": 0.5}, "Expected finite `positions` and `time`, found NaN"),
        (np.full((2, 5), np.nan), {}, "Expected finite `positions`"),
        (np.zeros((2, 5)), {"time": np.inf}, "Expected finite `positions` and `time`"),
        (np.zeros((2, 5)), {"time": np.zeros(3)}, r"Expected `time` of shape `\[2\]`, found `\(3,\)`"),
        (np.zeros((2, 5)), {"n_neighbors": 0}, "Expected `n_neighbors` to be at least `1`"),
    ],
)
def test_bad_queries(computed, positions, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        computed.query_velocity(positions, **options)


def test_query_before_the_field(adata: AnnData):
    with pytest.raises(RuntimeError, match=r"Compute the field first, as `\.fit_field\(\)`"):
        OTVelocityKernel(adata).query_velocity(np.zeros((1, 5)))


# ------------------------------------------------------------------------------------------------------- logs
def test_choices_are_logged(adata: AnnData, caplog):
    caplog.set_level(logging.INFO, "cellrank_velot")
    quick(adata)
    for text in ("Using time from `adata.obs['dpt_pseudotime']`", "pairs of", "kept step", "Using `softmax_scale="):
        assert text in caplog.text
    assert {record.name for record in caplog.records if "velot" in record.name} == {"cellrank_velot"}


def test_one_hot_and_uninformed_rows_are_told(computed, caplog):
    computed.compute_transition_matrix(softmax_scale=1e4)
    assert "Rows are nearly one-hot" in caplog.text
    caplog.clear()
    computed.compute_velocity(lambda_knn=1.0, **QUIET)
    missing = int((~computed.transport.has_estimate).sum())
    computed.compute_transition_matrix(smooth=False)
    if missing:
        assert f"{missing} cells have no velocity: their transitions follow the neighbour graph" in caplog.text


def test_nothing_is_printed(adata: AnnData, capsys):
    quick(adata)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "it/s" not in printed.err
    assert "%|" not in printed.err


@pytest.mark.parametrize("hidden", [[8], (np.int64(8),), np.array([8])])
def test_options_may_be_of_any_kind_of_number_and_sequence(computed, hidden):
    computed.fit_field(hidden, n_steps=np.int64(2), batch_size=np.int32(50), learning_rate=np.float32(0.5), **QUIET)
    found = computed.settings["field"]
    assert (found["hidden"], found["n_steps"], found["batch_size"], found["learning_rate"]) == ((8,), 2, 50, 0.5)
    assert type(found["n_steps"]) is int


def test_layer_sizes_that_are_no_sequence_are_refused(computed):
    with pytest.raises(TypeError, match="`hidden` to be a sequence of layer sizes, found `int`"):
        computed.fit_field(hidden=5)


def test_progress_bars_are_shown_when_asked(adata: AnnData, capsys):
    kernel = OTVelocityKernel(adata, cluster_key="clusters").compute_windows(min_window_size=10)
    kernel.compute_velocity().fit_field(hidden=(8,), n_steps=30)
    printed = capsys.readouterr().err
    assert "transport" in printed
    assert "field" in printed


def test_diagnostics_and_states_from_the_kernel(computed):
    assert 0 <= computed.test_direction("clusters", n_draws=3).p_value <= 1
    assert -1 <= computed.flip_test("clusters").mean <= 1
    states = computed.suggest_terminal_states("clusters")
    assert set(sum(states.values(), [])) <= set(computed.adata.obs_names)
    assert computed.suggest_initial_states("clusters").keys().isdisjoint(states)
    with pytest.raises(KeyError, match=r"Expected `adata.obs\['louvain'\]`"):
        computed.suggest_terminal_states("louvain")


def test_states_need_a_velocity(adata):
    with pytest.raises(RuntimeError, match=r"Compute the transport first, as `.compute_velocity\(\)`"):
        OTVelocityKernel(adata).suggest_terminal_states()
    with pytest.raises(RuntimeError, match=r"Compute the transition matrix first, as `.compute_transition_matrix\(\)`"):
        OTVelocityKernel(adata).suggest_initial_states()


def test_cells_settle_at_ends_by_default(computed):
    matrix = computed.compute_transition_matrix(**QUIET).transition_matrix
    assert "settle" not in computed.params
    assert computed.cluster_key is None or computed.cluster_key == "clusters"
    assert computed.compute_transition_matrix(settle=True, **QUIET).transition_matrix is matrix  # the same request
    ends = computed.ends
    assert 0 < ends.mean() < 0.9
    free = computed.compute_transition_matrix(settle=False, **QUIET).transition_matrix
    assert computed.params["settle"] is False
    np.testing.assert_array_equal(free[~ends].toarray(), matrix[~ends].toarray())
    assert matrix[ends][:, ends].sum() > free[ends][:, ends].sum()
    by_clusters = computed.compute_transition_matrix(settle="clusters", **QUIET)
    assert by_clusters.params.get("settle", computed.cluster_key) == "clusters"
    with pytest.raises(KeyError, match=r"Expected `adata.obs\['louvain'\]`"):
        computed.compute_transition_matrix(settle="louvain", **QUIET)
    back = ~computed.copy()
    assert "settle" not in back.compute_transition_matrix(**QUIET).params
    with pytest.raises(ValueError, match="`settle` to be `True` or `False` for a backward kernel"):
        back.compute_transition_matrix(settle="clusters", **QUIET)


def test_a_matrix_follows_the_clusters_that_ends_are_sought_in(computed):
    adata = computed.adata
    adata.obs["mine"] = adata.obs["clusters"].astype(str)
    one = computed.compute_transition_matrix(settle="mine", **QUIET).transition_matrix
    late = computed.cells.time > np.quantile(computed.cells.time, 0.97)
    adata.obs["mine"] = np.where(late, "late", adata.obs["clusters"].astype(str))
    assert computed.compute_transition_matrix(settle="mine", **QUIET).transition_matrix is not one


def test_settings_are_kept_and_come_back(computed, tmp_path):
    computed.compute_velocity(epsilon=0.1, show_progress_bar=False).fit_field((8,), n_steps=5, show_progress_bar=False)
    computed.compute_transition_matrix()
    assert computed.settings["windows"]["min_window_size"] == 10
    assert computed.settings["velocity"]["epsilon"] == 0.1
    computed.write_to_adata()
    computed.adata.write_h5ad(tmp_path / "cells.h5ad")
    again = OTVelocityKernel.from_adata(anndata.read_h5ad(tmp_path / "cells.h5ad"), key="T_fwd").settings
    assert again["velocity"] == computed.settings["velocity"]
    np.testing.assert_array_equal(again["field"].pop("hidden"), [8])
    assert again["field"] == {k: v for k, v in computed.settings["field"].items() if k != "hidden"}


def test_another_basis_than_the_one_saved_is_refused(computed):
    computed.write_to_adata()
    computed.adata.obsm["X_pca"] = computed.adata.obsm["X_pca"] + 1e-9
    with pytest.raises(ValueError, match="and the basis and time of .* that it was computed from.*found others"):
        OTVelocityKernel.from_adata(computed.adata, key="T_fwd")


def test_matrix_put_in_by_the_user_is_not_taken_for_a_computed_one(computed):
    expected = computed.transition_matrix.copy()
    computed.transition_matrix = sp.identity(expected.shape[0], format="csr")
    computed.compute_transition_matrix()
    np.testing.assert_array_equal(computed.transition_matrix.toarray(), expected.toarray())


def test_weights_of_the_field_are_locked(computed):
    with pytest.raises(TypeError, match="does not support item assignment"):
        computed.field.weights["0.bias"] = 0


def test_graph_on_the_pca_is_told_from_a_latent_basis(adata, caplog):
    adata.uns["neighbors"] = {"connectivities_key": "connectivities", "params": {"n_neighbors": 15}}
    adata.obsm["X_scVI"] = adata.obsm["X_pca"][:, ::-1]
    OTVelocityKernel(adata, basis="scVI")
    assert "The neighbour graph was built on 'X_pca' and velocities are computed in 'X_scVI'" in caplog.text
