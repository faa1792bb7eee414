"""Cells as points in an embedding, coloured by category or by value, and their legends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, to_rgba
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_choice, check_known
from cellrank_velot.cells import by_symbol, read_clusters
from cellrank_velot.plotting._draw.colors import BACKGROUND, INK, VALUES, palette, palette_of, scale_of
from cellrank_velot.plotting._draw.figure import color_bar
from cellrank_velot.plotting._draw.kernel import HasAnnData, adata_of
from cellrank_velot.plotting._draw.legends import BELOW, MAX_ROWS, RIGHT, dot

__all__ = [
    "area_of",
    "categories_of",
    "check_color",
    "colors_by_name",
    "dot_size",
    "draw_categories",
    "draw_cells",
    "draw_colored",
    "draw_legend",
    "draw_values",
    "LegendLoc",
    "place_of",
]

FloatArray = NDArray[np.float64]
LegendLoc = Literal["right margin", "on data", "none"]

# Square inches of a panel of five by four inches, without labels.
USUAL_AREA = 12.0


def draw_cells(
    ax: Axes,
    x: FloatArray,
    name: str,
    colors: Any,
    *,
    order: NDArray[np.intp] | None = None,
    size: float | None = None,
    alpha: float = 1.0,
    **kwargs: Any,
) -> None:
    """Draw cells at ``x`` of shape ``[n_cells, 2]``, the last of ``order`` on top, and name the axes."""
    size = size or dot_size(len(x), 60_000 * min(area_of(ax) / USUAL_AREA, 1.0), 3, 40)
    order = np.random.default_rng(0).permutation(len(x)) if order is None else order
    colors = colors if isinstance(colors, str) else np.asarray(colors)[order]
    ax.scatter(x[order, 0], x[order, 1], c=colors, s=size, alpha=alpha, linewidths=0, rasterized=True, **kwargs)
    ax.set(xlabel=f"{name} 1", ylabel=f"{name} 2", xticks=[], yticks=[])


def area_of(ax: Axes) -> float:
    """Return the area of Axes in square inches."""
    return float(np.prod(np.asarray(ax.bbox.size) / ax.figure.dpi))


def dot_size(n_dots: int, in_all: float, low: float, high: float) -> float:
    """Return the area of each dot, of which all have so many square points together, within limits."""
    return float(np.clip(in_all / max(n_dots, 1), low, high))


def draw_colored(
    ax: Axes,
    x: FloatArray,
    name: str,
    adata: AnnData,
    color: str | None,
    *,
    legend: bool | Literal["on data"] = True,
    cmap: str | Colormap = VALUES,
    **kwargs: Any,
) -> None:
    """Draw cells coloured by a column of ``obs`` or a gene, with a legend or a colour bar outside the data.

    Names of categories may also stand on the data.
    """
    if color is None:
        draw_cells(ax, x, name, BACKGROUND, **kwargs)
        return
    values = categories_of(adata, color)
    if isinstance(values.dtype, pd.CategoricalDtype):
        colors = palette_of(adata, color, list(values.cat.categories))
        draw_categories(ax, x, name, values.array, colors, legend=legend, **kwargs)
    else:
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
        draw_values(ax, x, name, numbers, label=color if legend else None, cmap=cmap, **kwargs)


def check_color(adata: AnnData, color: str | None) -> None:
    """Refuse what is neither a column of ``adata.obs`` nor a gene; ``None`` is no colour."""
    if color is not None and color not in adata.obs and by_symbol(adata, [color])[0] not in adata.var_names:
        raise KeyError(
            f"Expected `color` to be a gene or one of {sorted(map(str, adata.obs.columns))}, found {color!r}."
        )


def categories_of(adata: AnnData, key: str) -> pd.Series[Any]:
    """Return a column of ``obs`` or the expression of a gene: a number for each cell, or a category."""
    check_color(adata, key)
    values = adata.obs[key] if key in adata.obs else sc.get.obs_df(adata, keys=by_symbol(adata, [key])).iloc[:, 0]
    numeric = pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype)
    if numeric or isinstance(values.dtype, pd.CategoricalDtype):
        return values
    return values.astype(str).where(values.notna()).astype("category")


def draw_categories(
    ax: Axes,
    x: FloatArray,
    name: str,
    values: pd.Categorical,
    colors: Mapping[Any, str],
    *,
    legend: bool | Literal["on data"] = True,
    **kwargs: Any,
) -> None:
    """Draw cells by category, those without one in grey below the others."""
    codes = np.asarray(values.codes)
    table = np.array([*(colors[category] for category in values.categories), BACKGROUND])
    shuffled = np.random.default_rng(0).permutation(len(x))
    draw_cells(ax, x, name, table[codes], order=shuffled[np.argsort(codes[shuffled] >= 0, kind="stable")], **kwargs)
    if legend:
        present = [category for category in values.categories if (values == category).any()]
        if legend == "on data":
            places = [np.nanmedian(x[np.asarray(values == category)], axis=0) for category in present]
            write_names(ax, [str(category) for category in present], places)
        else:
            draw_legend(ax, {str(category): colors[category] for category in present})


def place_of(legend: bool, legend_loc: str) -> bool | Literal["on data"]:
    """Return whether there is a legend, or that it stands on the data."""
    check_choice("legend_loc", legend_loc, LegendLoc)
    return "on data" if legend and legend_loc == "on data" else legend and legend_loc != "none"


def write_names(ax: Axes, names: Sequence[str], places: Sequence[FloatArray]) -> None:
    """Write names on the data, with a white edge so that they are read on any colour. Text is taken as it is."""
    edge = [withStroke(linewidth=2.5, foreground="white")]
    for name, place in zip(names, places, strict=True):
        if np.isfinite(place).all():
            look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "fontweight": "bold"}
            ax.text(place[0], place[1], name, path_effects=edge, color=INK, zorder=5, parse_math=False, **look)


def draw_legend(ax: Axes, colors: Mapping[str, str], *, below: bool = False) -> None:
    """Draw a legend of categories to the right of the Axes, or below."""
    handles = [dot(label, color) for label, color in colors.items()]
    place = BELOW if below else {**RIGHT, "ncols": max(-(-len(handles) // MAX_ROWS), 1)}
    ax.legend(handles=handles, handletextpad=0.3, **place)


def draw_values(
    ax: Axes,
    x: FloatArray,
    name: str,
    values: FloatArray,
    *,
    label: str | None,
    cmap: str | Colormap,
    limits: tuple[float, float] | None = None,
    **kwargs: Any,
) -> ScalarMappable:
    """Draw cells by value, high ones on top and those without one in grey; a colour bar where there is a label."""
    scale = scale_of(values, cmap, limits)
    colors = scale.to_rgba(np.nan_to_num(values))
    colors[~np.isfinite(values)] = to_rgba(BACKGROUND)
    draw_cells(ax, x, name, colors, order=np.argsort(np.nan_to_num(values, nan=-np.inf), kind="stable"), **kwargs)
    if label is not None:
        color_bar(scale, ax, label)
    return scale


def colors_by_name(
    data: AnnData | HasAnnData, names: Sequence[str], cluster_key: str | None, of: str, *, strict: bool = True
) -> dict[str, str]:
    """Return the colour of each name, as in plots of a column of clusters that has all of them, or else new ones.

    The column is ``cluster_key``, else that of the kernel, else ``"clusters"``. A ``cluster_key`` that lacks names is
    an error where ``strict``; ``of`` says what the names are.
    """
    adata = adata_of(data)
    if cluster_key is not None:
        check_known("adata.obs", cluster_key, adata.obs.columns)
    for key in (cluster_key,) if cluster_key is not None else (getattr(data, "cluster_key", None), "clusters"):
        if key is None or key not in adata.obs:
            continue
        categories = list(read_clusters(adata, key).cat.categories)
        colors = {str(category): color for category, color in palette_of(adata, key, categories).items()}
        if set(names) <= set(colors):
            return colors
        if cluster_key is not None and strict:
            missing = sorted(set(names) - set(colors))
            raise KeyError(f"Expected the {of} in `adata.obs[{key!r}]`, found no {missing}.")
    return dict(zip(names, palette(len(names)), strict=True))
