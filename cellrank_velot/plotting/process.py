"""Paths of particles that follow the process of a time series, over the cells, and the fates of each cell.

Depends on the shared files of this folder and :mod:`cellrank_velot.dynamics`; reads AnnData.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_choice, check_integer, check_known, check_number
from cellrank_velot.dynamics.descent import ProcessFates, labels_near
from cellrank_velot.dynamics.process import ProcessPaths
from cellrank_velot.plotting._draw.colors import BACKGROUND, INK, VALUES
from cellrank_velot.plotting._draw.embedding import HasAnnData, adata_of
from cellrank_velot.plotting._draw.figure import close_figure, open_axes, style
from cellrank_velot.plotting._draw.paths import dot, is_jump, sections
from cellrank_velot.plotting._draw.plane import Plane, kernel_of, plane_of, share_labels
from cellrank_velot.plotting.descent import category_colors

__all__ = ["fate_cells", "process_paths"]

FloatArray = NDArray[np.float64]

PathColor = Literal["time", "fate"]

# Cells nearest to the end of a path, of which most say where it came to.
N_NEAR = 15


def process_paths(
    data: Any,
    paths: ProcessPaths,
    basis: str | None = None,
    *,
    dims: tuple[int, int] = (0, 1),
    color_by: PathColor = "time",
    max_paths: int = 60,
    cluster_key: str | None = None,
    line_width: float = 0.9,
    alpha: float = 0.7,
    cmap: str | Colormap = VALUES,
    size: float | None = None,
    legend: bool = True,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
    ax: Axes | None = None,
) -> Axes | None:
    """Draw paths of particles over the cells, coloured by time or by where they come to.

    Forward, paths are drawn in proportion to the descendants that they stand for. White dots are starts, dots with a
    dark edge are ends.

    Parameters
    ----------
    data
        An :class:`~cellrank_velot.OTVelocityKernel` with experimental time.
    paths
        Result of :meth:`cellrank_velot.OTVelocityKernel.simulate_process`.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``; the basis of the kernel where not given. In
        another one, paths are placed among the nearest cells, and broken where they jump.
    dims
        Its columns that are drawn.
    color_by
        ``"time"``, or ``"fate"`` for the cluster of most cells that are nearest to the end of a path at that time.
    max_paths
        Number of paths drawn, at most.
    cluster_key
        Column of ``adata.obs`` with the fates; that of the kernel, or ``"clusters"``, where not given.
    line_width, alpha
        Width and opacity of the lines.
    cmap
        Colours of time.
    size
        Area of the cells in square points, by default smaller the more there are.
    legend
        Whether to draw the legend, or the colour bar of time.
    title
        Title of the Axes; none where not given.
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

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding or the clusters are missing.
    TypeError
        If ``data`` is no kernel or ``paths`` something else.
    ValueError
        If the paths are of another basis, or an option is unknown or out of range.

    Examples
    --------
    >>> paths = sk.simulate_process("Progenitor A", n_particles=100)
    >>> ax = pl.process_paths(sk, paths, color_by="fate", show=False)
    """
    check_choice("color_by", color_by, PathColor)
    check_integer("max_paths", max_paths, low=1)
    check_number("line_width", line_width, low=0, open_low=True)
    check_number("alpha", alpha, low=0, high=1)
    plane = plane_of(kernel_of(data), basis, dims)
    if not isinstance(paths, ProcessPaths):
        raise TypeError(f"Expected `paths` to be `ProcessPaths`, found `{type(paths).__name__}`.")
    if paths.x.shape[2] != data.cells.n_dims:
        raise ValueError(f"Expected paths in `{data.cells.n_dims}` dimensions, found `{paths.x.shape[2]}`.")
    chosen = _chosen_paths(paths, max_paths)
    look = _by_time(paths, cmap) if color_by == "time" else _by_fate(data, paths, cluster_key)
    with style():
        figure, (panel,), ours = open_axes(ax, panel_size=(5.4, 4.2), figsize=figsize, dpi=dpi)
        plane.draw(panel, plane.cells, BACKGROUND, size=size)
        _draw_paths(panel, plane, paths, chosen, look, {"linewidths": line_width, "alpha": alpha})
        if legend:
            _draw_path_legend(figure if ours else panel, panel, look, paths.direction)
        panel.set_title(title or "")
        return panel if close_figure(figure, ours=ours, save=save, show=show) else None


def fate_cells(
    data: AnnData | HasAnnData,
    fates: ProcessFates,
    clusters: str | Sequence[str] | None = None,
    basis: str | None = None,
    *,
    dims: tuple[int, int] = (0, 1),
    n_columns: int = 4,
    cmap: str | Colormap = VALUES,
    size: float | None = None,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
    ax: Axes | Sequence[Axes] | None = None,
) -> list[Axes] | None:
    """Draw the shares of fates, or of ancestors, of each cell, one panel for each cluster; other cells are grey.

    Parameters
    ----------
    data
        A kernel or an AnnData.
    fates
        Result of :meth:`cellrank_velot.OTVelocityKernel.fate_probabilities` or
        :meth:`cellrank_velot.OTVelocityKernel.ancestry` without ``group_by``.
    clusters
        Clusters to draw; all of the table where not given.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``; that of the kernel, or ``"umap"`` for an
        AnnData, where not given.
    dims
        Its columns that are drawn.
    n_columns
        Number of panels in a row, at most.
    cmap
        Colours of the shares, from 0 to 1.
    size
        Area of the cells in square points, by default smaller the more there are.
    legend
        Whether to draw the colour bar.
    figsize, dpi, save, show
        As in :func:`process_paths`.
    ax
        Axes to draw into, one for each cluster.

    Returns
    -------
    The list of Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding or a cluster is missing.
    TypeError
        If ``data`` or ``fates`` is something else.
    ValueError
        If the rows of the table are no cells, an option is out of range, or the number of Axes is not that of the
        clusters.

    Examples
    --------
    >>> fates = sk.fate_probabilities(n_particles=5)
    >>> panels = pl.fate_cells(sk, fates, ["Fate A", "Fate B"], show=False)
    """
    check_integer("n_columns", n_columns, low=1)
    if not isinstance(fates, ProcessFates):
        raise TypeError(f"Expected `fates` to be `ProcessFates`, found `{type(fates).__name__}`.")
    plane = plane_of(data, basis, dims)
    names = list(fates.table.columns) if clusters is None else [clusters] if isinstance(clusters, str) else [*clusters]
    for name in names:
        check_known("fates.table", name, fates.table.columns)
    at = adata_of(data).obs_names.get_indexer(fates.table.index)
    if (at < 0).any():
        raise ValueError(
            f"Expected a row for each cell, found `{(at < 0).sum()}` that are none: compute fates without `group_by`."
        )
    scale = ScalarMappable(Normalize(0.0, 1.0), cmap)
    with style():
        figure, panels, ours = open_axes(
            ax, n_panels=len(names), n_columns=n_columns, panel_size=(2.9, 2.8), figsize=figsize, dpi=dpi
        )
        for panel, name in zip(panels, names, strict=True):
            plane.draw(panel, plane.cells, BACKGROUND, size=size, alpha=0.7)
            plane.draw(panel, plane.cells[at], scale.to_rgba(fates.table[name].to_numpy()), size=size)
            panel.set_title(name)
        share_labels(panels, n_columns, ours)
        if legend:
            bar = figure.colorbar(scale, ax=panels, shrink=0.8, aspect=18, pad=0.02, label="Share")
            bar.outline.set_visible(False)
        return panels if close_figure(figure, ours=ours, save=save, show=show) else None


# ------------------------------------------------------------------------------------------------------ how it is drawn
@dataclass(frozen=True)
class _Look:
    """Colour of each path, shape ``[n_particles, 4]``, or the scale of time, and what the legend says."""

    colors: FloatArray
    labels: Mapping[str, str]
    scale: ScalarMappable | None = None


def _chosen_paths(paths: ProcessPaths, n: int) -> NDArray[np.int64]:
    """Return paths to draw: forward in proportion to their descendants, without any twice."""
    weights = paths.weights if paths.direction == "forward" else np.ones(paths.n_particles)
    waited = np.random.default_rng(0).exponential(size=paths.n_particles) / weights
    return np.sort(np.argsort(waited)[:n])


def _by_time(paths: ProcessPaths, cmap: str | Colormap) -> _Look:
    scale = ScalarMappable(Normalize(float(paths.time.min()), float(paths.time.max())), cmap)
    return _Look(np.tile(to_rgba(INK), (paths.n_particles, 1)), {}, scale)


def _by_fate(data: Any, paths: ProcessPaths, cluster_key: str | None) -> _Look:
    """Return the colour of the cluster that each path ends in, and the share of all paths for each."""
    adata = adata_of(data)
    key = cluster_key or data.cluster_key or "clusters"
    check_known("adata.obs", key, adata.obs.columns, "Pass `cluster_key`.")
    clusters = pd.Categorical(adata.obs[key])
    names = [str(name) for name in clusters.categories]
    colors = category_colors(data, names, key)
    points = np.unique(data.cells.time)
    around = np.flatnonzero(data.cells.time == points[np.abs(points - paths.time[-1].mean()).argmin()])
    codes = clusters.codes[around].astype(np.int64)
    fate = labels_near(paths.ends, data.cells.x[around], codes, len(names), N_NEAR).argmax(axis=1)
    weights = paths.weights if paths.direction == "forward" else np.ones(paths.n_particles)
    share = np.bincount(fate, weights, minlength=len(names)) / weights.sum()
    found = [int(code) for code in np.argsort(-share, kind="stable") if share[code] > 0]
    labels = {f"{names[code]} ({_percent(share[code])})": colors[names[code]] for code in found}
    return _Look(np.array([to_rgba(colors[names[code]]) for code in fate]), labels)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "< 1%"


def _draw_paths(
    ax: Axes, plane: Plane, paths: ProcessPaths, chosen: NDArray[np.int64], look: _Look, options: dict[str, Any]
) -> None:
    """Draw the paths with their starts and ends."""
    x, time = paths.x[:, chosen], paths.time[:, chosen]
    n_points, n_paths, n_dims = x.shape
    drawn = plane.embed(x.reshape(-1, n_dims)).reshape(n_points, n_paths, 2)
    steps = np.stack([drawn[:-1], drawn[1:]], axis=2).reshape(-1, 2, 2)
    if look.scale is None:
        colors = np.tile(look.colors[chosen], (n_points - 1, 1))
        ends = look.colors[chosen]
    else:
        colors = np.asarray(look.scale.to_rgba((time[:-1] + time[1:]).ravel() / 2))
        ends = np.asarray(look.scale.to_rgba(time[-1]))
    kept: NDArray[np.bool_] = np.ones(len(steps), dtype=bool)
    if plane.place is not None:
        way = np.diff(x, axis=0).reshape(-1, n_dims)
        kept = ~is_jump(plane.place, way, np.diff(drawn, axis=0).reshape(-1, 2))
    ax.add_collection(
        LineCollection(list(steps[kept]), colors=list(map(tuple, colors[kept])), label="paths", zorder=2, **options)
    )
    ax.scatter(
        drawn[0, :, 0],
        drawn[0, :, 1],
        s=9,
        facecolors="white",
        edgecolors=INK,
        linewidths=0.5,
        zorder=3,
        label="starts",
    )
    ax.scatter(drawn[-1, :, 0], drawn[-1, :, 1], s=16, c=ends, edgecolors=INK, linewidths=0.5, zorder=4, label="ends")
    _widen(ax, drawn.reshape(-1, 2))


def _widen(ax: Axes, x: FloatArray) -> None:
    """Move the limits out where points are beyond; particles diffuse past the cells."""
    low, high = x.min(axis=0), x.max(axis=0)
    margin = 0.02 * np.maximum(high - low, np.finfo(np.float64).tiny)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    ax.set_xlim(min(left, low[0] - margin[0]), max(right, high[0] + margin[0]))
    ax.set_ylim(min(bottom, low[1] - margin[1]), max(top, high[1] + margin[1]))


def _draw_path_legend(place: Axes | Figure, ax: Axes, look: _Look, direction: str) -> None:
    """Draw what colours and dots mean, to the right."""
    if look.scale is not None:
        bar = ax.figure.colorbar(look.scale, ax=ax, shrink=0.7, aspect=18, pad=0.02, label="Time")
        bar.outline.set_visible(False)
        return
    fates: list[Line2D] = [dot(label, color) for label, color in look.labels.items()]
    sections(place, [("Fate" if direction == "forward" else "Origin", fates)])
