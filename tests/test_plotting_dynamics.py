"""Pictures of motion: lines, their gaps and their ends; particles at a time of their run; files; fates."""

import inspect
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from matplotlib.animation import writers
from matplotlib.animation import writers as animation_writers
from matplotlib.colors import to_hex
from matplotlib.quiver import Quiver
from PIL import Image

from cellrank_velot.dynamics import Status, Trajectories
from cellrank_velot.plotting._draw.colors import VALUES, palette
from cellrank_velot.plotting._draw.paths import NOWHERE, running_mean
from cellrank_velot.plotting.descent import fate_summary
from cellrank_velot.plotting.lines import END_MARKERS, trajectories
from cellrank_velot.plotting.particles import PALE, flow, flow_animation
from cellrank_velot.storage.pack import write_trajectories

BASELINE = Path(__file__).parent / "baseline" / "trajectories.png"
COLORS = {"early": "#0072b2", "late": "#e69f00", "never": "#009e73"}
pytestmark = pytest.mark.usefixtures("_close_figures")


@pytest.fixture
def _close_figures():
    plt.close("all")  # of a test before, in the same process
    yield
    plt.close("all")


@pytest.fixture
def figdir(tmp_path):
    before = sc.settings.figdir
    sc.settings.figdir = tmp_path
    yield tmp_path
    sc.settings.figdir = before


@pytest.fixture
def adata() -> AnnData:
    """Cells along a curve in three dimensions, whose embedding is torn in the middle."""
    t = np.linspace(0, 1, 120)
    adata = AnnData(np.ones((120, 1), dtype=np.float32))
    adata.obsm["X_pca"] = np.stack([10 * t, np.sin(6 * t), 0.3 * np.cos(40 * t)], axis=1)
    adata.obsm["X_umap"] = np.stack([10 * t, np.sin(6 * t) + 8 * (t > 0.5)], axis=1)
    adata.obs["clusters"] = pd.Categorical(np.where(t < 0.5, "early", "late"), categories=list(COLORS))
    adata.uns["clusters_colors"] = list(COLORS.values())
    adata.obs["time"] = t
    return adata


def curve(t: np.ndarray) -> np.ndarray:
    return np.stack([10 * t, np.sin(6 * t), np.zeros_like(t)], axis=1)


@pytest.fixture
def paths() -> Trajectories:
    """Number 4 goes from early to late, 7 stalls early, and 9 goes backward until its steps are used up."""
    times = [np.linspace(0, 0.95, 96), np.linspace(0.05, 0.3, 26), np.linspace(0.45, 0.1, 36)]
    return Trajectories(
        ids=np.array([4, 7, 9]),
        x=np.concatenate([curve(t) for t in times]),
        time=np.concatenate(times),
        offsets=np.cumsum([0, 96, 26, 36]),
        status=np.array([Status.ARRIVED, Status.STALLED, Status.OUT_OF_STEPS], dtype=np.int8),
        direction=np.array([1, 1, -1], dtype=np.int8),
        start_ix=np.array([0, 6, 54]),
        clusters=np.array(list(COLORS)),
        start_cluster=np.array([0, 0, 0]),
        end_cluster=np.array([1, 0, 0]),
        n_tried=3,
    )


def labelled(ax, label: str):
    """Return the one collection of this name."""
    (found,) = (artist for artist in ax.collections if artist.get_label() == label)
    return found


def names(ax) -> list[str]:
    return [artist.get_label() for artist in ax.collections]


def legend_texts(legend) -> list[str]:
    return [text.get_text() for text in legend.get_texts()]


# --------------------------------------------------------------------------------------------------- trajectories
def test_lines_are_exact_where_the_embedding_is_the_basis(adata, paths):
    ax = trajectories(adata, paths, basis="pca", show=False)
    segments = labelled(ax, "lines").get_segments()
    assert len(segments) == 3
    for segment, path in zip(segments, paths.paths, strict=True):
        np.testing.assert_array_equal(segment, path[:, :2])
    assert "jumps" not in names(ax)


