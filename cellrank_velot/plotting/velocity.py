"""Velocity in an embedding: streams of arrows, arrows on a grid, at cells, and before and after smoothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Unpack

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.preprocessing import normalize as normalized

from cellrank_velot._utils.validation import check_choice, check_integer, check_number
from cellrank_velot.cells import read_embedding
from cellrank_velot.embedding.grid import VelocityGrid, velocity_on_grid
from cellrank_velot.embedding.projection import Weighting, project_by_linear_map, project_by_transitions
from cellrank_velot.plotting._draw.arrows import arrows_of, draw_arrows, draw_cells_below, grid_arrows, usual_color
from cellrank_velot.plotting._draw.colors import INK
from cellrank_velot.plotting._draw.embedding import LegendLoc, place_of
from cellrank_velot.plotting._draw.figure import FigureOptions, drawing, draws
from cellrank_velot.plotting._draw.kernel import HasAnnData, adata_of, estimate_of, graph_of, transitions_of, weights_of

__all__ = [
    "Method",
    "draw_streams",
    "projected",
    "velocity_comparison",
    "velocity_grid",
    "velocity_quiver",
    "velocity_stream",
    "where_placed",
]

FloatArray = NDArray[np.float64]

Method = Literal["transitions", "linear_map"]
PANEL = (5.6, 4.2)


@draws
def velocity_stream(
    data: AnnData | HasAnnData,
    basis: str = "umap",
    color: str | None = "auto",
    *,
    method: Method = "transitions",
    weighting: Weighting = "none",
    key: str | None = None,
    n_grid: int = 50,
    smooth: float = 1.0,
    min_density: float = 0.02,
    density: float = 1.5,
    size: float | None = None,
    alpha: float = 0.6,
    legend: bool = True,
    legend_loc: LegendLoc = "right margin",
    stream_kwargs: Mapping[str, Any] | None = None,
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw the velocity in an embedding as streamlines over the cells.

    An embedding keeps neighbourhoods and little else: read directions between neighbouring groups of cells, not the
    length of a line.

    Parameters
    ----------
    data
        A kernel with its transition matrix, or an AnnData to which one was written.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``; its first two dimensions are drawn.
    color
        Column of ``adata.obs`` or gene that colours the cells, grey where ``None``. ``"auto"`` is ``"clusters"`` where
        there is such a column.
    method
        How the velocity comes to the embedding. ``"transitions"``, of any kernel, is the expected direction of a
        transition, less the mean direction to the neighbours :cite:`bergen:20`. ``"linear_map"``, of
        :class:`~cellrank_velot.OTVelocityKernel`, carries over the velocity of its field, by a linear map that is
        fitted to the neighbours of each cell. Arrows of a backward kernel point back in time.
    weighting
        Weights of the neighbours in ``"transitions"``: ``"none"``, all alike; ``"distance"``, larger for those that are
        near in the embedding; or ``"confidence"``, larger for those whose velocity is sure.
    key
        Key in ``adata.obsp`` of the transition matrix, for an AnnData; ``"T_fwd"`` where not given.
    n_grid
        Number of points along each axis of the grid on which the velocity is averaged.
    smooth
        Standard deviation of the Gaussian weights of the average, in grid spacings, and no less than cells are apart.
    min_density
        Density of cells below which a point of the grid has no velocity, as a share of the 95th percentile over the
        points near cells.
    density
        Closeness of the streamlines.
    size
        Area of the cells in square points; by default smaller the more there are.
    alpha
        Opacity of the cells.
    legend
        Whether to draw the legend or colour bar of ``color``.
    legend_loc
        Where the names of categories stand: ``"right margin"``, ``"on data"``, or ``"none"``.
    stream_kwargs
        Passed on to :meth:`matplotlib.axes.Axes.streamplot`.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding, the colour, the transition matrix, or what ``method`` and ``weighting`` need is missing.
    RuntimeError
        If the kernel has no transition matrix.
    TypeError
        If ``method`` or ``weighting`` needs the kernel itself and ``data`` is another or a combination.
    ValueError
        If an option is unknown or out of range.

    Examples
    --------
    >>> pl.velocity_stream(vk, density=1.0, save="stream.png")  # in scanpy's `figdir`
    >>> ax = pl.velocity_stream(
    ...     vk, "pca", "dpt_pseudotime", method="linear_map", density=1.0, show=False
    ... )
    """
    adata = adata_of(data)
    color, place = usual_color(adata, color), place_of(legend, legend_loc)
    x, name = read_embedding(adata, basis)
    velocity = projected(data, x, method, weighting, key)
    grid = velocity_on_grid(x, velocity, n_grid=n_grid, smooth=smooth, min_density=min_density)
    with drawing(figure, panel_size=PANEL) as canvas:
        draw_cells_below(canvas.ax, x, name, adata, color, legend=place, size=size, alpha=alpha)
        draw_streams(canvas.ax, grid, density=density, **(stream_kwargs or {}))
    return canvas.result


