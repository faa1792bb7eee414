"""Colours of clusters that touch differ, they are kept as scanpy keeps them, and names may stand on the data."""

import sys

import numpy as np
import pandas as pd
import pytest

from cellrank_velot import pl
from cellrank_velot.plotting._draw.colors import _lab, apart, palette, palette_of


def chain(n: int) -> np.ndarray:
    """Return contacts of groups of which each touches the next one."""
    return np.eye(n, k=1) + np.eye(n, k=-1)


def nearest(colors: list[str], contacts: np.ndarray) -> float:
    """Return the smallest distance of the colours of groups that touch."""
    lab = np.array([_lab(color) for color in colors])
    return float(np.linalg.norm(lab[:, None] - lab[None], axis=2)[contacts > 0].min())


def test_lab_is_that_of_the_standard():
    np.testing.assert_allclose(_lab("white"), [100, 0, 0], atol=0.1)
    np.testing.assert_allclose(_lab("#ff0000"), [53.2, 80.1, 67.2], atol=0.3)


def test_groups_that_touch_get_colours_that_differ():
    colors = sorted(palette(20), key=lambda color: tuple(_lab(color)))
    contacts = chain(20)
    chosen = apart(colors, contacts)
    assert sorted(chosen) == sorted(colors)
    assert nearest(chosen, contacts) > 2 * nearest(colors, contacts)
    assert chosen == apart(colors, contacts)
    assert apart(colors, np.zeros((20, 20))) == colors


def test_new_colours_are_written_as_scanpy_writes_them(adata):
    adata.obs["fine"] = pd.Categorical((adata.obs["dpt_pseudotime"] * 12).astype(int).astype(str))
    assert "clusters_colors" not in adata.uns
    pl.embedding(adata, "clusters", show=False)
    assert adata.uns["clusters_colors"] == palette(3)
    pl.embedding(adata, "fine", show=False)
    drawn = adata.uns["fine_colors"]
    assert len(set(drawn)) == 12
    assert list(palette_of(adata, "fine", list(adata.obs["fine"].cat.categories)).values()) == drawn
    adata.uns["clusters_colors"] = ["#111111", "#222222", "#333333"]
    pl.embedding(adata, "clusters", show=False)
    assert adata.uns["clusters_colors"] == ["#111111", "#222222", "#333333"]
    del adata.uns["fine_colors"]
    view = adata[:50]
    pl.embedding(view, "fine", show=False)
    assert view.is_view
    assert "fine_colors" not in view.uns


def test_names_stand_on_their_clusters(computed):
    computed.adata.obs["clusters"] = computed.adata.obs["clusters"].cat.rename_categories({"left": r"$\bad$"})
    x, labels = computed.adata.obsm["X_umap"], computed.adata.obs["clusters"]
    for draw in (pl.velocity_stream, pl.velocity_grid, pl.velocity_quiver):
        ax = draw(computed, legend_loc="on data", show=False)
        assert ax.get_legend() is None
        written = {text.get_text(): text.get_position() for text in ax.texts}
        assert written.keys() == set(labels.cat.categories)
        for name, place in written.items():
            np.testing.assert_allclose(place, np.median(x[labels == name], axis=0))
    assert pl.embedding(computed, "clusters", legend_loc="none", show=False).get_legend() is None
    assert pl.velocity_comparison(computed, "pca", legend_loc="on data", show=False)[0].texts
    with pytest.raises(ValueError, match="Expected `legend_loc` to be one of"):
        pl.embedding(computed, "clusters", legend_loc="best", show=False)


# --------------------------------------------------------------------------------------------------- three dimensions
def test_trajectories_to_be_turned(computed, tmp_path):
    pytest.importorskip("plotly")
    paths = computed.compute_trajectories(
        start_cluster="stem", cluster_key="clusters", n_trajectories=6, n_steps=40, show_progress_bar=False
    )
    figure = pl.trajectories_3d(computed, paths, save=tmp_path / "paths.html", show=False)
    cells = {trace.name: len(trace.x) for trace in figure.data if trace.mode == "markers"}
    assert cells == computed.adata.obs["clusters"].value_counts().to_dict()
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    drawn = np.concatenate([np.column_stack([line.x, line.y, line.z]) for line in lines])
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    assert sorted(map(tuple, drawn)) == sorted(map(tuple, paths.x[:, :3]))
    html = (tmp_path / "paths.html").read_text(encoding="utf-8")
    assert "<script src=" not in html  # nothing to load
    assert pl.trajectories_3d(computed, paths, color="gene_1", show=False).data[0].marker.showscale
    with pytest.raises(ValueError, match="at least `3` columns"):
        pl.trajectories_3d(computed, paths, "umap", show=False)
    with pytest.raises(ValueError, match=r"file of HTML, found 'paths.png'"):
        pl.trajectories_3d(computed, paths, save=tmp_path / "paths.png")


def test_landscape_to_be_turned(computed):
    pytest.importorskip("plotly")
    landscape = computed.compute_landscape(basis="X_umap", n_grid=20)
    figure = pl.landscape_3d(computed, landscape, show=False)
    np.testing.assert_array_equal(figure.data[0].z, landscape.potential[0])
    assert {trace.name for trace in figure.data[1:]} == set(landscape.minima().dropna(subset=["x"])["state"])


def test_missing_plotly_is_named_with_its_extra(computed, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ImportError, match=r"`plotly`.*cellrank_velot\[interactive\]"):
        pl.trajectories_3d(computed, show=False)
