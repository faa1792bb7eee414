"""What CellRank expects of a kernel, on whichever CellRank is installed: see ``cellrank_contract.md``."""

import ast
import copy
import pickle
from pathlib import Path

import anndata
import cellrank as cr
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from cellrank.kernels import ConnectivityKernel

import cellrank_velot
from cellrank_velot import OTVelocityKernel
from cellrank_velot._utils.stage import Stage

STAGES = ("windows", "transport", "field")


def same_matrix(first: sp.spmatrix, second: sp.spmatrix) -> bool:
    """Tell whether two matrices are equal bit for bit."""
    return first.shape == second.shape and (first != second).nnz == 0


def assert_same_stages(first: OTVelocityKernel, second: OTVelocityKernel) -> None:
    def compare(a, b) -> None:
        if isinstance(a, Stage):
            a, b = a.to_dict(), b.to_dict()
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            for key in a:
                compare(a[key], b[key])
        elif isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b
            assert type(a) is type(b)

    for name in STAGES:
        compare(getattr(first, name), getattr(second, name))


# --------------------------------------------------------------------------------------------- what it says
def test_repr_shows_direction_and_parameters(computed):
    scale = round(computed.params["softmax_scale"], 3)
    shown = f"model='deterministic', similarity='cosine', softmax_scale={scale}"
    assert repr(computed) == f"OTVelocityKernel[n=240, {shown}]"
    assert str(computed) == "OTVelocityKernel[n=240]"
    assert str(~computed) == "~OTVelocityKernel[n=240]"
    back = (~computed).compute_transition_matrix(softmax_scale=2)
    shown = "model='deterministic', similarity='cosine', softmax_scale=2.0, bwd_mode='transpose'"
    assert repr(back) == f"~OTVelocityKernel[n=240, {shown}]"
    assert repr(OTVelocityKernel(computed.adata)) == "OTVelocityKernel[n=240]"


@pytest.mark.parametrize(
    "options",
    [
        {"softmax_scale": np.float32(2.5), "threshold": np.float64(0.01)},
        {"similarity": "correlation", "variance_stabilize": np.bool_(True), "smooth": np.bool_(False)},
        {"similarity": lambda v, d: (v * d).sum(1), "gene_subset": ["gene_1", "gene_3"]},
    ],
)
def test_params_are_short_plain_values(computed, options: dict):
    computed.compute_transition_matrix(**options)
    for name, value in computed.params.items():
        assert type(value) in (bool, int, float, str), name
        assert len(repr(value)) < 40
    assert "np." not in repr(computed)


def test_params_tell_requests_apart(computed):
    def params(**options) -> dict:
        return dict(computed.compute_transition_matrix(**options).params)

    plain = params()
    for options in ({"smooth": False}, {"variance_stabilize": True}, {"threshold": 0.01}, {"gene_subset": ["gene_1"]}):
        assert params(**options) != plain
    assert params() == plain


def test_arguments_of_the_constructor_are_writable(computed):
    computed.write_to_adata()
    init = computed.adata.uns["T_fwd_params"]["init"]
    assert init["time_key"] == "dpt_pseudotime"
    assert init["basis"] == "X_pca"
    assert init["cluster_key"] == "clusters"
    for name, value in init.items():
        assert value is None or type(value) in (bool, int, float, str), name


# ------------------------------------------------------------------------------------------ copies and inverse
def test_copy_shares_adata_and_deep_copies_do_not(computed):
    shallow, deep = computed.copy(), computed.copy(deep=True)
    assert shallow is not computed
    assert shallow.adata is computed.adata
    assert deep.adata is not computed.adata
    for other in (shallow, deep):
        assert other.transition_matrix is not computed.transition_matrix
        assert same_matrix(other.transition_matrix, computed.transition_matrix)
        assert_same_stages(other, computed)
        assert other.params == computed.params
    shallow.transition_matrix.data[:] = 0
    assert computed.transition_matrix.data.all()
    shallow.compute_windows(min_window_size=15)
    assert computed.field is not None
    assert computed.transition_matrix is not None