def test_a_jump_across_a_tear_breaks_the_line(adata, paths):
    ax = trajectories(adata, paths, show=False)
    segments = labelled(ax, "lines").get_segments()
    assert len(segments) == 4
    assert all(np.ptp(segment[:, 1]) < 3 for segment in segments)  # none crosses the tear
    ((before, after),) = labelled(ax, "jumps").get_segments()
    assert after[1] - before[1] > 5
    np.testing.assert_allclose([before[0], after[0]], 5, atol=0.5)
    assert "jump of the embedding" in legend_texts(ax.get_legend())


def test_lines_lie_on_the_cells_and_smoothing_keeps_their_ends(adata, paths):
    near = {}
    for smooth in (0, 0.1):
        segments = labelled(trajectories(adata, paths, smooth=smooth, show=False), "lines").get_segments()
        distance = np.linalg.norm(np.concatenate(segments)[:, None] - adata.obsm["X_umap"], axis=2).min(axis=1)
        assert distance.max() < 0.3
        near[smooth] = segments
    for rough, smoothed in zip(near[0], near[0.1], strict=True):
        np.testing.assert_allclose(rough[[0, -1]], smoothed[[0, -1]])
        bend = [np.abs(np.diff(line, n=2, axis=0)).mean() for line in (rough, smoothed)]
        assert bend[1] < bend[0]


def test_running_mean_stays_within_its_piece():
    points = np.arange(10.0)[:, None] ** 2
    mean = running_mean(points, np.array([0, 6]), np.array([1, 1]))
    np.testing.assert_allclose(mean[[0, 5, 6, 9]], points[[0, 5, 6, 9]])
    np.testing.assert_allclose(mean[1:5, 0], [np.mean([(i - 1) ** 2, i**2, (i + 1) ** 2]) for i in range(1, 5)])
    np.testing.assert_allclose(running_mean(points, np.array([0, 6]), np.array([0, 0])), points)


@pytest.mark.parametrize("basis", ["pca", "umap"])
def test_points_that_are_missing_are_not_joined(adata, paths, basis):
    x = np.array(paths.x)
    x[[10, 110]] = np.nan
    ax = trajectories(adata, replace(paths, x=x), basis=basis, show=False)
    segments = labelled(ax, "lines").get_segments()
    assert len(segments) == {"pca": 5, "umap": 6}[basis]
    assert np.isfinite(np.concatenate(segments)).all()
    assert "jumps" not in names(ax) or len(labelled(ax, "jumps").get_segments()) == 1


def test_ids_choose(adata, paths):
    drawn = {}
    for ids in (9, [9], np.array([False, False, True])):
        drawn[str(ids)] = labelled(trajectories(adata, paths, basis="pca", ids=ids, show=False), "lines").get_segments()
    for segments in drawn.values():
        assert len(segments) == 1
        np.testing.assert_array_equal(segments[0], paths.paths[2][:, :2])


def test_colors_of_lines(adata, paths):
    def shades(**kwargs):
        ax = trajectories(adata, paths, basis="pca", line_alpha=1, show=False, **kwargs)
        return [to_hex(color) for color in labelled(ax, "lines").get_colors()], legend_texts(ax.get_legend())

    fates, said = shades()
    assert fates == [COLORS["late"], COLORS["early"], COLORS["early"]]
    assert {"End", "late (1)", "early (2)", "Cells: clusters"} <= set(said)  # neither fates nor origins: both
    assert "never (0)" not in said
    direction, said = shades(color_by="direction")
    assert direction[0] == direction[1] != direction[2]
    assert {"forward in time (2)", "backward in time (1)"} <= set(said)
    assert len(set(shades(color_by="status")[0])) == 3
    numbers, said = shades(color_by="id", color=None)
    assert len(set(numbers)) == 3
    assert said[1:4] == ["4", "7", "9"]


def test_lines_by_time(adata, paths):
    ax = trajectories(adata, paths, basis="pca", color_by="time", line_alpha=1, show=False)
    lines = labelled(ax, "lines")
    assert len(lines.get_segments()) == sum(paths.lengths - 1)
    lightness = lines.get_colors()[:95, :3].mean(axis=1)
    assert lightness[0] < lightness[-1]
    (bar,) = (other for other in ax.figure.axes if other is not ax)
    assert bar.get_xlabel() == "Time along the trajectories"
    np.testing.assert_allclose(bar.get_xlim(), (0, 0.95))


