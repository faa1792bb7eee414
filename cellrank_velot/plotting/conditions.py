"""Conditions side by side: samples and differences, streams under each condition, and genes along lineages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
import scipy.sparse as sp
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scipy.stats import t as student

from cellrank_velot._utils.validation import check_choice, check_integer, check_known
from cellrank_velot.cells import read_embedding
from cellrank_velot.conditions import ConditionComparison
from cellrank_velot.embedding.grid import VelocityGrid, velocity_on_grid
from cellrank_velot.embedding.projection import project_by_linear_map
from cellrank_velot.plotting._draw.arrows import draw_arrows, grid_arrows
from cellrank_velot.plotting._draw.colors import BACKGROUND, palette
from cellrank_velot.plotting._draw.embedding import draw_cells
from cellrank_velot.plotting._draw.figure import Canvas, FigureOptions, drawing, draws, even_columns
from cellrank_velot.plotting._draw.kernel import HasAnnData, adata_of, graph_of
from cellrank_velot.plotting._draw.legends import dot, stroke
from cellrank_velot.plotting.velocity import Method, draw_streams, projected, where_placed

__all__ = ["condition_fates", "condition_trends", "condition_velocity"]

FloatArray = NDArray[np.float64]
Of = Literal["lineages", "clusters", "fates", "speed", "rotation"]

MEASURES: dict[str, tuple[str, str]] = {
    "lineages": ("lineage share", "Share of the lineage"),
    "clusters": ("cluster share", "Share of cells"),
    "fates": ("fate", "Mean fate probability"),
    "speed": ("speed", "Speed"),
    "rotation": ("rotation", "Direction, degrees"),
}
# A difference that holds after the adjustment for many tests is drawn full.
HOLDS = 0.05
MOST_ROWS, MOST_PANELS = 40, 24


@draws
def condition_fates(
    comparison: ConditionComparison,
    of: Of = "lineages",
    *,
    rows: Sequence[str] | None = None,
    **figure: Unpack[FigureOptions],
) -> list[Axes] | None:
    """Draw the samples of each condition, and the differences between conditions with their intervals.

    Left, a point is a sample, and a bar the mean of its condition. Right, the difference from the reference. A full
    point holds at 5 % after the adjustment for many tests, an open one does not. Without an interval there was no test.

    Parameters
    ----------
    comparison
        What :func:`cellrank_velot.compare_conditions` returned.
    of
        What is drawn: ``"lineages"``, the shares of lineages; ``"clusters"``, the shares of all cells;
        ``"fates"``, the mean fates of each cluster; ``"speed"`` or ``"rotation"`` of the velocity.
    rows
        Lineages or clusters to draw; of fates the clusters. All where not given.

    Returns
    -------
    The two Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If a row is unknown.
    TypeError
        If ``comparison`` is of another type.
    ValueError
        If there is nothing of this kind, there are more than 40 rows, or ``of`` is unknown.

    Examples
    --------
    >>> sample = np.arange(300) % 6  # three of each condition
    >>> adata.obs["sample"] = sample.astype(str)
    >>> adata.obs["condition"] = np.where(sample < 3, "control", "treated")
    >>> fates = adata.obs["clusters"].str.get_dummies()[["Fate A", "Fate B"]]
    >>> found = compare_conditions(vk, "condition", "sample", fates=fates)
    >>> samples, differences = pl.condition_fates(found, show=False)
    """
    _check(comparison)
    check_choice("of", of, Of)
    measure, label = MEASURES[of]
    table, samples = (part[part["measure"] == measure] for part in (comparison.table, comparison.samples))
    if table.empty:
        raise ValueError(f"Expected a comparison of {of}, found none in it.")
    column = "lineage" if of == "lineages" else "cluster"
    for row in rows or ():
        check_known(f"{column}s", row, table[column].unique())
    if rows is not None:
        table, samples = (part[part[column].isin(rows)] for part in (table, samples))
    names = list(dict.fromkeys(_row_names(table)))
    if len(names) > MOST_ROWS:
        raise ValueError(f"Expected at most `{MOST_ROWS}` rows, found `{len(names)}`: choose some by `rows`.")
    place = {name: len(names) - 1 - i for i, name in enumerate(names)}
    colors = _colors(comparison)
    height = max(1.7, 0.7 + 0.34 * len(names) * max(1, 0.6 * (len(colors) - 1)))
    with drawing(figure, n_panels=2, n_columns=2, panel_size=(3.9, height)) as canvas:
        left, right = canvas.panels
        _draw_samples(left, samples, place, colors)
        left.set(xlabel=label, yticks=list(place.values()), ylim=(-0.6, len(names) - 0.4))
        left.set_yticklabels(list(place))
        _draw_differences(right, table, place, colors)
        right.set(xlabel=f"Difference from {comparison.reference}", yticks=list(place.values()))
        right.set(ylim=left.get_ylim(), yticklabels=[])
        for panel in canvas.panels:
            panel.tick_params(axis="y", length=0)
        _legend(canvas, [dot(name, color) for name, color in colors.items()])
    return canvas.result


@draws
def condition_velocity(
    data: HasAnnData,
    comparison: ConditionComparison,
    basis: str = "umap",
    condition: str | None = None,
    *,
    method: Method = "transitions",
    n_grid: int = 40,
    smooth: float = 1.5,
    min_density: float = 0.05,
    density: float = 1.2,
    size: float | None = None,
    **figure: Unpack[FigureOptions],
) -> list[Axes] | None:
    """Draw the velocity of the reference, that of another condition, and the difference between them.

    Where the comparison has a field for each sample, streams are the means over the samples of a condition, for all
    cells. Otherwise they are those of the one field at the cells of the condition, and the difference is small by
    construction: it shows cells that lie elsewhere. Arrows of the difference are on the scale of the velocities, the
    longest of which is one spacing of the grid of arrows. There are none where a condition has too few cells.

    Parameters
    ----------
    data
        The kernel.
    comparison
        What :func:`cellrank_velot.compare_conditions` returned.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``.
    condition
        Condition to draw beside the reference; the first other one where not given.
    method
        How the velocity comes to the embedding, ``"transitions"`` or ``"linear_map"``, as in
        :func:`cellrank_velot.pl.velocity_stream`; fields of samples by the linear map.
    n_grid
        Number of points along each axis of the grid on which the velocity is averaged.
    smooth
        Standard deviation of the Gaussian weights of the average, in grid spacings.
    min_density
        Density of cells below which a point of the grid has no velocity, as a share of the usual one.
    density
        Closeness of the streamlines.
    size
        Area of the cells in square points; by default smaller the more there are.

    Returns
    -------
    The three Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding or the condition is missing.
    TypeError
        If ``comparison`` is of another type.
    ValueError
        If the comparison is of other cells, or an option is out of range.

    Examples
    --------
    >>> sample = np.arange(300) % 6  # three of each condition
    >>> adata.obs["sample"] = sample.astype(str)
    >>> adata.obs["condition"] = np.where(sample < 3, "control", "treated")
    >>> fates = adata.obs["clusters"].str.get_dummies()[["Fate A", "Fate B"]]
    >>> found = compare_conditions(vk, "condition", "sample", fates=fates)
    >>> control, treated, difference = pl.condition_velocity(vk, found, show=False)
    """
    _check(comparison)
    adata = adata_of(data)
    if comparison.design.sample.size != adata.n_obs:
        raise ValueError(
            f"Expected a comparison of the `{adata.n_obs}` cells, found one of `{comparison.design.sample.size}`."
        )
    names = comparison.conditions
    condition = names[1] if condition is None else condition
    check_known("conditions", condition, names[1:])
    numbers = (0, names.index(condition))
    x, name = read_embedding(adata, basis)
    velocities, whole = _velocities(data, comparison, x, numbers, method)
    everywhere = {"n_grid": n_grid, "smooth": smooth, "min_density": min_density}
    grids = [_grid_within(x, velocity, here, everywhere) for velocity, here in zip(velocities, whole, strict=True)]
    coarse = {**everywhere, "n_grid": max(2, n_grid // 2)}
    one, other = (_grid_within(x, velocity, here, coarse) for velocity, here in zip(velocities, whole, strict=True))
    difference = VelocityGrid(x=one.x, y=one.y, velocity=other.velocity - one.velocity)
    longest = np.nanpercentile(np.linalg.norm([one.velocity, other.velocity], axis=-1), 95)
    colors = _colors(comparison)
    with drawing(figure, n_panels=3, n_columns=3, panel_size=(3.6, 3.4)) as canvas:
        for panel, number, grid in zip(canvas.panels, numbers, grids, strict=False):
            here = comparison.design.cells_of(number)
            draw_cells(panel, x, name, BACKGROUND, size=size, alpha=0.6)
            limits = panel.get_xlim(), panel.get_ylim()
            draw_cells(panel, x[here], name, colors[names[number]], size=size, alpha=0.35)
            panel.set(xlim=limits[0], ylim=limits[1])
            draw_streams(panel, grid, density=density)
            panel.set_title(names[number])
        last = canvas.panels[2]
        draw_cells(last, x, name, BACKGROUND, size=size, alpha=0.6)
        points, arrows, spacing = grid_arrows(difference, 1.0, normalize=False)
        length = np.linalg.norm(difference.velocity.reshape(-1, 2), axis=1) / max(longest, np.finfo(float).tiny)
        shown = np.linalg.norm(arrows / spacing, axis=1)
        scale = np.divide(length, shown, out=np.full_like(length, np.nan), where=shown > 0)
        draw_arrows(last, points, arrows * np.minimum(scale, 2 / np.maximum(shown, 1e-9))[:, None])
        last.set_title(f"{condition} less {names[0]}")
    return canvas.result


@draws
def condition_trends(
    comparison: ConditionComparison,
    genes: Sequence[str] | str | None = None,
    lineages: Sequence[str] | str | None = None,
    *,
    samples: bool = True,
    n_columns: int = 3,
    **figure: Unpack[FigureOptions],
) -> list[Axes] | None:
    """Draw genes along lineages under each condition, one panel for each gene and lineage.

    A thick line is the mean over the samples of a condition, and its band the interval of that mean over samples, not
    over cells. Thin lines are samples.

    Parameters
    ----------
    comparison
        What :func:`cellrank_velot.compare_conditions` returned, with genes.
    genes
        Genes to draw; where not given, the six with the smallest p-values.
    lineages
        Lineages to draw; all where not given.
    samples
        Whether to draw the line of each sample.
    n_columns
        Number of panels in a row, at most.

    Returns
    -------
    The list of Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If a gene or a lineage is not among those compared.
    TypeError
        If ``comparison`` is of another type.
    ValueError
        If the comparison has no trends, as without genes or of time points, or there are more than 24 panels.

    Examples
    --------
    >>> sample = np.arange(300) % 6  # three of each condition
    >>> adata.obs["sample"] = sample.astype(str)
    >>> adata.obs["condition"] = np.where(sample < 3, "control", "treated")
    >>> fates = adata.obs["clusters"].str.get_dummies()[["Fate A", "Fate B"]]
    >>> found = compare_conditions(vk, "condition", "sample", fates=fates, genes=["FateA"])
    >>> panels = pl.condition_trends(found, lineages="Fate A", show=False)
    """
    _check(comparison)
    trends = comparison.trends
    if trends is None:
        raise ValueError("Expected trends of genes, found none: name `genes`, with a pseudotime.")
    known = trends.genes.tolist()
    if genes is None:
        ranked = comparison.genes.sort_values("p", kind="stable")["gene"]
        genes = list(dict.fromkeys([*ranked, *known]))[:6]
    chosen = [genes] if isinstance(genes, str) else list(genes)
    along = (
        trends.lineages.tolist() if lineages is None else [lineages] if isinstance(lineages, str) else list(lineages)
    )
    for gene in chosen:
        check_known("genes", gene, known)
    for lineage in along:
        check_known("lineages", lineage, trends.lineages)
    n_panels = len(chosen) * len(along)
    if n_panels > MOST_PANELS:
        raise ValueError(f"Expected at most `{MOST_PANELS}` panels, found `{n_panels}`: choose genes or lineages.")
    check_integer("n_columns", n_columns, low=1)
    n_columns = len(along) if 1 < len(along) <= n_columns else even_columns(n_panels, n_columns)
    colors = _colors(comparison)
    with drawing(figure, n_panels=n_panels, n_columns=n_columns, panel_size=(2.9, 2.4)) as canvas:
        pairs = [(gene, lineage) for gene in chosen for lineage in along]
        for panel, (gene, lineage) in zip(canvas.panels, pairs, strict=True):
            number = trends.lineages.tolist().index(lineage)
            values = trends.mean[:, number, :, known.index(gene)]
            for place, color in enumerate(colors.values()):
                curves = values[comparison.design.of_condition(place)]
                _draw_curves(panel, trends.time[number], curves, color, comparison.options.level, samples)
            if np.isfinite(values).any():
                _zoom(panel, values)
            panel.set(title=f"{gene}, {lineage}" if len(along) > 1 else gene, xlabel="Time", ylabel="Expression")
        canvas.share_labels()
        _legend(canvas, [stroke(name, color) for name, color in colors.items()])
    return canvas.result


# ------------------------------------------------------------------------------------------------------------- parts
def _check(comparison: Any) -> None:
    if not isinstance(comparison, ConditionComparison):
        raise TypeError(f"Expected the result of `compare_conditions`, found `{type(comparison).__name__}`.")


def _colors(comparison: ConditionComparison) -> dict[str, str]:
    return dict(zip(comparison.conditions, palette(len(comparison.conditions)), strict=True))


def _legend(canvas: Canvas, handles: list[Line2D]) -> None:
    """Draw what the colours mean below all panels, or within the last one of the caller's figure."""
    if canvas.ours:
        canvas.figure.legend(handles=handles, loc="outside lower left", ncols=len(handles))
    else:
        canvas.panels[-1].legend(handles=handles)


