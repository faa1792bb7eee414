"""Plots: what is drawn, where it goes, and that nothing else changes."""

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
from matplotlib.quiver import Quiver
from sklearn.neighbors import kneighbors_graph

import cellrank_velot
from cellrank_velot import OTVelocityKernel, datasets, write_h5ad
from cellrank_velot import plotting as pl
from cellrank_velot.dynamics import TrajectoryOptions, compute_trajectories
from cellrank_velot.embedding.projection import project_by_transitions
from cellrank_velot.field import ProcessOptions, fit_process
from cellrank_velot.plotting._draw.colors import BACKGROUND, palette, palette_of
from cellrank_velot.plotting.fates import fate_probabilities
from cellrank_velot.timeseries import build_snapshots, couple_snapshots


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
    kernel.compute_transition_matrix().compute_uncertainty(2, show_progress_bar=False)
    kernel.write_to_adata()
    combined = 0.8 * kernel + 0.2 * cr.kernels.ConnectivityKernel(adata).compute_transition_matrix()
    estimator = cr.estimators.GPCCA(combined)
    estimator.compute_schur(n_components=6, method="brandts", verbose=False)
    estimator.compute_macrostates(n_states=2, n_cells=10, cluster_key="clusters")
    estimator.set_terminal_states(list(estimator.macrostates.cat.categories), n_cells=10)
    estimator.compute_fate_probabilities(use_petsc=False, show_progress_bar=False)
    cells, options = kernel.cells, TrajectoryOptions(n_steps=30, save_every=5)
    clusters = adata.obs["clusters"]
    paths = compute_trajectories(kernel.field, cells.x, cells.time, range(5), options, clusters=clusters)
    return SimpleNamespace(adata=adata, kernel=kernel, estimator=estimator, paths=paths)


PLOTS = {
    "velocity_stream": lambda job, **kwargs: pl.velocity_stream(job.kernel, **kwargs),
    "velocity_grid": lambda job, **kwargs: pl.velocity_grid(job.kernel, **kwargs),
    "velocity_quiver": lambda job, **kwargs: pl.velocity_quiver(job.kernel, **kwargs),
    "velocity_comparison": lambda job, **kwargs: pl.velocity_comparison(job.kernel, **kwargs),
    "confidence": lambda job, **kwargs: pl.confidence(job.kernel, **kwargs),
    "uncertainty": lambda job, **kwargs: pl.uncertainty(job.kernel, **kwargs),
    "embedding": lambda job, **kwargs: pl.embedding(job.adata, "true_time", **kwargs),
    "training": lambda job, **kwargs: pl.training(job.kernel, **kwargs),
    "macrostates": lambda job, **kwargs: pl.macrostates(job.estimator, **kwargs),
    "fate_map": lambda job, **kwargs: pl.fate_map(job.estimator, **kwargs),
    "windows": lambda job, **kwargs: first(pl.windows(job.kernel, max_pairs=1, **kwargs)),
    "window_transport": lambda job, **kwargs: pl.window_transport(job.kernel, 0, **kwargs),
    "spatial_clusters": lambda job, **kwargs: pl.spatial_clusters(job.kernel, **kwargs),
    "trajectories": lambda job, **kwargs: pl.trajectories(job.kernel, job.paths, **kwargs),
    "flow": lambda job, **kwargs: first(pl.flow(job.kernel, job.paths, n_frames=1, **kwargs)),
    "fate_summary": lambda job, **kwargs: pl.fate_summary(job.kernel, job.paths, **kwargs),
}
ON_EMBEDDING = [name for name in PLOTS if name not in ("training", "fate_summary")]


@pytest.mark.parametrize("name", ["pl", "pp", "metrics", "datasets", "direction", "dynamics"])
def test_completion_offers_what_is_public_alone(name):
    module = getattr(cellrank_velot, name)
    assert dir(module) == sorted(module.__all__)
    assert all(hasattr(module, public) for public in module.__all__)


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


