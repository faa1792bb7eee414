"""Shares of fates, or of ancestors, as bars with intervals and as a heatmap: of a flow, and of a time series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from cellrank_velot._utils.validation import check_choice, check_known, check_number
from cellrank_velot.dynamics import ProcessFates, Trajectories
from cellrank_velot.dynamics.descent import REST
from cellrank_velot.plotting._draw.colors import INK, PROBABILITY
from cellrank_velot.plotting._draw.embedding import colors_by_name
from cellrank_velot.plotting._draw.figure import FigureOptions, color_bar, drawing, draws, even_columns
from cellrank_velot.plotting._draw.kernel import HasAnnData, kernel_of
from cellrank_velot.plotting._draw.paths import NOWHERE, cluster_colors, fate_names, fate_word, read

__all__ = ["Relatives", "fate_bars", "fate_heatmap", "fate_summary", "table_of"]

Relatives = Literal["descendants", "ancestors"]

# More panels, or lines of a heatmap, are not read any more.
MAX_PANELS, MAX_LINES = 16, 60
# Shares above this are written in white, for their cells are dark.
DARK = 0.45


@draws
def fate_summary(
    data: AnnData | HasAnnData,
    trajectories: Trajectories | None = None,
    *,
    key: str = "velot_flow",
    terminal_clusters: str | Sequence[str] | None = None,
    level: float = 0.95,
    compare: Mapping[str, float] | pd.Series | None = None,
    cluster_key: str | None = None,
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw the probability of each fate of a flow with its interval: the share of the particles that came to any fate.

    Parameters
    ----------
    data
        A kernel or an AnnData.
    trajectories
        The flow, or other trajectories; what was written to ``adata.uns[key]`` where not given.
    key
        Key in ``adata.uns`` of the flow, used without ``trajectories``.
    terminal_clusters
        Clusters that count as fates, from above. By default the terminal clusters of the flow; where it had none, the
        clusters at which particles arrived, or all in which particles end. The most frequent is then above.
    level
        Level of Wilson's confidence interval, see :meth:`cellrank_velot.dynamics.Trajectories.fates`.
    compare
        Other probabilities of the fates to mark, by cluster, such as the mean of CellRank's fate probabilities over
        the cells of the source. The legend calls them by the name of a :class:`pandas.Series`. None where not given.
    cluster_key
        Column of ``adata.obs`` whose colours the fates have. By default that of the kernel, or ``"clusters"``, where it
        has the names of the fates.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the flow or a cluster is missing, or ``compare`` has none of the fates.
    TypeError
        If ``data`` or ``trajectories`` is of another type, or an option is not a number.
    ValueError
        If the flow has no clusters, no particle came to a fate, or a number is out of range.

    Examples
    --------
    >>> flow = vk.simulate_flow(source_cluster="Progenitor", n_particles=50, n_steps=50)
    >>> ax = pl.fate_summary(vk, flow, show=False)
    """
    found = read(data, trajectories, key)
    names = fate_names(found, terminal_clusters)
    table = found.fates(names, level=level)
    n_without = int(table["n_particles"].iloc[-1])
    table = table.iloc[:-1]
    total = int(table["n_particles"].sum())
    if not total:
        raise ValueError(f"Expected particles that came to one of {names}, found none among `{len(found)}`.")
    if terminal_clusters is None:
        table = table.sort_values("n_particles", ascending=False, kind="stable")
    others = None if compare is None else _compared(compare, list(table.index))
    colors = cluster_colors(data, found, cluster_key)
    size = (5.4, 1.1 + 0.42 * len(table) + (0.25 if others is not None else 0.0))
    with drawing(figure, panel_size=size) as canvas:
        _draw_bars(canvas.ax, table, [colors[name] for name in table.index], height=0.62, line=1.2, cap=3)
        canvas.ax.set_xlim(0, 1)
        for row, count in enumerate(table["n_particles"]):
            # Beside the Axes, where no interval or mark can come to lie on it.
            place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            text = f"{count} of {total}"
            canvas.ax.annotate(text, (1.0, row), (8, 0), va="center", fontsize=9, annotation_clip=False, **place)
        if others is not None:
            label = str(getattr(compare, "name", None) or "compared")
            _draw_compared(canvas.ax, others, list(table.index), label, canvas.figure if canvas.ours else None)
        note = f"\n{n_without} of {len(found)} ({n_without / len(found):.0%}) came to none of them" if n_without else ""
        measure = f"Probability of the {fate_word(found).lower()} ({100 * level:g}% interval)"
        canvas.ax.set_xlabel(measure + note)
    return canvas.result


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
        Result of :meth:`cellrank_velot.OTTimeSeriesKernel.fate_probabilities` or
        :meth:`cellrank_velot.OTTimeSeriesKernel.ancestry`. Where not given, the kernel computes it for its clusters:
        the descendants of the first time point, or the ancestors of the last.
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
        If ``data`` or ``fates`` is of another type, or there is no kernel to compute the fates.
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
    colors = [table.colors[name] for name in table.columns]
    with drawing(figure, n_panels=n_rows, n_columns=even_columns(n_rows, n_columns), panel_size=size) as canvas:
        for place, (panel, row) in enumerate(zip(canvas.panels, table.rows, strict=True)):
            _draw_bars(panel, table.shares(row), colors, height=0.72, line=1.0, cap=2)
            if not canvas.is_left(place):
                panel.set_yticklabels([""] * n_clusters)
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
        Result of :meth:`cellrank_velot.OTTimeSeriesKernel.fate_probabilities` or
        :meth:`cellrank_velot.OTTimeSeriesKernel.ancestry`. Where not given, the kernel computes it for its clusters:
        the descendants of the first time point, or the ancestors of the last.
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
        If ``data`` or ``fates`` is of another type, or there is no kernel to compute the fates.
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
    """Return ``fates`` where given. Otherwise the kernel ``data`` computes them.

    ``of`` says whether of descendants or of ancestors, and ``cluster_key`` names the clusters. The rows are clusters,
    or cells if ``by_cell``.
    """
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

    def shares(self, row: str) -> pd.DataFrame:
        """Return the share of each cluster, with its interval."""
        parts = {"probability": self.fates.table, "low": self.fates.low, "high": self.fates.high}
        return pd.DataFrame({name: part.loc[row, self.columns] for name, part in parts.items()}, dtype=float)

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


