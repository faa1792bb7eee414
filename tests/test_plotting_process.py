"""Pictures of a time series: tables of fates, paths, growth and populations; what is refused; methods of the kernel."""

from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch, Rectangle
from sklearn.neighbors import kneighbors_graph

from cellrank_velot import OTVelocityKernel
from cellrank_velot.dynamics.descent import ProcessFates
from cellrank_velot.dynamics.process import ProcessPaths
from cellrank_velot.kernel.plots import Plots, SeriesPlots
from cellrank_velot.plotting._draw.colors import BACKGROUND, VALUES
from cellrank_velot.plotting._draw.paths import NOWHERE
from cellrank_velot.plotting.descent import fate_bars, fate_heatmap
from cellrank_velot.plotting.process import fate_cells, process_paths
from cellrank_velot.plotting.sankey import sankey
from cellrank_velot.plotting.snapshots import GROWTH, growth_map, population
from cellrank_velot.timeseries.interpolation import Population

COLORS = {"stem": "#0072b2", "left": "#e69f00", "right": "#009e73"}
TIMES = (0.0, 2.0, 5.0)
pytestmark = pytest.mark.usefixtures("_close_figures")


@pytest.fixture
def _close_figures():
    plt.close("all")
    yield
    plt.close("all")


@pytest.fixture
def adata() -> AnnData:
    """One cloud that becomes two, which part along the third dimension of the basis."""
    rng = np.random.default_rng(0)
    time, side = np.repeat(TIMES, 60), np.tile([-1.0, 1.0], 90)
    adata = AnnData(np.ones((180, 1), dtype=np.float32))
    adata.obsm["X_pca"] = rng.normal(scale=0.3, size=(180, 4))
    adata.obsm["X_pca"][:, 0] += time
    adata.obsm["X_pca"][:, 2] += time * side
    adata.obsm["X_umap"] = 7.0 + adata.obsm["X_pca"][:, [2, 0]]
    names = np.where(time == 0, "stem", np.where(side < 0, "left", "right"))
    adata.obs["clusters"] = pd.Categorical(names, categories=list(COLORS))
    adata.uns["clusters_colors"] = list(COLORS.values())
    adata.obs["day"] = time
    return adata


def methods_of(*mixins: type):
    """Let a class of the tests have the methods of parts of the kernel, without the kernel."""

    def decorate(cls: type) -> type:
        for mixin in mixins:
            for name, value in vars(mixin).items():
                if callable(value) and name not in vars(cls):
                    setattr(cls, name, value)
        cls._refuse_options = lambda *_: None
        return cls

    return decorate


@methods_of(Plots, SeriesPlots)
class Kernel:
    """What the plots know of a kernel: its cells, and what it computes, which is planted here."""

    basis, cluster_key, field = "X_pca", None, None

    def __init__(self, adata: AnnData) -> None:
        self.adata = adata
        time = adata.obs["day"].to_numpy()
        self.cells = SimpleNamespace(x=adata.obsm["X_pca"], time=time, n_dims=4, is_series=True)
        self.growth = np.linspace(-0.5, 1.0, time.size)
        self.asked: list[tuple[str, dict]] = []

    def interpolate(self, time: float) -> Population:
        rng = np.random.default_rng(int(10 * time))
        x = rng.normal(scale=0.1, size=(400, 4)) + np.array([time, 0.0, 0.0, 0.0])
        x[:200, 2] -= time
        x[200:, 2] += time
        return Population(x, np.repeat([3.0, 1.0], 200), time, np.arange(400) % 60)

    def fate_probabilities(self, **kwargs) -> ProcessFates:
        self.asked.append(("fate_probabilities", kwargs))
        return table()

    def ancestry(self, **kwargs) -> ProcessFates:
        self.asked.append(("ancestry", kwargs))
        return table()

    def simulate_process(self) -> ProcessPaths:
        return planted_paths()


@pytest.fixture
def kernel(adata) -> Kernel:
    return Kernel(adata)


def table() -> ProcessFates:
    shares = pd.DataFrame(
        {"right": [0.2, 0.0], "left": [0.5, 0.9], "rest": [0.3, 0.1]}, index=pd.Index(["right", "stem"])
    )
    return ProcessFates(
        shares, (shares - 0.05).clip(0), (shares + 0.1).clip(upper=1), pd.Series([0.5, 2.0], shares.index)
    )


