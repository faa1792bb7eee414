"""Tables of fates and ancestors of a time series: bars with intervals, and a heatmap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Colormap

from cellrank_velot._utils.validation import check_choice, check_known
from cellrank_velot.dynamics.descent import REST, ProcessFates
from cellrank_velot.plotting._draw.colors import INK, PROBABILITY
from cellrank_velot.plotting._draw.embedding import colors_by_name
from cellrank_velot.plotting._draw.figure import FigureOptions, color_bar, drawing, draws, even_columns
from cellrank_velot.plotting._draw.kernel import HasAnnData, kernel_of
from cellrank_velot.plotting._draw.paths import NOWHERE

__all__ = ["Relatives", "fate_bars", "fate_heatmap", "table_of"]

Relatives = Literal["descendants", "ancestors"]

# More panels, or lines of a heatmap, are not read any more.
MAX_PANELS, MAX_LINES = 16, 60
# Shares above this are written in white, for their cells are dark.
DARK = 0.45


@draws
def fate_bars(
    data: AnnData | HasAnnData,
    fates: ProcessFates | None = None,
    *,
    rows: str | Sequence[str] | None = None,
    of: Relatives = "descendants",
    cluster_key: str | None = None,
    n_columns: int = 4,
    **figure: Unpack[FigureOptions],
) -> list[Axes] | None:
    """Draw the shares of fates, or of ancestors, as bars with their intervals, one panel for each row of the table.

    Panels of descendants say how many there are for each cell. That number is relative to the mean of all cells where
    the kernel was not told how the population grows.

    Parameters
    ----------
    data
        A kernel or an AnnData, for the colours of the clusters.
    fates
        Result of :meth:`cellrank_velot.OTVelocityKernel.fate_probabilities` or
        :meth:`cellrank_velot.OTVelocityKernel.ancestry`. Where not given, the kernel computes it for its clusters: the
        descendants of the first time point, or the ancestors of the last.
    rows
        Rows to draw, in this order. All where not given: first those that are clusters, in the order of the clusters.
    of
        What the shares are of: ``"descendants"`` or ``"ancestors"``.
    cluster_key
        Column of ``adata.obs`` whose colours the bars have; that of the kernel, or ``"clusters"``, where not given.
    n_columns
        Number of panels in a row, at most. Rows are made equally long.

    Returns
    -------
    The list of Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If a row or ``cluster_key`` is unknown.
    TypeError
        If ``data`` or ``fates`` is something else, or there is no kernel to compute the fates.
    ValueError
        If there are more than 16 rows, an option is unknown or out of range, or the number of Axes is not that of the
        rows.

    Examples
    --------
    >>> fates = sk.fate_probabilities(group_by="clusters")
    >>> panels = pl.fate_bars(sk, fates, rows=["Progenitor A", "Progenitor B"], show=False)
    """
    table = _table(data, table_of(data, fates, of, cluster_key), rows, of, cluster_key)
    table.check_size(MAX_PANELS)
    n_rows, n_clusters = len(table.rows), len(table.columns)
    size = (3.4 if n_rows == 1 else 2.5, 0.8 + 0.2 * n_clusters)
    reach = min(1.0, 1.05 * float(table.fates.high.loc[table.rows].max(axis=None)))
    with drawing(figure, n_panels=n_rows, n_columns=even_columns(n_rows, n_columns), panel_size=size) as canvas:
        for place, (panel, row) in enumerate(zip(canvas.panels, table.rows, strict=True)):
            _draw_bars(panel, table, row, named=canvas.is_left(place))
            panel.set(xlim=(0, reach), xlabel=f"Share of the {of}")
            panel.set_title(table.title(row), fontsize=10)
        canvas.share_labels()
    return canvas.result


@draws
def fate_heatmap(
    data: AnnData | HasAnnData,
    fates: ProcessFates | None = None,
    *,
    rows: str | Sequence[str] | None = None,
    of: Relatives = "descendants",
    cluster_key: str | None = None,
    annotate: bool = True,
    cmap: str | Colormap = PROBABILITY,
    legend: bool = True,
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw the shares of fates, or of ancestors, as a heatmap: each row sums to one.

    Rows of descendants say how many there are for each cell. That number is relative to the mean of all cells where
    the kernel was not told how the population grows.

    Parameters
    ----------
    data
        A kernel or an AnnData, for the order of the clusters.
    fates
        Result of :meth:`cellrank_velot.OTVelocityKernel.fate_probabilities` or
        :meth:`cellrank_velot.OTVelocityKernel.ancestry`. Where not given, the kernel computes it for its clusters: the
        descendants of the first time point, or the ancestors of the last.
    rows
        Rows to draw, in this order. All where not given: first those that are clusters, in the order of the clusters.
    of
        What the shares are of: ``"descendants"`` or ``"ancestors"``.
    cluster_key
        Column of ``adata.obs`` with the clusters; that of the kernel, or ``"clusters"``, where not given.
    annotate
        Whether to write the shares in percent, but for those that are zero when rounded.
    cmap
        Colours of the shares, from 0 to 1.
    legend
        Whether to draw the colour bar.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If a row or ``cluster_key`` is unknown.
    TypeError
        If ``data`` or ``fates`` is something else, or there is no kernel to compute the fates.
    ValueError
        If there are more than 60 rows, or an option is unknown.

    Examples
    --------
    >>> ancestors = sk.ancestry(group_by="clusters")
    >>> ax = pl.fate_heatmap(sk, ancestors, of="ancestors", show=False)
    """
    table = _table(data, table_of(data, fates, of, cluster_key), rows, of, cluster_key)
    table.check_size(MAX_LINES)
    values = table.fates.table.loc[table.rows, table.columns].to_numpy()
    n_rows, n_clusters = values.shape
    with drawing(figure, panel_size=(2.4 + 0.48 * n_clusters, 1.4 + 0.32 * n_rows)) as canvas:
        panel = canvas.ax
        image = panel.imshow(values, cmap=cmap, vmin=0, vmax=1, aspect="auto")
        panel.hlines(np.arange(1, n_rows) - 0.5, -0.5, n_clusters - 0.5, colors="white", linewidths=1.2)
        panel.set(xticks=range(n_clusters), yticks=range(n_rows), xlabel=f"Share of the {of}")
        panel.set_xticklabels(table.columns, rotation=40, ha="right", rotation_mode="anchor")
        panel.set_yticklabels(list(map(table.title, table.rows)))
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        if annotate:
            _write_percent(panel, values)
        if legend:
            color_bar(image, panel, shrink=0.8, aspect=16)
    return canvas.result


