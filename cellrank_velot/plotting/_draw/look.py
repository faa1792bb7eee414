"""Colours of paths and particles, by class or by time, and what the legend says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from cellrank_velot.plotting._draw.colors import INK, scale_of
from cellrank_velot.plotting._draw.figure import color_bar
from cellrank_velot.plotting._draw.legends import dot, sections

__all__ = ["Look"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Look:
    """Colour of each path, shape ``[n_paths, 4]``, and the colour of each label; or the scale of time."""

    colors: FloatArray
    labels: Mapping[str, str] = field(default_factory=dict)
    scale: ScalarMappable | None = None

    @classmethod
    def of_classes(cls, labels: Sequence[str], colors: Mapping[str, str], legend: Mapping[str, str]) -> Look:
        """Return the look of paths by the class of each."""
        return cls(np.array([to_rgba(colors[label]) for label in labels]), legend)

    @classmethod
    def of_time(cls, n_paths: int, time: FloatArray, cmap: str | Colormap) -> Look:
        """Return the look of paths whose points are coloured by time."""
        return cls(np.tile(to_rgba(INK), (n_paths, 1)), scale=scale_of(time, cmap))

    def of(self, paths: NDArray[np.int64]) -> Look:
        """Return the look of some of the paths, with the same legend."""
        return replace(self, colors=self.colors[paths])

    def at(self, time: FloatArray) -> FloatArray:
        """Return the colour of each path at its time, shape ``[n_paths, 4]``."""
        return self.colors.copy() if self.scale is None else np.array(self.scale.to_rgba(time))

    def draw_legend(
        self,
        place: Axes | Figure,
        panels: Axes | Sequence[Axes],
        heading: str,
        others: Sequence[tuple[str, Sequence[Line2D]]] = (),
    ) -> None:
        """Draw what the colours mean, to the right, with other sections below."""
        if self.scale is not None:
            color_bar(self.scale, panels, "Time")
        sections(place, [(heading, [dot(label, color) for label, color in self.labels.items()]), *others])
