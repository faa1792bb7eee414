"""Plots: what is drawn, where it goes, and that nothing else changes; and the projection behind the arrows."""

from types import SimpleNamespace

import cellrank as cr
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData, read_h5ad
from matplotlib.colors import to_hex
from sklearn.neighbors import kneighbors_graph

from cellrank_velot import OTVelocityKernel, datasets
from cellrank_velot import plotting as pl
from cellrank_velot.outputs import write_h5ad
from cellrank_velot.plotting._colors import BACKGROUND, palette, palette_of
from cellrank_velot.plotting.fates import fate_probabilities
from cellrank_velot.projection import project_velocity, velocity_on_grid


@pytest.fixture(scope="module")
def job() -> SimpleNamespace:
    """A kernel and an estimator on simulated cells, prepared without UMAP, which would take most of the time."""
    adata = datasets.bifurcation(n_cells=300, n_genes=20, preprocess=False)
    centred = adata.X - adata.X.mean(axis=0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    adata.obsm["X_pca"] = left[:, :10] * scale[:10]
    adata.obsm["X_umap"] = adata.obsm["X_pca"][:, :2]
    graph = kneighbors_graph(adata.obsm["X_pca"], 15)
    adata.obsp["connectivities"] = sp.csr_matrix(graph.maximum(graph.T))
    kernel = OTVelocityKernel(adata, time_key="true_time")
    kernel.compute_velocity(show_progress_bar=False).fit_field(n_steps=100, show_progress_bar=False)
    kernel.compute_transition_matrix()
    kernel.write_to_adata()
    combined = 0.8 * kernel + 0.2 * cr.kernels.ConnectivityKernel(adata).compute_transition_matrix()
    estimator = cr.estimators.GPCCA(combined)
    estimator.compute_schur(n_components=6, method="brandts", verbose=False)
    estimator.compute_macrostates(n_states=2, n_cells=10, cluster_key="clusters")
    estimator.set_terminal_states(list(estimator.macrostates.cat.categories), n_cells=10)
    estimator.compute_fate_probabilities(use_petsc=False, show_progress_bar=False)
    return SimpleNamespace(adata=adata, kernel=kernel, estimator=estimator)


PLOTS = {
    "velocity_stream": lambda job, **kwargs: pl.velocity_stream(job.kernel, **kwargs),
    "confidence": lambda job, **kwargs: pl.confidence(job.kernel, **kwargs),
    "embedding": lambda job, **kwargs: pl.embedding(job.adata, "true_time", **kwargs),
    "training": lambda job, **kwargs: pl.training(job.kernel, **kwargs),
    "macrostates": lambda job, **kwargs: pl.macrostates(job.estimator, **kwargs),
    "fate_map": lambda job, **kwargs: pl.fate_map(job.estimator, **kwargs),
}
ON_EMBEDDING = [name for name in PLOTS if name != "training"]


@pytest.fixture
def figdir(tmp_path):
    before = sc.settings.figdir, sc.settings.file_format_figs
    sc.settings.figdir, sc.settings.file_format_figs = tmp_path, "svg"
    yield tmp_path
    sc.settings.figdir, sc.settings.file_format_figs = before


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def first(axes):
    return axes[0] if isinstance(axes, list) else axes


def legend_of(ax) -> dict[str, str]:
    legend = ax.get_legend()
    return {
        text.get_text(): to_hex(h.get_color())
        for text, h in zip(legend.get_texts(), legend.legend_handles, strict=True)
    }


# --------------------------------------------------------------------------------------------------- conventions
@pytest.mark.parametrize("name", PLOTS)
def test_returns_axes_only_where_not_shown(job, name, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    assert isinstance(first(PLOTS[name](job, show=False)), mpl.axes.Axes)
    assert not shown
    assert PLOTS[name](job) is None
    assert shown == [True]


@pytest.mark.parametrize("name", PLOTS)
def test_saves_under_figdir_and_leaves_no_figure_open(job, name, figdir):
    assert PLOTS[name](job, save=f"sub/{name}.png", dpi=50) is None
    assert (figdir / "sub" / f"{name}.png").stat().st_size > 1000
    assert not plt.get_fignums()


def test_absolute_path_and_default_suffix(job, figdir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    pl.training(job.kernel, save=folder / "training")
    assert (folder / "training.svg").exists()
    assert not list(figdir.iterdir())


@pytest.mark.parametrize("name", PLOTS)
def test_leaves_global_settings_and_data_alone(job, name):
    settings, keys = (
        dict(mpl.rcParams),
        {slot: set(getattr(job.adata, slot)) for slot in ("obs", "obsm", "uns", "obsp")},
    )
    state = np.random.get_state()[1].copy()  # noqa: NPY002 # what must not change is the global state
    PLOTS[name](job, show=False)
    assert dict(mpl.rcParams) == settings
    assert {slot: set(getattr(job.adata, slot)) for slot in keys} == keys
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("name", [name for name in PLOTS if name != "fate_map"])
def test_draws_into_axes_given(job, name, monkeypatch):
    monkeypatch.setattr(plt, "show", pytest.fail)
    _, ax = plt.subplots()
    assert PLOTS[name](job, ax=ax) is None
    assert ax.has_data()
    assert plt.get_fignums()
    assert PLOTS[name](job, ax=ax, show=False) is ax


@pytest.mark.parametrize("name", ON_EMBEDDING)
def test_labels_name_the_embedding_without_ticks(job, name):
    ax = first(PLOTS[name](job, basis="X_pca", show=False))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("PCA 1", "PCA 2")
    assert not ax.get_xticks().size


@pytest.mark.parametrize("name", PLOTS)
def test_figure_size(job, name):
    ax = first(PLOTS[name](job, figsize=(3, 2), dpi=40, show=False))
    np.testing.assert_allclose(ax.figure.get_size_inches(), (3, 2))
    assert ax.figure.dpi == 40


@pytest.mark.parametrize("name", ON_EMBEDDING)
def test_missing_embedding(job, name):
    with pytest.raises(KeyError, match=r"adata\.obsm\['tsne'\].*X_umap"):
        PLOTS[name](job, basis="tsne", show=False)


def test_legend_lies_outside_the_data(job):
    ax = pl.velocity_stream(job.kernel, show=False)
    ax.figure.canvas.draw()
    assert ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1
    assert ax.get_legend().get_window_extent().x1 <= ax.figure.bbox.x1


def test_wrong_type():
    with pytest.raises(TypeError, match="found `ndarray`"):
        pl.embedding(np.zeros(3), "x")


# ------------------------------------------------------------------------------------------------------ each plot
def test_stream_follows_the_arrow_of_time(job):
    x = job.adata.obsm["X_umap"]
    velocity = project_velocity(job.kernel.transition_matrix, x)
    time = job.adata.obs["true_time"].to_numpy()
    graph = job.adata.obsp["connectivities"].tocoo()
    step = x[graph.col] - x[graph.row]
    forward = (step * velocity[graph.row]).sum(axis=1) * np.sign(time[graph.col] - time[graph.row])
    assert (forward > 0).mean() > 0.6


def test_stream_from_adata_is_that_of_the_kernel(job):
    ours = pl.velocity_stream(job.kernel, show=False).collections[1].get_segments()
    read = pl.velocity_stream(job.adata, show=False).collections[1].get_segments()
    np.testing.assert_array_equal(np.concatenate(ours), np.concatenate(read))
    with pytest.raises(KeyError, match=r"T_bwd.*T_fwd"):
        pl.velocity_stream(job.adata, key="T_bwd")


def test_stream_without_color_or_legend(job):
    assert pl.velocity_stream(job.kernel, color=None, show=False).get_legend() is None
    assert pl.velocity_stream(job.kernel, legend=False, show=False).get_legend() is None


def test_kernel_without_transition_matrix(job):
    with pytest.raises(RuntimeError, match="compute_transition_matrix"):
        pl.velocity_stream(SimpleNamespace(adata=job.adata, transition_matrix=None))


def test_colors_come_from_uns(job):
    legend = legend_of(pl.velocity_stream(job.kernel, show=False))
    categories = list(job.adata.obs["clusters"].cat.categories)
    assert legend == {
        name: color.lower() for name, color in zip(categories, job.adata.uns["clusters_colors"], strict=True)
    }


def test_colors_without_uns_are_told_apart():
    assert len(set(palette(8))) == 8
    assert len(set(palette(25))) == 25
    assert len(palette(500)) == 500
    adata = AnnData(np.zeros((2, 1)), uns={"k_colors": ["not a color", "red"]})
    assert dict(palette_of(adata, "k", ["a", "b"])) == {"a": palette(2)[0], "b": palette(2)[1]}


@pytest.mark.parametrize("values", [["a", None, "b"], [True, False, True], [1.0, np.nan, 3.0]])
def test_embedding_of_any_column(values):
    adata = AnnData(np.ones((3, 1), dtype=np.float32), obsm={"X_umap": np.arange(6.0).reshape(3, 2)})
    adata.obs["c"] = values
    adata.var_names = ["gene"]
    assert pl.embedding(adata, "c", show=False).has_data()
    assert pl.embedding(adata, "gene", mark=1, show=False).get_legend().get_texts()[0].get_text() == "root"
    with pytest.raises(KeyError, match="gene or one of \\['c'\\], found 'other'"):
        pl.embedding(adata, "other")


def test_confidence_shows_cells_without_estimate(job):
    values = pl.confidence(job.adata, show=False).collections[0]
    unknown = int(np.isnan(job.kernel.raw_velocity).any(axis=1).sum())
    grey = [to_hex(color).upper() == BACKGROUND for color in values.get_facecolors()]
    assert sum(grey) == unknown
    kernel = SimpleNamespace(adata=job.adata, confidence=np.ones(300), raw_velocity=np.full((300, 2), np.nan))
    assert "no estimate (300 cells)" in legend_of(pl.confidence(kernel, show=False))


def test_training_marks_the_step_kept(job):
    ax = pl.training(job.kernel, show=False)
    field = job.kernel.field
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), field.history["step"])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), field.history["held_out"])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "held-out cells",
        "training batches",
        f"kept: step {field.best_step}",
    ]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Step", "Relative error")


