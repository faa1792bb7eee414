"""Whether a time rises with the distance from its own root, cell by cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from cellrank_velot._utils.stage import Stage
from cellrank_velot.direction._common import FloatArray, IntArray, check_cells, check_labels
from cellrank_velot.direction.cycle import find_loop
from cellrank_velot.graph.geodesic import N_SMOOTHING, N_TIME_STEPS, earliest_cells, near_graph, shortest_paths
from cellrank_velot.graph.smoothing import smoothed

__all__ = ["TimeCheck", "time_check"]

# Share of a cluster from which on it is a finding, and fewest cells of a cluster.
NOTABLE, MIN_CELLS = 0.1, 10


@dataclass(frozen=True, slots=True, eq=False)
class TimeCheck(Stage):
    """Result of :func:`time_check`. Printed, it says what it means.

    Attributes
    ----------
    distance
        Distance of each cell from the root along the graph, shape ``[n_cells]``; NaN where no path leads to a cell.
    agreement
        Correlation of time and distance around each cell, shape ``[n_cells]``. Below 0, time falls while the distance
        rises. NaN where one of both is constant or unknown.
    labels
        Cluster of each cell as text, shape ``[n_cells]``; ``None`` where no clusters were given.
    loop
        How the time runs on a closed loop, in words; empty where there is none.

    Examples
    --------
    >>> check = direction.time_check(
    ...     vk.cells.x, vk.cells.time, vk.connectivities, adata.obs["clusters"]
    ... )
    >>> check.agreement.shape, bool(check.falling_share < 0.1), check.loop
    ((300,), True, '')
    """

    distance: NDArray[np.float64]
    agreement: NDArray[np.float64]
    labels: NDArray[np.str_] | None
    loop: str

    @property
    def falling(self) -> NDArray[np.bool_]:
        """Whether time falls with the distance from the root around a cell, shape ``[n_cells]``."""
        return np.asarray(self.agreement < 0)

    @property
    def falling_share(self) -> float:
        """Share of the cells with an agreement around which time falls."""
        return float(self.falling.sum() / max(np.isfinite(self.agreement).sum(), 1))

    def to_frame(self) -> pd.DataFrame:
        """Return share of falling cells, mean agreement and number of cells: of all cells, and of each cluster."""
        known = np.isfinite(self.agreement)
        groups = {"all": known}
        if self.labels is not None:
            groups |= {str(label): known & (self.labels == label) for label in np.unique(self.labels)}
        rows = {
            name: {"falling": self.falling[cells].mean(), "agreement": self.agreement[cells].mean(), "n": cells.sum()}
            for name, cells in groups.items()
            if cells.any()
        }
        table = pd.DataFrame(list(rows.values()), index=list(rows), columns=["falling", "agreement", "n"])
        return table.astype({"n": np.int64})

    @property
    def findings(self) -> list[str]:
        """Sentences on where time falls: in which clusters, the worst first, or without clusters in how many cells."""
        table = self.to_frame() if self.labels is None else self.to_frame().drop(index="all", errors="ignore")
        table = table[(table["falling"] >= NOTABLE) & (table["n"] >= MIN_CELLS)]
        start = "Time" if self.labels is None else "In cluster {} time"
        return [
            f"{start.format(name)} falls with the distance from the root: {row['falling']:.0%} of its cells"
            for name, row in table.sort_values("falling", ascending=False).iterrows()
        ]

    def __str__(self) -> str:
        rises = f"Time rises with the distance from its root in {1 - self.falling_share:.0%} of the cells"
        if not np.isfinite(self.agreement).any():
            rises = "Time and the distance from its root cannot be compared: around no cell do both vary"
        loop = [f"Along this time {self.loop}"] if self.loop else []
        return "\n".join(f"{line}." for line in (rises, *self.findings, *loop))


def time_check(
    x: FloatArray,
    time: FloatArray,
    graph: sp.csr_matrix,
    labels: ArrayLike | None = None,
    roots: ArrayLike | None = None,
) -> TimeCheck:
    """Compare a time with the distance from its own root, along the neighbour graph.

    Both are averaged over nearby cells, and correlated over the cells around each cell. Where time falls while the
    distance from the root rises, the velocity leads back to the root. Such a stretch is an error of the time, or the
    cells reach it in another way than from the root. The distance is that of a geodesic pseudotime
    (:func:`cellrank_velot.pp.set_pseudotime`). On simulated cells with their true time, at most 1 % of the cells fell.

    Parameters
    ----------
    x
        Positions of shape ``[n_cells, n_dims]``.
    time
        Time of each cell, shape ``[n_cells]``.
    graph
        Neighbour graph of shape ``[n_cells, n_cells]``.
    labels
        Cluster of each cell, shape ``[n_cells]``, for shares by cluster; none where not given.
    roots
        Positions of the cells where the process begins. Where not given, the earliest 1 % of the cells of each part of
        the graph, and among its earliest 10 % those that are earlier than all cells around them.

    Returns
    -------
    Distance from the root and agreement of each cell. Printed, it says what they mean.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite or constant, the graph has no edges, or a root is no cell.

    Examples
    --------
    >>> check = direction.time_check(vk.cells.x, vk.cells.time, vk.connectivities)
    >>> print(check)
    Time rises with the distance from its root in 100% of the cells.
    """
    x, time, graph = check_cells(x, time, graph)
    names = None if labels is None else check_labels(labels, time.size).astype(str)
    lengths = near_graph(smoothed(x, graph, N_SMOOTHING), graph)
    near = lengths.sign()
    smooth = smoothed(time, near, N_TIME_STEPS)
    sources = earliest_cells(time, lengths) if roots is None else _checked(roots, time.size)
    distance = shortest_paths(lengths, sources)[0]
    known = np.isfinite(distance)
    distance[~known] = np.nan
    agreement = np.full(time.size, np.nan)
    around = near[known][:, known]
    agreement[known] = _local_correlation(smooth[known], smoothed(distance[known], around, N_TIME_STEPS), around)
    return TimeCheck(distance, agreement, names, str(find_loop(x, time, graph)))


def _checked(roots: ArrayLike, n_cells: int) -> IntArray:
    values = np.atleast_1d(np.asarray(roots))
    if values.size == 0 or values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= n_cells:
        raise ValueError(f"Expected `roots` to be positions among `{n_cells}` cells, found `{values}`.")
    return values.astype(np.int64)


def _local_correlation(a: FloatArray, b: FloatArray, graph: sp.csr_matrix) -> FloatArray:
    """Return the correlation over the cells within two steps of each cell, NaN where one of both is constant."""
    once = sp.csr_matrix(graph + sp.identity(a.size, format="csr"))
    weight = once @ np.asarray(once.sum(axis=1)).ravel()

    def mean(values: FloatArray) -> FloatArray:
        return np.asarray(once @ (once @ values) / weight)

    a, b = a - a.mean(), b - b.mean()
    means = mean(a), mean(b)
    spread = [mean(values**2) - m**2 for values, m in zip((a, b), means, strict=True)]
    floor = [1e-12 * max(float(values.var()), 1e-300) for values in (a, b)]
    varies = (spread[0] > floor[0]) & (spread[1] > floor[1])
    product = np.sqrt(np.where(varies, spread[0] * spread[1], 1.0))
    return np.asarray(np.where(varies, (mean(a * b) - means[0] * means[1]) / product, np.nan))
