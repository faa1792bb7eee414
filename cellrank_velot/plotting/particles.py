"""Flow: particles in an embedding at some times of their run, as still frames and as an animation, and their fates.

Depends on the shared files of this folder. IPython shows animations where it is running, and is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.animation import FuncAnimation, writers
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import Colormap, Normalize, to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cellrank_velot._utils.files import replacing
from cellrank_velot._utils.validation import check_choice, check_integer, check_number
from cellrank_velot.dynamics import Trajectories
from cellrank_velot.plotting._draw.animation import animation_path, show_animation
from cellrank_velot.plotting._draw.colors import BACKGROUND, INK, VALUES
from cellrank_velot.plotting._draw.embedding import HasAnnData, adata_of, draw_cells, positions
from cellrank_velot.plotting._draw.figure import close_figure, open_axes, style
from cellrank_velot.plotting._draw.paths import (
    NOWHERE,
    Frames,
    cluster_colors,
    dot,
    fate_names,
    fate_word,
    frames_of,
    place_of,
    read,
    sections,
)

__all__ = ["fate_summary", "flow", "flow_animation"]

FloatArray = NDArray[np.float64]

ColorBy = Literal["auto", "fate", "time"]
# Opacity of particles that have ended.
PALE = 0.35


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
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
    ax: Axes | Sequence[Axes] | None = None,
) -> list[Axes] | None:
    """Draw the particles of a flow at some times of their run, one panel for each; cells are grey.

    Particles that have ended stay where they ended, and are drawn paler and without an edge. Those that ran out of
    steps move to the last.

    Parameters
    ----------
    data
        A kernel or an AnnData.
    trajectories
        The flow; that which was written to ``adata.uns[key]`` where not given.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``; its first two dimensions are drawn.
    key
        Key in ``adata.uns`` of the flow.
    n_frames
        Number of times, spread evenly from the start of the run to its end; the end alone where it is 1. The run is as
        long as that of the particle that moves longest.
    color_by
        ``"fate"``, the cluster in which a particle will end, or the ``"time"`` of the place where it is. ``"auto"`` is
        ``"fate"`` where the flow has clusters, and ``"time"`` otherwise.
    terminal_clusters
        Clusters that count as fates; particles that end elsewhere are dark grey. By default those that particles
        arrived at, if the flow had terminal clusters, and all others.
    cluster_key
        Column of ``adata.obs`` whose colours the fates have. By default that of the kernel, or ``"clusters"``, where it
        has the names of the fates.
    velocity_basis
        Key in ``adata.obsm`` of the basis that the flow was simulated in. By default the one that it knows,
        that of the kernel, or ``"X_pca"``.
    n_columns
        Number of panels in a row, at most.
    cmap
        Colours of time.
    size
        Area of the particles in square points, by default smaller the more there are.
    legend
        Whether to draw the legend, or the colour bar of time.
    figsize
        Width and height of the figure in inches.
    dpi
        Dots per inch.
    save
        File to save to; a relative one lies in scanpy's ``settings.figdir``.
    show
        Whether to show the figure. By default shown unless saved or drawn into ``ax``.
    ax
        Axes to draw into, one for each frame.

    Returns
    -------
    The list of Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding, the basis, the flow or the clusters are missing.
    TypeError
        If ``data`` or ``trajectories`` is something else, or an option is no number.
    ValueError
        If there is nothing to draw, the basis does not fit the flow, an option is unknown or out of range, fates are
        asked for where there are no clusters, or the number of Axes is not that of the frames.

    Examples
    --------
    >>> flow = vk.simulate_flow(source_cluster="Progenitor", n_particles=50, n_steps=50)
    >>> panels = pl.flow(vk, flow, n_frames=2, show=False)
    """
    check_integer("n_columns", n_columns, low=1)
    x, name, found, frames, look = _scene(
        data, trajectories, basis, key, n_frames, color_by, terminal_clusters, cluster_key, velocity_basis, cmap
    )
    # Rows of like length: six frames are two rows of three, not four and two.
    n_columns = -(-n_frames // -(-n_frames // n_columns))
    with style():
        figure, panels, ours = open_axes(
            ax,
            n_panels=n_frames,
            n_columns=n_columns,
            panel_size=(5.2, 4.0) if n_frames == 1 else (2.7, 2.7),
            figsize=figsize,
            dpi=dpi,
        )
        for i, panel in enumerate(panels):
            draw_cells(panel, x, name, BACKGROUND, size=_cell_size(x) * (1.0 if n_frames == 1 else 0.5))
            _draw_particles(panel, frames, look, i, size)
            panel.set_title(frames.title(i), fontsize=11 if n_frames == 1 else 9)
            if ours and i % n_columns:
                panel.set_ylabel("")
            if ours and i + n_columns < n_frames:
                panel.set_xlabel("")
        if legend:
            _draw_legend(figure if ours else panels[-1], panels, found, look)
        return panels if close_figure(figure, ours=ours, save=save, show=show) else None


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
    figsize: tuple[float, float] | None = None,
    dpi: float = 80.0,
    save: str | Path | None = None,
    show: bool | None = None,
) -> FuncAnimation | None:
    """Draw the particles of a flow as an animation.

    Particles are those of :func:`flow`, with a trail that fades. A trail is broken where a particle jumps across the
    embedding.

    Parameters
    ----------
    data, trajectories, basis, key
        As in :func:`flow`.
    n_frames
        Number of frames, spread evenly from the start of the run to its end. A file grows with it, and with the square
        of ``dpi``: at 60 frames of 80 dots per inch, a GIF has about 1 MB.
    fps
        Frames per second.
    trail
        Number of frames that a trail goes back; 0 for none.
    color_by, terminal_clusters, cluster_key, velocity_basis, cmap, size, legend
        As in :func:`flow`.
    figsize
        Width and height of the figure in inches.
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
        As in :func:`flow`.
    RuntimeError
        If ``.mp4`` is asked for without ``ffmpeg``.
    ValueError
        As in :func:`flow`, or if the file is of another kind.

    Examples
    --------
    >>> flow = vk.simulate_flow(source_cluster="Progenitor", n_particles=50, n_steps=50)
    >>> pl.flow_animation(vk, flow, n_frames=3, save="flow.gif")
    """
    check_integer("fps", fps, low=1)
    check_number("dpi", dpi, low=0, open_low=True)
    check_integer("trail", trail, low=0)
    path = None if save is None else animation_path(save)
    x, name, found, frames, look = _scene(
        data, trajectories, basis, key, n_frames, color_by, terminal_clusters, cluster_key, velocity_basis, cmap
    )
    with style():
        figure, (panel,), _ = open_axes(None, panel_size=(5.6, 4.0), figsize=figsize, dpi=dpi)
        draw_cells(panel, x, name, BACKGROUND, size=_cell_size(x))
        # Limits are those of the whole run: a frame must not move the cells.
        panel.update_datalim(frames.x[np.isfinite(frames.x).all(axis=2)])
        panel.autoscale_view()
        panel.autoscale(False)
        scatter = _draw_particles(panel, frames, look, 0, size)
        tails = LineCollection([], linewidths=1.0, zorder=2, label="trails")
        panel.add_collection(tails)
        title = panel.set_title(frames.title(0))
        if legend:
            _draw_legend(panel, [panel], found, look)
        # Laid out once: each frame would do it again, and might come out a pixel different.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")

    def update(frame: int) -> list[Any]:
        scatter.set_offsets(frames.x[frame])
        _paint(scatter, frames, look, frame)
        _set_tails(tails, frames, look, frame, trail)
        title.set_text(frames.title(frame))
        return [scatter, tails, title]

    def begin() -> list[Any]:
        # Given so that the animation does not draw the first frame once more for it.
        return [scatter, tails]

    animation = FuncAnimation(figure, update, frames=n_frames, init_func=begin, interval=1000 / fps, blit=False)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with style(), replacing(path) as file:
                animation.save(file, writer=writers["pillow" if path.suffix == ".gif" else "ffmpeg"](fps=fps), dpi=dpi)
        except BaseException:
            plt.close(figure)
            raise
    return show_animation(animation, figure, saved=path is not None, show=show)


def fate_summary(
    data: AnnData | HasAnnData,
    trajectories: Trajectories | None = None,
    *,
    key: str = "velot_flow",
    terminal_clusters: str | Sequence[str] | None = None,
    level: float = 0.95,
    compare: Mapping[str, float] | pd.Series | None = None,
    cluster_key: str | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
    ax: Axes | None = None,
) -> Axes | None:
    """Draw the share of the particles that came to each fate, of those that came to one, with its interval.

    Parameters
    ----------
    data
        A kernel or an AnnData.
    trajectories
        The flow, or other trajectories; what was written to ``adata.uns[key]`` where not given.
    key
        Key in ``adata.uns`` of the flow.
    terminal_clusters
        Clusters that count as fates, from above; by default those that particles arrived at, if the flow had terminal
        clusters, and all in which one ended otherwise, the most frequent above.
    level
        Level of Wilson's confidence interval, see :meth:`cellrank_velot.dynamics.Trajectories.fates`.
    compare
        Other probabilities of fates to mark beside, by cluster, such as the mean of CellRank's over the cells of the
        source. The legend has the name of a :class:`pandas.Series`. None where not given.
    cluster_key
        Column of ``adata.obs`` whose colours the fates have, as in :func:`flow`.
    title
        Title of the Axes; none where not given.
    figsize, dpi, save, show
        As in :func:`flow`.
    ax
        Axes to draw into.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the flow or a cluster is missing, or ``compare`` has none of the fates.
    TypeError
        If ``data`` or ``trajectories`` is something else, or a number is none.
    ValueError
        If the flow has no clusters, no particle came to a fate, or a number is out of range.

    Examples
    --------
    >>> flow = vk.simulate_flow(source_cluster="Progenitor", n_particles=50, n_steps=50)
    >>> ax = pl.fate_summary(vk, flow, show=False)
    """
    found = read(data, trajectories, key)
    names = fate_names(found, terminal_clusters)
    table = found.fates(names, level=level)
    n_without = int(table["n_particles"].iloc[-1])
    table = table.iloc[:-1]
    total = int(table["n_particles"].sum())
    if not total:
        raise ValueError(f"Expected particles that came to one of {names}, found none among `{len(found)}`.")
    if terminal_clusters is None:
        table = table.sort_values("n_particles", ascending=False, kind="stable")
    others = None if compare is None else _compared(compare, list(table.index))
    colors = cluster_colors(data, found, cluster_key)
    word = fate_word(found)
    with style():
        size = (5.4, 1.1 + 0.42 * len(table) + (0.25 if compare is not None else 0.0))
        figure, (panel,), ours = open_axes(ax, panel_size=size, figsize=figsize, dpi=dpi)
        _draw_bars(panel, table, [colors[name] for name in table.index], total)
        if others is not None:
            label = getattr(compare, "name", None)
            _draw_compared(panel, others, list(table.index), str(label or "compared"), figure if ours else None)
        note = f"{n_without} of {len(found)} ({n_without / len(found):.0%}) came to none of them" if n_without else ""
        measure = f"Probability of the {word.lower()} ({100 * level:g}% interval)"
        panel.set_xlabel(f"{measure}\n{note}" if note else measure)
        panel.set_title(title or "")
        return panel if close_figure(figure, ours=ours, save=save, show=show) else None


# -------------------------------------------------------------------------------------------------------- what is drawn
@dataclass(frozen=True)
class _Look:
    """Colour of each particle, shape ``[n_particles, 4]``, or the scale of time, and what the legend says."""

    colors: FloatArray
    labels: Mapping[str, str]
    scale: ScalarMappable | None = None

    def at(self, frames: Frames, frame: int) -> FloatArray:
        """Return the colour of each particle in a frame, shape ``[n_particles, 4]``."""
        return self.colors.copy() if self.scale is None else np.array(self.scale.to_rgba(frames.time[frame]))


def _scene(
    data: Any,
    trajectories: Trajectories | None,
    basis: str,
    key: str,
    n_frames: int,
    color_by: str,
    terminal_clusters: str | Sequence[str] | None,
    cluster_key: str | None,
    velocity_basis: str | None,
    cmap: str | Colormap,
) -> tuple[FloatArray, str, Trajectories, Frames, _Look]:
    """Check what was asked for, and return the cells, the name of the embedding, the flow, its frames and colours."""
    check_integer("n_frames", n_frames, low=1)
    check_choice("color_by", color_by, ColorBy)
    x, name = positions(adata_of(data), basis)
    found = read(data, trajectories, key)
    look = _look(data, found, color_by, terminal_clusters, cluster_key, cmap)
    return x, name, found, frames_of(found, place_of(data, found, x, velocity_basis), n_frames), look


def _look(
    data: Any,
    found: Trajectories,
    color_by: str,
    terminal_clusters: str | Sequence[str] | None,
    cluster_key: str | None,
    cmap: str | Colormap,
) -> _Look:
    if color_by == "time" or (color_by == "auto" and not found.clusters.size):
        known = found.time[np.isfinite(found.time)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        return _Look(np.tile(to_rgba(INK), (len(found), 1)), {}, ScalarMappable(Normalize(low, high), cmap))
    names = fate_names(found, terminal_clusters)
    table = {name: color for name, color in cluster_colors(data, found, cluster_key).items() if name in names}
    table = {**{name: table[name] for name in names}, "none of them": NOWHERE}
    clusters = [*map(str, found.clusters), ""]  # the last for particles of no cluster
    fate = [clusters[code] if clusters[code] in names else "none of them" for code in found.end_cluster]
    labels = {f"{name} ({fate.count(name)})": color for name, color in table.items() if name in names or name in fate}
    return _Look(np.array([to_rgba(table[name]) for name in fate]), labels)


# ------------------------------------------------------------------------------------------------------ how it is drawn
def _cell_size(x: FloatArray) -> float:
    return float(np.clip(15_000 / max(len(x), 1), 3, 16))


def _draw_particles(ax: Axes, frames: Frames, look: _Look, frame: int, size: float | None) -> PathCollection:
    size = size or float(np.clip(4_000 / frames.x.shape[1], 5, 26))
    x, y = frames.x[frame].T
    scatter = ax.scatter(x, y, s=size, zorder=3, label="particles", linewidths=0.5)
    _paint(scatter, frames, look, frame)
    return scatter


def _paint(scatter: PathCollection, frames: Frames, look: _Look, frame: int) -> None:
    """Colour the particles: those that move have an edge, those that have ended are pale."""
    colors, edges = look.at(frames, frame), np.tile(to_rgba(INK), (frames.x.shape[1], 1))
    ended = frames.ended[frame]
    colors[ended, 3], edges[ended, 3] = PALE, 0.0
    scatter.set_facecolor(list(map(tuple, colors)))
    scatter.set_edgecolor(list(map(tuple, edges)))


def _set_tails(tails: LineCollection, frames: Frames, look: _Look, frame: int, trail: int) -> None:
    """Draw the way since some frames ago, paler the longer ago; none where a particle jumped, stood still or is not."""
    segments, colors = [np.empty((0, 2, 2))], [np.empty((0, 4))]
    for since in range(max(frame - trail, 0), frame):
        ways = np.stack([frames.x[since], frames.x[since + 1]], axis=1)
        moves = np.isfinite(ways).all(axis=(1, 2)) & ~frames.jumped[since + 1] & (ways[:, 0] != ways[:, 1]).any(axis=1)
        shades = look.at(frames, since + 1)[moves]
        shades[:, 3] = 0.6 * (1 - (frame - since - 1) / trail)
        segments.append(ways[moves])
        colors.append(shades)
    tails.set_segments(list(np.concatenate(segments)))
    tails.set_color(list(map(tuple, np.concatenate(colors))))


def _draw_legend(place: Axes | Figure, panels: list[Axes], found: Trajectories, look: _Look) -> None:
    """Draw what colours and edges mean, to the right."""
    if look.scale is not None:
        bar = panels[0].figure.colorbar(look.scale, ax=panels, shrink=0.7, aspect=18, pad=0.02, label="Time")
        bar.outline.set_visible(False)
    fates = [dot(label, color) for label, color in look.labels.items()]
    states = [
        dot("moving", "white", markeredgecolor=INK, markeredgewidth=0.8),
        dot("ended", INK, alpha=PALE, markeredgewidth=0),
    ]
    sections(place, [(fate_word(found), fates), ("Particles", states)])


# -------------------------------------------------------------------------------------------------- files and notebooks
# ---------------------------------------------------------------------------------------------------------------- fates
def _compared(compare: Mapping[str, float] | pd.Series, names: list[str]) -> dict[str, float]:
    """Return the other probabilities of the fates that have one.

    Raises
    ------
    KeyError
        If no fate has one.
    TypeError, ValueError
        If one is no probability.
    """
    if not isinstance(compare, Mapping | pd.Series):
        raise TypeError(f"Expected `compare` to be a dictionary or a Series, found `{type(compare).__name__}`.")
    given = {str(name): value for name, value in compare.items()}
    if not set(given) & set(names):
        raise KeyError(f"Expected `compare` to have one of the fates {names}, found {sorted(given)}.")
    return {
        name: check_number(f"compare[{name!r}]", given[name], low=0, high=1 + 1e-6) for name in names if name in given
    }


def _draw_bars(ax: Axes, table: pd.DataFrame, colors: list[str], total: int) -> None:
    """Draw a bar for each fate, from above, with its interval and number of particles."""
    rows = np.arange(len(table))
    probability = table["probability"].to_numpy()
    reach = np.stack([probability - table["low"], table["high"] - probability]).clip(0)
    ax.barh(rows, probability, color=colors, height=0.62, zorder=2)
    ax.errorbar(probability, rows, xerr=reach, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3, zorder=3)
    for row, count in zip(rows, table["n_particles"], strict=True):
        # Beside the Axes, where no interval or mark can come to lie on it.
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (8, 0), "textcoords": "offset points"}
        ax.annotate(f"{count} of {total}", (1.0, row), va="center", fontsize=9, annotation_clip=False, **place)
    ax.set(yticks=rows, yticklabels=list(table.index), xlim=(0, 1), ylim=(len(table) - 0.5, -0.5))
    ax.tick_params(axis="y", length=0)


def _draw_compared(ax: Axes, others: dict[str, float], names: list[str], label: str, figure: Figure | None) -> None:
    """Mark other probabilities, and say whose they are, above the title where the figure is ours."""
    look: dict[str, Any] = {"marker": "D", "facecolors": "white", "edgecolors": INK, "linewidths": 1.2, "zorder": 4}
    mark = ax.scatter(list(others.values()), [names.index(fate) for fate in others], s=34, label=label, **look)
    if figure is not None:
        figure.legend(handles=[mark], loc="outside upper right", borderaxespad=0.2, handletextpad=0.3)
    else:
        ax.legend(handles=[mark], loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2, handletextpad=0.3)