def planted_paths(n: int = 40, direction: str = "forward") -> ProcessPaths:
    """Half of the particles go left with three descendants each, half go right with one."""
    time = np.linspace(0, 5, 11)[:, None] * np.ones(n)
    side = np.repeat([-1.0, 1.0], n // 2)
    x = np.stack([time, 0 * time, time * side, 0 * time], axis=2)
    log_weight = np.where(side < 0, np.log(3.0), 0.0) * time / 5
    if direction == "backward":
        x, time, log_weight = x[::-1], time[::-1], log_weight[::-1] - log_weight[-1]
    return ProcessPaths(x.copy(), time.copy(), log_weight.copy(), np.arange(n), direction)


def labelled(ax, label):
    return next(artist for artist in ax.collections if artist.get_label() == label)


def titles(axes):
    return [ax.get_title(loc="left") for ax in axes]


def legend_texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# --------------------------------------------------------------------------------------------------------------- tables
def test_bars_are_the_shares_with_their_intervals(adata):
    axes = fate_bars(adata, table(), show=False)
    # In the order of the clusters, and with their colours; what is no cluster comes last.
    assert titles(axes) == ["stem, 2 per cell", "right, 0.5 per cell"]
    bars = axes[1].patches
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["left", "right", "rest"]
    assert [label.get_text() for label in axes[1].get_yticklabels()] == ["", "", ""]
    np.testing.assert_allclose([bar.get_width() for bar in bars], [0.5, 0.2, 0.3])
    assert [to_hex(bar.get_facecolor()) for bar in bars] == [COLORS["left"], COLORS["right"], NOWHERE.lower()]
    (lines,) = [artist for artist in axes[1].collections if len(artist.get_segments()) == 3]
    ends = np.array([segment[:, 0] for segment in lines.get_segments()])
    np.testing.assert_allclose(ends, [[0.45, 0.6], [0.15, 0.3], [0.25, 0.4]])
    # Panels are compared, so they share their scale.
    assert {ax.get_xlim() for ax in axes} == {(0.0, 1.0)}


def test_rows_are_chosen_and_ancestors_have_no_number(adata):
    (ax,) = fate_bars(adata, table(), rows="right", of="ancestors", show=False)
    assert titles([ax]) == ["right"]
    assert ax.get_xlabel() == "Share of the ancestors"
    assert ax.get_xlim()[1] == pytest.approx(1.05 * 0.6)
    assert titles(fate_bars(adata, table(), rows=["right", "stem"], of="ancestors", show=False)) == ["right", "stem"]


def test_heatmap_has_rows_and_columns_in_the_order_of_the_clusters(adata):
    ax = fate_heatmap(adata, table(), show=False)
    (image,) = ax.images
    np.testing.assert_allclose(image.get_array(), [[0.9, 0.0, 0.1], [0.5, 0.2, 0.3]])
    assert image.get_clim() == (0, 1)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["left", "right", "rest"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["stem, 2 per cell", "right, 0.5 per cell"]
    # Nothing is written where there is nothing, and what is written on dark is white.
    assert [(text.get_text(), text.get_color()) for text in ax.texts][:2] == [("90", "white"), ("10", "#1A1A1A")]
    assert not fate_heatmap(adata, table(), annotate=False, show=False).texts


def test_fates_of_cells_have_a_panel_for_each_cluster(kernel, adata):
    rows = adata.obs_names[[7, 3, 11]]
    shares = pd.DataFrame({"left": [0.0, 0.5, 1.0], "right": [1.0, 0.5, 0.0]}, index=rows)
    fates = ProcessFates(shares, shares, shares, shares["left"])
    axes = fate_cells(kernel, fates, show=False)
    assert titles(axes) == ["left", "right"]
    behind, cells = axes[0].collections
    assert len(behind.get_offsets()) == 180
    found = {tuple(x): to_hex(color) for x, color in zip(cells.get_offsets(), cells.get_facecolors(), strict=True)}
    expected = {
        tuple(adata.obsm["X_pca"][i, :2]): to_hex(VALUES(share)) for i, share in ((7, 0.0), (3, 0.5), (11, 1.0))
    }
    assert found == expected
    assert titles(fate_cells(adata, fates, "right", "pca", show=False)) == ["right"]
    assert titles(kernel.plot_fates(fates, style="cells", clusters=["right"], show=False)) == ["right"]
    with pytest.raises(ValueError, match=r"row for each cell, found `2` rows that are not cells.*group_by"):
        fate_cells(kernel, table())
    with pytest.raises(KeyError, match="never"):
        fate_cells(kernel, fates, "never")
    with pytest.raises(TypeError, match="`ProcessFates`"):
        fate_cells(kernel, shares)


def test_colors_are_those_of_the_column_asked_for(adata):
    adata.obs["types"] = adata.obs["clusters"].cat.rename_categories({"stem": "other"})
    adata.uns["types_colors"] = ["#111111", "#222222", "#333333"]
    fates = replace(table(), table=table().table)
    (ax,) = fate_bars(adata, fates, rows="stem", cluster_key="types", show=False)
    assert [to_hex(bar.get_facecolor()) for bar in ax.patches[:2]] == ["#222222", "#333333"]
    adata.obs["none"] = "a"
    with pytest.raises(KeyError, match=r"adata.obs\['none'\].*found no \['left', 'right'\]"):
        fate_bars(adata, fates, cluster_key="none", show=False)
    # Without a column that has the names, they have colours of their own.
    del adata.obs["clusters"]
    (ax,) = fate_bars(adata, fates, rows="stem", show=False)
    assert len({to_hex(bar.get_facecolor()) for bar in ax.patches}) == 3


def test_tables_that_cannot_be_drawn_are_refused(adata):
    with pytest.raises(TypeError, match="Expected `fates` to be `ProcessFates`, found `DataFrame`"):
        fate_bars(adata, table().table)
    with pytest.raises(KeyError, match="never"):
        fate_heatmap(adata, table(), rows="never")
    with pytest.raises(ValueError, match="`of` to be one of"):
        fate_heatmap(adata, table(), of="cells")
    shares = pd.DataFrame({"left": np.ones(20)}, index=pd.Index([f"cell_{i}" for i in range(20)]))
    many = ProcessFates(shares, shares, shares, shares["left"])
    with pytest.raises(ValueError, match=r"up to `16` rows to draw, found `20`.*group_by"):
        fate_bars(adata, many)
    ax = plt.figure().subplots()
    with pytest.raises(ValueError, match="`2` Axes"):
        fate_bars(adata, table(), ax=ax)


# ---------------------------------------------------------------------------------------------------------------- paths
def test_paths_lie_where_they_are_and_have_their_time(kernel):
    ax = process_paths(kernel, planted_paths(), dims=(2, 0), show=False)
    drawn = labelled(ax, "paths")
    ends = np.asarray(labelled(ax, "ends").get_offsets())
    np.testing.assert_allclose(np.abs(ends), np.full_like(ends, 5.0))
    np.testing.assert_allclose(labelled(ax, "starts").get_offsets(), 0.0)
    # Particles may leave the cells, and are seen there.
    far = planted_paths()
    wide = process_paths(kernel, replace(far, x=4 * far.x), dims=(2, 0), show=False)
    assert wide.get_xlim()[0] < -20 < 20 < wide.get_xlim()[1]
    assert wide.get_ylim()[0] == ax.get_ylim()[0]
    assert len(drawn.get_segments()) == 10 * 40
    assert len(np.unique(drawn.get_colors(), axis=0)) == 10
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("PCA 3", "PCA 1")


def test_paths_stand_for_descendants(kernel):
    """Three of four paths that are drawn go where there are three times as many descendants."""
    n = 4000
    (forward, backward) = (
        process_paths(kernel, planted_paths(n, way), dims=(2, 0), max_paths=200, show=False)
        for way in ("forward", "backward")
    )
    left = np.mean(np.asarray(labelled(forward, "ends").get_offsets())[:, 0] < 0)
    assert left == pytest.approx(0.75, abs=0.08)
    assert len(labelled(backward, "starts").get_offsets()) == 200
    left = np.mean(np.asarray(labelled(backward, "starts").get_offsets())[:, 0] < 0)
    assert left == pytest.approx(0.5, abs=0.1)


def test_paths_have_the_colour_of_their_fate_or_origin(kernel):
    ax = process_paths(kernel, planted_paths(), dims=(2, 0), color_by="fate", show=False)
    ends = labelled(ax, "ends")
    found = [to_hex(color) for color in ends.get_facecolors()]
    assert found == [COLORS["left"] if x < 0 else COLORS["right"] for x, _ in ends.get_offsets()]
    assert legend_texts(ax.figure) == ["Fate", "left (75%)", "right (25%)"]
    back = process_paths(kernel, planted_paths(direction="backward"), color_by="fate", show=False)
    assert legend_texts(back.figure) == ["Origin", "stem (100%)"]


def test_paths_are_placed_in_another_embedding_and_broken_where_it_is_torn(kernel):
    ax = process_paths(kernel, planted_paths(), "umap", show=False)
    ends = np.asarray(labelled(ax, "ends").get_offsets())
    np.testing.assert_allclose(np.sort(np.unique(np.round(ends[:, 0]))), [2.0, 12.0])
    assert len(labelled(ax, "paths").get_segments()) == 400
    kernel.adata.obsm["X_umap"][kernel.cells.time > 0] += 100.0
    torn = process_paths(kernel, planted_paths(), "umap", show=False)
    lengths = [np.linalg.norm(np.diff(step, axis=0)) for step in labelled(torn, "paths").get_segments()]
    assert len(lengths) < 400
    assert max(lengths) < 50


def test_paths_that_cannot_be_drawn_are_refused(kernel, adata):
    with pytest.raises(TypeError, match="Expected the `OTTimeSeriesKernel` itself, found `AnnData`"):
        process_paths(adata, planted_paths())
    with pytest.raises(TypeError, match="Expected `paths` to be `ProcessPaths`, found `int`"):
        process_paths(kernel, 3)
    paths = planted_paths()
    with pytest.raises(ValueError, match="paths in `4` dimensions, found `2`"):
        process_paths(kernel, replace(paths, x=paths.x[:, :, :2].copy()))
    with pytest.raises(ValueError, match="`dims` to be two of the `4` columns of 'X_pca'"):
        process_paths(kernel, paths, dims=(0, 4))
    with pytest.raises(ValueError, match="`color_by` to be one of"):
        process_paths(kernel, paths, color_by="weight")
    with pytest.raises(KeyError, match="never"):
        process_paths(kernel, paths, color_by="fate", cluster_key="never")


# --------------------------------------------------------------------------------------------------------------- growth
def test_growth_has_a_panel_for_each_time_and_zero_in_the_middle(kernel):
    axes = growth_map(kernel, show=False)
    assert titles(axes) == ["Time 0", "Time 2", "Time 5"]
    behind, cells = axes[1].collections
    assert len(cells.get_offsets()) == 60
    assert to_hex(behind.get_facecolors()[0]) == BACKGROUND.lower()
    (bar,) = [ax for ax in axes[0].figure.axes if ax not in axes]
    low, high = bar.get_ylim()
    assert low == -high
    # The colours end at the 98th percentile; two of a hundred rates are beyond.
    assert high == pytest.approx(np.quantile(np.abs(kernel.growth), 0.98))
    assert bar.get_ylabel() == "Growth rate per unit of time"
    assert [ax.get_ylabel() for ax in axes] == ["PCA 2", "", ""]


def test_growth_colours_are_the_rates(kernel):
    kernel.growth = np.where(kernel.cells.time == 0, 0.0, np.where(kernel.cells.time == 2, -1.0, 1.0))
    axes = growth_map(kernel, limit=1.0, show=False)
    found = [to_hex(np.unique(ax.collections[1].get_facecolors(), axis=0).squeeze()) for ax in axes]
    assert found == [to_hex(GROWTH(share)) for share in (0.5, 0.0, 1.0)]
    kernel.growth = np.zeros(180)
    assert len(growth_map(kernel, show=False)) == 3  # nothing grows: no range, and no error


def test_growth_of_some_times_or_all_in_one_panel(kernel, adata):
    assert titles(growth_map(kernel, times=[5.0, 0.0], show=False)) == ["Time 5", "Time 0"]
    (ax,) = growth_map(kernel, together=True, title="all", show=False)
    assert titles([ax]) == ["all"]
    assert len(ax.collections[-1].get_offsets()) == 180
    (ax,) = growth_map(kernel, "umap", times=2.0, show=False)
    assert ax.get_xlabel() == "UMAP 1"
    adata.obs["velot_growth"] = kernel.growth
    (ax,) = growth_map(adata, "pca", show=False)
    assert len(ax.collections) == 1


def test_growth_that_is_not_there_is_refused(kernel, adata):
    with pytest.raises(KeyError, match="write_to_adata"):
        growth_map(adata)
    with pytest.raises(ValueError, match=r"time points \[0.0, 2.0, 5.0\], found `3`"):
        growth_map(kernel, times=3.0)
    adata.obs["velot_growth"] = kernel.growth
    with pytest.raises(TypeError, match="Expected a kernel"):
        growth_map(adata, times=2.0)
    with pytest.raises(ValueError, match="`limit`"):
        growth_map(kernel, limit=0.0)


# ---------------------------------------------------------------------------------------------------------- populations
def test_populations_stand_next_to_the_snapshots_around_them(kernel):
    axes = population(kernel, [3.0, 1.0], show=False)
    expected = ["Time 0, cells", "Time 1, interpolated", "Time 2, cells", "Time 3, interpolated", "Time 5, cells"]
    assert titles(axes) == expected
    assert titles(population(kernel, 1.0, show=False)) == expected[:3]
    assert titles(population(kernel, kernel.interpolate(3.0), snapshots=False, show=False)) == expected[3:4]
    # At a time point, the population and the cells that it stands for.
    assert titles(population(kernel, 2.0, show=False)) == [expected[0], expected[2], "Time 2, interpolated"]


def test_density_is_that_of_the_mass(kernel):
    (ax,) = population(kernel, 4.0, dims=(2, 0), snapshots=False, n_grid=60, smooth=1.0, show=False)
    (image,) = ax.images
    shares = np.ma.filled(image.get_array(), 0.0)
    left, right = shares[:, :30].max(), shares[:, 30:].max()
    assert left == 1.0
    assert right == pytest.approx(1 / 3, rel=0.25)
    low, high, bottom, top = image.get_extent()
    at = np.unravel_index(shares.argmax(), shares.shape)
    where = low + (at[1] + 0.5) * (high - low) / 60, bottom + (at[0] + 0.5) * (top - bottom) / 60
    np.testing.assert_allclose(where, [-4.0, 4.0], atol=0.3)


def test_panels_share_the_colours_of_the_density(kernel):
    axes = population(kernel, [1.0, 4.0], show=False)
    tops = [np.nanmax(np.ma.filled(ax.images[0].get_array(), np.nan)) for ax in axes]
    assert max(tops) == 1.0
    assert min(tops) < 0.9
    assert {ax.images[0].get_clim() for ax in axes} == {(0.0, 1.0)}
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in axes}) == 1


