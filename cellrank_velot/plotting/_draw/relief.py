"""What maps and surfaces of a landscape share: heights and their colours, marks of states and passes, and the cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.validation import check_choice, check_integer
from cellrank_velot.cells import basis_name, read_plane
from cellrank_velot.landscape import Landscape
from cellrank_velot.plotting._draw.colors import BACKGROUND, INK
from cellrank_velot.plotting._draw.embedding import colors_by_name
from cellrank_velot.plotting._draw.figure import color_bar
from cellrank_velot.plotting._draw.kernel import HasAnnData, adata_of, time_of
from cellrank_velot.plotting._draw.legends import dot, sections

__all__ = ["Kind", "ReliefOptions", "Scene", "chosen_times", "is_3d", "scene_of"]

FloatArray = NDArray[np.float64]

Kind = Literal["contour", "surface"]
# What marks are lifted by above a surface, as a share of its height, so that it doesn't hide them.
LIFT = 0.015
# Cells drawn on a landscape, at most: more only hide it.
MAX_CELLS = 3000


def is_3d(ax: Axes) -> bool:
    """Return whether Axes have three dimensions."""
    return bool(ax.name == "3d")


@dataclass(frozen=True, kw_only=True)
class ReliefOptions(Options):
    """Options of a landscape's plot and animation, see :func:`cellrank_velot.pl.potential_landscape`."""

    kind: Kind
    cells: bool
    states: bool
    saddles: bool
    cluster_key: str | None
    levels: int
    cmap: str | Colormap
    view: tuple[float, float]

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, Kind)
        check_integer("levels", self.levels, low=2)


@dataclass(frozen=True)
class Scene:
    """What all panels share: the heights and their colours, the marks, and where the cells are."""

    landscape: Landscape
    options: ReliefOptions
    heights: FloatArray
    scale: ScalarMappable
    top: float
    colors: Mapping[str, str]
    minima: pd.DataFrame | None
    passes: pd.DataFrame | None
    cells: Sequence[FloatArray] | None

    def draw(self, ax: Axes, t: int) -> None:
        """Draw one time into empty Axes, with the time as title."""
        time = self.landscape.times[t]
        ax.set_title("" if np.isnan(time) else f"Time {time:.3g}")
        if is_3d(ax):
            self._draw_surface(ax, t)
        else:
            self._draw_map(ax, t)
        if self.cells is not None:
            x = self.cells[t]
            look = {"s": 2.5, "color": "white", "alpha": 0.5, "linewidths": 0, "rasterized": True}
            self._scatter(ax, t, x, zorder=2.5, label="cells", **look)
        self._mark(ax, t)
        self._dress(ax)

    def _draw_map(self, ax: Axes, t: int) -> None:
        # Contours of finite heights end smoothly at the ceiling; those of heights with NaN end in steps of the grid.
        ceiling = float(self.landscape.ceiling[t])
        levels = np.linspace(0, self.top, self.options.levels + 1)
        levels = np.append(levels[levels < ceiling - 1e-6 * self.top], ceiling)
        x, y = self.landscape.x, self.landscape.y
        if self.landscape.n_times > 1:  # where there are cells at any time, so that panels are compared
            share = (self.heights / self.landscape.ceiling[:, None, None]).min(axis=0)
            ax.contourf(x, y, share, levels=[-1.0, 1.0], colors=[BACKGROUND], alpha=0.6)
        ax.contourf(x, y, self.heights[t], levels=levels, cmap=self.scale.cmap, norm=self.scale.norm)
        ax.contour(x, y, self.heights[t], levels=levels[1:], colors="white", linewidths=0.4, alpha=0.6)

    def _draw_surface(self, ax: Any, t: int) -> None:
        ax.computed_zorder = False
        x, y = np.meshgrid(self.landscape.x, self.landscape.y)
        z = self.landscape.potential[t]
        look: dict[str, Any] = {"rstride": 1, "cstride": 1, "linewidth": 0, "antialiased": False, "shade": True}
        ax.plot_surface(x, y, z, facecolors=self.scale.to_rgba(z), zorder=1, **look)
        ax.view_init(*self.options.view)

    def _mark(self, ax: Axes, t: int) -> None:
        if self.minima is not None:
            found = self.minima[self._is_at(self.minima, t) & self.minima["x"].notna()]
            look: dict[str, Any] = {"s": 42, "edgecolors": "white", "linewidths": 1.2, "zorder": 4}
            colors = [self.colors[name] for name in found["state"]]
            self._scatter(ax, t, found[["x", "y"]].to_numpy(), label="states", facecolors=colors, **look)
        if self.passes is not None:
            found = self.passes[self._is_at(self.passes, t)]
            look = {"s": 30, "marker": "X", "facecolors": "white", "edgecolors": INK, "linewidths": 0.7, "zorder": 3}
            self._scatter(ax, t, found[["x", "y"]].to_numpy(), label="passes", **look)

    def _is_at(self, table: pd.DataFrame, t: int) -> NDArray[np.bool_]:
        time = self.landscape.times[t]
        return np.isnan(table["time"].to_numpy()) if np.isnan(time) else table["time"].to_numpy() == time

    def _scatter(self, ax: Any, t: int, x: FloatArray, **look: Any) -> None:
        """Draw points where they are in the plane, or on the surface."""
        if not is_3d(ax):
            ax.scatter(x[:, 0], x[:, 1], **look)
            return
        time = self.landscape.times[t]
        z = self.landscape.at(x, None if np.isnan(time) else time) if len(x) else np.empty(0)
        seen = np.isfinite(z)
        ax.scatter(*x[seen].T, z[seen] + LIFT * self.top, depthshade=False, **look)

    def _dress(self, ax: Any) -> None:
        name = basis_name(self.landscape.basis) or "dimension"
        labels = [f"{name} {dim + 1}" for dim in self.landscape.dims]
        ax.set(xlabel=labels[0], ylabel=labels[1], xticks=[], yticks=[])
        seen = np.isfinite(np.fmin.reduce(self.landscape.potential, axis=0))
        limits = ((ax.set_xlim, self.landscape.x, 0), (ax.set_ylim, self.landscape.y, 1))
        for set_limits, along, others in limits:
            inside = along[np.any(seen, axis=others)]
            margin = 0.03 * np.ptp(inside)
            set_limits(inside.min() - margin, inside.max() + margin)
        if is_3d(ax):
            ax.set(zlim=(0, self.top), zticks=[])
            ax.set_box_aspect((1.0, 1.0, 0.4), zoom=1.35)
            for direction in (ax.xaxis, ax.yaxis, ax.zaxis):
                direction.labelpad = -12
                direction.set_pane_color((1.0, 1.0, 1.0, 0.0))

    def draw_legend(self, place: Axes | Figure, panels: list[Axes], chosen: Sequence[int]) -> None:
        """Draw the colour bar and what the marks mean, to the right."""
        known = self.landscape.diffusion is not None
        label = "Quasi-potential $-\\sigma^2 \\log p \\, / \\, 2$" if known else "Quasi-potential $-\\log p$"
        color_bar(self.scale, panels, label).ax.yaxis.label.set_parse_math(True)
        parts: list[tuple[str, Sequence[Line2D]]] = []
        if self.minima is not None:
            drawn = np.any([self._is_at(self.minima, t) for t in chosen], axis=0) & self.minima["x"].notna()
            names = [name for name in self.colors if name in set(self.minima["state"][drawn])]
            parts.append(("Lowest point of", [dot(name, self.colors[name]) for name in names]))
        if self.passes is not None and len(self.passes):
            cross = dot("lowest pass", "white", marker="X", markeredgecolor=INK, markeredgewidth=0.7)
            parts.append(("Between states", [cross]))
        if parts:
            sections(place, parts)