def test_training_of_field_and_adata(job):
    for data in (job.kernel.field, job.adata):
        ax = pl.training(data, terms=["smooth"], show=False)
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), job.kernel.field.history["smooth"])


def test_training_refuses(job):
    with pytest.raises(RuntimeError, match="fit_field"):
        pl.training(OTVelocityKernel(job.adata, time_key="true_time"))
    with pytest.raises(KeyError, match="write_to_adata"):
        pl.training(job.adata, key="T_bwd")
    with pytest.raises(ValueError, match="Expected `terms` to be one of"):
        pl.training(job.kernel, terms=["loss"])


def test_macrostates_draws_typical_cells_over_grey(job):
    ax = pl.macrostates(job.estimator, show=False)
    states = job.adata.obs["macrostates_fwd"]
    assert set(legend_of(ax)) == set(states.cat.categories)
    grey = [to_hex(color).upper() == BACKGROUND for color in ax.collections[0].get_facecolors()]
    assert sum(grey) == states.isna().sum()
    assert all(grey[: sum(grey)])  # drawn first, so below
    assert set(legend_of(pl.macrostates(job.adata, which="terminal", show=False))) == set(states.cat.categories)


def test_macrostates_refuses(job):
    with pytest.raises(ValueError, match="Expected `which` to be one of"):
        pl.macrostates(job.estimator, which="late")
    with pytest.raises(KeyError, match="init_states_fwd.*compute_macrostates"):
        pl.macrostates(job.estimator, which="initial")
    with pytest.raises(KeyError, match="macrostates_bwd"):
        pl.macrostates(job.adata, backward=True)


