"""Which cells are judged by which sisters: early cells, and what later cells of their clones became."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_known
from cellrank_velot.cells import (
    CellSelector,
    find_cluster_key,
    read_clones,
    read_clusters,
    read_fates,
    read_time,
    select_cells,
)

__all__ = ["Sisters", "Tables", "find_sisters", "read_tables"]

logger = logging.getLogger("cellrank_velot")

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Usual columns of the time points, and as many as snapshots may have.
TIMES, MOST_TIMES = ("day", "time", "hours", "age", "experimental_time", "time_info"), 20
REST = "rest"
# What CellRank adds to the name of a cluster that has several terminal states.
NUMBERED = re.compile(r"_\d+$")


@dataclass(frozen=True, eq=False)
class Sisters:
    """Early cells whose later sisters are known, and the number of these sisters with each outcome.

    A unit is the early cells of a clone at one time: they are judged by the same sisters. A group is the sisters of one
    unit that were kept together, or measured at one time.
    """

    names: list[str]
    cells: IntArray  # [n] rows in the AnnData
    unit: IntArray  # [n]
    clone: IntArray  # [n_units]
    time: FloatArray  # [n_units] of the early cells
    first: NDArray[np.bool_]  # [n_units] whether it is the earliest one of its clone
    group_unit: IntArray  # [n_groups]
    group_counts: FloatArray  # [n_groups, n_fates]
    clone_names: NDArray[np.str_]
    fates: dict[str, FloatArray]  # [n, n_fates] by source

    @property
    def counts(self) -> FloatArray:
        """Sisters of each unit by outcome, ``[n_units, n_fates]``."""
        return self.summed(self.group_counts)

    @property
    def n_clones(self) -> int:
        """Number of clones with judged cells."""
        return int(np.unique(self.clone).size)

    @property
    def unit_size(self) -> FloatArray:
        """Number of early cells of each unit."""
        return np.bincount(self.unit, minlength=self.clone.size).astype(np.float64)

    def summed(self, of_groups: FloatArray) -> FloatArray:
        """Sum over the groups of each unit."""
        return _sums(self.group_unit, of_groups, self.clone.size)

    def mean(self, of_cells: FloatArray) -> FloatArray:
        """Average over the early cells of each unit, ``[n_units, n_fates]``."""
        return _sums(self.unit, of_cells, self.clone.size) / self.unit_size[:, None]

    def of_clones(self, clones: NDArray[np.bool_]) -> Sisters:
        """Return the part of these clones; the mask is over all clones."""
        return self.of_units(clones[self.clone])

    def of_units(self, kept: NDArray[np.bool_]) -> Sisters:
        """Return the part of these units."""
        units = np.cumsum(kept) - 1
        cells, groups = kept[self.unit], kept[self.group_unit]
        return replace(
            self,
            cells=self.cells[cells],
            unit=units[self.unit[cells]],
            clone=self.clone[kept],
            time=self.time[kept],
            first=self.first[kept],
            group_unit=units[self.group_unit[groups]],
            group_counts=self.group_counts[groups],
            fates={name: values[cells] for name, values in self.fates.items()},
        )


def _sums(of: IntArray, values: FloatArray, n: int) -> FloatArray:
    """Sum rows by the number that each has."""
    return np.stack([np.bincount(of, column, minlength=n) for column in values.T], axis=1)


@dataclass(frozen=True, eq=False)
class Tables:
    """Fates by source, and what the outcome of each cell is, -1 for none."""

    names: list[str]
    fates: dict[str, FloatArray]  # [n_cells, n_fates], rows sum to one or are NaN
    outcome: IntArray  # [n_cells]
    whole: dict[str, pd.DataFrame]  # as they were given, of all fates


def read_tables(adata: AnnData, fates: Any, cluster_key: str | None, lineages: Sequence[str] | None) -> Tables:
    """Read fates of one source or several, and the clusters that say what a cell became."""
    sources = dict(fates) if isinstance(fates, Mapping) else {"fates": fates}
    if not sources:
        raise ValueError("Expected at least one source of fates, found none.")
    read = {str(name): read_fates(adata, source) for name, source in sources.items()}
    key = find_cluster_key(adata, cluster_key, "state_info" if "state_info" in adata.obs else None)
    if key is None:
        raise KeyError(
            f"Expected `cluster_key`, what cells became, found none; `adata.obs` has the keys "
            f"{sorted(map(str, adata.obs.columns))}."
        )
    clusters = read_clusters(adata, key)
    known = [str(name) for name in clusters.cat.categories]
    read = {name: _joined(table, known) for name, table in read.items()}
    columns = list(dict.fromkeys(name for table in read.values() for name in table))
    names = [name for name in columns if name != REST] if lineages is None else [str(name) for name in lineages]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise KeyError(
            f"Expected fates that are clusters of `adata.obs[{key!r}]`, {known}, found {unknown}. Name those to judge "
            "as `lineages`, or rename the columns."
        )
    if len(names) < 2:
        raise ValueError(f"Expected at least two fates, found {names}: the outcome of one is certain.")
    for source, table in read.items():
        for name in names:
            check_known(f"fates of {source!r}", name, table.columns)
    values = {}
    for source, table in read.items():
        one = table[names].to_numpy(dtype=np.float64)
        total = one.sum(axis=1, keepdims=True)
        values[source] = np.divide(one, total, out=np.full_like(one, np.nan), where=total > 0)
    # Clusters are unique; a cell without one, or of one that is no fate, has the outcome -1.
    of_cluster = np.append(pd.Index(names).get_indexer(known), -1)
    outcome = of_cluster[clusters.cat.codes.to_numpy()]
    return Tables(names, values, np.asarray(outcome, dtype=np.int64), read)


def _joined(table: pd.DataFrame, known: Sequence[str]) -> pd.DataFrame:
    """Sum what CellRank has numbered, such as ``"Neu_1"`` and ``"Neu_2"``, under the name of the cluster."""
    short = {name: NUMBERED.sub("", name) for name in table if name not in known}
    names = [short[name] if short.get(name) in known else name for name in table]
    if names == list(table.columns):
        return table
    return table.T.groupby(names, sort=False).sum(min_count=1).T


def find_sisters(
    adata: AnnData,
    tables: Tables,
    clone_key: str | None,
    *,
    time_key: str | None,
    early: CellSelector | None,
    late: CellSelector | None,
    split_key: str | None = None,
) -> Sisters:
    """Find the early cells that have fates and later sisters, and count these sisters by outcome."""
    codes, clone_names = read_clones(adata, clone_key)
    time = _times(adata, time_key)
    has_fates = np.logical_and.reduce([np.isfinite(values).all(axis=1) for values in tables.fates.values()])
    is_late = tables.outcome >= 0 if late is None else select_cells(adata, late) & (tables.outcome >= 0)
    is_early = _first(has_fates & (tables.outcome < 0), time) if early is None else select_cells(adata, early)
    if early is not None and late is not None and (is_early & is_late).any():
        raise ValueError(
            f"Expected cells either in `early` or in `late`, found `{(is_early & is_late).sum()}` in both."
        )
    is_late &= ~is_early
    split = _splits(adata, split_key)
    early_ix = np.flatnonzero(is_early & has_fates & (codes >= 0))
    late_ix = np.flatnonzero(is_late & (codes >= 0))
    # Groups of late cells: clone, time and split.
    keys = np.stack([codes[late_ix], np.unique(time, return_inverse=True)[1][late_ix], split[late_ix]])
    groups, of = np.unique(keys, axis=1, return_inverse=True)
    counts = np.zeros((groups.shape[1], len(tables.names)))
    np.add.at(counts, (of.ravel(), tables.outcome[late_ix]), 1.0)
    points, now = np.unique(time), np.unique(time, return_inverse=True)[1]
    cells, units, unit_clone, unit_time, first, group_unit, group_counts = [], [], [], [], [], [], []
    n_units, seen = 0, np.zeros(clone_names.size, dtype=bool)
    for point in np.unique(now[early_ix]):
        here = early_ix[now[early_ix] == point]
        after = groups[1] > point if points.size > 1 else np.ones(groups.shape[1], dtype=bool)
        both = np.intersect1d(codes[here], groups[0, after])
        place = np.full(clone_names.size, -1)
        place[both] = np.arange(both.size) + n_units
        here = here[place[codes[here]] >= 0]
        kept = np.flatnonzero(after & (place[groups[0]] >= 0))
        cells.append(here)
        units.append(place[codes[here]])
        unit_clone.append(both)
        unit_time.append(np.full(both.size, points[point]))
        first.append(~seen[both])
        group_unit.append(place[groups[0, kept]])
        group_counts.append(counts[kept])
        seen[both] = True
        n_units += both.size
    if not n_units:
        raise ValueError(
            f"Expected early cells with later sisters in one of {tables.names}, found none: `{early_ix.size}` early "
            f"cells and `{late_ix.size}` late ones with a clone, and none share one. Pass `early` and `late`."
        )
    at = np.concatenate(cells)
    return Sisters(
        names=tables.names,
        cells=at,
        unit=np.concatenate(units),
        clone=np.concatenate(unit_clone),
        time=np.concatenate(unit_time),
        first=np.concatenate(first),
        group_unit=np.concatenate(group_unit),
        group_counts=np.concatenate(group_counts),
        clone_names=clone_names,
        fates={name: values[at] for name, values in tables.fates.items()},
    )


def _first(possible: NDArray[np.bool_], time: FloatArray) -> NDArray[np.bool_]:
    """Return the cells of the first time among those that are possible."""
    return possible & (time == time[possible].min()) if possible.any() else possible


def _times(adata: AnnData, time_key: str | None) -> FloatArray:
    """Return the time of each cell; zeros where there are no time points."""
    if time_key is not None:
        return read_time(adata, time_key)
    for key in TIMES:
        if key in adata.obs and 1 < adata.obs[key].nunique() <= MOST_TIMES:
            try:
                time = read_time(adata, key)
            except (TypeError, ValueError):  # an age such as "young", which nobody asked for
                continue
            logger.info("Sisters are later by `adata.obs[%r]`", key)
            return time
    return np.zeros(adata.n_obs)


def _splits(adata: AnnData, split_key: str | None) -> IntArray:
    """Return in which well each cell was, as a number; -1 for none."""
    if split_key is None:
        return np.zeros(adata.n_obs, dtype=np.int64)
    return np.asarray(read_clusters(adata, split_key).cat.codes, dtype=np.int64)