def test_dots_are_as_many_as_there_is_mass(kernel):
    axes = population(kernel, 4.0, dims=(2, 0), kind="dots", n_dots=100, show=False)
    drawn = [np.asarray(ax.collections[1].get_offsets()) for ax in axes]
    assert [len(x) for x in drawn] == [60, 100, 60]
    assert np.mean(drawn[1][:, 0] < 0) == pytest.approx(0.75, abs=0.1)
    again = population(kernel, 4.0, dims=(2, 0), kind="dots", n_dots=100, show=False)
    np.testing.assert_array_equal(again[1].collections[1].get_offsets(), axes[1].collections[1].get_offsets())


def test_populations_that_cannot_be_drawn_are_refused(kernel, adata):
    with pytest.raises(TypeError, match="Expected the `OTTimeSeriesKernel` itself"):
        population(adata, 1.0)
    with pytest.raises(ValueError, match="at least one time"):
        population(kernel, [])
    with pytest.raises(ValueError, match="`kind` to be one of"):
        population(kernel, 1.0, kind="bars")
    with pytest.raises(ValueError, match="`n_grid`"):
        population(kernel, 1.0, n_grid=1)


# ----------------------------------------------------------------------------------------------------- what is computed
def test_plots_compute_what_is_not_given(kernel, adata):
    assert titles(fate_bars(kernel, show=False)) == ["stem, 2 per cell", "right, 0.5 per cell"]
    fate_heatmap(kernel, of="ancestors", show=False)
    with pytest.raises(ValueError, match="found `2` rows that are not cells"):  # the rows planted here are clusters
        fate_cells(kernel, of="ancestors", cluster_key="clusters")
    keys = {"cluster_key": "clusters", "group_by": "clusters"}
    by_cell = {"cluster_key": "clusters", "group_by": None}
    assert kernel.asked == [("fate_probabilities", keys), ("ancestry", keys), ("ancestry", by_cell)]
    assert labelled(process_paths(kernel, show=False), "paths")
    for plot in (fate_bars, fate_heatmap, fate_cells):
        with pytest.raises(TypeError, match="Expected the `OTTimeSeriesKernel` itself, found `AnnData`"):
            plot(adata)


