"""The plane that time series are drawn in: two columns of an embedding, or of the basis of the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from cellrank_velot.cells import basis_name, find_basis, read_plane
from cellrank_velot.plotting._draw.colors import BACKGROUND
from cellrank_velot.plotting._draw.embedding import area_of, dot_size, draw_cells
from cellrank_velot.plotting._draw.kernel import adata_of
from cellrank_velot.plotting._draw.paths import Place

__all__ = ["Plane", "plane_of"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Plane:
    """Cells in two dimensions, shape ``[n_cells, 2]``, and how points of the basis get there; as they are without."""

    cells: FloatArray
    name: str
    dims: tuple[int, int]
    place: Place | None

    def embed(self, points: FloatArray) -> FloatArray:
        """Return points of the basis of the kernel in the plane, shape ``[n_points, 2]``."""
        return points[:, list(self.dims)] if self.place is None else self.place.embed(points)

    def draw(self, ax: Axes, x: FloatArray, colors: Any, *, size: float | None, alpha: float = 1.0) -> None:
        """Draw points of the plane, within its limits."""
        size = size or _dot_size(ax, len(x))
        draw_cells(ax, x, self.name, colors, size=size, alpha=alpha)
        ax.set(xlabel=f"{self.name} {self.dims[0] + 1}", ylabel=f"{self.name} {self.dims[1] + 1}")
        low, high = self.limits
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))

    def draw_behind(self, ax: Axes, *, size: float | None) -> None:
        """Draw all cells in pale grey, behind others."""
        self.draw(ax, self.cells, BACKGROUND, size=size, alpha=0.7)

    @property
    def limits(self) -> tuple[FloatArray, FloatArray]:
        """Lower and upper limits of both axes."""
        low, high = self.cells.min(axis=0), self.cells.max(axis=0)
        margin = np.where(high > low, 0.04 * (high - low), 0.5)
        return low - margin, high + margin


def _dot_size(ax: Axes, n: int) -> float:
    return dot_size(n, 2200 * area_of(ax), 0.8, 14)


def plane_of(data: Any, basis: str | None, dims: tuple[int, int]) -> Plane:
    """Return two columns of an embedding, or of the basis of the kernel."""
    adata = adata_of(data)
    own = getattr(data, "basis", None)
    key = find_basis(adata, basis or own or "umap")
    cells = read_plane(adata, key, dims, known=None if own is None else {own: data.cells.x})
    place = None if key == own or own is None else Place(data.cells.x, cells)
    return Plane(cells, basis_name(key), (dims[0], dims[1]), place)
