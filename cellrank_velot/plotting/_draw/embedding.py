"""Cells as points in an embedding, coloured by category or by value.

Depends on matplotlib, anndata, pandas and scanpy; reads AnnData.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize, to_rgba
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_known
from cellrank_velot.cells.read import find_basis
from cellrank_velot.plotting._draw.colors import BACKGROUND, VALUES, palette, palette_of

__all__ = ["HasAnnData", "adata_of", "colors_by_name", "draw_cells", "draw_colored", "positions", "suffix_of"]

MAX_LEGEND_ROWS = 14
# Square inches of a panel of five by four inches, without labels.
USUAL_AREA = 12.0


class HasAnnData(Protocol):
    """A kernel or an estimator."""

    @property
    def adata(self) -> AnnData:
        """Annotated data."""


def adata_of(data: AnnData | HasAnnData) -> AnnData:
    """Return the AnnData, or that of a kernel or an estimator.

    Raises
    ------
    TypeError
        If there is none.
    """
    adata = data if isinstance(data, AnnData) else getattr(data, "adata", None)
    if not isinstance(adata, AnnData):
        raise TypeError(f"Expected an `AnnData`, a kernel or an estimator, found `{type(data).__name__}`.")
    return adata


def suffix_of(data: AnnData | HasAnnData, backward: bool | None) -> str:
    """Return ``"bwd"`` or ``"fwd"``, CellRank's ending of keys; that of a kernel or an estimator where not given."""
    return "bwd" if (getattr(data, "backward", False) if backward is None else backward) else "fwd"


def positions(adata: AnnData, basis: str) -> tuple[NDArray[np.float64], str]:
    """Return the first two dimensions of an embedding, shape ``[n_cells, 2]``, and its name for people.

    Raises
    ------
    KeyError
        If it is missing.
    ValueError
        If it has fewer than two dimensions.
    """
    key = find_basis(adata, basis)
    x = np.asarray(adata.obsm[key], dtype=np.float64)
    if x.ndim != 2 or x.shape[1] < 2:
        raise ValueError(f"Expected `adata.obsm[{key!r}]` to have at least `2` columns, found the shape `{x.shape}`.")
    name = key.removeprefix("X_")
    return x[:, :2], name.upper() if len(name) <= 4 else name


def draw_cells(
    ax: Axes,
    x: NDArray[np.float64],
    name: str,
    colors: Any,
    *,
    order: NDArray[np.intp] | None = None,
    size: float | None = None,
    alpha: float = 1.0,
    **kwargs: Any,
) -> None:
    """Draw cells at ``x`` of shape ``[n_cells, 2]``, the last of ``order`` on top, and dress the Axes."""
    size = size or usual_size(ax, len(x))
    order = np.random.default_rng(0).permutation(len(x)) if order is None else order
    colors = colors if isinstance(colors, str) else np.asarray(colors)[order]
    ax.scatter(x[order, 0], x[order, 1], c=colors, s=size, alpha=alpha, linewidths=0, rasterized=True, **kwargs)
    ax.set(xlabel=f"{name} 1", ylabel=f"{name} 2", xticks=[], yticks=[])


def usual_size(ax: Axes, n_cells: int) -> float:
    """Return the area of so many cells in these Axes: less where there is less room."""
    area = float(np.prod(np.asarray(ax.bbox.size) / ax.figure.dpi))
    return float(np.clip(60_000 / max(n_cells, 1) * min(area / USUAL_AREA, 1.0), 3, 40))


def draw_colored(
    ax: Axes,
    x: NDArray[np.float64],
    name: str,
    adata: AnnData,
    color: str | None,
    *,
    legend: bool = True,
    cmap: str | Colormap = VALUES,
    **kwargs: Any,
) -> None:
    """Draw cells coloured by a column of ``obs`` or a gene, with a legend or a colour bar outside the data."""
    if color is None:
        draw_cells(ax, x, name, BACKGROUND, **kwargs)
        return
    values = _column(adata, color)
    if isinstance(values.dtype, pd.CategoricalDtype):
        categories = list(values.cat.categories)
        draw_categories(ax, x, name, values.array, palette_of(adata, color, categories), legend=legend, **kwargs)
    else:
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
        draw_values(ax, x, name, numbers, label=color if legend else None, cmap=cmap, **kwargs)