def test_a_plot_that_fails_leaves_no_figure_open(job):
    with pytest.raises(KeyError, match="found 'nothing'"):
        pl.velocity_stream(job.kernel, color="nothing", show=False)
    assert not plt.get_fignums()


@pytest.mark.parametrize("file", ["picture.nope", "taken/picture.gif"])
def test_a_plot_that_cannot_be_saved_leaves_no_figure_open(job, file, figdir):
    (figdir / "taken").write_text("a file where a folder would have to be")
    with pytest.raises((ValueError, OSError)):
        pl.training(job.kernel, save=file)
    with pytest.raises((ValueError, OSError)):
        pl.flow_animation(job.kernel, job.paths, n_frames=2, save=file)
    assert not plt.get_fignums()


def test_a_film_that_cannot_be_drawn_leaves_no_figure_open(job, monkeypatch):
    monkeypatch.setattr("cellrank_velot.plotting.particles.LineCollection", None)
    with pytest.raises(TypeError):
        pl.flow_animation(job.kernel, job.paths, n_frames=2, show=False)
    assert not plt.get_fignums()


def test_input_is_checked_before_any_work_and_before_a_figure_opens(job, monkeypatch):
    monkeypatch.setattr(plt, "subplots", lambda *_, **__: pytest.fail("a figure was opened"))
    monkeypatch.setattr(
        "cellrank_velot.plotting.velocity.project_by_transitions", lambda *_, **__: pytest.fail("work was done")
    )
    refused = pytest.raises(KeyError, match="`color` to be a gene or one of .*, found 'nothing'")
    for plot in (pl.velocity_stream, pl.velocity_grid, pl.velocity_quiver, pl.velocity_comparison):
        with refused:
            plot(job.kernel, color="nothing")
    with refused:
        pl.trajectories(job.kernel, job.paths, color="nothing")
    with refused:
        pl.embedding(job.adata, "nothing")
    with pytest.raises(KeyError, match=r"`mark` to be a name of `adata.obs_names` or a position, found 'nobody'"):
        pl.embedding(job.adata, "true_time", mark="nobody")
    with pytest.raises(IndexError, match="`mark` to be a position among `300` cells, found `300`"):
        pl.embedding(job.adata, "true_time", mark=300)
    with pytest.raises(ValueError, match="at least one panel to draw, found none"):
        pl.fate_map(job.estimator, lineages=[])


def test_one_argument_too_many_is_told_with_the_name_of_the_plot(job):
    with pytest.raises(TypeError, match=r"windows\(\) got too many positional arguments"):
        job.kernel.plot_windows("umap", [0], 3)


@pytest.mark.parametrize("name", ["growth_map", "fate_bars", "fate_heatmap", "fate_cells", "process_paths"])
def test_a_kernel_for_a_pseudotime_says_what_it_lacks(job, name):
    with pytest.raises(RuntimeError, match="Expected snapshots at real time points, found pseudotime"):
        getattr(pl, name)(job.kernel)
    with pytest.raises(TypeError, match="the `OTTimeSeriesKernel` itself, found `ConnectivityKernel`"):
        getattr(pl, name)(cr.kernels.ConnectivityKernel(job.adata))


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
    # The colours of what was drawn stay, as scanpy keeps them; whichever test draws first writes them.
    keys["uns"] |= {"velot_cluster_colors"} & set(job.adata.uns)
    assert {slot: set(getattr(job.adata, slot)) for slot in keys} == keys
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("name", [name for name in PLOTS if name not in ("fate_map", "velocity_comparison")])
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
    velocity = project_by_transitions(job.kernel.transition_matrix, x, graph=job.kernel.connectivities)
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


