"""Paths of particles that follow the process of a time series, over the cells, and the fates of each cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_choice, check_integer, check_known, check_number
from cellrank_velot.cells import read_clusters
from cellrank_velot.dynamics import ProcessFates, ProcessPaths, labels_near
from cellrank_velot.plotting._draw.colors import BACKGROUND, INK, VALUES, scale_of
from cellrank_velot.plotting._draw.embedding import colors_by_name
from cellrank_velot.plotting._draw.figure import FigureOptions, color_bar, drawing, draws
from cellrank_velot.plotting._draw.kernel import HasAnnData, adata_of, kernel_of
from cellrank_velot.plotting._draw.look import Look
from cellrank_velot.plotting._draw.paths import is_jump
from cellrank_velot.plotting._draw.plane import Plane, plane_of
from cellrank_velot.plotting.descent import Relatives, table_of

__all__ = ["fate_cells", "process_paths"]

FloatArray = NDArray[np.float64]

PathColor = Literal["time", "fate"]

# Cells nearest to the end of a path, of which most say where it came to.
N_NEAR = 15


@draws
def process_paths(
    data: Any,
    paths: ProcessPaths | None = None,
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
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw paths of particles over the cells, coloured by time or by where they come to.

    White dots are starts, dots with a dark edge are ends. Of paths forward in time, those with more descendants are
    drawn more often.

    Parameters
    ----------
    data
        An :class:`~cellrank_velot.OTVelocityKernel` with experimental time.
    paths
        Result of :meth:`cellrank_velot.OTTimeSeriesKernel.simulate_process`. Where not given, the kernel simulates
        paths from cells of its first time point to the last.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``; the basis of the kernel where not given. In
        another one, paths are placed among the nearest cells, and broken where they jump.
    dims
        The two columns of ``basis`` that are drawn, counted from 0.
    color_by
        ``"time"``, or ``"fate"`` for the cluster of most cells that are nearest to the end of a path at that time.
    max_paths
        Number of paths drawn, at most.
    cluster_key
        Column of ``adata.obs`` with the fates; that of the kernel, or ``"clusters"``, where not given.
    line_width
        Width of the lines in points.
    alpha
        Opacity of the lines, from 0 to 1.
    cmap
        Colours of time.
    size
        Area of the cells in square points; by default smaller the more there are.
    legend
        Whether to draw the legend, or the colour bar of time.

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
    kernel = kernel_of(data, "cells", "interpolate")
    plane = plane_of(kernel, basis, dims)
    paths = kernel.simulate_process() if paths is None else paths
    if not isinstance(paths, ProcessPaths):
        raise TypeError(f"Expected `paths` to be `ProcessPaths`, found `{type(paths).__name__}`.")
    if paths.x.shape[2] != kernel.cells.n_dims:
        raise ValueError(f"Expected paths in `{kernel.cells.n_dims}` dimensions, found `{paths.x.shape[2]}`.")
    by_time = color_by == "time"
    look = Look.of_time(paths.n_particles, paths.time, cmap) if by_time else _by_fate(kernel, paths, cluster_key)
    with drawing(figure, panel_size=(5.4, 4.2)) as canvas:
        plane.draw(canvas.ax, plane.cells, BACKGROUND, size=size)
        lines = LineCollection([], label="paths", zorder=2, linewidths=line_width, alpha=alpha)
        _draw_paths(canvas.ax, plane, paths, _chosen_paths(paths, max_paths), look, lines)
        if legend:
            look.draw_legend(canvas.legend_place, canvas.ax, "Fate" if paths.direction == "forward" else "Origin")
    return canvas.result


@draws
def fate_cells(
    data: AnnData | HasAnnData,
    fates: ProcessFates | None = None,
    clusters: str | Sequence[str] | None = None,
    basis: str | None = None,
    *,
    of: Relatives = "descendants",
    cluster_key: str | None = None,
    dims: tuple[int, int] = (0, 1),
    n_columns: int = 4,
    cmap: str | Colormap = VALUES,
    size: float | None = None,
    legend: bool = True,
    **figure: Unpack[FigureOptions],
) -> list[Axes] | None:
    """Draw the shares of fates, or of ancestors, of each cell, one panel for each cluster. Other cells are grey.

    Parameters
    ----------
    data
        A kernel or an AnnData.
    fates
        Result of :meth:`cellrank_velot.OTTimeSeriesKernel.fate_probabilities` or
        :meth:`cellrank_velot.OTTimeSeriesKernel.ancestry` without ``group_by``. Where not given, the kernel computes
        it.
    clusters
        Clusters to draw; all of the table where not given.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``; that of the kernel, or ``"umap"`` for an
        AnnData, where not given.
    of
        What is computed where ``fates`` is not given: the shares of the ``"descendants"`` of the cells of the first
        time point, or of the ``"ancestors"`` of the last.
    cluster_key
        Column of ``adata.obs`` with the clusters, used without ``fates``; that of the kernel, or ``"clusters"``, where
        not given.
    dims
        The two columns of ``basis`` that are drawn, counted from 0.
    n_columns
        Number of panels in a row, at most.
    cmap
        Colours of the shares, from 0 to 1.
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
        If the embedding or a cluster is missing.
    TypeError
        If ``data`` or ``fates`` is of another type, or there is no kernel to compute the fates.
    ValueError
        If the rows of the table are not cells, an option is out of range, or the number of Axes is not that of the
        clusters.

    Examples
    --------
    >>> fates = sk.fate_probabilities(n_particles=5)
    >>> panels = pl.fate_cells(sk, fates, ["Fate A", "Fate B"], show=False)
    """
    plane = plane_of(data, basis, dims)
    table = table_of(data, fates, of, cluster_key, by_cell=True).table
    names = list(table.columns) if clusters is None else [clusters] if isinstance(clusters, str) else [*clusters]
    for name in names:
        check_known("fates.table", name, table.columns)
    at = adata_of(data).obs_names.get_indexer(table.index)
    if (at < 0).any():
        raise ValueError(
            f"Expected a row for each cell, found `{(at < 0).sum()}` rows that are not cells: compute fates without "
            "`group_by`."
        )
    scale = scale_of(table.to_numpy(), cmap, (0.0, 1.0))
    with drawing(figure, n_panels=len(names), n_columns=n_columns, panel_size=(2.9, 2.8)) as canvas:
        for panel, name in zip(canvas.panels, names, strict=True):
            plane.draw_behind(panel, size=size)
            plane.draw(panel, plane.cells[at], scale.to_rgba(table[name].to_numpy()), size=size)
            panel.set_title(name)
        canvas.share_labels()
        if legend:
            color_bar(scale, canvas.panels, "Share", shrink=0.8)
    return canvas.result


# ------------------------------------------------------------------------------------------------------ how it is drawn
def _weights(paths: ProcessPaths) -> FloatArray:
    """Return how many descendants each path stands for; one for paths back in time."""
    return paths.weights if paths.direction == "forward" else np.ones(paths.n_particles)


def _chosen_paths(paths: ProcessPaths, n: int) -> NDArray[np.int64]:
    """Return paths to draw, in proportion to their descendants, without any twice."""
    waited = np.random.default_rng(0).exponential(size=paths.n_particles) / _weights(paths)
    return np.sort(np.argsort(waited)[:n])


def _by_fate(kernel: Any, paths: ProcessPaths, cluster_key: str | None) -> Look:
    """Return the colour of the cluster that each path ends in, and the share of all paths for each."""
    cells, key = kernel.cells, cluster_key or kernel.cluster_key or "clusters"
    clusters = read_clusters(kernel.adata, key, "Pass `cluster_key`.").cat
    names = [str(name) for name in clusters.categories]
    colors = colors_by_name(kernel, names, key, "clusters")
    points = np.unique(cells.time)
    around = np.flatnonzero(cells.time == points[np.abs(points - paths.time[-1].mean()).argmin()])
    codes = clusters.codes.to_numpy()[around].astype(np.int64)
    fate = labels_near(paths.ends, cells.x[around], codes, len(names), N_NEAR).argmax(axis=1)
    weights = _weights(paths)
    share = np.bincount(fate, weights, minlength=len(names)) / weights.sum()
    found = [int(code) for code in np.argsort(-share, kind="stable") if share[code] > 0]
    legend = {f"{names[code]} ({_percent(share[code])})": colors[names[code]] for code in found}
    return Look.of_classes([names[code] for code in fate], colors, legend)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "< 1%"


def _draw_paths(
    ax: Axes, plane: Plane, paths: ProcessPaths, chosen: NDArray[np.int64], look: Look, lines: LineCollection
) -> None:
    """Draw the paths, as ``lines``, with their starts and ends."""
    x, time = paths.x[:, chosen], paths.time[:, chosen]
    n_points, n_paths, n_dims = x.shape
    drawn = plane.embed(x.reshape(-1, n_dims)).reshape(n_points, n_paths, 2)
    steps: FloatArray = np.stack([drawn[:-1], drawn[1:]], axis=2).reshape(-1, 2, 2)
    look = look.of(chosen)
    colors = np.concatenate([look.at(middle) for middle in (time[:-1] + time[1:]) / 2])
    if plane.place is not None:
        way = np.diff(x, axis=0).reshape(-1, n_dims)
        kept = ~is_jump(plane.place, way, np.diff(drawn, axis=0).reshape(-1, 2))
        steps, colors = steps[kept], colors[kept]
    lines.set_segments(list(steps))
    lines.set_color(list(map(tuple, colors)))
    ax.add_collection(lines)
    edge: dict[str, Any] = {"edgecolors": INK, "linewidths": 0.5}
    (first_x, first_y), (last_x, last_y) = drawn[0].T, drawn[-1].T
    ax.scatter(first_x, first_y, s=9, facecolors="white", zorder=3, label="starts", **edge)
    ax.scatter(last_x, last_y, s=16, c=look.at(time[-1]), zorder=4, label="ends", **edge)
    _widen(ax, drawn.reshape(-1, 2))


def _widen(ax: Axes, x: FloatArray) -> None:
    """Move the limits out where points are beyond; particles diffuse past the cells."""
    low, high = x.min(axis=0), x.max(axis=0)
    margin = 0.02 * np.maximum(high - low, np.finfo(np.float64).tiny)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    ax.set_xlim(min(left, low[0] - margin[0]), max(right, high[0] + margin[0]))
    ax.set_ylim(min(bottom, low[1] - margin[1]), max(top, high[1] + margin[1]))
