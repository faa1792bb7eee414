"""Judge fates by clones: whether sisters became what the fates of early cells say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.validation import check_choice, check_integer, check_number, check_seed
from cellrank_velot.cells import CellSelector
from cellrank_velot.clones.scores import (
    ALL,
    SCORES,
    Resamples,
    WeightBy,
    cast_votes,
    curve_table,
    overlap_table,
    score_table,
)
from cellrank_velot.clones.sisters import Sisters, find_sisters, read_tables

__all__ = ["CloneJudgement", "JudgeOptions", "judge", "judge_by_clones"]


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(Options):
    """Options of :func:`judge_by_clones`, which explains them."""

    weight_by: WeightBy = "effective"
    n_bins: int = 10
    n_bootstraps: int = 500
    level: float = 0.95
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        check_choice("weight_by", self.weight_by, WeightBy)
        check_integer("n_bins", self.n_bins, low=2)
        check_integer("n_bootstraps", self.n_bootstraps, low=20)
        check_number("level", self.level, low=0, high=1, open_low=True, open_high=True)
        check_seed(self.random_state)


@dataclass(frozen=True, eq=False, repr=False)
class CloneJudgement:
    """How far fates agree with what sisters became.

    Attributes
    ----------
    scores
        One row for each source of fates, fate and score, with the ends of its interval over clones, ``low`` and
        ``high``. The fate ``"all"`` is the mean over the fates by how frequent they are, and of ``slope`` one line
        through the points of all fates. ``auc``: the chance that of two cells, one whose sister took the fate and one
        whose sister did not, the first has the higher probability. ``rank_correlation``: Spearman's, of the probability
        with the share of the sisters. ``slope``: of that share on the probability; 1 where fates are calibrated, below
        where they are too sure, above where they are too vague. ``skill``: log-likelihood of a sister, in nats, above
        that of the mean composition of the clones; below 0 fates are worse than no fates.
    gains
        The same scores minus those of the first source, over the same resampled clones.
    curve
        The calibration curve: where a fate was given the probability ``predicted``, the share of sisters ``observed``
        that took it.
    overlap
        For each two fates, how far their ``clones`` are the same ones, and how far they were ``expected`` to be with as
        many sisters if the fates were right; ``of_cells`` is the overlap of the fates themselves, which no number of
        sisters makes smaller.
    sources, fates, clones
        Names of the sources, of the fates and of the clones that judged.
    n_cells, n_sisters
        Number of early cells that are judged, and of sisters that judge them.
    level
        Share of the intervals that hold the score.

    Examples
    --------
    >>> judged = clones.judge_by_clones(barcoded, "true_fates_seen")
    >>> bool(judged.table.loc[("fates", "all"), "auc"] > 0.6)
    True
    """

    scores: pd.DataFrame
    gains: pd.DataFrame
    curve: pd.DataFrame
    overlap: pd.DataFrame
    sources: list[str]
    fates: list[str]
    clones: NDArray[np.str_]
    n_cells: int
    n_sisters: int
    level: float

    @property
    def table(self) -> pd.DataFrame:
        """The scores without their intervals: a row for each source and fate, a column for each score."""
        wide = self.scores.pivot_table(index=["source", "fate"], columns="score", values="value", sort=False)
        return wide.reindex(columns=list(SCORES))

    @property
    def n_clones(self) -> int:
        """Number of clones that judged."""
        return int(self.clones.size)

    def value(self, score: str, fate: str = ALL, source: str | None = None) -> tuple[float, float, float]:
        """Return a score and the ends of its interval.

        Parameters
        ----------
        score
            ``"auc"``, ``"rank_correlation"``, ``"slope"`` or ``"skill"``.
        fate
            Name of the fate, or ``"all"``.
        source
            Name of the source; the first where not given.

        Raises
        ------
        KeyError
            If there is no such score.
        """
        source = self.sources[0] if source is None else source
        known = self.scores
        found = known[(known["score"] == score) & (known["fate"] == fate) & (known["source"] == source)]
        if found.empty:
            raise KeyError(
                f"Expected a score of {list(SCORES)}, a fate of {[*self.fates, ALL]} and a source of {self.sources}, "
                f"found {score!r}, {fate!r}, {source!r}."
            )
        value, low, high = found[["value", "low", "high"]].iloc[0]
        return float(value), float(low), float(high)

    def __repr__(self) -> str:
        lines = [
            f"{type(self).__name__} of {self.n_cells} cells by {self.n_sisters} sisters in {self.n_clones} clones",
            *(
                f"{source}: "
                + ", ".join(
                    "{} {:.2f} ({:.2f} to {:.2f})".format(score, *self.value(score, ALL, source)) for score in SCORES
                )
                for source in self.sources
            ),
        ]
        return "\n".join(lines)


def judge_by_clones(
    adata: AnnData,
    fates: Any = None,
    clone_key: str | None = None,
    *,
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
    r"""Judge fate probabilities by what sisters became, with intervals over clones.

    A cell is destroyed when it is sequenced, so nobody sees its fate; cells with the same barcode, sequenced later,
    show it :cite:p:`weinreb:20`. Early cells are judged, later sisters in a cluster that is a fate are the outcome. No
    cell is both. The clone, not the cell, is what is drawn with replacement: sisters are no independent samples.

    A sister shares the founder of a cell, not all of its way. So even the right fates have a ``slope`` somewhat below
    1 where the early sisters of a clone already differ.

    Parameters
    ----------
    adata
        Annotated data.
    fates
        Fate probabilities, of any kernel: a table with a row for each cell and a column for each fate; CellRank's, or
        an estimator that has them; those of cells of a time series; a key of ``adata.obsm``; or several of these by
        name, such as ``{"velocity": g.fate_probabilities, "connectivity": other}``, which are then compared with the
        first. What an estimator wrote to the AnnData where not given. Cells without a row are not judged.
    clone_key
        Key in ``adata.obs`` of a column with gaps, or in ``adata.obsm`` of a matrix of cells by barcodes, with or
        without ``X_``. ``"X_clone"``, ``"clone_id"`` or the like where not given.
    cluster_key
        Key in ``adata.obs`` of what cells became; ``"clusters"`` or ``"state_info"`` where not given.
    lineages
        Fates to judge; all where not given. Each is the name of a cluster. Probabilities are scaled to sum to one over
        these. Fates that CellRank has numbered, such as ``"Neu_1"``, are summed.
    time_key
        Key in ``adata.obs`` of time points. A sister must be later than the cell. ``"day"`` or the like where not
        given; without time points any cell of a fate is late.
    early
        Cells to judge, as names, a mask, or ``{"day": (2, 2)}``. By default those of the first time point that has
        fates, or all, outside of the clusters that are fates.
    late
        Cells whose clusters are outcomes, likewise. By default all that are not early.
    clones
        Names of the clones that judge, such as those that were left out of a choice; all where not given.
    weight_by
        What a cell counts: the number of its ``"sisters"``, which are shared among the early cells of a clone; one for
        each of the ``"clones"``; or ``"effective"``, in between: :math:`n / (1 + (n - 1) \rho)` for n sisters of
        correlation :math:`\rho`. Of two clones with 2 and 50 sisters the larger one tells more, but not 25 times more.
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
    >>> judged = clones.judge_by_clones(barcoded, "true_fates_seen", "X_clone")
    >>> value, low, high = judged.value("auc", "Fate A")
    >>> bool(low < value < high)
    True
    >>> judged.overlap.columns.tolist()
    ['source', 'fate', 'other', 'clones', 'low', 'high', 'expected', 'of_cells']
    """
    options = JudgeOptions(
        weight_by=weight_by, n_bins=n_bins, n_bootstraps=n_bootstraps, level=level, random_state=random_state
    )
    tables = read_tables(adata, fates, cluster_key, lineages)
    sisters = find_sisters(adata, tables, clone_key, time_key=time_key, early=early, late=late)
    return judge(sisters if clones is None else of_names(sisters, clones), options)


def of_names(sisters: Sisters, names: Sequence[str]) -> Sisters:
    """Return the part of the clones of some names."""
    wanted = {str(name) for name in names}
    unknown = sorted(wanted - set(sisters.clone_names.tolist()))
    if unknown:
        raise KeyError(f"Expected names of clones, found {unknown[:3]}, which there are not.")
    kept = np.isin(sisters.clone_names, list(wanted))
    if not kept[sisters.clone].any():
        raise ValueError("Expected clones with early cells and later sisters, found none among those of `clones`.")
    return sisters.of_clones(kept)


def judge(sisters: Sisters, options: JudgeOptions = JudgeOptions()) -> CloneJudgement:
    """Judge the fates of early cells by their sisters."""
    rng = np.random.default_rng(options.random_state)
    resamples = Resamples.draw(cast_votes(sisters, options.weight_by), options.n_bootstraps, rng)
    scores, gains = score_table(sisters, resamples, options.level)
    return CloneJudgement(
        scores=scores,
        gains=gains,
        curve=curve_table(sisters, resamples, options.n_bins, options.level),
        overlap=overlap_table(sisters, options.n_bootstraps, options.level, options.random_state),
        sources=list(sisters.fates),
        fates=list(sisters.names),
        clones=sisters.clone_names[np.unique(sisters.clone)],
        n_cells=int(np.unique(sisters.cells).size),
        n_sisters=int(sisters.counts[sisters.first].sum()),
        level=options.level,
    )