def scene_of(data: AnnData | HasAnnData, landscape: Landscape, options: ReliefOptions) -> Scene:
    """Return what all panels share."""
    named = list(map(str, landscape.states))
    # As few colours as levels: a GIF has 256 in all, and those of the states must be among them.
    cmap = colormaps[options.cmap] if isinstance(options.cmap, str) else options.cmap
    top = float(np.nanmax(landscape.potential))
    return Scene(
        landscape=landscape,
        options=options,
        heights=landscape.height,
        scale=ScalarMappable(Normalize(0, top), cmap.resampled(options.levels)),
        top=top,
        colors=colors_by_name(data, named, options.cluster_key, "states of the landscape"),
        minima=landscape.minima() if options.states and named else None,
        passes=_lowest_passes(landscape) if options.saddles and len(named) > 1 else None,
        cells=_cells_of(data, landscape) if options.cells else None,
    )


def chosen_times(landscape: Landscape, times: Sequence[float] | float | None) -> list[int]:
    """Return the indices of the times to draw."""
    if not isinstance(landscape, Landscape):
        raise TypeError(f"Expected `landscape` to be a `Landscape`, found `{type(landscape).__name__}`.")
    if times is None:
        return list(range(landscape.n_times))
    chosen = []
    for time in np.atleast_1d(times):
        near = np.flatnonzero(np.isclose(landscape.times, time))
        if not near.size:
            raise ValueError(f"Expected times of the landscape {landscape.times.tolist()}, found `{time:g}`.")
        chosen.append(int(near[0]))
    return chosen


def _lowest_passes(landscape: Landscape) -> pd.DataFrame:
    """Return, at each time, the saddles over which all states are connected by the lowest ways, where there are any."""
    table = landscape.barriers()
    table = table[np.isfinite(table["saddle"])].sort_values("saddle", kind="stable")
    kept = []
    for _, rows in table.groupby("time", dropna=False):
        climbs = rows.set_index(["from", "to"])["barrier"].to_dict()
        group = {str(name): str(name) for name in landscape.states}
        for index, (start, end) in zip(rows.index, climbs, strict=True):
            one, other = group[start], group[end]
            if one == other:
                continue
            group = {name: one if root == other else root for name, root in group.items()}
            if min(climbs[start, end], climbs[end, start]) > 0:
                kept.append(index)
    return table.loc[kept]


def _cells_of(data: AnnData | HasAnnData, landscape: Landscape) -> list[FloatArray]:
    """Return the positions of the cells of each time, or of some of them."""
    adata = adata_of(data)
    x = read_plane(adata, landscape.basis, landscape.dims)
    order = np.random.default_rng(0).permutation(len(x))
    if np.isnan(landscape.times[0]):
        return [x[order[:MAX_CELLS]]]
    of_cell, found = time_of(data), []
    for time in landscape.times:
        near = np.isclose(of_cell, time) | (np.abs(of_cell - time) <= landscape.window)
        found.append(x[order[near[order]][:MAX_CELLS]])
    return found
