"""Tables of fates and ancestors from particles of a process, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from cellrank_velot._utils.validation import check_seed

__all__ = ["ProcessFates", "fate_table", "labels_near"]

N_BOOTSTRAPS = 200
# Ends of the intervals, as shares.
LEVELS = (0.025, 0.975)
REST = "rest"


@dataclass(frozen=True, eq=False)
class ProcessFates:
    """Shares of descendants, or of ancestors, by cluster.

    Attributes
    ----------
    table
        Shares, cells or groups as rows and clusters as columns; rows sum to one.
    low, high
        Ends of the 95 % intervals, of the same shape. They cover the chance of the particles, not the error of the
        field.
    growth
        Descendants per cell of each row; one for ancestors.

    Examples
    --------
    >>> fates = sk.fate_probabilities(group_by="clusters", n_particles=5)
    >>> bool((fates.low <= fates.table).all(axis=None))
    True
    >>> bool((fates.growth.index == fates.table.index).all())
    True
    """

    table: pd.DataFrame
    low: pd.DataFrame
    high: pd.DataFrame
    growth: pd.Series

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row for each share.

        Returns
        -------
        The row (``from``), the cluster (``to``), the ``share``, and the ends of its interval, ``low`` and ``high``.

        Examples
        --------
        >>> fates = sk.fate_probabilities(group_by="clusters", n_particles=5)
        >>> fates.to_frame().columns.tolist()
        ['from', 'to', 'share', 'low', 'high']
        """
        columns = {"share": self.table, "low": self.low, "high": self.high}
        names = ["from", "to"]
        return (
            pd.concat({name: table.stack() for name, table in columns.items()}, axis=1).rename_axis(names).reset_index()
        )

    def __repr__(self) -> str:
        n_rows, n_columns = self.table.shape
        return f"{type(self).__name__} of {n_rows} rows and {n_columns} clusters\n{self.table.round(3)}"


def labels_near(
    positions: NDArray[np.float64],
    x: NDArray[np.float64],
    labels: NDArray[np.int64],
    n_labels: int,
    n_neighbors: int = 15,
) -> NDArray[np.float64]:
    """Return the shares of each label among the cells nearest to positions.

    Parameters
    ----------
    positions
        Positions of shape ``[n_positions, n_dims]``.
    x
        Positions of the cells, shape ``[n_cells, n_dims]``.
    labels
        Code of each cell, shape ``[n_cells]``; negative ones do not count.
    n_labels
        Number of labels.
    n_neighbors
        Number of nearest cells; all cells where there are fewer.

    Returns
    -------
    The shares, shape ``[n_positions, n_labels]``. Rows sum to one, or to zero where no cell nearby has a label.

    Examples
    --------
    >>> x, labels = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 0, 1, 1])
    >>> dynamics.labels_near(np.array([[0.9]]), x, labels, n_labels=2, n_neighbors=4).tolist()
    [[0.5, 0.5]]
    """
    search = NearestNeighbors(n_neighbors=min(n_neighbors, x.shape[0])).fit(x)
    near = labels[search.kneighbors(positions, return_distance=False)]
    shares = np.zeros((positions.shape[0], n_labels))
    rows = np.broadcast_to(np.arange(near.shape[0])[:, None], near.shape)
    known = near >= 0
    np.add.at(shares, (rows[known], near[known]), 1.0)
    return shares / np.maximum(shares.sum(axis=1, keepdims=True), 1.0)


def fate_table(
    shares: NDArray[np.float64],
    weights: NDArray[np.float64],
    groups: Sequence[str] | pd.Index,
    names: Sequence[str],
    wanted: Sequence[str] | None = None,
    random_state: int = 0,
) -> ProcessFates:
    """Return the weighted mean of particles' shares by group, with bootstrap intervals over the particles.

    Parameters
    ----------
    shares
        Share of each cluster in each particle, shape ``[n_particles, n_clusters]``.
    weights
        Weight of each particle, shape ``[n_particles]``.
    groups
        Group of each particle, of length ``n_particles``.
    names
        Names of the clusters, of length ``n_clusters``.
    wanted
        Clusters to keep; the others are summed as ``"rest"``. All that occur where not given.
    random_state
        Seed of the bootstrap.

    Returns
    -------
    The table, its 95 % intervals, and the mean weight of the particles of each group. Rows sum to one.

    Examples
    --------
    >>> shares = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    >>> fates = dynamics.fate_table(
    ...     shares, np.array([1.0, 1.0, 3.0]), ["one", "one", "two"], ["A", "B"]
    ... )
    >>> fates.table.loc["one"].tolist(), float(fates.growth["two"])
    ([0.75, 0.25], 3.0)
    """
    frame = pd.DataFrame(shares, columns=list(names))
    if wanted is None:
        frame = frame.loc[:, frame.sum() > 0]
    else:
        others = frame.drop(columns=list(wanted)).sum(axis=1)
        frame = frame[list(wanted)]
        if others.any():
            frame = frame.assign(**{REST: others})
    codes, rows = pd.factorize(pd.Index(groups))
    rng = np.random.default_rng(check_seed(random_state))
    found = [_mean_by(frame.to_numpy(), weights, codes, rows.size)]
    # Poisson numbers of each particle are a bootstrap without its bookkeeping.
    found += [
        _mean_by(frame.to_numpy(), weights * rng.poisson(1.0, weights.size), codes, rows.size)
        for _ in range(N_BOOTSTRAPS)
    ]
    ends = np.nanquantile(np.stack(found[1:]), LEVELS, axis=0)
    index = pd.Index(rows, name=None)
    table, low, high = (pd.DataFrame(values, index=index, columns=frame.columns) for values in (found[0], *ends))
    growth = np.bincount(codes, weights) / np.bincount(codes)
    return ProcessFates(table, low, high, pd.Series(growth, index=index, name="growth"))


def _mean_by(
    values: NDArray[np.float64], weights: NDArray[np.float64], codes: NDArray[np.int64], n: int
) -> NDArray[np.float64]:
    sums = np.stack([np.bincount(codes, weights * column, minlength=n) for column in values.T], axis=1)
    total = np.bincount(codes, weights, minlength=n)[:, None]
    return np.divide(sums, total, out=np.full_like(sums, np.nan), where=total > 0)
