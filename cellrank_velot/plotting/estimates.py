"""How sure the velocity of each cell is, its confidence and uncertainty; and any other column of cells."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap

from cellrank_velot.cells import read_embedding
from cellrank_velot.direction import TimeCheck
from cellrank_velot.plotting._draw.colors import BACKGROUND, VALUES
from cellrank_velot.plotting._draw.embedding import (
    LegendLoc,
    check_color,
    draw_colored,
    draw_legend,
    draw_values,
    place_of,
)
from cellrank_velot.plotting._draw.figure import FigureOptions, drawing, draws
from cellrank_velot.plotting._draw.kernel import HasAnnData, adata_of, estimate_of, kernel_of
from cellrank_velot.plotting._draw.legends import BELOW

__all__ = ["confidence", "embedding", "time_check", "uncertainty"]

# Beyond a right angle, a direction is no better known than its opposite.
MAX_ANGLE = 90.0
# Orange where time falls, blue where it rises.
AGREEMENT = LinearSegmentedColormap.from_list(
    "velot_agreement", ["#D55E00", "#E9C9AE", "#DADDE1", "#9DB9D6", "#2E6DAF"]
)
# What points out a cell.
STAR: dict[str, Any] = {"marker": "*", "s": 260, "facecolors": "#D55E00", "edgecolors": "white", "linewidths": 1.2}


@draws
def confidence(
    data: AnnData | HasAnnData,
    basis: str = "umap",
    *,
    size: float | None = None,
    cmap: str | Colormap = VALUES,
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw the confidence in the raw velocity of each cell. Cells without such a velocity are grey.

    For a pseudotime, the confidence is the cosine to the true direction that is to be expected.

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
    x, name = read_embedding(adata, basis)
    values = estimate_of(data, "confidence")
    unknown = np.isnan(estimate_of(data, "raw_velocity")).any(axis=1)
    values = np.where(unknown, np.nan, values)
    with drawing(figure, panel_size=(5.0, 4.0)) as canvas:
        draw_values(canvas.ax, x, name, values, label="Confidence", cmap=cmap, limits=(0.0, 1.0), size=size)
        if unknown.any():
            draw_legend(canvas.ax, {f"no estimate ({unknown.sum()} cells)": BACKGROUND}, below=True)
    return canvas.result


@draws
def uncertainty(
    data: AnnData | HasAnnData,
    basis: str = "umap",
    *,
    size: float | None = None,
    cmap: str | Colormap | None = None,
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw the angle within which the true direction lies in at least two of three cells, in degrees.

    The smaller the angle, the surer the direction. Colours are those of :func:`confidence` reversed, so that a light
    cell is a sure one in both.

    Parameters
    ----------
    data
        An :class:`~cellrank_velot.OTVelocityKernel` with its uncertainty, or an AnnData to which one was written.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``.
    size
        Area of the cells in square points; by default smaller the more there are.
    cmap
        Colours of the angle from 0 to 90 degrees; larger ones have the last colour. By default those of
        :func:`confidence`, reversed.

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
    x, name = read_embedding(adata, basis)
    values = estimate_of(data, "velocity_uncertainty")
    label = "Uncertainty of the direction (degrees)\nlower is better; a bound in 2 of 3 cells"
    cmap = VALUES.reversed() if cmap is None else cmap
    with drawing(figure, panel_size=(5.2, 4.0)) as canvas:
        scale = draw_values(canvas.ax, x, name, values, label=label, cmap=cmap, limits=(0.0, MAX_ANGLE), size=size)
        if scale.colorbar is not None:
            last = "≥ 90" if (values > MAX_ANGLE).any() else "90"
            scale.colorbar.set_ticks([0, 30, 60, MAX_ANGLE], labels=["0", "30", "60", last])
    return canvas.result


@draws
def time_check(
    data: HasAnnData,
    check: TimeCheck | None = None,
    basis: str = "umap",
    *,
    size: float | None = None,
    cmap: str | Colormap = AGREEMENT,
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw whether time rises with the distance from its own root around each cell.

    Where it falls, the velocity leads back to the root. A star marks the root, of several roots the first.

    Parameters
    ----------
    data
        An :class:`~cellrank_velot.OTVelocityKernel`.
    check
        Result of its ``check_time``, which is computed where not given.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``.
    size
        Area of the cells in square points; by default smaller the more there are.
    cmap
        Colours of the correlation of time and distance, from -1 to 1.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding is missing.
    TypeError
        If ``data`` is no kernel for a pseudotime.
    ValueError
        If the check is of other cells.

    Examples
    --------
    >>> ax = pl.time_check(vk, show=False)
    """
    kernel = kernel_of(data, "check_time")
    x, name = read_embedding(kernel.adata, basis)
    check = kernel.check_time() if check is None else check
    if check.agreement.size != len(x):
        raise ValueError(f"Expected a `check` of `{len(x)}` cells, found one of `{check.agreement.size}`.")
    label = "Correlation of time and distance\nfrom the root; below 0 time falls"
    with drawing(figure, panel_size=(5.2, 4.0), title=str(check).splitlines()[0]) as canvas:
        draw_values(canvas.ax, x, name, check.agreement, label=label, cmap=cmap, limits=(-1.0, 1.0), size=size)
        root = int(np.nanargmin(check.distance))
        canvas.ax.scatter(x[root, :1], x[root, 1:], zorder=4, label="root", **STAR)
        canvas.ax.legend(**BELOW)
    return canvas.result


