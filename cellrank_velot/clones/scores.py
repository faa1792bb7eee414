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

__all__ = ["SCORES", "Votes", "WeightBy", "cast_votes", "curve_table", "overlap_table", "score_table"]

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


def resamples(votes: Votes, n_bootstraps: int, rng: np.random.Generator) -> Iterator[FloatArray]:
    """Yield weights of the cells, first as they are, then with clones drawn with replacement, in blocks of rows."""
    n_rows = max(1, BLOCK // max(1, votes.weight.size))
    yield votes.weight[None]
    for start in range(0, n_bootstraps, n_rows):
        size = min(n_rows, n_bootstraps - start)
        drawn = rng.multinomial(votes.n_clones, np.full(votes.n_clones, 1 / votes.n_clones), size=size)
        yield drawn[:, votes.clone] * votes.weight


def score_table(
    sisters: Sisters, votes: Votes, n_bootstraps: int, level: float, random_state: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the scores of each source with intervals, and the gains over the first source."""
    found: dict[tuple[str, str, str], FloatArray] = {}
    for source, fates in sisters.fates.items():
        rng = np.random.default_rng(random_state)  # the same resamples for each source
        parts = [_scores(fates, votes, weights, sisters.names) for weights in resamples(votes, n_bootstraps, rng)]
        for key in parts[0]:
            found[source, *key] = np.concatenate([part[key] for part in parts])
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


def _scores(
    fates: FloatArray, votes: Votes, weights: FloatArray, names: list[str]
) -> dict[tuple[str, str], FloatArray]:
    """Return every score of each row of weights."""
    found: dict[tuple[str, str], FloatArray] = {}
    total = weights.sum(axis=1)
    prevalence = weights @ votes.share / total[:, None]
    told = weights @ (votes.share * np.log(np.maximum(fates, SMALLEST))).sum(axis=1) / total
    base = (prevalence * np.log(np.maximum(prevalence, SMALLEST))).sum(axis=1)
    ranks, slopes = [], []
    for k, name in enumerate(names):
        f, y = fates[:, k], votes.share[:, k]
        found[name, "auc"] = _auc(f, y, weights)
        covariance, spread, other = _moments(rankdata(f), rankdata(y), weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            found[name, "rank_correlation"] = covariance / np.sqrt(spread * other)
            covariance, spread, _ = _moments(f, y, weights)
            found[name, "slope"] = np.where(spread > 1e-12, covariance / spread, np.nan)
        ranks.append(found[name, "rank_correlation"])
        slopes.append((covariance, spread))
    # Over all fates: means by how frequent they are, and one line through all points.
    aucs = np.stack([found[name, "auc"] for name in names], axis=1)
    found[ALL, "auc"] = _mean(aucs, prevalence)
    found[ALL, "rank_correlation"] = _mean(np.stack(ranks, axis=1), prevalence)
    found[ALL, "slope"] = sum(c for c, _ in slopes) / np.maximum(sum(s for _, s in slopes), 1e-12)
    found[ALL, "skill"] = told - base
    return found


def _mean(values: FloatArray, weights: FloatArray) -> FloatArray:
    known = np.where(np.isfinite(values), weights, 0.0)
    with np.errstate(invalid="ignore"):
        return np.asarray((np.nan_to_num(values) * known).sum(axis=1) / known.sum(axis=1))


def _auc(f: FloatArray, y: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the chance that of two sisters' cells the one whose sister has the fate has the higher probability."""
    order = np.argsort(f, kind="stable")
    starts = np.flatnonzero(np.diff(f[order], prepend=-1.0))
    ordered = weights[:, order]
    positive = np.add.reduceat(ordered * y[order], starts, axis=1)
    negative = np.add.reduceat(ordered * (1 - y[order]), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1)))


def _moments(f: FloatArray, y: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the weighted covariance and both variances."""
    total = weights.sum(axis=1)
    mean_f, mean_y = weights @ f / total, weights @ y / total
    return (
        weights @ (f * y) / total - mean_f * mean_y,
        np.maximum(weights @ (f * f) / total - mean_f**2, 0),
        np.maximum(weights @ (y * y) / total - mean_y**2, 0),
    )


def curve_table(
    sisters: Sisters, votes: Votes, n_bins: int, n_bootstraps: int, level: float, random_state: int
) -> pd.DataFrame:
    """Return what sisters became where a fate was given a probability, by bins of equal width."""
    rows = []
    for source, fates in sisters.fates.items():
        for k, fate in enumerate(sisters.names):
            bins = np.minimum((fates[:, k] * n_bins).astype(np.int64), n_bins - 1)
            member = np.eye(n_bins)[bins]
            parts = []
            for weights in resamples(votes, n_bootstraps, np.random.default_rng(random_state)):
                held = weights @ member
                with np.errstate(invalid="ignore", divide="ignore"):
                    parts.append((weights * votes.share[:, k]) @ member / held)
            observed = np.concatenate(parts)
            held = votes.weight @ member
            for b in np.flatnonzero(held > 0):
                here = bins == b
                head = {
                    "source": source,
                    "fate": fate,
                    "predicted": float(votes.weight[here] @ fates[here, k] / held[b]),
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
        for row, (weight, sums) in enumerate(zip(weights, total, strict=True)):
            share = counts / sums
            for i in range(n_fates):
                found[row, i] = weight @ np.minimum(share[:, i : i + 1], share)
    return found
