"""Pictures of windows: which pairs, which cells, which arcs; and the coupling that the arcs show."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from anndata import AnnData, read_h5ad
from matplotlib.colors import to_hex
from scipy.sparse import csr_matrix

from cellrank_velot import OTVelocityKernel
from cellrank_velot.plotting._draw import figure as figures
from cellrank_velot.plotting._draw.colors import palette
from cellrank_velot.plotting.clusters import _separate, spatial_clusters
from cellrank_velot.plotting.pairs import SOURCE, TARGET, _spread_pairs, window_transport, windows
from cellrank_velot.transport.problem import TransportOptions
from cellrank_velot.transport.velocity import compute_velocity, pair_coupling
from cellrank_velot.transport.windows import Windows

pytestmark = pytest.mark.usefixtures("_close_figures")


@pytest.fixture
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def kernel(planted) -> OTVelocityKernel:
    """A kernel with KMeans clusters and a matrix, written to its AnnData."""
    kernel = OTVelocityKernel(planted.adata())
    kernel.compute_windows(n_clusters=5, min_window_size=10).compute_velocity(show_progress_bar=False)
    kernel.fit_field(hidden=(8,), n_steps=5, show_progress_bar=False).compute_transition_matrix()
    kernel.write_to_adata()
    return kernel


def cells_of(adata: AnnData, collection) -> list[int]:
    """Return which cells the points of a scatter are, sorted."""
    offsets = np.asarray(collection.get_offsets())
    distance = np.abs(adata.obsm["X_umap"][None] - offsets[:, None]).sum(axis=2)
    return sorted(distance.argmin(axis=1))


def color_of(collection) -> str:
    (color,) = {to_hex(color) for color in collection.get_facecolors()}
    return color.upper()


def arcs_of(ax):
    (arcs,) = (c for c in ax.collections if hasattr(c, "get_segments"))
    return arcs


# ---------------------------------------------------------------------------------------------------- the coupling
def separate_pairs(planted, sizes):
    """Return windows of which no two share a cell, so that each cell has one displacement."""
    order = np.argsort(planted.time)
    ends = np.cumsum([0, *np.ravel(sizes)])
    parts = [np.sort(order[a:b]) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    return Windows.from_pairs(list(zip(parts[::2], parts[1::2], strict=True)), planted.time)


@pytest.mark.parametrize("lambda_knn", [0.0, 0.7])
def test_coupling_displaces_as_the_velocity_does(planted, lambda_knn):
    found = separate_pairs(planted, [(20, 25), (30, 30), (22, 17)])
    graph = planted.graph if lambda_knn else None
    options = {"epsilon": 0.03, "lambda_time": 0.5, "lambda_knn": lambda_knn, "tol": 1e-9, "max_iter": 2000}
    stage = compute_velocity(
        planted.x, planted.time, found, graph, TransportOptions(reach=None, relaxation=1.0, **options)
    )
    for pair, (a, b) in enumerate(found.pairs):
        plan = pair_coupling(planted.x, planted.time, found, pair, graph, TransportOptions(**options))
        source, target = found.cells(a), found.cells(b)
        assert plan.shape == (source.size, target.size)
        ahead = plan @ planted.x[target] / plan.sum(axis=1, keepdims=True) - planted.x[source]
        behind = planted.x[target] - plan.T @ planted.x[source] / plan.sum(axis=0)[:, None]
        known = stage.n_forward[source] > 0  # a cell without a neighbour in the other window takes nothing from it
        assert known.mean() > (0.2 if lambda_knn else 0.999)
        np.testing.assert_allclose(stage.velocity[source][known], ahead[known] / found.dt[pair], rtol=1e-9)
        if graph is None:  # with one, the relaxation of a target, which has only a past, is that of its residual
            np.testing.assert_allclose(stage.velocity[target], behind / found.dt[pair], rtol=1e-9)
        np.testing.assert_allclose(plan.sum(axis=1), 1 / source.size, rtol=1e-12)
        error = np.linalg.norm(plan.sum(axis=0) - 1 / target.size)
        np.testing.assert_allclose(error, stage.marginal_error[pair], rtol=1e-3, atol=1e-14)


def test_coupling_of_every_pair_is_as_far_from_its_marginal(kernel):
    found = kernel.windows
    for pair in range(found.n_pairs):
        plan = pair_coupling(kernel.smoothed.x, kernel.smoothed.time, found, pair, kernel.smoothed.graph)
        error = np.linalg.norm(plan.sum(axis=0) - 1 / plan.shape[1])
        np.testing.assert_allclose(error, kernel.transport.marginal_error[pair], rtol=1e-4, atol=1e-14)


def test_coupling_avoids_those_that_are_no_neighbours(planted):
    found = separate_pairs(planted, [(40, 40)])
    source, target = found.cells(0), found.cells(1)
    near = planted.graph[source][:, target].toarray() > 0
    free, held = (
        pair_coupling(planted.x, planted.time, found, 0, planted.graph, TransportOptions(lambda_knn=value))[near].sum()
        for value in (0.0, 1.0)
    )
    assert held > 2 * free


def test_coupling_refuses(planted):
    found = separate_pairs(planted, [(20, 20)])
    arguments = planted.x, planted.time, found
    with pytest.raises(ValueError, match="below the number of pairs, `1`, found `1`"):
        pair_coupling(*arguments, 1)
    with pytest.raises(TypeError, match="Expected `pair` to be an integer, found `str`"):
        pair_coupling(*arguments, "0")
    with pytest.raises(ValueError, match="Expected `epsilon`"):
        pair_coupling(*arguments, 0, options=TransportOptions(epsilon=0))
    turned = Windows.from_pairs([(found.cells(1), found.cells(0))], planted.time)
    with pytest.raises(ValueError, match="Expected a pair whose target is later"):
        pair_coupling(planted.x, planted.time, turned, 0, csr_matrix((240, 240)))


# ------------------------------------------------------------------------------------------------------- windows
def test_each_panel_colours_the_cells_of_its_pair(kernel):
    for pair, ax in zip([0, 3], windows(kernel, pairs=[0, 3], show=False), strict=True):
        source, target = (set(kernel.windows.cells(window)) for window in kernel.windows.pairs[pair])
        others, *roles = ax.collections
        assert cells_of(kernel.adata, others) == sorted(set(range(240)) - source - target)
        drawn = {SOURCE: set(), TARGET: set()}
        for collection in roles:
            if len(collection.get_offsets()):
                drawn[color_of(collection)] |= set(cells_of(kernel.adata, collection))
        assert drawn == {SOURCE: source, TARGET: target}
        before, after = (kernel.cells.time[list(cells)].mean() for cells in (source, target))
        assert f"Pair {pair}, cluster" in ax.get_title(loc="left")
        assert f"time {before:.2f} → {after:.2f}" in ax.get_title(loc="left")


def test_number_of_panels(kernel):
    assert len(windows(kernel, max_pairs=3, show=False)) == 3
    assert len(windows(kernel, pairs=2, show=False)) == 1
    assert len(windows(kernel, max_pairs=10_000, show=False)) == kernel.windows.n_pairs
    axes = windows(kernel, pairs=np.arange(6), n_columns=4, show=False)
    assert axes[0].get_subplotspec().get_gridspec().ncols == 3  # two rows of three, not four and two


@pytest.mark.parametrize("max_pairs", [1, 2, 4])
def test_legend_names_the_windows_below_the_panels(kernel, max_pairs):
    axes = windows(kernel, max_pairs=max_pairs, show=False)
    figure = axes[0].figure
    figure.canvas.draw()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][:2] == ["source window", "target window"]
    assert figure.bbox.x0 <= legend.get_window_extent().x0 < legend.get_window_extent().x1 <= figure.bbox.x1
    assert legend.get_window_extent().y1 <= min(ax.get_tightbbox().y0 for ax in axes) + 1


def test_default_pairs_are_spread_over_clusters_and_time(kernel):
    found, codes, time = kernel.windows, kernel.windows.cluster, kernel.cells.time
    middle = np.array([np.mean([time[found.cells(window)].mean() for window in pair]) for pair in found.pairs])
    commonest = np.array(
        [np.bincount(np.concatenate([codes[found.cells(window)] for window in pair])).argmax() for pair in found.pairs]
    )
    n_clusters = np.unique(commonest).size
    for n_pairs in (1, 2, n_clusters, n_clusters + 2, found.n_pairs):
        chosen = _spread_pairs(found, codes, time, n_pairs)
        assert len(set(chosen)) == n_pairs
        assert np.unique(commonest[chosen]).size == min(n_pairs, n_clusters)
        assert (np.diff(middle[chosen]) >= 0).all()
    assert np.ptp(middle[_spread_pairs(found, codes, time, n_clusters)]) > 0.5 * np.ptp(middle)


def test_windows_are_named_by_the_clusters_of_the_kernel(computed):
    (ax,) = windows(computed, max_pairs=1, show=False)
    assert any(name in ax.get_title(loc="left") for name in ("stem", "left", "right"))


def test_windows_into_axes_given(kernel):
    _, axes = plt.subplots(1, 2)
    assert windows(kernel, pairs=[1, 0], ax=axes, show=False) == list(axes)
    assert axes[1].get_legend() is not None
    with pytest.raises(ValueError, match="Expected `3` Axes in `ax`, found `2`"):
        windows(kernel, pairs=[0, 1, 2], ax=axes)


# ----------------------------------------------------------------------------------------------- window_transport
def test_arcs_are_the_heaviest_in_order_of_their_mass(kernel):
    cells = kernel.smoothed
    plan = pair_coupling(cells.x, cells.time, kernel.windows, 2, cells.graph)
    source, target = (kernel.windows.cells(window) for window in kernel.windows.pairs[2])
    plan = np.where(source[:, None] == target, 0, plan)
    row, column = np.unravel_index(np.argsort(plan, axis=None)[-20:], plan.shape)
    arcs = arcs_of(window_transport(kernel, 2, max_arcs=20, mass=1.0, show=False))
    ends = np.array([segment[[0, -1]] for segment in arcs.get_segments()])
    x = kernel.adata.obsm["X_umap"]
    np.testing.assert_allclose(ends, np.stack([x[source[row]], x[target[column]]], axis=1))
    share = plan[row, column] / plan.max()
    assert np.corrcoef(arcs.get_linewidths(), share)[0, 1] > 0.999
    assert np.corrcoef(arcs.get_colors()[:, 3], share)[0, 1] > 0.999
    assert (np.diff(arcs.get_linewidths()) >= 0).all()


@pytest.mark.parametrize("mass", [0.1, 0.4, 1.0])
def test_no_more_arcs_than_the_mass_takes(kernel, mass):
    cells = kernel.smoothed
    plan = pair_coupling(cells.x, cells.time, kernel.windows, 2, cells.graph)
    source, target = (kernel.windows.cells(window) for window in kernel.windows.pairs[2])
    moving = np.sort(np.where(source[:, None] == target, 0, plan), axis=None)[::-1]
    n_arcs = len(arcs_of(window_transport(kernel, 2, max_arcs=10**6, mass=mass, show=False)).get_segments())
    assert moving[:n_arcs].sum() >= mass * moving.sum() * (1 - 1e-8)
    assert moving[: n_arcs - 1].sum() < mass * moving.sum() * (1 - 1e-9)
    assert moving[n_arcs - 1] > 0


def test_title_says_how_much_is_drawn(kernel):
    title = window_transport(kernel, 2, max_arcs=7, show=False).get_title(loc="left")
    assert title.startswith("Pair 2, cluster")
    assert "7 arcs carry" in title
    assert window_transport(kernel, 2, title="mine", show=False).get_title(loc="left") == "mine"


def test_transport_shows_all_of_both_windows_and_of_the_arcs(kernel):
    ax = window_transport(kernel, 1, show=False)
    cells = np.concatenate([kernel.windows.cells(window) for window in kernel.windows.pairs[1]])
    points = np.concatenate([kernel.adata.obsm["X_umap"][cells], *arcs_of(ax).get_segments()])
    low, high = np.transpose([ax.get_xlim(), ax.get_ylim()])
    assert (points > low).all()
    assert (points < high).all()
    assert (kernel.adata.obsm["X_umap"] < low).any()


def test_transport_coloured_by_clusters(kernel):
    ax = window_transport(kernel, 0, color="clusters", show=False)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert {"source", "target", "stem"} <= set(texts)
    assert sum("% of a cell's mass" in text for text in texts) == 2
    with pytest.raises(KeyError, match=r"adata\.obs\['nothing'\]"):
        window_transport(kernel, 0, color="nothing")
    with pytest.raises(TypeError, match="categories, found numbers in `adata.obs\\['dpt_pseudotime'\\]`"):
        window_transport(kernel, 0, color="dpt_pseudotime")


def test_transport_takes_the_settings_of_the_kernel(planted):
    widths = []
    for epsilon in (0.01, 0.5):
        kernel = OTVelocityKernel(planted.adata()).compute_windows(n_clusters=5, min_window_size=10)
        kernel.compute_velocity(epsilon=epsilon, show_progress_bar=False)
        widths.append(len(arcs_of(window_transport(kernel, 0, max_arcs=10**6, show=False)).get_segments()))
    assert widths[1] > 2 * widths[0]  # a blurred plan needs more arcs for the same mass


# ----------------------------------------------------------------------------------------------- spatial_clusters
def test_every_cluster_has_its_number_near_its_cells(kernel):
    ax = spatial_clusters(kernel, show=False)
    assert [text.get_text() for text in ax.texts] == ["0", "1", "2", "3", "4"]
    assert ax.get_legend() is not None
    x, cluster = kernel.adata.obsm["X_umap"], kernel.windows.cluster
    for text in ax.texts:
        nearest = np.linalg.norm(x - text.get_position(), axis=1).argmin()
        assert cluster[nearest] == int(text.get_text())


@pytest.mark.parametrize("figsize", [(6, 5), (2.4, 2.0)])
def test_names_never_overlap(planted, figsize):
    kernel = OTVelocityKernel(planted.adata()).compute_windows(n_clusters=30, min_window_size=4)
    ax = spatial_clusters(kernel, figsize=figsize, show=False)
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 30
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert ax.get_legend() is None
    colors = {to_hex(color) for color in ax.collections[0].get_facecolors()}
    assert colors == {color.lower() for color in palette(8)}
    assert ax.get_legend() is None
    assert len(spatial_clusters(kernel, legend=True, show=False).get_legend().get_texts()) == 30


def test_boxes_at_one_place_are_pushed_apart():
    halves = np.full((12, 2), [10.0, 5.0])
    moved = _separate(np.zeros((12, 2)) + 50, halves, np.array([0.0, 0, 200, 200]))
    apart = np.abs(moved[:, None] - moved)[np.triu_indices(12, 1)]
    assert ((apart >= [19.9, 9.9]).any(axis=1)).all()
    assert (moved >= halves).all()
    assert (moved <= 200 - halves).all()
    still = np.array([[20.0, 20], [100, 100]])
    np.testing.assert_array_equal(_separate(still, halves[:2], np.array([0.0, 0, 200, 200])), still)


def test_clusters_given_by_the_user_keep_name_and_colour(computed):
    computed.adata.uns["clusters_colors"] = ["#112233", "#445566", "#778899"]
    ax = spatial_clusters(computed, show=False)
    assert [text.get_text() for text in ax.texts] == ["left", "right", "stem"]
    assert {to_hex(color) for color in ax.collections[0].get_facecolors()} == {"#112233", "#445566", "#778899"}


def test_categories_without_cells_and_long_names(computed):
    long = "a name of very many letters in all"
    groups = computed.adata.obs["clusters"].cat.rename_categories({"stem": long}).cat.add_categories(["nobody"])
    computed.adata.obs["clusters"] = groups
    assert {text.get_text() for text in spatial_clusters(computed, show=False).texts} == {"left", "right", long}
    titles = [ax.get_title(loc="left") for ax in windows(computed, max_pairs=10, show=False)]
    assert any("a name of very many l…\n" in title for title in titles)
    assert not any("cluster" in title for title in titles)


# --------------------------------------------------------------------------------------------------- all of them
PLOTS = {
    "windows": lambda data, **kwargs: windows(data, pairs=[0], **kwargs)[0],
    "window_transport": lambda data, **kwargs: window_transport(data, 0, **kwargs),
    "spatial_clusters": spatial_clusters,
}


def picture(ax):
    points = [np.asarray(c.get_offsets()) for c in ax.collections]
    colors = [c.get_facecolors() for c in ax.collections]
    return [*points, *colors], ax.get_title(loc="left"), [(t.get_text(), t.get_position()) for t in ax.texts]


@pytest.mark.parametrize("name", PLOTS)
def test_kernel_adata_and_file_give_one_picture(kernel, name, tmp_path):
    kernel.adata.write_h5ad(tmp_path / "a.h5ad")
    arrays, *texts = picture(PLOTS[name](kernel, show=False))
    for data in (kernel.adata, read_h5ad(tmp_path / "a.h5ad")):
        others, *same = picture(PLOTS[name](data, show=False))
        assert same == texts
        for one, other in zip(arrays, others, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", PLOTS)
def test_refuses_what_it_cannot_draw(kernel, name, planted, monkeypatch):
    monkeypatch.setattr(figures, "open_axes", pytest.fail)
    with pytest.raises(RuntimeError, match=r"`\.compute_windows\(\)`"):
        PLOTS[name](OTVelocityKernel(planted.adata()))
    with pytest.raises(KeyError, match=r"velot'\]\['T_fwd'\].*write_to_adata"):
        PLOTS[name](planted.adata())
    with pytest.raises(KeyError, match=r"\['T_bwd'\].*\['T_fwd'\]"):
        PLOTS[name](kernel.adata, key="T_bwd")
    with pytest.raises(KeyError, match=r"adata\.obsm\['tsne'\]"):
        PLOTS[name](kernel, basis="tsne")
    with pytest.raises(TypeError, match="found `ndarray`"):
        PLOTS[name](np.zeros(3))
    with pytest.raises(TypeError, match="the `OTVelocityKernel` itself, found `SimpleNamespace`"):
        PLOTS[name](SimpleNamespace(adata=kernel.adata))


def test_refuses_unknown_pairs_and_numbers_out_of_range(kernel, planted, monkeypatch):
    monkeypatch.setattr(figures, "open_axes", pytest.fail)
    last = kernel.windows.n_pairs - 1
    with pytest.raises(ValueError, match=f"Expected `pairs` from `0` to `{last}`, found `\\[999\\]`"):
        windows(kernel, pairs=[0, 999])
    with pytest.raises(ValueError, match="Expected `pairs` from .* found `none`"):
        windows(kernel, pairs=[])
    with pytest.raises(ValueError, match="Expected `pairs` to be at least `0`, found `-1`"):
        windows(kernel, pairs=-1)
    with pytest.raises(TypeError, match="Expected `pairs` to be an integer, found `str`"):
        windows(kernel, pairs="first")
    with pytest.raises(ValueError, match="Expected `max_pairs` to be at least `1`"):
        windows(kernel, max_pairs=0)
    with pytest.raises(ValueError, match="Expected `n_columns` to be at least `1`"):
        windows(kernel, n_columns=0)
    with pytest.raises(ValueError, match=f"Expected `pair` from `0` to `{last}`, found `\\[999\\]`"):
        window_transport(kernel, 999)
    with pytest.raises(TypeError, match="Expected `pair` to be an integer, found `float`"):
        window_transport(kernel, 1.5)
    with pytest.raises(ValueError, match="Expected `max_arcs` to be at least `1`"):
        window_transport(kernel, 0, max_arcs=0)
    with pytest.raises(ValueError, match="Expected `mass` to be in"):
        window_transport(kernel, 0, mass=0)
    with pytest.raises(RuntimeError, match=r"`\.compute_velocity\(\)`"):
        window_transport(OTVelocityKernel(planted.adata()).compute_windows(min_window_size=10), 0)
