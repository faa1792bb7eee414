"""Genes along the lineages: their expression over time, weighted by the fate of the cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Unpack

import numpy as np
import scanpy as sc
from anndata import AnnData
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer

from cellrank_velot._utils.validation import check_known
from cellrank_velot.cells import by_symbol, read_time
from cellrank_velot.plotting._draw.colors import palette
from cellrank_velot.plotting._draw.figure import FigureOptions, drawing, draws
from cellrank_velot.plotting._draw.kernel import HasAnnData, adata_of
from cellrank_velot.plotting._draw.legends import BELOW, stroke
from cellrank_velot.plotting.fates import fate_probabilities

__all__ = ["gene_trends"]

FloatArray = NDArray[np.float64]

# Cubic splines over time, with a penalty that keeps them from following single cells.
N_KNOTS, PENALTY = 6, 0.2
# A line ends where this share of the lineage's cells is behind it.
SHOWN = (0.005, 0.995)
N_POINTS = 100


@draws
def gene_trends(
    data: AnnData | HasAnnData,
    genes: Mapping[str, Sequence[str]],
    time_key: str,
    *,
    backward: bool | None = None,
    n_columns: int | None = None,
    **figure: Unpack[FigureOptions],
) -> list[Axes] | None:
    """Draw how genes go along their lineage, one panel for each lineage.

    A line is the expression over time, by a cubic spline in which each cell counts by its probability to take the
    lineage. The dotted line of the same colour is that of the other cells. Both are divided by the larger of their
    highest values, so that genes of all levels are seen.

    Parameters
    ----------
    data
        An estimator with its fate probabilities, or its AnnData.
    genes
        Names of the genes to draw for each lineage, such as the first of ``compute_lineage_drivers``.
    time_key
        Column of ``adata.obs`` with the time.
    backward
        Direction of the process; that of the estimator, or forward, where not given.
    n_columns
        Number of panels in a row, at most; 3 where not given, or 2 for four lineages.

    Returns
    -------
    The list of Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If the fate probabilities, a lineage, a gene or the time is missing.
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
    adata = adata_of(data)
    table, time = fate_probabilities(data, backward=backward), read_time(adata, time_key)
    for lineage in genes:
        check_known("lineages", lineage, table.columns)
    n_columns = n_columns or (2 if len(genes) == 4 else 3)
    with drawing(figure, n_panels=len(genes), n_columns=n_columns, panel_size=(3.4, 3.4)) as canvas:
        for panel, (lineage, names) in zip(canvas.panels, genes.items(), strict=True):
            weight = np.clip(table[lineage].to_numpy(), 0, 1)
            expression = sc.get.obs_df(adata, by_symbol(adata, list(names))).to_numpy(dtype=np.float64)
            here, there = _trends(time, expression, weight), _trends(time, expression, 1 - weight)
            highest = np.maximum(here[1].max(axis=0), there[1].max(axis=0))
            scale = np.where(highest > 0, highest, 1.0)
            colors = palette(len(names))
            for (grid, values), look in ((there, {"linestyle": ":", "linewidth": 1.1}), (here, {"linewidth": 2.0})):
                for column, color in enumerate(colors):
                    panel.plot(grid, values[:, column] / scale[column], color=color, **look)
            panel.set(title=lineage, xlabel=time_key, ylabel="Expression, relative", ylim=(-0.03, 1.05))
            panel.legend(handles=[stroke(name, color) for name, color in zip(names, colors, strict=True)],
                         **{**BELOW, "bbox_to_anchor": (0.0, -0.18), "ncols": 3, "columnspacing": 1.0})  # fmt: skip
        canvas.share_labels()
    return canvas.result


def _trends(time: FloatArray, expression: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return times, shape ``[n_points]``, and the smoothed expression there, shape ``[n_points, n_genes]``."""
    weight = weight if weight.sum() > 0 else np.ones_like(weight)
    order = np.argsort(time, kind="stable")
    share = np.cumsum(weight[order]) / weight.sum()
    low, high = (time[order][min(int(np.searchsorted(share, at)), time.size - 1)] for at in SHOWN)
    grid = np.linspace(low, high if high > low else time.max(), N_POINTS)
    smoother = make_pipeline(SplineTransformer(N_KNOTS, knots="uniform"), Ridge(PENALTY))
    smoother.fit(time[:, None], expression, ridge__sample_weight=weight)
    values = smoother.predict(grid[:, None]).reshape(N_POINTS, -1)
    # A spline may swing out of the range where there are few cells; expression does not.
    return grid, np.clip(values, expression.min(axis=0), expression.max(axis=0))
