"""The spatial clusters that windows are made in, with their names."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from cellrank_velot.cells import read_clusters, read_embedding
from cellrank_velot.plotting._draw.colors import BACKGROUND, INK, palette, palette_of
from cellrank_velot.plotting._draw.embedding import draw_categories
from cellrank_velot.plotting._draw.figure import Canvas, FigureOptions, drawing, draws
from cellrank_velot.plotting._draw.kernel import HasAnnData, saved_or_kernel, windows_of
from cellrank_velot.transport.windows import Windows

__all__ = ["clusters_of", "spatial_clusters"]

# So many colours are told apart by everybody. More clusters share them, far from each other.
N_DISTINCT = 8


@draws
def spatial_clusters(
    data: AnnData | HasAnnData,
    basis: str = "umap",
    *,
    key: str = "T_fwd",
    size: float | None = None,
    legend: bool | None = None,
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw the spatial clusters that the windows were made in, with the name of each where most of its cells are.

    A name that would cover another moves aside, with a line to its cluster where that is far. Up to eight clusters have
    a colour each. More clusters share eight colours, as countries do on a map, unless ``adata.uns`` has their colours
    or ``legend=True``.

    Parameters
    ----------
    data
        An :class:`~cellrank_velot.OTVelocityKernel` with its windows, or an AnnData to which one was written.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``.
    key
        Key under which the kernel was written, for an AnnData.
    size
        Area of the cells in square points; by default smaller the more there are.
    legend
        Whether to draw a legend as well; by default for up to eight clusters.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding is missing or no kernel was written to the AnnData.
    RuntimeError
        If the kernel has no windows.
    TypeError
        If ``data`` is of another type.

    Examples
    --------
    >>> ax = pl.spatial_clusters(vk, show=False)
    """
    kernel = saved_or_kernel(data, key)
    x, name = read_embedding(kernel.adata, basis)
    clusters, column = clusters_of(kernel, windows_of(kernel))
    groups = [(cluster, clusters == cluster) for cluster in clusters.categories]
    present = [(cluster, members) for cluster, members in groups if members.any()]
    at = np.array([_medoid(x[members]) for _, members in present])
    few = len(at) <= N_DISTINCT
    if few or legend or f"{column}_colors" in kernel.adata.uns:
        colors = palette_of(kernel.adata, column, list(clusters.categories))
    else:
        colors = dict.fromkeys(clusters.categories, BACKGROUND)
        colors |= {cluster: color for (cluster, _), color in zip(present, _map_colors(at), strict=True)}
    with drawing(figure, panel_size=(5.6, 4.6)) as canvas:
        legend = few if legend is None else legend
        draw_categories(canvas.ax, x, name, clusters, colors, legend=legend, size=size)
        canvas.ax.set_title(figure.get("title") or "")  # now: a title moves the names
        _write_names(canvas, at, [str(cluster) for cluster, _ in present])
    return canvas.result


def clusters_of(kernel: Any, found: Windows) -> tuple[pd.Categorical, str]:
    """Return the cluster of each cell by its name, and the column of ``obs`` that it is called by."""
    column = kernel.cluster_key
    if column is None:
        return pd.Categorical(found.cluster), "velot_cluster"
    return pd.Categorical(read_clusters(kernel.adata, column)), column


def _write_names(canvas: Canvas, at: NDArray[np.float64], names: list[str]) -> None:
    """Write each name at its place, shape ``[n_names, 2]``, beside it where another name is in the way."""
    ax = canvas.ax
    white, thin = (withStroke(linewidth=width, foreground="white") for width in (3, 2))
    look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "weight": "bold", "zorder": 6}
    texts = [ax.text(x, y, name, path_effects=[white], **look) for (x, y), name in zip(at, names, strict=True)]
    # Whether names overlap is known in pixels, once the figure is laid out.
    canvas.figure.draw_without_rendering()
    sizes = np.array([text.get_window_extent().size for text in texts])
    pixels = ax.transData.transform(at)
    moved = _separate(pixels, sizes / 2 + 1, np.array(ax.bbox.extents))
    for i in np.flatnonzero(np.abs(moved - pixels).max(axis=1) > 0):
        there = ax.transData.inverted().transform(moved[i])
        texts[i].set_position((there[0], there[1]))
        if np.linalg.norm(moved[i] - pixels[i]) > sizes[i, 1]:
            ax.plot(*np.array([at[i], there]).T, color=INK, linewidth=0.8, path_effects=[thin], zorder=5)


def _medoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cell nearest to the median: unlike a mean, it lies among the cells of a bent cluster."""
    return np.asarray(x[np.linalg.norm(x - np.median(x, axis=0), axis=1).argmin()])


def _map_colors(at: NDArray[np.float64]) -> list[str]:
    """Return a colour of each place, shape ``[n, 2]``, from few: each takes the one that is used the farthest away."""
    shared = palette(N_DISTINCT)
    scaled = (at - at.min(axis=0)) / np.maximum(np.ptp(at, axis=0), 1e-12)
    closeness = 1 / np.maximum(np.sum((scaled[:, None] - scaled) ** 2, axis=2), 1e-6)
    chosen: list[int] = []
    for i in range(len(at)):
        near = np.bincount(np.array(chosen, dtype=np.int64), weights=closeness[i, :i], minlength=N_DISTINCT)
        chosen.append(int(near.argmin()))
    return [shared[color] for color in chosen]


def _separate(
    centres: NDArray[np.float64], halves: NDArray[np.float64], extents: NDArray[np.float64], n_steps: int = 500
) -> NDArray[np.float64]:
    """Push boxes apart until none overlaps another, each pair along the axis on which it overlaps least.

    Boxes have centres and half widths and heights, shape ``[n, 2]``. None leaves ``extents``: left, bottom, right, top.
    """
    moved = centres.copy()
    low, high = extents[:2] + halves, np.maximum(extents[2:] - halves, extents[:2] + halves)
    # Boxes at one place part by their number.
    by_number = np.sign(np.arange(len(centres))[:, None, None] - np.arange(len(centres))[:, None])
    for _ in range(n_steps):
        apart = moved[:, None] - moved
        overlap = halves[:, None] + halves - np.abs(apart)
        np.einsum("iik->ik", overlap)[:] = 0
        hit = (overlap > 0.01).all(axis=2)
        if not hit.any():
            break
        side = np.where(apart == 0, by_number, np.sign(apart))
        least = overlap == overlap.min(axis=2, keepdims=True)
        moved = np.clip(moved + (side * overlap * (hit[:, :, None] & least)).sum(axis=1) / 2, low, high)
    return moved
