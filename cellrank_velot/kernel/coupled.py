"""What the couplings of a time series tell by themselves: who becomes which cluster, and pairs for other uses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cellrank_velot._utils.options import Run
from cellrank_velot._utils.validation import check_known, first_names
from cellrank_velot.cells import read_clusters
from cellrank_velot.kernel.base import BaseVelocityKernel
from cellrank_velot.timeseries import PopulationOptions, SnapshotCouplings, cluster_flows, couple_snapshots

__all__ = ["Coupled"]


class Coupled(BaseVelocityKernel):
    """Methods of the kernel that ask its couplings."""

    def cluster_flows(self, cluster_key: str | None = None) -> pd.DataFrame:
        """Return how much mass goes from each cluster of a time point to each of the next, as the couplings say.

        Parameters
        ----------
        cluster_key
            Key in ``adata.obs`` of the clusters; that of the kernel, or ``"clusters"``, where not given.

        Returns
        -------
        Columns ``time``, ``next_time``, ``from``, ``to``, ``mass`` at the start and ``next_mass`` at the end: cells
        multiply or die between. :meth:`plot_sankey` draws it.

        Raises
        ------
        KeyError
            If there are no such clusters.
        RuntimeError
            Before :meth:`compute_velocity`.

        Examples
        --------
        >>> flows = sk.cluster_flows()
        >>> print(flows.query("time == 0")["mass"].sum().round(6))
        1.0
        """
        couplings: SnapshotCouplings = self._needed("couplings", "compute_velocity")
        return cluster_flows(couplings, self._clusters(cluster_key))

    def coupling(self, source: float | None = None, target: float | None = None) -> AnnData:
        """Return the coupling of two time points as CellRank's ``RealTimeKernel`` takes it.

        Parameters
        ----------
        source, target
            Consecutive time points; the first two where not given.

        Returns
        -------
        Cells of the one by cells of the other, with the shares of each cell's descendants in ``X``:
        ``RealTimeKernel(adata, time_key, couplings={(source, target): vk.coupling(source, target)})``, which asks for
        a categorical ``time_key``.

        Raises
        ------
        RuntimeError
            Before :meth:`compute_velocity`.
        ValueError
            If the time points are not consecutive.

        Examples
        --------
        >>> coupling = sk.coupling(0, 1)
        >>> coupling.shape, bool(np.allclose(coupling.X.sum(axis=1), 1))
        ((100, 100), True)
        >>> days = [(0, 1), (1, 2), (2, 3)]
        >>> series.obs["day"] = series.obs["day"].astype("category")
        >>> rk = cr.kernels.RealTimeKernel(
        ...     series, "day", couplings={pair: sk.coupling(*pair) for pair in days}
        ... )
        """
        points = self.cells.time_points
        couplings: SnapshotCouplings = self._needed("couplings", "compute_velocity")
        source = points[0] if source is None else source
        target = points[1] if target is None else target
        k = int(np.searchsorted(points, source))
        if k >= points.size - 1 or points[k] != source or points[k + 1] != target:
            raise ValueError(
                f"Expected two consecutive of the time points {points.tolist()}, found `{source, target}`."
            )
        rows, columns = (np.flatnonzero(self.cells.time == point) for point in (source, target))
        matrix = couplings.matrix(k, self.cells.n_cells)[rows][:, columns]
        shares = sp.diags(1.0 / np.asarray(matrix.sum(axis=1)).ravel()) @ matrix
        obs = self.adata.obs
        return AnnData(sp.csr_matrix(shares), obs=obs.iloc[rows][[]].copy(), var=obs.iloc[columns][[]].copy())

    def _clusters(self, cluster_key: str | None) -> pd.Series:
        return read_clusters(self.adata, cluster_key or self.cluster_key or "clusters", "Pass `cluster_key`.")

    def _coupled(self, n_passes: int, run: Run) -> SnapshotCouplings:
        """Return the couplings as they are with another number of passes; the last ones are kept."""
        couplings: SnapshotCouplings = self._needed("couplings", "compute_velocity")
        options, windows = self._options.get("velocity"), self._needed("windows", "compute_windows")
        if not isinstance(options, PopulationOptions):
            raise RuntimeError("Compute the velocity first, as `.compute_velocity()`: its parameters were not saved.")
        if n_passes == options.n_passes or min(options.both_tau) == 1:
            return couplings
        if self._paths is None or self._paths[0] != n_passes:
            # Of a kernel that was read from a file, the growth that was expected is in its data.
            prior = self._prior_growth(options.growth_key) if self._prior is None else self._prior
            found, _ = couple_snapshots(
                self.cells.x,
                self.cells.time,
                windows,
                replace(options, n_passes=n_passes),
                prior=prior,
                mass=couplings.mass,
                run=run,
            )
            self._paths = n_passes, found
        return self._paths[1]

    def _prior_growth(self, growth_key: str | None) -> NDArray[np.float64] | None:
        """Return the growth rates that are expected, shape ``[n_cells]``."""
        if growth_key is None:
            return None
        check_known(
            "adata.obs", growth_key, self.adata.obs.columns, "Compute it with `cellrank_velot.pp.score_growth`."
        )
        try:
            growth = self.adata.obs[growth_key].to_numpy(dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise TypeError(f"Expected `adata.obs[{growth_key!r}]` to be numeric.") from error
        bad = ~np.isfinite(growth)
        if bad.any():
            raise ValueError(
                f"Expected finite growth rates in `adata.obs[{growth_key!r}]`, found NaN or infinite ones in "
                f"`{bad.sum()}` cells: {first_names(self.adata.obs_names, bad)}."
            )
        return -growth if self._reversed else growth
