"""Snapshots of a time series: the growth of their cells, and populations between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, PowerNorm
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from cellrank_velot._utils.validation import check_choice, check_integer, check_number
from cellrank_velot.plotting._draw.colors import INK, PROBABILITY, palette, scale_of
from cellrank_velot.plotting._draw.figure import FigureOptions, color_bar, drawing, draws, even_columns
from cellrank_velot.plotting._draw.kernel import HasAnnData, estimate_of, kernel_of, time_of
from cellrank_velot.plotting._draw.plane import Plane, plane_of
from cellrank_velot.timeseries import Population

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


@draws
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
    **figure: Unpack[FigureOptions],
) -> list[Axes] | None:
    """Draw the growth rate of the cells, one panel for each time point. Cells that neither grow nor shrink are grey.

    Rates are per unit of time. They are relative to the whole population where the kernel was not told how that grows.

    Parameters
    ----------
    data
        An :class:`~cellrank_velot.OTVelocityKernel` with experimental time, or an AnnData to which one was written,
        which is drawn in one panel.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``; that of the kernel, or ``"umap"`` for an
        AnnData, where not given.
    dims
        The two columns of ``basis`` that are drawn, counted from 0.
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
        Area of the cells in square points; by default smaller the more there are.
    legend
        Whether to draw the colour bar.

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
        If ``data`` is of another type, or times are asked of an AnnData.
    ValueError
        If there are no cells at a time, an option is out of range, or the number of Axes is not that of the panels.

    Examples
    --------
    >>> panels = pl.growth_map(sk, times=[0, 3], show=False)
    """
    growth = estimate_of(data, "growth")
    plane = plane_of(data, basis, dims)
    groups = _growth_groups(data, growth.size, times, together)
    if limit is None:
        shown = np.abs(growth[np.any([inside for _, inside in groups], axis=0)])
        limit = float(np.quantile(shown, WITHIN)) or 1.0
    check_number("limit", limit, low=0, open_low=True)
    scale = scale_of(growth, cmap, (-limit, limit))
    panel_size = (5.2, 4.0) if len(groups) == 1 else (2.9, 2.8)
    with drawing(figure, n_panels=len(groups), n_columns=n_columns, panel_size=panel_size) as canvas:
        for panel, (name, inside) in zip(canvas.panels, groups, strict=True):
            if not inside.all():
                plane.draw_behind(panel, size=size)
            plane.draw(panel, plane.cells[inside], scale.to_rgba(growth[inside]), size=size)
            panel.set_title(name)
        canvas.share_labels()
        if legend:
            ends = {(True, True): "both", (True, False): "min", (False, True): "max"}
            beyond = bool((growth < -limit).any()), bool((growth > limit).any())
            label = "Growth rate per unit of time"
            color_bar(scale, canvas.panels, label, shrink=0.8, extend=ends.get(beyond, "neither"))
    return canvas.result


@draws
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
    **figure: Unpack[FigureOptions],
) -> list[Axes] | None:
    """Draw interpolated populations next to the snapshots around them, one panel for each, in the order of time.

    Parameters
    ----------
    data
        An :class:`~cellrank_velot.OTVelocityKernel` with experimental time.
    times
        Populations of :meth:`cellrank_velot.OTTimeSeriesKernel.interpolate`, or times to interpolate.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``; the basis of the kernel where not given. In
        another one, interpolated cells are placed among the nearest cells.
    dims
        The two columns of ``basis`` that are drawn, counted from 0.
    kind
        ``"density"`` with the same colours in all panels, or ``"dots"``: particles, as many where there is more mass.
    snapshots
        Whether to draw the time points from the one before the first to the one after the last population.
    n_grid
        Number of places of a density along each axis.
    smooth
        Width of the Gaussian that smooths a density, in places.
    n_dots
        Number of dots of each panel, at most.
    n_columns
        Number of panels in a row, at most. Rows are made equally long.
    cmap
        Colours of the density.
    size
        Area of the dots in square points; by default smaller the more there are.
    legend
        Whether to draw the colour bar of the density.

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
    check_integer("n_grid", n_grid, low=2)
    check_integer("n_dots", n_dots, low=1)
    plane = plane_of(kernel_of(data, "cells", "interpolate"), basis, dims)
    crowds = _crowds(data, plane, times, snapshots)
    n_panels = len(crowds)
    panel_size = (5.2, 4.0) if n_panels == 1 else (2.7, 2.7)
    columns = even_columns(n_panels, n_columns)
    with drawing(figure, n_panels=n_panels, n_columns=columns, panel_size=panel_size) as canvas:
        for panel, crowd in zip(canvas.panels, crowds, strict=True):
            plane.draw_behind(panel, size=size)
            panel.set_title(f"Time {crowd.time:.3g}, " + ("cells" if crowd.observed else "interpolated"), fontsize=10)
            if kind == "dots":
                plane.draw(panel, crowd.sample(n_dots), INK if crowd.observed else palette(1)[0], size=size)
        if kind == "density":
            densities = [crowd.density(plane.limits, n_grid, smooth) for crowd in crowds]
            image = _draw_densities(canvas.panels, plane, densities, cmap)
            if legend:
                bar = color_bar(image, canvas.panels, "Density, relative to the highest", shrink=0.8)
                bar.set_ticks([0, 0.1, 0.25, 0.5, 1.0], labels=["0", "0.1", "0.25", "0.5", "1"])
        canvas.share_labels()
    return canvas.result