def test_without_clusters_lines_have_time(adata, paths):
    none = np.full(3, -1)
    bare = replace(paths, clusters=np.empty(0, dtype=np.str_), start_cluster=none, end_cluster=none)
    assert len(trajectories(adata, bare, show=False).figure.axes) == 2
    assert len(flow(adata, bare, n_frames=1, show=False)[0].figure.axes) == 2
    for draw in (trajectories, flow):
        with pytest.raises(ValueError, match="Expected trajectories with clusters"):
            draw(adata, bare, color_by="fate")
    with pytest.raises(ValueError, match="Expected trajectories with clusters"):
        fate_summary(adata, bare)


def test_ends_say_by_shape_how_it_ended(adata, paths):
    ax = trajectories(adata, paths, basis="pca", color=None, arrows=0, show=False)
    said = legend_texts(ax.get_legend())
    assert {"start", "arrived (1)", "stalled at a sink (1)", "ran out of steps (1)"} <= set(said)
    assert len(set(END_MARKERS.values())) == len(Status)
    points = [np.asarray(c.get_offsets()) for c in ax.collections if c.get_zorder() in (4, 5)]
    np.testing.assert_array_equal(points[0], paths.starts[:, :2])
    np.testing.assert_array_equal(np.concatenate(points[1:]), paths.ends[:, :2])
    bare = trajectories(adata, paths, show_start=False, show_end=False, show=False)
    assert not [c for c in bare.collections if c.get_zorder() in (4, 5)]


def test_arrows_point_the_way(adata, paths):
    (arrows,) = (
        c for c in trajectories(adata, paths, basis="pca", arrows=2, show=False).collections if isinstance(c, Quiver)
    )
    assert len(arrows.get_offsets()) == 6
    assert (np.sign(arrows.U) == [1, 1, 1, 1, -1, -1]).all()
    (thinned,) = (
        c for c in trajectories(adata, paths, basis="pca", arrows=90, show=False).collections if isinstance(c, Quiver)
    )
    assert len(thinned.get_offsets()) < 60  # those that would lie on each other are left out


def test_line_options(adata, paths):
    ax = trajectories(
        adata, paths, line_kwargs={"color": "#ff0000", "linestyle": "--", "alpha": 1}, legend=False, show=False
    )
    lines = labelled(ax, "lines")
    assert {to_hex(color) for color in lines.get_colors()} == {"#ff0000"}
    assert ax.get_legend() is None


def test_a_column_of_numbers_gets_a_bar_beside_the_legend(adata, paths):
    ax = trajectories(adata, paths, color="time", show=False)
    assert [other.get_ylabel() for other in ax.figure.axes if other is not ax] == ["time"]
    assert not [text for text in legend_texts(ax.get_legend()) if text.startswith("Cells")]


def test_legend_lies_outside_and_inside_the_figure(adata, paths):
    ax = trajectories(adata, paths, show=False)
    ax.figure.canvas.draw()
    box = ax.get_legend().get_window_extent()
    assert box.x0 >= ax.get_window_extent().x1
    assert box.x1 <= ax.figure.bbox.x1
    assert 0 <= box.y0 < box.y1 <= ax.figure.bbox.y1


# ------------------------------------------------------------------------------------------------ where they come from
def test_read_from_adata_and_from_a_kernel(adata, paths):
    write_trajectories(adata, "velot_trajectories", paths)
    write_trajectories(adata, "velot_flow", paths)
    reference = labelled(trajectories(adata, paths, show=False), "lines").get_segments()
    kernel = SimpleNamespace(adata=adata, cells=SimpleNamespace(x=adata.obsm["X_pca"]))
    adata.obsm["X_other"] = adata.obsm.pop("X_pca")
    for data, options in ((kernel, {}), (adata, {"velocity_basis": "other"})):
        drawn = labelled(trajectories(data, show=False, **options), "lines").get_segments()
        np.testing.assert_array_equal(np.concatenate(drawn), np.concatenate(reference))
        assert len(flow(data, show=False, **options)) == 4
        assert fate_summary(data, show=False).has_data()
    write_trajectories(adata, "velot_trajectories", replace(paths, basis="X_other"))  # as a kernel writes them
    assert trajectories(adata, show=False).has_data()


