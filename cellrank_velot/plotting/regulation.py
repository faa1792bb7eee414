"""Which gene drives which: effects as a heat map, or as a network of activation and repression."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle
from matplotlib.path import Path as Curve
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from cellrank_velot._utils.lazy import nx
from cellrank_velot._utils.validation import check_choice, check_integer, check_known, check_number
from cellrank_velot.plotting._draw.colors import INK
from cellrank_velot.plotting._draw.figure import Canvas, FigureOptions, color_bar, drawing, draws
from cellrank_velot.regulation import Regulation

__all__ = ["regulation_heatmap", "regulation_network"]

FloatArray = NDArray[np.float64]

Layout = Literal["circular", "near"]
REPRESSION, ACTIVATION = "#0072B2", "#D55E00"
# An odd number of colours has one in the middle, white.
EFFECTS = LinearSegmentedColormap.from_list(
    "velot_effects", ["#00395C", REPRESSION, "white", ACTIVATION, "#6B2F00"], N=257
)
# Genes up to which each effect is written into its cell.
MAX_WRITTEN = 8
# Edges of a network that are drawn where no number is asked for; more are a tangle.
MANY_EDGES = 20
# Of a node in inches, in which a name has room, and where places lie within distance one of the centre.
NODE_INCHES, NODE_RADIUS = 0.27, 0.2
LARGEST_PANEL = 12.0


@draws
def regulation_heatmap(
    regulation: Regulation,
    groups: str | Sequence[str] | None = None,
    *,
    limit: float | None = None,
    cmap: str | Colormap = EFFECTS,
    n_columns: int = 4,
    **figure: Unpack[FigureOptions],
) -> Axes | list[Axes] | None:
    """Draw the mean effect of each gene, a column, on each gene, a row; one panel for each group.

    All panels have the same colours, white at zero. An effect whose interval holds zero is hatched. The title of a
    panel is its group, with the number of its cells.

    Parameters
    ----------
    regulation
        What :meth:`~cellrank_velot.OTVelocityKernel.compute_regulation` returned.
    groups
        Group, or several, to draw; all where not given.
    limit
        Effect of either sign at the ends of the colours; the strongest shown where not given.
    cmap
        Colours of the effects, from repression to activation.
    n_columns
        Number of panels in a row, at most.

    Returns
    -------
    The Axes where ``show=False``, a list of them for several groups; nothing otherwise.

    Raises
    ------
    KeyError
        If there is no such group.
    TypeError
        If it is no regulation.
    ValueError
        If ``limit`` is not positive, or the number of Axes is not that of the groups.

    Examples
    --------
    >>> regulation = vk.compute_regulation(
    ...     ["Stem", "FateA", "FateB"], groups="clusters", n_bootstrap=50
    ... )
    >>> panels = pl.regulation_heatmap(regulation, ["Progenitor", "Transition"], show=False)
    """
    chosen = _groups(regulation, groups)
    strongest = float(np.abs(regulation.jacobian[chosen]).max()) or 1.0
    end = strongest if limit is None else check_number("limit", limit, low=0, open_low=True)
    n_genes = regulation.names.size
    side = 1.3 + max(0.28 * n_genes, 0.62 * min(n_genes, 4))
    norm = Normalize(-end, end)
    scale = ScalarMappable(norm, cmap)
    with _drawing(figure, regulation, chosen, n_columns, (side + 0.5, side)) as canvas:
        for panel, at in zip(canvas.panels, chosen, strict=True):
            panel.imshow(regulation.jacobian[at], cmap=cmap, norm=norm, aspect="equal")
            _mark_cells(panel, regulation, at, scale)
            _name_axes(panel, regulation.names)
        color_bar(scale, canvas.panels, "Effect\nper unit of time", shrink=0.9, aspect=24)
    return canvas.result


@draws
def regulation_network(
    regulation: Regulation,
    groups: str | Sequence[str] | None = None,
    *,
    n_edges: int | None = None,
    min_stability: float = 0.95,
    self_loops: bool = True,
    layout: Layout | Mapping[str, tuple[float, float]] = "circular",
    legend: bool = True,
    n_columns: int = 3,
    **figure: Unpack[FigureOptions],
) -> Axes | list[Axes] | None:
    """Draw the strongest effects as a network: arrows activate, bars repress, wide ones are strong.

    Widths and places are the same in all panels. The title of a panel is its group, with the number of its cells.

    Parameters
    ----------
    regulation
        What :meth:`~cellrank_velot.OTVelocityKernel.compute_regulation` returned.
    groups
        Group, or several, to draw; all where not given.
    n_edges
        Number of edges of each group; the 20 strongest where not given.
    min_stability
        Least stability of the sign of an edge, in ``[0, 1]``.
    self_loops
        Whether to draw the effects of genes on themselves.
    layout
        ``"circular"``, ``"near"`` for genes to lie by those they have an edge with :cite:`kamada:89`, or the place
        of each gene, as layouts of networkx give it.
    legend
        Whether to draw the legend.
    n_columns
        Number of panels in a row, at most.

    Returns
    -------
    The Axes where ``show=False``, a list of them for several groups; nothing otherwise.

    Raises
    ------
    KeyError
        If there is no such group, or a gene has no place.
    TypeError
        If it is no regulation.
    ValueError
        If an option is out of range, or the number of Axes is not that of the groups.

    Examples
    --------
    >>> regulation = vk.compute_regulation(["Stem", "FateA", "FateB"], n_bootstrap=50)
    >>> ax = pl.regulation_network(regulation, n_edges=5, min_stability=0.5, show=False)
    """
    chosen = _groups(regulation, groups)
    n_edges = check_integer("n_edges", MANY_EDGES if n_edges is None else n_edges, low=1)
    edges = [
        regulation.edges(n_edges, name, self_loops=self_loops, min_stability=min_stability)
        for name in regulation.groups[chosen]
    ]
    edges = [table[table["effect"] != 0] for table in edges]
    end = max((table["effect"].abs().max() for table in edges if len(table)), default=1.0) or 1.0
    plan = _plan(_places(regulation.names, pd.concat(edges), layout))
    width, height = (plan.high - plan.low) * plan.inches
    with _drawing(figure, regulation, chosen, n_columns, (width, height + 0.6)) as canvas:
        for panel, table in zip(canvas.panels, edges, strict=True):
            _draw_network(panel, table, plan, end)
        if legend:
            _draw_legend(canvas.ax, end)
    return canvas.result


# ------------------------------------------------------------------------------------------------------ shared
def _groups(regulation: Regulation, groups: str | Sequence[str] | None) -> list[int]:
    """Return the positions of groups, after a look at what was given."""
    if not isinstance(regulation, Regulation):
        raise TypeError(f"Expected what `kernel.compute_regulation()` returned, found `{type(regulation).__name__}`.")
    if groups is None:
        return list(range(regulation.groups.size))
    asked = [groups] if isinstance(groups, str) else list(groups)
    for name in asked:
        check_known("groups", name, regulation.groups)
    if not asked:
        raise ValueError("Expected groups to draw, found none.")
    return [int(np.flatnonzero(regulation.groups == name)[0]) for name in asked]


def _title(regulation: Regulation, at: int, n_panels: int) -> str:
    name = str(regulation.groups[at])
    return "" if n_panels == 1 and name == "all" else f"{name} ({regulation.n_cells[at]})"


@contextmanager
def _drawing(
    figure: FigureOptions, regulation: Regulation, chosen: list[int], n_columns: int, size: tuple[float, float]
) -> Iterator[Canvas]:
    """Open a panel for each group, with its name as title; of one group the plot returns the Axes alone."""
    names = [_title(regulation, at, len(chosen)) for at in chosen]
    n_panels, title = (None, names[0]) if len(chosen) == 1 else (len(chosen), "")
    with drawing(figure, n_panels=n_panels, n_columns=n_columns, panel_size=size, title=title) as canvas:
        for panel, name in zip(canvas.panels, names, strict=True):
            panel.set_title(name)
        yield canvas


# ---------------------------------------------------------------------------------------------------- heat map
def _mark_cells(panel: Axes, regulation: Regulation, at: int, scale: ScalarMappable) -> None:
    """Hatch effects of either sign, and write effects where there is room."""
    unsure = (regulation.lower[at] <= 0) & (regulation.upper[at] >= 0)
    for row, column in np.argwhere(unsure):
        box: dict[str, Any] = {"facecolor": "none", "edgecolor": "#9AA0A6", "hatch": "////", "linewidth": 0}
        panel.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **box))
    if regulation.names.size > MAX_WRITTEN:
        return
    for (row, column), value in np.ndenumerate(regulation.jacobian[at]):
        red, green, blue, _ = map(float, scale.to_rgba(value))
        ink = INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
        panel.text(column, row, f"{value:+.2g}", ha="center", va="center", color=ink, fontsize=8)


def _name_axes(panel: Axes, names: NDArray[np.str_]) -> None:
    ticks = np.arange(names.size)
    aslant = max(map(len, names)) > 3 or names.size > MAX_WRITTEN
    turn: dict[str, Any] = {"rotation": 90} if aslant else {}
    size = 9 if names.size <= 12 else 7.5
    panel.set_xticks(ticks, list(names), fontsize=size, **turn)
    panel.set_yticks(ticks, list(names), fontsize=size)
    panel.set(xlabel="Source", ylabel="Target")
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)


# ----------------------------------------------------------------------------------------------------- network
def _places(
    names: NDArray[np.str_], edges: pd.DataFrame, layout: Layout | Mapping[str, tuple[float, float]]
) -> dict[str, FloatArray]:
    """Return where genes lie, the farthest at distance one from the centre."""
    if isinstance(layout, Mapping):
        for name in map(str, names):
            check_known("layout", name, layout)
        place = {str(name): np.asarray(layout[name], dtype=np.float64) for name in names}
    elif check_choice("layout", layout, Layout) == "circular":
        # The first gene lies at the left and the others follow clockwise, so that two lie beside each other.
        angle = np.pi - 2 * np.pi * np.arange(names.size) / names.size
        place = {str(name): np.array([np.cos(a), np.sin(a)]) for name, a in zip(names, angle, strict=True)}
    else:
        graph = nx.Graph()
        graph.add_nodes_from(map(str, names))
        graph.add_edges_from(edges[["source", "target"]].itertuples(index=False))
        steps = dict(nx.all_pairs_shortest_path_length(graph))
        # Genes that no edge joins would fly apart without a bound.
        bounded = {one: {other: min(steps[one].get(other, 3), 3) for other in graph} for one in graph}
        place = nx.kamada_kawai_layout(graph, dist=bounded)
    centre = np.mean(list(place.values()), axis=0)
    reach = max(float(np.linalg.norm(at - centre)) for at in place.values()) or 1.0
    return {name: (at - centre) / reach for name, at in place.items()}


@dataclass(frozen=True)
class _Plan:
    """Places of genes and the radius of a node, the corners of the panel around them, and the inches of a unit."""

    places: dict[str, FloatArray]
    radius: float
    low: FloatArray
    high: FloatArray
    inches: float


def _plan(places: dict[str, FloatArray]) -> _Plan:
    """Return nodes that do not overlap, in a panel that has room for their loops and is not flat."""
    points = np.array(list(places.values()))
    closest = (float(pdist(points).min()) or NODE_RADIUS) if len(points) > 1 else np.inf
    radius = min(NODE_RADIUS, 0.3 * closest)
    margin = 3.6 * radius
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    missing = np.maximum(0.5 * np.max(high - low) - (high - low), 0) / 2
    low, high = low - missing, high + missing
    return _Plan(places, radius, low, high, min(NODE_INCHES / radius, LARGEST_PANEL / float(np.max(high - low))))


def _draw_network(panel: Axes, edges: pd.DataFrame, plan: _Plan, end: float) -> None:
    """Draw nodes and the edges between them, the widest of the effect ``end``."""
    place, radius = plan.places, plan.radius
    graph = nx.from_pandas_edgelist(edges, edge_attr=["effect"], create_using=nx.DiGraph)
    for source, target, effect in graph.edges(data="effect"):
        if source == target:
            curve = _loop(source, place, radius)
        else:
            curve = _bend(place[source], place[target], radius, graph.has_edge(target, source))
        panel.add_patch(_arrow(curve, effect, end))
    for name, at in place.items():
        x, y = map(float, at)
        panel.add_patch(Circle((x, y), radius, facecolor="white", edgecolor="#555555", linewidth=1.2, zorder=3))
        # About six tenths of its size is the width of a letter, of which there are 72 to the inch.
        size = min(10.0, 72 * 1.9 * radius * plan.inches / (0.62 * len(name)))
        panel.text(x, y, name, ha="center", va="center", fontsize=size, color=INK, zorder=4)
    if not len(edges):
        panel.text(0, 0, "no edge of a stable sign", ha="center", va="center", color="#555555")
    panel.set(xlim=(plan.low[0], plan.high[0]), ylim=(plan.low[1], plan.high[1]), aspect="equal")
    panel.set_axis_off()


def _arrow(curve: Curve, effect: float, end: float) -> FancyArrowPatch:
    width = 0.8 + 3.2 * abs(effect) / end
    look = "-|>,head_length=0.45,head_width=0.25" if effect > 0 else "|-|,widthA=0,widthB=0.42"
    color = ACTIVATION if effect > 0 else REPRESSION
    scale = 8 + 2.2 * width
    shape: dict[str, Any] = {"path": curve, "arrowstyle": look, "mutation_scale": scale, "shrinkA": 0, "shrinkB": 0}
    return FancyArrowPatch(**shape, color=color, linewidth=width, fill=effect > 0, capstyle="butt", zorder=2)


def _bend(start: FloatArray, stop: FloatArray, radius: float, pair: bool) -> Curve:
    """Return the way from node to node, to the left of the straight one where another comes back."""
    way = stop - start
    length = float(np.linalg.norm(way)) or 1.0
    aside = np.array([-way[1], way[0]]) / length
    middle = (start + stop) / 2 + (0.16 if pair else 0.06) * length * aside
    ends = [at + (middle - at) / np.linalg.norm(middle - at) * 1.12 * radius for at in (start, stop)]
    return Curve([ends[0], middle, ends[1]], [Curve.MOVETO, Curve.CURVE3, Curve.CURVE3])


def _loop(name: str, place: dict[str, FloatArray], radius: float) -> Curve:
    """Return the way from a node back to it, on the side away from the nodes around it."""
    at = place[name]
    ways = np.array([at - other for one, other in place.items() if one != name]).reshape(-1, 2)
    out = np.sum(ways / np.maximum(np.sum(ways**2, axis=1, keepdims=True), 1e-12) ** 1.5, axis=0)
    length = float(np.linalg.norm(out))
    out = out / length if length > 1e-9 else np.array([0.0, 1.0])
    points = []
    for angle, reach in ((0.7, 1.08), (0.8, 4.0), (-0.8, 4.0), (-0.7, 1.15)):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points.append(at + turn @ out * reach * radius)
    return Curve(points, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])


def _draw_legend(panel: Axes, end: float) -> None:
    handles = [
        Line2D([], [], color=ACTIVATION, marker=">", linewidth=2, markersize=6, label="activates"),
        Line2D([], [], color=REPRESSION, marker="|", linewidth=2, markersize=9, markeredgewidth=2, label="represses"),
        Line2D([], [], color="#555555", linewidth=4.0, label=f"{end:.2g} per unit of time"),
        Line2D([], [], color="#555555", linewidth=2.4, label=f"{end / 2:.2g}"),
    ]
    panel.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, handlelength=2.4)
