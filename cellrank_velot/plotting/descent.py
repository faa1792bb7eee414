"""Tables of fates and ancestry of a time series: bars with intervals, and a heatmap.

Depends on the shared files of this folder and :mod:`cellrank_velot.dynamics`; reads AnnData.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Colormap

from cellrank_velot._utils.validation import check_choice, check_integer, check_known
from cellrank_velot.dynamics.descent import REST, ProcessFates
from cellrank_velot.plotting._draw.colors import INK, PROBABILITY
from cellrank_velot.plotting._draw.embedding import HasAnnData, colors_by_name
from cellrank_velot.plotting._draw.figure import close_figure, open_axes, style
from cellrank_velot.plotting._draw.paths import NOWHERE

__all__ = ["Relatives", "category_colors", "fate_bars", "fate_heatmap"]

Relatives = Literal["descendants", "ancestors"]

# More panels, or lines of a heatmap, are not read any more.
MAX_PANELS, MAX_LINES = 16, 60
# Shares above this are written in white, for their cells are dark.
DARK = 0.45


def fate_bars(
    data: AnnData | HasAnnData,
    fates: ProcessFates,
    *,
    rows: str | Sequence[str] | None = None,
    of: Relatives = "descendants",
    cluster_key: str | None = None,
    n_columns: int = 4,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
    ax: Axes | Sequence[Axes] | None = None,
) -> list[Axes] | None:
    """Draw the shares of fates, or of ancestors, as bars with their intervals, one panel for each row of the table.

    Panels of descendants say how many there are for each cell: relative to the mean of all cells, where the kernel was
    not told how the population grows.

    Parameters
    ----------
    data
        A kernel or an AnnData, for the colours of the clusters.
    fates
        Result of :meth:`cellrank_velot.OTVelocityKernel.fate_probabilities` or
        :meth:`cellrank_velot.OTVelocityKernel.ancestry`.
    rows
        Rows to draw, in this order; where not given all, those that are clusters in the order of the clusters.
    of
        What the shares are of: ``"descendants"`` or ``"ancestors"``.
    cluster_key
        Column of ``adata.obs`` whose colours the bars have; that of the kernel, or ``"clusters"``, where not given.
    n_columns
        Number of panels in a row, at most.
    figsize
        Width and height of the figure in inches.
    dpi
        Dots per inch.
    save
        File to save to; a relative one lies in scanpy's ``settings.figdir``.
    show
        Whether to show the figure. By default shown unless saved or drawn into ``ax``.
    ax
        Axes to draw into, one for each row.

    Returns
    -------
    The list of Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If a row or ``cluster_key`` is unknown.
    TypeError
        If ``data`` or ``fates`` is something else.
    ValueError
        If there are more rows than panels can be read, an option is unknown or out of range, or the number of Axes is
        not that of the rows.

    Examples
    --------
    >>> fates = sk.fate_probabilities(group_by="clusters")
    >>> panels = pl.fate_bars(sk, fates, rows=["Progenitor A", "Progenitor B"], show=False)
    """
    check_integer("n_columns", n_columns, low=1)
    colors, chosen = _checked(data, fates, rows, of, cluster_key, MAX_PANELS)
    columns = _ordered(fates.table.columns, colors)
    n_columns = min(n_columns, -(-len(chosen) // -(-len(chosen) // n_columns)))
    reach = min(1.0, 1.05 * float(fates.high.loc[chosen].max(axis=None)))
    size = (3.4 if len(chosen) == 1 else 2.5, 0.8 + 0.2 * len(columns))
    with style():
        figure, panels, ours = open_axes(
            ax, n_panels=len(chosen), n_columns=n_columns, panel_size=size, figsize=figsize, dpi=dpi
        )
        for place, (panel, row) in enumerate(zip(panels, chosen, strict=True)):
            _draw_bars(panel, fates, row, columns, colors)
            panel.set_xlim(0, reach)
            panel.set_title(_row_name(fates, row, of), fontsize=10)
            if ours and place % n_columns:
                panel.set_yticklabels([])
            if not ours or place + n_columns >= len(chosen):
                panel.set_xlabel(f"Share of the {of}")
        return panels if close_figure(figure, ours=ours, save=save, show=show) else None


def fate_heatmap(
    data: AnnData | HasAnnData,
    fates: ProcessFates,
    *,
    rows: str | Sequence[str] | None = None,
    of: Relatives = "descendants",
    cluster_key: str | None = None,
    annotate: bool = True,
    cmap: str | Colormap = PROBABILITY,
    legend: bool = True,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
    ax: Axes | None = None,
) -> Axes | None:
    """Draw the shares of fates, or of ancestors, as a heatmap: each row sums to one.

    Parameters
    ----------
    data, fates, rows, of, cluster_key
        As in :func:`fate_bars`.
    annotate
        Whether to write the shares in percent, but for those that are zero when rounded.
    cmap
        Colours of the shares, from 0 to 1.
    legend
        Whether to draw the colour bar.
    title
        Title of the Axes; none where not given.
    figsize, dpi, save, show
        As in :func:`fate_bars`.
    ax
        Axes to draw into.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError, TypeError
        As in :func:`fate_bars`.
    ValueError
        If there are more rows than can be read, or an option is unknown.

    Examples
    --------
    >>> ancestors = sk.ancestry(group_by="clusters")
    >>> ax = pl.fate_heatmap(sk, ancestors, of="ancestors", show=False)
    """
    colors, chosen = _checked(data, fates, rows, of, cluster_key, MAX_LINES)
    columns = _ordered(fates.table.columns, colors)
    values = fates.table.loc[chosen, columns].to_numpy()
    size = (2.4 + 0.48 * len(columns), 1.4 + 0.32 * len(chosen))
    with style():
        figure, (panel,), ours = open_axes(ax, panel_size=size, figsize=figsize, dpi=dpi)
        image = panel.imshow(values, cmap=cmap, vmin=0, vmax=1, aspect="auto")
        panel.hlines(np.arange(1, len(chosen)) - 0.5, -0.5, len(columns) - 0.5, colors="white", linewidths=1.2)
        panel.set(xticks=range(len(columns)), yticks=range(len(chosen)), xlabel=f"Share of the {of}")
        panel.set_xticklabels(columns, rotation=40, ha="right", rotation_mode="anchor")
        panel.set_yticklabels([_row_name(fates, row, of) for row in chosen])
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        if annotate:
            _write_percent(panel, values)
        if legend:
            bar = figure.colorbar(image, ax=panel, shrink=0.8, aspect=16, pad=0.02)
            bar.outline.set_visible(False)
        panel.set_title(title or "")
        return panel if close_figure(figure, ours=ours, save=save, show=show) else None


def category_colors(
    data: AnnData | HasAnnData, names: Sequence[str], cluster_key: str | None = None
) -> Mapping[str, str]:
    """Return colours by cluster, with those of ``adata`` where a column has all names, and grey for the rest.

    Parameters
    ----------
    data
        A kernel or an AnnData.
    names
        Clusters that need a colour.
    cluster_key
        Column of ``adata.obs``; that of the kernel, or ``"clusters"``, where not given.

    Raises
    ------
    KeyError
        If the column is missing, or has not the names.
    """
    wanted = [name for name in names if name != REST]
    return {**colors_by_name(data, wanted, cluster_key, "clusters of the table"), REST: NOWHERE}


# -------------------------------------------------------------------------------------------------------- what is drawn
def _checked(
    data: AnnData | HasAnnData,
    fates: ProcessFates,
    rows: str | Sequence[str] | None,
    of: str,
    cluster_key: str | None,
    most: int,
) -> tuple[Mapping[str, str], list[str]]:
    """Return the colours of the clusters and the rows to draw."""
    if not isinstance(fates, ProcessFates):
        raise TypeError(f"Expected `fates` to be `ProcessFates`, found `{type(fates).__name__}`.")
    check_choice("of", of, Relatives)
    colors = category_colors(data, list(fates.table.columns), cluster_key)
    chosen = _ordered(fates.table.index, colors) if rows is None else [rows] if isinstance(rows, str) else list(rows)
    for row in chosen:
        check_known("fates.table", row, fates.table.index)
    if not 0 < len(chosen) <= most:
        raise ValueError(
            f"Expected up to `{most}` rows to draw, found `{len(chosen)}`: sum cells up with `group_by`, or choose "
            "some as `rows`."
        )
    return colors, chosen


def _ordered(names: pd.Index, colors: Mapping[str, str]) -> list[str]:
    """Return clusters in the order of their colours, and what is no cluster after them."""
    known = set(names)
    return [
        *(name for name in colors if name in known and name != REST),
        *(n for n in names if n not in colors or n == REST),
    ]


def _row_name(fates: ProcessFates, row: str, of: str) -> str:
    return f"{row}, {fates.growth[row]:.2g} per cell" if of == "descendants" else str(row)


# ------------------------------------------------------------------------------------------------------ how it is drawn
def _draw_bars(ax: Axes, fates: ProcessFates, row: str, columns: list[str], colors: Mapping[str, str]) -> None:
    """Draw the shares of one row, one bar for each cluster, from above."""
    share, low, high = (table.loc[row, columns].to_numpy(dtype=float) for table in (fates.table, fates.low, fates.high))
    lines = np.arange(len(columns))
    reach = np.stack([share - low, high - share]).clip(0)
    ax.barh(lines, share, color=[colors[name] for name in columns], height=0.72, zorder=2)
    ax.errorbar(share, lines, xerr=reach, fmt="none", ecolor=INK, elinewidth=1.0, capsize=2, zorder=3)
    ax.set(yticks=lines, yticklabels=columns, ylim=(len(columns) - 0.5, -0.5))
    ax.tick_params(axis="y", length=0)


def _write_percent(ax: Axes, values: Any) -> None:
    for line, shares in enumerate(values):
        for column, share in enumerate(shares):
            percent = f"{100 * share:.0f}"
            if percent != "0":
                color = "white" if share > DARK else INK
                ax.text(column, line, percent, ha="center", va="center", fontsize=8.5, color=color)