def test_colors_of_a_column_of_ones_own(adata, paths):
    adata.obs["mine"] = adata.obs["clusters"].cat.rename_categories({"early": "E"})
    adata.obs["again"] = adata.obs["clusters"]
    adata.uns["again_colors"] = ["#111111", "#222222", "#333333"]
    ax = trajectories(adata, paths, cluster_key="again", line_alpha=1, basis="pca", show=False)
    assert to_hex(labelled(ax, "lines").get_colors()[0]) == "#222222"
    with pytest.raises(KeyError, match=r"adata\.obs\['mine'\]`, found no \['early'\]"):
        trajectories(adata, paths, cluster_key="mine")
    with pytest.raises(KeyError, match=r"adata\.obs\['theirs'\]"):
        flow(adata, paths, cluster_key="theirs")
    del adata.obs["clusters"]
    ax = trajectories(adata, paths, line_alpha=1, basis="pca", show=False)
    assert to_hex(labelled(ax, "lines").get_colors()[0]) == palette(3)[1].lower()


@pytest.mark.parametrize("draw", [trajectories, flow, flow_animation])
def test_refuses(adata, paths, draw):
    with pytest.raises(KeyError, match=r"adata\.uns\['velot_.*'\].*compute_trajectories"):
        draw(adata)
    with pytest.raises(KeyError, match=r"adata\.obsm\['tsne'\]"):
        draw(adata, paths, "tsne")
    with pytest.raises(KeyError, match=r"adata\.obsm\['cca'\]"):
        draw(adata, paths, velocity_basis="cca")
    with pytest.raises(TypeError, match="Expected `trajectories` to be `Trajectories`, found `str`"):
        draw(adata, "umap")
    with pytest.raises(TypeError, match="found `dict`"):
        draw({}, paths)
    with pytest.raises(ValueError, match="Expected trajectories to draw, found none"):
        draw(adata, paths.select([]))
    with pytest.raises(ValueError, match="`2` dimensions of adata.obsm.'X_umap'.*`3`.*velocity_basis"):
        draw(adata, paths, velocity_basis="umap")
    with pytest.raises(ValueError, match="these `50` cells, found one that starts at cell `54`"):
        draw(adata[:50].copy(), paths)
    with pytest.raises(ValueError, match="Expected `color_by` to be one of"):
        draw(adata, paths, color_by="speed")
    assert not plt.get_fignums()


def test_trajectories_refuse(adata, paths):
    with pytest.raises(KeyError, match=r"trajectories\[5\].*'4', '7', '9'"):
        trajectories(adata, paths, ids=[4, 5])
    with pytest.raises(ValueError, match="at least one trajectory in `ids`"):
        trajectories(adata, paths, ids=[])
    with pytest.raises(TypeError, match="Expected `ids` to be numbers"):
        trajectories(adata, paths, ids="early")
    with pytest.raises(KeyError, match="a mask of `3` trajectories"):
        trajectories(adata, paths, ids=np.ones(2, dtype=bool))
    for options, message in (
        ({"smooth": 2}, "smooth"),
        ({"line_width": 0}, "line_width"),
        ({"line_alpha": 1.5}, "line_alpha"),
        ({"arrows": -1}, "arrows"),
    ):
        with pytest.raises(ValueError, match=f"Expected `{message}`"):
            trajectories(adata, paths, **options)
    with pytest.raises(KeyError, match="Expected `color` to be a gene"):
        trajectories(adata, paths, "umap", "nothing")


# -------------------------------------------------------------------------------------------------------------- flow
def particles(ax):
    return labelled(ax, "particles")


def test_frames_are_spread_evenly_over_the_run(adata, paths):
    panels = flow(adata, paths, basis="pca", n_frames=5, show=False)
    assert len(panels) == 5
    for share, panel in zip(np.linspace(0, 1, 5), panels, strict=True):
        point = paths.paths[0][[int(np.floor(share * 95)), int(np.ceil(share * 95))], :2].mean(axis=0)
        np.testing.assert_allclose(particles(panel).get_offsets()[0], point, atol=0.06)
    assert [panel.get_title(loc="left") for panel in panels] == [
        "Start",
        "25% of the run",
        "50% of the run, 1 ended",
        "75% of the run, 1 ended",
        "End of the run, 2 ended, 1 without a fate",
    ]
    (end,) = flow(adata, paths, n_frames=1, show=False)
    assert end.get_title(loc="left") == "End of the run, 2 ended, 1 without a fate"


