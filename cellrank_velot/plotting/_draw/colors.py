"""Colours that are told apart on white and with the common kinds of colour blindness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, to_rgb
from numpy.typing import NDArray

from cellrank_velot.cells import read_colors

__all__ = ["BACKGROUND", "INK", "PROBABILITY", "VALUES", "apart", "palette", "palette_of", "scale_of"]

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
    """Return the colour of each category, from ``adata.uns["{key}_colors"]`` where they are enough.

    Otherwise they are chosen, so that categories that touch each other differ, and written there as scanpy does.
    """
    stored = read_colors(adata, key)
    if len(stored) >= len(categories):
        return dict(zip(categories, stored, strict=False))
    chosen = palette(len(categories))
    column = adata.obs.get(key)
    ours = column is not None and isinstance(column.dtype, pd.CategoricalDtype)
    if ours and list(column.cat.categories) == list(categories):
        if len(categories) > len(_OKABE_ITO):  # up to there all of them are told apart
            chosen = apart(chosen, _contacts(adata, column.cat.codes.to_numpy(), len(categories)))
        if not adata.is_view:  # or anndata would make a copy of it
            adata.uns[f"{key}_colors"] = chosen
    return dict(zip(categories, chosen, strict=True))


def apart(colors: Sequence[str], contacts: NDArray[np.float64]) -> list[str]:
    """Return colours in an order in which those of groups that touch each other differ, by exchanging two at a time.

    ``contacts`` has a weight for each pair of groups, shape ``[n_colors, n_colors]``, symmetric.
    """
    lab = np.array([_lab(color) for color in colors])
    alike = 1 / (1 + np.linalg.norm(lab[:, None] - lab[None], axis=2))
    order = np.arange(len(colors))
    for _ in range(len(colors)):
        changed = False
        for i in range(len(colors)):
            for j in range(i + 1, len(colors)):
                swapped = order.copy()
                swapped[[i, j]] = swapped[[j, i]]
                rows = [i, j]
                before, after = (
                    (contacts[rows] * alike[np.ix_(trial[rows], trial)]).sum() for trial in (order, swapped)
                )
                if after < before - 1e-12:
                    order, changed = swapped, True
        if not changed:
            break
    return [colors[int(place)] for place in order]


def _contacts(adata: AnnData, codes: NDArray[np.integer[Any]], n_groups: int) -> NDArray[np.float64]:
    """Return how much groups touch in the neighbour graph, relative to the most; zero where there is no graph."""
    graph = adata.obsp.get("connectivities")
    if not sp.issparse(graph):
        return np.zeros((n_groups, n_groups))
    known = np.flatnonzero(codes >= 0)
    member = sp.csr_matrix((np.ones(known.size), (known, codes[known])), shape=(codes.size, n_groups))
    contacts = np.nan_to_num((member.T @ (graph @ member)).toarray())
    contacts = contacts + contacts.T
    np.fill_diagonal(contacts, 0)
    return np.asarray(contacts / max(contacts.max(), np.finfo(float).tiny))


def _lab(color: str) -> NDArray[np.float64]:
    """Return a colour in CIE L*a*b*, where distances are those that the eye sees."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def scale_of(
    values: NDArray[np.float64], cmap: str | Colormap, limits: tuple[float, float] | None = None
) -> ScalarMappable:
    """Return the colours of values, from the smallest to the largest where there are no ``limits``."""
    finite = values[np.isfinite(values)]
    low, high = limits or ((float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0))
    return ScalarMappable(Normalize(low, high), cmap)