def test_stages_of_copies_stay_frozen(computed):
    for other in (computed.copy(), copy.deepcopy(computed.field), pickle.loads(pickle.dumps(computed))):
        stage = other.windows if isinstance(other, OTVelocityKernel) else other
        array = stage.indices if hasattr(stage, "indices") else stage.centre
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_invert_is_not_in_place(computed):
    before, params = computed.transition_matrix.copy(), dict(computed.params)
    back = ~computed
    assert isinstance(back, OTVelocityKernel)
    assert back.backward
    assert not computed.backward
    assert back.adata is computed.adata
    assert back.params == {}
    assert back.logits is None
    assert_same_stages(back, computed)
    back.compute_transition_matrix()
    assert same_matrix(computed.transition_matrix, before)
    assert computed.params == params
    assert not same_matrix(back.transition_matrix, before)


def test_inverting_twice_gives_the_matrix_back(computed):
    again = (~~computed).compute_transition_matrix()
    assert not again.backward
    assert again is not computed
    assert same_matrix(again.transition_matrix, computed.transition_matrix)
    assert repr(again) == repr(computed)


def test_inverse_equals_a_kernel_built_backward(computed):
    built = OTVelocityKernel(computed.adata, backward=True, cluster_key="clusters")
    built.compute_windows(min_window_size=10).compute_velocity(show_progress_bar=False)
    built.fit_field(hidden=(16, 16), n_steps=60, show_progress_bar=False)
    expected = (~computed).compute_transition_matrix()
    assert_same_stages(built, expected)
    assert same_matrix(built.compute_transition_matrix().transition_matrix, expected.transition_matrix)


def test_backward_must_be_bool(adata: AnnData):
    with pytest.raises(TypeError, match="Expected `backward` to be `bool`"):
        OTVelocityKernel(adata, backward="yes")


# --------------------------------------------------------------------------------------------------- algebra
def test_combines_with_other_kernels(computed):
    ck = ConnectivityKernel(computed.adata).compute_transition_matrix()
    combined = 0.8 * computed + 0.2 * ck
    expected = 0.8 * computed.transition_matrix + 0.2 * ck.transition_matrix
    np.testing.assert_allclose(combined.transition_matrix.toarray(), expected.toarray(), atol=1e-14)
    assert set(combined.kernels) == {computed, ck}
    assert combined.backward is False
    again = combined.copy()
    np.testing.assert_array_equal(again.transition_matrix.toarray(), combined.transition_matrix.toarray())
    assert "OTVelocityKernel[n=240" in repr(combined)


def test_constants_are_normalised(computed):
    ck = ConnectivityKernel(computed.adata).compute_transition_matrix()
    first, second = (4 * computed + 1 * ck).transition_matrix, (0.8 * computed + 0.2 * ck).transition_matrix
    np.testing.assert_allclose(first.toarray(), second.toarray(), atol=1e-14)


def test_combines_with_itself_backward(computed):
    back = (~computed).compute_transition_matrix()
    both = 0.5 * back + 0.5 * ConnectivityKernel(computed.adata).compute_transition_matrix()
    assert both.backward is True
    with pytest.raises(ValueError, match="both forward and backward"):
        _ = (0.5 * computed + 0.5 * back).backward


def test_empty_leaf_is_never_computed_in_algebra(computed):
    empty = OTVelocityKernel(computed.adata)
    ck = ConnectivityKernel(computed.adata).compute_transition_matrix()
    with pytest.raises(RuntimeError, match="uninitialized"):
        (0.8 * empty + 0.2 * ck).compute_transition_matrix()
    assert empty.windows is None


# ----------------------------------------------------------------------------------------------------- cache
def test_same_request_returns_the_same_matrix(computed):
    for options in (
        {},
        {"softmax_scale": 3.0},
        {"similarity": "correlation", "threshold": 0.01},
        {"gene_subset": ["gene_1", "gene_2"]},
    ):
        first = computed.compute_transition_matrix(**options).transition_matrix
        assert computed.compute_transition_matrix(**options) is computed
        assert computed.transition_matrix is first
    assert computed.compute_transition_matrix().transition_matrix is not first


