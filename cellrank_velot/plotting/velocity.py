"""Velocity in an embedding: streams of arrows, its confidence, and any other column of cells.

Depends on :mod:`cellrank_velot.projection` for the arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Colormap

from cellrank_velot._validation import check_known
from cellrank_velot.plotting._colors import BACKGROUND, INK, VALUES
from cellrank_velot.plotting._embedding import (
    HasAnnData,
    adata_of,
    draw_colored,
    draw_legend,
    draw_values,
    positions,
    suffix_of,
)
from cellrank_velot.plotting._figure import close_figure, open_axes, style
from cellrank_velot.projection import VelocityGrid, project_velocity, velocity_on_grid

__all__ = ["confidence", "embedding", "velocity_stream"]


def velocity_stream(
    data: AnnData | HasAnnData,
    basis: str = "umap",
    color: str | None = "auto",
    *,
    key: str | None = None,
    n_grid: int = 50,
    smooth: float = 1.0,
    min_density: float = 0.02,
    density: float = 2.0,
    size: float | None = None,
    alpha: float = 0.45,
    legend: bool = True,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
    ax: Axes | None = None,
    stream_kwargs: Mapping[str, Any] | None = None,
) -> Axes | None:
    """Draw the velocity in an embedding as streamlines over the cells.

    The velocity is projected through the transition matrix, see
    :func:`cellrank_velot.projection.project_velocity`. An embedding keeps neighbourhoods and little else: read
    directions between neighbouring groups of cells, not the length of a line.

    Parameters
    ----------
    data
        A kernel with its transition matrix, or an AnnData to which one was written.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``; its first two dimensions are drawn.
    color
        Column of ``adata.obs`` or gene that colours the cells, grey where ``None``. ``"auto"`` is ``"clusters"`` where
        there is such a column.
    key
        Key in ``adata.obsp`` of the transition matrix, for an AnnData; ``"T_fwd"`` where not given.
    n_grid, smooth, min_density
        Grid on which the velocity is averaged, see :func:`cellrank_velot.projection.velocity_on_grid`.
    density
        Closeness of the streamlines.
    size, alpha
        Area and opacity of the cells.
    legend
        Whether to draw the legend or colour bar of ``color``.
    title
        Title of the Axes.
    figsize
        Width and height of the figure in inches.
    dpi
        Dots per inch.
    save
        File to save to; a relative one lies in scanpy's ``settings.figdir``.
    show
        Whether to show the figure. By default shown unless saved or drawn into ``ax``.
    ax
        Axes to draw into.
    stream_kwargs
        Passed on to :meth:`matplotlib.axes.Axes.streamplot`.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding, the colour or the transition matrix is missing.
    RuntimeError
        If the kernel has no transition matrix.
    """
    adata = adata_of(data)
    x, name = positions(adata, basis)
    if color == "auto":
        color = "clusters" if "clusters" in adata.obs else None
    velocity = project_velocity(_transitions(data, key), x)
    grid = velocity_on_grid(x, velocity, n_grid=n_grid, smooth=smooth, min_density=min_density)
    with style():
        figure, (panel,), ours = open_axes(ax, panel_size=(5.6, 4.2), figsize=figsize, dpi=dpi)
        draw_colored(panel, x, name, adata, color, legend=legend, size=size, alpha=alpha)
        _draw_streams(panel, grid, density=density, **(stream_kwargs or {}))
        panel.set_title(title or "")
        return panel if close_figure(figure, ours=ours, save=save, show=show) else None


def confidence(
    data: AnnData | HasAnnData,
    basis: str = "umap",
    *,
    size: float | None = None,
    cmap: str | Colormap = VALUES,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
    ax: Axes | None = None,
) -> Axes | None:
    """Draw the confidence in the transport velocity of each cell; cells that transport gave none are grey.

    Parameters
    ----------
    data
        An :class:`~cellrank_velot.OTVelocityKernel` with its velocity, or an AnnData to which one was written.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``.
    size
        Area of the cells.
    cmap
        Colours of the confidence, from 0 to 1.
    title
        Title of the Axes.
    figsize, dpi, save, show, ax
        As in :func:`velocity_stream`.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding or the confidence is missing.
    RuntimeError
        If the kernel has no velocity.
    """
    adata = adata_of(data)
    x, name = positions(adata, basis)
    values, raw = _confidence(data)
    unknown = np.isnan(raw).any(axis=1)
    values = np.where(unknown, np.nan, values)
    with style():
        figure, (panel,), ours = open_axes(ax, panel_size=(5.0, 4.0), figsize=figsize, dpi=dpi)
        draw_values(panel, x, name, values, label="Confidence", cmap=cmap, limits=(0.0, 1.0), size=size)
        if unknown.any():
            draw_legend(panel, {f"no estimate ({unknown.sum()} cells)": BACKGROUND}, below=True)
        panel.set_title(title or "")
        return panel if close_figure(figure, ours=ours, save=save, show=show) else None


def embedding(
    data: AnnData | HasAnnData,
    color: str,
    basis: str = "umap",
    *,
    mark: str | int | None = None,
    size: float | None = None,
    cmap: str | Colormap = VALUES,
    legend: bool = True,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
    ax: Axes | None = None,
) -> Axes | None:
    """Draw the cells coloured by a column of ``obs`` or a gene, e.g. by the time that gives the velocity its direction.

    Parameters
    ----------
    data
        An AnnData, a kernel or an estimator.
    color
        Column of ``adata.obs``, or a gene.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``.
    mark
        Name or position of a cell to point out, such as the root.
    size
        Area of the cells.
    cmap
        Colours of numbers.
    legend
        Whether to draw the legend or colour bar.
    title
        Title of the Axes.
    figsize, dpi, save, show, ax
        As in :func:`velocity_stream`.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding or the colour is missing.
    """
    adata = adata_of(data)
    x, name = positions(adata, basis)
    with style():
        figure, (panel,), ours = open_axes(ax, panel_size=(5.0, 4.0), figsize=figsize, dpi=dpi)
        draw_colored(panel, x, name, adata, color, legend=legend, size=size, cmap=cmap)
        if mark is not None:
            at = x[adata.obs_names.get_loc(mark) if isinstance(mark, str) else mark]
            star: dict[str, Any] = {
                "marker": "*",
                "s": 260,
                "facecolors": "#D55E00",
                "edgecolors": "white",
                "linewidths": 1.2,
            }
            panel.scatter(at[:1], at[1:], zorder=4, label="root", **star)
            panel.legend(loc="upper left", bbox_to_anchor=(0.0, -0.06))
        panel.set_title(title or "")
        return panel if close_figure(figure, ours=ours, save=save, show=show) else None


def _confidence(data: Any) -> tuple[Any, Any]:
    """Return confidence and transport velocity of a kernel, or those written to an AnnData."""
    if not isinstance(data, AnnData):
        if not hasattr(data, "raw_velocity"):
            raise TypeError(f"Expected the `OTVelocityKernel` itself, found `{type(data).__name__}`.")
        return data.confidence, data.raw_velocity
    check_known("adata.obs", "velot_confidence", data.obs.columns, "Call `kernel.write_to_adata()` first.")
    return data.obs["velot_confidence"].to_numpy(dtype=float), data.obsm["velot_velocity_raw"]


def _transitions(data: Any, key: str | None) -> Any:
    """Return the transition matrix of a kernel, or the one written to an AnnData."""
    if isinstance(data, AnnData):
        key = key or f"T_{suffix_of(data, None)}"
        check_known("adata.obsp", key, data.obsp.keys(), "Call `kernel.write_to_adata()` first, or pass the kernel.")
        return data.obsp[key]
    matrix = data.transition_matrix
    if matrix is None:
        raise RuntimeError("Compute the transition matrix first, as `.compute_transition_matrix()`.")
    return matrix


def _draw_streams(ax: Axes, grid: VelocityGrid, **kwargs: Any) -> None:
    """Draw streamlines, thicker where the velocity is larger."""
    speed = grid.speed
    finite = speed[np.isfinite(speed)]
    if not finite.size or finite.max() == 0:
        return
    width = 0.4 + 1.4 * np.nan_to_num(speed) / np.percentile(finite, 98)
    defaults = {"color": INK, "linewidth": np.minimum(width, 1.8), "arrowsize": 0.9, "arrowstyle": "-|>", "zorder": 3}
    limits = ax.get_xlim(), ax.get_ylim()
    u, v = np.moveaxis(grid.velocity, 2, 0)
    ax.streamplot(grid.x, grid.y, u, v, **{**defaults, **kwargs})
    ax.set(xlim=limits[0], ylim=limits[1])