def test_fate_map_has_a_panel_per_lineage_on_one_scale(job):
    axes = pl.fate_map(job.estimator, show=False)
    names = list(job.estimator.fate_probabilities.names)
    assert [ax.get_title(loc="left") for ax in axes] == names
    (bar,) = (ax for ax in axes[0].figure.axes if ax not in axes)
    np.testing.assert_allclose(bar.get_ylim(), (0, 1))
    assert len(pl.fate_map(job.estimator, lineages=names[0], show=False)) == 1
    with pytest.raises(KeyError, match="Fate C"):
        pl.fate_map(job.estimator, lineages=["Fate C"])


def test_fate_map_into_axes_given(job):
    _, axes = plt.subplots(1, 2)
    assert pl.fate_map(job.estimator, ax=axes, show=False) == list(axes)
    with pytest.raises(ValueError, match="Expected `2` Axes in `ax`, found `1`"):
        pl.fate_map(job.estimator, ax=axes[0])


def test_fate_probabilities_from_a_file(job, tmp_path):
    write_h5ad(job.adata, tmp_path / "a.h5ad")
    table = fate_probabilities(read_h5ad(tmp_path / "a.h5ad"))
    assert list(table.columns) == list(job.estimator.fate_probabilities.names)
    np.testing.assert_array_equal(table, np.asarray(job.estimator.fate_probabilities.X))
    bare = AnnData(np.ones((300, 1)), obsm={"lineages_fwd": table.to_numpy()})
    assert list(fate_probabilities(bare).columns) == ["Lineage 1", "Lineage 2"]
    with pytest.raises(KeyError, match="compute_fate_probabilities"):
        fate_probabilities(bare, backward=True)


