"""How far fates agree with what sisters became, with a bootstrap over clones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from cellrank_velot.clones.sisters import Sisters

__all__ = ["SCORES", "Resamples", "Votes", "WeightBy", "cast_votes", "curve_table", "overlap_table", "score_table"]

FloatArray = NDArray[np.float64]

WeightBy = Literal["effective", "sisters", "clones"]
SCORES = ("auc", "rank_correlation", "slope", "skill")
# Cells times resamples that are held at a time.
BLOCK = 4_000_000
# Smallest probability in a logarithm: one cell that is wrong and sure must not decide.
SMALLEST = 0.005
N_DRAWS = 100
ALL = "all"


@dataclass(frozen=True, eq=False)
class Votes:
    """What the sisters of each judged cell became, as shares, and how much the cell counts."""

    share: FloatArray  # [n, n_fates]
    weight: FloatArray  # [n]
    clone: NDArray[np.int64]  # [n], from zero
    n_clones: int


def cast_votes(sisters: Sisters, weight_by: WeightBy = "effective") -> Votes:
    r"""Return shares and weights of the judged cells.

    The cells of a unit share the weight of its sisters: their number, one, or the effective number :math:`n / (1 + (n -
    1) \rho)`, in which :math:`\rho` is the correlation between sisters.
    """
    counts = sisters.counts
    n = counts.sum(axis=1)
    share = counts / n[:, None]
    by = {"sisters": n, "clones": np.ones_like(n), "effective": n / (1 + (n - 1) * alike(counts))}[weight_by]
    clone = np.unique(sisters.clone, return_inverse=True)[1]
    # A clone with early cells at two times is one clone.
    by = by / np.bincount(clone)[clone]
    unit = sisters.unit
    return Votes(share[unit], (by / sisters.unit_size)[unit], clone[unit].astype(np.int64), sisters.n_clones)


def alike(counts: FloatArray) -> float:
    """Return the correlation between members of a unit: how much more often than two others they agree."""
    n = counts.sum(axis=1)
    pairs = n * (n - 1)
    known = pairs > 0
    if not known.any():
        return 0.0
    agree = n[known] @ ((counts * (counts - 1)).sum(axis=1)[known] / pairs[known]) / n[known].sum()
    chance = ((counts.sum(axis=0) / counts.sum()) ** 2).sum()
    return float(np.clip((agree - chance) / max(1 - chance, 1e-9), 0, 1))


@dataclass(frozen=True, eq=False)
class Resamples:
    """Clones as they are, then drawn with replacement, ``[1 + n_bootstraps, n_clones]``: how often each is there."""

    votes: Votes
    drawn: FloatArray

    @classmethod
    def draw(cls, votes: Votes, n_bootstraps: int, rng: np.random.Generator) -> Resamples:
        """Draw the clones."""
        drawn = rng.multinomial(votes.n_clones, np.full(votes.n_clones, 1 / votes.n_clones), size=n_bootstraps)
        return cls(votes, np.concatenate([np.ones((1, votes.n_clones)), drawn]))

    def sums(self, values: FloatArray) -> FloatArray:
        """Return weighted sums over the cells of columns of values, ``[n_resamples, n_columns]``."""
        votes = self.votes
        weighted = values * votes.weight[:, None]
        of_clones = [np.bincount(votes.clone, column, minlength=votes.n_clones) for column in weighted.T]
        return np.asarray(self.drawn @ np.stack(of_clones, axis=1))

    def weights(self) -> Iterator[FloatArray]:
        """Yield weights of the cells, in blocks of resamples."""
        n_rows = max(1, BLOCK // max(1, self.votes.weight.size))
        for start in range(0, len(self.drawn), n_rows):
            yield self.drawn[start : start + n_rows, self.votes.clone] * self.votes.weight


def score_table(sisters: Sisters, resamples: Resamples, level: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the scores of each source with intervals, and the gains over the first source."""
    found: dict[tuple[str, str, str], FloatArray] = {}
    for source, fates in sisters.fates.items():
        for key, values in _scores(fates, resamples, sisters.names).items():
            found[source, *key] = values
    rows = [_row(dict(zip(("source", "fate", "score"), key, strict=True)), v, level) for key, v in found.items()]
    first = next(iter(sisters.fates))
    gains = [
        _row({"source": source, "against": first, "fate": fate, "score": score}, v - found[first, fate, score], level)
        for (source, fate, score), v in found.items()
        if source != first
    ]
    columns = ["source", "against", "fate", "score", "value", "low", "high"]
    return pd.DataFrame(rows), pd.DataFrame(gains, columns=columns)


