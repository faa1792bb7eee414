"""What the field makes of cells: trajectories, flow, and velocities in an embedding, as methods of the kernel."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellrank_velot._utils.options import Run
from cellrank_velot._utils.validation import check_choice
from cellrank_velot.cells import (
    CellSelector,
    CellStates,
    Interval,
    cells_in_box,
    cells_in_cluster,
    cells_in_time,
    find_basis,
    find_cluster_key,
    read_basis,
    read_clusters,
    read_embedding,
    select_cells,
)
from cellrank_velot.dynamics import (
    Direction,
    Field,
    FlowOptions,
    Interpolated,
    Method,
    Rescaled,
    TimeFrom,
    Trajectories,
    TrajectoryOptions,
    compute_trajectories,
    simulate_flow,
)
from cellrank_velot.embedding.projection import Weighting, project_by_linear_map, project_by_transitions
from cellrank_velot.kernel._atomic import all_or_nothing
from cellrank_velot.kernel.base import BaseVelocityKernel
from cellrank_velot.kernel.velocities import Velocities
from cellrank_velot.storage import pack as storage

__all__ = ["Dynamics", "Projection", "clusters_for", "first_tenth", "starts_for"]

logger = logging.getLogger("cellrank_velot")

Projection = Literal["transitions", "linear_map"]


class Dynamics(Velocities):
    """Methods of the kernel that move cells along its field, or its velocities to an embedding."""

    @all_or_nothing(writes=True)
    def compute_trajectories(
        self,
        start_ixs: CellSelector | None = None,
        start_cluster: str | Sequence[str] | None = None,
        target_cluster: str | Sequence[str] | None = None,
        *,
        start_time: Interval | None = None,
        cluster_key: str | None = None,
        direction: Direction | None = None,
        n_trajectories: int = TrajectoryOptions.n_trajectories,
        n_steps: int | None = TrajectoryOptions.n_steps,
        step_size: float = TrajectoryOptions.step_size,
        method: Method = TrajectoryOptions.method,
        rtol: float = TrajectoryOptions.rtol,
        atol: float = TrajectoryOptions.atol,
        time_from: TimeFrom | None = None,
        use_network: bool = True,
        smooth: bool = True,
        confine: float = TrajectoryOptions.confine,
        max_distance: float = TrajectoryOptions.max_distance,
        min_speed: float = TrajectoryOptions.min_speed,
        n_neighbors: int = TrajectoryOptions.n_neighbors,
        max_attempts_factor: int = TrajectoryOptions.max_attempts_factor,
        save_every: int = TrajectoryOptions.save_every,
        random_state: int = TrajectoryOptions.random_state,
        device: str = "auto",
        key_added: str | None = "velot_trajectories",
        show_progress_bar: bool = True,
    ) -> Trajectories:
        """Follow cells along the velocity, forward or backward in time.

        Each trajectory ends with a status. It *arrived* at the target; it *stalled at a sink*, slower than
        ``min_speed``; it *left the data*, and its path ends where it was last among them; it *ran out of steps*; or,
        with ``time_from="path"``, it *came to the end of time*. Runs the steps before that were not run; a transition
        matrix that was not made with the field stays.

        Parameters
        ----------
        start_ixs
            Cells to start from: positions, names or a mask, or CellRank's selector such as
            ``{"clusters": "Ngn3 low EP"}`` or ``{"dpt_pseudotime": [0, 0.1]}``; all cells where not given.
        start_cluster
            Cluster, or several, that the starts are in; any where not given.
        target_cluster
            Cluster, or several, to arrive at: only trajectories that come to one are kept, and each ends at its last
            point before it leaves it. A message says how many arrived. All are kept where not given.
        start_time
            From which time to which time the starts are, of the kernel's time; ``None`` for no bound.
            Cells must meet all conditions that are given.
        cluster_key
            Key in ``adata.obs`` of the clusters; that of the kernel, or ``"clusters"``, where not given.
        direction
            ``"forward"`` or ``"backward"`` in time, or ``"both"`` for two trajectories from each start; that of the
            kernel where not given.
        n_trajectories
            Number of trajectories, in each direction.
        n_steps
            Largest number of steps. Where not given, particles move until all have arrived, stalled or left the data,
            or as long as one at ``min_speed`` takes for the whole of time: ``1 / (min_speed * step_size)`` steps, 1000
            by default, and never more than 10 000.
        step_size
            Time of one step, as a share of the whole time. It must be short enough for particles to take several steps
            between one cell and the next.
        method
            Solver: ``"euler"``, ``"rk4"``, or ``"dopri5"``, which takes as many steps within ``step_size`` as its
            tolerances demand.
        rtol, atol
            Relative and absolute tolerance of ``"dopri5"``.
        time_from
            Time that goes into the field: ``"cells"``, the mean time of the cells around; ``"path"``, which moves on
            from the time of the start to the end of time; or ``"start"``, which stays that of the start. In pseudotime
            ``"cells"``, else ``"path"``, where not given.
        use_network
            Whether to follow the field. Otherwise particles follow the mean velocity of the nearest cells.
        smooth
            With ``use_network=False``, whether that is the velocity of the field at the cells or of transport.
        confine
            How fast a particle returns to the data: while it moves by the spacing of the cells, its distance from the
            mean of the cells around it falls by the factor ``exp(-confine)``. With 0 it follows the velocity alone,
            whose errors add up along a path until it leaves the data.
        max_distance
            Distance from the data at which a particle has left them, in units of the spacing of the cells nearby. A
            cell lies at about 1.
        min_speed
            Speed below which a particle has stalled, as a share of the mean speed of the cells. It is measured
            over half of the spacing of the cells, so that a particle that moves in a small circle has stalled, too.
        n_neighbors
            Number of nearest cells, five at least, that attract a particle, give its time and vote on its cluster.
        max_attempts_factor
            With a target, up to this many times ``n_trajectories`` starts are tried.
        save_every
            Number of steps from one point kept to the next.
        random_state
            Seed of the choice of starts.
        device
            Torch device; ``"auto"`` takes a GPU where there is one.
        key_added
            Key in ``adata.uns`` to write the trajectories to; ``None`` writes nothing.
        show_progress_bar
            Whether to show a progress bar.

        Returns
        -------
        The trajectories, at most ``n_trajectories`` in each direction.

        Raises
        ------
        KeyError
            If a cell, column or cluster is unknown.
        ValueError
            If no cell meets all conditions, or an option is out of range.

        Examples
        --------
        >>> paths = vk.compute_trajectories(
        ...     start_cluster="Progenitor",
        ...     target_cluster="Fate A",
        ...     n_trajectories=2,
        ...     step_size=0.03,
        ... )
        >>> len(paths), set(paths.statuses)
        (2, {'arrived'})
        >>> late = {"dpt_pseudotime": [0.9, 1.0]}
        >>> back = vk.compute_trajectories(late, direction="backward", n_trajectories=3, n_steps=20)
        >>> bool((back.direction == -1).all())
        True
        """
        options = TrajectoryOptions(
            direction=self._direction(direction),
            n_trajectories=n_trajectories,
            n_steps=n_steps,
            step_size=step_size,
            method=method,
            rtol=rtol,
            atol=atol,
            time_from=self._time_from(time_from),
            confine=confine,
            max_distance=max_distance,
            min_speed=min_speed,
            n_neighbors=n_neighbors,
            max_attempts_factor=max_attempts_factor,
            save_every=save_every,
            random_state=random_state,
        )
        run = Run(device=device, show_progress_bar=show_progress_bar)
        clusters, cluster_key = clusters_for(self, cluster_key, start_cluster, target_cluster)
        starts = starts_for(self, start_ixs, cluster_key, start_cluster, start_time)
        field, current = self._velocity_to_follow(options.direction, use_network, smooth, run)
        paths = compute_trajectories(
            field,
            self.cells.x,
            self.cells.unit_time,
            np.flatnonzero(starts),
            options,
            clusters=clusters,
            target_cluster=target_cluster,
            current=current,
            run=run,
        )
        return self._kept(paths, key_added)

    @all_or_nothing(writes=True)
    def simulate_flow(
        self,
        start_ixs: CellSelector | None = None,
        source_cluster: str | Sequence[str] | None = None,
        terminal_clusters: str | Sequence[str] | None = None,
        *,
        source_time: Interval | None = None,
        source_x_lim: Interval = (None, None),
        source_y_lim: Interval = (None, None),
        basis: str = "umap",
        cluster_key: str | None = None,
        direction: Direction | None = None,
        n_particles: int = FlowOptions.n_particles,
        n_steps: int | None = FlowOptions.n_steps,
        step_size: float = FlowOptions.step_size,
        diffusion: float = FlowOptions.diffusion,
        noise_scale: float = FlowOptions.noise_scale,
        time_from: TimeFrom | None = None,
        use_network: bool = True,
        smooth: bool = True,
        confine: float = FlowOptions.confine,
        max_distance: float = FlowOptions.max_distance,
        min_speed: float = FlowOptions.min_speed,
        n_neighbors: int = FlowOptions.n_neighbors,
        save_every: int = FlowOptions.save_every,
        random_state: int = FlowOptions.random_state,
        device: str = "auto",
        key_added: str | None = "velot_flow",
        show_progress_bar: bool = True,
    ) -> Trajectories:
        """Let particles drift and diffuse along the velocity, and see where they come to.

        Runs the steps before that were not run; a transition matrix that was not made with the field stays.

        Parameters
        ----------
        start_ixs
            Cells that particles start from: positions, names or a mask, or CellRank's selector such as
            ``{"clusters": "Ngn3 low EP"}``. Where no cells, cluster, time or box are given, those of the first tenth of
            time; backward, of the last.
        source_cluster
            Cluster, or several, that the starts are in; any where not given.
        terminal_clusters
            Fates: a particle that comes to one ends there, at its last point before it leaves it. Without them its
            fate is the cluster where it ends.
        source_time
            From which time to which time the starts are, of the kernel's time; ``None`` for no bound.
            Cells must meet all conditions that are given.
        source_x_lim, source_y_lim
            Box in the embedding that particles start from; ``None`` for no bound.
        basis
            Key in ``adata.obsm`` of the embedding of the box, with or without ``X_``.
        cluster_key
            Key in ``adata.obs`` of the clusters; that of the kernel, or ``"clusters"``, where not given.
        direction
            ``"forward"`` or ``"backward"`` in time, or ``"both"``; that of the kernel where not given.
        n_particles
            Number of particles, in each direction, spread over the starts evenly. Memory grows with the number of
            particles, and of steps that they take, over ``save_every``.
        n_steps
            Largest number of steps. Where not given, particles move until all have arrived, stalled or left the data,
            or as long as one at ``min_speed`` takes for the whole of time: ``1 / (min_speed * step_size)`` steps, 1000
            by default, and never more than 10 000. A message says how many particles came to no fate.
        step_size
            Time of one step, as a share of the whole time.
        diffusion
            Strength of the noise: 0 for none, up to 0.5 mild, from 1 on strong. At 1, where a particle was among the
            cells around no longer matters once it has moved by their spacing.
        noise_scale
            Noise on the starts: its root mean squared length, as a share of the spacing of the cells.
        time_from
            Time that goes into the field: ``"cells"``, the mean time of the cells around; ``"path"``, which moves on
            from the time of the start to the end of time; or ``"start"``, which stays that of the start. In pseudotime
            ``"cells"``, else ``"path"``, where not given.
        use_network
            Whether to follow the field. Otherwise particles follow the mean velocity of the nearest cells.
        smooth
            With ``use_network=False``, whether that is the velocity of the field at the cells or of transport.
        confine
            How fast a particle returns to the data: while it moves by the spacing of the cells, its distance from the
            mean of the cells around it falls by the factor ``exp(-confine)``. Only what exceeds ``diffusion`` counts,
            which draws particles back, too.
        max_distance
            Distance from the data at which a particle has left them, in units of the spacing of the cells nearby. A
            cell lies at about 1.
        min_speed
            Speed below which a particle has stalled, as a share of the mean speed of the cells. It is measured
            over half of the spacing of the cells. A particle that noise moves to and fro has stalled where its mean
            position moves by less than its scatter, over the time in which such a slow one passes the whole spacing.
        n_neighbors
            Number of nearest cells, five at least, that attract a particle, give its time and vote on its cluster.
        save_every
            Number of steps from one point kept to the next.
        random_state
            Seed of starts and noise.
        device
            Torch device; ``"auto"`` takes a GPU where there is one.
        key_added
            Key in ``adata.uns`` to write the paths to; ``None`` writes nothing.
        show_progress_bar
            Whether to show a progress bar.

        Returns
        -------
        The paths; their :meth:`~cellrank_velot.dynamics.Trajectories.fates` are the shares of each cluster.

        Raises
        ------
        KeyError
            If a cell, column, cluster or the embedding is unknown.
        ValueError
            If no cell meets all conditions, or an option is out of range.

        Examples
        --------
        >>> fates = ["Fate A", "Fate B"]
        >>> flow = vk.simulate_flow(
        ...     source_cluster="Progenitor", terminal_clusters=fates, n_particles=30, step_size=0.02
        ... )
        >>> flow.fates().index.tolist()
        ['Fate A', 'Fate B', 'none']
        """
        options = FlowOptions(
            direction=self._direction(direction),
            n_particles=n_particles,
            n_steps=n_steps,
            step_size=step_size,
            diffusion=diffusion,
            noise_scale=noise_scale,
            time_from=self._time_from(time_from),
            confine=confine,
            max_distance=max_distance,
            min_speed=min_speed,
            n_neighbors=n_neighbors,
            save_every=save_every,
            random_state=random_state,
        )
        run = Run(device=device, show_progress_bar=show_progress_bar)
        clusters, cluster_key = clusters_for(self, cluster_key, source_cluster, terminal_clusters)
        boxed = (*source_x_lim, *source_y_lim) != (None,) * 4
        if start_ixs is None and source_cluster is None and source_time is None and not boxed:
            source_time = first_tenth(self.cells, backward=options.direction == "backward")
        starts = starts_for(self, start_ixs, cluster_key, source_cluster, source_time)
        if boxed:
            starts &= cells_in_box(read_embedding(self.adata, basis)[0], source_x_lim, source_y_lim)
        field, current = self._velocity_to_follow(options.direction, use_network, smooth, run)
        paths = simulate_flow(
            field,
            self.cells.x,
            self.cells.unit_time,
            np.flatnonzero(starts),
            options,
            clusters=clusters,
            terminal_clusters=terminal_clusters,
            current=current,
            run=run,
        )
        return self._kept(paths, key_added)

    @all_or_nothing(writes=True)
    def project_velocity(
        self,
        basis: str = "umap",
        method: Projection = "transitions",
        *,
        weighting: Weighting = "none",
        smooth: bool = True,
        n_neighbors: int | None = None,
        ridge: float = 0.2,
        key_added: str | None = None,
    ) -> NDArray[np.float64]:
        """Project the velocity to an embedding, and write it where scVelo's plots look for it.

        Parameters
        ----------
        basis
            Key in ``adata.obsm`` of an embedding, with or without ``X_``.
        method
            ``"transitions"`` for the mean direction to the neighbours by the transition matrix, less their mean
            direction without it :cite:`bergen:20`. ``"linear_map"`` for the linear map that takes the displacements to
            the neighbours from the basis to the embedding.
        weighting
            With ``"transitions"``, weights of the neighbours: ``"none"``, ``"distance"`` in the embedding, or
            ``"confidence"`` in their velocities.
        smooth
            With ``"linear_map"``, whether to project the velocity of the field, or that of transport.
        n_neighbors
            With ``"linear_map"``, number of nearest cells; those of the neighbour graph where not given.
        ridge
            With ``"linear_map"``, penalty on large maps, as the ratio of noise to signal in the displacements.
        key_added
            Key in ``adata.obsm`` to write to; ``"velocity_{basis}"`` where not given.

        Returns
        -------
        The projected velocities, shape ``[n_cells, n_embedding_dims]``: units of the embedding per unit of time by the
        linear map, dimensionless and at most 2 by the transitions. Those of a backward kernel point back in time.

        Raises
        ------
        KeyError
            If the embedding is missing.
        RuntimeError
            If the transition matrix, or the field, was not computed.

        Examples
        --------
        >>> vk.project_velocity("umap").shape
        (300, 2)
        >>> vk.project_velocity("umap", method="linear_map", key_added="velocity_map_umap")[0].shape
        (2,)
        >>> sorted(key for key in adata.obsm if key.startswith("velocity"))
        ['velocity_map_umap', 'velocity_umap']
        """
        check_choice("method", method, Projection)
        check_choice("weighting", weighting, Weighting)
        if method == "linear_map" and weighting != "none":
            raise ValueError(f"Expected `weighting` with `method='transitions'` only, found {weighting!r}.")
        if method == "transitions" and (n_neighbors is not None or not smooth):
            raise ValueError("Expected `n_neighbors` and `smooth` with `method='linear_map'` only.")
        key = find_basis(self.adata, basis)
        embedding = read_basis(self.adata, key)
        name = key.removeprefix("X_")
        if "tsne" in name.lower().replace("-", "").replace("_", ""):
            logger.warning("Distances between clusters mean little in a t-SNE: read arrows within clusters only")
        if method == "transitions":
            velocity = project_by_transitions(
                self._needed("transition_matrix", "compute_transition_matrix"),
                embedding,
                graph=self.connectivities if self.params.get("weighted", True) else None,
                weighting=weighting,
                confidence=self.confidence if weighting == "confidence" else None,
            )
        else:
            velocity = project_by_linear_map(
                self.cells.x,
                self.velocity if smooth else self.raw_velocity,
                embedding,
                self.connectivities if n_neighbors is None else None,
                ridge=ridge,
                **({} if n_neighbors is None else {"n_neighbors": n_neighbors}),
            ) * (-1.0 if self.backward else 1.0)
        self.adata.obsm[key_added or f"velocity_{name}"] = velocity
        return velocity

    # -------------------------------------------------------------------------------------------------- private
    def _kept(self, paths: Trajectories, key_added: str | None) -> Trajectories:
        """Return the paths with their basis and in the kernel's time, and write them to AnnData."""
        if self.cells.is_series:
            first, last = self.cells.time_range
            paths = replace(paths, time=first + (last - first) * paths.time)
        paths = replace(paths, basis=self.basis)
        if key_added is not None:
            storage.write_trajectories(self.adata, key_added, paths)
        return paths

    def _direction(self, direction: Direction | None) -> Direction:
        if direction is None:
            return "backward" if self.backward else "forward"
        return direction

    def _time_from(self, time_from: TimeFrom | None) -> TimeFrom:
        return time_from or ("path" if self.cells.is_series else "cells")

    def _velocity_to_follow(
        self, direction: Direction, use_network: bool, smooth: bool, run: Run
    ) -> tuple[Field, Field | None]:
        """Return the velocity and, for the way back, the part of it that changes its sign. Run steps that are missing.

        A time series has both per whole time, which paths are computed in.
        """
        x, time = self.cells.x, self.cells.time
        field: Field
        current: Field | None = None
        where: dict[str, Any] = {"device": run.device, "show_progress_bar": run.show_progress_bar}
        if use_network or smooth:
            if self.field is None:
                self.fit_field(**where)
            fitted = self._needed("field", "fit_field")
            back = self.current_field(**where) if direction != "forward" else None
            field = fitted if use_network else Interpolated(x, fitted(x, time))
            if back is not None:
                current = back if use_network else Interpolated(x, back(x, time))
        else:
            if self.transport is None:
                self.compute_velocity(**where)
            transport = self._needed("transport", "compute_velocity")
            field = Interpolated(x, transport.velocity)
            current = Interpolated(x, transport.velocity - transport.relaxation)
        if not self.cells.is_series:
            return field, current
        ends = self.cells.time_range
        return Rescaled(field, *ends), None if current is None else Rescaled(current, *ends)


