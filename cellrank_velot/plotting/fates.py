"""Where cells go: macrostates and fate probabilities in an embedding, from the keys that CellRank writes to AnnData."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_choice, check_known
from cellrank_velot.cells import read_clusters, read_embedding, rows_of_state
from cellrank_velot.fates import TerminalStates
from cellrank_velot.plotting._draw.colors import BACKGROUND, INK, PROBABILITY, palette, palette_of
from cellrank_velot.plotting._draw.embedding import draw_categories, draw_values
from cellrank_velot.plotting._draw.figure import FigureOptions, color_bar, drawing, draws
from cellrank_velot.plotting._draw.kernel import HasAnnData, adata_of, suffix_of

__all__ = ["fate_map", "fate_probabilities", "macrostates", "terminal_states"]

Which = Literal["all", "terminal", "initial"]
# Where no way leads through a group, on a logarithmic axis.
NO_WAY = 0.01
_STATES = {"all": "macrostates", "terminal": "term_states", "initial": "init_states"}


@draws
def macrostates(
    data: AnnData | HasAnnData,
    basis: str = "umap",
    *,
    which: Which = "all",
    backward: bool | None = None,
    size: float | None = None,
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw the cells most typical of each macrostate; the other cells are grey.

    Parameters
    ----------
    data
        A :class:`cellrank.estimators.GPCCA` with its states, or its AnnData.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``.
    which
        All macrostates, or those chosen as ``"terminal"`` or ``"initial"`` states.
    backward
        Direction of the process; that of the estimator, or forward, where not given.
    size
        Area of the cells in square points; by default smaller the more there are.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding or the states are missing.
    ValueError
        If ``which`` is unknown.

    Examples
    --------
    >>> g = cr.estimators.GPCCA(vk).set_terminal_states(vk.suggest_terminal_states("clusters"))
    >>> ax = pl.macrostates(g, which="terminal", show=False)
    """
    check_choice("which", which, Which)
    adata = adata_of(data)
    x, name = read_embedding(adata, basis)
    key = f"{_STATES[which]}_{suffix_of(data, backward)}"
    hint = "Compute it with `GPCCA.compute_macrostates()` and its followers."
    values = pd.Categorical(read_clusters(adata, key, hint))
    with drawing(figure, panel_size=(5.0, 4.0)) as canvas:
        draw_categories(canvas.ax, x, name, values, palette_of(adata, key, list(values.categories)), size=size)
    return canvas.result


@draws
def terminal_states(
    data: AnnData | HasAnnData,
    states: TerminalStates,
    basis: str = "umap",
    *,
    size: float | None = None,
    **figure: Unpack[FigureOptions],
) -> list[Axes] | None:
    """Draw suggested terminal states in an embedding, and the evidence for all groups that were considered.

    The second panel has one row for each group, with its number of cells. At an end hardly any way to other cells leads
    through the group, or the flow stays: ``stay`` is above 1.

    Parameters
    ----------
    data
        The kernel, or its AnnData.
    states
        The suggestion: the result of ``vk.suggest_terminal_states(...)``, as it is or changed.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``.
    size
        Area of the cells in square points; by default smaller the more there are.

    Returns
    -------
    The two Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding is missing, or cells of a state are not those of the data.
    TypeError
        If the states have no evidence.

    Examples
    --------
    >>> states = vk.suggest_terminal_states("clusters")
    >>> cells, evidence = pl.terminal_states(vk, states, show=False)
    """
    adata = adata_of(data)
    if not isinstance(states, TerminalStates):
        raise TypeError(f"Expected the result of `suggest_terminal_states`, found `{type(states).__name__}`.")
    x, name = read_embedding(adata, basis)
    of_cell = np.full(adata.n_obs, None, dtype=object)
    for state, cells in states.items():
        of_cell[rows_of_state(adata, state, cells)] = state
    values = pd.Categorical(of_cell, categories=list(states))
    colors = _as_clusters(adata, states)
    with drawing(figure, n_panels=2, panel_size=(5.0, 4.0)) as canvas:
        draw_categories(canvas.panels[0], x, name, values, colors, size=size)
        canvas.panels[0].set_title("Suggested terminal states")
        _draw_evidence(canvas.panels[1], states, colors)
    return canvas.result


def _as_clusters(adata: AnnData, states: TerminalStates) -> dict[str, str]:
    """Return the colour of each state: that of the cluster with its name, or one that no cluster has."""
    key = states.to_frame().attrs.get("cluster_key")
    clusters = palette_of(adata, key, list(read_clusters(adata, key).cat.categories)) if key in adata.obs else {}
    known = {str(name): color for name, color in clusters.items()}
    free = iter(palette(len(known) + len(states))[len(known) :])
    return {name: known.get(name) or next(free) for name in states}


