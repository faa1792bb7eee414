"""What the field makes of cells: trajectories, flow, and velocities in an embedding.

Thin calls of :mod:`cellrank_velot.dynamics` and :mod:`cellrank_velot.embedding.projection`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellrank_velot._utils.device import resolve_device
from cellrank_velot._utils.validation import check_choice, check_known
from cellrank_velot.cells.read import find_basis
from cellrank_velot.cells.select import (
    CellSelector,
    Interval,
    cells_in_box,
    cells_in_cluster,
    cells_in_time,
    select_cells,
)
from cellrank_velot.dynamics import (
    Direction,
    Field,
    Interpolated,
    Method,
    Rescaled,
    TimeFrom,
    Trajectories,
    compute_trajectories,
    simulate_flow,
)
from cellrank_velot.dynamics.flow import check_flow_options
from cellrank_velot.dynamics.motion import check_motion_options
from cellrank_velot.dynamics.trajectories import check_trajectory_options
from cellrank_velot.embedding.projection import Weighting, project_by_linear_map, project_by_transitions
from cellrank_velot.kernel._parts import Parts
from cellrank_velot.kernel._whole import all_or_nothing
from cellrank_velot.storage import pack as storage

__all__ = ["Dynamics", "Projection"]

logger = logging.getLogger("cellrank_velot")

Projection = Literal["transitions", "linear_map"]


class Dynamics(Parts):
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
        n_trajectories: int = 20,
        n_steps: int = 400,
        step_size: float = 0.005,
        method: Method = "rk4",
        rtol: float = 1e-4,
        atol: float = 1e-6,
        time_from: TimeFrom | None = None,
        use_network: bool = True,
        smooth: bool = True,
        confine: float = 0.7,
        max_distance: float = 2.5,
        min_speed: float = 0.1,
        n_neighbors: int = 15,
        max_attempts_factor: int = 10,
        save_every: int = 1,
        random_state: int = 0,
        device: str = "auto",
        key_added: str | None = "velot_trajectories",
        show_progress_bar: bool = True,
    ) -> Trajectories:
        """Follow cells along the velocity, forward or backward in time.

        Each trajectory ends with a status: it *arrived* at the target, *stalled at a sink*, *left the data*, *ran out
        of steps*, or, with ``time_from="path"``, *came to the end of time*. Runs the steps before that were not run; a
        transition matrix that was not made with the field stays.

        Parameters
        ----------
        start_ixs
            Cells to start from: positions, names or a mask, or CellRank's selector such as
            ``{"clusters": "Ngn3 low EP"}`` or ``{"dpt_pseudotime": [0, 0.1]}``; all cells where not given.
        start_cluster
            Cluster, or several, that the starts are in; any where not given.
        target_cluster
            Cluster, or several, to arrive at: only trajectories that come to one are kept. As many as
            ``n_trajectories * max_attempts_factor`` starts are tried; a message says how many arrived. All
            trajectories are kept where not given.
        start_time
            From which time to which time the starts are, of the kernel's time; ``None`` for no bound.
            Cells must meet all conditions that are given.
        cluster_key
            Key in ``adata.obs`` of the clusters; that of the kernel, or ``"clusters"``, where not given.
        direction
            ``"forward"``, ``"backward"`` or ``"both"`` in time; that of the kernel where not given.
        use_network
            Whether to ask the field; the mean velocity of the nearest cells is taken otherwise.
        smooth
            With ``use_network=False``, whether that is the velocity of the field at the cells or of transport.
        n_trajectories, n_steps, step_size, method, rtol, atol, time_from, confine, max_distance, min_speed, \