def first_tenth(cells: CellStates, *, backward: bool = False) -> Interval:
    """Return the first tenth of the time of ``cells``, or the last one if ``backward``."""
    first, last = cells.time_range
    tenth = (last - first) / 10
    return (last - tenth, None) if backward else (None, first + tenth)


def clusters_for(
    kernel: BaseVelocityKernel, cluster_key: str | None, *names: str | Sequence[str] | None
) -> tuple[pd.Series | None, str | None]:
    """Return the clusters of a kernel and their key, both ``None`` where there are none.

    ``cluster_key`` is the one asked for, or else that of the kernel. Each of ``names`` that is not ``None`` must be a
    cluster, or several.
    """
    named = [name for name in names if name is not None]
    key = find_cluster_key(kernel.adata, cluster_key, kernel.cluster_key)
    if key is None:
        if named:
            raise KeyError(
                "Expected the `cluster_key` of the clusters asked for, found none; `adata.obs` has the keys "
                f"{sorted(map(str, kernel.adata.obs.columns))}."
            )
        return None, None
    for name in named:
        cells_in_cluster(kernel.adata, key, name)
    return read_clusters(kernel.adata, key), key


def starts_for(
    kernel: BaseVelocityKernel,
    start_ixs: CellSelector | None,
    cluster_key: str | None,
    cluster: str | Sequence[str] | None,
    time: Interval | None,
) -> NDArray[np.bool_]:
    """Return the cells of a kernel that meet all conditions, shape ``[n_cells]``.

    ``start_ixs`` selects cells, ``cluster`` names clusters of ``adata.obs[cluster_key]``, and ``time`` is a range in
    the units of the kernel.
    """
    starts = select_cells(kernel.adata, start_ixs)
    if cluster is not None and cluster_key is not None:
        starts &= cells_in_cluster(kernel.adata, cluster_key, cluster)
    if time is not None:
        starts &= cells_in_time(kernel.cells.time, "time", time)
    if not starts.any():
        raise ValueError("Expected cells that meet all conditions on the start, found none.")
    return starts