@draws
def embedding(
    data: AnnData | HasAnnData,
    color: str,
    basis: str = "umap",
    *,
    mark: str | int | None = None,
    size: float | None = None,
    cmap: str | Colormap = VALUES,
    legend: bool = True,
    legend_loc: LegendLoc = "right margin",
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw the cells coloured by a column of ``obs`` or a gene, e.g. by the time that gives the velocity its direction.

    Parameters
    ----------
    data
        An AnnData, a kernel or an estimator.
    color
        Column of ``adata.obs``, or gene, that colours the cells.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``.
    mark
        Name or position of a cell to point out, such as the root; none where not given.
    size
        Area of the cells in square points; by default smaller the more there are.
    cmap
        Colours of numbers.
    legend
        Whether to draw the legend or colour bar.
    legend_loc
        Where the names of categories stand: ``"right margin"``, ``"on data"``, or ``"none"``.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    IndexError
        If there are fewer cells than the position to mark.
    KeyError
        If the embedding, the colour or the cell to mark is missing.

    Examples
    --------
    >>> ax = pl.embedding(adata, "dpt_pseudotime", mark=adata.uns["iroot"], show=False)
    """
    adata = adata_of(data)
    check_color(adata, color)
    x, name = read_embedding(adata, basis)
    marked, place = None if mark is None else _position(adata, mark), place_of(legend, legend_loc)
    with drawing(figure, panel_size=(5.0, 4.0)) as canvas:
        draw_colored(canvas.ax, x, name, adata, color, legend=place, size=size, cmap=cmap)
        if marked is not None:
            at = x[marked]
            canvas.ax.scatter(at[:1], at[1:], zorder=4, label="root", **STAR)
            canvas.ax.legend(**BELOW)
    return canvas.result


def _position(adata: AnnData, mark: str | int) -> int:
    """Return the position of a cell, given by its name or its position."""
    if isinstance(mark, str):
        if mark not in adata.obs_names:
            raise KeyError(f"Expected `mark` to be a name of `adata.obs_names` or a position, found {mark!r}.")
        return int(np.flatnonzero(adata.obs_names == mark)[0])
    if not -adata.n_obs <= mark < adata.n_obs:
        raise IndexError(f"Expected `mark` to be a position among `{adata.n_obs}` cells, found `{mark}`.")
    return int(mark)
