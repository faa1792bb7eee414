"""Populations at real time points: growth, what lies between the points, fates forward and ancestry backward."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellrank_velot._utils.options import Run
from cellrank_velot._utils.validation import check_choice, check_integer, check_known
from cellrank_velot.cells import CellSelector, next_time, read_clusters, select_cells
from cellrank_velot.dynamics import (
    ProcessFates,
    ProcessPaths,
    SimulationOptions,
    fate_table,
    labels_near,
    simulate_process,
)
from cellrank_velot.dynamics.process import count_lost
from cellrank_velot.dynamics.region import check_extent
from cellrank_velot.kernel._atomic import all_or_nothing
from cellrank_velot.kernel.coupled import Coupled
from cellrank_velot.timeseries import PATH_PASSES, Population, SnapshotCouplings, interpolate_paths

__all__ = ["Populations"]

logger = logging.getLogger("cellrank_velot")

# Share of the particles outside of the data from which on it is said.
MANY_LOST = 0.02
# Diffusion of fates and ancestors over that of the field: see the page on time series.
FATE_NOISE = 2.0
# Cells whose fates are simulated at most, where groups are asked for: more say the same.
MAX_STARTS = 2000
# Particles from each cell; where groups are asked for, in all, as long as each cell has so many: shares of a group vary
# with its cells far more than with the particles of a cell.
N_PARTICLES, PARTICLES_OF_GROUPS, FEWEST_PARTICLES = 20, 10_000, 5
# Total variation up to which fates of groups are alike, and the fewest groups that are worth a warning.
ALIKE, FEWEST_GROUPS = 0.1, 3

Cells = CellSelector | str | Sequence[str]


class Populations(Coupled):
    """Methods of the kernel for real time points."""

    @property
    def growth(self) -> NDArray[np.float64]:
        """Growth rate of each cell per unit of time, shape ``[n_cells]``: of the field, or of transport before it.

        Examples
        --------
        >>> sk.growth.shape
        (400,)
        """
        if self.field is not None and self.field.has_heads:
            return self.field.growth(self.cells.x, self.cells.time)
        growth = self._needed("transport", "compute_velocity").growth
        assert growth is not None
        return np.asarray(growth)

    @all_or_nothing()
    def interpolate(
        self,
        time: float,
        *,
        method: Literal["paths", "field"] = "paths",
        straight: bool = False,
        n_passes: int = PATH_PASSES,
        noise: bool | float = SimulationOptions.noise,
        n_steps: int = SimulationOptions.n_steps,
        random_state: int = SimulationOptions.random_state,
        device: str = "auto",
        show_progress_bar: bool = True,
    ) -> Population:
        """Return the population at any time between the first and the last time point.

        Parameters
        ----------
        time
            Time, in units of ``time_key``.
        method
            ``"paths"`` places each coupled pair of cells on its path; ``"field"`` lets the cells of the time point
            before follow the process to this time, as :meth:`simulate_process` does.
        straight
            Of ``"paths"``: whether pairs move straight, in place of along cubics through more time points.
        n_passes
            Of ``"paths"``: how often the transport is solved before growth is read from it, as in
            :meth:`compute_velocity`. One pass places cells better; four, the default there, find growth better. The
            first call with a number other than that of the couplings makes pairs of its own.
        noise
            Of ``"field"``: whether particles diffuse. Otherwise they follow the velocity alone.
        n_steps
            Of ``"field"``: number of steps.
        random_state
            Of ``"field"``: seed of the noise.
        device
            Torch device; ``"auto"`` takes a GPU where there is one.
        show_progress_bar
            Whether to show a progress bar.

        Returns
        -------
        The population: weighted positions in the basis. Its mass goes from that of one time point to that of the next
        at a constant rate.

        Raises
        ------
        KeyError
            Of a kernel that was read from a file: if ``growth_key`` of its couplings is not in ``adata.obs``.
        RuntimeError
            Before :meth:`compute_velocity`.
        ValueError
            If the time is outside the time points, or an option is unknown.

        Examples
        --------
        >>> population = sk.interpolate(1.5)
        >>> population.x.shape[1], round(population.mass, 3)
        (10, 1.0)
        >>> sk.interpolate(1.5, method="field").x.shape  # the cells of day 1, moved on
        (100, 10)
        """
        check_choice("method", method, ["paths", "field"])
        check_integer("n_passes", n_passes, low=1)
        options = SimulationOptions(noise=noise, n_steps=n_steps, random_state=random_state)
        run = Run(device=device, show_progress_bar=show_progress_bar)
        couplings: SnapshotCouplings = self._needed("couplings", "compute_velocity")
        if method == "paths":
            next_time(couplings.times, time)  # refuses a time outside before pairs are made
            return interpolate_paths(self._coupled(n_passes, run), self.cells.x, time, straight=straight)
        points = couplings.times
        # The last time point begins no interval.
        before = next_time(points, time) + int(time == points[-1])
        starts = np.flatnonzero(self.cells.time == points[before])
        mass = couplings.mass[before] / starts.size
        if time == points[before]:
            return Population(self.cells.x[starts], np.full(starts.size, mass), float(time), starts)
        paths = self._process(starts, time, options, run)
        return Population(paths.ends, mass * paths.weights, float(time), paths.start_ix)

    @all_or_nothing()
    def simulate_process(
        self,
        cells: Cells | None = None,
        until: float | None = None,
        *,
        cluster_key: str | None = None,
        n_particles: int = 1000,
        n_saved: int = 50,
        noise: bool | float = SimulationOptions.noise,
        n_steps: int = SimulationOptions.n_steps,
        random_state: int = SimulationOptions.random_state,
        device: str = "auto",
        show_progress_bar: bool = False,
    ) -> ProcessPaths:
        """Let particles follow the process from some cells, forward to their descendants or backward to ancestors.

        Parameters
        ----------
        cells
            Cells to start from: names, a mask, ``{"clusters": "HSC"}``, or the name of a cluster, of the first time
            point, or of the last one where ``until`` is the first. All cells of that time point where not given.
        until
            Time at which particles end, in units of ``time_key``; the last time point where not given.
        cluster_key
            Key in ``adata.obs`` of the clusters; that of the kernel, or ``"clusters"``, where not given.
        n_particles
            Number of particles, spread evenly over the cells.
        n_saved
            Number of points kept of each path after its start.
        noise
            Factor on the diffusion of the field. With 0, or ``False``, particles follow the velocity alone, which would
            move the population alike if the field had no error.
        n_steps
            Number of steps.
        random_state
            Seed of the starts and of the noise.
        device
            Torch device; ``"auto"`` takes a GPU where there is one.
        show_progress_bar
            Whether to show a progress bar.

        Returns
        -------
        The paths. Fits the field with its default options where there is none.

        Raises
        ------
        KeyError
            If a cluster or a key is unknown.
        ValueError
            If no cell is selected, the cells are on both sides of ``until``, or an option is out of range.
        FloatingPointError
            If particles leave all bounds.

        Examples
        --------
        >>> paths = sk.simulate_process("Progenitor A", n_particles=20, n_saved=10)
        >>> paths.x.shape  # points, particles, dimensions
        (11, 20, 10)
        >>> sk.simulate_process("Fate A", until=0, n_particles=20).direction
        'backward'
        """
        check_integer("n_particles", n_particles, low=1)
        options = SimulationOptions(noise=noise, n_steps=n_steps, n_saved=n_saved, random_state=random_state)
        run = Run(device=device, show_progress_bar=show_progress_bar)
        points = self.cells.time_points
        until = float(points[-1] if until is None else until)
        starts = self._starting(cells, cluster_key, points[0] if until > points[0] else points[-1])
        chosen = np.sort(np.resize(np.random.default_rng(random_state).permutation(starts), n_particles))
        return self._process(chosen, until, options, run)

    @all_or_nothing()
    def fate_probabilities(
        self,
        cells: Cells | None = None,
        terminal_clusters: str | Sequence[str] | None = None,
        *,
        cluster_key: str | None = None,
        group_by: str | None = None,
        until: float | None = None,
        n_particles: int | None = None,
        weighted: bool = True,
        n_neighbors: int = 15,
        noise: bool | float | None = None,
        n_steps: int = SimulationOptions.n_steps,
        random_state: int = SimulationOptions.random_state,
        device: str = "auto",
        show_progress_bar: bool = False,
    ) -> ProcessFates:
        """Return the shares of the descendants of cells in each cluster at a later time.

        Particles follow the process forward from each cell. A particle counts as the number of descendants that it
        stands for.

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
            The later time, in units of ``time_key``; the last time point where not given.
        n_particles
            Number of particles from each cell. By default 20. In a table of groups with many cells it is as few as 5:
            the cells of a group differ more than the particles of a cell.
        weighted
            Whether growth counts.
        n_neighbors
            Number of cells nearest to the end of a particle, among those of that time point, whose clusters it shares.
        noise
            Factor on the diffusion of the field: how much cells of one place differ in their ways. By default 2,
            because clones, where they are known, part by more than couplings do; and 1 where ``epsilon`` was chosen by
            clones. With 0, or ``False``, particles follow the velocity alone. The population would move alike with any
            if the field had no error.
        n_steps
            Number of steps.
        random_state
            Seed of the noise, and of the cells of a group where there are many.
        device
            Torch device; ``"auto"`` takes a GPU where there is one.
        show_progress_bar
            Whether to show a progress bar.

        Returns
        -------
        The table, a DataFrame with cells or groups as rows and clusters as columns, and its intervals.

        Raises
        ------
        KeyError
            If a cluster or a key is unknown.
        ValueError
            If no cell is selected, one is not earlier than ``until``, or an option is out of range.

        Examples
        --------
        >>> fates = sk.fate_probabilities(
        ...     group_by="clusters", terminal_clusters=["Fate A", "Fate B"]
        ... )
        >>> sorted(fates.table.index), bool(np.allclose(fates.table.sum(axis=1), 1))
        (['Progenitor A', 'Progenitor B'], True)
        >>> one = sk.fate_probabilities("Progenitor B", n_particles=5)  # a row for each cell
        """
        points = self.cells.time_points
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
            options=SimulationOptions(noise=self._noise(noise), n_steps=n_steps, random_state=random_state),
            run=Run(device=device, show_progress_bar=show_progress_bar),
        )

    @all_or_nothing()
    def ancestry(
        self,
        cells: Cells | None = None,
        initial_clusters: str | Sequence[str] | None = None,
        *,
        cluster_key: str | None = None,
        group_by: str | None = None,
        until: float | None = None,
        n_particles: int | None = None,
        n_neighbors: int = 15,
        noise: bool | float | None = None,
        n_steps: int = SimulationOptions.n_steps,
        random_state: int = SimulationOptions.random_state,
        device: str = "auto",
        show_progress_bar: bool = False,
    ) -> ProcessFates:
        """Return the shares of the ancestors of cells in each cluster at an earlier time.

        Particles follow the reversed process from each cell. Ancestors need no weight.

        Parameters
        ----------
        cells
            Cells: names, a mask, ``{"clusters": "Neu"}``, or the name of a cluster. Those of the last time point where
            not given. All must be later than ``until``.
        initial_clusters
            Clusters to tell apart; what comes from others is summed as ``"rest"``. All where not given.
        cluster_key
            Key in ``adata.obs`` of the clusters; that of the kernel, or ``"clusters"``, where not given.
        group_by
            Key in ``adata.obs`` of groups to sum up; each cell by itself where not given.
        until
            The earlier time, in units of ``time_key``; the first time point where not given.
        n_particles
            Number of particles from each cell. By default 20. In a table of groups with many cells it is as few as 5:
            the cells of a group differ more than the particles of a cell.
        n_neighbors
            Number of cells nearest to the end of a particle, among those of that time point, whose clusters it shares.
        noise
            Factor on the diffusion of the field: how much cells of one place differ in their ways. By default 2,
            because clones, where they are known, part by more than couplings do; and 1 where ``epsilon`` was chosen by
            clones. With 0, or ``False``, particles follow the velocity alone. The population would move alike with any
            if the field had no error.
        n_steps
            Number of steps.
        random_state
            Seed of the noise, and of the cells of a group where there are many.
        device
            Torch device; ``"auto"`` takes a GPU where there is one.
        show_progress_bar
            Whether to show a progress bar.

        Returns
        -------
        The table, a DataFrame with cells or groups as rows and clusters as columns, and its intervals.

        Raises
        ------
        KeyError
            If a cluster or a key is unknown.
        ValueError
            If no cell is selected, one is not later than ``until``, or an option is out of range.

        Examples
        --------
        >>> share = sk.ancestry(group_by="clusters", until=1).table["Progenitor B"]
        >>> bool(share["Fate B"] > share["Fate A"])
        True
        """
        points = self.cells.time_points
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
            options=SimulationOptions(noise=self._noise(noise), n_steps=n_steps, random_state=random_state),
            run=Run(device=device, show_progress_bar=show_progress_bar),
        )

    def _noise(self, noise: bool | float | None) -> bool | float:
        """Return the factor on the diffusion of the field by which fates and ancestors part."""
        if noise is not None:
            return noise
        by_clones = getattr(self._options.get("velocity"), "clone_key", None) is not None
        return 1.0 if by_clones else FATE_NOISE

    def _process(self, starts: NDArray[np.int64], until: float, options: SimulationOptions, run: Run) -> ProcessPaths:
        """Let particles follow the process from cells, which may repeat."""
        check_extent(self.cells.x)
        if self.field is None:
            self.fit_field(show_progress_bar=run.show_progress_bar)
        field = self._needed("field", "fit_field")
        x, time = self.cells.x[starts], self.cells.time[starts]
        paths = simulate_process(field, x, time, until, options, start_ix=starts, run=run)
        n_lost = count_lost(paths, self.cells.x)
        if n_lost > MANY_LOST * paths.n_particles:
            logger.warning(
                "%d of %d particles ended far from all cells: their fates, those of the nearest ones, mean little",
                n_lost,
                paths.n_particles,
            )
        return paths

    def _starting(
        self, cells: CellSelector | str | Sequence[str] | None, cluster_key: str | None, time: float
    ) -> NDArray[np.int64]:
        """Return the numbers of the cells selected; those of a time point where a cluster, or nothing, is given."""
        if cells is None:
            return np.flatnonzero(self.cells.time == time)
        if isinstance(cells, str):
            clusters = self._clusters(cluster_key)
            check_known(f"adata.obs[{clusters.name!r}]", cells, clusters.cat.categories)
            chosen = (clusters == cells).to_numpy() & (self.cells.time == time)
            if not chosen.any():
                raise ValueError(f"Expected cells of {cells!r} at time `{time:g}`, found none.")
            return np.flatnonzero(chosen)
        chosen = np.flatnonzero(select_cells(self.adata, cells))
        if not chosen.size:
            raise ValueError("Expected cells to start from, found none.")
        return chosen

    def _descent(
        self,
        starts: NDArray[np.int64],
        until: float,
        names: str | Sequence[str] | None,
        cluster_key: str | None,
        group_by: str | None,
        *,
        n_particles: int | None,
        weighted: bool,
        n_neighbors: int,
        options: SimulationOptions,
        run: Run,
    ) -> ProcessFates:
        """Return the table of where particles come to."""
        if n_particles is not None:
            check_integer("n_particles", n_particles, low=1)
        check_integer("n_neighbors", n_neighbors, low=1)
        clusters = self._clusters(cluster_key)
        wanted = [names] if isinstance(names, str) else None if names is None else list(names)
        for name in wanted or ():
            check_known(f"adata.obs[{clusters.name!r}]", name, clusters.cat.categories)
        wanted = None if wanted is None else [str(name) for name in wanted]
        groups = self.adata.obs_names
        if group_by is not None:
            groups = pd.Index(read_clusters(self.adata, group_by).astype(str))
            starts = _some_of_each(starts, groups[starts], options.random_state)
        if n_particles is None:
            n_particles = N_PARTICLES
            if group_by is not None:
                n_particles = int(np.clip(PARTICLES_OF_GROUPS // starts.size, FEWEST_PARTICLES, N_PARTICLES))
        paths = self._process(np.repeat(starts, n_particles), until, options, run)
        points = self.cells.time_points
        nearest = points[np.abs(points - until).argmin()]
        around = np.flatnonzero(self.cells.time == nearest)
        codes = clusters.cat.codes.to_numpy()[around].astype(np.int64)
        categories = [str(name) for name in clusters.cat.categories]
        shares = labels_near(paths.ends, self.cells.x[around], codes, len(categories), n_neighbors)
        weights = paths.weights if weighted else np.ones(paths.n_particles)
        found = fate_table(shares, weights, groups[paths.start_ix], categories, wanted, options.random_state)
        if group_by is not None:
            _warn_where_alike(found.table, self.basis)
        return found


def _some_of_each(starts: NDArray[np.int64], groups: pd.Index, random_state: int) -> NDArray[np.int64]:
    """Return ``MAX_STARTS`` of the cells at most, as many of each group as there are, or as there is room for."""
    if starts.size <= MAX_STARTS:
        return starts
    rng, room = np.random.default_rng(random_state), MAX_STARTS
    code = pd.factorize(groups, sort=True)[0]
    sizes = np.bincount(code)
    chosen = []
    for left, group in zip(range(sizes.size, 0, -1), np.argsort(sizes, kind="stable"), strict=True):
        size = int(min(sizes[group], max(room // left, 1)))
        chosen.append(rng.choice(starts[code == group], size, replace=False))
        room -= size
    return np.sort(np.concatenate(chosen))


def _warn_where_alike(table: pd.DataFrame, basis: str) -> None:
    """Warn where all groups have the same descendants, or ancestors."""
    fates = table.to_numpy(dtype=np.float64)
    fates = fates[np.isfinite(fates).all(axis=1)]
    if len(fates) < FEWEST_GROUPS or fates.shape[1] < 2:
        return
    apart = 0.5 * np.abs(fates[:, None] - fates[None]).sum(axis=2).max()
    if apart < ALIKE and fates.mean(axis=0).max() < 1 - ALIKE:
        logger.warning(
            "All %d groups have nearly the same descendants or ancestors: cells of different groups lie at the same "
            "places of `%s`. A basis of more dimensions may tell them apart, or one with places in the tissue: "
            "`adata.obsm['X_joint'] = numpy.hstack([adata.obsm['%s'], scale * adata.obsm['spatial']])`",
            *(len(fates), basis, basis),
        )