def _row(head: dict[str, Any], values: FloatArray, level: float) -> dict[str, Any]:
    known = values[1:][np.isfinite(values[1:])]
    ends = np.quantile(known, [0.5 - level / 2, 0.5 + level / 2]) if known.size else [np.nan, np.nan]
    return {**head, "value": float(values[0]), "low": float(ends[0]), "high": float(ends[1])}


def _scores(fates: FloatArray, resamples: Resamples, names: list[str]) -> dict[tuple[str, str], FloatArray]:
    """Return every score of each resample."""
    share, found = resamples.votes.share, {}
    told = (share * np.log(np.maximum(fates, SMALLEST))).sum(axis=1)
    sums = resamples.sums(np.column_stack([np.ones(told.size), told, share]))
    total, prevalence = sums[:, 0], sums[:, 2:] / sums[:, :1]
    aucs = _aucs(fates, resamples)
    covariances, spreads, ranks = [], [], []
    for k, name in enumerate(names):
        f, y = fates[:, k], share[:, k]
        found[name, "auc"] = aucs[:, k]
        covariance, spread, other = _moments(rankdata(f), rankdata(y), total, resamples)
        with np.errstate(invalid="ignore", divide="ignore"):
            found[name, "rank_correlation"] = covariance / np.sqrt(spread * other)
            covariance, spread, _ = _moments(f, y, total, resamples)
            found[name, "slope"] = np.where(spread > 1e-12, covariance / spread, np.nan)
        ranks.append(found[name, "rank_correlation"])
        covariances.append(covariance)
        spreads.append(spread)
    # Over all fates: means by how frequent they are, and one line through all points.
    found[ALL, "auc"] = _mean(aucs, prevalence)
    found[ALL, "rank_correlation"] = _mean(np.stack(ranks, axis=1), prevalence)
    found[ALL, "slope"] = np.sum(covariances, axis=0) / np.maximum(np.sum(spreads, axis=0), 1e-12)
    found[ALL, "skill"] = sums[:, 1] / total - (prevalence * np.log(np.maximum(prevalence, SMALLEST))).sum(axis=1)
    return found


def _mean(values: FloatArray, weights: FloatArray) -> FloatArray:
    known = np.where(np.isfinite(values), weights, 0.0)
    with np.errstate(invalid="ignore"):
        return np.asarray((np.nan_to_num(values) * known).sum(axis=1) / known.sum(axis=1))


def _aucs(fates: FloatArray, resamples: Resamples) -> FloatArray:
    """Return for each resample and fate the chance that of two sisters' cells the right one has more of the fate.

    One of the two sisters has the fate, and the other has not.
    """
    share = resamples.votes.share
    orders = [np.argsort(column, kind="stable") for column in fates.T]
    starts = [np.flatnonzero(np.diff(f[order], prepend=-1.0)) for f, order in zip(fates.T, orders, strict=True)]
    found = []
    for weights in resamples.weights():
        block = np.empty((len(weights), fates.shape[1]))
        for k, (order, start) in enumerate(zip(orders, starts, strict=True)):
            ordered = weights[:, order]
            positive = ordered * share[order, k]
            negative = ordered - positive
            if start.size < order.size:  # ties
                positive, negative = (np.add.reduceat(part, start, axis=1) for part in (positive, negative))
            below = np.cumsum(negative, axis=1)
            area = np.einsum("ij,ij->i", positive, below) - np.einsum("ij,ij->i", positive, negative) / 2
            with np.errstate(invalid="ignore", divide="ignore"):
                block[:, k] = area / (positive.sum(axis=1) * below[:, -1])
        found.append(block)
    return np.concatenate(found)


