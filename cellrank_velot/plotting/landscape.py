"""The landscape as maps or surfaces, one panel for each time, and as an animation over time.

Depends on the shared files of this folder; reads AnnData.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from anndata import AnnData
from matplotlib.animation import FuncAnimation, writers
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from cellrank_velot._utils.files import replacing
from cellrank_velot._utils.validation import check_integer, check_number
from cellrank_velot.landscape import Landscape
from cellrank_velot.plotting._draw.animation import animation_path, show_animation
from cellrank_velot.plotting._draw.colors import INK, VALUES
from cellrank_velot.plotting._draw.embedding import HasAnnData
from cellrank_velot.plotting._draw.figure import close_figure, open_axes, style
from cellrank_velot.plotting._draw.gif import GifWriter
from cellrank_velot.plotting._draw.relief import Kind, chosen_times, is_3d, scene_of

__all__ = ["landscape_animation", "potential_landscape"]


def potential_landscape(
    data: AnnData | HasAnnData,
    landscape: Landscape,
    *,
    kind: Kind = "contour",
    times: Sequence[float] | float | None = None,
    cells: bool = False,
    states: bool = True,
    saddles: bool = True,
    cluster_key: str | None = None,
    levels: int = 16,
    cmap: str | Colormap = VALUES,
    view: tuple[float, float] = (60.0, -60.0),
    n_columns: int = 4,
    legend: bool = True,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
    ax: Axes | Sequence[Axes] | None = None,
) -> list[Axes] | None:
    """Draw the potential as a map or a surface, one panel for each time; low is dark.

    Panels share their axes and colours. Nothing is drawn where the density is negligible; a surface is cut off there,
    at :attr:`~cellrank_velot.landscape.Landscape.ceiling`, and ends flat.

    Parameters
    ----------
    data
        A kernel or an AnnData, which has the cells and the colours of the states.
    landscape
        The landscape.
    kind
        ``"contour"`` for a map, ``"surface"`` for the heights in three dimensions.
    times
        Times to draw, among those of the landscape; all where not given.
    cells
        Whether to draw the cells of each time, or 3000 of them; those between time points are not drawn.
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
        Number of panels in a row, at most.
    legend
        Whether to draw the legend and the colour bar.
    title
        Title of the only panel; the time of each where not given.
    figsize
        Width and height of the figure in inches.
    dpi
        Dots per inch.
    save
        File to save to; a relative one lies in scanpy's ``settings.figdir``.
    show
        Whether to show the figure. By default shown unless saved or drawn into ``ax``.
    ax
        Axes to draw into, one for each time; with a projection to three dimensions for a surface.

    Returns
    -------
    The list of Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the clusters, or for ``cells`` the basis, are missing.
    TypeError
        If ``data``, ``landscape`` or ``ax`` is something else, or cells of a time are asked for without a kernel.
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
    """
    check_integer("n_columns", n_columns, low=1)
    chosen = chosen_times(landscape, times)
    scene = scene_of(data, landscape, kind, cells, states, saddles, cluster_key, levels, cmap, view)
    # Rows of like length: six times are two rows of three, not four and two.
    n_columns = -(-len(chosen) // -(-len(chosen) // n_columns))
    with style():
        figure, panels, ours = _open(ax, kind, len(chosen), n_columns, figsize, dpi)
        for place, (panel, t) in enumerate(zip(panels, chosen, strict=True)):
            scene.draw(panel, t)
            panel.set_title(scene.title(t) if title is None else title)
            if ours and kind == "contour" and place % n_columns:
                panel.set_ylabel("")
            if ours and kind == "contour" and place + n_columns < len(chosen):
                panel.set_xlabel("")
        if legend:
            scene.draw_legend(figure if ours else panels[-1], panels, chosen)
        return panels if close_figure(figure, ours=ours, save=save, show=show) else None


def landscape_animation(
    data: AnnData | HasAnnData,
    landscape: Landscape,
    *,
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
    figsize: tuple[float, float] | None = None,
    dpi: float = 80.0,
    save: str | Path | None = None,
    show: bool | None = None,
) -> FuncAnimation | None:
    """Draw the landscape as it changes with time: one frame for each of its times.

    Parameters
    ----------
    data, landscape, kind, cells, states, saddles, cluster_key, levels, cmap, view, legend, figsize
        As in :func:`potential_landscape`.
    fps
        Frames per second.
    dpi
        Dots per inch.
    save
        File to save to, ``.gif``, which is also taken where there is no suffix, or ``.mp4``, which needs ``ffmpeg``. A
        relative one lies in scanpy's ``settings.figdir``.
    show
        Whether to show the animation: in a notebook as HTML with buttons, otherwise in a window. By default shown
        unless saved.

    Returns
    -------
    The animation where ``show=False``, or where it was not saved and there is no screen to show it on; nothing
    otherwise. Keep it as long as it is to play.

    Raises
    ------
    KeyError, TypeError
        As in :func:`potential_landscape`.
    RuntimeError
        If ``.mp4`` is asked for without ``ffmpeg``.
    ValueError
        As in :func:`potential_landscape`, if the file is of another kind, or the landscape has one time only.

    Examples
    --------
    >>> pl.landscape_animation(sk, sk.compute_landscape([0, 1, 3]), fps=2, save="landscape.gif")
    """
    check_integer("fps", fps, low=1)
    check_number("dpi", dpi, low=0, open_low=True)
    path = None if save is None else animation_path(save)
    chosen = chosen_times(landscape, None)
    if len(chosen) < 2:
        raise ValueError(f"Expected a landscape of two times or more, found `{len(chosen)}`.")
    scene = scene_of(data, landscape, kind, cells, states, saddles, cluster_key, levels, cmap, view)
    with style():
        figure, (panel,), _ = _open(None, kind, 1, 1, figsize, dpi)
        scene.draw(panel, 0)
        panel.set_title(scene.title(0))
        if legend:
            scene.draw_legend(figure, [panel], chosen)
        # Laid out once: each frame would do it again, and might come out a pixel different.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")

    def update(frame: int) -> list[Any]:
        with style():
            panel.clear()
            scene.draw(panel, frame)
            panel.set_title(scene.title(frame))
        return [panel]

    # Given so that the animation does not draw the first frame once more for it.
    animation = FuncAnimation(
        figure, update, frames=len(chosen), init_func=lambda: [panel], interval=1000 / fps, blit=False
    )
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with style(), replacing(path) as file:
                colors = [*scene.colors.values(), "white", INK]
                gif = path.suffix == ".gif"
                animation.save(file, writer=GifWriter(fps, colors) if gif else writers["ffmpeg"](fps=fps), dpi=dpi)
        except BaseException:
            plt.close(figure)
            raise
    return show_animation(animation, figure, saved=path is not None, show=show)


def _open(
    ax: Axes | Sequence[Axes] | None,
    kind: str,
    n_panels: int,
    n_columns: int,
    figsize: tuple[float, float] | None,
    dpi: float | None,
) -> tuple[Figure, list[Axes], bool]:
    """Return a figure, one Axes for each panel, of the projection that the kind needs, and whether it is ours."""
    size = ((5.2, 4.2) if n_panels == 1 else (2.9, 2.9)) if kind == "contour" else (6.6, 4.6)
    figure, panels, ours = open_axes(
        ax, n_panels=n_panels, n_columns=n_columns, panel_size=size, figsize=figsize, dpi=dpi
    )
    flat = [panel for panel in panels if is_3d(panel) != (kind == "surface")]
    if flat and not ours:
        expected = "projection='3d'" if kind == "surface" else "no projection"
        raise TypeError(f"Expected Axes with {expected} for `kind={kind!r}`, found {type(flat[0]).__name__}.")
    for i, panel in enumerate(panels):
        if panel in flat:
            place = panel.get_subplotspec()
            panel.remove()
            panels[i] = figure.add_subplot(place, projection="3d")
    return figure, panels, ours
