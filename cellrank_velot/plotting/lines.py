"""Trajectories in an embedding: lines over the cells, with where and how each of them ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_choice, check_integer, check_number
from cellrank_velot.cells import read_embedding
from cellrank_velot.dynamics import Status, Trajectories
from cellrank_velot.plotting._draw.arrows import draw_cells_below, usual_color
from cellrank_velot.plotting._draw.colors import INK, VALUES, palette
from cellrank_velot.plotting._draw.embedding import dot_size
from cellrank_velot.plotting._draw.figure import FigureOptions, color_bar, drawing, draws
from cellrank_velot.plotting._draw.kernel import HasAnnData, adata_of
from cellrank_velot.plotting._draw.legends import beside_cells, dot, stroke
from cellrank_velot.plotting._draw.look import Look
from cellrank_velot.plotting._draw.paths import (
    NOWHERE,
    Place,
    cluster_colors,
    fate_word,
    is_jump,
    place_of,
    read,
    running_mean,
)

__all__ = ["trajectories"]

FloatArray = NDArray[np.float64]

ColorBy = Literal["auto", "fate", "time", "status", "direction", "id"]
# How a line ends is said by shape: its colour says something else.
END_MARKERS = {
    Status.ARRIVED: "*",
    Status.STALLED: "s",
    Status.LEFT_DATA: "o",
    Status.OUT_OF_STEPS: "D",
    Status.END_OF_TIME: "^",
}
JUMP: dict[str, Any] = {"linewidths": 0.8, "linestyles": (0, (1, 1.5))}
# Two arrows are at least so far apart, as a share of width and height of the picture.
ARROW_DISTANCE = 0.06
# More numbers of trajectories than these are not read off a legend.
MAX_IDS = 20


@draws
def trajectories(
    data: AnnData | HasAnnData,
    trajectories: Trajectories | None = None,
    basis: str = "umap",
    color: str | None = "auto",
    *,
    key: str = "velot_trajectories",
    ids: int | Sequence[int] | NDArray[Any] | None = None,
    color_by: ColorBy = "auto",
    cluster_key: str | None = None,
    velocity_basis: str | None = None,
    smooth: float = 0.03,
    line_width: float = 1.2,
    line_alpha: float = 0.9,
    show_start: bool = True,
    show_end: bool = True,
    arrows: int = 1,
    cmap: str | Colormap = VALUES,
    size: float | None = None,
    alpha: float = 0.3,
    legend: bool = True,
    line_kwargs: Mapping[str, Any] | None = None,
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw trajectories in an embedding, as lines over the cells.

    Trajectories are computed in the basis, and each of their points is drawn where its nearest cells are. Where the
    embedding tears neighbours of the basis apart, a trajectory jumps: such a step is drawn as a thin dotted line. Where
    the embedding is the beginning of the basis, such as in ``basis="pca"``, lines are exact.

    Parameters
    ----------
    data
        A kernel or an AnnData.
    trajectories
        What to draw; those that were written to ``adata.uns[key]`` where not given.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``; its first two dimensions are drawn.
    color
        Column of ``adata.obs`` or gene that colours the cells, grey where ``None``. ``"auto"`` is ``"clusters"`` where
        there is such a column.
    key
        Key in ``adata.uns`` of the trajectories.
    ids
        Numbers of the trajectories to draw, or a mask; all where not given.
    color_by
        What colours the lines: ``"fate"``, the cluster in which each ends; ``"time"`` of each point; ``"status"``, how
        it ended; ``"direction"``, forward or backward in time; or ``"id"``. ``"auto"`` is ``"fate"`` where the
        trajectories have clusters, and ``"time"`` otherwise.
    cluster_key
        Column of ``adata.obs`` whose colours the fates have. By default that of the kernel, or ``"clusters"``, where it
        has the names of the fates.
    velocity_basis
        Key in ``adata.obsm`` of the basis that the trajectories were computed in. By default the one that they name,
        that of the kernel, or ``"X_pca"``.
    smooth
        Share of the points of a trajectory that its running mean is over, in ``[0, 1]``. It removes kinks that come
        from placing points by their nearest cells. 0 draws the points as they are, and so do lines that are exact.
    line_width
        Width of the lines in points.
    line_alpha
        Opacity of the lines.
    show_start
        Whether to mark where trajectories start, by a white circle.
    show_end
        Whether to mark where trajectories end, by a shape that says how.
    arrows
        Number of arrows along each trajectory. They point the way that it was followed, backward ones back in time.
        Of arrows that would lie on each other, one is drawn.
    cmap
        Colours of time.
    size
        Area of the cells in square points; by default smaller the more there are.
    alpha
        Opacity of the cells.
    legend
        Whether to draw the legend, or the colour bar of time. More than 20 numbers of trajectories get none.
    line_kwargs
        Passed on to :class:`matplotlib.collections.LineCollection`, e.g. ``{"linestyle": "--"}`` or ``{"color": "k"}``;
        nothing where not given.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding, the basis, the trajectories, one of ``ids``, the colour or the clusters are missing.
    TypeError
        If ``data`` or ``trajectories`` is of another type, or an option is not a number.
    ValueError
        If there is nothing to draw, the basis does not fit the trajectories, an option is unknown or out of range, or
        fates are asked for where there are no clusters.

    Examples
    --------
    >>> paths = vk.compute_trajectories(
    ...     start_cluster="Progenitor", n_trajectories=5, n_steps=50
    ... )
    >>> ax = pl.trajectories(vk, paths, color_by="status", show=False)
    >>> ax = pl.trajectories(adata, ids=[0, 1], show=False)  # as they were written to it
    """
    check_choice("color_by", color_by, ColorBy)
    check_number("smooth", smooth, low=0, high=1)
    check_number("line_width", line_width, low=0, open_low=True)
    check_number("line_alpha", line_alpha, low=0, high=1, open_low=True)
    check_integer("arrows", arrows, low=0)
    adata = adata_of(data)
    color = usual_color(adata, color)
    x, name = read_embedding(adata, basis)
    found = _selected(read(data, trajectories, key), ids)
    lines = _lines(found, place_of(data, found, x, velocity_basis), smooth)
    look, heading = _look(data, found, color_by, cluster_key, cmap)
    size = size or dot_size(len(x), 15_000, 3, 16)
    with drawing(figure, panel_size=(6.4, 4.6)) as canvas:
        panel = canvas.ax
        draw_cells_below(panel, x, name, adata, color, legend=legend, size=size, alpha=alpha)
        _draw_lines(panel, lines, look, line_width, {"alpha": line_alpha, **(line_kwargs or {})})
        _draw_arrows(panel, lines, look, arrows, line_width, np.ptp(x, axis=0))
        marks = _draw_ends(panel, found, lines, look, show_start=show_start, show_end=show_end)
        if legend:
            strokes = [stroke(label, shade) for label, shade in look.labels.items()]
            _draw_legend(panel, look, [(heading, strokes), ("Start and end", marks)], color)
    return canvas.result


