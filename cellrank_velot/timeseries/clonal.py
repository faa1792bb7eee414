"""How much cells of one place differ in their ways, by cells of one clone: the regularisation of the couplings."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.device import resolve_device, single_thread
from cellrank_velot._utils.options import Run
from cellrank_velot._utils.stage import TINY, Stage, stored
from cellrank_velot.timeseries.batch import ROUGH_TOL, Batch, mean_square
from cellrank_velot.timeseries.options import CouplingOptions

__all__ = ["EpsilonChoice", "choose_epsilon"]

logger = logging.getLogger("cellrank_velot")

FloatArray = NDArray[np.float64]

# Values that are tried: half octaves.
TRIED = tuple(0.0125 * 2 ** (k / 2) for k in range(13))
# Cells of a time point that are coupled for it, at most. Half of them may be there for their clone.
MOST_CELLS = 800
# Chance that a sister may be anywhere: one pair that a coupling holds for impossible must not decide.
ANYWHERE = 0.1
FEWEST_CLONES = 10


@dataclass(frozen=True, slots=True, eq=False)
class EpsilonChoice(Stage):
    """How likely the couplings hold the sisters of cells, by their regularisation.

    Attributes
    ----------
    epsilon
        Values that were tried, shape ``[n_tried]``.
    log_likelihood
        Mean over clones of the logarithm of the mass from a cell to a sister, over that to any cell, shape
        ``[n_tried]``.
    error
        Standard error of its difference to the best one, shape ``[n_tried]``.
    best
        The value with the highest likelihood.
    n_clones
        Number of clones with cells at two consecutive time points; one that has cells at three counts twice.
    """

    epsilon: FloatArray = field(metadata=stored("n_tried", low=TINY))
    log_likelihood: FloatArray = field(metadata=stored("n_tried"))
    error: FloatArray = field(metadata=stored("n_tried", low=0))
    best: float
    n_clones: int


def choose_epsilon(
    x: FloatArray,
    time: FloatArray,
    clone: NDArray[np.int64],
    options: CouplingOptions = CouplingOptions(),
    *,
    prior: FloatArray | None = None,
    run: Run = Run(),
) -> EpsilonChoice:
    """Choose the regularisation by which the couplings lead cells to where their sisters are.

    A sister at the next time point shows where the descendants of a cell would be. The coupling of a cell is a
    distribution over the cells of the next time point, and the choice is that which gives the sisters the highest
    likelihood, a mean over clones. ``clone`` is the clone of each cell, -1 for none.
    """
    where = resolve_device(run.device)
    rng = np.random.default_rng(options.random_state)
    times = np.unique(time)
    scores, rough = [], max(options.tol, ROUGH_TOL)
    with single_thread(where):
        for start, end in zip(times[:-1], times[1:], strict=True):
            # Which clones come first is the same at both time points.
            rank = rng.permutation(int(clone.max()) + 2)
            rank[np.setxor1d(clone[time == start], clone[time == end])] = rank.size
            rank[-1] = rank.size  # cells without a clone
            i, j = (_some(np.flatnonzero(time == t), rank[clone], rng) for t in (start, end))
            shared = np.intersect1d(clone[i], clone[j])
            shared = shared[shared >= 0]
            if not shared.size:
                continue
            expected = np.zeros(i.size) if prior is None else prior[i] * (end - start)
            scale = mean_square(x[time == start], x[time == end])
            tried = []
            for epsilon in TRIED:
                batch = Batch(x[i], x[j], expected, scale, replace(options, epsilon=epsilon, tol=rough), where)
                share = (batch.plan / batch.rows[:, None]).cpu().numpy()
                tried.append(_of_clones(share, clone[i], clone[j], shared))
            scores.append(np.stack(tried))
    found = np.concatenate(scores, axis=1) if scores else np.empty((len(TRIED), 0))
    if found.shape[1] < FEWEST_CLONES:
        raise ValueError(
            f"Expected at least `{FEWEST_CLONES}` clones with cells at two consecutive time points to choose `epsilon` "
            f"by, found `{found.shape[1]}`."
        )
    mean = found.mean(axis=1)
    best = int(mean.argmax())
    error = (found - found[best]).std(axis=1) / np.sqrt(found.shape[1])
    if best in (0, len(TRIED) - 1):
        logger.warning("The best `epsilon` by clones, %g, is the end of the range that was tried", TRIED[best])
    return EpsilonChoice(np.array(TRIED), mean, error, float(TRIED[best]), int(found.shape[1]))


def _some(cells: NDArray[np.int64], rank: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return some of many cells: half of them of the clones that come first, the others by chance."""
    if cells.size <= MOST_CELLS:
        return cells
    order = rng.permutation(cells)
    by_clone = order[np.argsort(rank[order], kind="stable")]
    n_known = min(MOST_CELLS // 2, int((rank[cells] < rank.max()).sum()))
    chosen = by_clone[:n_known]
    others = rng.permutation(by_clone[n_known:])[: MOST_CELLS - n_known]
    return np.sort(np.concatenate([chosen, others]))


def _of_clones(
    share: FloatArray, source: NDArray[np.int64], target: NDArray[np.int64], shared: NDArray[np.int64]
) -> FloatArray:
    """Return for each clone the mean log of the mass from its cells to their sisters, over that to any cell."""
    n = share.shape[1]
    of_source, of_target = (np.searchsorted(shared, cells).clip(max=shared.size - 1) for cells in (source, target))
    rows = np.flatnonzero(shared[of_source] == source)
    columns = np.flatnonzero(shared[of_target] == target)
    pairs = of_source[rows][:, None] == of_target[columns]
    at, to = np.nonzero(pairs)
    each = np.log((1 - ANYWHERE) * share[rows[at], columns[to]] * n + ANYWHERE)
    of = of_source[rows[at]]
    return np.bincount(of, each, minlength=shared.size) / np.bincount(of, minlength=shared.size)
