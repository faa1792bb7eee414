"""Legends: their entries, and where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

__all__ = ["BELOW", "MAX_ROWS", "RIGHT", "beside_cells", "dot", "sections", "stroke"]

# Rows of a legend in one column at most; one with headings may be longer.
MAX_ROWS, MAX_ROWS_OF_SECTIONS = 14, 22
# Places beside the Axes.
RIGHT: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
BELOW: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.0, -0.06)}


def dot(label: str, color: Any, **kwargs: Any) -> Line2D:
    """Return a point for a legend."""
    look: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 6, "markeredgewidth": 0, **kwargs}
    return Line2D([], [], color=color, label=label, **look)


def stroke(label: str, color: Any, **kwargs: Any) -> Line2D:
    """Return a line for a legend."""
    return Line2D([], [], color=color, label=label, **{"linewidth": 2, **kwargs})


def sections(place: Axes | Figure, parts: Sequence[tuple[str, Sequence[Line2D]]]) -> None:
    """Draw one legend of several parts, each with a heading, to the right of an Axes or of a figure."""
    handles: list[Line2D] = []
    headings = []
    for heading, entries in parts:
        if entries:
            headings.append(len(handles))
            handles += [Line2D([], [], linestyle="", label=heading), *entries]
    if not handles:
        return
    where: dict[str, Any] = RIGHT if isinstance(place, Axes) else {"loc": "outside right center"}
    n_columns = -(-len(handles) // MAX_ROWS_OF_SECTIONS)
    legend = place.legend(handles=handles, ncols=n_columns, handletextpad=0.5, **where)
    for i in headings:
        legend.get_texts()[i].set_fontweight("bold")


def beside_cells(ax: Axes, parts: Sequence[tuple[str, Sequence[Line2D]]], color: str | None) -> None:
    """Draw one legend of some parts and of the cells, in place of that which the cells have."""
    cells: list[Line2D] = []
    old = ax.get_legend()
    if old is not None:
        shades = [handle.get_color() for handle in old.legend_handles if isinstance(handle, Line2D)]
        cells = [dot(text.get_text(), shade) for text, shade in zip(old.get_texts(), shades, strict=True)]
        old.remove()
    sections(ax, [*parts, (f"Cells: {color}", cells)])