def _selected(found: Trajectories, ids: Any) -> Trajectories:
    if ids is None:
        return found
    chosen = np.atleast_1d(np.asarray(ids))
    if not chosen.size or (chosen.dtype == bool and not chosen.any()):
        raise ValueError("Expected at least one trajectory in `ids`, found none.")
    if chosen.dtype != bool and not np.issubdtype(chosen.dtype, np.integer):
        raise TypeError(f"Expected `ids` to be numbers of trajectories or a mask, found `{ids!r}`.")
    return found.select(chosen)


# ------------------------------------------------------------------------------------------------------- where lines go
@dataclass(frozen=True)
class _Lines:
    """Points of all trajectories in the embedding, and the pieces in which they are drawn.

    ``pieces`` are slices of the points, ``owner`` the trajectory of each; ``jumps`` the points before which a line is
    broken by a jump.
    """

    points: FloatArray
    time: FloatArray
    offsets: NDArray[np.int64]
    pieces: list[slice]
    owner: NDArray[np.int64]
    jumps: NDArray[np.int64]

    def owner_of(self, point: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the trajectory of each point."""
        return np.searchsorted(self.offsets, point, side="right") - 1


def _lines(found: Trajectories, place: Place, smooth: float) -> _Lines:
    """Return the lines of trajectories, smoothed along each piece."""
    points = place.embed(found.x)
    known = np.asarray(np.isfinite(points).all(axis=1))
    starts = np.zeros(len(points), dtype=bool)
    starts[found.offsets[:-1]] = True
    inside = ~starts
    inside[1:] &= known[1:] & known[:-1]
    at = np.flatnonzero(inside)
    jumps = at[is_jump(place, found.x[at] - found.x[at - 1], points[at] - points[at - 1])]
    breaks = ~inside
    breaks[jumps] = True
    first = np.flatnonzero(breaks)
    owner = np.searchsorted(found.offsets, first, side="right") - 1
    if not place.exact:
        half = (0.5 * smooth * found.lengths[owner]).astype(np.int64)
        points = np.where(known[:, None], running_mean(np.where(known[:, None], points, 0.0), first, half), np.nan)
    pieces = [slice(a, b) for a, b in zip(first, np.append(first[1:], len(points)), strict=True)]
    drawn = np.array([piece.stop - piece.start > 1 for piece in pieces])
    pieces = [piece for piece, long in zip(pieces, drawn, strict=True) if long]
    return _Lines(points, found.time, found.offsets, pieces, owner[drawn], jumps)


# ---------------------------------------------------------------------------------------------------- what colours mean
def _look(
    data: Any, found: Trajectories, color_by: str, cluster_key: str | None, cmap: str | Colormap
) -> tuple[Look, str]:
    """Return the colours of the lines, and the heading of their legend."""
    if color_by == "auto":
        color_by = "fate" if found.clusters.size else "time"
    if color_by == "time":
        return Look.of_time(len(found), found.time, cmap), ""
    heading, labels, table = _classes(data, found, color_by, cluster_key)
    if color_by == "id":
        legend = dict(table) if len(table) <= MAX_IDS else {}
    else:
        count = {label: labels.count(label) for label in table}
        legend = {f"{label} ({count[label]})": table[label] for label in table if count[label]}
    return Look.of_classes(labels, table, legend), heading


def _classes(
    data: Any, found: Trajectories, color_by: str, cluster_key: str | None
) -> tuple[str, list[str], Mapping[str, str]]:
    """Return the heading of the legend, the class of each trajectory, and the colour of each class."""
    if color_by == "fate":
        if not found.clusters.size:
            raise ValueError(
                "Expected trajectories with clusters for `color_by='fate'`, found none. Compute them with clusters, or "
                "use `color_by='time'`."
            )
        table = {**cluster_colors(data, found, cluster_key), "no cluster": NOWHERE}
        names = [*table]
        return fate_word(found), [names[code] for code in found.end_cluster], table
    if color_by == "status":
        messages = [status.message for status in Status]
        return "How it ended", found.statuses, dict(zip(messages, palette(len(messages)), strict=True))
    if color_by == "direction":
        forward, backward = "forward in time", "backward in time"
        labels = [forward if sign > 0 else backward for sign in found.direction]
        return "Direction", labels, dict(zip((forward, backward), palette(2), strict=True))
    numbers = [str(number) for number in found.ids]
    return "Trajectory", numbers, dict(zip(numbers, palette(len(numbers)), strict=True))


# ------------------------------------------------------------------------------------------------------ how it is drawn
def _draw_lines(ax: Axes, lines: _Lines, look: Look, line_width: float, options: Mapping[str, Any]) -> None:
    """Draw the pieces of all lines, and thin dotted ones where they jump."""
    defaults: dict[str, Any] = {"linewidths": line_width, "zorder": 2, "capstyle": "round", "joinstyle": "round"}
    if look.scale is None:
        segments: Any = [lines.points[piece] for piece in lines.pieces]
        defaults["colors"] = look.colors[lines.owner]
    else:
        # Each step has the time of its middle.
        steps = np.array([i for piece in lines.pieces for i in range(piece.start, piece.stop - 1)], dtype=np.int64)
        segments = np.stack([lines.points[steps], lines.points[steps + 1]], axis=1)
        defaults["colors"] = look.scale.to_rgba((lines.time[steps] + lines.time[steps + 1]) / 2)
        defaults["capstyle"] = "butt"  # ends of transparent steps would overlap
    # Lines are told from cells of like colour by a white edge, which lies below all of them.
    edge: dict[str, Any] = {
        "colors": "white",
        "linewidths": line_width + 1.8,
        "alpha": 0.8,
        "zorder": 1.9,
        "capstyle": "round",
    }
    ax.add_collection(LineCollection([lines.points[piece] for piece in lines.pieces], label="edges", **edge))
    ax.add_collection(LineCollection(segments, **{"label": "lines", **defaults, **options}))
    if lines.jumps.size:
        across = np.stack([lines.points[lines.jumps - 1], lines.points[lines.jumps]], axis=1)
        colors = look.colors[lines.owner_of(lines.jumps)]
        ax.add_collection(LineCollection(list(across), colors=colors, label="jumps", zorder=2, **JUMP))
    ax.autoscale_view()


def _draw_arrows(ax: Axes, lines: _Lines, look: Look, arrows: int, line_width: float, extent: FloatArray) -> None:
    """Draw heads of arrows at equal shares of the way of each trajectory."""
    at, ahead, owner = _arrow_places(lines, arrows)
    x, way = lines.points[at], lines.points[ahead] - lines.points[at]
    apart = _apart(x / np.where(extent > 0, extent, 1.0), way)
    if not apart.size:
        return
    at, owner, x, way = at[apart], owner[apart], x[apart], way[apart]
    # Nothing but a head, of the same size whatever the units: the length is in inches, and ends where the head does.
    inches = 0.07 + 0.03 * line_width
    options: dict[str, Any] = {
        "color": look.colors[owner] if look.scale is None else look.scale.to_rgba(lines.time[at]),
        "edgecolor": INK,
        "linewidth": 0.6,
        "zorder": 3,
        "angles": "xy",
        "pivot": "mid",
        "units": "inches",
        "scale_units": "inches",
        "scale": 1 / inches,
        "width": inches / 10,
        "headwidth": 8,
        "headlength": 10,
        "headaxislength": 8.5,
        "minlength": 0,
    }
    length = np.maximum(np.linalg.norm(way, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    ax.quiver(*x.T, *(way / length).T, **options)


def _arrow_places(lines: _Lines, arrows: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the point of each arrow, the one that it points to, and its trajectory."""
    found = []
    step = np.linalg.norm(np.diff(lines.points, axis=0), axis=1)
    pieces: dict[int, list[slice]] = {}
    for piece, owner in zip(lines.pieces, lines.owner, strict=True):
        pieces.setdefault(int(owner), []).append(piece)
    for owner, parts in pieces.items():
        at = np.concatenate([np.arange(piece.start, piece.stop - 1) for piece in parts])
        # The way of a particle that diffuses is that over some steps.
        reach = max((lines.offsets[owner + 1] - lines.offsets[owner]) // 20, 1)
        ahead = np.concatenate(
            [np.minimum(np.arange(piece.start, piece.stop - 1) + reach, piece.stop - 1) for piece in parts]
        )
        way = np.cumsum(step[at])
        if way[-1] > 0:
            for i in np.searchsorted(way, way[-1] * (np.arange(arrows) + 1) / (arrows + 1)):
                found.append((at[i], ahead[i], owner))
    table = np.array(found, dtype=np.int64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]


def _apart(x: FloatArray, way: FloatArray) -> NDArray[np.int64]:
    """Return arrows of which none lies on another that points a like way: of bundled lines, one is enough."""
    chosen: list[int] = []
    for i in range(len(x)):
        near = np.linalg.norm(x[chosen] - x[i], axis=1) < ARROW_DISTANCE
        if not (near & (way[chosen] @ way[i] > 0)).any():
            chosen.append(i)
    return np.array(chosen, dtype=np.int64)


def _draw_ends(
    ax: Axes, found: Trajectories, lines: _Lines, look: Look, *, show_start: bool, show_end: bool
) -> list[Line2D]:
    """Mark the first and last points, and return what the legend says of the marks."""
    handles = []
    if show_start:
        start = lines.points[lines.offsets[:-1]]
        ax.scatter(start[:, 0], start[:, 1], s=22, facecolors="white", edgecolors=INK, linewidths=0.9, zorder=4)
        handles.append(_mark("start", "o", markerfacecolor="white", markeredgewidth=0.9))
    if show_end:
        last = lines.offsets[1:] - 1
        colors = look.at(lines.time[last])
        edge: dict[str, Any] = {"edgecolors": INK, "linewidths": 0.6, "zorder": 5}
        for status, marker in END_MARKERS.items():
            ended = np.flatnonzero(found.status == status)
            if ended.size:
                x, y = lines.points[last[ended]].T
                ax.scatter(x, y, s=70 if marker == "*" else 26, c=colors[ended], marker=marker, **edge)
                handles.append(_mark(f"{status.message} ({ended.size})", marker, markeredgewidth=0))
    if lines.jumps.size:
        handles.append(stroke("jump of the embedding", INK, linewidth=1, linestyle=JUMP["linestyles"]))
    return handles


def _mark(label: str, marker: str, **kwargs: Any) -> Line2D:
    return dot(label, INK, marker=marker, markersize=9 if marker == "*" else 5.5, **kwargs)


def _draw_legend(ax: Axes, look: Look, parts: list[tuple[str, list[Line2D]]], color: str | None) -> None:
    """Draw one legend of lines, marks and cells; time and the numbers of cells have colour bars."""
    if look.scale is not None:
        color_bar(look.scale, ax, "Time along the trajectories", shrink=0.5, aspect=14, location="bottom")
    beside_cells(ax, parts, color)
