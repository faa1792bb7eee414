"""Perturbations: where they take cells in an embedding, and how far they shift fates, beside other genes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_choice, check_integer, check_known, check_number
from cellrank_velot.cells import read_embedding
from cellrank_velot.embedding import project_by_linear_map, velocity_on_grid
from cellrank_velot.perturbation import DoseResponse, FateShift, Perturbation, PerturbedField, Screen
from cellrank_velot.plotting._draw.arrows import draw_arrows, draw_cells_below, grid_arrows, usual_color
from cellrank_velot.plotting._draw.colors import INK
from cellrank_velot.plotting._draw.embedding import colors_by_name
from cellrank_velot.plotting._draw.figure import Canvas, FigureOptions, drawing, draws
from cellrank_velot.plotting._draw.kernel import HasAnnData, field_of, kernel_of

__all__ = ["dose_response", "fate_shift", "perturbation_arrows", "screen"]

FloatArray = NDArray[np.float64]

Quantity = Literal["displacement", "response"]

# What other genes do.
NULL_BAND, NULL_DOT = "#E3E6EA", "#9AA1A9"
# Arrows shorter than this share of a long one would be dots.
SHORTEST = 0.04
# One for each change of a screen.
MARKERS = "v^osD"


@draws
def fate_shift(
    data: AnnData | HasAnnData,
    shift: FateShift,
    *,
    groups: str | Sequence[str] | None = None,
    cluster_key: str | None = None,
    alpha: float = 0.05,
    n_columns: int = 3,
    legend: bool = True,
    **figure: Unpack[FigureOptions],
) -> list[Axes] | None:
    """Draw the shift of each fate with its interval, on the band of shifts that other genes make.

    There is one panel for each group of starts, all on one scale. A dot is filled where the adjusted p-value is at most
    ``alpha``. Small dots are the other genes, one each. The title says what was done to which gene.

    Parameters
    ----------
    data
        A kernel or an AnnData, for the colours of the fates.
    shift
        Result of :meth:`cellrank_velot.OTVelocityKernel.fate_shift`.
    groups
        Groups to draw; all where not given.
    cluster_key
        Column of ``adata.obs`` whose colours the fates have; that of the kernel, or ``"clusters"``, where not given.
    alpha
        Adjusted p-value up to which a shift is marked, from 0 to 1.
    n_columns
        Number of panels in a row, at most.
    legend
        Whether to explain band and dots, below the panels.

    Returns
    -------
    The list of Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If a group is unknown.
    TypeError
        If ``shift`` is of another type.
    ValueError
        If ``alpha`` is out of range or the number of Axes is not that of the groups.

    Examples
    --------
    >>> shift = vk.fate_shift({"FateA": ("scale", 0.5)}, n_particles=20, n_null=2, n_steps=50)
    >>> panels = pl.fate_shift(vk, shift, show=False)
    """
    if not isinstance(shift, FateShift):
        raise TypeError(f"Expected `shift` to be a `FateShift`, found `{type(shift).__name__}`.")
    check_number("alpha", alpha, low=0, high=1)
    known = [str(name) for name in shift.groups]
    chosen = known if groups is None else [groups] if isinstance(groups, str) else list(groups)
    for name in chosen:
        check_known("groups", name, known)
    colors = colors_by_name(data, list(map(str, shift.lineages)), cluster_key, "lineages", strict=False)
    rows = [known.index(name) for name in chosen]
    size = (4.6, 1.35 + 0.36 * shift.lineages.size)
    with drawing(figure, n_panels=len(chosen), n_columns=n_columns, panel_size=size, title=shift.name) as canvas:
        for place, (panel, row) in enumerate(zip(canvas.panels, rows, strict=True)):
            _draw_shift(panel, shift, row, colors, alpha)
            reach = _reach(shift, rows)
            panel.set(xlim=(-reach, reach), xlabel="Change of the share")
            panel.set_title("" if known == ["all"] else f"from {known[row]}")
            if not canvas.is_left(place):
                panel.set_yticklabels([""] * shift.lineages.size)
        if legend:
            _draw_key(canvas, shift, alpha)
    return canvas.result


@draws
def perturbation_arrows(
    data: Any,
    perturbation: Perturbation,
    basis: str = "umap",
    color: str | None = "auto",
    *,
    quantity: Quantity = "displacement",
    n_grid: int = 30,
    smooth: float = 1.0,
    min_density: float = 0.02,
    arrow_length: float = 1.2,
    size: float | None = None,
    alpha: float = 0.45,
    legend: bool = True,
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw where a perturbation takes cells, or how it changes their velocity, as arrows on a grid in an embedding.

    Arrows show directions, not sizes: a long arrow has the same length however small the displacement. A displacement
    that leads out of the data has hardly a direction in the embedding. The title says what was done to which gene.

    Parameters
    ----------
    data
        An :class:`~cellrank_velot.OTVelocityKernel`.
    perturbation
        Result of :meth:`cellrank_velot.OTVelocityKernel.perturb`.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``; its first two dimensions are drawn.
    color
        Column of ``adata.obs`` or gene that colours the cells, grey where ``None``. ``"auto"`` is ``"clusters"`` where
        there is such a column.
    quantity
        ``"displacement"``, the change of the cells' state, or ``"response"``, the velocity of perturbed cells less that
        of unperturbed ones, which needs the field.
    n_grid
        Number of points along each axis of the grid on which arrows are averaged.
    smooth
        Standard deviation of the Gaussian weights of the average, in grid spacings, and no less than cells are apart.
    min_density
        Density of cells below which a point of the grid has no arrow, as a share of the 95th percentile over the points
        near cells.
    arrow_length
        Length of a long arrow, the 95th percentile, in grid spacings; longer ones are drawn as long.
    size
        Area of the cells in square points; by default smaller the more there are.
    alpha
        Opacity of the cells, from 0 to 1.
    legend
        Whether to draw the legend or colour bar of ``color``.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding or the colour is missing.
    RuntimeError
        If the response is asked for and the kernel has no field.
    TypeError
        If ``data`` is no kernel or ``perturbation`` something else.
    ValueError
        If an option is unknown or out of range.

    Examples
    --------
    >>> knockout = vk.perturb({"FateA": 0.0}, cells={"clusters": "Progenitor"})
    >>> ax = pl.perturbation_arrows(vk, knockout, show=False)
    >>> ax.get_title(loc="left")
    'FateA = 0: displacement'
    """
    check_choice("quantity", quantity, Quantity)
    check_number("arrow_length", arrow_length, low=0, open_low=True)
    kernel = kernel_of(data, "cells", "connectivities")
    if not isinstance(perturbation, Perturbation):
        raise TypeError(f"Expected `perturbation` to be a `Perturbation`, found `{type(perturbation).__name__}`.")
    color = usual_color(kernel.adata, color)
    x, name = read_embedding(kernel.adata, basis)
    arrows = project_by_linear_map(kernel.cells.x, _quantity(kernel, perturbation, quantity), x, kernel.connectivities)
    grid = velocity_on_grid(x, arrows, n_grid=n_grid, smooth=smooth, min_density=min_density)
    points, drawn, spacing = grid_arrows(grid, arrow_length, normalize=False)
    drawn[np.linalg.norm(drawn / spacing, axis=1) < SHORTEST * arrow_length] = np.nan
    with drawing(figure, panel_size=(5.6, 4.2), title=f"{perturbation.name}: {quantity}") as canvas:
        draw_cells_below(canvas.ax, x, name, kernel.adata, color, legend=legend, size=size, alpha=alpha)
        draw_arrows(canvas.ax, points, drawn)
    return canvas.result