def test_stages_computed_again_make_a_new_matrix(computed):
    first = computed.transition_matrix
    computed.fit_field(hidden=(8,), n_steps=30, show_progress_bar=False)
    assert computed.transition_matrix is None  # no stale one is at hand
    assert computed.params == {}
    assert computed.logits is None
    assert not same_matrix(computed.compute_transition_matrix().transition_matrix, first)


def test_each_step_clears_what_came_after(computed):
    computed.compute_velocity(epsilon=0.1, show_progress_bar=False)
    assert computed.field is None
    assert computed.windows is not None
    computed.compute_windows(min_window_size=15)
    assert computed.transport is None
    for name in ("velocity", "raw_velocity", "confidence"):
        with pytest.raises(
            RuntimeError, match=r"Compute the (field|transport) first, as `\.(fit_field|compute_velocity)"
        ):
            getattr(computed, name)


def bad_function(v, d):
    return np.full(len(v), np.nan)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"similarity": "nearest"}, ValueError, "Expected `similarity` to be one of"),
        ({"similarity": bad_function}, ValueError, "Expected `similarity` to return finite values"),
        ({"softmax_scale": -1}, ValueError, "Expected `softmax_scale` to be in"),
        ({"gene_subset": ["Sox9"]}, KeyError, r"found `1` others: \['Sox9'\]"),
        ({"softmax_scale": 3.0, "device": "abacus"}, ValueError, "Expected `device` to be"),
    ],
)
def test_failed_call_leaves_the_kernel_as_it_was(computed, options: dict, error: type, message: str):
    matrix, params, logits = computed.transition_matrix, dict(computed.params), computed.logits
    for _ in range(2):  # and fails again: nothing stale is returned
        with pytest.raises(error, match=message):
            computed.compute_transition_matrix(**options)
        assert computed.transition_matrix is matrix
        assert computed.params == params
        assert computed.logits is logits
        assert_same_stages(computed, computed.copy())
    assert computed.compute_transition_matrix().transition_matrix is matrix


def test_failure_of_an_empty_kernel_leaves_it_empty(adata: AnnData):
    kernel = OTVelocityKernel(adata)
    for _ in range(2):
        with pytest.raises(ValueError, match="Expected `similarity` to be one of"):
            kernel.compute_transition_matrix("nearest")
    assert kernel.params == {}
    assert kernel.windows is kernel.transport is kernel.field is None


