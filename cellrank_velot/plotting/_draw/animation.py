"""Films: the options that every animation takes, how it is opened, saved and shown.

IPython shows animations where it is running, and is not needed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TypedDict

import matplotlib.pyplot as plt
import scanpy as sc
from matplotlib.animation import AbstractMovieWriter, FuncAnimation, writers
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from cellrank_velot._utils.files import replacing
from cellrank_velot._utils.validation import check_integer, check_number
from cellrank_velot.plotting._draw.figure import Canvas, open_axes, style

__all__ = ["Film", "FilmOptions"]

ANIMATIONS = (".gif", ".mp4")


class FilmOptions(TypedDict, total=False):
    """Options of the figure that every animation takes.

    Parameters
    ----------
    figsize
        Width and height of the figure in inches.
    dpi
        Dots per inch; 80 where not given. The size of a file grows with its square.
    save
        File to save to: a ``.gif``, also where there is no suffix, or an ``.mp4``, which needs ``ffmpeg``. A relative
        one lies in scanpy's ``settings.figdir``.
    show
        Whether to show the animation: in a notebook as HTML with buttons, otherwise in a window. By default it is shown
        unless it is saved.
    """

    figsize: tuple[float, float] | None
    dpi: float | None
    save: str | Path | None
    show: bool | None


@dataclass(frozen=True)
class Film:
    """A film as it was asked for: how fast it plays, how large it is, and where it goes."""

    fps: int
    dpi: float
    figsize: tuple[float, float] | None
    path: Path | None
    show: bool | None

    @classmethod
    def of(cls, fps: int, figure: FilmOptions) -> Film:
        """Check what was asked for."""
        check_integer("fps", fps, low=1)
        dpi, save = figure.get("dpi"), figure.get("save")
        dpi = check_number("dpi", 80.0 if dpi is None else dpi, low=0, open_low=True)
        return cls(fps, dpi, figure.get("figsize"), None if save is None else _path(save), figure.get("show"))

    @contextmanager
    def drawing(self, panel_size: tuple[float, float], projection: str | None = None) -> Iterator[Canvas]:
        """Open a figure in our style, in which the first frame is drawn."""
        with style():
            figure, panels, ours = open_axes(
                None, panel_size=panel_size, figsize=self.figsize, dpi=self.dpi, projection=projection
            )
            try:
                yield Canvas(figure, panels, 1, ours, returned=False, single=True)
                # Laid out once: each frame would do it again, and might come out a pixel different.
                figure.draw_without_rendering()
                figure.set_layout_engine("none")
            except BaseException:
                plt.close(figure)
                raise

    def play(
        self,
        canvas: Canvas,
        update: Callable[[int], None],
        n_frames: int,
        gif: Callable[[int], AbstractMovieWriter] | None = None,
    ) -> FuncAnimation | None:
        """Save and show a film, of which ``update`` draws a frame; return it where it is the caller's.

        ``gif`` makes a writer of GIFs for a number of frames per second.
        """

        def step(frame: int) -> list[Artist]:
            update(frame)
            return []

        # With an `init_func`, the animation does not draw the first frame once more.
        animation = FuncAnimation(canvas.figure, step, n_frames, init_func=list, interval=1000 / self.fps, blit=False)
        if self.path is not None:
            write = gif or writers["pillow"] if self.path.suffix == ".gif" else writers["ffmpeg"]
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with style(), replacing(self.path) as file:
                    animation.save(file, writer=write(self.fps), dpi=self.dpi)
            except BaseException:
                plt.close(canvas.figure)
                raise
        return _show(animation, canvas.figure, saved=self.path is not None, show=self.show)


def _path(save: str | Path) -> Path:
    """Return the file of an animation, of a kind that can be written here."""
    path = Path(save)
    path = path if path.is_absolute() else Path(sc.settings.figdir) / path
    path = path if path.suffix else path.with_suffix(".gif")
    if path.suffix not in ANIMATIONS:
        raise ValueError(f"Expected `save` to end in one of {list(ANIMATIONS)}, found `{path.name!r}`.")
    if path.suffix == ".mp4" and not writers.is_available("ffmpeg"):
        raise RuntimeError(
            "Expected the program `ffmpeg`, which writes `.mp4`, found none. Install it, e.g. with "
            "`conda install ffmpeg`, or save as `.gif`."
        )
    return path


def _show(animation: FuncAnimation, figure: Figure, *, saved: bool, show: bool | None) -> FuncAnimation | None:
    """Show an animation as asked, and return it where it is the caller's."""
    if show is False:
        return animation
    if show or not saved:
        if _in_notebook():
            notebook = import_module("IPython.display")
            with style():
                notebook.display(notebook.HTML(animation.to_jshtml()))
            plt.close(figure)
            return None
        if show or getattr(figure.canvas, "required_interactive_framework", None):
            plt.show()
            return None
        return animation
    plt.close(figure)
    return None


def _in_notebook() -> bool:
    """Return whether IPython is running with a kernel, which shows HTML; a terminal has none."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return getattr(shell, "kernel", None) is not None
