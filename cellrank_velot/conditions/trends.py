"""Trends of genes along each lineage, one for each sample, and what a sample's trend is summed up in."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.stage import Stage
from cellrank_velot.fates.trends import TrendOptions, fit_smooth

__all__ = ["SampleTrends", "fit_samples"]

logger = logging.getLogger("cellrank_velot")

FloatArray = NDArray[np.float64]

N_POINTS, N_SPLINES = 50, 6
# Share of a lineage over which samples must have cells in common; with less, they are hardly compared.
LITTLE = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class SampleTrends(Stage):
    """Expression of genes along lineages, of each sample.

    Attributes
    ----------
    lineages
        Names of the lineages, shape ``[n_lineages]``.
    genes
        Names of the genes, shape ``[n_genes]``.
    time
        Times of the points of each lineage, shape ``[n_lineages, n_points]``.
    mean
        Expression there, shape ``[n_samples, n_lineages, n_points, n_genes]``; NaN beyond the cells of the sample.
    """

    lineages: NDArray[np.str_]
    genes: NDArray[np.str_]
    time: FloatArray
    mean: FloatArray

    @property
    def level(self) -> FloatArray:
        """Mean expression over the times that all samples have, shape ``[n_samples, n_lineages, n_genes]``."""
        return self._summed()[0]

    @property
    def rise(self) -> FloatArray:
        """Rise of the straight line through it over these times, shape ``[n_samples, n_lineages, n_genes]``."""
        return self._summed()[1]

    def _summed(self) -> tuple[FloatArray, FloatArray]:
        shape = (*self.mean.shape[:2], self.genes.size)
        level, rise = np.full(shape, np.nan), np.full(shape, np.nan)
        for number in range(self.lineages.size):
            curves = self.mean[:, number]
            has = np.isfinite(curves).any(axis=(1, 2))
            common = np.isfinite(curves[has]).all(axis=(0, 2)) if has.any() else np.zeros(curves.shape[1], dtype=bool)
            if common.sum() < 2:
                continue
            time = self.time[number, common]
            weight = time - time.mean()
            weight = weight / (weight @ weight) * (time[-1] - time[0])
            level[has, number] = curves[has][:, common].mean(axis=1)
            rise[has, number] = np.einsum("t,stg->sg", weight, curves[has][:, common])
        return level, rise


def fit_samples(
    time: FloatArray,
    expression: FloatArray,
    fates: FloatArray,
    sample: NDArray[np.int64],
    names: tuple[Sequence[str], Sequence[str], Sequence[str]],
    min_cells: int,
) -> SampleTrends:
    """Fit the trends of each sample; ``names`` are those of samples, lineages and genes.

    A sample with fewer cells on a lineage than ``min_cells``, by the sum of their fates, has none there.
    """
    samples, lineages, genes = names
    options = TrendOptions(n_points=N_POINTS, n_splines=N_SPLINES)
    grids = np.empty((len(lineages), N_POINTS))
    mean = np.full((len(samples), len(lineages), N_POINTS, len(genes)), np.nan)
    for number, lineage in enumerate(lineages):
        weight = np.clip(np.nan_to_num(fates[:, number]), 0, 1)
        whole = fit_smooth(time, np.zeros((time.size, 1)), weight, options)
        grids[number] = grid = whole.time
        for one in range(len(samples)):
            here = sample == one
            if weight[here].sum() < min_cells:
                continue
            found = fit_smooth(time[here], expression[here], weight[here], options)
            inside = (grid >= found.time[0]) & (grid <= found.time[-1])
            for gene in range(len(genes)):
                mean[one, number, inside, gene] = np.interp(grid[inside], found.time, found.mean[:, gene])
        has = np.isfinite(mean[:, number]).any(axis=(1, 2))
        shared = np.isfinite(mean[has, number]).all(axis=(0, 2)).mean() if has.any() else 1.0
        if shared < LITTLE:
            logger.warning(
                "The samples share %.0f %% of the times of lineage %r: genes are compared there alone",
                100 * shared,
                lineage,
            )
    return SampleTrends(np.array(list(lineages), dtype=np.str_), np.array(list(genes), dtype=np.str_), grids, mean)
