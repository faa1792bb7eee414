"""Perturbations: where they take cells in an embedding, and how far they shift fates, beside other genes.

Depends on the shared files of this folder and :mod:`cellrank_velot.embedding.projection` for the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_choice, check_known, check_number
from cellrank_velot.embedding.grid import velocity_on_grid
from cellrank_velot.embedding.projection import project_by_linear_map
from cellrank_velot.perturbation import FateShift, Perturbation, PerturbedField
from cellrank_velot.plotting._draw.arrows import arrows_of, draw_arrows, draw_cells_below
from cellrank_velot.plotting._draw.colors import INK
from cellrank_velot.plotting._draw.embedding import HasAnnData, adata_of, colors_by_name, positions
from cellrank_velot.plotting._draw.figure import close_figure, open_axes, style

__all__ = ["fate_shift", "perturbation_arrows"]

FloatArray = NDArray[np.float64]

Quantity = Literal["displacement", "response"]

# What other genes do.
NULL_BAND, NULL_DOT = "#E3E6EA", "#9AA1A9"
# Arrows shorter than this share of a long one would be dots.
SHORTEST = 0.04


def fate_shift(
    data: AnnData | HasAnnData,
    shift: FateShift,
    *,
    groups: str | Sequence[str] | None = None,
    cluster_key: str | None = None,
    alpha: float = 0.05,
    n_columns: int = 3,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
    ax: Axes | Sequence[Axes] | None = None,
) -> list[Axes] | None:
    """Draw the shift of each fate with its interval, on the band of shifts that other genes make.

    One panel for each group of starts, all on one scale. A dot is filled where the adjusted p-value is at most
    ``alpha``; small dots are the other genes, one each.

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
        Adjusted p-value up to which a shift is marked.
    n_columns
        Number of panels in a row, at most.
    legend
        Whether to explain band and dots, below the panels.
    figsize
        Width and height of the figure in inches.
    dpi
        Dots per inch.
    save
        File to save to; a relative one lies in scanpy's ``settings.figdir``.
    show
        Whether to show the figure. By default shown unless saved or drawn into ``ax``.
    ax
        Axes to draw into, one for each group.

    Returns
    -------
    The list of Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If a group is unknown.
    TypeError
        If ``shift`` is something else.
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
    with style():
        figure, panels, ours = open_axes(
            ax,
            n_panels=len(chosen),
            n_columns=n_columns,
            panel_size=(4.6, 1.35 + 0.36 * shift.lineages.size),
            figsize=figsize,
            dpi=dpi,
        )
        reach = _reach(shift, rows)
        for panel, row, first in zip(panels, rows, range(len(rows)), strict=True):
            _draw_shift(panel, shift, row, colors, alpha, reach, named=first % n_columns == 0 or not ours)
            panel.set_title("" if known == ["all"] else f"from {known[row]}")
        if ours:
            figure.suptitle(shift.name, x=0.01, ha="left", fontsize=11)
        if legend:
            _draw_key(panels[-1], shift, alpha, figure if ours else None)
        return panels if close_figure(figure, ours=ours, save=save, show=show) else None


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
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
    ax: Axes | None = None,
) -> Axes | None:
    """Draw where a perturbation takes cells, or how it changes their velocity, as arrows on a grid in an embedding.

    Arrows show directions: a displacement that leads out of the data has hardly a direction in the embedding, and all
    are as long as can be seen, however small the displacement.

    Parameters
    ----------
    data
        An :class:`~cellrank_velot.OTVelocityKernel`.
    perturbation
        Result of :meth:`cellrank_velot.OTVelocityKernel.perturb`.
    basis, color
        As in :func:`velocity_stream`.
    quantity
        ``"displacement"``, the change of the cells' state, or ``"response"``, the velocity of perturbed cells less that
        of unperturbed ones, which needs the field.
    n_grid, smooth, min_density
        Grid on which arrows are averaged, see :func:`cellrank_velot.embedding.grid.velocity_on_grid`.
    arrow_length
        Length of a long arrow, the 95th percentile, in grid spacings.
    size, alpha, legend, title, figsize, dpi, save, show, ax
        As in :func:`velocity_stream`; without ``title``, it says what was done.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding is missing.
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
    if not hasattr(data, "cells") or not hasattr(data, "connectivities"):
        raise TypeError(f"Expected the `OTVelocityKernel` itself, found `{type(data).__name__}`.")
    if not isinstance(perturbation, Perturbation):
        raise TypeError(f"Expected `perturbation` to be a `Perturbation`, found `{type(perturbation).__name__}`.")
    adata = adata_of(data)
    x, name = positions(adata, basis)
    arrows = project_by_linear_map(data.cells.x, _quantity(data, perturbation, quantity), x, data.connectivities)
    grid = velocity_on_grid(x, arrows, n_grid=n_grid, smooth=smooth, min_density=min_density)
    points = np.stack(np.meshgrid(grid.x, grid.y), axis=-1).reshape(-1, 2)
    spacing = np.array([grid.x[1] - grid.x[0], grid.y[1] - grid.y[0]])
    drawn = arrows_of(grid.velocity.reshape(-1, 2), arrow_length * spacing, normalize=False)
    drawn[np.linalg.norm(drawn / spacing, axis=1) < SHORTEST * arrow_length] = np.nan
    with style():
        figure, (panel,), ours = open_axes(ax, panel_size=(5.6, 4.2), figsize=figsize, dpi=dpi)
        draw_cells_below(panel, x, name, adata, color, legend=legend, size=size, alpha=alpha)
        draw_arrows(panel, points, drawn)
        panel.set_title(f"{perturbation.name}: {quantity}" if title is None else title)
        return panel if close_figure(figure, ours=ours, save=save, show=show) else None


# -------------------------------------------------------------------------------------------------------- what is drawn
def _quantity(data: Any, perturbation: Perturbation, quantity: Quantity) -> FloatArray:
    """Return displacement or response of each cell in the basis, as means over the cells around."""
    cells = data.cells
    if quantity == "displacement":
        return PerturbedField.of(None, cells.x, perturbation).displacement(cells.x)
    if data.field is None:
        raise RuntimeError("Compute the field first, as `.fit_field()`.")
    return np.asarray(PerturbedField.of(data.field, cells.x, perturbation)(cells.x, cells.time) - data.velocity)


def _reach(shift: FateShift, rows: list[int]) -> float:
    """Return how far the common scale reaches on either side."""
    parts = [shift.low[rows].ravel(), shift.high[rows].ravel(), shift.null[:, rows].ravel(), shift.delta[rows].ravel()]
    largest = np.nanmax(np.abs(np.concatenate(parts)), initial=0.01)
    return float(1.06 * largest)


def _draw_shift(
    ax: Axes, shift: FateShift, row: int, colors: dict[str, str], alpha: float, reach: float, *, named: bool
) -> None:
    """Draw the shifts of one group, one line for each lineage, from above."""
    low, high = shift.null_interval()
    rng = np.random.default_rng(0)
    delta, adjusted = shift.delta[row], shift.p_adjusted[row]
    ax.axvline(0, color="#555555", linewidth=0.8, zorder=1)
    for i, lineage in enumerate(shift.lineages):
        if shift.n_null:
            ax.barh(i, high[row, i] - low[row, i], left=low[row, i], height=0.62, color=NULL_BAND, zorder=0)
            spread = i + rng.uniform(-0.2, 0.2, shift.n_null)
            ax.scatter(shift.null[:, row, i], spread, s=5, color=NULL_DOT, linewidths=0, zorder=2)
        color = colors[str(lineage)]
        marked = shift.n_null == 0 or adjusted[i] <= alpha
        ax.plot([shift.low[row, i], shift.high[row, i]], [i, i], color=color, linewidth=1.8, zorder=3)
        face = color if marked else "white"
        ax.scatter(delta[i], i, s=52, facecolors=face, edgecolors=color, linewidths=1.8, zorder=4)
        if shift.n_null:
            place: dict[str, Any] = {
                "xycoords": ("axes fraction", "data"),
                "xytext": (6, 0),
                "textcoords": "offset points",
            }
            ax.annotate(
                f"p = {shift.p_values[row, i]:.2g}", (1.0, i), va="center", fontsize=8.5, annotation_clip=False, **place
            )
    n = shift.lineages.size
    ax.set(yticks=range(n), yticklabels=list(shift.lineages) if named else [""] * n, ylim=(n - 0.5, -0.5))
    ax.set(xlim=(-reach, reach), xlabel="Change of the share")
    ax.tick_params(axis="y", length=0)


def _draw_key(ax: Axes, shift: FateShift, alpha: float, figure: Any) -> None:
    """Say what dots and band are, below."""
    look: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 7, "markeredgecolor": INK}
    interval = Line2D([], [], color=INK, linewidth=1.8, label=f"{100 * shift.level:g} % interval of the particles")
    handles = [interval]
    if shift.n_null:
        handles = [
            Line2D([], [], **look, markerfacecolor=INK, label=f"adjusted p ≤ {alpha:g}"),
            Line2D([], [], **look, markerfacecolor="white", label=f"adjusted p > {alpha:g}"),
            interval,
            Line2D(
                [], [], color=NULL_BAND, linewidth=7, label=f"{100 * shift.level:g} % of {shift.n_null} other genes"
            ),
        ]
    if figure is not None:
        figure.legend(handles=handles, loc="outside lower left", ncols=2, handletextpad=0.5, fontsize=8.5)
    else:
        ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.0, -0.3), fontsize=8.5)