def _row_names(table: pd.DataFrame) -> list[str]:
    """Return what each row is of, such as "Beta to Alpha at 3"."""
    found = []
    for cluster, lineage, time in zip(table["cluster"], table["lineage"], table["time"], strict=True):
        name = f"{cluster} to {lineage}" if cluster and lineage else cluster or lineage
        found.append(f"{name} at {time}" if time else name)
    return found


def _draw_samples(ax: Axes, samples: pd.DataFrame, place: dict[str, int], colors: dict[str, str]) -> None:
    """Draw a point for each sample, and a bar at the mean of each condition."""
    names = pd.Series(_row_names(samples), index=samples.index)
    for number, (condition, color) in enumerate(colors.items()):
        shift = _shift(number, len(colors))
        for name, values in samples.loc[samples["condition"] == condition, "value"].groupby(names):
            if name not in place:
                continue
            at = place[str(name)] + shift
            ax.scatter(values, np.full(len(values), at), color=color, s=18, alpha=0.7, linewidths=0, zorder=3)
            ax.plot([values.mean()] * 2, [at - 0.13, at + 0.13], color=color, linewidth=2, zorder=2)


def _draw_differences(ax: Axes, table: pd.DataFrame, place: dict[str, int], colors: dict[str, str]) -> None:
    """Draw the difference of each row and condition with its interval."""
    ax.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    conditions = list(colors)
    for name, (_, row) in zip(_row_names(table), table.iterrows(), strict=True):
        color = colors[row["condition"]]
        at = place[name] + (_shift(conditions.index(row["condition"]) - 1, len(colors) - 1) if len(colors) > 2 else 0)
        ax.plot([row["low"], row["high"]], [at, at], color=color, linewidth=1.4, zorder=1)
        full = color if row["q"] <= HOLDS else "white"
        ax.scatter(row["difference"], at, s=30, facecolors=full, edgecolors=color, linewidths=1.3, zorder=2)


