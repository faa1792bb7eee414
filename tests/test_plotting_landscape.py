"""Pictures of the landscape: panels, colours, marks and cells; surfaces; films; what is refused."""

from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from cellrank_velot import OTVelocityKernel
from cellrank_velot.landscape import Landscape, LandscapeOptions, PlaneCells, compute_landscape
from cellrank_velot.plotting.landscape import landscape_animation, potential_landscape

COLORS = {"left": "#0072b2", "right": "#e69f00", "never": "#009e73"}
pytestmark = pytest.mark.usefixtures("_close_figures")


@pytest.fixture
def _close_figures():
    plt.close("all")
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
    """Two clouds that part as time goes on."""
    rng = np.random.default_rng(0)
    time, side = np.repeat([0.0, 1.0, 4.0], 200), np.tile([-1.0, 1.0], 300)
    adata = AnnData(np.ones((600, 1), dtype=np.float32))
    adata.obsm["X_pca"] = rng.normal(size=(600, 3)) + np.stack([(1 + time) * side, 0 * time, 0 * time], axis=1)
    adata.obs["clusters"] = pd.Categorical(np.where(side < 0, "left", "right"), categories=list(COLORS))
    adata.uns["clusters_colors"] = list(COLORS.values())
    adata.obs["time"] = time
    return adata


@pytest.fixture
def kernel(adata) -> SimpleNamespace:
    """What the plots know of a kernel."""
    return SimpleNamespace(adata=adata, cluster_key=None, cells=SimpleNamespace(time=adata.obs["time"].to_numpy()))


def of_times(adata: AnnData, times=(0.0, 1.0, 4.0), diffusion: float | None = None, **kwargs) -> Landscape:
    populations = []
    for time in times:
        inside = (adata.obs["time"] == time).to_numpy()
        labels = adata.obs["clusters"].cat.codes.to_numpy()[inside].astype(int)
        populations.append(PlaneCells(adata.obsm["X_pca"][inside, :2], None, time, labels))
    what = {"states": list(COLORS), "basis": "X_pca", **kwargs}
    return compute_landscape(populations, options=LandscapeOptions(n_grid=40, diffusion=diffusion), **what)


@pytest.fixture
def landscape(adata) -> Landscape:
    return of_times(adata)


def labelled(ax, label):
    return next(artist for artist in ax.collections if artist.get_label() == label)


def legend_texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_panels_share_axes_and_levels(adata, landscape):
    axes = potential_landscape(adata, landscape, show=False)
    assert [ax.get_title(loc="left") for ax in axes] == ["Time 0", "Time 1", "Time 4"]
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in axes}) == 1
    assert [ax.get_xlabel() for ax in axes] == ["PCA 1"] * 3
    assert [ax.get_ylabel() for ax in axes] == ["PCA 2", "", ""]
    top = np.nanmax(landscape.potential)
    (bar,) = [ax for ax in axes[0].figure.axes if ax not in axes]
    np.testing.assert_allclose(bar.get_ylim(), [0, top])
    assert bar.get_ylabel() == "Quasi-potential $-\\log p$"
    low, high = axes[0].get_xlim()
    seen = landscape.x[np.isfinite(landscape.potential).any(axis=(0, 1))]
    assert low < seen.min() < seen.max() < high


def test_nothing_is_drawn_where_there_is_no_density(adata, landscape):
    ax, *_ = potential_landscape(adata, landscape, times=[4.0, 1.0], show=False)
    assert ax.get_title(loc="left") == "Time 4"
    cells_of = [artist for artist in ax.collections if artist.get_label().startswith("_")]
    filled = next(artist for artist in cells_of if artist.get_cmap().N == 16 and artist.get_array() is not None)
    assert filled.levels[-1] == pytest.approx(landscape.ceiling[2])
    assert filled.levels[0] == 0


def test_states_and_passes_are_marked(adata, landscape):
    axes = potential_landscape(adata, landscape, show=False)
    lowest = landscape.minima().set_index("time").dropna()
    for ax, time in zip(axes, landscape.times, strict=True):
        marks = labelled(ax, "states")
        np.testing.assert_allclose(marks.get_offsets(), lowest.loc[time, ["x", "y"]])
        assert [to_hex(color) for color in marks.get_facecolors()] == [COLORS["left"], COLORS["right"]]
    table = landscape.barriers().query("time == 1 and `from` == 'left' and to == 'right'")
    np.testing.assert_allclose(labelled(axes[1], "passes").get_offsets(), table[["x", "y"]])
    # At time 4 there is nothing between them, and so no pass.
    assert np.isinf(landscape.barriers().query("time == 4 and `from` == 'left' and to == 'right'")["barrier"]).all()
    assert len(labelled(axes[2], "passes").get_offsets()) == 0
    assert legend_texts(axes[0].figure) == ["Lowest point of", "left", "right", "Between states", "lowest pass"]
    (bare,) = potential_landscape(adata, of_times(adata, [1.0]), states=False, saddles=False, show=False)
    assert not bare.figure.legends
    assert not {"states", "passes"} & {artist.get_label() for artist in bare.collections}