@draws
def dose_response(
    data: AnnData | HasAnnData,
    doses: DoseResponse,
    *,
    lineages: str | Sequence[str] | None = None,
    cluster_key: str | None = None,
    legend: bool = True,
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw the share of each fate over the doses, with its interval.

    Doses stand side by side, evenly. A line marks no change.

    Parameters
    ----------
    data
        A kernel or an AnnData, for the colours of the fates.
    doses
        Result of :meth:`cellrank_velot.OTVelocityKernel.dose_response`.
    lineages
        Fates to draw; all where not given.
    cluster_key
        Column of ``adata.obs`` whose colours the fates have; that of the kernel, or ``"clusters"``, where not given.
    legend
        Whether to name the fates.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If a fate is unknown.
    TypeError
        If ``doses`` is of another type.

    Examples
    --------
    >>> doses = vk.dose_response("FateA", [0, 1, 2], n_particles=20, step_size=0.03)
    >>> ax = pl.dose_response(vk, doses, lineages=["Fate A", "Fate B"], show=False)
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['0', '1', '2']
    """
    if not isinstance(doses, DoseResponse):
        raise TypeError(f"Expected `doses` to be a `DoseResponse`, found `{type(doses).__name__}`.")
    known = [str(name) for name in doses.lineages]
    chosen = known if lineages is None else [lineages] if isinstance(lineages, str) else list(lineages)
    for name in chosen:
        check_known("lineages", name, known)
    colors = colors_by_name(data, known, cluster_key, "lineages", strict=False)
    order = np.argsort(doses.factors, kind="stable")
    factors, places = doses.factors[order], np.arange(order.size)
    with drawing(figure, panel_size=(4.2, 3.2), title=", ".join(doses.genes)) as canvas:
        ax = canvas.ax
        if (factors == 1).any():
            ax.axvline(int(np.argmax(factors == 1)), color="#555555", linewidth=0.8, zorder=0)
        for name in chosen:
            at = known.index(name)
            low, high = doses.low[order, at], doses.high[order, at]
            ax.fill_between(places, low, high, color=colors[name], alpha=0.15, linewidth=0)
            ax.plot(places, doses.shares[order, at], color=colors[name], marker="o", label=name)
        ax.set(xlabel="Expression, times", ylabel="Share of the particles", xticks=places, ylim=(0, None))
        ax.set_xticklabels([f"{factor:g}" for factor in factors])
        if legend:
            ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return canvas.result


@draws
def screen(
    data: AnnData | HasAnnData,
    found: Screen,
    *,
    lineages: str | Sequence[str] | None = None,
    n_genes: int = 12,
    cluster_key: str | None = None,
    alpha: float = 0.1,
    n_columns: int = 3,
    legend: bool = True,
    **figure: Unpack[FigureOptions],
) -> list[Axes] | None:
    """Draw the genes of a screen that shift each fate most.

    There is one panel for each fate, and one line for each gene, the largest shift first. Each change has its marker,
    filled where the adjusted p-value is at most ``alpha``; genes without such a change come last. Where the shift was
    computed without the approximation, it is drawn; a thin line leads to it from the first-order shift. The band holds
    the middle 95 % of the genes of the screen.

    Parameters
    ----------
    data
        A kernel or an AnnData, for the colours of the fates.
    found
        Result of :meth:`cellrank_velot.OTVelocityKernel.screen`.
    lineages
        Fates to draw; all where not given.
    n_genes
        Number of genes in a panel, at most.
    cluster_key
        Column of ``adata.obs`` whose colours the fates have; that of the kernel, or ``"clusters"``, where not given.
    alpha
        Adjusted p-value, a false discovery rate, up to which a shift is marked, from 0 to 1.
    n_columns
        Number of panels in a row, at most.
    legend
        Whether to explain markers and band, below the panels.

    Returns
    -------
    The list of Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If a fate is unknown.
    TypeError
        If ``found`` is of another type.
    ValueError
        If no gene of the screen changes, or an option is out of range.

    Examples
    --------
    >>> found = vk.screen(n_exact=5, show_progress_bar=False)
    >>> panels = pl.screen(vk, found, n_genes=5, show=False)
    >>> panels[0].get_title(loc="left")
    'Fate A'
    """
    if not isinstance(found, Screen):
        raise TypeError(f"Expected `found` to be a `Screen`, found `{type(found).__name__}`.")
    check_number("alpha", alpha, low=0, high=1)
    check_integer("n_genes", n_genes, low=1)
    if not np.isfinite(found.delta).any():
        raise ValueError("Expected a screen in which some gene changes, found none.")
    known = [str(name) for name in found.lineages]
    chosen = known if lineages is None else [lineages] if isinstance(lineages, str) else list(lineages)
    for name in chosen:
        check_known("lineages", name, known)
    colors = colors_by_name(data, known, cluster_key, "lineages", strict=False)
    size = (3.6, 1.3 + 0.24 * min(n_genes, found.genes.size))
    with drawing(figure, n_panels=len(chosen), n_columns=n_columns, panel_size=size, title="Screen") as canvas:
        for panel, name in zip(canvas.panels, chosen, strict=True):
            _draw_screen(panel, found, known.index(name), colors[name], n_genes, alpha)
            panel.set_title(name, loc="left")
            panel.set_xlabel("Change of the fate probability")
        if legend:
            _draw_screen_key(canvas, found, alpha)
    return canvas.result


# -------------------------------------------------------------------------------------------------------- what is drawn
def _quantity(kernel: Any, perturbation: Perturbation, quantity: Quantity) -> FloatArray:
    """Return displacement or response of each cell in the basis, as means over the cells around."""
    cells = kernel.cells
    if quantity == "displacement":
        return PerturbedField.of(None, cells.x, perturbation).displacement(cells.x)
    moved = PerturbedField.of(field_of(kernel), cells.x, perturbation)
    return np.asarray(moved(cells.x, cells.time) - kernel.velocity)


def _reach(shift: FateShift, rows: list[int]) -> float:
    """Return how far the common scale reaches on either side."""
    parts = [shift.low[rows].ravel(), shift.high[rows].ravel(), shift.null[:, rows].ravel(), shift.delta[rows].ravel()]
    largest = np.nanmax(np.abs(np.concatenate(parts)), initial=0.01)
    return float(1.06 * largest)


def _draw_shift(ax: Axes, shift: FateShift, row: int, colors: dict[str, str], alpha: float) -> None:
    """Draw the shifts of one group, one line for each lineage, from above."""
    low, high = shift.null_interval()
    rng = np.random.default_rng(0)
    beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (6, 0), "textcoords": "offset points"}
    ax.axvline(0, color="#555555", linewidth=0.8, zorder=1)
    for i, lineage in enumerate(shift.lineages):
        color = colors[str(lineage)]
        marked = shift.n_null == 0 or shift.p_adjusted[row, i] <= alpha
        face = color if marked else "white"
        if shift.n_null:
            ax.barh(i, high[row, i] - low[row, i], left=low[row, i], height=0.62, color=NULL_BAND, zorder=0)
            spread = i + rng.uniform(-0.2, 0.2, shift.n_null)
            ax.scatter(shift.null[:, row, i], spread, s=5, color=NULL_DOT, linewidths=0, zorder=2)
            p_value = f"p = {shift.p_values[row, i]:.2g}"
            ax.annotate(p_value, (1.0, i), va="center", fontsize=8.5, annotation_clip=False, **beside)
        ax.plot([shift.low[row, i], shift.high[row, i]], [i, i], color=color, linewidth=1.8, zorder=3)
        ax.scatter(shift.delta[row, i], i, s=52, facecolors=face, edgecolors=color, linewidths=1.8, zorder=4)
    n = shift.lineages.size
    ax.set(yticks=range(n), yticklabels=list(shift.lineages), ylim=(n - 0.5, -0.5))
    ax.tick_params(axis="y", length=0)


def _draw_key(canvas: Canvas, shift: FateShift, alpha: float) -> None:
    """Say what dots and band are, below."""
    look: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 7, "markeredgecolor": INK}
    level = f"{100 * shift.level:g} %"
    handles = [Line2D([], [], color=INK, linewidth=1.8, label=f"{level} interval of the particles")]
    if shift.n_null:
        handles = [
            Line2D([], [], **look, markerfacecolor=INK, label=f"adjusted p ≤ {alpha:g}"),
            Line2D([], [], **look, markerfacecolor="white", label=f"adjusted p > {alpha:g}"),
            *handles,
            Line2D([], [], color=NULL_BAND, linewidth=7, label=f"{level} of {shift.n_null} other genes"),
        ]
    if canvas.ours:
        canvas.figure.legend(handles=handles, loc="outside lower left", ncols=2, handletextpad=0.5, fontsize=8.5)
    else:
        canvas.panels[-1].legend(handles=handles, loc="upper left", bbox_to_anchor=(0.0, -0.3), fontsize=8.5)


def _draw_screen(ax: Axes, found: Screen, lineage: int, color: str, n_genes: int, alpha: float) -> None:
    """Draw the genes that stand out most for one fate, the first above."""
    delta, exact, adjusted = (values[:, :, lineage] for values in (found.delta, found.exact, found.p_adjusted))
    marked = adjusted <= alpha
    # A large shift that chance explains comes after a small one that it does not.
    shift = np.nan_to_num(np.abs(delta))
    genes = np.lexsort((-shift.max(axis=0), -np.where(marked, shift, 0).max(axis=0)))[:n_genes]
    ax.axvspan(*np.nanquantile(delta, [0.025, 0.975]), color=NULL_BAND, linewidth=0, zorder=0)
    ax.axvline(0, color="#555555", linewidth=0.8, zorder=1)
    for at in range(found.changes.size):
        for row, gene in enumerate(genes):
            first, last = delta[at, gene], exact[at, gene]
            to = first if np.isnan(last) else last
            ax.plot([first, to], [row, row], color=color, linewidth=0.8, alpha=0.6, zorder=2)
            face = color if marked[at, gene] else "white"
            ax.scatter(to, row, s=34, marker=MARKERS[at % len(MARKERS)], facecolors=face, edgecolors=color, zorder=3)
    ax.set(yticks=range(genes.size), yticklabels=list(found.genes[genes]), ylim=(genes.size - 0.5, -0.5))
    reach = 1.06 * max(abs(value) for value in ax.get_xlim())
    ax.set_xlim(-reach, reach)
    ax.locator_params(axis="x", nbins=5)
    ax.tick_params(axis="y", length=0)


def _draw_screen_key(canvas: Canvas, found: Screen, alpha: float) -> None:
    """Say what markers and band are, below."""
    look: dict[str, Any] = {"linestyle": "", "markersize": 6, "markeredgecolor": INK}
    handles = [
        Line2D([], [], **look, marker=MARKERS[at % len(MARKERS)], markerfacecolor="white", label=str(name))
        for at, name in enumerate(found.changes)
    ]
    handles += [
        Line2D([], [], **look, marker="o", markerfacecolor=INK, label=f"adjusted p ≤ {alpha:g}"),
        Line2D([], [], color=INK, linewidth=0.8, label="from the first-order shift to the exact one"),
        Line2D([], [], color=NULL_BAND, linewidth=7, label="95 % of all genes"),
    ]
    if canvas.ours:
        canvas.figure.legend(handles=handles, loc="outside lower left", ncols=2, handletextpad=0.5, fontsize=8.5)
    else:
        canvas.panels[-1].legend(handles=handles, loc="upper left", bbox_to_anchor=(0.0, -0.3), fontsize=8.5)