def _shift(number: int, n: int) -> float:
    """Return by how much the first of several conditions lies above the middle of a row, the last below."""
    return 0.0 if n < 2 else 0.36 * (0.5 - number / (n - 1))


def _draw_curves(ax: Axes, time: FloatArray, curves: FloatArray, color: str, level: float, samples: bool) -> None:
    """Draw the curves of the samples of a condition, and over the times of all of them their mean and its band."""
    curves = curves[np.isfinite(curves).any(axis=1)]
    if samples:
        for curve in curves:
            ax.plot(time, curve, color=color, linewidth=0.7, alpha=0.5)
    shared = np.isfinite(curves).all(axis=0)
    if not len(curves) or not shared.any():
        return
    mean, time = curves[:, shared].mean(axis=0), time[shared]
    ax.plot(time, mean, color=color, linewidth=2)
    if len(curves) > 1:
        half = (
            student.ppf(0.5 + level / 2, len(curves) - 1) * curves[:, shared].std(axis=0, ddof=1) / len(curves) ** 0.5
        )
        ax.fill_between(time, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)


def _zoom(ax: Axes, curves: FloatArray) -> None:
    """Keep to the curves: the band of two or three samples may be many times as wide."""
    low, high = np.nanmin(curves), np.nanmax(curves)
    margin = 0.3 * max(high - low, 1e-9)
    ax.set_ylim(low - margin, high + margin)