def test_what_has_ended_stays_and_is_pale(adata, paths):
    panels = flow(adata, paths, basis="pca", n_frames=5, show=False)
    for panel in panels[2:]:
        np.testing.assert_array_equal(particles(panel).get_offsets()[1], paths.ends[1, :2])
    alphas = [particles(panel).get_facecolors()[:, 3] for panel in panels]
    np.testing.assert_allclose(alphas[1], 1)
    np.testing.assert_allclose(alphas[3], [1, PALE, 1])
    np.testing.assert_allclose(alphas[4], [PALE, PALE, 1])  # the last ran out of steps: it would move on
    np.testing.assert_allclose(particles(panels[3]).get_edgecolors()[:, 3], [1, 0, 1])


def test_particles_across_a_tear_are_on_either_side(adata, paths):
    for panel in flow(adata, paths, n_frames=20, show=False):
        at = np.asarray(particles(panel).get_offsets())
        assert np.linalg.norm(at[:, None] - adata.obsm["X_umap"], axis=2).min(axis=1).max() < 0.5


def test_colors_of_particles(adata, paths):
    start = flow(adata, paths, n_frames=2, show=False)[0]
    # A particle arrived, so that the others came to no fate.
    assert [to_hex(color) for color in particles(start).get_facecolors()] == [COLORS["late"], *[NOWHERE.lower()] * 2]
    (legend,) = start.figure.legends
    assert legend_texts(legend) == ["End", "late (1)", "none of them (2)", "Particles", "moving", "ended"]
    chosen = flow(adata, paths, n_frames=2, terminal_clusters=["late", "early", "never"], show=False)[0]
    assert [to_hex(color) for color in particles(chosen).get_facecolors()] == [COLORS["late"], *[COLORS["early"]] * 2]
    assert "never (0)" in legend_texts(chosen.figure.legends[0])
    first, last = flow(adata, paths, n_frames=2, color_by="time", show=False)
    np.testing.assert_allclose(particles(first).get_facecolors()[0], VALUES(0.0))
    np.testing.assert_allclose(particles(last).get_facecolors()[0, :3], VALUES(1.0)[:3])
    with pytest.raises(KeyError, match=r"clusters\['Beta'\]"):
        flow(adata, paths, terminal_clusters="Beta")
    with pytest.raises(ValueError, match="at least one terminal cluster"):
        flow(adata, paths, terminal_clusters=[])


def test_flow_into_axes_given(adata, paths):
    _, axes = plt.subplots(1, 3)
    assert flow(adata, paths, n_frames=3, ax=axes, show=False) == list(axes)
    assert axes[2].get_legend() is not None
    with pytest.raises(ValueError, match="Expected `3` Axes in `ax`, found `1`"):
        flow(adata, paths, n_frames=3, ax=axes[0])
    with pytest.raises(ValueError, match="Expected `n_frames` to be at least `1`"):
        flow(adata, paths, n_frames=0)


# --------------------------------------------------------------------------------------------------------- animation
@pytest.mark.parametrize("trail", [0, 3])
def test_gif(adata, paths, figdir, trail):
    assert flow_animation(adata, paths, n_frames=7, trail=trail, dpi=40, save="sub/run") is None
    with Image.open(figdir / "sub" / "run.gif") as image:
        assert (image.format, image.n_frames) == ("GIF", 7)
        assert image.size == (224, 160)
    assert (figdir / "sub" / "run.gif").stat().st_size < 200_000
    assert not plt.get_fignums()


def test_animation_moves_particles_as_the_frames_do(adata, paths):
    panels = flow(adata, paths, n_frames=9, show=False)
    animation = flow_animation(adata, paths, n_frames=9, trail=2, show=False)
    (ax,) = animation._fig.axes
    limits = ax.get_xlim(), ax.get_ylim()
    html = animation.to_jshtml()
    assert html.count("data:image/png") == 9
    np.testing.assert_array_equal(particles(ax).get_offsets(), particles(panels[-1]).get_offsets())
    np.testing.assert_array_equal(particles(ax).get_facecolors(), particles(panels[-1]).get_facecolors())
    assert ax.get_title(loc="left") == "End of the run, 2 ended, 1 without a fate"
    assert (ax.get_xlim(), ax.get_ylim()) == limits
    trails = np.stack(labelled(ax, "trails").get_segments())
    assert len(trails) == 2  # of the first particle: the others stand still
    lengths = np.abs(np.diff(trails[..., 1], axis=1))
    assert lengths.max() < 5


