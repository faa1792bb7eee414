"""Where the flow comes to rest, and paths of least action, in an embedding."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_number
from cellrank_velot.cells import read_embedding
from cellrank_velot.dynamics import FixedPoints, LeastActionPath
from cellrank_velot.plotting._draw.arrows import draw_cells_below, usual_color
from cellrank_velot.plotting._draw.colors import INK, VALUES, scale_of
from cellrank_velot.plotting._draw.embedding import dot_size
from cellrank_velot.plotting._draw.figure import FigureOptions, color_bar, drawing, draws
from cellrank_velot.plotting._draw.kernel import HasAnnData, adata_of
from cellrank_velot.plotting._draw.legends import beside_cells, dot, stroke
from cellrank_velot.plotting._draw.paths import Place, is_jump, place_of, running_mean

__all__ = ["fixed_points", "least_action_path"]

FloatArray = NDArray[np.float64]

# Shapes by the first word of a kind; a cross leads away in some directions, an empty circle in all.
MARKERS: dict[str, dict[str, Any]] = {
    "stable": {"marker": "o", "markerfacecolor": INK},
    "saddle": {"marker": "X", "markerfacecolor": "white"},
    "unstable": {"marker": "o", "markerfacecolor": "white"},
    "undecided": {"marker": "D", "markerfacecolor": "white"},
}
EDGE: dict[str, Any] = {"color": INK, "markeredgecolor": INK, "markeredgewidth": 1.4}


@draws
def fixed_points(
    data: AnnData | HasAnnData,
    points: FixedPoints,
    basis: str = "umap",
    color: str | None = "auto",
    *,
    velocity_basis: str | None = None,
    numbers: bool = True,
    size: float | None = None,
    alpha: float = 0.4,
    legend: bool = True,
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw where the flow comes to rest: stable points filled, saddles as crosses, unstable points as empty circles.

    A point is drawn where its nearest cells are. Its number is its row in ``points.to_frame()``.

    Parameters
    ----------
    data
        A kernel or an AnnData.
    points
        What ``vk.fixed_points()`` returned.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``; its first two dimensions are drawn.
    color
        Column of ``adata.obs`` or gene that colours the cells, grey where ``None``. ``"auto"`` is ``"clusters"`` where
        there is such a column.
    velocity_basis
        Key in ``adata.obsm`` of the basis of the points; the one that they name where not given.
    numbers
        Whether to write the number beside each point.
    size
        Area of the cells in square points; by default smaller the more there are.
    alpha
        Opacity of the cells.
    legend
        Whether to draw the legends.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding or the column is missing.
    TypeError
        If ``points`` is of another type.
    ValueError
        If the basis does not fit the points.

    Examples
    --------
    >>> points = vk.fixed_points(n_starts=100)
    >>> ax = pl.fixed_points(vk, points, show=False)
    """
    if not isinstance(points, FixedPoints):
        raise TypeError(f"Expected `points` to be `FixedPoints`, found `{type(points).__name__}`.")
    check_number("alpha", alpha, low=0, high=1)
    adata = adata_of(data)
    color = usual_color(adata, color)
    x, name = read_embedding(adata, basis)
    places = place_of(data, points, x, velocity_basis).embed(points.x)
    with drawing(figure, panel_size=(6.0, 4.4)) as canvas:
        panel = canvas.ax
        size = size or dot_size(len(x), 15_000, 3, 16)
        draw_cells_below(panel, x, name, adata, color, legend=legend, size=size, alpha=alpha)
        kinds = [kind.split()[0] for kind in points.kind.tolist()]
        for number, (kind, place) in enumerate(zip(kinds, places, strict=True)):
            panel.plot(*place, linestyle="", markersize=9, zorder=4, **{**EDGE, **MARKERS[kind]})
            if numbers:
                look: dict[str, Any] = {"textcoords": "offset points", "fontsize": 9, "fontweight": "bold", "zorder": 5}
                panel.annotate(str(number), place, (6, 5), **look)
        if legend:
            present = [kind for kind in MARKERS if kind in kinds]
            marks = [dot(f"{kind} ({kinds.count(kind)})", **{**EDGE, **MARKERS[kind]}) for kind in present]
            beside_cells(panel, [("Comes to rest", marks)], color)
    return canvas.result


