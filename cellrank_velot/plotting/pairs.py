"""Windows in an embedding: pairs of them, and the transport of one pair as arcs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_integer, check_known, check_number
from cellrank_velot.cells import read_embedding
from cellrank_velot.graph import smooth_cells
from cellrank_velot.plotting._draw.colors import BACKGROUND, INK, palette_of
from cellrank_velot.plotting._draw.embedding import dot_size, draw_cells
from cellrank_velot.plotting._draw.figure import FigureOptions, drawing, draws, even_columns
from cellrank_velot.plotting._draw.kernel import HasAnnData, saved_or_kernel, transport_of, windows_of
from cellrank_velot.plotting._draw.legends import RIGHT, dot, stroke
from cellrank_velot.plotting.clusters import clusters_of
from cellrank_velot.transport import TransportOptions, Windows, pair_coupling

__all__ = ["window_transport", "windows"]

# Orange and blue of Okabe and Ito, of which the blue is much the darker.
SOURCE, TARGET = "#E69F00", "#0072B2"
# Shapes of source, target and shared cells where colours say something else.
SHAPES = ("o", "^", "D")
# Bend of an arc, as a share of its length, and points that it is drawn through.
BEND, ARC_POINTS = 0.22, 24


@draws
def windows(
    data: AnnData | HasAnnData,
    basis: str = "umap",
    pairs: int | Sequence[int] | None = None,
    *,
    max_pairs: int = 12,
    n_columns: int = 4,
    key: str = "T_fwd",
    size: float | None = None,
    **figure: Unpack[FigureOptions],
) -> list[Axes] | None:
    """Draw pairs of windows, one panel for each: cells of the source, cells of the target, others grey.

    Each panel names the pair, the cluster that most of its cells are in, and the mean times of both windows, as a share
    of the whole time.

    Parameters
    ----------
    data
        An :class:`~cellrank_velot.OTVelocityKernel` with its windows, or an AnnData to which one was written.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``.
    pairs
        Rows of ``kernel.windows.pairs`` to draw, in this order. Where not given, some that are spread evenly over the
        clusters and, within each, over time, the earliest first.
    max_pairs
        Number of pairs to draw at most where ``pairs`` is not given.
    n_columns
        Number of panels in a row, at most.
    key
        Key under which the kernel was written, for an AnnData.
    size
        Area of the cells in the windows in square points, by default smaller the more there are; the others have half
        of it.

    Returns
    -------
    The list of Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding is missing or no kernel was written to the AnnData.
    RuntimeError
        If the kernel has no windows.
    TypeError
        If ``data`` is of another type, or a pair is not an integer.
    ValueError
        If there is no such pair, or the number of Axes is not that of the pairs.

    Examples
    --------
    >>> panels = pl.windows(vk, pairs=[0, 5, 10], show=False)
    >>> len(panels)
    3
    """
    check_integer("max_pairs", max_pairs, low=1)
    check_integer("n_columns", n_columns, low=1)
    kernel = saved_or_kernel(data, key)
    found = windows_of(kernel)
    x, name = read_embedding(kernel.adata, basis)
    clusters, _ = clusters_of(kernel, found)
    chosen = (
        _spread_pairs(found, clusters.codes, kernel.cells.time, max_pairs)
        if pairs is None
        else _check_pairs("pairs", pairs, found)
    )
    size = size or dot_size(len(x), 10_000, 3, 14)
    n_columns = even_columns(len(chosen), n_columns)
    panel_size = (3.4, 3.0) if n_columns == 1 else (2.4, 2.4)
    roles = [_roles(found, pair) for pair in chosen]
    with drawing(figure, n_panels=len(chosen), n_columns=n_columns, panel_size=panel_size) as canvas:
        for panel, pair, cells in zip(canvas.panels, chosen, roles, strict=True):
            _draw_others(panel, x, name, cells, size=size / 2)
            _draw_roles(panel, x, name, cells, size=size)
            panel.set_title(_pair_title(found, pair, clusters, kernel.cells.time), fontsize=9)
        canvas.share_labels()
        handles = _role_handles(any(shared.size for _, _, shared in roles))
        _legend(canvas.legend_place, handles, n_columns=4 if n_columns > 2 else 2)
    return canvas.result


@draws
def window_transport(
    data: AnnData | HasAnnData,
    pair: int,
    basis: str = "umap",
    color: str | None = None,
    *,
    max_arcs: int = 100,
    mass: float = 0.5,
    key: str = "T_fwd",
    size: float | None = None,
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw the transport of one pair of windows: an arc from each source cell to the target cells that it goes to.

    The wider and darker an arc, the more mass goes along it. Only the heaviest arcs are drawn, and none from a cell to
    itself, where the windows share it. The default title names the pair, and says how much of the mass the arcs carry.

    Parameters
    ----------
    data
        An :class:`~cellrank_velot.OTVelocityKernel` with its velocity, or an AnnData to which one was written.
    pair
        Row of ``kernel.windows.pairs``; :func:`windows` shows some with their numbers.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``.
    color
        Column of ``adata.obs`` with categories that colour the cells; source and target then differ in shape. By
        default they differ in colour.
    max_arcs
        Number of arcs at most.
    mass
        Share of the mass between different cells that the arcs are to carry: no more are drawn than it takes.
    key
        Key under which the kernel was written, for an AnnData.
    size
        Area of the cells in the windows in square points, 42 where not given; the others have half of it.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding or the colour is missing, or no kernel was written to the AnnData.
    RuntimeError
        If the kernel has no windows or no velocity.
    TypeError
        If ``data`` is of another type, ``pair`` is not an integer, or the colour has numbers.
    ValueError
        If there is no such pair, it has no difference in time, or ``max_arcs`` or ``mass`` is out of range.

    Examples
    --------
    >>> ax = pl.window_transport(vk, 5, max_arcs=40, show=False)
    """
    check_integer("max_arcs", max_arcs, low=1)
    check_number("mass", mass, low=0, high=1, open_low=True)
    kernel = saved_or_kernel(data, key)
    found = windows_of(kernel)
    x, name = read_embedding(kernel.adata, basis)
    (pair,) = _check_pairs("pair", pair, found)
    groups = None if color is None else _categories(kernel.adata, color)
    plan = _plan(kernel, found, pair)
    source, target = (found.cells(window) for window in found.pairs[pair])
    arcs = _heaviest(plan, source, target, max_arcs, mass)
    roles = _roles(found, pair)
    size = size or 42.0
    clusters, _ = clusters_of(kernel, found)
    title = _pair_title(found, pair, clusters, kernel.cells.time, ", ") + f"\n{arcs}"
    with drawing(figure, panel_size=(6.6, 4.4), title=title) as canvas:
        panel = canvas.ax
        _draw_others(panel, x, name, roles, size=size / 2)
        paths = _draw_arcs(panel, x[arcs.source], x[arcs.target], arcs.mass)
        if groups is None:
            _draw_roles(panel, x, name, roles, size=size)
            handles = _role_handles(roles[2].size > 0)
        else:
            colors = palette_of(kernel.adata, str(color), list(groups.categories))
            handles = _draw_shapes(panel, x, name, roles, groups, colors, size=size)
        _zoom(panel, np.concatenate([x[np.concatenate(roles)], *paths]))
        _legend(panel, [*handles, *_arc_handles(arcs.mass * source.size)])
    return canvas.result


