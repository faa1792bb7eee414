"""The method of the kernel that judges fates by clones, beside those of CellRank's own kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cellrank as cr
import numpy as np
import pandas as pd
import scipy.sparse as sp

from cellrank_velot._utils.validation import check_flag
from cellrank_velot.cells import CellSelector, select_cells
from cellrank_velot.clones import CloneJudgement, judge_by_clones
from cellrank_velot.clones.judge import JudgeOptions
from cellrank_velot.clones.scores import WeightBy
from cellrank_velot.clones.sisters import read_tables
from cellrank_velot.fates import absorption_probabilities
from cellrank_velot.kernel._atomic import all_or_nothing
from cellrank_velot.kernel.base import BaseVelocityKernel

__all__ = ["Clones"]

logger = logging.getLogger("cellrank_velot")


class Clones(BaseVelocityKernel):
    """Methods of the kernel on clones."""

    @all_or_nothing()
    def judge_by_clones(
        self,
        fates: Any = None,
        clone_key: str | None = None,
        *,
        references: bool = True,
        cluster_key: str | None = None,
        lineages: Sequence[str] | None = None,
        time_key: str | None = None,
        early: CellSelector | None = None,
        late: CellSelector | None = None,
        clones: Sequence[str] | None = None,
        weight_by: WeightBy = JudgeOptions.weight_by,
        n_bins: int = JudgeOptions.n_bins,
        n_bootstraps: int = JudgeOptions.n_bootstraps,
        level: float = JudgeOptions.level,
        random_state: int = JudgeOptions.random_state,
    ) -> CloneJudgement:
        """Judge fates by what sisters became, beside the fates of CellRank's kernels without a velocity.

        :func:`cellrank_velot.clones.judge_by_clones` explains the scores. The references are a ``ConnectivityKernel``
        on the same graph, and a ``PseudotimeKernel`` on it with the time of this kernel; their ends are the cells of
        the clusters that are fates.

        Parameters
        ----------
        fates
            Fate probabilities of any kernel, or several by name; what an estimator wrote to the AnnData where not
            given. The references are compared with the first.
        clone_key
            Key in ``adata.obs`` of a column with gaps, or in ``adata.obsm`` of a matrix of cells by barcodes, with or
            without ``X_``. ``"X_clone"``, ``"clone_id"`` or the like where not given.
        references
            Whether to judge CellRank's kernels, too.
        cluster_key
            Key in ``adata.obs`` of what cells became; that of the kernel, or ``"clusters"``, where not given.
        lineages
            Fates to judge; all where not given. Each is the name of a cluster.
        time_key
            Key in ``adata.obs`` of time points. A sister must be later than the cell. ``"day"`` or the like where not
            given; without time points any cell of a fate is late.
        early
            Cells to judge, as names, a mask, or ``{"day": (2, 2)}``. By default those of the first time point that has
            fates, or all, outside of the clusters that are fates.
        late
            Cells whose clusters are outcomes, and ends of the references, likewise. By default all that are not early.
        clones
            Names of the clones that judge; all where not given.
        weight_by
            What a cell counts: the number of its ``"sisters"``, one for each of the ``"clones"``, or ``"effective"``,
            in between.
        n_bins
            Number of bins of the calibration curve.
        n_bootstraps
            Number of times that clones are drawn.
        level
            Share of the intervals that hold the score, in ``(0, 1)``.
        random_state
            Seed.

        Returns
        -------
        The scores, their intervals, the calibration curve and the overlap of clones.

        Raises
        ------
        KeyError
            If clones, clusters, fates or time are missing, or a fate is no cluster.
        TypeError
            If fates or clones are of another type.
        ValueError
            If no early cell has later sisters, there is one fate only, or an option is out of range.

        Examples
        --------
        >>> bk = OTVelocityKernel(barcoded, time_key="pseudotime")
        >>> judged = bk.judge_by_clones("true_fates_seen", n_bootstraps=50)
        >>> judged.sources
        ['fates', 'ConnectivityKernel', 'PseudotimeKernel']
        >>> judged.table["skill"].idxmax()
        ('fates', 'all')
        """
        sources = dict(fates) if isinstance(fates, Mapping) else {"fates": fates}
        cluster_key = cluster_key or self.cluster_key
        if check_flag("references", references):
            tables = read_tables(self.adata, sources, cluster_key, lineages)
            chosen = np.ones(self.adata.n_obs, dtype=bool) if late is None else select_cells(self.adata, late)
            ends = [np.flatnonzero(chosen & (tables.outcome == k)) for k in range(len(tables.names))]
            for name, matrix in self._references().items():
                values = absorption_probabilities(matrix, ends)
                sources[name] = pd.DataFrame(values, self.adata.obs_names, tables.names)
        return judge_by_clones(
            self.adata,
            sources,
            clone_key,
            cluster_key=cluster_key,
            lineages=lineages,
            time_key=time_key,
            early=early,
            late=late,
            clones=clones,
            weight_by=weight_by,
            n_bins=n_bins,
            n_bootstraps=n_bootstraps,
            level=level,
            random_state=random_state,
        )

    # ---------------------------------------------------------------------------------------------------- private
    def _references(self) -> dict[str, sp.csr_matrix]:
        """Return the matrices of CellRank's kernels on the same graph, as far as they can be had."""
        graph, found = {"conn_key": self._init_kwargs["conn_key"] or "connectivities"}, {}
        time_key = self._init_kwargs["time_key"]
        made: dict[str, Callable[[], Any]] = {
            "ConnectivityKernel": lambda: cr.kernels.ConnectivityKernel(self.adata, **graph),
            "PseudotimeKernel": lambda: cr.kernels.PseudotimeKernel(self.adata, time_key=time_key, **graph),
        }
        for name, make in made.items():
            options = {"show_progress_bar": False} if name == "PseudotimeKernel" else {}
            try:
                found[name] = sp.csr_matrix(make().compute_transition_matrix(**options).transition_matrix)
            except (KeyError, TypeError, ValueError) as error:
                logger.warning("No %s to compare with: %s", name, error)
        return found
