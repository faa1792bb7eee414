"""Pictures in three dimensions that can be turned, by plotly: trajectories among the cells, and a landscape."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import scanpy as sc
from anndata import AnnData
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from cellrank_velot._utils.files import replacing
from cellrank_velot._utils.validation import check_number
from cellrank_velot.cells import basis_name, find_basis, read_basis
from cellrank_velot.dynamics import Trajectories
from cellrank_velot.embedding.projection import embed_points
from cellrank_velot.landscape import Landscape
from cellrank_velot.plotting._draw.arrows import usual_color
from cellrank_velot.plotting._draw.colors import BACKGROUND, INK, VALUES, palette_of
from cellrank_velot.plotting._draw.embedding import categories_of, colors_by_name
from cellrank_velot.plotting._draw.kernel import HasAnnData, adata_of
from cellrank_velot.plotting._draw.paths import NOWHERE, cluster_colors, place_of, read
from cellrank_velot.plotting._draw.relief import chosen_times

__all__ = ["landscape_3d", "trajectories_3d"]

FloatArray = NDArray[np.float64]

AXES = ("xaxis", "yaxis", "zaxis")


def trajectories_3d(
    data: AnnData | HasAnnData,
    trajectories: Trajectories | None = None,
    basis: str = "pca",
    color: str | None = "auto",
    *,
    key: str = "velot_trajectories",
    cluster_key: str | None = None,
    velocity_basis: str | None = None,
    size: float = 2.5,
    alpha: float = 0.4,
    line_width: float = 3.0,
    title: str = "",
    save: str | Path | None = None,
    show: bool | None = None,
) -> Any:
    """Draw trajectories among the cells in three dimensions, to be turned with the mouse. It needs plotly.

    Install it as the extra ``interactive``.

    Parameters
    ----------
    data
        A kernel or an AnnData.
    trajectories
        What to draw; those that were written to ``adata.uns[key]`` where not given.
    basis
        Key in ``adata.obsm`` of an embedding of three or more dimensions, with or without ``X_``; the first three are
        drawn.
    color
        Column of ``adata.obs`` or gene that colours the cells, grey where ``None``. ``"auto"`` is ``"clusters"`` where
        there is such a column.
    key
        Key in ``adata.uns`` of the trajectories.
    cluster_key
        Column of ``adata.obs`` whose colours the fates have. By default that of the kernel, or ``"clusters"``, where it
        has the names of the fates.
    velocity_basis
        Key in ``adata.obsm`` of the basis that the trajectories were computed in. By default the one that they name,
        that of the kernel, or ``"X_pca"``.
    size
        Diameter of the cells in pixels.
    alpha
        Opacity of the cells.
    line_width
        Width of the lines in pixels.
    title
        Title.
    save
        File of HTML to write, which needs nothing else. A relative one lies in scanpy's ``settings.figdir``.
    show
        Whether to show the picture. By default it is shown unless it is saved.

    Returns
    -------
    Figure of plotly where ``show=False``, nothing otherwise.

    Raises
    ------
    ImportError
        If plotly is missing.
    KeyError
        If the embedding, the trajectories, the colour or the clusters are missing.
    ValueError
        If the embedding has fewer than three dimensions, or there is nothing to draw.

    Examples
    --------
    >>> paths = vk.compute_trajectories(
    ...     start_cluster="Progenitor", n_trajectories=5, n_steps=50
    ... )
    >>> pl.trajectories_3d(vk, paths, save="paths.html")
    """
    plotly = _plotly()
    for name, value in (("size", size), ("alpha", alpha), ("line_width", line_width)):
        check_number(name, value, low=0, open_low=True)
    adata = adata_of(data)
    color = usual_color(adata, color)
    x, axis = _three(adata, basis)
    found = read(data, trajectories, key)
    base = place_of(data, found, x[:, :2], velocity_basis).basis
    exact = base.shape[1] >= 3 and np.array_equal(base[:, :3], x)
    points = found.x[:, :3] if exact else embed_points(found.x, base, x)
    figure = plotly.Figure()
    for name, inside, look in _groups(adata, color, len(x)):
        marker = {"size": size, "opacity": alpha, **look}
        figure.add_trace(_points(plotly, x[inside], "markers", name, marker=marker))
    colors = cluster_colors(data, found, cluster_key) if found.clusters.size else {}
    ends = [str(found.clusters[code]) if code >= 0 else "no cluster" for code in found.end_cluster]
    for name in dict.fromkeys(ends):
        line = {"color": to_hex(colors.get(name, NOWHERE)), "width": line_width}
        paths = [points[start:stop] for start, stop in _spans(found, [end == name for end in ends])]
        gap = np.full((1, 3), np.nan)
        joined = np.concatenate([part for path in paths for part in (path, gap)])
        figure.add_trace(_points(plotly, joined, "lines", f"to {name} ({len(paths)})", line=line))
    _dress(figure, [f"{axis} {i}" for i in (1, 2, 3)], title)
    return _finish(figure, save, show)


def landscape_3d(
    data: AnnData | HasAnnData,
    landscape: Landscape,
    time: float | None = None,
    *,
    cluster_key: str | None = None,
    title: str = "",
    save: str | Path | None = None,
    show: bool | None = None,
) -> Any:
    """Draw a landscape as a surface, with the lowest point of each state, to be turned with the mouse. It needs plotly.

    Install it as the extra ``interactive``.

    Parameters
    ----------
    data
        A kernel or an AnnData, which has the colours of the states.
    landscape
        A landscape, as ``compute_landscape`` returns it.
    time
        One of its times; the first where not given.
    cluster_key
        Column of ``adata.obs`` whose colours the states have. By default that of the kernel, or ``"clusters"``, where
        it has the names of the states.
    title
        Title.
    save
        File of HTML to write, which needs nothing else. A relative one lies in scanpy's ``settings.figdir``.
    show
        Whether to show the picture. By default it is shown unless it is saved.

    Returns
    -------
    Figure of plotly where ``show=False``, nothing otherwise.

    Raises
    ------
    ImportError
        If plotly is missing.
    KeyError
        If the clusters are missing.
    TypeError
        If ``landscape`` is of another type.
    ValueError
        If the landscape has no such time.

    Examples
    --------
    >>> pl.landscape_3d(sk, sk.compute_landscape([1, 3]), time=3, save="landscape.html")
    """
    plotly = _plotly()
    t = chosen_times(landscape, time)[0]
    height = landscape.potential[t]
    scale = [[i / 10, to_hex(VALUES(i / 10))] for i in range(11)]
    bar = {"title": {"text": "potential"}, "len": 0.6, "x": -0.1}
    surface = plotly.Surface(x=landscape.x, y=landscape.y, z=height, colorscale=scale, colorbar=bar, opacity=0.95)
    figure = plotly.Figure([surface])
    lowest = landscape.minima()
    known = lowest["time"].isna() if np.isnan(landscape.times[t]) else np.isclose(lowest["time"], landscape.times[t])
    lowest = lowest[known & lowest["x"].notna()]
    colors = colors_by_name(data, [str(name) for name in landscape.states], cluster_key, "states", strict=False)
    for _, row in lowest.iterrows():
        i, j = np.abs(landscape.y - row["y"]).argmin(), np.abs(landscape.x - row["x"]).argmin()
        at = np.array([[row["x"], row["y"], height[i, j] + 0.02 * np.nanmax(height)]])
        marker = {"size": 7, "color": to_hex(colors[str(row["state"])]), "line": {"color": "white", "width": 1}}
        figure.add_trace(_points(plotly, at, "markers", str(row["state"]), marker=marker))
    axis = basis_name(landscape.basis)
    _dress(figure, [*(f"{axis} {dim + 1}".strip() for dim in landscape.dims), "potential"], title)
    return _finish(figure, save, show)


# ------------------------------------------------------------------------------------------------------- what is drawn
def _plotly() -> Any:
    try:
        return import_module("plotly.graph_objects")
    except ImportError as error:
        raise ImportError(
            "Expected the package `plotly` for a picture that can be turned, found none: "
            "`pip install 'cellrank_velot[interactive]'`."
        ) from error


def _three(adata: AnnData, basis: str) -> tuple[FloatArray, str]:
    """Return the first three dimensions of an embedding, and its name for people."""
    key = find_basis(adata, basis)
    x = read_basis(adata, key)
    if x.shape[1] < 3:
        raise ValueError(f"Expected `adata.obsm[{key!r}]` to have at least `3` columns, found the shape `{x.shape}`.")
    return x[:, :3], key.removeprefix("X_").upper()


def _groups(adata: AnnData, color: str | None, n_cells: int) -> list[tuple[str, NDArray[np.bool_], dict[str, Any]]]:
    """Return name, cells and look of each group of cells that are drawn together."""
    everyone = np.ones(n_cells, dtype=bool)
    if color is None:
        return [("cells", everyone, {"color": BACKGROUND})]
    values = categories_of(adata, color)
    if values.dtype != "category":
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
        scale = [[i / 10, to_hex(VALUES(i / 10))] for i in range(11)]
        return [(color, everyone, {"color": numbers, "colorscale": scale, "showscale": True})]
    colors = palette_of(adata, color, list(values.cat.categories))
    groups = [(str(name), np.asarray(values == name), {"color": to_hex(colors[name])}) for name in colors]
    return [group for group in groups if group[1].any()]


def _spans(found: Trajectories, chosen: Sequence[bool]) -> list[tuple[int, int]]:
    """Return where each of the chosen paths begins and ends."""
    ends = zip(found.offsets[:-1], found.offsets[1:], strict=True)
    return [(int(start), int(stop)) for (start, stop), taken in zip(ends, chosen, strict=True) if taken]


def _points(plotly: Any, at: FloatArray, mode: str, name: str, **look: Any) -> Any:
    x, y, z = at.T
    return plotly.Scatter3d(x=x, y=y, z=z, mode=mode, name=name, hoverinfo="name", **look)


def _dress(figure: Any, names: Sequence[str], title: str) -> None:
    plain = {"showbackground": False, "showticklabels": False, "showgrid": False, "zeroline": False}
    scene = {axis: {"title": {"text": name}, **plain} for axis, name in zip(AXES, names, strict=True)}
    margin = {"l": 0, "r": 0, "b": 0, "t": 40 if title else 0}
    legend = {"itemsizing": "constant", "y": 0.93}  # below the buttons
    look: dict[str, Any] = {"template": "plotly_white", "font": {"color": INK}, "legend": legend}
    figure.update_layout(scene=scene, title=title, margin=margin, **look)


def _finish(figure: Any, save: str | Path | None, show: bool | None) -> Any:
    """Save and show the figure as asked, and return it where it is not shown."""
    if save is not None:
        path = Path(save)
        path = path if path.is_absolute() else Path(sc.settings.figdir) / path
        path = path if path.suffix else path.with_suffix(".html")
        if path.suffix != ".html":
            raise ValueError(f"Expected `save` to be a file of HTML, found {path.name!r}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            figure.write_html(temporary)
    if show or (show is None and save is None):
        figure.show()
    return figure if show is False else None
