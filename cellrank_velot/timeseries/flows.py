"""How much mass goes from each cluster of a time point to each of the next, as the couplings say."""

from __future__ import annotations

import pandas as pd

from cellrank_velot.timeseries.couplings import SnapshotCouplings

__all__ = ["cluster_flows"]


def cluster_flows(couplings: SnapshotCouplings, clusters: pd.Series) -> pd.DataFrame:
    """Return the mass between clusters of consecutive time points, one row for each pair of them that has any.

    Parameters
    ----------
    couplings
        Pairs of cells, and their masses.
    clusters
        Cluster of each cell, categorical, shape ``[n_cells]``.

    Returns
    -------
    Columns ``time``, ``next_time``, ``from``, ``to``, and the mass at both ends, ``mass`` and ``next_mass``. The masses
    of a time point sum to that of the time point.
    """
    names = clusters.cat.categories
    codes = clusters.cat.codes.to_numpy()
    tables = []
    for k in range(couplings.n_intervals):
        part = couplings.pairs(k)
        pairs = pd.DataFrame(
            {
                "time": couplings.times[k],
                "next_time": couplings.times[k + 1],
                "from": pd.Categorical.from_codes(codes[couplings.source[part]], names),
                "to": pd.Categorical.from_codes(codes[couplings.target[part]], names),
                "mass": couplings.start[part],
                "next_mass": couplings.end[part],
            }
        )
        tables.append(pairs.groupby(["time", "next_time", "from", "to"], observed=True).sum().reset_index())
    return pd.concat(tables, ignore_index=True)
