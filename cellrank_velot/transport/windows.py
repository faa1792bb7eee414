"""Windows: groups of cells that are near each other in the basis and in time, and the pairs that cells move between."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.shown import extent
from cellrank_velot._utils.stage import Stage, stored
from cellrank_velot._utils.validation import check_choice, check_integer, check_number, check_seed

__all__ = ["Tail", "WindowOptions", "Windows", "build_windows", "cluster_cells"]

logger = logging.getLogger("cellrank_velot")

Tail = Literal["force", "drop", "split"]

# KMeans is fitted to so many cells at most, drawn at random: more would not move the centres.
CLUSTER_CELLS = 10_000
# Larger windows cost more and resolve less: the cost of transport grows with their square.
MAX_WINDOW_SIZE = 60
# Cells whose distances to all centres are computed at a time.
CHUNK_CELLS = 65_536
# The usual lag and the longest, as shares of the whole time. With longer ones, late cells have no later window.
USUAL_LAG, LONGEST_LAG = 0.06, 0.12
# From this share of cells without a window on, there is a warning.
MANY = 0.05


@dataclass(frozen=True, kw_only=True)
class WindowOptions(Options):
    """How windows are cut and paired, as :meth:`~cellrank_velot.OTVelocityKernel.compute_windows` explains."""

    n_clusters: int | None = None
    window_size: int | None = None
    overlap: float = 0.5
    min_window_size: int = 20
    time_lag: float | Literal["auto"] | None = "auto"
    overlap_clusters: int | None = None
    tail: Tail = "force"
    tail_threshold: int = 10
    n_smooth: int = 2
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        self._where_missing(n_smooth=0)
        check_integer("n_smooth", self.n_smooth)
        if self.n_clusters is not None:
            check_integer("n_clusters", self.n_clusters, low=1)
        check_number("overlap", self.overlap, low=0, high=1, open_high=True)
        check_integer("min_window_size", self.min_window_size, low=2)
        if self.window_size is not None:
            check_integer("window_size", self.window_size, low=self.min_window_size)
        if isinstance(self.time_lag, str):
            check_choice("time_lag", self.time_lag, ["auto"])
        elif self.time_lag is not None:
            check_number("time_lag", self.time_lag, low=0, open_low=True)
        if self.overlap_clusters is not None:
            check_integer("overlap_clusters", self.overlap_clusters, low=1)
        check_choice("tail", self.tail, Tail)
        check_integer("tail_threshold", self.tail_threshold)
        check_seed(self.random_state)


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
    time_lag
        Time from a window to its target that was asked for or found; NaN where windows were paired otherwise.
    n_smooth
        Number of times that positions were smoothed before.

    Examples
    --------
    >>> source, target = vk.windows.pairs[0]
    >>> earlier = vk.smoothed.time[vk.windows.cells(source)].mean()
    >>> later = vk.smoothed.time[vk.windows.cells(target)].mean()
    >>> bool(np.isclose(later - earlier, vk.windows.dt[0]))
    True
    """

    indices: NDArray[np.int64] = field(metadata=stored("n_entries", low=0, high="n_cells"))
    offsets: NDArray[np.int64] = field(metadata=stored("n_offsets", low=0))
    pairs: NDArray[np.int64] = field(metadata=stored("n_pairs", 2, low=0, high="n_offsets"))
    dt: NDArray[np.float64] = field(metadata=stored("n_pairs"))
    cluster: NDArray[np.int64] = field(metadata=stored("n_cells", low=0))
    n_skipped: int = field(metadata=stored(low=0))
    time_lag: float = field(default=float("nan"), metadata=stored(gaps=True))
    n_smooth: int = field(default=0, metadata=stored(low=0))

    def __post_init__(self) -> None:
        """Check that every index has something to point to."""
        Stage.__post_init__(self)
        if self.pairs.ndim != 2 or self.pairs.shape[1] != 2:
            raise ValueError(f"Expected `pairs` of shape `[n_pairs, 2]`, found `{self.pairs.shape}`.")
        if self.dt.shape != (self.n_pairs,):
            raise ValueError(f"Expected `dt` of shape `({self.n_pairs},)`, found `{self.dt.shape}`.")
        if self.indices.size and not 0 <= self.indices.min() <= self.indices.max() < self.n_cells:
            raise ValueError(f"Expected `indices` below `{self.n_cells}`, found `{self.indices.max()}`.")
        ends = (self.offsets[0], self.offsets[-1]) if self.offsets.size else (-1, -1)
        if ends != (0, self.indices.size) or (np.diff(self.offsets) < 0).any():
            raise ValueError(f"Expected `offsets` that ascend from `0` to `{self.indices.size}`, found `{ends}`.")
        if self.pairs.size and not 0 <= self.pairs.min() <= self.pairs.max() < self.n_windows:
            raise ValueError(f"Expected `pairs` of windows below `{self.n_windows}`, found `{self.pairs.max()}`.")

    def _facts(self) -> dict[str, Any]:
        facts = {"windows": self.n_windows, "pairs": self.n_pairs, "cells": self.n_cells}
        return facts | {"cells_each": extent(self.sizes), "time_apart": extent(self.dt)}

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
        """Return the cells of one window.

        Parameters
        ----------
        window
            Number of the window, from zero.
        """
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
    options: WindowOptions = WindowOptions(),
    *,
    labels: NDArray[np.int64] | None = None,
    components: NDArray[np.int64] | None = None,
) -> Windows:
    """Cut each neighbourhood of cells into overlapping windows of time, and pair each with a later one.

    A neighbourhood is a cluster (of ``labels``, or of KMeans) with the nearest cells of other clusters. No window has
    cells of two ``components`` of the graph. Positions and time are taken as they are: ``n_smooth`` is for the caller.
    """
    min_size = options.min_window_size
    _check_sizes(x.shape[0], options)
    if labels is None:
        labels = cluster_cells(x, options.n_clusters, random_state=options.random_state)
    codes = np.unique(labels, return_inverse=True)[1]
    groups = _neighborhoods(x, codes, options.overlap_clusters or min(3, (int(codes.max()) + 2) // 2))
    if components is not None:
        groups = [group[components[group] == part] for group in groups for part in np.unique(components[group])]
    size = options.window_size or min(MAX_WINDOW_SIZE, sum(map(len, groups)) // len(groups) // 4)

    neighborhoods = []
    for members in groups:
        if members.size < 2 * min_size:
            continue
        ordered = members[np.argsort(time[members], kind="stable")]
        local = max(min(size, ordered.size // 2), min_size)
        step = max(1, int(round(local * (1 - options.overlap), 6)))
        starts = _starts(ordered.size, local, step, options.tail, options.tail_threshold)
        neighborhoods.append((ordered, starts, local))
    lag = _find_lag(time, neighborhoods) if options.time_lag == "auto" else options.time_lag

    windows: list[NDArray[np.int64]] = []
    pairs: list[NDArray[np.int64]] = []
    for ordered, starts, local in neighborhoods:
        source, target = starts[:-1], starts[1:]
        if lag is not None:
            source, target = _lagged(starts, time[ordered], local, lag)
        used = np.unique([source, target])
        pairs.append(len(windows) + np.searchsorted(used, np.column_stack([source, target])))
        windows += list(ordered[used[:, None] + np.arange(local)])
    skipped = sum(members.size < 2 * min_size for members in groups)
    if not windows:
        raise ValueError(
            f"Found no pair of windows: {skipped} of {len(groups)} clusters have fewer than two windows of "
            f"`min_window_size={min_size}` cells, the others no two windows `time_lag={lag}` apart. "
            "Lower `n_clusters`, `min_window_size` or `time_lag`."
        )
    if skipped:
        n_without = len(time) - np.unique(np.concatenate(windows)).size
        # Clusters overlap: the cells of a small one are mostly in windows of those next to it.
        logger.log(
            logging.WARNING if n_without > MANY * len(time) else logging.INFO,
            "Made no windows in %d of %d spatial clusters with fewer than %d cells; %d of %d cells are in no window",
            skipped,
            len(groups),
            2 * min_size,
            n_without,
            len(time),
        )
    return _assemble(windows, np.concatenate(pairs), time, labels, skipped, lag, options.n_smooth)


def _check_sizes(n_cells: int, options: WindowOptions) -> None:
    if n_cells < 2 * options.min_window_size:
        raise ValueError(
            f"Expected at least two windows of `min_window_size={options.min_window_size}` cells, found `{n_cells}` "
            "cells."
        )
    if options.window_size is not None and options.window_size > n_cells:
        raise ValueError(
            f"Expected `window_size` of at most the number of cells, `{n_cells}`, found `{options.window_size}`."
        )


def cluster_cells(x: NDArray[np.float64], n_clusters: int | None = None, *, random_state: int = 0) -> NDArray[np.int64]:
    """Return the KMeans cluster of each cell, shape ``[n_cells]``; above 10 000 cells, centres are those of as many."""
    if n_clusters is None:
        # With fewer, a neighbourhood would hold several branches.
        n_clusters = min(max(5, min(14, x.shape[0] // 40), min(30, x.shape[0] // 100)), x.shape[0])
    if n_clusters > x.shape[0]:
        raise ValueError(f"Expected `n_clusters` of at most the number of cells, `{x.shape[0]}`, found `{n_clusters}`.")
    if x.shape[0] <= max(CLUSTER_CELLS, n_clusters):
        return np.asarray(KMeans(n_clusters, n_init=10, random_state=random_state).fit_predict(x), dtype=np.int64)
    sample = np.random.default_rng(random_state).choice(x.shape[0], max(CLUSTER_CELLS, n_clusters), replace=False)
    model = KMeans(n_clusters, n_init=3, random_state=random_state).fit(x[np.sort(sample)])
    return np.asarray(model.predict(x), dtype=np.int64)


def _neighborhoods(x: NDArray[np.float64], labels: NDArray[np.int64], n_nearest: int) -> list[NDArray[np.int64]]:
    """Return the cells of each cluster: its own, and those of others that have its centre among their nearest."""
    n_labels = int(labels.max()) + 1
    if n_nearest == 1 or n_labels == 1:
        cells, cluster = np.arange(labels.size), labels
    else:
        n_nearest = min(n_nearest, n_labels)
        members = sp.csr_matrix((np.ones(labels.size), (labels, np.arange(labels.size))), shape=(n_labels, labels.size))
        centres = members @ x / np.maximum(np.bincount(labels, minlength=n_labels), 1)[:, None]
        nearest = np.empty((labels.size, n_nearest), dtype=np.int64)
        for start in range(0, labels.size, CHUNK_CELLS):
            part = slice(start, start + CHUNK_CELLS)
            distance = cdist(x[part], centres, "sqeuclidean")
            # A cell is in its own cluster, whatever the shape of that.
            distance[np.arange(distance.shape[0]), labels[part]] = -1.0
            nearest[part] = np.argpartition(distance, n_nearest - 1, axis=1)[:, :n_nearest]
        cells, cluster = np.repeat(np.arange(labels.size), n_nearest), nearest.ravel()
    order = np.lexsort((cells, cluster))
    return np.split(cells[order], np.cumsum(np.bincount(cluster, minlength=n_labels))[:-1])


def _starts(n: int, size: int, step: int, tail: Tail, tail_threshold: int) -> NDArray[np.int64]:
    """Return where the windows of ``n`` ordered cells start; those of the last cells as ``tail`` says."""
    starts = list(range(0, n - size + 1, step))
    rest = n - starts[-1] - step
    if starts[-1] + size < n:
        if tail == "split" and rest >= 2:
            starts += [max(0, n - rest // 2 - size), n - size]
        elif tail != "drop" or rest >= tail_threshold:
            starts.append(n - size)
    return np.unique(starts)  # a repeated window would be paired with itself


def _lagged(
    starts: NDArray[np.int64], time: NDArray[np.float64], size: int, lag: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair windows with the windows, starting anywhere, whose mean time is nearest to a lag later."""
    summed = np.concatenate([[0.0], np.cumsum(time)])
    mean = np.maximum.accumulate((summed[size:] - summed[:-size]) / size)  # ascending, but for rounding
    wanted = mean[starts] + lag
    above = np.minimum(np.searchsorted(mean, wanted), mean.size - 1)
    below = np.maximum(above - 1, 0)
    target = np.where(wanted - mean[below] < mean[above] - wanted, below, above)
    far = (target > starts) & (mean[target] - mean[starts] >= lag / 2)
    return starts[far], target[far]


def _find_lag(
    time: NDArray[np.float64], neighborhoods: list[tuple[NDArray[np.int64], NDArray[np.int64], int]]
) -> float:
    """Return the usual lag, or the median time that a window spans where that is longer, up to a limit."""
    span = float(np.ptp(time))
    width = [time[o[starts + size - 1]] - time[o[starts]] for o, starts, size in neighborhoods]
    median = float(np.median(np.concatenate(width))) if width else 0.0
    return float(np.clip(median, USUAL_LAG * span, LONGEST_LAG * span))


def _assemble(
    windows: list[NDArray[np.int64]],
    pairs: NDArray[np.int64],
    time: NDArray[np.float64],
    labels: NDArray[np.int64],
    n_skipped: int,
    time_lag: float | None = None,
    n_smooth: int = 0,
) -> Windows:
    offsets = np.concatenate([[0], np.cumsum([window.size for window in windows])]).astype(np.int64)
    indices = np.concatenate(windows)
    mean_time = np.add.reduceat(time[indices], offsets[:-1]) / np.diff(offsets)
    dt = mean_time[pairs[:, 1]] - mean_time[pairs[:, 0]]
    lag = float("nan") if time_lag is None else float(time_lag)
    return Windows(indices, offsets, pairs, dt, np.asarray(labels, dtype=np.int64), n_skipped, lag, n_smooth)