def test_failed_step_leaves_the_kernel_as_it_was(computed):
    matrix = computed.transition_matrix
    stages = [getattr(computed, name) for name in STAGES]
    for call, message in (
        (lambda: computed.compute_windows(min_window_size=1), "Expected `min_window_size`"),
        (lambda: computed.compute_windows(min_window_size=10_000), "Expected at least two windows"),
        (lambda: computed.compute_velocity(epsilon=0), "Expected `epsilon`"),
        (lambda: computed.fit_field(n_steps=0), "Expected `n_steps`"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
        assert all(getattr(computed, name) is stage for name, stage in zip(STAGES, stages, strict=True))
        assert computed.transition_matrix is matrix


@pytest.mark.parametrize(
    ("step", "options"),
    [
        ("compute_velocity", {"epsilon": -1}),
        ("fit_field", {"n_steps": 0}),
        ("fit_field", {"learning_rate": -1}),
        ("fit_field", {"device": "abacus"}),
        ("compute_transition_matrix", {"softmax_scale": 0}),
        ("compute_transition_matrix", {"device": "abacus"}),
    ],
)
def test_bad_options_are_found_before_any_work(adata: AnnData, step: str, options: dict):
    kernel = OTVelocityKernel(adata)
    with pytest.raises(ValueError, match="Expected `"):
        getattr(kernel, step)(**options)
    assert kernel.windows is kernel.transport is kernel.field is None


def test_nothing_is_computed_before_it_is_asked_for(adata: AnnData):
    kernel = OTVelocityKernel(adata)
    assert kernel.transition_matrix is None
    assert kernel.logits is kernel.condition_number is None
    assert kernel.windows is kernel.transport is kernel.field is None
    with pytest.raises(RuntimeError, match="Compute transition matrix first"):
        cr.estimators.GPCCA(kernel)


# --------------------------------------------------------------------------------------------- read and write
@pytest.mark.parametrize("with_adata", [True, False])
@pytest.mark.parametrize("backward", [False, True])
def test_pickle_file_brings_everything_back(computed, tmp_path, with_adata: bool, backward: bool):
    kernel = (~computed).compute_transition_matrix() if backward else computed
    kernel.write(tmp_path / "kernel.pickle", write_adata=with_adata)
    assert kernel.adata is not None
    again = OTVelocityKernel.read(tmp_path / "kernel.pickle", adata=None if with_adata else kernel.adata)
    assert same_matrix(again.transition_matrix, kernel.transition_matrix)
    assert_same_stages(again, kernel)
    assert repr(again) == repr(kernel)
    assert again.backward is backward
    matrix = again.transition_matrix
    assert again.compute_transition_matrix().transition_matrix is matrix  # the cache is still good
    assert same_matrix((~~again).compute_transition_matrix().transition_matrix, matrix)


def test_kernel_of_any_function_can_be_written(computed, tmp_path):
    computed.compute_transition_matrix(lambda v, d: (v * d).sum(1))
    computed.write(tmp_path / "kernel.pickle")
    again = OTVelocityKernel.read(tmp_path / "kernel.pickle")
    assert same_matrix(again.transition_matrix, computed.transition_matrix)


@pytest.mark.parametrize("key", [None, "my_kernel"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("through_file", [False, True])
def test_adata_brings_everything_back(computed, tmp_path, key: str | None, backward: bool, through_file: bool):
    kernel = (~computed).compute_transition_matrix(backward_mode="negate") if backward else computed
    kernel.write_to_adata(key=key)
    key = key or ("T_bwd" if backward else "T_fwd")
    adata = kernel.adata
    if through_file:
        adata.write_h5ad(tmp_path / "cells.h5ad")
        adata = anndata.read_h5ad(tmp_path / "cells.h5ad")
    again = OTVelocityKernel.from_adata(adata, key=key)
    assert again.adata is adata
    assert same_matrix(again.transition_matrix, kernel.transition_matrix)
    assert_same_stages(again, kernel)
    assert again.params == kernel.params
    assert repr(again) == repr(kernel)
    assert again.backward is backward
    np.testing.assert_array_equal(again.velocity, kernel.velocity)
    # It works on: the same request from these stages gives the same bits.
    mode = {"backward_mode": "negate"} if backward else {}
    again.compute_transition_matrix(**mode)
    assert same_matrix(again.transition_matrix, kernel.transition_matrix)


def test_both_directions_live_in_one_file(computed, tmp_path):
    back = (~computed).compute_transition_matrix()
    computed.write_to_adata()
    back.write_to_adata()
    computed.adata.write_h5ad(tmp_path / "cells.h5ad")
    adata = anndata.read_h5ad(tmp_path / "cells.h5ad")
    for kernel, key in ((computed, "T_fwd"), (back, "T_bwd")):
        again = OTVelocityKernel.from_adata(adata, key=key)
        assert same_matrix(again.transition_matrix, kernel.transition_matrix)
        assert again.backward is kernel.backward


def test_documented_keys_are_written(computed):
    computed.write_to_adata()
    adata = computed.adata
    np.testing.assert_array_equal(adata.obsm["velot_velocity"], computed.velocity)
    np.testing.assert_array_equal(adata.obsm["velot_velocity_raw"], computed.raw_velocity)
    np.testing.assert_array_equal(adata.obs["velot_confidence"], computed.confidence)
    np.testing.assert_array_equal(adata.obs["velot_cluster"], adata.obs["clusters"])
    assert "T_fwd" in adata.obsp
    assert "T_fwd" in adata.uns["velot"]
    adata.obsm["velot_velocity_raw"][:] = 0  # what is in the AnnData is its own
    assert np.nanmax(np.abs(computed.raw_velocity)) > 0


def test_written_kernel_without_a_field_comes_back(computed, tmp_path):
    kernel = computed.copy()
    kernel.compute_velocity(epsilon=0.1, show_progress_bar=False).compute_transition_matrix(smooth=False)
    kernel.write_to_adata()
    kernel.adata.write_h5ad(tmp_path / "cells.h5ad")
    again = OTVelocityKernel.from_adata(anndata.read_h5ad(tmp_path / "cells.h5ad"), key="T_fwd")
    assert again.field is None
    assert same_matrix(again.transition_matrix, kernel.transition_matrix)
    np.testing.assert_array_equal(again.raw_velocity, kernel.raw_velocity)


def test_nothing_of_an_earlier_kernel_is_left_beside_a_later_one(computed):
    computed.write_to_adata()
    computed.compute_velocity(epsilon=0.1, show_progress_bar=False).compute_transition_matrix(smooth=False)
    computed.write_to_adata()
    np.testing.assert_array_equal(computed.adata.obsm["velot_velocity_raw"], computed.raw_velocity)
    assert "velot_velocity" not in computed.adata.obsm  # that field is gone


def test_matrix_of_another_kernel_is_refused(computed):
    computed.write_to_adata("shared")
    ConnectivityKernel(computed.adata).compute_transition_matrix().write_to_adata("shared")
    with pytest.raises(ValueError, match=r"obsp\['shared'\]"):
        OTVelocityKernel.from_adata(computed.adata, key="shared")


def test_key_found_at_first_is_the_key_read_later(computed):
    computed.write_to_adata()
    computed.adata.obs["pseudotime"] = computed.adata.obs["dpt_pseudotime"].to_numpy()[::-1]
    again = OTVelocityKernel.from_adata(computed.adata, key="T_fwd")
    np.testing.assert_array_equal(again.cells.time, computed.cells.time)


def test_copied_matrix_is_its_own(computed):
    computed.write_to_adata(copy=True)
    assert computed.adata.obsp["T_fwd"] is not computed.transition_matrix
    again = OTVelocityKernel.from_adata(computed.adata, key="T_fwd", copy=True)
    again.transition_matrix.data[:] = 0
    assert computed.transition_matrix.data.all()
    assert computed.adata.obsp["T_fwd"].data.all()


def test_foreign_or_damaged_entries_are_refused(computed):
    adata = computed.adata
    with pytest.raises(
        KeyError, match=r"Expected `adata.obsp\['T_fwd'\]`, found the keys \['connectivities', 'distances'\]"
    ):
        OTVelocityKernel.from_adata(adata, key="T_fwd")
    ConnectivityKernel(adata).compute_transition_matrix().write_to_adata("other")
    with pytest.raises(
        KeyError, match=r"Expected `adata.uns\['velot'\]\['other'\]`, found none: it was not written by"
    ):
        OTVelocityKernel.from_adata(adata, key="other")
    computed.write_to_adata()
    with pytest.raises(ValueError, match="Expected the `240` cells that the kernel was saved with, found `100`"):
        OTVelocityKernel.from_adata(adata[:100].copy(), key="T_fwd")
    del adata.uns["velot"]["T_fwd"]["windows"]["pairs"]
    with pytest.raises(ValueError, match=r"Expected `adata.uns\['velot'\]\['T_fwd'\]\['windows'\]` with the fields"):
        OTVelocityKernel.from_adata(adata, key="T_fwd")


def test_writing_before_computing_is_an_error(adata: AnnData):
    kernel = OTVelocityKernel(adata)
    before = set(adata.uns)
    with pytest.raises(RuntimeError, match="Compute transition matrix first"):
        kernel.write_to_adata()
    assert set(adata.uns) == before


# ------------------------------------------------------------------------------------------- plots and scores
@pytest.fixture
def figures():
    yield
    plt.close("all")


@pytest.mark.usefixtures("figures")
@pytest.mark.parametrize("start", [None, {"clusters": "stem"}, {"dpt_pseudotime": [0, 0.2]}])
def test_random_walks(computed, start):
    computed.plot_random_walks(
        n_sims=3, max_iter=8, seed=0, start_ixs=start, n_jobs=1, backend="threading", show_progress_bar=False
    )
    assert plt.get_fignums()


@pytest.mark.usefixtures("figures")
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("stream", [True, False])
def test_projection(computed, backward: bool, stream: bool):
    kernel = (~computed).compute_transition_matrix() if backward else computed
    kernel.plot_projection(basis="umap", stream=stream, show=False)
    projected = kernel.adata.obsm["T_bwd_umap" if backward else "T_fwd_umap"]
    assert projected.shape == (240, 2)
    inner = (computed.cells.time > 0.1) & (computed.cells.time < 0.4)  # the stem moves along the first axis
    assert np.mean(np.sign(projected[inner, 0]) == (-1 if backward else 1)) > 0.9


@pytest.mark.usefixtures("figures")
def test_single_flow(computed):
    axes = computed.plot_single_flow("stem", "clusters", "stage", show=False)
    assert isinstance(axes, plt.Axes)


def test_cross_boundary_correctness(computed):
    for fate in ("left", "right"):
        forward = computed.cbc("stem", fate, "clusters", rep="X_pca")
        backward = (~computed).compute_transition_matrix().cbc("stem", fate, "clusters", rep="X_pca")
        assert forward.mean() > 0.3 > backward.mean()


def test_gpcca_finds_the_planted_fates(computed, planted):
    computed.fit_field(show_progress_bar=False).compute_transition_matrix()  # the shared one is trained for speed
    combined = 0.8 * computed + 0.2 * ConnectivityKernel(computed.adata).compute_transition_matrix()
    g = cr.estimators.GPCCA(combined)
    g.compute_schur(n_components=10, method="brandts")
    g.compute_macrostates(n_states=3, n_cells=8, cluster_key="clusters")
    assert set(g.macrostates.cat.categories) == {"stem", "left", "right"}
    g.predict_terminal_states(method="top_n", n_states=2, n_cells=8)
    assert set(g.terminal_states.cat.categories) == {"left", "right"}
    g.compute_fate_probabilities(solver="direct", use_petsc=False, show_progress_bar=False)
    fates = np.asarray(g.fate_probabilities["left"]).ravel()
    np.testing.assert_allclose(np.asarray(g.fate_probabilities).sum(1), 1, atol=1e-6)
    late = planted.time > 0.7
    assert ((fates > 0.5) == (planted.labels == 1))[late].mean() > 0.98
    early = planted.time < 0.1
    assert np.abs(fates[early] - 0.5).mean() < 0.2
    drivers = g.compute_lineage_drivers(lineages=["left"])
    assert drivers.shape[0] == 20
    assert np.isfinite(drivers["left_corr"]).all()


# ------------------------------------------------------------------------------------------- public names only
SOURCES = sorted(Path(cellrank_velot.__file__).parent.rglob("*.py"))


def cellrank_names(tree: ast.Module) -> list[str]:
    """Return the full names that a module takes from CellRank, by import or as attributes of what it imported."""
    names, local = [], {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "cellrank":
                    names.append(alias.name)
                    local[alias.asname or "cellrank"] = alias.name if alias.asname else "cellrank"
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "cellrank":
            for alias in node.names:
                names.append(f"{node.module}.{alias.name}")
                local[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in local:
            names.append(".".join([local[node.id], *parts]))
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_only_public_names_of_cellrank_are_used(path: Path):
    for name in cellrank_names(ast.parse(path.read_text(encoding="utf-8"))):
        parts = name.split(".")
        assert not any(part.startswith("_") and part != "__version__" for part in parts), name
        assert parts[:2] != ["cellrank", "logging"], name


def test_the_check_of_names_finds_private_ones():
    text = "import cellrank as cr\nfrom cellrank._utils import Lineage\ncr.kernels._base_kernel.Kernel"
    names = cellrank_names(ast.parse(text))
    assert "cellrank._utils.Lineage" in names
    assert "cellrank.kernels._base_kernel.Kernel" in names