def cosine_similarities(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def arrows_of(ax) -> tuple[np.ndarray, np.ndarray]:
    """Starts and vectors of the arrows drawn, both of shape ``[n_arrows, 2]``."""
    (quiver,) = (artist for artist in ax.collections if isinstance(artist, Quiver))
    assert (quiver.angles, quiver.scale_units, quiver.scale) == ("xy", "xy", 1)  # so that vectors are those of the data
    return quiver.get_offsets(), np.column_stack([quiver.U, quiver.V])


def inside(ax, points) -> bool:
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    return bool(np.all((points >= [left, bottom]) & (points <= [right, top])))


@pytest.mark.parametrize("plot", [pl.velocity_grid, pl.velocity_quiver])
@pytest.mark.parametrize("method", ["transitions", "linear_map"])
def test_arrows_point_where_the_velocity_does(job, plot, method):
    ax = plot(job.kernel, method=method, show=False)
    at, arrows = arrows_of(ax)
    x, velocity = job.adata.obsm["X_umap"], job.kernel.velocity[:, :2]  # the embedding is the start of the basis
    nearest = np.linalg.norm(at[:, None] - x, axis=2).argmin(axis=1)
    assert np.median(cosine_similarities(arrows, velocity[nearest])) > 0.9
    assert inside(ax, at)
    assert inside(ax, at + arrows)


def test_arrows_of_the_linear_map_are_the_velocity(job):
    at, arrows = arrows_of(pl.velocity_quiver(job.kernel, method="linear_map", n_arrows=10_000, show=False))
    x, velocity = job.adata.obsm["X_umap"], job.kernel.velocity[:, :2]
    np.testing.assert_array_equal(at, x)
    assert np.mean(cosine_similarities(arrows, velocity)) > 0.99
    backward = (~job.kernel).compute_transition_matrix()
    back = arrows_of(pl.velocity_quiver(backward, method="linear_map", n_arrows=10_000, show=False))[1]
    np.testing.assert_allclose(back, -arrows)


@pytest.mark.parametrize("method", ["transitions", "linear_map"])
def test_arrows_from_adata_are_those_of_the_kernel(job, method):
    ours, read = (arrows_of(pl.velocity_quiver(data, method=method, show=False)) for data in (job.kernel, job.adata))
    np.testing.assert_allclose(ours[1], read[1], atol=1e-12)


@pytest.mark.parametrize("plot", [pl.velocity_stream, pl.velocity_grid, pl.velocity_quiver])
def test_weightings_differ(job, plot):
    def drawn(weighting):
        ax = plot(job.kernel, weighting=weighting, show=False)
        return np.concatenate(ax.collections[1].get_segments()) if plot is pl.velocity_stream else arrows_of(ax)[1]

    plain, *others = (drawn(weighting) for weighting in ("none", "distance", "confidence"))
    assert all(other.shape != plain.shape or not np.allclose(other, plain) for other in others)


def test_number_and_length_of_arrows(job):
    x = job.adata.obsm["X_umap"]
    at, arrows = arrows_of(pl.velocity_quiver(job.kernel, n_arrows=40, arrow_length=2.0, show=False))
    assert 20 <= len(at) <= 40
    assert len(np.unique(at, axis=0)) == len(at)
    spacing = 2.0 * np.ptp(x, axis=0) / np.sqrt(40)
    length = np.linalg.norm(arrows / spacing, axis=1)
    np.testing.assert_allclose(length.max(), 1)
    assert 0.01 < (length > 1 - 1e-9).mean() < 0.1
    at, arrows = arrows_of(pl.velocity_quiver(job.kernel, n_arrows=40, arrow_length=2.0, normalize=True, show=False))
    np.testing.assert_allclose(np.linalg.norm(arrows / spacing, axis=1), 1)


def test_arrows_are_spread_evenly(job):
    x = job.adata.obsm["X_umap"]
    at, _ = arrows_of(pl.velocity_quiver(job.kernel, n_arrows=50, show=False))
    unit = np.ptp(x, axis=0)
    between = np.linalg.norm((at[:, None] - at) / unit, axis=2) + np.eye(len(at))
    empty = np.linalg.norm((x[:, None] - at) / unit, axis=2).min(axis=1).max()
    assert between.min() >= 0.5 * np.sqrt(1 / 50)
    assert empty <= between.min() + 1e-9  # no cell is farther from an arrow than two arrows are apart


def test_cells_without_velocity_have_no_arrow(job):
    velocity = job.kernel.velocity.copy()
    velocity[:100] = np.nan
    velocity[100:110] = 0
    x = job.kernel.cells.x
    fields = {"adata": job.adata, "backward": False, "connectivities": job.kernel.connectivities}
    kernel = SimpleNamespace(**fields, velocity=velocity, cells=SimpleNamespace(x=x))
    at, _ = arrows_of(pl.velocity_quiver(kernel, method="linear_map", n_arrows=300, show=False))
    np.testing.assert_array_equal(at, job.adata.obsm["X_umap"][110:])
    assert pl.velocity_grid(kernel, method="linear_map", show=False).has_data()
    kernel.velocity = np.full_like(velocity, np.nan)
    for plot in (pl.velocity_quiver, pl.velocity_grid, pl.velocity_stream):
        with pytest.raises(ValueError, match="cells with a velocity"):
            plot(kernel, method="linear_map", show=False)
    kernel.velocity = np.zeros_like(velocity)
    assert len(pl.velocity_quiver(kernel, method="linear_map", show=False).collections) == 1  # cells alone


def test_arrows_refuse(job):
    with pytest.raises(ValueError, match="Expected `method` to be one of"):
        pl.velocity_grid(job.kernel, method="linear")
    with pytest.raises(ValueError, match="Expected `weighting` to be one of"):
        pl.velocity_quiver(job.kernel, weighting="time")
    with pytest.raises(ValueError, match="`weighting='none'` for `method='linear_map'`, found `'distance'`"):
        pl.velocity_stream(job.kernel, method="linear_map", weighting="distance")
    with pytest.raises(ValueError, match="Expected `n_arrows` to be at least `1`"):
        pl.velocity_quiver(job.kernel, n_arrows=0)
    with pytest.raises(ValueError, match="Expected `arrow_length`"):
        pl.velocity_grid(job.kernel, arrow_length=0)
    other = cr.kernels.ConnectivityKernel(job.adata).compute_transition_matrix()
    assert pl.velocity_quiver(other, show=False).has_data()
    for options in ({"method": "linear_map"}, {"weighting": "confidence"}):
        with pytest.raises(TypeError, match="Expected the `OTVelocityKernel` itself, found `ConnectivityKernel`"):
            pl.velocity_quiver(other, **options)
    with pytest.raises(RuntimeError, match="fit_field"):
        pl.velocity_comparison(OTVelocityKernel(job.adata, time_key="true_time"))
    bare = AnnData(np.ones((300, 1)), obsm={"X_umap": job.adata.obsm["X_umap"]})
    with pytest.raises(KeyError, match=r"adata\.obsm\['velot_velocity'\].*write_to_adata"):
        pl.velocity_comparison(bare)


def test_comparison_is_of_the_same_cells_on_one_scale(job):
    adata = job.adata.copy()
    adata.obsm["velot_velocity_raw"][:7] = np.nan
    left, right = pl.velocity_comparison(adata, n_arrows=10_000, show=False)
    x = job.adata.obsm["X_umap"]
    (raw_at, raw), (at, smooth) = arrows_of(left), arrows_of(right)
    np.testing.assert_array_equal(at, x)
    np.testing.assert_array_equal(raw_at, x[7:])
    assert "none for 7 of 300 cells" in left.get_title(loc="left")
    assert (left.get_xlim(), left.get_ylim()) == (right.get_xlim(), right.get_ylim())
    assert inside(left, raw_at + raw)
    assert inside(right, at + smooth)
    assert left.get_legend() is None
    assert right.get_legend() is not None
    kernel = pl.velocity_comparison(job.kernel, n_arrows=10_000, show=False)
    np.testing.assert_allclose(arrows_of(kernel[0])[1][7:], raw, atol=1e-12)
    assert kernel[0].get_title(loc="left") == "Transport"


def test_comparison_into_axes_given(job):
    _, axes = plt.subplots(1, 2)
    assert pl.velocity_comparison(job.kernel, ax=axes, show=False) == list(axes)
    with pytest.raises(ValueError, match="Expected `2` Axes in `ax`, found `1`"):
        pl.velocity_comparison(job.kernel, ax=axes[:1])


def test_uncertainty_is_an_angle(job):
    for data in (job.kernel, job.adata):
        ax = pl.uncertainty(data, show=False)
        (bar,) = (other for other in ax.figure.axes if other is not ax)
        np.testing.assert_allclose(bar.get_ylim(), (0, 90))
        assert "degrees" in bar.get_ylabel()
        assert "lower is better" in bar.get_ylabel()
    kernel = SimpleNamespace(adata=job.adata, velocity_uncertainty=np.linspace(0, 180, 300))
    ax = pl.uncertainty(kernel, show=False)
    assert ax.figure.axes[1].get_yticklabels()[-1].get_text() == "≥ 90"
    light, *_, dark = (np.mean(color[:3]) for color in ax.collections[0].get_facecolors())
    assert light > dark  # a sure cell is light, as in `confidence`


def test_uncertainty_refuses(job):
    with pytest.raises(RuntimeError, match="compute_uncertainty"):
        pl.uncertainty(OTVelocityKernel(job.adata, time_key="true_time"))
    bare = AnnData(np.ones((300, 1)), obsm={"X_umap": job.adata.obsm["X_umap"]})
    with pytest.raises(KeyError, match="compute_uncertainty.*write_to_adata"):
        pl.uncertainty(bare)


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


def test_training_of_time_points_has_their_terms():
    cells = datasets.birth_death(30)
    x, time = cells.obsm["X_pca"], cells.obs["day"].to_numpy(dtype=np.float64)
    couplings, _ = couple_snapshots(x, time, build_snapshots(time))
    series_field = fit_process(couplings, x, ProcessOptions(hidden=[8], n_steps=100))
    ax = pl.training(series_field, show=False)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), series_field.history["held_out"])
    assert list(legend_of(ax))[:2] == ["held-out points", "training batches"]
    ax = pl.training(series_field, terms=["growth", "score"], show=False)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), series_field.history["growth"])
    with pytest.raises(ValueError, match=r"Expected `terms` to be one of .*'growth'.*found `'smooth'`"):
        pl.training(series_field, terms=["smooth"])


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