@draws
def least_action_path(
    data: AnnData | HasAnnData,
    path: LeastActionPath,
    basis: str = "umap",
    color: str | None = "auto",
    *,
    velocity_basis: str | None = None,
    reverse: bool = True,
    smooth: float = 0.1,
    line_width: float = 2.5,
    cmap: str | Colormap = VALUES,
    size: float | None = None,
    alpha: float = 0.3,
    legend: bool = True,
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw a path of least action, coloured by the action spent so far, and the way back as a dashed line.

    The circle is the source, the star the target. From the diamond on, 99 % of the action are spent, and the drift
    leads to the target.

    Parameters
    ----------
    data
        A kernel or an AnnData.
    path
        What ``vk.least_action_path(source, target)`` returned.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``; its first two dimensions are drawn.
    color
        Column of ``adata.obs`` or gene that colours the cells, grey where ``None``. ``"auto"`` is ``"clusters"`` where
        there is such a column.
    velocity_basis
        Key in ``adata.obsm`` of the basis of the path; the one that it names where not given.
    reverse
        Whether to draw the way back.
    smooth
        Share of the points that the running mean of the line is over, in ``[0, 1]``. It removes kinks that come from
        placing points by their nearest cells.
    line_width
        Width of the line in points.
    cmap
        Colours of the action.
    size
        Area of the cells in square points; by default smaller the more there are.
    alpha
        Opacity of the cells.
    legend
        Whether to draw the legends and the colour bar.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding or the column is missing.
    TypeError
        If ``path`` is of another type, or an option is not a number.
    ValueError
        If the basis does not fit the path, or an option is out of range.

    Examples
    --------
    >>> path = vk.least_action_path("Progenitor", "Fate A", n_points=10)
    >>> ax = pl.least_action_path(vk, path, show=False)
    """
    if not isinstance(path, LeastActionPath):
        raise TypeError(f"Expected `path` to be a `LeastActionPath`, found `{type(path).__name__}`.")
    check_number("smooth", smooth, low=0, high=1)
    check_number("alpha", alpha, low=0, high=1)
    check_number("line_width", line_width, low=0, open_low=True)
    adata = adata_of(data)
    color = usual_color(adata, color)
    x, name = read_embedding(adata, basis)
    place = place_of(data, path, x, velocity_basis)
    scale = scale_of(path.spent, cmap)
    with drawing(figure, panel_size=(6.4, 4.6), title=f"{path.source} to {path.target}") as canvas:
        panel = canvas.ax
        size = size or dot_size(len(x), 15_000, 3, 16)
        draw_cells_below(panel, x, name, adata, color, legend=legend, size=size, alpha=alpha)
        if reverse:
            _draw_line(panel, place, path.reverse_x, smooth, colors=INK, linewidths=1.2, linestyles=(0, (4, 2)))
        _draw_line(panel, place, path.x, smooth, colors="white", linewidths=line_width + 2)
        points = _draw_line(
            panel, place, path.x, smooth, colors=scale.to_rgba((path.spent[1:] + path.spent[:-1]) / 2),
            linewidths=line_width,
        )  # fmt: skip
        marks = {"o": (path.source, 0, 8), "D": ("drift takes over", path.committed_ix, 7), "*": (path.target, -1, 14)}
        for marker, (_, at, width) in marks.items():
            look = {**EDGE, "marker": marker, "markersize": width, "markerfacecolor": "white"}
            panel.plot(*points[at], linestyle="", zorder=5, **look)
        if legend:
            color_bar(scale, panel, "Action spent", shrink=0.5, aspect=14, location="bottom")
            handles = [
                dot(label, **{**EDGE, "marker": marker, "markerfacecolor": "white", "markersize": 0.8 * width})
                for marker, (label, _, width) in marks.items()
            ]
            back = [stroke(f"way back, {path.reverse_action:.3g}", INK, linewidth=1.2, linestyle="--")] * reverse
            beside_cells(panel, [(f"Action {path.action:.3g}", [*handles, *back])], color)
    return canvas.result


def _draw_line(ax: Axes, place: Place, x: FloatArray, smooth: float, **look: Any) -> FloatArray:
    """Draw a path but for its jumps across the embedding, and return where its points are."""
    raw = place.embed(x)
    points = raw
    if not place.exact:
        points = running_mean(raw, np.array([0]), np.array([round(0.5 * smooth * len(raw))]))
    segments = np.stack([points[:-1], points[1:]], axis=1)
    kept = ~is_jump(place, np.diff(x, axis=0), np.diff(raw, axis=0))
    colors = look.pop("colors")
    colors = colors if isinstance(colors, str) else colors[kept]
    ax.add_collection(LineCollection(list(segments[kept]), colors=colors, zorder=3, capstyle="round", **look))
    return points