def test_trail_does_not_cross_a_tear(adata, paths):
    animation = flow_animation(adata, paths, n_frames=40, trail=39, show=False)
    assert animation.to_jshtml()
    trails = np.stack(labelled(animation._fig.axes[0], "trails").get_segments())
    assert np.abs(np.diff(trails[..., 1], axis=1)).max() < 3


def test_animation_refuses_files(adata, paths, monkeypatch):
    with pytest.raises(ValueError, match=r"end in one of \['.gif', '.mp4'\], found `'run.png'`"):
        flow_animation(adata, paths, save="run.png")
    monkeypatch.setattr(type(writers), "is_available", lambda self, name: False)
    with pytest.raises(RuntimeError, match="`ffmpeg`.*conda install ffmpeg.*`.gif`"):
        flow_animation(adata, paths, save="run.mp4")
    for option in ("fps", "n_frames"):
        with pytest.raises(ValueError, match=f"Expected `{option}`"):
            flow_animation(adata, paths, **{option: 0})
    with pytest.raises(ValueError, match="Expected `trail`"):
        flow_animation(adata, paths, trail=-1)
    assert not plt.get_fignums()


def test_animations_take_the_options_of_a_film(adata, paths):
    names = set(inspect.signature(flow_animation).parameters)
    assert {"figsize", "dpi", "save", "show"} <= names
    assert not {"ax", "title", "figure"} & names
    with pytest.raises(TypeError, match=r"flow_animation\(\) got an unexpected keyword argument 'ax'"):
        flow_animation(adata, paths, ax=plt.figure().subplots())
    assert flow_animation(adata, paths, n_frames=2, dpi=None, show=False)._fig.dpi == 80
    with pytest.raises(ValueError, match="Expected `dpi`"):
        flow_animation(adata, paths, dpi=0)


def test_title_of_several_panels_is_that_of_the_figure(adata, paths):
    panels = flow(adata, paths, n_frames=2, title="here", show=False)
    assert panels[0].figure.get_suptitle() == "here"
    assert panels[0].get_title(loc="left") == "Start"
    (panel,) = flow(adata, paths, n_frames=1, title="here", show=False)
    assert panel.get_title(loc="left") == "here"


@pytest.mark.skipif(not animation_writers.is_available("ffmpeg"), reason="no ffmpeg")
def test_film_is_written_where_ffmpeg_is(adata, paths, figdir):
    assert flow_animation(adata, paths, n_frames=4, dpi=40, save="film.mp4") is None
    assert (figdir / "film.mp4").stat().st_size > 1000


def test_animation_in_a_notebook_is_html(adata, paths, monkeypatch):
    shown = []
    display = SimpleNamespace(display=shown.append, HTML=lambda text: text)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    assert flow_animation(adata, paths, n_frames=3, dpi=30) is None
    assert len(shown) == 1
    assert shown[0].count("data:image/png") == 3
    assert not plt.get_fignums()
    shell.kernel = None  # a terminal, and no screen
    animation = flow_animation(adata, paths, n_frames=3, dpi=30)
    assert animation.to_jshtml()
    asked = []
    monkeypatch.setattr(plt, "show", lambda: asked.append(plt.gcf().canvas.draw()))  # as a window does
    assert flow_animation(adata, paths, n_frames=3, dpi=30, show=True) is None
    assert asked == [None]


# ------------------------------------------------------------------------------------------------------------- fates
def many(paths: Trajectories, counts: dict[int, int]) -> Trajectories:
    """Return as many copies of the first trajectory as asked, by the number of the cluster they end in."""
    ends = np.repeat(list(counts), list(counts.values()))
    n, first = ends.size, paths.select([4])
    return replace(
        first,
        ids=np.arange(n),
        x=np.tile(first.x, (n, 1)),
        time=np.tile(first.time, n),
        offsets=np.arange(n + 1) * 96,
        end_cluster=ends,
        start_cluster=np.zeros(n, dtype=np.int64),
        start_ix=np.zeros(n, dtype=np.int64),
        status=np.full(n, Status.STALLED, dtype=np.int8),
        direction=np.ones(n, dtype=np.int8),
    )


