"""Conditions with replicates: reads cells, fates and samples of a kernel, and compares the conditions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from numpy.typing import NDArray

from cellrank_velot._utils.options import Run
from cellrank_velot._utils.validation import check_flag
from cellrank_velot.cells import gene_names, read_clusters
from cellrank_velot.conditions import ComparisonOptions, ConditionComparison, Design, MeasuredCells, TestKind, compare
from cellrank_velot.field.uncertainty import part_velocities
from cellrank_velot.kernel.base import BaseVelocityKernel
from cellrank_velot.kernel.dynamics import clusters_for

__all__ = ["compare_conditions"]

logger = logging.getLogger("cellrank_velot")

FloatArray = NDArray[np.float64]


def compare_conditions(
    kernel: Any,
    condition_key: str,
    sample_key: str,
    *,
    fates: Any = None,
    genes: Sequence[str] | str | None = None,
    reference: str | None = None,
    pair_key: str | None = None,
    cluster_key: str | None = None,
    separate_fields: bool = False,
    layer: str | None = None,
    test: TestKind = ComparisonOptions.test,
    n_permutations: int = ComparisonOptions.n_permutations,
    min_cells: int = ComparisonOptions.min_cells,
    level: float = ComparisonOptions.level,
    random_state: int = ComparisonOptions.random_state,
    key_added: str | None = None,
    n_jobs: int | None = None,
    show_progress_bar: bool = True,
) -> ConditionComparison:
    """Compare conditions: fates, shares of cells, velocities and genes, with the sample as the unit.

    One field and one set of ends serve all cells. So fates mean the same under all conditions, and a condition changes
    where its cells are. A shift of a decision shows in the *lineage share* of each sample: the chances of the fates for
    which its cells stand most likely where they stand :cite:`saerens:02`. Mean fates of a cluster say whether its cells
    stand nearer to one end.

    Each sample is summed up in one number for each measure. Differences, intervals and tests are over samples: cells of
    one sample are no replicates of each other. Shares are compared as the arc sine of their root, speeds as logarithms.
    p-values are adjusted for all tests of the same measure :cite:`benjamini:95`; of two lineages, which mirror each
    other, one counts. The column ``q_all`` is adjusted for all measures, for those who look at all of them.

    Parameters
    ----------
    kernel
        The kernel, with its field.
    condition_key
        Column of ``adata.obs`` with the condition of each cell.
    sample_key
        Column of ``adata.obs`` with the sample of each cell: the animal, the donor, the culture. Each belongs to one
        condition.
    fates
        Probability of each cell to take each lineage: CellRank's fate probabilities, or an estimator that has them; or
        a table with one row for each cell and one column for each lineage. Cells without a row have no fates. Where not
        given, what an estimator wrote to the AnnData.
    genes
        Names or symbols of genes whose trends are compared, or a boolean column of ``adata.var``; none where not given.
        With a pseudotime, their mean along each lineage and their rise over it; with time points, their mean.
    reference
        Condition that all others are compared with; where not given the first, in the order of the categories.
    pair_key
        Column of ``adata.obs`` with what pairs samples of both sides, such as the donor. Then differences within pairs
        are tested, and samples without a partner do not count.
    cluster_key
        Column of ``adata.obs`` with the clusters; that of the kernel, or ``"clusters"``, where not given.
    separate_fields
        Whether to fit a field to each sample alone, and to compare these at the positions of all cells. Otherwise
        velocities are those of the one field, which differ between conditions only as far as their cells lie elsewhere.
        It needs a pseudotime, and some hundred cells of each sample.
    layer
        Layer of the expression; ``adata.X`` where not given. Logarithms suit it better than counts.
    test
        ``"permutation"`` of the samples' labels; ``"t"`` tests of their means, without equal variances
        :cite:`welch:47`; or ``"auto"``, permutation where there are enough samples for one finding to come to 1 %
        after the adjustment, and t tests otherwise. t tests of 20 genes or more have variances moderated over the genes
        :cite:`smyth:04`.
    n_permutations
        Number of permutations drawn where there are more than 20 000; up to there all are counted.
    min_cells
        Number of cells that a sample must have, and below which it has no value for a cluster or a lineage.
    level
        Share of the intervals that hold the difference, in ``(0, 1)``.
    random_state
        Seed of the permutations, and of the separate fields.
    key_added
        Key in ``adata.uns`` to write the tables to; by default nothing is written.
    n_jobs
        Number of jobs that fit separate fields.
    show_progress_bar
        Whether to show a progress bar for separate fields.

    Returns
    -------
    The comparison, with the tables ``fates``, ``shares``, ``velocity`` and ``genes``; ``samples`` has the values of
    each sample, and ``found`` what holds at 5 %. With time points, each is compared by itself.

    Raises
    ------
    KeyError
        If a column, the fates, the reference or a gene is missing.
    RuntimeError
        If the field was not fitted, or the kernel is a backward one.
    TypeError
        If an option is not a number, or the kernel is none of this package.
    ValueError
        If a cell has no condition or sample, if there is one condition only, if a sample is in two conditions or has
        too few cells, or if an option is out of range.

    Examples
    --------
    >>> sample = np.arange(300) % 6  # three of each condition
    >>> adata.obs["sample"] = sample.astype(str)
    >>> adata.obs["condition"] = np.where(sample < 3, "control", "treated")
    >>> fates = adata.obs["clusters"].str.get_dummies()[["Fate A", "Fate B"]]
    >>> found = compare_conditions(vk, "condition", "sample", fates=fates)
    >>> found.shares.columns[:4].tolist()
    ['measure', 'cluster', 'lineage', 'condition']
    >>> len(found.found)  # samples were drawn at random
    0
    >>> found.design.to_frame()["condition"].value_counts().to_dict()
    {'control': 3, 'treated': 3}
    >>> ax = pl.condition_fates(found, show=False)
    """
    if not isinstance(kernel, BaseVelocityKernel):
        raise TypeError(f"Expected a kernel of this package, found `{type(kernel).__name__}`.")
    options = ComparisonOptions(
        test=test, n_permutations=n_permutations, min_cells=min_cells, level=level, random_state=random_state
    )
    if kernel.backward:
        raise RuntimeError("Expected a forward kernel for fates, found a backward one.")
    separate = check_flag("separate_fields", separate_fields)
    if separate and kernel.cells.is_series:
        raise ValueError("Expected a pseudotime for `separate_fields`, found time points.")
    kernel._needed("field", "fit_field")
    design = _read_design(kernel, condition_key, sample_key, pair_key, reference, min_cells)
    cells: dict[str, Any] = _read_cells(kernel, fates, cluster_key, genes, layer)
    run = Run(n_jobs=n_jobs, show_progress_bar=show_progress_bar)
    if separate:
        cells["of_sample"] = _of_samples(kernel, design, random_state, run)
    else:
        cells["velocity"] = kernel.velocity
    result = compare(MeasuredCells(**cells), design, options)
    if key_added is not None:
        kernel.adata.uns[key_added] = {
            "table": result.table,
            "samples": result.samples,
            "design": result.design.to_frame(),
            "params": {**options.to_dict(), "condition_key": condition_key, "sample_key": sample_key},
        }
    return result


def _read_design(
    kernel: BaseVelocityKernel,
    condition_key: str,
    sample_key: str,
    pair_key: str | None,
    reference: str | None,
    min_cells: int,
) -> Design:
    adata = kernel.adata
    condition, sample = (read_clusters(adata, key) for key in (condition_key, sample_key))
    pair = None if pair_key is None else read_clusters(adata, pair_key)
    return Design.of(condition, sample, pair, reference, min_cells)


def _read_cells(
    kernel: Any, fates: Any, cluster_key: str | None, genes: Sequence[str] | str | None, layer: str | None
) -> dict[str, Any]:
    """Return what is known of the cells but for their velocity."""
    adata, cells = kernel.adata, kernel.cells
    table = kernel._fate_table(fates)
    clusters = clusters_for(kernel, cluster_key)[0]
    if clusters is None:
        codes, names = np.zeros(adata.n_obs, dtype=np.int64), ["all cells"]
    else:
        clusters = pd.Categorical(clusters).remove_unused_categories()
        codes, names = clusters.codes.astype(np.int64), [str(name) for name in clusters.categories]
    found: dict[str, Any] = {
        "fates": table.to_numpy(dtype=np.float64),
        "lineages": [str(name) for name in table.columns],
        "cluster": codes,
        "clusters": names,
        "time": np.asarray(cells.time, dtype=np.float64),
        "points": cells.time_points if cells.is_series else None,
    }
    if genes is not None:
        known = [genes] if isinstance(genes, str) and genes not in adata.var else genes
        found["genes"] = gene_names(adata, known)
        found["expression"] = sc.get.obs_df(adata, found["genes"], layer=layer).to_numpy(dtype=np.float64)
    return found


def _of_samples(kernel: Any, design: Design, random_state: int, run: Run) -> FloatArray:
    """Return the velocity of all cells by the field of each sample, shape ``[n_samples, n_cells, n_dims]``."""
    parts = [np.flatnonzero(design.sample == number) for number in range(design.n_samples)]
    found = part_velocities(
        kernel.cells.x,
        kernel.cells.time,
        kernel.connectivities,
        kernel._needed("windows", "compute_windows"),
        parts,
        random_state,
        steps=kernel._steps(),
        labels=kernel.cells.labels,
        components=kernel._components,
        run=run,
        called="single samples",
    )
    with closing(found):
        return np.stack(list(found))
