"""The method of the kernel that follows genes along lineages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc

from cellrank_velot._utils.validation import check_known
from cellrank_velot.cells import gene_names, read_fates, read_time
from cellrank_velot.fates import GeneTrends, TrendOptions, fit_trends
from cellrank_velot.kernel._atomic import all_or_nothing
from cellrank_velot.kernel.base import BaseVelocityKernel
from cellrank_velot.kernel.dynamics import clusters_for
from cellrank_velot.plotting.fates import fate_probabilities

__all__ = ["Trends"]


class Trends(BaseVelocityKernel):
    """Methods of the kernel on trends of genes."""

    @all_or_nothing()
    def gene_trends(
        self,
        genes: Sequence[str] | str,
        fates: Any = None,
        lineages: Sequence[str] | str | None = None,
        *,
        time_key: str | None = None,
        layer: str | None = None,
        cluster_key: str | None = None,
        n_points: int = TrendOptions.n_points,
        n_splines: int = TrendOptions.n_splines,
        level: float = TrendOptions.level,
    ) -> GeneTrends:
        """Follow genes along lineages: a smooth curve of expression over time, in which cells count by their fate.

        The curve is a generalised additive model with Gaussian noise: a penalised cubic spline, whose penalty is chosen
        for each gene and lineage by generalised cross-validation. A lineage begins and ends with its cells.

        Parameters
        ----------
        genes
            Names or symbols of genes, or a boolean column of ``adata.var``.
        fates
            Probability of each cell to take each lineage: a table with one row for each cell and one column for each
            lineage; CellRank's fate probabilities, or an estimator that has them; or the result of
            ``fate_probabilities`` of cells of a time series. Cells without a row do not count. Where not given, what an
            estimator wrote to the AnnData.
        lineages
            Lineages to follow; all where not given.
        time_key
            Column of ``adata.obs`` with the time; that of the kernel where not given.
        layer
            Layer of the expression; ``adata.X`` where not given. Logarithms suit the noise better than counts.
        cluster_key
            Key in ``adata.obs`` of the clusters that label the times; that of the kernel, or ``"clusters"``, where not
            given.
        n_points
            Number of times of each lineage.
        n_splines
            Number of basis functions, at least 4. More let a gene change faster.
        level
            Share of the intervals that hold the mean expression, in ``(0, 1)``. The interval is that of a sample of
            cells, given their times and fates: it holds neither their errors nor what samples differ in.

        Returns
        -------
        The trends. ``to_frame()`` is a long table, ``wide(lineage)`` a matrix, ``peaks()`` when each gene is highest.

        Raises
        ------
        KeyError
            If genes, fates, a lineage, the time, the layer or the clusters are missing.
        TypeError
            If an option is not a number.
        ValueError
            If the fates are not those of cells by name, or an option is out of range.

        Examples
        --------
        >>> g = cr.estimators.GPCCA(vk)
        >>> _ = g.set_terminal_states(vk.suggest_terminal_states("clusters"))
        >>> _ = g.compute_fate_probabilities(use_petsc=False, solver="direct")
        >>> trends = vk.gene_trends(["Stem", "FateA", "FateB"])
        >>> bool(trends.peaks().loc["Stem"].max() < 0.3)
        True
        >>> trends.to_frame().to_csv("trends.csv", index=False)
        """
        options = TrendOptions(n_points=n_points, n_splines=n_splines, level=level)
        names = gene_names(self.adata, [genes] if isinstance(genes, str) and genes not in self.adata.var else genes)
        table = self._fate_table(fates)
        chosen = table.columns if lineages is None else [lineages] if isinstance(lineages, str) else list(lineages)
        for lineage in chosen:
            check_known("lineages", lineage, table.columns)
        clusters = clusters_for(self, cluster_key)[0]
        return fit_trends(
            self.cells.time if time_key is None else read_time(self.adata, time_key),
            sc.get.obs_df(self.adata, names, layer=layer).to_numpy(dtype=np.float64),
            np.clip(np.nan_to_num(table[list(chosen)].to_numpy(dtype=np.float64)), 0, 1),
            list(map(str, chosen)),
            names,
            None if clusters is None else clusters.astype(object).fillna("").to_numpy(dtype=np.str_),
            options,
        )

    # ---------------------------------------------------------------------------------------------------- private
    def _fate_table(self, fates: Any) -> pd.DataFrame:
        """Return the fates as a table with one row for each cell."""
        return fate_probabilities(self) if fates is None else read_fates(self.adata, fates)