# -------------------------------------------------------------------------------------------------------------- growth
def _growth_groups(
    data: Any, n_cells: int, times: Sequence[float] | float | None, together: bool
) -> list[tuple[str, NDArray[np.bool_]]]:
    """Return the title and the cells of each panel."""
    if isinstance(data, AnnData) and times is None:
        return [("", np.ones(n_cells, dtype=bool))]
    time = time_of(data)
    points = np.unique(time)
    chosen = points if times is None else np.atleast_1d(np.asarray(times, dtype=np.float64))
    if not chosen.size:
        raise ValueError("Expected at least one time point in `times`, found none.")
    for point in chosen:
        if point not in points:
            raise ValueError(f"Expected `times` among the time points {points.tolist()}, found `{point:g}`.")
    if together:
        return [("", np.isin(time, chosen))]
    return [(f"Time {point:.3g}", time == point) for point in chosen]


# --------------------------------------------------------------------------------------------------------- populations
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
    kernel: Any, plane: Plane, times: Population | float | Sequence[Population | float], snapshots: bool
) -> list[_Crowd]:
    """Return the populations and the snapshots around them, by time."""
    asked = [times] if isinstance(times, Population) or np.ndim(times) == 0 else list(times)  # type: ignore[arg-type]
    if not asked:
        raise ValueError("Expected at least one time or population, found none.")
    found = [one if isinstance(one, Population) else kernel.interpolate(float(one)) for one in asked]  # type: ignore[arg-type]
    crowds = [_Crowd(plane.embed(one.x), one.weights, one.time, False) for one in found]
    if snapshots:
        time, ends = kernel.cells.time, [crowd.time for crowd in crowds]
        points = np.unique(time)
        first, last = np.searchsorted(points, [min(ends), max(ends)])
        for point in points[max(int(first) - 1, 0) : int(last) + 1]:
            cells = plane.cells[time == point]
            crowds.append(_Crowd(cells, np.ones(len(cells)), float(point), True))
    return sorted(crowds, key=lambda crowd: (crowd.time, not crowd.observed))


def _draw_densities(
    panels: list[Axes], plane: Plane, densities: list[FloatArray], cmap: str | Colormap
) -> ScalarMappable:
    """Draw the densities with the same colours; their root, so that sparse branches are seen next to dense ones."""
    (left, bottom), (right, top) = plane.limits
    highest = float(np.stack(densities).max())
    look: dict[str, Any] = {"origin": "lower", "aspect": "auto", "zorder": 2, "extent": (left, right, bottom, top)}
    norm = PowerNorm(0.5, vmin=0.0, vmax=1.0)
    for panel, density in zip(panels, densities, strict=True):
        seen = np.where(density > NEGLIGIBLE * highest, density / highest, np.nan)
        panel.imshow(seen, cmap=cmap, norm=norm, **look)
    return ScalarMappable(norm, cmap)