# ----------------------------------------------------------------------------------------------- what is drawn
def _categories(adata: AnnData, key: str) -> pd.Categorical:
    check_known("adata.obs", key, adata.obs.columns)
    values = adata.obs[key]
    if pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype):
        raise TypeError(f"Expected `color` to be a column of categories, found numbers in `adata.obs[{key!r}]`.")
    return pd.Categorical(values)


def _check_pairs(name: str, pairs: Any, found: Windows) -> list[int]:
    chosen = [check_integer(name, pair) for pair in (pairs if np.ndim(pairs) else [pairs])]
    unknown = [pair for pair in chosen if pair >= found.n_pairs]
    if unknown or not chosen:
        raise ValueError(f"Expected `{name}` from `0` to `{found.n_pairs - 1}`, found `{unknown or 'none'}`.")
    return chosen


def _pair_clusters(found: Windows, codes: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return the cluster that most cells of each pair are in, shape ``[n_pairs]``."""
    counts = np.zeros((found.n_windows, int(codes.max()) + 1), dtype=np.int64)
    np.add.at(counts, (np.repeat(np.arange(found.n_windows), found.sizes), codes[found.indices]), 1)
    return np.asarray(counts[found.pairs].sum(axis=1).argmax(axis=1))


def _mean_times(found: Windows, time: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean time of each window, shape ``[n_windows]``."""
    return np.asarray(np.add.reduceat(time[found.indices], found.offsets[:-1]) / found.sizes)


def _spread_pairs(
    found: Windows, codes: NDArray[np.integer[Any]], time: NDArray[np.float64], max_pairs: int
) -> list[int]:
    """Choose pairs: as many of each cluster as can be, evenly over its time, or of some clusters, if they are more."""
    middle = _mean_times(found, time)[found.pairs].mean(axis=1)
    of_cluster = _pair_clusters(found, codes)
    groups = [np.flatnonzero(of_cluster == cluster) for cluster in np.unique(of_cluster)]
    groups = sorted((group[np.argsort(middle[group])] for group in groups), key=lambda group: middle[group].mean())
    n_pairs = min(max_pairs, found.n_pairs)
    quota = np.zeros(len(groups), dtype=np.int64)
    quota[_evenly(len(groups), min(n_pairs, len(groups)))] = 1
    room = np.array([group.size for group in groups])
    while quota.sum() < n_pairs:
        quota[np.lexsort((quota - room, quota, quota >= room))[0]] += 1
    chosen = np.concatenate([group[_evenly(group.size, n)] for group, n in zip(groups, quota, strict=True)])
    return [int(pair) for pair in chosen[np.argsort(middle[chosen])]]


def _evenly(n: int, n_chosen: int | np.int64) -> NDArray[np.int64]:
    """Return so many places among ``n``, each in the middle of an equal share."""
    return ((np.arange(n_chosen) + 0.5) * n / max(n_chosen, 1)).astype(np.int64)


def _roles(found: Windows, pair: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the cells of the source alone, of the target alone, and those that both windows have."""
    source, target = (found.cells(window) for window in found.pairs[pair])
    return np.setdiff1d(source, target), np.setdiff1d(target, source), np.intersect1d(source, target)


def _pair_title(found: Windows, pair: int, clusters: pd.Categorical, time: NDArray[np.float64], sep: str = "\n") -> str:
    cluster = str(clusters.categories[_pair_clusters(found, clusters.codes)[pair]])
    before, after = _mean_times(found, time)[found.pairs[pair]]
    named = f"cluster {cluster}" if cluster.isdigit() else cluster if len(cluster) <= 22 else f"{cluster[:21]}…"
    return f"Pair {pair}, {named}{sep}time {before:.2f} → {after:.2f}"


def _plan(kernel: Any, found: Windows, pair: int) -> NDArray[np.float64]:
    """Return the coupling of a pair that the velocity of the kernel was computed with."""
    transport_of(kernel)
    if kernel.cells.is_series:
        raise RuntimeError("Expected windows of pseudotime, found time points: see `kernel.coupling(source, target)`.")
    settings = kernel.settings["velocity"]
    options = TransportOptions(**settings)
    cells = smooth_cells(kernel.cells.x, kernel.cells.time, kernel.connectivities, found.n_smooth)
    return pair_coupling(cells.x, cells.time, found, pair, cells.graph, options)


@dataclass(frozen=True)
class _Arcs:
    """Source and target cell and mass of each arc, the lightest first; and the mass that stays where it is."""

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    mass: NDArray[np.float64]
    staying: float

    def __str__(self) -> str:
        stay = f", {self.staying:.0%} stay in their cell" if self.staying >= 0.005 else ""
        return f"{self.mass.size} arcs carry {self.mass.sum():.0%} of the mass{stay}"


def _heaviest(
    plan: NDArray[np.float64], source: NDArray[np.int64], target: NDArray[np.int64], max_arcs: int, mass: float
) -> _Arcs:
    """Return the fewest arcs that carry a share of the mass between different cells, but not more than so many."""
    moving = np.where(source[:, None] == target, 0.0, plan)
    order = np.argsort(-moving, axis=None, kind="stable")[:max_arcs]
    heavy = moving.ravel()[order]
    # Sums in another order differ in their last digits, which must not cost another arc.
    enough = int(np.searchsorted(np.cumsum(heavy), mass * moving.sum() * (1 - 1e-9))) + 1
    n_arcs = min(enough, np.count_nonzero(heavy))
    row, column = np.unravel_index(order[:n_arcs][::-1], plan.shape)
    return _Arcs(source[row], target[column], heavy[:n_arcs][::-1], float(plan.sum() - moving.sum()))


# ------------------------------------------------------------------------------------------------ how it is drawn
def _draw_others(ax: Axes, x: NDArray[np.float64], name: str, roles: Any, *, size: float) -> None:
    others = np.ones(len(x), dtype=np.bool_)
    others[np.concatenate(roles)] = False
    draw_cells(ax, x[others], name, BACKGROUND, size=size)


def _draw_roles(ax: Axes, x: NDArray[np.float64], name: str, roles: Any, *, size: float) -> None:
    """Draw source and target by colour; a cell of both has half of each."""
    source, target, shared = roles
    left, right = (MarkerStyle("o", fillstyle=side) for side in ("left", "right"))
    for cells, color, marker in (
        (source, SOURCE, "o"),
        (target, TARGET, "o"),
        (shared, SOURCE, left),
        (shared, TARGET, right),
    ):
        draw_cells(ax, x[cells], name, color, size=size, marker=marker, zorder=3)


def _draw_shapes(
    ax: Axes,
    x: NDArray[np.float64],
    name: str,
    roles: Any,
    groups: pd.Categorical,
    colors: Any,
    *,
    size: float,
) -> list[Line2D]:
    """Draw source and target by shape, coloured by category, and return what the legend says."""
    table = np.array([*(colors[category] for category in groups.categories), BACKGROUND])
    handles = []
    for cells, shape, label in zip(roles, SHAPES, ("source", "target", "both"), strict=True):
        draw_cells(ax, x[cells], name, table[groups.codes[cells]], size=size, marker=shape, zorder=3)
        if cells.size:
            handles.append(dot(label, INK, marker=shape, markerfacecolor="none", markeredgewidth=1))
    present = set(groups.codes[np.concatenate(roles)])
    return handles + [dot(str(c), colors[c]) for i, c in enumerate(groups.categories) if i in present]


def _draw_arcs(
    ax: Axes, start: NDArray[np.float64], end: NDArray[np.float64], mass: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Draw arcs, wide and dark by their mass, and return their points, shape ``[n_arcs, n_points, 2]``."""
    way = end - start
    # All bend to the same side of their way, so that there and back are told apart.
    control = (start + end) / 2 + BEND * np.column_stack([-way[:, 1], way[:, 0]])
    t = np.linspace(0, 1, ARC_POINTS)[:, None]
    # Quadratic Bezier curves.
    paths = (1 - t) ** 2 * start[:, None] + 2 * t * (1 - t) * control[:, None] + t**2 * end[:, None]
    ax.add_collection(LineCollection(list(paths), zorder=2, **_strokes(mass / mass.max())))
    return paths


def _strokes(share: NDArray[np.float64]) -> dict[str, Any]:
    """Return width and colour of arcs by their mass, as a share of the largest."""
    colors = np.tile(to_rgba(INK), (share.size, 1))
    colors[:, 3] = 0.15 + 0.6 * share
    return {"linewidths": 0.3 + 2.4 * share, "colors": colors}


def _role_handles(shared: bool) -> list[Line2D]:
    handles = [dot("source window", SOURCE), dot("target window", TARGET)]
    if shared:
        handles.append(dot("both", SOURCE, fillstyle="left", markerfacecoloralt=TARGET))
    return [*handles, dot("other cells", BACKGROUND)]


def _arc_handles(share: NDArray[np.float64]) -> list[Line2D]:
    """Return the widest and the narrowest arc, with the share of a source cell's mass that goes along them."""
    ends = np.array([share.max(), share.min()])
    strokes = _strokes(ends / share.max())
    return [
        stroke(f"{value:.0%} of a cell's mass", color, linewidth=width)
        for value, width, color in zip(ends, strokes["linewidths"], strokes["colors"], strict=True)
    ]


def _legend(place: Axes | Figure, handles: list[Line2D], *, n_columns: int = 1) -> None:
    """Draw a legend below a figure, or to the right of an Axes."""
    where = RIGHT if isinstance(place, Axes) else {"loc": "outside lower center", "ncols": n_columns}
    place.legend(handles=handles, handletextpad=0.4, **where)


def _zoom(ax: Axes, points: NDArray[np.float64], margin: float = 0.05) -> None:
    """Show these points, and a little room around."""
    low, high = points.min(axis=0), points.max(axis=0)
    room = margin * np.where(high > low, high - low, 1.0)
    ax.set(xlim=(low[0] - room[0], high[0] + room[0]), ylim=(low[1] - room[1], high[1] + room[1]))