def test_passes_are_those_that_connect_all(adata):
    """Three wells in a row have two passes, not three; a way down has none."""
    rng = np.random.default_rng(0)
    x = rng.normal(scale=0.5, size=(900, 2)) + np.stack([np.repeat([0.0, 3.0, 6.0], 300), np.zeros(900)], axis=1)
    found = compute_landscape(
        [PlaneCells(x, labels=np.repeat([0, 1, 2], 300))], states=list("abc"), options=LandscapeOptions(bandwidth=0.7)
    )
    (ax,) = potential_landscape(adata, found, show=False)
    at = np.sort(labelled(ax, "passes").get_offsets()[:, 0])
    np.testing.assert_allclose(at, [1.5, 4.5], atol=0.5)
    assert ax.get_xlabel() == "dimension 1"
    halves = compute_landscape(
        [PlaneCells(x[:300], labels=(x[:300, 0] > 0.6).astype(int))],
        states=["in", "out"],
        options=LandscapeOptions(bandwidth=1.5),
    )
    assert (halves.barriers()["barrier"] == 0).any()
    (ax,) = potential_landscape(adata, halves, show=False)
    assert len(labelled(ax, "passes").get_offsets()) == 0


def test_cells_are_those_of_the_time(adata, kernel, landscape):
    axes = potential_landscape(kernel, landscape, cells=True, show=False)
    for ax, time in zip(axes, landscape.times, strict=True):
        expected = adata.obsm["X_pca"][adata.obs["time"] == time, :2]
        drawn = np.asarray(labelled(ax, "cells").get_offsets())
        np.testing.assert_allclose(drawn[np.lexsort(drawn.T)], expected[np.lexsort(expected.T)])
    wide = of_times(adata, [1.0], window=1.0)
    (ax,) = potential_landscape(kernel, wide, cells=True, show=False)
    assert len(labelled(ax, "cells").get_offsets()) == 400
    whole = compute_landscape([PlaneCells(adata.obsm["X_pca"][:, :2])], basis="X_pca")
    (ax,) = potential_landscape(adata, whole, cells=True, show=False)
    assert len(labelled(ax, "cells").get_offsets()) == 600
    assert ax.get_title(loc="left") == ""


def test_surface_has_the_heights(adata, landscape):
    axes = potential_landscape(adata, of_times(adata, diffusion=2.0), kind="surface", show=False)
    assert all(ax.name == "3d" for ax in axes)
    assert [ax.get_zlim() for ax in axes] == [axes[0].get_zlim()] * 3
    assert axes[0].get_zlim()[1] == pytest.approx(2 * np.nanmax(landscape.potential))
    assert any("sigma" in ax.get_ylabel() for ax in axes[0].figure.axes)
    x, y, z = labelled(axes[1], "states")._offsets3d
    lowest = landscape.minima().set_index("time").dropna().loc[1.0]
    np.testing.assert_allclose(np.stack([x, y], axis=1), lowest[["x", "y"]])
    lift = np.asarray(z) - 2 * lowest["potential"].to_numpy()
    np.testing.assert_allclose(lift, 0.015 * axes[0].get_zlim()[1])
    (alone,) = potential_landscape(adata, landscape, kind="surface", times=1.0, view=(20, 30), show=False)
    assert (alone.elev, alone.azim) == (20, 30)


def test_colors_of_states(adata, landscape):
    adata.obs["other"] = adata.obs["clusters"].cat.rename_categories({"left": "west"})
    with pytest.raises(KeyError, match=r"states of the landscape in `adata.obs\['other'\]`, found no \['left'\]"):
        potential_landscape(adata, landscape, cluster_key="other")
    del adata.uns["clusters_colors"]
    adata.obs["mine"], adata.uns["mine_colors"] = adata.obs["clusters"], ["#111111", "#222222", "#333333"]
    axes = potential_landscape(adata, landscape, cluster_key="mine", show=False)
    assert to_hex(labelled(axes[0], "states").get_facecolors()[1]) == "#222222"


def test_files_and_axes(adata, landscape, figdir):
    assert potential_landscape(adata, landscape, save="panels.png", figsize=(6, 2), dpi=50) is None
    with Image.open(figdir / "panels.png") as image:
        assert image.size[0] > 200
    figure, mine = plt.subplots(1, 3)
    assert potential_landscape(adata, landscape, ax=mine, title="here") is None
    assert figure.get_suptitle() == "here"
    assert [ax.get_title(loc="left") for ax in mine] == ["Time 0", "Time 1", "Time 4"]
    (ax,) = potential_landscape(adata, landscape, times=1, title="here", show=False)
    assert ax.get_title(loc="left") == "here"
    flat = figure.add_subplot()
    with pytest.raises(TypeError, match="Expected Axes with projection='3d' for `kind='surface'`"):
        potential_landscape(adata, of_times(adata, [1.0]), kind="surface", ax=flat)
    with pytest.raises(ValueError, match="Expected `3` Axes in `ax`, found `1`"):
        potential_landscape(adata, landscape, ax=flat)


