"""The landscape as maps or surfaces, one panel for each time, and as an animation over time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import numpy as np
from anndata import AnnData
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.colors import Colormap

from cellrank_velot._utils.validation import check_integer
from cellrank_velot.cells import CellStates, find_basis
from cellrank_velot.landscape import MIN_CELLS, Landscape, LandscapeOptions
from cellrank_velot.plotting._draw.animation import Film, FilmOptions
from cellrank_velot.plotting._draw.colors import INK, VALUES
from cellrank_velot.plotting._draw.figure import FigureOptions, drawing, draws, even_columns, style
from cellrank_velot.plotting._draw.gif import GifWriter
from cellrank_velot.plotting._draw.kernel import HasAnnData, kernel_of
from cellrank_velot.plotting._draw.relief import Kind, ReliefOptions, chosen_times, is_3d, scene_of

__all__ = ["landscape_animation", "potential_landscape"]


@draws
def potential_landscape(
    data: AnnData | HasAnnData,
    landscape: Landscape | None = None,
    basis: str | None = None,
    times: Sequence[float] | float | None = None,
    *,
    kind: Kind = "contour",
    cells: bool = False,
    states: bool = True,
    saddles: bool = True,
    cluster_key: str | None = None,
    levels: int = 16,
    cmap: str | Colormap = VALUES,
    view: tuple[float, float] = (60.0, -60.0),
    n_columns: int = 4,
    legend: bool = True,
    **figure: Unpack[FigureOptions],
) -> list[Axes] | None:
    """Draw the potential as a map or a surface, one panel for each time. Low is dark.

    Panels share their axes and colours. Nothing is drawn where the density is negligible; a surface is cut off there,
    at :attr:`~cellrank_velot.landscape.Landscape.ceiling`, and ends flat.

    Parameters
    ----------
    data
        A kernel or an AnnData, which has the cells and the colours of the states.
    landscape
        The landscape. Where not given, the kernel computes that of ``basis`` with the usual options, see
        :meth:`~cellrank_velot.OTVelocityKernel.compute_landscape`.
    basis
        Key in ``adata.obsm`` of the positions, with or without ``X_``, used without a ``landscape``; the basis of the
        kernel where not given.
    times
        Times to draw, among those of the landscape; all where not given. Without a ``landscape``, the times for which
        it is computed: every time point where not given, or with pseudotime one landscape of all cells.
    kind
        ``"contour"`` for a map, ``"surface"`` for the heights in three dimensions.
    cells
        Whether to draw the cells of each time, or 3000 of them. Interpolated cells between time points are not drawn.
    states
        Whether to mark the lowest point of each state.
    saddles
        Whether to mark the passes between states: of all, those that connect the states by the lowest ways.
    cluster_key
        Column of ``adata.obs`` whose colours the states have. By default that of the kernel, or ``"clusters"``, where
        it has the names of the states.
    levels
        Number of levels of a map.
    cmap
        Colours of the potential.
    view
        Elevation and azimuth from which a surface is seen, in degrees.
    n_columns
        Number of panels in a row, at most. Rows are made equally long.
    legend
        Whether to draw the legend and the colour bar.

    Returns
    -------
    The list of Axes where ``show=False``, nothing otherwise. Those of a surface have three dimensions.

    Raises
    ------
    KeyError
        If the clusters, or for ``cells`` the basis, are missing.
    TypeError
        If ``data`` or ``landscape`` is of another type, ``ax`` does not have the projection that ``kind`` needs, or
        there is no kernel to compute the landscape or to know the time of the cells.
    ValueError
        If a time is not one of the landscape, an option is unknown or out of range, or the number of Axes is not that
        of the times.

    Examples
    --------
    >>> landscape = sk.compute_landscape([1, 3])
    >>> panels = pl.potential_landscape(sk, landscape, cells=True, show=False)
    >>> len(panels)
    2
    >>> panels = pl.potential_landscape(sk, landscape, kind="surface", times=3, show=False)

    The kernel computes the landscape itself:

    >>> panels = pl.potential_landscape(sk, basis="pca", times=[0, 3], show=False)
    """
    options = ReliefOptions(
        kind=kind,
        cells=cells,
        states=states,
        saddles=saddles,
        cluster_key=cluster_key,
        levels=levels,
        cmap=cmap,
        view=view,
    )
    _check_projection(figure.get("ax"), kind)
    if landscape is None:
        landscape = kernel_of(data, "compute_landscape").compute_landscape(times, basis)
        times = None
    chosen = chosen_times(landscape, times)
    scene = scene_of(data, landscape, options)
    flat = kind == "contour"
    size = (6.6, 4.6) if not flat else (5.2, 4.2) if len(chosen) == 1 else (2.9, 2.9)
    with drawing(
        figure,
        n_panels=len(chosen),
        n_columns=even_columns(len(chosen), n_columns),
        panel_size=size,
        projection=None if flat else "3d",
    ) as canvas:
        for panel, t in zip(canvas.panels, chosen, strict=True):
            scene.draw(panel, t)
        if flat:
            canvas.share_labels()
        if legend:
            scene.draw_legend(canvas.legend_place, canvas.panels, chosen)
    return canvas.result


@draws
def landscape_animation(
    data: AnnData | HasAnnData,
    landscape: Landscape | None = None,
    basis: str | None = None,
    *,
    n_frames: int = 40,
    kind: Kind = "contour",
    fps: int = 10,
    cells: bool = False,
    states: bool = True,
    saddles: bool = False,
    cluster_key: str | None = None,
    levels: int = 16,
    cmap: str | Colormap = VALUES,
    view: tuple[float, float] = (60.0, -60.0),
    legend: bool = True,
    **figure: Unpack[FilmOptions],
) -> FuncAnimation | None:
    """Draw the landscape as it changes with time, one frame for each of its times. Low is dark.

    Parameters
    ----------
    data
        A kernel or an AnnData, which has the cells and the colours of the states.
    landscape
        A landscape of two or more times. Where not given, the kernel computes one of ``n_frames`` times that are evenly
        spread from its first to its last, without times of a pseudotime around which there are too few cells. In
        another basis than its own, a time series has cells at its time points only, which then are the frames.
    basis
        Key in ``adata.obsm`` of the positions, with or without ``X_``, used without a ``landscape``; the basis of the
        kernel where not given.
    n_frames
        Number of frames, at least 2, used without a ``landscape``.
    kind
        ``"contour"`` for a map, ``"surface"`` for the heights in three dimensions.
    fps
        Frames per second.
    cells
        Whether to draw the cells of each time, or 3000 of them. Interpolated cells between time points are not drawn.
    states
        Whether to mark the lowest point of each state.
    saddles
        Whether to mark the passes between states: of all, those that connect the states by the lowest ways.
    cluster_key
        Column of ``adata.obs`` whose colours the states have. By default that of the kernel, or ``"clusters"``, where
        it has the names of the states.
    levels
        Number of levels of a map.
    cmap
        Colours of the potential.
    view
        Elevation and azimuth from which a surface is seen, in degrees.
    legend
        Whether to draw the legend and the colour bar.

    Returns
    -------
    The animation where ``show=False``, or where it was not saved and there is no screen to show it on; nothing
    otherwise. Keep it as long as it is to play.

    Raises
    ------
    KeyError
        If the clusters, or for ``cells`` the basis, are missing.
    RuntimeError
        If ``.mp4`` is asked for without ``ffmpeg``.
    TypeError
        If ``data`` or ``landscape`` is of another type, or there is no kernel to compute the landscape or to know the
        time of the cells.
    ValueError
        If the landscape has one time only, an option is unknown or out of range, or the file is of another kind.

    Examples
    --------
    >>> pl.landscape_animation(sk, sk.compute_landscape([0, 1, 3]), fps=2, save="landscape.gif")
    >>> pl.landscape_animation(sk, n_frames=3, save="landscape.gif")
    """
    check_integer("n_frames", n_frames, low=2)
    film = Film.of(fps, figure)
    options = ReliefOptions(
        kind=kind,
        cells=cells,
        states=states,
        saddles=saddles,
        cluster_key=cluster_key,
        levels=levels,
        cmap=cmap,
        view=view,
    )
    if landscape is None:
        kernel = kernel_of(data, "compute_landscape")
        landscape = kernel.compute_landscape(_film_times(kernel, basis, n_frames), basis)
    chosen = chosen_times(landscape, None)
    if len(chosen) < 2:
        raise ValueError(f"Expected a landscape of two times or more, found `{len(chosen)}`.")
    scene = scene_of(data, landscape, options)
    size, projection = ((5.2, 4.2), None) if kind == "contour" else ((6.6, 4.6), "3d")
    with film.drawing(size, projection) as canvas:
        scene.draw(canvas.ax, 0)
        if legend:
            scene.draw_legend(canvas.figure, canvas.panels, chosen)

    def update(frame: int) -> None:
        with style():
            canvas.ax.clear()
            scene.draw(canvas.ax, frame)

    return film.play(canvas, update, len(chosen), gif=partial(GifWriter, colors=[*scene.colors.values(), "white", INK]))


def _check_projection(ax: Axes | Sequence[Axes] | None, kind: str) -> None:
    """Check that the Axes of the caller have the dimensions that a kind needs."""
    for panel in [] if ax is None else np.ravel(np.asarray(ax, dtype=object)):
        if is_3d(panel) != (kind == "surface"):
            expected = "projection='3d'" if kind == "surface" else "no projection"
            raise TypeError(f"Expected Axes with {expected} for `kind={kind!r}`, found {type(panel).__name__}.")


def _film_times(kernel: Any, basis: str | None, n_frames: int) -> list[float] | None:
    """Return the times of the frames; ``None`` for every time point."""
    cells: CellStates = kernel.cells
    if cells.is_series and basis is not None and find_basis(kernel.adata, basis) != kernel.basis:
        return None
    low, high = cells.time_range
    times = np.linspace(low, high, n_frames)
    if not cells.is_series:
        near = np.abs(cells.time[:, None] - times) <= LandscapeOptions.window
        times = times[near.sum(axis=0) >= MIN_CELLS]
    return times.tolist()
