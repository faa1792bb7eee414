"""Snapshots: the cells of each real time point, and the pairs of batches between which mass is transported."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.validation import check_integer, check_seed
from cellrank_velot.cells.time_points import check_snapshots
from cellrank_velot.transport.windows import Windows

__all__ = ["SnapshotOptions", "build_snapshots"]


@dataclass(frozen=True, kw_only=True)
class SnapshotOptions(Options):
    """How snapshots are cut, as :meth:`~cellrank_velot.OTVelocityKernel.compute_windows` of time points explains."""

    # The cost of transport grows with the square of this size, while the error of a coupling falls with its root.
    batch_size: int = 1500
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        self._without_none("batch_size")
        check_integer("batch_size", self.batch_size, low=2)
        check_seed(self.random_state)


def build_snapshots(time: NDArray[np.float64], options: SnapshotOptions = SnapshotOptions()) -> Windows:
    """Pair each time point with the next one, in random batches where there are many cells.

    The windows are the batches, and the cluster of a cell is the number of its time point. A cell is in one batch of
    sources, unless it is of the last time point, and in one of targets, unless it is of the first.
    """
    points = check_snapshots(time)
    rng = np.random.default_rng(options.random_state)
    snapshot = np.searchsorted(points, time).astype(np.int64)
    cells = [np.flatnonzero(snapshot == k) for k in range(points.size)]
    batches: list[NDArray[np.int64]] = []
    pairs, dt = [], []
    for k in range(points.size - 1):
        n_batches = -(-max(cells[k].size, cells[k + 1].size) // options.batch_size)
        # No batch is left without a cell on either side.
        n_batches = min(n_batches, cells[k].size, cells[k + 1].size)
        for source, target in zip(*(_split(cells[j], n_batches, rng) for j in (k, k + 1)), strict=True):
            pairs.append((len(batches), len(batches) + 1))
            dt.append(points[k + 1] - points[k])
            batches += [source, target]
    return Windows(
        indices=np.concatenate(batches),
        offsets=np.concatenate([[0], np.cumsum([batch.size for batch in batches])]).astype(np.int64),
        pairs=np.array(pairs, dtype=np.int64),
        dt=np.array(dt),
        cluster=snapshot,
        n_skipped=0,
    )


def _split(cells: NDArray[np.int64], n: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    return [np.sort(part) for part in np.array_split(rng.permutation(cells), n)]