n_neighbors, max_attempts_factor, save_every, random_state, device, show_progress_bar
            See :func:`cellrank_velot.dynamics.compute_trajectories`.
        key_added
            Key in ``adata.uns`` to write the trajectories to; ``None`` writes nothing.

        Returns
        -------
        The trajectories.

        Raises
        ------
        KeyError
            If a cell, column or cluster is unknown.
        ValueError
            If no cell meets all conditions, or an option is out of range.

        Examples
        --------
        >>> paths = vk.compute_trajectories(
        ...     start_cluster="Progenitor", target_cluster="Fate A", n_trajectories=2, step_size=0.03
        ... )
        >>> len(paths), set(paths.statuses)
        (2, {'arrived'})
        >>> late = {"dpt_pseudotime": [0.9, 1.0]}
        >>> back = vk.compute_trajectories(late, direction="backward", n_trajectories=3, n_steps=20)
        >>> bool((back.direction == -1).all())
        True
        """
        direction = self._direction(direction)
        time_from = time_from or ("path" if self.cells.is_series else "cells")
        check_trajectory_options(direction, n_trajectories, method, rtol, atol, max_attempts_factor)
        check_motion_options(
            n_steps, step_size, save_every, time_from, confine, max_distance, min_speed, n_neighbors, random_state
        )
        clusters, cluster_key = self._clusters_for(cluster_key, start_cluster, target_cluster)
        starts = self._starts(start_ixs, cluster_key, start_cluster, start_time)
        field, current = self._motion(direction, use_network, smooth, device, show_progress_bar)
        paths = compute_trajectories(
            field,
            self.cells.x,
            self.cells.unit_time,
            np.flatnonzero(starts),
            clusters=clusters,
            target_cluster=target_cluster,
            current=current,
            direction=direction,
            n_trajectories=n_trajectories,
            n_steps=n_steps,
            step_size=step_size,
            method=method,
            rtol=rtol,
            atol=atol,
            time_from=time_from,
            confine=confine,
            max_distance=max_distance,
            min_speed=min_speed,
            n_neighbors=n_neighbors,
            max_attempts_factor=max_attempts_factor,
            save_every=save_every,
            random_state=random_state,
            device=device,
            show_progress_bar=show_progress_bar,
        )
        paths = self._finished(paths)
        if key_added is not None:
            storage.write_trajectories(self.adata, key_added, paths)
        return paths

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
        n_particles: int = 200,
        n_steps: int = 300,
        step_size: float = 0.005,
        diffusion: float = 1.0,
        noise_scale: float = 0.0,
        time_from: TimeFrom | None = None,
        use_network: bool = True,
        smooth: bool = True,
        confine: float = 0.7,
        max_distance: float = 2.5,
        min_speed: float = 0.1,
        n_neighbors: int = 15,
        save_every: int = 1,
        random_state: int = 0,
        device: str = "auto",
        key_added: str | None = "velot_flow",
        show_progress_bar: bool = True,
    ) -> Trajectories:
        """Let particles drift and diffuse along the velocity, and see where they come to.

        Runs the steps before that were not run; a transition matrix that was not made with the field stays.

        Parameters
        ----------
        start_ixs, source_cluster, source_time
            Cells that particles start from, as for :meth:`compute_trajectories`. Where nothing is given, nor a box, the
            cells of the first tenth of time; backward, of the last.
        terminal_clusters
            Fates: a particle that comes to one ends there. Without them its fate is the cluster where it ends.
        source_x_lim, source_y_lim
            Box in the embedding that particles start from; ``None`` for no bound.
        basis
            Key in ``adata.obsm`` of the embedding of the box, with or without ``X_``.
        cluster_key, direction, use_network, smooth
            As for :meth:`compute_trajectories`.
        n_particles, n_steps, step_size, diffusion, noise_scale, time_from, confine, max_distance, min_speed, \
