"""Snapshots of a time series: the growth of their cells, and populations between them.

Depends on the shared files of this folder and :mod:`cellrank_velot.timeseries.interpolation`; reads AnnData.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from cellrank_velot._utils.validation import check_choice, check_integer, check_known, check_number
from cellrank_velot.plotting._draw.colors import BACKGROUND, INK, PROBABILITY, palette
from cellrank_velot.plotting._draw.embedding import HasAnnData
from cellrank_velot.plotting._draw.figure import close_figure, open_axes, style
from cellrank_velot.plotting._draw.plane import Plane, kernel_of, plane_of, share_labels
from cellrank_velot.timeseries.interpolation import Population

__all__ = ["growth_map", "population"]

FloatArray = NDArray[np.float64]

PopulationKind = Literal["density", "dots"]

# Loss, neither, growth: the middle is a grey that is still seen on white.
GROWTH = LinearSegmentedColormap.from_list(
    "velot_growth", ["#00395C", "#0072B2", "#8FBBDD", "#DADDE1", "#EBAE84", "#D55E00", "#6B2F00"]
)
# Share of the cells whose growth is within the colours: few cells grow much faster than all others.
WITHIN = 0.98
# Places with less than this share of the highest density are left white.
NEGLIGIBLE = 0.004


def growth_map(
    data: AnnData | HasAnnData,
    basis: str | None = None,
    *,
    dims: tuple[int, int] = (0, 1),
    times: Sequence[float] | float | None = None,
    together: bool = False,
    limit: float | None = None,
    n_columns: int = 4,
    cmap: str | Colormap = GROWTH,
    size: float | None = None,
    legend: bool = True,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
    ax: Axes | Sequence[Axes] | None = None,
) -> list[Axes] | None:
    """Draw the growth rate of the cells, one panel for each time point; what neither grows nor shrinks is grey.

    Rates are relative to the whole population where the kernel was not told how that grows.

    Parameters
    ----------
    data
        An :class:`~cellrank_velot.OTVelocityKernel` with experimental time, or an AnnData to which one was written,
        which is drawn in one panel.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``; that of the kernel, or ``"umap"`` for an
        AnnData, where not given.
    dims
        Its columns that are drawn.
    times
        Time points to draw; all where not given.
    together
        Whether to draw them in one panel.
    limit
        Rate at which the colours end on both sides; the 98th percentile of the absolute rates where not given.
    n_columns
        Number of panels in a row, at most.
    cmap
        Colours of the rates, zero in the middle.
    size
        Area of the cells in square points, by default smaller the more there are.
    legend
        Whether to draw the colour bar.
    title
        Title of the only panel; the time of each where not given.
    figsize, dpi, save, show
        As in :func:`process_paths`.
    ax
        Axes to draw into, one for each panel.

    Returns
    -------
    The list of Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding is missing, or no growth was written to an AnnData.
    RuntimeError
        If the kernel has pseudotime, or no velocity.
    TypeError
        If ``data`` is something else, or times are asked of an AnnData.
    ValueError
        If there are no cells at a time, an option is out of range, or the number of Axes is not that of the panels.

    Examples
    --------
    >>> panels = pl.growth_map(sk, times=[0, 3], show=False)
    """
    check_integer("n_columns", n_columns, low=1)
    growth = _growth_of(data)
    plane = plane_of(data, basis, dims)
    groups = _growth_groups(data, growth.size, times, together)
    if limit is None:
        shown = np.abs(growth[np.any([inside for _, inside in groups], axis=0)])
        limit = float(np.quantile(shown, WITHIN)) or 1.0
    check_number("limit", limit, low=0, open_low=True)
    scale = ScalarMappable(Normalize(-limit, limit), cmap)
    with style():
        figure, panels, ours = open_axes(
            ax,
            n_panels=len(groups),
            n_columns=n_columns,
            panel_size=(5.2, 4.0) if len(groups) == 1 else (2.9, 2.8),
            figsize=figsize,
            dpi=dpi,
        )
        for panel, (name, inside) in zip(panels, groups, strict=True):
            if not inside.all():
                plane.draw(panel, plane.cells, BACKGROUND, size=size, alpha=0.7)
            plane.draw(panel, plane.cells[inside], scale.to_rgba(growth[inside]), size=size)
            panel.set_title(name if title is None else title)
        share_labels(panels, n_columns, ours)
        if legend:
            _growth_bar(figure, panels, scale, growth, limit)
        return panels if close_figure(figure, ours=ours, save=save, show=show) else None


def population(
    data: Any,
    times: Population | float | Sequence[Population | float],
    basis: str | None = None,
    *,
    dims: tuple[int, int] = (0, 1),
    kind: PopulationKind = "density",
    snapshots: bool = True,
    n_grid: int = 120,
    smooth: float = 2.0,
    n_dots: int = 2000,
    n_columns: int = 5,
    cmap: str | Colormap = PROBABILITY,
    size: float | None = None,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
    ax: Axes | Sequence[Axes] | None = None,
) -> list[Axes] | None:
    """Draw interpolated populations next to the snapshots around them, one panel for each, in the order of time.

    Parameters
    ----------
    data
        An :class:`~cellrank_velot.OTVelocityKernel` with experimental time.
    times
        Populations of :meth:`cellrank_velot.OTVelocityKernel.interpolate`, or times to interpolate.
    basis, dims
        As in :func:`process_paths`.
    kind
        ``"density"`` with the same colours in all panels, or ``"dots"``: particles, as many where there is more mass.
    snapshots
        Whether to draw the time points from the one before the first to the one after the last population.
    n_grid
        Number of places of a density along each axis.
    smooth
        Width of the Gaussian that smooths it, in places.
    n_dots
        Number of dots of each panel.
    n_columns
        Number of panels in a row, at most.
    cmap
        Colours of the density.
    size
        Area of the dots in square points, by default smaller the more there are.
    legend
        Whether to draw the colour bar.
    figsize, dpi, save, show
        As in :func:`process_paths`.
    ax
        Axes to draw into, one for each panel.

    Returns
    -------
    The list of Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding is missing.
    RuntimeError
        If the kernel has pseudotime, or no velocity.
    TypeError
        If ``data`` is no kernel.
    ValueError
        If a time is outside, an option is unknown or out of range, or the number of Axes is not that of the panels.

    Examples
    --------
    >>> panels = pl.population(sk, sk.interpolate(1.5), kind="dots", show=False)
    >>> len(panels)  # days 1 and 2 on either side
    3
    """
    check_choice("kind", kind, PopulationKind)
    check_number("smooth", smooth, low=0)
    for option, value, low in (("n_grid", n_grid, 2), ("n_dots", n_dots, 1), ("n_columns", n_columns, 1)):
        check_integer(option, value, low=low)
    plane = plane_of(kernel_of(data), basis, dims)
    crowds = _crowds(data, plane, times, snapshots)
    n_columns = -(-len(crowds) // -(-len(crowds) // n_columns))
    with style():
        figure, panels, ours = open_axes(
            ax,
            n_panels=len(crowds),
            n_columns=n_columns,
            panel_size=(5.2, 4.0) if len(crowds) == 1 else (2.7, 2.7),
            figsize=figsize,
            dpi=dpi,
        )
        for panel, crowd in zip(panels, crowds, strict=True):
            plane.draw(panel, plane.cells, BACKGROUND, size=size, alpha=0.7)
            panel.set_title(f"Time {crowd.time:.3g}, " + ("cells" if crowd.observed else "interpolated"), fontsize=10)
        if kind == "density":
            _draw_densities(figure, panels, plane, crowds, n_grid, smooth, cmap, legend=legend)
        else:
            for panel, crowd in zip(panels, crowds, strict=True):
                plane.draw(panel, crowd.sample(n_dots), INK if crowd.observed else palette(1)[0], size=size)
        share_labels(panels, n_columns, ours)
        return panels if close_figure(figure, ours=ours, save=save, show=show) else None


def _growth_of(data: AnnData | HasAnnData) -> FloatArray:
    """Return the growth rates of a kernel, or those that were written."""
    if isinstance(data, AnnData):
        key = "velot_growth"
        check_known("adata.obs", key, data.obs.columns, "Call `kernel.write_to_adata()` first.")
        return data.obs[key].to_numpy(dtype=np.float64)
    return np.asarray(kernel_of(data).growth, dtype=np.float64)


def _growth_groups(
    data: Any, n_cells: int, times: Sequence[float] | float | None, together: bool
) -> list[tuple[str, NDArray[np.bool_]]]:
    """Return the title and the cells of each panel."""
    if isinstance(data, AnnData):
        if times is not None:
            raise TypeError("Expected a kernel, which knows the time of the cells, found `AnnData`.")
        return [("", np.ones(n_cells, dtype=bool))]
    time = data.cells.time
    points = np.unique(time)
    chosen = points if times is None else np.atleast_1d(np.asarray(times, dtype=np.float64))
    for point in chosen:
        if point not in points:
            raise ValueError(f"Expected `times` among the time points {points.tolist()}, found `{point:g}`.")
    if together:
        return [("", np.isin(time, chosen))]
    return [(f"Time {point:.3g}", time == point) for point in chosen]


def _growth_bar(figure: Figure, panels: list[Axes], scale: ScalarMappable, growth: FloatArray, limit: float) -> None:
    """Draw the colour bar, with pointed ends where there are rates beyond."""
    below, above = bool((growth < -limit).any()), bool((growth > limit).any())
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")
    label = "Growth rate per unit of time"
    bar = figure.colorbar(scale, ax=panels, shrink=0.8, aspect=18, pad=0.02, extend=extend, label=label)
    bar.outline.set_visible(False)


@dataclass(frozen=True)
class _Crowd:
    """Weighted points of the plane at a time: cells, or an interpolated population."""

    x: FloatArray
    weights: FloatArray
    time: float
    observed: bool

    def sample(self, n: int) -> FloatArray:
        """Return some of the points, more where there is more mass."""
        if self.observed:
            return self.x[np.random.default_rng(0).permutation(len(self.x))[:n]]
        return Population(self.x, self.weights, self.time, np.zeros(len(self.x), dtype=np.int64)).sample(n)

    def density(self, limits: tuple[FloatArray, FloatArray], n_grid: int, smooth: float) -> FloatArray:
        """Return the share of the mass at each place, shape ``[n_grid, n_grid]``, rows along the second axis."""
        low, high = limits
        edges = [np.linspace(low[i], high[i], n_grid + 1) for i in (0, 1)]
        table, *_ = np.histogram2d(self.x[:, 0], self.x[:, 1], bins=edges, weights=self.weights)
        smoothed: FloatArray = gaussian_filter(table.T, smooth)
        total = float(smoothed.sum())
        return smoothed / total if total > 0 else smoothed


def _crowds(
    data: Any, plane: Plane, times: Population | float | Sequence[Population | float], snapshots: bool
) -> list[_Crowd]:
    """Return the populations and the snapshots around them, by time."""
    asked = [times] if isinstance(times, Population) or np.ndim(times) == 0 else list(times)  # type: ignore[arg-type]
    if not asked:
        raise ValueError("Expected at least one time or population, found none.")
    found = [one if isinstance(one, Population) else data.interpolate(float(one)) for one in asked]  # type: ignore[arg-type]
    crowds = [_Crowd(plane.embed(one.x), one.weights, one.time, False) for one in found]
    if snapshots:
        points = np.unique(data.cells.time)
        first, last = (
            np.searchsorted(points, end) for end in (min(c.time for c in crowds), max(c.time for c in crowds))
        )
        around = points[max(int(first) - 1, 0) : int(last) + 1]
        for point in around:
            inside = data.cells.time == point
            crowds.append(_Crowd(plane.cells[inside], np.ones(int(inside.sum())), float(point), True))
    return sorted(crowds, key=lambda crowd: (crowd.time, not crowd.observed))


def _draw_densities(
    figure: Figure,
    panels: list[Axes],
    plane: Plane,
    crowds: list[_Crowd],
    n_grid: int,
    smooth: float,
    cmap: str | Colormap,
    *,
    legend: bool,
) -> None:
    """Draw the densities with the same colours; their root, so that sparse branches are seen next to dense ones."""
    low, high = plane.limits
    tables = [crowd.density((low, high), n_grid, smooth) for crowd in crowds]
    top = float(np.stack(tables).max())
    norm = PowerNorm(0.5, vmin=0.0, vmax=1.0)
    for panel, table in zip(panels, tables, strict=True):
        image = panel.imshow(
            np.where(table > NEGLIGIBLE * top, table / top, np.nan),
            extent=(low[0], high[0], low[1], high[1]),
            origin="lower",
            aspect="auto",
            cmap=cmap,
            norm=norm,
            zorder=2,
        )
    if legend:
        bar = figure.colorbar(
            image, ax=panels, shrink=0.8, aspect=18, pad=0.02, label="Density, relative to the highest"
        )
        bar.outline.set_visible(False)
        bar.set_ticks([0, 0.1, 0.25, 0.5, 1.0], labels=["0", "0.1", "0.25", "0.5", "1"])