# ----------------------------------------------------------------------------------------------------- projection
def one_cell_at_a_time(transitions, x):
    """The formula of the reference, cell by cell."""
    result = np.zeros_like(x)
    for i in range(len(x)):
        row = transitions[i].tocoo()
        keep = row.col != i
        units = x[row.col[keep]] - x[i]
        length = np.linalg.norm(units, axis=1, keepdims=True)
        units = np.divide(units, length, out=np.zeros_like(units), where=length > 0)
        if keep.any():
            result[i] = (row.data[keep, None] * units).sum(axis=0) - units.mean(axis=0)
    return result


@pytest.mark.parametrize("n_dims", [2, 3])
def test_projection_is_the_formula(n_dims):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, n_dims))
    x[1] = x[0]
    dense = rng.random((40, 40)) * (rng.random((40, 40)) < 0.3)
    dense[5] = 0
    dense[5, 5] = 1
    matrix = sp.csr_matrix(dense / dense.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(project_velocity(matrix, x), one_cell_at_a_time(matrix, x), atol=1e-14)
    np.testing.assert_array_equal(project_velocity(matrix, x)[5], 0)


def test_projection_of_equal_probabilities_is_zero():
    graph = kneighbors_graph(np.random.default_rng(0).normal(size=(50, 2)), 5)
    x = np.random.default_rng(1).normal(size=(50, 2))
    np.testing.assert_allclose(project_velocity(sp.csr_matrix(graph / 5), x), 0, atol=1e-14)


def test_projection_turns_and_does_not_stretch():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 2))
    graph = sp.csr_matrix(kneighbors_graph(x, 6))
    graph.data = rng.random(graph.nnz)
    rotation = np.array([[0.6, -0.8], [0.8, 0.6]])
    np.testing.assert_allclose(
        project_velocity(graph, 7 * x @ rotation + 3), project_velocity(graph, x) @ rotation, atol=1e-12
    )


def test_projection_refuses_another_shape():
    with pytest.raises(ValueError, match="shape `\\[4, 4\\]`, found `\\(3, 3\\)`"):
        project_velocity(sp.identity(3, format="csr"), np.zeros((4, 2)))


def test_grid_averages_and_masks():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(0, 1, (200, 2)), rng.uniform(4, 5, (200, 2))])
    velocity = np.tile([2.0, -1.0], (400, 1))
    velocity[3] = np.nan
    grid = velocity_on_grid(x, velocity, n_grid=20)
    known = np.isfinite(grid.speed)
    np.testing.assert_allclose(grid.velocity[known], np.tile([2.0, -1.0], (known.sum(), 1)))
    assert 0.03 < known.mean() < 0.4  # the corners without cells have none
    assert not known[0, -1]


def test_grid_does_not_depend_on_units():
    rng = np.random.default_rng(0)
    x, velocity = rng.normal(size=(200, 2)), rng.normal(size=(200, 2))
    one, other = velocity_on_grid(x, velocity), velocity_on_grid(x * [1000, 0.01] + 5, velocity)
    np.testing.assert_allclose(one.velocity, other.velocity, atol=1e-6)


@pytest.mark.parametrize("n_cells", [1, 2, 7])
def test_grid_of_few_cells(n_cells):
    x = np.random.default_rng(0).normal(size=(n_cells, 2))
    assert np.isfinite(velocity_on_grid(x, np.ones((n_cells, 2))).velocity).any()


def test_grid_refuses():
    with pytest.raises(ValueError, match="cells with a velocity"):
        velocity_on_grid(np.zeros((3, 2)), np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match="Expected `smooth`"):
        velocity_on_grid(np.zeros((3, 2)), np.zeros((3, 2)), smooth=0)
