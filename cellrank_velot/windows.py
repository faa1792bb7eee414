"""Windows: groups of cells that are near each other in the basis and in time, and the pairs between which cells move.

Depends on numpy and scikit-learn; knows neither AnnData nor transport.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans

from cellrank_velot._stage import Stage
from cellrank_velot._validation import check_choice, check_integer, check_number

__all__ = ["Tail", "Windows", "build_windows", "cluster_cells"]

logger = logging.getLogger("cellrank_velot")

Tail = Literal["force", "drop", "split"]

# Above this many cells, clusters come from mini-batches: the cost of a full KMeans step is no longer small.
MINI_BATCH_ABOVE = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class Windows(Stage):
    """Windows of cells and the pairs of windows between which mass is transported.

    Attributes
    ----------
    indices
        Cells of all windows one after the other, shape ``[n_entries]``.
    offsets
        Where each window starts in ``indices``, and the end, shape ``[n_windows + 1]``.
    pairs
        Source and target window of each pair, shape ``[n_pairs, 2]``.
    dt
        Time from source to target of each pair, difference of the windows' mean times, shape ``[n_pairs]``.
    cluster
        Spatial cluster of each cell, shape ``[n_cells]``.
    n_skipped
        Number of clusters too small for a pair of windows.
    """

    indices: NDArray[np.int64]
    offsets: NDArray[np.int64]
    pairs: NDArray[np.int64]
    dt: NDArray[np.float64]
    cluster: NDArray[np.int64]
    n_skipped: int

    def __post_init__(self) -> None:
        """Check that every index has something to point to."""
        Stage.__post_init__(self)
        if self.pairs.ndim != 2 or self.pairs.shape[1] != 2:
            raise ValueError(f"Expected `pairs` of shape `[n_pairs, 2]`, found `{self.pairs.shape}`.")
        if self.dt.shape != (self.n_pairs,):
            raise ValueError(f"Expected `dt` of shape `({self.n_pairs},)`, found `{self.dt.shape}`.")
        if self.indices.size and not 0 <= self.indices.min() <= self.indices.max() < self.n_cells:
            raise ValueError(f"Expected `indices` below `{self.n_cells}`, found `{self.indices.max()}`.")

    @property
    def n_cells(self) -> int:
        """Number of cells that the windows were drawn from."""
        return int(self.cluster.size)

    @property
    def n_windows(self) -> int:
        """Number of windows."""
        return int(self.offsets.size - 1)

    @property
    def n_pairs(self) -> int:
        """Number of pairs of windows."""
        return int(self.pairs.shape[0])

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of cells in each window, shape ``[n_windows]``."""
        return np.diff(self.offsets)

    def cells(self, window: int) -> NDArray[np.int64]:
        """Return the cells of one window."""
        return self.indices[self.offsets[window] : self.offsets[window + 1]]

    @classmethod
    def from_pairs(
        cls, pairs: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], time: NDArray[np.float64]
    ) -> Windows:
        """Build windows from pairs of cell indices, as other packages keep them.

        Parameters
        ----------
        pairs
            Source and target cells of each pair.
        time
            Time of each cell, shape ``[n_cells]``.
        """
        windows = [np.asarray(window, dtype=np.int64) for pair in pairs for window in pair]
        numbers = np.arange(len(windows), dtype=np.int64).reshape(-1, 2)
        return _assemble(windows, numbers, time, np.zeros(time.size, dtype=np.int64), n_skipped=0)