def _draw_bars(ax: Axes, table: pd.DataFrame, colors: list[str], *, height: float, line: float, cap: float) -> None:
    """Draw the ``probability`` of each row, from above, with the interval from ``low`` to ``high``."""
    share, rows = table["probability"].to_numpy(), np.arange(len(table))
    reach = np.stack([share - table["low"], table["high"] - share]).clip(0)
    ax.barh(rows, share, color=colors, height=height, zorder=2)
    ax.errorbar(share, rows, xerr=reach, fmt="none", ecolor=INK, elinewidth=line, capsize=cap, zorder=3)
    ax.set(yticks=rows, yticklabels=list(table.index), ylim=(len(table) - 0.5, -0.5))
    ax.tick_params(axis="y", length=0)


def _write_percent(ax: Axes, values: Any) -> None:
    for (line, column), share in np.ndenumerate(values):
        percent = f"{100 * share:.0f}"
        if percent != "0":
            color = "white" if share > DARK else INK
            ax.text(column, line, percent, ha="center", va="center", fontsize=8.5, color=color)


def _compared(compare: Mapping[str, float] | pd.Series, names: list[str]) -> dict[str, float]:
    """Return the other probabilities of the fates that have one."""
    if not isinstance(compare, Mapping | pd.Series):
        raise TypeError(f"Expected `compare` to be a dictionary or a Series, found `{type(compare).__name__}`.")
    given = {str(name): value for name, value in compare.items()}
    if not set(given) & set(names):
        raise KeyError(f"Expected `compare` to have one of the fates {names}, found {sorted(given)}.")
    return {
        name: check_number(f"compare[{name!r}]", given[name], low=0, high=1 + 1e-6) for name in names if name in given
    }


def _draw_compared(ax: Axes, others: dict[str, float], names: list[str], label: str, figure: Figure | None) -> None:
    """Mark other probabilities, and say whose they are, above the title where the figure is ours."""
    look: dict[str, Any] = {"marker": "D", "facecolors": "white", "edgecolors": INK, "linewidths": 1.2, "zorder": 4}
    mark = ax.scatter(list(others.values()), [names.index(fate) for fate in others], s=34, label=label, **look)
    if figure is not None:
        figure.legend(handles=[mark], loc="outside upper right", borderaxespad=0.2, handletextpad=0.3)
    else:
        ax.legend(handles=[mark], loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2, handletextpad=0.3)
