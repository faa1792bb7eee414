"""Choose settings by clones, and judge the choice by clones that had no part in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_integer
from cellrank_velot.cells import CellSelector
from cellrank_velot.clones.judge import CloneJudgement, JudgeOptions, judge, of_names
from cellrank_velot.clones.scores import SMALLEST, Votes, WeightBy, cast_votes
from cellrank_velot.clones.sisters import find_sisters, read_tables

__all__ = ["CloneChoice", "choose_by_clones"]

FloatArray = NDArray[np.float64]

CHOSEN = "chosen"


@dataclass(frozen=True, eq=False, repr=False)
class CloneChoice:
    """Which setting agrees best with the clones.

    Attributes
    ----------
    best
        The setting that agrees best with all clones: its key among the candidates.
    fates
        Its fates, a row for each cell.
    table
        One row for each setting: the ``skill``, log-likelihood of a sister above that of the mean composition, with
        its standard error over clones; that of the ``difference`` to the best setting; and in how many folds it was
        ``chosen``.
    folds
        The fold of each clone, by its name.
    chosen
        The setting that the clones outside of each fold chose.
    judgement
        What the choice is worth: each clone judges the setting that was chosen without it. The sources are
        ``"chosen"`` and the first candidate; their difference is ``-judgement.gains``.

    Examples
    --------
    >>> vague = barcoded.obsm["true_fates_seen"] ** 0.3
    >>> names = ["Fate A", "Fate B", "Fate C"]
    >>> sharper = {
    ...     power: pd.DataFrame(vague**power, barcoded.obs_names, names) for power in (1, 3, 9)
    ... }
    >>> choice = clones.choose_by_clones(barcoded, sharper)
    >>> choice.best, bool(choice.judgement.n_clones == choice.folds.size)
    (3, True)
    """

    best: Any
    fates: pd.DataFrame
    table: pd.DataFrame
    folds: pd.Series
    chosen: pd.Series
    judgement: CloneJudgement

    def __repr__(self) -> str:
        value, low, high = self.judgement.value("skill", source=CHOSEN)
        return (
            f"{type(self).__name__}: {self.best!r} of {len(self.table)} settings by {self.folds.size} clones; held "
            f"out, the choice has a skill of {value:.3f} ({low:.3f} to {high:.3f})"
        )


def choose_by_clones(
    adata: AnnData,
    candidates: Mapping[Any, Any | Callable[[], Any]],
    clone_key: str | None = None,
    *,
    cluster_key: str | None = None,
    lineages: Sequence[str] | None = None,
    time_key: str | None = None,
    early: CellSelector | None = None,
    late: CellSelector | None = None,
    clones: Sequence[str] | None = None,
    n_folds: int = 5,
    weight_by: WeightBy = JudgeOptions.weight_by,
    n_bootstraps: int = JudgeOptions.n_bootstraps,
    level: float = JudgeOptions.level,
    random_state: int = JudgeOptions.random_state,
) -> CloneChoice:
    """Choose among settings by clones, and judge the choice by clones that were left out of it.

    The setting whose fates give the outcomes of sisters the highest likelihood is chosen. Clones are cut into folds:
    those outside of a fold choose, those of the fold judge what was chosen without them. So a choice among many
    settings does not flatter itself. The same split, ``folds``, can be used again.

    Parameters
    ----------
    adata
        Annotated data.
    candidates
        Fates by setting, in any form that :func:`judge_by_clones` takes, or functions without arguments that return
        them: ``{0.8: fates_of(0.8 * vk + 0.2 * ck), 1.0: fates_of(vk)}``. The first is what the choice is compared
        with.
    clone_key
        Key in ``adata.obs`` of a column with gaps, or in ``adata.obsm`` of a matrix of cells by barcodes, with or
        without ``X_``. ``"X_clone"``, ``"clone_id"`` or the like where not given.
    cluster_key
        Key in ``adata.obs`` of what cells became; ``"clusters"`` or ``"state_info"`` where not given.
    lineages
        Fates that count; all where not given. Each is the name of a cluster.
    time_key
        Key in ``adata.obs`` of time points. A sister must be later than the cell. ``"day"`` or the like where not
        given; without time points any cell of a fate is late.
    early
        Cells to judge, as names, a mask, or ``{"day": (2, 2)}``. By default those of the first time point that has
        fates, or all, outside of the clusters that are fates.
    late
        Cells whose clusters are outcomes, likewise. By default all that are not early.
    clones
        Names of the clones that choose and judge; all where not given.
    n_folds
        Number of folds, at least 2.
    weight_by
        What a cell counts: the number of its ``"sisters"``, one for each of the ``"clones"``, or ``"effective"``, in
        between.
    n_bootstraps
        Number of times that clones are drawn for the intervals of the judgement.
    level
        Share of its intervals that hold the score, in ``(0, 1)``.
    random_state
        Seed of the folds and of the intervals.

    Returns
    -------
    The setting, its fates, how all settings did, the folds, and the judgement by clones that were left out.

    Raises
    ------
    KeyError
        If clones, clusters, fates or time are missing, or a fate is no cluster.
    TypeError
        If candidates, fates or clones are of another type.
    ValueError
        If there are fewer clones than folds or fewer than two candidates, or an option is out of range.

    Examples
    --------
    >>> candidates = {"sure": "true_fates", "seen": "true_fates_seen"}
    >>> choice = clones.choose_by_clones(barcoded, candidates, n_folds=3)
    >>> choice.best, choice.chosen.tolist()
    ('sure', ['sure', 'sure', 'sure'])
    """
    options = JudgeOptions(weight_by=weight_by, n_bootstraps=n_bootstraps, level=level, random_state=random_state)
    check_integer("n_folds", n_folds, low=2)
    if not isinstance(candidates, Mapping):
        raise TypeError(f"Expected `candidates` as a dictionary of fates, found `{type(candidates).__name__}`.")
    if len(candidates) < 2:
        raise ValueError(f"Expected at least two `candidates`, found `{len(candidates)}`.")
    keys = {str(number): key for number, key in enumerate(candidates)}
    made = {number: _made(candidates[key]) for number, key in keys.items()}
    tables = read_tables(adata, made, cluster_key, lineages)
    sisters = find_sisters(adata, tables, clone_key, time_key=time_key, early=early, late=late)
    sisters = sisters if clones is None else of_names(sisters, clones)
    if sisters.n_clones < n_folds:
        raise ValueError(f"Expected at least `{n_folds}` clones for `n_folds`, found `{sisters.n_clones}`.")
    votes = cast_votes(sisters, options.weight_by)
    fold = np.random.default_rng(random_state).permutation(np.arange(votes.n_clones) % n_folds)
    told = np.stack([_told(votes, fates) for fates in sisters.fates.values()])  # [n_settings, n_clones]
    weight: FloatArray = np.bincount(votes.clone, votes.weight).astype(np.float64)
    outside = fold != np.arange(n_folds)[:, None]
    chosen = np.array([int((told[:, kept].sum(axis=1)).argmax()) for kept in outside])
    best = int(told.sum(axis=1).argmax())
    every = list(sisters.fates.values())
    held_out = np.stack(every)[chosen[fold[votes.clone]], np.arange(votes.clone.size)]
    sources = {CHOSEN: held_out, str(keys["0"]): every[0]}
    names = sisters.clone_names[np.unique(sisters.clone)]
    listed = list(keys.values())
    return CloneChoice(
        best=listed[best],
        fates=tables.whole[str(best)],
        table=_table(listed, told, weight, votes, best, chosen),
        folds=pd.Series(fold, pd.Index(names, name="clone"), name="fold"),
        chosen=pd.Series([listed[k] for k in chosen], pd.RangeIndex(n_folds, name="fold"), name=CHOSEN, dtype=object),
        judgement=judge(replace(sisters, fates=sources), options),
    )


def _made(candidate: Any) -> Any:
    """Return the fates of a candidate, which may be a function that makes them."""
    is_fates = hasattr(candidate, "fate_probabilities") or hasattr(candidate, "columns") or hasattr(candidate, "table")
    return candidate() if callable(candidate) and not is_fates else candidate


def _told(votes: Votes, fates: FloatArray) -> FloatArray:
    """Return the weighted log-likelihood of the sisters of each clone."""
    each = (votes.share * np.log(np.maximum(fates, SMALLEST))).sum(axis=1)
    return np.asarray(np.bincount(votes.clone, votes.weight * each), dtype=np.float64)


def _table(
    keys: Sequence[Any], told: FloatArray, weight: FloatArray, votes: Votes, best: int, chosen: NDArray[np.int64]
) -> pd.DataFrame:
    """Return skill and its standard error, of a ratio of sums over clones."""
    total, n = weight.sum(), weight.size
    prevalence = votes.weight @ votes.share / total
    base = float((prevalence * np.log(np.maximum(prevalence, SMALLEST))).sum())
    mean = told.sum(axis=1) / total

    def error(values: FloatArray, of: FloatArray) -> FloatArray:
        return np.asarray(np.sqrt(n / max(n - 1, 1) * ((values - of[:, None] * weight) ** 2).sum(axis=1)) / total)

    apart = told - told[best]
    return pd.DataFrame(
        {
            "skill": mean - base,
            "error": error(told, mean),
            "difference": mean - mean[best],
            "error_of_difference": error(apart, mean - mean[best]),
            "chosen": np.bincount(chosen, minlength=len(keys)),
        },
        index=pd.Index(keys, name="setting", tupleize_cols=False),
    )
