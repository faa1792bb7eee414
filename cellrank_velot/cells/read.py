"""What the kernel needs to know of the cells: positions, time and clusters, read and checked before any work begins."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from cellrank_velot._utils.shown import extent
from cellrank_velot._utils.stage import Stage
from cellrank_velot._utils.validation import check_choice
from cellrank_velot.cells.basis import read_basis
from cellrank_velot.cells.clusters import read_clusters
from cellrank_velot.cells.time import TimeKind, read_time
from cellrank_velot.cells.time_points import check_snapshots

__all__ = ["CellStates", "read_cells"]

logger = logging.getLogger("cellrank_velot")


@dataclass(frozen=True, slots=True, eq=False)
class CellStates(Stage):
    """Positions, time and clusters of the cells.

    Attributes
    ----------
    x
        Positions in the basis, shape ``[n_cells, n_dims]``, finite.
    time
        Time of each cell, shape ``[n_cells]``: pseudotime scaled to ``[0, 1]``, or experimental time in its own units.
    labels
        Codes of the clusters given by the user, shape ``[n_cells]``; ``None`` where no ``cluster_key`` was given.
    time_kind
        ``"pseudotime"`` or ``"experimental"``.

    Examples
    --------
    >>> cells = sk.cells
    >>> cells.x.shape, cells.time_points.tolist(), cells.time_range
    ((400, 10), [0.0, 1.0, 2.0, 3.0], (0.0, 3.0))
    >>> float(cells.unit_time.max())
    1.0
    """

    x: NDArray[np.float64]
    time: NDArray[np.float64]
    labels: NDArray[np.int64] | None
    time_kind: TimeKind = "pseudotime"

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"cells": self.n_cells, "dims": self.n_dims, "time": extent(self.time)}
        return facts if self.labels is None else facts | {"clusters": int(np.unique(self.labels).size)}

    @property
    def is_series(self) -> bool:
        """Whether the cells are snapshots at real time points."""
        return self.time_kind == "experimental"

    @property
    def time_points(self) -> NDArray[np.float64]:
        """The times that there are, ascending: of a time series its time points, shape ``[n_times]``."""
        return np.unique(self.time)

    @property
    def unit_time(self) -> NDArray[np.float64]:
        """Time of each cell as a share of the whole time, in ``[0, 1]``, shape ``[n_cells]``."""
        if not self.is_series:
            return self.time
        first, last = self.time_range
        return (self.time - first) / (last - first)

    @property
    def time_range(self) -> tuple[float, float]:
        """First and last time."""
        return float(self.time.min()), float(self.time.max())

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.x.shape[0])

    def time_at(self, positions: NDArray[np.float64], n_neighbors: int = 15) -> NDArray[np.float64]:
        """Return the mean time of the cells nearest to each position, shape ``[n_points]``.

        Parameters
        ----------
        positions
            Points in the basis, shape ``[n_points, n_dims]``.
        n_neighbors
            Number of cells to average over; all cells where there are fewer.

        Examples
        --------
        >>> vk.cells.time_at(vk.cells.x[:5]).shape
        (5,)
        """
        if not positions.size:
            return np.empty(0)
        search = NearestNeighbors(n_neighbors=min(n_neighbors, self.n_cells)).fit(self.x)
        return np.asarray(self.time[search.kneighbors(positions, return_distance=False)].mean(axis=1))

    @property
    def n_dims(self) -> int:
        """Number of dimensions of the basis."""
        return int(self.x.shape[1])


def read_cells(
    adata: AnnData,
    *,
    time_key: str,
    basis: str,
    cluster_key: str | None,
    conn_key: str = "connectivities",
    time_kind: TimeKind = "pseudotime",
) -> CellStates:
    """Return positions, time and clusters of the cells. A pseudotime is scaled to ``[0, 1]``.

    ``conn_key`` names the neighbour graph, which is asked whether it was built on the basis.
    """
    check_choice("time_kind", time_kind, TimeKind)
    x = read_basis(adata, basis)
    time = read_time(adata, time_key)
    if time_kind == "experimental":
        check_snapshots(time, f"adata.obs[{time_key!r}]")
    else:
        _warn_about_outliers(time, time_key)
        time = (time - time.min()) / np.ptp(time)
    _warn_about_duplicates(x)
    _warn_about_representation(adata, basis, conn_key)
    labels = None
    if cluster_key is not None:
        codes, _ = pd.factorize(read_clusters(adata, cluster_key, complete=True), sort=True)
        labels = codes.astype(np.int64)
    return CellStates(x=x, time=time, labels=labels, time_kind=time_kind)


def _warn_about_outliers(time: NDArray[np.float64], time_key: str) -> None:
    low, high = np.quantile(time, [0.01, 0.99])
    if high - low < 0.2 * np.ptp(time):
        logger.warning(
            "98 %% of the cells have a time from %.3g to %.3g, all of them one from %.3g to %.3g. A few outliers in "
            "`adata.obs[%r]` set the scale: consider clipping them, or ranks",
            *(low, high, time.min(), time.max(), time_key),
        )


def _warn_about_duplicates(x: NDArray[np.float64]) -> None:
    # One random direction tells cells apart as surely as all dimensions do, at the cost of one sort of n numbers.
    direction = np.random.default_rng(0).normal(size=x.shape[1])
    n_duplicates = x.shape[0] - np.unique(np.einsum("ij,j->i", x, direction)).size
    if n_duplicates:
        logger.warning("Found %d cells at the same position as another cell", n_duplicates)


def _warn_about_representation(adata: AnnData, basis: str, conn_key: str) -> None:
    entries = [entry for entry in adata.uns.values() if isinstance(entry, Mapping)]
    params = [e.get("params", {}) for e in entries if e.get("connectivities_key") == conn_key]
    # scanpy takes the PCA where it was not told what to take, and doesn't write that down.
    used = params[0].get("use_rep", "X_pca" if "X_pca" in adata.obsm else None) if params else None
    if isinstance(used, str) and used != basis:
        logger.warning(
            "The neighbour graph was built on %r and velocities are computed in %r. "
            "Consider `scanpy.pp.neighbors(adata, use_rep=%r)`",
            used,
            basis,
            basis,
        )
