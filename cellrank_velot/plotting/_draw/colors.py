"""Colours that are told apart on white and with the common kinds of colour blindness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scanpy as sc
from anndata import AnnData
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from numpy.typing import NDArray

from cellrank_velot.cells import read_colors

__all__ = ["BACKGROUND", "INK", "PROBABILITY", "VALUES", "palette", "palette_of", "scale_of"]

# Okabe & Ito (2008), https://jfly.uni-koeln.de/color/, with the yellow, pale on white, towards the end
_OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A800", "#7F7F7F")

BACKGROUND = "#DADDE1"
INK = "#1A1A1A"
# Lightness falls evenly from a grey that is still seen on white: order is read without seeing any hue.
PROBABILITY = LinearSegmentedColormap.from_list("velot_probability", ["#E3E6EA", "#8DB4D9", "#2E6DAF", "#0A2351"])
# Viridis without its yellow end, which is pale on white.
VALUES = LinearSegmentedColormap.from_list("velot_values", [colormaps["viridis"](i / 255 * 0.92) for i in range(256)])


def palette(n_colors: int) -> list[str]:
    """Return as many colours: Okabe and Ito's up to eight, scanpy's longer palettes beyond."""
    if n_colors <= len(_OKABE_ITO):
        return list(_OKABE_ITO[:n_colors])
    longer: Sequence[Sequence[str]] = (
        sc.pl.palettes.default_20,
        sc.pl.palettes.default_28,
        sc.pl.palettes.default_102,
    )
    chosen = next((colors for colors in longer if len(colors) >= n_colors), longer[-1])
    return [chosen[i % len(chosen)] for i in range(n_colors)]


def palette_of(adata: AnnData, key: str, categories: Sequence[Any]) -> dict[Any, str]:
    """Return the colour of each category, from ``adata.uns["{key}_colors"]`` where they are enough."""
    stored = read_colors(adata, key)
    enough = len(stored) >= len(categories)
    return dict(zip(categories, stored if enough else palette(len(categories)), strict=False))


def scale_of(
    values: NDArray[np.float64], cmap: str | Colormap, limits: tuple[float, float] | None = None
) -> ScalarMappable:
    """Return the colours of values, from the smallest to the largest where there are no ``limits``."""
    finite = values[np.isfinite(values)]
    low, high = limits or ((float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0))
    return ScalarMappable(Normalize(low, high), cmap)