def test_terminal_states_are_drawn_with_the_reasons(job):
    states = job.kernel.suggest_terminal_states("clusters", n_halves=2, show_progress_bar=False)
    cells, evidence = pl.terminal_states(job.kernel, states, show=False)
    assert set(legend_of(cells)) == set(states)
    of_clusters = palette_of(job.adata, "clusters", list(job.adata.obs["clusters"].cat.categories))
    assert legend_of(cells) == {name: to_hex(of_clusters[name]) for name in states}
    rows = dict(zip([t.get_text() for t in evidence.get_yticklabels()], evidence.texts, strict=True))
    sizes = job.adata.obs["clusters"].value_counts()
    assert rows[f"Fate A, {sizes['Fate A']}"].get_text().startswith("end (stay")
    assert not rows[f"Transition, {sizes['Transition']}"].get_text().startswith("end")
    del states["Fate A"]
    fewer, _ = job.kernel.plot_terminal_states(states, show=False)
    assert "Fate A" not in legend_of(fewer)
    with pytest.raises(TypeError, match="result of `suggest_terminal_states`, found `dict`"):
        pl.terminal_states(job.kernel, dict(states))
    states["mine"] = ["no such cell"]
    with pytest.raises(KeyError, match="state 'mine', found 1 that it lacks"):
        pl.terminal_states(job.kernel, states)


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
