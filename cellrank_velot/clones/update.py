"""Use clones: fates of early cells with the outcomes of their sisters as further evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.validation import check_flag, check_integer, check_number, check_seed
from cellrank_velot.cells import CellSelector, read_fates
from cellrank_velot.clones.evidence import CloneModel, fit_clones
from cellrank_velot.clones.judge import CloneJudgement, JudgeOptions, judge, of_names
from cellrank_velot.clones.sisters import Sisters, find_sisters, read_tables

__all__ = ["CloneFates", "UpdateOptions", "update_by_clones"]

FloatArray = NDArray[np.float64]

BEFORE, AFTER = "before", "after"


@dataclass(frozen=True, kw_only=True)
class UpdateOptions(Options):
    """Options of :func:`update_by_clones`, which explains them."""

    recalibrate: bool = True
    n_bootstraps: int = 500
    level: float = 0.95
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        check_flag("recalibrate", self.recalibrate)
        check_integer("n_bootstraps", self.n_bootstraps, low=20)
        check_number("level", self.level, low=0, high=1, open_low=True, open_high=True)
        check_seed(self.random_state)


@dataclass(frozen=True, eq=False, repr=False)
class CloneFates:
    """Fates with the evidence of sisters.

    Attributes
    ----------
    fates
        The fates as they were given, cells as rows, in which those of cells with sisters are updated.
    updated
        Whether a cell was updated.
    evidence
        One row for each updated cell: the number of its ``sisters``; for how many independent ones they count,
        ``effective``; the ``weight`` of the evidence, from 0 for fates as they were to 1 for nothing but sisters; and
        the ``shift``, the total variation by which the fates changed.
    models
        One row for each time of early cells: ``concentration``, how many independent sisters the fates are worth;
        ``sharpness``, the power to which fates were raised to agree with the clones; ``correlation`` of sisters that
        were kept together, beyond that of the clone; ``told``, the probability that sisters tell of their own clone at
        all; ``clones``, their number.
    held_out
        What the update is worth: sisters of each clone are halved, one half updates the fates and the other half judges
        them, and the other way round. Its sources are ``"before"`` and ``"after"``; ``held_out.gains`` is the
        difference. ``None`` where no clone has two sisters.

    Examples
    --------
    >>> updated = clones.update_by_clones(barcoded, "true_fates_seen")
    >>> gain = updated.held_out.gains.set_index(["fate", "score"])
    >>> bool(gain.loc[("all", "skill"), "low"] > 0)
    True
    """

    fates: pd.DataFrame
    updated: pd.Series
    evidence: pd.DataFrame
    models: pd.DataFrame
    held_out: CloneJudgement | None

    def __repr__(self) -> str:
        n, size = int(self.updated.sum()), self.updated.size
        text = f"{type(self).__name__}: {n} of {size} cells updated by {int(self.evidence['clone'].nunique())} clones"
        if self.held_out is None:
            return text
        known = self.held_out.gains.set_index(["fate", "score"])
        value, low, high = known.loc[("all", "skill"), ["value", "low", "high"]]
        return f"{text}; held-out sisters gain {value:.3f} nats ({low:.3f} to {high:.3f})"


def update_by_clones(
    adata: AnnData,
    fates: Any = None,
    clone_key: str | None = None,
    *,
    cluster_key: str | None = None,
    lineages: Sequence[str] | None = None,
    time_key: str | None = None,
    early: CellSelector | None = None,
    late: CellSelector | None = None,
    split_key: str | None = None,
    clones: Sequence[str] | None = None,
    recalibrate: bool = UpdateOptions.recalibrate,
    n_bootstraps: int = UpdateOptions.n_bootstraps,
    level: float = UpdateOptions.level,
    random_state: int = UpdateOptions.random_state,
) -> CloneFates:
    r"""Update the fate probabilities of early cells by what their sisters became, in proportion to what a clone tells.

    The fates of a cell are the prior, the outcomes of its later sisters the evidence: with the prior :math:`m` and
    :math:`n_k` sisters of fate k the fates become :math:`(\alpha m_k + n_k) / (\alpha + n)`. The concentration
    :math:`\alpha` maximises the marginal likelihood of all clones, a Dirichlet-multinomial: it is small where sisters
    agree with each other far better than with the fates, and large where fates know as much as sisters do. Where all
    that sisters have in common may be chance, the update counts with the probability that it is not. Cells without
    later sisters keep the fates that they have.

    Sisters that grew up together are no independent witnesses, as one of their mothers may have taken the fate for
    all. So :math:`n_k` is divided by :math:`1 + (n_g - 1) \rho` in a group of :math:`n_g`, where :math:`\rho` is by how
    much sisters of one group are more alike than those of two. A group is the sisters of a time point, and of a well
    where ``split_key`` names wells. **Without wells the evidence of clones that grew after the decision is taken for
    too strong.**

    Parameters
    ----------
    adata
        Annotated data.
    fates
        Fate probabilities, of any kernel: a table with a row for each cell and a column for each fate; CellRank's, or
        an estimator that has them; those of cells of a time series; a key of ``adata.obsm``. What an estimator wrote to
        the AnnData where not given.
    clone_key
        Key in ``adata.obs`` of a column with gaps, or in ``adata.obsm`` of a matrix of cells by barcodes, with or
        without ``X_``. ``"X_clone"``, ``"clone_id"`` or the like where not given.
    cluster_key
        Key in ``adata.obs`` of what cells became; ``"clusters"`` or ``"state_info"`` where not given.
    lineages
        Fates to update; all where not given. Each is the name of a cluster. What a cell has of others it keeps. Fates
        that CellRank has numbered, such as ``"Neu_1"``, are summed.
    time_key
        Key in ``adata.obs`` of time points. A sister must be later than the cell. ``"day"`` or the like where not
        given; without time points any cell of a fate is late.
    early
        Cells to update, as names, a mask, or ``{"day": (2, 2)}``. By default those of the first time point that has
        fates, or all, outside of the clusters that are fates. Each time point has its own model.
    late
        Cells whose clusters are outcomes, likewise. By default all that are not early.
    split_key
        Key in ``adata.obs`` of wells, or the like, in which late cells grew apart from each other since the time of the
        early ones.
    clones
        Names of the clones that are evidence; all where not given.
    recalibrate
        Whether the prior is first brought in line with the clones, :math:`m \propto f^\gamma e^b`, where they say that
        fates are too sure, too vague, or lean to one side. Only cells with sisters change.
    n_bootstraps
        Number of times that clones are drawn for the intervals of what the update is worth.
    level
        Share of the intervals that hold it, in ``(0, 1)``.
    random_state
        Seed.

    Returns
    -------
    The fates, which cells were updated and by what evidence, and what that is worth for sisters that were held out.

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
    >>> found = clones.update_by_clones(barcoded, "true_fates_seen", split_key="well")
    >>> before, truth = (barcoded.obsm[key] for key in ("true_fates_seen", "true_fates"))
    >>> error = (before - truth)[found.updated].abs().to_numpy().sum()
    >>> bool((found.fates - truth)[found.updated].abs().to_numpy().sum() < error * 2 / 3)
    True
    >>> bool((found.fates[~found.updated] == before[~found.updated]).all(axis=None))
    True
    """
    options = UpdateOptions(recalibrate=recalibrate, n_bootstraps=n_bootstraps, level=level, random_state=random_state)
    fates = read_fates(adata, fates)
    tables = read_tables(adata, fates, cluster_key, lineages)
    sisters = find_sisters(adata, tables, clone_key, time_key=time_key, early=early, late=late, split_key=split_key)
    sisters = sisters if clones is None else of_names(sisters, clones)
    prior = sisters.fates["fates"]
    after, effective, models = _update(sisters, prior, options.recalibrate)
    table = tables.whole["fates"].copy()
    kept = table.iloc[sisters.cells][tables.names].sum(axis=1).to_numpy()
    columns = table.columns.get_indexer(tables.names)
    table.iloc[sisters.cells, columns] = after * kept[:, None]
    updated = pd.Series(np.isin(np.arange(adata.n_obs), sisters.cells), adata.obs_names, name="updated")
    n_effective, weight = effective.sum(axis=1), np.empty(len(after))
    for time, model in models.items():
        cells = (sisters.time == time)[sisters.unit]
        weight[cells] = model.weight(n_effective[cells])
    evidence = pd.DataFrame(
        {
            "clone": sisters.clone_names[sisters.clone[sisters.unit]],
            "sisters": sisters.counts.sum(axis=1)[sisters.unit].astype(np.int64),
            "effective": n_effective,
            "weight": weight,
            "shift": np.abs(after - prior).sum(axis=1) / 2,
        },
        index=adata.obs_names[sisters.cells],
    )
    return CloneFates(
        fates=table,
        updated=updated,
        evidence=evidence,
        models=_shown(models, sisters),
        held_out=_held_out(sisters, prior, options),
    )


def _shown(models: dict[float, CloneModel], sisters: Sisters) -> pd.DataFrame:
    rows = {
        time: {
            "concentration": model.concentration,
            "sharpness": model.sharpness,
            "correlation": model.correlation,
            "told": model.told,
            "clones": int((sisters.time == time).sum()),
        }
        for time, model in models.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("time")


def _update(
    sisters: Sisters, prior: FloatArray, recalibrate: bool
) -> tuple[FloatArray, FloatArray, dict[float, CloneModel]]:
    """Return the updated fates and the effective counts of the early cells, and the model of each time."""
    after, effective = np.empty_like(prior), np.empty_like(prior)
    models = {}
    for time in np.unique(sisters.time):
        units = sisters.time == time
        cells = units[sisters.unit]
        part = sisters.of_units(units)
        model = fit_clones(part, prior[cells], recalibrate=recalibrate)
        effective[cells] = part.summed(model.effective(part.group_counts))[part.unit]
        after[cells] = model.posterior(prior[cells], effective[cells])
        models[float(time)] = model
    return after, effective, models


def _held_out(sisters: Sisters, prior: FloatArray, options: UpdateOptions) -> CloneJudgement | None:
    """Judge the update by the sisters that it did not see: halves of each clone, in turn."""
    one = _half(sisters, np.random.default_rng(options.random_state))
    parts = []
    for seen in (one, sisters.group_counts - one):
        used = replace(sisters, group_counts=seen)
        both = (used.counts.sum(axis=1) > 0) & ((sisters.counts - used.counts).sum(axis=1) > 0)
        if not both.any():
            return None
        known = used.counts.sum(axis=1) > 0
        after, _, _ = _update(used.of_units(known), prior[known[sisters.unit]], options.recalibrate)
        filled = np.zeros_like(prior)
        filled[known[sisters.unit]] = after
        judged = replace(sisters, group_counts=sisters.group_counts - seen, fates={BEFORE: prior, AFTER: filled})
        parts.append(judged.of_units(both))
    options_of_judge = JudgeOptions(
        n_bootstraps=options.n_bootstraps, level=options.level, random_state=options.random_state
    )
    return judge(_stacked(*parts), options_of_judge)


def _half(sisters: Sisters, rng: np.random.Generator) -> FloatArray:
    """Return about half of the sisters: whole groups of a unit that has several, else half of its only one."""
    n_groups = np.bincount(sisters.group_unit, minlength=sisters.clone.size)
    order = rng.permutation(sisters.group_unit.size)
    # The rank of each group within its unit, in random order.
    order = order[np.argsort(sisters.group_unit[order], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(n_groups)])[:-1]
    rank = np.empty(order.size, dtype=np.int64)
    rank[order] = np.arange(order.size) - starts[sisters.group_unit[order]]
    first = (rank + rng.integers(2, size=n_groups.size)[sisters.group_unit]) % 2 == 0
    seen = np.where(first[:, None], sisters.group_counts, 0.0)
    alone = np.flatnonzero(n_groups[sisters.group_unit] == 1)
    for group in alone:
        counts = sisters.group_counts[group].astype(np.int64)
        half = (counts.sum() + rng.integers(2)) // 2
        seen[group] = rng.multivariate_hypergeometric(counts, half)
    return seen


def _stacked(one: Sisters, other: Sisters) -> Sisters:
    """Return the units of both, those of a clone side by side."""
    n_units = one.clone.size
    both = {
        name: np.concatenate([getattr(one, name), getattr(other, name)])
        for name in ("cells", "clone", "time", "group_counts")
    }
    return replace(
        one,
        **both,
        unit=np.concatenate([one.unit, other.unit + n_units]),
        first=np.concatenate([one.first, other.first]),
        group_unit=np.concatenate([one.group_unit, other.group_unit + n_units]),
        fates={name: np.concatenate([one.fates[name], other.fates[name]]) for name in one.fates},
    )
