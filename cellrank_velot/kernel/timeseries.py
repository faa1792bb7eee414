"""Time series: couplings between time points, populations in between, fates forward and ancestry backward.

Thin calls of the stages; depends on cells, couplings, dynamics, field, interpolation, selection and snapshots.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cellrank_velot._utils.options import Run
from cellrank_velot._utils.validation import check_choice, check_integer, check_known, check_seed, first_names
from cellrank_velot.cells.select import CellSelector, select_cells
from cellrank_velot.cells.time_points import next_time
from cellrank_velot.dynamics import (
    ProcessFates,
    ProcessPaths,
    SimulationOptions,
    fate_table,
    labels_near,
    simulate_process,
)
from cellrank_velot.kernel._parts import Parts
from cellrank_velot.kernel._whole import all_or_nothing
from cellrank_velot.timeseries.couplings import SnapshotCouplings
from cellrank_velot.timeseries.interpolation import Population, interpolate_paths

__all__ = ["TimeSeries"]

logger = logging.getLogger("cellrank_velot")

# Cells whose fates are simulated at most, where a group is asked for: more say the same.
MAX_STARTS = 2000


class TimeSeries(Parts):
    """Methods of a kernel with experimental time."""

    _couplings: SnapshotCouplings | None

    @property
    def couplings(self) -> SnapshotCouplings | None:
        """Pairs of cells of consecutive time points; ``None`` before :meth:`compute_velocity`, or in pseudotime.

        Examples
        --------
        >>> sk.couplings.n_intervals, sk.couplings.times.tolist()
        (3, [0.0, 1.0, 2.0, 3.0])
        """
        return self._couplings

    @property
    def growth(self) -> NDArray[np.float64]:
        """Growth rate of each cell per unit of time, of the field, or of transport before it, shape ``[n_cells]``.

        Examples
        --------
        >>> sk.growth.shape
        (400,)
        """
        self._need_series()
        if self.field is not None and self.field.has_heads:
            return self.field.growth(self.cells.x, self.cells.time)
        growth = self._needed("transport", "compute_velocity").growth
        assert growth is not None
        return np.asarray(growth)

    @all_or_nothing()
    def interpolate(self, time: float, *, method: Literal["paths", "field"] = "paths", **kwargs: Any) -> Population:
        """Return the population at any time between the first and the last time point.

        Parameters
        ----------
        time
            Time, in units of ``time_key``.
        method
            ``"paths"`` for the paths of the coupled cells, see
            :func:`cellrank_velot.timeseries.interpolation.interpolate_paths`; ``"field"`` to let the cells of the time
            point before follow the process to this time, see :func:`cellrank_velot.dynamics.simulate_process`.
        **kwargs
            Passed on to that function.

        Returns
        -------
        The population: weighted positions in the basis.

        Raises
        ------
        RuntimeError
            In pseudotime, or before :meth:`compute_velocity`, for ``"field"`` before :meth:`fit_field`.
        ValueError
            If the time is outside.

        Examples
        --------
        >>> population = sk.interpolate(1.5)
        >>> population.x.shape[1], round(population.mass, 3)
        (10, 1.0)
        >>> sk.interpolate(1.5, method="field").x.shape  # the cells of day 1, moved on
        (100, 10)
        """
        self._need_series()
        check_choice("method", method, ["paths", "field"])
        couplings: SnapshotCouplings = self._needed("couplings", "compute_velocity")
        if method == "paths":
            return interpolate_paths(couplings, self.cells.x, time, **kwargs)
        points = couplings.times
        # The last time point begins no interval.
        before = next_time(points, time) + int(time == points[-1])
        starts = np.flatnonzero(self.cells.time == points[before])
        mass = couplings.mass[before] / starts.size
        if time == points[before]:
            return Population(self.cells.x[starts], np.full(starts.size, mass), float(time), starts)
        paths = self._process(starts, time, kwargs)
        return Population(paths.ends, mass * paths.weights, float(time), paths.start_ix)

    @all_or_nothing()
    def simulate_process(
        self,
        cells: CellSelector | str | Sequence[str] | None = None,
        until: float | None = None,
        *,
        cluster_key: str | None = None,
        n_particles: int = 1000,
        n_saved: int = 50,
        **kwargs: Any,
    ) -> ProcessPaths:
        """Let particles follow the process from some cells, forward to their descendants or backward to ancestors.

        Parameters
        ----------
        cells
            Cells to start from: names, a mask, ``{"clusters": "HSC"}``, or the name of a cluster, of the first time
            point, or of the last one where ``until`` is the first. All cells of that time point where not given.
        until
            Time at which particles end; the last time point where not given.
        cluster_key
            Key in ``adata.obs`` of the clusters; that of the kernel, or ``"clusters"``, where not given.
        n_particles
            Number of particles, spread evenly over the cells.
        n_saved
            Number of points kept of each path after its start.
        **kwargs
            Passed on to :func:`cellrank_velot.dynamics.simulate_process`.

        Returns
        -------
        The paths.

        Raises
        ------
        RuntimeError
            In pseudotime.
        ValueError
            If no cell is selected, or the cells are on both sides of ``until``.

        Examples
        --------
        >>> paths = sk.simulate_process("Progenitor A", n_particles=20, n_saved=10)
        >>> paths.x.shape  # points, particles, dimensions
        (11, 20, 10)
        >>> sk.simulate_process("Fate A", until=0, n_particles=20).direction
        'backward'
        """
        self._need_series()
        check_integer("n_particles", n_particles, low=1)
        points = self.cells.time_points
        until = float(points[-1] if until is None else until)
        starts = self._starting(cells, cluster_key, points[0] if until > points[0] else points[-1])
        rng = np.random.default_rng(kwargs.get("random_state", 0))
        chosen = np.sort(np.resize(rng.permutation(starts), n_particles))
        return self._process(chosen, until, {"n_saved": n_saved, **kwargs})

    @all_or_nothing()
    def fate_probabilities(
        self,
        cells: CellSelector | str | Sequence[str] | None = None,
        terminal_clusters: str | Sequence[str] | None = None,
        *,
        cluster_key: str | None = None,
        group_by: str | None = None,
        until: float | None = None,
        n_particles: int = 20,
        weighted: bool = True,
        n_neighbors: int = 15,
        random_state: int = 0,
        **kwargs: Any,
    ) -> ProcessFates:
        """Return the shares of the descendants of cells in each cluster at a later time.

        Particles follow the process forward from each cell, and count as many as the descendants that they stand for.

        Parameters
        ----------
        cells
            Cells: names, a mask, ``{"clusters": "HSC"}``, or the name of a cluster. Those of the first time point where
            not given. All must be earlier than ``until``.
        terminal_clusters
            Clusters to tell apart; what comes to others is summed as ``"rest"``. All where not given.
        cluster_key
            Key in ``adata.obs`` of the clusters; that of the kernel, or ``"clusters"``, where not given.
        group_by
            Key in ``adata.obs`` of groups to sum up; each cell by itself where not given.
        until
            The later time; the last time point where not given.
        n_particles
            Particles of each cell.
        weighted
            Whether growth counts.
        n_neighbors
            Number of cells of that time point nearest to a particle whose clusters it has, in shares.
        random_state
            Seed.
        **kwargs
            Passed on to :func:`cellrank_velot.dynamics.simulate_process`.

        Returns
        -------
        The table, a DataFrame with cells or groups as rows and clusters as columns, and its intervals.

        Raises
        ------
        KeyError
            If a cluster or a key is unknown.
        RuntimeError
            In pseudotime.
        ValueError
            If no cell is selected, or one is not earlier.

        Examples
        --------
        >>> fates = sk.fate_probabilities(
        ...     group_by="clusters", terminal_clusters=["Fate A", "Fate B"]
        ... )
        >>> sorted(fates.table.index), bool(np.allclose(fates.table.sum(axis=1), 1))
        (['Progenitor A', 'Progenitor B'], True)
        >>> one = sk.fate_probabilities("Progenitor B", n_particles=5)  # a row for each cell
        """
        points = self._need_series()
        until = float(points[-1] if until is None else until)
        starts = self._starting(cells, cluster_key, points[0])
        if (self.cells.time[starts] >= until).any():
            raise ValueError(f"Expected cells earlier than `until={until:g}`, found some of `{until:g}` or later.")
        return self._descent(
            starts,
            until,
            terminal_clusters,
            cluster_key,
            group_by,
            n_particles=n_particles,
            weighted=weighted,
            n_neighbors=n_neighbors,
            random_state=random_state,
            options=kwargs,
        )

    @all_or_nothing()
    def ancestry(
        self,
        cells: CellSelector | str | Sequence[str] | None = None,
        initial_clusters: str | Sequence[str] | None = None,
        *,
        cluster_key: str | None = None,
        group_by: str | None = None,
        until: float | None = None,
        n_particles: int = 20,
        n_neighbors: int = 15,
        random_state: int = 0,
        **kwargs: Any,
    ) -> ProcessFates:
        """Return the shares of the ancestors of cells in each cluster at an earlier time.

        Particles follow the reversed process. Parameters, result and errors are those of :meth:`fate_probabilities`,
        from the last time point to the first where not given.

        ``initial_clusters`` are the clusters to tell apart, and ``until`` is the earlier time.

        Examples
        --------
        >>> share = sk.ancestry(group_by="clusters", until=1).table["Progenitor B"]
        >>> bool(share["Fate B"] > share["Fate A"])
        True
        """
        points = self._need_series()
        until = float(points[0] if until is None else until)
        starts = self._starting(cells, cluster_key, points[-1])
        if (self.cells.time[starts] <= until).any():
            raise ValueError(f"Expected cells later than `until={until:g}`, found some of `{until:g}` or earlier.")
        return self._descent(
            starts,
            until,
            initial_clusters,
            cluster_key,
            group_by,
            n_particles=n_particles,
            weighted=False,
            n_neighbors=n_neighbors,
            random_state=random_state,
            options=kwargs,
        )

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
            In pseudotime, or before :meth:`compute_velocity`.
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
        points = self._need_series()
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

    # ------------------------------------------------------------------------------------------------ private
    def _need_series(self) -> NDArray[np.float64]:
        """Return the time points, and refuse pseudotime."""
        if not self.cells.is_series:
            raise RuntimeError(
                "Expected snapshots at real time points, found pseudotime: "
                "`OTVelocityKernel(adata, time_key=..., time_kind='experimental')`."
            )
        return self.cells.time_points

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
        return growth

    def _mass(self, mass: Mapping[float, float] | str | None) -> NDArray[np.float64] | None:
        """Return the mass of each time point, relative to the first."""
        points = self.cells.time_points
        if mass is None:
            return None
        if isinstance(mass, str):
            check_choice("mass", mass, ["counts"])
            values = np.bincount(np.searchsorted(points, self.cells.time)).astype(np.float64)
        else:
            try:
                by_point = {float(key): float(value) for key, value in dict(mass).items()}
            except (TypeError, ValueError):
                by_point = {}
            if set(by_point) != set(points.tolist()):
                raise ValueError(
                    f"Expected `mass` as 'counts' or a mass for each of {points.tolist()}, found `{mass!r}`."
                )
            # Keys may have come as texts, whose order is another.
            values = np.array([by_point[point] for point in points.tolist()])
            if not (np.isfinite(values) & (values > 0)).all():
                raise ValueError(f"Expected positive `mass`, found {values.tolist()}.")
        return np.asarray(values / values[0])

    def _process(self, starts: NDArray[np.int64], until: float, options: Mapping[str, Any]) -> ProcessPaths:
        """Let particles follow the process from cells, which may repeat."""
        how, where = SimulationOptions.split(options)
        run = Run(**where)
        if self.field is None:
            self.fit_field(show_progress_bar=run.show_progress_bar)
        field = self._needed("field", "fit_field")
        x, time = self.cells.x[starts], self.cells.time[starts]
        return simulate_process(field, x, time, until, how, start_ix=starts, run=run)

    def _starting(
        self, cells: CellSelector | str | Sequence[str] | None, cluster_key: str | None, time: float
    ) -> NDArray[np.int64]:
        """Return the numbers of the cells selected; those of a time point where a cluster, or nothing, is given."""
        if cells is None:
            return np.flatnonzero(self.cells.time == time)
        if isinstance(cells, str):
            key = self._cluster_key(cluster_key)
            check_known(f"adata.obs[{key!r}]", cells, self.adata.obs[key].unique())
            chosen = (self.adata.obs[key] == cells).to_numpy() & (self.cells.time == time)
            if not chosen.any():
                raise ValueError(f"Expected cells of {cells!r} at time `{time:g}`, found none.")
            return np.flatnonzero(chosen)
        chosen = np.flatnonzero(select_cells(self.adata, cells))
        if not chosen.size:
            raise ValueError("Expected cells to start from, found none.")
        return chosen

    def _cluster_key(self, cluster_key: str | None) -> str:
        key = cluster_key or self.cluster_key or "clusters"
        check_known("adata.obs", key, self.adata.obs.columns, "Pass `cluster_key`.")
        return key

    def _descent(
        self,
        starts: NDArray[np.int64],
        until: float,
        names: str | Sequence[str] | None,
        cluster_key: str | None,
        group_by: str | None,
        *,
        n_particles: int,
        weighted: bool,
        n_neighbors: int,
        random_state: int,
        options: dict[str, Any],
    ) -> ProcessFates:
        """Return the table of where particles come to."""
        check_integer("n_particles", n_particles, low=1)
        check_integer("n_neighbors", n_neighbors, low=1)
        check_seed(random_state)
        key = self._cluster_key(cluster_key)
        clusters = self.adata.obs[key].astype("category")
        wanted = [names] if isinstance(names, str) else None if names is None else list(names)
        for name in wanted or ():
            check_known(f"adata.obs[{key!r}]", name, clusters.cat.categories)
        wanted = None if wanted is None else [str(name) for name in wanted]
        groups = self.adata.obs_names
        if group_by is not None:
            check_known("adata.obs", group_by, self.adata.obs.columns)
            groups = pd.Index(self.adata.obs[group_by].astype(str))
        if group_by is not None and starts.size > MAX_STARTS:
            starts = np.sort(np.random.default_rng(random_state).choice(starts, MAX_STARTS, replace=False))
        paths = self._process(np.repeat(starts, n_particles), until, {"random_state": random_state, **options})
        points = self.cells.time_points
        nearest = points[np.abs(points - until).argmin()]
        around = np.flatnonzero(self.cells.time == nearest)
        codes = clusters.cat.codes.to_numpy()[around].astype(np.int64)
        categories = [str(name) for name in clusters.cat.categories]
        shares = labels_near(paths.ends, self.cells.x[around], codes, len(categories), n_neighbors)
        weights = paths.weights if weighted else np.ones(paths.n_particles)
        return fate_table(shares, weights, groups[paths.start_ix], categories, wanted, random_state)
