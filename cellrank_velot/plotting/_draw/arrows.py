"""Arrows in an embedding, and the cells below them.

Depends on the other shared files of this folder.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from numpy.typing import NDArray

from cellrank_velot.plotting._draw.colors import INK
from cellrank_velot.plotting._draw.embedding import draw_colored

__all__ = ["arrows_of", "draw_arrows", "draw_cells_below"]

FloatArray = NDArray[np.float64]


def draw_cells_below(
    ax: Axes, x: FloatArray, name: str, adata: AnnData, color: str | None, *, alpha: float, **kwargs: Any
) -> None:
    """Draw the cells below the arrows."""
    if color == "auto":
        color = "clusters" if "clusters" in adata.obs else None
    # The grey of cells without a colour is as pale as it may be.
    draw_colored(ax, x, name, adata, color, alpha=1.0 if color is None else alpha, **kwargs)


def arrows_of(
    velocity: FloatArray, longest: FloatArray, *, normalize: bool, reference: FloatArray | None = None
) -> FloatArray:
    """Return velocities as arrows in units of the embedding.

    Parameters
    ----------
    velocity
        Velocities of shape ``[n_arrows, 2]``, NaN where there is none.
    longest
        Length of the longest arrows along the two dimensions, shape ``[2]``.
    normalize
        Whether all are that long.
    reference
        Velocities whose 95th percentile gets that length; ``velocity`` where not given.

    Returns
    -------
    Arrows of shape ``[n_arrows, 2]``; NaN where there is no velocity, or none in any direction.
    """
    unit = np.where(longest > 0, longest, 1.0)
    length = np.linalg.norm(velocity / unit, axis=1)
    others = length if reference is None else np.linalg.norm(reference / unit, axis=1)
    others = others[np.isfinite(others) & (others > 0)]
    typical = np.percentile(others, 95) if others.size else 1.0
    drawn = np.ones_like(length) if normalize else np.minimum(length / typical, 1.0)
    scale = np.divide(drawn, length, out=np.full_like(length, np.nan), where=length > 0)
    return velocity * scale[:, None]


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
