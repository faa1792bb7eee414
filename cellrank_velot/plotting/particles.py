"""Flow: particles in an embedding at some times of their run, as still frames and as an animation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import numpy as np
from anndata import AnnData
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import Colormap, to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.validation import check_choice, check_integer
from cellrank_velot.cells import read_embedding
from cellrank_velot.dynamics import Trajectories
from cellrank_velot.plotting._draw.animation import Film, FilmOptions
from cellrank_velot.plotting._draw.colors import BACKGROUND, INK, VALUES
from cellrank_velot.plotting._draw.embedding import dot_size, draw_cells
from cellrank_velot.plotting._draw.figure import FigureOptions, drawing, draws, even_columns
from cellrank_velot.plotting._draw.kernel import HasAnnData, adata_of
from cellrank_velot.plotting._draw.legends import dot
from cellrank_velot.plotting._draw.look import Look
from cellrank_velot.plotting._draw.paths import (
    NOWHERE,
    Frames,
    cluster_colors,
    fate_names,
    fate_word,
    frames_of,
    place_of,
    read,
)

__all__ = ["flow", "flow_animation"]

FloatArray = NDArray[np.float64]

ColorBy = Literal["auto", "fate", "time"]
# Opacity of particles that have ended.
PALE = 0.35


@draws
def flow(
    data: AnnData | HasAnnData,
    trajectories: Trajectories | None = None,
    basis: str = "umap",
    *,
    key: str = "velot_flow",
    n_frames: int = 4,
    color_by: ColorBy = "auto",
    terminal_clusters: str | Sequence[str] | None = None,
    cluster_key: str | None = None,
    velocity_basis: str | None = None,
    n_columns: int = 4,
    cmap: str | Colormap = VALUES,
    size: float | None = None,
    legend: bool = True,
    **figure: Unpack[FigureOptions],
) -> list[Axes] | None:
    """Draw the particles of a flow at some times of their run, one panel for each. Cells are grey.

    Particles that have ended stay where they ended, and are drawn paler and without an edge. Those that ran out of
    steps move until the end of the run.

    Parameters
    ----------
    data
        A kernel or an AnnData.
    trajectories
        The flow; the one in ``adata.uns[key]`` where not given.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``; its first two dimensions are drawn.
    key
        Key in ``adata.uns`` of the flow, used without ``trajectories``.
    n_frames
        Number of times, spread evenly from the start of the run to its end; the end alone where it is 1. The run is as
        long as that of the particle that moves longest.
    color_by
        ``"fate"``, the cluster in which a particle will end, or the ``"time"`` of the place where it is. ``"auto"`` is
        ``"fate"`` where the flow has clusters, and ``"time"`` otherwise.
    terminal_clusters
        Clusters that count as fates; particles that end elsewhere are dark grey. By default the terminal clusters of
        the flow; where it had none, the clusters at which particles arrived, or all in which particles end.
    cluster_key
        Column of ``adata.obs`` whose colours the fates have. By default that of the kernel, or ``"clusters"``, where it
        has the names of the fates.
    velocity_basis
        Key in ``adata.obsm`` of the basis in which the flow was simulated. By default the one that the flow names, that
        of the kernel, or ``"X_pca"``.
    n_columns
        Number of panels in a row, at most. Rows are made equally long.
    cmap
        Colours of time.
    size
        Area of the particles in square points; by default smaller the more there are.
    legend
        Whether to draw the legend, or the colour bar of time.

    Returns
    -------
    The list of Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding, the basis, the flow or the clusters are missing.
    TypeError
        If ``data`` or ``trajectories`` is of another type, or an option is not a number.
    ValueError
        If there is nothing to draw, the basis does not fit the flow, an option is unknown or out of range, fates are
        asked for where there are no clusters, or the number of Axes is not that of the frames.

    Examples
    --------
    >>> flow = vk.simulate_flow(source_cluster="Progenitor", n_particles=50, n_steps=50)
    >>> panels = pl.flow(vk, flow, n_frames=2, show=False)
    """
    options = _FlowOptions(
        n_frames=n_frames,
        color_by=color_by,
        terminal_clusters=terminal_clusters,
        cluster_key=cluster_key,
        velocity_basis=velocity_basis,
        cmap=cmap,
        size=size,
    )
    scene = _scene(data, trajectories, basis, key, options)
    n_columns, alone = even_columns(n_frames, n_columns), n_frames == 1
    panel_size = (5.2, 4.0) if alone else (2.7, 2.7)
    with drawing(figure, n_panels=n_frames, n_columns=n_columns, panel_size=panel_size) as canvas:
        for frame, panel in enumerate(canvas.panels):
            scene.draw_cells(panel, 1.0 if alone else 0.5)
            scene.draw_particles(panel, frame)
            panel.set_title(scene.frames.title(frame), fontsize=11 if alone else 9)
        canvas.share_labels()
        if legend:
            scene.draw_legend(canvas.legend_place, canvas.panels)
    return canvas.result


@draws
def flow_animation(
    data: AnnData | HasAnnData,
    trajectories: Trajectories | None = None,
    basis: str = "umap",
    *,
    key: str = "velot_flow",
    n_frames: int = 60,
    fps: int = 15,
    trail: int = 3,
    color_by: ColorBy = "auto",
    terminal_clusters: str | Sequence[str] | None = None,
    cluster_key: str | None = None,
    velocity_basis: str | None = None,
    cmap: str | Colormap = VALUES,
    size: float | None = None,
    legend: bool = True,
    **figure: Unpack[FilmOptions],
) -> FuncAnimation | None:
    """Draw the particles of a flow as an animation, each with a trail that fades.

    Particles that have ended stay where they ended, and are drawn paler and without an edge. A trail is broken where a
    particle jumps across the embedding.

    Parameters
    ----------
    data
        A kernel or an AnnData.
    trajectories
        The flow; the one in ``adata.uns[key]`` where not given.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``; its first two dimensions are drawn.
    key
        Key in ``adata.uns`` of the flow, used without ``trajectories``.
    n_frames
        Number of frames, spread evenly from the start of the run to its end. A GIF of 60 frames with 80 dots per inch
        has about 1 MB.
    fps
        Frames per second.
    trail
        Number of frames that a trail goes back; 0 for none.
    color_by
        ``"fate"``, the cluster in which a particle will end, or the ``"time"`` of the place where it is. ``"auto"`` is
        ``"fate"`` where the flow has clusters, and ``"time"`` otherwise.
    terminal_clusters
        Clusters that count as fates; particles that end elsewhere are dark grey. By default the terminal clusters of
        the flow; where it had none, the clusters at which particles arrived, or all in which particles end.
    cluster_key
        Column of ``adata.obs`` whose colours the fates have. By default that of the kernel, or ``"clusters"``, where it
        has the names of the fates.
    velocity_basis
        Key in ``adata.obsm`` of the basis in which the flow was simulated. By default the one that the flow names, that
        of the kernel, or ``"X_pca"``.
    cmap
        Colours of time.
    size
        Area of the particles in square points; by default smaller the more there are.
    legend
        Whether to draw the legend, or the colour bar of time.

    Returns
    -------
    The animation where ``show=False``, or where it was not saved and there is no screen to show it on; nothing
    otherwise. Keep it as long as it is to play.

    Raises
    ------
    KeyError
        If the embedding, the basis, the flow or the clusters are missing.
    RuntimeError
        If ``.mp4`` is asked for without ``ffmpeg``.
    TypeError
        If ``data`` or ``trajectories`` is of another type, or an option is not a number.
    ValueError
        If there is nothing to draw, the basis does not fit the flow, an option is unknown or out of range, fates are
        asked for where there are no clusters, or the file is of another kind.

    Examples
    --------
    >>> flow = vk.simulate_flow(source_cluster="Progenitor", n_particles=50, n_steps=50)
    >>> pl.flow_animation(vk, flow, n_frames=3, save="flow.gif")
    """
    film = Film.of(fps, figure)
    check_integer("trail", trail, low=0)
    options = _FlowOptions(
        n_frames=n_frames,
        color_by=color_by,
        terminal_clusters=terminal_clusters,
        cluster_key=cluster_key,
        velocity_basis=velocity_basis,
        cmap=cmap,
        size=size,
    )
    scene = _scene(data, trajectories, basis, key, options)
    with film.drawing((5.6, 4.0)) as canvas:
        panel = canvas.ax
        scene.draw_cells(panel)
        # Limits are those of the whole run: a frame must not move the cells.
        panel.update_datalim(scene.frames.x[np.isfinite(scene.frames.x).all(axis=2)])
        panel.autoscale_view()
        panel.autoscale(False)
        particles = scene.draw_particles(panel, 0)
        tails = LineCollection([], linewidths=1.0, zorder=2, label="trails")
        panel.add_collection(tails)
        title = panel.set_title(scene.frames.title(0))
        if legend:
            scene.draw_legend(panel, [panel])

    def update(frame: int) -> None:
        particles.set_offsets(scene.frames.x[frame])
        scene.paint(particles, frame)
        scene.set_tails(tails, frame, trail)
        title.set_text(scene.frames.title(frame))

    return film.play(canvas, update, n_frames)


# ----------------------------------------------------------------------------------------------------------- particles
@dataclass(frozen=True, kw_only=True)
class _FlowOptions(Options):
    """Options of :func:`flow` that its animation has, too."""

    n_frames: int
    color_by: ColorBy
    terminal_clusters: str | Sequence[str] | None
    cluster_key: str | None
    velocity_basis: str | None
    cmap: str | Colormap
    size: float | None

    def __post_init__(self) -> None:
        check_integer("n_frames", self.n_frames, low=1)
        check_choice("color_by", self.color_by, ColorBy)


@dataclass(frozen=True)
class _Scene:
    """Cells at ``x``, shape ``[n_cells, 2]``, and particles that move among them, with their colours and area."""

    x: FloatArray
    name: str
    found: Trajectories
    frames: Frames
    look: Look
    size: float

    def draw_cells(self, ax: Axes, share: float = 1.0) -> None:
        """Draw the cells in grey, of some share of their usual area."""
        draw_cells(ax, self.x, self.name, BACKGROUND, size=share * dot_size(len(self.x), 15_000, 3, 16))

    def draw_particles(self, ax: Axes, frame: int) -> PathCollection:
        x, y = self.frames.x[frame].T
        particles = ax.scatter(x, y, s=self.size, zorder=3, label="particles", linewidths=0.5)
        self.paint(particles, frame)
        return particles

    def paint(self, particles: PathCollection, frame: int) -> None:
        """Colour the particles: those that move have an edge, those that have ended are pale."""
        colors, edges = self.look.at(self.frames.time[frame]), np.tile(to_rgba(INK), (len(self.found), 1))
        ended = self.frames.ended[frame]
        colors[ended, 3], edges[ended, 3] = PALE, 0.0
        particles.set_facecolor(list(map(tuple, colors)))
        particles.set_edgecolor(list(map(tuple, edges)))

    def set_tails(self, tails: LineCollection, frame: int, trail: int) -> None:
        """Draw the way since some frames ago, paler the longer ago; none where a particle jumped or stood still."""
        frames = self.frames
        segments, colors = [np.empty((0, 2, 2))], [np.empty((0, 4))]
        for since in range(max(frame - trail, 0), frame):
            ways = np.stack([frames.x[since], frames.x[since + 1]], axis=1)
            moves = np.isfinite(ways).all(axis=(1, 2)) & (ways[:, 0] != ways[:, 1]).any(axis=1)
            moves &= ~frames.jumped[since + 1]
            shades = self.look.at(frames.time[since + 1])[moves]
            shades[:, 3] = 0.6 * (1 - (frame - since - 1) / trail)
            segments.append(ways[moves])
            colors.append(shades)
        tails.set_segments(list(np.concatenate(segments)))
        tails.set_color(list(map(tuple, np.concatenate(colors))))

    def draw_legend(self, place: Axes | Figure, panels: list[Axes]) -> None:
        """Draw what colours and edges mean, to the right."""
        moving = dot("moving", "white", markeredgecolor=INK, markeredgewidth=0.8)
        ended = dot("ended", INK, alpha=PALE, markeredgewidth=0)
        self.look.draw_legend(place, panels, fate_word(self.found), [("Particles", [moving, ended])])


def _scene(data: Any, trajectories: Trajectories | None, basis: str, key: str, options: _FlowOptions) -> _Scene:
    """Return the cells and the particles of a flow, which is read where it is not given."""
    x, name = read_embedding(adata_of(data), basis)
    found = read(data, trajectories, key)
    look = _look(data, found, options)
    frames = frames_of(found, place_of(data, found, x, options.velocity_basis), options.n_frames)
    return _Scene(x, name, found, frames, look, options.size or dot_size(len(found), 4_000, 5, 26))


def _look(data: Any, found: Trajectories, options: _FlowOptions) -> Look:
    if options.color_by == "time" or (options.color_by == "auto" and not found.clusters.size):
        return Look.of_time(len(found), found.time, options.cmap)
    names = fate_names(found, options.terminal_clusters)
    known = cluster_colors(data, found, options.cluster_key)
    colors = {**{name: known[name] for name in names}, "none of them": NOWHERE}
    clusters = [*map(str, found.clusters), ""]  # the last for particles of no cluster
    fate = [clusters[code] if clusters[code] in names else "none of them" for code in found.end_cluster]
    shown = [name for name in colors if name in names or name in fate]
    return Look.of_classes(fate, colors, {f"{name} ({fate.count(name)})": colors[name] for name in shown})