# -------------------------------------------------------------------------------------------------------------- methods
def test_methods_compute_what_is_not_given(kernel):
    assert len(kernel.plot_fates(show=False)) == 2
    assert kernel.plot_ancestry(style="heatmap", show=False).get_xlabel() == "Share of the ancestors"
    keys = {"cluster_key": "clusters", "group_by": "clusters"}
    assert kernel.asked == [("fate_probabilities", keys), ("ancestry", keys)]
    assert kernel.plot_fates(table(), style="heatmap", show=False).get_xlabel() == "Share of the descendants"
    assert len(kernel.asked) == 2
    assert labelled(kernel.plot_process(show=False), "paths")
    assert len(kernel.plot_growth("umap", show=False)) == 3
    assert len(kernel.plot_population(1.0, show=False)) == 3
    with pytest.raises(ValueError, match="`style` to be one of"):
        kernel.plot_fates(table(), style="pie")


def test_the_kernel_draws_its_own_time_series(adata, tmp_path):
    graph = kneighbors_graph(adata.obsm["X_pca"], 20)
    adata.obsp["connectivities"] = sp.csr_matrix(graph.maximum(graph.T))
    kernel = OTVelocityKernel(adata, time_key="day", time_kind="experimental")
    kernel.fit_field(hidden=(8,), n_steps=20, show_progress_bar=False)
    # Nobody but the two later groups is there at the end, whatever the field.
    fates = kernel.fate_probabilities(group_by="clusters", n_particles=2, n_steps=5)
    (ax,) = kernel.plot_fates(fates, show=False)
    assert set(fates.table.columns) <= {"left", "right"}
    assert ax.get_title(loc="left").startswith("stem, ")
    plt.close(ax.figure)
    paths = kernel.simulate_process(n_particles=20, n_saved=5, n_steps=5)
    kernel.plot_process(paths, dims=(0, 2), color_by="fate", save=tmp_path / "paths.png")
    kernel.plot_growth(save=tmp_path / "growth.png")
    kernel.plot_population([1.0], save=tmp_path / "population.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["growth.png", "paths.png", "population.png"]
    assert not plt.get_fignums()


def test_growth_of_pseudotime_is_refused(computed):
    with pytest.raises(RuntimeError, match="experimental"):
        computed.plot_growth()


# ----------------------------------------------------------------------------------------------------- flows
@pytest.fixture
def flowing(adata):
    """A kernel that knows that half of the stem cells go to each side, and that those on the right double."""
    rows = [
        (0.0, 2.0, "stem", "left", 0.5, 0.5),
        (0.0, 2.0, "stem", "right", 0.5, 1.0),
        (2.0, 5.0, "left", "left", 0.499, 0.5),
        (2.0, 5.0, "left", "right", 0.001, 0.001),
        (2.0, 5.0, "right", "right", 1.0, 1.0),
    ]
    flows = pd.DataFrame(rows, columns=["time", "next_time", "from", "to", "mass", "next_mass"])
    return SimpleNamespace(adata=adata, cluster_key=None, cells=None, cluster_flows=lambda key: flows)


def test_flows_are_as_high_as_their_mass(flowing, monkeypatch):
    monkeypatch.setitem(sankey.__wrapped__.__globals__, "kernel_of", lambda data: data)
    ax = sankey(flowing, show=False)
    bars = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    bands = [patch for patch in ax.patches if isinstance(patch, PathPatch)]
    assert sorted(round(bar.get_height(), 3) for bar in bars) == [0.5, 0.5, 1.0, 1.0, 1.001]
    assert len(bands) == 4, "a band of a thousandth is left out"
    for band, here, there in zip(bands, (0.5, 0.5, 1.0, 0.499), (1.0, 0.5, 1.0, 0.5), strict=True):
        x, y = band.get_path().vertices.T
        assert np.ptp(y[x == x.min()]) == pytest.approx(here)
        assert np.ptp(y[x == x.max()]) == pytest.approx(there)
    assert [text.get_text() for text in ax.texts] == ["stem", "left", "right", "left", "right"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "2", "5"]
    with pytest.raises(ValueError, match="`min_share`"):
        sankey(flowing, min_share=2.0, show=False)