def _column(adata: AnnData, key: str) -> pd.Series[Any]:
    """Return a column of ``obs`` or the expression of a gene: a number for each cell, or a category."""
    if key in adata.obs:
        values = adata.obs[key]
    elif key in adata.var_names:
        values = sc.get.obs_df(adata, keys=[key])[key]
    else:
        raise KeyError(f"Expected `color` to be a gene or one of {sorted(map(str, adata.obs.columns))}, found {key!r}.")
    numeric = pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype)
    if numeric or isinstance(values.dtype, pd.CategoricalDtype):
        return values
    return values.astype(str).where(values.notna()).astype("category")


def draw_categories(
    ax: Axes,
    x: NDArray[np.float64],
    name: str,
    values: pd.Categorical,
    colors: Mapping[Any, str],
    *,
    legend: bool = True,
    **kwargs: Any,
) -> None:
    """Draw cells by category, those without one in grey below the others."""
    codes = np.asarray(values.codes)
    table = np.array([*(colors[category] for category in values.categories), BACKGROUND])
    shuffled = np.random.default_rng(0).permutation(len(x))
    draw_cells(ax, x, name, table[codes], order=shuffled[np.argsort(codes[shuffled] >= 0, kind="stable")], **kwargs)
    if legend:
        draw_legend(
            ax, {str(category): colors[category] for category in values.categories if (values == category).any()}
        )


def draw_legend(ax: Axes, colors: Mapping[str, str], *, below: bool = False) -> None:
    """Draw a legend of categories to the right of the Axes, or below."""
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=6, markeredgewidth=0, color=color, label=label)
        for label, color in colors.items()
    ]
    n_columns = max(-(-len(handles) // MAX_LEGEND_ROWS), 1)
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "ncols": n_columns}
    if below:
        place = {"loc": "upper left", "bbox_to_anchor": (0.0, -0.06)}
    ax.legend(handles=handles, handletextpad=0.3, **place)


def draw_values(
    ax: Axes,
    x: NDArray[np.float64],
    name: str,
    values: NDArray[np.float64],
    *,
    label: str | None,
    cmap: str | Colormap,
    limits: tuple[float, float] | None = None,
    **kwargs: Any,
) -> ScalarMappable:
    """Draw cells by value, high ones on top and those without one in grey; a colour bar where there is a label."""
    finite = values[np.isfinite(values)]
    low, high = limits or ((float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0))
    scale = ScalarMappable(Normalize(low, high), cmap)
    colors = scale.to_rgba(np.nan_to_num(values, nan=low))
    colors[~np.isfinite(values)] = to_rgba(BACKGROUND)
    draw_cells(ax, x, name, colors, order=np.argsort(np.nan_to_num(values, nan=-np.inf), kind="stable"), **kwargs)
    if label is not None:
        bar = ax.figure.colorbar(scale, ax=ax, shrink=0.7, aspect=18, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label(label)
    return scale


def colors_by_name(
    data: AnnData | HasAnnData, names: Sequence[str], cluster_key: str | None, of: str, *, strict: bool = True
) -> dict[str, str]:
    """Return the colour of each name, as in other plots where a column of ``obs`` has all of them.

    Of such a column all categories come back, in their order.

    Parameters
    ----------
    data
        A kernel or an AnnData.
    names
        Names of clusters.
    cluster_key
        Column of ``obs``; where not given that of the kernel, or ``"clusters"``, if it has the names.
    of
        What the names are, for messages.
    strict
        Whether a column that was asked for must have the names.

    Raises
    ------
    KeyError
        If the column that was asked for is missing, or has not the names.
    """
    adata = adata_of(data)
    if cluster_key is not None:
        check_known("adata.obs", cluster_key, adata.obs.columns)
    for key in (cluster_key,) if cluster_key is not None else (getattr(data, "cluster_key", None), "clusters"):
        if key is None or key not in adata.obs:
            continue
        categories = list(pd.Categorical(adata.obs[key]).categories)
        colors = {str(category): color for category, color in palette_of(adata, key, categories).items()}
        if set(names) <= set(colors):
            return colors
        if cluster_key is not None and strict:
            missing = sorted(set(names) - set(colors))
            raise KeyError(f"Expected the {of} in `adata.obs[{key!r}]`, found no {missing}.")
    return dict(zip(names, palette(len(names)), strict=True))