def _moments(
    f: FloatArray, y: FloatArray, total: FloatArray, resamples: Resamples
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the weighted covariance and both variances."""
    f, y = f - f.mean(), y - y.mean()
    mean_f, mean_y, fy, ff, yy = (resamples.sums(np.column_stack([f, y, f * y, f * f, y * y])) / total[:, None]).T
    return fy - mean_f * mean_y, np.maximum(ff - mean_f**2, 0), np.maximum(yy - mean_y**2, 0)


def curve_table(sisters: Sisters, resamples: Resamples, n_bins: int, level: float) -> pd.DataFrame:
    """Return what sisters became where a fate was given a probability, by bins of equal width."""
    rows, votes = [], resamples.votes
    for source, fates in sisters.fates.items():
        for k, fate in enumerate(sisters.names):
            bins = np.minimum((fates[:, k] * n_bins).astype(np.int64), n_bins - 1)
            member = np.eye(n_bins)[bins]
            held, hits = resamples.sums(member), resamples.sums(member * votes.share[:, k : k + 1])
            with np.errstate(invalid="ignore", divide="ignore"):
                observed = hits / held
            for b in np.flatnonzero(held[0] > 0):
                here = bins == b
                head = {
                    "source": source,
                    "fate": fate,
                    "predicted": float(votes.weight[here] @ fates[here, k] / held[0, b]),
                    "n_cells": int(here.sum()),
                    "n_clones": int(np.unique(votes.clone[here]).size),
                }
                rows.append(_row(head, observed[:, b], level))
    return pd.DataFrame(rows).rename(columns={"value": "observed"})


def overlap_table(sisters: Sisters, n_bootstraps: int, level: float, random_state: int) -> pd.DataFrame:
    r"""Return how far the clones of two fates are the same ones, and how far they would be if the fates were right.

    With the share :math:`a_c` of the sisters of a fate that clone c has, the overlap of two fates is :math:`\sum_c
    \min(a_c, b_c)`. Few sisters make it too small. So what is expected is drawn from the fates, with as many sisters.
    """
    rng = np.random.default_rng(random_state)
    once = np.flatnonzero(sisters.first)
    counts = sisters.counts[once]
    drawn = rng.multinomial(once.size, np.full(once.size, 1 / once.size), size=n_bootstraps)
    seen = np.concatenate([_overlaps(counts, np.ones((1, once.size))), _overlaps(counts, drawn.astype(np.float64))])
    n = counts.sum(axis=1).astype(np.int64)
    expected, of_cells = {}, {}
    for source, fates in sisters.fates.items():
        mean = sisters.mean(fates)[once]
        mean = mean / mean.sum(axis=1, keepdims=True)
        draws = [
            _overlaps(rng.multinomial(n, mean).astype(np.float64), np.ones((1, n.size)))[0] for _ in range(N_DRAWS)
        ]
        expected[source] = np.mean(draws, axis=0)
        cells = np.isin(sisters.unit, once)
        of_cells[source] = _overlaps(fates[cells], np.ones((1, int(cells.sum()))))[0]
    rows = []
    for i, one in enumerate(sisters.names):
        for j, other in enumerate(sisters.names[i + 1 :], i + 1):
            for source in sisters.fates:
                row = _row({"source": source, "fate": one, "other": other}, seen[:, i, j], level)
                row |= {"expected": float(expected[source][i, j]), "of_cells": float(of_cells[source][i, j])}
                rows.append(row)
    return pd.DataFrame(rows).rename(columns={"value": "clones"})


def _overlaps(counts: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the overlap of each two columns, for each row of weights, ``[n_rows, n_fates, n_fates]``."""
    total = weights @ counts
    n_fates = counts.shape[1]
    found = np.empty((weights.shape[0], n_fates, n_fates))
    with np.errstate(invalid="ignore", divide="ignore"):
        for i, j in zip(*np.triu_indices(n_fates), strict=True):
            # Only clones that have both fates count.
            both = np.flatnonzero((counts[:, i] > 0) & (counts[:, j] > 0))
            one, other = (counts[both, k] / total[:, k : k + 1] for k in (i, j))
            found[:, i, j] = found[:, j, i] = (weights[:, both] * np.minimum(one, other)).sum(axis=1)
    return found