def _draw_evidence(ax: Axes, states: TerminalStates, colors: dict[str, Any]) -> None:
    """Draw one row for each group, at the ways that lead through it, with its verdict."""
    table = states.to_frame()
    named = table["from"] == "cluster"
    shown = table[named | ~table["group"].isin(table.loc[named, "group"])].iloc[::-1].reset_index(drop=True)
    ends = (shown["verdict"] == "end").to_numpy()
    color = [
        colors.get(group, BACKGROUND) if end else BACKGROUND for group, end in zip(shown["group"], ends, strict=True)
    ]
    rows, through = np.arange(len(shown)), np.maximum(shown["through"].to_numpy(float), NO_WAY)
    ax.hlines(rows, NO_WAY, through, color="0.85", linewidth=1.0, zorder=1)
    ax.scatter(through, rows, c=color, s=40, edgecolor=INK, linewidth=0.5, zorder=3)
    ax.axvline(table.attrs.get("max_through", 0.05), color="0.7", linewidth=0.8, linestyle=":", zorder=1)
    for row, of in zip(rows, shown.itertuples(), strict=True):
        stable = "" if np.isnan(of.stable) or of.verdict != "end" else f", in {of.stable:.0%} of halves"
        text = f"{of.verdict} (stay {of.stay:.1f}{stable})"
        ax.text(1.02, float(row), text, transform=ax.get_yaxis_transform(), va="center", fontsize=7)
    ax.set_yticks(rows, [f"{of.group or 'no cluster'}, {of.cells}" for of in shown.itertuples()], fontsize=7)
    ax.set_xscale("log")
    ax.set_xticks([NO_WAY, 0.1, 1, 10], ["0", "0.1", "1", "10"])
    ax.set(xlabel="Cells reached through it, for each of its own", xlim=(0.8 * NO_WAY, 2 * max(through.max(), 1)))
    ax.set_title("Groups that were considered")


@draws
def fate_map(
    data: AnnData | HasAnnData,
    basis: str = "umap",
    *,
    lineages: str | Sequence[str] | None = None,
    backward: bool | None = None,
    n_columns: int | None = None,
    size: float | None = None,
    cmap: str | Colormap = PROBABILITY,
    **figure: Unpack[FigureOptions],
) -> list[Axes] | None:
    """Draw the fate probabilities, one panel for each lineage, all on the scale from 0 to 1.

    Parameters
    ----------
    data
        An estimator with its fate probabilities, or its AnnData.
    basis
        Key in ``adata.obsm`` of the embedding, with or without ``X_``.
    lineages
        Names of the lineages to draw; all where not given.
    backward
        Direction of the process; that of the estimator, or forward, where not given.
    n_columns
        Number of panels in a row, at most; 3 where not given, or 2 for four lineages.
    size
        Area of the cells in square points; by default smaller the more there are.
    cmap
        Colours of the probability.

    Returns
    -------
    The list of Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the embedding, the fate probabilities or a lineage is missing.
    ValueError
        If the number of Axes is not that of the lineages.

    Examples
    --------
    >>> g = cr.estimators.GPCCA(vk)
    >>> _ = g.set_terminal_states(vk.suggest_terminal_states("clusters"))
    >>> _ = g.compute_fate_probabilities(use_petsc=False, solver="direct")
    >>> len(pl.fate_map(g, show=False))  # fates A and B
    2
    """
    adata = adata_of(data)
    x, name = read_embedding(adata, basis)
    table = fate_probabilities(data, backward=backward)
    chosen = list(table.columns) if lineages is None else [lineages] if isinstance(lineages, str) else list(lineages)
    for lineage in chosen:
        check_known("lineages", lineage, table.columns)
    n_columns = n_columns or (2 if len(chosen) == 4 else 3)
    look: dict[str, Any] = {"label": None, "cmap": cmap, "limits": (0.0, 1.0), "size": size}
    with drawing(figure, n_panels=len(chosen), n_columns=n_columns, panel_size=(2.9, 2.6)) as canvas:
        for panel, lineage in zip(canvas.panels, chosen, strict=True):
            scale = draw_values(panel, x, name, table[lineage].to_numpy(), **look)
            panel.set_title(lineage)
        color_bar(scale, canvas.panels, "Fate probability")
    return canvas.result


def fate_probabilities(data: AnnData | HasAnnData, *, backward: bool | None = None) -> pd.DataFrame:
    """Return the fate probabilities that CellRank wrote, one row for each cell and one column for each lineage.

    ``data`` is an AnnData, a kernel or an estimator. ``backward`` says whether they are of a backward kernel: as
    ``data`` is where not given, and forward for an AnnData. A file forgets the names of the lineages, which are then
    those of the terminal states.
    """
    adata, suffix = adata_of(data), suffix_of(data, backward)
    key = f"lineages_{suffix}"
    check_known("adata.obsm", key, adata.obsm.keys(), "Compute it with `GPCCA.compute_fate_probabilities()`.")
    stored: Any = adata.obsm[key]
    values: NDArray[np.float64] = np.asarray(getattr(stored, "X", stored), dtype=np.float64)
    names = getattr(stored, "names", None)
    if names is None and f"term_states_{suffix}" in adata.obs:
        names = adata.obs[f"term_states_{suffix}"].cat.categories
    if names is None or len(names) != values.shape[1]:
        names = [f"Lineage {i + 1}" for i in range(values.shape[1])]
    return pd.DataFrame(values, index=adata.obs_names, columns=[str(lineage) for lineage in names])
