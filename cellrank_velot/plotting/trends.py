"""Genes along the lineages: their expression over time, weighted by the cells' fates, as lines and as a heat map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import scanpy as sc
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, to_rgb
from numpy.typing import NDArray

from cellrank_velot._utils.stage import TINY
from cellrank_velot._utils.validation import check_integer, check_known
from cellrank_velot.cells import by_symbol, read_time
from cellrank_velot.fates.trends import GeneTrends, Smooth, fit_smooth
from cellrank_velot.plotting._draw.colors import BACKGROUND, INK, VALUES, palette, scale_of
from cellrank_velot.plotting._draw.embedding import colors_by_name
from cellrank_velot.plotting._draw.figure import Canvas, FigureOptions, color_bar, drawing, draws
from cellrank_velot.plotting._draw.kernel import HasAnnData, adata_of
from cellrank_velot.plotting._draw.legends import BELOW, dot, stroke
from cellrank_velot.plotting.fates import fate_probabilities

__all__ = ["gene_trends", "trend_heatmap"]

FloatArray = NDArray[np.float64]

# Names of genes that can be read beside the rows of one panel.
MOST_NAMES = 60
PANEL = 3.4  # inches


@draws
def gene_trends(
    data: AnnData | HasAnnData | GeneTrends,
    genes: Mapping[str, Sequence[str]] | None = None,
    time_key: str | None = None,
    *,
    backward: bool | None = None,
    bands: bool = True,
    n_columns: int | None = None,
    **figure: Unpack[FigureOptions],
) -> list[Axes] | None:
    """Draw how genes go along their lineage, one panel for each lineage.

    A line is the expression over time, by a penalised spline in which each cell counts by its probability to take the
    lineage, with its confidence band. The dotted line of the same colour is that of the other cells; trends that were
    computed before have none. All are divided by the highest value of the gene in all panels, so that genes of all
    levels are seen, and lineages can be compared.

    Parameters
    ----------
    data
        What ``vk.gene_trends`` returned; an estimator with its fate probabilities, or its AnnData.
    genes
        Names of the genes to draw for each lineage, such as the first of ``compute_lineage_drivers``. Of trends, all
        where not given.
    time_key
        Column of ``adata.obs`` with the time; not needed with trends.
    backward
        Direction of the process; that of the estimator, or forward, where not given.
    bands
        Whether to draw the confidence bands.
    n_columns
        Number of panels in a row, at most; 3 where not given, or 2 for four lineages.

    Returns
    -------
    The list of Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the fate probabilities, a lineage, a gene or the time is missing.
    TypeError
        If genes or time are not given, and ``data`` is not what ``vk.gene_trends`` returned.
    ValueError
        If there is no lineage to draw, or the number of Axes is not that of the lineages.

    Examples
    --------
    >>> g = cr.estimators.GPCCA(vk)
    >>> _ = g.set_terminal_states(vk.suggest_terminal_states("clusters"))
    >>> _ = g.compute_fate_probabilities(use_petsc=False, solver="direct")
    >>> genes = {"Fate A": ["FateA"], "Fate B": ["FateB"]}
    >>> axes = pl.gene_trends(g, genes, "dpt_pseudotime", show=False)
    """
    if isinstance(data, GeneTrends):
        drawn = _computed(data, genes)
    elif genes is None or time_key is None:
        raise TypeError("Expected `genes` and `time_key`, or trends from `vk.gene_trends(...)`.")
    else:
        drawn = _fitted(data, genes, time_key, backward)
    n_columns = n_columns or (2 if len(drawn) == 4 else 3)
    highest = _highest(drawn)
    # Below a panel stand as many names beside each other as are no wider than it.
    longest = max((len(name) for names, *_ in drawn.values() for name in names), default=1)
    n_names = min(3, max(1, int(PANEL / (0.55 + 0.08 * longest))))
    lines = -(-max((len(names) for names, *_ in drawn.values()), default=1) // n_names)
    with drawing(figure, n_panels=len(drawn), n_columns=n_columns, panel_size=(PANEL, 3.0 + 0.2 * lines)) as canvas:
        for panel, (lineage, (names, here, there)) in zip(canvas.panels, drawn.items(), strict=True):
            scale = np.array([highest[name] for name in names])
            colors = palette(len(names))
            looks: list[tuple[Smooth, dict[str, Any]]] = [(here, {"linewidth": 2.0})]
            if there is not None:
                looks.insert(0, (there, {"linestyle": ":", "linewidth": 1.1}))
            for one, look in looks:
                for column, color in enumerate(colors):
                    panel.plot(one.time, one.mean[:, column] / scale[column], color=color, **look)
            for column, color in enumerate(colors if bands else []):
                low, high = (values[:, column] / scale[column] for values in (here.low, here.high))
                panel.fill_between(here.time, low, high, color=color, alpha=0.18, linewidth=0)
            label = time_key or "Time"
            panel.set(title=lineage, xlabel=label, ylabel="Expression, relative", ylim=(-0.03, 1.08))
            place = {**BELOW, "bbox_to_anchor": (0.0, -0.18), "ncols": n_names, "columnspacing": 1.0}
            panel.legend(handles=[stroke(name, color) for name, color in zip(names, colors, strict=True)], **place)
        canvas.share_labels()
    return canvas.result


@draws
def trend_heatmap(
    trends: GeneTrends,
    genes: Sequence[str] | None = None,
    lineages: Sequence[str] | str | None = None,
    *,
    sort_by: str | None = None,
    marks: Mapping[str, float] | None = None,
    n_ticks: int = 5,
    clusters: bool = True,
    data: AnnData | HasAnnData | None = None,
    cmap: str | Colormap = VALUES,
    n_columns: int = 3,
    **figure: Unpack[FigureOptions],
) -> list[Axes] | None:
    """Draw genes along lineages as heat maps, those that peak first on top.

    Each gene is scaled from its lowest value over the lineages to its highest. Columns are times. They are labelled by
    the time, by your own marks, and by the cluster of most cells there, as a bar above.

    Parameters
    ----------
    trends
        What ``vk.gene_trends`` returned.
    genes
        Names of the genes; all where not given.
    lineages
        Lineages to draw, one panel for each; all where not given.
    sort_by
        Lineage whose peaks give the order of the genes in all panels. By default each panel has its own order.
    marks
        Times to mark by a line, by their labels, such as ``{"commitment": 0.4}``.
    n_ticks
        Number of times that are written below.
    clusters
        Whether to draw the bar of clusters, where the trends have any.
    data
        A kernel or an AnnData, whose colours the clusters have; new ones where not given.
    cmap
        Colours of expression.
    n_columns
        Number of panels in a row, at most.

    Returns
    -------
    The list of Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If a gene or a lineage is not among the trends.
    TypeError
        If ``trends`` is of another type.
    ValueError
        If there is nothing to draw.

    Examples
    --------
    >>> fates = adata.obs["clusters"].str.get_dummies()[["Fate A", "Fate B"]]
    >>> trends = vk.gene_trends(["Stem", "FateA", "FateB"], fates)
    >>> panels = pl.trend_heatmap(trends, marks={"decision": 0.4}, show=False)
    """
    if not isinstance(trends, GeneTrends):
        raise TypeError(f"Expected `trends` to be `GeneTrends`, found `{type(trends).__name__}`.")
    check_integer("n_ticks", n_ticks, low=2)
    chosen = trends.lineages.tolist() if lineages is None else [lineages] if isinstance(lineages, str) else lineages
    numbers = [trends.number(lineage) for lineage in chosen]
    columns = _columns(trends, genes)
    values = trends.mean[:, :, columns]
    low, high = values.min(axis=(0, 1)), values.max(axis=(0, 1))
    scaled = (values - low) / np.where(high > low, high - low, 1.0)
    first = scaled.argmax(axis=1)
    order = None if sort_by is None else np.argsort(first[trends.number(sort_by)], kind="stable")
    height = float(np.clip(0.16 * len(columns) + 1.2, 2.6, 9))
    colors = _cluster_colors(trends, data) if clusters else {}
    with drawing(figure, n_panels=len(numbers), n_columns=n_columns, panel_size=(3.6, height)) as canvas:
        for panel, number in zip(canvas.panels, numbers, strict=True):
            rows = np.argsort(first[number], kind="stable") if order is None else order
            panel.imshow(scaled[number][:, rows].T, aspect="auto", cmap=cmap, vmin=0, vmax=1, interpolation="nearest")
            names = trends.genes[columns][rows]
            shown = len(names) <= MOST_NAMES
            panel.set_yticks(range(len(names)) if shown else [], names if shown else [], fontsize=7)
            panel.set(xlabel="Time", ylabel="" if shown else f"{len(names)} genes")
            panel.spines[:].set_visible(False)
            _label_columns(panel, trends.time[number], n_ticks, marks or {})
            title = panel.set_title(str(trends.lineages[number]))
            if colors:
                title.set_position((0, 1.05))
                _draw_clusters(panel, trends.cluster[number], colors)
        color_bar(scale_of(np.array([0.0, 1.0]), cmap), canvas.panels, "Expression, relative", shrink=0.5)
        if colors:
            _draw_cluster_legend(canvas, colors)
    return canvas.result


def _highest(drawn: Mapping[str, Any]) -> dict[str, float]:
    """Return the highest value of each gene in all panels, and 1 for a gene that is nowhere above zero."""
    found: dict[str, float] = {}
    for names, *curves in drawn.values():
        tops = np.max([curve.mean.max(axis=0) for curve in curves if curve is not None], axis=0)
        for name, top in zip(names, tops.tolist(), strict=True):
            found[name] = max(found.get(name, 0.0), top)
    return {name: top if top > 0 else 1.0 for name, top in found.items()}


def _computed(trends: GeneTrends, genes: Mapping[str, Sequence[str]] | None) -> dict[str, Any]:
    """Return the names of the genes of each lineage, their trends, and nothing of the other cells."""
    asked = dict.fromkeys(trends.lineages.tolist(), trends.genes.tolist()) if genes is None else genes
    found = {}
    for lineage, names in asked.items():
        at, columns = trends.number(lineage), _columns(trends, names)
        parts = (values[at][:, columns] for values in (trends.mean, trends.low, trends.high))
        found[lineage] = (list(names), Smooth(trends.time[at], *parts), None)
    return found


def _fitted(
    data: AnnData | HasAnnData, genes: Mapping[str, Sequence[str]], time_key: str, backward: bool | None
) -> dict[str, Any]:
    """Return the names of the genes of each lineage, their trends, and those of the other cells."""
    adata = adata_of(data)
    table, time = fate_probabilities(data, backward=backward), read_time(adata, time_key)
    for lineage in genes:
        check_known("lineages", lineage, table.columns)
    found = {}
    for lineage, names in genes.items():
        weight = np.clip(table[lineage].to_numpy(), 0, 1)
        expression = sc.get.obs_df(adata, by_symbol(adata, list(names))).to_numpy(dtype=np.float64)
        found[lineage] = (list(names), fit_smooth(time, expression, weight), fit_smooth(time, expression, 1 - weight))
    return found


def _columns(trends: GeneTrends, genes: Sequence[str] | None) -> list[int]:
    known = trends.genes.tolist()
    for gene in genes or []:
        check_known("genes", gene, known)
    return list(range(len(known))) if genes is None else [known.index(gene) for gene in genes]


def _label_columns(ax: Axes, time: FloatArray, n_ticks: int, marks: Mapping[str, float]) -> None:
    """Write times below the columns, and mark some of them."""
    at: FloatArray = np.linspace(0, time.size - 1, n_ticks, dtype=np.float64)
    span = max(float(np.ptp(time)), TINY)
    digits = min(max(1 - math.floor(math.log10(span)), 0), 12)
    ax.set_xticks(at, [f"{value:.{digits}f}" for value in np.interp(at, np.arange(time.size), time)])
    for label, when in marks.items():
        if time[0] <= when <= time[-1]:
            place = np.interp(when, time, np.arange(time.size))
            ax.axvline(place, color="white", linewidth=1.2, linestyle="--")
            ax.annotate(
                label, (place, 0), (3, -3), textcoords="offset points", color=INK, fontsize=7, va="top",
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
            )  # fmt: skip


def _cluster_colors(trends: GeneTrends, data: AnnData | HasAnnData | None) -> dict[str, str]:
    """Return the colour of each cluster of the trends, those of plots of the data where they are given."""
    names = [name for name in np.unique(trends.cluster).tolist() if name]
    known = (
        dict(zip(names, palette(len(names)), strict=True))
        if data is None
        else colors_by_name(data, names, None, "clusters of the trends")
    )
    return {name: known[name] for name in names}


def _draw_clusters(ax: Axes, names: NDArray[np.str_], colors: Mapping[str, str]) -> None:
    """Draw the cluster of each column as a bar above the panel."""
    bar = ax.inset_axes((0, 1.01, 1, 0.03))
    shades = np.array([to_rgb(colors.get(name, BACKGROUND)) for name in names.tolist()])
    bar.imshow(shades[None], aspect="auto", interpolation="nearest")
    bar.set_axis_off()


def _draw_cluster_legend(canvas: Canvas, colors: Mapping[str, str]) -> None:
    handles = [dot(name, color, marker="s") for name, color in colors.items()]
    if canvas.ours:
        canvas.figure.legend(handles=handles, loc="outside lower left", ncols=min(len(handles), 5))
    else:
        canvas.panels[-1].legend(handles=handles, ncols=3, **{**BELOW, "bbox_to_anchor": (0.0, -0.18)})
