"""Snapshots: the cells of each real time point, and the pairs of batches between which mass is transported.

Depends on windows and numpy; knows neither AnnData nor transport.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_integer, check_seed
from cellrank_velot.cells.time_points import check_snapshots
from cellrank_velot.transport.windows import Windows

__all__ = ["BATCH_SIZE", "build_snapshots"]

#: Cells of a snapshot that are transported together. More cost more than they tell: the cost of transport grows with
#: their square, the error of a coupling falls with their root.
BATCH_SIZE = 1500


def build_snapshots(time: NDArray[np.float64], *, batch_size: int = BATCH_SIZE, random_state: int = 0) -> Windows:
    """Pair each time point with the next one, in random batches where there are many cells.

    Parameters
    ----------
    time
        Time of each cell, shape ``[n_cells]``.
    batch_size
        Largest number of cells transported together. A larger snapshot is cut into batches of like size, and the
        other one into as many.
    random_state
        Seed of the batches.

    Returns
    -------
    Windows, which are the batches. Each cell is in one batch of sources, unless it is of the last time point, and in
    one of targets, unless it is of the first. The cluster of a cell is the number of its time point.

    Raises
    ------
    ValueError
        If an option is out of range or there are fewer than two time points.

    Examples
    --------
    >>> from cellrank_velot.timeseries.snapshots import build_snapshots
    >>> windows = build_snapshots(np.repeat([0.0, 1.0, 3.0], 10))
    >>> windows.pairs.shape, windows.dt.tolist()
    ((2, 2), [1.0, 2.0])
    """
    check_integer("batch_size", batch_size, low=2)
    check_seed(random_state)
    points = check_snapshots(time)
    rng = np.random.default_rng(random_state)
    snapshot = np.searchsorted(points, time).astype(np.int64)
    cells = [np.flatnonzero(snapshot == k) for k in range(points.size)]
    batches: list[NDArray[np.int64]] = []
    pairs, dt = [], []
    for k in range(points.size - 1):
        n_batches = -(-max(cells[k].size, cells[k + 1].size) // batch_size)
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