def build_windows(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    *,
    labels: NDArray[np.int64] | None = None,
    n_clusters: int | None = None,
    window_size: int | None = None,
    overlap: float = 0.5,
    min_window_size: int = 20,
    tail: Tail = "force",
    tail_threshold: int = 10,
    random_state: int = 0,
) -> Windows:
    """Cut each spatial cluster into overlapping windows of time and pair consecutive ones.

    Parameters
    ----------
    x
        Positions of shape ``[n_cells, n_dims]``.
    time
        Time of each cell, shape ``[n_cells]``.
    labels
        Cluster of each cell, shape ``[n_cells]``, codes from zero. KMeans in ``x`` where not given.
    n_clusters
        Number of clusters; a hundredth of the cells, from 5 to 30, where not given.
    window_size
        Cells per window; a quarter of the mean cluster where not given. A smaller cluster takes half of its cells.
    overlap
        Fraction of a window shared with the next one, in ``[0, 1)``.
    min_window_size
        Smallest window. A cluster of less than twice as many cells is skipped, and counted.
    tail
        What happens to the last cells of a cluster where they don't fill a window: ``"force"`` takes a last full
        window that ends with them, ``"drop"`` does so only for at least ``tail_threshold`` cells, ``"split"``
        shares them between two last windows.
    tail_threshold
        Cells that are worth a window of their own under ``"drop"``.
    random_state
        Seed of KMeans.

    Raises
    ------
    ValueError
        If a parameter is out of range or there are fewer cells than two windows.
    """
    check_number("overlap", overlap, low=0, high=1, open_high=True)
    check_integer("min_window_size", min_window_size, low=2)
    check_integer("tail_threshold", tail_threshold)
    check_choice("tail", tail, Tail)
    n_cells = x.shape[0]
    if n_cells < 2 * min_window_size:
        raise ValueError(
            f"Expected at least two windows of `min_window_size={min_window_size}` cells, found `{n_cells}` cells."
        )
    if labels is None:
        labels = cluster_cells(x, n_clusters, random_state=random_state)
    n_labels = int(labels.max()) + 1
    size = check_integer("window_size", window_size or n_cells // n_labels // 4 or 1, low=1)

    windows: list[NDArray[np.int64]] = []
    pairs: list[tuple[int, int]] = []
    skipped = 0
    for members in _groups(labels, n_labels):
        if members.size < 2 * min_window_size:
            skipped += 1
            continue
        ordered = members[np.argsort(time[members], kind="stable")]
        local = max(min(size, ordered.size // 2), min_window_size)
        cut = _cut(ordered, local, max(1, int(local * (1 - overlap))), tail, tail_threshold)
        first = len(windows)
        pairs += [(i, i + 1) for i in range(first, first + len(cut) - 1)]
        windows += cut
    if not pairs:
        raise ValueError(
            f"Expected a cluster of at least two windows of `min_window_size={min_window_size}` cells, found clusters "
            f"of at most `{np.bincount(labels).max()}`. Lower `n_clusters` or `min_window_size`."
        )
    if skipped:
        logger.warning("Skipped %d of %d clusters with fewer than %d cells", skipped, n_labels, 2 * min_window_size)
    return _assemble(windows, np.asarray(pairs, dtype=np.int64), time, labels, skipped)


def cluster_cells(x: NDArray[np.float64], n_clusters: int | None = None, *, random_state: int = 0) -> NDArray[np.int64]:
    """Cluster cells by KMeans, in mini-batches above 20 000 cells.

    Parameters
    ----------
    x
        Positions of shape ``[n_cells, n_dims]``.
    n_clusters
        Number of clusters; a hundredth of the cells, from 5 to 30, where not given.
    random_state
        Seed.

    Returns
    -------
    Labels of shape ``[n_cells]``.
    """
    if n_clusters is None:
        n_clusters = min(max(5, min(30, x.shape[0] // 100)), x.shape[0])
    check_integer("n_clusters", n_clusters, low=1)
    if n_clusters > x.shape[0]:
        raise ValueError(f"Expected `n_clusters` of at most the number of cells, `{x.shape[0]}`, found `{n_clusters}`.")
    model = (
        KMeans(n_clusters, n_init=10, random_state=random_state)
        if x.shape[0] <= MINI_BATCH_ABOVE
        else MiniBatchKMeans(n_clusters, n_init=3, batch_size=4096, random_state=random_state)
    )
    labels: NDArray[np.int64] = model.fit_predict(x).astype(np.int64)
    return labels


def _groups(labels: NDArray[np.int64], n_labels: int) -> list[NDArray[np.int64]]:
    """Return the cells of each label."""
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=n_labels))
    return np.split(order, ends[:-1])


def _cut(ordered: NDArray[np.int64], size: int, step: int, tail: Tail, tail_threshold: int) -> list[NDArray[np.int64]]:
    """Cut cells, ordered by time, into windows of one size; the last cells as ``tail`` says."""
    n = ordered.size
    starts = list(range(0, n - size + 1, step))
    rest = n - starts[-1] - step
    if starts[-1] + size < n:
        if tail == "split" and rest >= 2:
            starts += [max(0, n - rest // 2 - size), n - size]
        elif tail != "drop" or rest >= tail_threshold:
            starts.append(n - size)
    unique = np.unique(starts)  # a repeated window would be paired with itself
    return list(ordered[unique[:, None] + np.arange(size)])


def _assemble(
    windows: list[NDArray[np.int64]],
    pairs: NDArray[np.int64],
    time: NDArray[np.float64],
    labels: NDArray[np.int64],
    n_skipped: int,
) -> Windows:
    offsets = np.concatenate([[0], np.cumsum([window.size for window in windows])]).astype(np.int64)
    indices = np.concatenate(windows)
    mean_time = np.add.reduceat(time[indices], offsets[:-1]) / np.diff(offsets)
    dt = mean_time[pairs[:, 1]] - mean_time[pairs[:, 0]]
    return Windows(indices, offsets, pairs, dt, np.asarray(labels, dtype=np.int64), n_skipped)
