"""Where animations are saved, and how they are shown.

Depends on matplotlib and scanpy's settings. IPython shows animations where it is running, and is not needed.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import matplotlib.pyplot as plt
import scanpy as sc
from matplotlib.animation import FuncAnimation, writers
from matplotlib.figure import Figure

from cellrank_velot.plotting._draw.figure import style

__all__ = ["animation_path", "show_animation"]

ANIMATIONS = (".gif", ".mp4")


def animation_path(save: str | Path) -> Path:
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


def show_animation(animation: FuncAnimation, figure: Figure, *, saved: bool, show: bool | None) -> FuncAnimation | None:
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