def test_fates_are_bars_with_intervals(adata, paths):
    found = many(paths, {0: 6, 1: 12, -1: 2})
    ax = fate_summary(adata, found, level=0.9, show=False)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["late", "early"]
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], [12 / 18, 6 / 18])
    assert [to_hex(bar.get_facecolor()) for bar in ax.patches] == [COLORS["late"], COLORS["early"]]
    table = found.fates(level=0.9).loc[["late", "early"]]
    ((low, high), *_) = [segment[:, 0] for segment in ax.collections[0].get_segments()]
    np.testing.assert_allclose([low, high], table.loc["late", ["low", "high"]].astype(float))
    assert [text.get_text() for text in ax.texts] == ["12 of 18", "6 of 18"]
    assert ax.get_xlabel() == "Probability of the fate (90% interval)\n2 of 20 (10%) came to none of them"
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first above


def test_fates_chosen_and_compared(adata, paths):
    found = many(paths, {0: 6, 1: 12})
    other = pd.Series({"never": 0.1, "late": 0.7, "else": 0.2}, name="CellRank")
    ax = fate_summary(adata, found, terminal_clusters=["never", "late"], compare=other, show=False)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["never", "late"]
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], [0, 1])
    np.testing.assert_allclose(labelled(ax, "CellRank").get_offsets(), [[0.1, 0], [0.7, 1]])
    assert legend_texts(ax.figure.legends[0]) == ["CellRank"]
    _, theirs = plt.subplots()
    fate_summary(adata, found, compare=other, ax=theirs)
    assert legend_texts(theirs.get_legend()) == ["CellRank"]
    assert "6 of 18 (33%) came to none" in ax.get_xlabel()
    assert "compared" in names(fate_summary(adata, found, compare={"late": 1}, show=False))
    backward = replace(found, direction=np.full(18, -1, dtype=np.int8))
    assert "of the origin" in fate_summary(adata, backward, show=False).get_xlabel()


def test_fates_refuse(adata, paths):
    found = many(paths, {0: 6})
    with pytest.raises(ValueError, match=r"came to one of \['late'\], found none among `6`"):
        fate_summary(adata, found, terminal_clusters="late")
    with pytest.raises(KeyError, match=r"one of the fates \['early'\], found \['Beta'\]"):
        fate_summary(adata, found, compare={"Beta": 0.5})
    with pytest.raises(ValueError, match=r"compare\['early'\]` to be in \[0"):
        fate_summary(adata, found, compare={"early": 50})
    with pytest.raises(TypeError, match="dictionary or a Series, found `list`"):
        fate_summary(adata, found, compare=[0.5])
    with pytest.raises(ValueError, match="Expected `level`"):
        fate_summary(adata, found, level=95)
    with pytest.raises(ValueError, match="Expected trajectories to draw, found none"):
        fate_summary(adata, found.select([]))


# -------------------------------------------------------------------------------------------------------------- image
def picture(adata: AnnData, paths: Trajectories, path: Path, **kwargs) -> Path:
    figure = plt.figure(figsize=(3, 2.4), dpi=80)
    ax = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    trajectories(adata, paths, legend=False, ax=ax, **kwargs)
    ax.set_axis_off()  # no text: fonts differ between versions
    figure.savefig(path)
    plt.close(figure)
    return path


def test_picture_is_as_before(adata, paths, tmp_path, picture_distance):
    """To renew it, delete the file, run this once, and look at what it has drawn."""
    if not BASELINE.exists():
        BASELINE.parent.mkdir(exist_ok=True)
        picture(adata, paths, BASELINE)
        pytest.fail(f"{BASELINE} was missing and is drawn now: look at it, then run again")

    def difference(**kwargs) -> float:
        return picture_distance(picture(adata, paths, tmp_path / "new.png", **kwargs), BASELINE)

    assert difference() < 0.01
    # The bound tells a picture from another one.
    assert difference(color_by="direction") > 0.015
    assert difference(show_end=False) > 0.015
