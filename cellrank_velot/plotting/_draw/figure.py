"""Figures: how they open, look and close, the same for every plot of this folder.

Depends on matplotlib, and on scanpy for the folder of figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cellrank_velot._utils.files import replacing

__all__ = ["close_figure", "open_axes", "style"]

STYLE: dict[str, Any] = {
    "axes.edgecolor": "#555555",
    "axes.facecolor": "white",
    "axes.grid": False,
    "axes.labelcolor": "#333333",
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.facecolor": "white",
    "font.size": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "text.color": "#1a1a1a",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


def style() -> AbstractContextManager[None]:
    """Return a context with the look of our figures; the settings of the caller come back after it."""
    return plt.rc_context(STYLE)  # type: ignore[arg-type]  # its stubs list every setting by name


def open_axes(
    ax: Axes | Sequence[Axes] | None,
    *,
    n_panels: int = 1,
    n_columns: int = 4,
    panel_size: tuple[float, float] = (5.0, 4.2),
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> tuple[Figure, list[Axes], bool]:
    """Return a figure, one Axes for each panel, and whether the figure is ours.

    Parameters
    ----------
    ax
        Axes of the caller, as many as there are panels; a new figure where ``None``.
    n_panels, n_columns
        Number of panels, and of columns at most.
    panel_size
        Width and height of one panel in inches, used without ``figsize``.
    figsize
        Width and height of the figure in inches.
    dpi
        Dots per inch.

    Raises
    ------
    ValueError
        If the number of Axes is not that of the panels.
    """
    if ax is not None:
        panels = [ax] if isinstance(ax, Axes) else list(np.ravel(np.asarray(ax, dtype=object)))
        if len(panels) != n_panels:
            raise ValueError(f"Expected `{n_panels}` Axes in `ax`, found `{len(panels)}`.")
        return panels[0].figure.get_figure(root=True) or plt.gcf(), panels, False
    n_columns = min(n_columns, n_panels)
    n_rows = -(-n_panels // n_columns)
    size = figsize or (panel_size[0] * n_columns, panel_size[1] * n_rows)
    figure, grid = plt.subplots(n_rows, n_columns, figsize=size, dpi=dpi, squeeze=False, layout="constrained")
    panels = list(grid.ravel())
    for unused in panels[n_panels:]:
        unused.remove()
    return figure, panels[:n_panels], True


def close_figure(figure: Figure, *, ours: bool, save: str | Path | None, show: bool | None) -> bool:
    """Save and show a figure as asked, and say whether its Axes are to be returned.

    Parameters
    ----------
    figure
        What was drawn.
    ours
        Whether :func:`open_axes` made it.
    save
        File; a relative one lies in scanpy's ``settings.figdir``, one without a suffix gets the one scanpy uses.
    show
        Whether to show it. By default shown, unless it was saved or drawn into the Axes of the caller.
    """
    if save is not None:
        path = Path(save)
        path = path if path.is_absolute() else Path(sc.settings.figdir) / path
        path = path if path.suffix else path.with_name(f"{path.name}.{sc.settings.file_format_figs}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            figure.savefig(temporary, bbox_inches="tight", dpi=figure.dpi)
    if show or (show is None and save is None and ours):
        plt.show()
    elif show is None and ours:
        plt.close(figure)
    return show is False