def _velocities(
    data: Any, comparison: ConditionComparison, x: FloatArray, numbers: tuple[int, int], method: Method
) -> tuple[list[FloatArray], list[NDArray[np.bool_]]]:
    """Return the velocities in the embedding of two conditions, and of which cells."""
    if comparison.fields is None:
        velocity = projected(data, x, method, "none", None)
        return [velocity, velocity], [comparison.design.cells_of(number) for number in numbers]
    basis, graph, backward = graph_of(data, None)
    found = []
    for number in numbers:
        field = -comparison.fields[number] if backward else comparison.fields[number]
        found.append(where_placed(x, partial(_by_linear_map, basis, graph, field, x)))
    return found, [np.ones(len(x), dtype=bool)] * 2


def _by_linear_map(
    basis: FloatArray, graph: sp.csr_matrix, field: FloatArray, x: FloatArray, placed: NDArray[np.bool_]
) -> FloatArray:
    return project_by_linear_map(basis[placed], field[placed], x[placed], graph[placed][:, placed])


def _grid_within(x: FloatArray, velocity: FloatArray, here: NDArray[np.bool_], options: dict[str, Any]) -> VelocityGrid:
    """Return the velocity of some cells on the grid of all."""
    known = np.isfinite(velocity).all(axis=1) & np.isfinite(x).all(axis=1)
    corners = np.array([x[known].min(axis=0), x[known].max(axis=0)])
    return velocity_on_grid(x[here], velocity[here], corners=corners, **options)
