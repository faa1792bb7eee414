"""Flow: particles that drift and diffuse through the velocity field, and where they come to.

Depends on the rest of this folder, numpy and torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cellrank_velot._utils.device import resolve_device
from cellrank_velot._utils.validation import check_choice, check_integer, check_number
from cellrank_velot.dynamics.guide import Field, TimeFrom, drift_of, guided, mean_speed, noisy
from cellrank_velot.dynamics.motion import SIGNS, Direction, Limits, check_motion_options, move
from cellrank_velot.dynamics.paths import Trajectories, join
from cellrank_velot.dynamics.region import Companions, Region
from cellrank_velot.dynamics.solvers import OdeStep, SdeStep, Step
from cellrank_velot.dynamics.starts import check_starts, codes_of, target_codes

__all__ = ["check_flow_options", "simulate_flow"]

# Noise carries a particle about between two steps of the flow, so that an exact search for each would be in vain.
SEARCH_EVERY = 0.25


def simulate_flow(
    field: Field,
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    starts: NDArray[np.int64] | Sequence[int],
    *,
    clusters: Sequence[Any] | None = None,
    terminal_clusters: str | Sequence[str] | None = None,
    current: Field | None = None,
    direction: Direction = "forward",
    n_particles: int = 200,
    n_steps: int = 300,
    step_size: float = 0.005,
    diffusion: float = 1.0,
    noise_scale: float = 0.0,
    time_from: TimeFrom = "cells",
    confine: float = 0.7,
    max_distance: float = 2.5,
    min_speed: float = 0.1,
    n_neighbors: int = 15,
    save_every: int = 1,
    random_state: int = 0,
    device: str = "auto",
    show_progress_bar: bool = False,
) -> Trajectories:
    r"""Let particles drift and diffuse through a velocity field.

    Euler-Maruyama for :math:`dx = [v + \kappa (m - x)] \, dt + \sqrt{2 \kappa} \, \Sigma^{1/2} \, dW` with the velocity
    :math:`v`, the mean :math:`m` and covariance :math:`\Sigma` of the cells around the particle, and
    :math:`\kappa = \text{diffusion} \cdot |v| / \ell`, where :math:`\ell` is the typical spacing of the cells. The
    noise scales with the local speed, and runs along the data: it spreads particles as the cells are spread, see
    :func:`cellrank_velot.dynamics.guide.noisy`.

    Parameters
    ----------
    field
        The velocity, such as a :class:`cellrank_velot.field.VelocityField`, or :class:`Interpolated`.
    x, time
        Positions and times of the cells, shapes ``[n_cells, n_dims]`` and ``[n_cells]``, times in ``[0, 1]``.
    starts
        Positions of the cells to start from, shape ``[n_starts]``; particles are spread over them evenly.
    clusters
        Cluster of each cell, of length ``n_cells``; particles have no fates where not given.
    terminal_clusters
        Fates: a particle that comes to one ends at its last point before it leaves it, as in a chain that is absorbed
        there. Without them its fate is the cluster where it ends.
    current
        See :func:`compute_trajectories`.
    direction
        ``"forward"``, ``"backward"`` or ``"both"``.
    n_particles
        Number of particles, in each direction.
    n_steps
        Largest number of steps.
    step_size
        Time of one step.
    diffusion
        Strength of the noise: 0 for none, up to 0.5 mild, from 1 on strong. At 1, a particle has forgotten where among
        the cells around it was by the time that it has moved by their spacing.
    confine
        See :func:`compute_trajectories`; counts where it is larger than ``diffusion``, which draws particles back, too.
    noise_scale
        Noise on the starts: its root mean squared length, as a share of the spacing of the cells.
    time_from, max_distance, min_speed, n_neighbors, save_every
        See :func:`compute_trajectories`. Memory grows with ``n_particles * n_steps / save_every``.
    random_state
        Seed of starts and noise.
    device
        Torch device, or ``"auto"``.
    show_progress_bar
        Whether to show a progress bar.

    Returns
    -------
    The paths; :meth:`Trajectories.fates` counts where they came to.

    Raises
    ------
    KeyError
        If a terminal cluster is not among the clusters.
    ValueError
        If there are no starts, an option is out of range, or terminal clusters come without clusters.

    Examples
    --------
    >>> x, time, early = vk.cells.x, vk.cells.time, np.flatnonzero(vk.cells.time < 0.1)
    >>> clusters = adata.obs["clusters"].tolist()
    >>> field = dynamics.Interpolated(x, vk.raw_velocity)
    >>> flow = dynamics.simulate_flow(
    ...     field, x, time, early, clusters=clusters, n_particles=30, n_steps=50
    ... )
    >>> flow.fates().columns.tolist()
    ['n_particles', 'share', 'probability', 'low', 'high']
    """
    check_flow_options(direction, n_particles, diffusion, noise_scale)
    check_motion_options(
        n_steps, step_size, save_every, time_from, confine, max_distance, min_speed, n_neighbors, random_state
    )
    labels, names = codes_of(clusters, x.shape[0])
    targets = target_codes(terminal_clusters, names)
    starts = check_starts(starts, x.shape[0])
    where = resolve_device(device)
    rng = np.random.default_rng(random_state)
    chosen = rng.permutation(np.resize(rng.permutation(starts), n_particles))
    region = Region.of(x, time, labels, n_neighbors=n_neighbors, random_state=random_state, device=where)
    spacing, n_dims = region.typical_spacing, x.shape[1]
    limits = Limits(
        n_steps=n_steps,
        step_size=step_size,
        max_distance=max_distance,
        min_speed=min_speed * mean_speed(field, x, time),
        save_every=save_every,
    )
    found = []
    for sign in SIGNS[direction]:
        companions = Companions(region, SEARCH_EVERY)
        drift = drift_of(field, current, sign, where)
        step: Step = OdeStep(guided(drift, companions, confine, time_from, step_size), "euler")
        if diffusion > 0:
            generator = torch.Generator(where).manual_seed(int(rng.integers(2**31)))
            step = SdeStep(
                noisy(drift, companions, diffusion, confine, time_from, step_size),
                region.n_neighbors,
                generator,
            )
        paths = move(
            step,
            x[chosen] + noise_scale * spacing * n_dims**-0.5 * rng.normal(size=(chosen.size, n_dims)),
            time[chosen],
            companions,
            limits,
            sign=sign,
            time_from=time_from,
            start_ix=chosen,
            clusters=names,
            targets=targets,
            show_progress_bar=show_progress_bar,
        )
        found.append(paths)
    return join(found)


def check_flow_options(direction: str, n_particles: int, diffusion: float, noise_scale: float) -> None:
    """Refuse options of :func:`simulate_flow` that are out of range.

    Raises
    ------
    TypeError, ValueError
        If one is.
    """
    check_choice("direction", direction, Direction)
    check_integer("n_particles", n_particles, low=1)
    check_number("diffusion", diffusion, low=0)
    check_number("noise_scale", noise_scale, low=0)