def table_of(
    data: Any, fates: ProcessFates | None, of: Relatives, cluster_key: str | None, *, by_cell: bool = False
) -> ProcessFates:
    """Return a table of fates. Where it is not given, the kernel computes that of its clusters, or of its cells."""
    check_choice("of", of, Relatives)
    if fates is None:
        kernel = kernel_of(data, "fate_probabilities", "ancestry")
        key = cluster_key or kernel.cluster_key or "clusters"
        compute = kernel.ancestry if of == "ancestors" else kernel.fate_probabilities
        fates = compute(cluster_key=key, group_by=None if by_cell else key)
    if not isinstance(fates, ProcessFates):
        raise TypeError(f"Expected `fates` to be `ProcessFates`, found `{type(fates).__name__}`.")
    return fates


# ------------------------------------------------------------------------------------------------------ how it is drawn
@dataclass(frozen=True)
class _Table:
    """Rows and columns to draw of a table of descendants or ancestors, and the colour of each cluster."""

    fates: ProcessFates
    rows: list[str]
    columns: list[str]
    colors: Mapping[str, str]
    of: str

    def check_size(self, most: int) -> None:
        if not 0 < len(self.rows) <= most:
            raise ValueError(
                f"Expected up to `{most}` rows to draw, found `{len(self.rows)}`: sum cells up with `group_by`, or "
                "choose some as `rows`."
            )

    def title(self, row: str) -> str:
        return f"{row}, {self.fates.growth[row]:.2g} per cell" if self.of == "descendants" else str(row)


def _table(
    data: AnnData | HasAnnData,
    fates: ProcessFates,
    rows: str | Sequence[str] | None,
    of: str,
    cluster_key: str | None,
) -> _Table:
    clusters = [name for name in fates.table.columns if name != REST]
    colors = {**colors_by_name(data, clusters, cluster_key, "clusters of the table"), REST: NOWHERE}
    chosen = _ordered(fates.table.index, colors) if rows is None else [rows] if isinstance(rows, str) else list(rows)
    for row in chosen:
        check_known("fates.table", row, fates.table.index)
    return _Table(fates, chosen, _ordered(fates.table.columns, colors), colors, of)


def _ordered(names: pd.Index, colors: Mapping[str, str]) -> list[str]:
    """Return clusters in the order of their colours, and what is no cluster after them."""
    known = set(names)
    return [
        *(name for name in colors if name in known and name != REST),
        *(n for n in names if n not in colors or n == REST),
    ]


def _draw_bars(ax: Axes, table: _Table, row: str, *, named: bool) -> None:
    """Draw the shares of one row, one bar for each cluster, from above."""
    fates, columns = table.fates, table.columns
    share, low, high = (part.loc[row, columns].to_numpy(dtype=float) for part in (fates.table, fates.low, fates.high))
    lines = np.arange(len(columns))
    reach = np.stack([share - low, high - share]).clip(0)
    ax.barh(lines, share, color=[table.colors[name] for name in columns], height=0.72, zorder=2)
    ax.errorbar(share, lines, xerr=reach, fmt="none", ecolor=INK, elinewidth=1.0, capsize=2, zorder=3)
    ax.set(yticks=lines, yticklabels=columns if named else [""] * len(columns), ylim=(len(columns) - 0.5, -0.5))
    ax.tick_params(axis="y", length=0)


def _write_percent(ax: Axes, values: Any) -> None:
    for (line, column), share in np.ndenumerate(values):
        percent = f"{100 * share:.0f}"
        if percent != "0":
            color = "white" if share > DARK else INK
            ax.text(column, line, percent, ha="center", va="center", fontsize=8.5, color=color)
