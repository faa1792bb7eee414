"""Arrows in an embedding, and the cells below them."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from numpy.typing import NDArray

from cellrank_velot.embedding.grid import VelocityGrid
from cellrank_velot.plotting._draw.colors import INK
from cellrank_velot.plotting._draw.embedding import check_color, draw_colored

__all__ = ["arrows_of", "draw_arrows", "draw_cells_below", "grid_arrows", "usual_color"]

FloatArray = NDArray[np.float64]


def usual_color(adata: AnnData, color: str | None) -> str | None:
    """Return what colours the cells below something: ``"auto"`` is ``"clusters"`` where there is such a column."""
    if color == "auto":
        return "clusters" if "clusters" in adata.obs else None
    check_color(adata, color)
    return color


def draw_cells_below(
    ax: Axes, x: FloatArray, name: str, adata: AnnData, color: str | None, *, alpha: float, **kwargs: Any
) -> None:
    """Draw the cells below arrows or lines, coloured by what :func:`usual_color` returned.

    The grey of cells without a colour is pale enough.
    """
    draw_colored(ax, x, name, adata, color, alpha=1.0 if color is None else alpha, **kwargs)


def arrows_of(
    velocity: FloatArray, longest: FloatArray, *, normalize: bool, reference: FloatArray | None = None
) -> FloatArray:
    """Return velocities as arrows in units of the embedding, shape ``[n_arrows, 2]``, NaN where there is no velocity.

    ``longest`` is the length of the longest arrows along the two dimensions: that of the 95th percentile of the
    velocities, or of ``reference``; that of all arrows where they are to be normalized.
    """
    unit = np.where(longest > 0, longest, 1.0)
    length = np.linalg.norm(velocity / unit, axis=1)
    others = length if reference is None else np.linalg.norm(reference / unit, axis=1)
    others = others[np.isfinite(others) & (others > 0)]
    typical = np.percentile(others, 95) if others.size else 1.0
    drawn = np.ones_like(length) if normalize else np.minimum(length / typical, 1.0)
    scale = np.divide(drawn, length, out=np.full_like(length, np.nan), where=length > 0)
    return velocity * scale[:, None]


def grid_arrows(
    grid: VelocityGrid, arrow_length: float, *, normalize: bool
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the points of a grid, an arrow at each, both of shape ``[n_points, 2]``, and the spacing of the grid.

    A long arrow has a length of so many spacings.
    """
    points = np.stack(np.meshgrid(grid.x, grid.y), axis=-1).reshape(-1, 2)
    spacing = np.array([grid.x[1] - grid.x[0], grid.y[1] - grid.y[0]])
    return points, arrows_of(grid.velocity.reshape(-1, 2), arrow_length * spacing, normalize=normalize), spacing


def draw_arrows(ax: Axes, x: FloatArray, arrows: FloatArray, **kwargs: Any) -> None:
    """Draw arrows, shape ``[n_arrows, 2]``, that start at ``x``; none where they are NaN. Makes room for their tips."""
    known = np.isfinite(arrows).all(axis=1)
    if not known.any():
        return
    defaults = {"color": INK, "width": 0.003, "headwidth": 4.0, "headlength": 4.5, "headaxislength": 4.0, "zorder": 3}
    low, high = np.array([ax.get_xlim(), ax.get_ylim()]).T
    start, tips = x[known], (x + arrows)[known]
    ax.quiver(*start.T, *arrows[known].T, angles="xy", scale_units="xy", scale=1.0, **{**defaults, **kwargs})
    margin = 0.01 * (high - low)
    low, high = np.minimum(low, tips.min(axis=0) - margin), np.maximum(high, tips.max(axis=0) + margin)
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