def test_refuses(adata, landscape):
    with pytest.raises(TypeError, match="`landscape` to be a `Landscape`, found `str`"):
        potential_landscape(adata, "umap")
    with pytest.raises(TypeError, match="Expected an `AnnData`, a kernel"):
        potential_landscape(None, landscape)
    for draw in (potential_landscape, landscape_animation):
        with pytest.raises(TypeError, match="Expected the `OTVelocityKernel` itself, found `AnnData`"):
            draw(adata)
    with pytest.raises(TypeError, match="Expected a kernel, which knows the time of the cells"):
        potential_landscape(adata, landscape, cells=True)
    with pytest.raises(KeyError, match="X_umap"):
        potential_landscape(adata, of_times(adata, basis="X_umap"), cells=True)
    with pytest.raises(ValueError, match=r"times of the landscape \[0.0, 1.0, 4.0\], found `2`"):
        potential_landscape(adata, landscape, times=[2.0])
    with pytest.raises(ValueError, match="Expected `kind` to be one of"):
        potential_landscape(adata, landscape, kind="3d")
    with pytest.raises(ValueError, match="Expected `levels`"):
        potential_landscape(adata, landscape, levels=1)
    with pytest.raises(ValueError, match="landscape of two times or more, found `1`"):
        landscape_animation(adata, of_times(adata, [1.0]))
    with pytest.raises(ValueError, match=r"Expected `save` to end in one of"):
        landscape_animation(adata, landscape, save="film.png")


@pytest.mark.parametrize("kind", ["contour", "surface"])
def test_film_has_a_frame_for_each_time(adata, landscape, figdir, kind):
    assert landscape_animation(adata, landscape, kind=kind, save="film", dpi=50, figsize=(5, 3)) is None
    with Image.open(figdir / "film.gif") as film:
        assert film.n_frames == 3
        assert film.info["duration"] == 100
        frames = []
        for frame in range(3):
            film.seek(frame)
            frames.append(np.asarray(film.convert("RGB")).astype(int))
    assert all(np.abs(one - other).max() > 50 for one, other in zip(frames, frames[1:], strict=False))
    # The colours of the states, and the white around, are theirs in every frame.
    for frame in frames:
        found = {tuple(color) for color in frame.reshape(-1, 3)}
        for name in ("left", "right"):
            assert tuple(np.rint(255 * np.array(to_rgb(COLORS[name]))).astype(int)) in found
        assert tuple(frame[0, 0]) == (255, 255, 255)
    assert not plt.get_fignums()


def test_film_that_is_kept(adata, landscape):
    film = landscape_animation(adata, landscape, show=False)
    film._func(2)
    (ax,) = [ax for ax in film._fig.axes if ax.get_title(loc="left")]
    assert ax.get_title(loc="left") == "Time 4"
    assert len([artist for artist in ax.collections if artist.get_label() == "states"]) == 1
    film._func(0)
    assert ax.get_title(loc="left") == "Time 0"


def test_broken_film_leaves_no_file(adata, landscape, figdir: Path, monkeypatch):
    monkeypatch.setattr(Image.Image, "quantize", lambda *_args, **_kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        landscape_animation(adata, landscape, save="film.gif", dpi=40)
    assert not list(figdir.iterdir())
    assert not plt.get_fignums()


def test_options_are_checked_before_the_kernel_computes_a_landscape(planted, monkeypatch):
    kernel = OTVelocityKernel(planted.adata())
    monkeypatch.setattr(OTVelocityKernel, "compute_landscape", lambda *_, **__: pytest.fail("work was done"))
    for draw in (kernel.plot_landscape, kernel.animate_landscape):
        with pytest.raises(ValueError, match="Expected `kind` to be one of"):
            draw(kind="3d")
        with pytest.raises(ValueError, match="Expected `levels`"):
            draw(levels=1)
    with pytest.raises(ValueError, match="Expected `n_columns` to be at least `1`"):
        kernel.plot_landscape(n_columns=0)
    with pytest.raises(TypeError, match="Expected Axes with projection='3d'"):
        kernel.plot_landscape(kind="surface", ax=plt.figure().add_subplot())


def test_kernel_draws(planted, figdir):
    kernel = OTVelocityKernel(planted.adata())
    (ax,) = kernel.plot_landscape(show=False)
    assert ax.get_xlabel() == "PCA 1"
    axes = kernel.plot_landscape(basis="umap", times=[0.2, 0.7], cells=True, show=False)
    assert [ax.get_xlabel() for ax in axes] == ["UMAP 1", "UMAP 1"]
    found = kernel.compute_landscape([0.2, 0.7])
    (ax,) = kernel.plot_landscape(found, times=0.7, show=False)
    assert ax.get_title(loc="left") == "Time 0.7"
    kernel.animate_landscape(n_frames=4, save="film.gif", dpi=40)
    with Image.open(figdir / "film.gif") as film:
        assert film.n_frames == 4
    kernel.animate_landscape(found, save="two.gif", dpi=40)
    with Image.open(figdir / "two.gif") as film:
        assert film.n_frames == 2