n_neighbors, save_every, random_state, device, show_progress_bar
            See :func:`cellrank_velot.dynamics.simulate_flow`.
        key_added
            Key in ``adata.uns`` to write the paths to; ``None`` writes nothing.

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
        direction = self._direction(direction)
        time_from = time_from or ("path" if self.cells.is_series else "cells")
        check_flow_options(direction, n_particles, diffusion, noise_scale)
        check_motion_options(
            n_steps, step_size, save_every, time_from, confine, max_distance, min_speed, n_neighbors, random_state
        )
        clusters, cluster_key = self._clusters_for(cluster_key, source_cluster, terminal_clusters)
        boxed = (*source_x_lim, *source_y_lim) != (None,) * 4
        if start_ixs is None and source_cluster is None and source_time is None and not boxed:
            first, last = self.cells.time_range
            tenth = (last - first) / 10
            source_time = (last - tenth, None) if direction == "backward" else (None, first + tenth)
        starts = self._starts(start_ixs, cluster_key, source_cluster, source_time)
        if boxed:
            embedding = np.asarray(self.adata.obsm[find_basis(self.adata, basis)], dtype=np.float64)
            starts &= cells_in_box(embedding, source_x_lim, source_y_lim)
        field, current = self._motion(direction, use_network, smooth, device, show_progress_bar)
        paths = simulate_flow(
            field,
            self.cells.x,
            self.cells.unit_time,
            np.flatnonzero(starts),
            clusters=clusters,
            terminal_clusters=terminal_clusters,
            current=current,
            direction=direction,
            n_particles=n_particles,
            n_steps=n_steps,
            step_size=step_size,
            diffusion=diffusion,
            noise_scale=noise_scale,
            time_from=time_from,
            confine=confine,
            max_distance=max_distance,
            min_speed=min_speed,
            n_neighbors=n_neighbors,
            save_every=save_every,
            random_state=random_state,
            device=device,
            show_progress_bar=show_progress_bar,
        )
        paths = self._finished(paths)
        if key_added is not None:
            storage.write_trajectories(self.adata, key_added, paths)
        return paths

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
        """Project the velocity to an embedding, where scVelo's plots find it.

        Parameters
        ----------
        basis
            Key in ``adata.obsm`` of an embedding, with or without ``X_``.
        method
            ``"transitions"`` for the expected step of the transition matrix, see
            :func:`cellrank_velot.embedding.projection.project_by_transitions`, or ``"linear_map"`` for the local linear
            map from the basis, see :func:`cellrank_velot.embedding.projection.project_by_linear_map`.
        weighting
            With ``"transitions"``, weights of the neighbours: ``"none"``, ``"distance"`` in the embedding, or
            ``"confidence"`` in their velocities.
        smooth
            With ``"linear_map"``, whether to project the velocity of the field, or that of transport.
        n_neighbors
            With ``"linear_map"``, number of nearest cells; those of the neighbour graph where not given.
        ridge
            With ``"linear_map"``, how much the map is held back where neighbours tell little.
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
        embedding = np.asarray(self.adata.obsm[key], dtype=np.float64)
        name = key.removeprefix("X_")
        if "tsne" in name.lower().replace("-", "").replace("_", ""):
            logger.warning("Distances between clusters mean little in a t-SNE: read arrows within clusters only")
        if method == "transitions":
            velocity = project_by_transitions(
                self._needed("transition_matrix", "compute_transition_matrix"),
                embedding,
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
    def _finished(self, paths: Trajectories) -> Trajectories:
        """Return the paths with their basis, and in the kernel's time."""
        if self.cells.is_series:
            first, last = self.cells.time_range
            paths = replace(paths, time=first + (last - first) * paths.time)
        return replace(paths, basis=self.basis)

    def _direction(self, direction: Direction | None) -> Direction:
        if direction is None:
            return "backward" if self.backward else "forward"
        check_choice("direction", direction, Direction)
        return direction

    def _clusters_for(
        self, cluster_key: str | None, *asked: str | Sequence[str] | None
    ) -> tuple[pd.Series | None, str | None]:
        """Return the clusters and their key, and complain where they are asked for and there are none."""
        key = cluster_key or self.cluster_key or ("clusters" if "clusters" in self.adata.obs else None)
        if key is None:
            if any(name is not None for name in asked):
                raise KeyError(
                    "Expected the `cluster_key` of the clusters asked for, found none; `adata.obs` has the keys "
                    f"{sorted(map(str, self.adata.obs.columns))}."
                )
            return None, None
        check_known("adata.obs", key, self.adata.obs.columns)
        for names in asked:
            if names is not None:
                cells_in_cluster(self.adata, key, names)
        return self.adata.obs[key].astype("category"), key

    def _starts(
        self,
        start_ixs: CellSelector | None,
        cluster_key: str | None,
        cluster: str | Sequence[str] | None,
        time: Interval | None,
    ) -> NDArray[np.bool_]:
        """Return the cells that meet all conditions."""
        starts = select_cells(self.adata, start_ixs)
        if cluster is not None and cluster_key is not None:
            starts &= cells_in_cluster(self.adata, cluster_key, cluster)
        if time is not None:
            starts &= cells_in_time(self.cells.time, "time", time)
        if not starts.any():
            raise ValueError("Expected cells that meet all conditions on the start, found none.")
        return starts

    def _motion(
        self, direction: Direction, use_network: bool, smooth: bool, device: str, show_progress_bar: bool
    ) -> tuple[Field, Field | None]:
        """Return the velocity to follow and the part of it that changes its sign, after the steps that are missing."""
        resolve_device(device)
        needs_field = use_network or smooth
        if needs_field and self.field is None:
            self.fit_field(device=device, show_progress_bar=show_progress_bar)
        if not needs_field and self.transport is None:
            self.compute_velocity(device=device, show_progress_bar=show_progress_bar)
        back = direction != "forward"
        x, time = self.cells.x, self.cells.time
        if not needs_field:
            transport = self._needed("transport", "compute_velocity")
            return self._unit(Interpolated(x, transport.velocity)), self._unit(
                Interpolated(x, transport.velocity - transport.relaxation)
            )
        field = self._needed("field", "fit_field")
        current = self.current_field(device=device, show_progress_bar=show_progress_bar) if back else None
        if use_network:
            return self._unit(field), None if current is None else self._unit(current)
        return self._unit(Interpolated(x, field(x, time))), (
            None if current is None else self._unit(Interpolated(x, current(x, time)))
        )

    def _unit(self, field: Field) -> Field:
        """Return a field in units of the whole time, which paths are computed in."""
        return Rescaled(field, *self.cells.time_range) if self.cells.is_series else field