@draws
def velocity_grid(
    data: AnnData | HasAnnData,
    basis: str = "umap",
    color: str | None = "auto",
    *,
    method: Method = "transitions",
    weighting: Weighting = "none",
    key: str | None = None,
    n_grid: int = 30,
    smooth: float = 1.0,
    min_density: float = 0.02,
    arrow_length: float = 1.2,
    normalize: bool = False,
    size: float | None = None,
    alpha: float = 0.45,
    legend: bool = True,
    legend_loc: LegendLoc = "right margin",
    quiver_kwargs: Mapping[str, Any] | None = None,
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw the velocity in an embedding as arrows on a regular grid, each the average of the cells around it.

    Parameters
    ----------
    data
        A kernel with its transition matrix, or an AnnData to which one was written.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``; its first two dimensions are drawn.
    color
        Column of ``adata.obs`` or gene that colours the cells, grey where ``None``. ``"auto"`` is ``"clusters"`` where
        there is such a column.
    method
        How the velocity comes to the embedding. ``"transitions"``, of any kernel, is the expected direction of a
        transition, less the mean direction to the neighbours. ``"linear_map"``, of
        :class:`~cellrank_velot.OTVelocityKernel`, carries over the velocity of its field. Arrows of a backward kernel
        point back in time.
    weighting
        Weights of the neighbours in ``"transitions"``: ``"none"``, all alike; ``"distance"``, larger for those that are
        near in the embedding; or ``"confidence"``, larger for those whose velocity is sure.
    key
        Key in ``adata.obsp`` of the transition matrix, for an AnnData; ``"T_fwd"`` where not given.
    n_grid
        Number of points along each axis of the grid.
    smooth
        Standard deviation of the Gaussian weights of the average, in grid spacings, and no less than cells are apart.
    min_density
        Density of cells below which a point of the grid has no arrow, as a share of the 95th percentile over the points
        near cells.
    arrow_length
        Length of a long arrow, the 95th percentile, in grid spacings; longer ones are drawn as long.
    normalize
        Whether all arrows are that long, and show the direction alone.
    size
        Area of the cells in square points; by default smaller the more there are.
    alpha
        Opacity of the cells.
    legend
        Whether to draw the legend or colour bar of ``color``.
    legend_loc
        Where the names of categories stand: ``"right margin"``, ``"on data"``, or ``"none"``.
    quiver_kwargs
        Passed on to :meth:`matplotlib.axes.Axes.quiver`.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise. Errors are those of :func:`velocity_stream`.

    Examples
    --------
    >>> ax = pl.velocity_grid(vk, n_grid=20, normalize=True, show=False)
    """
    check_number("arrow_length", arrow_length, low=0, open_low=True)
    adata = adata_of(data)
    color, place = usual_color(adata, color), place_of(legend, legend_loc)
    x, name = read_embedding(adata, basis)
    velocity = projected(data, x, method, weighting, key)
    grid = velocity_on_grid(x, velocity, n_grid=n_grid, smooth=smooth, min_density=min_density)
    points, arrows, _ = grid_arrows(grid, arrow_length, normalize=normalize)
    with drawing(figure, panel_size=PANEL) as canvas:
        draw_cells_below(canvas.ax, x, name, adata, color, legend=place, size=size, alpha=alpha)
        draw_arrows(canvas.ax, points, arrows, **(quiver_kwargs or {}))
    return canvas.result


@draws
def velocity_quiver(
    data: AnnData | HasAnnData,
    basis: str = "umap",
    color: str | None = "auto",
    *,
    method: Method = "transitions",
    weighting: Weighting = "none",
    key: str | None = None,
    n_arrows: int = 300,
    arrow_length: float = 1.2,
    normalize: bool = False,
    size: float | None = None,
    alpha: float = 0.45,
    legend: bool = True,
    legend_loc: LegendLoc = "right margin",
    quiver_kwargs: Mapping[str, Any] | None = None,
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw the velocity of single cells in an embedding, one arrow from each cell, without any averaging.

    Parameters
    ----------
    data
        A kernel with its transition matrix, or an AnnData to which one was written.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``; its first two dimensions are drawn.
    color
        Column of ``adata.obs`` or gene that colours the cells, grey where ``None``. ``"auto"`` is ``"clusters"`` where
        there is such a column.
    method
        How the velocity comes to the embedding. ``"transitions"``, of any kernel, is the expected direction of a
        transition, less the mean direction to the neighbours. ``"linear_map"``, of
        :class:`~cellrank_velot.OTVelocityKernel`, carries over the velocity of its field. Arrows of a backward kernel
        point back in time.
    weighting
        Weights of the neighbours in ``"transitions"``: ``"none"``, all alike; ``"distance"``, larger for those that are
        near in the embedding; or ``"confidence"``, larger for those whose velocity is sure.
    key
        Key in ``adata.obsp`` of the transition matrix, for an AnnData; ``"T_fwd"`` where not given.
    n_arrows
        Number of arrows at most; of more cells, those that have one are spread evenly over the embedding.
    arrow_length
        Length of a long arrow, the 95th percentile, in distances between so many cells that fill the picture; longer
        ones are drawn as long.
    normalize
        Whether all arrows are that long, and show the direction alone.
    size
        Area of the cells in square points; by default smaller the more there are.
    alpha
        Opacity of the cells.
    legend
        Whether to draw the legend or colour bar of ``color``.
    legend_loc
        Where the names of categories stand: ``"right margin"``, ``"on data"``, or ``"none"``.
    quiver_kwargs
        Passed on to :meth:`matplotlib.axes.Axes.quiver`.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise. Errors are those of :func:`velocity_stream`.

    Examples
    --------
    >>> ax = pl.velocity_quiver(vk, method="linear_map", n_arrows=100, show=False)
    """
    check_integer("n_arrows", n_arrows, low=1)
    check_number("arrow_length", arrow_length, low=0, open_low=True)
    adata = adata_of(data)
    color, place = usual_color(adata, color), place_of(legend, legend_loc)
    x, name = read_embedding(adata, basis)
    velocity = projected(data, x, method, weighting, key)
    cells = _spread(x, velocity, n_arrows)
    arrows = arrows_of(velocity[cells], arrow_length * _spacing(x, n_arrows), normalize=normalize)
    with drawing(figure, panel_size=PANEL) as canvas:
        draw_cells_below(canvas.ax, x, name, adata, color, legend=place, size=size, alpha=alpha)
        draw_arrows(canvas.ax, x[cells], arrows, **(quiver_kwargs or {}))
    return canvas.result


@draws
def velocity_comparison(
    data: AnnData | HasAnnData,
    basis: str = "umap",
    color: str | None = "auto",
    *,
    key: str | None = None,
    n_arrows: int = 300,
    arrow_length: float = 1.2,
    normalize: bool = False,
    size: float | None = None,
    alpha: float = 0.45,
    legend: bool = True,
    legend_loc: LegendLoc = "right margin",
    quiver_kwargs: Mapping[str, Any] | None = None,
    **figure: Unpack[FigureOptions],
) -> list[Axes] | None:
    """Draw the velocity of transport beside that of the field, which smooths it, both by the linear map.

    Arrows are those of the same cells, on one scale; cells that transport gave no velocity lack one on the left.

    Parameters
    ----------
    data
        An :class:`~cellrank_velot.OTVelocityKernel` with its field, or an AnnData to which one was written.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``; its first two dimensions are drawn.
    color
        Column of ``adata.obs`` or gene that colours the cells, grey where ``None``. ``"auto"`` is ``"clusters"`` where
        there is such a column.
    key
        Key in ``adata.obsp`` of the transition matrix, for an AnnData; ``"T_fwd"`` where not given.
    n_arrows
        Number of arrows at most; of more cells, those that have one are spread evenly over the embedding.
    arrow_length
        Length of a long arrow of the field, the 95th percentile, in distances between so many cells that fill the
        picture; longer ones are drawn as long.
    normalize
        Whether all arrows are that long, and show the direction alone.
    size
        Area of the cells in square points; by default smaller the more there are.
    alpha
        Opacity of the cells.
    legend
        Whether to draw the legend or colour bar of ``color``.
    legend_loc
        Where the names of categories stand: ``"right margin"``, ``"on data"``, or ``"none"``.
    quiver_kwargs
        Passed on to :meth:`matplotlib.axes.Axes.quiver`.

    Returns
    -------
    The two Axes where ``show=False``, nothing otherwise. Errors are those of :func:`velocity_stream`.

    Examples
    --------
    >>> raw, smooth = pl.velocity_comparison(vk, show=False)
    """
    check_integer("n_arrows", n_arrows, low=1)
    check_number("arrow_length", arrow_length, low=0, open_low=True)
    adata = adata_of(data)
    color, place = usual_color(adata, color), place_of(legend, legend_loc)
    x, name = read_embedding(adata, basis)
    smooth, raw = (_by_linear_map(data, x, key, estimate) for estimate in ("velocity", "raw_velocity"))
    cells = _spread(x, smooth, n_arrows)
    longest = arrow_length * _spacing(x, n_arrows)
    n_unknown = int(np.isnan(estimate_of(data, "raw_velocity")).any(axis=1).sum())
    titles = (f"Transport (none for {n_unknown} of {len(x)} cells)" if n_unknown else "Transport", "Field")
    with drawing(figure, n_panels=2, panel_size=(5.2, 4.2)) as canvas:
        for panel, velocity, title, last in zip(canvas.panels, (raw, smooth), titles, (False, True), strict=True):
            here = place if last or place == "on data" else False
            draw_cells_below(panel, x, name, adata, color, legend=here, size=size, alpha=alpha)
            arrows = arrows_of(velocity[cells], longest, normalize=normalize, reference=smooth[cells])
            draw_arrows(panel, x[cells], arrows, **(quiver_kwargs or {}))
            panel.set_title(title)
        corners = np.array([(panel.get_xlim(), panel.get_ylim()) for panel in canvas.panels])
        (left, low), (right, high) = corners[..., 0].min(axis=0), corners[..., 1].max(axis=0)
        for panel in canvas.panels:  # each has made room for its own arrows
            panel.set(xlim=(left, right), ylim=(low, high))
    return canvas.result


# -------------------------------------------------------------------------------------------------------- what is drawn
def projected(
    data: AnnData | HasAnnData, x: FloatArray, method: Method, weighting: Weighting, key: str | None
) -> FloatArray:
    """Return the velocity of each cell in the embedding, shape ``[n_cells, 2]``.

    ``data`` is a kernel or an AnnData that one was written to under ``key``, and ``x`` the embedding. ``method`` is the
    projection, and ``weighting`` says what the steps to the neighbours count.
    """
    check_choice("method", method, Method)
    check_choice("weighting", weighting, Weighting)
    if method == "linear_map":
        if weighting != "none":
            raise ValueError(f"Expected `weighting='none'` for `method='linear_map'`, found `{weighting!r}`.")
        return _by_linear_map(data, x, key, "velocity")
    confidence = estimate_of(data, "confidence") if weighting == "confidence" else None
    transitions, graph = transitions_of(data, key), weights_of(data, key)

    def inside_of(placed: NDArray[np.bool_]) -> FloatArray:
        inside = transitions if placed.all() else normalized(sp.csr_matrix(transitions)[placed][:, placed], "l1")
        sure = None if confidence is None else confidence[placed]
        weights = None if graph is None else sp.csr_matrix(graph)[placed][:, placed]
        return project_by_transitions(inside, x[placed], graph=weights, weighting=weighting, confidence=sure)

    return where_placed(x, inside_of)


def _by_linear_map(data: Any, x: FloatArray, key: str | None, estimate: str) -> FloatArray:
    """Return a velocity of the kernel in the embedding, in the direction of the kernel, shape ``[n_cells, 2]``."""
    velocity = estimate_of(data, estimate)
    basis, graph, backward = graph_of(data, key)
    velocity = -velocity if backward else velocity
    return where_placed(
        x, lambda placed: project_by_linear_map(basis[placed], velocity[placed], x[placed], graph[placed][:, placed])
    )


def where_placed(x: FloatArray, project: Callable[[NDArray[np.bool_]], FloatArray]) -> FloatArray:
    """Return what is computed among the cells that have a place in the embedding, and NaN for the others."""
    placed = np.asarray(np.isfinite(x).all(axis=1))
    if not placed.any():
        raise ValueError("Expected cells with a place in the embedding, found none.")
    result = np.full(x.shape, np.nan)
    result[placed] = project(placed)
    return result


# ---------------------------------------------------------------------------------------------------------- the drawing
def _spread(x: FloatArray, velocity: FloatArray, n_cells: int) -> NDArray[np.intp]:
    """Return cells with a velocity that are spread evenly over the embedding, each the farthest from those before.

    They are fewer than ``n_cells`` where they would lie closer than half as far apart as if they filled the picture.
    """
    candidates = np.flatnonzero(np.isfinite(velocity).all(axis=1))
    if not candidates.size:
        raise ValueError("Expected cells with a velocity, found none.")
    if candidates.size <= n_cells:
        return candidates
    # Width and height of the picture count alike, whatever the units.
    at = x[candidates] / np.maximum(np.ptp(x[candidates], axis=0), np.finfo(np.float64).tiny)
    chosen = [int(np.square(at - at.mean(axis=0)).sum(axis=1).argmin())]
    distance = np.square(at - at[chosen[0]]).sum(axis=1)
    while len(chosen) < n_cells and distance.max() > 0.25 / n_cells:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.square(at - at[chosen[-1]]).sum(axis=1))
    return candidates[np.sort(chosen)]


def _spacing(x: FloatArray, n_cells: int) -> FloatArray:
    """Return how far so many cells would lie apart if they filled the picture, in units of the two dimensions."""
    return np.ptp(x[np.isfinite(x).all(axis=1)], axis=0) / max(np.sqrt(min(n_cells, len(x))), 2.0)


def draw_streams(ax: Axes, grid: VelocityGrid, **kwargs: Any) -> None:
    """Draw streamlines, thicker where the velocity is larger."""
    speed = grid.speed
    finite = speed[np.isfinite(speed)]
    if not finite.size or finite.max() == 0:
        return
    width = 0.3 + 0.8 * np.nan_to_num(speed) / np.percentile(finite, 98)
    defaults = {"color": INK, "linewidth": np.minimum(width, 1.1), "arrowsize": 0.7, "arrowstyle": "-|>", "zorder": 3}
    limits = ax.get_xlim(), ax.get_ylim()
    u, v = np.moveaxis(grid.velocity, 2, 0)
    ax.streamplot(grid.x, grid.y, u, v, **{**defaults, **kwargs})
    ax.set(xlim=limits[0], ylim=limits[1])
