"""Conditions side by side: each measure of each sample, and the differences between conditions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellrank_velot.conditions import measures
from cellrank_velot.conditions.design import Design
from cellrank_velot.conditions.inference import SCALES, TestOptions, adjusted, differences
from cellrank_velot.conditions.result import KEYS, TABLES, ComparisonOptions, ConditionComparison
from cellrank_velot.conditions.trends import SampleTrends, fit_samples

__all__ = ["MeasuredCells", "compare"]

FloatArray = NDArray[np.float64]

# How far fates of two lineages may be from one in sum, and still be mirrors of each other.
WHOLE = 1e-3


@dataclass(frozen=True, kw_only=True)
class MeasuredCells:
    """What is known of the cells.

    Attributes
    ----------
    fates
        Probability of each cell to take each lineage, shape ``[n_cells, n_lineages]``, NaN for cells without fates.
    lineages
        Names of the lineages.
    cluster
        Number of the cluster of each cell, -1 for none, shape ``[n_cells]``.
    clusters
        Names of the clusters.
    time
        Time of each cell, shape ``[n_cells]``.
    velocity
        Velocity of each cell, shape ``[n_cells, n_dims]``.
    of_sample
        Velocity of all cells by the field of each sample, shape ``[n_samples, n_cells, n_dims]``, in place of it.
    expression
        Expression of genes, shape ``[n_cells, n_genes]``.
    genes
        Names of the genes.
    points
        Time points of a time series, each compared by itself; none for a pseudotime.
    """

    fates: FloatArray
    lineages: Sequence[str]
    cluster: NDArray[np.int64]
    clusters: Sequence[str]
    time: FloatArray
    velocity: FloatArray | None = None
    of_sample: FloatArray | None = None
    expression: FloatArray | None = None
    genes: Sequence[str] = ()
    points: FloatArray | None = None


def compare(
    cells: MeasuredCells, design: Design, options: ComparisonOptions = ComparisonOptions()
) -> ConditionComparison:
    """Measure each sample, and compare the conditions with the reference; at each time point of a series by itself."""
    chosen = measures.commitment(cells.fates, cells.time)
    start = measures.start_fates(cells.fates, cells.time)
    trends = None
    if cells.points is None and cells.expression is not None:
        names = ([str(name) for name in design.samples], cells.lineages, cells.genes)
        trends = fit_samples(cells.time, cells.expression, cells.fates, design.sample, names, options.min_cells)
    blocks: list[_Block] = []
    for point in [None] if cells.points is None else cells.points:
        here = np.ones(cells.time.size, dtype=bool) if point is None else cells.time == point
        blocks += _measured(
            cells, design, start, chosen, here, options.min_cells, trends, "" if point is None else f"{point:g}"
        )
    blocks = _joined(blocks)
    tables = [
        _compared(block, design, number, options.tests())
        for number in range(1, design.conditions.size)
        for block in blocks
    ]
    long = pd.concat([block.samples(design) for block in blocks], ignore_index=True)
    fields = None
    if cells.of_sample is not None:
        groups = [design.of_condition(number) for number in range(design.conditions.size)]
        fields = np.stack([cells.of_sample[group].mean(axis=0) for group in groups])
    table = _adjusted_for_all(pd.concat(tables, ignore_index=True))
    return ConditionComparison(table, long, design, options, trends, fields)


@dataclass(frozen=True)
class _Block:
    """Values of one measure, shape ``[n_samples, n_columns]``, and what its columns are of.

    Of two lineages one is the mirror of the other, so each second column is no test of its own.
    """

    measure: str
    values: FloatArray
    of: pd.DataFrame
    scale: str
    cells: FloatArray | None = None
    mirrored: bool = False

    def samples(self, design: Design) -> pd.DataFrame:
        """Return one row for each sample and column."""
        n, m = self.values.shape
        rows = self.of.iloc[np.tile(np.arange(m), n)].reset_index(drop=True)
        rows.insert(0, "measure", self.measure)
        cells = design.sizes[:, None] if self.cells is None else self.cells
        found = rows.assign(
            sample=np.repeat(design.samples, m),
            condition=np.repeat(design.conditions[design.condition], m),
            cells=np.broadcast_to(np.asarray(cells, dtype=np.float64), self.values.shape).ravel(),
            value=self.values.ravel(),
        )
        return found.dropna(subset="value").reset_index(drop=True)


def _measured(
    cells: MeasuredCells,
    design: Design,
    start: FloatArray,
    chosen: FloatArray,
    here: NDArray[np.bool_],
    min_cells: int,
    trends: SampleTrends | None,
    time: str,
) -> Iterator[_Block]:
    """Yield all measures of the cells ``here``."""
    n, k = design.n_samples, len(cells.clusters)
    sample, group, fates = design.sample[here], cells.cluster[here], cells.fates[here]
    present = np.bincount(sample, minlength=n) >= min_cells
    number = measures.counts(sample, group, n, k)
    of_cluster = _of(time, cluster=cells.clusters)
    if len(cells.lineages) > 1:
        known = measures.has_fates(cells.fates)
        mirrored = len(cells.lineages) == 2 and np.allclose(cells.fates[known].sum(axis=1), 1, atol=WHOLE)
        means = measures.mean_fates(sample, group, fates, n, k, min_cells)
        both = _of(time, cluster=np.repeat(cells.clusters, len(cells.lineages)), lineage=[*cells.lineages] * k)
        of_both = np.repeat(number, len(cells.lineages), axis=1)
        yield _Block("fate", means.reshape(n, -1), both, "share", of_both, mirrored)
        shares, committed = measures.lineage_shares(sample, fates, start, chosen[here], n, min_cells)
        yield _Block("lineage share", shares, _of(time, lineage=cells.lineages), "share", committed[:, None], mirrored)
    if k > 1:
        shares = measures.cluster_shares(sample, group, n, k)
        shares[~present] = np.nan
        yield _Block("cluster share", shares, of_cluster, "share")
    yield from _velocities(cells, design, here, min_cells, of_cluster, number)
    if trends is not None:
        of_gene = _of(
            time, lineage=np.repeat(cells.lineages, len(cells.genes)), gene=[*cells.genes] * len(cells.lineages)
        )
        yield _Block("expression", trends.level.reshape(n, -1), of_gene, "plain")
        yield _Block("rise", trends.rise.reshape(n, -1), of_gene, "plain")
    elif cells.expression is not None:
        of_gene = _of(
            time, lineage=np.repeat(cells.lineages, len(cells.genes)), gene=[*cells.genes] * len(cells.lineages)
        )
        level = _weighted(sample, cells.expression[here], np.nan_to_num(fates), n, min_cells)
        yield _Block("expression", level.reshape(n, -1), of_gene, "plain")


def _velocities(
    cells: MeasuredCells,
    design: Design,
    here: NDArray[np.bool_],
    min_cells: int,
    of_cluster: pd.DataFrame,
    number: FloatArray,
) -> Iterator[_Block]:
    """Yield speed and rotation: of the cells of each sample, or of all cells by the field of each sample."""
    n, k = design.n_samples, len(cells.clusters)
    if cells.of_sample is not None:
        nobody = np.zeros(int(here.sum()), dtype=np.int64)
        parts = [
            measures.velocities(nobody, cells.cluster[here], field[here], 1, k, min_cells) for field in cells.of_sample
        ]
        speed, mean = (np.concatenate([part[i] for part in parts]) for i in range(2))
    elif cells.velocity is not None:
        speed, mean = measures.velocities(
            design.sample[here], cells.cluster[here], cells.velocity[here], n, k, min_cells
        )
    else:
        return
    yield _Block("speed", speed, of_cluster, "positive", number)
    yield _Block("rotation", measures.rotations(mean, design.condition), of_cluster, "plain", number)


def _weighted(
    sample: NDArray[np.int64], expression: FloatArray, fates: FloatArray, n_samples: int, min_cells: int
) -> FloatArray:
    """Return the mean expression of each sample along each lineage, shape ``[n_samples, n_lineages, n_genes]``."""
    found = np.full((n_samples, fates.shape[1], expression.shape[1]), np.nan)
    for one in range(n_samples):
        weight = fates[sample == one]
        enough = weight.sum(axis=0) >= min_cells
        if enough.any():
            found[one, enough] = (weight.T @ expression[sample == one])[enough] / weight.sum(axis=0)[enough, None]
    return found


def _of(time: str, **columns: Any) -> pd.DataFrame:
    """Return what columns of values are of: texts, empty where one has no such thing."""
    table = pd.DataFrame({name: list(map(str, values)) for name, values in columns.items()})
    return table.assign(time=time).reindex(columns=KEYS[1:], fill_value="")


def _compared(block: _Block, design: Design, number: int, options: TestOptions) -> pd.DataFrame:
    """Return the differences of one measure between one condition and the reference."""
    groups = design.of_condition(number), design.of_condition(0)
    step = 2 if block.mirrored else 1
    found = differences(
        block.values,
        *groups,
        SCALES[block.scale],
        options,
        n_tests=_n_testable(block.values[:, ::step], *groups),
        pair=design.pair if design.is_paired else None,
        moderated=block.measure in TABLES["genes"],
    )
    table = block.of.copy()
    table.insert(0, "measure", block.measure)
    table["condition"], table["reference"] = str(design.conditions[number]), str(design.conditions[0])
    table = table.assign(**found.columns())
    table.insert(table.columns.get_loc("p") + 1, "q", np.repeat(adjusted(found.p[::step]), step))
    table["mirror"] = np.arange(len(table)) % step > 0
    return table[table["difference"].notna()]


def _adjusted_for_all(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with p-values that are also adjusted for all tests between two conditions."""
    q_all, mirror = np.full(len(table), np.nan), table.pop("mirror").to_numpy(dtype=bool)
    for condition in table["condition"].unique():
        here = np.flatnonzero((table["condition"] == condition) & ~mirror)
        q_all[here] = adjusted(table["p"].to_numpy(dtype=np.float64)[here])
    # The mirror of a lineage follows it.
    q_all[mirror] = q_all[np.flatnonzero(mirror) - 1]
    table.insert(table.columns.get_loc("q") + 1, "q_all", q_all)
    return table


def _joined(blocks: Sequence[_Block]) -> list[_Block]:
    """Return one block for each measure, of all time points."""
    found = []
    for name in dict.fromkeys(block.measure for block in blocks):
        same = [block for block in blocks if block.measure == name]
        values = np.concatenate([block.values for block in same], axis=1)
        of = pd.concat([block.of for block in same], ignore_index=True)
        cells = None
        if same[0].cells is not None:
            shown = [np.broadcast_to(np.asarray(block.cells), block.values.shape) for block in same]
            cells = np.concatenate(shown, axis=1)
        found.append(_Block(name, values, of, same[0].scale, cells, same[0].mirrored))
    return found


def _n_testable(values: FloatArray, *groups: NDArray[np.int64]) -> int:
    """Return the number of columns with two samples in each group."""
    return int(np.all([np.isfinite(values[group]).sum(axis=0) >= 2 for group in groups], axis=0).sum())
