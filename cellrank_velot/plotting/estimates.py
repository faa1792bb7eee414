"""What is known of the velocity of each cell: its confidence and uncertainty; and any other column of cells.

Depends on the drawing of cells that this folder shares; reads AnnData.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Colormap

from cellrank_velot.plotting._draw.colors import BACKGROUND, VALUES
from cellrank_velot.plotting._draw.embedding import (
    HasAnnData,
    adata_of,
    draw_colored,
    draw_legend,
    draw_values,
    positions,
)
from cellrank_velot.plotting._draw.figure import FigureOptions, close_figure, drawing, draws, open_axes, style
from cellrank_velot.plotting._draw.kernel import estimate_of

__all__ = ["confidence", "embedding", "uncertainty"]

# Beyond a right angle, a direction is no better known than its opposite.
MAX_ANGLE = 90.0


@draws
def confidence(
    data: AnnData | HasAnnData,
    basis: str = "umap",
    *,
    size: float | None = None,
    cmap: str | Colormap = VALUES,
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw the confidence in the transport velocity of each cell. Cells without a transport velocity are grey.

    Parameters
    ----------
    data
        An :class:`~cellrank_velot.OTVelocityKernel` with its velocity, or an AnnData to which one was written.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``.
    size
        Area of the cells in square points; by default smaller the more there are.
    cmap
        Colours of the confidence, from 0 to 1.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding or the confidence is missing.
    RuntimeError
        If the kernel has no velocity.

    Examples
    --------
    >>> ax = pl.confidence(vk, show=False)

    What a kernel has written is drawn without it:

    >>> vk.write_to_adata()
    >>> ax = pl.confidence(adata, show=False)
    """
    adata = adata_of(data)
    x, name = positions(adata, basis)
    values = estimate_of(data, "confidence")
    unknown = np.isnan(estimate_of(data, "raw_velocity")).any(axis=1)
    values = np.where(unknown, np.nan, values)
    with drawing(figure, panel_size=(5.0, 4.0)) as canvas:
        draw_values(canvas.ax, x, name, values, label="Confidence", cmap=cmap, limits=(0.0, 1.0), size=size)
        if unknown.any():
            draw_legend(canvas.ax, {f"no estimate ({unknown.sum()} cells)": BACKGROUND}, below=True)
    return canvas.result


def uncertainty(
    data: AnnData | HasAnnData,
    basis: str = "umap",
    *,
    size: float | None = None,
    cmap: str | Colormap | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
    ax: Axes | None = None,
) -> Axes | None:
    """Draw the angle within which the true direction of each cell lies in two of three cells, in degrees.

    The smaller, the surer. Colours run the other way round than those of :func:`confidence`, so that a light cell is
    a sure one in both.

    Parameters
    ----------
    data
        An :class:`~cellrank_velot.OTVelocityKernel` with its uncertainty, or an AnnData to which one was written.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``.
    size
        Area of the cells in square points, by default smaller the more there are.
    cmap
        Colours of the angle from 0 to 90 degrees; what is larger has the last colour. Those of :func:`confidence`,
        reversed, where not given.
    title
        Title of the Axes; none where not given.
    figsize, dpi, save, show, ax
        As in :func:`~cellrank_velot.plotting.velocity_stream`.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding or the uncertainty is missing.
    RuntimeError
        If the kernel has no uncertainty.

    Examples
    --------
    >>> ax = pl.uncertainty(vk, show=False)
    """
    adata = adata_of(data)
    x, name = positions(adata, basis)
    values = estimate_of(data, "velocity_uncertainty")
    label = "Uncertainty of the direction (degrees)\nlower is better; holds for two of three cells"
    with style():
        figure, (panel,), ours = open_axes(ax, panel_size=(5.2, 4.0), figsize=figsize, dpi=dpi)
        scale = draw_values(
            panel,
            x,
            name,
            values,
            label=label,
            cmap=VALUES.reversed() if cmap is None else cmap,
            limits=(0.0, MAX_ANGLE),
            size=size,
        )
        if scale.colorbar is not None:
            last = "≥ 90" if (values > MAX_ANGLE).any() else "90"
            scale.colorbar.set_ticks([0, 30, 60, MAX_ANGLE], labels=["0", "30", "60", last])
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
        Name or position of a cell to point out, such as the root; none where not given.
    size
        Area of the cells in square points, by default smaller the more there are.
    cmap
        Colours of numbers.
    legend
        Whether to draw the legend or colour bar.
    title
        Title of the Axes; none where not given.
    figsize, dpi, save, show, ax
        As in :func:`~cellrank_velot.plotting.velocity_stream`.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding or the colour is missing.

    Examples
    --------
    >>> ax = pl.embedding(adata, "dpt_pseudotime", mark=adata.uns["iroot"], show=False)
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
